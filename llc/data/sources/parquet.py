"""Parquet files of images and labels, as Hugging Face's `datasets` writes them. Read by pyarrow.

Format: an image is a struct{bytes, path}, plain binary, or the path of a file, relative to the parquet file.
The schema's metadata "huggingface" is JSON; its info.features say which column is an Image and which a
ClassLabel, and how the classes are called (https://huggingface.co/docs/datasets, "Dataset features").

imagenet-1k has the files train-00000-of-00294.parquet, validation-..., and test-..., whose labels are all -1:
images without labels. Its classes are called "tench, Tinca tinca", in the order of the WordNet ids. These
words are the class names then, and class_words is empty.

Memory: opening reads only the labels. An image is read with its page, and pages are kept for a while. Writers
often put all images of a row group, up to 1,024, into a single page, a dictionary, which is read as a whole.
"""

import glob
import itertools
import json
import os
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from llc.data.image_errors import ImageError, MachineError, machine_fault, say
from llc.data.sources import parquet_pages
from llc.data.sources.archive import Container
from llc.data.sources.base import SPLIT_FOLDERS, Source, SourceError, one_line, printable, register, some
from llc.data.sources.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    are_numbers,
    chosen_column,
    classes_of_numbers,
    classes_of_texts,
    of_split,
    usual_column,
)
from llc.data.sources.listing import does_not_exist
from llc.errors import UserError
from llc.packages import needed

_SUFFIX = ".parquet"
# Where a folder's parquet files may be, besides in itself.
_FOLDERS = ("data", *SPLIT_FOLDERS)
_MAX_LOOKED_AT = 10_000  # entries of a folder that may be something else entirely
_BATCH_BYTES = 4 << 20  # of images that are read together where single pages cannot be read
_KEPT_BYTES = 32 << 20  # of images that a process keeps, so that nearby images are there already
_MAX_OPEN_FILES = 16
_MAX_CHUNKS = 64  # row groups of an open file whose pages are known
_BUFFER_BYTES = 1 << 20


def looks_like_parquet(data_dir):
    """Whether a path is a parquet file, a pattern of such, or a folder that holds some."""
    path = os.fspath(data_dir)
    if os.path.isdir(path):
        folders = (path, *(os.path.join(path, name) for name in _FOLDERS))
        return any(_holds_parquet(folder) for folder in folders)
    if path.endswith(_SUFFIX):
        return True
    return glob.has_magic(path) and any(found.endswith(_SUFFIX) for found in glob.iglob(path))


def _holds_parquet(folder):
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(_SUFFIX) for entry in itertools.islice(entries, _MAX_LOOKED_AT))
    except OSError:
        return False


@register("Parquet", recognises=looks_like_parquet)
def open_parquet(data_dir, split, columns):
    """The images of a parquet file, of a pattern such as train-*.parquet, or of a folder's files of `split`.

    Raises SourceError.
    """
    if not data_dir:
        raise SourceError(
            "data_dir is missing: give a parquet file, a pattern such as 'data/train-*.parquet', or the"
            " folder that holds them"
        )
    root, names = _find_files(os.fspath(data_dir), split)
    labels, layout, starts = [], None, [0]
    for name in names:
        path = os.path.join(root, name)
        file = open_file(path)
        found = _Layout.of(path, file.schema_arrow, columns)
        layout = layout or found
        layout.check_same(path, found)
        labels.append(_read_labels(path, file, layout))
        starts.append(starts[-1] + file.metadata.num_rows)
    starts = np.array(starts, np.int64)
    if not starts[-1]:
        raise SourceError(f"{printable(data_dir)}: its parquet files hold no rows")
    containers = tuple(Container.of(os.path.join(root, name)) for name in names)
    reader = _Reader(root, tuple(names), layout.image, layout.bytes_column, _Rows(), containers)

    def where(i):
        return reader.name(_handle(starts, i))

    class_names, labels = _classes(labels, layout, where, int(starts[-1]))
    place = os.path.join(root, names[0]) if len(names) == 1 else f"{len(names)} files of {data_dir}"
    notes = [f"{starts[-1]:,} images in {place}: column {layout.image}"]
    if layout.label is None:
        others = [name for name in layout.columns if name != layout.image]
        notes.append(
            "no label column was found, so the images have no labels"
            + (f"; other columns: {some(others)}" if others else "")
        )
    elif not class_names:
        notes.append(f"every label in column {layout.label} is missing, so the images have no labels")
    else:
        notes.append(f"labels: column {layout.label}, {len(class_names)} classes")
    return ParquetImages(class_names, labels, reader, starts, notes=tuple(notes))


