"""What starting and ending one of several processes changes in it."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from llc import distributed
from tests.conftest import ROOT
from tests.waiting import seconds

FAULTS = """
import resource, sys, torch
from llc.distributed import Processes
if sys.argv[1] == "started":
    Processes.start(timeout_minutes=1)
def faults_of(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(16 << 20)  # 64 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of(30)  # until the allocator's small leftovers of alignment stop changing
print(faults_of(5))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_used_again_without_asking_linux_for_its_pages():
    def faults(how):
        # no visible GPU, so that the process runs on the CPU
        run = subprocess.run(
            [sys.executable, "-c", FAULTS, how],
            capture_output=True,
            text=True,
            env={"CUDA_VISIBLE_DEVICES": ""},
        )
        assert not run.returncode, run.stderr
        return int(run.stdout)

    assert faults("plain") > 10_000, (
        "this C library keeps freed memory anyway, so the setting would be useless"
    )
    assert faults("started") < 100


@pytest.mark.parametrize(
    "variables, threads",
    [
        ({}, 6),  # all cores
        ({"OMP_NUM_THREADS": "2"}, None),  # torch has read it
        ({"OMP_NUM_THREADS": ""}, 6),
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2"}, None),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2"}, 3),  # torchrun's 1
    ],
)
def test_a_run_takes_the_threads_that_it_is_given(variables, threads, monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))
    monkeypatch.setattr(distributed, "_keep_freed_memory", lambda: None)
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.Processes.start(timeout_minutes=1)
    assert set_to == ([] if threads is None else [threads])


def test_a_process_whose_torchrun_has_ended_ends_too():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]  # freed again, so nothing will listen there
    torchrun = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    run = subprocess.run(
        [sys.executable, "-c", "from llc.distributed import Processes; Processes.start(timeout_minutes=5)"],
        capture_output=True,
        text=True,
        timeout=seconds(60),
        env={**os.environ, **torchrun, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (
        run.returncode
        and f"torchrun, which started this process, has ended: nothing listens at localhost:{port}"
        in run.stderr
    )


def test_a_deterministic_start_has_inductor_measure_nothing():
    script = (
        "from llc.distributed import Processes; Processes.start(1, deterministic=True);"
        "import torch._inductor.config as c; print(c.deterministic)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout == "True\n", done.stderr


ABORTING = """
import atexit, os, sys
from llc import config

def main(argv):
    atexit.register(os.abort)
    print("done")
    if argv:
        sys.exit(int(argv[0]))

config.run(main)
"""


@pytest.mark.parametrize("words, status", [((), 0), (("75",), 75)])
def test_one_of_several_processes_ends_without_the_interpreters_clean_up(tmp_path, words, status):
    """It skips the interpreter's clean-up, in which gloo's threads sometimes abort a process that is done."""
    (tmp_path / "aborting.py").write_text(ABORTING)

    def end(world_size):
        return subprocess.run(
            [sys.executable, tmp_path / "aborting.py", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": world_size},
        )

    assert end("1").returncode == -signal.SIGABRT
    done = end("2")
    assert (done.returncode, done.stdout) == (status, "done\n"), done.stderr
