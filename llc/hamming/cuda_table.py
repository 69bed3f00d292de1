"""Looks codes up in a decoder's table on CUDA; llc.native.hamming builds it."""

import torch
import triton
import triton.language as tl

from llc.kernels.cuda_launch import launch

BLOCK = 256  # codes of a program


@triton.jit(do_not_specialize=["n", "code_size", "shift"], do_not_specialize_on_alignment=["codes"])
def _look_up_kernel(codes, table, classes, n, code_size, shift, NUM_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Stores the table's entry of each code's first 8 * NUM_BYTES - shift bits."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = codes + rows.to(tl.int64) * code_size
    value = tl.zeros([BLOCK], tl.int32)
    for byte in tl.static_range(NUM_BYTES):
        value = value << 8 | tl.load(first + byte, mask=rows < n, other=0).to(tl.int32)
    tl.store(classes + rows, tl.load(table + (value >> shift)).to(tl.int64), mask=rows < n)


def look_up(codes: torch.Tensor, num_bits: int, table: torch.Tensor) -> torch.Tensor:
    """The nearest class of each code: codes uint8 [n, code_size], table int32 [2^num_bits] -> int64 [n]."""
    n, num_bytes = len(codes), (num_bits + 7) // 8
    classes = torch.empty(n, dtype=torch.int64, device=codes.device)
    if n:
        arguments = (codes.contiguous(), table, classes, n, codes.shape[1], 8 * num_bytes - num_bits)
        launch(_look_up_kernel, triton.cdiv(n, BLOCK), *arguments, num_bytes, BLOCK)
    return classes
