"""llc.ffcv: our decoders and flip within FFCV's own Loader, beside our own loaders.

numba compiles for each Loader, so most pipelines here are the decoder alone, which takes half a second.
"""

# ruff: noqa: E402 (FFCV may be missing, and sets the number of torch threads when it is imported)

import gc
import importlib
import os
import shutil
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from llc.data import beton, sampling
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.shards import open_shards
from llc.distributed import Processes
from llc.errors import UserError
from tests.data.betons import damage, write_small_beton, written_by_ffcv
from tests.data.helpers import picture, wait_until

NUM_THREADS = torch.get_num_threads()
pytest.importorskip("ffcv")
from ffcv.fields import rgb_image
from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import NormalizeImage, Squeeze, ToDevice, ToTensor, ToTorchImage

from llc import ffcv
from llc.ffcv import CenterCropRGBImageDecoder, RandomHorizontalFlip, RandomResizedCropRGBImageDecoder

torch.set_num_threads(NUM_THREADS)  # importing FFCV sets it to 1
# pytest forgets what llc.ffcv itself ignores
IGNORED = "has no manifest", "Code running in object mode"
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{message}") for message in IGNORED]

NUM, SIZE, SEED, SCALE = 101, 24, 5, 0.3
MODES = [beton.JPG if i % 3 else beton.RAW for i in range(NUM)]


@pytest.fixture(autouse=True, scope="module")
def torch_threads():
    """A Loader sets torch's number of threads to its own."""
    yield
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """101 pictures, JPEG and raw, in about 12 pages of 32 kB."""
    pictures = [picture(i, 30 + i * 7 % 23, 25 + i * 5 % 31) for i in range(NUM)]
    labels = [i * 3 % 7 for i in range(NUM)]
    return write_small_beton(tmp_path_factory.mktemp("betons") / "train.beton", pictures, labels, MODES)


def crops(size=(SIZE, SIZE), **options):
    return RandomResizedCropRGBImageDecoder(size, **{"scale": (SCALE, 1), "seed": SEED, **options})


def ffcv_loader(path, decoder, *operations, num_workers=1, order=OrderOption.SEQUENTIAL, **options):
    return Loader(
        str(path),
        batch_size=20,
        num_workers=num_workers,
        order=order,
        drop_last=False,
        pipelines={"image": [decoder, *operations, ToTensor(), ToTorchImage()], "label": None},
        **options,
    )


def by_sample(loader):
    """The images of an epoch, uint8 [n, 3, H, W], in the order of the samples."""
    batches = iter(loader)
    order = np.asarray(batches.order, np.int64)
    images = torch.cat([images.clone() for (images,) in batches])
    assert sorted(order) == list(range(len(images)))
    return images[np.argsort(order)]


def ours(path, epoch, size=SIZE, *, flipped=False):
    """What our own loader makes of every sample."""
    shards = open_shards(path)
    loader = TrainLoader(
        shards, batch_size=len(shards), num_workers=1, processes=Processes(), seed=SEED, min_scale=SCALE
    )
    [(images, _)] = loader.epoch(epoch, size)
    [order] = loader.order(epoch)
    images = images[np.argsort(order)].clone()
    if not flipped:
        _, flips = sampling.random_crops(
            np.arange(len(shards)), [9] * len(shards), [9] * len(shards), SEED, epoch, 1
        )
        images[flips] = images[flips].flip(3)
    return images


@pytest.mark.parametrize(
    "num_workers, os_cache, order",
    [
        (1, True, OrderOption.SEQUENTIAL),
        (2, True, OrderOption.RANDOM),
        (2, False, OrderOption.RANDOM),
        (1, False, OrderOption.QUASI_RANDOM),
    ],
)
def test_the_images_are_those_of_our_own_loader_in_every_epoch(num_workers, os_cache, order, path):
    loader = ffcv_loader(path, crops(), num_workers=num_workers, os_cache=os_cache, order=order, seed=1)
    found = [by_sample(loader) for _ in range(2)]
    assert all(torch.equal(found[epoch], ours(path, epoch)) for epoch in range(2))
    assert not torch.equal(*found)
    loader.next_epoch = 7  # as a script that resumes sets it
    assert torch.equal(by_sample(loader), ours(path, 7))


