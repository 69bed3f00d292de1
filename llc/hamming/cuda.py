"""Distances and search on CUDA, by Triton, of tensors on one device that llc.hamming has checked.

Two modules compute distances: cuda_popc by the instruction that counts bits, cuda_dot by int8 tensor cores.
They give the same results; _takes_dot chooses. Under TRITON_INTERPRET=1 the kernels run on CPU tensors, for
tests.
"""

import torch

from llc.hamming import cuda_dot, cuda_popc
from llc.hamming.cuda_popc import INDEX_BITS
from llc.kernels.cuda_launch import check_grid

# "popc" or "dot" makes every search take that way where it can, to test it or time it; None: see _takes_dot
METHOD = None
DOT_QUERIES = 256  # at least so many make the tensor cores faster, see _takes_dot
MAX_CODES = (1 << 31) - (1 << 16)  # kernels number codes by int32; whole tiles reach beyond the last code
QUERY_TILE = 8192  # queries of a top-k or range search that are counted together
MAX_CANDIDATES = 1 << 25  # of a top-k search, at once, unless one query alone has more


def pairwise(queries, database):
    """As llc.hamming.pairwise."""
    _check_numbers(queries, database)
    if len(queries) == 0 or len(database) == 0:
        return _empty(torch.int32, (len(queries), len(database)), queries)
    check_grid(cuda_popc.pairwise_programs(len(queries), len(database)))  # before anything is allocated
    return cuda_popc.pairwise(queries, cuda_popc.prepare(database))


def search(queries, database, k):
    """As llc.hamming.search, 1 <= k <= m."""
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
    return tuple(torch.cat(part) for part in zip(*parts))


def _radii(nearest, k):
    """A distance within which each query has at least k codes -> int32 [n].

    nearest: int32 [n, lanes], the lowest distance in each lane. Its k-th lowest value is such a distance,
    because k lanes hold a code within it. Where there are fewer lanes than k, all codes are candidates.
    """
    if k > nearest.shape[1]:
        return nearest.new_full((len(nearest),), (1 << 16) - 1)
    # not kthvalue, of which torch warns that its choice among equals is not deterministic
    return nearest.topk(k, dim=1, largest=False).values[:, -1].contiguous()


def _k_nearest(queries, database, k, radii):
    """The k nearest codes of each query, all of them within radii int32 [n]."""
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
    # candidates come by query and rising index, so a stable sort leaves ties in the order of their indices
    order = torch.argsort((query << 16) + distances, stable=True)
    chosen = order[lims[:-1, None] + torch.arange(k, device=queries.device)]
    return distances[chosen], indices[chosen]


def range_search(queries, database, radius):
    """As llc.hamming.range_search. Scans twice, to count and to write."""
    _check_numbers(queries, database)
    if len(queries) == 0 or len(database) == 0:
        lims = torch.zeros(len(queries) + 1, dtype=torch.int64, device=queries.device)
        return lims, _empty(torch.int32, (0,), queries), _empty(torch.int64, (0,), queries)
    database = cuda_popc.prepare(database)
    lims, parts = [torch.zeros(1, dtype=torch.int64, device=queries.device)], []
    for part in queries.split(QUERY_TILE):
        splits, steps = cuda_popc.split(len(part), database)
        widest = min(radius, 8 * part.shape[1])  # in 32 bits, whatever the radius is
        radii = torch.full((len(part),), widest, dtype=torch.int32, device=part.device)
        counts = cuda_popc.count_within(part, database, radii, splits, steps)
        part_lims, *found = cuda_popc.write_within(part, database, radii, counts, steps)
        lims.append(part_lims[1:] + lims[-1][-1])
        parts.append(found)
    return torch.cat(lims), *(torch.cat(part) for part in zip(*parts))


def _takes_dot(queries, database):
    """Whether tensor cores find the nearest codes.

    The rule rests on arithmetic on the compiled kernels and has not been measured on a GPU. In a clock cycle
    a multiprocessor of an H100 (A100) computes and compares the distances of 8 pairs of 64-bit codes by POPC,
    and about 20 (16) by products; of 256-bit codes 4 by POPC, and about 10 (6) by products. Unpacking the
    database costs what products gain on 120 queries (64 bits) to 240 (256 bits). Codes of one word gain
    nothing, because comparing the distances takes most of their time. Triton has no int8 products before
    compute capability 8.0. For 10.0 and later nothing was computed.
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
    for name, codes in (("queries", queries), ("database", database)):
        if len(codes) > MAX_CODES:
            advice = " and merge the results" if name == "database" else ""
            raise ValueError(
                f"{name}: {len(codes):,} codes, but on CUDA one call takes up to {MAX_CODES:,}, "
                f"because the kernels number codes by int32; pass the {name} in parts{advice}"
            )


def _empty(dtype, shape, like):
    return torch.empty(shape, dtype=dtype, device=like.device)
