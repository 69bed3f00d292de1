"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from llc.errors import UserError


def atomic_write(path, write, mode="wb", *, check=None, rotate=None):
    """Calls write(file) on a temporary file beside `path`, flushes it to disk, then renames it over `path`.

    check(temporary path) is called on what is on the disk, and what it raises leaves `path` as it was; rotate() is called just
    before the rename, to put what stands at `path` elsewhere. A crash at any moment leaves the old file or the new one, at worst a
    stray `*.tmp` beside it (with rotate: perhaps neither under this name, but the old one under its other). Raises UserError naming
    the path when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, mode) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        if check is not None:
            check(temporary)
        if rotate is not None:
            rotate()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder):
    """Puts renames on the disk too; without it a power failure may undo one that a later file relies on."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
