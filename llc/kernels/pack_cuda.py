"""Packing on CUDA by one Triton kernel, which reads each value once and writes each byte once."""

import torch
import triton
import triton.language as tl

from llc.kernels.cuda_launch import check_grid, launch

BLOCK = 128  # bytes that a program writes; each takes 8 values


def pack(values: torch.Tensor, limit: int) -> torch.Tensor:
    """Packs values [n, num_bits] into codes uint8 [n, code_size]: a bit is 1 iff 0 < value <= limit.

    The values are uint8, uint16, uint32 or uint64, with any strides.
    """
    n, num_bits = values.shape
    code_size = (num_bits + 7) // 8
    num_programs = triton.cdiv(n * code_size, BLOCK)
    check_grid(num_programs)  # before memory for the codes is allocated
    codes = torch.empty(n, code_size, dtype=torch.uint8, device=values.device)
    if n:
        launch(
            _pack_kernel,
            num_programs,
            values,
            codes,
            limit,
            codes.numel(),
            num_bits,
            code_size,
            *values.stride(),
            BLOCK,
        )
    return codes


@triton.jit
def _pack_kernel(
    values, codes, limit, num_bytes, num_bits, code_size, row_stride, bit_stride, BLOCK: tl.constexpr
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, 8)[None, :]
    row, bit = (byte // code_size)[:, None], (byte % code_size * 8)[:, None] + lane
    mask = (byte < num_bytes)[:, None] & (bit < num_bits)
    value = tl.load(values + row * row_stride + bit * bit_stride, mask=mask, other=0)
    inside = ((value > 0) & (value <= limit)).to(tl.int32)
    tl.store(codes + byte, tl.sum(inside << (7 - lane), axis=1).to(tl.uint8), mask=byte < num_bytes)
