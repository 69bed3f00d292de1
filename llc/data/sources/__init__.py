"""Where images and labels come from. `open_source` finds a source by name.

base.py                 Source, and how to add one: a file in this folder or a plugin
listing.py              what lies in a folder, with errors that name the path
patterns.py             names of several files in one: braces and wildcards
varint.py               integers of variable length
labels.py               classes from stored labels, columns and splits by their usual names
folder.py               a tree with a folder of images per class
archive.py              images as byte ranges of files
tar.py, zip.py          what tar and zip files hold
packed_tree.py          a zip or tar with a folder of images per class
imagenet.py             ImageNet's tar files, and its val folder without class folders
kaggle.py               ImageNet as Kaggle lays it out, in a folder or a zip
webdataset.py           WebDataset's tar files
parquet.py              Hugging Face's parquet files
parquet_pages.py        single pages of a parquet column
table.py                images that a CSV, TSV or JSON lines file lists
lmdb.py                 LMDB databases of image files or of Caffe's Datum
fashion_mnist.py        Fashion-MNIST from its four files
torchvision_dataset.py  torchvision's datasets, by name
joined.py               several sources as one
classes.py              the label order of another dataset, the classes that a file lists
parts.py                a held-out part, some images of each class or of all, one of n parts; shuffled
"""

import copy
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
    as_unicode,
    is_image_name,
    printable,
    register,
)
from llc.data.sources.classes import with_class_names, with_classes
from llc.data.sources.fashion_mnist import FASHION_MNIST_CLASSES, FASHION_MNIST_FOLDER
from llc.data.sources.folder import FolderTree, find_split, open_tree
from llc.data.sources.joined import join, split_roots
from llc.data.sources.parts import hold_out, parse_part, shuffle, take_evenly, take_part, take_per_class

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
    "as_unicode",
    "find_split",
    "hold_out",
    "is_image_name",
    "open_named",
    "open_source",
    "open_tree",
    "parse_part",
    "printable",
    "recognise",
    "register",
    "take_evenly",
    "with_class_names",
]

for _module in pkgutil.iter_modules(__path__):  # each registers what it opens
    importlib.import_module(f"{__name__}.{_module.name}")


def open_source(
    dataset,
    data_dir,
    split="train",
    val_fraction=0.0,
    class_names=None,
    subset=-1,
    *,
    columns=FOUND_BY_SOURCE,
    classes="",
    per_class=-1,
    shuffle_seed=-1,
    part=None,
):
    """The images that `python -m llc.write` is asked for, as a Source.

    What is asked for is applied in this order: open and join, classes, val_fraction, per_class, subset,
    shuffle, part.

    dataset: a registered name, such as "folder", or the name of a torchvision dataset; any case; "auto" takes
    what `recognise` says. data_dir: the folder or file that holds it; several, separated by commas, are
    joined (joined.py). split: "train" or "val". columns: for tables. class_names: if given, the label order;
    the source's own classes must be among them. classes: if given, a file that lists the classes to take
    (classes.py). val_fraction: if above 0, this fraction of each class of the *training* images is held out
    as "val", and "train" is the rest. per_class: this many images of each class, evenly spaced; -1: all.
    subset: this many images, evenly spaced over all of them, because the first ones of a tree would be of its
    first classes only; -1: all. shuffle_seed: if not -1, the images come in the random order of this seed.
    part: (i, n), part i of n, counted from 1; None: all.

    Raises SourceError.
    """
    if split not in SPLITS:
        raise SourceError(f"split={split!r} is not a split; there are: {', '.join(SPLITS)}")
    if not 0 <= val_fraction < 1:
        raise SourceError(
            f"val_fraction={val_fraction} is not a fraction of the images: 0 (none) <= val_fraction < 1"
        )
    if classes and class_names is not None:
        raise SourceError("classes and class_names_from both say which classes there are; give one of them")
    source = _open_roots(dataset, data_dir, "train" if val_fraction > 0 else split, columns)
    if not source.class_names and (classes or class_names is not None or val_fraction > 0 or per_class != -1):
        raise SourceError(
            f"{printable(data_dir)} has no labels, so its images cannot be chosen by class (classes,"
            " class_names_from, val_fraction, per_class)"
        )
    if classes:
        source = with_classes(source, classes)
    elif class_names is not None:
        source = with_class_names(source, class_names)
    else:
        source.check_classes()
    if val_fraction > 0:
        source = hold_out(source, val_fraction, split)
    if per_class != -1:
        source = take_per_class(source, per_class)
    if subset != -1:
        source = take_evenly(source, subset)
    if shuffle_seed != -1:
        source = shuffle(source, shuffle_seed)
    if part is not None:
        source = take_part(source, part)
    return source


def _open_roots(dataset, data_dir, split, columns):
    """All images of a split of all places that `data_dir` names."""
    roots = split_roots(data_dir)
    sources = [_open_root(dataset, root, split, columns) for root in roots]
    return sources[0] if len(sources) == 1 else join(roots, sources)


def _open_root(dataset, root, split, columns):
    if dataset.lower() != "auto":
        return open_named(dataset, root, split, columns)
    found = recognise(root)
    source = open_named(found, root, split, columns)
    if found == "folder":
        return source
    source = copy.copy(source)  # dataclasses.replace would need to know how the subclass is made
    object.__setattr__(source, "notes", (f"{printable(root)} was recognised as {found}", *source.notes))
    return source


def recognise(data_dir):
    """The name of the registered source that takes `data_dir`; "folder" where none does.

    Raises SourceError where several do.
    """
    found = [name for name, takes in RECOGNISERS.items() if _takes(takes, data_dir)] if data_dir else []
    if len(found) > 1:
        raise SourceError(f"{printable(data_dir)} may be {' or '.join(found)}: say which with dataset=NAME")
    return found[0] if found else "folder"


def _takes(recogniser, data_dir):
    try:
        return recogniser(data_dir)
    except OSError:  # a path that cannot be looked at: the folder source says what is wrong with it
        return False


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
            raise SourceError(
                f"dataset={title} has no columns, so leave image_column, label_column and header out; they"
                " are for tables, Parquet and WebDataset"
            )
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
