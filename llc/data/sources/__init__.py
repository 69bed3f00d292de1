"""Where images and labels come from. `open_source` finds a source by name.

base.py                 Source, and how to add one: a file in this folder or a plugin
folder.py               a tree with a folder of images per class
fashion_mnist.py        Fashion-MNIST from its four files
torchvision_dataset.py  torchvision's datasets, by name
parts.py                the label order of another dataset, a held-out part, a subset
"""

import difflib
import importlib
import inspect
import pkgutil

from llc.data.sources.base import (
    DOWNLOAD_FOLDER,
    FOUND_BY_SOURCE,
    IMAGE_SUFFIXES,
    OPENERS,
    RECOGNISERS,
    SPLITS,
    Columns,
    IndexedDataset,
    Selection,
    Source,
    SourceError,
    is_image_name,
    printable,
    register,
)
from llc.data.sources.fashion_mnist import FASHION_MNIST_CLASSES, FASHION_MNIST_FOLDER
from llc.data.sources.folder import FolderTree, find_split, open_tree
from llc.data.sources.parts import hold_out, take_evenly, with_class_names

__all__ = [
    "DOWNLOAD_FOLDER",
    "FASHION_MNIST_CLASSES",
    "FASHION_MNIST_FOLDER",
    "IMAGE_SUFFIXES",
    "OPENERS",
    "RECOGNISERS",
    "SPLITS",
    "Columns",
    "FolderTree",
    "IndexedDataset",
    "Selection",
    "Source",
    "SourceError",
    "find_split",
    "hold_out",
    "is_image_name",
    "open_named",
    "open_source",
    "open_tree",
    "printable",
    "recognise",
    "register",
    "take_evenly",
    "with_class_names",
]

for _module in pkgutil.iter_modules(__path__):  # each registers what it opens
    importlib.import_module(f"{__name__}.{_module.name}")


def open_source(dataset, data_dir, split="train", val_fraction=0.0, class_names=None, subset=-1):
    """The images that `write_ffcv.py` is asked for, as a Source.

    dataset: a registered name, such as "folder", or the name of a torchvision dataset; any case. data_dir:
    the folder that holds it. split: "train" or "val". val_fraction: if above 0, this fraction of each class
    of the *training* images is held out as "val", and "train" is the rest. class_names: if given, the label
    order; the source's own classes must be among them. subset: this many images, evenly spaced over all of
    them, because the first ones of a tree would be of its first classes only; -1: all.

    Raises SourceError.
    """
    if split not in SPLITS:
        raise SourceError(f"split={split!r} is not a split; there are: {', '.join(SPLITS)}")
    if not 0 <= val_fraction < 1:
        raise SourceError(
            f"val_fraction={val_fraction} is not a fraction of the images: 0 (none) <= val_fraction < 1"
        )
    source = open_named(dataset, data_dir, "train" if val_fraction > 0 else split)
    if class_names is None:
        source.check_classes()
    else:
        source = with_class_names(source, class_names)
    if val_fraction > 0:
        source = hold_out(source, val_fraction, split)
    if subset != -1:
        source = take_evenly(source, subset)
    return source


def recognise(data_dir):
    """The name of the registered source that takes `data_dir`; "folder" where none does.

    Raises SourceError where several do.
    """
    found = [name for name, takes in RECOGNISERS.items() if takes(data_dir)] if data_dir else []
    if len(found) > 1:
        raise SourceError(f"{printable(data_dir)} may be {' or '.join(found)}: say which with dataset=NAME")
    return found[0] if found else "folder"


def open_named(dataset, data_dir, split, columns=FOUND_BY_SOURCE):
    """All images of one split of a dataset, by its name, or by what it looks like for "auto".

    Raises SourceError.
    """
    if dataset.lower() == "auto":
        dataset = recognise(data_dir)
    if dataset.lower() in OPENERS:
        title, opener = OPENERS[dataset.lower()]
        if "columns" in inspect.signature(opener).parameters:
            return opener(data_dir, split, columns)
        if columns != FOUND_BY_SOURCE:
            raise SourceError(f"dataset={title} has no columns to name")
        return opener(data_dir, split)
    from llc.data.sources import torchvision_dataset

    others = (
        torchvision_dataset.classes()
    )  # takes seconds of import, which registered sources need not pay for
    if dataset.lower() in others:
        return torchvision_dataset.open_class(others[dataset.lower()], data_dir, split)
    titles = {key: title for key, (title, _) in OPENERS.items()}
    known = {**{key: cls.__name__ for key, cls in others.items()}, **titles}
    near = difflib.get_close_matches(dataset.lower(), known, n=3, cutoff=0.5)
    near = list(dict.fromkeys(known[match] for match in near))
    registered = ", ".join(sorted(set(titles.values()) - {"folder"}, key=str.lower))
    raise SourceError(
        f"dataset={dataset} is not known"
        + (f"; did you mean {' or '.join(near)}?" if near else ";")
        + f" It may be folder (one folder of images per class), {registered}, or the name of a torchvision"
        " dataset, such as CIFAR10, CIFAR100 or SVHN"
    )
