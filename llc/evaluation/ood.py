"""Out-of-distribution (OOD) detection: scores of how much an image is like those of training, and measures.

A score is higher the more an image looks in-distribution. An image is accepted if its score is at least a
threshold, else it is rejected as OOD. The scores are a table, `SCORES`, to which anyone can add (`register`).
Those of an image's code (CodeScore) need no network, so codes of any encoder can be measured (`from_codes`).

scikit-learn computes the curves of `detection`; it is imported there, because nothing else here needs it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch

from llc.arguments import whole_number
from llc.codes import Array, pack_bits
from llc.distributed import Processes
from llc.evaluation.metrics import FLIP
from llc.evaluation.predict import Autocast, Batches, collect
from llc.hamming import PosteriorDecoder, search
from llc.network import Network
from llc.packages import needed

# z float32 [n, num_bits] -> scores, real numbers [n]
Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

PURPOSE = "out-of-distribution detection"  # what needs scikit-learn
KEPT_PERCENT = 95  # of the in-distribution, by thresholds that know nothing of OOD images


# -------------------------------------------------------------------------------------------------- the table


class Score:
    """A score of how much an image is like those of training; higher is more in-distribution.

    name: what its measures end in (auroc.mhd)
    title: its name in reports
    needs_posterior: whether it needs a posterior decoder that was fitted to the codes of the train set
    is_rule: whether it only accepts, with 1, or rejects, with 0, and so needs no threshold
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs_posterior: ClassVar[bool] = False
    is_rule: ClassVar[bool] = False

    def bind(self, network: Network, learnt: Mapping[str, Any]) -> Function:
        """The function that scores with this network, whose codebook must not change afterwards.

        learnt: {decoder: what it learnt}; it holds "posterior" if the score needs that. The scores are real
        numbers [n] of any dtype, or bools.
        """
        raise NotImplementedError


class CodeScore(Score):
    """A score of an image's packed code, which can be computed without a network."""

    def of_codes(self, codes: Any, class_codes: Any, posterior: PosteriorDecoder | None) -> Any:
        """The scores [n] of codes uint8 [n, code_size], all numpy arrays or all tensors on one device.

        class_codes uint8 [num_classes, code_size]; None if they are unknown, which happens only where the
        score needs the posterior decoder. posterior: None only where it does not.
        """
        raise NotImplementedError

    def bind(self, network: Network, learnt: Mapping[str, Any]) -> Function:
        class_codes, posterior = pack_bits(network.codebook.detach()), learnt.get("posterior")
        return lambda z: self.of_codes(pack_bits(z), class_codes, posterior)


SCORES: dict[str, Score] = {}  # by name, in the order of registration


def register(kind: type[Score]) -> type[Score]:
    """A class decorator that adds a Score to the table.

    Raises ValueError if its name or title is missing, or if its name is taken or no identifier.
    """
    missing = [key for key in ("name", "title") if not hasattr(kind, key)]
    if missing:
        raise ValueError(f"score {kind.__name__}: the class has no {', '.join(missing)}")
    if kind.name in SCORES:
        raise ValueError(f"score {kind.name!r} is registered already, as {type(SCORES[kind.name]).__name__}")
    if not kind.name.isidentifier():
        raise ValueError(f"score {kind.name!r}: expected letters, digits and _, as in auroc.NAME")
    SCORES[kind.name] = kind()
    return kind


def usable(learnt: Mapping[str, Any]) -> list[str]:
    """Names of the scores that can be computed. learnt: {decoder: what it learnt}."""
    return [name for name, score in SCORES.items() if "posterior" in learnt or not score.needs_posterior]


def bind(name: str, network: Network, learnt: Mapping[str, Any] = MappingProxyType({})) -> Function:
    """The function from z to scores float64 [n], of a registered score and this network.

    learnt: {decoder: what it learnt}. The function raises ValueError if the score's result has another shape
    than [n].
    """
    function = SCORES[name].bind(network, learnt)
    return lambda z: _as_float64(name, function(z), len(z))


def bind_all(network: Network, learnt: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Function]:
    """{name: the function of `bind`} of all scores that can be computed."""
    return {name: bind(name, network, learnt) for name in usable(learnt)}


def _as_float64(name: str, scores: Any, n: int) -> Any:
    if tuple(scores.shape) != (n,):
        raise ValueError(f"score {name!r}: expected scores [{n}], got {list(scores.shape)}")
    return scores.double() if isinstance(scores, torch.Tensor) else scores.astype(np.float64)


