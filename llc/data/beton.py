"""The layout of an FFCV file (a beton, format version 2), and its tables read with every bound checked.

    header | field descriptors | metadata, one row per sample | ... pages of image data ... | allocation table

Numbers are little-endian. A sample's data lies within one page; pages start at multiples of `page_size`. The
layout is that of ffcv.types, ffcv.fields and ffcv.writer (1.0.2). It is restated here because importing ffcv
takes seconds (it compiles) and because FFCV checks nothing: a truncated file makes it crash or serve wrong
images.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llc.errors import UserError

VERSION = 2
PAGE_SIZE = 1 << 23  # bytes; what FFCV's writer uses
MAX_SIDE = (1 << 16) - 1  # pixels; width and height are stored in 16 bits
JPG, RAW = 0, 1  # the image field's `mode`

HEADER_TYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_TYPE = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
ALLOC_TYPE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE_TYPE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
# A sample's row: FFCV gives its fields no names, numpy calls them f0 and f1.
METADATA_TYPE = np.dtype([("f0", IMAGE_TYPE), ("f1", "<i8")], align=True)
FIELDS = (("image", 2), ("label", 1))  # name and FFCV's type id: RGBImageField, IntField

METADATA_START = HEADER_TYPE.itemsize + len(FIELDS) * FIELD_TYPE.itemsize


class BetonError(UserError):
    """A file that is not a beton, is incomplete, or does not hold images and labels."""


@dataclass(frozen=True)
class Tables:
    """What a beton says about its samples, checked for consistency and against the size of the file.

    images: structured [n] of mode, width, height, data_ptr; labels: int64 [n]; sizes: int64 [n], bytes of
    each sample's data; sha256: hex digest of header, field descriptors, metadata and allocation table.
    """

    images: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    page_size: int
    file_size: int
    sha256: str

    def __len__(self):
        return len(self.labels)

    @property
    def num_labels(self):
        """The highest label + 1."""
        return int(self.labels.max()) + 1

    def class_counts(self, num_classes):
        """Samples per label, a list of `num_classes` numbers, where num_labels <= num_classes."""
        return np.bincount(self.labels, minlength=num_classes).tolist()


# ------------------------------------------------------------------------------------------------ layout


def data_start(num_samples):
    """The byte where the samples' data begins: the first page after the metadata."""
    return next_page(METADATA_START + num_samples * METADATA_TYPE.itemsize)


