"""Distances on CUDA by POPC, the instruction that counts bits, for codes of any length.

Codes are stored as 32-bit words in the shape [words, n], so that neighbouring threads read neighbouring
words. The last code is repeated until the last tile is full, so no load needs a mask. A program holds the
distances of one tile in registers: BLOCK_N queries x block_m codes. The database is cut into splits of
`steps` tiles each, so that a few queries also keep the whole device busy.

Carry-save adders reduce the number of words to count. A full adder turns three words of differing bits into
a word of sums and a word of carries, by two LOP3 instructions of 2 cycles each, and so saves one POPC,
which takes 8 cycles. Eight words then need 4 POPC instead of 8, and both instructions take equally long.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from llc.kernels.cuda_launch import launch

BLOCK_N = 8  # queries of a tile: they share each database word that is loaded
BLOCK_M = 512  # codes of a tile: 8 x 4 pairs per thread
LONG_BLOCK_M = 256  # the same for codes of more than two words, as carry-save adders need registers too
GROUP = 8  # words that go through the carry-save adders together
PART = 64  # codes of a tile that are written at a time
PROGRAMS = 4096  # enough for a few waves on 132 multiprocessors: an assumption, not measured
STEP_BITS = 15  # a lane's key is distance << STEP_BITS | step, which leaves 16 bits for the distance
INDEX_BITS = 40  # a query's key is distance << INDEX_BITS | index
MAX_QUERIES = 1 << 22  # of one launch: its grid then stays within CUDA's limit for any size of database


# ---- kernels ------------------------------------------------------------------------------------------


@triton.jit
def _count_bits(x):
    """The number of bits that are 1 in uint32 x -> int32.

    LLVM recognises this pattern and replaces it by one popc. The minimum keeps LLVM from merging the last
    shift with a later one first, which would hide the pattern. It costs nothing, because LLVM knows that a
    popc is at most 32 and removes it.
    """
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return tl.minimum(((x * 0x01010101) >> 24).to(tl.int32), 32)


@triton.jit
def _differing(query, code, word: tl.constexpr, query_stride, code_stride):
    """The differing bits of word number `word` -> uint32 [BLOCK_N, BLOCK_M]."""
    a = tl.load(query + word * query_stride).to(tl.uint32, bitcast=True)
    b = tl.load(code + word * code_stride).to(tl.uint32, bitcast=True)
    return a[:, None] ^ b[None, :]


@triton.jit
def _two_words(query, code, word: tl.constexpr, query_stride, code_stride):
    return (
        _differing(query, code, word, query_stride, code_stride),
        _differing(query, code, word + 1, query_stride, code_stride),
    )


@triton.jit
def _full_add(a, b, c):
    """The sum and the carry of each bit of three words, by one LOP3 each."""
    return a ^ b ^ c, (a & b) | (c & (a ^ b))


@triton.jit
def _group_distances(query, code, query_stride, code_stride, words: tl.constexpr):
    """The number of differing bits in 1 to GROUP words. The names ones, twos, fours give a bit's weight."""
    ones = _differing(query, code, 0, query_stride, code_stride)
    if words >= 3:
        a, b = _two_words(query, code, 1, query_stride, code_stride)
        ones, twos = _full_add(ones, a, b)
    if words >= 5:
        a, b = _two_words(query, code, 3, query_stride, code_stride)
        ones, more_twos = _full_add(ones, a, b)
    if words >= 7:
        a, b = _two_words(query, code, 5, query_stride, code_stride)
        ones, last_twos = _full_add(ones, a, b)
        twos, fours = _full_add(twos, more_twos, last_twos)
    distance = _count_bits(ones)
    if words % 2 == 0:
        distance += _count_bits(_differing(query, code, words - 1, query_stride, code_stride))
    if words >= 3:
        distance += 2 * _count_bits(twos)
    if words == 5 or words == 6:
        distance += 2 * _count_bits(more_twos)
    if words >= 7:
        distance += 4 * _count_bits(fours)
    return distance


