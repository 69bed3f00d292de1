"""Distances on CUDA by int8 tensor cores, for many queries and codes of up to MAX_BITS bits.

A bit becomes a byte of +1 or -1. The product of two such codes is the number of equal bits minus the number
of differing ones, so the distance of K bits is (K - product) / 2. Codes are padded to K bits, a power of two;
the padding is equal in all codes, so it adds nothing.

A kernel of its own makes the bytes once a call, in parts of at most MAX_BYTES: for many queries, writing and
reading 8 times the memory of the codes takes little time beside the products. The kernel of the products
could unpack bits itself, but each of its row blocks would unpack the whole database again, and copies to
shared memory could not run while the tensor cores work.
"""

import torch
import triton
import triton.language as tl

from llc.hamming.cuda_popc import INDEX_BITS, STEP_BITS, splits_and_steps, store_nearest
from llc.kernels.cuda_launch import launch

MAX_BITS = 256  # a tile of queries stays in shared memory, 32 KB, beside two tiles of codes
BLOCK_N = BLOCK_M = 128  # of a tile: its products and the best so far take 128 registers a thread of 8 warps
PROGRAMS = 2048  # keep 132 multiprocessors busy for a few waves: an assumption, not measured
MAX_BYTES = 1 << 28  # of +-1 bytes of queries, and of codes, at a time: positions in them fit in int32
BLOCK_BYTES = 128  # packed bytes that a program unpacks


@triton.jit
def _unpack_kernel(codes, signs, num_bytes, code_size, padded_size, BLOCK: tl.constexpr):
    """codes uint8 [n, code_size] -> signs int8 [n, 8 * padded_size]; num_bytes = n * padded_size."""
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = byte % padded_size
    mask = (byte < num_bytes) & (column < code_size)
    value = tl.load(codes + (byte // padded_size).to(tl.int64) * code_size + column, mask=mask, other=0)
    lane = tl.arange(0, 8)[None, :]
    sign = ((value.to(tl.int32)[:, None] >> (7 - lane)) & 1) * 2 - 1
    tl.store(signs + byte[:, None] * 8 + lane, sign.to(tl.int8), mask=(byte < num_bytes)[:, None])


@triton.jit(do_not_specialize=["n", "m", "splits", "steps"])
def _product_kernel(
    queries,
    database,
    nearest,
    n,
    m,
    splits,
    steps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEP_BITS: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    EACH_LANE: tl.constexpr,
):
    """The nearest code of each query, or of each lane, as store_nearest stores it.

    Queries and codes beyond n and m repeat the last one. Programs that run at the same time scan the same
    split of the database, so that it comes from the second-level cache.
    """
    num_row_blocks = tl.cdiv(n, BLOCK_N)
    split = tl.program_id(0) // num_row_blocks
    rows = tl.program_id(0) % num_row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, K)
    query = tl.load(queries + tl.minimum(rows, n - 1)[:, None] * K + k[None, :])
    best = tl.full([BLOCK_N, BLOCK_M], 0x7FFFFFFF, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        columns = (split * steps + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        code = tl.load(database + tl.minimum(columns, m - 1)[None, :] * K + k[:, None])
        # distance << STEP_BITS | step, less the constant K << STEP_BITS - 1, which is added after the loop
        key = step - tl.dot(query, code, out_dtype=tl.int32) * (1 << (STEP_BITS - 1))
        if EACH_LANE:
            key = tl.where((columns < m)[None, :], key, 0x7FFFFFFF - (K << (STEP_BITS - 1)))
        best = tl.minimum(best, key)
    best += K << (STEP_BITS - 1)
    store_nearest(nearest, best, rows, n, split, splits, steps, STEP_BITS, INDEX_BITS, EACH_LANE)


def nearest(queries, database):
    """The nearest of database uint8 [m, code_size], m >= 1, to each of queries uint8 [n, code_size], n >= 1.

    -> keys int64 [n], distance << INDEX_BITS | index.
    """
    keys = []
    for part in queries.split(_codes_at_a_time(queries)):
        found = [lowest.amin(0) + first for first, lowest in _products(part, database, 1, each_lane=False)]
        keys.append(torch.stack(found).amin(0))
    return torch.cat(keys)


def nearest_in_lanes(queries, database, lanes):
    """As llc.hamming.cuda_popc.nearest_in_lanes, with the database as `nearest` takes it."""
    lanes_a_part = triton.cdiv(lanes, triton.cdiv(len(database), _codes_at_a_time(database)))
    parts = _products(queries, database, lanes_a_part, each_lane=True)
    return torch.cat([found for _, found in parts], dim=1)


def _products(queries, database, lanes, each_lane):
    """Yields, for each part of the database, the number of its first code and what _product_kernel stores."""
    n, K = len(queries), 8 * _padded_size(queries.shape[1])
    query_signs, num_row_blocks = _unpack(queries), triton.cdiv(n, BLOCK_N)
    for first in range(0, len(database), _codes_at_a_time(database)):
        codes = database[first : first + _codes_at_a_time(database)]
        num_tiles = triton.cdiv(len(codes), BLOCK_M)
        splits, steps = splits_and_steps(num_row_blocks, num_tiles, PROGRAMS, triton.cdiv(lanes, BLOCK_M))
        shape, dtype = ((n, splits * BLOCK_M), torch.int32) if each_lane else ((splits, n), torch.int64)
        found = torch.empty(shape, dtype=dtype, device=queries.device)
        launch(
            _product_kernel,
            num_row_blocks * splits,
            query_signs,
            _unpack(codes),
            found,
            n,
            len(codes),
            splits,
            steps,
            K,
            BLOCK_N,
            BLOCK_M,
            STEP_BITS,
            INDEX_BITS,
            each_lane,
            num_warps=8,
            num_stages=2 if K > 128 else 3,
        )
        yield first, found


def _unpack(codes):
    """uint8 [n, code_size] -> int8 [n, K] of +1 and -1."""
    n, code_size = codes.shape
    padded_size = _padded_size(code_size)
    signs = torch.empty(n, 8 * padded_size, dtype=torch.int8, device=codes.device)
    num_bytes = n * padded_size
    launch(
        _unpack_kernel,
        triton.cdiv(num_bytes, BLOCK_BYTES),
        codes.contiguous(),
        signs,
        num_bytes,
        code_size,
        padded_size,
        BLOCK_BYTES,
    )
    return signs


def _padded_size(code_size):
    """K / 8: a power of two, as Triton's tiles need, of at least 32 bits, as tensor cores need."""
    return max(4, triton.next_power_of_2(code_size))


def _codes_at_a_time(codes):
    return max(1, MAX_BYTES // (8 * _padded_size(codes.shape[1])))
