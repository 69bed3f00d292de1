"""The training stages: what each learns, its loss, its options and their defaults.

LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487. The paper's method is the codebook stage with its first
loss alone, followed by the instance stage with its second loss alone. The joint stage, in which class codes
and image codes are learnt together, the weights of the other loss, and distillation are this project's.

A stage is a frozen dataclass of options, registered under the name of its section. `STAGES` holds them all; a
stage from outside the package is added in the same way (docs/extending.md).
"""

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F

from llc.options import option

SCHEDULES = ("triangular", "cosine", "step")
BOTH = ("codebook", "instance")  # what training.stages=both stands for: the paper's method
STAGES: "dict[str, type[Stage]]" = {}  # by name, in the order of registration


def register(name):
    """A class decorator that adds a Stage under `name`, which is also its section in a recipe."""

    def add(kind):
        if name in STAGES:
            raise ValueError(f"stage {name!r} is registered already, as {STAGES[name].__name__}")
        if not name.isidentifier():
            raise ValueError(f"stage {name!r}: expected a name that is a Python identifier")
        kind.name = name
        STAGES[name] = kind
        return kind

    return add


# ------------------------------------------------------------------------------------------------ losses


def codebook_loss(codebook_logits, labels, label_smoothing):
    """Cross entropy of class logits [B, num_classes] against labels int64 [B], with label smoothing."""
    return F.cross_entropy(codebook_logits, labels, label_smoothing=label_smoothing)


def instance_loss(z, codebook, labels, predicted=None, distillation=0.0):
    """Binary cross entropy of z [B, num_bits], as logits, against the bits of the labels' class codes.

    The mean over bits and images. distillation: the fraction of each target that is taken from the class code
    of `predicted`, int64 [B], instead of the label's.
    """
    targets = (codebook[labels] > 0).to(z.dtype)
    if distillation:
        targets = torch.lerp(targets, (codebook[predicted] > 0).to(z.dtype), distillation)
    return F.binary_cross_entropy_with_logits(z, targets)


