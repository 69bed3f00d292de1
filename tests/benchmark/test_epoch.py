"""`python -m llc.benchmark epoch`: every figure of a small run is there and agrees with the others."""

import collections
import importlib
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from llc.benchmark import epoch
from llc.data.loaders import TrainLoader
from llc.data.manifest import verify
from llc.data.shards import open_shards
from llc.data.storage import read_sample
from llc.distributed import Processes
from llc.errors import UserError
from llc.training import config as training_config
from llc.training.plan import flops_per_image
from tests.conftest import ROOT, SMALL
from tests.pictures import texts_in

runner = importlib.import_module("tests.gpu.__main__")

RN50, DEMO = f"--config={ROOT}/rn50_configs/llc_20bit.yaml", f"--config={ROOT}/rn18_configs/llc_demo.yaml"


def read(*words):
    """(configuration, plan) of a command line."""
    data = ["--data.train_dataset=synthetic", "--data.val_dataset=synthetic"]
    config, options = training_config.read([*words, *data], description="", options=epoch.Options)
    return config, epoch._Plan.of(options, config, words)


def test_epoch_benchmark_beside_other_ways(betons, call_llc, tmp_path):
    done = call_llc(
        "-m",
        "llc.benchmark",
        "epoch",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        "--batches=2",
        "--rounds=2",
        "--vs=torchvision",
        f"--json={tmp_path / 'epoch.json'}",
        f"--plot={tmp_path / 'epoch.svg'}",
    )
    report = json.loads((tmp_path / "epoch.json").read_text())
    rates = report["images_per_second"]
    assert {*rates, *(f"{rate:,.0f}" for rate in rates.values())} <= texts_in(tmp_path / "epoch.svg")
    rates, seconds = report["images_per_second"], report["seconds_a_batch"]
    assert set(rates) == {"loader", "step", "epoch", "torchvision epoch"}
    for name, rate in rates.items():
        assert rate == pytest.approx(24 / statistics.median(seconds[name])) and len(seconds[name]) == 2
    limit = min(("loader", "step"), key=rates.get)
    assert report["limit"] == limit and report["share_of_limit"] == pytest.approx(
        rates["epoch"] / rates[limit]
    )
    assert len(seconds["validation"]) == 2 and "validation's first round" in report["starting_seconds"]
    assert report["config"]["compiled"] is False and ", not compiled" in done.stdout
    # a measurement of our loader takes 4 to be dropped, on a CPU 4 more, 4 that count, and leaves 4
    assert report["plan"]["measured"]["loader"] == 4
    assert "An epoch has 10 batches, fewer than the" in done.stdout
    assert "synthetic" not in done.stdout
    assert f"The {limit} limits the epoch" in done.stdout and "Against torchvision" in done.stdout


def test_epoch_benchmark_as_part_of_make_test_gpu(run_llc, tmp_path):
    """On data of its own, which two processes share."""
    [part] = [part for part in runner.parts(rehearse=True) if part.name == "epoch"]
    command = (word.format(report=tmp_path / "epoch.json") for word in part.command)
    done = run_llc(*command, "--stage=instance", processes=2)
    report = json.loads((tmp_path / "epoch.json").read_text())
    assert re.fullmatch(
        rf"{report['images_per_second']['epoch']:.0f} images/s, {report['share_of_limit']:.3f} of the "
        r"(loader|step) alone, \d\.\d\d of the matrix rate",
        runner.say_rates(report),
    )
    assert "; 256 synthetic images; " in done.stdout and "instance stage" in done.stdout  # 16 batches of 16
    assert "2 processes, " in done.stdout and "An epoch has" not in done.stdout


def test_epoch_benchmark_of_the_joint_stage(betons, call_llc):
    done = call_llc(
        "-m",
        "llc.benchmark",
        "epoch",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        "--stage=joint",
        "--vs=torchvision",
        "--batches=1",
        "--rounds=1",
    )
    assert "joint stage" in done.stdout and "Against torchvision" in done.stdout


@pytest.mark.parametrize(
    "word, message",
    [
        ("--vs=dali", "some of all, torchvision, ffcv"),
        ("--batches=0", "batches = '0'"),
        ("--stage=third", "stage = 'third'"),
        ("--codes.num_bits=0", "codes.num_bits"),
    ],
)
def test_epoch_benchmark_refuses(word, message, betons):
    data = [f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}"]
    with pytest.raises(UserError, match=re.escape(message)):
        epoch.main([*SMALL, *data, word])


def test_data_that_does_not_fill_a_batch_is_an_error(betons, call_llc):
    done = call_llc(
        "-m",
        "llc.benchmark",
        "epoch",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        "--training.batch_size=250",
        "--vs=all",
        check=False,
    )
    assert done.returncode == 2
    assert "240 images do not fill one batch; training.batch_size = 250 is too large" in done.stderr


# -------------------------------------------------------------------------------- synthetic data


