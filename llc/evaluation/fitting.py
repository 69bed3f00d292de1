"""What decoders learnt from the codes of a train set: made, kept in a file, and given back to its network."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llc import checkpoints
from llc.errors import UserError
from llc.evaluation.decoders import fitted_decoders
from llc.files import atomic_write, stand_in
from llc.network import Network

FORMAT = 1
FILE_NAME = "decoder.npz"  # in a run folder


class OtherNetwork(UserError):
    """What was learnt belongs to another network."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What the decoders that learn (decoders.FittedDecoder) learnt of one network.

    learnt: {decoder: what it learnt}; network: checkpoints.digest of the network that made the codes; source:
    the train images, as they were named; images: their identity, "" if unknown; num_images: how many there
    were.
    """

    learnt: Mapping[str, Any]
    network: str
    source: str
    images: str
    num_images: int

    def description(self) -> dict[str, Any]:
        """All but the arrays, in plain values."""
        own = {key: getattr(self, key) for key in ("network", "source", "images", "num_images")}
        return {"format": FORMAT, **own}

    def arrays(self) -> dict[str, np.ndarray]:
        """{DECODER.NAME: numpy array}."""
        return {
            f"{decoder}.{name}": array
            for decoder, learnt in self.learnt.items()
            for name, array in learnt.arrays.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz, whole or not at all. Raises UserError."""
        arrays: dict[str, Any] = {"description": np.array(json.dumps(self.description())), **self.arrays()}
        atomic_write(path, lambda file: np.savez(file, **arrays))


def fit(network: Network, codes: np.ndarray, labels: np.ndarray, *, source: str, images: str = "") -> Fitted:
    """Fits every registered decoder that learns.

    codes uint8 [n, code_size], labels int64 [n]: of the train images, as `predict.encode_all` makes them.
    Raises UserError if there are none.
    """
    if not len(codes):
        raise UserError(f"{source}: no image has a label and a code, so no decoder can be fitted")
    return Fitted(
        {name: decoder.fit(codes, labels, network) for name, decoder in fitted_decoders().items()},
        checkpoints.digest(network),
        source,
        images,
        len(codes),
    )


def restore(
    description: Any, arrays: Mapping[str, np.ndarray], network: Network, path: str | os.PathLike[str]
) -> Fitted:
    """Fitted from `Fitted.description` and `Fitted.arrays`, which a file may hold in any form.

    Decoders that are not registered are left out. Raises UserError if the arrays are something else, and
    OtherNetwork if they were learnt of another network.
    """
    try:
        if description["format"] != FORMAT:
            raise UserError(
                f"{path}: its format is {description['format']!r:.40}; this version of llc reads {FORMAT}"
            )
        own = {key: description[key] for key in ("network", "source", "images", "num_images")}
        if own["network"] != checkpoints.digest(network):
            raise OtherNetwork(
                f"{path}: this decoder was fitted to the codes of another network, or to another number of "
                "this one's bits; fit one to this network with python -m llc.evaluate MODEL "
                "--fit_decoder=TRAIN.beton"
            )
        if not all(isinstance(own[key], str) for key in ("network", "source", "images")):
            raise ValueError("its description does not hold texts")
        learnt = {}
        for name, decoder in fitted_decoders().items():
            of_decoder = {
                key.removeprefix(f"{name}."): array
                for key, array in arrays.items()
                if key.startswith(f"{name}.")
            }
            if of_decoder:
                learnt[name] = decoder.restore(of_decoder, network)
        return Fitted(learnt, num_images=int(own.pop("num_images")), **own)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a decoder as llc writes: {error}") from error


def read(path: str | os.PathLike[str], network: Network) -> Fitted:
    """Fitted from a file of `Fitted.save`.

    Raises UserError if it is something else, and OtherNetwork if it was made for another network.
    """
    path = Path(path)
    return restore(*_read_arrays(path), network, path)


def find(path: str | os.PathLike[str], network: Network) -> Fitted | None:
    """As `read`, but None where there is no file, or one for another network.

    So it is for a network without class codes, such as the original's of image codes alone: the file may have
    been made with a codebook that this network was not given.
    """
    path = Path(path)
    if not path.exists() or not len(network.codebook):
        return None
    try:
        return read(path, network)
    except OtherNetwork:
        return None


def _read_arrays(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """(description, arrays). What is allocated is no larger than the file."""
    try:
        something_else = stand_in(path)
        if something_else:
            raise UserError(f"{path}: {something_else}")
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its arrays are compressed")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return json.loads(str(arrays.pop("description"))), arrays
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        KeyError,
        ValueError,
        EOFError,
        TypeError,
        MemoryError,
        RuntimeError,  # a member that is marked as encrypted, or as a patch
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{path}: not a decoder as llc writes: {error}") from error
