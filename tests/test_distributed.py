"""Processes: what a start changes in this process."""
import subprocess
import sys

import pytest

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
faults_of(30)  # until the pieces that alignment leaves have settled
print(faults_of(5))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_used_again_without_asking_linux_for_its_pages():
    def faults(how):
        # without a CUDA device the process is one on a CPU
        run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
        assert not run.returncode, run.stderr
        return int(run.stdout)

    assert faults("plain") > 10_000, "this C library keeps freed memory by itself: the setting would be of no use"
    assert faults("started") < 100
