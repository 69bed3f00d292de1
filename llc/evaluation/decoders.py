"""The decoders: how z or codes become classes, and what is measured of each. One table for the whole project.

The encoder, the trainer, `llc.evaluate` and the comparison of methods loop over `DECODERS`; a decoder from
outside the package registers itself in the same way (docs/extending.md). How packed codes are decoded fast is
llc.hamming's.
"""

from collections.abc import Callable
from typing import ClassVar

import torch

from llc.codes import pack_bits
from llc.hamming import search

DECODERS: "dict[str, Decoder]" = {}  # by name, in the order of registration

# (z float32 [n, num_bits], k) -> classes int64 [n, <= k], best first, -1 for no class, and their scores
Rank = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def register(kind: "type[Decoder]") -> "type[Decoder]":
    """A class decorator that adds a Decoder. Raises ValueError where its name is taken or unusable."""
    decoder = kind()
    if decoder.name in DECODERS:
        raise ValueError(
            f"decoder {decoder.name!r} is registered already, as {type(DECODERS[decoder.name]).__name__}"
        )
    if not decoder.name.isidentifier() or "_" in decoder.name:
        raise ValueError(
            f"decoder {decoder.name!r}: expected letters and digits, as metrics are called top1_NAME"
        )
    DECODERS[decoder.name] = decoder
    return kind


class Decoder:
    """A way to turn images into classes.

    name: what `decode=` accepts; metrics end in it (top1_mhd). title: in reports; short: in tables and progress
    lines. of_image_codes: it reads an image's binary code, not the real values z: it then belongs to the stage
    that learns image codes, else to the one that learns class codes. depth: how many answers per image
    `metrics` looks at. details: {metric: words} beside top-1 and top-5 in reports.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    short: ClassVar[str]
    of_image_codes: ClassVar[bool]
    depth: ClassVar[int] = 5
    details: ClassVar[dict[str, str]] = {}

    def bind(self, network) -> Rank:
        """The decoder of one network (llc.network.Network), whose codebook must not change afterwards.

        The result may give fewer than k classes to each image. What its scores mean is the decoder's own.
        """
        raise NotImplementedError

    def metrics(self, labels: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, num_classes: int):
        """{metric: fraction of the images}, without the decoder's name in the keys.

        labels int64 [N]; classes and scores as `bind`'s result gave them for k = min(depth, num_classes).
        """
        return accuracies(labels, classes)


def accuracies(labels: torch.Tensor, classes: torch.Tensor) -> dict[str, float]:
    """{"top1", "top5"}: the fractions of images whose label is the first, or among the first five, of classes."""
    hits = classes == labels[:, None]
    return {"top1": fraction(hits[:, 0]), "top5": fraction(hits[:, :5].any(1))}


def fraction(hits: torch.Tensor) -> float:
    """The fraction of True in bool [N]."""
    return hits.double().mean().item()


@register
class ClassCodes(Decoder):
    """The classes of the highest class logits z . sign(C)^T; equal logits go to the lowest class. Scores: logits."""

    name, title, short, of_image_codes = "class", "class codes", "class", False

    def bind(self, network) -> Rank:
        def rank(z, k):
            logits = network.class_logits(z)
            # A stable sort, so that classes with one code come in the same order as in Hamming decoding.
            classes = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
            return classes, logits.gather(1, classes)

        return rank


@register
class MHD(Decoder):
    """Minimum Hamming distance: the classes whose codes are nearest; ties go to the lowest class. Scores: distances."""

    name, title, short, of_image_codes = "mhd", "MHD", "MHD", True
    depth = 6  # one more than the fifth, to see ties across it
    details = {"tied": "tied for nearest"}

    def bind(self, network) -> Rank:
        class_codes = pack_bits(network.codebook.detach())

        def rank(z, k):
            distances, classes = search(pack_bits(z), class_codes, k)
            return classes, distances

        return rank

    def metrics(self, labels, classes, scores, num_classes):
        """And tied, tied5: the fractions of images with a tie for nearest, and with a tie across the 5th place."""
        k = min(5, num_classes)
        return accuracies(labels, classes) | {
            "tied": fraction(scores[:, 0] == scores[:, 1]) if num_classes > 1 else 0.0,
            "tied5": fraction(scores[:, k - 1] == scores[:, k]) if num_classes > k else 0.0,
        }


@register
class ED(Decoder):
    """Exact decoding: the lowest class whose code equals the image's, else none (-1). Scores: Hamming distances."""

    name, title, short, of_image_codes = "ed", "ED", "ED", True
    depth = 1
    details = {"none": "no class"}

    def bind(self, network) -> Rank:
        nearest = MHD().bind(network)

        def rank(z, k):
            classes, distances = nearest(z, 1)
            return classes.where(distances == 0, -1), distances

        return rank

    def metrics(self, labels, classes, scores, num_classes):
        """top1, and none: the fraction of images whose code equals no class code."""
        return {"top1": fraction(classes[:, 0] == labels), "none": fraction(classes[:, 0] == -1)}
