"""What a report says: the data that is measured and read first, and drawn and written out afterwards.

llc.report.reading makes a Run, llc.report.measuring what is Measured on images, llc.report.figures draws
both, and llc.report.page writes the HTML.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llc.evaluation.taxonomy import Tree
from llc.recipe import Config


@dataclasses.dataclass(frozen=True)
class Difference:
    """A key of the recipe whose value is not that of the recipe that it is compared with."""

    key: str
    value: str
    base: str


@dataclasses.dataclass(frozen=True)
class Health:
    """How well the class codes use their bits.

    counts int64 [num_bits + 1]: pairs of classes at each Hamming distance. shared: groups of two or more
    classes with the same code, as lists of labels. balance float64 [num_bits]: the fraction of classes whose
    bit is 1. nearest int32 [C]: the distance of each class's nearest other class.
    """

    counts: np.ndarray
    shared: Sequence[Sequence[int]]
    balance: np.ndarray
    nearest: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds.

    epochs: the lines of log.jsonl, one for each epoch. results: {"STAGE/METRIC": (final, best epoch's)}, NaN
    where there is none. stages: the finished ones, in the order of training. class_codes uint8 [C, code_size]
    and class_names in label order. base: the name of the recipe from which the differences are. val_data: a
    digest of the val images, "" if it is unknown; num_val: how many they are, 0 if unknown.
    without_checkpoint: the finished stages whose network is missing. notes: what the reader must know of
    files that are missing or cut off.
    """

    path: Path
    config: Config
    class_names: Sequence[str]
    class_codes: np.ndarray
    num_bits: int
    epochs: Sequence[Mapping[str, Any]]
    results: Mapping[str, tuple[float, float]]
    stages: Sequence[str]
    base: str
    differences: Sequence[Difference]
    health: Health
    tree: Tree | None  # None for one class
    origin: Mapping[
        str, str
    ]  # {what: text}: versions, data, checkpoint: how the run and the report were made
    val_data: str = ""
    num_val: int = 0
    without_checkpoint: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.path.name


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Images of the class `label` that are decoded as the class `decoded`: how many, and of how many."""

    label: int
    decoded: int
    count: int
    of: int
    distance: int  # Hamming distance of the two class codes


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Bins of the decoder's probability of its first class.

    edges float64 [B + 1]; counts int64 [B]; confidence and accuracy float64 [B], NaN in empty bins; ece: the
    expected calibration error.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


@dataclasses.dataclass(frozen=True)
class Neighbour:
    image: int  # position in the val set
    label: int
    distance: int  # bits


@dataclasses.dataclass(frozen=True)
class Query:
    """An image of the val set, the class that it is decoded as, and its nearest other images by code."""

    image: int
    label: int
    decoded: int
    neighbours: Sequence[Neighbour]


@dataclasses.dataclass(frozen=True)
class Bit:
    """ones: the labels whose class code has this bit. highest, lowest: positions of the images with its
    highest and lowest z, the most extreme first. balance: the fraction of images whose bit is 1."""

    ones: Sequence[int]
    highest: Sequence[int]
    lowest: Sequence[int]
    balance: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the run's last network makes of labelled images, which are the val images unless others are named.

    decoder: the one that classes, confusions and queries are decoded by. images: {position: (JPEG or WebP,
    its media type)} of all images named by queries and bits. pairs float64 [num_bits + 1, 2]: of pairs of val
    images at each distance, the fraction among pairs of one class, and among pairs of two; zeros where there
    are no such pairs.
    """

    title: str
    stage: str
    decoder: str
    num_images: int
    accuracy: Mapping[str, float]
    num_codes: int  # different codes among the images
    confusions: Sequence[Confusion]  # the most frequent first
    reliability: Reliability | None  # of the posterior decoder
    queries: Sequence[Query]
    bits: Sequence[Bit]
    pairs: np.ndarray
    images: Mapping[int, tuple[bytes, str]]
    called: str = "val images"  # what the page calls them, in the plural


@dataclasses.dataclass(frozen=True)
class Detection:
    """Out-of-distribution scores, from the file of llc.evaluate --ood.scores.

    inside, outside float64: a score of known and of other images; high means known.
    """

    dataset: str
    score: str
    inside: np.ndarray
    outside: np.ndarray
    auroc: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve over k or recall, from the file of llc.evaluate --retrieval.csv."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Report:
    """A run's part of a report.

    why_not_measured: for the reader, if `measured` is None. notes: what the reader must know of files that
    were given.
    """

    run: Run
    measured: Measured | None = None
    why_not_measured: str = ""
    detections: Sequence[Detection] = ()
    curves: Sequence[Curve] = ()
    notes: Sequence[str] = ()
