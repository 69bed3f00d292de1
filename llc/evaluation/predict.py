"""Runs a network over a validation loader: the packed code and the decoders' answers for every image."""

import contextlib
import dataclasses

import torch

from llc.codes import pack_bits
from llc.evaluation.decoders import DECODERS
from llc.evaluation.metrics import FLIP
from llc.gpu import is_out_of_memory
from llc.network import average_over_flip


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was found for N images, in dataset order.

    labels int64 [N]; codes uint8 [N, code_size]; answers: {decoder's name: (classes int64 [N, d], scores [N, d])}
    with d at most the decoder's depth.
    """

    labels: torch.Tensor
    codes: torch.Tensor
    answers: dict

    def arrays(self):
        """{name: numpy array}: labels, codes, and top_NAME, the classes of each decoder."""
        tensors = {"labels": self.labels, "codes": self.codes}
        tensors |= {f"top_{decoder}": classes for decoder, (classes, _) in self.answers.items()}
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


@torch.inference_mode()
def predict(network, loader, processes, *, flip, autocast, num_classes):
    """-> {"": Predictions} and, with flip, {"_flip": ...} from the mean of z over an image and its mirror image.

    Each process sees a part of the images; every process gets the predictions for all N, each image exactly
    once. Tensors stay on the device. A batch that exceeds a GPU's memory is processed in parts. The network's
    training mode is restored at the end.
    """
    project = _InParts(network)
    decoders = {name: decoder.bind(network) for name, decoder in DECODERS.items()}
    depths = {name: min(decoder.depth, num_classes) for name, decoder in DECODERS.items()}
    collected = {"": [], FLIP: []} if flip else {"": []}
    with _evaluating(network):
        for images, labels in loader:
            with autocast():
                z = project(images)
                views = {"": z, FLIP: average_over_flip(project, images, z)} if flip else {"": z}
            for view, values in views.items():
                answers = {name: rank(values.float(), depths[name]) for name, rank in decoders.items()}
                collected[view].append((labels, pack_bits(values), answers))
    if not collected[""]:
        # A process without images takes part in the exchange with empty tensors of the right shapes.
        z = torch.zeros(1, network.codebook.shape[1], device=network.codebook.device)
        answers = {name: rank(z, depths[name]) for name, rank in decoders.items()}
        empty = (torch.zeros(1, dtype=torch.int64, device=z.device), pack_bits(z), answers)
        collected = {view: [_first_rows(empty, 0)] for view in collected}
    return {view: _together(batches, processes) for view, batches in collected.items()}


def _first_rows(batch, n):
    labels, codes, answers = batch
    return labels[:n], codes[:n], {name: tuple(t[:n] for t in found) for name, found in answers.items()}


def _together(batches, processes):
    """Predictions from the batches of all processes."""

    def whole(parts):
        return _in_order(torch.cat(parts), processes)

    labels, codes, answers = zip(*batches)
    decoded = {
        name: tuple(whole([batch[name][i] for batch in answers]) for i in range(2)) for name in answers[0]
    }
    return Predictions(whole(labels), whole(codes), decoded)


@contextlib.contextmanager
def _evaluating(network):
    """Evaluation mode, and at the end for each module the mode that it had."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


class _InParts:
    """network(images), in as few parts as fit into the device's memory: each failure halves the size for good."""

    def __init__(self, network):
        self.network, self.size = network, None

    def __call__(self, images):
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


def _in_order(own, processes):
    """Tensors of all processes in dataset order; that of rank r holds the samples r, r + world_size, ..."""
    of_rank = processes.gather(own)
    whole = own.new_empty((sum(map(len, of_rank)), *own.shape[1:]))
    for rank, part in enumerate(of_rank):
        whole[rank :: processes.world_size] = part
    return whole
