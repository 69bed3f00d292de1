"""Any image file -> upright 8-bit RGB, by rules that are written down once, here.

============================  ================================================================================
what the file holds           what comes out
============================  ================================================================================
grey, 1 bit, palette,         converted to RGB
YCbCr, HSV
Lab                           converted to sRGB (ICC: white point D50, perceptual)
CMYK, YCCK                    Pillow's plain conversion; the inks of JPEGs are taken to be stored inverted
                              (Adobe's convention), as every common reader does
transparency of any kind      laid over white
16-bit grey, 16-bit colour    scaled, not clipped: grey to the nearest of value / 257, colour to its high byte
                              (Pillow's choice; they differ by 1 at most)
floating point, 32-bit        floats within 0..1 times 255; floats within 0..255 rounded; integers within
integers                      0..65535 as 16 bit; any other range is stretched, its lowest value to 0, its
                              highest to 255
EXIF, TIFF orientation        applied
several frames or pages       the first one
embedded colour profile       not applied
============================  ================================================================================
"""

import functools
import io
import os
import stat

import numpy as np

from llc.errors import UserError

# Pillow and OpenCV are imported where they are used, because the writer's workers seldom need them and start
# faster without.

# What Pillow may open. EPS is not among it, because Pillow would start Ghostscript for a file called .jpg.
_FORMATS = (
    "JPEG",
    "PNG",
    "MPO",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "WEBP",
    "PPM",
    "JPEG2000",
    "AVIF",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112  # the EXIF tag

# EXIF orientation -> the upright picture, for arrays [H, W, 3]
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


class ImageError(UserError):
    """An image that cannot be read. `name` says which, `reason` why, without repeating the name."""

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self):  # it travels between processes
        return ImageError, (self.name, self.reason)


def load_rgb(source, name=None):
    """The picture in `source` as upright 8-bit RGB: uint8 [H, W, 3], contiguous, the caller's own.

    `source` is a path, the bytes of an image file, or a PIL image; `name` stands for it in messages (default:
    the path). The table at the head of this module says what becomes of each kind of file. Raises ImageError,
    which names the file, where there is no such file, where it is no image or only a part of one, or where
    its values mean nothing (NaN).
    """
    from PIL import Image

    if name is None:
        name = (
            os.fspath(source)
            if isinstance(source, (str, os.PathLike))
            else f"<{type(source).__name__} in memory>"
        )
    try:
        if isinstance(source, Image.Image):
            pixels = _rgb(source)
        else:
            pixels = _decode(
                source if isinstance(source, (bytes, bytearray, memoryview)) else read_file(source, name)
            )
    except ImageError as error:
        raise ImageError(name, error.reason) from error.__cause__
    # For broken data Pillow raises nearly any type: OSError, SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise ImageError(name, f"cannot be read as an image: {_say(error)}") from error
    if 0 in pixels.shape:
        raise ImageError(name, f"is empty: {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return pixels


def _say(error):
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # the path that str() would add is in the message already
    return str(error) or type(error).__name__


def read_file(path, name=None):
    """The bytes of the file `path`.

    Raises ImageError, which calls it `name`, where it is not a regular file or cannot be read.
    """
    name = os.fspath(path) if name is None else name
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a named pipe would block for ever
            raise ImageError(
                name, "is a folder, not an image" if stat.S_ISDIR(mode) else "is not a regular file"
            )
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(name, f"cannot be read as an image: {_say(error)}") from error


@functools.cache
def _formats():
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _decode(data):
    from PIL import Image

    if not len(data):
        raise ImageError(None, "is an empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.UnidentifiedImageError:
        # Pillow has no mode for some TIFFs, such as floating-point colour. OpenCV gets only those, because it
        # would silently decode a truncated JPEG to a picture with a grey part.
        if not bytes(data[:4]).startswith(_TIFF_MAGIC):
            raise ImageError(None, "is not an image in a known format, or its header is broken") from None
        return _decode_by_opencv(data)
    with image:
        return _rgb(image)


def _decode_by_opencv(data):
    """OpenCV applies the orientation itself, and drops alpha."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if pixels is None:
        raise ImageError(None, "is a broken TIFF, or one of an unknown kind")
    return np.ascontiguousarray(_to_8_bit(pixels)[:, :, ::-1])


def _rgb(image):
    image.load()  # before the orientation is asked for: Pillow turns TIFFs upright while loading them
    pixels = _as_array(image)
    upright = _UPRIGHT.get(_orientation(image))
    return pixels if upright is None else np.ascontiguousarray(upright(pixels))


def _orientation(image):
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is common, and no reason to lose the picture
        return 1


def _as_array(image):
    """A loaded PIL image of any mode -> uint8 [H, W, 3]."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_8_bit(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return np.array(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow has no direct way
            image = image.convert("LA")
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        alpha = rgba[:, :, 3:]
        return ((rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.array(image.convert("RGB"))


def _to_8_bit(values):
    """Values of any range, [H, W] or [H, W, C], -> uint8 of the same shape, by the module's table."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError(None, "holds values that are not numbers (NaN or infinity)")
        black, white = (
            (0, 1) if 0 <= low and high <= 1 else (0, 255) if 0 <= low and high <= 255 else (low, high)
        )
    else:
        black, white = (0, 65535) if 0 <= low and high <= 65535 else (low, high)
    black, white = float(black), float(white)
    if black == white:
        return np.zeros(values.shape, np.uint8)
    return np.floor((values.astype(np.float64) - black) / (white - black) * 255 + 0.5).astype(np.uint8)
