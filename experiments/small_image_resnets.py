"""ResNets for small images, the backbones `resnet18_small` and `resnet50_small`.

The first convolution is 3x3 and takes every pixel, and there is no max pooling before the first stage, as in
the ResNets for CIFAR-10 of He et al. (CVPR 2016, arXiv 1512.03385). At 32 px the last stage sees 4x4 places
in place of one.

    python train_llc.py --plugin=experiments/small_image_resnets.py --model.arch=resnet50_small ...
"""

from torch import nn
from torchvision import models

from llc import backbones


def _small(network):
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    network.maxpool = nn.Identity()
    return network


@backbones.register("resnet18_small", classifier="fc")
def resnet18_small():
    return _small(models.resnet18())


@backbones.register("resnet50_small", classifier="fc")
def resnet50_small():
    return _small(models.resnet50())
