"""LMDB databases of images: image files by key, or Caffe's Datum messages. Read by the package lmdb.

Two layouts are read; the first value tells which it is:

- Image files as they are, as in LSUN and torchvision's reader of it. Keys such as n01440764/a.JPEG name a
  class before the "/". Other keys, such as LSUN's hashes, say nothing, and the images have no labels.
- Caffe's Datum (message Datum in caffe.proto, as convert_imageset writes it): a label, and an image file or
  uint8 pixels [channels, height, width], with three channels in the order blue, green, red.

A folder with databases of one split that are called CLASS_train_lmdb or CLASS_val_lmdb is LSUN's: each is a
class. Databases of pickled or otherwise serialised Python objects, which many scripts for ImageNet write, are
refused, because to read a pickle is to run what it says.

Images come in the order of their keys. Opening reads the keys; for Datum also the labels, which lie behind
the pixels, so a database that is not in the page cache is read once from the disk.
"""

import os
import re
import threading
from dataclasses import dataclass
from itertools import islice

import numpy as np

from llc.data.image_errors import ImageError, MachineError, machine_fault
from llc.data.sources.archive import Container
from llc.data.sources.base import Source, SourceError, one_line, printable, register, some
from llc.data.sources.labels import are_numbers, classes_of_numbers, of_split, split_in
from llc.data.sources.varint import read_varint
from llc.packages import needed

_DATA_FILE = "data.mdb"  # in the folder of a database
_NAMES = (".lmdb", "_lmdb")  # how databases are usually called
_MAX_LOOKED_AT = 10_000  # entries of a folder that may be something else entirely
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_OF_SCRIPTS = (b"__keys__", b"__len__")  # keys that describe a database and hold no image


def looks_like_lmdb(data_dir):
    """Whether a path is a database, or a folder of databases by their names."""
    path = os.fspath(data_dir)
    if not os.path.isdir(path):
        return path.endswith(".lmdb")
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in islice(entries, _MAX_LOOKED_AT)]
    except OSError:
        return False
    return path.rstrip("/").endswith(".lmdb") or any(
        name == _DATA_FILE or name.endswith(_NAMES) for name in names
    )


@register("LMDB", recognises=looks_like_lmdb)
def open_lmdb(data_dir, split):
    """The images of a database, or of the databases of `split` in a folder. Raises SourceError."""
    if not data_dir:
        raise SourceError(
            "data_dir is missing: give the LMDB database, a folder with data.mdb or a .lmdb file"
        )
    paths = _find_databases(os.fspath(data_dir), split)
    if len(paths) > 1:
        return _open_lsun(paths)
    path = paths[0]
    is_datum, keys, labels = _read_keys(path)
    title = printable(path)
    reader = _Reader.of((path,), is_datum)
    notes = [f"{len(keys):,} images in {title}"]
    if is_datum:
        class_names, labels = classes_of_numbers(labels, lambda i: f"{title}: {_text(keys[i])}")
        notes.append(f"labels: of Caffe's Datum, {len(class_names)} classes")
    else:
        class_names, labels, keys = _classes_of_keys(title, keys, split)
        notes.append(
            f"labels: the part of the keys before the /, {len(class_names)} classes"
            if class_names
            else "its keys name no classes, so the images have no labels"
        )
    databases = np.zeros(len(keys), np.int64)
    return LmdbImages(class_names, labels, reader, databases, tuple(keys), notes=tuple(notes))


