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
        # Not in place: under torch.compile of torch 2.11 the codebook would then get a gradient of 0.
        return (values > 0).to(values.dtype) * 2 - 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def binarize(values: torch.Tensor) -> torch.Tensor:
    """+1 where values > 0, else -1, in the values' shape and dtype; the gradient passes through unchanged.

    The straight-through estimator of Bengio et al., 2013 (arXiv 1308.3432), in its identity form, as LLC uses it.
    """
    return _StraightThroughSign.apply(values)


# A value is > 0 iff its bits, read as an integer, lie between 1 and those of the largest number of its type (infinity; not NaN).
# So packing needs no arithmetic on floats and works for types, such as bfloat16, that numpy and numba do not know.
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
    """Packs the signs of values [n, num_bits] (torch or numpy; float, integer or bool) -> uint8 [n, code_size].

    Equals numpy.packbits(values > 0, axis=-1); a tensor stays on its device, CPU or CUDA. Raises ValueError unless `values` is real and
    2-D with num_bits >= 1.
    """
    dtype = (
        str(values.dtype).removeprefix("torch.")
        if isinstance(values, torch.Tensor)
        else values.dtype.name
        if isinstance(values, np.ndarray)
        else None
    )
    if dtype not in _LARGEST:
        raise ValueError(
            f"values: expected real numbers in a torch tensor or numpy array, got {_kind(values)}"
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


def _pack_on_cpu(values, dtype):
    from llc.kernels import pack_cpu  # numba is loaded by the first that needs it

    return pack_cpu.pack(values.view(f"uint{8 * values.itemsize}"), _LARGEST[dtype], torch.get_num_threads())


def unpack_bits(codes: Array, num_bits: int) -> Array:
    """The inverse: packed codes uint8 [n, code_size] -> uint8 0/1 [n, num_bits]. Raises ValueError on a wrong dtype or width."""
    if num_bits < 1:
        raise ValueError(f"num_bits: expected 1 or more, got {num_bits}")
    if (
        not isinstance(codes, (np.ndarray, torch.Tensor))
        or codes.dtype not in (np.dtype("uint8"), torch.uint8)
        or codes.ndim != 2
        or codes.shape[1] != code_size(num_bits)
    ):
        raise ValueError(
            f"codes: expected uint8 [n, {code_size(num_bits)}] for {num_bits} bits, got {_kind(codes)}"
        )
    if isinstance(codes, np.ndarray):
        return np.unpackbits(codes, axis=1, count=num_bits)
    if codes.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(codes.numpy(), axis=1, count=num_bits))
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device)
    return (
        ((codes[:, :, None] >> shifts) & 1).reshape(len(codes), 8 * codes.shape[1])[:, :num_bits].contiguous()
    )


def _kind(values):
    """What was given, for an error message."""
    return (
        f"{values.dtype} {list(values.shape)}" if hasattr(values, "dtype") else f"a {type(values).__name__}"
    )
