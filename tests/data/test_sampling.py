"""Order, crops and flips: pure functions, with the laws they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torchvision.transforms import RandomResizedCrop

from llc.data import sampling
from llc.data.sampling import (
    centre_crops,
    num_batches,
    pagewise_order,
    random_crops,
    random_flips,
    random_order,
    replacements,
)


def paged(order, pages, *cut, rank=0, world_size=1):
    """Either order of the samples of `pages`, all ranks alike to call."""
    if order == "random":
        return random_order(len(pages), *cut, rank, world_size)
    return pagewise_order(pages, *cut, rank, world_size, window=3)


# ---------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("order", ["random", "pagewise"])
@given(
    n=integers(1, 200),
    batch_size=integers(1, 9),
    world_size=integers(1, 4),
    seed=integers(0, 5),
    epoch=integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_ranks_get_as_many_batches_and_no_sample_twice(order, n, batch_size, world_size, seed, epoch):
    pages = np.arange(n) // 7
    parts = [
        paged(order, pages, batch_size, seed, epoch, rank=r, world_size=world_size) for r in range(world_size)
    ]
    batches = num_batches(n, batch_size, world_size)
    assert all(part.shape == (batches, batch_size) and part.dtype == np.int64 for part in parts)
    seen = np.concatenate(parts).ravel()
    assert len(set(seen.tolist())) == len(seen) and set(seen.tolist()) <= set(range(n))
    assert n - len(seen) <= world_size * batch_size - 1


@pytest.mark.parametrize("order", ["random", "pagewise"])
def test_any_number_of_ranks_sees_the_same_samples_of_an_epoch(order):
    pages = np.arange(1003) // 20
    sets = []
    for world_size in (1, 2, 3, 4):
        parts = [
            paged(order, pages, 24 // world_size, 1, 2, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        sets.append(sorted(np.concatenate(parts).ravel().tolist()))
    assert len(sets[0]) == 1003 // 24 * 24 and sets[0] == sets[1] == sets[2] == sets[3]


def test_a_batch_over_all_ranks_is_that_of_one_process():
    whole = random_order(100, 12, 3, 4)
    parts = [random_order(100, 4, 3, 4, rank, 3) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize("order", ["random", "pagewise"])
def test_seed_and_epoch_change_the_order_and_what_is_left_out(order):
    pages = np.arange(50) // 6
    orders = {
        (seed, epoch): paged(order, pages, 16, seed, epoch).ravel() for seed in range(4) for epoch in range(4)
    }
    assert len({tuple(o.tolist()) for o in orders.values()}) == 16
    left_out = [set(range(50)) - set(o.tolist()) for o in orders.values()]
    assert all(len(left) == 2 for left in left_out) and len(set.union(*left_out)) > 12


FOR_EVER = {
    "random": [[1, 9, 0, 8, 4], [6, 7, 2, 3, 5]],
    "pagewise": [[0, 2, 1, 9, 6], [8, 7, 5, 3, 4]],
    "crops": [
        [29, 67, 299, 332],
        [220, 177, 148, 149],
        [52, 163, 225, 297],
        [42, 158, 251, 306],
        [5, 38, 320, 292],
        [1, 2, 363, 455],
    ],
    "flips": [0, 0, 0, 1, 0, 1],
}


def test_the_order_is_the_same_for_ever():
    """What a finished run's log says it saw must stay true: these are values, not a law."""
    assert random_order(10, 5, 0, 0).tolist() == FOR_EVER["random"]
    assert pagewise_order(np.arange(10) // 3, 5, 1, 2, window=2).tolist() == FOR_EVER["pagewise"]
    crops, flips = random_crops(np.arange(6), np.full(6, 375), np.full(6, 500), 0, 0, 0.08)
    assert crops.tolist() == FOR_EVER["crops"] and flips.tolist() == FOR_EVER["flips"]


def test_every_sample_comes_to_every_place_equally_often():
    counts = np.zeros((12, 12))
    for epoch in range(3000):
        counts[np.arange(12), random_order(12, 1, 7, epoch).ravel()] += 1
    chi_square = ((counts - 250) ** 2 / 250).sum()
    assert chi_square < 121 + 4 * math.sqrt(2 * 121)  # 11 x 11 degrees of freedom, 4 standard deviations


def test_pages_are_read_by_one_rank_and_are_in_use_for_a_window():
    """400 pages of 25 samples, 3 ranks: at most 2 pages are split, and few are in use at any time."""
    pages, window = np.repeat(np.arange(400), 25)[np.random.default_rng(0).permutation(10_000)], 10
    readers = {}
    for rank in range(3):
        read = pages[pagewise_order(pages, 50, 0, 0, rank, 3, window=window)].ravel()
        for page in read:
            readers.setdefault(page, set()).add(rank)
        first = np.array([np.argmax(read == page) for page in np.unique(read)])
        last = np.array([len(read) - 1 - np.argmax(read[::-1] == page) for page in np.unique(read)])
        in_use = [np.sum((first <= place) & (place <= last)) for place in range(len(read))]
        assert max(in_use) <= window + 1
        assert np.mean(in_use) > window / 2  # they are mixed
        neighbours = np.mean(read[1:] == read[:-1])
        assert neighbours < 2 / window  # 1 / window, and more where the window fills and empties
    assert sum(len(ranks) > 1 for ranks in readers.values()) <= 2


# ---------------------------------------------------------------------------------------------- crops

N, HEIGHT, WIDTH = 20_000, 375, 500


def ks(a, b):
    """The two-sample Kolmogorov-Smirnov statistic."""
    a, b = np.sort(a), np.sort(b)
    values = np.concatenate([a, b])
    return np.abs(
        np.searchsorted(a, values, "right") / len(a) - np.searchsorted(b, values, "right") / len(b)
    ).max()


def quantities(crops, height, width):
    top, left, h, w = np.asarray(crops, np.float64).T
    # places as fractions of the range where the crop can be
    return {
        "area": h * w / (height * width),
        "log ratio": np.log(w / h),
        "top": top / (height - h + 1),
        "left": left / (width - w + 1),
    }


@pytest.mark.parametrize(
    "height, width, min_scale", [(HEIGHT, WIDTH, 0.08), (500, 333, 0.35), (60, 400, 0.1)]
)
def test_crops_are_distributed_as_torchvisions(height, width, min_scale):
    ours, flips = random_crops(np.arange(N), np.full(N, height), np.full(N, width), 0, 1, min_scale)
    torch.manual_seed(0)
    image = torch.empty(0, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [min_scale, 1.0], [3 / 4, 4 / 3]) for _ in range(N)]
    )
    limit = 1.63 * math.sqrt(2 / N)  # significance 1 %, fixed seeds
    for (name, a), b in zip(
        quantities(ours, height, width).items(), quantities(theirs, height, width).values()
    ):
        assert ks(a, b) < limit, name
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / math.sqrt(N)
    others, _ = random_crops(np.arange(N), np.full(N, height), np.full(N, width), 0, 1, min_scale - 0.05)
    assert (
        ks(quantities(others, height, width)["area"], quantities(theirs, height, width)["area"]) > limit
    )  # it could fail


