"""Files of arrays, mapped into memory, and the bounded reading of what strangers may have written.

A file of arrays is MAGIC, the number of bytes of its header as uint64, the header as JSON, and the arrays at
multiples of 64 bytes. The header says of each array its dtype, shape, place and CRC-32. Reading a file reads
the header alone, and checks that each array lies in the file; what is in the arrays is checked where it is
used. Nothing that is read can run code.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from llc.data.sources import printable
from llc.errors import UserError
from llc.files import atomic_write

VERSION = 1  # of the format of an index
MAGIC = b"llcindex"
_ALIGNMENT = 64
_MAX_HEADER, MAX_TEXT = 1 << 20, 1 << 28  # bytes of JSON
_MAX_SIZE = 1 << 62
_CHUNK = 1 << 25  # bytes that are written or checked at a time


def write_arrays(path: Path, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> int:
    """Writes a file of arrays, completely or not at all -> the CRC-32 of its header."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described, offset = {}, 0
    for name, array in arrays.items():
        described[name] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "offset": offset,  # behind the header
            "crc32": crc32(array),
        }
        offset += _aligned(array.nbytes)
    header = json.dumps({"version": VERSION, **head, "arrays": described}).encode("ascii")
    start = _aligned(len(MAGIC) + 8 + len(header))

    def write(file):
        file.write(MAGIC + len(header).to_bytes(8, "little") + header)
        file.write(bytes(start - file.tell()))
        for array in arrays.values():
            for chunk in _chunks(array):
                file.write(chunk)
            file.write(bytes(_aligned(array.nbytes) - array.nbytes))

    atomic_write(path, write)
    return zlib.crc32(header)


def _aligned(size):
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _chunks(array):
    data = memoryview(array.reshape(-1).view(np.uint8))
    return (data[first : first + _CHUNK] for first in range(0, len(data), _CHUNK))


def crc32(array):
    value = 0
    for chunk in _chunks(array):
        value = zlib.crc32(chunk, value)
    return value


def read_arrays(path: Path, checksum: int | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, {name: array}) of a file of arrays, which is mapped into memory.

    checksum: of the header; None: any. Raises UserError, and FileNotFoundError.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(MAGIC) + 8)
            if len(start) < len(MAGIC) + 8 or not start.startswith(MAGIC):
                raise broken(path, "it is no file of an index")
            length = int.from_bytes(start[len(MAGIC) :], "little")
            if length > min(size, _MAX_HEADER):
                raise broken(path, "its header is longer than the file, or too long")
            text = file.read(length)
            if len(text) < length or checksum is not None and zlib.crc32(text) != checksum:
                raise broken(path, "its header is damaged")
            header = json_object(path, text)
            if header.get("version") != VERSION:
                raise newer_format(path, header.get("version"))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    begin = _aligned(len(MAGIC) + 8 + length)
    arrays = {}
    for name, described in dictionary(path, header.get("arrays")).items():
        described = dictionary(path, described)
        dtype, shape = described.get("dtype"), described.get("shape")
        if dtype not in ("|u1", "<u4", "<i4", "<i8") or not are_sizes(shape):
            raise broken(path, f"{shown(name)} is no array")
        count, item = int(np.prod(shape, dtype=object)), np.dtype(dtype).itemsize
        offset = described.get("offset")
        if not is_number(offset, 0, size) or offset % _ALIGNMENT or begin + offset + count * item > size:
            raise broken(path, f"{shown(name)} reaches beyond its end; it may not be complete")
        arrays[name] = np.frombuffer(mapped, dtype, count, begin + offset if count else 0).reshape(shape)
    return header, arrays


def json_object(path, text):
    if len(text) > MAX_TEXT:
        raise broken(path, f"it is larger than {MAX_TEXT >> 20} MB")
    try:
        return dictionary(path, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise broken(path, f"it is not JSON: {error}") from error


def dictionary(path, value):
    if not isinstance(value, dict):
        raise broken(path, f"it holds {value!r:.40} where a JSON object is expected")
    return value


def is_number(value, lowest, highest):
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def are_sizes(value):
    return (
        isinstance(value, list) and len(value) <= 2 and all(is_number(size, 0, _MAX_SIZE) for size in value)
    )


def broken(path, what):
    return UserError(
        f"{shown(path)}: {what}. The index is damaged; restore the file from a copy, or make the index again"
    )


def newer_format(path, version):
    return UserError(
        f"{shown(path)}: its format has version {version!r:.20}, and this llc reads version {VERSION}; "
        "use a newer llc"
    )


def shown(path):
    return printable(str(path))