# ------------------------------------------------------------------------------------------------ stages


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its length and learning rate, which must be set for a stage that runs, and its loss.

    learns_codebook: the class codes are trained; such a stage also follows the resolution ramp
    learns_codes: the image codes are trained to equal class codes
    best_metric: the metric that chooses the best epoch

    A subclass gives the weights of the two losses as options or as constants, or has a `loss` of its own.
    """

    name: ClassVar[str]
    learns_codebook: ClassVar[bool]
    learns_codes: ClassVar[bool]
    best_metric: ClassVar[str]
    freeze_epoch: ClassVar[float] = -1.0
    distillation: ClassVar[float] = 0.0
    codebook_weight: ClassVar[float] = 0.0
    instance_weight: ClassVar[float] = 0.0

    epochs: int = option(None, help="number of epochs", minimum=1)
    lr: float = option(None, help="peak learning rate, for the total batch", minimum=0)
    lr_schedule_type: str = option(
        "triangular", choices=SCHEDULES, help="shape of the learning rate after warm-up, step by step"
    )
    lr_peak_epoch: float = option(
        0.0, minimum=0, help="epoch at which the linear warm-up reaches the peak; 0: no warm-up"
    )
    step_ratio: float = option(0.1, minimum=0, maximum=1, help="step schedule: factor of each step down")
    step_length: int = option(30, minimum=1, help="step schedule: epochs between two steps down")

    def is_frozen(self, epoch):
        """Whether the codebook is frozen at `epoch`, which may be a fraction."""
        return not self.learns_codebook or 0 <= self.freeze_epoch <= epoch

    @property
    def uses_class_logits(self):
        """Whether the loss depends on the class logits, and so on a learnable logit scale."""
        return self.codebook_weight > 0

    def loss(self, z, network, labels, label_smoothing, predicted=None):
        """The loss of a batch, a scalar tensor: codebook_weight x cross entropy + instance_weight x BCE.

        z float32 [B, num_bits]; network: llc.network.Network, for its codebook and class logits; labels int64
        [B]; predicted: the teacher's classes, int64 [B], if self.distillation is above 0. In the binary cross
        entropy the current codebook is a constant.
        """
        terms = []
        if self.codebook_weight:
            logits = network.class_logits(z)
            terms.append(self.codebook_weight * codebook_loss(logits, labels, label_smoothing))
        if self.instance_weight:
            bits = instance_loss(z, network.codebook, labels, predicted, self.distillation)
            terms.append(self.instance_weight * bits)
        return sum(terms)


_INSTANCE_WEIGHT = "weight of the binary cross entropy between z and the label's class code"
_FREEZE_EPOCH = (
    "epoch, which may be a fraction, at which the codebook is frozen; 0: from the start, -1: never"
)


@register("codebook")
@dataclasses.dataclass(frozen=True)
class CodebookStage(Stage):
    """The codebook stage: learns class codes."""

    learns_codebook: ClassVar[bool] = True
    learns_codes: ClassVar[bool] = False
    best_metric: ClassVar[str] = "top1_class"
    codebook_weight: ClassVar[float] = 1.0

    instance_weight: float = option(0.0, minimum=0, help=_INSTANCE_WEIGHT)
    freeze_epoch: float = option(-1.0, minimum=-1, help=_FREEZE_EPOCH)


@register("instance")
@dataclasses.dataclass(frozen=True)
class InstanceStage(Stage):
    """The instance stage: learns image codes for a frozen codebook."""

    learns_codebook: ClassVar[bool] = False
    learns_codes: ClassVar[bool] = True
    best_metric: ClassVar[str] = "top1_mhd"
    instance_weight: ClassVar[float] = 1.0

    codebook_weight: float = option(0.0, minimum=0, help="weight of the class logits' cross entropy")
    distillation: float = option(
        0.0,
        minimum=0,
        maximum=1,
        help="fraction of each target that comes from the class that the teacher predicts, a frozen copy of "
        "the network at the stage's start, instead of the label",
    )


@register("joint")
@dataclasses.dataclass(frozen=True)
class JointStage(Stage):
    """The joint stage: learns class codes and image codes together, in place of the two others."""

    learns_codebook: ClassVar[bool] = True
    learns_codes: ClassVar[bool] = True
    best_metric: ClassVar[str] = "top1_mhd"
    codebook_weight: ClassVar[float] = 1.0

    instance_weight: float = option(4.0, minimum=0, help=_INSTANCE_WEIGHT)
    freeze_epoch: float = option(-1.0, minimum=-1, help=_FREEZE_EPOCH)


# ------------------------------------------------------------------------------------------------ order


def named(text):
    """training.stages -> the names of the stages that run, in order: `both`, or names separated by commas.

    Raises ValueError for an unknown name, a repeated one, or none.
    """
    names = BOTH if text == "both" else tuple(part.strip() for part in text.split(","))
    if len(set(names)) < len(names) or not all(name in STAGES for name in names):
        raise ValueError(text)
    return names


def by_class_codes(names):
    """Stage names in order of preference for class codes, and for weights to start from.

    First the stages that learn the codebook alone, then those that learn both kinds of codes, then those that
    learn image codes alone.
    """
    return sorted(names, key=lambda name: (STAGES[name].learns_codes, not STAGES[name].learns_codebook))


def by_image_codes(names):
    """Stage names in order of preference for image codes: `by_class_codes`, reversed."""
    return by_class_codes(names)[::-1]


def stage_of_checkpoint(checkpoint, stages):
    """The name of the stage whose network a checkpoint holds, from the checkpoint's name.

    stages: of its run. `initial` is the network before the first one, `model_best` the best of the last one.
    """
    for name in sorted(STAGES, key=len, reverse=True):
        if checkpoint == name or checkpoint.startswith(f"{name}_"):
            return name
    return stages[0] if checkpoint == "initial" else stages[-1]
