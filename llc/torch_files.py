"""Files of torch.save: written so that damage is recognised, and read as data.

Nothing in a file can run code or make the reader ask for absurd amounts of memory.
"""

import io
import pickletools
import re
import zipfile
from pathlib import Path

import torch

from llc.errors import UserError
from llc.files import stand_in

_FOLDER = 0x10  # in a zip record's attributes
# The older format is this many pickles in a row: a magic number, a version, the machine, the objects, and the
# tensors' keys.
_NUM_OLD_PICKLES = 5
_MAX_NAME = 200
_OTHER_FILES = {
    ".beton": "a dataset",
    ".npy": "an array, such as a codebook",
    ".npz": "a file of arrays, such as codes or a decoder",
    ".onnx": "an ONNX model, which other programs run",
    ".yaml": "a recipe; of a run, name its folder",
}


def read_torch_file(path):
    """torch.load of plain tensors and containers only, on the CPU.

    A file in torch's zip format is first checked whole: the CRC-32 of every record, and that no record
    claims more bytes than are there. Files in the format before torch 1.6 have no checksums. Raises
    UserError naming the file when it is missing, damaged or runs code.
    """
    try:
        check_torch_file(path)
        with open(path, "rb") as file:  # given a path, torch.load looks at its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a file may hold anything, and torch may raise anything
        raise UserError(_no_checkpoint(path, _reason(error))) from error


def _check_names(path, pickled):
    """Raises UserError if a pickle asks for something under a very long name.

    torch matches these names with patterns that take minutes for long ones, and real names are short.
    """
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL" and len(argument) > _MAX_NAME:
                raise UserError(f"{path}: not a checkpoint of plain tensors: it asks for {argument[:40]}...")
    except UserError:
        raise
    except Exception as error:
        raise UserError(_no_checkpoint(path, error)) from error


def _no_checkpoint(path, reason):
    """The message for a file that is no checkpoint; of llc's other files it says what they are."""
    kind = _OTHER_FILES.get(Path(path).suffix)
    why = f": it is {kind}" if kind else f" (damaged, or made of other things): {reason}"
    return f"{path}: not a checkpoint of plain tensors{why}"


def _reason(error):
    """A line of torch's message.

    It leaves out the advice to use weights_only=False, which would run the code in the file.
    """
    text = str(error)
    asked_for = re.search(r"GLOBAL (\S+)", text)
    if asked_for:
        return f"it asks for {asked_for[1]}"
    lines = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
    return lines[0] if lines and "weights_only" not in lines[0] else type(error).__name__


def write_torch_file(state, file):
    """torch.save to an open file. Raises the file's OSError, also where torch reports another error."""
    watched = _Watched(file)
    try:
        torch.save(state, watched)
    except RuntimeError:
        if watched.error is not None:
            raise watched.error from None
        raise


class _Watched:
    """A file that remembers the OSError of a write."""

    def __init__(self, file):
        self._file, self.error = file, None

    def write(self, data):
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self._file.flush()


def check_torch_file(path):
    """Reads a torch zip file once, and raises UserError if it is damaged, or no such file at all.

    Damaged are records whose checksum is wrong, or that claim more bytes than the file holds.
    """
    something_else = stand_in(path)
    if something_else:
        raise UserError(f"{path}: {something_else}")
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # the older format, or no such file at all
            file.seek(0)
            for _ in range(_NUM_OLD_PICKLES):
                _check_names(path, file)
            return
        file_size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
                # torch compresses nothing. A compressed file could be small and still fill the memory.
                if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                    raise UserError(
                        f"{path}: its records are compressed, which torch.save never does; it is not read"
                    )
                if sum(record.file_size for record in records) > file_size:
                    raise UserError(
                        f"{path}: its records claim more than the file's {file_size:,} bytes; it is not read"
                    )
                # torch gives uninitialised memory for what is marked as a folder
                if any(record.external_attr & _FOLDER for record in records):
                    raise UserError(f"{path}: damaged: a record of it is marked as a folder")
                damaged = archive.testzip()
                for record in records:
                    if record.filename.endswith(".pkl") and damaged is None:
                        _check_names(path, io.BytesIO(archive.read(record)))
        except (UserError, OSError):
            raise
        except Exception as error:  # zipfile raises many kinds for a broken directory
            raise UserError(f"{path}: cut off or damaged: {error}") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged: the checksum of its record {damaged} is wrong")