@torch.inference_mode()
def scores(
    network: Network,
    loader: Batches,
    processes: Processes,
    *,
    flip: bool,
    autocast: Autocast,
    learnt: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, np.ndarray], int]:
    """({name: scores float64 [n]}, num_non_finite) of all images of a loader, in dataset order.

    Images need no label. num_non_finite: how many images have a z that is NaN or infinite, so that their
    scores mean nothing. flip: z is the mean over an image and its mirror image. learnt: {decoder: what it
    learnt}; without "posterior", the scores that need it are left out. Every process gets all of it, each
    image exactly once. For the rest see `llc.evaluation.predict.predict`.
    """
    view = FLIP if flip else ""
    functions = bind_all(network, learnt)
    found = collect(
        network,
        loader,
        processes,
        views=(view,),
        autocast=autocast,
        measure=lambda z: [function(z) for function in functions.values()],
    )[view]
    of_all = {name: values.cpu().numpy() for name, values in zip(functions, found.measured)}
    return of_all, int((~found.finite).sum())


def from_codes(
    codes: Array, class_codes: Array | None, posterior: PosteriorDecoder | None = None
) -> dict[str, Array]:
    """{name: scores float64 [n]} of packed codes, whatever made them: of each CodeScore that can be computed.

    codes uint8 [n, code_size]; class_codes uint8 [num_classes, code_size], of the same kind and on the same
    device. Without them only the scores that need a posterior decoder are computed, and without such a
    decoder only the others. Raises ValueError if the arguments do not fit each other.
    """
    return {
        name: _as_float64(name, score.of_codes(codes, class_codes, posterior), len(codes))
        for name, score in SCORES.items()
        if isinstance(score, CodeScore) and (posterior if score.needs_posterior else class_codes) is not None
    }


# --------------------------------------------------------------------------------------------------- built in


@register
class Exact(CodeScore):
    """1 if the code equals the code of some class, else 0: the paper's rule (LLC, arXiv 2106.01487)."""

    name = "exact"
    title = "code of a class"
    is_rule = True

    def of_codes(self, codes: Any, class_codes: Any, posterior: PosteriorDecoder | None) -> Any:
        return search(codes, class_codes, 1)[0][:, 0] == 0


@register
class NearestCode(CodeScore):
    """Minus the Hamming distance to the nearest class code."""

    name = "mhd"
    title = "MHD"

    def of_codes(self, codes: Any, class_codes: Any, posterior: PosteriorDecoder | None) -> Any:
        return -search(codes, class_codes, 1)[0][:, 0]


@register
class Density(CodeScore):
    """The natural logarithm of P(code), how probable the code is in the train set."""

    name = "density"
    title = "code density"
    needs_posterior = True

    def of_codes(self, codes: Any, class_codes: Any, posterior: PosteriorDecoder | None) -> Any:
        assert posterior is not None, "the table asks for it"
        return posterior.log_density(codes)


@register
class HighestPosterior(CodeScore):
    """The probability of the most probable class, given the code."""

    name = "posterior"
    title = "posterior"
    needs_posterior = True

    def of_codes(self, codes: Any, class_codes: Any, posterior: PosteriorDecoder | None) -> Any:
        assert posterior is not None, "the table asks for it"
        return posterior.decode(codes, 1)[1][:, 0]


@register
class HighestSoftmax(Score):
    """The highest softmax probability of the class logits (Hendrycks & Gimpel, arXiv 1610.02136)."""

    name = "softmax"
    title = "max softmax"

    def bind(self, network: Network, learnt: Mapping[str, Any]) -> Function:
        # In float64, where fewer images share the probability 1.
        return lambda z: network.class_logits(z).double().softmax(1).amax(1)


@register
class Energy(Score):
    """Minus the energy: log-sum-exp of the class logits, at temperature 1 (Liu et al., arXiv 2010.03759)."""

    name = "energy"
    title = "energy"

    def bind(self, network: Network, learnt: Mapping[str, Any]) -> Function:
        return lambda z: network.class_logits(z).double().logsumexp(1)


# --------------------------------------------------------------------------------------------------- measures


