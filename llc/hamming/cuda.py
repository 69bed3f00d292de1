"""Distances and search on CUDA, by Triton. Arguments are tensors on one device that llc.hamming has checked.

Two modules compute distances: cuda_popc uses the instruction that counts bits, and cuda_dot uses int8
tensor cores. They give the same results, and _takes_dot chooses between them. cuda_topk selects the nearest
codes. Under TRITON_INTERPRET=1 the kernels run on CPU tensors, for tests.
"""

import torch
import triton

from llc.hamming import cuda_dot, cuda_popc, cuda_topk
from llc.kernels.cuda_launch import check_grid

# "popc" or "dot" makes every search use that module where it can, for tests and timings. None: see
# _takes_dot.
METHOD = None
DOT_QUERIES = 512  # from this many queries on tensor cores are faster, see _takes_dot
# Kernels number codes by int32, and the last tile reaches beyond the last code.
MAX_CODES = (1 << 31) - (1 << 16)
QUERY_TILE = 8192  # queries of a range search that are processed together
MAX_CANDIDATES = 1 << 25  # candidates of a top-k search at a time, unless a single query has more
MAX_MINIMA = 1 << 27  # lowest distances, of queries and groups of codes, at a time: 256 MB
MAX_GROUPS = 1 << 14  # of codes: more would be of no use, and fewer queries would fit into MAX_MINIMA
# With fewer groups per neighbour, radii from minima would include too many codes.
GROUPS_PER_NEIGHBOUR = 4
# Room for codes that are as far away as the last neighbour. Of random codes of 64 bits, about 5 times as many
# are within one more bit.
CANDIDATES_PER_NEIGHBOUR = 8


