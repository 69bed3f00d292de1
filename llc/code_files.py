"""Files of packed codes: .npz as `python -m llc.encode` writes, or made from codes of any other encoder."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llc.codes import code_size
from llc.errors import UserError
from llc.files import atomic_write, stand_in

NETWORK = "network"  # the array with llc.checkpoints.digest of the network, in files of llc.encode


def read_codes(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file of codes, by name: codes and num_bits, and others that it may have.

    `python -m llc.encode` says what these are. Raises UserError naming the file if it is of another kind, or
    if its arrays do not belong together.
    """
    not_codes = f"{path}: not a file of codes as python -m llc.encode writes"
    try:
        something_else = stand_in(path)
        if something_else:
            raise UserError(f"{path}: {something_else}")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    # TypeError and AttributeError: a .npy of one array cannot be used in a `with` statement. RuntimeError: a
    # member is marked as encrypted, or as a patch.
    except (
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        why = "it holds Python objects, or is damaged" if "pickle" in str(error) else error
        raise UserError(f"{not_codes}: {why}") from error
    codes, num_bits = arrays.get("codes"), arrays.get("num_bits")
    if codes is None or num_bits is None:
        raise UserError(f"{not_codes}; it holds {', '.join(arrays) or 'nothing'}")
    if num_bits.shape != () or num_bits.dtype.kind not in "iu":
        raise UserError(
            f"{path}: num_bits is {num_bits.dtype} {list(num_bits.shape)}; expected one whole number, "
            "such as numpy.array(16)"
        )
    if (
        codes.dtype != np.uint8
        or codes.ndim != 2
        or num_bits < 1
        or codes.shape[1] != code_size(int(num_bits))
        or not len(codes)
    ):
        raise UserError(
            f"{path}: codes are {codes.dtype} {list(codes.shape)}; expected uint8 [n, ceil({num_bits} / 8)]"
        )
    _check_padding(path, codes, int(num_bits))
    _check_labels(path, arrays)
    network = arrays.get(NETWORK)
    if network is not None and (network.shape != () or network.dtype.kind != "U"):
        raise UserError(
            f"{path}: network is {network.dtype} {list(network.shape)}; expected one text, which tells the "
            "network of the codes from others"
        )
    return arrays


def check_same_network(one: str, network: str, other: str, other_network: str) -> None:
    """Raises UserError if `one` and `other` say that their codes are of different networks; "": unknown."""
    if network and other_network and network != other_network:
        raise UserError(
            f"{one} and {other} hold codes of different networks, whose distances mean nothing; encode both "
            "with one model"
        )


def _check_padding(path, codes, num_bits):
    """Bits that are no code's would count in every distance."""
    padding = (1 << (8 * codes.shape[1] - num_bits)) - 1
    broken = np.flatnonzero(codes[:, -1] & padding)
    if len(broken):
        raise UserError(
            f"{path}: the padding bits after the {num_bits} bits of a code must be 0, but those of "
            f"{len(broken):,} codes are not (the first: row {broken[0]}); make codes with llc.pack_bits or "
            "numpy.packbits"
        )


def _check_labels(path, arrays):
    n, labels = len(arrays["codes"]), arrays.get("labels")
    if labels is None:
        return
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; expected whole numbers "
            f"[{n}], one for each code"
        )
    if labels.min() < -1 or labels.max() > np.iinfo(np.int64).max:
        raise UserError(
            f"{path}: labels go from {labels.min()} to {labels.max()}; expected 0 and "
            "more, or -1 for no class"
        )
    names = arrays.get("class_names")
    if names is None:
        return
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(
            f"{path}: class_names are {names.dtype} {list(names.shape)}; expected texts [num_classes]"
        )
    if names.dtype.kind == "S":
        try:
            arrays["class_names"] = names = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: class_names are bytes that are not UTF-8: {error}") from error
    if labels.max() >= len(names):
        raise UserError(
            f"{path}: labels go from {labels.min()} to {labels.max()}, but there are {len(names)} class_names"
        )
    if len(set(names.tolist())) < len(names):
        raise UserError(f"{path}: class_names holds a name twice")


def write_arrays(path: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as .npz, whole or not at all. Raises UserError."""
    # Given a name instead of a file, numpy would add .npz to it.
    atomic_write(path, lambda file: np.savez(file, **arrays))
