"""Both losses against hand-written ones; which parameters decay; what a stage trains."""

import math

import pytest
import torch
from torch import nn

from llc.network import Network
from llc.stages import Batch, CodebookStage, InstanceStage, JointStage, codebook_loss, instance_loss
from llc.training.optimizer import parameter_groups
from llc.training.stage_module import StageModule


def test_codebook_loss_equals_smoothed_cross_entropy_by_hand():
    torch.manual_seed(1)
    logits, labels, smoothing = torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1]), 0.1
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist()):
        log_total = math.log(sum(math.exp(v) for v in row))
        for c, value in enumerate(row):
            expected += (smoothing / 7 + (1 - smoothing) * (c == label)) * (log_total - value) / 5
    assert abs(codebook_loss(logits, labels, smoothing).item() - expected) < 1e-6  # float32 sums


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


def test_distilled_targets_are_bits_of_both_classes():
    codebook, labels, predicted = (
        torch.tensor([[1.0, -1.0], [1.0, 1.0]]),
        torch.tensor([0, 1]),
        torch.tensor([1, 1]),
    )
    z = torch.tensor([[0.3, -2.0], [1.5, 0.7]])
    expected = nn.functional.binary_cross_entropy(torch.sigmoid(z), torch.tensor([[1.0, 0.25], [1.0, 1.0]]))
    assert torch.allclose(instance_loss(z, codebook, labels, predicted, 0.25), expected)
    # all of it: what the labels are makes no difference
    assert torch.equal(
        instance_loss(z, codebook, labels, predicted, 1.0), instance_loss(z, codebook, predicted)
    )


def test_the_teacher_is_the_network_of_the_stages_beginning():
    torch.manual_seed(4)
    network = Network("resnet18", 8, 4, width=8)
    nn.init.normal_(network.codebook)
    module = StageModule(network, InstanceStage(distillation=1.0), 0.1).train()
    assert network.training and not any(part.training for part in module.teacher.modules())
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    images, labels = torch.randint(0, 255, (12, 3, 32, 32), dtype=torch.uint8), torch.arange(12) % 4
    optimizer = torch.optim.SGD(
        [p for group in parameter_groups(module, 0.1) for p in group["params"]], lr=0.1
    )
    assert (
        len(optimizer.param_groups[0]["params"]) == len(list(network.parameters())) - 1
    )  # all but the codebook, and nothing of the teacher
    for _ in range(3):
        optimizer.zero_grad()
        module(images, labels).backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.teacher.state_dict().items())
    assert not torch.equal(network.projection.weight, module.teacher.projection.weight)
    with torch.no_grad():
        classes = module.teacher.class_logits(module.teacher(images)).argmax(1)
        assert not torch.equal(classes, labels)  # else the next line says nothing
        assert torch.equal(
            module.eval()(images, labels), instance_loss(network(images), network.codebook, classes)
        )


def test_a_dense_classifier_teaches_in_place_of_the_codes():
    torch.manual_seed(5)
    network = Network("resnet18", 8, 4, width=8)
    nn.init.normal_(network.codebook)
    images, labels = torch.randint(0, 255, (12, 3, 32, 32), dtype=torch.uint8), torch.arange(12) % 4
    with torch.no_grad():
        features = network.eval().features(images)
        weight = features[:4] - features.mean(0)
        classifier = weight, -weight @ features.mean(0)
        module = StageModule(network, InstanceStage(distillation=1.0), 0.1, classifier).eval()
        classes = (network.features(images) @ classifier[0].T + classifier[1]).argmax(1)
        by_codes = network.class_logits(network(images)).argmax(1)
        assert len(classes.unique()) > 1 and not torch.equal(classes, by_codes)
        assert torch.equal(module(images, labels), instance_loss(network(images), network.codebook, classes))
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert StageModule(network, InstanceStage(), 0.1, classifier).teacher is None


def test_weight_decay_spares_every_batch_norm_and_nothing_else():
    network = Network("resnet18", 8, 4, width=8)
    decayed, plain = (group["params"] for group in parameter_groups(network, 0.1))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(p) for p in plain} == {id(p) for m in norms for p in m.parameters()} and len(plain) == 2 * len(
        norms
    ) == 40
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
    StageModule(network, CodebookStage(), 0.1)(
        torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8), torch.arange(4)
    ).backward()
    assert network.codebook.grad.abs().sum() > 0


def test_the_other_weights_add_the_other_loss():
    torch.manual_seed(3)
    network = Network("resnet18", 8, 4, width=8, logit_scale=0.5)
    nn.init.normal_(network.codebook)
    z, labels = torch.randn(6, 8), torch.arange(6) % 4
    ce = codebook_loss(network.class_logits(z), labels, 0.1).item()
    bce = instance_loss(z, network.codebook, labels).item()
    for stage, expected in (
        (CodebookStage(), ce),
        (CodebookStage(instance_weight=2.0), ce + 2 * bce),
        (InstanceStage(), bce),
        (InstanceStage(codebook_weight=0.5), bce + 0.5 * ce),
        (JointStage(), ce + 4 * bce),
        (JointStage(instance_weight=0.0), ce),
    ):
        assert abs(stage.loss(z, network, Batch(labels, 0.1)).item() - expected) < 1e-5  # float32 sums


