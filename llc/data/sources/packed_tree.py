"""A zip or tar that holds a folder of images per class, alone or below folders called train and val."""

import os
from dataclasses import dataclass, replace

import numpy as np

from llc.data.sources.archive import (
    RANGE_TYPE,
    ArchiveImages,
    Container,
    Names,
    OpenFile,
    RangeReader,
    as_text,
    components,
    is_hidden,
    is_image,
)
from llc.data.sources.base import SPLIT_FOLDERS, SourceError, printable, refuse_empty_classes, register
from llc.data.sources.tar import Tar
from llc.data.sources.zip import PLACE_TYPE, Zip, ZipReader

_LOOKED_AT = 1000  # members, to see whether a zip is Kaggle's
_SPLITS = {"train": (b"train",), "val": (b"val", b"test")}  # as in a tree of folders
_SPLIT_FOLDERS = frozenset(name.encode() for name in SPLIT_FOLDERS)


def _is_zip(data_dir):
    path = os.fspath(data_dir)
    return path.lower().endswith(".zip") and os.path.isfile(path) and not is_kaggle_zip(path)


def is_kaggle_zip(path):
    """Whether the first members of the zip `path` are those of ImageNet's zip from Kaggle."""
    try:
        members = zip(Zip(OpenFile(Container.of(path))), range(_LOOKED_AT))
        return any(b"ILSVRC" in components(name)[:-1] for (name, _), _ in members)
    except SourceError:
        return False  # opening it says why


@register("zip", recognises=_is_zip)
def open_zip(data_dir, split):
    """The images of a zip whose folders are the classes. Raises SourceError."""
    if not data_dir:
        raise SourceError("data_dir is missing: give the zip, such as images.zip")
    container = Container.of(data_dir)
    archive = Zip(OpenFile(container))
    return arrange(
        archive, archive.title, split, TreeBuilder(container, PLACE_TYPE, ZipReader, archive.check)
    )


@register("tar")
def open_tar(data_dir, split):
    """The images of a tar whose folders are the classes. Raises SourceError."""
    if not data_dir:
        raise SourceError("data_dir is missing: give the tar, such as images.tar")
    tar = Tar.open(data_dir)
    members = ((name, (0, offset, size)) for name, offset, size in tar)
    source = arrange(members, tar.title, split, TreeBuilder(tar.container, RANGE_TYPE, RangeReader))
    return replace(source, notes=(*source.notes, *tar.notes))


@dataclass(frozen=True)
class PackedTree(ArchiveImages):
    """Images of an archive in folders of classes, in the order that they would have when unpacked."""

    def check_classes(self):
        """Raises SourceError where a class folder holds no images."""
        refuse_empty_classes(self, self.containers[0].path)


class TreeBuilder:
    """Collects members of an archive, class by class, and makes a PackedTree of them.

    place_type: a row of what `reader_class` takes. check(name, row) raises SourceError for a member that
    cannot be read.
    """

    def __init__(self, container, place_type, reader_class, check=None):
        self._container, self._type, self._reader_class = container, place_type, reader_class
        self._check = check
        self._names, self._rows = [], []
        self._classes = {}  # {class name: numbers of its images}
        self.others = []  # members that are not images
        self.beside = []  # images without a class
        self.num_hidden = 0

    def add_class(self, class_name):
        """class_name: bytes."""
        return self._classes.setdefault(class_name, [])

    def add(self, class_name, name, place):
        """name: the member's name below the root of the tree, with its class folder."""
        if self._check is not None:
            self._check(name, place)
        self.add_class(class_name).append(len(self._names))
        self._names.append(name)
        # Packed at once, because a million tuples of integers would take a lot of memory.
        self._rows.append(np.array(place, self._type).tobytes())

    def tree(self, title):
        """The PackedTree. title: what messages call it. Raises SourceError."""
        if not self._names:
            hint = (
                f"; the images directly in it, like {_shown(self.beside[0])}, have no class"
                if self.beside
                else ""
            )
            raise SourceError(
                f"{title} holds no folders of images: one folder of images per class is needed{hint}"
            )
        class_names = sorted(self._classes, key=as_text)
        order, labels = [], []
        for label, class_name in enumerate(class_names):
            # Folder by folder, which is the order of an unpacked tree.
            found = sorted(
                self._classes[class_name], key=lambda number: self._names[number].replace(b"/", b"\0")
            )
            for one, other in zip(found, found[1:]):
                if self._names[one] == self._names[other]:
                    raise SourceError(
                        f"{title}: {_shown(self._names[one])} is there twice; pack the images again"
                    )
            order += found
            labels += [label] * len(found)
        notes = [f"{len(order):,} images in {len(class_names)} class folders of {title}"]
        for found, what in (
            (self.others, "files there are not images by their names and were ignored"),
            (self.beside, "images outside class folders have no class and were ignored"),
        ):
            if found:
                notes.append(f"{len(found):,} {what}, like {_shown(found[0])}")
        if self.num_hidden:
            notes.append(
                f"{self.num_hidden:,} hidden files there were ignored, such as those that macOS adds"
            )
        return PackedTree(
            tuple(map(as_text, class_names)),
            np.array(labels, np.int64),
            (self._container,),
            np.frombuffer(b"".join(self._rows), self._type)[order],
            Names(self._names[number] for number in order),
            self._reader_class,
            notes=tuple(notes),
        )


