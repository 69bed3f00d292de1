"""The sign, its gradient and packed codes, against numpy and definitions that anyone can check."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llc.codes import binarize, code_size, pack_bits, unpack_bits

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]


def special_values(dtype):
    """Every kind of float around the threshold, in an order that makes the packed bytes irregular."""
    tiny = torch.finfo(dtype).smallest_normal
    return torch.tensor(
        [1.0, -1.0, 0.0, -0.0, tiny, -tiny, float("inf"), -float("inf"), float("nan"), -float("nan"), 3.5],
        dtype=dtype,
    )


@pytest.mark.parametrize(
    "num_bits, expected", [(1, 1), (7, 1), (8, 1), (9, 2), (20, 3), (64, 8), (4096, 512)]
)
def test_code_size(num_bits, expected):
    assert code_size(num_bits) == expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_binarize_is_plus_one_above_zero_and_minus_one_elsewhere(dtype):
    result = binarize(special_values(dtype))
    assert result.dtype == dtype
    assert result.tolist() == [1, -1, -1, -1, 1, -1, 1, -1, -1, -1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_binarize_passes_the_gradient_through_unchanged(dtype):
    values = torch.randn(5, 7, dtype=dtype, requires_grad=True)
    gradient = torch.randn(5, 7, dtype=dtype)
    binarize(values).backward(gradient)
    assert torch.equal(values.grad, gradient)


def test_binarize_works_under_autocast():
    codebook = torch.randn(10, 4, requires_grad=True)
    z = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        signs = binarize(codebook)
        logits = z @ signs.T
    assert signs.dtype == torch.float32 and logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    expected = z.bfloat16().float().sum(0).expand(10, 4)
    assert torch.allclose(codebook.grad, expected, atol=0.05)  # bfloat16 has 8 bits of precision


@given(n=st.integers(0, 20), num_bits=st.integers(1, 130), seed=st.integers(0, 999))
def test_packing_equals_numpy_and_unpacking_undoes_it(n, num_bits, seed):
    values = np.random.default_rng(seed).normal(size=(n, num_bits)).astype(np.float32)
    codes = pack_bits(values)
    assert codes.dtype == np.uint8 and codes.shape == (n, code_size(num_bits))
    assert np.array_equal(codes, np.packbits(values > 0, axis=-1))
    bits = unpack_bits(codes, num_bits)
    assert bits.dtype == np.uint8 and np.array_equal(bits, values > 0)
    as_tensor = pack_bits(torch.from_numpy(values))
    assert isinstance(as_tensor, torch.Tensor) and np.array_equal(as_tensor.numpy(), codes)
    assert torch.equal(unpack_bits(as_tensor, num_bits), torch.from_numpy(bits))


@pytest.mark.parametrize("num_bits", [2047, 2048, 4096, 5001])
def test_long_codes(num_bits):
    values = np.random.default_rng(num_bits).normal(size=(3, num_bits))
    assert np.array_equal(pack_bits(values), np.packbits(values > 0, axis=-1))
    assert np.array_equal(unpack_bits(pack_bits(values), num_bits), values > 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("repeat", [1, 3])
def test_zero_nan_and_infinities(dtype, repeat):
    values = special_values(dtype).repeat(repeat)[None].repeat(4, 1)
    expected = np.packbits(np.tile([1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1], repeat).astype(bool))
    assert pack_bits(values).tolist() == [expected.tolist()] * 4


@pytest.mark.parametrize("dtype", INTEGERS + [torch.bool])
def test_integers_and_bools(dtype):
    limits = (
        [0, 1]
        if dtype == torch.bool
        else [torch.iinfo(dtype).min, -1 if dtype != torch.uint8 else 0, 0, 1, torch.iinfo(dtype).max]
    )
    values = torch.tensor(limits * 7, dtype=dtype).reshape(-1, 7)
    assert np.array_equal(pack_bits(values).numpy(), np.packbits(values.numpy() > 0, axis=-1))
    assert np.array_equal(pack_bits(values.numpy()), pack_bits(values).numpy())


@pytest.mark.parametrize(
    "view",
    [
        lambda v: v.T,
        lambda v: v[::2],
        lambda v: v[:, ::3],
        lambda v: v[:, 5:18],
        lambda v: v[:1].expand(6, -1),
    ],
)
def test_layouts_that_are_not_contiguous(view):
    values = view(torch.randn(40, 40))
    expected = np.packbits(values.numpy() > 0, axis=-1)
    assert np.array_equal(pack_bits(values).numpy(), expected)
    assert np.array_equal(pack_bits(values.numpy()), expected)
    codes = np.asfortranarray(expected)
    assert np.array_equal(unpack_bits(codes, values.shape[1]), values.numpy() > 0)


def test_values_that_need_a_gradient():
    values = torch.randn(6, 20, requires_grad=True)
    codes = pack_bits(values)
    assert not codes.requires_grad and np.array_equal(
        codes.numpy(), np.packbits(values.detach().numpy() > 0, axis=-1)
    )


@pytest.mark.parametrize(
    "values", [torch.randn(8), torch.randn(2, 3, 4), torch.randn(3, 0), torch.tensor(1.0)]
)
def test_packing_refuses_wrong_shapes_by_name(values):
    with pytest.raises(ValueError, match="values: expected shape"):
        pack_bits(values)
    with pytest.raises(ValueError, match="values: expected shape"):
        pack_bits(values.numpy())


@pytest.mark.parametrize(
    "values", [torch.zeros(2, 3, dtype=torch.complex64), np.zeros((2, 3), dtype="U1"), [[1.0, 2.0]]]
)
def test_packing_refuses_what_is_no_number(values):
    with pytest.raises(ValueError, match="values: expected"):
        pack_bits(values)


@pytest.mark.parametrize(
    "codes, num_bits",
    [
        (torch.zeros(4, 3), 20),
        (torch.zeros(4, 3, dtype=torch.uint8), 25),
        (torch.zeros(4, 3, dtype=torch.uint8), 16),
        (torch.zeros(4, dtype=torch.uint8), 8),
        (torch.zeros(4, 0, dtype=torch.uint8), 0),
    ],
)
def test_unpacking_refuses_wrong_codes_by_name(codes, num_bits):
    with pytest.raises(ValueError, match="codes: expected uint8|num_bits: expected"):
        unpack_bits(codes, num_bits)