def test_with_prefixes_both_losses_are_means_over_codes_of_these_lengths():
    torch.manual_seed(4)
    network = Network("resnet18", 8, 4, width=8, logit_scale=8**-0.5)
    nn.init.normal_(network.codebook)
    z, labels, predicted = torch.randn(6, 8), torch.arange(6) % 4, torch.arange(6) // 2
    short = Network("resnet18", 3, 4, width=8, logit_scale=3**-0.5)
    short.codebook.data = network.codebook.data[:, :3].clone()
    stage = JointStage(instance_weight=2.0)
    alone = [
        of.loss(z[:, :bits], part, Batch(labels, 0.1))
        for of, part, bits in ((stage, short, 3), (stage, network, 8))
    ]
    together = stage.loss(z, network, Batch(labels, 0.1, prefixes=(3, 8)))
    assert torch.allclose(together, sum(alone) / 2, atol=1e-6)
    distilled = InstanceStage(distillation=0.25).loss(z, network, Batch(labels, 0.1, predicted, None, (3, 8)))
    expected = [instance_loss(z[:, :b], network.codebook[:, :b], labels, predicted, 0.25) for b in (3, 8)]
    assert torch.allclose(distilled, sum(expected) / 2, atol=1e-6)


def test_the_class_logits_pass_from_real_values_to_signs():
    network = Network("resnet18", 3, 2, width=8)
    network.codebook.data = torch.tensor([[0.5, -2.0, 0.1], [-0.1, 3.0, 1.0]])
    z, labels = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([1])
    real = network.codebook.data / network.codebook.data.square().mean().sqrt()
    signs = torch.where(network.codebook.data > 0, 1.0, -1.0)
    stage = CodebookStage(epochs=9, lr=0.1, binarize_start=2, binarize_end=6)
    for epoch, part in ((0.0, 0.0), (2.0, 0.0), (3.0, 0.25), (5.5, 0.875), (6.0, 1.0), (9.0, 1.0)):
        codes = (1 - part) * real + part * signs
        found = stage.loss(z, network, Batch(labels, 0.1, epoch=torch.tensor(epoch)))
        assert torch.allclose(found, codebook_loss(z @ codes.T, labels, 0.1), atol=1e-6), epoch
    at_once = CodebookStage(epochs=9, lr=0.1, binarize_start=2, binarize_end=2)
    for epoch, codes in ((1.99, real), (2.0, signs), (2.01, signs)):
        found = at_once.loss(z, network, Batch(labels, 0.1, epoch=torch.tensor(epoch)))
        assert torch.allclose(found, codebook_loss(z @ codes.T, labels, 0.1), atol=1e-6), epoch
    # otherwise the position does not matter
    assert torch.equal(
        CodebookStage().loss(z, network, Batch(labels, 0.1)), codebook_loss(z @ signs.T, labels, 0.1)
    )


@pytest.mark.parametrize(
    "stage, words",
    [
        (
            CodebookStage(epochs=4, lr=1, binarize_start=3, binarize_end=2),
            "binarize_start = 3 and binarize_end",
        ),
        (CodebookStage(epochs=4, lr=1, binarize_end=5), "not after the last epoch, 4"),
        (
            CodebookStage(epochs=4, lr=1, binarize_end=3, freeze_epoch=2),
            "freeze_epoch = 2 is before binarize_",
        ),
        (InstanceStage(epochs=4, lr=1, instance_weight=0), "both 0"),
        (JointStage(epochs=4, lr=1, lr_peak_epoch=4), "lr_peak_epoch = 4 must be less than epochs = 4"),
    ],
)
def test_options_that_contradict_each_other_are_named(stage, words):
    assert words in stage.problem()


def test_options_that_agree_have_no_problem():
    assert CodebookStage(epochs=4, lr=1, binarize_start=1, binarize_end=3, freeze_epoch=3).problem() is None
    assert InstanceStage(epochs=4, lr=1, instance_weight=0, codebook_weight=1).problem() is None


def test_no_gradient_of_the_binary_cross_entropy_reaches_the_codebook():
    network = Network("resnet18", 8, 4, width=8)
    nn.init.normal_(network.codebook)
    gradients = []
    for stage in (JointStage(instance_weight=0.0), JointStage(instance_weight=9.0)):
        z, labels = torch.linspace(-1, 1, 32).reshape(4, 8).requires_grad_(), torch.arange(4)
        gradients.append(
            torch.autograd.grad(stage.loss(z, network, Batch(labels, 0.1)), (network.codebook, z))
        )
    assert torch.equal(gradients[0][0], gradients[1][0]) and not torch.allclose(
        gradients[0][1], gradients[1][1]
    )


def test_a_learnable_logit_scale_is_learnt_where_there_are_class_logits_and_does_not_decay():
    network = Network("resnet18", 9, 4, width=8, logit_scale="learnable")
    nn.init.normal_(network.codebook)
    assert abs(network.logit_scale.item() - 1 / 3) < 1e-6
    images, labels = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8), torch.arange(4)
    for stage, learnt in (
        (CodebookStage(), True),
        (JointStage(), True),
        (InstanceStage(), False),
        (InstanceStage(codebook_weight=1.0), True),
    ):
        network.zero_grad()
        module = StageModule(network, stage, 0.1)
        module(images, labels).backward()
        assert (network.log_logit_scale.grad is not None) == learnt
        assert all(
            parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad
        )  # DDP waits for each
        plain = parameter_groups(network, 0.1)[1]["params"]
        assert any(parameter is network.log_logit_scale for parameter in plain) == learnt


def test_one_hot_codes_at_scale_one_half_are_the_dense_classifier():
    """num_bits = num_classes: half of z . (2 I - 1)^T is z but for the same number in all classes."""
    network = Network("resnet18", 6, 6, width=8, logit_scale=0.5)
    network.codebook.data = 2 * torch.eye(6) - 1
    module = StageModule(network, CodebookStage(freeze_epoch=0.0), 0.1).eval()
    images, labels = torch.randint(0, 255, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6)
    expected = nn.functional.cross_entropy(network(images), labels, label_smoothing=0.1)
    assert torch.allclose(module(images, labels), expected, rtol=1e-5)
