"""Images by the native library: samples of a beton -> cropped, resized, flipped batches; JPEGs recoded.

src/codec/codec.h and encode.h say what each function of the library does.

The pixels follow one rule, exact to the bit on every CPU. A JPEG is decoded as libjpeg-turbo does it with its
accurate inverse DCT and smooth chroma upsampling (as Pillow does; FFCV takes the fast DCT, which is less
exact). An axis that shrinks is averaged by area, as by cv2.INTER_AREA. One that grows is interpolated between
the centres of pixels, as by cv2.INTER_LINEAR; there cv2.INTER_AREA has a rule of its own, which it applies to
both axes. Weights have 14 bits, and only the result is rounded to whole levels.
"""

import ctypes
from typing import NamedTuple

import numpy as np

from llc.errors import UserError
from llc.native import instruction_index, library

RAW = 1  # the mode of a sample of plain pixels, beton.RAW
OK = 0  # the status of a sample that decoded
CORRUPT = 1  # and of one that libjpeg has an error or a warning about
OUT_OF_MEMORY = 6
UNREADABLE = 7  # and of one whose mapped file has become shorter, or its disk fails


class DecodeError(UserError):
    """Bytes that are no picture, or not the expected one."""


class Samples(NamedTuple):
    """Encoded samples in memory, one row each; the caller keeps the memory alive during the call.

    addresses: uint64 [n], where the data begins; sizes: int64 [n], its bytes; modes: uint8 [n], beton.JPG or
    beton.RAW; widths, heights: int32 [n], pixels.
    """

    addresses: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    widths: np.ndarray
    heights: np.ndarray


def status_text(status):
    """What a status of decode_batch means, for people."""
    text = library().llc_status_text(int(status))
    return text.decode("ascii") if text is not None else f"unknown status {int(status)}"


def decode_batch(samples, crops, flips, out, num_threads=1, *, instructions=None):
    """Crops, resizes and flips every sample into its slot of `out`; returns status, int32 [n].

    samples: Samples. crops: int32 [n, 4], (top, left, height, width). flips: bool [n], left to right. out:
    uint8 [n, height, width, 3], C-contiguous, is written. Where a status is not OK (status_text explains it),
    the slot is all 0. The pixels are those of the same resize of a completely decoded image, to the bit, on
    every CPU and for any num_threads. Damage outside the part that a crop needs may go unnoticed.
    instructions: one of instruction_sets(), by default the first. Raises ValueError for arrays of other
    shapes.
    """
    n = len(samples.addresses)
    addresses = _array(samples.addresses, np.uint64, (n,), "addresses")
    sizes = _array(samples.sizes, np.int64, (n,), "sizes")
    modes = _array(samples.modes, np.uint8, (n,), "modes")
    widths = _array(samples.widths, np.int32, (n,), "widths")
    heights = _array(samples.heights, np.int32, (n,), "heights")
    crops = _array(crops, np.int32, (n, 4), "crops")
    flips = _array(flips, np.bool_, (n,), "flips")
    if out.dtype != np.uint8 or out.ndim != 4 or out.shape[0] != n or out.shape[3] != 3 or not out.size and n:
        raise ValueError(f"out must be uint8 [{n}, height, width, 3], not {out.dtype} {list(out.shape)}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be C-contiguous and writeable")
    status = np.empty(n, np.int32)
    library().llc_decode_batch(
        n,
        addresses.ctypes.data,
        sizes.ctypes.data,
        modes.ctypes.data,
        widths.ctypes.data,
        heights.ctypes.data,
        crops.ctypes.data,
        flips.ctypes.data,
        out.ctypes.data,
        out.shape[1],
        out.shape[2],
        num_threads,
        instruction_index(instructions),
        status.ctypes.data,
    )
    return status


def decode(data):
    """A whole JPEG, bytes or uint8 [size] -> uint8 [height, width, 3]. Raises DecodeError."""
    data = np.frombuffer(data, np.uint8)
    width, height = ctypes.c_int32(), ctypes.c_int32()
    status = library().llc_jpeg_size(data.ctypes.data, data.size, ctypes.byref(width), ctypes.byref(height))
    if status == OK:
        out = np.empty((height.value, width.value, 3), np.uint8)
        status = library().llc_decode_jpeg(
            data.ctypes.data, data.size, width.value, height.value, out.ctypes.data
        )
    if status != OK:
        raise DecodeError(f"cannot decode {data.size} bytes as JPEG: {status_text(status)}")
    return out


