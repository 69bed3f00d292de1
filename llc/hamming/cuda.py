"""Distances and search on CUDA, by Triton. Arguments are tensors on one device that llc.hamming has checked.

Two modules compute distances: cuda_popc uses the instruction that counts bits, and cuda_dot uses int8
tensor cores. They give the same results, and _takes_dot chooses between them. Under TRITON_INTERPRET=1 the
kernels run on CPU tensors, for tests.
"""

import torch

from llc.hamming import cuda_dot, cuda_popc
from llc.hamming.cuda_popc import INDEX_BITS
from llc.kernels.cuda_launch import check_grid

# "popc" or "dot" makes every search use that module where it can, for tests and timings. None: see
# _takes_dot.
METHOD = None
DOT_QUERIES = 256  # from this many queries on tensor cores are faster, see _takes_dot
MAX_CODES = (1 << 31) - (
    1 << 16
)  # kernels number codes by int32, and the last tile reaches beyond the last code
QUERY_TILE = 8192  # queries of a top-k or range search that are processed together
MAX_CANDIDATES = 1 << 25  # candidates of a top-k search at a time, unless a single query has more


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
    if k == 1:
        if _takes_dot(queries, database):
            keys = cuda_dot.nearest(queries, database)
        else:
            keys = cuda_popc.nearest(queries, cuda_popc.prepare(database))
        return (keys[:, None] >> INDEX_BITS).int(), keys[:, None] & ((1 << INDEX_BITS) - 1)
    words, parts = cuda_popc.prepare(database), []
    for part in queries.split(max(1, min(QUERY_TILE, MAX_CANDIDATES // (4 * k)))):
        if _takes_dot(part, database):
            nearest = cuda_dot.nearest_in_lanes(part, database, 4 * k)
        else:
            nearest = cuda_popc.nearest_in_lanes(part, words, 4 * k)
        parts.append(_k_nearest(part, words, k, _radii(nearest, k)))
    distances, indices = (torch.cat(part) for part in zip(*parts))
    return distances, indices


def _radii(nearest, k):
    """A distance within which each query has at least k codes -> int32 [n].

    nearest: int32 [n, lanes], the lowest distance in each lane. The k-th lowest of these is such a distance,
    because k lanes have a code within it. If there are fewer than k lanes, all codes are candidates.
    """
    if k > nearest.shape[1]:
        return nearest.new_full((len(nearest),), (1 << 16) - 1)
    # not kthvalue: torch warns that its choice among equal values is not deterministic
    return nearest.topk(k, dim=1, largest=False).values[:, -1].contiguous()


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

    The rule follows from counting instructions of the compiled kernels; it has not been measured on a GPU.
    Per clock cycle a multiprocessor computes and compares the distances of so many pairs of codes:

                     POPC   products on an H100   products on an A100
        64 bits         8              about 20              about 16
        256 bits        4              about 10               about 6

    Unpacking the database takes as long as products save on 120 queries (64 bits) to 240 queries (256 bits).
    Codes of one word gain nothing, because comparing the distances takes most of their time. Triton has no
    int8 products for compute capabilities below 8.0. For 10.0 and above the instructions were not counted.
    """
    possible = 8 * queries.shape[1] <= cuda_dot.MAX_BITS
    if METHOD is not None:
        return possible and METHOD == "dot"
    return (
        possible
        and queries.shape[1] > 4
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
