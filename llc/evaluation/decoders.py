"""The decoders: how z or codes become classes, and what is measured of each. One table for the whole project.

The encoder, the trainer, `llc.evaluate` and the comparison of methods loop over `DECODERS`; a decoder from
outside the package registers itself in the same way (docs/how-to/extending.md). The fast functions on packed
codes that decoders use are in llc.hamming. Some decoders first learn from the codes of the train set
(FittedDecoder); llc.evaluation.fitting says from which, and keeps what they learnt.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch

from llc.codes import pack_bits
from llc.hamming import PosteriorDecoder, search
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
    gives_probabilities: whether its scores are the probabilities of the classes
    """

    name: ClassVar[str]
    title: ClassVar[str]
    short: ClassVar[str]
    of_image_codes: ClassVar[bool]
    depth: ClassVar[int] = 5
    details: ClassVar[dict[str, str]] = {}
    gives_probabilities: ClassVar[bool] = False

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


class FittedDecoder(Decoder):
    """A decoder that learns from the codes of the train set; until then a network cannot be decoded with it.

    What it learnt is an object with the attribute `arrays`, {name: numpy array}, from which `restore` makes
    it again.
    """

    def fit(self, codes: np.ndarray, labels: np.ndarray, network: Network) -> Any:
        """Learns from the packed codes of train images, uint8 [n, code_size], and their labels int64 [n].

        The result must be the same wherever it is made from the same codes, in any order.
        """
        raise NotImplementedError

    def restore(self, arrays: Mapping[str, np.ndarray], network: Network) -> Any:
        """What `fit` returned, from its arrays. Raises ValueError if they are something else."""
        raise NotImplementedError

    def bind_fitted(self, network: Network, learnt: Any) -> Rank:
        """As `bind`, with what `fit` or `restore` returned."""
        raise NotImplementedError


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


def fitted_decoders() -> dict[str, FittedDecoder]:
    """The registered decoders that learn from the train set, by name."""
    return {name: decoder for name, decoder in DECODERS.items() if isinstance(decoder, FittedDecoder)}


def usable(learnt: Mapping[str, Any]) -> list[str]:
    """Names of the decoders that need not learn, and of those that have: learnt holds what, by name."""
    return [name for name in DECODERS if name in learnt or name not in fitted_decoders()]


def bind(name: str, network: Network, learnt: Mapping[str, Any] = MappingProxyType({})) -> Rank:
    """The function that decodes with a registered decoder and this network.

    learnt: {decoder: what it learnt}, which must hold those that learn. Whatever decodes gets the function
    from here. It raises ValueError if the decoder's answers do not have the shapes and the dtype that `Rank`
    states.
    """
    decoder = DECODERS[name]
    rank = (
        decoder.bind_fitted(network, learnt[name])
        if isinstance(decoder, FittedDecoder)
        else decoder.bind(network)
    )

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


def calibration_error(hits: torch.Tensor, probabilities: torch.Tensor, num_bins: int = 15) -> float:
    """Expected calibration error: how far accuracy is from mean probability.

    It is the distance between the two in each interval of probability, averaged over the images.

    hits bool [N]: whether the first class is right; probabilities [N], 0 to 1: what the decoder gave it.
    Images are divided among num_bins intervals of probability of equal width (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017).
    """
    bins = _bins(probabilities, num_bins)
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=bins.device)
    gaps.index_add_(0, bins, hits.double() - probabilities.double())
    return gaps.abs().sum().item() / len(hits)


def calibration_bins(
    hits: torch.Tensor, probabilities: torch.Tensor, num_bins: int = 15
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bins of `calibration_error`, each [num_bins]: counts int64, mean probability and accuracy float64.

    hits bool [N], probabilities [N]. Bin i holds the probabilities above i / num_bins up to (i + 1) /
    num_bins; the first one holds 0, too. The means are NaN in empty bins.
    """
    bins = _bins(probabilities, num_bins)
    counts, *sums = (
        torch.zeros(num_bins, dtype=torch.float64, device=bins.device).index_add_(0, bins, values.double())
        for values in (torch.ones_like(bins), probabilities, hits)
    )
    return counts.long(), sums[0] / counts, sums[1] / counts


def _bins(probabilities: torch.Tensor, num_bins: int) -> torch.Tensor:
    return (probabilities.double() * num_bins).ceil().long().sub(1).clamp(0, num_bins - 1)


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


@register
class Posterior(FittedDecoder):
    """The most probable classes given the image's code, from the train set's codes; ties to the lowest class.

    Scores: the probabilities, float32.
    """

    name = "posterior"
    title = short = "posterior"
    of_image_codes = True
    details = {"ece": "calibration error"}
    gives_probabilities = True

    def fit(self, codes: np.ndarray, labels: np.ndarray, network: Network) -> PosteriorDecoder:
        num_classes, num_bits = network.codebook.shape
        class_codes = pack_bits(network.codebook.detach().cpu())
        return PosteriorDecoder.fit(codes, labels, num_bits, num_classes, class_codes=class_codes)

    def restore(self, arrays: Mapping[str, np.ndarray], network: Network) -> PosteriorDecoder:
        decoder, (num_classes, num_bits) = PosteriorDecoder(arrays), network.codebook.shape
        if (decoder.num_bits, decoder.num_classes) != (num_bits, num_classes):
            raise ValueError(
                f"for {decoder.num_classes} classes and {decoder.num_bits} bits, "
                f"not {num_classes} and {num_bits}"
            )
        return decoder

    def bind_fitted(self, network: Network, learnt: PosteriorDecoder) -> Rank:
        def rank(z: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            classes, probabilities = learnt.decode(pack_bits(z), k)
            return classes, probabilities

        return rank

    def metrics(
        self, labels: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, num_classes: int
    ) -> dict[str, float]:
        """top1, top5, ece: the expected calibration error of the first class's probability."""
        return accuracies(labels, classes) | {"ece": calibration_error(classes[:, 0] == labels, scores[:, 0])}
