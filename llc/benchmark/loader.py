"""Batches of random crops on the CPU: ours and FFCV's loader on one beton, torchvision and DALI on a folder.

    python -m llc.benchmark loader --beton=train.beton [--folder=DIR]
        [--peers=llc,llc.ffcv,ffcv,torchvision,dali] [--resolutions=160,192,224] [--workers=2]
        [--batch_size=128] [--rounds=5] [--seconds=3] [--json=FILE] [--plot=FILE.png]

Every peer draws RandomResizedCrop(scale 0.08 to 1) and flips. Each runs in a process of its own, one for
each resolution, so that neither memory nor compilation mixes. After a first batch and one whole epoch that
do not count, the peers take turns. A round is as many whole epochs as fill --seconds, from asking for an
epoch to its last batch, labels included; nothing is done with the images. llc.ffcv is FFCV's Loader with
our decoder and flip (llc.ffcv) in the places of its own. torchvision (ImageFolder and
DataLoader) and dali (its CPU pipeline, if it is installed) read --folder, which has one folder of image
files per class, so they decode other files than the beton's re-encoded images. llc_paged is ours with
data.in_memory=0.

The table has images per second, as the median of the rounds and their range; images per second of CPU time
over all processes and threads of the peer, which other work on the machine disturbs less; the ratios of
both to ffcv's, as medians over the rounds; the highest resident memory of the peer's processes, libraries
and mapped files included; and the seconds from constructing the loader to its first batch, without imports
before it.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llc import charts, plots
from llc import config as edge
from llc.benchmark import _machine
from llc.data.beton import JPG
from llc.data.shards import open_shards
from llc.errors import UserError
from llc.options import option
from llc.text import counted

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
PEER_NAMES = ("llc", "llc.ffcv", "ffcv", "torchvision", "dali", "llc_paged")
READ_A_FOLDER = ("torchvision", "dali")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    beton: str = option(help="what llc, llc.ffcv and ffcv read; python -m llc.write makes one")
    folder: str = option("", help="what torchvision and dali read: one folder of images per class")
    peers: tuple[str, ...] = option(
        (),
        choices=PEER_NAMES,
        help="loaders to measure; none: llc, llc.ffcv, ffcv, and with --folder torchvision and dali (if "
        "installed)",
    )
    resolutions: tuple[int, ...] = option((160, 192, 224), minimum=1, help="pixels of the crops")
    workers: int = option(_machine.num_cores(), minimum=1, help="threads or processes of each loader")
    batch_size: int = option(128, minimum=1, help="images per batch")
    rounds: int = option(5, minimum=1, help="measurements of each loader")
    seconds: float = option(3.0, minimum=0.1, help="shortest duration of a round")
    json: str = option("", help="write the figures to this file")
    plot: str = option("", help="draw the figures as bars, to a .png, .svg or .pdf")

    def chosen_peers(self):
        """The names of the peers to measure. Raises UserError if one needs a folder and there is none."""
        if not self.peers:
            dali = ["dali"] if find_spec("nvidia") and find_spec("nvidia.dali") else []
            return ["llc", "llc.ffcv", "ffcv", *(["torchvision", *dali] if self.folder else [])]
        for peer in self.peers:
            if peer in READ_A_FOLDER and not self.folder:
                raise UserError(
                    f"--peers={','.join(self.peers)}: {peer} reads a folder of images per class; give it as "
                    "--folder=DIR"
                )
        return list(self.peers)


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
    """-> {"machine", "versions", "beton", "settings", "figures"}, as --json writes it.

    figures: a dict for each resolution and peer.
    """
    peers, shards = settings.chosen_peers(), open_shards(settings.beton)
    figures = []
    for resolution in settings.resolutions:
        with contextlib.ExitStack() as stack:
            runners = {peer: stack.enter_context(_Runner(peer, settings, resolution)) for peer in peers}
            rounds = {peer: [] for peer in peers}
            for number in _machine.rounds(settings.rounds, f"{resolution} pixels"):
                first = number % len(peers)  # so that each goes first equally often
                for peer in peers[first:] + peers[:first]:
                    rounds[peer].append(runners[peer].run())
            for peer, runner in runners.items():
                images_per_second, images_per_cpu_second = zip(*rounds[peer])
                figures.append(
                    {
                        "resolution": resolution,
                        "peer": peer,
                        "images_per_second": images_per_second,
                        "images_per_cpu_second": images_per_cpu_second,
                        "peak_rss_bytes": runner.peak_rss(),
                        "first_batch_seconds": runner.first_batch_seconds,
                    }
                )
    packages = ("llc", "torch", "torchvision", "ffcv", "numba", "numpy", "opencv-python")
    return {
        **_machine.describe(*packages),
        "beton": {
            "path": str(shards),
            "images": len(shards),
            "bytes": int(shards.sizes.sum()),
            "share_jpeg": float((shards.images["mode"] == JPG).mean()),
        },
        "settings": {
            name: getattr(settings, name) for name in ("workers", "batch_size", "rounds", "seconds", "folder")
        },
        "figures": figures,
    }


def chart(report):
    """Bars of the images per second, a panel for each resolution."""
    panels = {}
    for figure in report["figures"]:
        panel = panels.setdefault(f"{figure['resolution']} px", {})
        panel[figure["peer"]] = statistics.median(figure["images_per_second"])
    return charts.horizontal_bars(
        panels,
        _machine.RATE,
        heading=_machine.first_line(report),
        highlighted=("llc", "llc.ffcv", "llc_paged"),
    )


def describe(report):
    """The table for people."""
    beton, settings = report["beton"], report["settings"]
    lines = [
        _machine.first_line(report),
        f"{beton['path']}: {beton['images']:,} images, {beton['share_jpeg']:.0%} JPEG, "
        f"{beton['bytes'] / beton['images'] / 1e3:.0f} kB each; "
        f"{counted(settings['workers'], 'worker')}, batches of {settings['batch_size']}, "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s",
        "",
        "resolution  peer          images/s   (min-max)    x ffcv   per CPU second   x ffcv   peak RSS"
        "   first batch",
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
        extremes = f"({min(by_second):.0f}-{max(by_second):.0f})"
        lines.append(
            f"{figure['resolution']:>10}  {figure['peer']:12}  {statistics.median(by_second):>8.0f}"
            f"   {extremes:>11}"
            f"   {ratios[0]:>6}   {statistics.median(by_cpu):>14.0f}   {ratios[1]:>6}"
            f"   {figure['peak_rss_bytes'] / 1e6:>5.0f} MB   {figure['first_batch_seconds']:>8.2f} s"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------- one peer in its process


class _Runner:
    """A peer's process, warmed up when `with` enters it, ended when `with` leaves it."""

    def __init__(self, peer, settings, resolution):
        self._peer, (self._pipe, theirs) = peer, multiprocessing.Pipe()
        # spawn: a forked process would start with this one's memory
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, peer, settings, resolution)
        )
        self._process.start()
        theirs.close()

    def __enter__(self):
        self.first_batch_seconds = self._answer()
        return self

    def __exit__(self, *exception):
        self._pipe.close()  # which ends the process
        self._process.join()

    def run(self):
        """(images per second, images per second of CPU time) of one round."""
        before = sum(map(_cpu_seconds, _with_descendants(self._process.pid)))
        self._pipe.send("run")
        num_images, seconds = self._answer()
        cpu_seconds = sum(map(_cpu_seconds, _with_descendants(self._process.pid))) - before
        return num_images / seconds, num_images / cpu_seconds

    def peak_rss(self):
        """Bytes, summed over the peer's processes; memory that they share counts once for each."""
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
            **{key: getattr(settings, key) for key in ("beton", "folder", "workers", "batch_size")},
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
            while (seconds := time.perf_counter() - started) < settings.seconds:
                number += 1
                for images, _ in epoch(number):
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
            open_shards(beton),
            batch_size=batch_size,
            num_workers=workers,
            processes=Processes(),
            seed=0,
            min_scale=SCALE[0],
            in_memory=in_memory,
        )
        return lambda number: loader.epoch(number, resolution)

    return construct


