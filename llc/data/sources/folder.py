"""A tree with a folder of images per class, alone or below folders called train and val."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llc.data.sources.base import (
    IMAGE_SUFFIXES,
    Source,
    SourceError,
    is_image_name,
    printable,
    register,
    some,
)

# A folder with nothing but these in it is the root of a dataset, not a dataset with these classes.
_SPLIT_FOLDERS = frozenset(("train", "training", "val", "valid", "validation", "test"))


@register("folder", "imagenet")
def open_folder(data_dir, split):
    """The tree of `split` in or at `data_dir`. Raises SourceError."""
    if not data_dir:
        raise SourceError("data_dir is missing: give the folder that holds one folder of images per class")
    from llc.data.sources import imagenet  # here, because it builds on this module

    unsorted = imagenet.open_unsorted(data_dir, split)
    if unsorted is not None:
        return unsorted
    return open_tree(find_split(data_dir, split), may_be_empty=True)  # empty classes: see check_classes


@dataclass(frozen=True)
class FolderTree(Source):
    """Files below `root`; `files` are their paths relative to it, one per label."""

    root: str
    files: tuple

    def image(self, i):
        return self.read(self.files[i])[0]

    def name(self, i):
        return self.files[i]

    @property
    def sorted_by_label(self):
        return True

    def check_classes(self):
        """Raises SourceError where a class folder holds no images."""
        empty = [name for name, count in zip(self.class_names, self.class_counts()) if not count]
        if empty:
            raise SourceError(
                f"{self.root}: {len(empty)} of {len(self.class_names)} class folders hold no images:"
                f" {some(empty)};"
                " fill or remove them (for a val split that lacks some classes of train, give"
                " class_names_from)"
            )

    @property
    def reader(self):
        return FolderTree((), self.labels[:0], self.root, ())

    def handles(self, indices):
        return [self.files[i] for i in indices]

    def read(self, handle):
        return os.path.join(self.root, handle), handle


def find_split(data_dir, split):
    """The folder in or at `data_dir` that holds the class folders of `split`. Raises SourceError.

    For "val" that may also be test/, where there is no val/. If `data_dir` is plainly the root of a dataset
    but lacks this split, that is an error, because its folders would become classes called train and val.
    ImageNet's val, before it is sorted into class folders, is such a case.
    """
    root = Path(data_dir)
    _must_be_folder(root, "data_dir")
    candidates = (split, "test") if split == "val" else (split,)
    for candidate in candidates:
        if _holds_class_folders(root / candidate):
            return root / candidate
    folders = _subfolders(root)
    other_splits = [name for name in folders if name in _SPLIT_FOLDERS and _holds_class_folders(root / name)]
    if other_splits or (folders and _SPLIT_FOLDERS.issuperset(folders)):
        found = f"{', '.join(other_splits)} does" if other_splits else f"{', '.join(folders)} do not"
        can_hold_out = split == "val" and "train" in other_splits
        raise SourceError(
            f"split={split}: {root} holds no folder {' or '.join(candidates)} that holds a folder of images"
            " per class"
            f" ({found}); sort its images into class folders, or give the folder that holds them as data_dir"
            + (", or hold a val split out of train with val_fraction" if can_hold_out else "")
        )
    return root


def _must_be_folder(path, what):
    if not path.exists():
        raise SourceError(f"{what} {path} does not exist")
    if not path.is_dir():
        raise SourceError(f"{what} {path} is a file; a folder is needed")


def _subfolders(folder):
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _holds_class_folders(folder):
    """Whether `folder` holds folders and no images beside them."""
    if not folder.is_dir():
        return False
    entries = _entries(folder)
    has_images = any(is_image_name(entry.name) for entry in entries if not entry.is_dir())
    return any(entry.is_dir() for entry in entries) and not has_images


def _entries(folder):
    """What `folder` holds, sorted by name, without hidden files. Raises SourceError."""
    try:
        with os.scandir(folder) as listing:
            visible = (entry for entry in listing if not entry.name.startswith("."))
            return sorted(visible, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{printable(folder)} cannot be listed: {error.strerror}") from error


def open_tree(root, may_be_empty=False):
    """The tree `root`: its sorted folders are the classes; their images are found at any depth, and sorted.

    Hidden files are ignored; files that are not images are counted in `notes`. Links are followed. Raises
    SourceError where `root` is no folder, holds no class folder or no image, or has a class without images
    (unless `may_be_empty`).
    """
    root = Path(root)
    _must_be_folder(root, "image folder")
    class_names = _subfolders(root)
    files, labels, others = [], [], []
    for label, class_name in enumerate(class_names):
        found = _images_below(root, class_name, others)
        files += found
        labels += [label] * len(found)
    beside = [entry.name for entry in _entries(root) if is_image_name(entry.name) and not entry.is_dir()]
    hint = f"; the images directly in it, like {beside[0]}, have no class" if beside else ""
    if not class_names:
        raise SourceError(f"{root} holds no folder: one folder of images per class is needed{hint}")
    if not files:
        raise SourceError(
            f"{root} holds no images in its {len(class_names)} folders ({some(class_names)}); "
            f"images end in {' '.join(sorted(IMAGE_SUFFIXES))}{hint}"
        )
    notes = [f"{len(files):,} images in {len(class_names)} class folders of {root}"]
    if others:
        notes.append(
            f"{len(others)} files there are not images by their names and were ignored, like {others[0]}"
        )
    if beside:
        notes.append(
            f"{len(beside)} images directly in {root} have no class and were ignored, like {beside[0]}"
        )
    tree = FolderTree(
        tuple(class_names), np.array(labels, np.int64), os.fspath(root), tuple(files), notes=tuple(notes)
    )
    if not may_be_empty:
        tree.check_classes()
    return tree


def _images_below(root, relative, others, above=()):
    """Sorted paths, relative to `root`, of the images in its folder `relative` and below.

    Other files are added to `others`. above: identities of the folders around this one.
    """
    folder = os.path.join(root, relative)
    entries = _entries(folder)
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise SourceError(f"{printable(folder)} is a link to a folder that contains it: remove the link")
    found = []
    for entry in entries:
        path = os.path.join(relative, entry.name)
        if entry.is_dir():
            found += _images_below(root, path, others, (*above, identity))
        elif is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
            # A broken link is kept: reading it is an error with its name, not a silently missing image.
            found.append(path)
        else:
            others.append(path)
    return found