def detection(scores_in: Any, scores_out: Any) -> dict[str, float]:
    """How well scores tell in-distribution from OOD images: {"auroc", "aupr_in", "aupr_out", "fpr95"}.

    scores_in [n], scores_out [m]: real numbers, higher is more in-distribution. The definitions are those of
    OpenOOD since August 2023 (openood/evaluators/metrics.py, commit 873e8c2, and Zhang et al., "OpenOOD
    v1.5", arXiv 2306.09301); before, its FPR was that of OOD images at 95 % of the in-distribution.

    auroc: the fraction of the pairs of an in-distribution and an OOD image in which the in-distribution image
        has the higher score; a tie counts half. A constant score has 0.5.
    aupr_in, aupr_out: the area under the curve of precision over recall, where in-distribution or where OOD
        is the positive class. The points, one for each distinct score, are joined by straight lines, which is
        more than average precision where scores tie: a constant score has (1 + p) / 2, where p is the
        fraction of positive images. So they compare scores only on the same images.
    fpr95: OOD is the positive class. The lowest fraction of in-distribution images that any threshold rejects
        which rejects at least 95 % of the OOD images. A constant score has 1.

    Images of the same score always fall together. OpenOOD leaves out points of the ROC curve that lie on a
    line between others, so that its fpr95 can be higher than this one where scores tie.

    Raises ValueError if a side is empty or holds NaN or infinity, and UserError without scikit-learn.
    """
    inside, outside = _real_numbers("scores_in", scores_in), _real_numbers("scores_out", scores_out)
    metrics = needed("sklearn.metrics", PURPOSE, extra="evaluation")
    together = np.concatenate([inside, outside])
    is_out = np.repeat([0, 1], [len(inside), len(outside)])
    in_rejected, out_rejected, _ = metrics.roc_curve(is_out, -together, drop_intermediate=False)
    precision_in, recall_in, _ = metrics.precision_recall_curve(1 - is_out, together)
    precision_out, recall_out, _ = metrics.precision_recall_curve(is_out, -together)
    return {
        "auroc": float(metrics.auc(in_rejected, out_rejected)),
        "aupr_in": float(metrics.auc(recall_in, precision_in)),
        "aupr_out": float(metrics.auc(recall_out, precision_out)),
        "fpr95": float(in_rejected[np.argmax(out_rejected >= 0.95)]),
    }


def auroc(scores_in: Any, scores_out: Any) -> float:
    """The "auroc" of `detection`, without scikit-learn; the two differ by rounding at most.

    scores_in [n], scores_out [m]. Raises ValueError as `detection` does.
    """
    inside = _real_numbers("scores_in", scores_in)
    outside = np.sort(_real_numbers("scores_out", scores_out))
    below, up_to = (np.searchsorted(outside, inside, side) for side in ("left", "right"))
    return float((below.sum() + up_to.sum()) / (2 * len(inside) * len(outside)))


def decide(accepted_in: Any, accepted_out: Any) -> dict[str, float]:
    """{"precision", "recall", "f1"} of decisions, with OOD as the positive class.

    accepted_in bool [n], accepted_out bool [m]: whether each image was taken for in-distribution. precision:
    of the rejected images, the fraction that is OOD, 0 where none is rejected; recall: of the OOD images, the
    fraction that is rejected; f1: their harmonic mean, 0 where both are. Precision and F1 depend on how many
    images there are of either kind. Raises ValueError if a side is empty or holds no bools.
    """
    sides = {"accepted_in": np.asarray(accepted_in), "accepted_out": np.asarray(accepted_out)}
    for name, accepted in sides.items():
        if accepted.dtype != np.bool_ or accepted.ndim != 1 or not len(accepted):
            raise ValueError(
                f"{name}: expected one bool or more, [n], got {accepted.dtype} {list(accepted.shape)}"
            )
    false, true = (int((~accepted).sum()) for accepted in sides.values())
    num_out = len(sides["accepted_out"])
    return {
        "precision": true / (true + false) if true + false else 0.0,
        "recall": true / num_out,
        "f1": 2 * true / (num_out + true + false),
    }


def best_threshold(scores_in: Any, scores_out: Any) -> float:
    """The threshold of the best F1 on these images: those below it are rejected. See `decide`.

    scores_in [n], scores_out [m]. It is a score that occurs, the lowest one accepted; where it is best to
    reject everything, it lies above all. Of several that are as good, it is the lowest. Raises ValueError as
    `detection` does.
    """
    inside, outside = _real_numbers("scores_in", scores_in), _real_numbers("scores_out", scores_out)
    occurring = np.unique(np.concatenate([inside, outside]))
    thresholds = np.append(occurring[1:], np.nextafter(occurring[-1], np.inf))
    false, true = (np.searchsorted(np.sort(side), thresholds) for side in (inside, outside))
    return float(thresholds[np.argmax(2 * true / (len(outside) + true + false))])


