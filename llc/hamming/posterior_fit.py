"""What the posterior decoder (llc.hamming.posterior) learns from the codes of train images.

The results are plain arrays, the same for the images in any order.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from llc.codes import unpack_bits
from llc.native import hamming

# Flip probabilities that are tried. The lowest keeps float32 from underflowing in tables of 24 bits.
FLIP_PROBABILITIES = tuple(float(q) for q in np.geomspace(0.03, 0.45, 28).round(4))
TEMPERATURES = tuple(float(t) for t in np.geomspace(1.0, 32.0, 31).round(3))
CLASS_WEIGHTS = (1, 4, 16, 64, 256)  # numbers of images for which a class's code may count
NUM_HELD_OUT = 2048  # train images on which these three are chosen
UNIT = 128  # scores of long codes are whole multiples of 1/UNIT nat, so that every device adds up the same
MAX_WEIGHT = 1023  # of a bit: the sum over four bytes fits into int16
_CHUNK = 1 << 22  # numbers that are worked on at once where a step needs a row for each code


def fit_counts(codes, labels, num_bits, num_classes, class_codes, q):
    codes, counts, ends = _counted(as_numbers(codes, num_bits), labels, None, num_bits, num_classes)
    of_classes = np.zeros(num_classes, np.int64) if class_codes is None else as_numbers(class_codes, num_bits)
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
    """Packed codes as numbers of num_bits bits -> int64 [n]; the first bit is the highest."""
    numbers = np.zeros(len(codes), np.int64)
    for byte in range(codes.shape[1]):
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
    ones = np.zeros((num_classes, num_bits), np.int64)
    step = max(1, _CHUNK // num_bits)
    for first in range(0, len(codes), step):
        part = slice(first, first + step)
        np.add.at(ones, labels[part], unpack_bits(codes[part], num_bits) > 0)
    num_images = np.bincount(labels, minlength=num_classes)
    prior = np.broadcast_to((ones.sum(0) + 1) / (len(codes) + 2), ones.shape)
    if class_codes is not None:  # the class's bit, as often wrong as this bit is in all images
        of_class = unpack_bits(class_codes, num_bits) > 0
        wrong = np.where(of_class, num_images[:, None] - ones, ones).sum(0)
        wrong = (wrong + 1) / (len(codes) + 2)
        prior = np.where(of_class, 1 - wrong, wrong)
    weight, temperature = _most_likely_linear(codes, labels, ones, num_images, prior)
    log_odds, offsets = _naive_bayes(ones, num_images, prior, weight)
    weights = np.clip(np.rint(UNIT / temperature * log_odds), -MAX_WEIGHT, MAX_WEIGHT)
    return {
        "num_images": np.array(len(codes)),
        "weights": weights.astype(np.int16),
        "offsets": np.rint(UNIT / temperature * np.maximum(offsets, -1e5)).astype(np.int32),
        "temperature": np.array(temperature),
    }


def _naive_bayes(ones, num_images, prior, weight):
    """(log odds of each bit, log of the number of images times P(code of zeros)), for each class.

    prior: the probability that a bit is 1, before any image of the class; it counts for `weight` images.
    """
    p = (ones + weight * prior) / (num_images + weight)[:, None]
    log_not = np.log1p(-p)
    with np.errstate(divide="ignore"):
        return np.log(p) - log_not, np.log(num_images) + log_not.sum(1)


def _most_likely_linear(codes, labels, ones, num_images, prior):
    """The (weight of the prior, temperature) under which train images are most probably of their class.

    As in most_likely, up to NUM_HELD_OUT images are each left out of what judges it.
    """
    order = np.lexsort((*codes.T, labels))
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), NUM_HELD_OUT)).astype(np.int64))]
    chosen = chosen[num_images[labels[chosen]] > 1]
    if not len(chosen):
        return CLASS_WEIGHTS[-1], 1.0
    bits, own = unpack_bits(codes[chosen], ones.shape[1]).astype(np.int64), labels[chosen]
    best = -math.inf, CLASS_WEIGHTS[0], 1.0
    for weight in CLASS_WEIGHTS:
        log_odds, offsets = _naive_bayes(ones, num_images, prior, weight)
        scores = bits @ log_odds.T + offsets
        log_odds, offsets = _naive_bayes(ones[own] - bits, num_images[own] - 1, prior[own], weight)
        scores[np.arange(len(own)), own] = (bits * log_odds).sum(1) + offsets
        scores -= scores.max(1, keepdims=True)
        of_own = scores[np.arange(len(own)), own]
        for temperature in TEMPERATURES:
            likelihood = (of_own / temperature - np.log(np.exp(scores / temperature).sum(1))).sum()
            best = max(best, (likelihood, weight, temperature), key=lambda found: found[0])
    return best[1:]
