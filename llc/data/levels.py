"""Samples of any range to 8 bits, transparency to white, and pictures upright."""

import functools

import numpy as np

from llc.data.image_errors import ImageError

# EXIF and TIFF orientation -> the upright picture, for arrays [H, W, 3]
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def upright(pixels, orientation):
    """Turns a picture [H, W, 3] as EXIF's or TIFF's `orientation` says; contiguous."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def over_white(rgb, alpha):
    """Lays a picture over white. rgb: uint8 [H, W, 3], alpha: uint8 [H, W] -> uint8 [H, W, 3]."""
    alpha = alpha.astype(np.uint16)[:, :, None]
    return ((rgb.astype(np.uint16) * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def to_8_bit(values, bits=None, whole_range=False):
    """Values of any range -> uint8 of the same shape, by the table in images.py.

    bits: how many the values have, where they are unsigned and not more than 16; None: the values say. Raises
    ImageError where they are NaN or infinite, and, where `whole_range` forbids to stretch them, where they do
    not fit a known range.
    """
    if values.dtype == np.uint8 and bits in (None, 8):
        return values
    if values.dtype.kind == "u" and bits is not None and bits <= 16:
        return _table(bits)[values]
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError(None, "holds values that are not numbers (NaN or infinity)")
        usual = (1, 255)
    elif whole_range and values.dtype.itemsize > 2:
        usual = (65535, np.iinfo(values.dtype).max)
    else:
        usual = (255,) if values.dtype.itemsize == 1 else (65535,)
    white = next((white for white in usual if 0 <= low and high <= white), None)
    if white is None and whole_range:
        raise ImageError(None, f"holds transparency from {low} to {high}, which means nothing")
    black, white = (0.0, float(white)) if white is not None else (float(low), float(high))
    if black == white:
        return np.zeros(values.shape, np.uint8)
    return np.floor((values.astype(np.float64) - black) / (white - black) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _table(bits):
    """The nearest of 256 levels for each unsigned number of so many bits: uint8 [2 ** bits]."""
    most = (1 << bits) - 1
    return ((np.arange(most + 1, dtype=np.int64) * 510 + most) // (2 * most)).astype(np.uint8)


# From the CIE's XYZ, white point D50, to linear sRGB (white point D65, adapted by Bradford's method)
_XYZ_TO_RGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


def lab_to_rgb(lab):
    """CIE L*a*b* (L in 0..100), float [H, W, 3], white point D50 -> sRGB, uint8 [H, W, 3], clipped."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
    linear = np.clip(xyz @ _XYZ_TO_RGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.floor(srgb * 255 + 0.5).astype(np.uint8)
