"""Whether a file that decoded without an error holds all of its picture.

Some decoders fill what is missing with grey or black and say nothing. A JPEG or PNG is suspected by its
pixels, which costs nothing, and only then looked into. PNG has a module of its own.

Sources: ITU-T T.81 (JPEG), ITU-T T.800 annex A (JPEG 2000), ZSoft's description of PCX.
"""

import struct

from llc.data import png


def is_whole(data, image):
    """False where the bytes of a file lack a part of `image`, which Pillow has decoded from them."""
    check = _CHECKS.get(image.format)
    return check is None or check(data, image)


def is_whole_jpeg(data):
    """Whether libjpeg decodes a JPEG without a warning. True for kinds that llc's library does not know."""
    from llc.native import codec

    try:
        codec.decode(data)
    except codec.DecodeError as error:
        return codec.status_text(codec.CORRUPT) not in str(error)
    return True


def _jpeg(data, image):
    # Blocks that are not there become grey. The last one is missing if any is.
    corner = image.getpixel((image.width - 1, image.height - 1))
    grey = {"L": 128, "RGB": (128, 128, 128)}.get(image.mode)
    return corner != grey or is_whole_jpeg(data)


def _jpeg_2000(data, image):
    """Whether every tile has a part in the codestream."""
    data = memoryview(data).cast("B")
    start = bytes(data).find(b"\xff\x4f\xff\x51")
    try:
        _, width, height, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(
            ">HIIIIIIII", data, start + 6
        )
        across, down = -(-(width - tile_left) // tile_width), -(-(height - tile_top) // tile_height)
        position, found = start + 2, set()
        while True:
            (marker,) = struct.unpack_from(">H", data, position)
            if marker == 0xFFD9:
                break
            if marker == 0xFF90:  # a tile's part
                tile, length = struct.unpack_from(">HI", data, position + 4)
                found.add(tile)
                if length == 0:  # it reaches to the end
                    break
                position += length
            else:
                position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    except (struct.error, ZeroDivisionError):
        return False
    return len(found) == across * down


def _ico(data, image):
    """Whether the PNG in an icon, if there is one of this size, has all its rows."""
    (count,) = struct.unpack_from("<H", data, 4)
    for i in range(count):
        size, offset = struct.unpack_from("<II", data, 6 + 16 * i + 8)
        inner = bytes(data[offset : offset + size])
        if inner.startswith(png.MAGIC) and struct.unpack_from(">II", inner, 16) == image.size:
            return png.is_whole(inner, image)
    return True


def _pcx(data, image):
    """Whether the palette at the end of the file is there. Without it Pillow takes indices for grey."""
    version, bits, planes, palette = data[1], data[3], data[65], data[68]
    needs_palette = (version, bits, planes) == (5, 8, 1) and palette != 2
    return not needs_palette or (len(data) > 769 and data[-769] == 12)


_CHECKS = {"JPEG": _jpeg, "MPO": _jpeg, "JPEG2000": _jpeg_2000, "ICO": _ico, "PCX": _pcx, "PNG": png.is_whole}
