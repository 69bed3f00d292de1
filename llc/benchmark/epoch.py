"""What an epoch costs on this machine and what limits it: loader, step, copy, all together, validation.

    python -m llc.benchmark epoch --config rn50_configs/llc_20bit.yaml --vs=all          (also under torchrun)
        [--data.train_dataset=FILE --data.val_dataset=FILE] [--stage=joint] [--batches=20] [--rounds=3]
        [--json=FILE] [--plot=FILE.png]

Every key of a recipe can be given, as for llc.train. --vs measures other ways beside ours, in turns, on
the same beton and network: `torchvision` (DataLoader, PIL, eager mixed precision) and `ffcv` (FFCV's own
loader, channels_last, eager fp16 with GradScaler). Figures are medians over the rounds; beside each stands
its range, highest minus lowest, as a percentage of the median.

The clock. Loaders work ahead, so before the clock of a measurement starts, as many batches are taken and
dropped as the loader can have ready by then (workers x prefetch_factor of a DataLoader, the depth of FFCV's
queue and of ours): every batch that counts was made while the clock ran. At least --batches count, in
multiples of that number. On a CPU, where loader and step share the cores, as many steps also run before the
clock starts. Starting is measured separately: first batches, the first step with its compilation, and
validation's first round, in which cuDNN chooses its algorithms and Triton compiles.

Memory is ours alone: it is read after a few steps of ours (and, on a GPU, a validation) and before the other
ways exist; the first step, in which cuDNN tries algorithms, does not count. Speed is not ours alone: all ways
share the process and what `Processes.start` sets, so on a CPU the other ways gain too from our keeping freed
memory.

Synthetic data. Without data, betons of smooth noise are made for the run (photographs decode somewhat more
slowly): 256 images, which the beton's samples refer to over and over, so that an epoch is long enough for
every measurement.

Smaller batches. On a CPU, a step with the batch of a recipe for GPUs takes minutes, so the batch is cut to
the largest power of two that does at most 0.25 TFLOP; on a single GPU it is halved until all ways fit into
its memory. The output says so. A --training.batch_size on the command line is kept as it is.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llc import charts, plots, stages
from llc import config as edge
from llc.benchmark import _machine
from llc.benchmark._epoch_data import NUM_CLASSES, synthetic_data
from llc.benchmark._epoch_peers import LR, PEERS
from llc.data.shards import open_shards
from llc.data.storage import LIFE
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation.predict import predict
from llc.gpu import is_out_of_memory
from llc.options import option
from llc.precision import autocast_for
from llc.text import counted
from llc.training import config as training_config
from llc.training.build import make_train_loader, make_val_loader
from llc.training.engine import Engine
from llc.training.plan import flops_per_image
from llc.training.schedules import stage_resolution
from llc.training.start import build_network, initial_codebook

CPU_FLOPS = 0.25e12  # the most of a step on a CPU, unless the command line sets the batch: 2 s on 2 cores
AHEAD = LIFE + 1  # batches that our loader may have ready or be making


def _stage_names():
    return ("", *stages.STAGES)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    stage: str = option("", choices=_stage_names, help="the stage; empty: the recipe's first")
    batches: int = option(20, minimum=1, help="fewest batches in each measurement")
    rounds: int = option(3, minimum=1, help="measurements of each part; medians are reported")
    vs: tuple[str, ...] = option(
        (), choices=("all", *PEERS), help="other ways to measure beside ours; all: each of them"
    )
    json: str = option("", help="write the figures to this file")
    plot: str = option("", help="draw the rates as bars, to a .png, .svg or .pdf")


def main(argv):
    synthetic = edge.value_of("data.train_dataset", argv) is None
    placeholders = ["--data.train_dataset=synthetic", "--data.val_dataset=synthetic"] if synthetic else []
    config, options = training_config.read([*argv, *placeholders], description=__doc__, options=Options)
    plots.check_name(options.plot, "--plot")
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
    keeps_batch_size: bool  # because the command line gave it

    @classmethod
    def of(cls, options, config, argv):
        return cls(
            options.stage or config.stages[0],
            options.batches,
            options.rounds,
            tuple(PEERS) if "all" in options.vs else options.vs,
            edge.value_of("training.batch_size", argv) is not None,
        )

    def measured(self, ahead):
        """Batches in a measurement: a multiple of `ahead`, because a loader's workers may finish together."""
        return -(-self.batches // max(ahead, 1)) * max(ahead, 1)

    def longest(self, config):
        """The most batches that a measurement takes from an epoch, with those read ahead at its end."""
        depths = [AHEAD, *(PEERS[name].ahead(config) for name in self.peers)]
        # Three times: dropped at first, stepped on a CPU, and read ahead at the end.
        return max(self.measured(ahead) + 3 * ahead for ahead in depths)


# ---------------------------------------------------------------- batches that this machine can do


def with_batch_size(config, batch_size, why, processes):
    """The configuration with another batch size, which is printed."""
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
    flops = flops_per_image(config, stage, NUM_CLASSES, stage_resolution(stage, config.resolution, 0))
    images = max(int(CPU_FLOPS / flops) // parts, 2)  # of a part
    images = parts << images.bit_length() - 1
    if images >= batch_size:
        return config
    why = f"A step of {batch_size:,} images is {batch_size * flops / 1e12:.3g} TFLOP, too much for a CPU"
    return with_batch_size(config, images, why, processes)


def measure_what_fits(config, plan, processes):
    """`measure`. If the batch does not fit into the memory of a single GPU, it is halved until it does."""
    while True:
        try:
            return measure(config, plan, processes)
        except RuntimeError as error:
            batch_size, parts = config.training.batch_size, config.training.accumulation_steps
            kept = plan.keeps_batch_size or processes.world_size > 1 or batch_size < 4 * parts
            if kept or not is_out_of_memory(error):
                raise
        # Outside of the handler, because its traceback kept the tensors alive.
        torch.cuda.empty_cache()
        why = f"{batch_size:,} images per step do not fit into the GPU's memory"
        config = with_batch_size(config, batch_size // (2 * parts) * parts, why, processes)


# ------------------------------------------------------------------------------------------------ measuring


@dataclasses.dataclass(frozen=True)
class _Way:
    """Calls step(images, labels) for the endless batches(), of which a loader may have `ahead` ready."""

    batches: Callable
    step: Callable
    ahead: int = 0


def endless(loader, resolution):
    """The batches of a loader, epoch after epoch. Closing it ends the loader's threads and processes."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch, resolution)


def measure(config, plan, processes):
    """-> a dict of figures, complete on the main process: images/s over all processes, seconds, bytes."""
    device = processes.device
    train_shards, val_shards = open_shards(config.data.train_dataset), open_shards(config.data.val_dataset)
    if plan.peers and len(train_shards.paths) > 1:
        raise UserError(
            f"--vs reads one beton; data.train_dataset = {config.data.train_dataset} names "
            f"{len(train_shards.paths)}"
        )
    num_classes = train_shards.manifest.num_classes
    stage = config.stage(plan.stage)
    resolution = stage_resolution(stage, config.resolution, 0)
    network = _new_network(config, num_classes, stage).to(device, memory_format=torch.channels_last)
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
        of_peer = _new_network(config, num_classes, stage)
        peer = PEERS[name](of_peer, config, stage, train_shards, resolution, processes)
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
    seconds = {}  # way -> seconds per batch, one entry per round
    for _ in range(plan.rounds):
        for name, way in ways.items():
            seconds.setdefault(name, []).append(clock.per_batch(way, plan.measured(way.ahead)))
        with clock("validation", took := {}):
            validate()
        seconds.setdefault("validation", []).append(took["validation"])
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


def _new_network(config, num_classes, stage):
    """A network on the CPU as training starts with it in a stage (llc.stages.Stage)."""
    network = build_network(config, num_classes, stage.name)
    if not stage.dense:
        network.codebook.data.copy_(initial_codebook(config, num_classes))
    return network


def _reset_device_peaks(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _device_peaks(device):
    """The most that tensors took since the reset, and that PyTorch's allocator reserved for them."""
    if device.type != "cuda":
        return {}
    return {
        "device_bytes": torch.cuda.max_memory_allocated(),
        "device_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


class _Clock:
    """Measures the seconds of the slowest process, including its device's work."""

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
    def __call__(self, name, seconds):
        self.processes.barrier()
        started = self.now()
        yield
        seconds[name] = self._slowest(self.now() - started)

    def per_batch(self, way, count):
        """Seconds per batch, over `count` of them, after those that the way's loader may have had ready.

        On a CPU as many steps follow before the clock starts: loader and step share the cores there, and
        otherwise the time would include filling the loader's queue, which happens once per epoch.
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
    cores = _machine.num_cores()
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
    flops = flops_per_image(config, config.stage(plan.stage), train.num_classes, resolution)
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
            "cpu": _machine.cpu_name(),
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
    step = f"{c['batch_size']:,} images per step"
    if c["batch_size"] != c["recipe_batch_size"]:
        step += f" (the recipe's: {c['recipe_batch_size']:,})"
    not_compiled = "compilation failed" if c["compiler_failed"] else "not compiled"
    lines = [
        f"{c['arch']}, {c['num_bits']} bits, {c['stage']} stage, {c['resolution']} px, {step}, "
        f"precision {c['precision']}, {'compiled' if c['compiled'] else not_compiled}"
        + (", BlurPool" if c["use_blurpool"] else ""),
        f"{m['device']} ({m['cpu']}), {counted(m['processes'], 'process', 'processes')}, "
        f"{counted(m['cores'], 'core')}, "
        f"torch {m['torch']}; {d['images']:,} "
        + ("synthetic " if d["synthetic"] else "")
        + f"images; {p['batches']} batches or more, median of {p['rounds']}",
    ]
    if d["batches_of_an_epoch"] < p["longest"]:
        lines.append(
            f"An epoch has {d['batches_of_an_epoch']} batches, fewer than the {p['longest']} that a "
            "measurement may take: starting an epoch is in the figures."
        )
    lines += ["", f"  {'':22s} {'images/s':>10s} {'per core':>10s} {'range':>8s}"]
    titles = {
        "loader": "loader alone",
        "step": "step alone",
        "copy": "host-to-device copy",
        "epoch": "epoch: both together",
    }
    for name, rate in rates.items():
        values = report["seconds_a_batch"][name]
        extent = 100 * (max(values) - min(values)) / statistics.median(values)
        lines.append(f"  {titles.get(name, name):22s} {rate:10.1f} {rate / m['cores']:10.1f} {extent:7.0f}%")
    lines.append(f"  {'validation':22s} {report['validation_images_per_second']:10.1f}")
    lines += [
        "",
        f"The {report['limit']} limits the epoch; it runs at "
        f"{100 * report['share_of_limit']:.1f} % of that part alone.",
    ]
    for name in rates:
        if name.endswith(" epoch"):
            lines.append(f"Against {name.removesuffix(' epoch')}: {rates['epoch'] / rates[name]:.2f} x")
    rate = report["matrix_flops_per_second"]
    lines += [
        f"An epoch of {d['images']:,} images with validation of {d['val_images']:,} takes "
        f"{_duration(report['epoch_seconds'])}, the whole recipe {_duration(report['recipe_seconds'])} "
        "(other resolutions by their pixels).",
        f"The step does {report['step_flops_per_image'] / 1e9:.2f} GFLOP per image, "
        f"{report['step_flops_per_second'] / 1e12:.3f} TFLOP/s per process: "
        f"{100 * report['step_flops_per_second'] / rate:.0f} % of the {rate / 1e12:.3f} measured on square "
        "matrices.",
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


def _matrix_rate(precision, device):
    """Floating-point operations per second of a product of square matrices, in the precision of the step."""
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


def _write(report, options):
    try:
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
    if options.plot:
        _machine.save_plot(_chart(report), options.plot)


def _chart(report):
    c, m = report["config"], report["machine"]
    title = (
        f"{c['arch']}, {c['resolution']} px, {c['batch_size']} images per step, "
        f"{m['processes']} x {m['device']}"
    )
    return charts.horizontal_bars({title: report["images_per_second"]}, _machine.RATE, highlighted=("epoch",))


def _duration(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    edge.run(main)
