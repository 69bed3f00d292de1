"""A trained model as a library: images of any kind in, packed codes or classes out.

encoder = llc.load("runs/NAME")
codes = encoder.encode(["cat.jpg", "dog.jpg"])
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from llc import checkpoints, hub, runs, stages
from llc.arguments import fraction, one_of, whole_number
from llc.codebook import load_codebook
from llc.codes import pack_bits
from llc.data.batches import prepare
from llc.data.images import load_rgb
from llc.data.preprocessing import Preprocessing
from llc.data.sources import printable
from llc.errors import UserError
from llc.evaluation import fitting
from llc.evaluation.decoders import DECODERS, bind, usable
from llc.files import atomic_write
from llc.inference import evaluating
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network, average_over_flip
from llc.precision import PRECISIONS, autocast_for

StrPath: TypeAlias = "str | os.PathLike[str]"
Images: TypeAlias = "torch.Tensor | StrPath | Image.Image | Sequence[torch.Tensor | StrPath | Image.Image]"

FORMAT = 1  # of a saved encoder
# The original code's: the shorter side is resized to 256 pixels, and 224 are cropped. Its files do not say.
OF_ORIGINAL = Preprocessing(224, 0.875, "bilinear", IMAGENET_MEAN, IMAGENET_STD)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The result of `Encoder.classify`, best class first.

    labels int64 [n, k], -1 for no class; names: n lists of k, None for no class; scores [n, k]: of mhd and ed
    Hamming distances int32 (less is better), of class the class logits float32 (more is better), of posterior
    the probabilities float32.
    """

    labels: torch.Tensor
    names: list[list[str | None]]
    scores: torch.Tensor


