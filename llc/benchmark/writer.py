"""Image files to a beton: our writer, and FFCV's as ffcv-imagenet uses it, in turns.

    python -m llc.benchmark writer --folder=DIR [--write_modes=jpg,proportion] [--images=3000] [--workers=2]
        [--rounds=5] [--quality_of=300] [--scratch=FOLDER] [--json=FILE] [--plot=FILE.png]

Both write the same files with ffcv-imagenet's settings (500 px, JPEG quality 90, proportion 0.5), each time
in a fresh process, and they take turns in going first. FFCV's is DatasetWriter over torchvision's
ImageFolder. The files are all that lie anywhere below --folder, repeated by links up to --images. The clock
runs from the call that writes to its end: it includes the start of the workers, and for ours the flush to
the disk, which FFCV's does not do, but not Python's imports. The start is also measured alone, as the time
of writing 8 images, the median of as many rounds. CPU time is that of all processes, without the start's;
other work on the machine disturbs it less. Each write is to a new file in --scratch.

For the first --quality_of samples of both betons in mode jpg it also reports their bytes; their PSNR
against a full decode, averaged over areas where the image is shrunk; and how the bytes change with other
distances of restart markers, and if the JPEGs are kept as they are.
"""

import dataclasses
import json
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llc import charts, plots
from llc import config as edge
from llc.benchmark import _machine
from llc.data import beton
from llc.data.encoding import RESTART_BLOCKS
from llc.data.images import load_rgb
from llc.data.sources import is_image_name, open_tree
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from llc.native.codec import JpegWriter, decode, resize
from llc.options import option
from llc.text import counted

MAX_RESOLUTION, JPEG_QUALITY, COMPRESS_PROBABILITY, CHUNK_SIZE = 500, 90, 0.5, 100
WRITERS = ("llc", "ffcv")
_START_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    folder: str = option(help="a folder of image files, at any depth")
    write_modes: tuple[str, ...] = option(
        ("jpg", "proportion"), choices=("raw", "jpg", "proportion"), help="write modes to measure"
    )
    images: int = option(3000, minimum=_START_IMAGES + 1, help="images to write")
    workers: int = option(_machine.num_cores(), minimum=1, help="processes of each writer")
    rounds: int = option(5, minimum=1, help="measurements of each writer")
    quality_of: int = option(300, minimum=0, help="samples whose size and PSNR are measured; 0: none")
    scratch: str = option("", help="where betons are written, and removed again; empty: a temporary folder")
    json: str = option("", help="write the figures to this file")
    plot: str = option("", help="draw the figures as bars, to a .png, .svg or .pdf")


def main(argv):
    settings = edge.read_one(Settings, argv, description=__doc__)
    plots.check_name(settings.plot, "--plot")
    if not Path(settings.folder).is_dir():
        raise UserError(f"--folder={settings.folder} is not a folder; give one that holds image files")
    with tempfile.TemporaryDirectory(prefix="llc-writer-", dir=settings.scratch or None) as scratch:
        report = measure(settings, Path(scratch))
    print(describe(report))
    if settings.json:
        Path(settings.json).write_text(json.dumps(report, indent=1) + "\n")
    if settings.plot:
        _machine.save_plot(chart(report), settings.plot)