def _shown(name):
    return printable(as_text(name))


def arrange(members, title, split, builder):
    """The PackedTree of one split of an archive, as the same files in folders would give it.

    members: (name, row of the builder's type) of each. Raises SourceError.
    """
    kept, folders = [], _Folders()
    for name, place in members:
        parts = components(name)
        if not parts:
            continue
        if is_hidden(parts):
            builder.num_hidden += 1
        elif name.endswith(b"/"):
            folders.add(tuple(parts))
        else:
            folders.add(tuple(parts[:-1]), holds_images=is_image(parts[-1]))
            kept.append((b"/".join(parts), place))
    root = folders.of_split(title, split)
    for class_name in folders.below(root):
        builder.add_class(class_name)
    prefix = b"".join(part + b"/" for part in root)
    for name, place in kept:
        if not name.startswith(prefix):
            continue
        name = name[len(prefix) :]
        class_name, slash, _ = name.partition(b"/")
        if not is_image(name):
            builder.others.append(name)
        elif slash:
            builder.add(class_name, name, place)
        else:
            builder.beside.append(name)
    return builder.tree(title + (f", folder {_shown(prefix[:-1])}" if root else ""))


class _Folders:
    """The folders of an archive, as tuples of their names from its root on."""

    def __init__(self):
        self._below = {(): set()}
        self._with_images = set()

    def add(self, folder, holds_images=False):
        if holds_images:
            self._with_images.add(folder)
        if folder not in self._below:
            self._below[folder] = set()
            self.add(folder[:-1])
            self._below[folder[:-1]].add(folder[-1])

    def below(self, folder):
        """The names of the folders in `folder`."""
        return self._below.get(folder, ())

    def _holds_class_folders(self, folder):
        return bool(self.below(folder)) and folder not in self._with_images

    def of_split(self, title, split):
        """The folder that holds the class folders of a split; like find_split (folder.py) for a tree."""
        root = ()
        while root not in self._with_images and len(self.below(root)) == 1:
            (name,) = self.below(root)  # one folder around everything, as many zips have it
            if name in _SPLIT_FOLDERS or not self.below((*root, name)):
                break
            root = (*root, name)
        for name in _SPLITS[split]:
            if self._holds_class_folders((*root, name)):
                return (*root, name)
        others = sorted(
            name.decode()
            for name in self.below(root)
            if name in _SPLIT_FOLDERS and self._holds_class_folders((*root, name))
        )
        if others:
            wanted = " or ".join(name.decode() for name in _SPLITS[split])
            raise SourceError(
                f"split={split}: {title} holds no folder {wanted} that holds a folder of images per class"
                f" ({', '.join(others)} does)"
                + (
                    "; give another zip or tar, or hold a val split out of train with val_fraction"
                    if split == "val" and "train" in others
                    else ""
                )
            )
        return root
