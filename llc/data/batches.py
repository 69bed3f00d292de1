"""Ready batches from whatever holds images: betons, any registered source, images in memory.

Betons whose rule is "area" go through the validation loader. Everything else is decoded and resized here,
image by image in threads (Pillow and the native library release the GIL), by the Preprocessing of the model
that will see it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image

from llc.arguments import whole_number, worker_count
from llc.data.beton import RAW
from llc.data.image_errors import ImageError, read_from
from llc.data.images import load_rgb
from llc.data.loaders import ValLoader, default_workers
from llc.data.manifest import ManifestError
from llc.data.preprocessing import Preprocessing
from llc.data.reading import AUTO, Reading, find_source
from llc.data.shards import Shards, check_parts_of_all, open_shards
from llc.data.sources import Source, printable, with_class_names
from llc.data.storage import read_sample


def prepare(
    pixels_of: Callable[[Any], np.ndarray],
    items: Iterable[Any],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int = -1,
) -> Iterator[torch.Tensor]:
    """An iterator over batches uint8 [b, 3, resolution, resolution] of the images `items`, in order.

    b is batch_size, or less in the last batch. pixels_of(item): uint8 [H, W, 3]; threads call it.

    num_workers threads (-1: one per core, divided among this machine's processes) work on the batch that is
    asked for and on the one after it, so two batches are in memory if the caller keeps none. An error of
    pixels_of is raised in place of its batch. Raises ValueError for a batch_size below 1, and unless
    num_workers is -1, or 1 or more.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    num_workers = worker_count("num_workers", num_workers)
    return _prepared(pixels_of, iter(items), preprocessing, batch_size, num_workers)


def _prepared(pixels_of, items, preprocessing, batch_size, num_workers):
    size = preprocessing.resolution
    pool = ThreadPoolExecutor(num_workers if num_workers > 0 else default_workers())

    def fill(batch, i, item):
        batch[i] = preprocessing(pixels_of(item))

    waiting: deque[tuple[np.ndarray, list[Future]]] = deque()
    try:
        while True:
            while len(waiting) < 2 and (chunk := list(islice(items, batch_size))):
                batch = np.empty((len(chunk), size, size, 3), np.uint8)
                waiting.append((batch, [pool.submit(fill, batch, i, item) for i, item in enumerate(chunk)]))
                del batch  # here and below, no name may keep a batch in memory while the caller uses it
            if not waiting:
                return
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch, futures):
    for future in futures:
        future.result()
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class SourceLoader:
    """Iterates (images uint8 [b, 3, resolution, resolution], labels int64 [b]) of a Source.

    As with the validation loader's betons, rank r of `processes` gets samples r, r + world_size, ... in
    order.
    """

    source: Source
    preprocessing: Preprocessing
    batch_size: int
    num_workers: int
    processes: object

    def __iter__(self):
        indices = np.arange(self.processes.rank, len(self.source), self.processes.world_size)
        reader, start = self.source.reader, 0

        def pixels_of(handle):
            image, name = read_from(reader, handle)
            return load_rgb(image, printable(name))

        def handles():
            for first in range(0, len(indices), self.batch_size):
                yield from self.source.handles(indices[first : first + self.batch_size])

        def send(images):
            nonlocal start
            labels = torch.from_numpy(self.source.labels[indices[start : start + len(images)]])
            start += len(images)
            return images.to(self.processes.device), labels.to(self.processes.device)

        batches = prepare(
            pixels_of, handles(), self.preprocessing, batch_size=self.batch_size, num_workers=self.num_workers
        )
        return map(send, batches)  # unlike a loop with a name for the batch, it keeps none in memory


@dataclasses.dataclass(frozen=True)
class BetonImages(Source):
    """The images of betons one by one, whole."""

    shards: Shards

    @classmethod
    def of(cls, shards):
        return cls(shards.manifest.class_names, shards.labels, shards)

    def image(self, i):
        row, data = self.shards.images[i], read_sample(self.shards, i)
        return (
            Image.fromarray(data.reshape(row["height"], row["width"], 3))
            if row["mode"] == RAW
            else data.tobytes()
        )

    def name(self, i):
        return self.shards.name(i)


_LOOKED_AT = 64  # images whose contents tell sources apart


