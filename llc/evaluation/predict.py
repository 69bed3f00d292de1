"""Runs a network over a validation loader: the packed code and the decoders' answers for every image."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from llc.codes import pack_bits
from llc.distributed import Processes
from llc.evaluation.decoders import DECODERS, bind, usable
from llc.evaluation.metrics import FLIP
from llc.gpu import is_out_of_memory
from llc.inference import evaluating
from llc.network import Network, average_over_flip

Answers: TypeAlias = dict[str, tuple[torch.Tensor, torch.Tensor]]
_Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor, Answers]  # labels, codes, answers


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Codes and decoded classes of N images, in dataset order.

    labels int64 [N]; codes uint8 [N, code_size]; answers: {decoder: (classes int64 [N, d], scores [N, d])}
    with d at most the decoder's depth. num_non_finite int64 []: images whose z is NaN or infinite, so that
    their codes mean nothing.
    """

    labels: torch.Tensor
    codes: torch.Tensor
    answers: Answers
    num_non_finite: torch.Tensor

    def arrays(self) -> dict[str, np.ndarray]:
        """{name: numpy array}: labels, codes, and for each decoder top_NAME, its classes.

        Where a decoder's scores are the classes' probabilities, there is probability_NAME, too.
        """
        tensors = {"labels": self.labels, "codes": self.codes}
        for decoder, (classes, scores) in self.answers.items():
            tensors[f"top_{decoder}"] = classes
            if DECODERS[decoder].gives_probabilities:
                tensors[f"probability_{decoder}"] = scores
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


@torch.inference_mode()
def predict(
    network: Network,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    processes: Processes,
    *,
    flip: bool,
    autocast: Callable[[], contextlib.AbstractContextManager],
    num_classes: int,
    learnt: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Predictions]:
    """{"": Predictions} and, with flip, {"_flip": those of the mean of z over an image and its mirror image}.

    loader: batches (images uint8 [B, 3, H, W], labels int64 [B]) on the network's device. learnt: {decoder:
    what it learnt}; decoders that learn and are not in it are left out. Each process sees a part of the
    images; every process gets the predictions for all N, each image exactly once. Tensors stay on the device.
    A batch that exceeds a GPU's memory is processed in parts. The network is in evaluation mode; afterwards
    each of its modules has the mode that it had before.
    """
    project = _InParts(network)
    ranks = {name: bind(name, network, learnt) for name in usable(learnt)}

    def decode(z: torch.Tensor) -> Answers:
        depths = {name: min(DECODERS[name].depth, num_classes) for name in ranks}
        return {name: rank(z.float(), depths[name]) for name, rank in ranks.items()}

    collected: dict[str, list[_Batch]] = {"": [], FLIP: []} if flip else {"": []}
    non_finite = {view: torch.zeros((), dtype=torch.int64, device=processes.device) for view in collected}
    with evaluating(network):
        for images, labels in loader:
            with autocast():
                z = project(images)
                views = {"": z, FLIP: average_over_flip(project, images, z)} if flip else {"": z}
            for view, values in views.items():
                collected[view].append((labels, pack_bits(values), decode(values)))
                # On the device, which the host need not wait for.
                non_finite[view] += (~torch.isfinite(values).all(1)).sum()
    if not collected[""]:
        # A process without images takes part in the exchange with empty tensors of the right shapes.
        z = torch.zeros(1, network.codebook.shape[1], device=network.codebook.device)
        labels = torch.zeros(1, dtype=torch.int64, device=z.device)
        empty = _first_rows((labels, pack_bits(z), decode(z)), 0)
        collected = {view: [empty] for view in collected}
    return {
        view: _together(batches, processes.sum(non_finite[view]), processes)
        for view, batches in collected.items()
    }


@torch.inference_mode()
def encode_all(
    network: Network,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    processes: Processes,
    *,
    flip: bool,
    autocast: Callable[[], contextlib.AbstractContextManager],
) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8 [n, code_size], labels int64 [n]) of the labelled images of all processes, by rank.

    Images whose label is negative are left out, and those whose z is NaN or infinite. flip: z is the mean
    over an image and its mirror image. For the rest see `predict`.
    """
    project = _InParts(network)
    num_bits = network.codebook.shape[1]
    device = processes.device
    codes, labels = (
        [pack_bits(torch.empty(0, num_bits, device=device))],
        [torch.empty(0, dtype=torch.int64, device=device)],
    )
    with evaluating(network):
        for images, of_images in loader:
            with autocast():
                z = project(images)
                if flip:
                    z = average_over_flip(project, images, z)
            codes.append(pack_bits(z))
            labels.append(of_images.where(torch.isfinite(z).all(1), -1))
    all_codes, all_labels = (torch.cat(processes.gather(torch.cat(parts))) for parts in (codes, labels))
    labelled = all_labels >= 0
    return all_codes[labelled].cpu().numpy(), all_labels[labelled].cpu().numpy()


def _first_rows(batch: _Batch, n: int) -> _Batch:
    labels, codes, answers = batch
    return (
        labels[:n],
        codes[:n],
        {name: (classes[:n], scores[:n]) for name, (classes, scores) in answers.items()},
    )


def _together(batches: list[_Batch], num_non_finite: torch.Tensor, processes: Processes) -> Predictions:
    """Predictions from the batches of all processes. num_non_finite: that of all of them."""

    def whole(parts: Iterable[torch.Tensor]) -> torch.Tensor:
        return _in_order(torch.cat(list(parts)), processes)

    labels, codes, answers = zip(*batches)
    decoded = {
        name: (whole(batch[name][0] for batch in answers), whole(batch[name][1] for batch in answers))
        for name in answers[0]
    }
    return Predictions(whole(labels), whole(codes), decoded, num_non_finite)


class _InParts:
    """network(images), in as few parts as fit into the device's memory.

    Each failure halves the size of the parts, for later batches too.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.size: int | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        while True:
            size = self.size or len(images)
            try:
                parts = [self.network(part) for part in images.split(size)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # Outside of the handler, because its traceback kept the activations alive.
            self.size = (size + 1) // 2
            torch.cuda.empty_cache()


def _in_order(own: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Tensors of all processes in dataset order; that of rank r holds the samples r, r + world_size, ..."""
    of_rank = processes.gather(own)
    whole = own.new_empty((sum(map(len, of_rank)), *own.shape[1:]))
    for rank, part in enumerate(of_rank):
        whole[rank :: processes.world_size] = part
    return whole
