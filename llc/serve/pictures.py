"""Images that are sent to the server, and thumbnails of those that the index records."""

import collections
import contextlib
import io
import os
import shutil
import stat
import tempfile
import threading
import warnings
import weakref
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from llc.data.image_errors import ImageError, MachineError
from llc.data.images import load_rgb
from llc.data.sources import is_image_name, printable
from llc.errors import UserError
from llc.index.collection import container_of, open_container, open_inside
from llc.serve.limits import Refused

_SIDE = 320  # pixels of a thumbnail's longer side
_MAX_BYTES = 256 << 20  # of a file that a thumbnail is made from
_MAX_KEPT = 256  # thumbnails in memory, of about 20 KB each
# Files whose images are shown, too, if they hold them. Of images that they only name, as Parquet files may,
# nothing is shown, because they may name any file of this machine.
_CONTAINERS = (".beton", ".parquet", ".tar", ".zip")
_MAX_OPEN = 8  # of these
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # without O_NONBLOCK a named pipe would block


def limit_pixels(max_pixels: int) -> None:
    """Makes this process refuse to decode images of more pixels.

    Pillow refuses from twice its limit on, and warns before.
    """
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes) -> np.ndarray:
    """The bytes of an image file -> uint8 [H, W, 3], upright.

    Raises Refused: 413 if it has too many pixels, 415 if it is no image or a broken one, 503 if the machine
    has not enough memory or open files.
    """
    try:
        return load_rgb(data, "the image")
    except MachineError as error:
        raise Refused(503, str(error)) from error
    except ImageError as error:
        if "exceeds limit of" in error.reason:  # Pillow's words, which llc.data.images uses, too
            raise Refused(413, "the image has more pixels than the server takes (--max_pixels)") from error
        raise Refused(415, f"the image {error.reason}") from error


class Thumbnails:
    """Small JPEGs of the images that an index records, made when they are asked for.

    Only an image that is still what was indexed is shown: without a folder, the file must have the size and
    the time of modification that the index records. With a folder, it must lie inside that instead. So
    neither a forged index, nor a link that was put in a file's place, nor a file that names others leads to
    other files.
    """

    def __init__(self, folder: str | None) -> None:
        """folder: what --images names, or None. Raises UserError if it is not a folder."""
        # A _Container leaves out a beton's manifest, which only names its classes.
        warnings.filterwarnings("ignore", r".*/llc-serve-[^/]*/.* has no manifest", UserWarning)
        self._folder: Path | None = None
        if folder is not None:
            try:
                self._folder = Path(folder).resolve(strict=True)
                self._handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise UserError(
                    f"--images={printable(folder)}: {error.strerror}; expected the folder of the images"
                ) from error
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple, bytes] = collections.OrderedDict()
        self._containers: collections.OrderedDict[tuple, _Container] = collections.OrderedDict()

    def of(self, name: str, size: int, modified: int) -> bytes:
        """The thumbnail of the image that an index records by this name, size and time of modification.

        Raises Refused: 404 if there is no such image any more, and what `decode` raises.
        """
        path, suffix = container_of(name)
        inside_a_file = path != name
        if not (path.lower().endswith(_CONTAINERS) if inside_a_file else is_image_name(name)):
            raise Refused(404, "this is not recorded as an image file")
        if inside_a_file and not os.path.isabs(path):
            raise Refused(404, "this is not recorded by an absolute path")
        try:
            handle = self._open(path)
        except (OSError, ValueError) as error:  # ValueError: a null character, a path outside
            raise Refused(404, "the image file is not there, or not in the folder of --images") from error
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not inside_a_file and found.st_size > _MAX_BYTES:
                raise Refused(404, f"the file has more than {_MAX_BYTES:,} bytes")
            if self._folder is None and (found.st_size, found.st_mtime_ns) != (size, modified):
                raise Refused(404, "the file was changed since it was indexed: add it again")
            version = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
            thumbnail = self._find(self._kept, (name, *version))
            if thumbnail is None:
                if inside_a_file:
                    pixels = self._inside(name, file, path, suffix, version)
                else:
                    pixels = decode(file.read(_MAX_BYTES))
                thumbnail = _small_jpeg(pixels)
                self._keep(self._kept, (name, *version), thumbnail, _MAX_KEPT)
        return thumbnail

    def _inside(self, name: str, file: BinaryIO, path: str, suffix: str, version: tuple) -> np.ndarray:
        """An image inside an open file, such as a sample of a beton, as uint8 [H, W, 3]. Raises Refused."""
        key = path, suffix, *version
        try:
            container = self._find(self._containers, key)
            if container is None:
                container = _Container(file, os.path.basename(path), suffix)
                self._keep(self._containers, key, container, _MAX_OPEN)
            return np.asarray(open_inside(container.source, name))
        except (UserError, OSError) as error:
            raise Refused(404, "the image is not in its file any more, or cannot be read") from error

    def _find(self, kept, key):
        with self._lock:
            if key in kept:
                kept.move_to_end(key)
            return kept.get(key)

    def _keep(self, kept, key, value, most):
        with self._lock:
            kept[key] = value
            while len(kept) > most:
                kept.popitem(last=False)

    def _open(self, path: str) -> int:
        """A descriptor of the file at a recorded path. Raises OSError, ValueError if it may not be read.

        Links may lead from one place in the folder to another. They are resolved first; then each part of the
        path is opened without following links, so that one made in the meantime leads nowhere.
        """
        if self._folder is None:
            if not os.path.isabs(path) or not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError("not the absolute path of a file")
            return _regular(os.open(path, _OPEN))
        resolved = Path(os.path.realpath(self._folder / path))
        *folders, last = resolved.relative_to(self._folder).parts
        with contextlib.ExitStack() as opened:
            above = self._handle
            for folder in folders:
                above = os.open(folder, _OPEN | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=above)
                opened.callback(os.close, above)
            return _regular(os.open(last, _OPEN | os.O_NOFOLLOW, dir_fd=above))


def _regular(handle: int) -> int:
    """The descriptor, if it is of a regular file; else it is closed. Raises ValueError."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a regular file")
    return handle


class _Container:
    """A file that holds images, and its source. Both are closed when nothing refers to this any more.

    A source opens its file by name, and again for each image, and it finds files beside it. So it gets a name
    in an empty folder, which leads to the descriptor of the file that was checked: whatever is put in that
    file's place meanwhile, or lies beside it, is not read.
    """

    def __init__(self, file: BinaryIO, name: str, suffix: str) -> None:
        """name: the file's, from which its kind is known. Raises UserError, OSError."""
        folder = tempfile.mkdtemp(prefix="llc-serve-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, handle)
        link = os.path.join(folder, name)
        os.symlink(f"/proc/self/fd/{handle}", link)
        self.source = open_container(link, suffix)


def _small_jpeg(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> a JPEG made afresh, so that nothing else of the file comes with it, such as EXIF."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
