"""The configuration of a run: a frozen dataclass for each section of a recipe, and checks of combinations.

It is read from recipes and the command line by llc.training.config, and from a run folder by llc.runs.
"""

import dataclasses
from collections.abc import Mapping

import yaml

from llc import stages
from llc.errors import UserError
from llc.files import atomic_write
from llc.options import option
from llc.precision import PRECISIONS

ITQ = "itq"  # the name of a codebook that is made, not read


@dataclasses.dataclass(frozen=True)
class Model:
    """The backbone."""

    arch: str = option(
        "resnet50",
        help="backbone: a classification model of torchvision (resnet50, convnext_tiny, vit_b_16, ...), "
        "timm:NAME from an installed timm, or a name that a --plugin registers",
    )
    weights: str = option(
        "",
        help="start from a run folder, a checkpoint, a state dict of the whole model, hf://OWNER/NAME, or "
        "the backbone's published weights of this name (IMAGENET1K_V1); empty: random values",
    )
    width: int = option(
        64, minimum=4, help="channels of the first stage; less than 64 is a narrower resnet18 or resnet34"
    )


@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes."""

    num_bits: int = option(20, minimum=1, maximum=4096, help="length of a code in bits")
    init_codebook: str = option(
        "",
        help="start from this codebook: .npy of real values or a run folder; itq: made from the dense "
        "classifier in model.weights, which then also teaches the first stage, as after a dense stage; "
        "empty: random values",
    )
    nested: tuple[int, ...] = option(
        (),
        minimum=1,
        help="numbers of bits, such as 8,16: the first so many bits are trained to be codes by themselves, "
        "beside the whole code; none: the whole code alone",
    )
    head: str = option(
        "linear",
        choices=("linear", "expected"),
        help="what makes z of the features; linear: a projection, as in the paper; expected: the expected "
        "class code, the mean of the class codes under the probabilities of a dense classifier, that of the "
        "dense stage or of codes.init_codebook=itq",
    )
    temperature: float = option(
        1.0,
        minimum=0.01,
        help="codes.head=expected: the classifier's logits are divided by it before they become "
        "probabilities; less: more codes equal a class code",
    )
    hidden: int = option(
        0, minimum=0, help="width of a hidden layer between backbone and projection; 0: none, as in the paper"
    )
    logit_scale: str = option(
        "none",
        choices=("none", "sqrt", "learnable"),
        or_positive=True,
        help="factor of the class logits; sqrt: 1 / sqrt(num_bits); learnable: starts at 1 / sqrt(num_bits) "
        "and is trained",
    )
    normalize: str = option(
        "none", choices=("none", "batchnorm"), help="batchnorm: z passes a batch norm without parameters"
    )
    init_scale: float = option(1.0, minimum=1e-6, help="standard deviation of a random codebook")
    init_distance: int = option(
        0, minimum=0, help="minimum Hamming distance of the class codes of a random codebook; 0: no minimum"
    )
    min_distance: int = option(
        0, minimum=0, help="minimum Hamming distance of class codes, enforced when the codebook is frozen"
    )

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The lengths of code that are trained, rising to num_bits; empty if that is the whole code alone."""
        lengths = tuple(sorted({*self.nested, self.num_bits}))
        return lengths if len(lengths) > 1 else ()


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Training resolution in pixels: min_res up to epoch start_ramp, max_res from end_ramp on."""

    min_res: int = option(160, minimum=8, help="pixels up to start_ramp")
    max_res: int = option(192, minimum=8, help="pixels from end_ramp on, and in the whole instance stage")
    start_ramp: int = option(0, minimum=0, help="epoch at which the resolution begins to rise")
    end_ramp: int = option(0, minimum=0, help="epoch at which it reaches max_res")


@dataclasses.dataclass(frozen=True)
class Data:
    """The betons."""

    train_dataset: str = option(help="train beton; several, separated by commas, or a glob")
    val_dataset: str = option(help="val beton; several, separated by commas, or a glob")
    num_workers: int = option(
        -1, minimum=-1, help="loader threads of each process; -1: the cores divided by the processes"
    )
    min_scale: float = option(
        0.08, minimum=0.01, maximum=1, help="smallest area of a random crop, as a fraction of the image"
    )
    in_memory: bool = option(
        True, help="the betons fit into memory; false: read by pages, in random order within 512 MB"
    )
    on_error: str = option(
        "fail",
        choices=("fail", "skip_sample"),
        help="a damaged train sample: fail stops the run, skip_sample replaces it by another sample",
    )
    loader: str = option(
        "llc",
        choices=("llc", "ffcv"),
        help="what makes the train batches; ffcv: FFCV's Loader, which makes the same ones and can add "
        "data.operations",
    )
    operations: tuple[str, ...] = option(
        (),
        help="FFCV operations on the train images, by the names under which a --plugin registers them, in "
        "order; needs data.loader=ffcv",
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """The optimisation, in every stage."""

    stages: str = option(
        "both",
        help="stages that run, separated by commas; both: codebook, then instance; there are dense, "
        "codebook, instance and joint",
    )
    batch_size: int = option(1024, minimum=2, help="images per step, over all processes")
    momentum: float = option(0.9, minimum=0, maximum=1, help="momentum of SGD")
    weight_decay: float = option(
        1e-4,
        minimum=0,
        help="L2 penalty, except on normalisation layers, layer scales, tokens and position embeddings",
    )
    label_smoothing: float = option(
        0.1, minimum=0, maximum=1, help="label smoothing of the class logits' cross entropy"
    )
    use_blurpool: bool = option(False, help="BlurPool before strided convolutions")
    precision: str = option(
        "auto", choices=PRECISIONS, help="auto: on CUDA bf16, or fp16 on older GPUs; on a CPU fp32"
    )
    accumulation_steps: int = option(
        1, minimum=1, help="parts in which each process computes its part of a batch, to save memory"
    )
    clip_grad_norm: float = option(
        0.0, minimum=0, help="clip the global gradient norm to this; 0: no clipping"
    )
    ema_decay: float = option(
        0.0,
        minimum=0,
        maximum=1,
        help="decay of a moving average of the weights, evaluated beside them; 0: none",
    )
    compile: str = option(
        "auto", choices=("auto", "on", "off"), help="torch.compile of network and loss; auto: on CUDA"
    )
    seed: int = option(0, minimum=0, help="seed of initial values and sample order")
    deterministic: bool = option(False, help="bit-identical results on CUDA too, at some cost in speed")
    checkpoint_minutes: float = option(
        10.0, minimum=0, help="minutes between checkpoints within an epoch; 0: only at its end"
    )
    keep: int = option(2, minimum=2, help="number of checkpoints to continue from that are kept")
    skip_non_finite: int = option(
        0,
        minimum=0,
        help="how often a NaN or infinite loss may be survived by returning to last.pth and skipping "
        "that batch",
    )


@dataclasses.dataclass(frozen=True)
class Validation:
    """Validation, after every epoch, and what is measured at the end."""

    batch_size: int = option(
        512, minimum=1, help="images per step of each process; in parts if they exceed a GPU's memory"
    )
    resolution: int = option(256, minimum=8, help="pixels of the centre crop")
    crop_ratio: float = option(
        0.875, minimum=0.1, maximum=1, help="side of the centre crop, as a fraction of the shorter side"
    )
    lr_tta: bool = option(True, help="also average z over left-right flips")
    fit_decoder: bool = option(
        True, help="at the end, encode the train set and fit the decoders that learn from its codes"
    )


@dataclasses.dataclass(frozen=True)
class Logging:
    """The run folder, and where else the numbers of a run go."""

    folder: str = option("runs", help="folder in which run folders are made")
    name: str = option("", help="name of the run folder; empty: date and time")
    to: tuple[str, ...] = option(
        ("tensorboard", "csv"),
        help="where the numbers of each epoch go, beside log.jsonl: some of tensorboard, csv, wandb, mlflow, "
        "which send them on, and loggers of a --plugin; empty: nowhere else",
    )
    project: str = option("llc", help="wandb's project, or MLflow's experiment, that the run belongs to")


@dataclasses.dataclass(frozen=True)
class Dist:
    """Processes."""

    backend: str = option(
        "auto",
        choices=("auto", "nccl", "gloo"),
        help="auto: NCCL on GPUs; gloo lets processes share a GPU, slowly",
    )
    grad_compression: str = option(
        "none", choices=("none", "bf16"), help="bf16 halves the size of gradients sent over slow links"
    )
    timeout_minutes: float = option(
        10.0, minimum=0.1, help="a process that waits longer for the others gives up"
    )


def sections():
    """{name: dataclass} of a recipe's sections and of all registered stages, in the order of a file."""
    return {
        "model": Model,
        "codes": Codes,
        **stages.STAGES,
        "resolution": Resolution,
        "data": Data,
        "training": Training,
        "validation": Validation,
        "logging": Logging,
        "dist": Dist,
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is made from. Raises UserError for combinations that make no sense.

    stage_options: {name: llc.stages.Stage} of every registered stage; `stage(name)` returns one of them.
    """

    model: Model
    codes: Codes
    stage_options: Mapping[str, stages.Stage]
    resolution: Resolution
    data: Data
    training: Training
    validation: Validation
    logging: Logging
    dist: Dist

    @classmethod
    def of(cls, values):
        """From {section: dataclass instance}, as `sections` names them."""
        others = {name: value for name, value in values.items() if name not in stages.STAGES}
        return cls(**others, stage_options={name: values[name] for name in stages.STAGES})

    def __post_init__(self):
        try:
            names = stages.named(self.training.stages)
        except ValueError:
            raise UserError(
                f"training.stages = {self.training.stages!r}: expected both, or one or several of "
                f"{', '.join(stages.STAGES)}, separated by commas"
            ) from None
        missing = [
            f"{name}.{key} is required (training.stages = {self.training.stages}): "
            f"give it as --{name}.{key}=VALUE"
            for name in names
            for key in ("epochs", "lr")
            if getattr(self.stage(name), key) is None and (key != "lr" or self.stage(name).epochs != 0)
        ]
        if missing:
            raise UserError("\n".join(missing))
        for name in names:
            if problem := self.stage(name).problem():
                raise UserError(f"{name}.{problem}")
        if self.codes.nested and max(self.codes.nested) > self.codes.num_bits:
            raise UserError(
                f"codes.nested = {','.join(map(str, self.codes.nested))}: codes have {self.codes.num_bits} "
                "bits; raise codes.num_bits, or give smaller numbers"
            )
        data = self.data
        if data.operations and data.loader != "ffcv":
            raise UserError(
                f"data.operations = {','.join(data.operations)} needs data.loader=ffcv; it is {data.loader}"
            )
        if data.loader == "ffcv" and data.on_error == "skip_sample":
            raise UserError(
                "data.loader = ffcv cannot replace damaged samples (data.on_error = skip_sample): use "
                "data.loader=llc, or write the beton again"
            )
        r = self.resolution
        if r.min_res > r.max_res:
            raise UserError(
                f"resolution.min_res = {r.min_res} is above resolution.max_res = {r.max_res}; set both"
            )
        if r.start_ramp > r.end_ramp:
            raise UserError(
                f"resolution.start_ramp = {r.start_ramp} is after resolution.end_ramp = {r.end_ramp}; "
                "set both"
            )
        dense = [name for name in names if self.stage(name).dense]
        if dense and (dense != [names[0]] or self.codes.init_codebook not in ("", ITQ)):
            raise UserError(
                f"training.stages = {self.training.stages}: the {dense[-1]} stage must be the first one, and "
                "makes the codebook, so that codes.init_codebook must be itq or empty"
                + (f"; it is {self.codes.init_codebook}" if self.codes.init_codebook else "")
            )
        starts_without_codebook = not (dense or self.stage(names[0]).learns_codebook)
        if starts_without_codebook and not (self.codes.init_codebook and self.model.weights):
            raise UserError(
                f"training.stages = {self.training.stages} needs codes.init_codebook (.npy or run folder) "
                "and model.weights (the network of a codebook or joint stage)"
            )
        if self.codes.init_codebook == ITQ and not (dense or self.model.weights):
            raise UserError(
                "codes.init_codebook = itq makes the codebook from a dense classifier: name a network that "
                "has one as model.weights, or train one first (training.stages=dense,instance)"
            )
        from_classifier = self.stage_from_classifier
        for number, name in enumerate(names):
            if not self.stage(name).epochs and (number != from_classifier or self.codes.hidden):
                raise UserError(
                    f"{name}.epochs = 0: without training only codes that are made from a dense classifier "
                    "are of use: after a dense stage or with codes.init_codebook=itq, without codes.hidden"
                )
        if self.codes.head == "expected":
            if self.codes.hidden:
                raise UserError("codes.head = expected has no room for codes.hidden: leave one of them out")
            if not (dense or self.model.weights):
                raise UserError(
                    "codes.head = expected is made from a dense classifier: train one first "
                    "(training.stages=dense,instance), or name a network that has one as model.weights, "
                    "with codes.init_codebook=itq"
                )

    @property
    def stages(self):
        """Names of the stages that run, in order."""
        return stages.named(self.training.stages)

    @property
    def stage_from_classifier(self):
        """The index of the stage whose codebook is made from a dense classifier, or None."""
        if self.stage(self.stages[0]).dense:
            return 1
        return 0 if self.codes.init_codebook == ITQ else None

    def stage(self, name):
        """The options of a stage, a llc.stages.Stage."""
        return self.stage_options[name]

    def network_options(self, num_classes, stage):
        """The arguments of llc.network.Network in the stage of this name.

        In a dense stage it has one-hot class codes C = 2I - 1: softmax(z C^T / 2) = softmax(z).
        """
        if stages.STAGES[stage].dense:
            own = {
                "num_bits": num_classes,
                "logit_scale": 0.5,
                "normalize": "none",
                "head": "linear",
                "hidden": 0,
            }
            return self._options_of_codes(num_classes) | own
        return self._options_of_codes(num_classes)

    def _options_of_codes(self, num_classes):
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
            "head": self.codes.head,
            "hidden": self.codes.hidden,
        }

    def as_dict(self):
        """{section: {key: value}}, in the order of `sections`: what config.yaml holds."""
        return {
            name: dataclasses.asdict(self.stage(name) if name in self.stage_options else getattr(self, name))
            for name in sections()
        }

    def save(self, path):
        """Writes the YAML that `--config` reads, whole or not at all."""
        text = yaml.safe_dump(self.as_dict(), sort_keys=False)
        atomic_write(path, lambda file: file.write(text.encode()))
