"""Batches from betons, through FFCV: training (random crops, flips) and validation (centre crops, each image exactly once)."""
import os

import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

from llc.errors import UserError


def epoch_order(num_samples, batch_size, seed, epoch, rank=0, world_size=1):
    """Sample indices int64 of one process for one epoch: a permutation keyed by (seed, epoch), cut to whole global batches.

    Global batch b is positions [b * total, (b + 1) * total) of the permutation, total = batch_size * world_size; rank r has the r-th
    part of each. Every rank gets as many batches; no sample comes twice; what is left out differs from epoch to epoch.
    """
    total = batch_size * world_size
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    order = order[:num_samples // total * total].reshape(-1, world_size, batch_size)
    return order[:, rank].reshape(-1)


class _EpochOrder:
    """FFCV's traversal order interface on epoch_order."""

    def __init__(self, *args):
        self.args = args

    def sample_order(self, epoch):
        num_samples, batch_size, seed, rank, world_size = self.args
        return epoch_order(num_samples, batch_size, seed, epoch, rank, world_size)


def default_workers():
    """Cores of this process: those it may run on, divided among the processes of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class TrainLoader:
    """`epoch(e, resolution)` yields (images uint8 [batch_size, 3, resolution, resolution], labels int64 [batch_size]) on the device.

    batch_size is this process's. min_scale: smallest area of a random crop, as a share of the image. The order is a function of
    (seed, epoch); the crops are FFCV's, which cannot be seeded.
    """

    def __init__(self, beton, num_samples, *, batch_size, num_workers, processes, seed, min_scale):
        if num_samples < batch_size * processes.world_size:
            raise UserError(f"{beton}: {num_samples} images do not fill one batch; training.batch_size = "
                            f"{batch_size * processes.world_size} is too large")
        self.batches_per_epoch = num_samples // (batch_size * processes.world_size)
        self._decoder = RandomResizedCropRGBImageDecoder((1, 1), scale=(min_scale, 1.0))
        self._args = (num_samples, batch_size, seed, processes.rank, processes.world_size)
        self._open = lambda: _loader(beton, batch_size, num_workers, processes.device,
                                     [self._decoder, RandomHorizontalFlip()], drop_last=True)
        self._loader = None

    def epoch(self, epoch, resolution):
        self._decoder.output_size = (resolution, resolution)
        if self._loader is None:
            self._loader = self._open()
            self._loader.traversal_order = _EpochOrder(*self._args)
            self._loader.first_traversal_order = self._loader.traversal_order.sample_order(epoch)
        self._loader.next_epoch = epoch
        return iter(self._loader)


class ValLoader:
    """Iterates (images uint8 [b, 3, resolution, resolution], labels int64 [b]); rank r sees samples r, r + world_size, ... in order."""

    def __init__(self, beton, num_samples, *, batch_size, num_workers, processes, resolution, crop_ratio):
        self.indices = np.arange(processes.rank, num_samples, processes.world_size)
        decoder = CenterCropRGBImageDecoder((resolution, resolution), ratio=crop_ratio)
        self._open = lambda: _loader(beton, batch_size, num_workers, processes.device, [decoder], drop_last=False,
                                     indices=self.indices)
        self._loader = None

    def __iter__(self):
        if not len(self.indices):
            return iter(())
        if self._loader is None:
            self._loader = self._open()
        return iter(self._loader)


def _loader(beton, batch_size, num_workers, device, image_operations, *, drop_last, indices=None):
    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    pipelines = {"image": [*image_operations, ToTensor(), *to_device, ToTorchImage()],
                 "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device]}
    return Loader(str(beton), batch_size=batch_size, num_workers=num_workers if num_workers > 0 else default_workers(), os_cache=True,
                  order=OrderOption.SEQUENTIAL, drop_last=drop_last, indices=indices, pipelines=pipelines)
