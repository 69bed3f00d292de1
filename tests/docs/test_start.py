"""README.md and docs/start.md: from a folder of images to a report, an index and a server."""

import re
from pathlib import Path

import numpy as np
import torch

import llc
from tests.conftest import ROOT
from tests.docs.conftest import noise, page, photographs
from tests.docs.pages import SMALL, run_page

PAGES = {ROOT / "README.md", page("start.md")}
SERVES = ("python -m llc.serve",)
SHORTER = ("--training.batch_size=32", "--codebook.epochs=2", "--instance.epochs=1")


def test_from_a_folder_to_a_report(image_tree, tmp_path, monkeypatch):
    photographs(image_tree, tmp_path / "photos", ("cat", "dog", "eel"), count=40)
    small = {**SMALL, "train_llc.py": SHORTER}
    run_page(page("start.md"), tmp_path, monkeypatch, small=small, skip=SERVES)
    assert "<html" in (tmp_path / "runs" / "first" / "report.html").read_text()
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("val.jpg", "near.jpg"))


def test_the_readme(workspace, image_tree, monkeypatch, capsys):
    """On a small folder in the place of ImageNet."""
    for split in ("train", "val"):
        photographs(image_tree, workspace / "imagenet" / split, [f"class_{i}" for i in range(6)], count=12)
    noise(workspace / "other", np.random.default_rng(0))
    codes = llc.pack_bits(torch.randn(50, llc.load(workspace / "runs/NAME").num_bits))
    np.savez(workspace / "codes.npz", codes=codes.numpy())
    names = run_page(ROOT / "README.md", workspace, monkeypatch, skip=SERVES)
    assert names["codes"].shape == (2, 2) and Path("encoder.safetensors").is_file()
    assert re.search(r"\bclass_\d", capsys.readouterr().out)
    distances = names["distances"]
    assert distances.shape == (2, 10) and (distances[:, 0] <= distances[:, -1]).all()
    assert (names["found"] == names["indices"].numpy()).all()  # ids count from 0
    assert Path("out.png").stat().st_size > 1000
