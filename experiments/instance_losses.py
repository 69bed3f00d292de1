"""Other losses for image codes, to compare with the instance stage's: the stages `cosine` and `relaxed`.

    python train_llc.py --plugin=experiments/instance_losses.py --training.stages=dense,cosine ...

Both stages have the options of the instance stage but `codebook_weight`. What came of them is in
EXPERIMENTS.md, "Other losses for image codes".
"""

import dataclasses

import torch
import torch.nn.functional as F

from llc.codes import binarize
from llc.errors import UserError
from llc.options import option
from llc.stages import InstanceStage, register


def _class_codes(network):
    return binarize(network.codebook.detach())  # [num_classes, num_bits], -1 or 1


class _ClassStage(InstanceStage):
    """An instance stage whose loss is a cross entropy over all classes, of logits [B, num_classes]."""

    def logits(self, z, network, targets):
        """z float32 [B, num_bits]; targets float32 [B, num_classes], which sum to 1 for each image."""
        raise NotImplementedError

    def problem(self):
        if self.codebook_weight:
            return "codebook_weight has no place in this loss; leave it at 0"
        if not self.instance_weight:
            return "instance_weight is 0, so there is nothing to learn"
        return super().problem()

    def loss(self, z, network, batch):
        if batch.prefixes:
            raise UserError(f"codes.nested: the loss of the {self.name} stage trains the whole code alone")
        classes = len(network.codebook)
        targets = F.one_hot(batch.labels, classes).to(z.dtype)
        if self.distillation:
            targets = torch.lerp(targets, F.one_hot(batch.predicted, classes).to(z.dtype), self.distillation)
        return self.instance_weight * F.cross_entropy(self.logits(z, network, targets), targets)


@register("cosine")
@dataclasses.dataclass(frozen=True)
class CosineStage(_ClassStage):
    """OrthoHash's loss (Hoe et al., NeurIPS 2021, arXiv 2109.14449), for the class codes of the codebook.

    Class logits are the cosines of z and the class codes, less a margin at the target, times a scale.
    """

    scale: float = option(8.0, minimum=0, help="factor of the cosines")
    margin: float = option(0.2, minimum=0, help="what is taken from the target's cosine")

    def logits(self, z, network, targets):
        cosines = F.normalize(z, dim=1) @ F.normalize(_class_codes(network), dim=1).T
        return self.scale * (cosines - self.margin * targets)


@register("relaxed")
@dataclasses.dataclass(frozen=True)
class RelaxedStage(_ClassStage):
    """Class logits of relaxed bits, tanh(z), in place of the signs that will be packed."""

    scale: float = option(1.0, minimum=0, help="factor of the inner products of tanh(z) and class codes")

    def logits(self, z, network, targets):
        return self.scale * torch.tanh(z) @ _class_codes(network).T
