"""The two stages: their losses and what they train. LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487."""
import torch
import torch.nn.functional as F
from torch import nn


def codebook_loss(z, codebook_logits, labels, label_smoothing):
    """Cross entropy of class logits [B, num_classes] against labels int64 [B], with label smoothing. z is not used."""
    return F.cross_entropy(codebook_logits, labels, label_smoothing=label_smoothing)


def instance_loss(z, codebook, labels):
    """Binary cross entropy of z [B, num_bits] as logits against the bits of the labels' class codes, mean over bits and images."""
    return F.binary_cross_entropy_with_logits(z, (codebook[labels] > 0).to(z.dtype))


class StageModule(nn.Module):
    """forward(images uint8 [B, 3, H, W], labels int64 [B]) -> loss. What a stage adds to the network; the trainer wraps it in DDP."""

    def __init__(self, network, stage, label_smoothing):
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing
        self.loss = {"codebook": self._codebook, "instance": self._instance}[stage]
        # the instance stage learns image codes for class codes that stand still
        network.codebook.requires_grad_(stage == "codebook")

    def forward(self, images, labels):
        return self.loss(self.network(images), labels)

    def _codebook(self, z, labels):
        return codebook_loss(z, self.network.class_logits(z), labels, self.label_smoothing)

    def _instance(self, z, labels):
        return instance_loss(z, self.network.codebook, labels)


def parameter_groups(module, weight_decay):
    """Two SGD groups of the trainable parameters: weight decay on everything but batch norm's, chosen by module type."""
    plain, decayed = [], []
    for child in module.modules():
        own = [p for p in child.parameters(recurse=False) if p.requires_grad]
        (plain if isinstance(child, nn.modules.batchnorm._BatchNorm) else decayed).extend(own)
    wanted = sum(p.requires_grad for p in module.parameters())
    assert len(set(map(id, plain + decayed))) == wanted == len(plain + decayed), "a parameter was missed or taken twice"
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
