"""What a stage adds to the network: its loss and, with distillation, a frozen teacher."""

import contextlib
import copy

import torch
from torch import nn


def _in_float32(device):
    """A context without autocast, as in validation: class logits in half precision often tie."""
    # The meta device has no autocast.
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class StageModule(nn.Module):
    """forward(images uint8 [B, 3, H, W], labels int64 [B]) -> loss. The trainer wraps it in DDP.

    teacher: with distillation a frozen copy of the network as it is when the stage begins, else None. Where a
    class is uncertain, taking the most likely value of each bit by itself often gives a code that belongs to
    no class; the teacher's predicted class always has a valid code (cf. the hard bootstrapping of Reed et
    al., arXiv 1412.6596).
    """

    def __init__(self, network, stage, label_smoothing):
        super().__init__()
        self.network, self.stage, self.label_smoothing = network, stage, label_smoothing
        # DDP would wait for the gradient of a parameter that takes no part in the stage.
        network.codebook.requires_grad_(stage.learns_codebook)
        if network.options["logit_scale"] == "learnable":
            network.log_logit_scale.requires_grad_(stage.uses_class_logits)
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
        return self.stage.loss(self.network(images), self.network, labels, self.label_smoothing, predicted)