def measure(settings, scratch):
    """-> {"machine", "versions", "settings", "figures": {mode: {writer: ...}}, "quality"}, as for --json."""
    images, workers = settings.images, settings.workers
    for name, count in (("all", images), ("few", _START_IMAGES)):
        _link_files(Path(settings.folder), scratch / name, count)
    figures, quality = {}, None
    for mode in settings.write_modes:
        runs, starts = ({writer: [] for writer in WRITERS} for _ in range(2))
        for number in _machine.rounds(settings.rounds, mode):
            for writer in WRITERS if number % 2 == 0 else WRITERS[::-1]:
                starts[writer].append(_run(writer, scratch / "few", scratch / "few.beton", mode, workers))
                runs[writer].append(_run(writer, scratch / "all", scratch / f"{writer}.beton", mode, workers))
        figures[mode] = {}
        for writer in WRITERS:
            start_seconds, start_cpu = (statistics.median(values) for values in zip(*starts[writer]))
            figures[mode][writer] = {
                "images_per_second": [images / seconds for seconds, _ in runs[writer]],
                "cpu_seconds_per_image": [
                    (cpu - start_cpu) / (images - _START_IMAGES) for _, cpu in runs[writer]
                ],
                "start_seconds": start_seconds,
                "bytes": int(beton.read_tables(scratch / f"{writer}.beton").sizes.sum()),
            }
        if mode == "jpg" and settings.quality_of:
            quality = _quality(scratch, min(settings.quality_of, images))
        for writer in WRITERS:
            (scratch / f"{writer}.beton").unlink()
    return {
        **_machine.describe("llc", "ffcv", "numpy", "opencv-python", "pillow", "torchvision"),
        "settings": {
            "folder": settings.folder,
            "images": images,
            "workers": workers,
            "rounds": settings.rounds,
            "max_resolution": MAX_RESOLUTION,
            "jpeg_quality": JPEG_QUALITY,
            "compress_probability": COMPRESS_PROBABILITY,
            "chunk_size": CHUNK_SIZE,
        },
        "figures": figures,
        "quality": quality,
    }


def _link_files(folder, tree, count):
    """Makes `count` links to the image files below `folder`, repeated, in class folders of up to 100 each."""
    files = sorted(
        path for path in folder.resolve().rglob("*") if is_image_name(path.name) and path.is_file()
    )
    if not files:
        raise UserError(f"--folder={folder} holds no image files")
    for i in range(count):
        link = tree / f"{i // 100:06}" / f"{i:08}{files[i % len(files)].suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(files[i % len(files)])


