"""What an epoch costs on this machine and what holds it back: loader, step, copy, the two together, validation.

    python -m llc.benchmark epoch --config rn50_configs/llc_20bit.yaml [--data.train_dataset=... --data.val_dataset=...]
        [--vs=all] [--stage=joint] [--batches=20] [--rounds=3] [--json=FILE] [--chart=FILE.png]         (also under torchrun)

Every key of a recipe can be given, as for train_llc.py. Without data, betons of smooth noise are made for the run (photographs
decode somewhat slower). `--vs` measures other ways beside ours, in turns, on the same beton and network: `torchvision` (DataLoader, PIL, eager
mixed precision) and `ffcv` (FFCV's own loader, channels_last, eager fp16 with GradScaler). Figures are medians over the rounds;
starting, first batches and compilation are timed apart. All share the process, and with it what `Processes.start` sets: on a CPU the other ways gain by
our keeping of freed memory, too.
"""
import contextlib
import dataclasses
import io
import itertools
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from llc import config as edge
from llc.data.beton import RAW, read_tables
from llc.data.loaders import default_workers
from llc.data.shards import open_shards
from llc.data.sources import Source
from llc.data.writer import WriterConfig, write_beton
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation.predict import predict
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.training import config as training_config
from llc.training.engine import Engine, autocast_for
from llc.training.schedules import stage_resolution
from llc.training.stages import StageModule, parameter_groups
from llc.training.trainer import build_network, initial_codebook, make_train_loader, make_val_loader

OPTIONS = {
    "stage": "codebook, instance or joint (default: the recipe's first)",
    "batches": "batches in each measurement (default 20)", "rounds": "measurements (default 3)",
    "vs": "other ways to measure beside ours: torchvision, ffcv, or all", "json": "write the figures to this file",
    "chart": "write a bar chart to this PNG (needs matplotlib)",
}
SYNTHETIC_IMAGES = 600
LR = 1e-3  # small: the losses of thousands of steps on one batch stay finite


def main(argv):
    needs_data = not any(word.split("=")[0].startswith("--data.train_dataset") for word in argv) and not {"--help", "-h"} & set(argv)
    with tempfile.TemporaryDirectory(prefix="llc-epoch-") if needs_data else contextlib.nullcontext() as folder:
        if needs_data:
            argv = [*argv, *_synthetic_data(Path(folder))]
        config, options = training_config.read(argv, description=__doc__, options=OPTIONS)
        plan = _Plan.of(options, config)
        processes = Processes.start(config.dist.timeout_minutes)
        try:
            report = measure(config, plan, processes, synthetic=needs_data)
            if processes.is_main:
                print(describe(report), flush=True)
                _write(report, options)
        finally:
            processes.stop()


@dataclasses.dataclass(frozen=True)
class _Plan:
    stage: str
    batches: int
    rounds: int
    peers: tuple

    @classmethod
    def of(cls, options, config):
        def number(name, default):
            text = options[name] or str(default)
            if not text.isdigit() or int(text) < 1:
                raise UserError(f"--{name}={text}: it takes a whole number, at least 1")
            return int(text)

        stage = options["stage"] or config.stages[0]
        if stage not in training_config.STAGES:
            raise UserError(f"--stage={stage}: it takes one of {', '.join(training_config.STAGES)}")
        peers = tuple(PEERS) if options["vs"] == "all" else tuple(filter(None, (options["vs"] or "").split(",")))
        unknown = [peer for peer in peers if peer not in PEERS]
        if unknown:
            raise UserError(f"--vs={options['vs']}: {unknown[0]} is unknown; it takes {', '.join(PEERS)}, or all")
        return cls(stage, number("batches", 20), number("rounds", 3), peers)


