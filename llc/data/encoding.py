"""One sample as a beton stores it: decoded, shrunk, and encoded."""

from dataclasses import dataclass

import cv2
import numpy as np

from llc.data import beton
from llc.data.images import ImageError, load_rgb

_JPEG_MAX_SIDE = 65_500  # pixels; libjpeg's limit, just below what the beton's 16 bits hold


@dataclass(frozen=True)
class EncodedSample:
    """A sample as it is stored: `mode` is beton.JPG or beton.RAW, `data` uint8 [bytes]."""

    mode: int
    width: int
    height: int
    data: np.ndarray


def encode_sample(image, index, config, name=None):
    """What load_rgb takes -> EncodedSample: decoded, shrunk, and encoded as `config` says.

    A function of the image, its index in the source and the config alone. Raises ImageError, which calls the image `name`.
    """
    pixels = shrink(load_rgb(image, name), config.max_resolution)
    height, width = pixels.shape[:2]
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ImageError(name, f"has {width} x {height} pixels; a side has at most {_JPEG_MAX_SIDE} (set max_resolution)")
    if _is_stored_as_jpeg(pixels.nbytes, index, config):
        encoded = EncodedSample(beton.JPG, width, height, _encode_jpeg(pixels, config.jpeg_quality))
    else:
        encoded = EncodedSample(beton.RAW, width, height, pixels.reshape(-1))
    if encoded.data.nbytes > beton.PAGE_SIZE:
        raise ImageError(
            name, f"takes {encoded.data.nbytes:,} bytes with its {width} x {height} pixels; a beton's page holds {beton.PAGE_SIZE:,}"
            " (set max_resolution, or write_mode=jpg)"
        )  # fmt: skip
    return encoded


def shrink(pixels, max_resolution):
    """uint8 [H, W, 3] -> the same with its longer side at most `max_resolution` (0: any) by averaging areas; no side becomes 0."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if not max_resolution or longer <= max_resolution:
        return pixels
    size = [max(side * max_resolution // longer, 1) for side in (width, height)]  # rounded down, as FFCV does
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _is_stored_as_jpeg(num_bytes, index, config):
    if config.write_mode == "smart":
        return bool(config.smart_threshold) and num_bytes > config.smart_threshold
    if config.write_mode == "proportion":
        return uniform(index) < config.compress_probability
    return config.write_mode == "jpg"


def uniform(index):
    """A number in [0, 1) that looks random and is a function of `index`: SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (index + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return ((x ^ x >> 31) >> 11) * 2.0**-53


def _encode_jpeg(pixels, quality):
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of {pixels.shape}")
    return data.reshape(-1)


