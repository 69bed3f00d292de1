"""Any image file -> upright 8-bit RGB, by rules that are written down once, here.

============================  ================================================================================
what the file holds           what comes out
============================  ================================================================================
grey, 1 bit, palette,         converted to RGB
YCbCr, HSV
Lab                           converted to sRGB (white point D50; 8 bits by ICC, perceptual)
CMYK, YCCK                    Pillow's plain conversion; the inks of JPEGs are taken to be stored inverted
                              (Adobe's convention), as every common reader does
transparency of any kind      laid over white
more than 8 bits              scaled, not clipped: grey to the nearest of value / (2^bits - 1) * 255, 16-bit
                              colour to its high byte (Pillow's choice; they differ by 1 at most)
floating point, 32-bit        floats within 0..1 times 255; floats within 0..255 rounded; integers within
integers, signed integers     0..65535 as 16 bit (8-bit ones within 0..255 as 8 bit); any other range is
                              stretched, its lowest value to 0, its highest to 255
white is zero (TIFF)          inverted, after all of this
EXIF, TIFF orientation        applied
several frames or pages       the first one
embedded colour profile       not applied
============================  ================================================================================

A file that holds less than its header promises is broken. A file is never broken because the machine failed:
image_errors.py has an error of its own for that.
"""

import functools
import io
import os
import stat
import struct
import warnings

import numpy as np

from llc.data import kinds
from llc.data.image_errors import ImageError, MachineError, machine_fault, say
from llc.data.levels import over_white, to_8_bit, upright

__all__ = ["ImageError", "MachineError", "load_rgb", "machine_fault", "read_file"]

# Pillow is imported where it is used, because the writer's workers seldom need it and start faster without.

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
_ORIENTATION = 0x0112  # the EXIF tag


