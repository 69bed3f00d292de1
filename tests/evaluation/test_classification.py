"""Accuracies against a double loop, with ties and collisions; predictions whatever the memory."""

import contextlib

import pytest
import torch

from llc.codes import pack_bits
from llc.distributed import Processes
from llc.evaluation.classification import accuracies
from llc.evaluation.predict import Predictions, predict
from llc.network import Network


def test_accuracies_equal_a_double_loop():
    generator = torch.Generator().manual_seed(3)
    codebook = torch.randn(9, 6, generator=generator)
    codebook[7] = codebook[2]  # a collision
    z = torch.randn(200, 6, generator=generator)
    labels = torch.randint(0, 9, (200,), generator=generator)
    z[:120] = codebook[labels[:120]] * (1 - 2.0 * (torch.rand(120, 6, generator=generator) < 0.1))
    logits = z @ (2.0 * (codebook > 0) - 1).T
    metrics = accuracies(Predictions(labels, pack_bits(z), logits.topk(5).indices), codebook)

    hits = dict.fromkeys(("top1_mhd", "top5_mhd", "top1_ed", "none_ed", "tied_mhd", "tied5_mhd"), 0)
    for row, label in zip(z.tolist(), labels.tolist()):
        distances = [sum((a > 0) != (b > 0) for a, b in zip(row, code)) for code in codebook.tolist()]
        order = sorted(range(9), key=lambda c: (distances[c], c))
        ranked = sorted(distances)
        hits["top1_mhd"] += order[0] == label
        hits["top5_mhd"] += label in order[:5]
        hits["top1_ed"] += ranked[0] == 0 and order[0] == label
        hits["none_ed"] += ranked[0] != 0
        hits["tied_mhd"] += ranked[0] == ranked[1]
        hits["tied5_mhd"] += ranked[4] == ranked[5]
    assert all(0 < count < 200 for count in hits.values())
    for name, count in hits.items():
        assert abs(metrics[name] - count / 200) < 1e-12, name


class _SmallDevice(Network):
    """Has memory for `room` images at once."""

    room, asked = None, []

    def forward(self, images):
        self.asked.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return super().forward(images)


def test_a_batch_too_large_for_the_device_goes_through_in_parts():
    torch.manual_seed(0)
    network = _SmallDevice("resnet18", 9, 7, width=4)
    torch.nn.init.normal_(network.codebook)
    batches = [
        (torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n)) for n in (13, 13, 4)
    ]

    def predictions(room):
        network.room, network.asked = room, []
        return predict(
            network, batches, Processes(), flip=True, autocast=contextlib.nullcontext, num_classes=7
        )

    whole, parts = predictions(13), predictions(5)
    assert (
        network.asked[:6] == [13, 7, 4, 4, 4, 1] and max(network.asked[2:]) == 4
    )  # halved until it fits, then kept
    for name, expected in whole.items():
        assert torch.equal(parts[name].codes, expected.codes) and torch.equal(
            parts[name].top_class, expected.top_class
        )
        assert torch.equal(parts[name].labels, expected.labels) and len(expected.labels) == 30
    with pytest.raises(torch.OutOfMemoryError):
        predictions(0)
