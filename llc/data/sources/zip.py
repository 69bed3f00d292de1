"""Where the members of a zip are, and how a worker reads one.

The format: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3 (zip64). Python's zipfile would take 1 GB of memory for the
two million members of ImageNet's zip from Kaggle; this reads the central directory piece by piece.
"""

import struct
import zlib

import numpy as np

from llc.data.sources.archive import RangeReader, as_text, unreadable_member
from llc.data.sources.base import SourceError, printable

PLACE_TYPE = np.dtype(
    [
        ("file", np.int32),
        ("header", np.int64),  # byte offset of the member's own header
        ("packed", np.int64),  # bytes in the file
        ("size", np.int64),  # bytes of the image
        ("crc", np.uint32),
        ("method", np.uint8),
    ]
)
STORED, DEFLATED = 0, 8
_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 99: "AES encryption"}
_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")  # where the zip64 end of central directory is
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")  # of the central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # before each member's data
_PIECE = 1 << 20  # bytes of the central directory that are read at once
_LONGEST_ENTRY = _ENTRY.size + 3 * 0xFFFF


class Zip:
    """A zip in an open file: iterate over (name, row of PLACE_TYPE) of its members, in the directory's order.

    name: bytes in UTF-8; folders end in "/". number: the first column of the rows. Raises SourceError where
    it is no zip, cut off, or split over several files; `check` does for members that cannot be read.
    """

    def __init__(self, file, number=0):
        self._file, self._number = file, number
        self.title = printable(file.container.path)
        self._shift = 0  # bytes before the zip itself, such as a program that unpacks it
        self._start, self._size, self.num_members = self._find_directory()

    def _find_directory(self):
        """(first byte, bytes, number of entries) of the central directory."""
        file_size = self._file.container.size
        tail_start = max(file_size - _END.size - 0xFFFF, 0)
        tail = self._file.read(file_size - tail_start, tail_start)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or at + _END.size > len(tail):
            first = self._file.read(4, 0)
            raise SourceError(
                f"{self.title} is cut off: the directory at its end is missing; copy or download it again"
                if first.startswith(b"PK")
                else f"{self.title} is not a zip"
            )
        end = tail_start + at
        _, disk, first_disk, _, count, size, start, _ = _END.unpack_from(tail, at)
        if 0xFFFF in (disk, first_disk, count) or 0xFFFFFFFF in (size, start):
            signature, _, end_64, _ = _LOCATOR.unpack(
                self._file.read(_LOCATOR.size, max(end - _LOCATOR.size, 0)).ljust(_LOCATOR.size, b"\0")
            )
            if signature == b"PK\6\7":
                # Found from the end, because bytes before the zip would shift what the locator says.
                record = self._file.read(_END_64.size, end - _LOCATOR.size - _END_64.size)
                if not record.startswith(b"PK\6\6"):
                    record = self._file.read(_END_64.size, end_64)
                if len(record) < _END_64.size or not record.startswith(b"PK\6\6"):
                    raise self._damaged("its zip64 directory is not where it should be")
                _, _, _, _, disk, first_disk, _, count, size, start = _END_64.unpack(record)
                end -= _LOCATOR.size + _END_64.size
        if disk or first_disk:
            raise SourceError(f"{self.title} is one of several parts of a zip; join them, with zip -s 0")
        self._shift = end - size - start
        if self._shift < 0 or start + size > end:
            raise self._damaged("its directory is not where it should be")
        return start + self._shift, size, count

    def __iter__(self):
        at, end = self._start, self._start + self._size
        piece, used = b"", 0
        for _ in range(self.num_members):
            if len(piece) - used < _LONGEST_ENTRY and at + len(piece) < end:
                at += used
                piece, used = self._file.read(min(max(_PIECE, _LONGEST_ENTRY), end - at), at), 0
            if used + _ENTRY.size > len(piece):
                raise self._damaged("its directory ends too early")
            signature, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, header = (
                _ENTRY.unpack_from(piece, used)
            )
            if signature != b"PK\1\2":
                raise self._damaged(f"its directory has no entry at byte {at + used:,}")
            name_start = used + _ENTRY.size
            extra_start = name_start + lengths[0]
            name = piece[name_start:extra_start]
            used = extra_start + lengths[1] + lengths[2]
            if 0xFFFFFFFF in (size, packed, header):
                size, packed, header = self._zip64(
                    piece[extra_start : extra_start + lengths[1]], size, packed, header
                )
            if not flags & 0x800 and not name.isascii():
                name = name.decode("cp437").encode()
            if flags & 1:
                method = 99
            yield name, (self._number, header + self._shift, packed, size, crc, method)

    def _zip64(self, extra, *values):
        """size, packed and header, of which those that are 0xFFFFFFFF stand in `extra`."""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            if kind == 1:
                field = extra[at + 4 : at + 4 + length]
                wide = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
                try:
                    return [next(wide) if value == 0xFFFFFFFF else value for value in values]
                except StopIteration:
                    break
            at += 4 + length
        return list(values)

    def check(self, name, place):
        """Raises SourceError where this member is encrypted, or packed in a way that is not read."""
        _, header, packed, _, _, method = place
        if method not in (STORED, DEFLATED):
            how = _METHODS.get(method, f"method {method}")
            raise SourceError(
                f"{self.title}: {printable(as_text(name))} is "
                + ("encrypted" if method == 99 else f"packed with {how}")
                + ", which llc does not read; pack the images again, with zip -r -0"
            )
        if header + _LOCAL.size + packed > self._start:
            raise self._damaged(f"{printable(as_text(name))} in it would lie behind its directory")

    def _damaged(self, how):
        return SourceError(f"{self.title} is damaged: {how}; get a new copy")


class ZipReader(RangeReader):
    """Reads members of zips. A handle is (*row of PLACE_TYPE, name)."""

    def read(self, handle):
        """(bytes of an image file, its name). Raises ImageError where they are damaged, and SourceError."""
        number, header, packed, size, crc, method, name = handle
        file = self.file(number)
        local = file.read_all(_LOCAL.size, header)
        if not local.startswith(b"PK\3\4"):
            raise unreadable_member(name, "its header in the zip is damaged")
        name_length, extra_length = _LOCAL.unpack(local)[-2:]
        data = file.read(packed, header + _LOCAL.size + name_length + extra_length)
        if method == DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise unreadable_member(name, f"its data in the zip are damaged: {error}") from error
        if len(data) != size or zlib.crc32(data) != crc:
            raise unreadable_member(name, "its data in the zip are damaged: they have another checksum")
        return data, as_text(name)
