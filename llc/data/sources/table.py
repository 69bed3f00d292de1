"""A table of images and labels: CSV (.csv), tab-separated (.tsv), or JSON lines (.jsonl, .ndjson).

An image is the path of a file, relative to the table's folder or absolute, or the bytes of an image file in
Base64: in a column called `bytes`, or as a data URI (RFC 2397). A label is the name of a class, or its
number. CSV fields are quoted as RFC 4180 says; spaces around a path or a label do not count. Text is UTF-8,
with or without a byte order mark.

Tables of competitions list images by an id without suffix, and keep the files in a folder that is called like
the table. Where the first images are not beside the table, that folder and `images` are tried. A name without
suffix is tried with the usual ones.
"""

import base64
import binascii
import csv
import glob
import io
import json
import os
import urllib.parse
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from llc.data.image_errors import ImageError, MachineError, machine_fault, say
from llc.data.sources.base import Source, SourceError, is_image_name, one_line, printable, register, some
from llc.data.sources.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    are_numbers,
    chosen_column,
    classes_of_texts,
    usual_column,
)
from llc.data.sources.listing import does_not_exist

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".ndjson": None}  # None: JSON
_USUAL_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPEG", ".JPG", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NUM_TRIED = 20  # images that are looked for before a table is refused
_MAX_FIELD = 1 << 30  # characters: images in Base64 are longer than the 128 KB that csv expects
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def looks_like_table(data_dir):
    """Whether a path is called like a table, and is no folder."""
    path = os.fspath(data_dir)
    return _suffix(path) in _DELIMITERS and not os.path.isdir(path)


@register("table", recognises=looks_like_table)
def open_table(data_dir, split, columns):
    """The images that a table lists, in its order; all of them for either split. Raises SourceError."""
    path = os.fspath(data_dir)
    if not path:
        raise SourceError(f"data_dir is missing: give the table, a file {' or '.join(_DELIMITERS)}")
    if _suffix(path) not in _DELIMITERS:
        raise SourceError(f"{printable(path)} is not a table, whose name ends in {', '.join(_DELIMITERS)}")
    if not os.path.exists(path):
        hint = "; give one table, or several with commas between them" if glob.has_magic(path) else ""
        raise does_not_exist(path, hint)
    delimiter = _DELIMITERS[_suffix(path)]
    records = _records(path, delimiter)
    first = list(islice(records, 2))
    if not first:
        raise SourceError(f"{printable(path)} is empty")
    names, has_header = _column_names(path, first, delimiter, columns)
    records = chain(first[1:] if has_header else first, records)
    sample = first[-1].values if has_header else first[0].values
    image, label = _find_columns(path, names, has_header or delimiter is None, sample, columns)
    return _open(path, delimiter, records, names, image, label)


def _suffix(path):
    return os.path.splitext(path)[1].lower()


# ---------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class _Record:
    """A row of a table: its first line, counted from 1; where it is in the file, in bytes; its fields.

    values: {column: value}; the columns of CSV are their numbers.
    """

    line: int
    offset: int
    size: int
    values: dict


def _records(path, delimiter):
    """Yields the _Records of a table, without empty lines. Raises SourceError."""
    try:
        with open(path, "rb") as file:
            start = file.read(3)
            if start[:2] in _UTF16_MARKS:
                raise SourceError(f"{printable(path)} is UTF-16 text; save it as UTF-8")
            file.seek(len(_BYTE_ORDER_MARK) if start == _BYTE_ORDER_MARK else 0)
            yield from (_json_records if delimiter is None else _csv_records)(path, file, delimiter)
    except OSError as error:
        raise SourceError(f"{printable(path)} cannot be read: {error.strerror}") from error


def _csv_records(path, file, delimiter):
    line, offset = 1, file.tell()
    rows = csv_rows(file, delimiter)
    while True:
        try:
            fields = next(rows, None)
        except csv.Error as error:
            raise SourceError(f"{printable(path)}, line {line} cannot be read: {error}") from error
        if fields is None:
            return
        # The csv module takes no line before it needs it, so the file stands behind this row.
        if fields and (len(fields) > 1 or fields[0].strip()):
            yield _Record(line, offset, file.tell() - offset, dict(enumerate(fields)))
        line, offset = rows.line_num + 1, file.tell()


def csv_rows(lines, delimiter):
    """The csv.reader of lines of UTF-8 bytes. Bytes that are not UTF-8 are kept as file names need them."""
    if csv.field_size_limit() < _MAX_FIELD:
        csv.field_size_limit(_MAX_FIELD)
    texts = (line.decode("utf-8", "surrogateescape") for line in iter(lines.readline, b""))
    return csv.reader(texts, delimiter=delimiter, strict=True)