def load_rgb(source, name=None):
    """The picture in `source` as upright 8-bit RGB: uint8 [H, W, 3], contiguous, the caller's own.

    `source` is a path, the bytes of an image file, or a PIL image; `name` stands for it in messages (default:
    the path). The table at the head of this module says what becomes of each kind of file. Raises ImageError,
    which names the file, where there is no such file, where it is no image or only a part of one, or where
    its values mean nothing (NaN). Raises MachineError, which names it too, where the machine fails (memory,
    open files, input and output).
    """
    if name is None:
        name = (
            os.fspath(source)
            if isinstance(source, (str, os.PathLike))
            else f"<{type(source).__name__} in memory>"
        )
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            pixels = _decode(source, name)
        elif isinstance(source, (str, os.PathLike)):
            pixels = _decode(read_file(source, name), name)
        else:
            pixels = _of_pil_image(source, name)
    except MachineError:
        raise
    except ImageError as error:
        raise ImageError(name, error.reason) from error.__cause__
    # For broken data Pillow raises nearly any type: OSError, SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise _error(name, error) from error
    if 0 in pixels.shape:
        raise ImageError(name, f"is empty: {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return pixels


def _of_pil_image(image, name):
    if image.format == "TIFF" and image.tile and not image.tell():
        # Not loaded yet, so that its tags can be read as those of a file.
        image.fp.seek(0)
        return _decode(image.fp.read(), name)
    image.load()
    return _upright_array(image, None)


def _error(name, error):
    fault = machine_fault(error)
    if fault is not None:
        return MachineError(name, fault)
    return ImageError(name, f"cannot be read as an image: {say(error)}")


def read_file(path, name=None):
    """The bytes of the file `path`.

    Raises ImageError, which calls it `name`, where it is not a regular file, is missing, or may not be read,
    and MachineError where the machine fails (too many open files, an input or output error, a stale handle).
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
    except (OSError, MemoryError, ValueError) as error:  # ValueError: a path with a null character
        raise _error(name, error) from error


@functools.cache
def _formats():
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _decode(data, name):
    """The bytes of a file -> uint8 [H, W, 3]."""
    if not len(data):
        raise ImageError(None, "is an empty file")
    from llc.data import png, tiff

    head = bytes(data[:8])
    if head.startswith(tiff.MAGIC):
        return tiff.read(
            data,
            lambda width, height: _check_size(width, height, name),
            lambda data: _decode_by_pillow(data, name),
            _as_array,
        )
    if not head.startswith(png.MAGIC):
        return _decode_by_pillow(data, name)
    try:
        return _decode_by_pillow(data, name)
    except Exception as error:
        # A broken ancillary chunk, such as a text, is no reason to lose the picture.
        again = None if machine_fault(error) or isinstance(error, _TooLarge) else png.without_ancillary(data)
        if again is None:
            raise
    return _decode_by_pillow(again, name)


class _TooLarge(ImageError):
    """More pixels than Pillow accepts."""


def _check_size(width, height, name):
    """Pillow's check for decompression bombs, with the name of the image."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    if most is None or width * height <= most:
        return False
    what = f"has {width} x {height} pixels, which exceeds limit of"
    if width * height > 2 * most:
        raise _TooLarge(None, f"{what} {2 * most:,} (PIL.Image.MAX_IMAGE_PIXELS times 2)")
    warnings.warn(f"{name} {what} {most:,} (PIL.Image.MAX_IMAGE_PIXELS)", Image.DecompressionBombWarning, 2)
    return True


def _open(data, name):
    """Image.open with the reason where it fails, and with the name of the image where it is very large.

    Returns the image and whether it is very large.
    """
    from PIL import Image

    prefix, broken = bytes(data[:16]), None
    for image_format in _formats():
        factory, accept = Image.OPEN[image_format]
        try:
            accepted = accept is None or accept(prefix)
        except (IndexError, struct.error):  # too few bytes for this format
            continue
        if not accepted or isinstance(accepted, str):  # text: what this Pillow lacks for it
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as error:
            if accept is not None and broken is None:
                broken = f"is a broken {image_format}: {say(error)}"
            continue
        return image, _check_size(*image.size, name)
    reason = (kinds.describe_jpeg(data) if prefix.startswith(b"\xff\xd8") else None) or broken
    raise ImageError(None, reason or kinds.describe(data))


def _decode_by_pillow(data, name):
    """The bytes of a file that Pillow knows -> uint8 [H, W, 3]."""
    from llc.data import png, whole

    image, is_large = _open(data, name)
    with image:
        try:
            if is_large:
                with warnings.catch_warnings():  # it has been said, with the name
                    warnings.simplefilter("ignore")
                    image.load()
            else:
                image.load()
        except Exception as error:
            kind = kinds.describe_jpeg(data) if image.format in ("JPEG", "MPO") else None
            if kind is None or machine_fault(error):
                raise
            raise ImageError(None, kind) from error
        if not whole.is_whole(data, image):
            raise ImageError(None, f"holds only a part of its picture ({image.format})")
        return _upright_array(image, png.transparency(data, image) if image.format == "PNG" else None)


def _upright_array(image, alpha):
    """A loaded PIL image -> uint8 [H, W, 3]. alpha: uint8 [H, W], where it is known better than to Pillow."""
    # The orientation is asked for after loading, because Pillow turns TIFFs upright while it loads them.
    return upright(_as_array(image, alpha), _orientation(image))


def _orientation(image):
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # broken EXIF is common, and no reason to lose the picture
        return 1


def _as_array(image, alpha=None):
    """A loaded PIL image of any mode -> uint8 [H, W, 3]."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode.startswith("I") or image.mode == "F":
        rgb = np.repeat(to_8_bit(np.asarray(image))[:, :, None], 3, axis=2)
    elif image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = np.array(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    elif image.has_transparency_data and alpha is None:
        if image.mode == "La":  # Pillow has no direct way
            image = image.convert("LA")
        rgba = np.asarray(image.convert("RGBA"))
        rgb, alpha = rgba[:, :, :3], rgba[:, :, 3]
    else:
        rgb = np.asarray(image) if image.mode == "RGB" else np.array(image.convert("RGB"))
    return rgb if alpha is None else over_white(rgb, alpha)
