"""What is evaluated, a model or codes without one, and how images and files of codes become codes for it."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llc import checkpoints
from llc.code_files import NETWORK, check_same_network, read_codes
from llc.codes import pack_bits, unpack_bits
from llc.data.batches import Images
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encoder import Encoder, describe_non_finite
from llc.errors import UserError
from llc.evaluate.origin import Origin
from llc.evaluation import ood
from llc.evaluation.predict import encode_images
from llc.network import Network
from llc.precision import autocast_for


@dataclasses.dataclass(frozen=True)
class CodeSet:
    """Codes of n images: uint8 [n, code_size], labels int64 [n] by class_names, -1: no class.

    class_names is empty if they are unknown; title is what messages and reports call the set. scores: those
    of llc.evaluation.ood, if they were computed with the codes; files: the images' names, if they are known;
    network: llc.checkpoints.digest of the network, if a file says it.
    """

    title: str
    num_bits: int
    codes: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    scores: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    network: str = ""

    def __len__(self) -> int:
        return len(self.codes)

    def check_labelled(self, key: str) -> None:
        """Raises UserError unless each image has a class. key: the flag that names the set."""
        count = int((self.labels < 0).sum())
        if count:
            raise UserError(
                f"{key} = {printable(self.title)}: {count:,} of {len(self):,} images have no label, and each "
                "needs one: give one folder of images per class, a table with --label_column=NAME, a beton, "
                "or a .npz with labels"
            )

    def relabelled(self, class_names: tuple[str, ...], key: str) -> "CodeSet":
        """The same codes with labels by class_names, which must hold all of this set's. Raises UserError."""
        if not self.class_names or not class_names or self.class_names == class_names:
            return self
        position = {name: label for label, name in enumerate(class_names)}
        strange = [name for name in self.class_names if name not in position]
        if strange:
            raise UserError(
                f"{key} = {printable(self.title)}: {len(strange)} of its {len(self.class_names)} classes are "
                f"not among the {len(class_names)} others, such as {printable(strange[0])}"
            )
        labels = np.array([*(position[name] for name in self.class_names), -1])[self.labels]
        return dataclasses.replace(self, labels=labels, class_names=class_names)


def are_equal(one: CodeSet, other: CodeSet) -> bool:
    """Whether two sets hold the same codes and labels in the same order, as those of the same images do.

    Where each image has just its class's code, those of other images can be equal, too; then names tell.
    """
    if one.files and other.files and one.files != other.files:
        return False
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("codes", "labels"))


def notes_of(found: Images | CodeSet | None) -> tuple[str, ...]:
    """What a source says about its images, such as which folder it took; betons say nothing."""
    return found.notes if isinstance(found, Images) and found.source is not None else ()


def read_code_set(path: str | Path, key: str, num_bits: int | None = None) -> CodeSet:
    """A CodeSet from a .npz. Raises UserError, also unless its codes have num_bits bits (None: any number).

    key: the flag that names the file.
    """
    arrays = read_codes(path)
    if num_bits is not None and int(arrays["num_bits"]) != num_bits:
        raise UserError(
            f"{key} = {printable(str(path))}: its codes have {int(arrays['num_bits'])} bits, and those that "
            f"they are compared with have {num_bits}"
        )
    labels = arrays.get("labels")
    if labels is None:
        labels = np.full(len(arrays["codes"]), -1)
    names = tuple(map(str, arrays["class_names"])) if "class_names" in arrays else ()
    files = tuple(map(str, arrays["files"])) if "files" in arrays else ()
    num_bits, codes, network = int(arrays["num_bits"]), arrays["codes"], str(arrays.get(NETWORK, ""))
    return CodeSet(str(path), num_bits, codes, labels.astype(np.int64), names, files=files, network=network)


@dataclasses.dataclass
class Subject:
    """A model whose image codes are put to use, or codes without a model.

    class_codes: uint8 [num_classes, code_size], None if unknown. learnt: {decoder: what it learnt}. network:
    None for codes alone, of which of_codes is the digest. opened(path): the images at `path`, with classes
    of their own.
    """

    title: str
    num_bits: int
    class_codes: np.ndarray | None = None
    learnt: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: Network | None = None
    of_codes: str = ""
    processes: Processes = dataclasses.field(default_factory=Processes)
    flip: bool = False
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    opened: Callable[[str], Images] | None = None

    @classmethod
    def of(
        cls, title: str, encoder: Encoder, processes: Processes, opened: Callable[[str], Images]
    ) -> "Subject":
        """A model, which has learnt nothing yet. Raises UserError if it makes no codes."""
        encoder.check_codes()
        return cls(
            title,
            encoder.num_bits,
            pack_bits(encoder.network.codebook.detach().cpu()).numpy(),
            network=encoder.network,
            processes=processes,
            flip=encoder.flip,
            autocast=autocast_for(encoder.precision, processes.device)[0],
            opened=opened,
        )

    def digest(self) -> str:
        """What tells the network of the codes from others, "" if it is unknown."""
        return self.of_codes if self.network is None else checkpoints.digest(self.network)

    def origin(self) -> Origin:
        """What files of figures say that they are of."""
        return Origin.of(self.title, self.digest())

    def find(self, path: str, key: str) -> Images | CodeSet:
        """Opens what lies at `path`, the value of the flag `key`: images, or codes. Raises UserError."""
        if path.endswith(".npz"):
            found = read_code_set(path, key, self.num_bits)
            check_same_network(printable(path), found.network, printable(self.title), self.digest())
            return found
        if self.opened is None:
            raise UserError(
                f"{key} = {printable(path)}: {printable(self.title)} holds codes and no model to encode "
                "images; give a .npz of codes"
            )
        return self.opened(path)

    def encode(self, images: Images, title: str) -> CodeSet:
        """The codes of images, in order; every process gets all of them. Raises UserError."""
        codes, labels, num_non_finite = encode_images(
            self.network, images.loader, self.processes, flip=self.flip, autocast=self.autocast
        )
        if num_non_finite:
            raise UserError(f"{printable(title)}: z is {describe_non_finite(num_non_finite, len(codes))}")
        return CodeSet(title, self.num_bits, codes, labels, tuple(images.class_names))

    def scores(self, found: Images | CodeSet, title: str) -> dict[str, np.ndarray]:
        """{name: float64 [n]} of llc.evaluation.ood, those that can be computed. Raises UserError."""
        if isinstance(found, CodeSet):
            return ood.from_codes(found.codes, self.class_codes, self.learnt.get("posterior"))
        scores, num_non_finite = ood.scores(
            self.network,
            found.loader,
            self.processes,
            flip=self.flip,
            autocast=self.autocast,
            learnt=self.learnt,
        )
        if num_non_finite:
            raise UserError(
                f"{printable(title)}: z is {describe_non_finite(num_non_finite, found.num_samples)}"
            )
        return scores


class CodesNetwork(torch.nn.Module):
    """Stands in for a network where there are only codes: it takes packed codes, and z is their bits as ±1.

    So decoders of codes can be fitted and measured as they are for a model. class_codes: uint8 [num_classes,
    code_size].
    """

    def __init__(self, class_codes: np.ndarray, num_bits: int) -> None:
        super().__init__()
        self.num_bits = num_bits
        self.codebook = torch.nn.Parameter(self(torch.from_numpy(class_codes)), requires_grad=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return 2 * unpack_bits(codes, self.num_bits).float() - 1
