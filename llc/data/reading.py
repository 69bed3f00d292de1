"""What a user says about where images are: the flags of every command that takes images, and their source.

A path may be a beton (several separated by commas, or a glob), a folder with one folder of images per class,
a folder of images, an image file, or whatever a registered source takes: llc.data.sources.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llc.data.sources import (
    OPENERS,
    SPLITS,
    Columns,
    FolderTree,
    Source,
    find_split,
    is_image_name,
    open_named,
    open_tree,
    printable,
    recognise,
)
from llc.data.sources.imagenet import flat_val_files, open_unsorted
from llc.data.sources.listing import listing
from llc.errors import UserError
from llc.options import option

_BETON = "beton"
_NO_COLUMNS = Columns()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read from a path."""

    dataset: str = option(
        "auto",
        help="auto: what the path looks like; or beton, folder, the name of another source, of a plugin's "
        "source, or of a torchvision dataset, such as CIFAR10",
    )
    split: str = option("val", choices=SPLITS, help="which images, where the path holds several splits")
    image_column: str = option(
        "", help="of a table: the column of images, by its name or its number, from 0; empty: it is found"
    )
    label_column: str = option("", help="of a table: the column of labels; empty: it is found")
    header: str = option(
        "auto",
        choices=("auto", "yes", "no"),
        help="of a text table: whether its first line names the columns",
    )

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.label_column, self.header)


AUTO = Reading()  # everything is found from the path


def find_source(path: str, reading: Reading) -> Source | None:
    """The images at `path`, or None if it names betons.

    An image without a class has the label -1. Raises UserError.
    """
    dataset = reading.dataset.lower()
    if dataset == "auto":
        if not path:
            raise UserError("no images are named: expected a beton, a folder, or what another source takes")
        dataset = recognise(path).lower()
        if dataset == "folder" and not os.path.isdir(path):
            dataset = "image" if os.path.isfile(path) and is_image_name(path) else _BETON
    title = OPENERS[dataset][0] if dataset in OPENERS else dataset
    own: dict[str, Callable] = {"folder": _open_folder, "image": _open_image, _BETON: lambda *_: None}
    if title not in own:
        return open_named(dataset, path, reading.split, reading.columns)
    if reading.columns != _NO_COLUMNS:
        raise UserError(
            f"{printable(path)} is read as {title}, which has no columns: --image_column, --label_column and "
            "--header are for tables; name the kind with --dataset"
        )
    if title == "folder" and (unsorted := _open_imagenet(path, reading.split)) is not None:
        return unsorted
    return own[title](path, reading.split)


def _open_imagenet(path, split):
    """ImageNet where it is no tree of folders: its val images in one folder, or its tars; None elsewhere."""
    if flat_val_files(path):
        return None  # a folder of images, whose labels are not asked for
    source = open_unsorted(path, split)
    if isinstance(source, FolderTree):
        return _named_from(path, source, os.path.relpath(source.root, path))
    return source


def _open_image(path, split):
    path = Path(path)
    return FolderTree((), np.full(1, -1), os.fspath(path.parent), (path.name,))


def _open_folder(path, split):
    """A folder of class folders, alone or below train/ and val/, or a folder of images."""
    found = listing(path)
    if found.folders:
        root = find_split(path, split)
        return _named_from(path, open_tree(root), os.path.relpath(root, path))
    if not found.images:
        raise UserError(f"{printable(path)} holds no images and no folders of images")
    note = f"{len(found.images):,} images of {path}"
    return FolderTree((), np.full(len(found.images), -1), os.fspath(path), found.images, notes=(note,))


def _named_from(path, tree, split_folder):
    """A tree whose images are named by their paths below `path`, not below the folder of the split."""
    if split_folder == os.curdir:
        return tree
    files = tuple(os.path.join(split_folder, name) for name in tree.files)
    return dataclasses.replace(tree, root=os.fspath(path), files=files)
