"""Single pages of a parquet column of bytes. It is there for speed and memory; pyarrow reads whole columns.

With pyarrow a process that wants a few images of a row group decodes and copies all of them, and several
processes share each row group when images are converted in order. Here a page without wanted rows is skipped,
and a value is a view into the decompressed page. Reading in order takes half the CPU time or less.

Format: https://parquet.apache.org/docs/file-format and parquet.thrift there. Read are columns without
repetition, of the encodings PLAIN, PLAIN_DICTIONARY and RLE_DICTIONARY, in data pages of version 1 and 2.
`open_chunk` is None for everything else.
"""

import os
import struct
from dataclasses import dataclass

import numpy as np

from llc.data.sources.varint import read_varint

_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8  # encodings
_HEADER_BYTES = 1 << 12  # read at first; statistics may make a header longer
_MAX_HEADER_BYTES = 1 << 24


@dataclass(frozen=True)
class Page:
    """Where a page is. first_row, num_rows: rows of its row group (of a dictionary page: 0, its values).

    offset, size, decoded_size: of its body, in bytes. levels_size: bytes of levels before the compressed
    part, in version 2; None in version 1, where they are compressed too.
    """

    first_row: int
    num_rows: int
    encoding: int
    offset: int
    size: int
    decoded_size: int
    levels_size: int | None
    is_compressed: bool


@dataclass(frozen=True)
class Chunk:
    """The pages of one column in one row group. max_level: the definition level of a value that is there."""

    codec: str | None
    max_level: int
    dictionary: Page | None
    pages: tuple

    def page_of(self, row):
        """The page that holds a row of the row group."""
        return next(page for page in self.pages if page.first_row <= row < page.first_row + page.num_rows)


def open_chunk(descriptor, metadata, group, column):
    """The Chunk of a column, or None where it is stored in a way that is not read here.

    descriptor: of the open file. metadata: pyarrow's FileMetaData. column: the path of the column, such as
    "image.bytes". Raises ValueError where the pages are damaged.
    """
    row_group = metadata.row_group(group)
    for number in range(row_group.num_columns):
        column_chunk = row_group.column(number)
        if column_chunk.path_in_schema == column:
            break
    else:
        return None
    leaf = metadata.schema.column(number)
    if leaf.max_repetition_level or column_chunk.compression not in _CODECS or column_chunk.file_path:
        return None
    start = column_chunk.data_page_offset
    if column_chunk.has_dictionary_page and 0 < (column_chunk.dictionary_page_offset or 0) < start:
        start = column_chunk.dictionary_page_offset
    dictionary, pages = _find_pages(
        descriptor, start, start + column_chunk.total_compressed_size, row_group.num_rows
    )
    for page in pages:
        if page.encoding not in (PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY):
            return None
    return Chunk(_CODECS[column_chunk.compression], leaf.max_definition_level, dictionary, tuple(pages))


def _find_pages(descriptor, position, end, num_rows):
    """(dictionary page or None, data pages) between two file offsets."""
    dictionary, pages, first_row = None, [], 0
    while first_row < num_rows:
        header, body = _read_header(descriptor, position, end)
        kind, decoded_size, size = header[1], header[2], header[3]
        position = body + size
        if position > end:
            raise ValueError("a page is longer than its column")
        if kind == _DICTIONARY_PAGE:
            count, encoding = header[7][1], header[7][2]
            dictionary = Page(0, count, encoding, body, size, decoded_size, None, True)
        elif kind == _DATA_PAGE:
            count, encoding = header[5][1], header[5][2]
            pages.append(Page(first_row, count, encoding, body, size, decoded_size, None, True))
            first_row += count
        elif kind == _DATA_PAGE_V2:
            part = header[8]
            levels = part[5] + part[6]
            pages.append(
                Page(first_row, part[1], part[4], body, size, decoded_size, levels, part.get(7, True))
            )
            first_row += part[1]
    return dictionary, pages


def read_dictionary(descriptor, chunk):
    """The values of a chunk's dictionary page: a list of memoryviews; None where it has no such page."""
    page = chunk.dictionary
    if page is None:
        return None
    body = _decompress(_read(descriptor, page.offset, page.size), page.decoded_size, chunk.codec)
    return _plain_values(body, page.num_rows)


