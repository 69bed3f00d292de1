"""From an image of any size to what a network takes: one rule, kept with every trained model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from llc.data import sampling
from llc.errors import UserError
from llc.native import codec

RESIZES = ("area", "bilinear")
_MAX_LONG_SIDE = 1 << 14  # pixels of a whole resized image; its shorter side is below a crop's


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes resolution x resolution pixels, and the network's mean and std (of RGB in 0..1).

    resize: "area" is a centre crop whose side is `crop_ratio` of the shorter side, resized by pixel area
    (llc.native.codec). The validation loader does the same to betons, so networks trained here are evaluated
    with it.

    "bilinear" resizes the shorter side to resolution / crop_ratio by Pillow's bilinear filter, then takes a
    centre crop. These are the pixels of torchvision's Resize and CenterCrop, with which the published models
    were evaluated (224 and 0.875: 256, then 224).

    Raises UserError for impossible values, because they may come from a file.
    """

    resolution: int
    crop_ratio: float
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self):
        if type(self.resolution) is not int or not 1 <= self.resolution <= 4096:
            raise UserError(f"resolution = {self.resolution!r}: expected 1 to 4096 pixels")
        if not _is_number(self.crop_ratio) or not 0.05 <= self.crop_ratio <= 1:
            raise UserError(
                f"crop_ratio = {self.crop_ratio!r}: expected a fraction of the shorter side, 0.05 to 1"
            )
        if self.resize not in RESIZES:
            raise UserError(f"resize = {self.resize!r}: expected one of {', '.join(RESIZES)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != 3 or not all(map(_is_number, values)):
                raise UserError(f"{name} = {values!r}: expected three numbers")
            object.__setattr__(self, name, tuple(map(float, values)))
        if min(self.std) <= 0:
            raise UserError(f"std = {self.std}: expected three numbers above 0")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [resolution, resolution, 3]."""
        return (_crop_then_area if self.resize == "area" else _bilinear_then_crop)(
            pixels, self.resolution, self.crop_ratio
        )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _crop_then_area(pixels, resolution, crop_ratio):
    height, width = np.array(pixels.shape[:1]), np.array(pixels.shape[1:2])
    [crop] = sampling.centre_crops(height, width, crop_ratio)
    return codec.resize(pixels, resolution, resolution, crop)


def _bilinear_then_crop(pixels, resolution, crop_ratio):
    height, width = pixels.shape[:2]
    short = max(resolution, round(resolution / crop_ratio))
    long = int(short * max(height, width) / min(height, width))
    new_height, new_width = (short, long) if height <= width else (long, short)
    top, left = round((new_height - resolution) / 2), round((new_width - resolution) / 2)
    image = Image.fromarray(pixels)
    if long <= _MAX_LONG_SIDE:
        image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + resolution, top + resolution)))
    # Of a picture that is one long line only the part that stays is resized; a value may differ by 1, for
    # Pillow rounds its box.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, (left + resolution) * x, (top + resolution) * y)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box))
