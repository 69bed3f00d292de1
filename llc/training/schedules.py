"""Learning rate and resolution, as functions of the position alone."""

import hashlib
import math

WARMUP_START = 1e-4  # fraction of the peak; ffcv-imagenet's


def learning_rate(stage, step, steps_per_epoch):
    """Learning rate of optimiser step `step` (from 0) of a stage (llc.stages.Stage).

    Linear from 1e-4 of the peak to the peak at lr_peak_epoch. Then linear to 0 (triangular), half a cosine to
    0 (cosine; Loshchilov and Hutter, arXiv 1608.03983), or multiplied by step_ratio every step_length epochs,
    counted from the start (step).
    """
    epoch = step / steps_per_epoch
    if epoch < stage.lr_peak_epoch:
        return stage.lr * (WARMUP_START + (1 - WARMUP_START) * epoch / stage.lr_peak_epoch)
    done = (epoch - stage.lr_peak_epoch) / (stage.epochs - stage.lr_peak_epoch)
    if stage.lr_schedule_type == "triangular":
        return stage.lr * (1 - done)
    if stage.lr_schedule_type == "cosine":
        return stage.lr * 0.5 * (1 + math.cos(math.pi * done))
    return stage.lr * stage.step_ratio ** (step // (steps_per_epoch * stage.step_length))


def resolution_at(resolution, epoch):
    """Pixels in epoch `epoch` (from 0) of a stage whose resolution rises.

    On the line from min_res to max_res, rounded to the nearest multiple of 32.
    """
    if epoch >= resolution.end_ramp:
        return resolution.max_res
    if epoch <= resolution.start_ramp:
        return resolution.min_res
    fraction = (epoch - resolution.start_ramp) / (resolution.end_ramp - resolution.start_ramp)
    return round((resolution.min_res + fraction * (resolution.max_res - resolution.min_res)) / 32) * 32


def stage_resolution(stage, resolution, epoch):
    """Pixels in epoch `epoch` (from 0) of a stage: max_res, unless it may rise (Stage.ramps)."""
    return resolution_at(resolution, epoch) if stage.ramps else resolution.max_res


def step_seed(seed, epoch, batch, rank):
    """The seed of what a network draws at random in a step (dropout, stochastic depth), a 63-bit integer.

    A function of training.seed, the epoch over all stages, the batch, and the process, so that a resumed run
    draws the same values.
    """
    digest = hashlib.sha256(f"{seed} {epoch} {batch} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def resolutions(stage, resolution):
    """Pixels in each epoch of a stage."""
    return [stage_resolution(stage, resolution, epoch) for epoch in range(stage.epochs)]
