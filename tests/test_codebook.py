"""Health of a codebook against its definition."""
import itertools

import torch

from llc.codebook import health


def test_health_equals_a_double_loop_and_names_collisions():
    codebook = torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    codebook[5], codebook[9], codebook[11] = codebook[2], codebook[2] * 3, codebook[4]
    found = health(codebook)
    distances = [sum((a > 0) != (b > 0) for a, b in zip(*pair)) for pair in itertools.combinations(codebook.tolist(), 2)]
    assert (found.num_classes, found.num_bits, found.num_collisions, found.min_distance) == (12, 9, 3, 0)
    assert found.collisions == ((5, 2), (9, 2), (11, 4))
    assert abs(found.mean_distance - sum(distances) / len(distances)) < 1e-12
    assert "3 collisions (class 5 = 2, class 9 = 2, class 11 = 4)" in str(found)
    apart = health(codebook[:5])
    assert apart.collisions == () and "0 collisions, distance min" in str(apart)
    assert apart.min_distance == min(d for d, (i, j) in zip(distances, itertools.combinations(range(12), 2)) if max(i, j) < 5) > 0
    assert health(codebook[:1]).min_distance == 0 and health(torch.ones(9, 3)).num_collisions == 8
    assert str(health(torch.ones(9, 3))).count("class ") == 5 and ", ...)" in str(health(torch.ones(9, 3)))
