"""The network: uint8 images -> normalised -> backbone -> head (-> batch norm) -> z.

The head is a projection, alone or after a hidden layer, or the expected class code.

It also holds the codebook. Its parameters are `backbone.*`, named as in the backbone's own library but
without the classifier; `projection.weight` [num_bits, features]; `codebook` [num_classes, num_bits]; and,
only where they are chosen, `hidden.*`, a linear layer [hidden, features] with its batch norm, or a classifier
[num_classes, features] with its bias, after which the projection is [num_bits, hidden] or [num_bits,
num_classes]; `normalization.*`, the statistics of a batch norm [num_bits]; and
`log_logit_scale`, a scalar. BlurPool changes no names, so the same weights fit with and without it.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from llc import backbones
from llc.arguments import whole_number
from llc.backbones import IMAGENET_MEAN, IMAGENET_STD
from llc.codes import binarize
from llc.errors import UserError

HEADS = ("linear", "expected")
EXPECTED_SCALE = 4.0  # |z| where one class is certain: as the logit of a bit a probability of 0.98


class BlurConv2d(nn.Conv2d):
    """A strided convolution that blurs its input first (BlurPool, Zhang 2019, arXiv 1904.11486).

    The filter is the 3x3 binomial one. As in ffcv-imagenet, the blur comes before the convolution. Before a
    1x1 convolution the blur takes the stride itself, which gives the same result for 1 / stride^2 of the
    work.
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
    """forward(images uint8 [B, 3, H, W]) -> z float32 [B, num_bits]; `class_logits(z)` -> [B, num_classes].

    arch: the name of a backbone (llc.backbones). width: channels of a ResNet's first stage; 64 is
    torchvision's own, and less gives a narrower network. logit_scale: the factor of the class logits, a
    number, or "learnable", a parameter that starts at 1 / sqrt(num_bits). normalize: "none", or
    "batchnorm", which passes z through a batch norm without parameters. head: "linear", or "expected": a
    classifier and a softmax before the projection, which `expect` fills. hidden: with a linear head the width
    of a hidden layer (linear, batch norm, ReLU) before the projection; 0: none, as in the paper. Raises
    UserError where no such network can be built.

    `options` holds these arguments: Network(**network.options) is built in the same way. `family`,
    `classifier` and `classifier_has_bias` are those of llc.backbones.Backbone.
    """

    def __init__(
        self,
        arch,
        num_bits,
        num_classes,
        *,
        width=64,
        use_blurpool=False,
        logit_scale=1.0,
        normalize="none",
        head="linear",
        hidden=0,
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
            "head": head,
            "hidden": hidden,
        }
        if normalize not in ("none", "batchnorm"):
            raise UserError(f"codes.normalize = {normalize!r}: it takes none or batchnorm")
        if head not in HEADS or hidden and head == "expected":
            raise UserError(f"codes.head = {head!r}: it takes linear, or expected with codes.hidden = 0")
        built = backbones.build(arch, width)
        self.backbone, self.family = built.module, built.family
        self.classifier, self.classifier_has_bias = built.classifier, built.has_bias
        if use_blurpool:
            apply_blurpool(self.backbone)
            if not any(isinstance(module, BlurConv2d) for module in self.backbone.modules()):
                raise UserError(
                    f"training.use_blurpool: {arch} has no strided convolution to blur; set it to false"
                )
        self.num_features = built.num_features
        self.hidden, projected = nn.Identity(), built.num_features  # it adds no names to the state dict
        if head == "expected":
            self.hidden, projected = _classifier(built.num_features, num_classes), num_classes
        elif hidden:
            self.hidden, projected = _hidden_layer(built.num_features, hidden), hidden
        self.projection = nn.Linear(projected, num_bits, bias=False)
        self.codebook = nn.Parameter(torch.zeros(num_classes, num_bits))
        self.normalization = (
            nn.BatchNorm1d(num_bits, affine=False) if normalize == "batchnorm" else nn.Identity()
        )
        if logit_scale == "learnable":  # its logarithm is the parameter, so that the scale stays positive
            self.log_logit_scale = nn.Parameter(torch.tensor(-0.5 * math.log(num_bits)))
        else:
            self._logit_scale = float(logit_scale)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images):
        return self.normalization(self.projection(self.hidden(self.features(images))).float())

    def features(self, images):
        """The backbone's features [B, num_features] of images uint8 [B, 3, H, W]."""
        features = self.backbone((images.float() - self.mean) / self.std)
        # some backbones keep the two axes of the image, [B, features, 1, 1]
        return features.flatten(1) if features.ndim > 2 else features

    def expect(self, weight, bias, temperature=1.0):
        """Fills the head "expected", so that z is EXPECTED_SCALE times the mean of the current class codes.

        The mean is under softmax((features @ weight^T + bias) / temperature). weight [num_classes, features],
        bias [num_classes]: of a dense classifier.
        """
        self.hidden[0].weight.data.copy_(weight / temperature)
        self.hidden[0].bias.data.copy_(bias / temperature)
        self.projection.weight.data.copy_(EXPECTED_SCALE * binarize(self.codebook.detach()).T)

    @property
    def logit_scale(self):
        """The factor of the class logits: a number, or where it is learnable, a scalar tensor."""
        return self.log_logit_scale.exp() if self.options["logit_scale"] == "learnable" else self._logit_scale

    def class_logits(self, z, num_bits=None, signs=None):
        """z . sign(C)^T; the gradient passes straight through the sign to the codebook.

        num_bits: of the first bits alone, times sqrt(num_bits of all / num_bits), so that they are as large.
        signs: a scalar tensor; from 0, where C's real values, divided by the root of their mean square, take
        the place of sign(C), to 1, sign(C) alone.
        """
        codes, scale = binarize(self.codebook), self.logit_scale
        if signs is not None:
            size = self.codebook.detach().square().mean().sqrt().clamp_min(1e-12)
            codes = torch.lerp(self.codebook / size, codes, signs)
        if num_bits is not None and num_bits < codes.shape[1]:
            scale = scale * math.sqrt(codes.shape[1] / num_bits)
            z, codes = z[:, :num_bits], codes[:, :num_bits]
        return scale * z @ codes.T

    def first_bits(self, num_bits):
        """A network whose codes are the first num_bits bits of this network's codes.

        It is a copy that shares nothing with this network, on the same device and in the same modes. Its z is
        the first num_bits values of this one's z, and its class logits are this one's
        `class_logits(z, num_bits)`. Raises UserError unless num_bits is a whole number from 1 to this one's.
        """
        whole = self.options["num_bits"]
        try:
            num_bits = whole_number("num_bits", num_bits, 1, whole)
        except ValueError as error:
            raise UserError(
                f"num_bits = {num_bits!r:.80}: the codes have {whole} bits; give 1 to {whole}"
            ) from error
        network, scale = copy.deepcopy(self), math.sqrt(whole / num_bits)
        network.options["num_bits"] = num_bits
        projection, codebook, norm = network.projection, network.codebook, network.normalization
        projection.out_features = num_bits
        projection.weight = nn.Parameter(
            projection.weight.detach()[:num_bits].clone(), projection.weight.requires_grad
        )
        network.codebook = nn.Parameter(codebook.detach()[:, :num_bits].clone(), codebook.requires_grad)
        if self.options["normalize"] == "batchnorm":
            norm.num_features = num_bits
            norm.running_mean, norm.running_var = (
                statistic[:num_bits].clone() for statistic in (norm.running_mean, norm.running_var)
            )
        if self.options["logit_scale"] == "learnable":
            network.log_logit_scale.data += math.log(scale)
        else:
            network._logit_scale *= scale
            network.options["logit_scale"] = network._logit_scale
        return network


def _hidden_layer(num_features, width):
    return nn.Sequential(nn.Linear(num_features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())


def _classifier(num_features, num_classes):
    return nn.Sequential(nn.Linear(num_features, num_classes), nn.Softmax(1))


def average_over_flip(project, images, z):
    """The mean of z = project(images) and of the mirror images' z, [B, num_bits].

    images: [B, 3, H, W]; project: a function from images to z [B, num_bits].
    """
    return (z + project(images.flip(3))) / 2


def running_statistics(*modules):
    """Running means and variances of batch norm (and instance norm), a list of tensors.

    Training changes them without a gradient, so each process has its own.
    """
    return [
        statistic
        for module in modules
        for child in module.modules()
        if isinstance(child, nn.modules.batchnorm._NormBase) and child.running_mean is not None
        for statistic in (child.running_mean, child.running_var)
    ]
