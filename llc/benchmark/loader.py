"""Batches of random crops on the CPU: ours, FFCV's Loader on the same beton, torchvision and DALI on a folder; side by side in one run.

    python -m llc.benchmark loader --beton=train.beton [--folder=DIR] [--peers=llc,ffcv,torchvision,dali] [--resolutions=160,192,224]
        [--workers=2] [--batch_size=128] [--rounds=5] [--seconds=3] [--json=FILE]

Every peer draws RandomResizedCrop(scale 0.08 to 1) and flips, and runs in a process of its own, one for each resolution, so that neither
memory nor compilation mixes. After the first batch and one whole epoch the peers take turns: a round is as many whole epochs
as take --seconds, from asking for an epoch to its last batch, labels included; nothing is done with the images. torchvision (ImageFolder
and DataLoader) and dali (its CPU pipeline, where it is installed) read --folder, one folder of image files a class, so what they decode is
not the beton's re-encoded images. llc_paged is ours with data.in_memory=0.

The table: images/s, median of the rounds and their range; images per second of CPU time, of all processes and threads of the peer, which
other work on the machine disturbs less; the ratios of both to ffcv's, medians over the rounds; the highest resident memory of
the peer's processes, libraries and mapped files included; seconds from constructing the loader to its first batch, imports before it not
counted.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llc import config as edge
from llc.data.beton import JPG
from llc.data.shards import open_shards
from llc.errors import UserError

OPTIONS = {
    "beton": "what llc and ffcv read", "folder": "what torchvision and dali read: a folder of images per class",
    "peers": "which ones (default: llc, ffcv, and with --folder torchvision and, where it is installed, dali)",
    "resolutions": "pixels, separated by commas (default 160,192,224)", "workers": "threads or processes of each (default: all cores)",
    "batch_size": "images (default 128)", "rounds": "measurements of each (default 5)", "seconds": "of a round, at least (default 3)",
    "json": "write the figures to this file",
}  # fmt: skip
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def main(argv):
    options = edge.read({}, argv, description=__doc__, options=OPTIONS).options
    settings = _Settings(options)
    report = measure(settings)
    print(describe(report))
    if options["json"]:
        Path(options["json"]).write_text(json.dumps(report, indent=1) + "\n")


class _Settings:
    """The options, checked: numbers as numbers, and peers that can run."""

    def __init__(self, options):
        def number(name, default):
            text = options[name] or str(default)
            if not text.isdigit() or int(text) < 1:
                raise UserError(f"--{name}={text}: it takes a whole number, at least 1")
            return int(text)

        self.beton, self.folder, self.batch_size = (
            options["beton"],
            options["folder"],
            number("batch_size", 128),
        )
        self.workers, self.rounds = number("workers", len(os.sched_getaffinity(0))), number("rounds", 5)
        self.seconds = number("seconds", 3)
        text = options["resolutions"] or "160,192,224"
        if not all(part.isdigit() and int(part) for part in text.split(",")):
            raise UserError(f"--resolutions={text}: it takes whole numbers, separated by commas")
        self.resolutions = [int(part) for part in text.split(",")]
        if not self.beton:
            raise UserError("--beton is required: what llc and ffcv read (write_ffcv.py makes one)")
        dali = ["dali"] if find_spec("nvidia") and find_spec("nvidia.dali") else []
        self.peers = (
            options["peers"].split(",")
            if options["peers"]
            else ["llc", "ffcv", *(["torchvision", *dali] if self.folder else [])]
        )
        for peer in self.peers:
            if peer not in PEERS:
                raise UserError(
                    f"--peers={options['peers']}: {peer!r} is unknown; it takes {', '.join(PEERS)}"
                )
            if peer in ("torchvision", "dali") and not self.folder:
                raise UserError(
                    f"--peers={options['peers']}: {peer} reads a folder of images per class; give it as --folder=DIR"
                )


def measure(settings):
    """-> {"machine", "versions", "beton", "settings", "figures": [a dict for each resolution and peer]}, as written to --json."""
    shards = open_shards(settings.beton)
    figures = []
    for resolution in settings.resolutions:
        with contextlib.ExitStack() as stack:
            runners = {
                peer: stack.enter_context(_Runner(peer, settings, resolution)) for peer in settings.peers
            }
            rounds = {peer: [] for peer in runners}
            for k in range(settings.rounds):
                # each goes first as often
                for peer in [*runners][k % len(runners) :] + [*runners][: k % len(runners)]:
                    rounds[peer].append(runners[peer].run())
            for peer, runner in runners.items():
                images_per_second, images_per_cpu_second = zip(*rounds[peer])
                figures.append({
                    "resolution": resolution, "peer": peer, "images_per_second": images_per_second,
                    "images_per_cpu_second": images_per_cpu_second, "peak_rss_bytes": runner.peak_rss(),
                    "first_batch_seconds": runner.first_batch_seconds,
                })  # fmt: skip
    jpegs = float((shards.images["mode"] == JPG).mean())
    return {
        "machine": {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {
            name: _version(name)
            for name in ("llc", "torch", "torchvision", "ffcv", "numba", "numpy", "opencv-python")
        },
        "beton": {
            "path": str(shards),
            "images": len(shards),
            "bytes": int(shards.sizes.sum()),
            "share_jpeg": jpegs,
        },
        "settings": {
            k: getattr(settings, k) for k in ("workers", "batch_size", "rounds", "seconds", "folder")
        },
        "figures": figures,
    }


def describe(report):
    """The table for people."""
    beton, settings = report["beton"], report["settings"]
    lines = [
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        f"{beton['path']}: {beton['images']:,} images, {beton['share_jpeg']:.0%} JPEG, "
        f"{beton['bytes'] / beton['images'] / 1e3:.0f} kB each; {settings['workers']} workers, "
        f"batches of {settings['batch_size']}, {settings['rounds']} rounds of {settings['seconds']} s",
        "",
        "resolution  peer          images/s   (min-max)    x ffcv   per CPU second   x ffcv   peak RSS   first batch",
    ]
    for figure in report["figures"]:
        by_second, by_cpu = figure["images_per_second"], figure["images_per_cpu_second"]
        against = [
            f for f in report["figures"] if f["peer"] == "ffcv" and f["resolution"] == figure["resolution"]
        ]
        ratios = [
            f"{statistics.median(a / b for a, b in zip(figure[key], against[0][key])):.2f}"
            if against
            else "-"
            for key in ("images_per_second", "images_per_cpu_second")
        ]
        spread = f"({min(by_second):.0f}-{max(by_second):.0f})"
        lines.append(
            f"{figure['resolution']:>10}  {figure['peer']:12}  {statistics.median(by_second):>8.0f}   {spread:>11}"
            f"   {ratios[0]:>6}   {statistics.median(by_cpu):>14.0f}   {ratios[1]:>6}   {figure['peak_rss_bytes'] / 1e6:>5.0f} MB"
            f"   {figure['first_batch_seconds']:>8.2f} s"
        )
    return "\n".join(lines)


# ---- one peer in its process -------------------------------------------------------------------------------------------


class _Runner:
    """A peer's process, warmed up, from `with` on until its end."""

    def __init__(self, peer, settings, resolution):
        self._peer, (self._pipe, theirs) = peer, multiprocessing.Pipe()
        # a fresh interpreter: a forked one would have this one's memory
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, peer, settings.__dict__, resolution)
        )
        self._process.start()
        theirs.close()

    def __enter__(self):
        self.first_batch_seconds = self._answer()
        return self

    def __exit__(self, *exception):
        self._pipe.close()  # on which it ends
        self._process.join()

    def run(self):
        """(images per second, images per second of CPU time) of one round."""
        before = sum(map(_cpu_seconds, _with_descendants(self._process.pid)))
        self._pipe.send("run")
        num_images, seconds = self._answer()
        cpu_seconds = sum(map(_cpu_seconds, _with_descendants(self._process.pid))) - before
        return num_images / seconds, num_images / cpu_seconds

    def peak_rss(self):
        """Bytes, summed over the peer's processes; what they share counts for each."""
        return sum(map(_peak_rss, _with_descendants(self._process.pid)))

    def _answer(self):
        try:
            kind, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            kind, answer = "error", f"its process ended with status {self._process.exitcode}"
        if kind == "error":
            raise UserError(f"{self._peer} cannot be measured: {answer}")
        return answer


