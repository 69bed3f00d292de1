"""ImageNet (ILSVRC 2012) as image-net.org hands it out, and its val split as a flat folder.

ILSVRC2012_img_train.tar       a tar of 1,000 tars, one a class, called n01440764.tar and so on
ILSVRC2012_img_val.tar         50,000 images, ILSVRC2012_val_00000001.JPEG and so on, without classes
ILSVRC2012_devkit_t12.tar.gz   the classes of those: data/ILSVRC2012_validation_ground_truth.txt holds a
                               number per image, and data/meta.mat says which class has which number

The devkit may also be unpacked, and the outer train tar, so that there are 1,000 tars. Kaggle's
LOC_val_solution.csv serves as well. The label order is that of the sorted WordNet ids, and the images come in
the order of a folder tree, so a beton is the same from any form.
"""

import csv
import io
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from llc.data.sources.archive import (
    RANGE_TYPE,
    Container,
    Names,
    OpenFile,
    RangeReader,
    as_text,
    components,
    is_hidden,
    is_image,
)
from llc.data.sources.base import SourceError, one_line, printable, register, some
from llc.data.sources.packed_tree import PackedTree
from llc.data.sources.tar import Tar
from llc.packages import needed

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
VAL_CSV, SYNSETS = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
_CLASS_TAR = re.compile(r"n\d{8}\.tar", re.IGNORECASE)
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_0*(\d+)\.jpe?g", re.IGNORECASE)
_MOST_DEVKIT_BYTES = 1 << 26  # of one unpacked file; the real ones have less than 2 MB
_THREADS = 4  # that read headers of inner tars; they matter where each read has to wait for a disk


@dataclass(frozen=True)
class ValLabels:
    """What the val images are: class_names, sorted; class_words; by_image: {number of an image: label}."""

    class_names: tuple
    class_words: tuple
    by_image: dict
    origin: str


# ------------------------------------------------------------------------------------------------ the tars


def _is_imagenet_tars(data_dir):
    path = os.fspath(data_dir)
    if os.path.isfile(path):
        return os.path.basename(path) in (TRAIN_TAR, VAL_TAR)
    if not {TRAIN_TAR, VAL_TAR} & _listing(path):
        return bool(path) and bool(class_tars(path))
    return not any(_subfolders(os.path.join(data_dir, name)) for name in ("train", "val"))


@register("ImageNet-tars", "imagenet-tar", "ilsvrc2012", recognises=_is_imagenet_tars)
def open_imagenet_tars(data_dir, split):
    """One split from the tars that image-net.org hands out. Raises SourceError.

    data_dir: the folder of the tars, or one tar; the devkit lies beside it. The val split needs the devkit;
    with it, the train split has class_words.
    """
    if not data_dir:
        raise SourceError(f"data_dir is missing: give the folder that holds {TRAIN_TAR} and {VAL_TAR}")
    path = os.fspath(data_dir)
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    tar = os.path.join(path, TRAIN_TAR if split == "train" else VAL_TAR) if os.path.isdir(path) else path
    if not os.path.isfile(tar):
        if split == "train" and (paths := class_tars(folder)):
            return _open_class_tars(paths, folder)
        if split == "val" and (source := _find_flat_val(folder)) is not None:
            return source
        raise SourceError(f"split={split}: {printable(tar)} does not exist; ImageNet's tars keep their names")
    return _open_train(tar, folder) if split == "train" else _open_val(tar, folder)


def _open_train(path, folder):
    outer = Tar.open(path)
    inner, others = {}, []
    for name, offset, size in outer:
        parts = components(name)
        if is_hidden(parts):
            continue
        wnid, suffix = os.path.splitext(as_text(parts[-1]))
        if suffix.lower() != ".tar":
            others.append(as_text(name))
        elif wnid in inner:
            raise SourceError(f"{outer.title}: {printable(wnid)}.tar is there twice; get a new copy")
        else:
            inner[wnid] = _ClassTar(outer.container, 0, offset, offset + size, wnid)
    if not inner:
        raise SourceError(
            f"{outer.title} holds no tars of classes, such as n01440764.tar, so it is not ImageNet's; for a"
            " tar with a folder of images per class, give dataset=tar"
        )
    return _train_source(inner, (outer.container,), outer.title, folder, others, outer.notes)


def class_tars(folder):
    """The sorted paths of the tars of classes, such as n01440764.tar, in `folder` or its folder train."""
    for place in (folder, os.path.join(folder, "train")):
        found = sorted(name for name in _listing(place) if _CLASS_TAR.fullmatch(name))
        if found:
            return [os.path.join(place, name) for name in found]
    return []


