"""Distances and search on CUDA, by Triton. All functions take and give tensors on one device, checked by llc.hamming.

Codes become 32-bit words, word by word [words, n], so that neighbouring threads read neighbouring words. A program holds a tile of
BLOCK_N queries x BLOCK_M codes in registers; the database is cut into splits of `steps` tiles, so that few queries occupy the device too.
Triton's compiler makes one popc.b32 of `_count_bits`. On CPU tensors the kernels run under TRITON_INTERPRET=1, for tests.
"""
import torch
import triton
import triton.language as tl

BLOCK_N, BLOCK_M = 8, 512      # 8 x 4 pairs a thread: a word loaded serves several, and all stay in registers (60 to 140)
PROGRAMS = 4096                 # as many as keep a large device busy (132 multiprocessors), a few waves: an assumption, not measured
STEP_BITS = 15                  # a lane's key is distance << STEP_BITS | step: 16 bits of distance are left
INDEX_BITS = 40                 # a query's key is distance << INDEX_BITS | index
QUERY_TILE = 8192               # queries of a top-k or range search that are counted together
MAX_CANDIDATES = 1 << 25        # of a top-k search, at once, unless one query alone has more


@triton.jit
def _count_bits(x):
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _tile_distances(queries, database, rows, columns, n, m, words: tl.constexpr):
    """Distances of queries `rows` [BLOCK_N] to codes `columns` [BLOCK_M] -> int32 [BLOCK_N, BLOCK_M]; beyond n and m, anything."""
    query, code = queries + rows, database + columns
    distance = tl.zeros([rows.shape[0], columns.shape[0]], tl.int32)
    for _ in range(words):
        a = tl.load(query, mask=rows < n, other=0).to(tl.uint32, bitcast=True)
        b = tl.load(code, mask=columns < m, other=0).to(tl.uint32, bitcast=True)
        distance += _count_bits(a[:, None] ^ b[None, :])
        query += n
        code += m
    return distance


@triton.jit
def _all_kernel(queries, database, distances, n, m, words: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    num_blocks = tl.cdiv(m, BLOCK_M)
    rows = tl.program_id(0) // num_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(0) % num_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    distance = _tile_distances(queries, database, rows, columns, n, m, words)
    tl.store(distances + rows.to(tl.int64)[:, None] * m + columns[None, :], distance, mask=(rows < n)[:, None] & (columns < m)[None, :])


@triton.jit
def _nearest_kernel(queries, database, nearest, scale, n, m, splits, steps, words: tl.constexpr, BLOCK_N: tl.constexpr,
                    BLOCK_M: tl.constexpr, STEP_BITS: tl.constexpr, INDEX_BITS: tl.constexpr, EACH_LANE: tl.constexpr):
    """The lowest key of each query in each split, into int64 [splits, n]; or, EACH_LANE, the lowest distance in each lane of each split,
    into int32 [n, splits * BLOCK_M]. scale is 2^STEP_BITS: as a number known to the compiler it would be merged into the last shift of
    _count_bits, which is then no longer recognised as popc."""
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_M)
    start = split * steps * BLOCK_M
    best = tl.full([BLOCK_N, BLOCK_M], 0x7FFFFFFF, tl.int32)
    for step in range(steps):
        columns = start + step * BLOCK_M + lanes
        key = _tile_distances(queries, database, rows, columns, n, m, words) * scale + step
        best = tl.minimum(best, tl.where((columns < m)[None, :], key, 0x7FFFFFFF))
    if EACH_LANE:
        pointers = nearest + (rows.to(tl.int64) * splits + split)[:, None] * BLOCK_M + lanes[None, :]
        tl.store(pointers, best >> STEP_BITS, mask=(rows < n)[:, None])
    else:
        index = start + (best & ((1 << STEP_BITS) - 1)) * BLOCK_M + lanes[None, :]
        key = ((best >> STEP_BITS).to(tl.int64) << INDEX_BITS) | index
        tl.store(nearest + split.to(tl.int64) * n + rows, tl.min(key, axis=1), mask=rows < n)


@triton.jit
def _within_kernel(queries, database, radii, ends, distances, indices, n, m, splits, steps, words: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_M: tl.constexpr, WRITE: tl.constexpr):
    """Moves ends, int64 [n, splits], on by the number of codes within each query's radius, and WRITEs them there."""
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_M)
    start = split * steps * BLOCK_M
    radius = tl.load(radii + rows, mask=rows < n, other=-1)
    end_pointers = ends + rows.to(tl.int64) * splits + split
    end = tl.load(end_pointers, mask=rows < n, other=0)
    for step in range(steps):
        columns = start + step * BLOCK_M + lanes
        distance = _tile_distances(queries, database, rows, columns, n, m, words)
        inside = (distance <= radius[:, None]) & (columns < m)[None, :]
        number = tl.sum(inside.to(tl.int32), axis=1)
        if WRITE:
            if tl.max(number, axis=0) > 0:
                position = end[:, None] + tl.cumsum(inside.to(tl.int32), axis=1) - 1
                tl.store(distances + position, distance, mask=inside)
                tl.store(indices + position, tl.broadcast_to(columns[None, :], [BLOCK_N, BLOCK_M]).to(tl.int64), mask=inside)
        end += number
    if not WRITE:
        tl.store(end_pointers, end, mask=rows < n)


def pairwise(queries, database):
    """As llc.hamming.pairwise."""
    n, m = len(queries), len(database)
    distances = torch.empty(n, m, dtype=torch.int32, device=queries.device)
    if n and m:
        queries, database = _words(queries), _words(database)
        _all_kernel[triton.cdiv(n, BLOCK_N) * triton.cdiv(m, BLOCK_M),](queries, database, distances, n, m, len(queries), BLOCK_N, BLOCK_M)
    return distances