def _open_lsun(paths):
    names = [re.fullmatch(r"(.+)_(?:train|val|test)_lmdb", os.path.basename(path)) for path in paths]
    if None in names:
        raise SourceError(
            f"{os.path.dirname(paths[0])} holds several databases: {some(map(os.path.basename, paths))}; give"
            " the one that you want (CLASS_train_lmdb and CLASS_val_lmdb are taken for LSUN's classes)"
        )
    contents = [_read_keys(path) for path in paths]
    if any(is_datum for is_datum, _, _ in contents):
        raise SourceError(
            f"{os.path.dirname(paths[0])} holds several databases with labels; give one of them"
        )
    counts = [len(keys) for _, keys, _ in contents]
    labels = np.repeat(np.arange(len(paths), dtype=np.int64), counts)
    keys = tuple(key for _, keys, _ in contents for key in keys)
    class_names = tuple(name[1] for name in names)
    notes = (f"{len(keys):,} images in {len(paths)} databases, each of them a class: {some(class_names)}",)
    return LmdbImages(class_names, labels, _Reader.of(tuple(paths), False), labels, keys, notes=notes)


def _find_databases(data_dir, split):
    """The paths of the databases that are meant. Raises SourceError."""
    if not os.path.exists(data_dir):
        raise SourceError(f"data_dir {printable(data_dir)} does not exist")
    if os.path.isfile(data_dir) or os.path.exists(os.path.join(data_dir, _DATA_FILE)):
        return [data_dir]
    try:
        names = sorted(os.listdir(data_dir))
    except OSError as error:
        raise SourceError(f"{printable(data_dir)} cannot be listed: {error.strerror}") from error
    found = [name for name in names if _is_database(os.path.join(data_dir, name))]
    if not found:
        raise SourceError(f"{printable(data_dir)} holds no LMDB database: no {_DATA_FILE}, no .lmdb file")
    return [os.path.join(data_dir, name) for name in of_split(found, split, printable(data_dir))]


def _is_database(path):
    if os.path.isdir(path):
        return os.path.exists(os.path.join(path, _DATA_FILE))
    return path.endswith(".lmdb")


# ------------------------------------------------------------------------------------------------------- keys


def _read_keys(path):
    """(whether the values are Datum, sorted keys, labels int64 or None) of a database. Raises SourceError."""
    import_lmdb()
    title = printable(path)
    keys, labels, num_labelled, is_datum = [], [], 0, None
    try:
        with ENVIRONMENTS.open(path).begin(buffers=True) as transaction:
            cursor = transaction.cursor()
            for key in cursor.iternext(values=False):
                key = bytes(key)
                if key in _OF_SCRIPTS:
                    continue
                if is_datum is None:
                    is_datum = _holds_datum(cursor.value(), f"{title}, key {_text(key)}")
                if is_datum:
                    label = _label_of(cursor.value(), f"{title}, key {_text(key)}")
                    num_labelled += label is not None
                    labels.append(label or 0)  # 0 is what protocol buffers say of a number that is left out
                keys.append(key)
    except import_lmdb().Error as error:
        raise SourceError(f"{title} cannot be read: {one_line(error)}") from error
    if not keys:
        raise SourceError(f"{title} is an empty database")
    if not is_datum:
        return False, keys, None
    return True, keys, np.array(labels, np.int64) if num_labelled else np.full(len(keys), -1, np.int64)


def _label_of(value, where):
    try:
        return parse_datum(value).get("label")
    except ValueError as error:
        raise SourceError(f"{where} is not a Datum, as others are: {error}") from error


def _holds_datum(value, where):
    """Whether a value is a Datum and not an image file. Raises SourceError where it is neither."""
    start = bytes(value[:12])
    if _is_image_start(start):
        return False
    found = "of an unknown kind"
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        found = "a pickled Python object"
    else:
        try:
            datum = parse_datum(value)
        except ValueError:
            datum = {}
        data = datum.get("data", b"")
        if len(data) and (_is_image_start(bytes(data[:12])) or _num_pixels(datum) == len(data)):
            return True
        if "float_data" in datum:
            found = "a Datum of floating-point pixels, whose range is not known"
    raise SourceError(
        f"{where}: the value is {found}. Image files (JPEG, PNG, WebP, ...) and Caffe's Datum can be read;"
        " objects that Python serialised (by pickle, pyarrow or msgpack) are not read, because that can run"
        " code. Export the images to files or parquet with the script that made the database"
    )


def _is_image_start(start):
    return start.startswith(_IMAGE_STARTS) or start[8:12] == b"WEBP" or start[4:8] in (b"ftyp", b"jP  ")


