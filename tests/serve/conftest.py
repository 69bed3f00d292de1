"""An index of real image files with its model, and a server of it."""

import copy

import numpy as np
import pytest
import torch

from llc.data.preprocessing import Preprocessing
from llc.encoder import Encoder
from llc.evaluation import fitting
from llc.index.collection import collect
from llc.index.index import Index
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network
from tests.serve.server import serving


def index_images(folder, encoder, first_id=0):
    """An index, in memory, of the images of a folder."""
    images = collect(folder)
    index = Index(encoder.num_bits)
    index.add(
        encoder.encode(images.files),
        np.arange(first_id, first_id + len(images)),
        labels=images.source.labels,
        class_names=images.source.class_names,
        files=images.files,
        sizes=images.sizes,
        modified=images.modified,
    )
    index.set_model(encoder)
    return index


@pytest.fixture(scope="session")
def encoder(image_tree):
    """An encoder of 20 bits with random weights, whose codes differ between images, and with all decoders."""
    preprocessing = Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD)
    network = trained_network("resnet18", 20, 6, width=8)
    images = collect(image_tree / "train")
    codes = Encoder(network, preprocessing).encode(images.files).numpy()
    fitted = fitting.fit(network, codes, images.source.labels, source="train")
    return Encoder(network, preprocessing, images.source.class_names, fitted=fitted)


@pytest.fixture(scope="session")
def other_encoder(encoder):
    """An encoder that makes other codes of the same length."""
    network = copy.deepcopy(encoder.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.neg_()
    return Encoder(network, encoder.preprocessing, encoder.class_names)


@pytest.fixture(scope="session")
def photos(image_tree, encoder, tmp_path_factory):
    """An index of 66 images of 6 classes, whose ids are above 2^53."""
    index = index_images(image_tree / "val", encoder, first_id=(1 << 53) + 1)
    index.save(tmp_path_factory.mktemp("served") / "photos.index")
    return index


@pytest.fixture(scope="module")
def server(photos, tmp_path_factory):
    with serving(photos.path, tmp_path_factory.mktemp("server"), "--refresh=0.05") as server:
        yield server
