"""A tree with a folder of images per class, alone or below folders called train and val."""

import glob
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llc.data.sources.base import (
    IMAGE_SUFFIXES,
    SPLIT_FOLDERS,
    Source,
    SourceError,
    printable,
    refuse_empty_classes,
    register,
    some,
)
from llc.data.sources.listing import does_not_exist, is_file, is_folder, listing, must_be_folder, status_of
from llc.data.sources.table import looks_like_table


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
        refuse_empty_classes(self, self.root)

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
    _check_root(root)
    candidates = (split, "test") if split == "val" else (split,)
    for candidate in candidates:
        if _holds_class_folders(root / candidate):
            return root / candidate
    folders = listing(root, broken_images=False).folders
    other_splits = [name for name in folders if name in SPLIT_FOLDERS and _holds_class_folders(root / name)]
    if other_splits or (folders and set(SPLIT_FOLDERS).issuperset(folders)):
        found = f"{', '.join(other_splits)} does" if other_splits else f"{', '.join(folders)} do not"
        can_hold_out = split == "val" and "train" in other_splits
        raise SourceError(
            f"split={split}: {printable(root)} holds no folder {' or '.join(candidates)} that holds a folder"
            f" of images per class ({found}); sort its images into class folders, or give the folder that"
            " holds them as data_dir"
            + (", or hold a val split out of train with val_fraction" if can_hold_out else "")
        )
    return root


def _check_root(root):
    """Raises SourceError unless `root` is a folder; nothing else may be meant, as no other source took it."""
    if status_of(root) is None:
        hint = ". Wildcards stand for tars and Parquet files only; give several folders with commas between"
        raise does_not_exist(root, f"{hint} them" if glob.has_magic(str(root)) else "")
    if is_file(root):
        raise SourceError(
            f"data_dir {printable(root)} is a file of an unknown kind. A folder of images per class is"
            " needed, or a .tar, .zip, .parquet, .csv, .tsv, .jsonl or .lmdb file"
        )
    must_be_folder(root, "data_dir")


def _holds_class_folders(folder):
    """Whether `folder` holds folders and no images beside them."""
    if not is_folder(folder):
        return False
    found = listing(folder)
    return bool(found.folders) and not found.images


def open_tree(root, may_be_empty=False):
    """The tree `root`: its sorted folders are the classes; their images are found at any depth, and sorted.

    Hidden files are ignored. Files that are not images are counted in `notes`, and what systems make, such as
    lost+found, is ignored and named there. Links are followed. Raises SourceError where `root` is no folder,
    holds no class folder or no image, has a class without images (unless `may_be_empty`), or where it or a
    folder below it holds a link that leads nowhere, a socket or a device. A broken link in a class that is
    called like an image is one that cannot be read.
    """
    root = Path(root)
    must_be_folder(root, "image folder")
    shown, top = printable(root), listing(root, broken_images=False)
    files, labels, others, ignored = [], [], [], list(top.ignored)
    for label, class_name in enumerate(top.folders):
        found = _images_below(root, class_name, others, ignored)
        files += found
        labels += [label] * len(found)
    beside = [printable(name) for name in top.images]
    hint = f"; the images directly in it, like {beside[0]}, have no class" if beside else ""
    if not top.folders:
        if top.others:
            hint += f"; it holds files of an unknown kind, like {printable(top.others[0])}"
        made = f"; {some(ignored)} is made by systems" if ignored else ""
        raise SourceError(f"{shown} holds no folder: one folder of images per class is needed{hint}{made}")
    if not files:
        raise SourceError(
            f"{shown} holds no images in its {len(top.folders)} folders ({some(top.folders)}); "
            f"images end in {' '.join(sorted(IMAGE_SUFFIXES))}{hint}"
        )
    folders = f"{len(top.folders)} class folder{'s' * (len(top.folders) != 1)}"
    notes = [f"{len(files):,} images in {folders} of {shown}"]
    if len(top.folders) == 1 and all(name.count("/") > 1 for name in files):
        below = printable(root / top.folders[0])
        notes.append(f"that is one class; if the folders in {below} are the classes, name it instead")
    if others:
        notes.append(
            f"{len(others)} files there are not images by their names and were ignored, like"
            f" {printable(min(others))}"
        )
    if beside:
        notes.append(
            f"{len(beside)} images directly in {shown} have no class and were ignored, like {beside[0]}"
        )
    if ignored:
        notes.append(f"made by systems, not by people, and ignored: {some(ignored, 5)}")
    tables = [name for name in top.others if looks_like_table(root / name)]
    if tables and len(top.folders) == 1:
        notes.append(
            f"beside the only folder lies {printable(tables[0])}; if it is the table of the images and their"
            f" labels, give {printable(root / tables[0])} in place of {shown}"
        )
    notes += _lookalikes(top.folders)
    tree = FolderTree(
        top.folders, np.array(labels, np.int64), os.fspath(root), tuple(files), notes=tuple(notes)
    )
    if not may_be_empty:
        tree.check_classes()
    return tree


def _images_below(root, class_name, others, ignored):
    """Sorted paths, relative to `root`, of the images in its folder `class_name` and below.

    Other files are added to `others`, and what systems make to `ignored`.
    """
    found = []
    entered = [_Entered.of(root, class_name, others, ignored)]  # the folders around the current one, and it
    while entered:
        kind, path = next(entered[-1].left, (None, None))
        if kind is None:
            entered.pop()
        elif kind == "image":
            found.append(path)
        else:
            inner = _Entered.of(root, path, others, ignored)
            if inner.identity in [outer.identity for outer in entered]:
                link = printable(os.path.join(root, _innermost_link(root, path)))
                raise SourceError(f"{link} is a link to a folder that contains it: remove the link")
            entered.append(inner)
    return found


def _innermost_link(root, path):
    """The beginning of `path` that ends at its last symbolic link; of a folder that is entered twice."""
    while not os.path.islink(os.path.join(root, path)) and os.path.dirname(path):
        path = os.path.dirname(path)
    return path


@dataclass(frozen=True)
class _Entered:
    """A folder that is being read. left: iterator of ("folder" or "image", path), sorted by name."""

    identity: tuple
    left: Iterator

    @classmethod
    def of(cls, root, relative, others, ignored):
        """Opens the folder `relative` below `root`; adds what is neither to `others` and `ignored`."""
        folder = os.path.join(root, relative)
        status = status_of(folder)
        if status is None:
            raise SourceError(f"{printable(folder)} was removed while its images were listed: start again")
        content = listing(folder)
        others += [os.path.join(relative, name) for name in content.others]
        ignored += [os.path.join(relative, name) for name in content.ignored]
        both = [(name, "folder") for name in content.folders] + [(name, "image") for name in content.images]
        left = ((kind, os.path.join(relative, name)) for name, kind in sorted(both))
        return cls((status.st_dev, status.st_ino), left)


def _lookalikes(class_names):
    """Notes on names that differ only by case or by the encoding of accents; some systems mix them up."""
    groups = defaultdict(list)
    for name in class_names:
        decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
        groups[decomposed].append(name)
    groups = [group for group in groups.values() if len(group) > 1]
    if not groups:
        return []
    shown = []
    for group in groups[:5]:
        same = len({unicodedata.normalize("NFC", name) for name in group}) < len(group)
        # Names that look the same on a screen are shown by the numbers of their characters.
        shown.append(" and ".join(ascii(name) if same else printable(name) for name in group))
    more = f", and {len(groups) - 5} more" if len(groups) > 5 else ""
    return [
        "class folders that differ only by case or by the encoding of accents stay different classes:"
        f" {', '.join(shown)}{more}"
    ]
