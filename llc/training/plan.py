"""What a run would do, as llc.train --dry_run prints it. Nothing is trained and nothing is written.

The same checks of configuration, data and number of processes are made as at the start of a run.
"""

import itertools
import math
import time
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from llc.checkpoints import load_weights
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation import fitting
from llc.evaluation.decoders import fitted_decoders
from llc.loggers import LOGGERS
from llc.recipe import ITQ
from llc.text import counted
from llc.training import delivery, results
from llc.training.build import check_sizes, fits_decoders, make_train_loader, make_val_loader, open_data
from llc.training.run_folder import RunFolder
from llc.training.schedules import learning_rate, resolutions
from llc.training.stage_module import StageModule
from llc.training.start import (
    build_network,
    check_published,
    given_codebook,
    initial_codebook,
    read_classifier,
    takes_classifier,
)


def describe(config, world_size=1, resume=None):
    """The plan of a run, as text of several lines.

    world_size: number of processes. resume: what --resume names, as for a run; None: a new run. Raises
    UserError as the run itself would.
    """
    delivery.check(config.logging.to)
    path = _run_path(config, resume)
    resumes = bool(resume) and (path / "checkpoints").exists()
    train_shards, val_shards = open_data(config)
    num_classes = train_shards.manifest.num_classes
    check_sizes(config, num_classes, world_size)
    network = build_network(config, num_classes, config.stages[0])
    from_classifier = config.codes.init_codebook == ITQ or config.stage(config.stages[0]).dense
    if not from_classifier and given_codebook(config, num_classes, resumes) is None:
        initial_codebook(config, num_classes)
    weights = _check_weights(config, network, train_shards.manifest.class_names) if not resumes else ""
    alone = Processes()
    steps = make_train_loader(config, train_shards, alone).batches_per_epoch
    make_val_loader(config, val_shards, alone)
    batch_size, parts = config.training.batch_size, config.training.accumulation_steps
    per_process = batch_size // world_size
    lines = [
        yaml.safe_dump(config.as_dict(), sort_keys=False).rstrip(),
        "",
        f"train: {len(train_shards):,} images of {num_classes:,} classes in {config.data.train_dataset}",
        f"val: {len(val_shards):,} images in {config.data.val_dataset}",
        f"processes: {world_size}",
        f"images per step: {batch_size:,}; of each process: {per_process:,}"
        + (f", in {parts} parts of {per_process // parts:,}" if parts > 1 else ""),
        *([weights] if weights else []),
    ]
    for name in config.stages:
        lines += ["", *_stage_lines(config, config.stage(name), num_classes, steps)]
        if config.stage(name).dense and name != config.stages[-1]:
            lines.append("  then the codebook is made from its classifier")
    if fits_decoders(config):
        lines += [
            "",
            "after the last stage: the train set is encoded, and decoders are fitted to its codes: "
            + ", ".join(fitted_decoders()),
        ]
    verb = "would resume and update" if resumes else "would write"
    lines += ["", f"{verb} {path}/", *(f"  {name}" for name in files(config))]
    for name in config.logging.to:
        if LOGGERS[name].sends:
            project = config.logging.project
            lines.append(f"would give the recipe and each epoch's numbers to {name}, project {project}")
    return "\n".join(lines)


def files(config):
    """The files that a run leaves in its folder, as texts."""
    saved = [f"checkpoints/{name}.pth" for name in ("initial", *config.stages)]
    if config.training.ema_decay:
        saved += [f"checkpoints/{name}_ema.pth" for name in config.stages]
    previous = [f"checkpoints/previous_{number}.pth" for number in range(1, config.training.keep)]
    return [
        "config.yaml",
        "class_names.json",
        "log.jsonl",
        *(name for logger in config.logging.to for name in LOGGERS[logger].files),
        *([delivery.MEMORY] if config.logging.to else []),
        "codebook.npy",
        *([fitting.FILE_NAME] if fits_decoders(config) else []),
        "results.csv",
        *saved,
        "checkpoints/model_best.pth",
        "checkpoints/last.pth",
        *previous,
    ]


def flops_per_image(config, stage, num_classes, resolution):
    """Floating-point operations of the forward and backward pass per image; a multiply-add counts as two.

    Counted on the meta device, on shapes alone, with two images.
    """
    with torch.device("meta"):
        network, smoothing = build_network(config, num_classes, stage.name), config.training.label_smoothing
        module = StageModule(network, stage, smoothing, prefixes=config.codes.prefixes)
        images = torch.empty(2, 3, resolution, resolution, dtype=torch.uint8)
        labels = torch.zeros(2, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            module(images, labels, torch.zeros(())).backward()
    return counter.get_total_flops() / 2


def _stage_lines(config, stage, num_classes, steps):
    if not stage.epochs:
        return [results.untrained_text(stage)]
    total = stage.epochs * steps
    peak = min(math.ceil(stage.lr_peak_epoch * steps), total - 1)
    corners = {"start": 0, "end of warm-up": peak, "middle": total // 2, "end": total - 1}
    if not stage.lr_peak_epoch:
        del corners["end of warm-up"]
    rates = ", ".join(
        f"{name} {learning_rate(stage, step, steps):.4g} (step {step:,})" for name, step in corners.items()
    )
    with torch.device("meta"):
        network = StageModule(build_network(config, num_classes, stage.name), stage, 0.0).network
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    in_total, codebook = sum(p.numel() for p in network.parameters()), network.codebook.numel()
    lines = [
        f"{stage.name} stage: {counted(stage.epochs, 'epoch')} of {counted(steps, 'step')}, "
        f"{counted(total, 'step')} in total",
        f"  learning rate ({stage.lr_schedule_type}): {rates}",
        f"  parameters: {trainable:,} trainable of {in_total:,}, {codebook:,} of them the codebook"
        + ("" if stage.learns_codebook else ", which is frozen"),
    ]
    for pixels, epochs in itertools.groupby(
        enumerate(resolutions(stage, config.resolution), start=1), key=lambda pair: pair[1]
    ):
        numbers = [number for number, _ in epochs]
        flops = flops_per_image(config, stage, num_classes, pixels)
        lines.append(
            f"  epochs {numbers[0]} to {numbers[-1]}: {pixels} pixels, {flops / 1e9:.4g} GFLOP per image, "
            f"{flops * config.training.batch_size / 1e12:.4g} TFLOP per step"
        )
    return lines


def _check_weights(config, network, class_names):
    """Loads model.weights and says what they are; names those that would be downloaded. Raises UserError."""
    source = config.model.weights
    if not source:
        return ""
    makes_codebook = takes_classifier(config)
    what = "backbone and codebook from the dense classifier of" if makes_codebook else "backbone weights from"
    if check_published(config, class_names):
        return f"{what} {source}, published weights, which a run downloads unless it has them"
    if makes_codebook:
        read_classifier(config, network, class_names)
        return f"{what} {source}"
    return load_weights(network, source, config.model.arch, config.stage(config.stages[0]).dense)


def _run_path(config, resume):
    """The run folder. Raises UserError if the run could not begin in it."""
    folder, name = Path(config.logging.folder), config.logging.name
    if resume and resume != "auto":
        run = RunFolder.open(resume)
        run.check_resumable()
        return run.path
    if resume == "auto" and not name:
        raise UserError("--resume=auto needs the name of the run: give it as --logging.name=NAME")
    path = folder / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
    if path.exists():
        run = RunFolder(path)
        run.check_resumable() if resume == "auto" else run.check_unused()
    return path
