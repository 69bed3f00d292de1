"""Ready batches from whatever holds images: a beton, a folder, image files, images in memory.

Betons whose rule is "area" go through the validation loader. Everything else is decoded and resized here,
image by image in threads (Pillow and OpenCV release the GIL), by the Preprocessing of the model that will see
it.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llc.data.beton import RAW
from llc.data.images import load_rgb
from llc.data.loaders import ValLoader
from llc.data.manifest import ManifestError
from llc.data.preprocessing import Preprocessing
from llc.data.shards import Shards, open_shards
from llc.data.sources import (
    FolderTree,
    Source,
    find_split,
    is_image_name,
    open_tree,
    printable,
    with_class_names,
)
from llc.data.storage import read_sample
from llc.errors import UserError


def prepare(
    pixels_of: Callable[[int], np.ndarray],
    indices: Iterable[int],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int = -1,
) -> Iterator[torch.Tensor]:
    """Yields uint8 [b, 3, resolution, resolution] for the images `indices`, in order.

    pixels_of(i): uint8 [H, W, 3].

    num_workers threads (-1: one per core) work ahead by at most one batch. An error of pixels_of is raised in
    place of its batch.
    """
    indices, waiting = iter(indices), deque()
    pool = ThreadPoolExecutor(num_workers if num_workers > 0 else len(os.sched_getaffinity(0)))
    try:
        while True:
            for i in islice(indices, 2 * batch_size - len(waiting)):
                waiting.append(pool.submit(lambda i: preprocessing(pixels_of(i)), i))
            if not waiting:
                return
            batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
    finally:
        pool.shutdown(cancel_futures=True)


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
        start = 0
        for images in prepare(
            self._pixels,
            indices,
            self.preprocessing,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        ):
            labels = torch.from_numpy(self.source.labels[indices[start : start + len(images)]])
            start += len(images)
            yield images.to(self.processes.device), labels.to(self.processes.device)

    def _pixels(self, i):
        return load_rgb(self.source.image(i), printable(self.source.name(i)))


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


@dataclasses.dataclass(frozen=True)
class Images:
    """What `open_images` opened: iterate over `loader`.

    files: the images' paths, relative to the folder; None for a beton.
    """

    loader: Iterable
    num_samples: int
    class_names: tuple[str, ...]
    files: tuple[str, ...] | None
    notes: tuple[str, ...]


def open_images(
    path,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    processes,
    class_names: Sequence[str] | None = None,
) -> Images:
    """Opens a beton, a folder of class folders (or of val/ or test/ with such), or a folder of images.

    Images without a class get the label -1. class_names: the label order that is wanted. A folder is labelled
    by it; a beton must have it. Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        source = _open_folder(path)
        if class_names is not None and source.class_names:
            source = with_class_names(source, class_names)
        files = tuple(os.path.relpath(source.image(i), path) for i in range(len(source)))
        return Images(
            SourceLoader(source, preprocessing, batch_size, num_workers, processes),
            len(source),
            source.class_names,
            files,
            source.notes,
        )
    shards = open_shards(path)
    manifest = shards.manifest
    if class_names is not None and tuple(class_names) != manifest.class_names:
        label = next(i for i, (a, b) in enumerate(zip_longest(manifest.class_names, class_names)) if a != b)
        there, wanted = (
            names[label] if label < len(names) else "nothing" for names in (manifest.class_names, class_names)
        )
        raise ManifestError(
            f"{path} has other classes than the model: {manifest.num_classes} and {len(class_names)} of"
            f" them, label {label} "
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
        loader = SourceLoader(BetonImages.of(shards), preprocessing, batch_size, num_workers, processes)
    return Images(
        loader,
        manifest.num_samples,
        manifest.class_names,
        None,
        (f"{manifest.num_samples:,} images of {path}",),
    )


def _open_folder(path):
    try:
        visible = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error.strerror}") from error
    if any(entry.is_dir() for entry in visible):
        return open_tree(find_split(path, "val"))
    files = sorted(entry.name for entry in visible if is_image_name(entry.name))
    if not files:
        raise UserError(f"{path} holds no images and no folders of images")
    return FolderTree(
        (),
        np.full(len(files), -1),
        os.fspath(path),
        tuple(files),
        notes=(f"{len(files):,} images of {path}",),
    )
