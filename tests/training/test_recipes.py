"""Every recipe we ship loads, and says what is measured or expected."""
from pathlib import Path

import pytest

from llc.training import config
from tests.conftest import ROOT

RECIPES = sorted(path for folder in ("rn50_configs", "rn18_configs") for path in (ROOT / folder).glob("*.yaml"))
NAMES = {"llc_20bit", "llc_20bit_16_epochs", "llc_20bit_32_epochs", "llc_20bit_88_epochs", "llc_16bit", "llc_32bit", "llc_64bit",
         "llc_20bit_paper", "llc_demo"}


def test_the_family_is_complete():
    assert {path.stem for path in RECIPES} == NAMES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads(path: Path):
    read, _ = config.read([f"--config={path}", "--data.train_dataset=a", "--data.val_dataset=b"], description="")
    assert read.stages == ("codebook", "instance")
    if path.stem.split("_")[1].endswith("bit"):
        assert read.codes.num_bits == int(path.stem.split("_")[1].removesuffix("bit"))
    assert "measured" in path.read_text().split("\nmodel")[0]


def test_the_paper_recipe_is_the_papers():
    read, _ = config.read([f"--config={ROOT / 'rn50_configs/llc_20bit_paper.yaml'}", "--data.train_dataset=a", "--data.val_dataset=b"],
                          description="")
    assert (read.codebook.epochs, read.instance.epochs, read.codebook.lr, read.instance.lr) == (100, 25, 0.1, 0.01)
    assert (read.training.momentum, read.training.weight_decay, read.training.batch_size) == (0.875, 2 ** -15, 256)