def test_synthetic_data_fills_the_recipes_batches_and_holds_each_image_once():
    config, plan = read(RN50, "--vs=all", "--data.num_workers=16")
    with epoch.synthetic_data(config, plan, Processes()) as made:
        train, val = open_shards(made.data.train_dataset), open_shards(made.data.val_dataset)
        # torchvision's 16 workers x 2 batches: 32 dropped, 32 steps on a CPU, 32 count, 32 left at the end
        assert len(train) == 128 * 4096 and verify(train.paths[0]).num_classes == 100
        assert len(val) == 4 * 512
        # half raw of 600 kB, half JPEG; tables; ends of pages
        assert train.file_sizes[0] < 256 * 400_000 + len(train) * 56 + (64 << 20)
        places = [(shards, index) for shards in (val, train) for index in (3, 255, 259, 511)]
        stored = [read_sample(*place).tobytes() for place in places]
        assert stored[:2] == stored[2:4] == stored[4:6] == stored[6:] and stored[0] != stored[1]
        # the tables of train are longer than a page, so its data lies behind more of them
        assert train.images["data_ptr"].min() > val.images["data_ptr"].min()
        loader = TrainLoader(train, batch_size=64, num_workers=2, processes=Processes(), seed=0, min_scale=1)
        batches = loader.epoch(0, 32)
        images, labels = next(batches)
        batches.close()
        assert images.float().std() > 20 and len(labels.unique()) > 20
        folder = Path(made.data.train_dataset).parent
        assert sorted(path.name for path in folder.glob("*.beton")) == ["train.beton", "val.beton"]
    assert not folder.exists()


@pytest.mark.parametrize(
    "words, batch_size",
    [
        ([RN50], 16),
        ([RN50, "--training.batch_size=4096"], 4096),
        ([RN50, "--training.batch_size", "4096"], 4096),
        ([RN50, "--training.accumulation_steps=8"], 16),
        ([RN50, "--training.accumulation_steps=64"], 128),  # 2 images of a part, for batch norm
        ([DEMO], 256),
    ],
)
def test_a_cpu_gets_a_batch_that_it_can_do_unless_the_command_line_gives_one(words, batch_size, capsys):
    config, plan = read(*words)
    assert epoch.affordable(config, plan, Processes()).training.batch_size == batch_size
    said = capsys.readouterr().out
    assert ("A step of 4,096 images is 50.8 TFLOP, too much for a CPU" in said) == (batch_size < 200)
    assert (f"measured with {batch_size} instead" in said) == (batch_size < 200)


def test_a_batch_that_does_not_divide_is_an_error():
    config, plan = read(DEMO, "--training.accumulation_steps=3")
    with pytest.raises(UserError, match="batch_size = 256 is not a multiple of 3"):
        epoch.affordable(config, plan, Processes())


def test_a_gpu_with_too_little_memory_gets_half_of_the_batch(monkeypatch, capsys):
    """Unless the command line gives one."""

    def measure(config, plan, processes):
        if config.training.batch_size > 1100:
            raise torch.OutOfMemoryError
        return config.training.batch_size

    monkeypatch.setattr(epoch, "measure", measure)
    assert epoch.measure_what_fits(*read(RN50), Processes()) == 1024
    said = capsys.readouterr().out
    assert "2,048 images per step do not fit into the GPU's memory: measured with 1024 " in said
    with pytest.raises(torch.OutOfMemoryError):
        epoch.measure_what_fits(*read(RN50, "--training.batch_size=4096"), Processes())


# -------------------------------------------------------------------------------- the clock


class Time(epoch._Clock):
    """A clock that the loader and the step below set forward."""

    def __init__(self, device="cpu"):
        super().__init__(Processes(device=device))
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def loader(self, ahead, seconds_each):
        """Batches, `ahead` of them ready at the start; it makes one after another, `ahead` of the taken."""
        ready = collections.deque([0.0] * ahead)
        last = 0.0
        while True:
            self.seconds = max(self.seconds, ready.popleft())
            last = max(last, self.seconds) + seconds_each
            ready.append(last)
            yield None, None

    def step(self, seconds_each):
        def step(images, labels):
            self.seconds += seconds_each

        return step


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("step_seconds", [0.0, 0.5, 0.9, 1.0])
def test_a_loader_is_not_faster_than_it_makes_batches(step_seconds, device):
    """However many it has ready: 32 batches, of which 32 are measured, and would take 0, 16, ... seconds."""
    clock = Time(device)
    clock._slowest = float
    way = epoch._Way(lambda: clock.loader(32, 1.0), clock.step(step_seconds), 32)
    assert clock.per_batch(way, 32) == pytest.approx(1.0, abs=0.04)
    naive = epoch._Way(lambda: clock.loader(32, 1.0), clock.step(step_seconds))
    assert step_seconds == 1.0 or clock.per_batch(naive, 32) < 0.95


def test_a_quick_loader_leaves_the_step_its_speed():
    clock = Time()
    quick = epoch._Way(lambda: clock.loader(8, 0.1), clock.step(1.0), 8)
    assert clock.per_batch(quick, 24) == pytest.approx(1.0)
    fixed = epoch._Way(lambda: itertools.repeat((None, None)), clock.step(1.0))
    assert clock.per_batch(fixed, 5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "batches, ahead, measured", [(20, 0, 20), (20, 4, 20), (20, 32, 32), (80, 32, 96), (1, 4, 4)]
)
def test_as_many_batches_count_as_were_ready(batches, ahead, measured):
    _, plan = read(DEMO, f"--batches={batches}")
    assert plan.measured(ahead) == measured


def test_torchvision_and_ffcv_are_as_far_ahead_as_said():
    config, _ = read(DEMO, "--data.num_workers=5")
    assert epoch.PEERS["torchvision"].ahead(config) == 10 and epoch.PEERS["ffcv"].ahead(config) == 4


def test_flops_of_resnet50_are_the_published_ones():
    """torchvision states 4.09 G multiply-adds forward at 224 px, classifier included.

    The backward pass is twice that, but for the stem.
    """
    config, _ = read("--codebook.epochs=1", "--codebook.lr=1", "--instance.epochs=1", "--instance.lr=1")
    flops = flops_per_image(config, config.stage("codebook"), 1000, 224)
    assert flops == pytest.approx(3 * 2 * 4.09e9, rel=0.02)
    assert torch.get_default_device().type == "cpu"