def _classes_of_keys(title, keys, split):
    """(class_names, labels int64, keys of the split) of keys such as CLASS/NAME or train/CLASS/NAME."""
    folders = [_name(key).rpartition("/")[0] for key in keys]
    if not any(folders):
        return (), np.full(len(keys), -1, np.int64), keys
    if "" in folders:
        raise SourceError(
            f"{title}: the key {_text(keys[folders.index('')])} names no class; others do: CLASS/NAME"
        )
    first = {folder.partition("/")[0] for folder in folders}
    if all(name.isalpha() and split_in(name) for name in first) and all("/" in folder for folder in folders):
        wanted = set(of_split(sorted(first), split, title))
        kept = [i for i, folder in enumerate(folders) if folder.partition("/")[0] in wanted]
        keys, folders = [keys[i] for i in kept], [folders[i].partition("/")[2] for i in kept]
    classes = [folder.partition("/")[0] for folder in folders]
    class_names = sorted(set(classes))
    label_of = {name: label for label, name in enumerate(class_names)}
    return tuple(class_names), np.array([label_of[name] for name in classes], np.int64), keys


def _text(key):
    return printable(_name(key))


def _name(key):
    return bytes(key).decode("utf-8", "surrogateescape")


# ------------------------------------------------------------------------------------------------------ Datum

_DATUM_FIELDS = {1: "channels", 2: "height", 3: "width", 4: "data", 5: "label", 6: "float_data", 7: "encoded"}


def parse_datum(buffer):
    """{field: value} of a Datum, a message in the wire format of protocol buffers.

    data: a memoryview; float_data: True where there is some; the others: int. Raises ValueError where it is
    no such message (https://protobuf.dev/programming-guides/encoding).
    """
    try:
        return _fields(memoryview(buffer))
    except IndexError:
        raise ValueError("it ends within a number") from None


def _fields(buffer):
    position, found = 0, {}
    while position < len(buffer):
        tag, position = read_varint(buffer, position)
        name, kind = _DATUM_FIELDS.get(tag >> 3), tag & 7
        if kind == 0:
            value, position = read_varint(buffer, position)
        elif kind in (1, 2, 5):
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, position = read_varint(buffer, position)
            value, position = buffer[position : position + size], position + size
        else:
            raise ValueError(f"field type {kind}")
        if name is None or position > len(buffer):
            raise ValueError(f"field {tag >> 3}" if name is None else "it ends within a field")
        if name == "float_data":
            value = True
        elif (kind == 2) != (name == "data"):
            raise ValueError(f"field {name} of type {kind}")
        elif kind == 0:
            value = (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000  # int32; negative ones take 10 bytes
        found[name] = value
    return found


def _num_pixels(datum):
    return datum.get("channels", 0) * datum.get("height", 0) * datum.get("width", 0)


def _image_of_datum(datum):
    """The bytes of an image file, or a PIL image. Raises ValueError."""
    data = datum.get("data", b"")
    if datum.get("encoded"):
        return bytes(data)
    channels, height, width = (datum.get(name, 0) for name in ("channels", "height", "width"))
    if min(channels, height, width) < 1 or _num_pixels(datum) != len(data):
        if _is_image_start(bytes(data[:12])):
            return bytes(data)  # an image file whose flag was forgotten
        raise ValueError(f"has {len(data)} bytes for {channels} x {height} x {width} pixels")
    if channels not in (1, 3):
        raise ValueError(f"has {channels} channels; 1 and 3 are known")
    from PIL import Image  # here: see images.py

    pixels = np.array(data, np.uint8).reshape(channels, height, width)  # its own, as the value is LMDB's
    if channels == 1:
        return Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0)))