def next_page(offset):
    """The start of the first page at or after byte `offset`."""
    return -(-offset // PAGE_SIZE) * PAGE_SIZE


def place(offset, sizes):
    """Places samples of `sizes` bytes one after the other from byte `offset` on, none of them across a page.

    Returns their offsets, int64 [len(sizes)], and the byte after the last sample.
    """
    places = np.empty(len(sizes), np.int64)
    for k, size in enumerate(sizes):
        if offset % PAGE_SIZE + size > PAGE_SIZE:
            offset = next_page(offset)
        places[k] = offset
        offset += int(size)
    return places, offset


def assemble_tables(images, labels, sizes, end):
    """What surrounds the samples' data in a beton: (head, allocation table, the table's offset).

    images: IMAGE_TYPE [n], data_ptr included; labels: int64 [n]; sizes: int64 [n], bytes of each sample's
    data; end: the byte after the last sample. head: bytes of the header, field descriptors and metadata,
    written at byte 0.
    """
    alloc_table_ptr = next_page(end)
    metadata = np.zeros(len(images), METADATA_TYPE)
    metadata["f0"], metadata["f1"] = images, labels
    table = np.zeros(len(images), ALLOC_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(len(images)), images["data_ptr"], sizes
    head = header_bytes(len(images), alloc_table_ptr) + metadata.tobytes()
    return head, table.tobytes(), alloc_table_ptr


def header_bytes(num_samples, alloc_table_ptr):
    """The header and the field descriptors of a beton of images and labels."""
    header = np.zeros(1, HEADER_TYPE)
    header["version"], header["num_fields"], header["page_size"] = VERSION, len(FIELDS), PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = num_samples, alloc_table_ptr
    fields = np.zeros(len(FIELDS), FIELD_TYPE)
    for row, (name, type_id) in zip(fields, FIELDS):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return header.tobytes() + fields.tobytes()


def tables_sha256(head, metadata, alloc_table):
    """Hex digest of the three byte strings; `head` is header and field descriptors."""
    digest = hashlib.sha256(head)
    digest.update(metadata)
    digest.update(alloc_table)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ reading


def read_tables(path):
    """The Tables of the beton at `path`; the image data is not read. Raises BetonError.

    FFCV can open a file that passes: every sample lies completely in the file and in one page, and sizes are
    plausible. The image data itself is not checked.
    """
    path = Path(path)
    if not path.exists():
        raise BetonError(f"{path} does not exist")
    if not path.is_file():
        raise BetonError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:
            return _read_tables(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise BetonError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_tables(path, file, file_size):
    if file_size < METADATA_START:
        raise BetonError(f"{path} is not a beton: {file_size} bytes are too few (an unfinished copy?)")
    head = file.read(METADATA_START)
    header = np.frombuffer(head, HEADER_TYPE, count=1)[0]
    if header["version"] != VERSION:
        raise BetonError(
            f"{path} is not a beton of format version {VERSION}; write it with python -m llc.write"
        )
    _check_fields(path, header, head)
    num_samples, alloc_table_ptr, page_size = (
        int(header[key]) for key in ("num_samples", "alloc_table_ptr", "page_size")
    )
    if not num_samples:
        raise BetonError(f"{path} holds no samples")
    if page_size < 1 << 12 or page_size & (page_size - 1):
        raise BetonError(f"{path} is damaged: its page size is {page_size}")
    # Python's integers: sizes from the file cannot overflow, and nothing is allocated that is larger than the
    # file.
    metadata_end = METADATA_START + num_samples * METADATA_TYPE.itemsize
    expected_size = alloc_table_ptr + num_samples * ALLOC_TYPE.itemsize
    if alloc_table_ptr == 0:
        raise BetonError(f"{path} was not finished: its writer was stopped; write it again")
    if not metadata_end <= alloc_table_ptr:
        raise BetonError(
            f"{path} is damaged: {num_samples} samples and an allocation table at byte {alloc_table_ptr}"
        )
    if file_size < expected_size:
        raise BetonError(
            f"{path} is cut off: {file_size:,} of {expected_size:,} bytes are there; copy or write it again"
        )
    if file_size > expected_size:
        raise BetonError(f"{path} is damaged: {file_size:,} bytes, but its tables end at {expected_size:,}")
    metadata_bytes = file.read(metadata_end - METADATA_START)
    file.seek(alloc_table_ptr)
    alloc_bytes = file.read(file_size - alloc_table_ptr)
    if (
        len(metadata_bytes) != metadata_end - METADATA_START
        or len(alloc_bytes) != file_size - alloc_table_ptr
    ):
        raise BetonError(f"{path} became shorter while it was read")
    metadata = np.frombuffer(metadata_bytes, METADATA_TYPE)
    images = metadata["f0"]
    labels = metadata["f1"].astype(np.int64)
    sizes = _check_samples(
        path, images, labels, np.frombuffer(alloc_bytes, ALLOC_TYPE), page_size, metadata_end, alloc_table_ptr
    )
    return Tables(
        images, labels, sizes, page_size, file_size, tables_sha256(head, metadata_bytes, alloc_bytes)
    )


def _check_fields(path, header, head):
    num_fields = int(header["num_fields"])
    fields = np.frombuffer(head, FIELD_TYPE, count=len(FIELDS), offset=HEADER_TYPE.itemsize)
    found = tuple(
        (bytes(row["name"]).split(b"\0")[0].decode("ascii", "replace"), int(row["type_id"])) for row in fields
    )
    if num_fields != len(FIELDS) or found != FIELDS:
        raise BetonError(
            f"{path} is not a beton of images and labels: it has {num_fields} fields, the first ones {found}"
            " (name, type); "
            f"two are needed: {FIELDS}"
        )


def _check_samples(path, images, labels, alloc_table, page_size, metadata_end, data_end):
    """int64 [n]: bytes of each sample's data, from the allocation table, whose order is arbitrary."""
    order = np.argsort(alloc_table["ptr"], kind="stable")
    starts, lengths = alloc_table["ptr"][order], alloc_table["size"][order]
    position = np.minimum(np.searchsorted(starts, images["data_ptr"]), len(starts) - 1)
    sizes = lengths[position]
    limit = np.uint64(data_end)
    page = np.uint64(page_size)
    raw_sizes = images["width"].astype(np.uint64) * images["height"] * np.uint64(3)
    checks = (
        ("has no place in the allocation table", starts[position] != images["data_ptr"]),
        (
            "lies outside of the image data",
            (images["data_ptr"] < metadata_end) | (images["data_ptr"] >= limit) | (sizes > limit),
        ),
        # neither sum overflows, because both terms are below the size of the file by now
        (
            "reaches beyond the image data",
            np.minimum(images["data_ptr"], limit) + np.minimum(sizes, limit) > limit,
        ),
        ("crosses a page", np.minimum(sizes, limit) + images["data_ptr"] % page > page),
        ("has no pixels", raw_sizes == 0),
        ("has no data", sizes == 0),
        ("is neither raw nor JPEG", (images["mode"] != JPG) & (images["mode"] != RAW)),
        (
            "is raw, but of another size than its width and height say",
            (images["mode"] == RAW) & (sizes != raw_sizes),
        ),
        ("has a negative label", labels < 0),
        ("has an absurd label", labels >= 1 << 31),
    )
    for complaint, wrong in checks:
        if wrong.any():
            i = int(np.argmax(wrong))
            raise BetonError(
                f"{path} is damaged: sample {i} {complaint} ({int(wrong.sum())} such samples); write it again"
            )
    return sizes.astype(np.int64)