def _open_class_tars(paths, folder):
    containers = tuple(map(Container.of, paths))
    inner = {}
    for number, container in enumerate(containers):
        wnid = os.path.splitext(os.path.basename(container.path))[0]
        inner[wnid] = _ClassTar(container, number, 0, container.size, wnid)
    return _train_source(inner, containers, printable(os.path.dirname(paths[0]) or "."), folder, [], [])


@dataclass(frozen=True)
class _ClassTar:
    """The tar of a class: bytes `start` to `end` of a container, whose number in the source is `number`."""

    container: Container
    number: int
    start: int
    end: int
    wnid: str


def _train_source(inner, containers, title, folder, others, notes):
    class_names = tuple(sorted(inner))
    with ThreadPoolExecutor(_THREADS) as pool:
        classes = list(pool.map(lambda wnid: _index_class(inner[wnid]), class_names))
    empty = [name for name, (names, _, _) in zip(class_names, classes) if not len(names)]
    if empty:
        raise SourceError(f"{title}: {len(empty)} of its tars hold no images: {some(empty)}")
    names = Names.joined([names for names, _, _ in classes])
    others += [name for _, _, found in classes for name in found]
    notes = [f"{len(names):,} images in {len(inner)} tars of classes in {title}", *notes]
    if others:
        notes.append(
            f"{len(others)} files there are not images by their names and were ignored, like"
            f" {printable(others[0])}"
        )
    devkit = find_devkit(folder)
    words = read_classes(devkit)[1] if devkit is not None else {}
    return PackedTree(
        class_names,
        np.repeat(np.arange(len(inner)), [len(names) for names, _, _ in classes]),
        containers,
        np.concatenate([places for _, places, _ in classes]),
        names,
        RangeReader,
        notes=tuple(notes),
        class_words=_words_of(class_names, words),
    )


def _index_class(inner):
    """(Names, rows of RANGE_TYPE, names of other files) of the images of a class's tar, sorted by name."""
    title = printable(inner.container.path)
    if inner.start:
        title = f"{printable(inner.wnid)}.tar in {title}"
    tar = Tar(OpenFile(inner.container), inner.start, inner.end, title)
    found, others = [], []
    for name, offset, length in tar:
        base = name.rpartition(b"/")[2]
        if base.startswith(b"."):
            continue
        if is_image(base):
            found.append((base, offset, length))
        else:
            others.append(as_text(name))
    found.sort()
    for (one, *_), (other, *_) in zip(found, found[1:]):
        if one == other:
            raise SourceError(f"{title}: {printable(as_text(one))} is there twice; get a new copy")
    places = np.zeros(len(found), RANGE_TYPE)
    places["file"] = inner.number
    places["offset"] = [offset for _, offset, _ in found]
    places["size"] = [length for _, _, length in found]
    folder = os.fsencode(inner.wnid) + b"/"
    return Names(folder + name for name, _, _ in found), places, others


def _open_val(path, folder):
    labels = find_val_labels(folder)
    if labels is None:
        raise SourceError(f"{printable(path)}: {_labels_missing(folder)}")
    tar = Tar.open(path)
    found = [
        (as_text(components(name)[-1]), (0, offset, size))
        for name, offset, size in tar
        if not is_hidden(components(name)) and is_image(name)
    ]
    names, by_label = in_class_order([name for name, _ in found], labels, tar.title)
    place_of = dict(found)
    places = np.array([place_of[name] for name in names], RANGE_TYPE)
    return PackedTree(
        labels.class_names,
        by_label,
        (tar.container,),
        places,
        Names(name.encode("utf-8", "surrogateescape") for name in names),
        RangeReader,
        notes=(f"{len(names):,} images of {tar.title}, labels from {labels.origin}", *tar.notes),
        class_words=labels.class_words,
    )


# ------------------------------------------------------------------------------------------------ a flat val/


def open_unsorted(data_dir, split):
    """ImageNet in a form that is no tree of folders, or None where there is nothing of that kind.

    That is a flat val/ folder, or a tar in place of a split that was not unpacked. Raises SourceError.
    """
    if split == "val" and (source := _find_flat_val(data_dir)) is not None:
        return source
    folders = ("train",) if split == "train" else ("val", "test")
    if any(_subfolders(os.path.join(data_dir, name)) for name in folders):
        return None
    tar = {"train": TRAIN_TAR, "val": VAL_TAR}[split]
    if os.path.isfile(os.path.join(data_dir, tar)) or (split == "train" and class_tars(data_dir)):
        return open_imagenet_tars(data_dir, split)
    return None


def _find_flat_val(data_dir):
    """The Source of a flat folder val in or at `data_dir`, or None. Raises SourceError."""
    for folder in (os.path.join(data_dir, "val"), os.fspath(data_dir)):
        files = flat_val_files(folder)
        if files:
            return open_flat_val(folder, files, data_dir)
    return None


