"""python -m llc.benchmark hamming, small: it runs, compares what it measures, and writes what it prints."""
import json
import subprocess
import sys

import numpy as np
import pytest

from llc.benchmark import hamming
from llc.errors import UserError
from tests.conftest import ROOT


def test_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "llc.benchmark", "hamming", "decode", "pack", "top1_64", "--device=cpu", "--scale=0.002",
                           "--repeats=2", "--seconds=0", f"--json={tmp_path / 'out.json'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert [w["name"] for w in written["workloads"]] == ["decode", "pack", "top1_64"] and written["machine"]["threads"] >= 1
    for workload in written["workloads"]:
        ours, *others = workload["ways"]
        assert ours["way"].startswith("llc") and ours["ours_is"] == 1 and len(others) >= 1
        for way in workload["ways"]:
            assert len(way["seconds"]) == 2 and way["way"] in done.stdout
            assert way["ours_is"] == pytest.approx(ours["n"] / ours["median"] / (way["n"] / way["median"]))
    assert "faiss" in done.stdout   # its version, or that it is not installed


def test_without_faiss(monkeypatch, capsys):
    monkeypatch.setattr(hamming, "faiss", None)
    hamming.main(["top100_64", "--device=cpu", "--scale=0.001", "--repeats=1", "--seconds=0"])
    assert "not installed" in capsys.readouterr().out


def test_ways_that_disagree_are_an_error(monkeypatch):
    monkeypatch.setattr(hamming, "_numpy_nearest", lambda queries, database: np.zeros((len(queries), 1), np.int64))
    with pytest.raises(AssertionError, match="numpy bitwise_count .* disagree"):
        hamming.main(["top1_64", "--device=cpu", "--scale=0.001", "--repeats=1"])


@pytest.mark.parametrize("words", [["hamming", "top7"], ["hamming", "--scale=2"], ["hamming", "--repeats=0"], ["nothing"], []])
def test_wrong_words_are_refused_with_what_there_is(words):
    done = subprocess.run([sys.executable, "-m", "llc.benchmark", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "error:" in done.stderr
    assert "top100_64" in done.stderr if words[-1:] == ["top7"] else "repeats" in done.stderr or "hamming" in done.stderr


def test_words_that_are_measured(capsys):
    with pytest.raises(UserError, match="no workload"):
        hamming.main(["top1_64", "elsewhere"])
    assert not capsys.readouterr().out
