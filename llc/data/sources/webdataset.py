"""WebDataset: tars, called shards, in which consecutive members with the same key are one sample.

The format: "The WebDataset Format" by T. Breuel, and the library's tariterators.py. A member's key is its
folder and its base name up to the first dot; what follows that dot is its extension. So a/b.seg.png is
"seg.png" of sample a/b. Extensions are compared in lower case.
"""

import glob
import json
import os
from dataclasses import dataclass

import numpy as np

from llc.data.sources.archive import RANGE_TYPE, ArchiveImages, Container, Names, OpenFile, as_text
from llc.data.sources.base import (
    FOUND_BY_SOURCE,
    SPLIT_FOLDERS,
    SourceError,
    is_image_name,
    one_line,
    printable,
    register,
    some,
)
from llc.data.sources.imagenet import TRAIN_TAR, VAL_TAR, class_tars, read_text
from llc.data.sources.labels import are_numbers, classes_of_numbers, classes_of_texts, of_split
from llc.data.sources.patterns import expand, expand_braces
from llc.data.sources.tar import Tar

_IMAGES = ("jpg", "jpeg", "png", "webp")  # in this order where a sample has several
_FIELDS = ("label", "cls", "class")  # of a sample's JSON, in this order
_CLASS_FILES = ("classnames.txt", "classes.txt", "dataset_info.json", "dataset_infos.json")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_MOST_LABEL_BYTES = 1 << 20
_FEWEST_CAPTIONS = 20  # texts; so few may all differ and still be classes
_NO_LABEL = object()


def _is_webdataset(data_dir):
    path = os.fspath(data_dir)
    if os.path.isdir(path):
        return any(_shards_below(path).values())
    if not path.lower().endswith((".tar", *_COMPRESSED)):  # opening says what to do with a compressed one
        return False
    if os.path.basename(path) in (TRAIN_TAR, VAL_TAR):
        return False
    return os.path.isfile(path) or glob.has_magic(path) or expand_braces(path) != [path]


def _shards_below(folder):
    """{"" or a folder of a split: its sorted shards}; empty where `folder` holds other things than shards."""
    found = {}
    for below in ("", *SPLIT_FOLDERS):
        try:
            with os.scandir(os.path.join(folder, below)) as listing:
                entries = [entry for entry in listing if not entry.name.startswith((".", "_"))]
            folders = {entry.name for entry in entries if entry.is_dir()}
        except (OSError, ValueError):  # also for a link that leads back to itself
            continue
        if folders - (set() if below else set(SPLIT_FOLDERS)):
            return {}
        if any(is_image_name(entry.name) for entry in entries):
            return {}
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(".tar"))
        found[below] = [os.path.join(below, name) for name in names]
    shards = [os.path.basename(name) for names in found.values() for name in names]
    return {} if class_tars(folder) or {TRAIN_TAR, VAL_TAR}.intersection(shards) else found


@register("WebDataset", "wds", recognises=_is_webdataset)
def open_webdataset(data_dir, split, columns=FOUND_BY_SOURCE):
    """The samples of some shards, in order. Raises SourceError.

    data_dir: a shard, a pattern such as train-{000000..000146}.tar or train-*.tar, or a folder that holds
    shards, itself or in train/ and val/. columns.image: the extension of the image, default jpg, jpeg, png or
    webp. columns.label: the extension of the label, or the field of a sample's JSON that holds it; by
    default .cls, then the JSON's label, cls or class, then the text of .txt as the name of the class.
    """
    if not data_dir:
        raise SourceError(
            "data_dir is missing: give a shard, a pattern such as train-{000000..000146}.tar, or a folder"
        )
    paths = _shards(os.fspath(data_dir), split)
    samples = _Samples(columns)
    containers = tuple(map(Container.of, paths))
    for number, container in enumerate(containers):
        samples.add_shard(number, container)
    return samples.source(containers, printable(data_dir))


