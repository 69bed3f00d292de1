"""TIFF files -> upright 8-bit RGB, as the tags of the file say.

Pillow knows a fixed list of combinations of tags, and reads some of them wrongly, without an error. So this
module reads the tags itself, and refuses what it does not know, naming the property. Pillow (its libtiff)
only undoes the compression. For that it gets the same strips or tiles under other tags, which describe their
bytes as a grey picture of 8 bits. JPEG, fax, and YCbCr go to Pillow as they are, because there the decoder
itself makes the pixels.

Sources: TIFF 6.0 (Adobe, 1992); its Technical Notes on predictors of floating-point values and on ICC Lab;
BigTIFF (libtiff).
"""

import io
import struct
import zlib

import numpy as np

from llc.data.image_errors import ImageError
from llc.data.levels import lab_to_rgb, over_white, to_8_bit, upright
from llc.data.silence import silenced
from llc.data.whole import is_whole_jpeg

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# The tags that matter here
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _COLOUR_MAP, _JPEG_TABLES = 284, 317, 320, 347
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 332, 338, 339
_YCBCR = (529, 530, 531, 532)  # coefficients, subsampling, positioning, reference of black and white

# Type of a tag's values -> struct's letters for one value
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_TYPES |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_VALUES = 1 << 24  # of one tag; more are taken for a broken file

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCC, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_BANDS = {
    _WHITE_IS_ZERO: 1,
    _BLACK_IS_ZERO: 1,
    _RGB: 3,
    _PALETTE: 1,
    _INKS: 4,
    _YCC: 3,
    _CIELAB: 3,
    _ICCLAB: 3,
}
_UNKNOWN_COLOURS = {
    4: "a transparency mask",
    10: "ITU Lab",
    32803: "a camera's colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "a camera's linear raw values",
    51177: "a depth map",
}
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4

_UNCOMPRESSED, _JPEG, _DEFLATE = 1, 7, 8
_BYTE_COMPRESSIONS = {
    1,
    5,
    8,
    32773,
    32946,
    34925,
    50000,
}  # none, LZW, Deflate, PackBits, Deflate, LZMA, Zstd
_FAX = {2, 3, 4, 32771}
_PICTURE_COMPRESSIONS = {6, 7, 50001}  # JPEG twice, WebP
_NAMES = {34676: "SGI LogLuv", 34677: "SGI LogLuv", 34712: "JPEG 2000", 34887: "LERC", 50002: "JPEG XL"}

_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


def _refuse(what):
    return ImageError(None, f"is a TIFF with {what}, which is not supported")


def _broken(what):
    return ImageError(None, f"is a broken TIFF: {what}")


def read(data, check_size, by_pillow, as_array):
    """The first page of a TIFF file -> uint8 [H, W, 3], upright.

    data: the bytes of the file. check_size(width, height) raises where that is too large. by_pillow(data)
    decodes a file as it is, as_array(image) a loaded PIL image of any mode. Raises ImageError where the file
    is broken or has a property that is not supported.
    """
    page = _Page(data)
    check_size(page.width, page.height)
    if page.photometric == _YCC and page.compression == _UNCOMPRESSED:
        data = page.deflated()
    if page.compression == _JPEG:
        page.check_jpegs()
    if page.photometric == _YCC or page.compression in _PICTURE_COMPRESSIONS | _FAX:
        with silenced():
            return by_pillow(data)
    return upright(page.pixels(as_array), page.one(_ORIENTATION, 1))


