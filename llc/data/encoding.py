"""One sample as a beton stores it: decoded, shrunk, and encoded.

An ordinary JPEG goes through the native library from file to beton. Everything else is decoded by
llc.data.images and Pillow, by the same rules, then shrunk and encoded by the native library. What is stored
as JPEG is 4:2:0 and carries restart markers, at which llc's loader can start to decode.
"""

import functools
import math
import os
from dataclasses import dataclass

import numpy as np

from llc.data import beton
from llc.data.images import ImageError, MachineError, load_rgb, machine_fault, read_file
from llc.native.codec import DecodeError, JpegWriter, jpeg_size, resize

# Blocks between two restart markers of a JPEG: 4 MCUs of 4:2:0, 64 pixels. Crops then take 0.79 of the time
# that they take without markers (0.84 with one marker per MCU row). Fewer blocks gain nothing more. The
# markers cost 1.1 % of the bytes (BENCHMARKS.md).
RESTART_BLOCKS = 24
_JPEG_MAX_SIDE = 65_500  # pixels; libjpeg's limit, just below what the beton's 16 bits hold


@dataclass(frozen=True)
class EncodedSample:
    """A sample as it is stored: `mode` is beton.JPG or beton.RAW, `data` uint8 [bytes]."""

    mode: int
    width: int
    height: int
    data: np.ndarray


def encode_sample(image, index, config, name=None):
    """Decodes, shrinks and encodes what load_rgb takes, as `config` says: -> EncodedSample.

    The result depends only on the image, its index in the source and the config. Raises ImageError, or
    MachineError where the machine is at fault; both call the image `name`.
    """
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image) if name is None else name
        image = read_file(image, name)
    if isinstance(image, (bytes, bytearray, memoryview)):
        encoded = _encode_jpeg_file(image, index, config)
        if encoded is not None:
            return encoded
    pixels = load_rgb(image, name)
    try:
        return _encode_pixels(shrink(pixels, config.max_resolution), index, config, name)
    except MemoryError as error:
        raise MachineError(name, machine_fault(error)) from error


def _encode_pixels(pixels, index, config, name):
    """uint8 [H, W, 3] -> EncodedSample. Raises ImageError where a beton has no room for it."""
    height, width = pixels.shape[:2]
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ImageError(
            name, f"has {width} x {height} pixels; a side has at most {_JPEG_MAX_SIDE} (set max_resolution)"
        )
    mode, data = beton.RAW, pixels.reshape(-1)
    if _is_stored_as_jpeg(pixels.nbytes, index, config):
        mode, data = beton.JPG, _jpeg_writer().encode(pixels, config.jpeg_quality, RESTART_BLOCKS)
    if data is None or data.nbytes > beton.PAGE_SIZE:
        size = "too many" if data is None else f"{data.nbytes:,}"
        raise ImageError(
            name,
            f"takes {size} bytes with its {width} x {height} pixels; a beton's page holds {beton.PAGE_SIZE:,}"
            " (set max_resolution, or write_mode=jpg)",
        )
    return EncodedSample(mode, width, height, data)


def _encode_jpeg_file(data, index, config):
    """The EncodedSample of an ordinary JPEG file; None for everything else, broken files included."""
    num_bytes = None
    if config.write_mode == "smart":
        try:
            num_bytes = 3 * math.prod(_shrunk_size(*jpeg_size(data), config.max_resolution))
        except DecodeError:
            return None
    writer, picture = _jpeg_writer(), None
    if _is_stored_as_jpeg(num_bytes, index, config):
        mode = beton.JPG
        if config.keep_jpeg:
            picture = writer.keep(data, config.max_resolution, RESTART_BLOCKS)
        if picture is None:
            picture = writer.recode(data, config.max_resolution, config.jpeg_quality, RESTART_BLOCKS)
    else:
        mode, picture = beton.RAW, writer.read(data, config.max_resolution)
    return picture and EncodedSample(mode, picture.width, picture.height, picture.data)


@functools.cache
def _jpeg_writer():
    return JpegWriter(beton.PAGE_SIZE)


def shrink(pixels, max_resolution):
    """uint8 [H, W, 3] -> the same, averaged by area to sides of at most `max_resolution` (0: any).

    No side becomes 0.
    """
    height, width = _shrunk_size(*pixels.shape[:2], max_resolution)
    if pixels.shape[:2] == (height, width):
        return pixels
    return resize(pixels, height, width)


def _shrunk_size(height, width, max_resolution):
    longer = max(height, width)
    if not max_resolution or longer <= max_resolution:
        return height, width
    # Rounded down, as FFCV does.
    return max(height * max_resolution // longer, 1), max(width * max_resolution // longer, 1)


def _is_stored_as_jpeg(num_bytes, index, config):
    if config.write_mode == "smart":
        return bool(config.smart_threshold) and num_bytes > config.smart_threshold
    if config.write_mode == "proportion":
        return uniform(index) < config.compress_probability
    return config.write_mode == "jpg"


def uniform(index):
    """A pseudo-random number in [0, 1), a function of `index`: SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (index + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return ((x ^ x >> 31) >> 11) * 2.0**-53
