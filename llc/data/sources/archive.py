"""Images that are byte ranges of a few large files, such as tars: nothing is unpacked.

Opening such a source reads only the headers of its members. A worker process reads an image's bytes with
`os.pread`, from where the header said they are. Names stay packed in one block of bytes, because 1.28 million
Python strings would take 100 MB more.
"""

import functools
import os
import threading
from dataclasses import dataclass

import numpy as np

from llc.data.images import ImageError
from llc.data.sources.base import Source, SourceError, is_image_name, printable

RANGE_TYPE = np.dtype([("file", np.int32), ("offset", np.int64), ("size", np.int64)])
_MOST_OPEN_FILES = 64  # of one reader; a data set may have thousands of shards


@dataclass(frozen=True)
class Container:
    """A file that holds images, as it was when it was indexed."""

    path: str
    size: int
    modified: int  # in nanoseconds, as os.stat gives it

    @classmethod
    def of(cls, path):
        """Raises SourceError where `path` is no regular file."""
        path = os.fspath(path)
        try:
            status = os.stat(path)
        except OSError as error:
            raise _not_readable(path, error) from error
        if not os.path.isfile(path):
            raise SourceError(f"{printable(path)} is not a regular file")
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self):
        """Raises SourceError where the file cannot be found any more, or has changed."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise _not_readable(self.path, error) from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise _has_changed(self.path)


class OpenFile:
    """An open Container. It is closed when nothing refers to it any more. Raises SourceError."""

    def __init__(self, container):
        self.container = container
        try:
            self._descriptor = os.open(container.path, os.O_RDONLY)
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise _not_readable(container.path, error) from error
        if (status.st_size, status.st_mtime_ns) != (container.size, container.modified):
            raise _has_changed(container.path)

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, size, offset):
        """`size` bytes from byte `offset` on, or fewer at the end of the file."""
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size:  # one call reads at most 2 GiB
                more = os.pread(self._descriptor, size - len(data), offset + len(data))
                if not more:
                    self._check_size()
                    break
                data += more
        except OSError as error:
            raise _not_readable(self.container.path, error) from error
        return data

    def _check_size(self):
        """Raises SourceError where the file has become shorter, because its images would seem damaged."""
        if os.fstat(self._descriptor).st_size < self.container.size:
            raise _has_changed(self.container.path)

    def read_all(self, size, offset):
        """Exactly `size` bytes from byte `offset` on. Raises SourceError."""
        data = self.read(size, offset)
        if len(data) < size:
            raise _has_changed(self.container.path)
        return data


def _not_readable(path, error):
    return SourceError(f"{printable(path)} cannot be read: {error.strerror or error}")


def _has_changed(path):
    return SourceError(f"{printable(path)} has changed since its content was listed: start again")


class Names:
    """Many names as one block of bytes. `ends`: where each name ends, int64 [n]."""

    def __init__(self, names):
        """names: an iterable of bytes."""
        block, ends = bytearray(), []
        for name in names:
            block += name
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.array(ends, np.int64)

    @classmethod
    def joined(cls, parts):
        """All names of several Names, in order."""
        self = cls(())
        starts = np.cumsum([0, *(len(part._block) for part in parts)])
        self._block = b"".join(part._block for part in parts)
        if parts:
            self._ends = np.concatenate([part._ends + start for part, start in zip(parts, starts)])
        return self

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, i):
        return self._block[self._ends[i - 1] if i else 0 : self._ends[i]]


class RangeReader:
    """Reads images of `containers`. It can be pickled: a process opens a file when it first reads from it.

    A handle is (number of the container, byte offset, bytes, name).
    """

    def __init__(self, containers):
        self._containers = containers
        self._lock = threading.Lock()
        self._open = functools.lru_cache(_MOST_OPEN_FILES)(OpenFile)

    def __reduce__(self):
        return type(self), (self._containers,)

    def file(self, number):
        """The OpenFile of a container."""
        with self._lock:  # so that two threads do not open the same file
            return self._open(self._containers[number])

    def read(self, handle):
        """(bytes of an image file, its name). Raises ImageError and SourceError."""
        number, offset, size, name = handle
        return self.file(number).read_all(size, offset), as_text(name)


@dataclass(frozen=True)
class ArchiveImages(Source):
    """Images inside `containers`.

    places: one row an image, [len]; its columns are those of the reader's handles, without the name. names:
    the images' Names. reader_class: RangeReader, or a class that is made in the same way. in_class_order:
    whether the images come class by class.
    """

    containers: tuple
    places: np.ndarray
    names: Names
    reader_class: type = RangeReader
    in_class_order: bool = True

    def image(self, i):
        return self.read(self.handles(np.array([i]))[0])[0]

    def name(self, i):
        return as_text(self.names[i])

    @property
    def sorted_by_label(self):
        return self.in_class_order

    @functools.cached_property
    def reader(self):
        return self.reader_class(self.containers)

    def handles(self, indices):
        rows = self.places[indices].tolist()
        return [(*row, self.names[i]) for row, i in zip(rows, np.asarray(indices).tolist())]

    def read(self, handle):
        return self.reader.read(handle)


def as_text(name):
    """A member's name as text; bytes that are not UTF-8 become surrogate escapes, as in file names."""
    return name.decode("utf-8", "surrogateescape")


def components(name):
    """The folders of a member's name and its base name, as a list of bytes.

    Leading "/" and "./" are dropped and ".." is followed within the archive, because nothing is unpacked and
    so a name cannot lead anywhere else.
    """
    parts = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def is_hidden(parts):
    """Whether a member is left out on purpose: hidden files, and those that macOS adds to archives.

    parts: as `components` gives them.
    """
    return any(part.startswith(b".") or part == b"__MACOSX" for part in parts)


def is_image(name):
    """Whether a member of this name, bytes, is taken for an image."""
    return name[-5:].lower() in (b".jpeg", b".webp") or is_image_name(as_text(name))


def unreadable_member(name, reason):
    """The ImageError for a member whose bytes are damaged."""
    return ImageError(as_text(name), reason)
