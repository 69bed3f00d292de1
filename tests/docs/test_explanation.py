"""docs/explanation: formulas beside the code that they describe, and the behaviour that pages promise."""

import json
import os

import numpy as np
import pytest
import torch

import llc
from llc.export import __main__ as export
from tests.docs.conftest import page
from tests.docs.pages import blocks, run_page

PAGES = {page(f"explanation/{name}.md") for name in ("method", "decoding", "loading", "resuming")}


@pytest.mark.parametrize("path", sorted(PAGES), ids=lambda path: path.stem)
def test_formulas_can_be_shown(path):
    """latex2mathml leaves commands that it does not know as they are, with their backslash."""
    converter = pytest.importorskip("latex2mathml.converter")
    for block in blocks(path):
        for formula in block.text.split("\n\n") if block.language == "math" else ():
            assert "\\" not in converter.convert(formula), f"{block.place}: {formula}"


def test_the_formulas_of_the_method_are_those_of_the_code(tmp_path, monkeypatch):
    names = run_page(page("explanation/method.md"), tmp_path, monkeypatch)
    z, codebook = names["z"].double().numpy(), names["codebook"].detach().double().numpy()
    y = names["labels"].numpy()
    s = z @ np.where(codebook > 0, 1.0, -1.0).T
    first = [-np.log(np.exp(row[label]) / np.exp(row).sum()) for row, label in zip(s, y)]
    assert np.isclose(np.mean(first), names["first_loss"].item(), rtol=1e-6)
    assert np.isclose(names["first_formula"].item(), names["first_loss"].item(), rtol=1e-6)
    t, sigma = codebook[y] > 0, 1 / (1 + np.exp(-z))
    second = -np.where(t, np.log(sigma), np.log(1 - sigma)).sum(1) / z.shape[1]
    assert np.isclose(second.mean(), names["second_loss"].item(), rtol=1e-6)
    assert np.isclose(names["second_formula"].item(), names["second_loss"].item(), rtol=1e-6)
    assert (names["of_codes"] == names["of_values"]).all() and names["of_values"].abs().max() > 0


def test_decoding(workspace, monkeypatch, capsys):
    export.main([str(workspace / "runs/NAME"), "--to=original", f"--out={workspace}"])
    (workspace / "runs/NAME/decoder.npz").unlink()  # as of a run from before there were decoders that learn
    names = run_page(page("explanation/decoding.md"), workspace, monkeypatch)
    printed = capsys.readouterr().out
    assert "posterior" in printed and "0.5" in printed, printed
    for model, codebook in (("runs/NAME", None), ("model_best.pth", "codebook.npy")):
        assert "posterior" in llc.load(model, codebook=codebook).learnt
    assert 0.22 < names["tied"] < 0.25 and 0.82 < names["tied_fifth"] < 0.86
    assert names["classes"].shape == names["probabilities"].shape == (5000, 3)
    assert names["density"].shape == (5000,)
    assert (names["classes"][:, 0] == names["labels"]).mean() > 0.8
    print(printed)


def test_batches_do_not_depend_on_threads_or_on_what_was_loaded_before(workspace, monkeypatch, capsys):
    names = run_page(page("explanation/loading.md"), workspace, monkeypatch)
    assert capsys.readouterr().out.split() == ["True"] * 3
    first, second = names["first"], names["second"]
    for images, labels in (first, second):
        assert images.shape == (16, 3, 64, 64) and images.dtype == torch.uint8 and labels.shape == (16,)
    assert not torch.equal(first[0], second[0])
    labels = llc.data.shards.open_shards("train.beton").labels
    assert set(first[1].tolist()) <= set(labels.tolist()) and len(set(first[1].tolist())) > 1


@pytest.fixture
def one_core():
    """Lets this thread, and the processes that it starts, run on one core, and so compute with one thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_a_resumed_run_ends_with_equal_bits(workspace, monkeypatch, one_core, capsys):
    names = run_page(page("explanation/resuming.md"), workspace, monkeypatch)  # cmp fails if files differ
    assert list(names["state"]) == ["identity", "progress", "network", "engine", "classifier", "of_process"]
    assert {"optimizer", "scaler"} < {*names["state"]["engine"]} | {"ema"}
    assert "1 0" in capsys.readouterr().out
    whole, half = workspace / "runs" / "whole", workspace / "runs" / "half"
    assert len([*whole.glob("events.out.tfevents.*")]) == 1  # the second command has trained nothing
    first, second = ([json.loads(line) for line in open(run / "log.jsonl")] for run in (whole, half))
    times = {"images_per_second", "train_seconds", "val_seconds"}
    assert len(first) == 3
    assert [{k: line[k] for k in line.keys() - times} for line in first] == [
        {k: line[k] for k in line.keys() - times} for line in second
    ]
