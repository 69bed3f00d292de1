"""Checks of the arguments of library functions: ValueErrors that name the argument and what is expected.

Commands check their flags before (llc.options). These checks are for calls from Python.
"""

import numbers
import operator
from collections.abc import Collection
from typing import Any

import numpy as np
import torch


def whole_number(name: str, value: Any, minimum: int, maximum: int | None = None, what: str = "") -> int:
    """`value` as an int between `minimum` and `maximum` (None: no limit); a bool is no whole number.

    what: says in the message what the maximum is. Raises ValueError.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name}: expected an integer, got {value!r:.80}")
    if number < minimum or maximum is not None and number > maximum:
        limits = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
        raise ValueError(f"{name}: expected {limits}{f' ({what})' if what else ''}, got {number}")
    return number


def worker_count(name: str, value: Any) -> int:
    """A number of threads or processes: 1 or more, or -1 for one per core. Raises ValueError."""
    if whole_number(name, value, minimum=-1) == 0:
        raise ValueError(f"{name}: expected 1 or more, or -1 for one per core, got 0")
    return operator.index(value)


def fraction(name: str, value: Any) -> float:
    """`value`, if it is a number above 0 and at most 1. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= 1:
        raise ValueError(f"{name}: expected a number above 0 and at most 1, got {value!r:.80}")
    return float(value)


def class_labels(name: str, labels: Any, n: int, num_classes: int | None = None) -> np.ndarray:
    """`labels`, one for each of n codes or images, as int64 [n] on the CPU.

    They are whole numbers, in an array, a tensor or a list, of 0 or more and below num_classes (None: no
    limit). Raises ValueError.
    """
    labels = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected {n} integers, one for each code, got {labels.dtype} {list(labels.shape)}"
        )
    highest = np.iinfo(np.int64).max if num_classes is None else num_classes - 1
    if n and (labels.min() < 0 or labels.max() > highest):
        limits = "0 or more" if num_classes is None else f"0 to {highest}"
        raise ValueError(f"{name}: expected {limits}, found {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """`value`, if it is one of the texts `choices`. Raises ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r:.80}")
    return value
