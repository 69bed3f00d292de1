"""The network: uint8 images -> normalised -> torchvision ResNet backbone -> linear projection (-> batch norm) -> z [B, num_bits]; with it the
codebook.

Parameter names: `backbone.*` as torchvision names them (its fc is gone), `projection.weight` [num_bits, features], `codebook`
[num_classes, num_bits]; and only where they are chosen `normalization.*`, batch norm's statistics [num_bits], and `log_logit_scale`, a number.
BlurPool changes no names, so the same weights fit with and without.
"""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from llc.codes import binarize
from llc.errors import UserError
from llc.torch_files import read_torch_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNETS = tuple(
    name
    for name in torchvision.models.list_models(torchvision.models)
    if name.startswith(("resnet", "resnext", "wide_resnet"))
)


class BlurConv2d(nn.Conv2d):
    """A strided convolution whose input is blurred by the 3x3 binomial filter first (BlurPool, Zhang 2019, arXiv 1904.11486).

    Placed as ffcv-imagenet does: before the convolution. Before a 1x1 convolution the blur takes the stride itself, which gives the
    same result for 1 / stride^2 of the work.
    """

    @classmethod
    def of(cls, conv):
        blurred = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
        )
        blurred.load_state_dict(conv.state_dict())
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        blurred.register_buffer(
            "blur", torch.outer(row, row).expand(conv.in_channels, 1, 3, 3).contiguous(), persistent=False
        )
        return blurred

    def forward(self, x):
        first = self.kernel_size == (1, 1) and self.padding == (0, 0)
        x = F.conv2d(
            x, self.blur.to(x.dtype), stride=self.stride if first else 1, padding=1, groups=self.in_channels
        )
        if first:
            return F.conv2d(x, self.weight, self.bias, groups=self.groups)
        return super().forward(x)


def apply_blurpool(module):
    """Puts BlurConv2d in place of every strided convolution of 16 and more input channels, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, BlurConv2d.of(child))
        else:
            apply_blurpool(child)


class Network(nn.Module):
    """forward(images uint8 [B, 3, H, W]) -> z [B, num_bits], in float32; `class_logits(z)` -> [B, num_classes].

    arch: a torchvision ResNet's name; width: channels of its first stage (64 is torchvision's own, less is a narrower network);
    logit_scale multiplies the class logits: a number, or "learnable", a parameter that starts at 1 / sqrt(num_bits); normalize: "none", or
    "batchnorm": z through batch norm that has no parameters. `options` are these arguments: Network(**network.options) is built like it.
    """

    def __init__(
        self, arch, num_bits, num_classes, *, width=64, use_blurpool=False, logit_scale=1.0, normalize="none"
    ):
        super().__init__()
        self.options = {
            "arch": arch,
            "num_bits": num_bits,
            "num_classes": num_classes,
            "width": width,
            "use_blurpool": use_blurpool,
            "logit_scale": logit_scale,
            "normalize": normalize,
        }
        if normalize not in ("none", "batchnorm"):
            raise UserError(f"codes.normalize = {normalize!r}: it takes none or batchnorm")
        if arch not in RESNETS:
            raise UserError(
                f"model.arch = {arch}: not a ResNet of torchvision; it takes one of {', '.join(RESNETS)}"
            )
        self.backbone = torchvision.models.get_model(arch, weights=None)
        if width != 64:
            _set_width(self.backbone, arch, width)
        features = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        if use_blurpool:
            apply_blurpool(self.backbone)
        self.projection = nn.Linear(features, num_bits, bias=False)
        self.codebook = nn.Parameter(torch.zeros(num_classes, num_bits))
        # none is no module: it has no names in a state dict
        self.normalization = (
            nn.BatchNorm1d(num_bits, affine=False) if normalize == "batchnorm" else nn.Identity()
        )
        if logit_scale == "learnable":  # its logarithm is learnt, so that it stays positive
            self.log_logit_scale = nn.Parameter(torch.tensor(-0.5 * math.log(num_bits)))
        else:
            self._logit_scale = float(logit_scale)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images):
        images = (images.float() - self.mean) / self.std
        return self.normalization(self.projection(self.backbone(images)).float())

    @property
    def logit_scale(self):
        """A number, or where it is learnable a scalar tensor."""
        return self.log_logit_scale.exp() if self.options["logit_scale"] == "learnable" else self._logit_scale

    def class_logits(self, z):
        """z . sign(C)^T, gradient straight through the sign to the codebook."""
        return self.logit_scale * z @ binarize(self.codebook).T


def average_over_flip(project, images, z):
    """The mean of z = project(images) and of the mirror images' z; project: images [B, 3, H, W] -> [B, num_bits]."""
    return (z + project(images.flip(3))) / 2


def _set_width(backbone, arch, width):
    """Rebuilds the convolutions of a basic-block torchvision ResNet with `width` instead of 64 channels in the first stage."""
    block = type(backbone.layer1[0])
    if block is not torchvision.models.resnet.BasicBlock:
        raise UserError(
            f"model.width = {width}: only resnet18 and resnet34 come narrower, model.arch is {arch}"
        )
    depths = [len(getattr(backbone, f"layer{i}")) for i in (1, 2, 3, 4)]
    backbone.inplanes = width
    backbone.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    backbone.bn1 = nn.BatchNorm2d(width)
    for i, depth in enumerate(depths):
        setattr(
            backbone,
            f"layer{i + 1}",
            backbone._make_layer(block, width << i, depth, stride=1 if i == 0 else 2),
        )
    backbone.fc = nn.Linear(width << 3, 1)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def running_statistics(*modules):
    """Batch norm's running means and variances: what training changes in a network beside its parameters, in each process by itself."""
    return [
        statistic
        for module in modules
        for child in module.modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm)
        for statistic in (child.running_mean, child.running_var)
    ]
