"""What the posterior decoder (llc.hamming.posterior) learns from the codes of train images.

The results are plain arrays, the same for the images in any order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from llc.codes import unpack_bits
from llc.native import hamming

# Flip probabilities that are tried. The lowest keeps float32 from underflowing in tables of 24 bits.
FLIP_PROBABILITIES = tuple(float(q) for q in np.geomspace(0.03, 0.45, 28).round(4))
# Numbers of images for which a class code may count. More would be more likely on train, whose codes are
# nearer to the class codes than those of new images, and so make probabilities too high.
CLASS_WEIGHTS = (1, 4, 16)
NUM_HELD_OUT = 2048  # train images on which these two are chosen
# The rest is for long codes.
MAX_FITTED = 1 << 18  # images that the regression is fitted to
PULL = 2.0  # how strongly it is pulled to the class codes, per bit; half and twice that are about as good
SCALES = tuple(float(scale) for scale in np.geomspace(0.01, 2.0, 32).round(4))  # of class codes
PRIOR_IMAGES = 4  # of the mean of a bit over all classes, in the density of a class
UNIT = 128  # scores of long codes are whole multiples of 1/UNIT nat, so that every device adds up the same
MAX_WEIGHT = 1023  # of a bit: the sum over four bytes fits into int16
_CHUNK = 1 << 22  # numbers that are worked on at once where a step needs a row for each code


def fit_counts(codes, labels, num_bits, num_classes, class_codes, q):
    codes, counts, ends = _counted(
        as_numbers(codes.astype(np.int64), num_bits), labels, None, num_bits, num_classes
    )
    of_classes = (
        np.zeros(num_classes, np.int64)
        if class_codes is None
        else as_numbers(class_codes.astype(np.int64), num_bits)
    )
    arrays = {
        "num_bits": np.array(num_bits),
        "codes": codes.astype(np.int32),
        "counts": counts.astype(np.int32),
        "ends": ends.astype(np.int64),
        "class_codes": of_classes.astype(np.int32),
    }
    if q is not None and not FLIP_PROBABILITIES[0] <= q < 0.5:
        raise ValueError(f"flip_probability: expected {FLIP_PROBABILITIES[0]} to 0.5, got {q!r:.80}")
    q, weight = most_likely(
        arrays,
        FLIP_PROBABILITIES if q is None else (float(q),),
        (0,) if class_codes is None else CLASS_WEIGHTS,
    )
    return arrays | {"flip_probability": np.array(q), "class_weight": np.array(weight)}


def as_numbers(codes, num_bits):
    """Packed codes, given as int64 [n, code_size], as numbers of num_bits bits -> int64 [n].

    The first bit is the highest. An array or a tensor.
    """
    numbers = codes[:, 0]
    for byte in range(1, codes.shape[1]):
        numbers = numbers << 8 | codes[:, byte]
    return numbers >> 8 * codes.shape[1] - num_bits


def _counted(numbers, labels, counts, num_bits, num_classes):
    """(the different numbers of each class, ascending; how often each occurs; where each class ends).

    counts: how often each of `numbers` occurs; None: once.
    """
    keys, places = np.unique(labels << num_bits | numbers, return_inverse=True)
    counts = np.bincount(places, counts).astype(np.int64)
    ends = np.searchsorted(keys >> num_bits, np.arange(num_classes), side="right")
    return keys & (1 << num_bits) - 1, counts, ends


def with_class_codes(arrays):
    """Codes, counts and ends of a decoder's arrays, the class codes among them."""
    codes, counts, ends = arrays["codes"].astype(np.int64), arrays["counts"], arrays["ends"]
    weight, num_classes = int(arrays["class_weight"]), len(ends)
    if not weight:
        return codes, counts, ends
    labels = np.repeat(np.arange(num_classes), np.diff(ends, prepend=0))
    return _counted(
        np.concatenate([codes, arrays["class_codes"]]),
        np.concatenate([labels, np.arange(num_classes)]),
        np.concatenate([counts, np.full(num_classes, weight)]),
        int(arrays["num_bits"]),
        num_classes,
    )