def keeping_threshold(scores_in: Any) -> float:
    """The highest threshold that accepts at least KEPT_PERCENT % of these in-distribution images.

    scores_in [n]. It needs no OOD images. Raises ValueError as `detection` does.
    """
    inside = np.sort(_real_numbers("scores_in", scores_in))
    num_kept = -(-KEPT_PERCENT * len(inside) // 100)
    return float(inside[len(inside) - num_kept])


def evaluate(
    inside: Mapping[str, Any], outside: Mapping[str, Any], *, num_tuning: int = 3000, seed: int = 0
) -> dict[str, float]:
    """All measures of all scores: {"auroc.mhd": value, ...}.

    inside, outside: {score: real numbers [n]} of in-distribution and of OOD images, as `scores` or
    `from_codes` make them; the same scores in both, and in each of them all for the same images. A score that
    is not in the table is no rule.

    {auroc, aupr_in, aupr_out, fpr95}.NAME: of `detection`, on all images.

    {precision, recall, f1}.NAME: of `decide`, with a threshold, threshold.NAME, that has the best F1 on
    images drawn by the seed, as many of either kind: num_tuning in all, but at most half of the images of
    each kind. 3,000 is about what the baseline of the LLC paper (arXiv 2106.01487) needs. The measures are of
    the other images alone. A rule, such as `exact`, has no threshold. Its measures are of the same images,
    and of all as {precision, recall, f1}_all.NAME.

    {precision, recall, f1, threshold}_keep95.NAME: the same with the threshold that accepts 95 % of the
    drawn in-distribution images, and that no OOD image has a say in.

    num_tuning: how many images were drawn.

    Raises ValueError if there are no scores, if the two sides do not have the same ones, if the numbers of
    images differ between scores or are below 2, if a score is NaN or infinite, and if num_tuning is no whole
    number above 1. Raises UserError without scikit-learn.
    """
    num_tuning = whole_number("num_tuning", num_tuning, 2)
    seed = whole_number("seed", seed, 0)
    if not inside or set(inside) != set(outside):
        odd = sorted(set(inside) ^ set(outside))
        raise ValueError(
            f"inside, outside: only one of them has {', '.join(odd)}; give both the same scores"
            if odd
            else "inside, outside: there are no scores"
        )
    sides = [
        {name: _real_numbers(f"{title}[{name!r}]", side[name]) for name in inside}
        for title, side in (("inside", inside), ("outside", outside))
    ]
    sizes = [_common_size(title, side) for title, side in zip(("inside", "outside"), sides)]
    num_each = min(num_tuning, *sizes) // 2
    drawn = [_draw(size, num_each, [seed, place]) for place, size in enumerate(sizes)]
    measures: dict[str, float] = {"num_tuning": 2 * num_each}

    def add(found: Mapping[str, float], name: str, suffix: str = "") -> None:
        measures.update({f"{measure}{suffix}.{name}": value for measure, value in found.items()})

    for name in inside:
        all_of = [side[name] for side in sides]
        tuning, rest = (
            [values[chosen == which] for values, chosen in zip(all_of, drawn)] for which in (True, False)
        )
        add(detection(*all_of), name)
        if name in SCORES and SCORES[name].is_rule:
            add(decide(*(values > 0 for values in rest)), name)
            add(decide(*(values > 0 for values in all_of)), name, "_all")
            continue
        for suffix, threshold in (
            ("", best_threshold(*tuning)),
            (f"_keep{KEPT_PERCENT}", keeping_threshold(tuning[0])),
        ):
            found = decide(*(values >= threshold for values in rest))
            add(found | {"threshold": threshold}, name, suffix)
    return measures


def _draw(size: int, number: int, seed: list[int]) -> np.ndarray:
    """Which of `size` images are among the `number` drawn: bool [size]."""
    drawn = np.zeros(size, bool)
    drawn[np.random.default_rng(seed).permutation(size)[:number]] = True
    return drawn


def _common_size(title: str, side: Mapping[str, np.ndarray]) -> int:
    """The number of images of a side. Raises ValueError if it differs between scores or is below 2."""
    sizes = {name: len(values) for name, values in side.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{title}: expected scores of the same images, got different numbers: {found}")
    size = next(iter(sizes.values()))
    if size < 2:
        raise ValueError(
            f"{title}: holds {size} image, but one is needed to tune a threshold and another to measure it"
        )
    return size


def _real_numbers(name: str, values: Any) -> np.ndarray:
    """Checks scores -> float64 [n]. Raises ValueError unless they are finite real numbers [n], n >= 1."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim != 1:
        raise ValueError(f"{name}: expected real numbers [n], got {array.dtype} {list(array.shape)}")
    if not len(array):
        raise ValueError(f"{name}: holds no scores")
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise ValueError(f"{name}: {broken:,} of {len(array):,} scores are NaN or infinite")
    return array.astype(np.float64)