@triton.jit
def _tile_distances(
    queries, database, rows, columns, n, code_stride, words: tl.constexpr, GROUP: tl.constexpr
):
    """Distances of queries `rows` [BLOCK_N] to codes `columns` [BLOCK_M] -> int32 [BLOCK_N, BLOCK_M]."""
    query, code = queries + rows, database + columns
    query_stride = (tl.cdiv(n, rows.shape[0]) * rows.shape[0]).to(tl.int64)
    code_stride = code_stride.to(tl.int64)
    distance = tl.zeros([rows.shape[0], columns.shape[0]], tl.int32)
    for _ in range(words // GROUP):
        distance += _group_distances(query, code, query_stride, code_stride, GROUP)
        query += GROUP * query_stride
        code += GROUP * code_stride
    if words % GROUP > 0:
        distance += _group_distances(query, code, query_stride, code_stride, words % GROUP)
    return distance


@triton.jit
def store_nearest(
    nearest,
    best,
    rows,
    n,
    split,
    splits,
    steps,
    STEP_BITS: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    EACH_LANE: tl.constexpr,
):
    """Stores the result of a split: best int32 [BLOCK_N, BLOCK_M], which is distance << STEP_BITS | step.

    With EACH_LANE it stores the lowest distance of each lane into nearest int32 [n, splits * BLOCK_M].
    Otherwise it stores the lowest key of each query into nearest int64 [splits, n].
    """
    BLOCK_M: tl.constexpr = best.shape[1]
    lanes = tl.arange(0, BLOCK_M)
    if EACH_LANE:
        pointers = nearest + (rows.to(tl.int64) * splits + split)[:, None] * BLOCK_M + lanes[None, :]
        tl.store(pointers, best >> STEP_BITS, mask=(rows < n)[:, None])
    else:
        index = (split * steps + (best & ((1 << STEP_BITS) - 1))) * BLOCK_M + lanes[None, :]
        key = ((best >> STEP_BITS).to(tl.int64) << INDEX_BITS) | index
        tl.store(nearest + split.to(tl.int64) * n + rows, tl.min(key, axis=1), mask=rows < n)


# By default Triton compiles a kernel again for numbers that are 1 or multiples of 16, which gains nothing
# here. If Triton knew the alignment of the database, each thread would load 4 neighbouring words, and these
# would have to go through shared memory to the threads that need them.
_unspecialised = triton.jit(
    do_not_specialize=["n", "m", "code_stride", "splits", "steps"],
    do_not_specialize_on_alignment=["database"],
)


@_unspecialised
def _all_kernel(
    queries,
    database,
    distances,
    n,
    m,
    code_stride,
    splits,
    steps,
    words: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Writes every distance into int32 [n, m]. Each tile of the database is a split."""
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(0) % splits * BLOCK_M + tl.arange(0, BLOCK_M)
    distance = _tile_distances(queries, database, rows, columns, n, code_stride, words, GROUP)
    tl.store(
        distances + rows.to(tl.int64)[:, None] * m + columns[None, :],
        distance,
        mask=(rows < n)[:, None] & (columns < m)[None, :],
    )


@_unspecialised
def _nearest_kernel(
    queries,
    database,
    nearest,
    n,
    m,
    code_stride,
    splits,
    steps,
    words: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STEP_BITS: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    EACH_LANE: tl.constexpr,
):
    """The nearest code of each query, or of each lane, as store_nearest stores it.

    Codes beyond m repeat the last one. They never become the nearest code, because the last one itself has
    the same distance and a lower index. But a lane that has only such codes must count as empty.
    """
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.arange(0, BLOCK_M)
    start = split * steps * BLOCK_M
    best = tl.full([BLOCK_N, BLOCK_M], 0x7FFFFFFF, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        columns = start + step * BLOCK_M + lanes
        distance = _tile_distances(queries, database, rows, columns, n, code_stride, words, GROUP)
        key = distance * (1 << STEP_BITS) + step
        if EACH_LANE:
            key = tl.where((columns < m)[None, :], key, 0x7FFFFFFF)
        best = tl.minimum(best, key)
    store_nearest(nearest, best, rows, n, split, splits, steps, STEP_BITS, INDEX_BITS, EACH_LANE)


@triton.jit
def _within(
    queries, database, radius, rows, columns, n, m, code_stride, words: tl.constexpr, GROUP: tl.constexpr
):
    """Distances int32 [BLOCK_N, BLOCK_M], and a mask of the codes within each query's radius."""
    distance = _tile_distances(queries, database, rows, columns, n, code_stride, words, GROUP)
    return distance, (distance <= radius[:, None]) & (columns < m)[None, :]


@_unspecialised
def _count_kernel(
    queries,
    database,
    radii,
    counts,
    n,
    m,
    code_stride,
    splits,
    steps,
    words: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Counts each split's codes within each query's radius, into counts int64 [n, splits]."""
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    radius = tl.load(radii + rows, mask=rows < n, other=-1)
    number = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        columns = (split * steps + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        _, inside = _within(queries, database, radius, rows, columns, n, m, code_stride, words, GROUP)
        number += inside.to(tl.int32)
    tl.store(counts + rows.to(tl.int64) * splits + split, tl.sum(number, axis=1).to(tl.int64), mask=rows < n)


@_unspecialised
def _write_kernel(
    queries,
    database,
    radii,
    starts,
    distances,
    indices,
    n,
    m,
    code_stride,
    splits,
    steps,
    words: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PART: tl.constexpr,
):
    """Writes each split's codes within each query's radius, from position starts int64 [n, splits] on."""
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    radius = tl.load(radii + rows, mask=rows < n, other=-1)
    end = tl.load(starts + rows.to(tl.int64) * splits + split, mask=rows < n, other=0)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        start = (split * steps + step) * BLOCK_M
        tile = start + tl.arange(0, BLOCK_M)
        _, inside_tile = _within(queries, database, radius, rows, tile, n, m, code_stride, words, GROUP)
        # Few tiles have a code to write. These are computed again in parts, because the positions and
        # pointers of a whole tile would need 250 registers, for every tile. The number of parts is 0 or all,
        # because Triton 3.6 fails to compile a loop inside an `if` here.
        any_inside = tl.max(tl.max(inside_tile.to(tl.int32), axis=1), axis=0)
        for part in range(any_inside * (BLOCK_M // PART)):
            columns = start + part * PART + tl.arange(0, PART)
            distance, inside = _within(
                queries, database, radius, rows, columns, n, m, code_stride, words, GROUP
            )
            order = tl.cumsum(inside.to(tl.int32), axis=1)
            position = end[:, None] + order - 1
            tl.store(distances + position, distance, mask=inside)
            index = tl.broadcast_to(columns[None, :], [BLOCK_N, PART]).to(tl.int64)
            tl.store(indices + position, index, mask=inside)
            end += tl.max(order, axis=1)


# ---- launches -----------------------------------------------------------------------------------------


class Database(NamedTuple):
    """Codes in the layout that the kernels read."""

    words: torch.Tensor  # int32 [ceil(code_size / 4), num_tiles * block_m]
    length: int
    block_m: int  # codes of a tile

    @property
    def num_tiles(self) -> int:
        return self.words.shape[1] // self.block_m


def prepare(codes: torch.Tensor) -> Database:
    """Packed codes uint8 [m, code_size], m >= 1, in the kernels' layout."""
    block_m = BLOCK_M if codes.shape[1] <= 8 else LONG_BLOCK_M
    return Database(_words(codes, block_m), len(codes), block_m)


def _words(codes, tile):
    """uint8 [n, code_size] -> int32 [ceil(code_size / 4), n rounded up to a multiple of tile].

    Each code is padded with zeros, and the last code is repeated until the last tile is full.
    """
    n, code_size = codes.shape
    shape = triton.cdiv(n, tile) * tile, triton.cdiv(code_size, 4) * 4
    padded = torch.zeros(shape, dtype=torch.uint8, device=codes.device)
    padded[:n, :code_size] = codes
    padded[n:, :code_size] = codes[-1]
    return padded.view(torch.int32).T.contiguous()


def pairwise_programs(n: int, m: int) -> int:
    """The largest number of programs that `pairwise` launches for n queries and m codes."""
    return triton.cdiv(n, BLOCK_N) * triton.cdiv(m, LONG_BLOCK_M)


def split(n: int, database: Database, lanes: int = 0) -> tuple[int, int]:
    """(splits, steps) for n queries: at least `lanes` lanes, if the database has that many codes."""
    num_splits = triton.cdiv(lanes, database.block_m)
    return splits_and_steps(triton.cdiv(n, BLOCK_N), database.num_tiles, PROGRAMS, num_splits)


def splits_and_steps(
    num_row_blocks: int, num_tiles: int, num_programs: int, num_splits: int
) -> tuple[int, int]:
    """Cuts num_tiles tiles into splits of `steps` tiles -> (splits, steps).

    If there are enough tiles, this gives about num_programs programs and at least num_splits splits. No
    split has more steps than STEP_BITS bits can number.
    """
    at_least = max(num_splits, triton.cdiv(num_tiles, 1 << STEP_BITS))
    wanted = max(triton.cdiv(num_programs, num_row_blocks), at_least)
    steps = max(1, num_tiles // wanted)
    return triton.cdiv(num_tiles, steps), steps


def pairwise(queries: torch.Tensor, database: Database) -> torch.Tensor:
    """Every distance: queries uint8 [n, code_size], n >= 1 -> int32 [n, m]."""
    distances = torch.empty(len(queries), database.length, dtype=torch.int32, device=queries.device)
    _launch(_all_kernel, queries, database, database.num_tiles, 1, distances)
    return distances


def nearest(queries: torch.Tensor, database: Database) -> torch.Tensor:
    """The nearest code of each query, as a key int64 [n] = distance << INDEX_BITS | index.

    queries: uint8 [n, code_size], n >= 1.
    """
    keys = []
    for part in queries.split(MAX_QUERIES):
        splits, steps = split(len(part), database)
        found = torch.empty(splits, len(part), dtype=torch.int64, device=queries.device)
        _launch_nearest(part, database, splits, steps, found, each_lane=False)
        keys.append(found.amin(0))
    return torch.cat(keys)


def nearest_in_lanes(queries: torch.Tensor, database: Database, lanes: int) -> torch.Tensor:
    """The lowest distance in each lane -> int32 [n, num_lanes].

    The codes are divided among at least min(lanes, m) lanes. An empty lane has a distance above all others.
    """
    splits, steps = split(len(queries), database, lanes)
    found = torch.empty(len(queries), splits * database.block_m, dtype=torch.int32, device=queries.device)
    _launch_nearest(queries, database, splits, steps, found, each_lane=True)
    return found


def _launch_nearest(queries, database, splits, steps, found, each_lane):
    _launch(
        _nearest_kernel,
        queries,
        database,
        splits,
        steps,
        found,
        STEP_BITS=STEP_BITS,
        INDEX_BITS=INDEX_BITS,
        EACH_LANE=each_lane,
    )


def count_within(
    queries: torch.Tensor, database: Database, radii: torch.Tensor, splits: int, steps: int
) -> torch.Tensor:
    """The number of codes of each split within each query's radius, radii int32 [n] -> int64 [n, splits]."""
    counts = torch.empty(len(queries), splits, dtype=torch.int64, device=queries.device)
    _launch(_count_kernel, queries, database, splits, steps, radii, counts)
    return counts


def write_within(
    queries: torch.Tensor, database: Database, radii: torch.Tensor, counts: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The codes that count_within counted: lims int64 [n + 1], distances int32, indices int64."""
    ends = counts.flatten().cumsum(0)
    lims = torch.cat([ends.new_zeros(1), ends[counts.shape[1] - 1 :: counts.shape[1]]])
    starts = ends - counts.flatten()
    total = int(lims[-1])
    distances = torch.empty(total, dtype=torch.int32, device=queries.device)
    indices = torch.empty(total, dtype=torch.int64, device=queries.device)
    if total:
        _launch(
            _write_kernel,
            queries,
            database,
            counts.shape[1],
            steps,
            radii,
            starts,
            distances,
            indices,
            PART=PART,
        )
    return lims, distances, indices


def _launch(kernel, queries, database, splits, steps, *arguments, **constants):
    num_words, code_stride = database.words.shape
    # For 7 and 8 words ptxas would use 168 registers, though 128 are enough and let 4 programs instead of 3
    # run on a multiprocessor. With this limit longer codes and the writing kernel would spill.
    options = {"maxnreg": 128} if num_words in (7, 8) and kernel is not _write_kernel else {}
    row_blocks = triton.cdiv(len(queries), BLOCK_N)
    launch(
        kernel,
        row_blocks * splits,
        _words(queries, BLOCK_N),
        database.words,
        *arguments,
        len(queries),
        database.length,
        code_stride,
        splits,
        steps,
        num_words,
        GROUP,
        BLOCK_N,
        database.block_m,
        **constants,
        **options,
    )
