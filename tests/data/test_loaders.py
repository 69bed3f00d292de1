"""Batches from betons: their content, the same in every way of reading, and nothing left behind."""

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from llc.data import beton, loaders, sampling, storage
from llc.data.loaders import EncodingLoader, TrainLoader, ValLoader
from llc.data.shards import open_shards
from llc.distributed import Processes
from llc.errors import UserError
from llc.native import codec
from tests.data import make_ffcv_beton as made
from tests.data.betons import FFCV_DECODED, damage, stored_samples, write_small_beton, written_by_ffcv
from tests.data.helpers import REPOSITORY, picture
from tests.waiting import seconds

pytestmark = pytest.mark.filterwarnings("ignore:.*has no manifest")

NUM, RESOLUTION = 101, 24
PICTURES = [picture(i, 30 + i * 7 % 23, 25 + i * 5 % 31) for i in range(NUM)]
LABELS = [i * 3 % 7 for i in range(NUM)]
MODES = [beton.JPG if i % 3 else beton.RAW for i in range(NUM)]


class Alone(Processes):
    """One of several processes, whose others are not there: all of them have the same betons."""

    def gather(self, tensor):
        return [tensor] * self.world_size

    def gather_objects(self, value):
        return [value] * self.world_size


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """101 pictures in about 12 pages of 32 kB."""
    return write_small_beton(tmp_path_factory.mktemp("betons") / "train.beton", PICTURES, LABELS, MODES)


@pytest.fixture
def small_window(monkeypatch):
    """3 pages of 32 kB, and one read ahead."""
    monkeypatch.setattr(storage, "WINDOW_BYTES", 3 << 15)
    monkeypatch.setattr(storage, "_READ_AHEAD_BYTES", 1 << 15)


def train(path, *, rank=0, world_size=1, total=12, seed=5, num_workers=2, **kwargs):
    kwargs.setdefault("min_scale", 0.3)
    return TrainLoader(
        path if not isinstance(path, (str, os.PathLike)) else open_shards(path),
        batch_size=total // world_size,
        num_workers=num_workers,
        processes=Alone(rank, world_size),
        seed=seed,
        **kwargs,
    )


def val(
    path,
    *,
    rank=0,
    world_size=1,
    batch_size=8,
    resolution=RESOLUTION,
    crop_ratio=0.875,
    kind=ValLoader,
    processes=None,
    **kwargs,
):
    return kind(
        open_shards(path),
        batch_size=batch_size,
        num_workers=2,
        processes=processes or Alone(rank, world_size),
        resolution=resolution,
        crop_ratio=crop_ratio,
        **kwargs,
    )


def encoding(path, **kwargs):
    return val(path, kind=EncodingLoader, **kwargs)


def taken(batches):
    """A list of (images as numpy [B, R, R, 3], labels as a list)."""
    return [(images.permute(0, 2, 3, 1).numpy().copy(), labels.tolist()) for images, labels in batches]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) and k == m for (x, k), (y, m) in zip(a, b))


def multiset(*epochs):
    """The images of epochs, with their labels, in an order of their own."""
    return sorted(
        (image.tobytes(), label)
        for epoch in epochs
        for images, labels in epoch
        for image, label in zip(images, labels)
    )


@pytest.fixture(autouse=True, scope="module")
def nothing_of_other_files():
    """Ends the loaders that tests of other files left in reference cycles, such as those of tracebacks."""
    gc.collect()


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llc-")]


# ----------------------------------------------------------------------------------------- what a batch holds


def test_a_batch_is_its_samples_cropped_resized_and_flipped(path):
    loader = train(path)
    assert loader.batches_per_epoch == 8
    tables, order = beton.read_tables(path), loader.order(3)
    data = np.fromfile(path, np.uint8)
    flipped = 0
    for (images, labels), indices in zip(loader.epoch(3, RESOLUTION), order, strict=True):
        assert (
            images.shape == (12, 3, RESOLUTION, RESOLUTION)
            and images.dtype == torch.uint8
            and labels.dtype == torch.int64
        )
        assert images.is_contiguous(memory_format=torch.channels_last) and labels.tolist() == [
            LABELS[i] for i in indices
        ]
        for image, i in zip(images.permute(0, 2, 3, 1).numpy(), indices):
            mode, width, height, start = tables.images[i].item()
            crops, flips = sampling.random_crops([i], [height], [width], 5, 3, 0.3)
            flipped += int(flips[0])
            encoded = data[start : start + tables.sizes[i]]
            pixels = encoded.reshape(height, width, 3) if mode == beton.RAW else codec.decode(encoded)
            top, left, h, w = crops[0]
            cut = np.ascontiguousarray(pixels[top : top + h, left : left + w])
            whole = codec.Samples(*(np.array([x]) for x in (cut.ctypes.data, cut.size, beton.RAW, w, h)))
            expected = np.empty((1, RESOLUTION, RESOLUTION, 3), np.uint8)
            codec.decode_batch(whole, np.array([[0, 0, h, w]]), [False], expected)
            assert np.array_equal(image, expected[0, :, ::-1] if flips[0] else expected[0])
    assert 20 < flipped < 76


