"""Files that are written whole or not at all, and files that hold something else than their name says."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llc.errors import UserError

_PACKAGE = Path(__file__).parent
# setup.py puts recipes and class lists into the package; a clone has them at its root
SHIPPED = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent


RECIPE_FOLDERS = ("rn18_configs", "rn50_configs", "backbone_configs")  # setup.py has them, too


def shipped(name: str, folder: str | os.PathLike = "") -> str:
    """The file `name`, relative to `folder`; where there is none, the file of that name that llc comes with.

    These are the recipes and class lists, such as rn50_configs/llc_20bit.yaml.
    """
    path, own = os.path.join(folder, name), SHIPPED / name
    is_ours = os.path.normpath(name).startswith(tuple(f"{f}/" for f in RECIPE_FOLDERS)) and own.is_file()
    return str(own) if is_ours and not os.path.exists(path) else path


def stand_in(path: str | os.PathLike) -> str | None:
    """What the file at `path` is, in words, if it only stands in the place of the real one; None otherwise.

    A Git LFS pointer is such a file, a web page that was downloaded in place of a file, and an empty file.
    Raises OSError.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file that it stands for: fetch that with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return (
            "an HTML or XML page, such as a site's log-in or error page, not the file: open the address in a "
            "browser, and download the file again"
        )
    return None


def atomic_write(
    path: str | os.PathLike,
    write: Callable[[Any], Any],
    mode: str = "wb",
    *,
    check: Callable[[str], Any] | None = None,
    rotate: Callable[[], Any] | None = None,
) -> None:
    """Writes a file whole or not at all: a temporary file beside `path` is renamed to it when it is complete.

    write(file) writes the contents to the temporary file, which is then flushed to disk. check(temporary
    path) may read it back; if it raises an error, `path` stays as it was. rotate() is called just before the
    rename, and may move the old file at `path` elsewhere.

    A crash at any moment leaves the old file or the new one at `path`, and perhaps a stray `*.tmp` beside it.
    With rotate there may also be no file at `path`; then the old one is where rotate() put it. Raises
    UserError with the path if the disk is full or the folder cannot be written to.
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
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def sync_folder(folder: Path) -> None:
    """Flushes renames to disk; otherwise a power failure may undo one that a later file relies on."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