def _shards(path, split):
    if os.path.isdir(path):
        below = [tar for tars in _shards_below(path).values() for tar in tars]
        if not below:
            raise SourceError(f"{printable(path)} holds no shards, which are files that end in .tar")
        return [os.path.join(path, name) for name in of_split(below, split, printable(path))]
    paths = expand(path)
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in paths])
    of = {os.path.relpath(os.path.abspath(name), folder): name for name in paths}
    return [of[name] for name in of_split(list(of), split, printable(path), found_by_name=False)]


class _Samples:
    """The samples of all shards so far."""

    def __init__(self, columns):
        self._images = (columns.image.lower().lstrip("."),) if columns.image else _IMAGES
        self._label = columns.label
        self._names, self._rows, self._labels = [], [], []
        self._num_without_image, self._num_without_key, self._notes = 0, 0, []

    def add_shard(self, number, container):
        tar = Tar(OpenFile(container))
        shard = os.fsencode(os.path.basename(container.path)) + b"/"
        key, members = None, {}
        for name, offset, size in tar:
            folder, slash, base = name.rpartition(b"/")
            stem, dot, extension = base.partition(b".")
            if not stem or not dot:  # no extension, or hidden; the format ignores them
                self._num_without_key += 1
                continue
            if (folder, stem) != key:
                self._add(tar, number, shard, members)
                key, members = (folder, stem), {}
            extension = as_text(extension).lower()
            if extension in members:
                raise SourceError(
                    f"{tar.title}: the sample {printable(as_text(folder + slash + stem))} has two members"
                    f" .{printable(extension)}; write the shard again"
                )
            # A label is read now, while its block is at hand; an image is not.
            text = tar.read(min(size, _MOST_LABEL_BYTES), offset) if self._may_be_label(extension) else None
            members[extension] = name, offset, size, text
        self._add(tar, number, shard, members)
        self._notes += tar.notes

    def _may_be_label(self, extension):
        return extension in ("cls", "json", "txt") or extension == self._label.lower()

    def _add(self, tar, number, shard, members):
        if not members:
            return
        image = next((members[extension] for extension in self._images if extension in members), None)
        if image is None:
            self._num_without_image += 1
            return
        name, offset, size, _ = image
        self._names.append(shard + name)
        self._rows.append(np.array((number, offset, size), RANGE_TYPE).tobytes())
        self._labels.append(self._label_of(tar.title, members))

    def _label_of(self, title, members):
        """An integer, a text, or _NO_LABEL."""
        if self._label:
            if self._label.lower() in members:
                extension = self._label.lower()
                kind = extension.rpartition(".")[2]
                return (_integer if kind == "cls" else _text)(title, members[extension])
            return _field(title, members["json"], (self._label,)) if "json" in members else _NO_LABEL
        if "cls" in members:
            return _integer(title, members["cls"])
        if "json" in members and (label := _field(title, members["json"], _FIELDS)) is not _NO_LABEL:
            return label
        return _text(title, members["txt"]) if "txt" in members else _NO_LABEL

    def source(self, containers, title):
        """All samples as a Source. title: what messages call them. Raises SourceError."""
        if not self._names:
            raise SourceError(
                f"{title} holds no sample with an image: a member whose name ends in"
                f" .{', .'.join(self._images)} (for a tar with a folder of images per class, give"
                " dataset=tar)"
            )
        place = f"{len(containers)} shards of {title}" if len(containers) > 1 else containers[0].path
        notes = [f"{len(self._names):,} images in {place}"]
        class_names, labels, origin = self._classes(containers)
        notes.append(origin)
        if self._num_without_image:
            notes.append(f"{self._num_without_image:,} samples without an image were ignored")
        if self._num_without_key:
            notes.append(f"{self._num_without_key:,} members without an extension, or hidden, were ignored")
        return WebDatasetImages(
            class_names,
            labels,
            containers,
            np.frombuffer(b"".join(self._rows), RANGE_TYPE),
            Names(self._names),
            in_class_order=False,
            notes=tuple(map(printable, [*notes, *self._notes])),
        )

    def _where(self, i):
        return printable(as_text(self._names[i]))

    def _classes(self, containers):
        """(class_names, labels int64, a line that says where they are from)."""
        without = [i for i, label in enumerate(self._labels) if label is _NO_LABEL]
        if len(without) == len(self._labels):
            if self._label:
                raise SourceError(
                    f"no sample has the label {self._label!r}, neither as an extension nor as a field of its"
                    f" JSON; {self._where(0)} is the first"
                )
            hint = ""
            if all(self._names[i].count(b"/") > 1 for i in without):  # behind the shard's name, a folder
                hint = "; if the folders in it are the classes, give dataset=tar"
            return (), np.full(len(without), -1), f"no sample has a label (.cls, .json or .txt){hint}"
        if without:
            raise SourceError(
                f"{len(without):,} of {len(self._labels):,} samples have no label, such as"
                f" {self._where(without[0])}; write the shards again, or leave all labels out"
            )
        texts = [label for label in self._labels if isinstance(label, str)]
        if not texts:
            names, origin = _class_names_beside(containers)
            return *classes_of_numbers(np.array(self._labels, np.int64), self._where, names), origin
        if len(texts) < len(self._labels):
            other = next(i for i, label in enumerate(self._labels) if not isinstance(label, str))
            raise SourceError(
                f"some labels are numbers, as of {self._where(other)}, and some are texts, as {texts[0]!r};"
                " write the shards again, or name the label with label_column"
            )
        if not self._label and len(texts) > _FEWEST_CAPTIONS and len(set(texts)) > len(texts) / 2:
            return (
                (),
                np.full(len(texts), -1),
                f"the texts differ from image to image, such as {texts[0][:60]!r}, so they are captions and"
                " not classes; the images have no labels",
            )
        return *classes_of_texts(texts, self._where), "classes from the samples' texts"


