"""The two errors of reading an image: the image is at fault, or the machine is."""

import errno
import os

from llc.errors import UserError

# What the system says about one file, and would say again: it is missing, a folder, not ours to read. All
# other numbers (too many open files, no memory, an input/output error, a stale handle, ...) tell nothing
# about the image.
_OF_THE_FILE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}


class ImageError(UserError):
    """An image that cannot be read. `name` says which, `reason` why, without repeating the name."""

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):  # it travels between processes
        return type(self), (self.name, self.reason)


class MachineError(UserError):
    """The machine failed while it read an image. `name` says which image, `reason` what happened.

    The image may be fine. So no setting leaves it out: the conversion ends, with on_error=skip, too.
    """

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):
        return type(self), (self.name, self.reason)


def machine_fault(error):
    """What the machine says, where `error` is its fault and not an image's: text, or None."""
    no_memory = f"the machine has no memory left to read it ({os.strerror(errno.ENOMEM)})"
    if isinstance(error, MemoryError):
        return no_memory
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOMEM:
            return no_memory
        if error.errno not in _OF_THE_FILE:
            return f"the machine could not read it: {error.strerror or os.strerror(error.errno)}"
    if isinstance(error, (ConnectionError, TimeoutError)):  # where a library raises them without a number
        return f"the machine could not read it: {say(error)}"
    if isinstance(
        error, ImportError
    ):  # a library that is part of the installation, such as without open files
        return f"a library that reads it cannot be loaded: {error}"
    # Pillow's decoders say so without a number.
    if isinstance(error, OSError) and "out of memory" in str(error):
        return no_memory
    return None


def read_from(reader, handle):
    """reader.read(handle) of a source's reader: (image, name).

    What the reader raises because the system failed becomes an error of the image that it read: an ImageError
    where the file is at fault, a MachineError where the machine is. Other errors pass.
    """
    try:
        return reader.read(handle)
    except (OSError, EOFError, MemoryError) as error:
        raise fault_of(_name(reader, handle), error) from error


def fault_of(name, error):
    """The MachineError, or else the ImageError, for an error that reading the image `name` raised."""
    fault = machine_fault(error)
    if fault is not None:
        return MachineError(name, fault)
    return ImageError(name, f"cannot be read: {say(error)}")


def _name(reader, handle):
    """What messages call the image of a handle, whose reader could not say it."""
    try:
        return reader.name(handle)
    except Exception:  # readers need no such method, and its handles may be of other kinds
        name = handle[-1] if isinstance(handle, tuple) and handle else handle
        return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else f"image {name}"


def say(error):
    """An error in words, without the path that an OSError adds, because messages begin with it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
