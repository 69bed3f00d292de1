"""The trainer's configuration: frozen dataclasses, one a section of the YAML, and the checks on their combinations."""

import dataclasses
from typing import ClassVar

import yaml

from llc import config
from llc.config import option
from llc.errors import UserError
from llc.files import atomic_write

SCHEDULES = ("triangular", "cosine", "step")


@dataclasses.dataclass(frozen=True)
class Model:
    """The backbone."""

    arch: str = option("resnet50", help="a torchvision ResNet")
    weights: str = option(
        "", help="start from: run folder, checkpoint, torchvision state dict or weights name; empty: random"
    )
    width: int = option(
        64, minimum=4, help="channels of the first stage; less than 64 is a narrower resnet18 or resnet34"
    )


@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes."""

    num_bits: int = option(20, minimum=1, maximum=4096, help="length of a code in bits")
    init_codebook: str = option(
        "", help="start from this codebook: .npy of real values or a run folder; empty: random"
    )
    logit_scale: str = option(
        "none",
        choices=("none", "sqrt", "learnable"),
        or_positive=True,
        help="of the class logits; sqrt: 1 / sqrt(num_bits); learnable: from there on",
    )
    normalize: str = option(
        "none",
        choices=("none", "batchnorm"),
        help="z as it is, or through batch norm without parameters of its own",
    )
    init_scale: float = option(1.0, minimum=1e-6, help="times the standard deviation of a random codebook")
    init_distance: int = option(
        0, minimum=0, help="bits by which a random codebook's class codes differ at least; 0: as it comes"
    )
    min_distance: int = option(
        0,
        minimum=0,
        help="bits by which class codes differ at least from when the codebook stands still; 0: as learnt",
    )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its length and learning rate, which a stage that runs must have. Its loss: see llc.training.stages.stage_loss.

    Beside the keys, what tells the three kinds apart: learns_codebook (such a stage also follows the resolution ramp), the headlines of
    results.csv, whose first chooses the best epoch, and the weights of the two losses, where they are not keys.
    """

    learns_codebook: ClassVar[bool]
    headlines: ClassVar[tuple]
    freeze_epoch: ClassVar[float] = -1.0
    distillation: ClassVar[float] = 0.0

    epochs: int = option(None, help="epochs", minimum=1)
    lr: float = option(None, help="peak learning rate, for the total batch", minimum=0)
    lr_schedule_type: str = option(
        "triangular", choices=SCHEDULES, help="shape of the learning rate after warm-up, per step"
    )
    lr_peak_epoch: float = option(
        0.0, minimum=0, help="epoch at which the linear warm-up reaches the peak; 0: no warm-up"
    )
    step_ratio: float = option(0.1, minimum=0, maximum=1, help="step: factor at each step down")
    step_length: int = option(30, minimum=1, help="step: epochs between steps down")

    def is_frozen(self, epoch):
        """Whether the codebook stands still at this position, in epochs and parts of them."""
        return not self.learns_codebook or 0 <= self.freeze_epoch <= epoch


_INSTANCE_WEIGHT = "of the binary cross entropy of z and the label's class code, added to the cross entropy"
_FREEZE_EPOCH = "epoch, or part of one, from which the codebook stands still; 0: always, -1: never"


@dataclasses.dataclass(frozen=True)
class CodebookStage(Stage):
    """The codebook stage: learns class codes."""

    learns_codebook: ClassVar[bool] = True
    headlines: ClassVar[tuple] = ("top1_class",)
    codebook_weight: ClassVar[float] = 1.0

    instance_weight: float = option(0.0, minimum=0, help=_INSTANCE_WEIGHT)
    freeze_epoch: float = option(-1.0, minimum=-1, help=_FREEZE_EPOCH)


