"""torchvision's datasets, by name: read from data_dir, and downloaded where they are not there."""

import inspect
import os
import socket
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llc.data.sources.base import DOWNLOAD_FOLDER, IndexedDataset, SourceError, one_line, printable
from llc.data.sources.listing import must_be_folder, status_of

_SOCKET_TIMEOUT_SECONDS = 30  # torchvision's downloads have no time-out: a silent server would block for ever
_NOT_DATASETS = ("ImageFolder", "DatasetFolder", "FakeData", "VisionDataset")


class NotFoundError(SourceError):
    """A dataset that is neither on the disk nor could be downloaded."""


def classes():
    """{name in lower case: class} of torchvision's datasets; `cifar` is CIFAR10."""
    import torchvision.datasets as datasets

    known = {name.lower(): getattr(datasets, name) for name in datasets.__all__ if name not in _NOT_DATASETS}
    return {"cifar": datasets.CIFAR10, **known}


def open_dataset(name, data_dir, split):
    """The Source of a torchvision dataset, by its name. Raises SourceError."""
    return open_class(classes()[name.lower()], data_dir, split)


def open_class(cls, data_dir, split):
    """The Source of one of `classes`. Raises SourceError."""
    root = Path(data_dir or DOWNLOAD_FOLDER)
    if data_dir and status_of(root) is not None:
        must_be_folder(root, "data_dir")
    instance, note = _construct(cls, root, split)
    labels = _labels_of(instance, cls.__name__)
    class_names = _class_names_of(instance, labels, cls.__name__)
    return IndexedDataset(class_names, labels, f"{cls.__name__} {split}", instance, notes=(note,))


def _construct(cls, root, split):
    """(instance of a torchvision dataset for our split, line that says where it came from)."""
    accepted = inspect.signature(cls.__init__).parameters
    choices = _split_arguments(cls, accepted, split)
    existed = status_of(root) is not None
    for place, extra in _places(accepted):
        for choice in choices:
            try:
                with _socket_timeout():
                    instance = cls(os.fspath(root), **choice, **extra)
            except Exception as error:
                unknown_split = isinstance(error, ValueError) and "Unknown value" in str(error)
                if unknown_split and choice is not choices[-1]:
                    continue  # this dataset has another name for the split
                failure = error
                break
            used = "".join(f", {key}={value}" for key, value in choice.items())
            return instance, f"{cls.__name__}{used}: {place} {printable(root)}"
    if not existed:
        _remove_empty_folders(root)
    if "Unknown value" in str(failure):
        raise SourceError(
            f"dataset={cls.__name__} has no split that could be {split}: {one_line(failure)}; make a tree of"
            " the"
            " images that you want"
        ) from failure
    message = f"dataset={cls.__name__}, split={split}: not found in {printable(root.absolute())}, and "
    if "download" in accepted:
        message += (
            f"it could not be downloaded: {one_line(failure)}. Put its files there as torchvision lays them"
        )
        message += " out, or run this where there is a network"
    else:
        message += f"torchvision does not download it: {one_line(failure)}"
    raise NotFoundError(message) from failure


def _split_arguments(cls, accepted, split):
    """The arguments to try, one after the other, that choose our split of a torchvision dataset."""
    if "train" in accepted and "split" not in accepted:
        return [{"train": split == "train"}]
    if "split" in accepted and "train" not in accepted:
        names = ("train", "trainval", "train-standard") if split == "train" else ("val", "valid", "test")
        return [{"split": name} for name in names]
    if "split" in accepted:
        raise SourceError(
            f"dataset={cls.__name__} comes in several divisions; turn the one you want into a folder tree"
        )
    if split == "train":
        return [{}]
    raise SourceError(
        f"dataset={cls.__name__} has one split only; write train and val with val_fraction, such as"
        " val_fraction=0.1"
    )


def _places(accepted):
    """First what is on the disk, then the network."""
    yield "read from", {"download": False} if "download" in accepted else {}
    if "download" in accepted:
        yield "downloaded to", {"download": True}


def _remove_empty_folders(root):
    """Removes the folders that torchvision makes before it knows whether it has anything to put there."""
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return


@contextmanager
def _socket_timeout():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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
            raise SourceError(f"dataset={title}: its labels cannot be read: {one_line(error)}") from error
    try:
        labels = np.asarray(labels)
    except Exception as error:
        raise SourceError(
            f"dataset={title}: its labels are not one number per image: {one_line(error)}"
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