def read_values(descriptor, chunk, page, dictionary):
    """The values of a data page, by row: a list of memoryviews, None for a missing value.

    dictionary: that of `read_dictionary`. Raises ValueError or OSError where the page is damaged.
    """
    body = _read(descriptor, page.offset, page.size)
    if page.levels_size is None:
        body = _decompress(body, page.decoded_size, chunk.codec)
        levels = None
        if chunk.max_level:
            size = int.from_bytes(body[:4], "little")
            levels, body = body[4 : 4 + size], body[4 + size :]
    else:
        levels, body = body[: page.levels_size], body[page.levels_size :]
        codec = chunk.codec if page.is_compressed else None
        body = _decompress(body, page.decoded_size - page.levels_size, codec)
    present = np.ones(page.num_rows, bool)
    if chunk.max_level:
        levels = _run_lengths(levels, chunk.max_level.bit_length(), page.num_rows)
        present = levels == chunk.max_level
    count = int(present.sum())
    if page.encoding == PLAIN:
        values = _plain_values(body, count)
    elif not count:
        values = []
    elif dictionary is None:
        raise ValueError("its dictionary is missing")
    else:
        values = [dictionary[i] for i in _run_lengths(body[1:], body[0], count).tolist()]
    if count == page.num_rows:
        return values
    values = iter(values)
    return [next(values) if there else None for there in present.tolist()]


# -------------------------------------------------------------------------------------------------- encodings


def _read(descriptor, offset, size):
    """memoryview of exactly these bytes of a file."""
    parts = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise ValueError("the file ends within a page")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))


def _decompress(data, size, codec):
    if codec is None or not size:
        return data
    import pyarrow

    return memoryview(pyarrow.decompress(data, size, codec)).cast("B")


def _plain_values(body, count):
    """`count` values: each is 4 bytes of length, little-endian, and its bytes."""
    values, position = [], 0
    for _ in range(count):
        (size,) = struct.unpack_from("<I", body, position)
        position += 4 + size
        values.append(body[position - size : position])
    if position > len(body):
        raise ValueError("a value is longer than its page")
    return values


def _run_lengths(data, width, count):
    """int64 [count] from the hybrid of run lengths and bit packing, of numbers of `width` bits."""
    found, num_found, position = [], 0, 0
    weights = 1 << np.arange(width, dtype=np.int64)
    while num_found < count:
        header, position = read_varint(data, position)
        if header & 1:
            size = (header >> 1) * width  # groups of 8 numbers
            bits = np.frombuffer(data[position : position + size], np.uint8)
            bits = np.unpackbits(bits, bitorder="little").astype(np.int64)
            # The last group may be cut off where no number is behind.
            values = bits[: len(bits) // width * width].reshape(-1, width) @ weights if width else None
            values = np.zeros((header >> 1) * 8, np.int64) if values is None else values
        else:
            size = (width + 7) // 8
            value = int.from_bytes(data[position : position + size], "little")
            values = np.full(min(header >> 1, count - num_found), value, np.int64)
        if not len(values):
            raise ValueError("a page ends within its numbers")
        found.append(values)
        num_found, position = num_found + len(values), position + size
    return np.concatenate(found)[:count] if found else np.zeros(0, np.int64)


# ------------------------------------------------------------------ headers, in Thrift's compact protocol


def _read_header(descriptor, position, end):
    """({field: value} of a page's header, file offset of its body)."""
    size = _HEADER_BYTES
    while True:
        data = os.pread(descriptor, min(size, max(end - position, 0)), position)
        try:
            header, length = _struct(data, 0)
        except IndexError:
            if len(data) < size or size > _MAX_HEADER_BYTES:
                raise ValueError("a page's header is cut off") from None
            size *= 4
            continue
        if not all(isinstance(header.get(field), int) for field in (1, 2, 3)) or header[3] < 0:
            raise ValueError("a page's header is damaged")
        return header, position + length


def _struct(data, position):
    """({number of the field: value}, position behind it) of a struct. IndexError: it is cut off."""
    fields, number = {}, 0
    while True:
        byte, position = data[position], position + 1
        if not byte:
            return fields, position
        if byte >> 4:
            number += byte >> 4
        else:
            number, position = _zigzag(data, position)
        fields[number], position = _field(data, position, byte & 15)


def _field(data, position, kind):
    if kind in (1, 2):
        return kind == 1, position
    if kind == 3:
        return data[position], position + 1
    if kind in (4, 5, 6):
        return _zigzag(data, position)
    if kind == 7:
        return None, position + 8
    if kind == 8:
        size, position = read_varint(data, position)
        data[position + size - 1]  # IndexError where it is cut off
        return None, position + size
    if kind == 12:
        return _struct(data, position)
    raise ValueError("a page's header is damaged")  # lists and maps: there are none in it


def _zigzag(data, position):
    value, position = read_varint(data, position)
    return value >> 1 ^ -(value & 1), position