def flat_val_files(folder):
    """The names of ImageNet's val images in `folder`; empty where it holds folders or other images too."""
    try:
        with os.scandir(folder) as listing:
            files = []
            for entry in listing:
                if _VAL_IMAGE.fullmatch(entry.name):
                    files.append(entry.name)
                elif not entry.name.startswith(".") and (entry.is_dir() or is_image(os.fsencode(entry.name))):
                    return []
            return files
    except OSError:
        return []


def open_flat_val(folder, files, *label_folders):
    """ImageNet's val images in one folder. Their labels are looked for in it, and in `label_folders`."""
    from llc.data.sources.folder import FolderTree  # here, because folder.py uses this module

    places = dict.fromkeys(map(os.fspath, (*label_folders, folder, os.path.dirname(os.path.abspath(folder)))))
    labels = next(filter(None, map(find_val_labels, places)), None)
    if labels is None:
        raise SourceError(
            f"split=val: {printable(folder)} holds {len(files):,} images such as {min(files)} and no folders"
            " of classes. That is ImageNet's val split as it is handed out."
            f" {_labels_missing(next(iter(places)))}"
        )
    names, by_label = in_class_order(files, labels, printable(folder))
    return FolderTree(
        labels.class_names,
        by_label,
        os.fspath(folder),
        tuple(names),
        notes=(f"{len(names):,} images of {printable(folder)}, labels from {labels.origin}",),
        class_words=labels.class_words,
    )


def _labels_missing(folder):
    return (
        f"The labels of its images are missing. Put one of these files into {printable(folder)}:"
        f" {DEVKIT}.tar.gz, which image-net.org hands out beside the images, or {VAL_CSV}, which is in"
        " Kaggle's ImageNet competition. Or sort the images into a folder per class"
    )


def in_class_order(files, labels, title):
    """(names, labels int64) of ImageNet's val images, class by class, as a tree of folders has them.

    files: names such as ILSVRC2012_val_00000001.JPEG. Raises SourceError where the images and the labels do
    not belong together.
    """
    rows, seen = [], {}
    for name in files:
        match = _VAL_IMAGE.fullmatch(name)
        label = labels.by_image.get(int(match[1])) if match else None
        if label is None:
            raise SourceError(
                f"{title}: {printable(name)} has no label in {labels.origin}; is it an image of ImageNet's"
                " val split?"
            )
        if int(match[1]) in seen:
            raise SourceError(f"{title}: {name} and {seen[int(match[1])]} are the same image; remove one")
        seen[int(match[1])] = name
        rows.append((label, name))
    if len(seen) < len(labels.by_image):
        first = min(set(labels.by_image) - set(seen))
        raise SourceError(
            f"{title} holds {len(seen):,} of the {len(labels.by_image):,} images that have labels in"
            f" {labels.origin}; the first that is missing is ILSVRC2012_val_{first:08}.JPEG. Copy or download"
            " it again"
        )
    rows.sort()
    return [name for _, name in rows], np.array([label for label, _ in rows], np.int64)


# ------------------------------------------------------------------------------------------------ labels


def find_val_labels(folder):
    """The ValLabels that lie in `folder`, from the devkit or from Kaggle's table; None without either.

    Raises SourceError.
    """
    path = os.path.join(folder, VAL_CSV)
    if os.path.isfile(path):
        return val_labels_of_csv(path)
    devkit = find_devkit(folder)
    return None if devkit is None else _val_labels_of_devkit(devkit)