def measure(config, plan, processes, synthetic=False):
    """-> a dict of figures, whole on the main process: images/s over all processes, seconds, bytes. See `describe`."""
    device = processes.device
    train_shards, val_shards = open_shards(config.data.train_dataset), open_shards(config.data.val_dataset)
    if plan.peers and len(train_shards.paths) > 1:
        raise UserError(f"--vs reads one beton; data.train_dataset = {config.data.train_dataset} names {len(train_shards.paths)}")
    train, val = train_shards.manifest, val_shards.manifest
    stage = getattr(config, plan.stage)
    resolution = stage_resolution(stage, config.resolution, 0)
    network = build_network(config, train.num_classes)
    network.codebook.data.copy_(initial_codebook(config, train.num_classes))
    network.to(device, memory_format=torch.channels_last)
    clock, batch_size = _Clock(processes), config.training.batch_size
    seconds = {}  # way -> seconds a batch, one entry a round
    starting = {}

    loader = make_train_loader(config, train_shards, processes)
    with clock("loader's first batch", starting):
        images, labels = next(iter(loader.epoch(0, resolution)))
    engine = Engine(network, stage, config.training, config.dist, processes)
    with clock("first step", starting):
        engine.step(images, labels, LR)
    for _ in range(2):
        engine.step(images, labels, LR)
    val_loader = make_val_loader(config, val_shards, processes)
    autocast, _ = autocast_for(config.training.precision, device)

    def from_loader(of):
        def stream(count):
            for epoch in itertools.count():
                for batch in (batches := of.epoch(epoch, resolution)):
                    yield batch
                    count -= 1
                    if not count:
                        getattr(batches, "close", bool)()  # a generator's threads end here, not when it is forgotten
                        return
        return stream

    def fixed(count):
        return itertools.repeat((images, labels), count)

    ways = {
        "loader": (from_loader(loader), lambda x, y: None),
        "step": (fixed, lambda x, y: engine.step(x, y, LR)),
        "epoch": (from_loader(loader), lambda x, y: engine.step(x, y, LR)),
    }
    if device.type == "cuda":
        pinned = images.cpu().pin_memory()
        ways["copy"] = (fixed, lambda x, y: pinned.to(device, non_blocking=True))
    for name in plan.peers:
        peer = PEERS[name](config, stage, train_shards, resolution, processes)
        ways[f"{name} epoch"] = (from_loader(peer), peer.step)
        with clock(f"{name}: first step", starting):
            peer.step(*next(iter(peer.epoch(0, resolution))))
    for _ in range(plan.rounds):
        for name, (stream, step) in ways.items():
            seconds.setdefault(name, []).append(clock.per_batch(stream(plan.batches + 1), step))
        with clock("validation", found := {}):
            predict(network, val_loader, processes, flip=config.validation.lr_tta, autocast=autocast, num_classes=train.num_classes)
        seconds.setdefault("validation", []).append(found["validation"])
    return _figures(config, plan, processes, train, val, resolution, seconds, starting, engine, synthetic, batch_size)


class _Clock:
    """Seconds of the slowest process, the device's work included."""

    def __init__(self, processes):
        self.processes = processes

    def now(self):
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _slowest(self, seconds):
        return float(max(self.processes.gather(torch.tensor([seconds], dtype=torch.float64, device=self.processes.device))))

    @contextlib.contextmanager
    def __call__(self, name, found):
        self.processes.barrier()
        started = self.now()
        yield
        found[name] = self._slowest(self.now() - started)

    def per_batch(self, stream, step):
        """Seconds a batch, without the first: it waits for what a running epoch has ready."""
        self.processes.barrier()
        count = -1
        for images, labels in stream:
            step(images, labels)
            count += 1
            if count == 0:
                started = self.now()
        return self._slowest((self.now() - started) / count)


def _figures(config, plan, processes, train, val, resolution, seconds, starting, engine, synthetic, batch_size):
    device, world = processes.device, processes.world_size
    cores = len(os.sched_getaffinity(0))
    rates = {name: batch_size / statistics.median(values) for name, values in seconds.items() if name != "validation"}
    validation = statistics.median(seconds["validation"])
    steps = train.num_samples // batch_size
    epoch_seconds = statistics.median(seconds["epoch"]) * steps + validation
    recipe = sum(
        epoch_seconds if stage != plan.stage else statistics.median(seconds["epoch"]) * steps * (pixels / resolution) ** 2 + validation
        for stage in config.stages
        for pixels in [stage_resolution(getattr(config, stage), config.resolution, epoch) for epoch in range(getattr(config, stage).epochs)])
    parts = {name: rates[name] for name in ("loader", "step", "copy") if name in rates}
    limit = min(parts, key=parts.get)
    flops = flops_of_a_step(config, getattr(config, plan.stage), train.num_classes, resolution)
    matrix_rate = _matrix_rate(config.training.precision, device)
    memory = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        memory["device_bytes"] = torch.cuda.max_memory_allocated()
    return {
        "config": {"arch": config.model.arch, "num_bits": config.codes.num_bits, "stage": plan.stage, "resolution": resolution,
                   "batch_size": batch_size, "precision": config.training.precision, "use_blurpool": config.training.use_blurpool},
        "machine": {"device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "processes": world, "cores": cores,
                    "cpu": _cpu_name(), "torch": torch.__version__, "python": platform.python_version()},
        "data": {"images": train.num_samples, "val_images": val.num_samples, "synthetic": synthetic},
        "plan": {"batches": plan.batches, "rounds": plan.rounds},
        "images_per_second": rates, "seconds_a_batch": seconds, "validation_images_per_second": val.num_samples / validation,
        "limit": limit, "share_of_limit": rates["epoch"] / parts[limit], "starting_seconds": starting,
        "epoch_seconds": epoch_seconds, "recipe_seconds": recipe, "memory": memory,
        "step_flops_per_image": flops, "step_flops_per_second": flops * rates["step"] / world, "matrix_flops_per_second": matrix_rate,
    }


