"""The optimiser: SGD, and which parameters have weight decay."""

import torch
from torch import nn

_NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm, InstanceNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# As torchvision and timm call them. A type does not tell them from a layer's weights.
_EMBEDDINGS = {
    "class_token",
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embedding",
    "pos_embed",
    "relative_position_bias_table",
}


def make_sgd(groups, momentum, fused):
    """SGD, whose learning rate is set at each step. fused: one kernel for all parameters."""
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused or None)
    if fused and momentum:
        # torch gives the fused kernel uninitialised memory as its first momentum. If the first gradients
        # overflow, as they often do with fp16, the kernel skips the step, and the next step uses that memory.
        # Zeros give the same bits as no momentum.
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def parameter_groups(module, weight_decay):
    """Two SGD groups of a module's trainable parameters: with weight decay, and without.

    Without weight decay are

    - the parameters of normalisation layers, chosen by type: torch's own classes and what derives from
      them, and classes from elsewhere with Norm in their name, if the parameter is a vector;
    - single numbers;
    - scales of whole residual branches, `layer_scale` and `gamma`, as in ConvNeXt's own recipe;
    - class tokens and position embeddings, as in the recipes of DeiT and Swin, and what a module's
      no_weight_decay() names (timm's convention).

    Everything else has weight decay, the biases of convolutions and linear layers among it.
    """
    spared = {id(parameter) for parameter in _spared(module)}
    # A parameter that two modules share comes once.
    trainable = {id(p): p for child in module.modules() for p in child.parameters(recurse=False)}
    trainable = {key: parameter for key, parameter in trainable.items() if parameter.requires_grad}
    wanted = {id(p) for p in module.parameters() if p.requires_grad}
    assert wanted == set(trainable), "a trainable parameter was missed"
    decayed = [parameter for key, parameter in trainable.items() if key not in spared]
    plain = [parameter for key, parameter in trainable.items() if key in spared]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def with_rate(groups, parameters, factor):
    """The groups, with `parameters` split off into groups of their own, which have this factor as `rate`.

    It is a factor of the learning rate; without it the factor is 1.
    """
    slow, divided = {id(parameter) for parameter in parameters}, []
    for group in groups:
        inside = [parameter for parameter in group["params"] if id(parameter) in slow]
        outside = [parameter for parameter in group["params"] if id(parameter) not in slow]
        divided += [{**group, "params": outside}, {**group, "params": inside, "rate": factor}]
    return divided


def _spared(module):
    """The parameters of a module that have no weight decay."""
    for child in module.modules():
        named = set(child.no_weight_decay()) if hasattr(child, "no_weight_decay") else set()
        yield from (p for name, p in child.named_parameters() if name in named)
        foreign_norm = "Norm" in type(child).__name__
        for name, parameter in child.named_parameters(recurse=False):
            is_scale = name == "layer_scale" or name.startswith("gamma")
            if (
                isinstance(child, _NORMS)
                or not parameter.ndim
                or name in _EMBEDDINGS
                or (foreign_norm or is_scale)
                and _is_vector(parameter)
            ):
                yield parameter


def _is_vector(parameter):
    """Whether at most one axis is longer than 1, as in [C] and [C, 1, 1]."""
    return sum(length > 1 for length in parameter.shape) <= 1
