"""Betons of noise, for `python -m llc.benchmark epoch` without data."""

import contextlib
import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from llc import environment
from llc.data import beton
from llc.data.encoding import encode_sample
from llc.data.manifest import Manifest
from llc.data.writer import WriterConfig

NUM_NOISE_IMAGES = 256  # different ones
NUM_CLASSES = 100
MIN_BATCHES = 16  # of an epoch


@contextlib.contextmanager
def synthetic_data(config, plan, processes):
    """Yields the configuration with betons of noise; each machine's first process makes and removes them."""
    local_rank = environment.local_rank()
    made = tempfile.mkdtemp(prefix="llc-epoch-") if local_rank == 0 else None
    try:
        folder = Path(processes.gather_objects(made)[processes.rank - local_rank])
        if made:
            batch_size, noise = config.training.batch_size, _noise()
            write_samples(noise, folder / "train.beton", max(MIN_BATCHES, plan.longest(config)) * batch_size)
            val_batch_size = min(batch_size, config.validation.batch_size * processes.world_size)
            write_samples(noise, folder / "val.beton", 4 * val_batch_size)
        processes.barrier()
        betons = {f"{split}_dataset": str(folder / f"{split}.beton") for split in ("train", "val")}
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, **betons))
    finally:
        if made:
            shutil.rmtree(made)


def _noise():
    """EncodedSamples of smooth noise, 500 x 400 pixels, encoded with the defaults of llc.write."""
    samples = []
    for i in range(NUM_NOISE_IMAGES):
        small = np.random.default_rng(i).integers(0, 256, (25, 32, 3), np.uint8)
        image = Image.fromarray(small).resize((500, 400), Image.Resampling.BICUBIC)
        samples.append(encode_sample(image, i, WriterConfig(write_path="")))
    return samples


def write_samples(samples, path, num_samples):
    """Writes a beton of `num_samples` that refer over and over to the data of `samples`, EncodedSamples."""
    sizes = np.array([sample.data.nbytes for sample in samples])
    places, end = beton.place(beton.data_start(num_samples), sizes)
    chosen = np.arange(num_samples) % len(samples)
    images = np.zeros(num_samples, beton.IMAGE_TYPE)
    for name in ("mode", "width", "height"):
        images[name] = np.array([getattr(sample, name) for sample in samples])[chosen]
    images["data_ptr"] = places[chosen]
    head, table, table_start = beton.assemble_tables(images, chosen % NUM_CLASSES, sizes[chosen], end)
    with open(path, "wb") as file:
        file.write(head)
        for sample, where in zip(samples, places):
            file.seek(where)
            file.write(sample.data)
        file.seek(table_start)
        file.write(table)
    tables, names = beton.read_tables(path), tuple(f"class {i:03d}" for i in range(NUM_CLASSES))
    counts = tuple(tables.class_counts(NUM_CLASSES))
    Manifest(names, counts, num_samples, tables.file_size, tables.sha256).save(path)
