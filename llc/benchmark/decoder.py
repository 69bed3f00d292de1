"""Decoding samples of a beton, without a loader around it: our native decoder beside FFCV's functions.

    python -m llc.benchmark decoder --folder=PHOTOS [--images=600] [--kinds=jpeg,raw]
    [--resolutions=160,192,224]
        [--restart_blocks=0] [--rounds=5] [--json=FILE] [--plot=FILE.png]

The image files below --folder are shrunk to 500 px and stored in memory as a beton stores them: as pixels,
or as JPEGs of quality 90 with a restart marker every --restart_blocks blocks of 8 x 8 pixels (0: none).
Ours decodes, crops, resizes and flips in one call. FFCV's way decodes the whole JPEG with the fast inverse
DCT, resizes the crop with OpenCV's INTER_AREA and flips it, one image after the other in Python. Both get
the same crops (RandomResizedCrop, area 0.08 to 1) and flips, other ones in each round.

The table has the CPU time of one thread in microseconds per image, as the median of the rounds and their
range. The two sides take turns.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np

from llc import charts, plots
from llc import config as edge
from llc.benchmark import _machine
from llc.data import beton
from llc.data.encoding import shrink
from llc.data.images import load_rgb
from llc.data.sources import is_image_name
from llc.errors import UserError
from llc.native.codec import OK, JpegWriter, Samples, decode_batch, status_text
from llc.options import option

MAX_RESOLUTION, JPEG_QUALITY = 500, 90
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    folder: str = option(help="a folder of image files, at any depth")
    images: int = option(600, minimum=1, help="images to decode; the first of the folder")
    kinds: tuple[str, ...] = option(("jpeg", "raw"), choices=("jpeg", "raw"), help="how images are stored")
    resolutions: tuple[int, ...] = option((160, 192, 224), minimum=1, help="pixels of the result")
    restart_blocks: tuple[int, ...] = option((0,), minimum=0, help="of JPEGs: blocks between restart markers")
    rounds: int = option(5, minimum=1, help="measurements of each side")
    json: str = option("", help="write the figures to this file")
    plot: str = option("", help="draw the figures as bars, to a .png, .svg or .pdf")


def main(argv):
    settings = edge.read_one(Settings, argv, description=__doc__)
    plots.check_name(settings.plot, "--plot")
    report = measure(settings)
    print(describe(report))
    if settings.json:
        Path(settings.json).write_text(json.dumps(report, indent=1) + "\n")
    if settings.plot:
        _machine.save_plot(chart(report), settings.plot)


def measure(settings):
    """-> {"machine", "versions", "settings", "figures": [a dict per kind, restart_blocks and resolution]}."""
    pictures = _pictures(Path(settings.folder), settings.images)
    variants = [("jpeg", blocks) for blocks in settings.restart_blocks if "jpeg" in settings.kinds]
    variants += [("raw", 0)] if "raw" in settings.kinds else []
    stored = {variant: _store(pictures, *variant) for variant in variants}
    figures = []
    for resolution in settings.resolutions:
        out = np.empty((len(pictures), resolution, resolution, 3), np.uint8)
        seconds = {variant: {"llc": [], "ffcv": []} for variant in variants}
        for number in range(-1, settings.rounds):  # round -1 only warms up
            crops, flips = _random_crops(pictures, number + 1)
            for variant, data in stored.items():
                for side, decode in (("llc", _ours), ("ffcv", _ffcv)):
                    started = time.process_time()
                    decode(data, pictures, crops, flips, out)
                    if number >= 0:
                        seconds[variant][side].append((time.process_time() - started) / len(pictures))
        for (kind, blocks), sides in seconds.items():
            num_bytes = statistics.fmean(data.nbytes for data in stored[kind, blocks])
            figure = {"kind": kind, "restart_blocks": blocks, "resolution": resolution, "bytes": num_bytes}
            figures.append(figure | {"seconds_per_image": sides})
    return {
        **_machine.describe("llc", "ffcv", "numpy", "opencv-python"),
        "settings": dataclasses.asdict(settings) | {"images": len(pictures)},
        "figures": figures,
    }


def chart(report):
    """Bars of the CPU time for each image, a panel for each row of the table."""
    panels = {}
    for figure in report["figures"]:
        markers = f", restart markers every {figure['restart_blocks']} blocks" * bool(
            figure["restart_blocks"]
        )
        panels[f"{figure['kind']}{markers}, {figure['resolution']} px"] = {
            {"llc": "llc", "ffcv": "FFCV's way"}[side]: 1e6 * statistics.median(seconds)
            for side, seconds in figure["seconds_per_image"].items()
        }
    return charts.horizontal_bars(
        panels,
        "microseconds of CPU time for an image, less is better",
        heading=_machine.first_line(report),
        highlighted=("llc",),
    )


def describe(report):
    """The table for people."""
    lines = [
        _machine.first_line(report),
        f"{report['settings']['images']:,} images, {report['settings']['rounds']} rounds; "
        "microseconds of CPU time per image",
        "",
        "kind   restart blocks    px     bytes     ours (range)           FFCV's way (range)     ratio",
    ]
    for figure in report["figures"]:
        sides = {side: [1e6 * s for s in values] for side, values in figure["seconds_per_image"].items()}
        median = {side: statistics.median(values) for side, values in sides.items()}
        cells = [f"{median[s]:6.0f} ({min(v):.0f} - {max(v):.0f})" for s, v in sides.items()]
        lines.append(
            f"{figure['kind']:6s} {figure['restart_blocks']:14d} {figure['resolution']:5d} "
            f"{figure['bytes']:9,.0f}   {cells[0]:22s} {cells[1]:22s} {median['ffcv'] / median['llc']:5.2f}"
        )
    return "\n".join(lines)


def _pictures(folder, count):
    """uint8 [height, width, 3] arrays of the first `count` image files below `folder`, shrunk."""
    files = sorted(path for path in folder.rglob("*") if is_image_name(path.name) and path.is_file())
    if not files:
        raise UserError(f"--folder={folder} holds no image files")
    return [np.ascontiguousarray(shrink(load_rgb(path), MAX_RESOLUTION)) for path in files[:count]]


def _store(pictures, kind, restart_blocks):
    """The bytes of each picture, uint8 [size]."""
    if kind == "raw":
        return [pixels.reshape(-1) for pixels in pictures]
    writer = JpegWriter(beton.PAGE_SIZE)
    return [writer.encode(pixels, JPEG_QUALITY, restart_blocks) for pixels in pictures]


def _random_crops(pictures, seed):
    """(int32 [n, 4] of top, left, height, width; bool [n]), drawn as RandomResizedCrop draws them."""
    rng, crops = np.random.default_rng(seed), []
    for height, width, _ in (pixels.shape for pixels in pictures):
        area, log_ratio = height * width * rng.uniform(*SCALE), rng.uniform(*np.log(RATIO))
        h = int(np.clip(round((area / np.exp(log_ratio)) ** 0.5), 1, height))
        w = int(np.clip(round((area * np.exp(log_ratio)) ** 0.5), 1, width))
        crops.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
    return np.array(crops, np.int32), rng.random(len(pictures)) < 0.5


def _ours(stored, pictures, crops, flips, out):
    raw = stored[0].nbytes == pictures[0].nbytes
    samples = Samples(
        np.array([data.ctypes.data for data in stored], np.uint64),
        np.array([data.nbytes for data in stored]),
        np.full(len(stored), beton.RAW if raw else beton.JPG, np.uint8),
        np.array([pixels.shape[1] for pixels in pictures], np.int32),
        np.array([pixels.shape[0] for pixels in pictures], np.int32),
    )
    status = decode_batch(samples, crops, flips, out)
    if (status != OK).any():
        raise AssertionError(f"a sample was not decoded: {status_text(status.max())}")


def _ffcv(stored, pictures, crops, flips, out):
    from ffcv.libffcv import imdecode, resize_crop

    for data, pixels, (top, left, h, w), flip, target in zip(stored, pictures, crops.tolist(), flips, out):
        height, width, _ = pixels.shape
        if data.nbytes == pixels.nbytes:
            whole = data.reshape(pixels.shape)
        else:
            whole = np.empty_like(pixels)
            imdecode(data, whole, height, width, height, width)
        resize_crop(whole, top, top + h, left, left + w, target)
        if flip:
            target[:] = target[:, ::-1].copy()


if __name__ == "__main__":
    edge.run(main)
