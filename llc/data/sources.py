"""Where images and labels come from: a tree with a folder per class, or a torchvision dataset by name.

A source has `class_names` (in label order), `labels` (int64 [len]), and for each index `image(i)`, which is what
`llc.data.images.load_rgb` takes, and `name(i)`, which is what a message calls it. Other processes get its `reader` once, and then
`handles` for the images that they are to read. `open_source` makes the one that was asked for,
holding the images of one split. The order of its images is the same on every machine.
"""

import difflib
import gzip
import inspect
import os
import re
import socket
import struct
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llc.data.images import ImageError
from llc.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
SPLITS = ("train", "val")
# A folder with nothing but these in it is the root of a dataset, not a dataset with these classes.
_SPLIT_FOLDERS = frozenset(("train", "training", "val", "valid", "validation", "test"))

FASHION_MNIST_FOLDER = (
    "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DOWNLOAD_FOLDER = "data"  # for a named dataset without a data_dir
_SOCKET_TIMEOUT_SECONDS = 30  # torchvision's downloads set none, and would wait for a silent server for ever


class SourceError(UserError):
    """A source that cannot be used as it is; the message says what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Source:
    """Images by index. `labels` int64 [len]; `notes` are lines for the user about what was found."""

    class_names: tuple
    labels: np.ndarray
    notes: tuple = field(default=(), kw_only=True)

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        raise NotImplementedError

    def name(self, i):
        raise NotImplementedError

    @property
    def reader(self):
        """What `read`s this source's handles, without the lists that can be long: to be sent to other processes."""
        return self

    def handles(self, indices):
        """What `reader.read` takes for the images at `indices`, a list."""
        return indices.tolist()

    def read(self, handle):
        """(image, name) of one of `handles`, as `image` and `name` give them. Raises ImageError."""
        return self.image(handle), self.name(handle)

    def class_counts(self):
        """Images per class, int64 [num_classes]."""
        return np.bincount(self.labels, minlength=len(self.class_names))


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
    def reader(self):
        return FolderTree((), self.labels[:0], self.root, ())

    def handles(self, indices):
        return [self.files[i] for i in indices]

    def read(self, handle):
        return os.path.join(self.root, handle), handle


@dataclass(frozen=True)
class IndexedDataset(Source):
    """Anything that gives (image, label) by index, such as a torchvision dataset; an image is a PIL image, bytes or a path."""

    title: str
    dataset: object

    def image(self, i):
        try:
            return self.dataset[i][0]
        except Exception as error:  # many open the image themselves
            raise ImageError(self.name(i), f"cannot be read: {_one_line(error)}") from error

    def name(self, i):
        return f"{self.title}[{i}]"


@dataclass(frozen=True)
class Selection(Source):
    """Some images of another source, in the order of `indices`, int64 [len]; `class_names` and `labels` are its own."""

    source: Source
    indices: np.ndarray

    def image(self, i):
        return self.source.image(self.indices[i])

    def name(self, i):
        return self.source.name(self.indices[i])

    @property
    def reader(self):
        return self.source.reader

    def handles(self, indices):
        return self.source.handles(self.indices[indices])


def open_source(dataset, data_dir, split="train", val_fraction=0.0, class_names=None, subset=-1):
    """The images that `write_ffcv.py` is asked for, as a Source.

    dataset         "folder" (or "imagenet"): the tree `data_dir`; else a torchvision dataset by name, in `data_dir`
    split           "train" or "val". A tree: its subfolder of that name (for "val" also "test", where there is no "val"), if that
                    holds class folders; else `data_dir` itself.
    val_fraction    if above 0, this share of each class of the *training* images is held out as "val", and "train" is the rest
    class_names     if given, the label order; the source's own classes must be among them
    subset          this many images, evenly spaced over all of them (the first ones of a tree would be of the first classes
                    only); -1 for all

    Raises SourceError.
    """
    if split not in SPLITS:
        raise SourceError(f"split={split!r} is not a split; there are: {', '.join(SPLITS)}")
    if not 0 <= val_fraction < 1:
        raise SourceError(
            f"val_fraction={val_fraction} is not a share of the images: 0 (none) <= val_fraction < 1"
        )
    part = "train" if val_fraction > 0 else split
    if dataset.lower() in ("folder", "imagenet"):
        if not data_dir:
            raise SourceError(
                "data_dir is missing: give the folder that holds one folder of images per class"
            )
        source = open_tree(find_split(data_dir, part), may_be_empty=class_names is not None)
    else:
        source = open_named(dataset, data_dir, part)
    if class_names is not None:
        source = with_class_names(source, class_names)
    if val_fraction > 0:
        source = hold_out(source, val_fraction, split)
    if subset != -1:
        source = spread(source, subset)
    return source


# ------------------------------------------------------------------------------------------------ a folder per class


def find_split(data_dir, split):
    """The folder in (or at) `data_dir` that holds the class folders of `split`. Raises SourceError.

    Where `data_dir` is plainly the root of a dataset, but without this split, that is an error: its folders would become classes
    called train and val (ImageNet's val, before it is sorted into class folders, is such a case).
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
        raise SourceError(
            f"split={split}: {root} holds no folder {' or '.join(candidates)} that holds a folder of images per class ({found}); sort its"
            " images into class folders, or give the folder that holds them as data_dir"
            + (
                ", or hold a val split out of train with val_fraction"
                if split == "val" and "train" in other_splits
                else ""
            )
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
    return any(entry.is_dir() for entry in entries) and not any(
        is_image_name(entry.name) for entry in entries if not entry.is_dir()
    )


def _entries(folder):
    """What `folder` holds, sorted by name, without what begins with a dot. Raises SourceError."""
    try:
        with os.scandir(folder) as listing:
            return sorted(
                (entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        raise SourceError(f"{printable(folder)} cannot be listed: {error.strerror}") from error


def is_image_name(name):
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def open_tree(root, may_be_empty=False):
    """The tree `root`: its folders, sorted, are the classes; their images are found at any depth, and sorted.

    Names that begin with a dot are passed over; other files than images are counted in `notes`. Links are followed.
    Raises SourceError where `root` is no folder, holds no class folder or no image, or has a class without images
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
    counts = Counter(labels)
    beside = [entry.name for entry in _entries(root) if is_image_name(entry.name) and not entry.is_dir()]
    hint = f"; the images directly in it, like {beside[0]}, have no class" if beside else ""
    if not class_names:
        raise SourceError(f"{root} holds no folder: one folder of images per class is needed{hint}")
    if not files:
        raise SourceError(
            f"{root} holds no images in its {len(class_names)} folders ({_some(class_names)}); "
            f"images end in {' '.join(sorted(IMAGE_SUFFIXES))}{hint}"
        )
    empty = [name for label, name in enumerate(class_names) if not counts[label]]
    if empty and not may_be_empty:
        raise SourceError(
            f"{root}: {len(empty)} of {len(class_names)} class folders hold no images: {_some(empty)}; fill or remove them"
            " (for a val split that lacks some classes of train, give class_names_from)"
        )
    notes = [f"{len(files):,} images in {len(class_names)} class folders of {root}"]
    if others:
        notes.append(
            f"{len(others)} files there are not images by their names and were passed over, like {others[0]}"
        )
    if beside:
        notes.append(
            f"{len(beside)} images directly in {root} have no class and were passed over, like {beside[0]}"
        )
    return FolderTree(
        tuple(class_names), np.array(labels, np.int64), os.fspath(root), tuple(files), notes=tuple(notes)
    )


def _images_below(root, relative, others, above=()):
    """Paths relative to `root` of the images in its folder `relative` and below, sorted; non-images are added to `others`."""
    folder = os.path.join(root, relative)
    entries = _entries(folder)
    identity = os.stat(folder)
    identity = (identity.st_dev, identity.st_ino)
    if identity in above:
        raise SourceError(f"{printable(folder)} is a link to a folder that it lies in: remove the link")
    found = []
    for entry in entries:
        path = os.path.join(relative, entry.name)
        if entry.is_dir():
            found += _images_below(root, path, others, (*above, identity))
        elif is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
            found.append(
                path
            )  # a broken link is kept: reading it is an error with its name, not an image fewer
        else:
            others.append(path)
    return found


def printable(name):
    """File names are bytes; those that are not UTF-8 are shown with escapes."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _some(names, limit=20):
    names = [printable(name) for name in names]
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")


# ------------------------------------------------------------------------------------------------ datasets by name


def open_named(dataset, data_dir, split):
    """The torchvision dataset called `dataset` (any case; `cifar` is CIFAR10) in `data_dir`, downloaded where it is not there.

    Fashion-MNIST is read without torchvision, from its four files as they are published, packed or not. Raises SourceError.
    """
    if dataset.lower() in ("fashionmnist", "fashion-mnist", "fashion_mnist"):
        folder = _find_fashion_mnist(data_dir, split)
        if folder is not None:
            return _open_fashion_mnist(folder, split)
        dataset = "FashionMNIST"
    root = Path(data_dir or DOWNLOAD_FOLDER)
    if data_dir and root.exists() and not root.is_dir():
        raise SourceError(f"data_dir {root} is a file; a folder is needed")
    cls = _torchvision_class({"cifar": "CIFAR10"}.get(dataset.lower(), dataset))
    instance, note = _construct(cls, root, split)
    labels = _labels_of(instance, cls.__name__)
    class_names = _class_names_of(instance, labels, cls.__name__)
    return IndexedDataset(class_names, labels, f"{cls.__name__} {split}", instance, notes=(note,))


def _torchvision_class(name):
    import torchvision.datasets as datasets  # seconds of import that a folder tree need not pay

    classes = {
        known.lower(): getattr(datasets, known)
        for known in datasets.__all__
        if known not in ("ImageFolder", "DatasetFolder", "FakeData", "VisionDataset")
    }
    if name.lower() not in classes:
        near = difflib.get_close_matches(name.lower(), [*classes, "folder"], n=3, cutoff=0.5)
        near = [classes[match].__name__ if match in classes else match for match in near]
        raise SourceError(
            f"dataset={name} is not known"
            + (f"; did you mean {' or '.join(near)}?" if near else ";")
            + " It may be folder (one folder of images per class) or the name of a torchvision dataset, such as FashionMNIST,"
            " CIFAR10, CIFAR100 or SVHN"
        )
    return classes[name.lower()]


def _construct(cls, root, split):
    """An instance of a torchvision dataset for our split, and a line that says where it came from."""
    accepted = inspect.signature(cls.__init__).parameters
    if "train" in accepted and "split" not in accepted:
        choices = [{"train": split == "train"}]
    elif "split" in accepted and "train" not in accepted:
        names = ("train", "trainval", "train-standard") if split == "train" else ("val", "valid", "test")
        choices = [{"split": name} for name in names]
    elif "split" in accepted:
        raise SourceError(
            f"dataset={cls.__name__} comes in several divisions; turn the one you want into a folder tree"
        )
    elif split == "train":
        choices = [{}]
    else:
        raise SourceError(
            f"dataset={cls.__name__} has one split only; write train and val with val_fraction, such as val_fraction=0.1"
        )
    existed = root.exists()
    for place, extra in _places(accepted):
        for choice in choices:
            try:
                with _socket_timeout():
                    instance = cls(os.fspath(root), **choice, **extra)
            except Exception as error:
                if (
                    isinstance(error, ValueError)
                    and "Unknown value" in str(error)
                    and choice is not choices[-1]
                ):
                    continue  # this dataset has another name for the split
                failure = error
                break
            used = "".join(f", {key}={value}" for key, value in choice.items())
            return instance, f"{cls.__name__}{used}: {place} {root}"
    if not existed:
        _remove_empty_folders(root)
    if "Unknown value" in str(failure):
        raise SourceError(
            f"dataset={cls.__name__} has no split that could be {split}: {_one_line(failure)}; make a tree of the images that you want"
        ) from failure
    message = f"dataset={cls.__name__}, split={split}: not found in {root.absolute()}, and "
    if "download" in accepted:
        message += f"it could not be downloaded: {_one_line(failure)}. Put its files there as torchvision lays them out, or run this"
        message += " where there is a network"
    else:
        message += f"torchvision does not download it: {_one_line(failure)}"
    if cls.__name__ == "FashionMNIST":
        message += f"; Debian's package dataset-fashion-mnist has them too, in {FASHION_MNIST_FOLDER}"
    raise SourceError(message) from failure


def _remove_empty_folders(root):
    """torchvision makes its folders before it knows whether it has anything to put there."""
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return


def _places(accepted):
    """First what is on the disk, then the network."""
    yield "read from", {"download": False} if "download" in accepted else {}
    if "download" in accepted:
        yield "downloaded to", {"download": True}


@contextmanager
def _socket_timeout():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _one_line(error):
    return re.sub(r"\s+", " ", str(error)).strip().rstrip(".") or type(error).__name__


def _labels_of(dataset, title):
    """int64 [len(dataset)]; torchvision's datasets keep them under several names. Raises SourceError."""
    for attribute in ("targets", "labels", "_labels", "y"):
        labels = getattr(dataset, attribute, None)
        if labels is not None and not callable(labels) and len(labels) == len(dataset):
            break
    else:
        try:
            labels = [dataset[i][1] for i in range(len(dataset))]
        except Exception as error:
            raise SourceError(f"dataset={title}: its labels cannot be read: {_one_line(error)}") from error
    try:
        labels = np.asarray(labels)
    except Exception as error:
        raise SourceError(
            f"dataset={title}: its labels are not one number per image: {_one_line(error)}"
        ) from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
        raise SourceError(
            f"dataset={title} is not for classification: its labels are not one class number per image"
        )
    return labels.astype(np.int64)


def _class_names_of(dataset, labels, title):
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    num_classes = int(labels.max()) + 1
    if not names:
        return tuple(str(label) for label in range(num_classes))
    names = tuple(
        " / ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name) for name in names
    )
    if len(names) < num_classes:
        raise SourceError(f"dataset={title} has {len(names)} class names, but labels up to {num_classes - 1}")
    if len(set(names)) < len(names):  # ImageNet has two classes called "maillot"
        repeated = {name for name, count in Counter(names).items() if count > 1}
        names = tuple(f"{name} ({label})" if name in repeated else name for label, name in enumerate(names))
    return names


def _find_fashion_mnist(data_dir, split):
    """The folder that holds the two files of this split of Fashion-MNIST, or None."""
    if data_dir:
        folders = [Path(data_dir), Path(data_dir, "FashionMNIST", "raw"), Path(data_dir, "raw")]
    else:
        folders = [Path(DOWNLOAD_FOLDER, "FashionMNIST", "raw")]
    for folder in [*folders, Path(FASHION_MNIST_FOLDER)]:
        if all(_idx_file(folder, split, kind) for kind in ("images-idx3", "labels-idx1")):
            return folder
    return None


def _idx_file(folder, split, kind):
    stem = f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def _open_fashion_mnist(folder, split):
    pictures = _read_idx(_idx_file(folder, split, "images-idx3"), num_axes=3)
    labels = _read_idx(_idx_file(folder, split, "labels-idx1"), num_axes=1).astype(np.int64)
    if len(pictures) != len(labels) or not len(labels) or labels.max() >= len(FASHION_MNIST_CLASSES):
        raise SourceError(
            f"{folder}: not Fashion-MNIST: {len(pictures)} images, {len(labels)} labels up to {labels.max(initial=-1)}"
        )
    note = f"FashionMNIST, {split}: read from {folder}"
    return IndexedDataset(
        FASHION_MNIST_CLASSES, labels, f"FashionMNIST {split}", _GreyPictures(pictures), notes=(note,)
    )


@dataclass(frozen=True)
class _GreyPictures:
    """uint8 [n, H, W] as a dataset of PIL images."""

    pixels: np.ndarray

    def __getitem__(self, i):
        from PIL import Image  # here: see images.py

        return (Image.fromarray(self.pixels[i]),)


def _read_idx(path, num_axes):
    """An IDX file of bytes, packed by gzip or not -> uint8 array. The format: yann.lecun.com/exdb/mnist."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read: {_one_line(error)}") from error
    head = 4 + 4 * num_axes
    if len(data) < head or data[:4] != bytes((0, 0, 8, num_axes)):
        raise SourceError(f"{path} is not an IDX file of bytes with {num_axes} axes")
    shape = struct.unpack(f">{num_axes}I", data[4:head])
    size = 1
    for length in shape:
        size *= length
    if len(data) != head + size:
        raise SourceError(f"{path} is cut off: {len(data) - head} bytes of data, where {shape} needs {size}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


# ------------------------------------------------------------------------------------------------ parts of a source


def with_class_names(source, class_names):
    """The same images, labelled by `class_names`. Raises SourceError where the source has a class that is not among them."""
    position = {name: label for label, name in enumerate(class_names)}
    strange = [name for name in source.class_names if name not in position]
    if strange:
        missing = [name for name in class_names if name not in set(source.class_names)]
        raise SourceError(
            f"{len(strange)} classes are not among the {len(class_names)} of class_names_from: {_some(strange)}"
            + (f"; without images here: {_some(missing)}" if missing else "")
        )
    labels = np.array([position[name] for name in source.class_names], np.int64)[source.labels]
    counts = np.bincount(labels, minlength=len(class_names))
    without = [name for name, count in zip(class_names, counts) if not count]
    notes = source.notes
    if without:
        notes += (
            f"{len(without)} of {len(class_names)} classes have no images in this split: {_some(without)}",
        )
    # Ordered by label again, as a tree sorted by these names would be.
    order = np.argsort(labels, kind="stable") if isinstance(source, FolderTree) else np.arange(len(labels))
    return Selection(tuple(class_names), labels[order], source, order, notes=notes)


def hold_out(source, val_fraction, split):
    """One side of a division of each class: `val` gets `val_fraction` of its images, evenly spaced, at least 1 and never all.

    The two sides are disjoint and together hold every image. Raises SourceError where a class has a single image.
    """
    held_out = np.zeros(len(source), bool)
    alone = []
    order = np.argsort(source.labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(source.class_counts())])
    for label, name in enumerate(source.class_names):
        indices = order[starts[label] : starts[label + 1]]
        if len(indices) == 1:
            alone.append(name)
        elif len(indices) > 1:
            num_val = min(max(round(val_fraction * len(indices)), 1), len(indices) - 1)
            held_out[indices[_evenly_spaced(num_val, len(indices))]] = True
    if alone:
        raise SourceError(
            f"val_fraction={val_fraction} cannot divide classes of a single image: {_some(alone)}"
        )
    indices = np.flatnonzero(held_out if split == "val" else ~held_out)
    note = f"val_fraction={val_fraction}: {held_out.sum():,} of {len(source):,} images held out as val; these are {split}'s"
    return _select(source, indices, note)


def spread(source, count):
    """`count` images, evenly spaced. Raises SourceError where there are fewer."""
    if not 1 <= count <= len(source):
        raise SourceError(
            f"subset={count}: there are {len(source)} images (1 to {len(source)}, or -1 for all)"
        )
    return _select(
        source,
        _evenly_spaced(count, len(source)),
        f"subset={count}: evenly spaced over {len(source):,} images",
    )


def _evenly_spaced(count, total):
    """`count` different positions in range(total), int64."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


def _select(source, indices, note):
    return Selection(source.class_names, source.labels[indices], source, indices, notes=(*source.notes, note))
