"""Fashion-MNIST, read without torchvision from its four published files, packed or not."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llc.data.sources.base import DOWNLOAD_FOLDER, IndexedDataset, SourceError, one_line, printable, register
from llc.data.sources.listing import is_file, status_of

FASHION_MNIST_FOLDER = (
    "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@register("FashionMNIST", "fashion-mnist", "fashion_mnist")
def open_fashion_mnist(data_dir, split):
    """From `data_dir`, else from Debian's package, else downloaded by torchvision. Raises SourceError."""
    folder = _find(data_dir, split)
    if folder is not None:
        return _read(folder, split)
    from llc.data.sources import torchvision_dataset

    try:
        return torchvision_dataset.open_dataset("FashionMNIST", data_dir, split)
    except torchvision_dataset.NotFoundError as error:
        hint = f"; Debian's package dataset-fashion-mnist has them too, in {FASHION_MNIST_FOLDER}"
        raise SourceError(f"{error}{hint}") from error


def _find(data_dir, split):
    """The folder that holds the two files of a split, or None."""
    if data_dir:
        status_of(data_dir)  # raises SourceError for a folder that is closed, or a link that leads nowhere
        folders = [Path(data_dir), Path(data_dir, "FashionMNIST", "raw"), Path(data_dir, "raw")]
    else:
        folders = [Path(DOWNLOAD_FOLDER, "FashionMNIST", "raw")]
    for folder in [*folders, Path(FASHION_MNIST_FOLDER)]:
        if all(_idx_file(folder, split, kind) for kind in ("images-idx3", "labels-idx1")):
            return folder
    return None


def _idx_file(folder, split, kind):
    stem = f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if is_file(path)), None)


def _read(folder, split):
    pictures = _read_idx(_idx_file(folder, split, "images-idx3"), num_axes=3)
    labels = _read_idx(_idx_file(folder, split, "labels-idx1"), num_axes=1).astype(np.int64)
    if len(pictures) != len(labels) or not len(labels) or labels.max() >= len(FASHION_MNIST_CLASSES):
        raise SourceError(
            f"{printable(folder)}: not Fashion-MNIST: {len(pictures)} images, {len(labels)} labels up to"
            f" {labels.max(initial=-1)}"
        )
    note = f"FashionMNIST, {split}: read from {printable(folder)}"
    return IndexedDataset(
        FASHION_MNIST_CLASSES, labels, f"FashionMNIST {split}", _GreyPictures(pictures), notes=(note,)
    )


@dataclass(frozen=True)
class _GreyPictures:
    """uint8 [n, H, W] as a dataset of PIL images."""

    pixels: np.ndarray

    def __getitem__(self, i):
        from PIL import Image  # imported here for the same reason as in images.py

        return (Image.fromarray(self.pixels[i]),)


def _read_idx(path, num_axes):
    """An IDX file of bytes -> uint8 array. The format: yann.lecun.com/exdb/mnist. Raises SourceError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{printable(path)} cannot be read: {one_line(error)}") from error
    head = 4 + 4 * num_axes
    if len(data) < head or data[:4] != bytes((0, 0, 8, num_axes)):
        raise SourceError(f"{printable(path)} is not an IDX file of bytes with {num_axes} axes")
    shape = struct.unpack(f">{num_axes}I", data[4:head])
    size = 1
    for length in shape:  # Python's integers, which do not overflow
        size *= length
    if len(data) != head + size:
        raise SourceError(
            f"{printable(path)} is cut off: {len(data) - head} bytes of data, where {shape} needs {size}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