# ------------------------------------------------------------------------------------------ files and columns


def _find_files(data_dir, split):
    """(folder, sorted paths relative to it) of the parquet files of a split. Raises SourceError."""
    if os.path.isdir(data_dir):
        return data_dir, _files_of_folder(data_dir, split)
    if os.path.exists(data_dir):
        return os.path.split(data_dir)[0] or ".", [os.path.basename(data_dir)]
    if not glob.has_magic(data_dir):
        raise does_not_exist(data_dir)
    found = sorted(path for path in glob.glob(data_dir, recursive=True) if path.endswith(_SUFFIX))
    if not found:
        raise SourceError(f"no parquet file fits the pattern {printable(data_dir)}")
    root = os.path.commonpath([os.path.dirname(path) or "." for path in found])
    relative = [os.path.relpath(path, root) for path in found]
    return root, of_split(relative, split, printable(data_dir), found_by_name=False)


def _files_of_folder(folder, split):
    found = []
    for below in ("", *_FOLDERS):
        try:
            names = os.listdir(os.path.join(folder, below))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise SourceError(
                f"{printable(os.path.join(folder, below))} cannot be listed: {error.strerror}"
            ) from error
        found += [os.path.join(below, name) for name in names if name.endswith(_SUFFIX)]
    if not found:
        raise SourceError(f"{printable(folder)} holds no parquet files, nor does its folder data")
    found = of_split(sorted(found), split, printable(folder))
    missing = _missing_shards(found)
    if missing:
        raise SourceError(
            f"{printable(folder)} lacks {len(missing)} of the parquet files that the names of the others"
            f" count: {some(missing)}. Download them, or give a pattern, such as {folder}/{split}-*{_SUFFIX},"
            " to use those that are there"
        )
    return found


def _missing_shards(names):
    """The names that NAME-00000-of-00002.parquet and its like promise, and that are not among `names`."""
    promised = set()
    for name in names:
        match = re.fullmatch(r"(.*-)\d{5}(-of-(\d{5})\.parquet)", name)
        if match:
            promised.update(f"{match[1]}{i:05}{match[2]}" for i in range(int(match[3])))
    return sorted(promised - set(names))


def open_file(path):
    """The pyarrow.parquet.ParquetFile of a path. Raises SourceError where it is none."""
    parquet = needed("pyarrow.parquet", "reading Parquet files", extra="parquet")
    try:
        # pre_buffer would read whole row groups ahead.
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SourceError(
            f"{printable(path)} cannot be read as a parquet file: {_kind_of(path) or reason}"
        ) from error


