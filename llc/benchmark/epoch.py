"""What an epoch costs on this machine and what limits it: loader, step, copy, the two together, validation.

    python -m llc.benchmark epoch --config rn50_configs/llc_20bit.yaml --vs=all          (also under torchrun)
        [--data.train_dataset=FILE --data.val_dataset=FILE] [--stage=joint] [--batches=20] [--rounds=3]
        [--json=FILE] [--chart=FILE.png]

Every key of a recipe can be given, as for train_llc.py. `--vs` measures other ways beside ours, in turns, on
the same beton and network: `torchvision` (DataLoader, PIL, eager mixed precision) and `ffcv` (FFCV's own
loader, channels_last, eager fp16 with GradScaler). Figures are medians over the rounds.

The clock. Loaders work ahead, so before the clock of a measurement starts, as many batches are taken and
dropped as the loader can have ready by then (workers x prefetch_factor of a DataLoader, the depth of FFCV's
queue and of ours): every batch that counts was made while the clock ran. At least --batches count, in
multiples of that number. On a CPU, where loader and step share the cores, as many steps run before the clock.
Starting is timed apart: first batches, the first step with its compilation, and validation's first round, in
which cuDNN chooses its algorithms and Triton compiles.

Memory is ours alone: read after a few steps of ours (and, on a GPU, a validation) and before the other ways
exist; the first step, in which cuDNN tries algorithms, does not count. Speed is not: all ways share the
process, and with it what `Processes.start` sets, so that on a CPU the other ways gain by our keeping of freed
memory too.

Synthetic data. Without data, betons of smooth noise are made for the run (photographs decode somewhat
slower): 256 images, which the beton's samples refer to again and again, so that an epoch is long enough for
every measurement.

Smaller batches. On a CPU a batch of a recipe that was made for GPUs takes minutes a step, so it is cut to the
largest power of two that does at most 0.25 TFLOP; on a single GPU it is halved until all ways fit into its
memory. The output says so. A --training.batch_size on the command line is kept as it is.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from llc import config as edge
from llc import stages
from llc.data import beton
from llc.data.encoding import encode_sample
from llc.data.loaders import default_workers
from llc.data.manifest import Manifest
from llc.data.shards import open_shards
from llc.data.storage import LIFE
from llc.data.writer import WriterConfig
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation.predict import predict
from llc.gpu import is_out_of_memory
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.precision import autocast_for, float32_precision
from llc.training import config as training_config
from llc.training.build import build_network, initial_codebook, make_train_loader, make_val_loader
from llc.training.engine import Engine
from llc.training.optimizer import parameter_groups
from llc.training.schedules import stage_resolution
from llc.training.stage_module import StageModule

OPTIONS = {
    "stage": "codebook, instance or joint (default: the recipe's first)",
    "batches": "batches in each measurement (default 20)",
    "rounds": "measurements (default 3)",
    "vs": "other ways to measure beside ours: torchvision, ffcv, or all",
    "json": "write the figures to this file",
    "chart": "write a bar chart to this PNG (needs matplotlib)",
}
NUM_NOISE_IMAGES = 256  # different ones in the synthetic data
NUM_CLASSES = 100  # of the synthetic data
MIN_BATCHES = 16  # of a synthetic epoch
CPU_FLOPS = 0.25e12  # of a step at most on a CPU, unless the command line sets the batch: some 2 s on 2 cores
LR = 1e-3  # small: the losses of thousands of steps on one batch stay finite
AHEAD = LIFE + 1  # batches that our loader may have ready or in the making


def main(argv):
    synthetic = not any(word.split("=")[0] == "--data.train_dataset" for word in argv)
    placeholders = ["--data.train_dataset=synthetic", "--data.val_dataset=synthetic"] if synthetic else []
    config, options = training_config.read([*argv, *placeholders], description=__doc__, options=OPTIONS)
    plan = _Plan.of(options, config, argv)
    processes = Processes.start(config.dist.timeout_minutes, backend=config.dist.backend)
    try:
        made = affordable(config, plan, processes)
        with synthetic_data(made, plan, processes) if synthetic else contextlib.nullcontext(made) as made:
            report = measure_what_fits(made, plan, processes)
        if processes.is_main:
            report["config"]["recipe_batch_size"] = config.training.batch_size
            report["data"]["synthetic"] = synthetic
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
    keeps_batch_size: bool  # the command line gave it

    @classmethod
    def of(cls, options, config, argv):
        def number(name, default):
            text = options[name] or str(default)
            if not text.isdigit() or int(text) < 1:
                raise UserError(f"--{name}={text}: it takes a whole number, at least 1")
            return int(text)

        stage = options["stage"] or config.stages[0]
        if stage not in stages.STAGES:
            raise UserError(f"--stage={stage}: it takes one of {', '.join(stages.STAGES)}")
        peers = (
            tuple(PEERS) if options["vs"] == "all" else tuple(filter(None, (options["vs"] or "").split(",")))
        )
        unknown = [peer for peer in peers if peer not in PEERS]
        if unknown:
            raise UserError(
                f"--vs={options['vs']}: {unknown[0]} is unknown; it takes {', '.join(PEERS)}, or all"
            )
        return cls(
            stage,
            number("batches", 20),
            number("rounds", 3),
            peers,
            any(word.split("=")[0] == "--training.batch_size" for word in argv),
        )

    def measured(self, ahead):
        """Batches in a measurement: a multiple of `ahead`, as a loader's workers may finish together."""
        return -(-self.batches // max(ahead, 1)) * max(ahead, 1)

    def longest(self, config):
        """Most batches that a measurement takes from an epoch, those read ahead at its end included."""
        depths = [AHEAD, *(PEERS[name].ahead(config) for name in self.peers)]
        # three times: dropped, stepped on a CPU, read ahead at the end
        return max(self.measured(ahead) + 3 * ahead for ahead in depths)


# ---- batches that this machine can do ----------------------------------------------------------------------


def with_batch_size(config, batch_size, why, processes):
    """The configuration with another batch; says so."""
    if processes.is_main:
        print(f"{why}: measured with {batch_size} instead (--training.batch_size=N sets it)", flush=True)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=batch_size))


