"""Distances on CUDA by POPC, the instruction that counts bits, for codes of any length.

The database is stored as 32-bit words in the shape [words, m], so that neighbouring threads read neighbouring
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
PROGRAMS = 4096  # a few waves; on an H200 2048 to 16384 take as long
STEP_BITS = 15  # a lane's key is distance << STEP_BITS | step, which leaves 16 bits for the distance
INDEX_BITS = 40  # a query's key is distance << INDEX_BITS | index
MAX_QUERIES = 1 << 22  # of one search: a grid then stays within CUDA's limit for any size of database


# ---- kernels ------------------------------------------------------------------------------------------


@triton.jit
def count_bits(x):
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
def _differing(query, code, word: tl.constexpr, code_stride):
    """The differing bits of word number `word` -> uint32 [BLOCK_N, BLOCK_M]."""
    a = tl.load(query + word).to(tl.uint32, bitcast=True)
    b = tl.load(code + word * code_stride).to(tl.uint32, bitcast=True)
    return a[:, None] ^ b[None, :]


@triton.jit
def _two_words(query, code, word: tl.constexpr, code_stride):
    return _differing(query, code, word, code_stride), _differing(query, code, word + 1, code_stride)


@triton.jit
def _full_add(a, b, c):
    """The sum and the carry of each bit of three words, by one LOP3 each."""
    return a ^ b ^ c, (a & b) | (c & (a ^ b))


@triton.jit
def _group_distances(query, code, code_stride, words: tl.constexpr):
    """The number of differing bits in 1 to GROUP words. The names ones, twos, fours give a bit's weight."""
    ones = _differing(query, code, 0, code_stride)
    if words >= 3:
        a, b = _two_words(query, code, 1, code_stride)
        ones, twos = _full_add(ones, a, b)
    if words >= 5:
        a, b = _two_words(query, code, 3, code_stride)
        ones, more_twos = _full_add(ones, a, b)
    if words >= 7:
        a, b = _two_words(query, code, 5, code_stride)
        ones, last_twos = _full_add(ones, a, b)
        twos, fours = _full_add(twos, more_twos, last_twos)
    distance = count_bits(ones)
    if words % 2 == 0:
        distance += count_bits(_differing(query, code, words - 1, code_stride))
    if words >= 3:
        distance += 2 * count_bits(twos)
    if words == 5 or words == 6:
        distance += 2 * count_bits(more_twos)
    if words >= 7:
        distance += 4 * count_bits(fours)
    return distance


