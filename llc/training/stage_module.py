"""What a stage adds to the network: its loss and, with distillation, a frozen teacher."""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn

from llc.stages import Batch


def _in_float32(device):
    """A context without autocast, as in validation: class logits in half precision often tie."""
    # The meta device has no autocast.
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _DenseTeacher(nn.Module):
    """A copy of a network, of which it takes the features, with a dense classifier (weight, bias) on them."""

    def __init__(self, network, classifier):
        super().__init__()
        self.network = copy.deepcopy(network)
        for name, values in zip(("weight", "bias"), classifier):
            self.register_buffer(name, values.to(network.codebook.device))

    def forward(self, images):
        return self.network.features(images).float()

    def class_logits(self, features):
        return F.linear(features, self.weight, self.bias)


class StageModule(nn.Module):
    """forward(images uint8 [B, 3, H, W], labels int64 [B], epoch) -> loss. The trainer wraps it in DDP.

    epoch, prefixes: of llc.stages.Batch.

    classifier: (weight [num_classes, features], bias [num_classes]) of a dense layer that fits the backbone
    as it is, or None.

    teacher: with distillation, in a stage that trains, a frozen copy of the network as it is when the stage
    begins, else None. With `classifier` it predicts by that, not by its codes. Where a class is uncertain,
    taking the most likely value of each bit by itself often gives a code that belongs to no class; the
    teacher's predicted class always has a valid code (cf. the hard bootstrapping of Reed et al., arXiv
    1412.6596).
    """

    def __init__(self, network, stage, label_smoothing, classifier=None, prefixes=()):
        super().__init__()
        self.network, self.stage = network, stage
        self.label_smoothing = label_smoothing
        self.prefixes = () if stage.dense else prefixes
        # DDP would wait for the gradient of a parameter that takes no part in the stage.
        network.codebook.requires_grad_(stage.learns_codebook)
        if network.options["logit_scale"] == "learnable":
            network.log_logit_scale.requires_grad_(stage.uses_class_logits)
        self.teacher = None
        if stage.distillation and stage.epochs != 0:
            teacher = _DenseTeacher(network, classifier) if classifier else copy.deepcopy(network)
            self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode=True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images, labels, epoch=None):
        predicted = None
        if self.teacher is not None:
            with torch.no_grad():
                z = self.teacher(images)
                with _in_float32(z.device):
                    predicted = self.teacher.class_logits(z).argmax(1)
        batch = Batch(labels, self.label_smoothing, predicted, epoch, self.prefixes)
        return self.stage.loss(self.network(images), self.network, batch)
