"""Training in two processes equals training in one; the cases are in two_processes.py."""

from tests.conftest import ROOT
from tests.training.two_processes import CASES


def test_two_processes_equal_one(run_llc, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # tests/gpu runs it there
    done = run_llc("tests/training/two_processes.py", processes=2)
    assert done.stdout.splitlines() == [f"{name}: equal on cpu" for name in CASES]