def search(queries, database, k):
    """As llc.hamming.search, 1 <= k <= m."""
    queries, database = _words(queries), _words(database)
    if k > 1:
        tile = max(1, min(QUERY_TILE, MAX_CANDIDATES // (4 * k)))
        parts = [_k_nearest(part.contiguous(), database, k) for part in queries.split(tile, dim=1)]
        return tuple(torch.cat(part) for part in zip(*parts))
    n, m = queries.shape[1], database.shape[1]
    splits, steps = _splits(n, m)
    keys = torch.empty(splits, n, dtype=torch.int64, device=queries.device)
    _launch(_nearest_kernel, queries, database, splits, steps, keys, 1 << STEP_BITS, STEP_BITS=STEP_BITS, INDEX_BITS=INDEX_BITS, EACH_LANE=False)
    keys = keys.amin(0)[:, None]
    return (keys >> INDEX_BITS).int(), keys & ((1 << INDEX_BITS) - 1)


def _k_nearest(queries, database, k):
    """Of k lanes, each with a code within some distance, follow k codes within it: a bound by which few candidates are collected."""
    n, m = queries.shape[1], database.shape[1]
    splits, steps = _splits(n, m, lanes=4 * k)
    nearest = torch.empty(n, splits * BLOCK_M, dtype=torch.int32, device=queries.device)
    _launch(_nearest_kernel, queries, database, splits, steps, nearest, 1 << STEP_BITS, STEP_BITS=STEP_BITS, INDEX_BITS=INDEX_BITS, EACH_LANE=True)
    # where m leaves fewer than k lanes with a code, all codes are candidates
    radii = nearest.kthvalue(k, dim=1).values.int() if k <= nearest.shape[1] else nearest.new_full((n,), 32 * len(queries))
    ends = _count_within(queries, database, radii, splits, steps)
    if n > 1 and int(ends.sum()) > MAX_CANDIDATES:
        parts = [_k_nearest(part.contiguous(), database, k) for part in queries.tensor_split(2, dim=1)]
        return tuple(torch.cat(part) for part in zip(*parts))
    lims, distances, indices = _write_within(queries, database, radii, ends, steps)
    query = torch.repeat_interleave(torch.arange(n, device=queries.device), lims.diff())
    # candidates come by query and rising index, so a stable sort leaves ties in the order of their indices
    order = torch.argsort((query << 16) + distances, stable=True)
    chosen = order[lims[:-1, None] + torch.arange(k, device=queries.device)]
    return distances[chosen], indices[chosen]


def range_search(queries, database, radius):
    """As llc.hamming.range_search. Scans twice, to count and to write."""
    queries, database = _words(queries), _words(database)
    splits, steps = _splits(queries.shape[1], database.shape[1])
    lims, parts = [torch.zeros(1, dtype=torch.int64, device=queries.device)], []
    for part in queries.split(QUERY_TILE, dim=1):
        part = part.contiguous()
        radii = torch.full((part.shape[1],), min(radius, 32 * len(queries)), dtype=torch.int32, device=queries.device)
        ends = _count_within(part, database, radii, splits, steps)
        part_lims, *found = _write_within(part, database, radii, ends, steps)
        lims.append(part_lims[1:] + lims[-1][-1])
        parts.append(found)
    return torch.cat(lims), *(torch.cat(part) for part in zip(*parts))


def _count_within(queries, database, radii, splits, steps):
    """-> int64 [n, splits], the number of codes within each query's radius in each split of the database."""
    ends = torch.zeros(queries.shape[1], splits, dtype=torch.int64, device=queries.device)
    _launch(_within_kernel, queries, database, splits, steps, radii, ends, None, None, WRITE=False)
    return ends


def _write_within(queries, database, radii, counts, steps):
    """The counted codes, in CSR form -> lims int64 [n + 1], distances int32, indices int64."""
    ends = counts.flatten().cumsum(0)
    lims = torch.cat([ends.new_zeros(1), ends[counts.shape[1] - 1::counts.shape[1]]])
    starts = ends - counts.flatten()
    total = int(lims[-1])
    distances = torch.empty(total, dtype=torch.int32, device=queries.device)
    indices = torch.empty(total, dtype=torch.int64, device=queries.device)
    if total:
        _launch(_within_kernel, queries, database, counts.shape[1], steps, radii, starts, distances, indices, WRITE=True)
    return lims, distances, indices


def _launch(kernel, queries, database, splits, steps, *arguments, **constants):
    (words, n), m = queries.shape, database.shape[1]
    if n and m:
        kernel[triton.cdiv(n, BLOCK_N) * splits,](queries, database, *arguments, n, m, splits, steps, words, BLOCK_N, BLOCK_M, **constants)


def _splits(n, m, lanes=0):
    """-> (splits, steps): the database in splits of `steps` tiles; enough to occupy the device and, where m allows, with so many lanes."""
    tiles = max(1, triton.cdiv(m, BLOCK_M))
    wanted = max(triton.cdiv(PROGRAMS, max(1, triton.cdiv(n, BLOCK_N))), triton.cdiv(lanes, BLOCK_M), triton.cdiv(tiles, 1 << STEP_BITS))
    steps = max(1, tiles // wanted)
    return triton.cdiv(tiles, steps), steps


def _words(codes):
    """uint8 [n, code_size] -> int32 [ceil(code_size / 4), n], zero padded."""
    n, code_size = codes.shape
    padded = torch.zeros(n, (code_size + 3) // 4 * 4, dtype=torch.uint8, device=codes.device)
    padded[:, :code_size] = codes
    return padded.view(torch.int32).T.contiguous()
