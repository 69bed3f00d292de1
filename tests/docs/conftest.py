"""The folder that the documents' commands run in: photographs, betons and a trained model, by their names."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, draw


@pytest.fixture
def workspace(finished_run, betons, image_tree, tmp_path):
    """What most pages name: runs/NAME, train.beton and val.beton, photos/, cat.jpg and dog.jpg."""
    shutil.copytree(finished_run, tmp_path / "runs" / "NAME")
    for path in betons:
        shutil.copy(path, tmp_path / path.name)
        shutil.copy(f"{path}.json", tmp_path / f"{path.name}.json")
    photographs(image_tree, tmp_path / "photos", ("cat", "dog", "ants"), count=20)
    for name, label in (("cat", 1), ("dog", 4)):
        Image.open(sorted((image_tree / "val" / f"class_{label}").glob("*.jpg"))[0]).save(
            tmp_path / f"{name}.jpg"
        )
    return tmp_path


def photographs(image_tree, folder, names, count):
    """A folder of JPEGs for each name: 1.jpg, 2.jpg, ..."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i, path in enumerate(sorted((image_tree / "train" / f"class_{label}").iterdir())[:count]):
            Image.open(path).save(folder / name / f"{i + 1}.jpg")


def noise(folder, rng, count=12):
    """A folder of images of no known class."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(draw(rng, i % 8)[:, ::-1].copy() // 2 + 90).save(folder / f"{i}.png")


def page(name):
    """The path of a document, such as how-to/data.md."""
    return ROOT / "docs" / Path(name)