@dataclasses.dataclass(frozen=True)
class InstanceStage(Stage):
    """The instance stage: learns image codes for a codebook that stands still."""

    learns_codebook: ClassVar[bool] = False
    headlines: ClassVar[tuple] = ("top1_mhd", "top1_ed")
    instance_weight: ClassVar[float] = 1.0

    codebook_weight: float = option(
        0.0, minimum=0, help="of the class logits' cross entropy, added to the binary cross entropy"
    )
    distillation: float = option(
        0.0,
        minimum=0,
        maximum=1,
        help="share of a target that is the code of the class predicted when the stage began, not the label's",
    )


@dataclasses.dataclass(frozen=True)
class JointStage(Stage):
    """The joint stage: learns class codes and image codes together, in place of the two others."""

    learns_codebook: ClassVar[bool] = True
    headlines: ClassVar[tuple] = ("top1_mhd", "top1_class", "top1_ed")
    codebook_weight: ClassVar[float] = 1.0

    instance_weight: float = option(4.0, minimum=0, help=_INSTANCE_WEIGHT)
    freeze_epoch: float = option(-1.0, minimum=-1, help=_FREEZE_EPOCH)


STAGES = {"codebook": CodebookStage, "instance": InstanceStage, "joint": JointStage}


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Training resolution, in pixels: min_res up to epoch start_ramp, max_res from end_ramp on (and in the whole instance stage)."""

    min_res: int = option(160, minimum=8, help="pixels at first")
    max_res: int = option(192, minimum=8, help="pixels at last")
    start_ramp: int = option(0, minimum=0, help="epoch at which resolution begins to rise")
    end_ramp: int = option(0, minimum=0, help="epoch at which it is max_res")


@dataclasses.dataclass(frozen=True)
class Data:
    """The betons."""

    train_dataset: str = option(help="train beton; several, separated by commas, or a glob")
    val_dataset: str = option(help="val beton; several, separated by commas, or a glob")
    num_workers: int = option(
        -1, minimum=-1, help="loader threads of each process; -1: its share of the cores"
    )
    min_scale: float = option(
        0.08, minimum=0.01, maximum=1, help="smallest area of a random crop, as a share of the image"
    )
    in_memory: bool = option(
        True,
        help="the betons fit into memory; false: read by pages, in an order that is random within 512 MB",
    )
    on_error: str = option(
        "fail",
        choices=("fail", "skip_sample"),
        help="a damaged train sample: an error, or another in its place",
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """The optimisation, of every stage."""

    stages: str = option(
        "both", choices=("both", *STAGES), help="which stages run; both: codebook, then instance"
    )
    batch_size: int = option(1024, minimum=2, help="images a step, over all processes")
    momentum: float = option(0.9, minimum=0, maximum=1, help="SGD momentum")
    weight_decay: float = option(1e-4, minimum=0, help="L2, on everything but batch norm")
    label_smoothing: float = option(0.1, minimum=0, maximum=1, help="of the class logits' cross entropy")
    use_blurpool: bool = option(False, help="BlurPool before strided convolutions")
    precision: str = option(
        "auto",
        choices=("auto", "bf16", "fp16", "tf32", "fp32"),
        help="auto: on CUDA bf16, else fp16; on a CPU fp32",
    )
    accumulation_steps: int = option(
        1, minimum=1, help="parts in which a process computes its share of a batch, to save memory"
    )
    clip_grad_norm: float = option(0.0, minimum=0, help="largest norm of the whole gradient; 0: any")
    ema_decay: float = option(
        0.0, minimum=0, maximum=1, help="of the weights' moving average, evaluated beside them; 0: none"
    )
    compile: str = option(
        "auto", choices=("auto", "on", "off"), help="torch.compile of network and loss; auto: on CUDA"
    )
    seed: int = option(0, minimum=0, help="of initial values and sample order")
    deterministic: bool = option(False, help="the same bits each time on CUDA too, for some speed")
    checkpoint_minutes: float = option(
        10.0, minimum=0, help="at most so much work is lost to a kill; 0: an epoch's"
    )
    keep: int = option(
        2, minimum=2, help="checkpoints to continue from that are kept: last.pth and those before it"
    )
    skip_non_finite: int = option(
        0, minimum=0, help="times that a loss may be no number: back to last.pth, on without that batch"
    )


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation, after every epoch."""

    batch_size: int = option(
        512, minimum=1, help="images a step, of each process; in parts where a GPU's memory is too small"
    )
    resolution: int = option(256, minimum=8, help="pixels of the centre crop")
    crop_ratio: float = option(
        0.875, minimum=0.1, maximum=1, help="side of the centre crop, as a share of the shorter side"
    )
    lr_tta: bool = option(True, help="also average over left-right flips")


