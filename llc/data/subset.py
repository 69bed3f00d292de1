"""Some samples of betons as a beton of their own, and the held-out part of a train set.

Data is copied as it is stored, without decoding.
"""

import zlib

import numpy as np

from llc.data import beton
from llc.data.manifest import Manifest, data_checksums
from llc.data.storage import read_sample
from llc.errors import UserError
from llc.files import atomic_write


def held_out(labels, fraction, seed):
    """bool [n]: the given fraction of each class, drawn by the seed, at least one and never all.

    labels: int64 [n]. Raises UserError where a class has a single sample.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if len(indices) == 1:
            raise UserError(
                f"label {label} has a single train image; one to hold out and one to train on are needed"
            )
        count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        chosen[np.random.default_rng([seed, int(label)]).permutation(indices)[:count]] = True
    return chosen


def write_subset(shards, indices, path):
    """Writes samples of `shards` (shards.Shards) to the beton `path`, in the order of `indices`, int64 [m].

    Its manifest is written too. The samples' bytes are read and written once. Raises UserError where the file
    cannot be written or a sample is larger than a page.
    """
    sizes = shards.sizes[indices]
    if sizes.max() > beton.PAGE_SIZE:
        raise UserError(
            f"{shards.name(int(indices[np.argmax(sizes)]))}: {sizes.max():,} bytes do not fit into a page of"
            f" {beton.PAGE_SIZE:,}; "
            "write the beton with python -m llc.write"
        )
    images = shards.images[indices]
    images["data_ptr"], end = beton.place(beton.data_start(len(indices)), sizes)
    head, table, table_start = beton.assemble_tables(images, shards.labels[indices], sizes, end)

    crcs = np.zeros(len(indices), np.uint32)

    def write(file):
        file.write(head)
        for row, (index, where) in enumerate(zip(indices, images["data_ptr"])):
            data = read_sample(shards, index)
            crcs[row] = zlib.crc32(data)
            file.seek(int(where))
            file.write(data)
        file.seek(table_start)
        file.write(table)

    atomic_write(path, write)
    tables, names = beton.read_tables(path), shards.manifest.class_names
    Manifest(
        names,
        tuple(tables.class_counts(len(names))),
        len(tables),
        tables.file_size,
        tables.sha256,
        checksums=data_checksums(crcs),
    ).save(path)