def test_validation_of_pictures_of_the_right_size_shows_them_as_they_are(tmp_path):
    pictures = [picture(i, 20, 20) for i in range(11)]
    path = write_small_beton(tmp_path / "val.beton", pictures, range(11), [beton.RAW] * 11)
    for in_memory in (True, False):
        batches = taken(val(path, batch_size=4, resolution=20, crop_ratio=1.0, in_memory=in_memory))
        assert [len(labels) for _, labels in batches] == [4, 4, 3] and sum(
            (labels for _, labels in batches), []
        ) == list(range(11))
        assert np.array_equal(np.concatenate([images for images, _ in batches]), pictures)


def test_reads_what_ffcv_wrote_as_ffcv_did(tmp_path):
    """From files made by FFCV (make_ffcv_beton.py); the tolerance as in the test below."""
    path = written_by_ffcv(tmp_path)
    raw = beton.read_tables(path).images["mode"] == beton.RAW
    assert 0 < raw.sum() < len(raw)
    with np.load(FFCV_DECODED) as decoded:
        expected, labels = decoded["images"], decoded["labels"].tolist()
    batches = taken(val(path, resolution=made.RESOLUTION, crop_ratio=made.CROP_RATIO))
    assert sum((found for _, found in batches), []) == labels == list(made.LABELS)
    images = np.concatenate([images for images, _ in batches])
    differences = np.abs(images.astype(int) - expected).mean((1, 2, 3))
    assert differences.max() < 2 and np.abs(np.diff(expected.astype(int), axis=0)).mean() > 8
    for i, sample in enumerate(stored_samples(path)):
        error = np.abs(sample.pixels().astype(int) - made.picture(i)).max()
        assert error == 0 if sample.mode == beton.RAW else error < 20


