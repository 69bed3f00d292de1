"""The codebook that is made from a dense classifier, and the projection that fits both."""

import numpy as np
import pytest
import torch

from llc.itq import itq_codebook, projection_onto


def distances(codebook):
    signs = torch.where(codebook > 0, 1.0, -1.0)
    return (codebook.shape[1] - signs @ signs.T) / 2


def test_codes_that_a_rotation_hides_are_found_again():
    """The classifier's rows are corners of a cube, rotated into 20 features; distances tell them apart."""
    generator = torch.Generator().manual_seed(3)
    half = torch.where(torch.randn(15, 6, generator=generator) > 0, 1.0, -1.0)
    corners = torch.cat([half, -half])  # each with its opposite, so that the mean is 0
    directions = torch.linalg.qr(torch.randn(20, 6, generator=generator)).Q.T
    codebook = itq_codebook(corners @ directions + 5.0, 6, seed=0)  # what all classes share does not count
    assert codebook.dtype == torch.float32 and codebook.shape == (30, 6)
    assert torch.equal(distances(codebook), distances(corners))


def test_similar_classes_get_similar_codes():
    """Five groups of six classes: the codes within a group are nearer than those of different groups."""
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(5, 32, generator=generator).repeat_interleave(6, 0)
    codebook = itq_codebook(centres + 0.3 * torch.randn(30, 32, generator=generator), 16, seed=0)
    group = torch.arange(30) // 6
    same, apart = group[:, None] == group, distances(codebook)
    assert apart[same].max() < apart[~same].min()


@pytest.mark.parametrize("num_classes, num_bits", [(3, 1), (40, 12), (6, 40), (4, 300)])
def test_values_are_those_of_a_random_codebook_in_size_and_the_seed_decides(num_classes, num_bits):
    weight = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(5))
    codebook = itq_codebook(weight, num_bits, seed=1)
    assert codebook.square().mean().item() == pytest.approx(2 / num_bits, rel=1e-4)
    assert torch.equal(codebook, itq_codebook(weight, num_bits, seed=1))
    if num_bits > 1:
        assert not torch.equal(codebook, itq_codebook(weight, num_bits, seed=2))
    if num_bits > num_classes:  # else two classes may collide
        assert (distances(codebook) + num_bits * torch.eye(num_classes)).min() > 0


def test_the_first_bits_are_the_codes_of_the_first_components():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(7))
    nested = itq_codebook(weight, 24, seed=3, prefixes=(6, 24))
    assert torch.equal(nested[:, :6] > 0, itq_codebook(weight, 6, seed=3) > 0)
    assert nested.square().mean().item() == pytest.approx(2 / 24, rel=1e-4)
    # the later bits tell apart what the first cannot
    assert (distances(nested[:, :6]) + 24 * torch.eye(50)).min() == 0
    assert (distances(nested) + 24 * torch.eye(50)).min() > 0


def test_bits_beyond_the_rank_are_of_use_too():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(8))
    nested = itq_codebook(weight, 32, seed=0, prefixes=(8, 16, 32))  # of rank 4
    ones = (nested > 0).sum(0)
    assert ((ones > 0) & (ones < 5)).all()


def test_classes_that_cannot_be_told_apart_get_the_same_finite_values():
    codebook = itq_codebook(torch.ones(4, 8), 5, seed=0)
    assert torch.isfinite(codebook).all() and (codebook == codebook[0]).all()


def test_the_projection_is_the_least_squares_one():
    generator = torch.Generator().manual_seed(6)
    codebook, weight = torch.randn(12, 5, generator=generator), torch.randn(12, 9, generator=generator)
    signs = torch.where(codebook > 0, 1.0, -1.0).numpy()
    expected = np.linalg.lstsq(signs, (weight - weight.mean(0)).numpy(), rcond=None)[0]
    assert np.allclose(projection_onto(codebook, weight), expected, atol=1e-4)


def test_the_projection_gives_the_classifiers_logits_where_the_codes_can():
    generator = torch.Generator().manual_seed(7)
    codebook = torch.randn(6, 5, generator=generator)
    codebook = torch.cat([codebook, -codebook])  # the mean of the codes is 0
    signs = torch.where(codebook > 0, 1.0, -1.0)
    weight = signs @ torch.randn(5, 9, generator=generator) + 3.0
    features = torch.randn(100, 9, generator=generator)
    logits, dense = features @ projection_onto(codebook, weight).T @ signs.T, features @ weight.T
    assert torch.allclose(logits, dense - dense.mean(1, keepdim=True), atol=1e-3)
