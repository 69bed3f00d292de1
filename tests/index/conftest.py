"""A tiny model, and photographs for it."""

import numpy as np
import pytest
from PIL import Image

import llc
from llc.data.preprocessing import Preprocessing
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import draw, trained_network

NUM_BITS = 40


@pytest.fixture(scope="module")
def encoder():
    network = trained_network("resnet18", NUM_BITS, 3, width=8)
    return llc.Encoder(network, Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD))


@pytest.fixture
def model(encoder, tmp_path):
    """The path of the saved encoder."""
    encoder.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def photos(tmp_path):
    """A folder with 2 x 5 images in folders, and 2 beside them."""
    rng = np.random.default_rng(3)
    for i in range(12):
        folder = tmp_path / "photos" / ("" if i >= 10 else ("ants", "bees")[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw(rng, i % 8, (30 + i, 40))
        Image.fromarray(pixels).save(folder / f"{i}.{'jpg' if i % 3 else 'png'}", quality=95)
    return tmp_path / "photos"
