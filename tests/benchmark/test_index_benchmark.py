"""python -m llc.benchmark index, on few codes: ours is exact, and beside it stand the scan and FAISS."""

import json

import numpy as np
import pytest

from llc.benchmark import index
from llc.errors import UserError
from tests.pictures import texts_in

SMALL = ["--size=25000", "--queries=30", "--singles=20", "--rounds=2", "--threads=1"]


def test_measures_every_kind_of_codes(tmp_path, capsys):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for path in files:
        np.savez(path, codes=rng.integers(0, 256, (40, 2), dtype=np.uint8), num_bits=16)
    report = tmp_path / "report.json"
    index.main(
        [
            *SMALL,
            "--num_bits=64",
            f"--codes={files[0]},{files[1]}",
            "--peers=flat",
            f"--json={report}",
            f"--plot={tmp_path / 'report.svg'}",
        ]
    )
    figures = json.loads(report.read_text())["figures"]
    assert [(figure["kind"], figure["num_bits"]) for figure in figures] == [
        ("real", 32),
        ("clustered", 64),
        ("random", 64),
    ]
    for figure in figures:
        assert [row["way"] for row in figure["ways"]] == ["llc index", "llc scan", "FAISS Flat"]
        assert all(row["recall"] == 1 and min(row["one"] + row["batch"]) > 0 for row in figure["ways"])
    drawn = texts_in(tmp_path / "report.svg")
    assert {"real, 25,000 codes of 32 bits, a single query", "llc index", "FAISS Flat"} <= drawn
    printed = capsys.readouterr().out
    assert "a.npz + b.npz" in printed and "every bit by chance" in printed


def test_recall_counts_results_as_near_as_the_last_right_one():
    expected = np.int32([[0, 2, 3], [1, 1, 1]])
    assert index.recall(np.int32([[0, 3, 3], [1, 2, 9]]), expected) == pytest.approx(4 / 6)
    assert index.recall(np.int32([[0, -1, -1]]), expected) == pytest.approx(1 / 3)


def test_more_neighbours_than_codes_are_an_error():
    with pytest.raises(UserError, match="--k=11 is more than --size=10"):
        index.main(["--size=10", "--k=11"])
