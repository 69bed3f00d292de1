"""Problems with GPUs raise errors that say what to do. GPUs are simulated here, but not in tests/gpu."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from llc import gpu
from llc.distributed import Processes
from llc.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "visible, local_rank, shared, index",
    [
        (8, 5, False, 5),
        (1, 0, False, 0),
        (1, 3, False, 0),  # a cluster that shows each process only its own GPU
        (2, 5, True, 1),
    ],
)
def test_each_process_has_its_gpu(visible, local_rank, shared, index, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert gpu.choose(local_rank, 8, shared) == index


@pytest.mark.parametrize(
    "visible, name, error",
    [
        (2, "cuda:1", None),
        (2, "cuda", None),
        (0, "cpu", None),
        (2, "cuda:2", "device cuda:2: torch sees 2 GPUs"),
        (0, "cuda", "torch sees no GPUs .*use cpu"),
        (1, "cuda:7", "torch sees 1 GPU on"),
        (2, "gpu", "expected cpu, cuda, or cuda:N"),
        (2, "mps", "expected cpu, cuda"),
        (2, "cuda:x", "expected cpu"),
    ],
)
def test_devices_that_are_not_there_are_refused(visible, name, error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if error is None:
        assert str(gpu.device(name)) == name
    else:
        with pytest.raises(UserError, match=error):
            gpu.device(name)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(
        UserError, match="8 processes were started .* torch sees 4 GPUs: .*--nproc_per_node=4"
    ):
        gpu.choose(5, 8)


def test_two_processes_on_one_gpu_are_found_before_nccl_is_asked(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[device], name="a GPU")
    )
    for uuids, error in (
        (["a", "b", "c"], None),
        (["a", "b", "a"], "processes 0 and 2 have the same GPU, a of .*--dist.backend=gloo"),
    ):
        store = torch.distributed.HashStore()
        for rank in range(2):  # what the other processes stored before the last one asks
            store.set(f"gpu_{rank}", f"{uuids[rank]} of {gpu.socket.gethostname()}")
        if error is None:
            gpu.one_gpu_each(store, 2, 3, 2)
        else:
            with pytest.raises(UserError, match=error):
                gpu.one_gpu_each(store, 2, 3, 2)


def test_nccl_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="dist.backend = nccl: torch sees no GPU"):
        Processes.start(1, backend="nccl")


@pytest.mark.parametrize(
    "text, status",
    [
        ("torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')", 2),
        ("RuntimeError('CUDA error: out of memory')", 2),  # the first use of a GPU that other programs fill
        ("RuntimeError('GET was unable to find an engine to execute this computation')", 2),
        ("RuntimeError('CUDA error: an illegal memory access')", 1),
    ],
)
def test_a_full_gpu_is_an_error_with_advice(text, status):
    script = f"import torch\nfrom llc import config\ndef main(argv): raise {text}\nconfig.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == status
    assert ("Traceback" in done.stderr) == (status == 1)
    if status == 2:
        assert (
            "the GPU's memory is full" in done.stderr
            and "training.batch_size" in done.stderr
            and "nvidia-smi" in done.stderr
        )


def test_the_message_says_who_holds_the_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30_000_000_000)
    text = str(gpu.memory_error(torch.OutOfMemoryError("CUDA out of memory.")))
    assert (
        "of the 80.0 GB of cuda:1 this process holds 30.0 GB "
        "and other programs (with CUDA's own needs) 49.0 GB" in text
    )