def test_betons_of_both_writers(betons, tmp_path):
    for path in (betons[1], written_by_ffcv(tmp_path)):
        images = beton.read_tables(path).images
        assert set(images["mode"]) == {beton.RAW, beton.JPG}  # write_mode="proportion"
        assert torch.equal(by_sample(ffcv_loader(path, crops())), ours(path, 0))


def test_the_centre_is_that_of_our_own_loader(path):
    centre = CenterCropRGBImageDecoder((SIZE, SIZE), 0.8)
    assert isinstance(centre, rgb_image.CenterCropRGBImageDecoder)
    options = dict(batch_size=NUM, num_workers=1, processes=Processes(), resolution=SIZE, crop_ratio=0.8)
    [(expected, _)] = ValLoader(open_shards(path), **options)
    assert torch.equal(by_sample(ffcv_loader(path, centre)), expected)


def test_flips_by_the_decoder_and_by_the_operation(path):
    decoder = crops(flip_probability=0.5)
    loader = ffcv_loader(path, decoder, num_workers=2)
    assert torch.equal(by_sample(loader), ours(path, 0, flipped=True))
    assert torch.equal(by_sample(loader), ours(path, 1, flipped=True))
    loader = ffcv_loader(path, crops(), RandomHorizontalFlip(seed=SEED), num_workers=2)
    assert torch.equal(by_sample(loader), ours(path, 0, flipped=True))
    decoder.flip_probability, loader.next_epoch = 1, 0
    everything = ffcv_loader(path, decoder)
    assert torch.equal(by_sample(everything).flip(3), ours(path, 0))


def test_sizes_change_between_epochs_and_need_not_be_square(path):
    decoder = crops()
    loader = ffcv_loader(path, decoder)
    by_sample(loader)
    decoder.output_size = (32, 32)
    assert torch.equal(by_sample(loader), ours(path, 1, 32))
    decoder.output_size = (8, 40)
    assert by_sample(loader).shape == (NUM, 3, 8, 40)
    decoder.output_size = (0, 40)
    with pytest.raises(ValueError, match="output_size: expected 1 or more, got 0"):
        iter(loader)


def test_each_of_two_iterations_at_once_keeps_its_epoch(path):
    loader = ffcv_loader(path, crops(), batches_ahead=1)
    first = iter(loader)
    begun = [next(first)[0].clone()]
    assert torch.equal(by_sample(loader), ours(path, 1))
    assert torch.equal(torch.cat([*begun, *(images.clone() for (images,) in first)]), ours(path, 0))