def _kind_of(path):
    """What a file is that is often found in place of a parquet file, or None."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; get the file itself with: git lfs pull"
    if start.startswith(b"PAR1"):
        return "its end is missing; download it again"
    return None


@dataclass(frozen=True)
class _Layout:
    """Which columns of a parquet file hold the images and labels.

    bytes_column: the path of the column of image files: the image column, or in a struct its `bytes`; ""
    where there are only paths. label: None where there is none. text_label: whether labels are text.
    class_names: those of the metadata, or None.
    """

    columns: tuple
    image: str
    bytes_column: str
    label: str | None
    text_label: bool
    class_names: tuple | None

    @classmethod
    def of(cls, path, schema, columns):
        """The layout of a file with an Arrow schema. Raises SourceError."""
        import pyarrow.types as types

        path = printable(path)
        features = _features(path, schema)
        names = tuple(schema.names)
        image = _image_column(path, schema, features, columns)
        kind = schema.field(image).type
        label = _label_column(path, schema, features, columns, image)
        class_names, text_label = None, False
        if label is not None:
            label_type = schema.field(label).type
            if not (_is_text(label_type) or types.is_integer(label_type) or types.is_null(label_type)):
                raise SourceError(
                    f"{path}: the label column {label} holds {label_type}; one whole number or text an image"
                    " is needed"
                )
            text_label = _is_text(label_type)
            feature = features.get(label)
            if types.is_integer(label_type) and _kind(feature) == "ClassLabel":
                class_names = feature.get("names")
                class_names = tuple(map(str, class_names)) if class_names else None
        return cls(names, image, _bytes_column(image, kind), label, text_label, class_names)

    def check_same(self, path, other):
        """Raises SourceError where another file of the same data set has another layout."""
        for what in ("image", "bytes_column", "label", "text_label"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise SourceError(
                    f"{printable(path)} has other columns than the first file ({what}: {theirs} instead of"
                    f" {ours}): {some(other.columns)} instead of {some(self.columns)}"
                )
        if self.class_names != other.class_names:
            raise SourceError(
                f"{printable(path)} names other classes than the first file:"
                f" {len(other.class_names or ())} and {len(self.class_names or ())} of them"
            )


def _features(path, schema):
    """{column: what `datasets` says about it}; empty for files that something else wrote."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text).get("info", {}).get("features") or {}
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{path}: its metadata 'huggingface' is not as datasets writes it") from error
    return features if isinstance(features, dict) else {}


def _kind(feature):
    return feature.get("_type") if isinstance(feature, dict) else None


def _image_column(path, schema, features, columns):
    names = schema.names
    if columns.image:
        image = chosen_column(columns.image, names, "image", path)
        if not _may_hold_images(schema.field(image).type):
            raise SourceError(
                f"{path}: the column {image} holds {schema.field(image).type}; an image is a struct of bytes"
                " and path, binary, or the path of a file"
            )
        return image
    able = [name for name in names if _may_hold_images(schema.field(name).type)]
    found = [name for name in able if _kind(features.get(name)) == "Image"]
    if len(found) == 1:
        return found[0]
    image = usual_column(found or able, IMAGE_COLUMNS, "image", path)
    if image is None:
        able = [name for name in able if not _is_text(schema.field(name).type)]
        image = able[0] if len(able) == 1 else None
    if image is None:
        raise SourceError(f"{path}: which column holds the images is not clear: {some(names)}; name it")
    return image


def _label_column(path, schema, features, columns, image):
    names = [name for name in schema.names if name != image]
    if columns.label:
        return chosen_column(columns.label, schema.names, "label", path)
    found = [name for name in names if _kind(features.get(name)) == "ClassLabel"]
    if len(found) == 1:
        return found[0]
    label = usual_column(found or names, LABEL_COLUMNS, "label", path)
    if label is None and found:
        raise SourceError(f"{path} has several columns of classes: {some(found)}; name the label column")
    return label


def _may_hold_images(kind):
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind) or _is_text(kind)


def _bytes_column(name, kind):
    import pyarrow.types as types

    if types.is_struct(kind):
        return f"{name}.bytes" if kind.get_field_index("bytes") >= 0 else ""
    return name if types.is_binary(kind) or types.is_large_binary(kind) else ""


def _is_text(kind):
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


# ----------------------------------------------------------------------------------------------------- labels


def _read_labels(path, file, layout):
    """The label column of an open file, a pyarrow Array; None where there is none."""
    if layout.label is None:
        return None
    try:
        return file.read(columns=[layout.label], use_threads=False).column(0).combine_chunks()
    except (OSError, ValueError) as error:
        raise SourceError(f"{printable(path)}: its labels cannot be read: {one_line(error)}") from error


