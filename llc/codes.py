"""Binary codes: the sign, with its straight-through gradient, and its packed form.

One rule holds everywhere: a bit is 1 if and only if the value is > 0, so zero and NaN give 0. Packed codes
are uint8 [n, code_size] with code_size = ceil(num_bits / 8), in the bit order of numpy.packbits: the first
bit is the highest bit of the first byte. The padding bits at the end of the last byte are 0.
"""

from typing import Any, TypeVar

import numpy as np
import torch

from llc.arguments import whole_number
from llc.native import hamming

# A function that takes Array and returns Array returns the kind that it was given: torch or numpy.
Array = TypeVar("Array", torch.Tensor, np.ndarray)


def code_size(num_bits: int) -> int:
    """The number of bytes in a packed code of `num_bits` bits."""
    return (num_bits + 7) // 8


class _StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        # Not in place: under torch.compile of torch 2.11 the codebook would then get a gradient of 0.
        return (values > 0).to(values.dtype) * 2 - 1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def binarize(values: torch.Tensor) -> torch.Tensor:
    """+1 where values > 0, else -1, in the shape and dtype of the values; the gradient passes unchanged.

    This is the straight-through estimator of Bengio et al., 2013 (arXiv 1308.3432), with the identity as its
    gradient, as LLC uses it.
    """
    return _StraightThroughSign.apply(values)


# The largest number of each dtype (infinity for floats), as the integer that has the same bits. A value is >
# 0 if and only if its own bits, read as an integer, lie between 1 and this; NaN lies above. So packing needs
# no arithmetic on floats, and works for dtypes that numpy does not know, such as bfloat16.
_LARGEST = {
    "bool": 1,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F80_0000,
    "float64": 0x7FF0_0000_0000_0000,
    **{f"int{bits}": (1 << (bits - 1)) - 1 for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (1 << bits) - 1 for bits in (8, 16, 32, 64)},
}


def pack_bits(values: Array) -> Array:
    """Packs the signs of values [n, num_bits] into codes uint8 [n, code_size].

    The values are floats, integers or bools in a numpy array or a torch tensor. The result equals
    numpy.packbits(values > 0, axis=-1). A tensor stays on its device, which is a CPU or CUDA. Raises
    ValueError unless the values are real and two-dimensional with num_bits >= 1.
    """
    if isinstance(values, torch.Tensor):
        dtype = str(values.dtype).removeprefix("torch.")
    else:
        dtype = values.dtype.name if isinstance(values, np.ndarray) else ""
    if dtype not in _LARGEST:
        raise ValueError(
            f"values: expected real numbers in a torch tensor or numpy array, got {_describe(values)}"
        )
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"values: expected shape [n, num_bits] with num_bits >= 1, got {list(values.shape)}")
    if isinstance(values, np.ndarray):
        return _pack_on_cpu(np.ascontiguousarray(values, values.dtype.newbyteorder("=")), dtype)
    as_bits = getattr(torch, f"uint{8 * values.element_size()}")
    if values.device.type == "cuda":
        from llc.kernels import pack_cuda

        return pack_cuda.pack(values.detach().view(as_bits), _LARGEST[dtype])
    if values.device.type != "cpu":
        raise ValueError(f"values: on {values.device}, but codes are packed on cpu or cuda: move them there")
    return torch.from_numpy(_pack_on_cpu(values.detach().contiguous().view(as_bits).numpy(), dtype))


def _pack_on_cpu(values: np.ndarray, dtype: str) -> np.ndarray:
    return hamming.pack_bits(
        values.view(f"uint{8 * values.itemsize}"), _LARGEST[dtype], torch.get_num_threads()
    )


def unpack_bits(codes: Array, num_bits: int) -> Array:
    """The inverse of pack_bits: codes uint8 [n, code_size] -> bits uint8 [n, num_bits], each 0 or 1.

    Raises ValueError if num_bits < 1 or if the codes are not uint8 [n, ceil(num_bits / 8)].
    """
    num_bits = whole_number("num_bits", num_bits, 1)
    if (
        not isinstance(codes, (np.ndarray, torch.Tensor))
        or codes.dtype not in (np.dtype("uint8"), torch.uint8)
        or codes.ndim != 2
        or codes.shape[1] != code_size(num_bits)
    ):
        raise ValueError(
            f"codes: expected uint8 [n, {code_size(num_bits)}] for {num_bits} bits, got {_describe(codes)}"
        )
    if isinstance(codes, np.ndarray):
        return np.unpackbits(codes, axis=1, count=num_bits)
    if codes.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(codes.numpy(), axis=1, count=num_bits))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device)
    bits = (codes[:, :, None] >> shifts) & 1
    return bits.reshape(len(codes), 8 * codes.shape[1])[:, :num_bits].contiguous()


def _describe(values: Any) -> str:
    """What an argument is, for an error message."""
    if hasattr(values, "dtype"):
        return f"{values.dtype} {list(values.shape)}"
    return f"a {type(values).__name__}"
