"""Both losses against hand-written ones; which parameters decay; what a stage trains."""
import math

import torch
from torch import nn

from llc.network import Network
from llc.training.config import CodebookStage, InstanceStage, JointStage
from llc.training.stages import StageModule, codebook_loss, instance_loss, parameter_groups


def test_codebook_loss_equals_smoothed_cross_entropy_by_hand():
    torch.manual_seed(1)
    logits, labels, smoothing = torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1]), 0.1
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist()):
        log_total = math.log(sum(math.exp(v) for v in row))
        for c, value in enumerate(row):
            expected += (smoothing / 7 + (1 - smoothing) * (c == label)) * (log_total - value) / 5
    assert abs(codebook_loss(None, logits, labels, smoothing).item() - expected) < 1e-6  # float32 sums


def test_instance_loss_equals_bitwise_cross_entropy_by_hand():
    torch.manual_seed(2)
    z, codebook, labels = torch.randn(4, 5), torch.randn(3, 5), torch.tensor([2, 0, 0, 1])
    codebook[0, 0] = 0.0  # zero is bit 0
    expected = 0.0
    for row, label in zip(z.tolist(), labels.tolist()):
        for value, real in zip(row, codebook[label].tolist()):
            probability = 1 / (1 + math.exp(-value))
            expected -= math.log(probability if real > 0 else 1 - probability) / 20
    assert abs(instance_loss(z, codebook, labels).item() - expected) < 1e-6  # float32 sums


def test_weight_decay_spares_every_batch_norm_and_nothing_else():
    network = Network("resnet18", 8, 4, width=8)
    decayed, plain = (group["params"] for group in parameter_groups(network, 0.1))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(p) for p in plain} == {id(p) for m in norms for p in m.parameters()} and len(plain) == 2 * len(norms) == 40
    assert len(decayed) + len(plain) == len(list(network.parameters()))


def test_class_logits_use_the_signs_and_pass_the_gradient_straight_through():
    network = Network("resnet18", 3, 2, width=8)
    network.codebook.data = torch.tensor([[0.5, -2.0, 0.0], [-0.1, 3.0, 1.0]])
    z = torch.tensor([[1.0, 2.0, 4.0]])
    logits = network.class_logits(z)
    assert logits.tolist() == [[1 - 2 - 4, -1 + 2 + 4]]
    (logits * torch.tensor([[2.0, -1.0]])).sum().backward()
    assert network.codebook.grad.tolist() == [[2, 4, 8], [-1, -2, -4]]


def test_the_instance_stage_trains_all_but_the_codebook():
    network = Network("resnet18", 8, 4, width=8)
    module = StageModule(network, InstanceStage(), 0.1)
    module(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 3])).backward()
    assert network.codebook.grad is None and network.projection.weight.grad.abs().sum() > 0
    StageModule(network, CodebookStage(), 0.1)(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8), torch.arange(4)).backward()
    assert network.codebook.grad.abs().sum() > 0
