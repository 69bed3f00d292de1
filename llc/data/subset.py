"""Some samples of betons as a beton of their own, and the held-out slice of a train set. Data is copied as it is stored, not decoded."""

import zlib

import numpy as np

from llc.data import beton
from llc.data.manifest import Manifest, data_checksums
from llc.data.storage import read_sample
from llc.data.workers import next_page, place
from llc.errors import UserError
from llc.files import atomic_write


def held_out(labels, share, seed):
    """bool [n]: `share` of the samples of each class, drawn by the seed, at least one of each and never all. labels: int64 [n].

    Raises UserError where a class has a single sample.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if len(indices) == 1:
            raise UserError(
                f"label {label} has a single train image; one to hold out and one to train on are needed"
            )
        count = min(max(round(share * len(indices)), 1), len(indices) - 1)
        chosen[np.random.default_rng([seed, int(label)]).permutation(indices)[:count]] = True
    return chosen


def write_subset(shards, indices, path):
    """Writes the samples `indices`, int64 [m], of `shards` (shards.Shards) to the beton `path`, in that order, and its manifest.

    Reads and writes the samples' bytes once. Raises UserError where the file cannot be written or a sample is larger than a page.
    """
    sizes = shards.sizes[indices]
    if sizes.max() > beton.PAGE_SIZE:
        raise UserError(
            f"{shards.name(int(indices[np.argmax(sizes)]))}: {sizes.max():,} bytes do not fit into a page of {beton.PAGE_SIZE:,}; "
            "write the beton with write_ffcv.py"
        )
    metadata = np.zeros(len(indices), beton.METADATA_TYPE)
    places, end = place(next_page(beton.METADATA_START + metadata.nbytes), sizes)
    metadata["f0"], metadata["f1"] = shards.images[indices], shards.labels[indices]
    metadata["f0"]["data_ptr"] = places
    table = np.zeros(len(indices), beton.ALLOC_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(len(indices)), places, sizes

    crcs = np.zeros(len(indices), np.uint32)

    def write(file):
        file.write(beton.header_bytes(len(indices), next_page(end)) + metadata.tobytes())
        for row, (index, where) in enumerate(zip(indices, places)):
            data = read_sample(shards, index)
            crcs[row] = zlib.crc32(data)
            file.seek(int(where))
            file.write(data)
        file.seek(next_page(end))
        file.write(table.tobytes())

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