@dataclass(frozen=True)
class WebDatasetImages(ArchiveImages):
    """The images of shards, in their order."""

    @property
    def numbered_classes(self):
        return are_numbers(self.class_names)


def _integer(title, member):
    name, _, _, text = member
    try:
        value = int(text)
        if not -1 <= value < 1 << 62:
            raise ValueError
        return value
    except ValueError:
        raise SourceError(
            f"{title}: {printable(as_text(name))} holds {printable(as_text(text[:40]))!r}; a .cls is an"
            " integer of 0 or more (the name of a class is a .txt)"
        ) from None


def _text(title, member):
    name, _, _, text = member
    try:
        return text.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SourceError(f"{title}: {printable(as_text(name))} is not a text in UTF-8") from error


def _field(title, member, fields):
    """The first of `fields` that a sample's JSON has: an integer, a text, or _NO_LABEL."""
    name = printable(as_text(member[0]))
    try:
        content = json.loads(member[3])
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{title}: {name} is not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):  # such as boxes, or a bare number
        content = {fields[0]: content} if isinstance(content, int) else {}
    for field in fields:
        value = content.get(field)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) or isinstance(value, int) and not isinstance(value, bool):
            return value
        raise SourceError(
            f"{title}: {name}: its {field} is {json.dumps(value)[:60]}; a label is an integer or a text"
        )
    return _NO_LABEL


def _class_names_beside(containers):
    """(names of the classes 0, 1, ... or None, a line that says where they are from).

    They are looked for in the folder of the first shard alone, because a file in the folder above may be of
    another data set. Raises SourceError.
    """
    folder = os.path.dirname(os.path.abspath(containers[0].path))
    for path in (os.path.join(folder, name) for name in _CLASS_FILES):
        if not os.path.isfile(path):
            continue
        text = read_text(path)
        names = _names_in_info(path, text) if path.endswith(".json") else text.rstrip().splitlines()
        names = names and [str(name).strip() for name in names]
        if names and all(names):
            return names, f"class names from {path}"
        if names is not None:
            raise SourceError(f"{printable(path)} has an empty line; it must name a class on each")
    return None, f"no file with class names ({some(_CLASS_FILES)}) is beside the shards; the numbers serve"


def _names_in_info(path, text):
    """The names of a ClassLabel in a description of a data set of Hugging Face; None without one."""
    try:
        waiting = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{printable(path)} is not JSON: {one_line(error)}") from error
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("_type") == "ClassLabel" and isinstance(value.get("names"), list):
                return value["names"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None
