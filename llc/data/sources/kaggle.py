"""ImageNet as Kaggle's competition "ImageNet Object Localization Challenge" hands it out, packed or not.

ILSVRC/Data/CLS-LOC/train/n01440764/*.JPEG   a folder of images per class
ILSVRC/Data/CLS-LOC/val/*.JPEG               the val images, without classes
LOC_val_solution.csv                         their classes
LOC_synset_mapping.txt                       what the classes are called

All of it may be inside the zip that Kaggle hands out; nothing is unpacked.
"""

import os

import numpy as np

from llc.data.sources.archive import Container, Names, OpenFile, as_text, components, is_hidden, is_image
from llc.data.sources.base import SourceError, printable, register
from llc.data.sources.folder import open_tree
from llc.data.sources.imagenet import (
    SYNSETS,
    VAL_CSV,
    flat_val_files,
    in_class_order,
    open_flat_val,
    read_synsets,
    read_text,
    val_labels_of_csv,
    with_words,
)
from llc.data.sources.packed_tree import PackedTree, TreeBuilder, is_kaggle_zip
from llc.data.sources.zip import PLACE_TYPE, Zip, ZipReader

IMAGES = os.path.join("ILSVRC", "Data", "CLS-LOC")  # the folder of train, val and test
_MOST_TEXT_BYTES = 1 << 28  # of one unpacked table; the real ones have less than 10 MB


def _is_kaggle(data_dir):
    return bool(os.fspath(data_dir)) and _find(os.fspath(data_dir)) != (None, None)


@register("ImageNet-Kaggle", "kaggle", recognises=_is_kaggle)
def open_kaggle(data_dir, split):
    """One split from Kaggle's layout of folders, or from Kaggle's zip. Raises SourceError.

    data_dir: the folder that holds ILSVRC, that folder or one below it, the zip, or a folder that holds it.
    """
    if not data_dir:
        raise SourceError("data_dir is missing: give the folder that holds ILSVRC, or Kaggle's zip")
    images, archive = _find(os.fspath(data_dir))
    if images is not None:
        return _open_folders(images, split)
    if archive is not None:
        return _open_zip(archive, split)
    raise SourceError(f"{printable(data_dir)} holds no folder {IMAGES} and no zip with one")


def _find(path):
    """(the folder CLS-LOC, None), (None, Kaggle's zip), or (None, None)."""
    if os.path.isfile(path):
        return None, path if path.lower().endswith(".zip") and is_kaggle_zip(path) else None
    whole = os.path.normpath(IMAGES)
    for below in (whole, os.path.join("Data", "CLS-LOC"), "CLS-LOC", ""):
        folder = os.path.join(path, below)
        if os.path.abspath(folder).endswith(os.sep + whole) and os.path.isdir(folder):
            return folder, None
    try:
        zips = sorted(entry.path for entry in os.scandir(path) if entry.name.lower().endswith(".zip"))
    except (OSError, ValueError):
        zips = []
    return None, next(filter(is_kaggle_zip, zips), None)


def _open_folders(images, split):
    top = os.path.abspath(os.path.join(images, "..", "..", ".."))
    above = [images, *(os.path.abspath(os.path.join(images, *[".."] * n)) for n in (1, 2, 3))]
    synsets = next(
        (
            read_synsets(os.path.join(folder, SYNSETS))
            for folder in above
            if os.path.isfile(os.path.join(folder, SYNSETS))
        ),
        {},
    )
    folder = os.path.join(images, split)
    if not os.path.isdir(folder):
        raise SourceError(f"split={split}: {printable(folder)} does not exist")
    if split == "val" and (files := flat_val_files(folder)):
        return open_flat_val(folder, files, top, *above)
    return with_words(open_tree(folder, may_be_empty=True), synsets)


def _open_zip(path, split):
    container = Container.of(path)
    file = OpenFile(container)
    archive = Zip(file)
    builder = TreeBuilder(container, PLACE_TYPE, ZipReader, archive.check)
    texts, flat = {}, []
    for name, place in archive:
        parts = components(name)
        if is_hidden(parts) or name.endswith(b"/"):
            continue
        if parts and parts[-1] in (VAL_CSV.encode(), SYNSETS.encode()):
            texts[as_text(parts[-1])] = name, place
        if b"ILSVRC" not in parts:
            continue
        below = parts[parts.index(b"ILSVRC") + 1 :]  # a folder around everything does no harm
        if below[:3] != [b"Data", b"CLS-LOC", split.encode()]:
            continue
        if not is_image(below[-1]):
            builder.others.append(name)
        elif len(below) > 4:
            builder.add(below[3], b"/".join(below[3:]), place)
        elif split == "val":
            archive.check(name, place)
            flat.append((as_text(below[-1]), place))
        else:
            builder.beside.append(name)
    title = f"{archive.title}, folder {IMAGES}/{split}"

    def text_of(wanted):
        name, place = texts[wanted]
        archive.check(name, place)
        if place[3] > _MOST_TEXT_BYTES:
            raise SourceError(f"{archive.title}: {wanted} has {place[3]:,} bytes, too many for such a table")
        data, _ = ZipReader((container,)).read((*place, name))
        return data.decode("utf-8", "replace")

    synsets = read_synsets(f"{archive.title}: {SYNSETS}", text_of(SYNSETS)) if SYNSETS in texts else {}
    if not flat:
        return with_words(builder.tree(title), synsets)
    beside = os.path.join(os.path.dirname(path), VAL_CSV)
    if VAL_CSV in texts:
        labels = val_labels_of_csv(f"{archive.title}: {VAL_CSV}", text_of(VAL_CSV), synsets)
    elif os.path.isfile(beside):
        labels = val_labels_of_csv(beside, read_text(beside), synsets)
    else:
        raise SourceError(
            f"{title}: the labels of its images are missing; put {VAL_CSV}, which Kaggle hands out too,"
            " beside the zip"
        )
    names, by_label = in_class_order([name for name, _ in flat], labels, title)
    place_of = dict(flat)
    return PackedTree(
        labels.class_names,
        by_label,
        (container,),
        np.array([place_of[name] for name in names], PLACE_TYPE),
        Names(name.encode("utf-8", "surrogateescape") for name in names),
        ZipReader,
        notes=(f"{len(names):,} images of {title}, labels from {labels.origin}",),
        class_words=labels.class_words,
    )