def _classes(parts, layout, where, num_rows):
    """(class_names, labels int64) of the label columns of all files."""
    if layout.label is None or all(part.null_count == len(part) for part in parts):
        return (), np.full(num_rows, -1, np.int64)
    start = 0
    for part in parts:
        if part.null_count:
            row = start + int(np.flatnonzero(part.is_null().to_numpy(zero_copy_only=False))[0])
            raise SourceError(f"{where(row)} has no label, while other images have one")
        start += len(part)
    if layout.text_label:
        return classes_of_texts([text for part in parts for text in part.to_pylist()], where)
    try:
        numbers = np.concatenate([part.cast("int64").to_numpy() for part in parts])
    except ValueError as error:
        raise SourceError(f"labels in column {layout.label} are no class numbers: {error}") from error
    return classes_of_numbers(numbers, where, layout.class_names)


# ----------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class ParquetImages(Source):
    """Rows of parquet files. starts: int64 [files + 1], the index of each file's first row."""

    rows: "_Reader"
    starts: np.ndarray

    def image(self, i):
        return self.rows.read(_handle(self.starts, i))[0]

    def name(self, i):
        return self.rows.name(_handle(self.starts, i))

    @property
    def numbered_classes(self):
        return are_numbers(self.class_names)

    @property
    def reader(self):
        return self.rows

    def handles(self, indices):
        files = np.searchsorted(self.starts, indices, side="right") - 1
        return list(zip(files.tolist(), (indices - self.starts[files]).tolist()))

    def read(self, handle):
        return self.rows.read(handle)


def _handle(starts, i):
    """(number of the file, row in it) of image i."""
    file = int(np.searchsorted(starts, i, side="right")) - 1
    return file, int(i - starts[file])


@dataclass(frozen=True)
class _Reader:
    """Reads images by handle.

    files: paths relative to `root`. column, bytes_column: as in _Layout. containers: the files' Containers.
    """

    root: str
    files: tuple
    column: str
    bytes_column: str
    cache: "_Rows"
    containers: tuple

    def name(self, handle):
        return f"{self.files[handle[0]]}[{handle[1]}]"

    def read(self, handle):
        """(path or bytes, name) of an image. Raises ImageError, MachineError, SourceError."""
        file, row = handle
        name, path = self.name(handle), os.path.join(self.root, self.files[file])
        self.containers[file].check()
        try:
            value = self.cache.row(path, self.column, self.bytes_column, row)
        except UserError:
            raise
        except Exception as error:  # for damaged data nearly any type
            if (fault := machine_fault(error)) is not None:
                raise MachineError(name, fault) from error
            self.containers[file].check()  # what changed just now only seems damaged
            if getattr(error, "errno", None):  # of the file, not of one image
                raise SourceError(f"{printable(path)} cannot be read: {say(error)}") from error
            raise ImageError(
                name, f"cannot be read, nor its neighbours in the parquet file: {one_line(error)}"
            ) from error
        if isinstance(value, dict):
            data = value.get("bytes")
            value = value.get("path") if data is None else data
        if value is None:
            raise ImageError(name, "is missing: its field is empty")
        return (os.path.join(os.path.dirname(path), value) if isinstance(value, str) else value), name


