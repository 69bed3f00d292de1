"""Image files -> beton: ours, and FFCV's writer as ffcv-imagenet uses it (DatasetWriter over torchvision's ImageFolder), in turns.

    python -m llc.benchmark writer --folder=DIR [--write_modes=jpg,proportion] [--images=3000] [--workers=2] [--rounds=5]
        [--quality_of=300] [--scratch=FOLDER] [--json=FILE]

Both write the same files with ffcv-imagenet's settings (500 px, JPEG quality 90, proportion 0.5), each time in a fresh process, taking turns in
going first. The files are those found anywhere below --folder, repeated by links up to --images. The clock runs from the call that
writes to its end: its workers' start is in it, Python's imports before it are not, and of ours the flush to the disk, which FFCV's does not do. The
start is measured apart, as the time of writing 8 images, median of as many rounds. CPU time is that of all processes, without the
start's; other work on the machine disturbs it less. Each write is into a new file in --scratch (default: a temporary folder).

Then, of the first --quality_of samples of both betons in mode jpg: their bytes, and their PSNR against the pixels that a full decode, and OpenCV's
average of areas where the image is shrunk, give; and what restart markers, and keeping the JPEGs as they are, make of the bytes.
"""

import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from llc import config as edge
from llc.data import beton
from llc.data.encoding import RESTART_BLOCKS
from llc.data.images import load_rgb
from llc.data.native import JpegWriter, decode
from llc.data.sources import is_image_name, open_tree
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError

OPTIONS = {
    "folder": "image files, at any depth", "write_modes": "which ones, separated by commas (default jpg,proportion)",
    "images": "how many to write (default 3000)", "workers": "processes of each (default: all cores)", "rounds": "writes of each (default 5)",
    "quality_of": "samples whose size and PSNR are measured; 0 for none (default 300)",
    "scratch": "where betons are written, and removed again (default: a temporary folder)", "json": "write the figures to this file",
}  # fmt: skip
MAX_RESOLUTION, JPEG_QUALITY, COMPRESS_PROBABILITY, CHUNK_SIZE = 500, 90, 0.5, 100
WRITERS = ("llc", "ffcv")
_START_IMAGES = 8


def main(argv):
    options = edge.read({}, argv, description=__doc__, options=OPTIONS).options

    def number(name, default, minimum=1):
        text = options[name] or str(default)
        if not text.isdigit() or int(text) < minimum:
            raise UserError(f"--{name}={text}: it takes a whole number, at least {minimum}")
        return int(text)

    modes = (options["write_modes"] or "jpg,proportion").split(",")
    known = ("raw", "jpg", "proportion")
    if not set(modes) <= set(known):
        raise UserError(
            f"--write_modes={options['write_modes']}: it takes some of {', '.join(known)}, separated by commas"
        )
    if not options["folder"] or not Path(options["folder"]).is_dir():
        raise UserError(f"--folder={options['folder'] or ''} is no folder; give one that holds image files")
    counts = {name: number(name, default) for name, default in (
        ("images", 3000), ("workers", len(os.sched_getaffinity(0))), ("rounds", 5),
    )}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llc-writer-", dir=options["scratch"] or None) as scratch:
        report = measure(
            Path(options["folder"]), modes, Path(scratch), quality_of=number("quality_of", 300, 0), **counts
        )
    print(describe(report))
    if options["json"]:
        Path(options["json"]).write_text(json.dumps(report, indent=1) + "\n")


