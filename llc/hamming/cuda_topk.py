"""Selects the nearest codes on CUDA: the lowest of several keys, and the k nearest from minima of groups.

The k nearest codes are found from each query's lowest distance in each group of neighbouring codes.

The k-th lowest of these minima is a radius within which a query has k codes, because k groups have one each.
Only groups whose minimum is within the radius can hold one of the k nearest codes. They are few, so their
distances are computed once more and the codes within the radius collected, in any order. Sorting the keys
distance << INDEX_BITS | index then makes the result exact and its order the same in every call.
"""

import torch
import triton
import triton.language as tl

from llc.hamming.cuda_popc import INDEX_BITS, Database, count_bits, rows_of_words
from llc.kernels.cuda_launch import launch

MAX_PAIRS = 1 << 25  # of groups and queries that are looked at again: 0.5 GB of int64
NO_KEY = (1 << 63) - 1  # above every key
PAIRS = 8  # of groups and queries that a program of the collecting kernel has at a time
BLOCK_M = 128  # codes of each of them; all groups are multiples of it


@triton.jit(do_not_specialize=["n", "num_groups", "k"])
def _radius_kernel(
    minima,
    radii,
    num_within,
    n,
    num_groups,
    k,
    HIGHEST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """The k-th lowest of each query's minima [num_groups, n], and how many minima are not above it.

    By bisection: HIGHEST, which is 0 <= HIGHEST < 2^STEPS, is the highest possible distance.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    low = tl.zeros([BLOCK_N], tl.int32)
    high = tl.full([BLOCK_N], HIGHEST, tl.int32)
    number_at_high = tl.zeros([BLOCK_N], tl.int32) + num_groups
    for _ in range(STEPS):
        middle = (low + high) >> 1
        number = tl.zeros([BLOCK_G, BLOCK_N], tl.int32)
        for start in range(0, num_groups, BLOCK_G):
            groups = start + tl.arange(0, BLOCK_G)
            inside = (groups < num_groups)[:, None] & (rows < n)[None, :]
            pointers = minima + groups.to(tl.int64)[:, None] * n + rows[None, :]
            lowest = tl.load(pointers, mask=inside, other=0).to(tl.int32)
            number += (inside & (lowest <= middle[None, :])).to(tl.int32)
        total = tl.sum(number, axis=0)
        enough = total >= k
        high = tl.where(enough, middle, high)
        number_at_high = tl.where(enough, total, number_at_high)
        low = tl.where(enough, low, tl.minimum(middle + 1, high))
    tl.store(radii + rows, high, mask=rows < n)
    tl.store(num_within + rows, number_at_high, mask=rows < n)


@triton.jit(
    do_not_specialize=["num_pairs", "m", "code_stride", "group_size", "capacity"],
    do_not_specialize_on_alignment=["queries", "database", "pair_groups", "pair_queries"],
)
def _collect_kernel(
    queries,
    database,
    pair_groups,
    pair_queries,
    radii,
    counts,
    keys,
    num_pairs,
    m,
    code_stride,
    group_size,
    capacity,
    words: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Collects the codes of some groups that lie within their query's radius, in any order.

    pair_groups and pair_queries: int64 [num_pairs]. counts: int32 [n], 0 before, then the number of codes
    found. Their keys go to keys int64 [n, capacity], as far as they fit.
    """
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    group = tl.load(pair_groups + pair, mask=pair < num_pairs, other=0)
    query = tl.load(pair_queries + pair, mask=pair < num_pairs, other=0)
    radius = tl.load(radii + query, mask=pair < num_pairs, other=-1)
    for start in range(0, group_size, BLOCK_M):
        column = (group * group_size + start)[:, None] + tl.arange(0, BLOCK_M)[None, :]
        inside = column < m
        distance = tl.zeros([PAIRS, BLOCK_M], tl.int32)
        for word in range(words):
            a = tl.load(queries + query * words + word).to(tl.uint32, bitcast=True)
            b = tl.load(database + word * code_stride.to(tl.int64) + column, mask=inside, other=0)
            distance += count_bits(a[:, None] ^ b.to(tl.uint32, bitcast=True))
        inside = inside & (distance <= radius[:, None])
        row = tl.broadcast_to(query[:, None], [PAIRS, BLOCK_M])
        place = tl.atomic_add(counts + row, 1, mask=inside, sem="relaxed")
        key = (distance.to(tl.int64) << INDEX_BITS) | column
        tl.store(keys + row * capacity + place, key, mask=inside & (place < capacity))


@triton.jit(do_not_specialize=["n", "splits"])
def _lowest_kernel(
    keys,
    distances,
    indices,
    n,
    splits,
    INDEX_BITS: tl.constexpr,
    NO_KEY: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The distance and the index in each query's lowest key of keys int64 [splits, n]."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lowest = tl.full([BLOCK_S, BLOCK_N], NO_KEY, tl.int64)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        pointers = keys + split.to(tl.int64)[:, None] * n + rows[None, :]
        inside = (split < splits)[:, None] & (rows < n)[None, :]
        lowest = tl.minimum(lowest, tl.load(pointers, mask=inside, other=NO_KEY))
    key = tl.min(lowest, axis=0)
    tl.store(distances + rows, (key >> INDEX_BITS).to(tl.int32), mask=rows < n)
    tl.store(indices + rows, key & ((1 << INDEX_BITS) - 1), mask=rows < n)


def lowest(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each query's lowest key: int64 [splits, n] -> (distances int32 [n, 1], indices int64 [n, 1])."""
    splits, n = keys.shape
    distances = torch.empty(n, 1, dtype=torch.int32, device=keys.device)
    indices = torch.empty(n, 1, dtype=torch.int64, device=keys.device)
    constants = (INDEX_BITS, NO_KEY, 32, 32)
    launch(_lowest_kernel, triton.cdiv(n, 32), keys, distances, indices, n, splits, *constants)
    return distances, indices


def as_result(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys int64 [n, k] -> (distances int32 [n, k], indices int64 [n, k])."""
    return (keys >> INDEX_BITS).int(), keys & ((1 << INDEX_BITS) - 1)


def radii_of(minima: torch.Tensor, k: int, num_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Radii within which each query has at least k codes, and how many groups have one within them.

    minima: [num_groups, n] of distances up to num_bits, k <= num_groups -> two tensors int32 [n].
    """
    num_groups, n = minima.shape
    radii, num_within = (torch.empty(n, dtype=torch.int32, device=minima.device) for _ in range(2))
    # 16 queries are 32 neighbouring bytes of int16, the least that a load fetches. Many groups at a time keep
    # few queries from waiting for one load after the other.
    block_n, block_g = 16, 512
    launch(
        _radius_kernel,
        triton.cdiv(n, block_n),
        minima,
        radii,
        num_within,
        n,
        num_groups,
        k,
        num_bits,
        num_bits.bit_length(),
        block_n,
        block_g,
        num_warps=8,
    )
    return radii, num_within


def k_nearest(
    queries: torch.Tensor,
    database: Database,
    minima: torch.Tensor,
    group_size: int,
    radii: torch.Tensor,
    k: int,
    capacity: int,
) -> torch.Tensor | None:
    """Keys of the k nearest codes of each query, in ascending order: int64 [n, k].

    minima: [num_groups, n], each query's lowest distance in each group of group_size codes. radii: int32 [n]
    of radii_of. None: some query has more than `capacity` codes within its radius.
    """
    n = len(queries)
    # contiguous, because they may be two columns of one matrix
    pairs = [part.contiguous() for part in (minima <= radii).nonzero(as_tuple=True)]
    counts = torch.zeros(n, dtype=torch.int32, device=queries.device)
    keys = torch.full((n, capacity), NO_KEY, dtype=torch.int64, device=queries.device)
    rows = rows_of_words(queries)
    launch(
        _collect_kernel,
        triton.cdiv(len(pairs[0]), PAIRS),
        rows,
        database.words,
        *pairs,
        radii,
        counts,
        keys,
        len(pairs[0]),
        database.length,
        database.words.shape[1],
        group_size,
        capacity,
        rows.shape[1],
        INDEX_BITS,
        PAIRS,
        BLOCK_M,
    )
    most = int(counts.max())
    if most > capacity:
        return None
    return keys[:, :most].sort(dim=1).values[:, :k]
