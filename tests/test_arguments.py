"""Arguments of the library that a command would refuse: ValueErrors that name them."""

import numpy as np
import pytest
import torch

import llc
from llc.data.batches import open_images, prepare
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.preprocessing import Preprocessing
from llc.distributed import Processes
from llc.hamming import Decoder, range_search, search
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network

RULE = Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)
IMAGES = torch.zeros(5, 3, 40, 40, dtype=torch.uint8)
CODES = np.arange(12, dtype=np.uint8)[:, None]


def encoder(class_names=None):
    return llc.Encoder(Network("resnet18", 12, 3, width=8), RULE, class_names)


def train(**given):
    defaults = {"batch_size": 1, "num_workers": 1, "seed": 0, "min_scale": 0.1, "on_error": "fail"}
    return TrainLoader(None, processes=Processes(), **(defaults | given))


def val(**given):
    defaults = {"batch_size": 1, "num_workers": 1, "resolution": 8, "crop_ratio": 1}
    return ValLoader(None, processes=Processes(), **(defaults | given))


CASES = [
    *((lambda n=n: encoder().encode(IMAGES, n), "batch_size") for n in (0, -1, 1.5, None, "8", True)),
    (lambda: encoder().encode([], batch_size=0), "batch_size"),
    (lambda: encoder().project(IMAGES, batch_size=0), "batch_size"),
    (lambda: encoder().classify(IMAGES, batch_size=0), "batch_size"),
    *((lambda k=k: encoder().classify(IMAGES, k=k), "k") for k in (0, -1, 1.0, "5", None)),
    *((lambda d=d: encoder().classify(IMAGES, d), "decode") for d in ("hamming", None, ["mhd"])),
    *((lambda names=names: encoder(names), "class_names") for names in ("ant", [1, 2, 3], [b"a"] * 3)),
    *((lambda n=n: prepare(None, [], RULE, batch_size=n), "batch_size") for n in (0, "3")),
    *((lambda n=n: prepare(None, [], RULE, batch_size=1, num_workers=n), "num_workers") for n in (0, -2)),
    (lambda: open_images("x", RULE, batch_size=0, num_workers=1, processes=None), "batch_size"),
    (lambda: open_images("x", RULE, batch_size=1, num_workers=0, processes=None), "num_workers"),
    *((lambda n=n: train(batch_size=n), "batch_size") for n in (0, 2.5)),
    *((lambda n=n: train(num_workers=n), "num_workers") for n in (0, -3, None)),
    *((lambda n=n: train(min_scale=n), "min_scale") for n in (0, 1.5, "1", float("nan"))),
    (lambda: train(on_error="skip"), "on_error"),
    *((lambda n=n: val(batch_size=n), "batch_size") for n in (0, None)),
    (lambda: val(num_workers=0), "num_workers"),
    *((lambda n=n: val(resolution=n), "resolution") for n in (0, 8.0)),
    *((lambda n=n: val(crop_ratio=n), "crop_ratio") for n in (0, 2, None)),
    *((lambda k=k: search(CODES, CODES, k), "k") for k in (0, 13, 2.0, "2", True)),
    *((lambda k=k: llc.decode_mhd(CODES, CODES, k), "k") for k in (0, 13, 1.0, "1", True)),
    *((lambda k=k: Decoder(CODES).mhd(CODES, k), "k") for k in (0, 1.0)),
    (lambda: Decoder(CODES, table="yes"), "table"),
    *((lambda r=r: range_search(CODES, CODES, r), "radius") for r in (-1, 0.5, None)),
    *((lambda n=n: llc.unpack_bits(CODES, n), "num_bits") for n in (0, 8.0, "8", None)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_wrong_argument_is_named_with_what_is_expected(number):
    call, name = CASES[number]
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        call()


def test_numpy_integers_are_integers():
    one = np.int64(1)
    assert search(CODES, CODES, one)[0].shape == (12, 1)
    assert encoder().encode(IMAGES, batch_size=one).shape == (5, 2)
