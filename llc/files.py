"""Files that are written whole or not at all."""
import os
import tempfile
from pathlib import Path

from llc.errors import UserError


def atomic_write(path, write, mode="wb"):
    """Calls write(file) on a temporary file beside `path`, flushes it to disk, then renames it over `path`.

    A crash at any moment leaves the old file or the new one, at worst a stray `*.tmp` beside it. Raises UserError naming the path
    when the disk is full or the folder cannot be written.
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
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
