"""Which parameters have weight decay, by exact lists of names."""

import re

import pytest
import torch
from torch import nn

from llc.network import Network
from llc.training.optimizer import parameter_groups


def spared(module):
    """Names without weight decay; also checks that every trainable parameter comes once."""
    decayed, plain = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    taken = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert len(taken) == len(names) and set(taken) == set(names)
    return {names[id(p)] for p in plain["params"]}


def network(arch, **options):
    with torch.device("meta"):
        return Network(arch, 8, 3, **options)


def matching(module, *patterns):
    """All names that match a pattern; each pattern must match some."""
    names = [name for name, _ in module.named_parameters()]
    chosen = [{name for name in names if re.fullmatch(pattern, name)} for pattern in patterns]
    assert all(chosen)
    return set().union(*chosen)


NORM = r"\.(weight|bias)"


@pytest.mark.parametrize(
    "arch, patterns",
    [
        ("resnet50", [rf"backbone\.(.*\.)?bn\d{NORM}", rf"backbone\..*\.downsample\.1{NORM}"]),
        (
            "convnext_tiny",
            [
                rf"backbone\.features\.0\.1{NORM}",  # of the stem
                rf"backbone\.features\.[246]\.0{NORM}",  # before the convolutions that lower the resolution
                rf"backbone\.features\.[1357]\.\d\.block\.2{NORM}",
                r"backbone\.features\.[1357]\.\d\.layer_scale",
                rf"backbone\.classifier\.0{NORM}",
            ],
        ),
        (
            "vit_b_16",
            [
                r"backbone\.class_token",
                r"backbone\.encoder\.pos_embedding",
                rf"backbone\.encoder\.layers\.encoder_layer_\d+\.ln_[12]{NORM}",
                rf"backbone\.encoder\.ln{NORM}",
            ],
        ),
        (
            "swin_t",
            [
                rf"backbone\.features\.0\.2{NORM}",
                rf"backbone\.features\.[246]\.norm{NORM}",
                rf"backbone\.features\.[1357]\.\d\.norm[12]{NORM}",
                r"backbone\.features\.[1357]\.\d\.attn\.relative_position_bias_table",
                rf"backbone\.norm{NORM}",
            ],
        ),
        (
            "timm:vit_tiny_patch16_224",
            [
                r"backbone\.cls_token",
                r"backbone\.pos_embed",
                rf"backbone\.blocks\.\d+\.norm[12]{NORM}",
                rf"backbone\.norm{NORM}",
            ],
        ),
        (
            "timm:convnext_tiny",
            [
                rf"backbone\.stem\.1{NORM}",
                rf"backbone\.stages\.[123]\.downsample\.0{NORM}",
                rf"backbone\.stages\.\d\.blocks\.\d\.norm{NORM}",
                r"backbone\.stages\.\d\.blocks\.\d\.gamma",
                rf"backbone\.head\.norm{NORM}",
            ],
        ),
    ],
)
def test_norms_scales_and_embeddings_are_spared_and_nothing_else(arch, patterns):
    module = network(arch)
    assert spared(module) == matching(module, *patterns)


def test_a_learnable_logit_scale_is_spared_and_frozen_parameters_are_in_no_group():
    module = network("resnet18", width=8, logit_scale="learnable", normalize="batchnorm")
    module.codebook.requires_grad_(False)
    names = spared(module)
    assert "log_logit_scale" in names and "projection.weight" not in names and "codebook" not in names


class RmsNorm(nn.Module):
    """Another library's norm, which derives from nothing of torch's."""

    def __init__(self):
        super().__init__()
        self.weight, self.mixing = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.ones(4, 4))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(
            [
                nn.GroupNorm(2, 4),
                nn.LayerNorm(4),
                nn.RMSNorm(4),
                nn.InstanceNorm2d(4, affine=True),
                nn.SyncBatchNorm(4),
            ]
        )
        self.foreign = RmsNorm()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight  # shared
        self.table = nn.Parameter(torch.ones(3, 4))

    def no_weight_decay(self):
        return {"table", "second.bias"}


def test_every_kind_of_norm_is_known_and_a_module_may_name_others():
    module = Odd()
    assert spared(module) == {
        *(name for name, _ in module.named_parameters() if name.startswith("norms.")),
        "foreign.weight",
        "table",
        "second.bias",
    }