def most_likely(
    arrays: Mapping[str, np.ndarray], flip_probabilities: Sequence[float], class_weights: Sequence[int]
) -> tuple[float, int]:
    """The (flip probability, class weight) under which train images are most probably of their class.

    Each of up to NUM_HELD_OUT images, evenly spaced over the classes, is left out of the counts that judge
    it, and the sum over them of log P(its class | its code) counts. Without class codes (a weight of 0),
    images of a class without another image are passed over, since nothing is known of their class then.
    arrays: num_bits, codes, counts, ends and class_codes of a PosteriorDecoder.
    """
    codes, counts, ends = arrays["codes"].astype(np.uint32), arrays["counts"], arrays["ends"]
    num_bits, num_images, num_classes = int(arrays["num_bits"]), int(counts.sum()), len(ends)
    chosen = np.unique(np.linspace(0, num_images - 1, min(num_images, NUM_HELD_OUT)).astype(np.int64))
    rows = np.searchsorted(np.cumsum(counts), chosen, side="right")
    labels = np.searchsorted(ends, rows, side="right")
    alone = np.arange(1, num_classes + 1), np.ones(num_classes, np.int32)  # class codes: one of each class
    powers = _powers(np.array(flip_probabilities), num_bits)
    likelihoods = np.zeros((len(class_weights), len(flip_probabilities)))
    step = max(1, _CHUNK // (num_classes * (num_bits + 1)))
    for first in range(0, len(rows), step):
        part = rows[first : first + step], labels[first : first + step]
        own = np.arange(len(part[0])), part[1]

        def scores(of_codes, of_counts, of_ends, left_out, part=part, own=own):
            """([images, flip probabilities] scores of the images' own classes, the sums over all classes)."""
            histograms = hamming.posterior_histograms(
                codes[part[0]], of_codes, of_counts, of_ends, num_bits, torch.get_num_threads()
            )
            histograms[own[0], own[1], 0] -= left_out
            return histograms[own] @ powers, histograms.sum(1) @ powers

        images, all_images = scores(codes, counts, ends, 1)
        codes_of_classes, all_codes = scores(arrays["class_codes"].astype(np.uint32), alone[1], alone[0], 0)
        for place, weight in enumerate(class_weights):
            of_own = images + weight * codes_of_classes
            known = of_own[:, 0] > 0
            of_all = all_images + weight * all_codes
            likelihoods[place] += np.log(of_own[known] / of_all[known]).sum(0)
    best, of_best = divmod(int(likelihoods.argmax()), len(flip_probabilities))
    return flip_probabilities[of_best], class_weights[best]


def _powers(q, num_bits):
    """(q / (1 - q))^d for d from 0 to num_bits: float64 [num_bits + 1, number of flip probabilities]."""
    return (q / (1 - q)) ** np.arange(num_bits + 1)[:, None]


# ------------------------------------------------------------------------------------------------- long codes


def fit_linear(codes, labels, num_bits, num_classes, class_codes):
    """Arrays of a decoder of long codes.

    The posterior is that of multinomial logistic regression on the bits as -1 and 1. It begins as a softmax
    of the Hamming distances to the class codes, and is pulled towards that: where a class has few images, its
    code decides. The density is that of independent bits in each class (naive Bayes).
    """
    with torch.inference_mode(False), torch.enable_grad():  # else tensors made here would have no gradient
        return _fit_linear(codes, labels, num_bits, num_classes, class_codes)


def _fit_linear(codes, labels, num_bits, num_classes, class_codes):
    order = np.lexsort((*codes.T, labels))  # so that the order of the images does not matter
    codes, labels = codes[order], labels[order]
    part = np.unique(np.linspace(0, len(codes) - 1, min(len(codes), MAX_FITTED)).astype(np.int64))
    signs, own = _signs(codes[part], num_bits), torch.from_numpy(labels[part])
    num_images = np.bincount(labels, minlength=num_classes)
    centre = torch.zeros(num_classes, num_bits) if class_codes is None else _signs(class_codes, num_bits)
    centre *= _best_scale(signs, own, centre)
    prior = torch.from_numpy(np.log((num_images + 1) / (num_images + 1).sum())).float()
    weights, offsets = _regression(signs, own, centre, prior)
    # as functions of bits 0 and 1; a constant for all classes changes no posterior
    weights, offsets = 2 * weights, offsets - weights.sum(1)
    density = _naive_bayes(codes, labels, num_images, num_bits)
    return {
        "num_images": np.array(len(codes)),
        **_in_units("", (weights - weights.mean(0)).numpy(), (offsets - offsets.max()).numpy()),
        **_in_units("density_", *density),
    }


def _signs(codes, num_bits):
    """Bits as -1 and 1: float32 [n, num_bits]."""
    return torch.from_numpy(2 * unpack_bits(codes, num_bits).astype(np.float32) - 1)


def _in_units(prefix, weights, offsets):
    """Scores in nats as whole multiples of 1/UNIT nat: the arrays PREFIXweights and PREFIXoffsets."""
    return {
        f"{prefix}weights": np.clip(np.rint(UNIT * weights), -MAX_WEIGHT, MAX_WEIGHT).astype(np.int16),
        f"{prefix}offsets": np.rint(UNIT * np.maximum(offsets, -1e6)).astype(np.int32),
    }


def _log_likelihood(signs, labels, weights, offsets):
    """The mean over images of log P(own class)."""
    step = max(1, _CHUNK // len(weights))
    total = sum(
        -functional.cross_entropy(part @ weights.T + offsets, own, reduction="sum").item()
        for part, own in zip(signs.split(step), labels.split(step))
    )
    return total / len(signs)


def _best_scale(signs, labels, centre):
    """The factor of class codes with which the softmax of their products with codes is most likely."""
    some = torch.linspace(0, len(signs) - 1, min(len(signs), NUM_HELD_OUT)).long()
    none = torch.zeros(len(centre))
    return max(SCALES, key=lambda scale: _log_likelihood(signs[some], labels[some], scale * centre, none))


def _regression(signs, labels, centre, prior):
    """(weights float32 [num_classes, num_bits], offsets [num_classes]) of the lowest mean loss.

    The loss is -log P(own class), summed over the images, plus PULL * num_bits / 2 times the squared distance
    from `centre` and `prior`. By L-BFGS.
    """
    weights, offsets = centre.clone().requires_grad_(), prior.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, offsets], max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )
    step = max(1, _CHUNK // len(centre))

    def loss():
        optimizer.zero_grad()
        away = (weights - centre).square().sum() + (offsets - prior).square().sum()
        total = PULL * signs.shape[1] / (2 * len(signs)) * away
        total.backward()
        for part, own in zip(signs.split(step), labels.split(step)):
            of_part = functional.cross_entropy(part @ weights.T + offsets, own, reduction="sum") / len(signs)
            of_part.backward()
            total = total + of_part.detach()
        return total.detach()

    optimizer.step(loss)
    return weights.detach(), offsets.detach()


def _naive_bayes(codes, labels, num_images, num_bits):
    """(log odds of each bit, log of the number of images times P(code of zeros)), for each class, in nats.

    The mean of a bit over all images counts for PRIOR_IMAGES images of each class.
    """
    ones = np.zeros((len(num_images), num_bits), np.int64)
    step = max(1, _CHUNK // num_bits)
    for first in range(0, len(codes), step):
        part = slice(first, first + step)
        np.add.at(ones, labels[part], unpack_bits(codes[part], num_bits) > 0)
    mean = (ones.sum(0) + 1) / (len(codes) + 2)
    p = (ones + PRIOR_IMAGES * mean) / (num_images + PRIOR_IMAGES)[:, None]
    least = 1 / (1 + np.exp(MAX_WEIGHT / UNIT))  # else _in_units would cut the log odds, but not log_not
    p = np.clip(p, least, 1 - least)
    log_not = np.log1p(-p)
    with np.errstate(divide="ignore"):
        return np.log(p) - log_not, np.log(num_images) + log_not.sum(1)
