"""Accuracies against a double loop, with ties and collisions."""
import torch

from llc.codes import pack_bits
from llc.evaluation.classification import accuracies
from llc.evaluation.predict import Predictions


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
