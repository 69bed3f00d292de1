"""Runs a network over a validation loader: packed codes and class-code decisions of every image, in dataset order."""

import dataclasses

import torch

from llc.codes import pack_bits
from llc.gpu import is_out_of_memory


@dataclasses.dataclass(frozen=True)
class Predictions:
    """labels int64 [N]; codes uint8 [N, code_size]; top_class int64 [N, k], the classes of the k highest class logits."""

    labels: torch.Tensor
    codes: torch.Tensor
    top_class: torch.Tensor


@torch.inference_mode()
def predict(network, loader, processes, *, flip, autocast, num_classes):
    """-> {"": Predictions} and, with flip, {"_flip": ...} from the mean of z over the image and its mirror image.

    Each process sees its share; every process gets all N, each image exactly once. Tensors stay on the device. A batch for which the
    device has no memory goes through in parts.
    """
    network.eval()
    project = _InParts(network)
    k = min(5, num_classes)
    parts = {"": [], "_flip": []} if flip else {"": []}
    for images, labels in loader:
        with autocast():
            z = project(images)
            both = {"": z, "_flip": (z + project(images.flip(3))) / 2} if flip else {"": z}
        for name, values in both.items():
            logits = network.class_logits(values.float())
            parts[name].append((labels, pack_bits(values), _top(logits, k)))
    network.train()
    device, num_bits = network.codebook.device, network.codebook.shape[1]
    empty = (
        torch.empty(0, dtype=torch.int64, device=device),
        pack_bits(torch.zeros(1, num_bits, device=device))[:0],
        torch.empty(0, k, dtype=torch.int64, device=device),
    )
    return {
        name: Predictions(
            *(_in_order(torch.cat([e, *(row[i] for row in rows)]), processes) for i, e in enumerate(empty))
        )
        for name, rows in parts.items()
    }


class _InParts:
    """network(images) in as few parts as fit into the device's memory: halved each time that it runs out, and so kept."""

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
            # after the handler, whose traceback kept the activations alive
            self.size = (size + 1) // 2
            torch.cuda.empty_cache()


def _in_order(share, processes):
    """Puts the shares (rank r: samples r, r + world_size, ...) back into dataset order."""
    shares = processes.gather(share)
    whole = share.new_empty((sum(map(len, shares)), *share.shape[1:]))
    for rank, part in enumerate(shares):
        whole[rank :: processes.world_size] = part
    return whole


def _top(logits, k):
    """Classes of the k highest logits; equal logits (colliding class codes) in class order, as in Hamming decoding."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
