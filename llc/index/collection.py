"""The images of a source as an index records them: by names from which they can be opened again.

An image file is recorded by its absolute path. An image inside a file, such as a sample of a beton or a
member of a tar, is recorded as PATH#INDEX, with the flags that it was read with where they matter:

    /photos/2019/cat.jpg
    /data/val.beton#17
    /data/images.tar#17&split=train

INDEX counts from 0 in the order in which llc reads the file. PATH is the file that holds the image where that
file can be opened alone, as of betons, WebDataset's shards and Parquet files, else what the user named.
"""

import dataclasses
import functools
import os
import re
import urllib.parse

import numpy as np
from PIL import Image

from llc.data.batches import BetonImages
from llc.data.image_errors import ImageError, read_from
from llc.data.images import load_rgb
from llc.data.reading import AUTO, Reading, find_source
from llc.data.shards import open_shards
from llc.data.sources import (
    OPENERS,
    FolderTree,
    IndexedDataset,
    Source,
    SourceError,
    find_split,
    is_image_name,
    open_tree,
    printable,
    recognise,
)
from llc.data.sources.archive import ArchiveImages
from llc.data.sources.imagenet import open_unsorted
from llc.data.sources.listing import listing
from llc.data.sources.lmdb import LmdbImages
from llc.data.sources.parquet import ParquetImages
from llc.data.sources.table import TableImages
from llc.data.sources.webdataset import WebDatasetImages
from llc.options import build

_INSIDE = re.compile(r"(.+)#(\d{1,18})((?:&[a-z_]+=[^&#]*)*)", re.DOTALL)
_KEPT_SOURCES = 8  # that stay open for open_recorded
_DOWNLOADED = ("FashionMNIST",)  # registered sources that fetch what is not there
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Collection:
    """The n images of a source. A name may come twice, if a table lists an image twice.

    files: their names in an index; sizes and modified int64 [n]: bytes, and nanoseconds since 1970, of the
    file that each image is or is in, -1 where it is not known. They are from before any image was read. root:
    the absolute path that the user named. containers: absolute paths of the files whose images all are here;
    suffix: what the names of these images end in.
    """

    source: Source
    files: list[str]
    sizes: np.ndarray
    modified: np.ndarray
    root: str
    containers: tuple[str, ...] = ()
    suffix: str = ""

    def __len__(self) -> int:
        return len(self.files)


def collect(data: str | os.PathLike[str], reading: Reading = AUTO) -> Collection:
    """The images at `data`, a path that llc.data.reading takes. Raises UserError.

    Of a folder, images that lie beside its folders are among them, without a class, and folders of classes
    may be empty.
    """
    data = os.fspath(data)
    source = _open_tree(data, reading) or find_source(data, reading)
    root = os.path.abspath(data)
    if source is None:
        return _of_betons(data, root)
    if isinstance(source, FolderTree):
        files = [os.path.abspath(os.path.join(source.root, name)) for name in source.files]
        sizes, modified = _stats(files)
        return Collection(source, files, sizes, modified, root)
    suffix = _suffix_of(reading)
    if isinstance(source, TableImages):
        return _of_table(source, root, suffix)
    if isinstance(source, ParquetImages):
        paths = [os.path.join(source.rows.root, name) for name in source.rows.files]
        which = np.searchsorted(source.starts, np.arange(len(source)), side="right") - 1
        return _of_files(source, paths, which, root, suffix=_suffix_of(reading, without="split"))
    if isinstance(source, WebDatasetImages):
        paths = [container.path for container in source.containers]
        return _of_files(source, paths, source.places["file"], root, _suffix_of(reading, without="split"))
    return _of_whole(source, root, suffix)


def open_recorded(name: str) -> Image.Image:
    """The image that an index records by this name, upright RGB.

    Threads may call it. It reads image files and what llc's sources read, and downloads nothing. An image of
    which a file such as a Parquet file holds only the path is not opened, because whoever made that file may
    have named any file of this machine. Raises UserError for such an image, if there is no such image any
    more, and if it cannot be read.
    """
    match = _INSIDE.fullmatch(name)
    if match is None or os.path.isfile(name):
        if not name:
            raise ImageError("this image", "has no file name in the index")
        return Image.fromarray(load_rgb(name, printable(name)))
    path, suffix = match[1], match[3]
    status = _status(path)
    if status is None:
        raise ImageError(printable(name), "its file is not there")
    source = _opened(path, suffix, status.st_size, status.st_mtime_ns)
    # A folder and a table consist of paths, and are named for the images there.
    return open_inside(source, name, paths=isinstance(source, (FolderTree, TableImages)))


def open_inside(source: Source, name: str, *, paths: bool = False) -> Image.Image:
    """The image of a source that a recorded name, PATH#INDEX, says, upright RGB. Raises UserError.

    paths: whether it may be a file that the source knows by its path. If not, only what is inside the source
    is read, whatever the source says.
    """
    match = _INSIDE.fullmatch(name)
    assert match is not None, f"{name!r} is not the name of an image inside a file"
    i = int(match[2])
    if i >= len(source):
        raise ImageError(printable(name), f"is not there any more: the file holds {len(source):,} images")
    image, _ = read_from(source.reader, source.handles(np.array([i]))[0])
    if isinstance(image, (str, os.PathLike)) and not paths:
        raise ImageError(
            printable(name), "is in another file, of which this one holds only the path; add that file itself"
        )
    return Image.fromarray(load_rgb(image, printable(name)))


def container_of(name: str) -> tuple[str, str]:
    """(path, suffix) of a recorded name: of an image in a file that file's, else the image's own path."""
    match = _INSIDE.fullmatch(name)
    return (match[1], match[3]) if match and not os.path.isfile(name) else (name, "")


