"""rn50_configs/imagenet100.txt as a file of classes, and the recipes that are trained on its classes."""

import re

import numpy as np
import pytest
import timm.data
from PIL import Image

import train_llc
from llc.data.manifest import load_manifest
from llc.data.shards import open_shards
from llc.data.sources import SourceError, open_source
from llc.data.writer import WriterConfig, write_beton
from llc.training import config
from tests.conftest import ROOT

CLASSES = ROOT / "rn50_configs/imagenet100.txt"
RECIPES = sorted((ROOT / "rn50_configs").glob("llc_imagenet100_*bit.yaml"))
LINES = [line for line in CLASSES.read_text().splitlines() if not line.startswith("#")]
IDS = tuple(line.split()[0] for line in LINES)
OTHERS = ("n01440764", "n04254680", "n15075141")  # classes of ImageNet that are none of the 100
TRAIN, VAL = 3, 2  # images of each class

# Rows of HashNet's train list, pytorch/data/imagenet/train.txt: an image, and the place of the 1 in its
# vector of 100 labels.
HASHNET = {
    "n01537544_18082.JPEG": 1,
    "n01560419_863.JPEG": 2,
    "n01685808_6481.JPEG": 6,
    "n01819313_4922.JPEG": 12,
    "n02256656_13626.JPEG": 33,
    "n02834397_34931.JPEG": 43,
    "n03047690_27215.JPEG": 55,
    "n03944341_6374.JPEG": 76,
    "n04596742_6495.JPEG": 92,
    "n12057211_4629.JPEG": 98,
}


def test_it_lists_100_classes_of_imagenet_with_their_words():
    assert len(IDS) == len(set(IDS)) == 100
    info = timm.data.ImageNetInfo()
    assert set(IDS) <= set(info.label_names()) and len(info.label_names()) == 1000
    for line in LINES:
        wordnet_id, words = re.fullmatch(r"(n\d{8}) (\S.*)", line).groups()
        assert words == info.label_name_to_description(wordnet_id, detailed=False)


def test_the_labels_are_those_of_hashnets_lists():
    assert {name: IDS.index(name.split("_")[0]) for name in HASHNET} == HASHNET
    assert list(IDS) == sorted(
        IDS
    )  # in ImageNet's own order, so that a tree of them alone has the same labels


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A tree like ImageNet's, with classes that are none of the 100 before, between and after them."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for wordnet_id in (*IDS, *OTHERS):
            folder = root / split / wordnet_id
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{wordnet_id}_{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def betons(imagenet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("betons")
    for split in ("train", "val"):
        flags = {"data_dir": str(imagenet), "split": split, "classes": str(CLASSES), "num_workers": 1}
        write_beton(WriterConfig(write_path=str(folder / f"{split}.beton"), **flags), show_progress=False)
    return folder / "train.beton", folder / "val.beton"


@pytest.mark.parametrize("split, count", [("train", TRAIN), ("val", VAL)])
def test_only_images_of_its_classes_are_read(imagenet, split, count):
    source = open_source("auto", imagenet, split, classes=CLASSES)
    assert source.class_names == IDS and len(source) == 100 * count
    for i, label in enumerate(source.labels):
        assert source.name(i).split("/")[-1].split("_")[0] == IDS[label]


def test_a_tree_without_one_of_the_classes_is_refused(imagenet, tmp_path):
    for wordnet_id in (*IDS[:50], *IDS[51:], *OTHERS):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / wordnet_id).symlink_to(imagenet / "train" / wordnet_id)
    with pytest.raises(SourceError, match=f"1 of its 100 names are not classes here: line .*{IDS[50]}"):
        open_source("auto", tmp_path, "train", classes=CLASSES)


def test_betons_have_its_labels_and_words(betons):
    for beton, count in zip(betons, (TRAIN, VAL)):
        manifest = load_manifest(f"{beton}.json")
        assert manifest.class_names == IDS and manifest.class_counts == (count,) * 100
        assert [f"{name} {words}" for name, words in zip(IDS, manifest.class_words)] == LINES
        assert np.bincount(open_shards(beton).labels).tolist() == [count] * 100


def test_the_recipes_differ_in_their_bits_alone():
    resolved = {}
    for path in RECIPES:
        words = [f"--config={path}", "--data.train_dataset=a", "--data.val_dataset=b"]
        content = config.read(words, description="")[0].as_dict()
        resolved[content["codes"].pop("num_bits")] = content
    assert sorted(resolved) == [10, 16, 32, 64] and all(
        content == resolved[16] for content in resolved.values()
    )


@pytest.mark.parametrize("num_bits", [10, 64])
def test_a_recipe_passes_a_dry_run(num_bits, betons, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llc.training.plan.load_weights", None)  # a dry run downloads nothing
    recipe = ROOT / f"rn50_configs/llc_imagenet100_{num_bits}bit.yaml"
    words = [f"--config={recipe}", f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}"]
    train_llc.main([*words, f"--logging.folder={tmp_path / 'runs'}", "--dry_run"])
    said = capsys.readouterr().out
    assert f"{100 * TRAIN} images of 100 classes" in said and f"num_bits: {num_bits}\n" in said
    assert "IMAGENET1K_V1, published weights, which a run downloads" in said
    assert "dense stage: 30 epochs" in said and "instance stage: no epochs" in said
    assert not any(tmp_path.iterdir())


def test_the_command_of_the_head_is_the_recipes_own():
    """The head of the 16-bit recipe names this recipe and the file of classes, and no other paths."""
    head = (ROOT / "rn50_configs/llc_imagenet100_16bit.yaml").read_text().partition("\nbase:")[0]
    named = set(re.findall(r"rn50_configs/[\w.]+", head))
    assert named == {"rn50_configs/imagenet100.txt", "rn50_configs/llc_imagenet100_16bit.yaml"}
