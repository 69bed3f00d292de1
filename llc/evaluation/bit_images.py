"""The images with the highest and lowest z of each bit, in one picture."""

import io
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from llc.evaluation.taxonomy import Extremes

SIDE = 64  # pixels of an image in the picture
_GAP, _LABEL, _HEAD = 4, 56, 28  # pixels: around images, for "bit 12", for the titles


class Thumbnails:
    """Small copies of the images that a picture needs; those that it no longer needs are forgotten.

    images: {position: uint8 [SIDE, SIDE, 3]}.
    """

    def __init__(self) -> None:
        self.images: dict[int, np.ndarray] = {}

    def keep(self, batch: torch.Tensor, first: int, wanted: Iterable[int]) -> None:
        """Keeps the images at the positions `wanted`, which are known or in the batch, and no others.

        batch: uint8 [b, 3, H, W] of the images at first, first + 1, ...
        """
        positions = set(wanted)
        self.images = {position: image for position, image in self.images.items() if position in positions}
        for position in positions - self.images.keys():
            pixels = batch[position - first].permute(1, 2, 0).cpu().numpy()
            small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            self.images[position] = np.asarray(small)


def draw_bits(extremes: Extremes, thumbnails: Thumbnails) -> bytes:
    """A PNG with a row for each bit: at the left the images with the highest z, at the right the lowest.

    The most extreme images are at the outer ends. thumbnails: of all positions in `extremes`.
    """
    highest, lowest = extremes.highest[1], extremes.lowest[1]
    num_bits, count = highest.shape
    step = SIDE + _GAP
    middle = _LABEL + count * step + 2 * _GAP  # where the right half begins
    sheet = Image.new("RGB", (middle + count * step + _GAP, _HEAD + num_bits * step + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for x, text in ((_LABEL, "1: highest z first"), (middle, "0: lowest z last")):
        pen.text((x, _GAP), text, "black", font)
    for bit in range(num_bits):
        y = _HEAD + bit * step
        pen.text((_GAP, y + SIDE // 2), f"bit {bit}", "black", font, anchor="lm")
        for left, row in ((_LABEL, highest[bit]), (middle, lowest[bit][::-1])):
            for place, position in enumerate(row.tolist()):
                sheet.paste(Image.fromarray(thumbnails.images[position]), (left + place * step, y))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