def test_without_numba(path, monkeypatch):
    """Compiler.set_enabled(False) is how FFCV's users debug operations."""
    monkeypatch.setattr(Compiler, "is_enabled", False)
    assert torch.equal(by_sample(ffcv_loader(path, crops())), ours(path, 0))


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_nothing_is_decoded_into_memory_that_a_gpu_still_copies_from(monkeypatch):
    """A GPU's stream, which is behind, stands for one that copies the images of an earlier batch."""
    happened = []

    class Decoder:
        def decode_batch(self, indices, *rest):
            happened.append("decoded")
            return np.zeros(len(indices), np.int32)

    stream = SimpleNamespace(synchronize=lambda: happened.append("waited"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    decoder = Decoder()
    monkeypatch.setitem(ffcv._OPERATIONS, -1, decoder)
    ffcv._decode(-1, np.arange(3), *[None] * 4)
    assert happened == ["waited", "decoded"]


@pytest.mark.parametrize("os_cache", [True, False])
def test_a_damaged_sample_ends_the_loop_after_the_batches_before_it(os_cache, path, tmp_path):
    broken = shutil.copy(path, tmp_path / "broken.beton")
    damage(broken, 47)
    before, batches = threading.active_count(), 0
    loader = ffcv_loader(broken, crops(), os_cache=os_cache)
    with pytest.raises(
        UserError, match=r"sample 47 of .*broken\.beton cannot be decoded \(damaged JPEG data\)"
    ):
        for _ in loader:
            batches += 1
    assert batches == 2  # of 20 samples each
    gc.collect()
    wait_until(lambda: threading.active_count() <= before)


def test_a_file_that_became_shorter_is_named(path, tmp_path):
    cut = shutil.copy(path, tmp_path / "cut.beton")
    loader = ffcv_loader(cut, crops())
    os.truncate(cut, 1 << 16)
    with pytest.raises(UserError, match=r"sample \d+ of .*cut\.beton can(not be decoded| no longer be read)"):
        by_sample(loader)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandomResizedCropRGBImageDecoder((0, 9)), "output_size: expected 1 or more, got 0"),
        (lambda: crops(scale=(0.5, 1.5)), "scale: expected two rising numbers"),
        (lambda: crops(ratio=(0, 1)), "ratio: expected two rising numbers above 0"),
        (lambda: crops(seed=0.5), "seed: expected an integer"),
        (lambda: crops(flip_probability=2), "flip_probability: expected a number from 0 to 1, got 2"),
        (lambda: CenterCropRGBImageDecoder((9, 9), 1.5), "ratio: expected a number above 0 and at most 1"),
        (lambda: RandomHorizontalFlip(-1), "flip_prob: expected a number from 0 to 1, got -1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_ffcv_the_import_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "llc.ffcv")
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(ImportError, match=r"llc.ffcv needs ffcv.*pip install 'llcodes\[ffcv\]'"):
        importlib.import_module("llc.ffcv")


# ---- a training script of FFCV's users ---------------------------------------------------------------------


def test_a_script_in_the_manner_of_ffcv_imagenet(betons):
    """Its pipelines, its progressive resolution and its loop, with our imports in the places of FFCV's.

    On a CPU FFCV can normalise only before ToTensor.
    """
    mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
    device = torch.device("cpu")

    def labels():
        return [IntDecoder(), ToTensor(), Squeeze(), ToDevice(device, non_blocking=True)]

    decoder = RandomResizedCropRGBImageDecoder((16, 16))
    train = Loader(
        str(betons[0]),
        batch_size=24,
        num_workers=1,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        seed=0,
        pipelines={
            "image": [
                decoder,
                RandomHorizontalFlip(),
                NormalizeImage(mean, std, np.float16),
                ToTensor(),
                ToDevice(device, non_blocking=True),
                ToTorchImage(),
            ],
            "label": labels(),
        },
    )
    val = Loader(
        str(betons[1]),
        batch_size=16,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={
            "image": [
                CenterCropRGBImageDecoder((20, 20), ratio=224 / 256),
                ToTensor(),
                ToDevice(device, non_blocking=True),
                ToTorchImage(),
            ],
            "label": labels(),
        },
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(288, 6),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for epoch in range(6):
        decoder.output_size = (16 + 4 * (epoch // 3),) * 2
        model.train()
        for images, targets in train:
            assert images.dtype == torch.float16 and images.shape == (24, 3, *decoder.output_size)
            seen += targets.tolist()
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images.float()), targets).backward()
            optimizer.step()
    assert np.bincount(seen).tolist() == [240] * 6
    model.eval()
    correct = []
    with torch.no_grad():
        for images, targets in val:
            normalised = (images.float() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            correct += (model(normalised.float()).argmax(1) == targets).tolist()
    assert len(correct) == 66 and np.mean(correct) > 0.5  # chance is 1/6