def _content(source: Source, i: int) -> bytes:
    """The bytes of an image file, or of the pixels of an image; b"" where it cannot be read."""
    try:
        image = source.image(i)
        if isinstance(image, (str, os.PathLike)):
            with open(image, "rb") as file:
                return file.read()
        return image if isinstance(image, bytes) else image.tobytes()
    except (OSError, ImageError):
        return b""  # whoever needs the image says what is wrong with it


@dataclasses.dataclass(frozen=True)
class Images:
    """What `open_images` opened: iterate over `loader`.

    source: None for betons; shards: None for other sources. num_unlabelled: how many images have no class;
    their label is -1.
    """

    loader: Iterable
    num_samples: int
    class_names: tuple[str, ...]
    source: Source | None
    notes: tuple[str, ...]
    num_unlabelled: int
    shards: Shards | None = None

    @functools.cached_property
    def identity(self) -> str:
        """Text that is equal for the same images, and differs for others.

        For betons that is known from their manifests. Other sources are told apart by the images' names and
        labels, and by the contents of _LOOKED_AT images that are evenly spaced over all, so two that differ
        in a few images alone may have the same text.
        """
        if self.shards is not None:
            return self.shards.identity
        digest = hashlib.sha256()
        for name, label in zip(self.files or (), self.source.labels.tolist()):
            digest.update(f"{name}\0{label}\0".encode("utf-8", "surrogateescape"))
        for i in np.unique(np.linspace(0, self.num_samples - 1, _LOOKED_AT).round().astype(int)):
            digest.update(hashlib.sha256(_content(self.source, int(i))).digest())
        return digest.hexdigest()

    @property
    def split(self) -> str | None:
        """The split that the images were written as, "train" or "val", if their manifest says so."""
        split = self.shards.manifest.writer.get("split") if self.shards is not None else None
        return split if isinstance(split, str) else None

    @property
    def files(self) -> list[str] | None:
        """What the source calls each image: for a folder, its path below the folder; None for betons."""
        return None if self.source is None else [self.source.name(i) for i in range(self.num_samples)]


def open_images(
    path: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    processes,
    class_names: Sequence[str] | None = None,
    reading: Reading = AUTO,
) -> Images:
    """Opens betons, or any source of images: a folder, tars, tables, ... (llc.data.reading).

    reading: which source it is, and what is read of it. class_names: the label order that is wanted. Images
    of a source with classes are labelled by it; betons must have it. Without it the classes are the source's.
    Images without a class get the label -1. Raises UserError.
    """
    whole_number("batch_size", batch_size, 1)
    worker_count("num_workers", num_workers)
    path = os.fspath(path)
    source = find_source(path, reading)
    if source is None:
        return _open_betons(path, preprocessing, batch_size, num_workers, processes, class_names)
    if not source.class_names:
        pass  # images without classes, which fit any model
    elif class_names is not None:
        source = with_class_names(source, class_names, "the model")
    else:
        source.check_classes()
    return Images(
        SourceLoader(source, preprocessing, batch_size, num_workers, processes),
        len(source),
        tuple(source.class_names),
        source,
        tuple(source.notes),
        int((source.labels < 0).sum()),
    )


def _open_betons(path, preprocessing, batch_size, num_workers, processes, class_names):
    shards = open_shards(path)
    manifest = shards.manifest
    if class_names is not None and tuple(class_names) != manifest.class_names:
        label = next(i for i, (a, b) in enumerate(zip_longest(manifest.class_names, class_names)) if a != b)
        there, wanted = (
            printable(names[label]) if label < len(names) else "nothing"
            for names in (manifest.class_names, class_names)
        )
        raise ManifestError(
            f"{printable(path)} has other classes than the model: {manifest.num_classes} and"
            f" {len(class_names)} of them, label {label} "
            f"is {there} and {wanted}; write it with the model's, --cfg.class_names_from=TRAIN.beton.json"
        )
    if preprocessing.resize == "area":
        loader = ValLoader(
            shards,
            batch_size=batch_size,
            num_workers=num_workers,
            processes=processes,
            resolution=preprocessing.resolution,
            crop_ratio=preprocessing.crop_ratio,
        )
    else:
        check_parts_of_all(shards, processes)  # the validation loader does so too
        loader = SourceLoader(BetonImages.of(shards), preprocessing, batch_size, num_workers, processes)
    note = f"{manifest.num_samples:,} images of {path}"
    unlabelled = int((shards.labels < 0).sum())
    return Images(loader, manifest.num_samples, manifest.class_names, None, (note,), unlabelled, shards)