def _json_records(path, file, _):
    for number, text in enumerate(iter(file.readline, b""), 1):
        if text.strip():
            try:
                values = json.loads(text.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{printable(path)}, line {number} is not JSON: {error}") from error
            if not isinstance(values, dict):
                raise SourceError(f"{printable(path)}, line {number} is not a JSON object {{...}}")
            yield _Record(number, file.tell() - len(text), len(text), values)


# ---------------------------------------------------------------------------------------------------- columns


def _column_names(path, first, delimiter, columns):
    """(names of the columns, whether the first record holds them). first: up to two records."""
    values = list(first[0].values.values())
    if delimiter is None:
        return list(first[0].values), False
    has_header = columns.header == "yes"
    if columns.header == "auto":
        named = any(choice and not choice.isdecimal() for choice in (columns.image, columns.label))
        has_header = named or _is_header(values, list(first[-1].values.values()))
    if not has_header:
        return [str(number) for number in range(len(values))], False
    if len(first) < 2:
        raise SourceError(f"{printable(path)} holds the names of columns and no images")
    return [name.strip() for name in values], True


def _is_header(first, second):
    """Whether a row names columns: no field is an image, and one is a usual name or has images below it."""
    if any(map(_is_image, first)):
        return False
    usual = set(chain(*IMAGE_COLUMNS, *LABEL_COLUMNS))
    return any(name.strip().lower() in usual for name in first) or any(map(_is_image, second))


def _is_image(value):
    return isinstance(value, str) and (is_image_name(value.strip()) or value.strip().startswith("data:"))


def _find_columns(path, names, named, sample, columns):
    """(image, label): positions in `names`; label is None where there is none. Raises SourceError.

    named: whether the names mean something. sample: the values of the first image.
    """
    title = printable(path)
    values = list(sample.values())
    if columns.image:
        image = chosen_column(columns.image, names, "image", title)
    else:
        image = usual_column(names, IMAGE_COLUMNS, "image", title) if named else None
        able = [name for name, value in zip(names, values) if _is_image(value)]
        if image is None and (len(able) == 1 or len(names) == 1):
            image = (able or names)[0]
        if image is None and not named and not able:
            image = names[0]
    if image is None:
        raise SourceError(f"{title}: which column holds the images is not clear: {some(names)}; name it")
    others = [name for name in names if name != image]
    if columns.label:
        label = chosen_column(columns.label, names, "label", title)
    else:
        label = usual_column(others, LABEL_COLUMNS, "label", title) if named else None
        if label is None and not named and len(others) == 1:
            label = others[0]
    return names.index(image), None if label is None else names.index(label)


# ------------------------------------------------------------------------------------------------- all images


def _open(path, delimiter, records, names, image, label):
    """The TableImages of a table's records."""
    title = printable(path)
    is_json = delimiter is None
    image_key, label_key = image, label
    if is_json:
        image_key, label_key = names[image], names[label] if label is not None else None
    in_bytes = names[image].lower() == "bytes"
    entries, labels, lines, line_of = [], [], [], {}
    for record in records:
        where = f"{title}, line {record.line}"
        if not is_json and len(record.values) != len(names):
            raise SourceError(
                f"{where} has {len(record.values)} fields, but {len(names)} are needed: {some(names)}. A"
                " field with a delimiter in it must be quoted"
            )
        value = record.values.get(image_key)
        if not isinstance(value, str) or not value.strip():
            raise SourceError(f"{where} has no image: {names[image]} is {value!r}, not a path or Base64")
        value = value.strip()
        if in_bytes or value.startswith("data:"):
            entries.append((record.offset, record.size, record.line))
        else:
            if value.startswith(("http://", "https://")):
                raise SourceError(f"{where} gives an address, {value}; download the images first")
            before = line_of.setdefault(os.path.normpath(value), record.line)
            if before != record.line:
                raise SourceError(f"{title} lists {printable(value)} twice: lines {before} and {record.line}")
            entries.append(value)
        lines.append(record.line)
        if label is not None:
            labels.append(_label_text(record.values.get(label_key), where, names[label]))
    if not entries:
        raise SourceError(f"{title} lists no images")
    folder = _folder_of_images(path, entries, names[image])
    notes = [f"{len(entries):,} images in {title}: column {names[image]}"]
    class_names, labels = _classes(labels, lines, title, notes, label, names, image)
    reader = _Reader(path, delimiter, folder, image_key)
    return TableImages(class_names, labels, reader, tuple(entries), notes=tuple(notes))


def _label_text(value, where, column):
    """A label as text, "" where it is missing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise SourceError(f"{where}: {column} is {value!r}; a label is the name of a class or its number")


def _classes(labels, lines, title, notes, label, names, image):
    """(class_names, labels int64); adds what was found to `notes`."""
    if label is None:
        others = [name for i, name in enumerate(names) if i != image]
        notes.append(
            "no label column was found, so the images have no labels"
            + (f"; other columns: {some(others)}" if others else "")
        )
    elif not any(labels):
        notes.append(f"every label in column {names[label]} is missing, so the images have no labels")
    else:
        if "" in labels:
            raise SourceError(
                f"{title}, line {lines[labels.index('')]} has no label in column {names[label]}, while other"
                " lines have one"
            )
        class_names, numbers = classes_of_texts(labels, lambda i: f"{title}, line {lines[i]}")
        notes.append(f"labels: column {names[label]}, {len(class_names)} classes")
        return class_names, numbers
    return (), np.full(len(lines), -1, np.int64)


def _folder_of_images(path, entries, column):
    """The folder that the paths are relative to. Raises SourceError where no image is found in any."""
    beside = os.path.dirname(path) or "."
    stem = os.path.splitext(os.path.basename(path))[0]
    paths = [entry for entry in islice(entries, _NUM_TRIED) if isinstance(entry, str)]
    folders = [beside, *(os.path.join(beside, name) for name in (stem, "images"))]
    for folder in folders:
        if not paths or any(_is_file(_file_of(folder, entry)) for entry in paths):
            return folder
    tried = _file_of(beside, paths[0])
    other = next((mark for mark in (";", "\t", "|") if mark in paths[0]), None)
    if other is not None:
        raise SourceError(
            f"{printable(path)}: no image is called {printable(paths[0])}. Its fields seem to be separated by"
            f" {other!r}; save it with commas as .csv, or with tabs as .tsv"
        )
    raise SourceError(
        f"{printable(path)}: none of the first {len(paths)} images exists, such as {printable(tried)}. Paths"
        f" are relative to the table's folder (also tried: {stem}/ and images/ in it). Is {column} the right"
        " column?"
    )


def _file_of(folder, entry):
    """The path of an image; a name without suffix is that of the file that exists with a usual one."""
    path = os.path.join(folder, entry)
    if is_image_name(entry) or _is_file(path):
        return path
    return next((path + suffix for suffix in _USUAL_SUFFIXES if _is_file(path + suffix)), path)


def _is_file(path):
    return os.path.lexists(path) and not os.path.isdir(path)


@dataclass(frozen=True)
class TableImages(Source):
    """What a table lists. An entry is a path, or (offset, size, line) of a row that holds the image."""

    rows: "_Reader"
    entries: tuple

    def image(self, i):
        return self.rows.read(self.entries[i])[0]

    def name(self, i):
        return self.rows.name(self.entries[i])

    @property
    def numbered_classes(self):
        return are_numbers(self.class_names)

    @property
    def reader(self):
        return self.rows

    def handles(self, indices):
        return [self.entries[i] for i in indices]

    def read(self, handle):
        return self.rows.read(handle)


@dataclass(frozen=True)
class _Reader:
    """Reads entries. folder: what paths are relative to. column: that of the images, in a record's values."""

    table: str
    delimiter: str | None
    folder: str
    column: object

    def name(self, entry):
        return entry if isinstance(entry, str) else f"{os.path.basename(self.table)}, line {entry[2]}"

    def read(self, entry):
        """(path or bytes, name) of an image. Raises ImageError, MachineError, SourceError."""
        name = self.name(entry)
        if isinstance(entry, str):
            return _file_of(self.folder, entry), name
        try:
            return _decode(self._field(*entry)), name
        except OSError as error:  # of the table, not of one image
            if (fault := machine_fault(error)) is not None:
                raise MachineError(name, fault) from error
            raise SourceError(f"{printable(self.table)} cannot be read: {say(error)}") from error
        except (binascii.Error, ValueError, KeyError, AttributeError) as error:
            raise ImageError(name, f"is not an image in Base64: {one_line(error)}") from error

    def _field(self, offset, size, _):
        with open(self.table, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        text = data.decode("utf-8", "surrogateescape")
        if self.delimiter is None:
            return json.loads(text)[self.column]
        return next(csv_rows(io.BytesIO(data), self.delimiter))[self.column]


def _decode(text):
    """The bytes of a data URI, or of Base64."""
    text, is_base64 = text.strip(), True
    if text.startswith("data:"):
        kind, _, text = text.partition(",")
        is_base64 = kind.endswith(";base64")
    if not is_base64:
        return urllib.parse.unquote_to_bytes(text)
    return base64.b64decode("".join(text.split()), validate=True)
