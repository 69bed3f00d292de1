"""Codes of different networks are not compared: files of llc.encode say which network theirs are of."""

import numpy as np
import pytest

from llc.encode import main as encode
from llc.errors import UserError
from llc.evaluate.__main__ import main as evaluate
from llc.index.__main__ import main as index
from llc.search import main as search


@pytest.fixture
def files(finished_run, betons, tmp_path, monkeypatch):
    """val.npz and train.npz of one network, other.npz as another network would write it, foreign.npz."""
    monkeypatch.chdir(tmp_path)
    for name, beton in (("train", betons[0]), ("val", betons[1])):
        encode([str(finished_run), f"--data={beton}", f"--out={name}.npz"])
    arrays = dict(np.load("val.npz"))
    np.savez("foreign.npz", **{key: array for key, array in arrays.items() if key != "network"})
    np.savez("other.npz", **{**arrays, "network": np.array("0" * 64)})
    return finished_run


def test_searching(files, betons):
    search(["train.npz", "--queries=val.npz"])
    search(["train.npz", "--queries=foreign.npz"])
    search(["val.npz", f"--queries={betons[1]}", f"--model={files}"])
    for words in (
        ["train.npz", "--queries=other.npz"],
        ["other.npz", f"--queries={betons[1]}", f"--model={files}"],
    ):
        with pytest.raises(UserError, match="hold codes of different networks"):
            search(words)


def test_adding_to_an_index(files):
    index(["create", "x.index", f"--model={files}"])
    for name in ("val", "foreign"):
        index(["add", "x.index", f"{name}.npz"])
    with pytest.raises(UserError, match="other.npz and x.index hold codes of different networks"):
        index(["add", "x.index", "other.npz"])


@pytest.mark.parametrize("flag", ["--retrieval.database", "--ood.dataset"])
def test_evaluating(files, flag):
    if "ood" in flag:  # images that are evaluated are not of unknown classes
        arrays = dict(np.load("foreign.npz"))
        np.savez("foreign.npz", **{**arrays, "codes": arrays["codes"][::-1].copy()})
    evaluate(["val.npz", f"{flag}=foreign.npz", "--fit_decoder=train.npz"])
    for model in ("val.npz", str(files)):
        with pytest.raises(UserError, match="other.npz and .* hold codes of different networks"):
            evaluate([model, f"{flag}=other.npz", *(["--fit_decoder=train.npz"] * (model == "val.npz"))])


def test_the_network_is_a_text(files):
    arrays = dict(np.load("val.npz"))
    np.savez("x.npz", **{**arrays, "network": np.arange(3)})
    with pytest.raises(UserError, match=r"x.npz: network is int64 \[3\]; expected one text"):
        search(["train.npz", "--queries=x.npz"])
