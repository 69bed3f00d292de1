"""The stages: their losses and what they train. LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487.

The paper's method is the codebook stage with its first loss alone, then the instance stage with its second alone. The joint stage, where one
stage learns class codes and image codes together, the other weights, and distillation are this project's.
"""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn


def codebook_loss(z, codebook_logits, labels, label_smoothing):
    """Cross entropy of class logits [B, num_classes] against labels int64 [B], with label smoothing. z is not used."""
    return F.cross_entropy(codebook_logits, labels, label_smoothing=label_smoothing)


def instance_loss(z, codebook, labels, predicted=None, distillation=0.0):
    """Binary cross entropy of z [B, num_bits] as logits against the bits of the labels' class codes, mean over bits and images.

    distillation: share of each target that the class code of `predicted`, int64 [B], has in place of the label's.
    """
    targets = (codebook[labels] > 0).to(z.dtype)
    if distillation:
        targets = torch.lerp(targets, (codebook[predicted] > 0).to(z.dtype), distillation)
    return F.binary_cross_entropy_with_logits(z, targets)


def stage_loss(stage, z, network, labels, label_smoothing, predicted=None):
    """codebook_weight x cross entropy + instance_weight x binary cross entropy, in which the current codebook is constant.

    stage: llc.training.config.Stage, one of the three kinds, where either weight is a key, 0 or 1 by default. predicted: the teacher's classes,
    int64 [B], where stage.distillation is more than 0.
    """
    terms = []
    if stage.codebook_weight:
        terms.append(
            stage.codebook_weight * codebook_loss(z, network.class_logits(z), labels, label_smoothing)
        )
    if stage.instance_weight:
        terms.append(
            stage.instance_weight * instance_loss(z, network.codebook, labels, predicted, stage.distillation)
        )
    return sum(terms)


def _in_float32(device):
    """A context without autocast, as validation has it: class logits in half precision tie, and ties go to the lowest class."""
    return (
        contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
    )  # meta knows no autocast


class StageModule(nn.Module):
    """forward(images uint8 [B, 3, H, W], labels int64 [B]) -> loss. What a stage adds to the network; the trainer wraps it in DDP.

    teacher: with distillation the network as it is when the stage begins, which then stands still; else None. Where a class is uncertain, the most
    likely value of each bit by itself often makes a code that is no class's; what the teacher decides is always one (cf. the hard
    bootstrapping of Reed et al., arXiv 1412.6596).
    """

    def __init__(self, network, stage, label_smoothing):
        super().__init__()
        self.network, self.stage, self.label_smoothing = network, stage, label_smoothing
        # a parameter that has no gradient in a stage must not wait for one
        network.codebook.requires_grad_(stage.learns_codebook)
        if network.options["logit_scale"] == "learnable":
            network.log_logit_scale.requires_grad_(stage.codebook_weight > 0)
        self.teacher = copy.deepcopy(network).requires_grad_(False).eval() if stage.distillation else None

    def train(self, mode=True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images, labels):
        predicted = None
        if self.teacher is not None:
            with torch.no_grad():
                z = self.teacher(images)
                with _in_float32(z.device):
                    predicted = self.teacher.class_logits(z).argmax(1)
        return stage_loss(
            self.stage, self.network(images), self.network, labels, self.label_smoothing, predicted
        )


def parameter_groups(module, weight_decay):
    """Two SGD groups of the trainable parameters: weight decay on everything but batch norm's, chosen by module type, and single numbers."""
    plain, decayed = [], []
    for child in module.modules():
        own = [p for p in child.parameters(recurse=False) if p.requires_grad]
        for parameter in own:
            (
                plain if isinstance(child, nn.modules.batchnorm._BatchNorm) or not parameter.ndim else decayed
            ).append(parameter)
    wanted = sum(p.requires_grad for p in module.parameters())
    assert len(set(map(id, plain + decayed))) == wanted == len(plain + decayed), (
        "a parameter was missed or taken twice"
    )
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