class _Page:
    """The first directory of a TIFF, checked, and the pixels that it describes."""

    def __init__(self, data):
        self.data = memoryview(data).cast("B")
        self.order = "<" if data[:2] == b"II" else ">"
        try:
            self.tags = self._directory()
        except struct.error:
            raise _broken("it ends before its directory does") from None
        self.width, self.height = self.one(_WIDTH, 0), self.one(_HEIGHT, 0)
        if not (self.width > 0 and self.height > 0):
            raise _broken(f"its size is {self.width} x {self.height} pixels")
        self.compression = self.one(_COMPRESSION, _UNCOMPRESSED)
        known = _BYTE_COMPRESSIONS | _PICTURE_COMPRESSIONS | _FAX
        if self.compression not in known:
            name = _NAMES.get(self.compression)
            raise _refuse(f"compression {self.compression}" + (f" ({name})" if name else ""))
        self.photometric = self.one(_PHOTOMETRIC, _WHITE_IS_ZERO)  # as Pillow has it where the tag is missing
        self._read_bands()
        self._read_places()

    def _unpack(self, letters, offset):
        return struct.unpack_from(self.order + letters, self.data, offset)

    def _directory(self):
        """{tag: (type, values)} of the first directory. Raises struct.error where the file is too short."""
        big = self._unpack("H", 2)[0] == 43
        (offset,) = self._unpack("Q", 8) if big else self._unpack("I", 4)
        (count,) = self._unpack("Q" if big else "H", offset)
        offset += 8 if big else 2
        entry, inline = (20, 8) if big else (12, 4)
        tags = {}
        for start in range(offset, offset + min(count, 4096) * entry, entry):
            tag, kind = self._unpack("HH", start)
            (length,) = self._unpack("Q" if big else "I", start + 4)
            letters = _TYPES.get(kind)
            if letters is None or tag in tags or tag not in _READ:
                continue
            if length > _MOST_VALUES:
                raise _broken(f"tag {tag} has {length:,} values")
            letters = letters * length if length < 4 else f"{length * len(letters)}{letters[0]}"
            place = start + entry - inline
            if struct.calcsize("=" + letters) > inline:
                (place,) = self._unpack("Q" if big else "I", place)
            tags[tag] = kind, self._unpack(letters, place)
        return tags

    def values(self, tag, default=()):
        return self.tags[tag][1] if self.tags.get(tag, (0, ()))[1] else default

    def one(self, tag, default):
        return self.values(tag, (default,))[0]

    # ------------------------------------------------------------------------------- what the samples mean

    def _read_bands(self):
        """What a pixel consists of: self.bits, self.samples, self.format, self.alpha."""
        if self.photometric not in _BANDS:
            name = _UNKNOWN_COLOURS.get(self.photometric)
            what = f"photometric interpretation {self.photometric}"
            raise _refuse(what + (f" ({name})" if name else ""))
        bits, formats = self.values(_BITS, (1,)), self.values(_SAMPLE_FORMAT, (_UNSIGNED,))
        default = 3 if self.photometric in (_RGB, _YCC) and self.compression in _PICTURE_COMPRESSIONS else 1
        self.samples = self.one(_SAMPLES, default)
        bits = bits[: self.samples]
        lab = self.photometric in (_CIELAB, _ICCLAB)
        if len(set(bits)) > 1:
            raise _refuse(f"bands of different bits ({', '.join(map(str, bits))})")
        if len(set(formats)) > 1 and not (lab and _FLOAT not in formats):
            raise _refuse(f"bands of different sample formats ({', '.join(map(str, formats))})")
        self.bits, self.format = bits[0], formats[0]
        if self.format == _UNDEFINED:
            self.format = _UNSIGNED
        if self.format not in (_UNSIGNED, _SIGNED, _FLOAT):
            raise _refuse("complex numbers" if self.format in (5, 6) else f"sample format {self.format}")
        if self.format == _FLOAT:
            known = self.bits in (16, 32, 64)
        else:
            known = 1 <= self.bits <= 16 or self.bits in (32, 64)
        if not known or (self.format == _SIGNED and self.bits not in (8, 16, 32, 64)):
            kind = {_UNSIGNED: "integers", _SIGNED: "signed integers", _FLOAT: "floating-point numbers"}
            raise _refuse(f"{kind[self.format]} of {self.bits} bits")
        base = _BANDS[self.photometric]
        if self.photometric == _YCC and self.samples == 1:
            base = 1  # grey, as JPEG files have it
        if self.samples < base:
            raise _refuse(f"{self.samples} samples per pixel where its colours need {base}")
        self.alpha = self._alpha(base)
        self._check_kind(lab)

    def _alpha(self, base):
        """What the band behind the colours is: None, "straight" or "premultiplied"."""
        count, extra = self.samples - base, self.values(_EXTRA_SAMPLES)
        if not count:
            return None
        if not extra and self.photometric == _RGB and count == 1:
            return "straight"  # as every reader takes it
        if len(extra) != count or any(extra[1:]) or count > (2 if base == 4 else 3):
            raise _refuse(
                f"{self.samples} samples per pixel (its extra samples: {list(extra) or 'not said'})"
            )
        if self.photometric in (_BLACK_IS_ZERO, _WHITE_IS_ZERO, _PALETTE) and count > 1:
            raise _refuse(f"{self.samples} samples per pixel (more than grey and transparency)")
        if extra[0] == 0:
            return None  # of no meaning that anybody knows
        if extra[0] not in (1, 2, 999):  # 999: Corel Draw's transparency
            raise _refuse(f"an extra sample of kind {extra[0]}")
        if base == 4 or self.photometric in (_CIELAB, _ICCLAB):
            raise _refuse("transparency beside " + ("CMYK" if base == 4 else "Lab"))
        return "premultiplied" if extra[0] == 1 else "straight"

    def _check_kind(self, lab):
        """Refuses the combinations of colours and numbers that nothing defines."""
        kind = f"{self.bits} bits" + (" of floating point" if self.format == _FLOAT else "")
        if self.photometric == _PALETTE:
            if self.format != _UNSIGNED or self.bits > 16:
                raise _refuse(f"a palette and indices of {kind}")
            if len(self.values(_COLOUR_MAP)) != 3 << self.bits:
                found = len(self.values(_COLOUR_MAP))
                raise _broken(f"its palette has {found} values, not {3 << self.bits}")
        if lab and (self.bits not in (8, 16) or self.format == _FLOAT):
            raise _refuse(f"Lab in {kind}")
        if self.photometric == _INKS:
            if self.one(_INK_SET, 1) != 1:
                raise _refuse("inks other than CMYK")
            if self.bits not in (8, 16) or self.format != _UNSIGNED:
                raise _refuse(f"CMYK in {kind}")
        if self.photometric == _YCC and (self.bits != 8 or self.format != _UNSIGNED):
            raise _refuse(f"YCbCr in {kind}")
        if self.compression in _PICTURE_COMPRESSIONS and (self.bits != 8 or self.format != _UNSIGNED):
            raise _refuse(f"JPEG or WebP compression of {kind}")
        if self.compression in _FAX and (self.bits != 1 or self.samples != 1):
            raise _refuse(f"fax compression of {self.samples} bands of {kind}")

    # ------------------------------------------------------------------------------- where the samples are

    def _read_places(self):
        """How strips or tiles ("blocks") cover the picture, and where they are in the file."""
        planar = self.one(_PLANAR, 1)
        if planar not in (1, 2):
            raise _refuse(f"planar configuration {planar}")
        self.planes = self.samples if planar == 2 else 1
        self.tiled = _TILE_OFFSETS in self.tags
        if self.tiled:
            self.block_width, self.block_height = self.one(_TILE_WIDTH, 0), self.one(_TILE_HEIGHT, 0)
            self.offsets, self.sizes = self.values(_TILE_OFFSETS), self.values(_TILE_SIZES)
        else:
            rows = self.one(_ROWS_PER_STRIP, self.height)
            self.block_width, self.block_height = self.width, min(rows, self.height)
            self.offsets, self.sizes = self.values(_STRIP_OFFSETS), self.values(_STRIP_SIZES)
        if not (self.block_width > 0 and self.block_height > 0):
            raise _broken("its strips or tiles have no size")
        self.across, self.down = -(-self.width // self.block_width), -(-self.height // self.block_height)
        if self.across * self.block_width * self.down * self.block_height > 4 * (
            (self.width + 512) * (self.height + 512)
        ):
            raise _broken(f"its tiles of {self.block_width} x {self.block_height} are far larger than it")
        needed, kind = self.across * self.down * self.planes, "tiles" if self.tiled else "strips"
        if len(self.offsets) < needed:
            raise _broken(f"it has {len(self.offsets)} of its {needed} {kind}")
        if len(self.sizes) < needed or (needed == 1 and not self.sizes[0]):
            if needed > 1 or self.compression != _UNCOMPRESSED:
                raise _broken(f"it does not say how long its {kind} are")
            self.sizes = (len(self.data) - self.offsets[0],)
        for offset, size in zip(self.offsets[:needed], self.sizes):
            if size <= 0 or offset <= 0 or offset >= len(self.data):
                raise _broken(f"one of its {kind} holds no data")
            # A size that reaches beyond the end is a common slip, and no harm if the data are whole.
            if self.compression == _UNCOMPRESSED and offset + size > len(self.data) and needed > 1:
                raise _broken(f"it ends within one of its {kind}")

    @property
    def row_bytes(self):
        """Bytes of a row of a strip or tile."""
        return -(-self.block_width * (self.samples // self.planes) * self.bits // 8)

    def _rows_of(self, block):
        """Rows that block number `block` of a plane holds: all, but for the last strip."""
        return (
            self.block_height
            if self.tiled
            else min(self.block_height, self.height - block * self.block_height)
        )

    def _plane_bytes(self, plane):
        """The uncompressed bytes of a plane: uint8 [rows, across, row_bytes]."""
        first = plane * self.across * self.down
        blocks = slice(first, first + self.across * self.down)
        if self.compression != _UNCOMPRESSED:
            return self._decompressed(self.offsets[blocks], self.sizes[blocks])
        rows = self.down * self.block_height if self.tiled else self.height
        out = np.empty((rows, self.across, self.row_bytes), np.uint8)
        for i, (offset, size) in enumerate(zip(self.offsets[blocks], self.sizes[blocks])):
            y, x = divmod(i, self.across)
            place = out[y * self.block_height : y * self.block_height + self._rows_of(y), x]
            found = np.frombuffer(self.data[offset : offset + min(size, place.size)], np.uint8)
            if found.size < place.size:
                kind = "tiles" if self.tiled else "strips"
                raise _broken(f"one of its {kind} holds {found.size:,} of {place.size:,} bytes")
            place[:] = found.reshape(place.shape)
        return _REVERSED[out] if self.one(_FILL_ORDER, 1) == 2 else out

    def _decompressed(self, offsets, sizes):
        """The same by libtiff, which is told that the blocks are a grey picture of 8 bits."""
        from PIL import Image, TiffImagePlugin

        width = self.across * self.row_bytes
        height = self.down * self.block_height if self.tiled else self.height
        tags = {
            _WIDTH: (4, [width]),
            _HEIGHT: (4, [height]),
            _BITS: (3, [8]),
            _COMPRESSION: (3, [self.compression]),
            _PHOTOMETRIC: (3, [_BLACK_IS_ZERO]),
            _FILL_ORDER: (3, [self.one(_FILL_ORDER, 1)]),
            _SAMPLES: (3, [1]),
        }
        if self.tiled:
            tags |= {_TILE_WIDTH: (4, [self.row_bytes]), _TILE_HEIGHT: (4, [self.block_height])}
            tags |= {_TILE_OFFSETS: (4, offsets), _TILE_SIZES: (4, sizes)}
        else:
            tags |= {_ROWS_PER_STRIP: (4, [self.block_height])}
            tags |= {_STRIP_OFFSETS: (4, offsets), _STRIP_SIZES: (4, sizes)}
        with TiffImagePlugin.TiffImageFile(io.BytesIO(_with_directory(self.data[8:], tags))) as image:
            # Its own memory, because Pillow takes a picture of so many bytes for a decompression bomb.
            image.im = Image.new("L", image.size).im
            with silenced():
                image.load()
            return np.asarray(image).reshape(height, self.across, self.row_bytes)

    def check_jpegs(self):
        """Raises ImageError where a strip or tile, each of which is a JPEG, holds only a part of its rows."""
        tables = bytes(self.values(_JPEG_TABLES))
        for offset, size in zip(self.offsets, self.sizes):
            block = bytes(self.data[offset : offset + size])
            if not is_whole_jpeg(tables[:-2] + block[2:] if tables else block):
                raise _broken(f"one of its {'tiles' if self.tiled else 'strips'} is a broken JPEG")

    def deflated(self):
        """An uncompressed file as a compressed one. Pillow reads YCbCr wrongly from uncompressed files."""
        blocks = [zlib.compress(self.data[o : o + n], 1) for o, n in zip(self.offsets, self.sizes)]
        sizes = [len(block) for block in blocks]
        offsets = (8 + np.cumsum([0, *sizes[:-1]])).tolist()
        tags = {tag: value for tag, value in self.tags.items() if tag not in (_STRIP_OFFSETS, _STRIP_SIZES)}
        tags[_COMPRESSION] = 3, [_DEFLATE]
        tags[_TILE_OFFSETS if self.tiled else _STRIP_OFFSETS] = 4, offsets
        tags[_TILE_SIZES if self.tiled else _STRIP_SIZES] = 4, sizes
        return _with_directory(b"".join(blocks), tags)

    # ------------------------------------------------------------------------------------------- the pixels

    def _samples(self):
        """All samples as numbers: [H, W, samples]."""
        planes = []
        for plane in range(self.planes):
            raw = self._plane_bytes(plane)
            values = self._numbers(raw, self.samples // self.planes)  # [rows, across, block_width, samples]
            values = values.reshape(values.shape[0], -1, values.shape[-1])
            planes.append(values[: self.height, : self.width])
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _numbers(self, raw, samples):
        """uint8 [rows, across, row_bytes] -> numbers [rows, across, block_width, samples]."""
        shape = (*raw.shape[:2], self.block_width, samples)
        predictor = self.one(_PREDICTOR, 1) if self.compression != _UNCOMPRESSED else 1
        if predictor not in (1, 2, 3):
            raise _refuse(f"predictor {predictor}")
        if self.bits not in (8, 16, 32, 64):
            if predictor != 1:
                raise _refuse(f"a predictor for {self.bits} bits")
            return _unpacked_bits(raw, self.bits, shape)
        size = self.bits // 8
        kind = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}[self.format]
        if predictor == 3:
            if self.format != _FLOAT:
                raise _refuse("the floating-point predictor for integers")
            # Each row holds the first bytes of all its numbers, then the second bytes, and so on.
            differences = raw.reshape(*raw.shape[:2], -1, samples)
            bytes_ = np.cumsum(differences, axis=2, dtype=np.uint8).reshape(*raw.shape[:2], size, -1)
            return np.ascontiguousarray(bytes_.swapaxes(2, 3)).view(f">f{size}").reshape(shape)
        raw = np.ascontiguousarray(raw)
        if predictor == 2:
            unsigned = raw.view(f"{self.order}u{size}").reshape(shape).astype(f"=u{size}")
            return np.cumsum(unsigned, axis=2, dtype=unsigned.dtype).view(f"={kind}{size}")
        return raw.view(f"{self.order}{kind}{size}").reshape(shape)

    def pixels(self, as_array):
        """uint8 [H, W, 3], not yet upright."""
        samples, bits = self._samples(), self.bits if self.format == _UNSIGNED else None
        if self.photometric == _RGB and bits == 16:
            samples, bits = _high_bytes(samples), 8  # as everywhere for 16-bit colour
        base = _BANDS[self.photometric]
        colours, alpha = samples[:, :, :base], None
        if self.alpha:
            if self.format == _SIGNED:
                raise _refuse("signed transparency")
            alpha = to_8_bit(samples[:, :, base], bits, whole_range=True)
        if self.photometric == _PALETTE:
            return self._over_white(self._palette()[colours[:, :, 0]], alpha)
        if self.photometric in (_CIELAB, _ICCLAB):
            return self._lab(colours, as_array)
        if self.photometric == _INKS:
            return as_array(_image("CMYK", _high_bytes(colours)))
        if self.photometric == _RGB:
            return self._over_white(to_8_bit(colours, bits), alpha)
        grey = to_8_bit(colours, bits)
        if self.photometric == _WHITE_IS_ZERO:
            grey = 255 - grey
        return self._over_white(np.repeat(grey, 3, axis=2), alpha)

    def _lab(self, colours, as_array):
        """Lab -> uint8 [H, W, 3]. In CIELab a and b are signed; in ICC Lab half of their range is 0."""
        size = self.bits // 8
        numbers = np.ascontiguousarray(colours).view(f"=u{size}")
        if self.photometric == _ICCLAB:
            numbers = numbers ^ np.array([0, 1, 1], numbers.dtype) << (self.bits - 1)
        if size == 1:
            return as_array(_image("LAB", numbers))
        # White is 65535 in CIELab, 65280 in ICC Lab, whose lightness has the steps of a and b.
        white = 65535 if self.photometric == _CIELAB else 65280
        lightness = numbers[..., :1] * (100 / white)
        return lab_to_rgb(np.concatenate([lightness, numbers[..., 1:].view(np.int16) / 256], axis=2))

    def _over_white(self, rgb, alpha):
        if alpha is None:
            return np.ascontiguousarray(rgb)
        if self.alpha == "premultiplied":  # undone as Pillow does it
            shown = np.maximum(alpha, 1).astype(np.uint32)[:, :, None]
            rgb = np.minimum(rgb.astype(np.uint32) * 255 // shown, 255).astype(np.uint8)
        return over_white(rgb, alpha)

    def _palette(self):
        """uint8 [colours, 3]. The standard asks for 16 bits; some writers store 8, as libtiff knows."""
        colours = np.array(self.values(_COLOUR_MAP), np.uint16).reshape(3, -1).T
        return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)


_READ = {
    value for name, value in globals().items() if name.startswith("_") and type(value) is int and value > 255
}
_READ |= set(_YCBCR)


def _with_directory(body, tags):
    """A little-endian TIFF: 8 bytes of header, `body`, and a directory of `tags`, {tag: (type, values)}."""
    body = bytes(body) + b"\0" * (len(body) % 2)
    start = 8 + len(body)
    behind = start + 2 + 12 * len(tags) + 4
    directory, values_behind = struct.pack("<H", len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        letters = _TYPES[kind][0]
        packed = struct.pack(f"<{len(values)}{letters}", *values)
        directory += struct.pack("<HHI", tag, kind, len(values) // len(_TYPES[kind]))
        if len(packed) <= 4:
            directory += packed.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", behind + len(values_behind))
            values_behind += packed + b"\0" * (len(packed) % 2)
    return b"II*\0" + struct.pack("<I", start) + body + directory + b"\0\0\0\0" + values_behind


def _unpacked_bits(raw, bits, shape):
    """uint8 [rows, across, bytes], packed from each byte's highest bit on -> unsigned integers of `shape`."""
    each = np.unpackbits(raw, axis=2)[:, :, : shape[2] * shape[3] * bits]
    each = each.reshape(*shape, bits)
    values = np.zeros(shape, np.uint8 if bits <= 8 else np.uint16)
    for i in range(bits):
        values = (values << 1) | each[..., i]
    return values


def _high_bytes(values):
    return values if values.dtype.itemsize == 1 else (values >> 8).astype(np.uint8)


def _image(mode, pixels):
    """A PIL image of such uint8 [H, W, bands] as a file holds them."""
    from PIL import Image

    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombytes(mode, size, np.ascontiguousarray(pixels).tobytes(), "raw", mode)