def describe(report):
    """The figures of `measure` as a text for people."""
    c, m, d, rates = report["config"], report["machine"], report["data"], report["images_per_second"]
    lines = [
        f"{c['arch']}, {c['num_bits']} bits, {c['stage']} stage, {c['resolution']} px, {c['batch_size']} images a step, "
        f"precision {c['precision']}" + (", BlurPool" if c["use_blurpool"] else ""),
        f"{m['device']} ({m['cpu']}), {m['processes']} process(es), {m['cores']} cores, torch {m['torch']}; {d['images']:,} "
        + ("synthetic " if d["synthetic"] else "") + f"images; {report['plan']['batches']} batches, median of {report['plan']['rounds']}",
        "",
        f"  {'':22s} {'images/s':>10s} {'per core':>10s} {'spread':>8s}",
    ]
    titles = {"loader": "loader alone", "step": "step alone", "copy": "host-to-device copy", "epoch": "epoch: both together"}
    for name, rate in rates.items():
        values = report["seconds_a_batch"][name]
        spread = 100 * (max(values) - min(values)) / statistics.median(values)
        lines.append(f"  {titles.get(name, name):22s} {rate:10.1f} {rate / m['cores']:10.1f} {spread:7.0f}%")
    lines.append(f"  {'validation':22s} {report['validation_images_per_second']:10.1f}")
    lines += ["", f"The {report['limit']} limits the epoch; it runs at {100 * report['share_of_limit']:.1f} % of that part alone."]
    for name in rates:
        if name.endswith(" epoch"):
            lines.append(f"Against {name.removesuffix(' epoch')}: {rates['epoch'] / rates[name]:.2f} x")
    rate = report["matrix_flops_per_second"]
    lines += [
        f"An epoch with validation takes {_duration(report['epoch_seconds'])}, the whole recipe {_duration(report['recipe_seconds'])} "
        "(other resolutions by their pixels).",
        f"The step does {report['step_flops_per_image'] / 1e9:.2f} GFLOP an image, {report['step_flops_per_second'] / 1e12:.3f} TFLOP/s a process: "
        f"{100 * report['step_flops_per_second'] / rate:.0f} % of the {rate / 1e12:.3f} measured on square matrices.",
        f"Peak memory: {report['memory']['host_bytes'] / 1e9:.2f} GB on the host"
        + (f", {report['memory']['device_bytes'] / 1e9:.2f} GB on the device" if "device_bytes" in report["memory"] else "") + " (main process).",
        "Starting: " + ", ".join(f"{name} {value:.1f} s" for name, value in report["starting_seconds"].items()) + ".",
    ]
    return "\n".join(lines)