def measure(folder, modes, scratch, *, images, workers, rounds, quality_of):
    """-> {"machine", "versions", "settings", "figures": {mode: {writer: ...}}, "quality"}, as written to --json."""
    for name, count in (("all", images), ("few", _START_IMAGES)):
        _link_files(folder, scratch / name, count)
    figures, quality = {}, None
    for mode in modes:
        runs, starts = ({writer: [] for writer in WRITERS} for _ in range(2))
        for k in range(rounds):
            for writer in WRITERS if k % 2 == 0 else WRITERS[::-1]:
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
        if mode == "jpg" and quality_of:
            quality = _quality(scratch, min(quality_of, images))
        for writer in WRITERS:
            (scratch / f"{writer}.beton").unlink()
    return {
        "machine": {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {name: version(name) for name in ("llc", "ffcv", "numpy", "opencv-python", "pillow", "torchvision")},
        "settings": {"folder": str(folder), "images": images, "workers": workers, "rounds": rounds, "max_resolution": MAX_RESOLUTION,
                     "jpeg_quality": JPEG_QUALITY, "compress_probability": COMPRESS_PROBABILITY, "chunk_size": CHUNK_SIZE},
        "figures": figures, "quality": quality,
    }  # fmt: skip


def _link_files(folder, tree, count):
    """`count` links to the image files below `folder`, over and over, in a tree of class folders of up to 100."""
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
    # Not by multiprocessing: a process that it spawned spawns too, and FFCV's workers are made to be forked.
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
    for process in (
        multiprocessing.active_children()
    ):  # FFCV's writer does not wait for its workers, whose CPU time counts then
        process.join()
    print(json.dumps((seconds, _cpu_seconds() - cpu)))


def _prepare_llc(tree, path, mode, workers):
    config = WriterConfig(
        write_path=path, write_mode=mode, max_resolution=MAX_RESOLUTION, num_workers=workers, chunk_size=CHUNK_SIZE,
        jpeg_quality=JPEG_QUALITY, compress_probability=COMPRESS_PROBABILITY,
    )  # fmt: skip
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
    """Of this process and of those it started that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _quality(scratch, count):
    """Of the first `count` samples: means of bytes, and mean and lowest of PSNR, of both writers and of other ways to mark restarts."""
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
            if stored.shape != pixels.shape:  # FFCV rounds a side by floating point, one pixel off at times
                pixels = cv2.resize(pixels, stored.shape[1::-1], interpolation=cv2.INTER_AREA)
            ratios.append(_psnr(stored, pixels))
        found[writer] = {
            "bytes": statistics.mean(map(len, jpegs)),
            "psnr": statistics.mean(ratios),
            "lowest_psnr": min(ratios),
        }
    jpeg_writer = JpegWriter(beton.PAGE_SIZE)
    found["bytes_by_restart_blocks"] = {
        blocks: statistics.mean(len(jpeg.data) for jpeg in (
            jpeg_writer.recode(data, MAX_RESOLUTION, JPEG_QUALITY, blocks) for data in files
        ) if jpeg) for blocks in (0, 192, 96, 48, 24, 12)
    }  # fmt: skip
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
    """dB, of 8-bit pixels; 99 where they are equal."""
    error = np.mean((a.astype(np.float32) - b) ** 2)
    return min(10 * math.log10(255**2 / error), 99.0) if error else 99.0


def describe(report):
    """The tables for people."""
    settings = report["settings"]
    lines = [
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        f"{settings['images']:,} images, at most {settings['max_resolution']} px, JPEG quality {settings['jpeg_quality']},"
        f" {settings['workers']} workers, {settings['rounds']} rounds",
        "",
        "mode        writer   images/s (range)         ratio   CPU ms/image   ratio   start      MB",
    ]
    for mode, writers in report["figures"].items():
        rate = {name: statistics.median(figure["images_per_second"]) for name, figure in writers.items()}
        cpu = {name: statistics.median(figure["cpu_seconds_per_image"]) for name, figure in writers.items()}
        for name, figure in writers.items():
            rates = figure["images_per_second"]
            lines.append(
                f"{mode:11s} {name:6s} {rate[name]:8.0f} ({min(rates):.0f}-{max(rates):.0f}) {rate[name] / rate['ffcv']:12.2f}"
                f" {1e3 * cpu[name]:14.2f} {cpu['ffcv'] / cpu[name]:7.2f} {figure['start_seconds']:7.2f} s {figure['bytes'] / 1e6:7.1f}"
            )
    quality = report["quality"]
    if quality:
        lines.append("")
        for name in WRITERS:
            figure = quality[name]
            lines.append(
                f"{name}: {figure['bytes']:,.0f} bytes a JPEG, PSNR {figure['psnr']:.2f} dB on average, {figure['lowest_psnr']:.2f} at least"
            )
        marked = quality["bytes_by_restart_blocks"]
        lines.append(
            "bytes a JPEG with so many blocks between two restart markers: "
            + ", ".join(
                f"{blocks}: {size:,.0f} ({size / marked[0] - 1:+.2%})" if blocks else f"none: {size:,.0f}"
                for blocks, size in marked.items()
            )
        )
        if "kept" in quality:
            kept = quality["kept"]
            lines.append(
                f"keep_jpeg: {kept['images']} files of {kept['file_bytes']:,.0f} bytes become {kept['bytes']:,.0f}, with markers"
            )
    return "\n".join(lines)


def _cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


if __name__ == "__main__":
    edge.run(main)
