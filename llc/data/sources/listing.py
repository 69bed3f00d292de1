"""What lies in a folder. Every access that fails is a SourceError that names the path.

What the system says about a link, a closed folder, a name that is too long or a network disk that is gone
comes as many kinds of OSError. Here all of them become errors of the source.
"""

import errno
import os
import re
import stat
from dataclasses import dataclass

from llc.data.sources.base import SourceError, is_image_name, printable

# Folders and files that operating systems, network disks and programs make by themselves, in lower case.
_MADE_BY_SYSTEMS = frozenset(
    (
        "@eadir",  # Synology: thumbnails
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "lost+found",  # ext4
        "$recycle.bin",  # Windows
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",  # zip files of macOS
        ".ipynb_checkpoints",  # Jupyter
    )
)
_KINDS = (
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Listing:
    """What a folder holds, each sorted by name.

    folders: names of folders and of links to folders. images: names of files that are images by their names,
    and of links with such a name that lead nowhere. others: names of other files. ignored: names of what
    systems make. Hidden files are in none of them.
    """

    folders: tuple
    images: tuple
    others: tuple
    ignored: tuple


def listing(folder, broken_images=True):
    """The Listing of a folder.

    broken_images: whether a link with the name of an image may lead nowhere. Reading it is an ImageError
    then. Raises SourceError where the folder cannot be listed, or where it holds anything else that is
    neither a folder nor a file, because a class or its images would be missing without a word.
    """
    try:
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        raise SourceError(f"{printable(folder)} cannot be listed: {reason(error)}") from error
    folders, images, others, ignored = [], [], [], []
    for entry in entries:
        if entry.name.lower() in _MADE_BY_SYSTEMS:
            ignored.append(entry.name)
        elif not entry.name.startswith("."):
            _sort_in(entry, folders, images, others, broken_images)
    return Listing(tuple(folders), tuple(images), tuple(others), tuple(ignored))


def _sort_in(entry, folders, images, others, broken_images):
    is_image = is_image_name(entry.name)
    try:
        # For a file that is no link, this asks the system nothing: the listing tells what it is.
        if entry.is_dir():
            folders.append(entry.name)
            return
        if entry.is_file():
            (images if is_image else others).append(entry.name)
            return
    except OSError:
        pass  # status() below says why
    if is_image and broken_images and entry.is_symlink() and not _leads_to_something_else(entry.path):
        images.append(entry.name)
        return
    status = status_of(entry.path)
    if status is None:
        raise SourceError(f"{printable(entry.path)} was removed while its folder was read: start again")
    what = next((text for test, text in _KINDS if test(status.st_mode)), "of an unknown kind")
    link = f" is a link to {_target(entry.path)}, and that" if entry.is_symlink() else ""
    raise SourceError(
        f"{printable(entry.path)}{link} is {what}, neither a folder nor a file: remove it, or move it away"
    )


def _leads_to_something_else(path):
    """Whether a link leads to what is neither a folder nor a file, such as a socket."""
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def status_of(path):
    """The os.stat_result of a path, links followed; None where there is nothing, not even a link.

    Raises SourceError where the system cannot say, and for a link that leads nowhere.
    """
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        is_link = os.path.islink(path)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not is_link:
            return None
        if not is_link:
            raise SourceError(f"{printable(path)} cannot be read: {reason(error)}") from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            why = "which is not there (is its disk mounted?)"
        elif isinstance(error, OSError) and error.errno == errno.ELOOP:
            why = "which leads back to it"
        else:
            why = f"which cannot be read: {reason(error)}"
        raise SourceError(
            f"{printable(path)} is a link to {_target(path)}, {why}; mend the link or remove it"
        ) from error


def _target(link):
    try:
        return printable(os.readlink(link))
    except OSError:
        return "an unknown place"


def does_not_exist(path, hint=""):
    """The SourceError for a `data_dir` where nothing is. hint: what else to say of it."""
    if re.match(r"[a-z][a-z0-9+]*:/|pipe:", os.fspath(path)):
        hint = ". It is an address, and llc reads files of this machine's disks only: download them first"
    return SourceError(f"data_dir {printable(path)} does not exist{hint}")


def must_be_folder(path, what):
    """Raises SourceError unless `path` is a folder; the message calls it `what`."""
    status = status_of(path)
    if status is None:
        raise SourceError(f"{what} {printable(path)} does not exist")
    if not stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{what} {printable(path)} is a file; a folder is needed")


def is_folder(path):
    """Whether `path` is a folder or a link to one; raises SourceError as status_of does."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_file(path):
    """Whether `path` is a file or a link to one; raises SourceError as status_of does."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def reason(error):
    """Why the system refused, without the path, which the message has already."""
    return getattr(error, "strerror", None) or printable(str(error)) or type(error).__name__