def test_reads_what_stock_ffcv_wrote_as_stock_ffcv_does(tmp_path):
    """Labels exactly; pixels differ by rounding and by FFCV's less exact JPEG decoding."""
    pytest.importorskip("ffcv")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    path = tmp_path / "stock.beton"
    fields = {"image": RGBImageField(write_mode="proportion", compress_probability=0.5), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(
        list(zip(PICTURES, LABELS)), chunksize=10
    )
    assert 0 < (beton.read_tables(path).images["mode"] == beton.RAW).sum() < NUM
    pipelines = {
        "image": [CenterCropRGBImageDecoder((RESOLUTION, RESOLUTION), 0.875)],
        "label": [IntDecoder()],
    }
    stock = Loader(
        str(path),
        batch_size=8,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines=pipelines,
    )
    num_seen = 0
    for (images, labels), (stock_images, stock_labels) in zip(taken(val(path)), stock, strict=True):
        assert labels == stock_labels.reshape(-1).tolist()
        assert np.abs(images.astype(int) - stock_images).mean() < 2
        num_seen += len(labels)
    assert num_seen == NUM


# -------------------------------------------------------------------------------------- the same for everyone


@pytest.mark.parametrize("in_memory", [True, False])
def test_any_number_of_threads_makes_the_same_bytes(in_memory, path, small_window):
    epochs = [
        taken(train(path, num_workers=n, in_memory=in_memory).epoch(1, RESOLUTION)) for n in (1, 2, 3, 2)
    ]
    assert all(same(epochs[0], other) for other in epochs[1:])


@pytest.mark.parametrize("in_memory", [True, False])
def test_seed_and_epoch_change_images_and_order(in_memory, path, small_window):
    epochs = [
        taken(train(path, seed=seed, in_memory=in_memory).epoch(epoch, RESOLUTION))
        for seed, epoch in ((5, 0), (5, 1), (6, 0), (6, 1))
    ]
    for i in range(4):
        for k in range(i):
            assert [labels for _, labels in epochs[i]] != [labels for _, labels in epochs[k]]
            assert not set(multiset(epochs[i])) & set(multiset(epochs[k]))


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_ranks_together_see_what_one_process_sees(in_memory, path, small_window):
    alone = multiset(taken(train(path, in_memory=in_memory).epoch(2, RESOLUTION)))
    assert len(alone) == 96
    for world_size in (2, 3):
        parts = [
            taken(train(path, rank=rank, world_size=world_size, in_memory=in_memory).epoch(2, RESOLUTION))
            for rank in range(world_size)
        ]
        assert len({len(part) for part in parts}) == 1 and multiset(*parts) == alone


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_epoch_can_be_gone_on_with_at_any_batch(in_memory, path, small_window):
    loader = train(path, in_memory=in_memory)
    whole = taken(loader.epoch(4, RESOLUTION))
    for start in (0, 1, 5, 7, 8):
        assert same(taken(loader.epoch(4, RESOLUTION, start_batch=start)), whole[start:])


def test_paged_images_are_those_in_memory_in_another_order(path, small_window):
    epochs = [
        taken(train(path, total=1, in_memory=in_memory).epoch(2, RESOLUTION)) for in_memory in (True, False)
    ]
    assert not same(*epochs) and multiset(epochs[0]) == multiset(epochs[1]) and len(epochs[0]) == NUM


def test_epochs_in_flight_at_once_and_of_other_resolutions_do_not_mix(path):
    loader, other = train(path), train(path, seed=9)
    expected = [taken(loader.epoch(0, 16)), taken(loader.epoch(1, 40)), taken(other.epoch(0, 24))]
    together = list(zip(loader.epoch(0, 16), loader.epoch(1, 40), other.epoch(0, 24)))
    assert all(same(taken(column), e) for column, e in zip(zip(*together), expected))


def test_all_loaders_of_a_device_copy_on_one_stream(monkeypatch):
    """PyTorch's allocator keeps memory per stream: with one per loader it would grow every epoch."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    loaders._copy_stream.cache_clear()
    memories = [loaders._PinnedMemory(torch.device("cuda", index)) for index in (0, 1, 0, 1, 0)]
    assert (
        made == [torch.device("cuda:0"), torch.device("cuda:1")]
        and memories[0]._stream is memories[2]._stream
    )
    loaders._copy_stream.cache_clear()


def test_a_batch_stays_as_it_is_while_it_is_held(path):
    loader = train(path)
    held, seen = [], []
    for images, labels in loader.epoch(0, RESOLUTION):
        held.append((images[3:5], labels[3:5]))  # a view keeps the memory too
        seen.append((images[3:5].clone(), labels[3:5].clone()))
        del images, labels
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(held, seen))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_sees_each_sample_once_in_order(world_size, in_memory, path, small_window):
    alone = taken(val(path))
    images, labels = np.concatenate([images for images, _ in alone]), sum((labels for _, labels in alone), [])
    assert labels == LABELS and len(np.unique(images, axis=0)) == NUM
    for rank in range(world_size):
        for _ in range(2):
            part = taken(val(path, rank=rank, world_size=world_size, in_memory=in_memory))
            assert np.array_equal(np.concatenate([images for images, _ in part]), images[rank::world_size])
            assert sum((labels for _, labels in part), []) == LABELS[rank::world_size]


def test_more_processes_than_val_images_leave_some_without_batches(tmp_path):
    path = write_small_beton(tmp_path / "val.beton", PICTURES[:2], [0, 1], MODES[:2])
    for kind in (ValLoader, EncodingLoader):
        loaders = [val(path, rank=rank, world_size=3, kind=kind) for rank in range(3)]
        numbers = [len(taken(loader)) for loader in loaders]
        assert sorted(numbers) == [0, 1, 1] and [loader.num_batches for loader in loaders] == numbers
        assert [loader.num_shared_batches for loader in loaders] == [0, 0, 0]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_train_images_are_encoded_once_each_as_validation_would_crop_them(
    world_size, in_memory, path, small_window
):
    loaders = [
        encoding(path, rank=rank, world_size=world_size, in_memory=in_memory) for rank in range(world_size)
    ]
    epochs = [taken(loader) for loader in loaders]
    assert multiset(*epochs) == multiset(taken(val(path)))
    sizes = [sum(len(labels) for _, labels in epoch) for epoch in epochs]
    assert max(sizes) - min(sizes) <= 1
    assert [loader.num_batches for loader in loaders] == [len(epoch) for epoch in epochs]
    assert {loader.num_shared_batches for loader in loaders} == {min(map(len, epochs))}


# --------------------------------------------------------------------------------------------- several betons


@pytest.fixture
def shards(tmp_path):
    """The samples of `path` in three betons."""
    for k, part in enumerate((slice(0, 30), slice(30, 37), slice(37, NUM))):
        write_small_beton(tmp_path / f"train-{k}.beton", PICTURES[part], LABELS[part], MODES[part])
    return str(tmp_path / "train-*.beton")


@pytest.mark.parametrize("in_memory", [True, False])
def test_shards_are_read_as_one_beton(in_memory, shards, path, small_window):
    whole, parts = (train(where, in_memory=in_memory) for where in (path, shards))
    assert multiset(taken(val(shards, in_memory=in_memory))) == multiset(taken(val(path)))
    if in_memory:
        assert same(taken(whole.epoch(0, RESOLUTION)), taken(parts.epoch(0, RESOLUTION)))
    else:  # their pages are others
        one = train(shards, total=1, in_memory=False)
        assert multiset(taken(one.epoch(0, RESOLUTION))) == multiset(
            taken(train(path, total=1).epoch(0, RESOLUTION))
        )


class OneOfTwoMachines(Processes):
    """One of 4 processes, two on each machine.

    others: [digest, digest of classes, number of samples] of the other machine's processes.
    """

    def __init__(self, rank, others):
        super().__init__(rank, 4)
        self.others = others

    def gather(self, tensor):
        theirs = torch.tensor([[a if a is not None else b for a, b in zip(self.others, tensor[0].tolist())]])
        return [tensor, tensor, theirs, theirs] if self.rank < 2 else [theirs, theirs, tensor, tensor]

    def gather_objects(self, value):
        return [value] * 4


def test_machines_with_betons_of_their_own_share_each_among_its_processes(path):
    def loaders(rank, *others):
        return TrainLoader(
            open_shards(path),
            batch_size=6,
            num_workers=1,
            processes=OneOfTwoMachines(rank, others),
            seed=5,
            min_scale=0.3,
        )

    for first_rank in (0, 2):
        parts = [loaders(first_rank + k, 12345, None, 97) for k in range(2)]
        assert [part.batches_per_epoch for part in parts] == [8, 8]
        assert multiset(*(taken(part.epoch(0, RESOLUTION)) for part in parts)) == multiset(
            taken(train(path).epoch(0, RESOLUTION))
        )
    assert loaders(0, None, None, None).batches_per_epoch == 101 // 24  # all four have the same
    with pytest.raises(UserError, match="different classes; write all of them with --cfg.class_names_from"):
        loaders(0, 12345, 678, 97)
    with pytest.raises(UserError, match="fill from 7 to 8 batches an epoch, .*divide the images evenly"):
        loaders(0, 12345, None, 90)
    with pytest.raises(UserError, match="every machine needs the same"):
        val(path, processes=OneOfTwoMachines(0, (1, None, 97)))


def test_machines_with_betons_of_their_own_encode_each_among_its_processes(path):
    for first_rank in (0, 2):
        parts = [
            encoding(path, batch_size=6, processes=OneOfTwoMachines(first_rank + k, (12345, None, 31)))
            for k in range(2)
        ]
        assert multiset(*map(taken, parts)) == multiset(taken(val(path)))
        assert [part.num_batches for part in parts] == [9, 9]
        assert [part.num_shared_batches for part in parts] == [
            3,
            3,
        ]  # the other machine's 31 images: 15 and 16


# ---------------------------------------------------------------------------------------------- errors


@pytest.fixture
def damaged(tmp_path):
    path = write_small_beton(tmp_path / "train.beton", PICTURES, LABELS, MODES)
    for index in (40, 77):
        damage(path, index)
    return path


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_sample_is_named(in_memory, damaged):
    epochs = (train(damaged, in_memory=in_memory).epoch(e, RESOLUTION) for e in range(3))
    for batches in (*epochs, val(damaged, in_memory=in_memory), encoding(damaged, in_memory=in_memory)):
        with pytest.raises(
            UserError, match=r"sample (40|77) of .*train\.beton cannot be decoded \(damaged JPEG data\)"
        ):
            taken(batches)
    assert not threads()


@pytest.mark.parametrize("in_memory", [True, False])
def test_another_sample_takes_the_place_of_a_damaged_one(in_memory, damaged, path, small_window):
    expected = taken(train(path, in_memory=in_memory).epoch(0, RESOLUTION))
    order = train(path, in_memory=in_memory).order(0)
    bad = np.isin(order, [40, 77])
    assert bad.sum() == 2
    ranks, texts = [], []
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        loader = train(damaged, rank=rank, world_size=world_size, in_memory=in_memory, on_error="skip_sample")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ranks.append(taken(loader.epoch(0, RESOLUTION)))
        texts.append(" ".join(str(warning.message) for warning in caught))
    assert (
        f"epoch 0: other samples took the places of 2 that cannot be decoded: sample 40 of {damaged}, sample"
        f" 77 of {damaged}" in texts[0]
    )
    for sample in ("sample 40 of", "sample 77 of"):
        assert (sample in texts[1]) + (sample in texts[2]) == 1
    alone = ranks[0]
    for (images, _), (expected_images, _), is_bad in zip(alone, expected, bad, strict=True):
        assert np.array_equal(images[~is_bad], expected_images[~is_bad])
        for i in np.flatnonzero(is_bad):
            assert images[i].any() and not np.array_equal(images[i], expected_images[i])
    assert multiset(*ranks[1:]) == multiset(alone)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_sample_is_encoded_without_a_label_and_named(in_memory, damaged, path, small_window):
    loader = encoding(damaged, in_memory=in_memory, on_error="skip_sample")
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch = taken(loader)
        (warning,) = caught
        assert str(warning.message) == (
            f"samples left out because they cannot be decoded (2): sample 40 of {damaged}, sample 77 of "
            f"{damaged}"
        )
        images, labels = np.concatenate([images for images, _ in epoch]), sum((part for _, part in epoch), [])
        assert labels == [-1 if i in (40, 77) else label for i, label in enumerate(LABELS)]
        assert not images[[40, 77]].any()
        expected = np.concatenate([images for images, _ in taken(val(path))])
        assert np.array_equal(np.delete(images, [40, 77], 0), np.delete(expected, [40, 77], 0))
    with pytest.raises(ValueError, match="on_error"):
        encoding(path, on_error="skip")


def test_a_beton_of_damaged_samples_only_is_an_error_with_skip_sample_too(tmp_path):
    path = write_small_beton(tmp_path / "train.beton", PICTURES[:6], LABELS[:6], [beton.JPG] * 6)
    for index in range(6):
        damage(path, index)
    with pytest.raises(
        UserError, match="cannot be decoded .*, and so are 20 others drawn in its place; write it again"
    ):
        taken(train(path, total=6, on_error="skip_sample").epoch(0, RESOLUTION))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_beton_that_changes_after_it_was_opened_is_noticed(in_memory, tmp_path):
    path = write_small_beton(tmp_path / "train.beton", PICTURES, LABELS, MODES)
    loader = train(path, in_memory=in_memory)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="train.beton changed since it was opened"):
        taken(loader.epoch(0, RESOLUTION))
    path.unlink()
    with pytest.raises(UserError, match="train.beton cannot be read: No such file"):
        taken(loader.epoch(0, RESOLUTION))
    assert not threads()


@pytest.mark.parametrize("on_error", ["fail", "skip_sample"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_beton_cut_short_while_it_is_read_is_an_error_that_names_it(
    in_memory, on_error, small_window, tmp_path
):
    path = write_small_beton(tmp_path / "train.beton", PICTURES, LABELS, MODES)
    loader = train(path, total=4, in_memory=in_memory, on_error=on_error)
    with pytest.raises(
        UserError, match="train.beton (changed since it was opened: 0 bytes|became shorter while it was read)"
    ):
        for _ in loader.epoch(0, RESOLUTION):
            os.truncate(path, 0)
    assert not threads()


@pytest.mark.parametrize("on_error", ["fail", "skip_sample"])
def test_a_disk_that_fails_is_an_error_and_no_damaged_sample(on_error, path, monkeypatch):
    """A truncated file stands for the failing disk; it has its size again when the loader looks."""
    monkeypatch.setattr(
        codec, "decode_batch", lambda samples, *rest: np.full(len(samples.sizes), codec.UNREADABLE)
    )
    with pytest.raises(UserError, match=r"sample \d+ of .* can no longer be read: .* its disk fails"):
        taken(train(path, on_error=on_error).epoch(0, RESOLUTION))


def test_too_few_images_for_a_batch(path):
    with pytest.raises(
        UserError,
        match=r"train.beton: 101 images do not fill one batch; training.batch_size = 102 is too large",
    ):
        train(path, total=102, world_size=2)


# ---------------------------------------------------------------------------------------- nothing left behind


def test_fifty_epochs_leave_no_thread_file_or_memory(path, damaged, small_window):
    """Ended, broken off, failed in the loop and failed in the loader; mapped and paged."""

    def use(e):
        loader = train(path, in_memory=e % 2 == 0)
        for batch, _ in enumerate(loader.epoch(e, 64 + e % 3)):
            if e % 4 == 1 and batch == 2:
                break
        with pytest.raises(ZeroDivisionError):
            for _ in loader.epoch(e, 64):
                raise ZeroDivisionError
        with pytest.raises(UserError):
            taken(train(damaged, in_memory=e % 2 == 0).epoch(e, 64))
        taken(val(path, in_memory=e % 2 == 0))

    def left():
        gc.collect()
        return (
            threading.active_count(),
            sorted(os.listdir("/proc/self/fd")),
            open("/proc/self/maps").read().count(".beton"),
        )

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

    for e in range(8):
        use(e)
    before, resident_before = left(), resident()
    for e in range(50):
        use(e)
    assert left() == before and before[2] == 0
    assert resident() - resident_before < 8 << 20  # an epoch's batches are 3 MB; 200 epochs have run


LIMITED = """
import resource, sys
from llc.data import storage
from llc.data.loaders import TrainLoader
from llc.data.shards import open_shards
from llc.distributed import Processes

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

storage.WINDOW_BYTES, storage._READ_AHEAD_BYTES = 32 << 20, 16 << 20
shards = open_shards(sys.argv[1])
loader = TrainLoader(
    shards, batch_size=64, num_workers=2, processes=Processes(), seed=0, min_scale=0.08,
    in_memory=sys.argv[2] == "1"
)
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (300 << 20),) * 2)
before, most, num_seen = status("RssAnon"), 0, 0
for images, labels in loader.epoch(1, 16):
    most, num_seen = max(most, status("RssAnon") - before), num_seen + int((images == 0).all()) * len(labels)