class Encoder(nn.Module):
    """A network with all that turning images into codes and classes needs; `llc.load` makes one from files.

    network: llc.network.Network; preprocessing: how images are cropped, resized and normalised; class_names:
    in label order (default: the label numbers); flip: whether z is averaged over an image and its mirror
    image, which takes twice the time; precision: as in training; stage: the name of the stage (llc.stages) at
    whose end the network was saved; recipe: the configuration that it was trained with, for the reader;
    fitted: what decoders learnt from the codes that this network gives the train set, or None.

    >>> import torch, llc
    >>> from llc.data.preprocessing import Preprocessing
    >>> from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network
    >>> network = Network("resnet18", num_bits=20, num_classes=3, width=8)
    >>> preprocessing = Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD)
    >>> encoder = llc.Encoder(network, preprocessing, ["cat", "dog", "eel"])
    >>> encoder.encode(torch.zeros(2, 3, 48, 64, dtype=torch.uint8)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        class_names: Sequence[str] | None = None,
        *,
        flip: bool = False,
        precision: str = "auto",
        stage: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        fitted: fitting.Fitted | None = None,
    ) -> None:
        super().__init__()
        num_classes = len(network.codebook)
        if isinstance(class_names, (str, bytes)) or not all(isinstance(n, str) for n in class_names or ()):
            raise ValueError(f"class_names: expected a list of texts, got {class_names!r:.80}")
        if class_names is not None and len(class_names) != num_classes:
            raise UserError(
                f"class_names: {len(class_names)} names, but the codebook has {num_classes} classes"
            )
        if type(flip) is not bool:
            raise UserError(f"flip = {flip!r}: expected True or False")
        if precision not in PRECISIONS:
            raise UserError(f"precision = {precision!r}: expected one of {', '.join(PRECISIONS)}")
        if stage not in (*stages.STAGES, None):
            raise UserError(
                f"stage = {stage!r}: expected one of {', '.join(stages.STAGES)}, or None; if it is a stage "
                "from outside llc, import it first (commands: --plugin=FILE.py)"
            )
        self.network = network.to(memory_format=torch.channels_last)
        self.preprocessing, self.flip, self.precision = preprocessing, flip, precision
        self.stage, self.recipe, self.fitted = stage, dict(recipe or {}), fitted
        self.named = class_names is not None  # whether class_names are names, not label numbers
        names = map(str, range(num_classes)) if class_names is None else class_names
        self.class_names: tuple[str, ...] = tuple(names)
        for name in ("mean", "std"):
            getattr(network, name).copy_(255 * torch.tensor(getattr(preprocessing, name))[:, None, None])
        self.eval()

    @property
    def num_bits(self) -> int:
        """Length of a code in bits; ceil(num_bits / 8) bytes each in `encode`'s result."""
        return self.network.codebook.shape[1]

    @property
    def codebook(self) -> torch.Tensor:
        """Real values float32 [num_classes, num_bits], whose signs are the class codes.

        num_classes is 0 if the model has no codebook.
        """
        return self.network.codebook.detach()

    @property
    def class_codes(self) -> torch.Tensor:
        """The class codes, packed: uint8 [num_classes, code_size]."""
        return pack_bits(self.codebook)

    @property
    def learnt(self) -> Mapping[str, Any]:
        """{decoder: what it learnt from the train set's codes}; empty if none was fitted."""
        return {} if self.fitted is None else self.fitted.learnt

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where codes are made: `encoder.to("cuda")` moves both."""
        return self.network.codebook.device

    def check_codes(self) -> None:
        """Raises UserError if this is the network of a dense stage, whose z are class logits."""
        if self.stage is not None and stages.STAGES[self.stage].dense:
            raise UserError(
                f"this is the network of a {self.stage} stage: a dense classifier, which has no codes; take "
                "one of a later stage"
            )

    def first_bits(self, num_bits: int) -> Encoder:
        """An encoder whose codes are the first num_bits bits of this encoder's codes.

        It has a network of its own (`Network.first_bits`), in evaluation mode. The rest is kept, but what
        decoders learnt only if num_bits is the whole length, because it fits codes of one length alone.
        Raises UserError unless num_bits is a whole number from 1 to this encoder's num_bits, and for a dense
        network.
        """
        self.check_codes()
        network = self.network.first_bits(num_bits)
        return Encoder(
            network,
            self.preprocessing,
            self.class_names if self.named else None,
            flip=self.flip,
            precision=self.precision,
            stage=self.stage,
            recipe=self.recipe,
            fitted=self.fitted if num_bits == self.num_bits else None,
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Ready images -> z float32 [b, num_bits].

        images: uint8 [b, 3, H, W] as `preprocess` returns them, on the encoder's device. As of any module,
        the result follows the modes of the network's modules and has a gradient. The methods below run in
        evaluation mode, without a gradient, whatever the modes are, and leave them as they are.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(
                f"images: expected uint8 [b, 3, H, W], as preprocess() returns them, "
                f"got {images.dtype} {list(images.shape)}"
            )
        autocast, _ = autocast_for(self.precision, self.device)
        with autocast():
            z = self.network(images)
            return (average_over_flip(self.network, images, z) if self.flip else z).float()

    def preprocess(self, images: Images) -> torch.Tensor:
        """Images of any size -> uint8 [n, 3, resolution, resolution] on the CPU, by this model's own rule.

        images: a tensor [n, 3, H, W] or [3, H, W], uint8 or float (0..1, rounded to 8 bits); a PIL image; the
        path of an image file; or a list of such images, of any sizes. Files are read as conversion to a beton
        reads them: upright, 8-bit RGB. Raises UserError naming the image that cannot be read.
        """
        pixels_of, count = _as_pixels(images)
        parts = list(prepare(pixels_of, range(count), self.preprocessing, batch_size=256))
        size = self.preprocessing.resolution
        return torch.cat(parts) if parts else torch.empty(0, 3, size, size, dtype=torch.uint8, device="cpu")

    @torch.no_grad()
    def project(self, images: Images, batch_size: int = 256) -> torch.Tensor:
        """Images, as `preprocess` takes them -> z float32 [n, num_bits], whose signs are the codes.

        The result is on the encoder's device. Raises ValueError for a batch_size below 1, UserError for an
        image that cannot be read, and where z is NaN or infinite.
        """
        pixels_of, count = _as_pixels(images)
        batches = prepare(pixels_of, range(count), self.preprocessing, batch_size=batch_size)
        with evaluating(self.network):
            parts = list(map(lambda batch: self(batch.to(self.device, non_blocking=True)), batches))
        if not parts:
            return torch.empty(0, self.num_bits, dtype=torch.float32, device=self.device)
        z = torch.cat(parts)
        check_finite(non_finite(z).cpu().numpy())
        return z

    def encode(self, images: Images, batch_size: int = 256) -> torch.Tensor:
        """Images, as `preprocess` takes them -> packed codes uint8 [n, ceil(num_bits / 8)] (see llc.codes).

        They are the codes that the trainer's evaluation computes from the same pixels. If a value of z is
        within float rounding of 0, its bit may differ in another batch or on another device. The result is on
        the encoder's device. Raises as `project` does.
        """
        return pack_bits(self.project(images, batch_size))

    def classify(
        self,
        images: Images,
        decode: str = "mhd",
        k: int = 5,
        batch_size: int = 256,
        *,
        min_probability: float | None = None,
    ) -> Classes:
        """The k best classes of each image, or all of them if there are fewer.

        decode: the name of a decoder in llc.evaluation.decoders.DECODERS: "mhd", the nearest class codes by
        Hamming distance, ties to the lowest class; "ed", the class whose code equals the image's, or none
        (one answer, whatever k is); "class", the highest class logits; "posterior", the most probable classes
        given the image's code, from the train set's codes; or one that was registered from outside.
        min_probability: images whose best class has a lower probability get no class (-1); for decoders whose
        scores are probabilities, as those of posterior are.

        Raises as `project` does, ValueError for an unknown decoder, a k below 1 and a min_probability that is
        none or does not fit the decoder, and UserError if the model has no codebook, or if the decoder has
        not been fitted to this model.
        """
        one_of("decode", decode, DECODERS)
        k = whole_number("k", k, 1)
        if min_probability is not None:
            fraction("min_probability", min_probability)
            if not DECODERS[decode].gives_probabilities:
                raise ValueError(f"min_probability: decode={decode!r} gives no probabilities")
        if not len(self.codebook):
            raise UserError(
                "this model holds no codebook: load it with one, llc.load(PATH, codebook=FILE.npy)"
            )
        if decode not in usable(self.learnt):
            raise UserError(
                f"decode={decode!r}: this decoder learns from the train set's codes, and has not been fitted "
                f"to this model; python -m llc.evaluate MODEL --fit_decoder=TRAIN.beton does that"
            )
        z = self.project(images, batch_size)
        # Without autocast, because a decoder's scores are float32 wherever this is called.
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            rank = bind(decode, self.network, self.learnt)
            labels, scores = rank(z, min(k, len(self.codebook)))
        if min_probability is not None:
            labels = labels.where(scores[:, :1] >= min_probability, -1)
        names = [
            [self.class_names[label] if label >= 0 else None for label in row] for row in labels.tolist()
        ]
        return Classes(labels, names, scores)

    def save(self, path: StrPath) -> None:
        """Writes everything into one file that `llc.load` takes.

        The file is safetensors; its metadata holds, as JSON, what is not a tensor.

        >>> import llc, tempfile
        >>> from llc.data.preprocessing import Preprocessing
        >>> from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network
        >>> preprocessing = Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)
        >>> encoder = llc.Encoder(Network("resnet18", 12, 3, width=8), preprocessing, ["cat", "dog", "eel"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encoder.save(f"{folder}/pets.safetensors")
        ...     llc.load(f"{folder}/pets.safetensors").class_names
        ('cat', 'dog', 'eel')
        """
        description = {
            "format": FORMAT,
            "network": self.network.options,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "flip": self.flip,
            "precision": self.precision,
            "class_names": self.class_names if self.named else None,
            "stage": self.stage,
            "recipe": self.recipe,
            "fitted": self.fitted and self.fitted.description(),
        }
        tensors = checkpoints.plain(self.network.state_dict())
        if self.fitted is not None:
            arrays = self.fitted.arrays()
            tensors |= {checkpoints.FITTED + name: torch.from_numpy(array) for name, array in arrays.items()}
        data = safetensors.torch.save(tensors, {"llc": json.dumps(description)})
        atomic_write(path, lambda file: file.write(data))


def non_finite(z: torch.Tensor) -> torch.Tensor:
    """Which images have a NaN or infinite value in z [n, num_bits]: bool [n]."""
    return ~torch.isfinite(z).all(1)


def check_finite(broken: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Raises UserError if any image of bool [n] has NaN or infinite values, whose signs mean nothing."""
    found = np.flatnonzero(broken)
    if len(found):
        first = f"image {found[0]}" if names is None else printable(names[found[0]])
        raise UserError(f"z is {describe_non_finite(len(found), len(broken), f' (the first: {first})')}")


def describe_non_finite(num_broken: int, num_images: int, first: str = "") -> str:
    """What to say where z of some images is NaN or infinite, after "z is"."""
    return (
        f"NaN or infinite for {num_broken:,} of {num_images:,} images, so they have no codes{first}: the "
        "model's weights or its batch norm statistics are damaged or too large; where it computes in bf16 or "
        "fp16, precision = fp32 may help"
    )


def _as_pixels(images: Images) -> tuple[Callable[[int], np.ndarray], int]:
    """(function from a position to uint8 [H, W, 3], number of images).

    Raises UserError for something that is not an image.
    """
    if (
        isinstance(images, (str, os.PathLike, Image.Image))
        or isinstance(images, torch.Tensor)
        and images.ndim == 3
    ):
        images = [images]
    if isinstance(images, torch.Tensor):
        ready = _as_uint8(images, "images")
        return lambda i: ready[i].permute(1, 2, 0).numpy(), len(ready)
    if not isinstance(images, Sequence) or isinstance(images, bytes):
        raise UserError(
            "images: expected a tensor [n, 3, H, W], an image, a path, or a list of them, "
            f"got a {type(images).__name__}"
        )

    several = images

    def pixels_of(i: int) -> np.ndarray:
        image = several[i]
        if isinstance(image, torch.Tensor):
            return _as_uint8(image[None], f"images[{i}]")[0].permute(1, 2, 0).numpy()
        if isinstance(image, Image.Image):
            return load_rgb(image, f"images[{i}]")
        if isinstance(image, (str, os.PathLike)):
            return load_rgb(image)
        raise UserError(
            f"images[{i}]: expected a tensor, a PIL image or a path, got a {type(image).__name__}"
        )

    return pixels_of, len(several)


def _as_uint8(images: torch.Tensor, name: str) -> torch.Tensor:
    """Checks a tensor of images -> uint8 [n, 3, H, W] on the CPU."""
    if (
        images.ndim != 4
        or images.shape[1] != 3
        or 0 in images.shape[2:]
        or not (images.dtype == torch.uint8 or images.is_floating_point())
    ):
        raise UserError(
            f"{name}: expected RGB images, uint8 or float [n, 3, H, W], "
            f"got {images.dtype} {list(images.shape)}"
        )
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images
    if not bool(((images >= 0) & (images <= 1)).all()):  # NaN is in neither
        raise UserError(
            f"{name}: floats are expected within 0..1, found {images.min():g} to {images.max():g}; give "
            "images before they are normalised, and values of 0..255 as uint8"
        )
    return (images.float() * 255).round().to(torch.uint8)


# ------------------------------------------------------------------------------------------------ from files


def load(
    path: StrPath,
    codebook: StrPath | None = None,
    *,
    checkpoint: str | None = None,
    class_names: Sequence[str] | None = None,
    decoder: StrPath | None = None,
    num_bits: int | None = None,
) -> Encoder:
    """An Encoder, on the CPU, from a run folder, a saved encoder, the Hub, or the original LLC code's files.

    path: a run folder; a file that `Encoder.save` wrote; a folder that `llc.export --to=hub` wrote, or the
        address of one on the Hugging Face Hub, hf://OWNER/NAME or hf://OWNER/NAME@REVISION, which needs
        huggingface_hub, and a network the first time; or the original's model_best.pth
    codebook: `.npy` of real values [num_classes, num_bits], in place of the model's own. The original's
        models of instance codes have none; without it they can encode but not classify.
    checkpoint: of a run folder, which of checkpoints/ (default: "instance", else "joint" or "codebook"). The
        codebook stage's network is the best for class codes, the instance stage's for Hamming distance, and
        the joint stage's is for both.
    class_names: in label order; the original's files have none
    decoder: an .npz of decoders that were fitted to this network (python -m llc.evaluate --fit_decoder);
        default: decoder.npz of a run folder, what a saved encoder holds, decoder.npz of another folder, or
        PATH.decoder.npz beside a file, if they are this network's
    num_bits: keep only this many bits of each code, the first ones (default: all). They are as good as codes
        of this length if the run trained them (codes.nested). A decoder must have been fitted to them.

    All files are read as data: none can run code. Raises UserError naming the file, and the keys that do not
    fit.

    >>> import llc
    >>> llc.load("no/such/run")
    Traceback (most recent call last):
    ...
    llc.errors.UserError: no/such/run: neither a run folder nor a file
    """
    path = hub.find(path)  # which downloads an address
    if runs.is_folder(path):
        arguments = _from_run(path, checkpoint)
    elif not path.exists():
        raise UserError(f"{path}: neither a run folder nor a file")
    elif checkpoint is not None:
        kind = "one model" if path.is_dir() else "a file"
        raise UserError(f"checkpoint = {checkpoint!r}: {path} is {kind}; only a run folder holds several")
    elif path.is_dir():  # as the Hugging Face Hub holds it
        arguments = _from_saved(hub.model_file(path))
        hub.check_digest(path, checkpoints.digest(arguments["network"]))
    else:
        arguments = _from_saved(path) if checkpoints.is_safetensors(path) else _from_original(path)
    network = arguments["network"]
    if codebook is not None:
        network.codebook = nn.Parameter(load_codebook(codebook, network.options["num_bits"]))
        network.options["num_classes"] = len(network.codebook)
    if class_names is not None:
        arguments["class_names"] = class_names
    encoder = Encoder(**arguments)
    if num_bits is not None:
        encoder = encoder.first_bits(num_bits)
    if decoder is not None:
        encoder.fitted = fitting.read(decoder, encoder.network)
    elif not encoder.fitted:
        encoder.fitted = fitting.find(decoder_path(path), encoder.network)
    return encoder


def decoder_path(path: StrPath) -> Path:
    """Where decoders fitted to a model are kept, unless another file is named: in or beside the model's."""
    path = Path(path)
    return path / fitting.FILE_NAME if path.is_dir() else path.with_name(f"{path.name}.{fitting.FILE_NAME}")


def _from_run(folder: Path, checkpoint: str | None) -> dict[str, Any]:
    """Encoder's arguments. The preprocessing is that of the run's validation."""
    config, found = runs.read_config(folder), runs.checkpoints(folder)
    if checkpoint is None:
        checkpoint = next(iter(runs.finished_stages(folder)[::-1]), config.stages[0])
    if checkpoint not in found:
        raise UserError(
            f"{folder} has no checkpoint {checkpoint!r}; it has {', '.join(found) or 'none'} "
            "(a stage's is written at its end)"
        )
    state = checkpoints.read_state(found[checkpoint])
    if state.get("codebook") is None or state["codebook"].ndim != 2:
        raise UserError(f"{found[checkpoint]}: holds no codebook [num_classes, num_bits]")
    stage = checkpoints.read_stage(found[checkpoint]) if checkpoint == "model_best" else None
    if stage not in stages.STAGES:
        stage = stages.stage_of_checkpoint(checkpoint, config.stages)
    options = config.network_options(len(state["codebook"]), stage)
    network = checkpoints.build(options, state, found[checkpoint])
    validation = config.validation
    preprocessing = Preprocessing(
        validation.resolution, validation.crop_ratio, "area", IMAGENET_MEAN, IMAGENET_STD
    )
    return {
        "network": network,
        "preprocessing": preprocessing,
        "class_names": runs.read_class_names(folder),
        "flip": validation.lr_tta,
        "precision": config.training.precision,
        "stage": stage,
        "recipe": config.as_dict(),
    }


def _from_saved(path: Path) -> dict[str, Any]:
    """Encoder's arguments from a file of Encoder.save."""
    state, metadata = checkpoints.read_safetensors(path)
    try:
        content = json.loads(metadata.get("llc", "null"))
        if not isinstance(content, dict):
            raise UserError(
                f"{path}: not an encoder saved by llc, only tensors ({', '.join(list(state)[:4])}, ...)"
            )
        if content["format"] != FORMAT:
            raise UserError(
                f"{path}: its format is {content['format']!r}; this version of llc reads {FORMAT}"
            )
        if not isinstance(content["recipe"], dict):
            raise UserError(f"{path}: its recipe is not a table")
        arrays = {
            name.removeprefix(checkpoints.FITTED): state.pop(name).numpy()
            for name in list(state)
            if name.startswith(checkpoints.FITTED)
        }
        network = checkpoints.build(content["network"], state, path)
        return {
            "network": network,
            "fitted": fitting.restore(content["fitted"], arrays, network, path) if arrays else None,
            "preprocessing": Preprocessing(**content["preprocessing"]),
            "class_names": content["class_names"] and runs.check_class_names(content["class_names"], path),
            "flip": content["flip"],
            "precision": content["precision"],
            "stage": content["stage"],
            "recipe": content["recipe"],
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not an encoder saved by llc: {type(error).__name__}: {error}") from error


def _from_original(path: Path) -> dict[str, Any]:
    """Encoder's arguments from the original code's model_best.pth."""
    state = checkpoints.read_state(path)
    if checkpoints.is_ours(state):
        raise UserError(
            f"{path}: a checkpoint of a run, which does not say how the network is built: load the run "
            "folder, with checkpoint= (or --checkpoint=) for one of its checkpoints"
        )
    if not checkpoints.is_original(state):
        raise UserError(
            f"{path}: holds no projection to codes (fc_lr.weight): a dense model cannot make codes, "
            f"but it can start a run (model.weights={path})"
        )
    state = checkpoints.from_original(state, path)
    return {
        "network": checkpoints.build(checkpoints.options_of(state, path), state, path),
        "preprocessing": OF_ORIGINAL,
        "stage": "codebook" if "codebook" in state else "instance",
    }
