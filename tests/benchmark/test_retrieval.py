"""python -m llc.benchmark retrieval, small: it runs, checks what it measures, and prints what it writes."""

import json
import statistics

import pytest

from llc.benchmark import retrieval
from llc.errors import UserError
from tests.pictures import texts_in

SMALL = ["--queries=30", "--database=400", "--classes=5", "--k=50", "--rounds=2", "--numpy_queries=20"]


def test_the_ways_are_compared(tmp_path, capsys):
    retrieval.main(
        [*SMALL, "--bits=7,64", f"--json={tmp_path / 'out.json'}", f"--plot={tmp_path / 'out.svg'}"]
    )
    written, said = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert [figure["bits"] for figure in written["figures"]] == [7, 64]
    for figure in written["figures"]:
        assert list(figure["seconds"]) == [retrieval.OURS, retrieval.WITHOUT, retrieval.NUMPY]
        assert list(figure["queries"].values()) == [30, 30, 20] and 0.2 < figure["map"] <= 1
        assert all(len(seconds) == 2 and name in said for name, seconds in figure["seconds"].items())
    drawn = texts_in(tmp_path / "out.svg")
    for figure in written["figures"]:
        assert f"{figure['bits']} bits" in drawn
        for name, seconds in figure["seconds"].items():
            assert name in drawn
            assert f"{1000 * statistics.median(seconds) / figure['queries'][name]:,.3f}" in drawn
    ours = [line for line in said.splitlines() if f"  {retrieval.OURS} " in line]
    assert len(ours) == 2 and all(line.endswith(" 1.0x") for line in ours)


def test_another_result_is_an_error(monkeypatch):
    monkeypatch.setattr(retrieval, "mean_average_precision", lambda *_: 0.5)
    with pytest.raises(AssertionError, match="64 bits: map@50.deephash is .*, by sorting 0.5"):
        retrieval.main([*SMALL, "--bits=64"])


def test_a_picture_that_cannot_be_written_is_an_error_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "measure", None)
    with pytest.raises(UserError, match=r"--plot=.*x\.gif: expected a name that ends in .png, .svg, .pdf"):
        retrieval.main([*SMALL, f"--plot={tmp_path / 'x.gif'}"])