def _serve(pipe, peer, settings, resolution):
    try:
        construct = PEERS[peer](
            resolution=resolution,
            **{key: settings[key] for key in ("beton", "folder", "workers", "batch_size")},
        )
        started = time.perf_counter()
        epoch = construct()
        batches = iter(epoch(0))
        next(batches)
        first_batch_seconds = time.perf_counter() - started
        for _ in batches:
            pass
        pipe.send(("done", first_batch_seconds))
        number = 0
        while pipe.recv():
            num_images, started = 0, time.perf_counter()
            while (seconds := time.perf_counter() - started) < settings["seconds"]:
                number += 1
                for images, labels in epoch(number):
                    num_images += len(images)
            pipe.send(("done", (num_images, seconds)))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def _llc(*, resolution, beton, workers, batch_size, folder, in_memory=True):
    from llc.data.loaders import TrainLoader
    from llc.distributed import Processes

    def construct():
        loader = TrainLoader(
            open_shards(beton), batch_size=batch_size, num_workers=workers, processes=Processes(), seed=0, min_scale=SCALE[0],
            in_memory=in_memory,
        )  # fmt: skip
        return lambda number: loader.epoch(number, resolution)

    return construct


def _llc_paged(**kwargs):
    return _llc(**kwargs, in_memory=False)


