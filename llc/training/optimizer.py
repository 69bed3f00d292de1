"""The optimiser: SGD, and which parameters have weight decay."""

import torch
from torch import nn


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

    Without are the parameters of normalisation layers, chosen by the module's type, and single numbers.
    """
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