@dataclasses.dataclass(frozen=True)
class Logging:
    """The run folder."""

    folder: str = option("runs", help="where run folders are made")
    name: str = option("", help="the run folder's name; empty: date and time")


@dataclasses.dataclass(frozen=True)
class Dist:
    """Processes."""

    backend: str = option(
        "auto",
        choices=("auto", "nccl", "gloo"),
        help="auto: NCCL on GPUs; gloo lets processes share a GPU, slowly",
    )
    grad_compression: str = option(
        "none", choices=("none", "bf16"), help="what gradients travel as; bf16 halves them, for slow links"
    )
    timeout_minutes: float = option(
        10.0, minimum=0.1, help="a process that waits longer for the others gives up"
    )


SECTIONS = {
    "model": Model,
    "codes": Codes,
    **STAGES,
    "resolution": Resolution,
    "data": Data,
    "training": Training,
    "validation": Validation,
    "logging": Logging,
    "dist": Dist,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is made from. Raises UserError for combinations that make no sense."""

    model: Model
    codes: Codes
    codebook: CodebookStage
    instance: InstanceStage
    joint: JointStage
    resolution: Resolution
    data: Data
    training: Training
    validation: Validation
    logging: Logging
    dist: Dist

    def __post_init__(self):
        missing = [
            f"{name}.{key} is required (training.stages = {self.training.stages}): give it as --{name}.{key}=VALUE"
            for name in self.stages
            for key in ("epochs", "lr")
            if getattr(getattr(self, name), key) is None
        ]
        if missing:
            raise UserError("\n".join(missing))
        for name in self.stages:
            stage = getattr(self, name)
            if stage.lr_peak_epoch >= stage.epochs:
                raise UserError(
                    f"{name}.lr_peak_epoch = {stage.lr_peak_epoch:g} lies not before the end, {name}.epochs = "
                    f"{stage.epochs}; lower the first (0: no warm-up) or raise the second"
                )
        r = self.resolution
        if r.min_res > r.max_res:
            raise UserError(
                f"resolution.min_res = {r.min_res} is above resolution.max_res = {r.max_res}; set both"
            )
        if r.start_ramp > r.end_ramp:
            raise UserError(
                f"resolution.start_ramp = {r.start_ramp} is after resolution.end_ramp = {r.end_ramp}; set both"
            )
        if self.training.stages == "instance" and not (self.codes.init_codebook and self.model.weights):
            raise UserError(
                "training.stages = instance needs codes.init_codebook (.npy or run folder) and model.weights "
                "(the network of a codebook or joint stage)"
            )

    @property
    def stages(self):
        return ("codebook", "instance") if self.training.stages == "both" else (self.training.stages,)

    def network_options(self, num_classes):
        """The arguments of llc.network.Network."""
        scale = self.codes.logit_scale
        if scale != "learnable":
            scale = {"none": 1.0, "sqrt": self.codes.num_bits**-0.5}.get(scale) or float(scale)
        return {
            "arch": self.model.arch,
            "num_bits": self.codes.num_bits,
            "num_classes": num_classes,
            "width": self.model.width,
            "use_blurpool": self.training.use_blurpool,
            "logit_scale": scale,
            "normalize": self.codes.normalize,
        }

    def save(self, path):
        """Writes the YAML that `read` reads, whole or not at all."""
        atomic_write(
            path, lambda file: file.write(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False).encode())
        )


def read(argv, *, description, options=None):
    """argv -> (Config, options)."""
    arguments = config.read(SECTIONS, argv, description=description, options=options)
    return Config(**arguments.sections), arguments.options
