"""The training stages: what each learns, its loss, its options and their defaults.

LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487. The paper's method is the codebook stage with its first
loss alone, followed by the instance stage with its second loss alone. The joint stage, in which class codes
and image codes are learnt together, the weights of the other loss, and distillation are this project's.

A stage is a frozen dataclass of options, registered under the name of its section. `STAGES` holds them all; a
stage from outside the package is added in the same way (docs/how-to/extending.md).
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


@dataclasses.dataclass
class Batch:
    """What a loss may need to know of a batch, beside z.

    labels: int64 [B]. label_smoothing: of the class logits' cross entropy. predicted: the teacher's classes,
    int64 [B], if the stage's distillation is above 0. epoch: finished epochs of the stage, with a fraction, a
    scalar float32 tensor on the device. prefixes: the lengths of code that codes.nested trains, the last of
    them num_bits; empty: the whole code alone.
    """

    labels: torch.Tensor
    label_smoothing: float = 0.0
    predicted: torch.Tensor | None = None
    epoch: torch.Tensor | None = None
    prefixes: tuple[int, ...] = ()


def codebook_loss(codebook_logits, labels, label_smoothing):
    """Cross entropy of class logits [B, num_classes] against labels int64 [B], with label smoothing."""
    return F.cross_entropy(codebook_logits, labels, label_smoothing=label_smoothing)


def instance_loss(z, codebook, labels, predicted=None, distillation=0.0, prefixes=()):
    """Binary cross entropy of z [B, num_bits], as logits, against the bits of the labels' class codes.

    The mean over bits and images. distillation: the fraction of each target that is taken from the class code
    of `predicted`, int64 [B], instead of the label's. prefixes: the mean of the losses of the first so many
    bits, for each of these numbers.
    """
    targets = (codebook[labels] > 0).to(z.dtype)
    if distillation:
        targets = torch.lerp(targets, (codebook[predicted] > 0).to(z.dtype), distillation)
    if not prefixes:
        return F.binary_cross_entropy_with_logits(z, targets)
    losses = [F.binary_cross_entropy_with_logits(z[:, :bits], targets[:, :bits]) for bits in prefixes]
    return sum(losses) / len(losses)


# ------------------------------------------------------------------------------------------------ stages


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its length and learning rate, which must be set for a stage that runs, and its loss.

    learns_codebook: the class codes are trained
    learns_codes: the image codes are trained to equal class codes
    dense: there are no codes yet; the network has one bit for each class (llc.recipe.Config.network_options)
    best_metric: the metric that chooses the best epoch

    A subclass gives the weights of the two losses as options or as constants, or has a `loss` of its own.
    """

    name: ClassVar[str]
    learns_codebook: ClassVar[bool]
    learns_codes: ClassVar[bool]
    best_metric: ClassVar[str]
    dense: ClassVar[bool] = False
    freeze_epoch: ClassVar[float] = -1.0
    binarize_start: ClassVar[float] = 0.0
    binarize_end: ClassVar[float] = 0.0
    distillation: ClassVar[float] = 0.0
    backbone_lr: ClassVar[float] = 1.0
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

    def problem(self):
        """What makes no sense about the options together, as words to follow the stage's name, or None.

        The options have values: it is asked of stages that run.
        """
        if self.codebook_weight == self.instance_weight == 0 and type(self).loss is Stage.loss:
            return "codebook_weight and instance_weight are both 0, so there is nothing to learn"
        if self.lr_peak_epoch >= self.epochs > 0:
            return (
                f"lr_peak_epoch = {self.lr_peak_epoch:g} must be less than epochs = {self.epochs}; lower the "
                "first (0: no warm-up) or raise the second"
            )
        return None

    @property
    def ramps(self):
        """Whether the resolution may rise in the stage: unless it learns image codes alone."""
        return self.learns_codebook or self.dense

    @property
    def uses_class_logits(self):
        """Whether the loss depends on the class logits, and so on a learnable logit scale."""
        return self.codebook_weight > 0

    def loss(self, z, network, batch):
        """The loss of a batch, a scalar tensor: codebook_weight x cross entropy + instance_weight x BCE.

        z float32 [B, num_bits]; network: llc.network.Network, for its codebook and class logits; batch: a
        `Batch`. In the binary cross entropy the current codebook is a constant.
        """
        terms = []
        if self.codebook_weight:
            signs = self._signs(batch.epoch)
            losses = [
                codebook_loss(network.class_logits(z, bits, signs), batch.labels, batch.label_smoothing)
                for bits in batch.prefixes or (None,)
            ]
            terms.append(self.codebook_weight * (sum(losses) / len(losses)))
        if self.instance_weight:
            bits = instance_loss(
                z, network.codebook, batch.labels, batch.predicted, self.distillation, batch.prefixes
            )
            terms.append(self.instance_weight * bits)
        return sum(terms)

    def _signs(self, epoch):
        """How far class logits have passed from the codebook's real values to its signs; None: wholly."""
        if not self.binarize_end:
            return None
        ramp = max(self.binarize_end - self.binarize_start, 1e-6)
        return (1 - (self.binarize_end - epoch) / ramp).clamp(0, 1)