@triton.jit
def _tile_distances(
    queries, database, rows, columns, n, code_stride, words: tl.constexpr, GROUP: tl.constexpr
):
    """Distances of queries `rows` [BLOCK_N] to codes `columns` [BLOCK_M] -> int32 [BLOCK_N, BLOCK_M]."""
    # Rows beyond n repeat the last query. For long codes the queries hold them already: without a minimum all
    # rows' pointers differ by constants, which saves 80 registers.
    if words <= GROUP:
        rows = tl.minimum(rows, n - 1)
    query = queries + rows.to(tl.int64) * words
    code, code_stride = database + columns, code_stride.to(tl.int64)
    distance = tl.zeros([rows.shape[0], columns.shape[0]], tl.int32)
    for _ in range(words // GROUP):
        distance += _group_distances(query, code, code_stride, GROUP)
        query += GROUP
        code += GROUP * code_stride
    if words % GROUP > 0:
        distance += _group_distances(query, code, code_stride, words % GROUP)
    return distance


@triton.jit
def store_nearest(
    nearest, best, rows, n, split, splits, steps, STEP_BITS: tl.constexpr, INDEX_BITS: tl.constexpr
):
    """Stores each query's lowest key in a split into nearest int64 [splits, n].

    best: int32 [BLOCK_N, BLOCK_M], which is distance << STEP_BITS | step.
    """
    BLOCK_M: tl.constexpr = best.shape[1]
    index = (split * steps + (best & ((1 << STEP_BITS) - 1))) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    key = ((best >> STEP_BITS).to(tl.int64) << INDEX_BITS) | index
    tl.store(nearest + split.to(tl.int64) * n + rows, tl.min(key, axis=1), mask=rows < n)


# By default Triton compiles a kernel again for numbers that are 1 or multiples of 16, which gains nothing
# here. If Triton knew the alignment of the database, each thread would load 4 neighbouring words, and these
# would have to go through shared memory to the threads that need them.
_unspecialised = triton.jit(
    do_not_specialize=["n", "m", "code_stride", "splits", "steps", "group_steps"],
    do_not_specialize_on_alignment=["queries", "database"],
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
):
    """The nearest code of each query, as store_nearest stores it.

    Codes beyond m repeat the last one. They never become the nearest code, because the last one itself has
    the same distance and a lower index.
    """
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    start = split * steps * BLOCK_M
    best = tl.full([BLOCK_N, BLOCK_M], 0x7FFFFFFF, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        columns = start + step * BLOCK_M + tl.arange(0, BLOCK_M)
        distance = _tile_distances(queries, database, rows, columns, n, code_stride, words, GROUP)
        best = tl.minimum(best, distance * (1 << STEP_BITS) + step)
    store_nearest(nearest, best, rows, n, split, splits, steps, STEP_BITS, INDEX_BITS)


@_unspecialised
def _minima_kernel(
    queries,
    database,
    minima,
    n,
    m,
    code_stride,
    splits,
    steps,
    group_steps,
    words: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Each query's lowest distance in each group of group_steps tiles, into minima [num_groups, n].

    steps is a multiple of group_steps, so that no group lies in two splits.
    """
    split = tl.program_id(0) % splits
    rows = tl.program_id(0) // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    lowest = tl.full([BLOCK_N], 0x7FFFFFFF, tl.int32)
    for step in range(tl.minimum(steps, tl.cdiv(m, BLOCK_M) - split * steps)):
        tile = split * steps + step
        columns = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        distance = _tile_distances(queries, database, rows, columns, n, code_stride, words, GROUP)
        lowest = tl.minimum(lowest, tl.min(distance, axis=1))
        # It is stored after every tile of a group; the last one counts.
        tl.store(minima + (tile // group_steps).to(tl.int64) * n + rows, lowest, mask=rows < n)
        lowest = tl.where((tile + 1) % group_steps == 0, 0x7FFFFFFF, lowest)


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
    """uint8 [m, code_size] -> int32 [ceil(code_size / 4), m rounded up to a multiple of tile].

    The last code is repeated until the last tile is full.
    """
    rows, m = rows_of_words(codes), len(codes)
    words = rows.new_empty(rows.shape[1], triton.cdiv(m, tile) * tile)
    words[:, :m] = rows.T
    words[:, m:] = words[:, m - 1 : m]
    return words


def rows_of_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [n, code_size] -> int32 [n, ceil(code_size / 4)], filled up with zeros. It may share memory."""
    missing = -codes.shape[1] % 4
    codes = torch.nn.functional.pad(codes, (0, missing)) if missing else codes.contiguous()
    if codes.storage_offset() % 4:
        codes = codes.clone()
    return codes.view(torch.int32)


def pairwise_programs(n: int, m: int) -> int:
    """The largest number of programs that `pairwise` launches for n queries and m codes."""
    return triton.cdiv(n, BLOCK_N) * triton.cdiv(m, LONG_BLOCK_M)


def split(n: int, database: Database, group_steps: int = 1) -> tuple[int, int]:
    """(splits, steps) for n queries, as splits_and_steps says."""
    return splits_and_steps(triton.cdiv(n, BLOCK_N), database.num_tiles, PROGRAMS, group_steps)


def splits_and_steps(
    num_row_blocks: int, num_tiles: int, num_programs: int, group_steps: int = 1
) -> tuple[int, int]:
    """Cuts num_tiles tiles into splits of `steps` tiles -> (splits, steps).

    If there are enough tiles, this gives about num_programs programs. steps is a multiple of group_steps. If
    group_steps is 1, no split has more steps than STEP_BITS bits can number.
    """
    wanted = max(triton.cdiv(num_programs, num_row_blocks), triton.cdiv(num_tiles, 1 << STEP_BITS))
    steps = max(1, num_tiles // (wanted * group_steps)) * group_steps
    return triton.cdiv(num_tiles, steps), steps


def pairwise(queries: torch.Tensor, database: Database) -> torch.Tensor:
    """Every distance: queries uint8 [n, code_size], n >= 1 -> int32 [n, m]."""
    distances = torch.empty(len(queries), database.length, dtype=torch.int32, device=queries.device)
    _launch(_all_kernel, queries, database, database.num_tiles, (1,), distances)
    return distances


def nearest(queries: torch.Tensor, database: Database) -> torch.Tensor:
    """The nearest code of each query in each split, as keys distance << INDEX_BITS | index.

    queries: uint8 [n, code_size], 1 <= n <= MAX_QUERIES -> int64 [splits, n].
    """
    splits, steps = split(len(queries), database)
    found = torch.empty(splits, len(queries), dtype=torch.int64, device=queries.device)
    constants = {"STEP_BITS": STEP_BITS, "INDEX_BITS": INDEX_BITS}
    _launch(_nearest_kernel, queries, database, splits, (steps,), found, **constants)
    return found


def group_minima(queries: torch.Tensor, database: Database, group_steps: int) -> torch.Tensor:
    """Each query's lowest distance in each group of group_steps tiles of the database.

    queries: uint8 [n, code_size], n >= 1 -> int16 [num_groups, n], or int32 for codes of 2^15 bits or more.
    """
    splits, steps = split(len(queries), database, group_steps)
    dtype = torch.int16 if 8 * queries.shape[1] < 1 << 15 else torch.int32
    num_groups = triton.cdiv(database.num_tiles, group_steps)
    minima = torch.empty(num_groups, len(queries), dtype=dtype, device=queries.device)
    _launch(_minima_kernel, queries, database, splits, (steps, group_steps), minima)
    return minima


def count_within(
    queries: torch.Tensor, database: Database, radii: torch.Tensor, splits: int, steps: int
) -> torch.Tensor:
    """The number of codes of each split within each query's radius, radii int32 [n] -> int64 [n, splits]."""
    counts = torch.empty(len(queries), splits, dtype=torch.int64, device=queries.device)
    _launch(_count_kernel, queries, database, splits, (steps,), radii, counts)
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
            (steps,),
            radii,
            starts,
            distances,
            indices,
            PART=PART,
        )
    return lims, distances, indices


def _launch(kernel, queries, database, splits, steps, *arguments, **constants):
    """Launches a kernel on all tiles. steps: (steps,), or (steps, group_steps) if the kernel takes both."""
    num_words, code_stride = database.words.shape
    # For 7 and 8 words ptxas would use 168 registers, though 128 are enough and let 4 programs instead of 3
    # run on a multiprocessor. With this limit longer codes and the writing kernel would spill.
    options = {"maxnreg": 128} if num_words in (7, 8) and kernel is not _write_kernel else {}
    row_blocks, rows = triton.cdiv(len(queries), BLOCK_N), rows_of_words(queries)
    if num_words > GROUP:
        rows = torch.cat([rows, rows[-1:].expand(-len(rows) % BLOCK_N, -1)])
    launch(
        kernel,
        row_blocks * splits,
        rows,
        database.words,
        *arguments,
        len(queries),
        database.length,
        code_stride,
        splits,
        *steps,
        num_words,
        GROUP,
        BLOCK_N,
        database.block_m,
        **constants,
        **options,
    )