def _run(writer, tree, path, mode, workers):
    """(seconds, CPU seconds) of writing `tree` to `path` in a fresh process."""
    # Not by multiprocessing: what it spawns would spawn its own workers too, but FFCV's must be forked.
    words = [writer, str(tree), str(path), mode, workers]
    script = (
        f"import sys; sys.path[:] = {sys.path!a}; from llc.benchmark.writer import _write; _write(*{words!a})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{writer} failed at writing {path} in mode {mode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _write(writer, tree, path, mode, workers):
    Path(path).unlink(missing_ok=True)
    write = (
        _prepare_llc(tree, path, mode, workers)
        if writer == "llc"
        else _prepare_ffcv(tree, path, mode, workers)
    )
    cpu, started = _cpu_seconds(), time.perf_counter()
    write()
    seconds = time.perf_counter() - started
    # FFCV's writer does not wait for its workers; their CPU time counts only once they have ended.
    for process in multiprocessing.active_children():
        process.join()
    print(json.dumps((seconds, _cpu_seconds() - cpu)))


def _prepare_llc(tree, path, mode, workers):
    config = WriterConfig(
        write_path=path,
        write_mode=mode,
        max_resolution=MAX_RESOLUTION,
        num_workers=workers,
        chunk_size=CHUNK_SIZE,
        jpeg_quality=JPEG_QUALITY,
        compress_probability=COMPRESS_PROBABILITY,
    )
    source = open_tree(tree)
    return lambda: write_beton(config, source, show_progress=False)


def _prepare_ffcv(tree, path, mode, workers):
    """As ffcv-imagenet's write_imagenet.py does it."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(tree)
    image = RGBImageField(
        write_mode=mode,
        max_resolution=MAX_RESOLUTION,
        compress_probability=COMPRESS_PROBABILITY,
        jpeg_quality=JPEG_QUALITY,
    )
    writer = DatasetWriter(path, {"image": image, "label": IntField()}, num_workers=workers)
    return lambda: writer.from_indexed_dataset(dataset, chunksize=CHUNK_SIZE)


def _cpu_seconds():
    """Of this process and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _quality(scratch, count):
    """Of the first `count` samples: bytes and PSNR by writer, and bytes with other settings."""
    source = open_tree(scratch / "all")
    files = [Path(source.image(i)).read_bytes() for i in range(count)]
    found = {}
    for writer in WRITERS:
        path = scratch / f"{writer}.beton"
        tables, data = beton.read_tables(path), np.memmap(path, np.uint8, "r")
        places = zip(tables.images["data_ptr"][:count].tolist(), tables.sizes[:count].tolist())
        jpegs = [np.array(data[start : start + size]) for start, size in places]
        ratios = []
        for file, jpeg in zip(files, jpegs, strict=True):
            stored, pixels = decode(jpeg), load_rgb(file)
            if (
                stored.shape != pixels.shape
            ):  # FFCV rounds sides in floating point and is a pixel off at times
                pixels = resize(pixels, *stored.shape[:2])
            ratios.append(_psnr(stored, pixels))
        found[writer] = {
            "bytes": statistics.mean(map(len, jpegs)),
            "psnr": statistics.mean(ratios),
            "lowest_psnr": min(ratios),
        }
    jpeg_writer = JpegWriter(beton.PAGE_SIZE)
    found["bytes_by_restart_blocks"] = {
        blocks: statistics.mean(
            len(jpeg.data)
            for jpeg in (jpeg_writer.recode(data, MAX_RESOLUTION, JPEG_QUALITY, blocks) for data in files)
            if jpeg
        )
        for blocks in (0, 192, 96, 48, 24, 12)
    }
    kept = [(len(data), jpeg_writer.keep(data, MAX_RESOLUTION, RESTART_BLOCKS)) for data in files]
    kept = [(size, len(jpeg.data)) for size, jpeg in kept if jpeg]
    if kept:
        found["kept"] = {
            "images": len(kept),
            "file_bytes": statistics.mean(a for a, _ in kept),
            "bytes": statistics.mean(b for _, b in kept),
        }
    return found


def _psnr(a, b):
    """In dB, of 8-bit pixels; 99 if they are equal."""
    error = np.mean((a.astype(np.float32) - b) ** 2)
    return min(10 * math.log10(255**2 / error), 99.0) if error else 99.0


def chart(report):
    """Bars of the images per second, a panel for each write mode."""
    panels = {
        f"write_mode {mode}": {
            writer: statistics.median(figure["images_per_second"]) for writer, figure in figures.items()
        }
        for mode, figures in report["figures"].items()
    }
    return charts.horizontal_bars(
        panels, _machine.RATE, heading=_machine.first_line(report), highlighted=("llc",)
    )


def describe(report):
    """The tables for people."""
    settings = report["settings"]
    lines = [
        _machine.first_line(report),
        f"{settings['images']:,} images, at most {settings['max_resolution']} px, JPEG quality "
        f"{settings['jpeg_quality']}, {counted(settings['workers'], 'worker')}, "
        f"{settings['rounds']} rounds",
        "",
        "mode        writer   images/s (range)         ratio   CPU ms/image   ratio   start      MB",
    ]
    for mode, writers in report["figures"].items():
        rate = {name: statistics.median(figure["images_per_second"]) for name, figure in writers.items()}
        cpu = {name: statistics.median(figure["cpu_seconds_per_image"]) for name, figure in writers.items()}
        for name, figure in writers.items():
            rates = figure["images_per_second"]
            lines.append(
                f"{mode:11s} {name:6s} {rate[name]:8.0f} ({min(rates):.0f}-{max(rates):.0f})"
                f" {rate[name] / rate['ffcv']:12.2f} {1e3 * cpu[name]:14.2f} {cpu['ffcv'] / cpu[name]:7.2f}"
                f" {figure['start_seconds']:7.2f} s {figure['bytes'] / 1e6:7.1f}"
            )
    quality = report["quality"]
    if quality:
        lines.append("")
        for name in WRITERS:
            figure = quality[name]
            lines.append(
                f"{name}: {figure['bytes']:,.0f} bytes per JPEG, PSNR {figure['psnr']:.2f} dB on average, "
                f"{figure['lowest_psnr']:.2f} at least"
            )
        marked = quality["bytes_by_restart_blocks"]
        lines.append(
            "bytes per JPEG with so many blocks between two restart markers: "
            + ", ".join(
                f"{blocks}: {size:,.0f} ({size / marked[0] - 1:+.2%})" if blocks else f"none: {size:,.0f}"
                for blocks, size in marked.items()
            )
        )
        if "kept" in quality:
            kept = quality["kept"]
            lines.append(
                f"keep_jpeg: {kept['images']} files of {kept['file_bytes']:,.0f} bytes become "
                f"{kept['bytes']:,.0f}, with markers"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    edge.run(main)
