"""Builds what a run trains with from its configuration: data, network, loaders."""

import dataclasses
import functools

import torch

from llc.backbones import check_image_size
from llc.codebook import fits
from llc.data.loaders import EncodingLoader, TrainLoader, ValLoader
from llc.data.manifest import check_same_classes
from llc.data.shards import Shards, open_shards
from llc.errors import UserError
from llc.evaluation.decoders import fitted_decoders
from llc.kernels.cuda_launch import check_launch
from llc.network import Network
from llc.progress import say
from llc.training import resume
from llc.training.ffcv_loader import FFCVTrainLoader
from llc.training.schedules import resolutions
from llc.training.start import build_network, start


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run trains with.

    network: that of the first stage, on the process's device; identity: of llc.training.resume, to compare
    with a checkpoint's; classifier: of llc.training.start.Start.
    """

    network: Network
    train_shards: Shards
    train_loader: TrainLoader
    val_loader: ValLoader
    class_names: tuple
    identity: dict
    classifier: tuple | None

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def steps(self):
        """Steps per epoch."""
        return self.train_loader.batches_per_epoch


def build(config, processes, resumes=False):
    """The Parts of a run. resumes: the run's own checkpoint will replace the initial values.

    Raises UserError if the data, the configuration and the number of processes do not fit each other.
    """
    say(f"opening {config.data.train_dataset} and {config.data.val_dataset}", processes)
    train_shards, val_shards = open_data(config)
    num_classes = train_shards.manifest.num_classes
    check_sizes(config, num_classes, processes.world_size)
    say(
        f"building {config.model.arch} for {num_classes:,} classes and {config.codes.num_bits} bits",
        processes,
    )
    network = build_network(config, num_classes, config.stages[0])
    for stage in map(config.stage, config.stages):
        for size in {*resolutions(stage, config.resolution), config.validation.resolution}:
            check_image_size(network.backbone, size)
    if config.data.operations:
        say(
            f"data.operations = {','.join(config.data.operations)}: where these draw without a seed, as "
            "FFCV's own do, no two runs see the same images, and a run that is resumed sees others",
            processes,
        )
    started = start(config, network, train_shards.manifest.class_names, processes, resumes)
    identity = resume.identity(config, train_shards, val_shards, started.codebook)
    network.to(processes.device, memory_format=torch.channels_last)
    if processes.device.type == "cuda":
        check_launch(processes.device)
    return Parts(
        network,
        train_shards,
        make_train_loader(config, train_shards, processes),
        make_val_loader(config, val_shards, processes),
        train_shards.manifest.class_names,
        identity,
        started.classifier,
    )


def fits_decoders(config):
    """Whether a run ends by fitting decoders to the codes of its train images."""
    has_codes = not config.stage(config.stages[-1]).dense
    return has_codes and config.validation.fit_decoder and bool(fitted_decoders())


def open_data(config):
    """(train, val) Shards of a configuration. Raises UserError if they have different classes."""
    train, val = open_shards(config.data.train_dataset), open_shards(config.data.val_dataset)
    check_same_classes(train.manifest, val.manifest, str(train.paths[0]), str(val.paths[0]))
    return train, val


def check_sizes(config, num_classes, world_size):
    """Raises UserError if there is one class, the batch cannot be divided, or the codes are too short."""
    if num_classes < 2:
        raise UserError(
            "data.train_dataset has one class, so there is nothing to tell apart; if the folders in that "
            "class's folder are the classes, convert that one: --cfg.data_dir=FOLDER"
        )
    batch_size, codes = config.training.batch_size, config.codes
    parts = world_size * config.training.accumulation_steps
    if batch_size % parts:
        raise UserError(
            f"training.batch_size = {batch_size} is the total over {world_size} processes with "
            f"training.accumulation_steps = {config.training.accumulation_steps} each, and must be a "
            f"multiple of {parts}"
        )
    if batch_size == parts and (codes.normalize == "batchnorm" or codes.hidden):
        key = "codes.normalize = batchnorm" if codes.normalize == "batchnorm" else "codes.hidden"
        raise UserError(
            f"{key} needs at least 2 images at once; training.batch_size = {parts} "
            f"leaves 1 for each of {parts} parts (processes x training.accumulation_steps)"
        )
    if codes.min_distance and not fits(num_classes, codes.num_bits, codes.min_distance):
        raise UserError(
            f"codes.min_distance = {codes.min_distance}: no code of {codes.num_bits} bits has this distance "
            f"between {num_classes} classes; lower it, or raise codes.num_bits"
        )


def make_train_loader(config, shards, processes):
    """The TrainLoader of this process's part of every batch, or the FFCVTrainLoader."""
    kind = TrainLoader
    if config.data.loader == "ffcv":
        kind = functools.partial(FFCVTrainLoader, operations=config.data.operations)
    return kind(
        shards,
        batch_size=config.training.batch_size // processes.world_size,
        num_workers=config.data.num_workers or -1,  # recipes may say 0, which means the same
        processes=processes,
        seed=config.training.seed,
        min_scale=config.data.min_scale,
        in_memory=config.data.in_memory,
        on_error=config.data.on_error,
    )


def make_val_loader(config, shards, processes):
    """The ValLoader of this process's part of the validation images."""
    return ValLoader(shards, **_centre_crops(config, processes))


def make_encoding_loader(config, shards, processes):
    """The EncodingLoader of this process's part of the train images, cropped as those of validation are."""
    return EncodingLoader(shards, on_error=config.data.on_error, **_centre_crops(config, processes))


def _centre_crops(config, processes):
    return {
        "batch_size": config.validation.batch_size,
        "num_workers": config.data.num_workers or -1,  # recipes may say 0, which means the same
        "processes": processes,
        "resolution": config.validation.resolution,
        "crop_ratio": config.validation.crop_ratio,
        "in_memory": config.data.in_memory,
    }
