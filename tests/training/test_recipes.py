"""Every recipe we ship loads, and says what is measured or expected."""

from pathlib import Path

import pytest

from llc.errors import UserError
from llc.training import config
from tests.conftest import ROOT

RECIPES = sorted(
    path for folder in ("rn50_configs", "rn18_configs") for path in (ROOT / folder).glob("*.yaml")
)
NAMES = {
    "llc_20bit",
    "llc_20bit_16_epochs",
    "llc_20bit_32_epochs",
    "llc_20bit_88_epochs",
    "llc_16bit",
    "llc_32bit",
    "llc_64bit",
    "llc_20bit_paper",
    "llc_demo",
}


def test_the_family_is_complete():
    assert {path.stem for path in RECIPES} == NAMES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads(path: Path):
    read, _ = config.read(
        [f"--config={path}", "--data.train_dataset=a", "--data.val_dataset=b"], description=""
    )
    assert read.stages == ("codebook", "instance")
    if path.stem.split("_")[1].endswith("bit"):
        assert read.codes.num_bits == int(path.stem.split("_")[1].removesuffix("bit"))
    assert "measured" in path.read_text().split("\nmodel")[0]


def test_the_paper_recipe_is_the_papers():
    read, _ = config.read(
        [
            f"--config={ROOT / 'rn50_configs/llc_20bit_paper.yaml'}",
            "--data.train_dataset=a",
            "--data.val_dataset=b",
        ],
        description="",
    )
    assert (read.codebook.epochs, read.instance.epochs, read.codebook.lr, read.instance.lr) == (
        100,
        25,
        0.1,
        0.01,
    )
    assert (read.training.momentum, read.training.weight_decay, read.training.batch_size) == (
        0.875,
        2**-15,
        256,
    )
    assert read.codes.min_distance == 0


WORDS = (
    "--data.train_dataset=a",
    "--data.val_dataset=b",
    "--codebook.epochs=1",
    "--codebook.lr=1",
    "--instance.epochs=1",
    "--instance.lr=1",
)


def test_without_a_recipe_the_method_is_the_papers():
    read, _ = config.read([*WORDS], description="")
    assert (read.stages, read.codes.logit_scale, read.codes.normalize) == (
        ("codebook", "instance"),
        "none",
        "none",
    )
    assert (read.codebook.codebook_weight, read.codebook.instance_weight, read.codebook.freeze_epoch) == (
        1,
        0,
        -1,
    )
    assert (read.instance.codebook_weight, read.instance.instance_weight, read.instance.distillation) == (
        0,
        1,
        0,
    )
    assert (read.codes.init_scale, read.codes.init_distance, read.codes.min_distance) == (1, 0, 0)


@pytest.mark.parametrize(
    "text, scale", [("none", 1.0), ("sqrt", 0.25), ("learnable", "learnable"), ("0.5", 0.5), ("3", 3.0)]
)
def test_logit_scales(text, scale):
    read, _ = config.read([*WORDS, "--codes.num_bits=16", f"--codes.logit_scale={text}"], description="")
    assert read.network_options(3)["logit_scale"] == scale


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "log"])
def test_a_logit_scale_that_is_none_is_refused(text):
    with pytest.raises(
        UserError, match="codes.logit_scale = .*: it takes one of none, sqrt, learnable, or a positive number"
    ):
        config.read([*WORDS, f"--codes.logit_scale={text}"], description="")


def test_a_stage_that_does_not_run_needs_no_keys(tmp_path):
    read, _ = config.read(
        [*WORDS[:2], "--training.stages=joint", "--joint.epochs=2", "--joint.lr=1"], description=""
    )
    assert read.stages == ("joint",) and read.joint.instance_weight == 4
    read.save(tmp_path / "config.yaml")
    assert config.read([f"--config={tmp_path / 'config.yaml'}"], description="")[0] == read
    with pytest.raises(UserError, match="codebook.epochs is required .*\n.*instance.lr is required"):
        config.read([*WORDS[:2], "--codebook.lr=1", "--instance.epochs=1"], description="")