class _Rows:
    """Images by row, read page by page. Threads may share it; a copy in another process is empty.

    Pages, or with some writers' files batches of a row group in order, are kept as long as there is room, so
    images near each other are read once.
    """

    def __init__(self):
        self._lock = threading.Lock()
        # Each with what was used longest ago first.
        self._files = OrderedDict()  # {path: _OpenFile}
        self._kept = OrderedDict()  # {what was read: (values, bytes)}
        self._kept_bytes = 0

    def __reduce__(self):
        return _Rows, ()

    def row(self, path, column, bytes_column, row):
        """The value of an image column in a row: bytes, text, None, or a dict of them.

        Raises SourceError, OSError or ValueError.
        """
        with self._lock:
            file = self._file(path)
            group = int(np.searchsorted(file.starts, row, side="right")) - 1
            row -= int(file.starts[group])
            value = self._by_page(path, file, group, bytes_column, row) if bytes_column else None
            if value is not None:
                return bytes(value)
            return self._by_batch(path, file, group, column, row)

    def _file(self, path):
        if path not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                self._files.popitem(last=False)
            self._files[path] = _OpenFile(path)
        self._files.move_to_end(path)
        return self._files[path]

    def _by_page(self, path, file, group, column, row):
        """The bytes in a row; None where there are none, or the column is not stored in such pages."""
        chunk = file.chunk(group, column)
        if chunk is None:
            return None
        page = chunk.page_of(row)
        values = self._find((path, group, column, page.first_row))
        if values is None:
            dictionary = None
            if page.encoding != parquet_pages.PLAIN and chunk.dictionary is not None:
                dictionary = self._find((path, group, column, None))
                if dictionary is None:
                    self._make_room(chunk.dictionary.decoded_size)
                    dictionary = parquet_pages.read_dictionary(file.descriptor, chunk)
                    self._keep((path, group, column, None), dictionary, chunk.dictionary.decoded_size)
            # The dictionary stays, whatever its size, because the group's other pages need it too.
            self._make_room(page.decoded_size, but=dictionary is not None)
            values = parquet_pages.read_values(file.descriptor, chunk, page, dictionary)
            self._keep((path, group, column, page.first_row), values, page.decoded_size)
        return values[row - page.first_row]

    def _by_batch(self, path, file, group, column, row):
        """The value in a row, by pyarrow. Batches come in order; for an earlier one it starts again."""
        rows_per_batch = file.rows_per_batch(group, column)
        first = row // rows_per_batch * rows_per_batch
        batch = self._find((path, group, column, "batch", first))
        if batch is None:
            for start, batch in file.batches(group, column, first):
                self._make_room(batch.nbytes)
                self._keep((path, group, column, "batch", start), batch, batch.nbytes)
        return batch[row - first].as_py()

    def _find(self, key):
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def _keep(self, key, values, size):
        self._kept[key] = values, size
        self._kept_bytes += size

    def _make_room(self, size, but=0):
        """Forgets what was used longest ago, until there is room for `size` bytes; never the last `but`."""
        while len(self._kept) > but and self._kept_bytes + size > _KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1][1]


class _OpenFile:
    """A parquet file that is open: its row groups, and how far each was read."""

    def __init__(self, path):
        self._file = open_file(path)
        metadata = self._file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(counts)])  # first row of each group
        self._stream = open(path, "rb")
        self.descriptor = self._stream.fileno()
        self._chunks = OrderedDict()  # {(group, column): parquet_pages.Chunk or None}
        self._batches = (None, None, None)  # group, next row, iterator

    def chunk(self, group, column):
        """The pages of a column in a row group, or None where they are not read singly."""
        key = group, column
        if key not in self._chunks:
            if len(self._chunks) >= _MAX_CHUNKS:
                self._chunks.popitem(last=False)
            self._chunks[key] = parquet_pages.open_chunk(self.descriptor, self._file.metadata, group, column)
        return self._chunks[key]

    def rows_per_batch(self, group, column):
        """Rows that take about _BATCH_BYTES."""
        metadata = self._file.metadata.row_group(group)
        parts = (metadata.column(i) for i in range(metadata.num_columns))
        size = sum(
            part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column
        )
        return min(max(_BATCH_BYTES * metadata.num_rows // max(size, 1), 1), metadata.num_rows)

    def batches(self, group, column, row):
        """Yields (first row, values of a column) of a row group, up to the batch that starts at `row`."""
        now, start, batches = self._batches
        if now != group or start > row:
            start = 0
            batches = self._file.iter_batches(
                self.rows_per_batch(group, column), row_groups=[group], columns=[column], use_threads=False
            )
        while start <= row:
            self._batches = (None, None, None)  # what fails is not continued
            values = next(batches).column(0)
            first, start = start, start + len(values)
            self._batches = group, start, batches
            yield first, values
