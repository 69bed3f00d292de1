"""Every recipe that ships loads, with its recorded values, and its head says what was measured."""

import json

import pytest

from llc.errors import UserError
from llc.training import config
from llc.yaml_file import read_yaml
from tests.conftest import ROOT

FOLDERS = ("rn50_configs", "rn18_configs", "backbone_configs", "experiments")
RECIPES = {
    str(path.relative_to(ROOT)): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.yaml"))
    if not path.stem.endswith("_grid")
}
# {"defaults" or a recipe: {section: {key: value}}}, without the paths of the data; a recipe's entry has what
# differs from the defaults. Whoever changes a value on purpose changes it there too.
RECORDED = json.loads((ROOT / "tests/training/resolved_recipes.json").read_text())
DATA = ("--data.train_dataset=a", "--data.val_dataset=b")


def read(*words):
    return config.read(list(words), description="")[0]


def test_every_recipe_is_recorded():
    assert set(RECORDED) == {"defaults", *RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_to_its_recorded_values(name):
    """Keys that are newer than the record are not compared."""
    # through JSON, which has no tuples
    resolved = json.loads(json.dumps(read(f"--config={RECIPES[name]}", *DATA).as_dict()))
    expected = {
        (section, key): value
        for recorded in (RECORDED["defaults"], RECORDED[name])
        for section, keys in recorded.items()
        for key, value in keys.items()
    }
    assert {(section, key): resolved[section][key] for section, key in expected} == expected


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is(name):
    read_recipe, text = read(f"--config={RECIPES[name]}", *DATA), RECIPES[name].read_text()
    others = {
        "rn50_configs/dense.yaml": ("dense",),
        "rn50_configs/llc_20bit_dense_first.yaml": ("dense", "instance"),
        "rn50_configs/llc_20bit_finetune.yaml": ("instance",),
        "rn50_configs/llc_20bit_pretrained.yaml": ("instance",),
        "backbone_configs/convnext_tiny.yaml": ("instance",),
        "backbone_configs/vit_small_patch16_224.yaml": ("instance",),
        "experiments/cifar10.yaml": ("dense", "instance"),
        "experiments/cifar10_500_per_class.yaml": ("dense", "instance"),
        **{f"rn50_configs/llc_imagenet100_{n}bit.yaml": ("dense", "instance") for n in (10, 16, 32, 64)},
    }
    assert read_recipe.stages == others.get(name, ("codebook", "instance"))
    bits = [part for part in RECIPES[name].stem.split("_") if part.endswith("bit")]
    assert bits in ([], [f"{read_recipe.codes.num_bits}bit"])
    assert text.startswith("# ")
    if not name.startswith("experiments"):  # EXPERIMENTS.md has the figures of those
        head = text[: text.index("\nmodel:" if "\nmodel:" in text else "\nbase:")]
        assert "easured" in head or "This file was not run" in head


def test_a_recipe_on_a_base_says_only_what_differs():
    """A value that equals the base's, or a key that is given twice, would hide what the recipe is about."""
    built = {name: content for name in RECIPES if "base" in (content := read_yaml(RECIPES[name]))}
    assert len(built) >= 7
    for name, content in built.items():
        base = read(f"--config={RECIPES[name].parent / content.pop('base')}", *DATA).as_dict()
        repeated = [
            f"{section}.{key}"
            for section, keys in content.items()
            for key, value in keys.items()
            if base[section][key] == value
        ]
        assert not repeated, f"{name} repeats its base: {repeated}"


def test_the_paper_recipe_is_the_papers():
    paper = read(f"--config={RECIPES['rn50_configs/llc_20bit_paper.yaml']}", *DATA)
    codebook, instance = paper.stage("codebook"), paper.stage("instance")
    assert (codebook.epochs, instance.epochs, codebook.lr, instance.lr) == (100, 25, 0.1, 0.01)
    assert (paper.training.momentum, paper.training.weight_decay) == (0.875, 2**-15)
    assert (paper.training.batch_size, paper.codes.min_distance) == (256, 0)


WORDS = (*DATA, "--codebook.epochs=1", "--codebook.lr=1", "--instance.epochs=1", "--instance.lr=1")


def test_without_a_recipe_the_method_is_the_papers():
    made = read(*WORDS)
    codebook, instance, codes = made.stage("codebook"), made.stage("instance"), made.codes
    assert made.stages == ("codebook", "instance")
    assert (codes.logit_scale, codes.normalize) == ("none", "none")
    assert (codebook.codebook_weight, codebook.instance_weight, codebook.freeze_epoch) == (1, 0, -1)
    assert (instance.codebook_weight, instance.instance_weight, instance.distillation) == (0, 1, 0)
    assert (codes.init_scale, codes.init_distance, codes.min_distance) == (1, 0, 0)


@pytest.mark.parametrize(
    "text, scale", [("none", 1.0), ("sqrt", 0.25), ("learnable", "learnable"), ("0.5", 0.5), ("3", 3.0)]
)
def test_logit_scales(text, scale):
    made = read(*WORDS, "--codes.num_bits=16", f"--codes.logit_scale={text}")
    assert made.network_options(3, "codebook")["logit_scale"] == scale


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "log"])
def test_a_logit_scale_that_is_none_is_refused(text):
    with pytest.raises(
        UserError, match="codes.logit_scale = .*: it takes one of none, sqrt, learnable, or a positive number"
    ):
        read(*WORDS, f"--codes.logit_scale={text}")


def test_a_stage_that_does_not_run_needs_no_keys(tmp_path):
    joint = read(*DATA, "--training.stages=joint", "--joint.epochs=2", "--joint.lr=1")
    assert joint.stages == ("joint",) and joint.stage("joint").instance_weight == 4
    joint.save(tmp_path / "config.yaml")
    assert read(f"--config={tmp_path / 'config.yaml'}") == joint
    with pytest.raises(UserError, match="codebook.epochs is required .*\n.*instance.lr is required"):
        read(*DATA, "--codebook.lr=1", "--instance.epochs=1")
