"""The manifest beside every beton, `OUT.beton.json`: what is in it, and what verifies it before it is opened.

It holds the class names in label order, counts, the writer's settings, the order of the images, which part of
the images this is, and what was left out. Verifying takes a fraction of a second for ImageNet, because it
reads the beton's tables, not its images.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np

from llc.data.beton import JPG, BetonError, read_tables
from llc.errors import UserError
from llc.files import atomic_write

FORMAT = 1
_MAX_BYTES = 1 << 28  # the largest manifest that is read; ImageNet's has 60 kB
_NUM_SPOT_CHECKS = 64


class ManifestError(UserError):
    """A manifest that is missing or broken, or does not fit its beton."""


@dataclass(frozen=True)
class Skipped:
    """An image that was left out: its name in its source, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What a beton holds. Its values are checked when it is made."""

    class_names: tuple  # str, in label order
    class_counts: tuple  # int, samples of each class
    num_samples: int
    file_size: int  # of the beton, bytes
    tables_sha256: str  # over its header, field descriptors, metadata and allocation table
    # the WriterConfig it was written with; empty if another program wrote it
    writer: Mapping = field(default_factory=dict)
    skipped: tuple = ()  # Skipped, ...
    samples_per_checksum: int = 256
    # an int for each block of that many samples (data_checksums); empty if the writer made none
    checksums: tuple = ()
    class_words: tuple = ()  # str, what each class is called in plain words, "" if unknown; or empty
    # how the images are ordered: "source", as in their source; {"shuffled": seed}; or "unknown"
    order: str | Mapping = "unknown"
    part: tuple | None = None  # (i, n): part i of n, counted from 1; None: the whole

    def __post_init__(self):
        if not self.class_names or not all(type(name) is str for name in self.class_names):
            raise ManifestError("class_names is not a list of names")
        repeated = [name for name, count in Counter(self.class_names).items() if count > 1]
        if repeated:
            raise ManifestError(f"class_names holds {repeated[0]!r} more than once")
        if len(self.class_counts) != len(self.class_names):
            raise ManifestError(
                f"{len(self.class_names)} class_names, but {len(self.class_counts)} class_counts"
            )
        if not all(type(count) is int and count >= 0 for count in self.class_counts):
            raise ManifestError("class_counts is not a list of counts")
        for name in ("num_samples", "file_size"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 1 << 62:
                raise ManifestError(f"{name} is {_short(value)}, not a number above 0")
        if sum(self.class_counts) != self.num_samples:
            raise ManifestError(
                f"num_samples is {self.num_samples}, but class_counts add up to"
                f" {_short(sum(self.class_counts))}"
            )
        digest = self.tables_sha256
        if type(digest) is not str or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ManifestError(f"tables_sha256 is {_short(digest)}, not 64 hexadecimal digits")
        if not isinstance(self.writer, Mapping) or not all(
            type(key) is str and isinstance(value, (str, int, float, bool, type(None)))
            for key, value in self.writer.items()
        ):
            raise ManifestError("writer is not a table of settings")
        if not all(type(skipped.name) is str and type(skipped.reason) is str for skipped in self.skipped):
            raise ManifestError("skipped is not a list of names and reasons")
        if type(self.samples_per_checksum) is not int or self.samples_per_checksum < 1:
            raise ManifestError(
                f"samples_per_checksum is {_short(self.samples_per_checksum)}, not a number above 0"
            )
        if not all(type(checksum) is int and 0 <= checksum < 1 << 32 for checksum in self.checksums):
            raise ManifestError("checksums is not a list of numbers of 32 bits")
        num_blocks = -(-self.num_samples // self.samples_per_checksum)
        if len(self.checksums) not in (0, num_blocks):
            raise ManifestError(
                f"{len(self.checksums)} checksums, but {self.num_samples} samples make {_short(num_blocks)}"
                " blocks"
            )
        if not all(type(words) is str for words in self.class_words):
            raise ManifestError("class_words is not a list of texts")
        if len(self.class_words) not in (0, len(self.class_names)):
            raise ManifestError(
                f"{len(self.class_names)} class_names, but {len(self.class_words)} class_words"
            )
        shuffled = isinstance(self.order, Mapping) and set(self.order) == {"shuffled"}
        if not (shuffled and type(self.order["shuffled"]) is int or self.order in ("source", "unknown")):
            raise ManifestError(
                f'order is {_short(self.order)}, not "source", "unknown" or {{"shuffled": a seed}}'
            )
        if self.part is not None:
            is_pair = len(self.part) == 2 and all(type(number) is int for number in self.part)
            if not is_pair or not 1 <= self.part[0] <= self.part[1]:
                raise ManifestError(f"part is {_short(self.part)}, not [i, n] with 1 <= i <= n")

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def identity(self):
        """Text that is equal for copies of a beton, and differs for betons of other content.

        The tables alone do not tell, because those of raw images of one size with the same labels are equal.
        So it covers the checksums of the images, which betons of other programs lack.
        """
        text = repr((self.tables_sha256, self.part, self.checksums))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self):
        """The text of the manifest file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    def save(self, beton):
        """Writes the manifest of `beton`, completely or not at all. Raises UserError if that fails."""
        text = self.to_json().encode("ascii")
        atomic_write(manifest_path(beton), lambda file: file.write(text))