def resize(pixels, height, width, crop=None):
    """Resizes pixels, uint8 [h, w, 3] -> uint8 [height, width, 3], by the rule that this module states.

    crop: int [4], the part that is resized, (top, left, height, width); None: all of it. Raises MemoryError,
    and DecodeError for a crop that is empty or not within the pixels.
    """
    out = np.empty((1, height, width, 3), np.uint8)
    pixels = np.ascontiguousarray(pixels)
    address, sides = np.uint64([pixels.ctypes.data]), np.int32(pixels.shape[:2])
    raw = Samples(address, np.int64([pixels.nbytes]), np.uint8([RAW]), sides[1:], sides[:1])
    crop = [0, 0, *sides] if crop is None else crop
    [status] = decode_batch(raw, [crop], [False], out)
    if status == OUT_OF_MEMORY:
        raise MemoryError(status_text(status))
    if status != OK:
        raise DecodeError(f"cannot resize {sides[1]} x {sides[0]} pixels: {status_text(status)}")
    return out[0]


def _array(values, dtype, shape, name):
    array = np.ascontiguousarray(values, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(array.shape)}")
    return array


# ------------------------------------------------------------------------------- the writer's part (encode.h)


class Encoded(NamedTuple):
    """A picture's size in pixels and its bytes: a JPEG, or pixels, RGB; uint8 [size]."""

    width: int
    height: int
    data: np.ndarray


def jpeg_size(data):
    """The bytes of a JPEG -> (height, width), from its header. Raises DecodeError."""
    width, height = ctypes.c_int32(), ctypes.c_int32()
    data = np.frombuffer(data or b"\0", np.uint8)
    status = library().llc_jpeg_size(data.ctypes.data, data.size, ctypes.byref(width), ctypes.byref(height))
    if status != OK:
        raise DecodeError(f"no size in {data.size} bytes of a JPEG: {status_text(status)}")
    return height.value, width.value


class JpegWriter:
    """Turns JPEGs into JPEGs or pixels for a beton, of at most `capacity` bytes. Not for two threads at once.

    The methods that take the bytes of a file know only ordinary JPEGs (encode.h defines them). They return
    None for all others, and where the result is too large. restart_blocks: the number of 8 x 8 blocks between
    two restart markers, at least one MCU; 0: no markers.
    """

    def __init__(self, capacity):
        self._out = np.empty(capacity, np.uint8)
        self._length, self._width, self._height = ctypes.c_int64(), ctypes.c_int32(), ctypes.c_int32()

    def recode(self, data, max_side, quality, restart_blocks):
        """Encodes the file's picture as a baseline JPEG of the given quality, 4:2:0, with restart markers.

        No side is longer than `max_side` (0: unlimited).
        """
        return self._picture("llc_recode_jpeg", data, max_side, quality, restart_blocks)

    def keep(self, data, max_side, restart_blocks):
        """Keeps the file's coefficients, and so its pixels, and adds restart markers.

        None if a side is longer than `max_side`.
        """
        return self._picture("llc_keep_jpeg", data, max_side, restart_blocks)

    def read(self, data, max_side):
        """Decodes to pixels, no side longer than `max_side` (0: unlimited)."""
        return self._picture("llc_read_jpeg", data, max_side)

    def encode(self, pixels, quality, restart_blocks):
        """uint8 [height, width, 3] -> the bytes of a baseline JPEG, 4:2:0, with restart markers.

        None if they are more than the capacity.
        """
        height, width, _ = pixels.shape
        pixels = _array(pixels, np.uint8, (height, width, 3), "pixels")
        status = library().llc_encode_jpeg(
            pixels.ctypes.data,
            height,
            width,
            quality,
            restart_blocks,
            self._out.ctypes.data,
            self._out.size,
            ctypes.byref(self._length),
        )
        return None if status else self._out[: self._length.value].copy()

    def _picture(self, function, data, *settings):
        if not len(data):
            return None
        data = np.frombuffer(data, np.uint8)
        status = getattr(library(), function)(
            data.ctypes.data,
            data.size,
            *settings,
            self._out.ctypes.data,
            self._out.size,
            ctypes.byref(self._length),
            ctypes.byref(self._width),
            ctypes.byref(self._height),
        )
        return (
            None
            if status
            else Encoded(self._width.value, self._height.value, self._out[: self._length.value].copy())
        )
