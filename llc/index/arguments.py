"""Checks of what llc.Index is given: ValueErrors that name the argument and what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llc.codes import code_size

MAX_ID = (1 << 63) - 2  # so that the next free id is an int64, too


def as_codes(name: str, codes: Any, num_bits: int) -> np.ndarray:
    """Packed codes of num_bits bits as a contiguous array, uint8 [n, code_size]. Raises ValueError."""
    if isinstance(codes, torch.Tensor):
        codes = codes.cpu().numpy()
    size = code_size(num_bits)
    is_array = isinstance(codes, np.ndarray)
    if not is_array or codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != size:
        got = f"{codes.dtype} {list(codes.shape)}" if is_array else f"a {type(codes).__name__}"
        raise ValueError(
            f"{name}: expected packed codes uint8 [n, {size}], for {num_bits} bits, got {got}; "
            "llc.pack_bits makes them"
        )
    padding = (1 << 8 * size - num_bits) - 1
    if padding and len(codes) and (codes[:, -1] & padding).any():
        row = int(np.flatnonzero(codes[:, -1] & padding)[0])
        raise ValueError(
            f"{name}: the padding bits after the {num_bits} bits of a code must be 0, but those of row {row} "
            "are not; make codes with llc.pack_bits or numpy.packbits"
        )
    return codes if codes.flags.c_contiguous else np.ascontiguousarray(codes)


def as_ids(ids: Any, name: str = "ids") -> np.ndarray:
    """Ids as int64 [n]. Raises ValueError unless they are integers from 0 to MAX_ID."""
    array = ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{name}: expected integers [n], got {array.dtype} {list(array.shape)}")
    if array.size and (array.min() < 0 or array.max() > MAX_ID):
        raise ValueError(f"{name}: expected 0 to {MAX_ID}, found {array.min()} to {array.max()}")
    return array.astype(np.int64)


def as_column(name: str, values: Any, n: int) -> np.ndarray | None:
    """Integers, one for each of n codes, as int64 [n]; None stays None. Raises ValueError."""
    if values is None:
        return None
    array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.shape != (n,) or array.dtype.kind not in "iu" and array.size:
        raise ValueError(
            f"{name}: expected {n} integers, one for each code, got {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)


def as_labels(
    labels: Any, class_names: Sequence[str] | None, n: int, known: Sequence[str], max_label: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels of n codes as numbers of an index's classes, int32 [n], and its class names with the new ones.

    labels and class_names: as Index.add takes them; known: the class names of the index; max_label: the
    highest label in it. Raises ValueError.
    """
    values = as_column("labels", labels, n)
    if values is None:
        if class_names is not None:
            raise ValueError("class_names: they name labels, and there are none; give labels= as well")
        return None, tuple(known)
    limit = len(class_names) if class_names is not None else len(known) or 1 << 31
    if n and (values.min() < -1 or values.max() >= limit):
        raise ValueError(f"labels: expected -1 to {limit - 1}, found {values.min()} to {values.max()}")
    if class_names is None:
        return values.astype(np.int32), tuple(known)
    names = list(class_names)
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("class_names: expected texts, each once")
    if max_label >= len(known):
        raise ValueError(
            f"class_names: the index's labels, up to {max_label}, are numbers without names, and names "
            "cannot be mixed with them"
        )
    number = {name: label for label, name in enumerate(known)}
    fresh = [name for name in names if name not in number]
    number |= {name: len(known) + i for i, name in enumerate(fresh)}
    mapping = np.array([*(number[name] for name in names), -1], np.int32)
    return mapping[values], (*known, *fresh)


def as_bytes(name: str, text: Any) -> bytes:
    """A text as an index stores it. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError(f"{name}: expected texts, got {text!r:.80}")
    return text.encode("utf-8", "surrogateescape")