def data_checksums(crcs, samples_per_checksum=Manifest.samples_per_checksum):
    """CRC-32s of each sample's data, [n], in order -> those of blocks of samples, a tuple of ints.

    A block's CRC-32 is that of its samples' CRC-32s, as 4 bytes each, lowest byte first. So the samples' own
    can be computed in any order and by any process.
    """
    crcs = np.asarray(crcs, "<u4")
    return tuple(
        zlib.crc32(crcs[start : start + samples_per_checksum].tobytes())
        for start in range(0, len(crcs), samples_per_checksum)
    )


def manifest_path(beton):
    return Path(f"{os.fspath(beton)}.json")


def load_manifest(path):
    """The manifest at `path`, which is a beton or the manifest itself (it ends in .json).

    A beton without a manifest, as FFCV's writer leaves it, gets one made from its labels, with a warning: its
    classes are called "0", "1", ... up to its highest label. The beton is not verified; `verify` does that.
    Raises ManifestError, BetonError.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read(path)
    if manifest_path(path).exists():
        return _read(manifest_path(path))
    return _derive(path, read_tables(path))


def verify(beton):
    """Checks a beton against its manifest and for consistency, before it is used; returns the manifest.

    Truncated, unfinished, overwritten and foreign files are recognised, and any change in the tables. Of the
    image data only a few first bytes are read, so a changed pixel is not noticed (llc.data.verify reads all
    data). A beton without a manifest is only checked for consistency, with a warning. Raises ManifestError,
    BetonError.
    """
    return open_verified(beton)[0]


def open_verified(beton, spot_check=True):
    """`verify`, which also returns what it read: (Manifest, beton.Tables).

    spot_check: whether to read the first bytes of some images.
    """
    beton = Path(beton)
    if beton.suffix == ".json":
        raise ManifestError(f"{beton} is a manifest; give the beton {beton.with_suffix('')}")
    if beton.is_file() and manifest_path(beton).exists():
        manifest = _read(manifest_path(beton))
        file_size = beton.stat().st_size
        if file_size != manifest.file_size:  # checked first, because it explains why tables are missing
            what = "is cut off: " if file_size < manifest.file_size else "is not the file of its manifest: "
            raise BetonError(
                f"{beton} {what}{file_size:,} bytes, its manifest says {manifest.file_size:,}; copy or write"
                " it again"
            )
        tables = read_tables(beton)
        if tables.sha256 != manifest.tables_sha256:
            raise BetonError(
                f"{beton} does not belong to {manifest_path(beton).name}: its tables have another checksum."
                " One of the two is damaged "
                "or of another conversion; copy both or write again"
            )
        if (
            tables.num_labels > manifest.num_classes
            or tuple(tables.class_counts(manifest.num_classes)) != manifest.class_counts
        ):
            raise ManifestError(
                f"{manifest_path(beton)}: its class_counts are not those of the labels in {beton}; write it"
                " again"
            )
    else:
        tables = read_tables(beton)
        manifest = _derive(beton, tables)
    if spot_check:
        _spot_check(beton, tables)
    return manifest, tables


def _spot_check(beton, tables):
    """Checks that some JPEGs begin as JPEGs do: where pages were never written or copied, a file is zero."""
    jpegs = np.flatnonzero(tables.images["mode"] == JPG)
    if not len(jpegs):
        return
    with open(beton, "rb") as file:
        for i in jpegs[np.unique(np.linspace(0, len(jpegs) - 1, _NUM_SPOT_CHECKS).astype(np.int64))]:
            file.seek(int(tables.images["data_ptr"][i]))
            if file.read(2) != b"\xff\xd8":
                raise BetonError(
                    f"{beton} is damaged: the data of sample {i} is not a JPEG; copy or write it again"
                )


def check_same_classes(train, val, train_name="train", val_name="val"):
    """Raises ManifestError unless both manifests name the same classes in the same order.

    The message shows the first differences; the names say in it which file is which.
    """
    if train.class_names == val.class_names:
        return
    differences = [
        f"label {label}: {'nothing' if a is None else repr(a)} and {'nothing' if b is None else repr(b)}"
        for label, (a, b) in enumerate(zip_longest(train.class_names, val.class_names))
        if a != b
    ]
    shown = "; ".join(differences[:5]) + (
        f"; and {len(differences) - 5} more labels" if len(differences) > 5 else ""
    )
    raise ManifestError(
        f"{train_name} has {train.num_classes} classes and {val_name} {val.num_classes}, and they differ:"
        f" {shown}. "
        f"Write val again with --cfg.class_names_from={train_name}"
        + ("" if train_name.endswith(".json") else ".json")
    )


def _derive(beton, tables):
    num_classes = tables.num_labels
    if num_classes > 10 * len(tables) + 1000:  # checked before that many names are made
        raise BetonError(f"{beton} is damaged: a label of {num_classes - 1} among {len(tables)} samples")
    warnings.warn(
        f"{beton} has no manifest ({manifest_path(beton).name}): its {num_classes} classes are called 0 to"
        f" {num_classes - 1}",
        stacklevel=3,
    )
    names = tuple(str(label) for label in range(num_classes))
    return Manifest(
        names, tuple(tables.class_counts(num_classes)), len(tables), tables.file_size, tables.sha256
    )


def _read(path):
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ManifestError(f"is larger than {_MAX_BYTES:,} bytes")
        content = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
        return _from_json(content)
    except ManifestError as error:
        raise ManifestError(f"{path} is not a manifest: {error}") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or numbers and nesting beyond what Python reads
        raise ManifestError(f"{path} is not a manifest: {error}") from error


def _from_json(content):
    """A Manifest from parsed JSON, which may hold anything. Raises ManifestError."""
    if not isinstance(content, dict):
        raise ManifestError("a table of keys is needed")
    if content.get("format") != FORMAT or type(content.get("format")) is not int:
        raise ManifestError(f"format is {_short(content.get('format'))}; this version reads {FORMAT}")
    keys = ("class_names", "class_counts", "num_samples", "file_size", "tables_sha256", "writer", "skipped")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ManifestError(f"{missing[0]} is missing")
    for key in ("class_names", "class_counts", "skipped", "checksums", "class_words"):
        if not isinstance(content.get(key, []), list):  # older manifests lack the last two
            raise ManifestError(f"{key} is not a list")
    for entry in content["skipped"]:
        if not isinstance(entry, dict) or not {"name", "reason"} <= entry.keys():
            raise ManifestError("skipped is not a list of names and reasons")
    skipped = tuple(Skipped(entry["name"], entry["reason"]) for entry in content["skipped"])
    values = {key: content[key] for key in ("num_samples", "file_size", "tables_sha256", "writer")}
    if "checksums" in content:
        values |= {
            "checksums": tuple(content["checksums"]),
            "samples_per_checksum": content.get("samples_per_checksum"),
        }
    if "order" in content:
        values["order"] = content["order"]
    if content.get("part") is not None:
        if not isinstance(content["part"], list):
            raise ManifestError(f"part is {_short(content['part'])}, not [i, n]")
        values["part"] = tuple(content["part"])
    values["class_words"] = tuple(content.get("class_words", ()))
    return Manifest(tuple(content["class_names"]), tuple(content["class_counts"]), skipped=skipped, **values)


def _short(value):
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a number too large"
    return text if len(text) <= 60 else f"{text[:57]}..."