def pairwise(queries: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """llc.hamming.pairwise on CUDA."""
    _check_numbers(queries, database)
    if len(queries) == 0 or len(database) == 0:
        return _empty(torch.int32, (len(queries), len(database)), queries)
    check_grid(cuda_popc.pairwise_programs(len(queries), len(database)))  # before anything is allocated
    return cuda_popc.pairwise(queries, cuda_popc.prepare(database))


def search(queries: torch.Tensor, database: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """llc.hamming.search on CUDA, for 1 <= k <= m."""
    _check_numbers(queries, database)
    if len(queries) == 0:
        return _empty(torch.int32, (0, k), queries), _empty(torch.int64, (0, k), queries)
    parts = list(_nearest(queries, database) if k == 1 else _several_nearest(queries, database, k))
    if len(parts) == 1:
        return parts[0]
    distances, indices = (torch.cat(part) for part in zip(*parts))
    return distances, indices


def _nearest(queries, database):
    """Yields search(part, database, 1) for parts of the queries."""
    if _takes_dot(queries, database):
        for part in queries.split(cuda_dot.max_queries(queries)):
            yield cuda_topk.lowest(cuda_dot.nearest(part, database))
    else:
        words = cuda_popc.prepare(database)
        for part in queries.split(cuda_popc.MAX_QUERIES):
            yield cuda_topk.lowest(cuda_popc.nearest(part, words))


def _several_nearest(queries, database, k):
    """Yields search(part, database, k) for parts of the queries, for k > 1."""
    words, takes_dot = cuda_popc.prepare(database), _takes_dot(queries, database)
    tile = cuda_dot.BLOCK_M if takes_dot else words.block_m
    group_steps = triton.cdiv(triton.cdiv(len(database), tile), MAX_GROUPS)
    num_groups = triton.cdiv(len(database), tile * group_steps)
    if num_groups < GROUPS_PER_NEIGHBOUR * k:
        for part in queries.split(QUERY_TILE):
            yield _k_nearest(part, words, k, _exact_radii(part, words, k))
        return
    capacity = triton.next_power_of_2(CANDIDATES_PER_NEIGHBOUR * k)
    at_a_time = max(1, min(MAX_MINIMA // num_groups, MAX_CANDIDATES // capacity))
    if takes_dot:
        at_a_time = min(at_a_time, cuda_dot.max_queries(queries))
    for part in queries.split(at_a_time):
        if takes_dot:
            minima = cuda_dot.group_minima(part, database, group_steps)
        else:
            minima = cuda_popc.group_minima(part, words, group_steps)
        radii, num_within = cuda_topk.radii_of(minima, k, 8 * part.shape[1])
        keys = None
        if int(num_within.sum()) <= cuda_topk.MAX_PAIRS:
            keys = cuda_topk.k_nearest(part, words, minima, tile * group_steps, radii, k, capacity)
        if keys is None:  # many codes are equally far away, so that there are many candidates
            yield from (
                _k_nearest(few, words, k, few_radii)
                for few, few_radii in zip(part.split(QUERY_TILE), radii.split(QUERY_TILE))
            )
        else:
            yield cuda_topk.as_result(keys)


def _exact_radii(queries, database, k):
    """The distance of each query's k-th nearest code, by bisection: int32 [n]."""
    num_bits = 8 * queries.shape[1]
    low = torch.zeros(len(queries), dtype=torch.int32, device=queries.device)
    high = torch.full_like(low, num_bits)
    splits, steps = cuda_popc.split(len(queries), database)
    for _ in range(num_bits.bit_length()):
        middle = (low + high) >> 1
        enough = cuda_popc.count_within(queries, database, middle, splits, steps).sum(1) >= k
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return high


def _k_nearest(queries, database, k, radii):
    """The k nearest codes of each query, given radii int32 [n] within which they lie."""
    n = len(queries)
    splits, steps = cuda_popc.split(n, database)
    counts = cuda_popc.count_within(queries, database, radii, splits, steps)
    if n > 1 and int(counts.sum()) > MAX_CANDIDATES:
        halves = [
            _k_nearest(half, database, k, half_radii)
            for half, half_radii in zip(queries.tensor_split(2), radii.tensor_split(2))
        ]
        return tuple(torch.cat(half) for half in zip(*halves))
    lims, distances, indices = cuda_popc.write_within(queries, database, radii, counts, steps)
    query = torch.repeat_interleave(torch.arange(n, device=queries.device), lims.diff())
    # candidates are in order of query, then index, so a stable sort leaves ties in the order of their indices
    order = torch.argsort((query << 16) + distances, stable=True)
    chosen = order[lims[:-1, None] + torch.arange(k, device=queries.device)]
    return distances[chosen], indices[chosen]


def range_search(
    queries: torch.Tensor, database: torch.Tensor, radius: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """llc.hamming.range_search on CUDA. It scans twice, first to count and then to write."""
    _check_numbers(queries, database)
    if len(queries) == 0 or len(database) == 0:
        zeros = torch.zeros(len(queries) + 1, dtype=torch.int64, device=queries.device)
        return zeros, _empty(torch.int32, (0,), queries), _empty(torch.int64, (0,), queries)
    words = cuda_popc.prepare(database)
    lims, parts = [torch.zeros(1, dtype=torch.int64, device=queries.device)], []
    for part in queries.split(QUERY_TILE):
        splits, steps = cuda_popc.split(len(part), words)
        widest = min(radius, 8 * part.shape[1])  # fits in 32 bits, however large the radius is
        radii = torch.full((len(part),), widest, dtype=torch.int32, device=part.device)
        counts = cuda_popc.count_within(part, words, radii, splits, steps)
        part_lims, distances, indices = cuda_popc.write_within(part, words, radii, counts, steps)
        lims.append(part_lims[1:] + lims[-1][-1])
        parts.append((distances, indices))
    distances, indices = (torch.cat(part) for part in zip(*parts))
    return torch.cat(lims), distances, indices


def _takes_dot(queries, database):
    """Whether to find the nearest codes by tensor cores (cuda_dot) instead of by POPC (cuda_popc).

    Measured on an H200 for k = 1, in 1,281,167 codes (BENCHMARKS.md): for 512 queries and codes of 32 to 256
    bits, tensor cores take 0.65 to 0.88 of POPC's time; for 10,000 queries and 64 or 256 bits, a third. For
    256 queries both take about as long. For k > 1 the number is an estimate, because finding the radii was
    made faster after it was measured.

    Triton has no int8 products for compute capabilities below 8.0. For 10.0 and above neither was tried.
    """
    possible = 8 * queries.shape[1] <= cuda_dot.MAX_BITS
    if METHOD is not None:
        return possible and METHOD == "dot"
    return (
        possible
        and len(queries) >= DOT_QUERIES
        and queries.is_cuda
        and 8 <= torch.cuda.get_device_capability(queries.device)[0] < 10
    )


def _check_numbers(queries, database):
    """Raises ValueError if there are more codes than the kernels can number."""
    for name, codes in (("queries", queries), ("database", database)):
        if len(codes) > MAX_CODES:
            advice = " and merge the results" if name == "database" else ""
            raise ValueError(
                f"{name}: {len(codes):,} codes, but on CUDA one call takes up to {MAX_CODES:,}, "
                f"because the kernels number codes by int32; pass the {name} in parts{advice}"
            )


def _empty(dtype, shape, like):
    return torch.empty(shape, dtype=dtype, device=like.device)
