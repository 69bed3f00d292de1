"""Runs a network over a loader: the packed code of every image, and what decoders or scores make of it.

`collect` is the pass; `predict`, `encode_all`, `encode_images` and llc.evaluation.ood.scores say what it
keeps of each image.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
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
Batches: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]
Autocast: TypeAlias = Callable[[], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Codes and decoded classes of N images, in dataset order.

    labels int64 [N]; codes uint8 [N, code_size]; answers: {decoder: (classes int64 [N, d], scores [N, d])}
    with d at most the decoder's depth. num_non_finite int64 []: images whose z is NaN or infinite, so that
    their codes mean nothing. measured: {name: what `measure` of `predict` gave [N]}.
    """

    labels: torch.Tensor
    codes: torch.Tensor
    answers: Answers
    num_non_finite: torch.Tensor
    measured: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

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
    loader: Batches,
    processes: Processes,
    *,
    flip: bool,
    autocast: Autocast,
    num_classes: int,
    learnt: Mapping[str, Any] = MappingProxyType({}),
    measure: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType({}),
) -> dict[str, Predictions]:
    """{"": Predictions} and, with flip, {"_flip": those of the mean of z over an image and its mirror image}.

    loader: batches (images uint8 [B, 3, H, W], labels int64 [B]) on the network's device. learnt: {decoder:
    what it learnt}; decoders that learn and are not in it are left out. measure: {name: function from z
    [B, num_bits] to [B]}, what else is computed of each image. Each process sees a part of the
    images; every process gets the predictions for all N, each image exactly once. Tensors stay on the device.
    A batch that exceeds a GPU's memory is processed in parts. The network is in evaluation mode; afterwards
    each of its modules has the mode that it had before.
    """
    ranks = {name: bind(name, network, learnt) for name in usable(learnt)}
    depths = {name: min(DECODERS[name].depth, num_classes) for name in ranks}

    def decode(z: torch.Tensor) -> list[torch.Tensor]:
        decoded = [part for name, rank in ranks.items() for part in rank(z, depths[name])]
        return decoded + [function(z) for function in measure.values()]

    collected = collect(
        network, loader, processes, views=("", FLIP) if flip else ("",), autocast=autocast, measure=decode
    )
    return {
        view: Predictions(
            of_view.labels,
            of_view.codes,
            dict(zip(ranks, zip(of_view.measured[: 2 * len(ranks) : 2], of_view.measured[1::2]))),
            (~of_view.finite).sum(),
            dict(zip(measure, of_view.measured[2 * len(ranks) :])),
        )
        for view, of_view in collected.items()
    }


def encode_all(
    network: Network, loader: Batches, processes: Processes, *, flip: bool, autocast: Autocast
) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8 [n, code_size], labels int64 [n]) of the labelled images of all processes, by rank.

    Images whose label is negative are left out, and those whose z is NaN or infinite. flip: z is the mean
    over an image and its mirror image. The loader may divide the images among processes in any way. For the
    rest see `predict`.
    """
    view = FLIP if flip else ""
    found = collect(network, loader, processes, views=(view,), autocast=autocast, together=_by_rank)[view]
    kept = (found.labels >= 0) & found.finite
    return found.codes[kept].cpu().numpy(), found.labels[kept].cpu().numpy()


def encode_images(
    network: Network, loader: Batches, processes: Processes, *, flip: bool, autocast: Autocast
) -> tuple[np.ndarray, np.ndarray, int]:
    """(codes uint8 [n, code_size], labels int64 [n], num_non_finite) of all images, in dataset order.

    Images without a label are there too, with the label that the loader gives them. num_non_finite: how many
    images have a z that is NaN or infinite, so that their codes mean nothing. flip: z is the mean over an
    image and its mirror image. For the rest see `predict`.
    """
    view = FLIP if flip else ""
    found = collect(network, loader, processes, views=(view,), autocast=autocast)[view]
    return found.codes.cpu().numpy(), found.labels.cpu().numpy(), int((~found.finite).sum())


# ------------------------------------------------------------------------------------------------ one pass


@dataclasses.dataclass(frozen=True)
class Collected:
    """What a pass over N images found, for one view of them.

    labels int64 [N]; codes uint8 [N, code_size]; finite bool [N]: whether z is neither NaN nor infinite;
    measured: what `measure` of `collect` returned, each a tensor [N, ...].
    """

    labels: torch.Tensor
    codes: torch.Tensor
    finite: torch.Tensor
    measured: list[torch.Tensor]


def _in_order(own: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Tensors of all processes in dataset order; that of rank r holds the samples r, r + world_size, ..."""
    of_rank = processes.gather(own)
    whole = own.new_empty((sum(map(len, of_rank)), *own.shape[1:]))
    for rank, part in enumerate(of_rank):
        whole[rank :: processes.world_size] = part
    return whole


def _by_rank(own: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Tensors of all processes, one after the other."""
    return torch.cat(processes.gather(own))


@torch.inference_mode()
def collect(
    network: Network,
    loader: Batches,
    processes: Processes,
    *,
    views: Sequence[str],
    autocast: Autocast,
    measure: Callable[[torch.Tensor], Sequence[torch.Tensor]] = lambda z: (),
    together: Callable[[torch.Tensor, Processes], torch.Tensor] = _in_order,
) -> dict[str, Collected]:
    """Runs the network over a loader once -> {view: Collected of the images of all processes}.

    views: "", z of each image, or FLIP, the mean of z over an image and its mirror image, or both. measure:
    from z float32 [B, num_bits] to tensors [B, ...], outside of autocast; the number of tensors must not
    depend on z. together: how the tensors of all processes become one. For the rest see `predict`.
    """
    project = _InParts(network)

    def read(labels: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        # Whether z is finite is asked on the device, so that the host need not wait for it.
        return [labels, pack_bits(z), torch.isfinite(z).all(1), *measure(z.float())]

    batches: dict[str, list[list[torch.Tensor]]] = {view: [] for view in views}
    with evaluating(network):
        for images, labels in loader:
            with autocast():
                z = project(images)
                of_view = {"": z}
                if FLIP in views:
                    of_view[FLIP] = average_over_flip(project, images, z)
            for view in views:
                batches[view].append(read(labels, of_view[view]))
    if not batches[views[0]]:
        # A process without images takes part in the exchange with empty tensors of the right shapes.
        z = torch.zeros(1, network.codebook.shape[1], device=network.codebook.device)
        empty = [part[:0] for part in read(torch.zeros(1, dtype=torch.int64, device=z.device), z)]
        batches = {view: [empty] for view in views}
    collected = {}
    for view in views:
        labels, codes, finite, *measured = (
            together(torch.cat(parts), processes) for parts in zip(*batches[view])
        )
        collected[view] = Collected(labels, codes, finite, measured)
    return collected


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