def has_vanished(path: str) -> bool:
    """Whether nothing is at `path`. A path that cannot be looked at has not vanished."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


@functools.lru_cache(_KEPT_SOURCES)
def _opened(path, suffix, size, modified):
    """The container at a path; size and modified: of the file now."""
    return open_container(path, suffix)


def open_container(path: str, suffix: str) -> Source:
    """The images that are in a file and were recorded by its path, with this suffix. Raises UserError."""
    given = (part.split("=", 1) for part in suffix.split("&")[1:])
    values = {key: urllib.parse.unquote(value) for key, value in given}
    reading = build(Reading, values, f"{printable(path + suffix)}: ")
    # A name may come from a stranger's index. It must not start a download, nor read a pickled data set, as
    # torchvision's do.
    dataset = reading.dataset.lower()
    registered = dataset in OPENERS and OPENERS[dataset][0] not in _DOWNLOADED
    if not registered and dataset not in ("auto", "beton"):
        what = f"images of {printable(reading.dataset)} are not opened by their names"
        raise SourceError(f"{printable(path + suffix)}: {what}")
    source = find_source(path, reading)
    return BetonImages.of(open_shards(path)) if source is None else source


def _suffix_of(reading, without=""):
    """The flags that are not the usual ones, as a name's suffix."""
    keys = [field.name for field in dataclasses.fields(AUTO)]  # a command's options have others as well
    given = {
        key: getattr(reading, key)
        for key in keys
        if getattr(reading, key) != getattr(AUTO, key) and key != without
    }
    return "".join(f"&{key}={urllib.parse.quote(value, safe='')}" for key, value in given.items())


# ---- each kind of source


def _of_betons(data, root):
    shards = open_shards(data)
    paths = [os.path.abspath(path) for path in shards.paths]
    which = np.repeat(np.arange(len(paths)), np.diff(shards.starts))
    note = f"{len(shards):,} images of {data}"
    source = dataclasses.replace(BetonImages.of(shards), notes=(note,))
    return _of_files(source, paths, which, root)


def _of_files(source, paths, which, root, suffix=""):
    """Images in files that can be opened alone. which: int [n], the file of each image, ascending."""
    paths = [os.path.abspath(path) for path in paths]
    which = np.asarray(which, np.int64)
    firsts = np.searchsorted(which, np.arange(len(paths)))
    sizes, modified = _stats(paths)
    files = [
        f"{paths[file]}#{i}{suffix}"
        for file, i in zip(which.tolist(), (np.arange(len(which)) - firsts[which]).tolist())
    ]
    return Collection(source, files, sizes[which], modified[which], root, tuple(paths), suffix)


def _of_table(source, root, suffix):
    """Images that a table lists by their paths are image files; others are in the table itself."""
    files, sizes, modified = [], np.full(len(source), _UNKNOWN), np.full(len(source), _UNKNOWN)
    of_table = _stat(root)
    for i, entry in enumerate(source.entries):
        if isinstance(entry, str):
            try:
                files.append(os.path.abspath(source.image(i)))
            except ImageError:  # it is not there: whoever reads the image says so
                files.append(os.path.abspath(os.path.join(source.rows.folder, entry)))
            sizes[i], modified[i] = _stat(files[-1])
        else:
            files.append(f"{root}#{i}{suffix}")
            sizes[i], modified[i] = of_table
    return Collection(source, files, sizes, modified, root, (root,), suffix)


def _of_whole(source, root, suffix):
    """Images of a source that is opened as the user named it."""
    n = len(source)
    paths, which = [root], np.zeros(n, np.int64)
    if isinstance(source, ArchiveImages):
        paths, which = [container.path for container in source.containers], source.places["file"]
    elif isinstance(source, LmdbImages):
        paths, which = [container.path for container in source.values.files], source.databases
    elif isinstance(source, IndexedDataset) or not os.path.isfile(root):
        paths = [""]  # nothing tells when it was changed
    sizes, modified = _stats(paths)
    files = [f"{root}#{i}{suffix}" for i in range(n)]
    return Collection(source, files, sizes[which], modified[which], root, (root,), suffix)


def _open_tree(data, reading):
    """The FolderTree of a folder with folders in it; None for anything else. Raises UserError."""
    if reading.dataset.lower() not in ("auto", "folder") or not os.path.isdir(data):
        return None
    if reading.dataset == "auto" and recognise(data) != "folder":
        return None
    if not listing(data).folders or open_unsorted(data, reading.split) is not None:
        return None
    root = os.fspath(find_split(data, reading.split))
    beside = listing(root, broken_images=False).images
    try:
        tree = open_tree(root, may_be_empty=True)
    except SourceError:
        if not beside or _has_images_below(root):
            raise
        tree = FolderTree((), np.empty(0, np.int64), root, ())
    labels = np.concatenate([tree.labels, np.full(len(beside), -1, np.int64)])
    notes = [note for note in tree.notes if f" images directly in {printable(root)}" not in note]
    if beside:
        notes.append(f"{len(beside):,} images directly in {printable(root)}, without a class")
    return FolderTree(tree.class_names, labels, root, (*tree.files, *beside), notes=tuple(notes))


def _has_images_below(root):
    folders = (os.path.join(root, name) for name in listing(root).folders)
    return any(is_image_name(name) for folder in folders for _, _, files in os.walk(folder) for name in files)


def _stats(paths):
    """(sizes, modified) int64 [n] of files; -1 where there is none."""
    found = np.array([_stat(path) for path in paths], np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _stat(path):
    status = _status(path)
    return (_UNKNOWN, _UNKNOWN) if status is None else (status.st_size, status.st_mtime_ns)


def _status(path):
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None