def affordable(config, plan, processes):
    """The configuration; on a CPU a step does CPU_FLOPS at most, unless the command line gave the batch."""
    batch_size = config.training.batch_size
    parts = processes.world_size * config.training.accumulation_steps
    if batch_size % parts:
        raise UserError(
            f"training.batch_size = {batch_size} is not a multiple of {parts} "
            "(processes x training.accumulation_steps)"
        )
    if processes.device.type != "cpu" or plan.keeps_batch_size:
        return config
    stage = config.stage(plan.stage)
    flops = flops_of_a_step(config, stage, NUM_CLASSES, stage_resolution(stage, config.resolution, 0))
    images = max(int(CPU_FLOPS / flops) // parts, 2)  # of a part
    images = parts << images.bit_length() - 1
    if images >= batch_size:
        return config
    why = f"A step of {batch_size:,} images is {batch_size * flops / 1e12:.3g} TFLOP, too much for a CPU"
    return with_batch_size(config, images, why, processes)


def measure_what_fits(config, plan, processes):
    """`measure`; on a single GPU whose memory is too small for the batch with half of it, and so on."""
    while True:
        try:
            return measure(config, plan, processes)
        except RuntimeError as error:
            batch_size, parts = config.training.batch_size, config.training.accumulation_steps
            kept = plan.keeps_batch_size or processes.world_size > 1 or batch_size < 4 * parts
            if kept or not is_out_of_memory(error):
                raise
        # after the handler, whose traceback kept the tensors alive
        torch.cuda.empty_cache()
        why = f"{batch_size:,} images a step do not fit into the GPU's memory"
        config = with_batch_size(config, batch_size // (2 * parts) * parts, why, processes)


# ---- measuring ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Way:
    """step(images, labels) for each of the endless batches(), of which a loader may have `ahead` ready."""

    batches: Callable
    step: Callable
    ahead: int = 0


def endless(loader, resolution):
    """The batches of a loader, epoch after epoch. Closing it ends the loader's threads and processes."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch, resolution)


def measure(config, plan, processes):
    """-> a dict of figures, whole on the main process: images/s over all processes, seconds, bytes. See `describe`."""
    device = processes.device
    train_shards, val_shards = open_shards(config.data.train_dataset), open_shards(config.data.val_dataset)
    if plan.peers and len(train_shards.paths) > 1:
        raise UserError(
            f"--vs reads one beton; data.train_dataset = {config.data.train_dataset} names {len(train_shards.paths)}"
        )
    num_classes = train_shards.manifest.num_classes
    stage = config.stage(plan.stage)
    resolution = stage_resolution(stage, config.resolution, 0)
    network = build_network(config, num_classes)
    network.codebook.data.copy_(initial_codebook(config, num_classes))
    network.to(device, memory_format=torch.channels_last)
    clock = _Clock(processes)
    starting = {}  # what -> seconds

    loader = make_train_loader(config, train_shards, processes)
    val_loader = make_val_loader(config, val_shards, processes)
    autocast, _ = autocast_for(config.training.precision, device)
    engine = Engine(network, stage, config.training, config.dist, processes)

    def step(images, labels):
        engine.step(images, labels, LR)

    def validate():
        predict(
            network,
            val_loader,
            processes,
            flip=config.validation.lr_tta,
            autocast=autocast,
            num_classes=num_classes,
        )

    batches = endless(loader, resolution)
    with clock("loader's first batch", starting):
        images, labels = next(batches)
    with clock("first step", starting):
        step(images, labels)
    with clock("validation's first round", starting):
        validate()
    _reset_device_peaks(device)
    for _ in range(3):
        step(*next(batches))
    batches.close()
    if device.type == "cuda":
        validate()
    host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = {"host_bytes": host_bytes, **_device_peaks(device), "peers": {}}

    def fixed():
        return itertools.repeat((images, labels))

    ways = {
        "loader": _Way(lambda: endless(loader, resolution), lambda x, y: None, AHEAD),
        "step": _Way(fixed, step),
        "epoch": _Way(lambda: endless(loader, resolution), step, AHEAD),
    }
    if device.type == "cuda":
        pinned = images.cpu().pin_memory()
        ways["copy"] = _Way(fixed, lambda x, y: pinned.to(device, non_blocking=True))
    for name in plan.peers:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        peer = PEERS[name](config, stage, train_shards, resolution, processes)
        from_peer = functools.partial(endless, peer, resolution)
        ways[f"{name} epoch"] = _Way(from_peer, peer.step, peer.ahead(config))
        batches = from_peer()
        with clock(f"{name}: first step", starting):
            peer.step(*next(batches))
        _reset_device_peaks(device)
        peer.step(*next(batches))
        batches.close()
        if device.type == "cuda":
            memory["peers"][name] = {"device_bytes": _device_peaks(device)["device_bytes"] - before}
    seconds = {}  # way -> seconds a batch, one entry a round
    for _ in range(plan.rounds):
        for name, way in ways.items():
            seconds.setdefault(name, []).append(clock.per_batch(way, plan.measured(way.ahead)))
        with clock("validation", found := {}):
            validate()
        seconds.setdefault("validation", []).append(found["validation"])
    train, val = train_shards.manifest, val_shards.manifest
    report = _figures(config, plan, processes, train, val, resolution, seconds, starting)
    report["config"] |= {"compiled": engine.compiled, "compiler_failed": engine.compiler_failed}
    report["data"]["batches_of_an_epoch"] = loader.batches_per_epoch
    report["plan"] |= {
        "dropped": {name: way.ahead for name, way in ways.items()},
        "measured": {name: plan.measured(way.ahead) for name, way in ways.items()},
        "longest": plan.longest(config),
    }
    return report | {"memory": memory}


def _reset_device_peaks(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _device_peaks(device):
    """What tensors took at the most since the reset, and what PyTorch's allocator reserved for them."""
    if device.type != "cuda":
        return {}
    return {
        "device_bytes": torch.cuda.max_memory_allocated(),
        "device_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


class _Clock:
    """Seconds of the slowest process, the device's work included."""

    def __init__(self, processes):
        self.processes = processes

    def now(self):
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _slowest(self, seconds):
        return float(
            max(
                self.processes.gather(
                    torch.tensor([seconds], dtype=torch.float64, device=self.processes.device)
                )
            )
        )

    @contextlib.contextmanager
    def __call__(self, name, found):
        self.processes.barrier()
        started = self.now()
        yield
        found[name] = self._slowest(self.now() - started)

    def per_batch(self, way, count):
        """Seconds a batch, over `count` of them, after those that the way's loader may have had ready.

        On a CPU as many steps follow before the clock starts: loader and step share the cores, and the way
        would else be charged for filling its loader's queue, which happens once an epoch.
        """
        self.processes.barrier()
        batches = way.batches()
        for _ in itertools.islice(batches, way.ahead):
            pass
        if self.processes.device.type == "cpu":
            for images, labels in itertools.islice(batches, way.ahead):
                way.step(images, labels)
        started = self.now()
        for images, labels in itertools.islice(batches, count):
            way.step(images, labels)
        seconds = (self.now() - started) / count
        getattr(batches, "close", bool)()
        return self._slowest(seconds)


def _figures(config, plan, processes, train, val, resolution, seconds, starting):
    device, world, batch_size = processes.device, processes.world_size, config.training.batch_size
    cores = len(os.sched_getaffinity(0))
    rates = {
        name: batch_size / statistics.median(values)
        for name, values in seconds.items()
        if name != "validation"
    }
    validation = statistics.median(seconds["validation"])
    steps = train.num_samples // batch_size
    epoch_seconds = statistics.median(seconds["epoch"]) * steps + validation
    recipe = sum(
        epoch_seconds
        if stage != plan.stage
        else statistics.median(seconds["epoch"]) * steps * (pixels / resolution) ** 2 + validation
        for stage in config.stages
        for pixels in [
            stage_resolution(config.stage(stage), config.resolution, epoch)
            for epoch in range(config.stage(stage).epochs)
        ]
    )
    parts = {name: rates[name] for name in ("loader", "step", "copy") if name in rates}
    limit = min(parts, key=parts.get)
    flops = flops_of_a_step(config, config.stage(plan.stage), train.num_classes, resolution)
    matrix_rate = _matrix_rate(config.training.precision, device)
    return {
        "config": {
            "arch": config.model.arch,
            "num_bits": config.codes.num_bits,
            "stage": plan.stage,
            "resolution": resolution,
            "batch_size": batch_size,
            "precision": config.training.precision,
            "use_blurpool": config.training.use_blurpool,
        },
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            "processes": world,
            "cores": cores,
            "cpu": _cpu_name(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "data": {"images": train.num_samples, "val_images": val.num_samples},
        "plan": {"batches": plan.batches, "rounds": plan.rounds},
        "images_per_second": rates,
        "seconds_a_batch": seconds,
        "validation_images_per_second": val.num_samples / validation,
        "limit": limit,
        "share_of_limit": rates["epoch"] / parts[limit],
        "starting_seconds": starting,
        "epoch_seconds": epoch_seconds,
        "recipe_seconds": recipe,
        "step_flops_per_image": flops,
        "step_flops_per_second": flops * rates["step"] / world,
        "matrix_flops_per_second": matrix_rate,
    }


def describe(report):
    """The figures of `measure` as a text for people."""
    c, m, d, p, rates = (report[key] for key in ("config", "machine", "data", "plan", "images_per_second"))
    step = f"{c['batch_size']:,} images a step"
    if c["batch_size"] != c["recipe_batch_size"]:
        step += f" (the recipe's: {c['recipe_batch_size']:,})"
    not_compiled = "compilation failed" if c["compiler_failed"] else "not compiled"
    lines = [
        f"{c['arch']}, {c['num_bits']} bits, {c['stage']} stage, {c['resolution']} px, {step}, "
        f"precision {c['precision']}, {'compiled' if c['compiled'] else not_compiled}"
        + (", BlurPool" if c["use_blurpool"] else ""),
        f"{m['device']} ({m['cpu']}), {m['processes']} process(es), {m['cores']} cores, torch {m['torch']}; {d['images']:,} "
        + ("synthetic " if d["synthetic"] else "")
        + f"images; {p['batches']} batches or more, median of {p['rounds']}",
    ]
    if d["batches_of_an_epoch"] < p["longest"]:
        lines.append(
            f"An epoch has {d['batches_of_an_epoch']} batches, fewer than the {p['longest']} that a "
            "measurement may take: starting an epoch is in the figures."
        )
    lines += ["", f"  {'':22s} {'images/s':>10s} {'per core':>10s} {'spread':>8s}"]
    titles = {
        "loader": "loader alone",
        "step": "step alone",
        "copy": "host-to-device copy",
        "epoch": "epoch: both together",
    }
    for name, rate in rates.items():
        values = report["seconds_a_batch"][name]
        spread = 100 * (max(values) - min(values)) / statistics.median(values)
        lines.append(f"  {titles.get(name, name):22s} {rate:10.1f} {rate / m['cores']:10.1f} {spread:7.0f}%")
    lines.append(f"  {'validation':22s} {report['validation_images_per_second']:10.1f}")
    lines += [
        "",
        f"The {report['limit']} limits the epoch; it runs at {100 * report['share_of_limit']:.1f} % of that part alone.",
    ]
    for name in rates:
        if name.endswith(" epoch"):
            lines.append(f"Against {name.removesuffix(' epoch')}: {rates['epoch'] / rates[name]:.2f} x")
    rate = report["matrix_flops_per_second"]
    lines += [
        f"An epoch of {d['images']:,} images with validation of {d['val_images']:,} takes "
        f"{_duration(report['epoch_seconds'])}, the whole recipe {_duration(report['recipe_seconds'])} "
        "(other resolutions by their pixels).",
        f"The step does {report['step_flops_per_image'] / 1e9:.2f} GFLOP an image, {report['step_flops_per_second'] / 1e12:.3f} TFLOP/s a process: "
        f"{100 * report['step_flops_per_second'] / rate:.0f} % of the {rate / 1e12:.3f} measured on square matrices.",
        f"Peak memory: {_memory(report['memory'])} (main process)."
        + "".join(f" {name}: {_memory(used)}." for name, used in report["memory"]["peers"].items() if used),
        "Starting: "
        + ", ".join(f"{name} {value:.1f} s" for name, value in report["starting_seconds"].items())
        + ".",
    ]
    return "\n".join(lines)


def _memory(used):
    """Bytes, as _device_peaks calls them, in words."""
    places = {
        "host_bytes": "on the host",
        "device_bytes": "on the device",
        "device_reserved_bytes": "reserved there",
    }
    return ", ".join(f"{used[key] / 1e9:.2f} GB {place}" for key, place in places.items() if key in used)


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
        a = a.to((a[:1] @ a).dtype)  # autocast would convert it at every product
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
        self.network.to(
            processes.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        self.device = processes.device
        self.loss = StageModule(self.network, stage, config.training.label_smoothing)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.loss, config.training.weight_decay),
            lr=LR,
            momentum=config.training.momentum,
        )
        self.precision = config.training.precision
        if self.precision == "auto" and self.device.type == "cuda":
            self.precision = "fp16"
        self.autocast, self.scaler = autocast_for(self.precision, self.device)
        if processes.world_size > 1:
            self.loss = torch.nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[self.device] if self.device.type == "cuda" else None
            )

    def step(self, images, labels):
        self.optimizer.zero_grad(set_to_none=True)
        with float32_precision(self.precision):
            with self.autocast():
                loss = self.loss(images, labels)
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class _FFCV(_EagerStep):
    """FFCV's own loader (random order, its crop decoder) and the loop of ffcv-imagenet."""

    BATCHES_AHEAD = 3  # in its queue; FFCV's default

    @classmethod
    def ahead(cls, config):
        return cls.BATCHES_AHEAD + 1  # and one that waits for a place in it

    def __init__(self, config, stage, shards, resolution, processes):
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

        super().__init__(config, stage, shards.manifest.num_classes, processes, channels_last=True)
        to_device = [ToDevice(self.device, non_blocking=True)] if self.device.type == "cuda" else []
        decoder = RandomResizedCropRGBImageDecoder(
            (resolution, resolution), scale=(config.data.min_scale, 1.0)
        )
        self.loader = Loader(
            str(shards.paths[0]),
            batch_size=config.training.batch_size // processes.world_size,
            num_workers=_workers(config),
            os_cache=True,
            order=OrderOption.RANDOM,
            batches_ahead=self.BATCHES_AHEAD,
            drop_last=True,
            distributed=processes.world_size > 1,
            pipelines={
                "image": [decoder, RandomHorizontalFlip(), ToTensor(), *to_device, ToTorchImage()],
                "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device],
            },
        )

    def epoch(self, epoch, resolution):
        return iter(self.loader)


class _Torchvision(_EagerStep):
    """DataLoader with PIL and torchvision's transforms on the samples of the beton, and an eager loop with mixed precision."""

    PREFETCH_FACTOR = 2  # batches of a worker; PyTorch's default

    @classmethod
    def ahead(cls, config):
        return _workers(config) * cls.PREFETCH_FACTOR

    def __init__(self, config, stage, shards, resolution, processes):
        super().__init__(config, stage, shards.manifest.num_classes, processes, channels_last=False)
        network = self.network
        network.forward = lambda images: network.normalization(
            network.projection(network.backbone(images)).float()
        )  # the transforms normalise
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(resolution, scale=(config.data.min_scale, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        self.loader = torch.utils.data.DataLoader(
            _BetonImages(shards.paths[0], transform),
            batch_size=config.training.batch_size // processes.world_size,
            shuffle=True,
            drop_last=True,
            num_workers=_workers(config),
            prefetch_factor=self.PREFETCH_FACTOR,
            pin_memory=self.device.type == "cuda",
        )

    def epoch(self, epoch, resolution):
        # not persistent workers: those would finish what they have queued while another way is measured
        for images, labels in self.loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


class _BetonImages(torch.utils.data.Dataset):
    def __init__(self, path, transform):
        self.path, self.tables, self.transform = path, beton.read_tables(path), transform

    def __len__(self):
        return len(self.tables)

    def __getitem__(self, i):
        row, size = self.tables.images[i], int(self.tables.sizes[i])
        with open(self.path, "rb") as file:
            file.seek(int(row["data_ptr"]))
            data = file.read(size)
        if row["mode"] == beton.RAW:
            image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(row["height"], row["width"], 3))
        else:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        return self.transform(image), int(self.tables.labels[i])


PEERS = {"torchvision": _Torchvision, "ffcv": _FFCV}


def _workers(config):
    return config.data.num_workers if config.data.num_workers > 0 else default_workers()


# ---- data, output ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def synthetic_data(config, plan, processes):
    """The configuration with betons of noise; each machine's first process makes them and removes them."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    made = tempfile.mkdtemp(prefix="llc-epoch-") if local_rank == 0 else None
    try:
        folder = Path(processes.gather_objects(made)[processes.rank - local_rank])
        if made:
            batch_size, noise = config.training.batch_size, _noise()
            write_samples(noise, folder / "train.beton", max(MIN_BATCHES, plan.longest(config)) * batch_size)
            val_batch_size = min(batch_size, config.validation.batch_size * processes.world_size)
            write_samples(noise, folder / "val.beton", 4 * val_batch_size)
        processes.barrier()
        betons = {f"{split}_dataset": str(folder / f"{split}.beton") for split in ("train", "val")}
        yield dataclasses.replace(config, data=dataclasses.replace(config.data, **betons))
    finally:
        if made:
            shutil.rmtree(made)


def _noise():
    """EncodedSamples of smooth noise, 500 x 400 pixels, by the defaults of write_ffcv.py."""
    samples = []
    for i in range(NUM_NOISE_IMAGES):
        small = np.random.default_rng(i).integers(0, 256, (25, 32, 3), np.uint8)
        image = Image.fromarray(small).resize((500, 400), Image.Resampling.BICUBIC)
        samples.append(encode_sample(image, i, WriterConfig(write_path="")))
    return samples


def write_samples(samples, path, num_samples):
    """Writes a beton of `num_samples`: EncodedSamples again and again, whose data it holds once."""
    metadata, table = np.zeros(num_samples, beton.METADATA_TYPE), np.zeros(num_samples, beton.ALLOC_TYPE)
    sizes = np.array([sample.data.nbytes for sample in samples])
    places, end = beton.place(beton.data_start(num_samples), sizes)
    chosen = np.arange(num_samples) % len(samples)
    for name in ("mode", "width", "height"):
        metadata["f0"][name] = np.array([getattr(sample, name) for sample in samples])[chosen]
    metadata["f0"]["data_ptr"], metadata["f1"] = places[chosen], chosen % NUM_CLASSES
    table["sample_id"], table["ptr"], table["size"] = np.arange(num_samples), places[chosen], sizes[chosen]
    with open(path, "wb") as file:
        file.write(beton.header_bytes(num_samples, beton.next_page(end)) + metadata.tobytes())
        for sample, where in zip(samples, places):
            file.seek(where)
            file.write(sample.data)
        file.seek(beton.next_page(end))
        file.write(table.tobytes())
    tables, names = beton.read_tables(path), tuple(f"class {i:03d}" for i in range(NUM_CLASSES))
    counts = tuple(tables.class_counts(NUM_CLASSES))
    Manifest(names, counts, num_samples, tables.file_size, tables.sha256).save(path)


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
    bars = axes.barh(
        list(rates),
        list(rates.values()),
        color=["#4477aa" if name != "epoch" else "#cc6677" for name in rates],
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    c, m = report["config"], report["machine"]
    axes.set_xlabel("images/s")
    axes.set_title(
        f"{c['arch']}, {c['resolution']} px, {c['batch_size']} a step, {m['device']} x {m['processes']}",
        fontsize=10,
    )
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
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


if __name__ == "__main__":
    edge.run(main)