_INSTANCE_WEIGHT = "weight of the binary cross entropy between z and the label's class code"
_FREEZE_EPOCH = (
    "epoch, which may be a fraction, at which the codebook is frozen; 0: from the start, -1: never"
)


@register("dense")
@dataclasses.dataclass(frozen=True)
class DenseStage(Stage):
    """The dense stage: trains an ordinary classifier, from which codebook and projection are then made.

    Its network has one-hot class codes that stand still, num_classes x num_classes of them, so that class
    logits are those of a linear layer without bias.
    """

    learns_codebook: ClassVar[bool] = False
    learns_codes: ClassVar[bool] = False
    best_metric: ClassVar[str] = "top1_class"
    dense: ClassVar[bool] = True
    codebook_weight: ClassVar[float] = 1.0


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
    binarize_start: float = option(
        0.0,
        minimum=0,
        help="epoch up to which the class logits of training take the codebook's real values, of mean square "
        "1; from there they pass to its signs in equal steps",
    )
    binarize_end: float = option(
        0.0,
        minimum=0,
        help="epoch from which class logits take the codebook's signs alone; 0: from the start, as in the "
        "paper",
    )

    def problem(self):
        if not self.binarize_start <= self.binarize_end <= self.epochs:
            return (
                f"binarize_start = {self.binarize_start:g} and binarize_end = {self.binarize_end:g} must be "
                f"in this order, and not after the last epoch, {self.epochs}"
            )
        if 0 <= self.freeze_epoch < self.binarize_end:
            return (
                f"freeze_epoch = {self.freeze_epoch:g} is before binarize_end = {self.binarize_end:g}: "
                "the codebook would be frozen before its signs are in use; raise the first, or lower the "
                "second"
            )
        return super().problem()


@register("instance")
@dataclasses.dataclass(frozen=True)
class InstanceStage(Stage):
    """The instance stage: learns image codes for a frozen codebook."""

    learns_codebook: ClassVar[bool] = False
    learns_codes: ClassVar[bool] = True
    best_metric: ClassVar[str] = "top1_mhd"

    epochs: int = option(
        None,
        help="number of epochs; 0: codes stay as they are made from a dense classifier, without training",
        minimum=0,
    )
    instance_weight: float = option(1.0, minimum=0, help=_INSTANCE_WEIGHT)
    codebook_weight: float = option(0.0, minimum=0, help="weight of the class logits' cross entropy")
    backbone_lr: float = option(
        1.0,
        minimum=0,
        help="factor of the learning rate in the backbone; 0: its weights stay as they are, "
        "but batch norm's statistics do not",
    )
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
    learn image codes alone; last the dense one.
    """

    def key(name):
        stage = STAGES[name]
        return stage.dense, stage.learns_codes, not stage.learns_codebook

    return sorted(names, key=key)


def by_image_codes(names):
    """Stage names in order of preference for image codes: `by_class_codes`, reversed, but dense ones last."""
    return sorted(by_class_codes(names)[::-1], key=lambda name: STAGES[name].dense)


def stage_of_checkpoint(checkpoint, stages):
    """The name of the stage whose network a checkpoint holds, from the checkpoint's name.

    stages: of its run. `initial` is the network before the first one, `model_best` the best of the last one.
    """
    for name in sorted(STAGES, key=len, reverse=True):
        if checkpoint == name or checkpoint.startswith(f"{name}_"):
            return name
    return stages[0] if checkpoint == "initial" else stages[-1]