def test_crops_of_epochs_and_of_neighbours_are_independent():
    def draw(seed, epoch):
        crops, flips = random_crops(np.arange(N), np.full(N, HEIGHT), np.full(N, WIDTH), seed, epoch, 0.08)
        return np.column_stack([*quantities(crops, HEIGHT, WIDTH).values(), flips])

    zero, limit = draw(0, 0), 4.5 / math.sqrt(N)  # standard deviations of a correlation; 5 x 5 of them
    for other in (draw(0, 1), draw(1, 0), draw(0, 2), np.roll(zero, 1, 0)):
        correlations = np.corrcoef(zero.T, other.T)[:5, 5:]
        assert np.abs(correlations).max() < limit
    assert np.abs(np.corrcoef(zero.T)[4, :4]).max() < limit  # the flip and the rest of a draw
    order = random_order(N, 1, 0, 0).ravel()
    assert np.abs(np.corrcoef(order, zero.T)[0, 1:]).max() < limit


@given(
    index=integers(0, 1 << 40),
    height=integers(1, 600),
    width=integers(1, 600),
    seed=integers(0, 1 << 40),
    epoch=integers(0, 1000),
    limits=sampled_from([((0.08, 1), (3 / 4, 4 / 3)), ((0.2, 0.5), (0.1, 3)), ((0.3, 0.3), (5, 9))]),
)
@settings(max_examples=300, deadline=None)
def test_a_crop_by_the_rule_one_at_a_time(index, height, width, seed, epoch, limits):
    """torchvision's get_params, written down again with this module's draws in place of its generator."""
    u = sampling._uniform(sampling._draws(sampling._CROP, seed, epoch, np.array([index]), 41))[0].tolist()
    (least, most), (low, high) = limits

    def expected():
        for k in range(10):
            area = height * width * (least + (most - least) * u[4 * k])
            ratio = math.exp(math.log(low) + (math.log(high) - math.log(low)) * u[4 * k + 1])
            w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                return [int(u[4 * k + 2] * (height - h + 1)), int(u[4 * k + 3] * (width - w + 1)), h, w]
        if width / height < low:
            w, h = width, max(1, int(round(width / low)))
        elif width / height > high:
            w, h = max(1, int(round(height * high))), height
        else:
            w, h = width, height
        return [(height - h) // 2, (width - w) // 2, h, w]

    crops, flips = random_crops(np.array([index]), [height], [width], seed, epoch, least, most, (low, high))
    assert crops.dtype == np.int32 and crops[0].tolist() == expected() and flips[0] == (u[40] >= 0.5)
    assert random_flips(np.array([index]), seed, epoch) == flips
    assert random_flips(np.array([index]), seed, epoch, 0.2) == (u[40] >= 0.8)


def test_a_crop_is_the_samples_own_whatever_batch_it_is_in():
    indices, heights, widths = np.arange(300), np.arange(1, 301) * 2, np.arange(300, 0, -1)
    crops, flips = random_crops(indices, heights, widths, 5, 6, 0.08)
    some = np.random.default_rng(0).permutation(300)[:77]
    again = random_crops(indices[some], heights[some], widths[some], 5, 6, 0.08)
    assert np.array_equal(again[0], crops[some]) and np.array_equal(again[1], flips[some])
    assert (crops[:, :2] >= 0).all() and (crops[:, 2:] >= 1).all()
    assert (crops[:, 0] + crops[:, 2] <= heights).all() and (crops[:, 1] + crops[:, 3] <= widths).all()


def test_centre_crops_are_ffcvs():
    pytest.importorskip("ffcv")
    from ffcv.fields.rgb_image import get_center_crop

    sizes = [(h, w) for h in (2, 31, 32, 333, 500) for w in (2, 47, 375, 500)]
    for ratio in (1.0, 0.875, 224 / 256, 0.6):
        ours = centre_crops(*zip(*sizes), ratio)
        assert ours.tolist() == [list(get_center_crop(h, w, None, ratio)) for h, w in sizes]
    assert centre_crops([1], [1], 0.875).tolist() == [[0, 0, 1, 1]]  # where FFCV's has no pixels


def test_replacements_are_of_the_data_and_differ():
    drawn = [
        tuple(replacements(index, 50, seed, epoch, 8).tolist())
        for index in range(3)
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(drawn)) == 27 and all(0 <= i < 50 for draws in drawn for i in draws)
    assert drawn[0] == tuple(replacements(0, 50, 0, 0, 8).tolist())
