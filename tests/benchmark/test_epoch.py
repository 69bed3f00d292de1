"""`python -m llc.benchmark epoch`: every figure of a small run is there and agrees with the others."""
import json
import statistics

import pytest
import torch

from llc.benchmark.epoch import flops_of_a_step
from llc.training import config as training_config
from tests.conftest import SMALL


def test_epoch_benchmark_beside_other_ways(betons, run_llc, tmp_path):
    done = run_llc("-m", "llc.benchmark", "epoch", *SMALL, f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}",
                   "--batches=2", "--rounds=2", "--vs=torchvision", f"--json={tmp_path / 'epoch.json'}")
    report = json.loads((tmp_path / "epoch.json").read_text())
    rates, seconds = report["images_per_second"], report["seconds_a_batch"]
    assert set(rates) == {"loader", "step", "epoch", "torchvision epoch"}
    for name, rate in rates.items():
        assert rate == pytest.approx(24 / statistics.median(seconds[name])) and len(seconds[name]) == 2
    limit = min(("loader", "step"), key=rates.get)
    assert report["limit"] == limit and report["share_of_limit"] == pytest.approx(rates["epoch"] / rates[limit])
    assert f"The {limit} limits the epoch" in done.stdout and "Against torchvision" in done.stdout


def test_epoch_benchmark_makes_its_own_data(run_llc):
    done = run_llc("-m", "llc.benchmark", "epoch", *SMALL, "--stage=instance", "--batches=1", "--rounds=1")
    assert "600 synthetic images" in done.stdout and "instance stage" in done.stdout


def test_epoch_benchmark_of_the_joint_stage(betons, run_llc):
    done = run_llc("-m", "llc.benchmark", "epoch", *SMALL, f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}", "--stage=joint",
                   "--vs=torchvision", "--batches=1", "--rounds=1")
    assert "joint stage" in done.stdout and "Against torchvision" in done.stdout


@pytest.mark.parametrize("word, message", [
    ("--vs=dali", "dali is unknown"), ("--batches=0", "--batches=0"), ("--stage=third", "--stage=third"), ("--codes.num_bits=0", "codes.num_bits"),
])
def test_epoch_benchmark_refuses(word, message, betons, run_llc):
    done = run_llc("-m", "llc.benchmark", "epoch", *SMALL, f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}", word,
                   check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_flops_of_resnet50_are_the_published_ones():
    """torchvision states 4.09 G multiply-adds forward at 224 px (classifier included); the backward pass is twice that, but for the stem."""
    read, _ = training_config.read(["--codebook.epochs=1", "--codebook.lr=1", "--instance.epochs=1", "--instance.lr=1",
                                    "--data.train_dataset=a", "--data.val_dataset=b"], description="")
    flops = flops_of_a_step(read, read.codebook, 1000, 224)
    assert flops == pytest.approx(3 * 2 * 4.09e9, rel=0.02)
    assert torch.get_default_device().type == "cpu"
