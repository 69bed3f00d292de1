"""Health, separated codes and moved codes, against their definitions."""

import itertools

import numpy as np
import pytest
import torch

from llc.codebook import health, move_apart, random_codebook, separated_codes
from llc.errors import UserError


def test_health_equals_a_double_loop_and_names_collisions():
    codebook = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    codebook[5], codebook[9], codebook[11] = codebook[2], codebook[2] * 3, codebook[4]
    found = health(codebook)
    distances = [
        sum((a > 0) != (b > 0) for a, b in zip(*pair))
        for pair in itertools.combinations(codebook.tolist(), 2)
    ]
    assert (found.num_classes, found.num_bits, found.num_collisions, found.min_distance) == (12, 9, 3, 0)
    assert found.collisions == ((5, 2), (9, 2), (11, 4))
    assert abs(found.mean_distance - sum(distances) / len(distances)) < 1e-12
    assert "3 collisions (class 5 = 2, class 9 = 2, class 11 = 4)" in str(found)
    apart = health(codebook[:5])
    assert apart.collisions == () and "0 collisions, distance min" in str(apart)
    assert (
        apart.min_distance
        == min(d for d, (i, j) in zip(distances, itertools.combinations(range(12), 2)) if max(i, j) < 5)
        > 0
    )
    assert health(codebook[:1]).min_distance == 0 and health(torch.ones(9, 3)).num_collisions == 8
    assert str(health(torch.ones(9, 3))).count("class ") == 5 and ", ...)" in str(health(torch.ones(9, 3)))


@pytest.mark.parametrize(
    "num_classes, num_bits, distance",
    [
        (1000, 20, 6),
        (1000, 64, 24),
        (1000, 32, 12),
        (100, 16, 6),
        (10, 16, 8),
        (5, 3, 1),
        (8, 3, 1),
        (2, 70, 70),
        (1, 4, 3),
        (3, 130, 80),
    ],
)
def test_separated_codes_are_as_far_apart_as_asked_and_random(num_classes, num_bits, distance):
    codes = separated_codes(num_classes, num_bits, distance, seed=3)
    assert codes.shape == (num_classes, num_bits) and codes.dtype == bool
    signs = 2.0 * codes - 1
    distances = (num_bits - signs @ signs.T) / 2 + num_bits * np.eye(num_classes)
    assert num_classes == 1 or distances.min() >= distance
    assert (codes == separated_codes(num_classes, num_bits, distance, seed=3)).all()
    assert num_classes < 3 or (codes != separated_codes(num_classes, num_bits, distance, seed=4)).any()


@pytest.mark.parametrize(
    "num_classes, num_bits, distance, largest", [(1000, 20, 7, 6), (9, 3, 1, 0), (16, 8, 5, 4), (2, 8, 9, 8)]
)
def test_a_distance_that_no_code_has_is_refused_with_the_largest_that_was_found(
    num_classes, num_bits, distance, largest
):
    with pytest.raises(UserError, match=f"init_distance = {distance}: .* the largest found is {largest}:"):
        separated_codes(num_classes, num_bits, distance, seed=0)


def test_a_random_codebook_keeps_its_values_without_options_and_its_sizes_with_them():
    plain = random_codebook(40, 16, seed=2)
    assert torch.equal(
        plain, torch.randn(40, 16, generator=torch.Generator().manual_seed(2)) * (2 / 16) ** 0.5
    )
    assert torch.allclose(random_codebook(40, 16, 2, scale=3.0), 3 * plain)
    apart = random_codebook(40, 16, 2, distance=6)
    assert (
        torch.equal(apart.abs(), plain.abs()) and health(apart).min_distance >= 6 > health(plain).min_distance
    )


def distances_of(values):
    signs = 2.0 * (values > 0) - 1
    return ((values.shape[1] - signs @ signs.T) / 2).fill_diagonal_(torch.inf)


@pytest.mark.parametrize(
    "num_classes, num_bits, distance",
    [
        (1000, 20, 1),
        (1000, 20, 2),
        (200, 16, 3),
        (50, 8, 2),
        (1000, 10, 1),
        (3, 130, 12),
        (2, 1, 1),
        (1, 4, 3),
    ],
)
def test_codes_are_moved_apart_and_no_more_than_asked(num_classes, num_bits, distance):
    values = random_codebook(num_classes, num_bits, seed=1)
    values[num_classes // 2] = values[0]
    after = move_apart(values, distance)
    assert num_classes == 1 or health(after).min_distance >= distance > health(values).min_distance
    assert torch.equal(after.abs(), values.abs()) and torch.equal(move_apart(after, distance), after)
    moved = (after != values).any(1)
    near = distances_of(values) < distance
    assert not moved[~near.any(1)].any()
    assert not (near & ~moved & ~moved[:, None]).any()  # of two that are too near at least one has moved


@pytest.mark.parametrize("seed", range(20))
def test_the_class_moves_that_gets_clear_at_the_least_sum(seed):
    """All sets of flips of all classes that are too near are tried."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randperm(32, generator=generator)[:20, None] >> torch.arange(5) & 1
    codes[4] = codes[1]
    values = (2 * codes - 1) * torch.rand(20, 5, generator=generator).add(0.01)
    costs = {}
    for c in (1, 4):
        for flips in itertools.product([1.0, -1.0], repeat=5):
            tried = values.clone()
            tried[c] *= torch.tensor(flips)
            if not (distances_of(tried) < 1).any():
                costs[float(values[c][torch.tensor(flips) < 0].abs().double().sum())] = tried
    assert torch.equal(move_apart(values, 1), costs[min(costs)])


def test_where_there_is_no_room_classes_stay_too_near_and_nothing_gets_worse():
    values = torch.tensor([[0.5, 1.0], [0.2, 0.0], [1.0, 0.5], [2.0, 3.0], [-1.0, 2.0]])
    after = move_apart(values, 1)
    assert health(after).num_collisions == 1 and len({tuple(code) for code in (after > 0).tolist()}) == 4
    assert torch.equal(move_apart(after, 1), after) and torch.equal(after[3:], values[3:])
    assert torch.equal(
        move_apart(torch.zeros(2, 3), 1) > 0, torch.tensor([[True, False, False], [False] * 3])
    )
