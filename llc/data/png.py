"""What Pillow leaves open about a PNG: missing rows, the transparent colour, broken ancillary chunks.

Source: PNG specification, third edition (W3C, 2025), sections 5, 8 and 11.
"""

import io
import struct
import zlib

import numpy as np

MAGIC = b"\x89PNG\r\n\x1a\n"
_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_OF_THE_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def _header(data):
    """(width, height, bits per sample, colour type, interlaced), from the first chunk."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    return width, height, bits, colour, bool(interlaced)


def _chunks(data):
    """Yields (kind, content, whole chunk) as far as the file holds whole chunks."""
    data = memoryview(data).cast("B")
    position = len(MAGIC)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            return
        yield kind, data[position + 8 : end - 4], data[position:end]
        if kind == b"IEND":
            return
        position = end


def is_whole(data, image):
    """Whether the data of a PNG that Pillow has loaded as `image` hold all rows of its picture.

    A compressed stream may end early in good order. Then Pillow leaves the other rows 0, without an error. So
    where the last row is not 0, the picture is whole; else the decompressed bytes are counted.
    """
    width, height = image.size
    if not image.info.get("interlace"):
        row = image.crop((0, height - 1, width, height)).tobytes()
        if row.count(0) < len(row):
            return True
    width, height, bits, colour, interlaced = _header(data)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    needed = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            needed += rows * (1 + -(-columns * bits * _BANDS[colour] // 8))
    inflate = zlib.decompressobj()
    for content in _picture_data(data):
        while len(content) and needed > 0 and not inflate.eof:
            needed -= len(inflate.decompress(content, 1 << 20))
            content = inflate.unconsumed_tail
    return needed <= 0


def _picture_data(data):
    """The contents of the IDAT chunks, the last one also where the file ends within it."""
    position = len(MAGIC)
    data = memoryview(data).cast("B")
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            yield data[position + 8 : position + 8 + length]
        position += 12 + length


def transparency(data, image):
    """The alpha that the one transparent colour of a grey or RGB PNG gives: uint8 [H, W]; None without one.

    Pillow compares 8 bits of the pixels with 16 bits of the colour. Here both have all their bits. `image` is
    the PIL image of the file, loaded.
    """
    bits, colour = _header(data)[2:4]
    if colour not in (0, 2) or "transparency" not in image.info:
        return None
    chosen = next((bytes(content) for kind, content, _ in _chunks(data) if kind == b"tRNS"), b"")
    if len(chosen) < 2 * _BANDS[colour]:
        return None
    chosen = np.frombuffer(chosen, ">u2", _BANDS[colour]) & ((1 << bits) - 1)
    values = np.asarray(image).astype(np.uint16)
    if bits < 8:  # Pillow has spread them over 8 bits
        chosen = chosen * (255 // ((1 << bits) - 1))
        values = values * 255 if image.mode == "1" else values
    elif bits == 16 and colour == 2:
        values = values << 8 | _low_bytes(data)
    is_chosen = values == chosen if colour == 0 else (values == chosen).all(axis=2)
    return np.where(is_chosen, 0, 255).astype(np.uint8)


def _low_bytes(data):
    """The low bytes of a PNG of 16-bit RGB: uint8 [H, W, 3]. Pillow's own picture has the high ones."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        # As if the bytes were in the other order: then Pillow takes the low one for the high one.
        image.tile = [(kind, box, offset, "RGB;16L") for kind, box, offset, _ in image.tile]
        return np.asarray(image)


def without_ancillary(data):
    """The file without its ancillary chunks, except transparency and orientation.

    None where there are no other ones. Where their checksums are wrong, or their contents broken, the picture
    may still be whole.
    """
    kept, is_shorter = [MAGIC], False
    for kind, content, chunk in _chunks(data):
        is_sound = zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(chunk[-4:], "big")
        if kind in _OF_THE_PICTURE or (kind == b"eXIf" and is_sound):
            kept.append(chunk)
        elif kind[:1].isupper():
            return None  # a critical chunk of an unknown kind: without it the picture would be another
        else:
            is_shorter = True
    return b"".join(kept) if is_shorter else None
