"""Binary codes: the sign, with its straight-through gradient, and its packed form.

One rule, everywhere: bit = 1 iff value > 0 (so zero and NaN give 0). Packed codes are uint8 [n, code_size] with
code_size = ceil(num_bits / 8), in the bit order of numpy.packbits (the first bit is the highest of the first byte); the padding bits
at the end of the last byte are 0.
"""
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, np.ndarray)


def code_size(num_bits: int) -> int:
    """Bytes of a packed code of `num_bits` bits."""
    return (num_bits + 7) // 8


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return (values > 0).to(values.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def binarize(values: torch.Tensor) -> torch.Tensor:
    """+1 where values > 0, else -1, in the values' shape and dtype; the gradient passes through unchanged.

    The straight-through estimator of Bengio et al., 2013 (arXiv 1308.3432), in its identity form, as LLC uses it.
    """
    return _StraightThroughSign.apply(values)


def pack_bits(values: Array) -> Array:
    """Packs the signs of values [n, num_bits] (torch or numpy; float, integer or bool) -> uint8 [n, code_size].

    Equals numpy.packbits(values > 0, axis=-1); a tensor stays on its device. Raises ValueError unless `values` is real and 2-D with
    num_bits >= 1.
    """
    if isinstance(values, np.ndarray):
        return pack_bits(_from_numpy("values", values)).numpy()
    if not isinstance(values, torch.Tensor) or values.is_complex():
        raise ValueError(f"values: expected real numbers in a torch tensor or numpy array, got {_kind(values)}")
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"values: expected shape [n, num_bits] with num_bits >= 1, got {list(values.shape)}")
    num_bits = values.shape[1]
    bits = (values > 0).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, code_size(num_bits) * 8 - num_bits))
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=values.device)
    return (bits.view(len(bits), code_size(num_bits), 8) * weights).sum(dim=2, dtype=torch.uint8)


def unpack_bits(codes: Array, num_bits: int) -> Array:
    """The inverse: packed codes uint8 [n, code_size] -> uint8 0/1 [n, num_bits]. Raises ValueError on a wrong dtype or width."""
    if isinstance(codes, np.ndarray):
        return unpack_bits(_from_numpy("codes", codes), num_bits).numpy()
    if num_bits < 1:
        raise ValueError(f"num_bits: expected 1 or more, got {num_bits}")
    if not isinstance(codes, torch.Tensor) or codes.dtype != torch.uint8 or codes.ndim != 2 or codes.shape[1] != code_size(num_bits):
        raise ValueError(f"codes: expected uint8 [n, {code_size(num_bits)}] for {num_bits} bits, got {_kind(codes)}")
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device)
    return ((codes[:, :, None] >> shifts) & 1).reshape(len(codes), 8 * codes.shape[1])[:, :num_bits].contiguous()


def _from_numpy(name, array):
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise ValueError(f"{name}: expected real numbers, got {_kind(array)}") from error


def _kind(values):
    """What was given, for an error message."""
    return f"{values.dtype} {list(values.shape)}" if hasattr(values, "dtype") else f"a {type(values).__name__}"