print(num_seen, most >> 20)
"""


def test_a_beton_several_times_the_memory_is_read_by_pages(tmp_path):
    """1 GB of raw pictures, a hole in the file, with 300 MB of address space for everything."""
    num_pages, per_page, height, width = 120, 11, 400, 600
    num_samples, size = num_pages * per_page, height * width * 3
    metadata, table = np.zeros(num_samples, beton.METADATA_TYPE), np.zeros(num_samples, beton.ALLOC_TYPE)
    place = (1 + np.arange(num_samples) // per_page) * beton.PAGE_SIZE + np.arange(
        num_samples
    ) % per_page * size
    for name, value in (("mode", beton.RAW), ("width", width), ("height", height), ("data_ptr", place)):
        metadata["f0"][name] = value
    table["ptr"], table["size"] = place, size
    path, end = tmp_path / "large.beton", (num_pages + 1) * beton.PAGE_SIZE
    with open(path, "wb") as file:
        file.write(beton.header_bytes(num_samples, end) + metadata.tobytes())
        file.seek(end)
        file.write(table.tobytes())

    def run(in_memory):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LIMITED, str(path), str(in_memory)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            timeout=seconds(120),
        )

    paged = run(0)
    assert paged.returncode == 0, paged.stderr
    num_seen, most = map(int, paged.stdout.split())
    # 4 pages mixed, 2 read ahead, those that three batches of 64 span: 25 of 8 MB at most
    assert num_seen == num_samples // 64 * 64 and 32 < most < 210
    assert (
        "cannot be mapped into memory: Cannot allocate memory; read it by pages, with data.in_memory=0"
        in run(1).stderr
    )


STOPPED = """
import sys
from llc.data.loaders import TrainLoader
from llc.data.shards import open_shards
from llc.distributed import Processes

loader = TrainLoader(
    open_shards(sys.argv[1]), batch_size=8, num_workers=2, processes=Processes(), seed=0, min_scale=0.08,
    in_memory=sys.argv[2] == "1"
)
epochs = [loader.epoch(e, 200) for e in range(4)]
next(epochs[0])
print("started", flush=True)
while sys.argv[3] == "interrupt":
    for batch in loader.epoch(0, 200):
        pass
"""


@pytest.mark.parametrize("how, status, in_memory", [("exit", 0, 0), ("interrupt", -signal.SIGINT, 1)])
def test_a_process_ends_in_the_middle_of_epochs(how, status, in_memory, path):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STOPPED, str(path), str(in_memory), how],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == status
    assert errors.strip().splitlines()[-1:] == (["KeyboardInterrupt"] if how == "interrupt" else [])
    assert "ignored" not in errors
