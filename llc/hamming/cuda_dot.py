"""Distances on CUDA by the int8 tensor cores: for many queries and codes of 33 to 256 bits.

A bit becomes a byte of +1 or -1. The product of two such codes is the number of equal bits less that of differing ones, so the distance
of K bits is (K - product) / 2. Codes are padded to K bits, a power of two; the padding is equal in all codes and adds nothing.

The bytes are made once a call by a kernel of their own, in parts of at most MAX_BYTES: 8 times the memory of the codes, written and read
once, is little beside the products of many queries. Made in the kernel of the products, they would have to be made again for each of its
row blocks and could not be copied to shared memory while the tensor cores work.
"""
import torch
import triton
import triton.language as tl

from llc.hamming.cuda_popc import INDEX_BITS, STEP_BITS, splits_and_steps, store_nearest
from llc.kernels.cuda_launch import launch

MAX_BITS = 256             # a tile of queries stays in shared memory: 32 KB, and 64 KB for two tiles of codes
BLOCK_N = BLOCK_M = 128    # pairs of a tile; 8 warps hold its products and the best so far in 128 registers a thread
PROGRAMS = 2048            # one or two a multiprocessor at a time, so a few waves: an assumption, not measured
MAX_BYTES = 1 << 28        # of +-1 bytes of queries and of codes at a time, so that positions in them are int32, too
BLOCK_BYTES = 128          # packed bytes that a program unpacks


@triton.jit
def _unpack_kernel(codes, signs, num_bytes, code_size, padded_size, BLOCK: tl.constexpr):
    """codes uint8 [n, code_size] -> signs int8 [n, 8 * padded_size]; num_bytes = n * padded_size."""
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = byte % padded_size
    value = tl.load(codes + (byte // padded_size).to(tl.int64) * code_size + column, mask=(byte < num_bytes) & (column < code_size), other=0)
    lane = tl.arange(0, 8)[None, :]
    sign = ((value.to(tl.int32)[:, None] >> (7 - lane)) & 1) * 2 - 1
    tl.store(signs + byte[:, None] * 8 + lane, sign.to(tl.int8), mask=(byte < num_bytes)[:, None])


@triton.jit(do_not_specialize=["n", "m", "splits", "steps"])
def _product_kernel(queries, database, nearest, n, m, splits, steps, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
                    STEP_BITS: tl.constexpr, INDEX_BITS: tl.constexpr, EACH_LANE: tl.constexpr):
    """The nearest code, or each lane's, as store_nearest says. Rows and columns beyond n and m repeat the last one. Programs that run at
    the same time have the same split of the database, which so comes from the second-level cache."""
    num_row_blocks = tl.cdiv(n, BLOCK_N)
    split = tl.program_id(0) // num_row_blocks
    rows = tl.program_id(0) % num_row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, K)
    query = tl.load(queries + tl.minimum(rows, n - 1)[:, None] * K + k[None, :])
    best = tl.full([BLOCK_N, BLOCK_M], 0x7FFFFFFF, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        columns = (split * steps + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        code = tl.load(database + tl.minimum(columns, m - 1)[None, :] * K + k[:, None])
        # distance << STEP_BITS | step, but for the constant K << STEP_BITS - 1
        key = step - tl.dot(query, code, out_dtype=tl.int32) * (1 << (STEP_BITS - 1))
        if EACH_LANE:
            key = tl.where((columns < m)[None, :], key, 0x7FFFFFFF - (K << (STEP_BITS - 1)))
        best = tl.minimum(best, key)
    store_nearest(nearest, best + (K << (STEP_BITS - 1)), rows, n, split, splits, steps, STEP_BITS, INDEX_BITS, EACH_LANE)


def nearest(queries, database):
    """queries uint8 [n, code_size], database uint8 [m, code_size], n and m >= 1 -> int64 [n], distance << INDEX_BITS | index."""
    keys = []
    for part in queries.split(_codes_at_a_time(queries)):
        found = [lowest.amin(0) + first for first, lowest in _products(part, database, 1, each_lane=False)]
        keys.append(torch.stack(found).amin(0))
    return torch.cat(keys)


def nearest_in_lanes(queries, database, lanes):
    """As llc.hamming.cuda_popc.nearest_in_lanes, for the same as `nearest`; queries of at most MAX_BYTES."""
    lanes_a_part = triton.cdiv(lanes, triton.cdiv(len(database), _codes_at_a_time(database)))
    return torch.cat([found for _, found in _products(queries, database, lanes_a_part, each_lane=True)], dim=1)


def _products(queries, database, lanes, each_lane):
    """Runs _product_kernel on each part of the database -> its first code, what the kernel stored."""
    n, code_size = queries.shape
    K = _padded_size(code_size) * 8
    query_signs = _unpack(queries)
    for first in range(0, len(database), _codes_at_a_time(database)):
        codes = database[first:first + _codes_at_a_time(database)]
        num_row_blocks = triton.cdiv(n, BLOCK_N)
        splits, steps = splits_and_steps(num_row_blocks, triton.cdiv(len(codes), BLOCK_M), PROGRAMS, triton.cdiv(lanes, BLOCK_M))
        shape, dtype = ((n, splits * BLOCK_M), torch.int32) if each_lane else ((splits, n), torch.int64)
        found = torch.empty(shape, dtype=dtype, device=queries.device)
        launch(_product_kernel, num_row_blocks * splits, query_signs, _unpack(codes), found, n, len(codes), splits, steps, K,
               BLOCK_N, BLOCK_M, STEP_BITS, INDEX_BITS, each_lane, num_warps=8, num_stages=2 if K > 128 else 3)
        yield first, found


def _unpack(codes):
    """uint8 [n, code_size] -> int8 [n, K], +1 and -1."""
    n, code_size = codes.shape
    signs = torch.empty(n, _padded_size(code_size) * 8, dtype=torch.int8, device=codes.device)
    num_bytes = signs.numel() // 8
    launch(_unpack_kernel, triton.cdiv(num_bytes, BLOCK_BYTES), codes.contiguous(), signs, num_bytes, code_size, signs.shape[1] // 8,
           BLOCK_BYTES)
    return signs


def _padded_size(code_size):
    """Bytes of packed codes of K bits, K a power of two as Triton's tiles must be, and 32 or more as the tensor cores take them."""
    return max(4, triton.next_power_of_2(code_size))


def _codes_at_a_time(codes):
    return max(1, MAX_BYTES // (8 * _padded_size(codes.shape[1])))