# ----------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class LmdbImages(Source):
    """Values of LMDB databases. databases: int64 [len], which database each of the `keys` is in."""

    values: "_Reader"
    databases: np.ndarray
    keys: tuple

    def image(self, i):
        return self.values.read(self._handle(i))[0]

    def name(self, i):
        return self.values.name(self._handle(i))

    def _handle(self, i):
        return int(self.databases[i]), self.keys[i]

    @property
    def numbered_classes(self):
        return self.values.is_datum and are_numbers(self.class_names)

    @property
    def reader(self):
        return self.values

    def handles(self, indices):
        return [self._handle(i) for i in indices]

    def read(self, handle):
        return self.values.read(handle)


@dataclass(frozen=True)
class _Reader:
    """Reads values by handle: (number of the database in `paths`, key). files: the databases' Containers."""

    paths: tuple
    is_datum: bool
    files: tuple

    @classmethod
    def of(cls, paths, is_datum):
        """For databases as they are now. Raises SourceError."""
        return cls(paths, is_datum, tuple(Container.of(_file_of(path)) for path in paths))

    def name(self, handle):
        path, key = self.paths[handle[0]], _name(handle[1])
        return key if len(self.paths) == 1 else f"{os.path.basename(path)}/{key}"

    def read(self, handle):
        """(bytes or PIL image, name) of an image. Raises ImageError, MachineError, SourceError."""
        name = self.name(handle)
        # Now, because a page behind the new end of a file would end the process when it is touched.
        self.files[handle[0]].check()
        try:
            with ENVIRONMENTS.open(self.paths[handle[0]]).begin(buffers=True) as transaction:
                value = transaction.get(handle[1])
                if value is None:
                    raise ImageError(name, "is not in the database any more")
                return _image_of_datum(parse_datum(value)) if self.is_datum else bytes(value), name
        except import_lmdb().Error as error:
            if (fault := _fault(error)) is not None:
                raise MachineError(name, fault) from error
            raise ImageError(name, f"cannot be read: {one_line(error)}") from error
        except ValueError as error:
            raise ImageError(name, f"is a Datum that {error}") from error


def _file_of(path):
    """The file of a database."""
    return os.path.join(path, _DATA_FILE) if os.path.isdir(path) else path


def _fault(error):
    """What the machine says, where an lmdb.Error is its fault: text, or None."""
    # A code above 0 is an errno; LMDB's own are below.
    return machine_fault(OSError(error.code, os.strerror(error.code))) if (error.code or 0) > 0 else None


def import_lmdb():
    """The package lmdb. Raises UserError where it is not installed."""
    return needed("lmdb", "reading LMDB databases", extra="lmdb")


class _Environments:
    """The databases that this process has open, because LMDB allows each to be opened once. For threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._open = {}  # {real path: (identity of the file, environment)}

    def open(self, path):
        """The lmdb.Environment of a database, for reading. Raises SourceError, lmdb.Error."""
        path = os.path.realpath(path)
        file = _file_of(path)
        with self._lock:
            try:
                status = os.stat(file)
            except OSError as error:
                raise SourceError(f"{printable(file)} cannot be read: {error.strerror}") from error
            identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            before, environment = self._open.get(path, (None, None))
            if before != identity:
                if environment is not None:
                    self._open.pop(path)
                    environment.close()
                environment = self._open_new(path, file, status.st_size)
                self._open[path] = identity, environment
        return environment

    def _open_new(self, path, file, size):
        lmdb = import_lmdb()
        try:
            # Without locks it needs no write access, and a killed process leaves no reader behind.
            environment = lmdb.open(
                path, subdir=os.path.isdir(path), readonly=True, lock=False, create=False, max_readers=1
            )
        except lmdb.Error as error:
            if (fault := _fault(error)) is not None:
                raise SourceError(f"{printable(path)} cannot be opened: {fault}") from error
            raise SourceError(f"{printable(path)} is not an LMDB database: {one_line(error)}") from error
        # A page behind the end of the file would end the process when it is touched.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if size < needed:
            environment.close()
            raise SourceError(
                f"{printable(file)} is not complete: {size:,} of {needed:,} bytes; copy it again"
            )
        return environment


ENVIRONMENTS = _Environments()
