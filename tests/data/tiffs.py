"""Writes TIFF files of any kind, by the letter of TIFF 6.0 and without a library."""

import struct
import zlib

import numpy as np


def packed(values, bits, order):
    """Rows of samples [H, W * bands] -> the bytes of each row, first sample in the highest bits."""
    if bits in (8, 16, 32, 64):
        return [row.astype(values.dtype.newbyteorder(order)).tobytes() for row in values]
    rows = []
    for row in values:
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)))
    return rows


def lzw(data):
    """TIFF's LZW, with a table that is cleared early and often."""
    bits, table, width = [], {}, 9

    def put(code):
        bits.append(f"{code:0{width}b}")

    prefix = b""
    for byte in data:
        if not table:
            put(256)
            table, width = {bytes([i]): i for i in range(256)} | {b"clear": 0, b"end": 0}, 9
        longer = prefix + bytes([byte])
        if longer in table:
            prefix = longer
            continue
        put(table[prefix])
        table[longer] = len(table)
        prefix = bytes([byte])
        if len(table) + 1 > 1 << width:
            width += 1
        if len(table) > 3000:
            put(table[prefix])
            prefix, table_was = b"", table
            table = {}
            if len(table_was) + 2 > 1 << width:
                width += 1
    if prefix:
        put(table[prefix])
        if len(table) + 2 > 1 << width:
            width += 1
    put(257)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def packbits(data):
    return b"".join(
        bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128))
    )


COMPRESSIONS = {1: bytes, 5: lzw, 8: zlib.compress, 32773: packbits}


def predicted(values, predictor, order):
    """Rows of samples [H, W, bands] as the predictor leaves them, [H, W * bands]."""
    height, width, bands = values.shape
    if predictor == 2:
        unsigned = values.view(f"u{values.dtype.itemsize}")
        differences = unsigned.copy()
        differences[:, 1:] -= unsigned[:, :-1]
        return differences.reshape(height, -1)
    if predictor == 3:
        size = values.dtype.itemsize
        big = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
        planes = np.frombuffer(big.tobytes(), np.uint8).reshape(height, -1, size).transpose(0, 2, 1)
        rows = planes.reshape(height, -1).copy()
        rows[:, bands:] -= planes.reshape(height, -1)[:, :-bands]
        return rows
    return values.reshape(height, -1)


def tiff(
    pixels,
    bits,
    photometric,
    sample_format=1,
    extra=None,
    order="<",
    compression=1,
    predictor=1,
    rows_per_strip=None,
    tile=None,
    planar=1,
    big=False,
    tags=(),
    cut=None,
):
    """The bytes of a TIFF of pixels [H, W] or [H, W, bands].

    tile: (height, width). tags: [(tag, type, values)], which replace those that are written by themselves.
    cut: the last strip or tile loses so many bytes, and its length says so.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, bands = pixels.shape
    planes = [pixels] if planar == 1 else [pixels[:, :, i : i + 1] for i in range(bands)]
    block_height, block_width = tile or (rows_per_strip or height, width)
    blocks = []
    for plane in planes:
        for y in range(0, height, block_height):
            for x in range(0, width, block_width):
                block = plane[y : y + block_height, x : x + block_width]
                if tile:
                    missing = [(0, block_height - block.shape[0]), (0, block_width - block.shape[1]), (0, 0)]
                    block = np.pad(block, missing)
                rows = predicted(np.ascontiguousarray(block), predictor, order)
                raw = b"".join(packed(rows, 8 if predictor == 3 else bits, order))
                blocks.append(COMPRESSIONS[compression](raw))
    if cut:
        blocks[-1] = blocks[-1][:-cut]
    header = 16 if big else 8
    offsets = [header + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * bands),
        (259, 3, [compression]),
        (262, 3, [photometric]),
        (277, 3, [bands]),
        (284, 3, [planar]),
        (317, 3, [predictor]),
        (324 if tile else 273, 4, offsets),
        (325 if tile else 279, 4, [len(block) for block in blocks]),
        *([(322, 4, [block_width]), (323, 4, [block_height])] if tile else [(278, 4, [block_height])]),
        *([(339, 3, [sample_format] * bands)] if isinstance(sample_format, int) else []),
        *([(339, 3, list(sample_format))] if not isinstance(sample_format, int) else []),
        *([(338, 3, list(extra))] if extra is not None else []),
    ]
    given = {tag for tag, _, _ in tags}
    entries = sorted([entry for entry in entries if entry[0] not in given] + list(tags))
    body = b"".join(blocks)
    body += b"\0" * (-len(body) % 8)
    start = header + len(body)
    count, inline, entry_size = ("Q", 8, 20) if big else ("H", 4, 12)
    behind = start + struct.calcsize("=" + count) + entry_size * len(entries) + inline
    directory, long_values = struct.pack(order + count, len(entries)), b""
    for tag, kind, values in entries:
        letters = {1: "B", 3: "H", 4: "I", 5: "I"}[kind] * len(values)
        content = struct.pack(order + letters, *values)
        number = len(values) // (2 if kind == 5 else 1)
        directory += struct.pack(order + "HH" + ("Q" if big else "I"), tag, kind, number)
        if len(content) <= inline:
            directory += content.ljust(inline, b"\0")
        else:
            directory += struct.pack(order + ("Q" if big else "I"), behind + len(long_values))
            long_values += content + b"\0" * (len(content) % 2)
    directory += b"\0" * inline
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, start)
    else:
        head = mark + struct.pack(order + "HI", 42, start)
    return head + body + directory + long_values
