"""The decoders: how z or codes become classes, and what is measured of each. One table for the whole project.

The encoder, the trainer, `llc.evaluate` and the comparison of methods loop over `DECODERS`; a decoder from
outside the package registers itself in the same way (docs/extending.md). The fast functions on packed codes
that decoders use are in llc.hamming.
"""

from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch

from llc.codes import pack_bits
from llc.hamming import search
from llc.network import Network

# (z float32 [n, num_bits], k) -> classes int64 [n, 1 to k], best first, -1 for no class, and a score for each
Rank: TypeAlias = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


class Decoder:
    """A way to turn images into classes.

    name: what `decode=` accepts; metrics end in it (top1_mhd)
    title, short: its name in reports; and in tables and progress lines
    of_image_codes: whether it reads an image's binary code, not the real values z; it is then judged after
        the stage that learns image codes, else after the one that learns class codes
    depth: how many answers per image `metrics` looks at
    details: {metric: words}, fractions that reports print beside top-1
    """

    name: ClassVar[str]
    title: ClassVar[str]
    short: ClassVar[str]
    of_image_codes: ClassVar[bool]
    depth: ClassVar[int] = 5
    details: ClassVar[dict[str, str]] = {}

    def bind(self, network: Network) -> Rank:
        """The function that decodes with this network, whose codebook must not change afterwards.

        It may return fewer than k classes, but the same number for every image. What a score is, each decoder
        says for itself.
        """
        raise NotImplementedError

    def metrics(
        self, labels: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, num_classes: int
    ) -> dict[str, float]:
        """{metric: fraction of the images}, without the decoder's name in the keys; one must be "top1".

        labels int64 [N]; classes and scores: the result of `bind`'s function for k = min(depth, num_classes).
        """
        return accuracies(labels, classes)


DECODERS: dict[str, Decoder] = {}  # by name, in the order of registration


def register(kind: type[Decoder]) -> type[Decoder]:
    """A class decorator that adds a Decoder to the table.

    Raises ValueError if one of its attributes is missing, or if its name is taken or unusable.
    """
    missing = [key for key in ("name", "title", "short", "of_image_codes") if not hasattr(kind, key)]
    if missing:
        raise ValueError(f"decoder {kind.__name__}: the class has no {', '.join(missing)}")
    name = kind.name
    if name in DECODERS:
        raise ValueError(f"decoder {name!r} is registered already, as {type(DECODERS[name]).__name__}")
    if not name.isidentifier() or "_" in name or name in ("flip", "ema"):
        raise ValueError(
            f"decoder {name!r}: expected letters and digits, but not flip or ema, "
            "because metrics are called top1_NAME_flip_ema"
        )
    DECODERS[name] = kind()
    return kind


def bind(name: str, network: Network) -> Rank:
    """The function that decodes with a registered decoder and this network.

    Whatever decodes gets the function from here. It raises ValueError if the decoder's answers do not have
    the shapes and the dtype that `Rank` states.
    """
    rank = DECODERS[name].bind(network)

    def checked(z: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        classes, scores = rank(z, k)
        fits = classes.ndim == 2 and len(classes) == len(z) and 1 <= classes.shape[1] <= k
        if not fits or classes.dtype != torch.int64 or scores.shape != classes.shape:
            raise ValueError(
                f"decoder {name!r}: expected classes int64 [{len(z)}, 1 to {k}] and as many scores, got "
                f"{classes.dtype} {list(classes.shape)} and scores {list(scores.shape)}"
            )
        return classes, scores

    return checked


def accuracies(labels: torch.Tensor, classes: torch.Tensor) -> dict[str, float]:
    """{"top1": the fraction of images whose first class is right, "top5": that of the first five}.

    labels int64 [N], classes int64 [N, d].
    """
    hits = classes == labels[:, None]
    return {"top1": fraction(hits[:, 0]), "top5": fraction(hits[:, :5].any(1))}


def fraction(hits: torch.Tensor) -> float:
    """The fraction of True in bool [N]."""
    return hits.double().mean().item()


# ------------------------------------------------------------------------------------------------ built in


@register
class ClassCodes(Decoder):
    """The classes of the highest class logits z . sign(C)^T; ties go to the lowest class.

    Scores: the logits, float32.
    """

    name = "class"
    title = "class codes"
    short = "class"
    of_image_codes = False

    def bind(self, network: Network) -> Rank:
        def rank(z: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            logits = network.class_logits(z)
            # A stable sort, so that classes with the same code come in the same order as in Hamming decoding.
            classes = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
            return classes, logits.gather(1, classes)

        return rank


@register
class MHD(Decoder):
    """Minimum Hamming distance: the classes whose codes are nearest; ties go to the lowest class.

    Scores: the distances, int32.
    """

    name = "mhd"
    title = short = "MHD"
    of_image_codes = True
    depth = 6  # the sixth shows whether there is a tie across the fifth place
    details = {"tied": "tied for nearest"}

    def bind(self, network: Network) -> Rank:
        class_codes = pack_bits(network.codebook.detach())

        def rank(z: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            distances, classes = search(pack_bits(z), class_codes, k)
            return classes, distances

        return rank

    def metrics(
        self, labels: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, num_classes: int
    ) -> dict[str, float]:
        """top1, top5, tied (the fraction of images with a tie for nearest), tied5 (across the 5th place)."""
        k = min(5, num_classes)
        return accuracies(labels, classes) | {
            "tied": fraction(scores[:, 0] == scores[:, 1]) if num_classes > 1 else 0.0,
            "tied5": fraction(scores[:, k - 1] == scores[:, k]) if num_classes > k else 0.0,
        }


@register
class ED(Decoder):
    """Exact decoding: the lowest class whose code equals the image's, else no class (-1).

    Scores: the distance to the nearest class code, int32.
    """

    name = "ed"
    title = short = "ED"
    of_image_codes = True
    depth = 1
    details = {"none": "no class"}

    def bind(self, network: Network) -> Rank:
        nearest = MHD().bind(network)

        def rank(z: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            classes, distances = nearest(z, 1)
            return classes.where(distances == 0, -1), distances

        return rank

    def metrics(
        self, labels: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, num_classes: int
    ) -> dict[str, float]:
        """top1, and none: the fraction of images whose code equals no class code."""
        return {"top1": fraction(classes[:, 0] == labels), "none": fraction(classes[:, 0] == -1)}