def flops_of_a_step(config, stage, num_classes, resolution):
    """Floating-point operations of forward and backward, an image; a multiply-add is two. Counted on shapes alone, with two images."""
    with torch.device("meta"):
        module = StageModule(build_network(config, num_classes), stage, 0.0)
        images = torch.empty(2, 3, resolution, resolution, dtype=torch.uint8)
        labels = torch.zeros(2, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            module(images, labels).backward()
    return counter.get_total_flops() / 2


def _matrix_rate(precision, device):
    """Multiply-adds times two, a second, of square matrices in the precision of the step."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device)
    autocast, _ = autocast_for(precision, device)
    best = 0.0
    with autocast(), torch.inference_mode():
        for _ in range(6):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


# ---- other ways ------------------------------------------------------------------------------------------------------


class _EagerStep:
    """The plain loop: forward, loss, scaled backward, SGD, nothing compiled or fused."""

    def __init__(self, config, stage, num_classes, processes, channels_last):
        self.network = build_network(config, num_classes)
        self.network.codebook.data.copy_(initial_codebook(config, num_classes))
        self.network.to(processes.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.device = processes.device
        self.loss = StageModule(self.network, stage, config.training.label_smoothing)
        self.optimizer = torch.optim.SGD(parameter_groups(self.loss, config.training.weight_decay), lr=LR, momentum=config.training.momentum)
        precision = "fp16" if config.training.precision == "auto" and self.device.type == "cuda" else config.training.precision
        self.autocast, self.scaler = autocast_for(precision, self.device)
        if processes.world_size > 1:
            self.loss = torch.nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[self.device] if self.device.type == "cuda" else None)

    def step(self, images, labels):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(images, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class _FFCV(_EagerStep):
    """FFCV's own loader (random order, its crop decoder) and the loop of ffcv-imagenet."""

    def __init__(self, config, stage, shards, resolution, processes):
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

        super().__init__(config, stage, shards.manifest.num_classes, processes, channels_last=True)
        to_device = [ToDevice(self.device, non_blocking=True)] if self.device.type == "cuda" else []
        decoder = RandomResizedCropRGBImageDecoder((resolution, resolution), scale=(config.data.min_scale, 1.0))
        self.loader = Loader(
            str(shards.paths[0]), batch_size=config.training.batch_size // processes.world_size, num_workers=_workers(config),
            os_cache=True, order=OrderOption.RANDOM, drop_last=True, distributed=processes.world_size > 1,
            pipelines={"image": [decoder, RandomHorizontalFlip(), ToTensor(), *to_device, ToTorchImage()],
                       "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device]})

    def epoch(self, epoch, resolution):
        return iter(self.loader)


class _Torchvision(_EagerStep):
    """DataLoader with PIL and torchvision's transforms on the samples of the beton, and an eager loop with mixed precision."""

    def __init__(self, config, stage, shards, resolution, processes):
        super().__init__(config, stage, shards.manifest.num_classes, processes, channels_last=False)
        network = self.network
        network.forward = lambda images: network.normalization(network.projection(network.backbone(images)).float())  # the transforms normalise
        transform = transforms.Compose([
            transforms.RandomResizedCrop(resolution, scale=(config.data.min_scale, 1.0)), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        self.loader = torch.utils.data.DataLoader(
            _BetonImages(shards.paths[0], transform), batch_size=config.training.batch_size // processes.world_size,
            shuffle=True, drop_last=True, num_workers=_workers(config), pin_memory=self.device.type == "cuda",
            persistent_workers=True)

    def epoch(self, epoch, resolution):
        for images, labels in self.loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


class _BetonImages(torch.utils.data.Dataset):
    def __init__(self, beton, transform):
        self.beton, self.tables, self.transform = beton, read_tables(beton), transform

    def __len__(self):
        return len(self.tables)

    def __getitem__(self, i):
        row, size = self.tables.images[i], int(self.tables.sizes[i])
        with open(self.beton, "rb") as file:
            file.seek(int(row["data_ptr"]))
            data = file.read(size)
        if row["mode"] == RAW:
            image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(row["height"], row["width"], 3))
        else:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        return self.transform(image), int(self.tables.labels[i])


PEERS = {"torchvision": _Torchvision, "ffcv": _FFCV}


def _workers(config):
    return config.data.num_workers if config.data.num_workers > 0 else default_workers()


# ---- data, output ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Noise(Source):
    """Smooth noise of 500 x 400 pixels."""

    def image(self, i):
        small = np.random.default_rng(i).integers(0, 256, (25, 32, 3), np.uint8)
        return Image.fromarray(small).resize((500, 400), Image.Resampling.BICUBIC)

    def name(self, i):
        return f"noise[{i}]"


def _synthetic_data(folder):
    source = _Noise(tuple(f"class {i:03d}" for i in range(100)), np.arange(SYNTHETIC_IMAGES) % 100)
    words = []
    for split in ("train", "val"):
        path = folder / f"{split}-{os.environ.get('RANK', 0)}.beton"
        with contextlib.redirect_stdout(io.StringIO()):
            write_beton(WriterConfig(write_path=str(path)), source, show_progress=False)
        words.append(f"--data.{split}_dataset={path}")
    return words


def _write(report, options):
    try:
        if options["json"]:
            Path(options["json"]).write_text(json.dumps(report, indent=1) + "\n")
        if options["chart"]:
            _chart(report, options["chart"])
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _chart(report, path):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--chart needs matplotlib: pip install matplotlib") from error
    rates = report["images_per_second"]
    figure = Figure(figsize=(7, 0.6 * len(rates) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(list(rates), list(rates.values()), color=["#4477aa" if name != "epoch" else "#cc6677" for name in rates])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    c, m = report["config"], report["machine"]
    axes.set_xlabel("images/s")
    axes.set_title(f"{c['arch']}, {c['resolution']} px, {c['batch_size']} a step, {m['device']} x {m['processes']}", fontsize=10)
    figure.savefig(path, dpi=130)


def _duration(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    edge.run(main)