def find_devkit(folder):
    """The devkit in `folder`: the path of its tar, or of its folder data; None where there is none."""
    for name in (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar", f"{DEVKIT}.tgz"):
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    for name in (os.path.join(DEVKIT, "data"), DEVKIT, "data", ""):
        if os.path.isfile(os.path.join(folder, name, META)):
            return os.path.join(folder, name)
    return None


def _read_devkit(devkit, name):
    """The bytes of a file of the devkit's folder data. Raises SourceError."""
    try:
        if os.path.isdir(devkit):
            with open(os.path.join(devkit, name), "rb") as file:
                return file.read(_MOST_DEVKIT_BYTES)
        with tarfile.open(devkit) as tar:
            for member in tar:
                if member.isfile() and member.name.rpartition("/")[2] == name:
                    return tar.extractfile(member).read(_MOST_DEVKIT_BYTES)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        separator = os.sep if os.path.isdir(devkit) else ": "
        place = f"{printable(devkit).rstrip(os.sep)}{separator}{name}"
        raise SourceError(f"{place} cannot be read: {what}; get a new copy of the devkit") from error
    except Exception as error:  # zlib.error and lzma.LZMAError have no common base
        raise SourceError(f"{printable(devkit)} is damaged: {one_line(error)}; get a new copy") from error
    raise SourceError(f"{printable(devkit)} holds no {name}, so it is not ImageNet's devkit of 2012")


def read_classes(devkit):
    """({number of a class: WordNet id}, {WordNet id: its words}) from meta.mat. Raises SourceError."""
    loadmat = needed("scipy.io", f"reading {META} of ImageNet's devkit", extra="imagenet").loadmat
    data = _read_devkit(devkit, META)
    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        leaves = [row for row in np.atleast_1d(synsets) if not int(row["num_children"])]
        ids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        words = {str(row["WNID"]): str(row["words"]) for row in leaves}
        if not ids or len(words) != len(leaves) or len(ids) != len(leaves):
            raise ValueError("its classes are not distinct")
    except Exception as error:  # broken files raise nearly any type
        raise SourceError(
            f"{printable(devkit)}: {META} is not that of ImageNet's devkit: {one_line(error)}"
        ) from error
    return ids, words


def _val_labels_of_devkit(devkit):
    ids, words = read_classes(devkit)
    class_names = tuple(sorted(words))
    label_of = {number: class_names.index(wnid) for number, wnid in ids.items()}
    by_image = {}
    for number, line in enumerate(_read_devkit(devkit, GROUND_TRUTH).split(), 1):
        if not line.isdigit() or int(line) not in label_of:
            raise SourceError(
                f"{printable(devkit)}: line {number} of {GROUND_TRUTH} is"
                f" {printable(as_text(line))}; it must be the number of one of the {len(ids)} classes in"
                f" {META}"
            )
        by_image[number] = label_of[int(line)]
    return ValLabels(class_names, _words_of(class_names, words), by_image, printable(devkit))


def val_labels_of_csv(path, text=None, synsets=None):
    """The ValLabels of Kaggle's LOC_val_solution.csv, "ImageId,PredictionString".

    The first word of a PredictionString is the WordNet id; the boxes that follow are not used. text: the
    content of `path`, where it is inside a zip. synsets: {WordNet id: words}; default: from
    LOC_synset_mapping.txt beside it, if there. Raises SourceError.
    """
    title = printable(path)
    if text is None:
        text = read_text(path)
    if synsets is None:
        beside = os.path.join(os.path.dirname(path), SYNSETS)
        synsets = read_synsets(beside) if os.path.isfile(beside) else {}
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    header = [name.strip() for name in next(rows, [])]
    if header != ["ImageId", "PredictionString"]:
        raise SourceError(f"{title}: its first line is {','.join(header)!r}, not 'ImageId,PredictionString'")
    found = {}
    for row in rows:
        if not row:
            continue
        match = _VAL_IMAGE.fullmatch(row[0].strip() + ".JPEG")
        words = row[1].split() if len(row) == 2 else []
        if not match or not words:
            raise SourceError(
                f"{title}: line {rows.line_num} is {','.join(row)!r}; it must be like"
                " 'ILSVRC2012_val_00000001,n01440764 ...'"
            )
        if found.setdefault(int(match[1]), words[0]) != words[0]:
            raise SourceError(f"{title}: line {rows.line_num} gives {row[0]} another class than a line above")
    if not found:
        raise SourceError(f"{title} holds no labels")
    class_names = tuple(sorted(synsets or set(found.values())))
    strange = sorted(set(found.values()) - set(class_names))
    if strange:
        raise SourceError(f"{title}: {some(strange)} is not in {SYNSETS}; both must be of the same data set")
    label_of = {name: label for label, name in enumerate(class_names)}
    by_image = {number: label_of[wnid] for number, wnid in found.items()}
    return ValLabels(class_names, _words_of(class_names, synsets), by_image, title)


def read_synsets(path, text=None):
    """{WordNet id: words} of Kaggle's LOC_synset_mapping.txt: "n01440764 tench, Tinca tinca" a line.

    Raises SourceError.
    """
    words = {}
    for number, line in enumerate((read_text(path) if text is None else text).splitlines(), 1):
        wnid, _, rest = line.strip().partition(" ")
        if not wnid:
            continue
        if wnid in words:
            raise SourceError(f"{printable(path)}: line {number} names {wnid} again")
        words[wnid] = rest.strip()
    return words


def read_text(path):
    """The content of a text file in UTF-8. Raises SourceError."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else one_line(error)
        raise SourceError(f"{printable(path)} cannot be read: {what}") from error


def with_words(source, words):
    """The same source with class_words from {class name: words}."""
    return replace(source, class_words=_words_of(source.class_names, words))


def _words_of(class_names, words):
    """The words of each class, "" where they are not known; empty where none is."""
    found = tuple(words.get(name, "") for name in class_names)
    return found if any(found) else ()


def _subfolders(folder):
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except (OSError, ValueError):
        return []


def _listing(folder):
    """The names in a folder; empty where it is none."""
    try:
        return set(os.listdir(folder or os.devnull))
    except (OSError, ValueError):
        return set()
