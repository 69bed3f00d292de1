"""`make test-gpu` (python -m tests.gpu), rehearsed without a GPU: its table, its JSON and its exit status.

The epoch benchmark's part is in tests/benchmark/test_epoch.py.
"""

import importlib
import json
import os

import pytest
import torch

runner = importlib.import_module("tests.gpu.__main__")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU runs it for real")


def test_rehearsal_runs_the_commands_and_fails_for_what_it_skips(call_llc, tmp_path):
    done = call_llc(
        "-m",
        "tests.gpu",
        "--rehearse",
        "--only=tests_encoder,tests_training,hamming",
        f"--json={tmp_path / 'gpu.json'}",
        check=False,
    )
    written = json.loads((tmp_path / "gpu.json").read_text())
    status = {part["name"]: part["status"] for part in written["parts"]}
    assert status == {"tests_encoder": "skipped", "tests_training": "passed", "hamming_top1_64": "passed"}, (
        done.stdout
    )
    assert done.returncode == 1 and "not passed: tests_encoder" in done.stdout
    assert written["rehearsed"] and written["machine"]["torch"] == torch.__version__.partition("+")[0]
    for part in written["parts"]:
        assert part["name"] in done.stdout.split("result", 1)[1] and part["says"] in done.stdout
    reports = {part["name"]: part["report"] for part in written["parts"]}
    assert reports["hamming_top1_64"]["workloads"]


def test_no_gpu_and_no_such_part_are_errors(call_llc):
    done = call_llc("-m", "tests.gpu", check=False)
    assert done.returncode == 2 and "torch sees no GPU" in done.stderr and "--rehearse" in done.stderr
    done = call_llc("-m", "tests.gpu", "--rehearse", "--only=other", check=False)
    assert done.returncode == 2 and "--only=other" in done.stderr and "hamming_top1_64" in done.stderr


FAILING = "def test_that_fails():\n    assert False\ndef test_that_passes():\n    pass\n"


@pytest.mark.parametrize(
    "command, minutes, status, says",
    [
        (
            (
                "-m",
                "pytest",
                "{folder}/test_failing.py",
                "-q",
                "-p",
                "no:cacheprovider",
                "--junitxml={{report}}",
            ),
            1,
            "failed",
            "1 passed, 1 failed",
        ),
        (("-c", "raise SystemExit(3)"), 1, "failed", "exit status 3"),
        (("-c", "pass"), 1, "failed", "its report is missing"),
        (("-c", "import time; time.sleep(60)"), 0.01, "failed", "still running after 0.01 minutes"),
    ],
)
def test_a_part_that_fails_is_seen(command, minutes, status, says, tmp_path):
    (tmp_path / "test_failing.py").write_text(FAILING)
    part = runner.Part("a part", "tests", tuple(word.format(folder=tmp_path) for word in command), minutes)
    result = runner.run(part, tmp_path, dict(os.environ))
    assert result["status"] == status and says in result["says"], result


def test_every_file_of_tests_gpu_is_a_part_where_there_are_two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    files = {path.stem.removeprefix("test_") for path in (runner.ROOT / "tests" / "gpu").glob("test_*.py")}
    names = [part.name for part in runner.parts(rehearse=False)]
    assert (
        {f"tests_{file}" for file in files} <= set(names)
        and len(set(names)) == len(names)
        and {"epoch", "hamming_top1_64"} <= set(names)
    )
