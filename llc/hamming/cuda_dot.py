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
PROGRAMS = 4096  # a few waves; on an H200 1024 take 2 to 15 % longer, 8192 as long
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


@triton.jit
def _signs_of(codes, rows, n, K: tl.constexpr):
    """The signs of codes `rows` -> int8 [rows, K]. Rows beyond n repeat the last code."""
    return tl.load(codes + tl.minimum(rows, n - 1)[:, None] * K + tl.arange(0, K)[None, :])


# Programs that run at the same time scan the same split of the database, so most of its loads hit the
# second-level cache.
_unspecialised = triton.jit(do_not_specialize=["n", "m", "splits", "steps", "group_steps", "first_group"])


@_unspecialised
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
):
    """The nearest code of each query, as store_nearest stores it."""
    num_row_blocks = tl.cdiv(n, BLOCK_N)
    split = tl.program_id(0) // num_row_blocks
    rows = tl.program_id(0) % num_row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    query = _signs_of(queries, rows, n, K)
    best = tl.full([BLOCK_N, BLOCK_M], 0x7FFFFFFF, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        columns = (split * steps + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        # distance << STEP_BITS | step, minus K << (STEP_BITS - 1); the loop leaves adding this constant to
        # the end
        products = tl.dot(query, _signs_of(database, columns, m, K).T, out_dtype=tl.int32)
        best = tl.minimum(best, step - products * (1 << (STEP_BITS - 1)))
    best += K << (STEP_BITS - 1)
    store_nearest(nearest, best, rows, n, split, splits, steps, STEP_BITS, INDEX_BITS)


@_unspecialised
def _product_minima_kernel(
    queries,
    database,
    minima,
    n,
    m,
    splits,
    steps,
    group_steps,
    first_group,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Each query's lowest distance in each group of group_steps tiles, into minima [num_groups, n].

    first_group is the number of the first tile's group. steps is a multiple of group_steps.
    """
    num_row_blocks = tl.cdiv(n, BLOCK_N)
    split = tl.program_id(0) // num_row_blocks
    rows = tl.program_id(0) % num_row_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    query = _signs_of(queries, rows, n, K)  # here, because of the loop's stores it would be loaded each time
    highest = tl.full([BLOCK_N], -K, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        tile = split * steps + step
        columns = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        products = tl.dot(query, _signs_of(database, columns, m, K).T, out_dtype=tl.int32)
        highest = tl.maximum(highest, tl.max(products, axis=1))
        # It is stored after every tile of a group; the last one counts.
        group = (first_group + tile // group_steps).to(tl.int64)
        tl.store(minima + group * n + rows, (K - highest) >> 1, mask=rows < n)
        highest = tl.where((tile + 1) % group_steps == 0, -K, highest)


def max_queries(queries: torch.Tensor) -> int:
    """How many queries of this length `nearest` and `group_minima` take at a time."""
    return _codes_at_a_time(queries, BLOCK_N)


def nearest(queries: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """The nearest database code of each query in each split, as keys distance << INDEX_BITS | index.

    queries uint8 [n, code_size], 1 <= n <= max_queries(queries); database uint8 [m, code_size], m >= 1 ->
    int64 [splits, n].
    """
    query_signs, parts = _unpack(queries), []
    for first, codes in _parts(database, BLOCK_M):
        splits, steps = _split(queries, codes)
        keys = torch.empty(splits, len(queries), dtype=torch.int64, device=queries.device)
        constants = {"STEP_BITS": STEP_BITS, "INDEX_BITS": INDEX_BITS}
        _launch(_product_kernel, query_signs, codes, keys, len(queries), splits, steps, **constants)
        parts.append(keys + first if first else keys)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def group_minima(queries: torch.Tensor, database: torch.Tensor, group_steps: int) -> torch.Tensor:
    """Each query's lowest distance in each group of group_steps * BLOCK_M codes -> int16 [num_groups, n].

    queries and database are those of `nearest`.
    """
    query_signs, group_size = _unpack(queries), group_steps * BLOCK_M
    num_groups = triton.cdiv(len(database), group_size)
    minima = torch.empty(num_groups, len(queries), dtype=torch.int16, device=queries.device)
    for first, codes in _parts(database, group_size):
        splits, steps = _split(queries, codes, group_steps)
        arguments = (splits, steps, group_steps, first // group_size)
        _launch(_product_minima_kernel, query_signs, codes, minima, len(queries), *arguments)
    return minima


def _split(queries, codes, group_steps=1):
    num_row_blocks, num_tiles = triton.cdiv(len(queries), BLOCK_N), triton.cdiv(len(codes), BLOCK_M)
    return splits_and_steps(num_row_blocks, num_tiles, PROGRAMS, group_steps)


def _parts(database, multiple):
    """(index of the first code, codes) of parts of the database that are unpacked at a time."""
    size = _codes_at_a_time(database, multiple)
    return [(first, database[first : first + size]) for first in range(0, len(database), size)]


def _launch(kernel, query_signs, codes, found, n, splits, *numbers, **constants):
    K = query_signs.shape[1]
    launch(
        kernel,
        triton.cdiv(n, BLOCK_N) * splits,
        query_signs,
        _unpack(codes),
        found,
        n,
        len(codes),
        splits,
        *numbers,
        K,
        BLOCK_N,
        BLOCK_M,
        num_warps=8,
        num_stages=2 if K > 128 else 3,
        **constants,
    )


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


def _codes_at_a_time(codes, multiple):
    """A multiple of `multiple`: so many codes that their unpacked bytes take about MAX_BYTES at most."""
    return max(1, MAX_BYTES // (8 * _padded_size(codes.shape[1]) * multiple)) * multiple
