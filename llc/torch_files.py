"""Files of torch.save, written so that damage can be told, and read as data: nothing in them can run code or ask for absurd memory."""

import io
import pickletools
import re
import zipfile

import torch

from llc.errors import UserError

_FOLDER = 0x10  # in a zip record's attributes
_NUM_OLD_PICKLES = (
    5  # in a row, in the older format: a magic number, a version, the machine, the objects, the tensors' keys
)
_MAX_NAME = 200


def read_torch_file(path):
    """torch.load of plain tensors and containers only, on the CPU.

    A file in torch's zip format is first checked whole: the CRC-32 of every record, and that no record claims more bytes than are there.
    Files in the format before torch 1.6 have no checksums. Raises UserError naming the file when it is missing, damaged or runs code.
    """
    try:
        check_torch_file(path)
        with open(path, "rb") as file:  # of a path, torch.load would go by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a file may hold anything, and torch raises whatever its parts raise
        raise UserError(
            f"{path}: not a checkpoint of plain tensors (damaged, or made of other things): {_reason(error)}"
        ) from error


def _check_names(path, pickled):
    """Names of what a pickle asks for are short; torch matches them with patterns that take minutes for long ones."""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL" and len(argument) > _MAX_NAME:
                raise UserError(f"{path}: not a checkpoint of plain tensors: it asks for {argument[:40]}...")
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of plain tensors (damaged, or made of other things): {error}"
        ) from error


def _reason(error):
    """A line from torch's text, without its advice to load the file with weights_only=False, which would run what it holds."""
    text = str(error)
    asked_for = re.search(r"GLOBAL (\S+)", text)
    if asked_for:
        return f"it asks for {asked_for[1]}"
    lines = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
    return lines[0] if lines and "weights_only" not in lines[0] else type(error).__name__


def write_torch_file(state, file):
    """torch.save to an open file. Raises OSError where the file does: torch reports some of these as errors of its own."""
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
    """Raises UserError where the records of a torch zip file are damaged, or claim more than the file holds; reads it once."""
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
                # torch compresses nothing, so bytes in records are bytes in the file; else a small file could fill the memory
                if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                    raise UserError(
                        f"{path}: its records are compressed, which torch.save never does; it is not read"
                    )
                if sum(record.file_size for record in records) > file_size:
                    raise UserError(
                        f"{path}: its records claim more than the {file_size:,} bytes of the file; it is not read"
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
