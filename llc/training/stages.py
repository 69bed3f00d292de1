"""The stages: their losses and what they train. LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487.

The paper's method is the codebook stage with its first loss alone, then the instance stage with its second alone. The joint stage, where one
stage learns class codes and image codes together, and the other weights are this project's.
"""
import torch
import torch.nn.functional as F
from torch import nn


def codebook_loss(z, codebook_logits, labels, label_smoothing):
    """Cross entropy of class logits [B, num_classes] against labels int64 [B], with label smoothing. z is not used."""
    return F.cross_entropy(codebook_logits, labels, label_smoothing=label_smoothing)


def instance_loss(z, codebook, labels):
    """Binary cross entropy of z [B, num_bits] as logits against the bits of the labels' class codes, mean over bits and images."""
    return F.binary_cross_entropy_with_logits(z, (codebook[labels] > 0).to(z.dtype))


def stage_loss(stage, z, network, labels, label_smoothing):
    """codebook_weight x cross entropy + instance_weight x binary cross entropy, in which the current codebook is constant.

    stage: llc.training.config.Stage, one of the three kinds, where either weight is a key, 0 or 1 by default.
    """
    terms = []
    if stage.codebook_weight:
        terms.append(stage.codebook_weight * codebook_loss(z, network.class_logits(z), labels, label_smoothing))
    if stage.instance_weight:
        terms.append(stage.instance_weight * instance_loss(z, network.codebook, labels))
    return sum(terms)


class StageModule(nn.Module):
    """forward(images uint8 [B, 3, H, W], labels int64 [B]) -> loss. What a stage adds to the network; the trainer wraps it in DDP."""

    def __init__(self, network, stage, label_smoothing):
        super().__init__()
        self.network, self.stage, self.label_smoothing = network, stage, label_smoothing
        # a parameter that has no gradient in a stage must not wait for one
        network.codebook.requires_grad_(stage.learns_codebook)
        if network.options["logit_scale"] == "learnable":
            network.log_logit_scale.requires_grad_(stage.codebook_weight > 0)

    def forward(self, images, labels):
        return stage_loss(self.stage, self.network(images), self.network, labels, self.label_smoothing)


def parameter_groups(module, weight_decay):
    """Two SGD groups of the trainable parameters: weight decay on everything but batch norm's, chosen by module type, and single numbers."""
    plain, decayed = [], []
    for child in module.modules():
        own = [p for p in child.parameters(recurse=False) if p.requires_grad]
        for parameter in own:
            (plain if isinstance(child, nn.modules.batchnorm._BatchNorm) or not parameter.ndim else decayed).append(parameter)
    wanted = sum(p.requires_grad for p in module.parameters())
    assert len(set(map(id, plain + decayed))) == wanted == len(plain + decayed), "a parameter was missed or taken twice"
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
