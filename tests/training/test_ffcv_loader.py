"""data.loader=ffcv: our own loader's batches from FFCV's, operations of one's own, and runs of both."""

# ruff: noqa: E402 (FFCV may be missing, and sets the number of torch threads when it is imported)

import os
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from llc import train as train_llc
from llc.data import beton
from llc.data.loaders import TrainLoader
from llc.data.shards import open_shards
from llc.errors import UserError
from llc.training import config
from llc.training.ffcv_loader import FFCVTrainLoader
from tests.data.betons import damage, write_small_beton
from tests.data.helpers import picture
from tests.data.test_loaders import Alone
from tests.tools.chaos import differences, end_of, make_betons
from tests.training.test_survival import SHORT, STEPS, stop_at

NUM_THREADS = torch.get_num_threads()
pytest.importorskip("ffcv")
from ffcv.pipeline.operation import Operation
from ffcv.transforms import Cutout, View
from numba import njit

from llc import ffcv

torch.set_num_threads(NUM_THREADS)  # importing FFCV sets it to 1
# pytest forgets what llc.ffcv itself ignores
IGNORED = "has no manifest", "Code running in object mode"
pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{message}") for message in IGNORED]

NUM = 101


@pytest.fixture(autouse=True, scope="module")
def threads_are_kept():
    """FFCV sets torch's number of threads; a run on a CPU depends on it."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pictures = [picture(i, 30 + i * 7 % 23, 25 + i * 5 % 31) for i in range(NUM)]
    modes = [beton.JPG if i % 3 else beton.RAW for i in range(NUM)]
    folder = tmp_path_factory.mktemp("betons")
    return write_small_beton(folder / "train.beton", pictures, [i * 3 % 7 for i in range(NUM)], modes)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(ffcv, "REGISTERED", {})
    return ffcv.register


def loader(path, kind=FFCVTrainLoader, *, rank=0, world_size=1, **options):
    options = {"num_workers": 2, "seed": 5, "min_scale": 0.3, **options}
    return kind(open_shards(path), batch_size=12 // world_size, processes=Alone(rank, world_size), **options)


@pytest.mark.parametrize("in_memory, rank, world_size", [(True, 1, 3), (False, 0, 1)])
def test_the_batches_are_those_of_our_own_loader(in_memory, rank, world_size, path):
    options = {"in_memory": in_memory, "rank": rank, "world_size": world_size}
    theirs, own = loader(path, **options), loader(path, TrainLoader, **options)
    assert theirs.batches_per_epoch == own.batches_per_epoch == 8
    # sizes that change, an epoch again, the middle of one, and its end
    for epoch, resolution, start in ((0, 24, 0), (1, 24, 5), (1, 32, 0), (0, 24, 7), (2, 24, 8)):
        expected = list(own.epoch(epoch, resolution, start))
        count = 0
        for (images, labels), (images_of_own, labels_of_own) in zip(
            theirs.epoch(epoch, resolution, start), expected, strict=True
        ):
            assert torch.equal(images, images_of_own) and torch.equal(labels, labels_of_own)
            assert images.is_contiguous(memory_format=torch.channels_last)
            count += 1
        assert count == 8 - start


def test_an_epoch_that_is_left_ends_its_thread(path):
    batches, before = loader(path), threading.active_count()
    left = batches.epoch(0, 24)
    next(left)
    assert threading.active_count() == before + 1
    left.close()
    assert threading.active_count() == before
    next(batches.epoch(1, 24))
    images, _ = next(batches.epoch(0, 24))
    assert threading.active_count() == before + 1
    expected, _ = next(loader(path, TrainLoader).epoch(0, 24))
    assert torch.equal(images, expected)


class InPlace(Operation):
    """An operation of FFCV that calls `change` on every value of the images."""

    def __init__(self, change):
        super().__init__()
        self.change = njit(change)

    def generate_code(self):
        change = self.change

        def operation(images, _):
            for place in np.ndindex(images.shape):
                images[place] = change(images[place])
            return images

        return operation

    def declare_state_and_memory(self, state):
        return state, None


class Invert(nn.Module):
    def forward(self, images):
        return 255 - images


def test_operations_follow_the_decoder_in_their_order(registered, path):
    registered("invert", on_tensors=True)(lambda: [Invert()])
    registered("halve")(lambda: [InPlace(lambda value: value // 2)])
    registered("more")(lambda: [InPlace(lambda value: value + 9)])
    own, changed = loader(path, TrainLoader), loader(path, operations=("invert", "halve", "more"))
    for resolution in (24, 20):
        for (images, labels), (whole, labels_of_own) in zip(
            changed.epoch(1, resolution), own.epoch(1, resolution), strict=True
        ):
            assert torch.equal(images, 255 - (whole // 2 + 9)) and torch.equal(labels, labels_of_own)


class Fails(Operation):
    def generate_code(self):
        def fail(images, _):
            raise RuntimeError("this operation fails")

        return fail

    def declare_state_and_memory(self, state):
        return state, None


class ToFloat(nn.Module):
    def forward(self, images):
        return images.float()


def test_operations_that_fail_or_make_no_images_end_the_epoch(registered, path, tmp_path):
    registered("fails")(lambda: [Fails()])
    registered("floats", on_tensors=True)(lambda: [ToFloat()])
    with pytest.raises(RuntimeError, match="this operation fails"):
        list(loader(path, operations=("fails",)).epoch(0, 24))
    with pytest.raises(
        UserError, match=r"data.operations = floats: they make batches of float32 \[12, 3, 24, 24\]; training"
    ):
        list(loader(path, operations=("floats",)).epoch(0, 24))
    for name, on_tensors, operation, message in (
        ("a", True, Cutout(6), "Cutout, which works on arrays; register it without on_tensors"),
        ("b", False, View(torch.uint8), "View, which works on tensors; register it with on_tensors"),
        ("c", False, Invert(), "Invert, which is no FFCV operation; modules of torch need @register"),
        ("d", True, list, "type, which is no FFCV operation"),
    ):
        registered(name, on_tensors=on_tensors)(lambda operation=operation: [operation])
        with pytest.raises(UserError, match=f"data.operations: {name} has {message}"):
            next(loader(path, operations=(name,)).epoch(0, 24))
    for name, make in (("none", lambda: None), ("raises", lambda: 1 / 0)):
        registered(name)(make)
        with pytest.raises(UserError, match=f"function of {name} must return a list of operations; "):
            next(loader(path, operations=(name,)).epoch(0, 24))
    broken = tmp_path / "broken.beton"
    broken.write_bytes(path.read_bytes())
    damage(broken, 47)
    with pytest.raises(UserError, match="sample 47 of .*broken.beton cannot be decoded.*data.loader=llc"):
        list(loader(broken).epoch(0, 24))


def test_names_and_combinations_that_do_not_fit_are_refused(registered, path, tmp_path):
    with pytest.raises(
        UserError, match=r"mine is not registered \(none is\); name the file .* --plugin=FILE.py"
    ):
        loader(path, operations=("mine",))
    registered("other")(list)
    with pytest.raises(UserError, match=r"mine is not registered \(there are other\)"):
        loader(path, operations=("mine",))
    for name in ("other", "a,b", ""):
        with pytest.raises(ValueError, match="the name is taken, empty, or has a comma"):
            registered(name)
    second = tmp_path / "second.beton"
    second.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="reads one beton, and data.train_dataset names 2"):
        loader(f"{path},{second}")
    words = [*SHORT, "--data.train_dataset=a", "--data.val_dataset=b"]
    for more, message in (
        (["--data.operations=mine"], "data.operations = mine needs data.loader=ffcv; it is llc"),
        (["--data.loader=ffcv", "--data.on_error=skip_sample"], "cannot replace damaged samples"),
        (["--data.loader=dali"], "it takes one of llc, ffcv"),
    ):
        with pytest.raises(UserError, match=message):
            config.read([*words, *more], description="")


def test_a_run_stopped_within_an_epoch_ends_as_one_on_our_own_loader(request, tmp_path, monkeypatch):
    """To the bit; and the loader may change when a run resumes."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(len(os.sched_getaffinity(0))))  # one thread
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))  # a run sets its own
    train, val = make_betons(tmp_path)

    def run(name, *options):
        train_llc.main(
            [
                *SHORT,
                f"--data.train_dataset={train}",
                f"--data.val_dataset={val}",
                f"--logging.folder={tmp_path}",
                f"--logging.name={name}",
                "--codebook.epochs=1",
                "--instance.epochs=1",
                "--resume=auto",
                *options,
            ]
        )

    run("llc")
    epochs, epoch = [], FFCVTrainLoader.epoch
    monkeypatch.setattr(FFCVTrainLoader, "epoch", lambda *given: epochs.append(given[1:]) or epoch(*given))
    for step, kind in ((2, "ffcv"), (STEPS - 2, "llc")):  # the second stops within the instance stage
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            stop_at(patch, step)
            run("both", f"--data.loader={kind}")
    run("both", "--data.loader=ffcv")
    assert epochs == [(0, 16, 0), (1, 16, 2)]
    assert differences(end_of(tmp_path / "both"), end_of(tmp_path / "llc")) == []