def _llc_paged(**kwargs):
    return _llc(**kwargs, in_memory=False)


def _llc_ffcv(**kwargs):
    from llc.ffcv import RandomHorizontalFlip, RandomResizedCropRGBImageDecoder

    return _in_ffcvs_loader(RandomResizedCropRGBImageDecoder, RandomHorizontalFlip, **kwargs)


def _ffcv(**kwargs):
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip

    return _in_ffcvs_loader(RandomResizedCropRGBImageDecoder, RandomHorizontalFlip, **kwargs)


def _in_ffcvs_loader(decoder, flip, *, resolution, beton, workers, batch_size, folder):
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    def construct():
        crop = decoder((resolution, resolution), scale=SCALE, ratio=RATIO)
        pipelines = {
            "image": [crop, flip(), ToTensor(), ToTorchImage()],
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
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(resolution, SCALE, RATIO),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )
        loader = DataLoader(
            ImageFolder(folder, transform),
            batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=True,
        )
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


# name -> function that imports the library and returns one that constructs the loader, which in turn returns
# epoch(number) -> batches
PEERS = dict(zip(PEER_NAMES, (_llc, _llc_ffcv, _ffcv, _torchvision, _dali, _llc_paged)))


# ------------------------------------------------------------------------- what the system says


def _with_descendants(pid):
    """The process and all its descendants that still exist."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for parent in found:  # the list grows meanwhile
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


if __name__ == "__main__":
    edge.run(main)
