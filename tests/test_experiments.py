"""The plugins of experiments/: losses by their definitions, a run with one, and ResNets by their shapes."""

import math
import runpy

import pytest
import torch
from torch import nn

import train_llc
from llc import backbones
from llc.codes import binarize
from llc.errors import UserError
from llc.network import Network
from llc.stages import STAGES, Batch
from tests.conftest import ROOT, SMALL


@pytest.fixture
def plugin(monkeypatch):
    """plugin(file name): what the file defines; what it registers is forgotten after the test."""
    monkeypatch.setattr(backbones, "_registered", dict(backbones._registered))
    before = dict(STAGES)
    yield lambda name: runpy.run_path(str(ROOT / "experiments" / name))
    STAGES.clear()
    STAGES.update(before)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Network("resnet18", 6, 4, width=4)
    nn.init.normal_(network.codebook)
    return network


def expected(logits, targets):
    """The mean cross entropy, written out; logits and targets: lists of rows."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets):
        log_sum = math.log(sum(math.exp(value) for value in row))
        total += sum(weight * (log_sum - value) for weight, value in zip(target, row))
    return total / len(targets)


def test_the_losses_are_what_they_say(plugin, network):
    stages = plugin("instance_losses.py")
    z, labels, predicted = torch.randn(3, 6), torch.tensor([0, 3, 1]), torch.tensor([0, 2, 1])
    batch, codes = Batch(labels, predicted=predicted), binarize(network.codebook.detach())
    targets = [[1, 0, 0, 0], [0, 0, 0.25, 0.75], [0, 1, 0, 0]]  # a quarter of each from the teacher

    relaxed = stages["RelaxedStage"](epochs=1, lr=0.1, instance_weight=3.0, distillation=0.25, scale=0.5)
    found = relaxed.loss(z, network, batch)
    assert found.item() == pytest.approx(3 * expected(0.5 * torch.tanh(z) @ codes.T, targets), rel=1e-5)

    cosine = stages["CosineStage"](epochs=1, lr=0.1, distillation=0.25, scale=4.0, margin=0.2)
    cosines = z @ codes.T / z.norm(dim=1, keepdim=True) / math.sqrt(6)
    logits = 4 * (cosines - 0.2 * torch.tensor(targets))
    assert cosine.loss(z, network, batch).item() == pytest.approx(expected(logits, targets), rel=1e-5)


def test_the_losses_refuse_what_they_cannot_do(plugin, network):
    stage = plugin("instance_losses.py")["RelaxedStage"]
    assert "codebook_weight" in stage(epochs=1, lr=0.1, codebook_weight=1.0).problem()
    assert "nothing to learn" in stage(epochs=1, lr=0.1, instance_weight=0.0).problem()
    assert stage(epochs=1, lr=0.1).problem() is None
    batch = Batch(torch.tensor([0]), prefixes=(4, 6))
    with pytest.raises(UserError, match="codes.nested: the loss of the relaxed stage"):
        stage(epochs=1, lr=0.1).loss(torch.randn(1, 6), network, batch)


def test_a_run_takes_its_codes_from_such_a_loss(plugin, betons, tmp_path):
    plugin("instance_losses.py")  # as --plugin does before main
    train_llc.main(
        [
            *SMALL,
            f"--data.train_dataset={betons[0]}",
            f"--data.val_dataset={betons[1]}",
            "--training.stages=dense,cosine",
            "--dense.epochs=1",
            "--dense.lr=0.05",
            "--cosine.epochs=1",
            "--cosine.lr=0.05",
            "--cosine.distillation=1",
            f"--logging.folder={tmp_path}",
            "--logging.name=run",
        ]
    )
    assert "cosine/top1_mhd" in (tmp_path / "run/results.csv").read_text()


@pytest.mark.parametrize("name, features", [("resnet18_small", 512), ("resnet50_small", 2048)])
def test_the_last_stage_of_a_small_image_resnet_sees_4x4_places(name, features, plugin):
    plugin("small_image_resnets.py")
    with torch.device("meta"):
        backbone = backbones.build(name)
        places = []
        backbone.module.layer4.register_forward_hook(lambda module, inputs, out: places.append(out.shape))
        assert backbone.module(torch.zeros(2, 3, 32, 32)).shape == (2, features)
    assert places == [(2, features, 4, 4)] and backbone.num_features == features