def _ffcv(*, resolution, beton, workers, batch_size, folder):
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    def construct():
        crop = RandomResizedCropRGBImageDecoder((resolution, resolution), scale=SCALE, ratio=RATIO)
        pipelines = {
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        }
        loader = Loader(
            beton,
            batch_size=batch_size,
            num_workers=workers,
            order=OrderOption.RANDOM,
            os_cache=True,
            pipelines=pipelines,
        )
        return lambda number: loader

    return construct


def _torchvision(*, resolution, beton, workers, batch_size, folder):
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    def construct():
        transform = transforms.Compose([
            transforms.RandomResizedCrop(resolution, SCALE, RATIO), transforms.RandomHorizontalFlip(), transforms.PILToTensor(),
        ])  # fmt: skip
        loader = DataLoader(
            ImageFolder(folder, transform), batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
        )  # fmt: skip
        return lambda number: loader

    return construct


def _dali(*, resolution, beton, workers, batch_size, folder):
    dali = import_module("nvidia.dali")
    fn = import_module("nvidia.dali.fn")

    def construct():
        @dali.pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None)
        def pipeline():
            files, labels = fn.readers.file(file_root=folder, random_shuffle=True, name="files")
            images = fn.decoders.image_random_crop(
                files, random_area=SCALE, random_aspect_ratio=RATIO, num_attempts=10
            )
            images = fn.flip(
                fn.resize(images, size=[resolution, resolution]), horizontal=fn.random.coin_flip()
            )
            return images, labels

        built = pipeline()
        built.build()
        num_batches = built.epoch_size("files") // batch_size

        def epoch(number):
            for _ in range(num_batches):
                images, labels = built.run()
                yield np.asarray(images.as_tensor()), np.asarray(labels.as_tensor())

        return epoch

    return construct


# name -> what imports its library, and returns what constructs its loader, which returns epoch(number) -> batches
PEERS = {"llc": _llc, "ffcv": _ffcv, "torchvision": _torchvision, "dali": _dali, "llc_paged": _llc_paged}


# ---- what the system says ----------------------------------------------------------------------------------------------


def _with_descendants(pid):
    """The process, its children, theirs, and so on, as far as they are still there."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that has just ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for parent in found:  # it grows
        found += children.get(parent, [])
    return found


def _cpu_seconds(pid):
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _peak_rss(pid):
    return next(
        int(line.split()[1]) << 10
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def _cpu_name():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    edge.run(main)
