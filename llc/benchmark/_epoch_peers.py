"""Other ways to train an epoch, for `python -m llc.benchmark epoch`: loaders of others, and eager steps."""

import io

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from llc.data import beton
from llc.data.loaders import default_workers
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.precision import autocast_for, float32_precision
from llc.training.optimizer import parameter_groups
from llc.training.stage_module import StageModule

LR = 1e-3  # small, so that the losses of thousands of steps on one batch stay finite


class _EagerStep:
    """The plain loop: forward, loss, scaled backward, SGD, nothing compiled or fused."""

    def __init__(self, network, config, stage, processes, channels_last):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(processes.device, memory_format=memory_format)
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

    def __init__(self, network, config, stage, shards, resolution, processes):
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

        super().__init__(network, config, stage, processes, channels_last=True)
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
    """DataLoader, PIL and torchvision's transforms on the beton's samples; eager, in mixed precision."""

    PREFETCH_FACTOR = 2  # batches of a worker; PyTorch's default

    @classmethod
    def ahead(cls, config):
        return _workers(config) * cls.PREFETCH_FACTOR

    def __init__(self, network, config, stage, shards, resolution, processes):
        super().__init__(network, config, stage, processes, channels_last=False)
        # The transforms normalise, so the network must not do it again.
        network.forward = lambda images: network.normalization(
            network.projection(network.backbone(images)).float()
        )
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
