"""Distances on CUDA by int8 tensor cores, for many queries and codes of up to MAX_BITS bits.

Each bit is unpacked to a byte of +1 or -1. The dot product of two such codes is the number of equal bits
minus the number of differing bits, so the distance of two codes of K bits is (K - product) / 2. Codes are
padded to K bits, a power of two. The padding is equal in all codes, so it adds nothing to a distance.

A separate kernel unpacks the codes once per call, in parts of at most MAX_BYTES. The bytes take 8 times the
memory of the codes, but for many queries writing and reading them takes little time compared with the
products. If the product kernel unpacked the bits itself, each of its row blocks would unpack the whole
database again, and copies to shared memory could not overlap with the work of the tensor cores.
"""

import torch
import triton
import triton.language as tl

from llc.hamming.cuda_popc import INDEX_BITS, STEP_BITS, splits_and_steps, store_nearest
from llc.kernels.cuda_launch import launch

MAX_BITS = 256  # so that a tile of queries (32 KB) and two tiles of codes fit into shared memory
# Queries and codes of a tile. Its products and the best keys so far take 128 registers per thread, for 8
# warps.
BLOCK_N = BLOCK_M = 128
PROGRAMS = 2048  # enough for a few waves on 132 multiprocessors: an assumption, not measured
MAX_BYTES = 1 << 28  # unpacked bytes of queries, and of codes, at a time: positions in them fit in int32
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

    Queries beyond n and codes beyond m repeat the last one. Programs that run at the same time scan the same
    split of the database, so most of its loads hit the second-level cache.
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
        # distance << STEP_BITS | step, minus K << (STEP_BITS - 1); the loop leaves adding this constant to
        # the end
        key = step - tl.dot(query, code, out_dtype=tl.int32) * (1 << (STEP_BITS - 1))
        if EACH_LANE:
            key = tl.where((columns < m)[None, :], key, 0x7FFFFFFF - (K << (STEP_BITS - 1)))
        best = tl.minimum(best, key)
    best += K << (STEP_BITS - 1)
    store_nearest(nearest, best, rows, n, split, splits, steps, STEP_BITS, INDEX_BITS, EACH_LANE)


def nearest(queries: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """The nearest database code of each query, as a key int64 [n] = distance << INDEX_BITS | index.

    queries uint8 [n, code_size], n >= 1; database uint8 [m, code_size], m >= 1.
    """
    keys = []
    for part in queries.split(_codes_at_a_time(queries)):
        found = [lowest.amin(0) + first for first, lowest in _products(part, database, 1, each_lane=False)]
        keys.append(torch.stack(found).amin(0))
    return torch.cat(keys)


def nearest_in_lanes(queries: torch.Tensor, database: torch.Tensor, lanes: int) -> torch.Tensor:
    """Does the same as cuda_popc.nearest_in_lanes; the database is packed codes, as for `nearest`."""
    lanes_a_part = triton.cdiv(lanes, triton.cdiv(len(database), _codes_at_a_time(database)))
    parts = _products(queries, database, lanes_a_part, each_lane=True)
    return torch.cat([found for _, found in parts], dim=1)


def _products(queries, database, lanes, each_lane):
    """Yields (index of the first code, what _product_kernel stores) for each part of the database."""
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
    """K / 8, where K is a power of two, as Triton's tiles need, and at least 32, as tensor cores need."""
    return max(4, triton.next_power_of_2(code_size))


def _codes_at_a_time(codes):
    return max(1, MAX_BYTES // (8 * _padded_size(codes.shape[1])))
