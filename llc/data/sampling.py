"""Which samples a batch holds, their crops and flips: functions of (seed, epoch, sample).

Randomness comes from a counter, not from a generator's state: draw d of sample i is a hash of (seed, epoch,
i, d), SplitMix64's (Steele, Lea, Flood 2014). So a batch is the same whoever makes it, and after whatever
else, on any number of processes and threads. Integers are hashed modulo 2^64, and real numbers use only
operations that IEEE 754 rounds exactly (+, -, x, /, sqrt), so results are the same on every machine and with
every numpy.

n: samples; B: batch_size, per process.
"""

import math

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
# What a draw is for; each use has draws of its own.
_ORDER, _CROP, _PAGE, _WITHIN_PAGE, _WINDOW, _REPLACEMENT = range(6)

NUM_TRIES = 10  # of a random crop, before it falls back to the centre, as in torchvision
RATIO = 3 / 4, 4 / 3  # aspect ratios (width / height) of a random crop lie between these
_LOG_MAX_RATIO = 0.28768207245178085  # ln(4/3)


def _mix(x):
    """SplitMix64's output function, a bijection on uint64 [...]."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _draws(use, seed, epoch, counters, num_draws=None):
    """uint64 [n], or [n, num_draws]: random bits for the counters int64 [n].

    Without num_draws, different counters get different bits.
    """
    key = np.zeros(1, np.uint64)
    for number in (use, seed, epoch):
        key = _mix(key + np.uint64((number + 1) * _GOLDEN & _MASK))
    bits = _mix(key + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
    if num_draws is None:
        return bits
    return _mix(bits[:, None] + np.arange(1, num_draws + 1, dtype=np.uint64) * np.uint64(_GOLDEN))


def _uniform(bits):
    """uint64 -> float64 in [0, 1), the same shape."""
    return (bits >> np.uint64(11)) * 2.0**-53


# ------------------------------------------------------------------------------------------------ order


def num_batches(num_samples, batch_size, world_size=1):
    """Batches per epoch, the same for every process.

    At most world_size * batch_size - 1 samples are left out.
    """
    return num_samples // (batch_size * world_size)


def random_order(num_samples, batch_size, seed, epoch, rank=0, world_size=1):
    """Sample indices int64 [batches, B] of one process for one epoch: a permutation keyed by (seed, epoch).

    Batch b of all processes together is places [b * total, (b + 1) * total) of the permutation, total = B *
    world_size, and rank r gets its r-th part. No sample comes twice; the epochs leave out different ones.
    """
    # No two draws are equal, so every sorting algorithm gives the same order.
    order = np.argsort(_draws(_ORDER, seed, epoch, np.arange(num_samples)))
    batches = num_batches(num_samples, batch_size, world_size)
    return order[: batches * batch_size * world_size].reshape(batches, world_size, batch_size)[:, rank]


def pagewise_order(pages, batch_size, seed, epoch, rank=0, world_size=1, *, window):
    """`random_order` for data read by pages: int64 [batches, B], a page's samples close together.

    pages: int64 [n], each sample's page, numbered from 0. The pages are permuted, and a sample moves back by
    a random distance of less than `window` pages. So the pages in use at a time are `window` consecutive
    pages of the permutation and those that a batch covers. The processes take consecutive parts, so all but
    world_size - 1 pages are read by one process only. The same samples are left out for any number of
    processes if all their batches together have the same size. Randomness is limited to the window: where
    files hold their samples class by class, a batch has images of about as many classes as `window`.
    """
    num_pages = int(pages.max()) + 1
    place = np.empty(num_pages, np.int64)
    place[np.argsort(_draws(_PAGE, seed, epoch, np.arange(num_pages)))] = np.arange(num_pages)
    place = place[pages]
    by_page = np.lexsort((_draws(_WITHIN_PAGE, seed, epoch, np.arange(len(pages))), place))
    batches = num_batches(len(pages), batch_size, world_size)
    part = by_page[rank * batches * batch_size : (rank + 1) * batches * batch_size]
    moved = place[part] + window * _uniform(_draws(_WINDOW, seed, epoch, part))
    return part[np.argsort(moved, kind="stable")].reshape(batches, batch_size)


def replacements(index, num_samples, seed, epoch, num):
    """Samples to try, int64 [num], in place of the damaged sample `index`, whatever its batch and process."""
    draws = _draws(_REPLACEMENT, seed, epoch, np.array([index]), num)[0]
    return (draws % np.uint64(num_samples)).astype(np.int64)


# ------------------------------------------------------------------------------------------------ crops


def random_crops(
    indices, heights, widths, seed, epoch, min_scale, max_scale=1, ratio=RATIO, flip_probability=0.5
):
    """torchvision's RandomResizedCrop and RandomHorizontalFlip for the samples `indices`, int64 [n].

    heights, widths: [n]. Returns crops int32 [n, 4], (top, left, height, width), and flips bool [n]. The area
    is uniform in [min_scale, max_scale] of the image, the aspect ratio log-uniform between the two of
    `ratio`. After ten tries that do not fit, it is the largest centre crop with a ratio in these limits. With
    another `ratio` than RATIO, its logarithms are the C library's, which may differ in the last bit.
    """
    heights, widths = np.asarray(heights, np.float64), np.asarray(widths, np.float64)
    middle, spread, halvings = _log_ratios(ratio)
    bits = _draws(_CROP, seed, epoch, indices, 4 * NUM_TRIES + 1)
    crops = _widest_centre_crops(heights, widths, ratio)
    left = np.arange(len(crops))  # those without a crop yet
    for k in range(NUM_TRIES):
        h, w = heights[left], widths[left]
        u = _uniform(bits[left, 4 * k : 4 * k + 4])
        area = h * w * (min_scale + (max_scale - min_scale) * u[:, 0])
        aspect = _exp(middle + (2 * u[:, 1] - 1) * spread, halvings)
        crop_h, crop_w = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        fits = (0 < crop_w) & (crop_w <= w) & (0 < crop_h) & (crop_h <= h)
        top, side = np.floor(u[:, 2] * (h - crop_h + 1)), np.floor(u[:, 3] * (w - crop_w + 1))
        crops[left[fits]] = np.stack([top, side, crop_h, crop_w], 1)[fits]
        left = left[~fits]
        if not len(left):
            break
    return crops, _flips(bits[:, -1], flip_probability)


def random_flips(indices, seed, epoch, probability=0.5):
    """Whether each of the samples is flipped left to right, bool [n]: as random_crops says it."""
    return _flips(_draws(_CROP, seed, epoch, indices, 4 * NUM_TRIES + 1)[:, -1], probability)


def _flips(bits, probability):
    return _uniform(bits) >= 1 - probability


def _log_ratios(ratio):
    """(middle, spread, halvings): log ratios lie in middle +- spread; `_exp` needs the last."""
    if tuple(ratio) == RATIO:
        return 0.0, _LOG_MAX_RATIO, 0
    low, high = map(math.log, ratio)
    largest = max(abs(low), abs(high), _LOG_MAX_RATIO)
    return (low + high) / 2, (high - low) / 2, math.ceil(math.log2(largest / _LOG_MAX_RATIO))


def _exp(x, halvings):
    """exp for |x| <= 2^halvings ln(4/3) by its Taylor series, because libraries' exp differ in the last bit.

    The 14th term is below float64's precision once x was halved so often; the result is squared as often.
    """
    x, result = x / 2**halvings, np.ones_like(x)
    for k in range(14, 0, -1):
        result = 1 + x / k * result
    for _ in range(halvings):
        result = result * result
    return result


def _widest_centre_crops(heights, widths, ratio):
    """The fallback: the largest centre crops with an aspect ratio within `ratio`."""
    crop_h = np.minimum(heights, np.maximum(np.rint(widths / ratio[0]), 1))
    crop_w = np.minimum(widths, np.maximum(np.rint(heights * ratio[1]), 1))
    return np.stack([(heights - crop_h) // 2, (widths - crop_w) // 2, crop_h, crop_w], 1).astype(np.int32)


def centre_crops(heights, widths, ratio):
    """Square centre crops int32 [n, 4], (top, left, side, side).

    side: the shorter side times `ratio`, rounded down, at least 1. The geometry of FFCV's
    CenterCropRGBImageDecoder.
    """
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    side = np.maximum((ratio * np.minimum(heights, widths)).astype(np.int64), 1)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], 1).astype(np.int32)
