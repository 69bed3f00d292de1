"""Distances and search on the CPU, by numba. Arguments are numpy arrays that llc.hamming has checked.

The scan works on tiles of the database. A tile is first turned into planes: plane 0 holds byte 0 of all its
codes, plane 1 holds byte 1, and so on. So neighbouring lanes of a vector hold the same byte of neighbouring
codes. The distances of a tile to a query are then sums over the planes: each lane adds up the bit counts of
its bytes. Everything else is made from a tile's distances and the lowest of them. If the lowest one is too
far away to matter to the query, the tile is skipped after one comparison.

`_counting` emits the scan as LLVM code for vectors of LANES bytes, and LLVM turns it into instructions of
this processor. The generated assembly has, for 8 bits of each code,

    AVX-512 BITALG   3 instructions for 64 codes: vpxorq, vpopcntb, vpaddusb in 64-byte registers
    AVX2             8 instructions for 32 codes: vpxor, a lookup of the count of either nibble
                     (vpshufb, twice), vpaddusb in 32-byte registers
    64-bit ARM       eor, cnt, uqadd in 16-byte registers (compiled, not run)

The nearest code is found in registers too: each lane keeps its lowest count and the vector that it came
from. Plain loops were slower, though LLVM vectorised them as well, because counts, minimum and position
went through memory. They took 2.2 times as long for 1,000 codes of 20 bits, and 1.3 times as long for 256
bits. Counting 64-bit words by vpopcntq takes as many instructions, but the distances then fill 8 times as
many registers, and AVX2 would also have to add up the bytes of every word.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from llc.kernels import address_of, in_threads, is_set, kernel, load_word64

LANES = 64  # codes whose distances are computed at once; the size of a tile is a multiple of it
TILE_BYTES = 32 << 10  # the size of a tile's planes, so that they stay in the first-level cache
MAX_TILE = 4096  # the most codes in a tile
CHUNK = 28  # planes whose counts (at most 224) are summed in bytes, then added to 16-bit distances
WIDE = 64  # code size from which the nearest code is often more than 254 bits away, too many for a byte
# Up to this many queries are scanned code by code, which takes 0.5 ns per code of 64 bits. Making the planes
# takes 1.1 ns per code, and scanning them 0.04 ns per code and query.
FEW_QUERIES = 3
BLOCK_QUERIES = 4096  # queries that share the planes of a tile
BLOCK_CANDIDATES = 4 << 20  # candidates kept for a block of queries: 32 MB
THREAD_BYTES = 1 << 22  # query bytes x database codes that are worth starting a thread for (about 50 us)
# Work above this is done while the calling thread waits, so that Ctrl-C is heard at once. Its unit is a byte
# that is compared, and a pair of codes counts as PAIR_BYTES more. Work of this size took 2 to 100 ms.
LONG_BYTES = 1 << 30
PAIR_BYTES = 32
INDEX_BITS = 40  # a candidate is distance << INDEX_BITS | index: one integer, in the order of the result


# Inlined by numba: passing an array to a function costs a few ns, as much as the work on a small tile. For
# the same reason the kernels repeat their inner loops: with a function for these, decoding 20 bits took 15 %
# longer.
_inlined = njit(inline="always")


_VECTOR = ir.VectorType(ir.IntType(8), LANES)


def _on_vectors(builder, name, *vectors, result=_VECTOR):
    """Emits a call of LLVM's intrinsic `name` on vectors of LANES bytes."""
    name = f"llvm.{name}.v{LANES}i8"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(result, [_VECTOR] * len(vectors)), name
    )
    return builder.call(function, vectors)


def _everywhere(builder, number):
    """Emits a vector that holds a number in all lanes."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


@intrinsic
def _differing_bits(typing, a, b):
    """The number of bits in which two bytes or two words differ; it has their type."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(builder.xor(*arguments))

    return a(a, a), generate


@intrinsic
def _within(typing, distances, position, limit):
    """distances[position:position + LANES] -> uint64, whose bit i is 1 if and only if distance i <= limit.

    The limit must fit the type of the distances.
    """

    def generate(context, builder, signature, arguments):
        element = ir.IntType(signature.args[0].dtype.bitwidth)
        vector = ir.VectorType(element, LANES)
        loaded = builder.load(
            address_of(context, builder, signature.args[0], *arguments[:2], vector), align=element.width // 8
        )
        limits = _everywhere(builder, builder.trunc(arguments[2], element))
        return builder.bitcast(builder.icmp_unsigned("<=", loaded, limits), ir.IntType(LANES))

    return types.uint64(distances, types.intp, types.intp), generate


@intrinsic
def _lowest_bit(typing, mask):
    """The position of the lowest bit that is 1 in a uint64 other than 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), generate


def _counting(builder, pointers, stride, first, last, num_lanes, use):
    """Emits a loop over the lanes that counts the differing bits of LANES codes at a time.

    Planes first to last are counted. pointers: to the planes and to the query. use(first lane, counts)
    emits, inside the loop, what is done with the counts. A count of 255 means 255 or more. Four vectors of
    codes are counted together: they share the query's loaded bytes, and their sums do not depend on each
    other, so the processor can overlap them.
    """
    planes, query = pointers
    intp = num_lanes.type

    def vectors(begin, end, width):
        with cgutils.for_range_slice(builder, begin, end, ir.Constant(intp, width * LANES), intp) as (
            lane,
            _,
        ):
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(width)]
            for total in sums:
                builder.store(ir.Constant(_VECTOR, None), total)
            with cgutils.for_range_slice(builder, first, last, ir.Constant(intp, 1), intp) as (plane, _):
                bits = _everywhere(builder, builder.load(builder.gep(query, [plane])))
                start = builder.add(builder.mul(plane, stride), lane)
                for w, total in enumerate(sums):
                    address = builder.gep(planes, [builder.add(start, ir.Constant(intp, w * LANES))])
                    codes = builder.load(builder.bitcast(address, _VECTOR.as_pointer()), align=1)
                    differing = _on_vectors(builder, "ctpop", builder.xor(codes, bits))
                    builder.store(_on_vectors(builder, "uadd.sat", builder.load(total), differing), total)
            for w, total in enumerate(sums):
                lane_of_it = builder.add(lane, ir.Constant(intp, w * LANES))
                use(lane_of_it, builder.load(total))

    in_fours = builder.and_(num_lanes, ir.Constant(intp, -4 * LANES))
    vectors(ir.Constant(intp, 0), in_fours, 4)
    vectors(in_fours, num_lanes, 1)


@intrinsic
def _count(typing, planes, first, last, query, counts):
    """Counts, for each lane, the bits of planes first to last that differ from the query -> the lowest count.

    The counts are written into uint8 [lanes]. There may be at most 31 planes, so that a count fits a byte.
    """

    def generate(context, builder, signature, arguments):
        planes, query, counts = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 3, 4)
        )
        lowest = cgutils.alloca_once(builder, _VECTOR)
        builder.store(ir.Constant(_VECTOR, [255] * LANES), lowest)

        def use(lane, sums):
            builder.store(
                sums, builder.bitcast(builder.gep(counts.data, [lane]), _VECTOR.as_pointer()), align=1
            )
            builder.store(_on_vectors(builder, "umin", builder.load(lowest), sums), lowest)

        stride, num_lanes = builder.extract_value(planes.shape, 1), builder.extract_value(counts.shape, 0)
        _counting(builder, (planes.data, query.data), stride, *arguments[1:3], num_lanes, use)
        return builder.zext(
            _on_vectors(builder, "vector.reduce.umin", builder.load(lowest), result=ir.IntType(8)),
            ir.IntType(64),
        )

    return types.int64(planes, types.intp, types.intp, query, counts), generate


@intrinsic
def _nearest_lane(typing, planes, query, num_lanes):
    """The first lane among those nearest to the query -> its distance << 32 | lane.

    A distance of 255 means 255 or more; the lane then means nothing.
    """

    def generate(context, builder, signature, arguments):
        planes, query = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1)
        )
        byte, word = ir.IntType(8), ir.IntType(64)
        all_ones = ir.Constant(_VECTOR, [255] * LANES)
        lowest, numbers = (cgutils.alloca_once(builder, _VECTOR) for _ in range(2))
        builder.store(all_ones, lowest)
        builder.store(ir.Constant(_VECTOR, None), numbers)

        def use(lane, sums):
            """Keeps, in each lane, the lowest count so far and the number of the vector that it came from."""
            number = _everywhere(
                builder,
                builder.trunc(builder.lshr(lane, ir.Constant(lane.type, LANES.bit_length() - 1)), byte),
            )
            before = builder.load(lowest)
            lower = builder.icmp_unsigned("<", sums, before)
            builder.store(builder.select(lower, number, builder.load(numbers)), numbers)
            builder.store(_on_vectors(builder, "umin", before, sums), lowest)

        num_planes, stride = (builder.extract_value(planes.shape, axis) for axis in (0, 1))
        _counting(
            builder,
            (planes.data, query.data),
            stride,
            ir.Constant(num_planes.type, 0),
            num_planes,
            arguments[2],
            use,
        )
        lowest, numbers = builder.load(lowest), builder.load(numbers)
        distance = _on_vectors(builder, "vector.reduce.umin", lowest, result=byte)
        nearest = builder.icmp_unsigned("==", lowest, _everywhere(builder, distance))
        number = _on_vectors(
            builder, "vector.reduce.umin", builder.select(nearest, numbers, all_ones), result=byte
        )
        lanes = builder.and_(nearest, builder.icmp_unsigned("==", numbers, _everywhere(builder, number)))
        lane = builder.cttz(builder.bitcast(lanes, word), ir.Constant(ir.IntType(1), 0))
        position = builder.add(builder.mul(builder.zext(number, word), ir.Constant(word, LANES)), lane)
        return builder.or_(builder.shl(builder.zext(distance, word), ir.Constant(word, 32)), position)

    return types.int64(planes, query, types.intp), generate


# ---- tiles -------------------------------------------------------------------------------------------


def _scratch(code_size, m, stop):
    """The working memory of a kernel: (planes, query, counts, distances, stop).

    planes uint8 [code_size, tile], query uint8 [code_size], counts uint8 [tile], distances uint8 or uint16
    [tile]. Where distances fit in bytes, counts and distances are the same array. stop: uint8 [1]; once it
    is 1, the kernel returns at its next tile, and its result is of no use.
    """
    tile = min(MAX_TILE, TILE_BYTES // code_size, m)
    tile = max(1, -(-tile // LANES)) * LANES
    planes = _aligned_zeros(code_size * tile, np.uint8).reshape(-1, tile)
    counts = _aligned_zeros(tile, np.uint8)
    return (
        planes,
        np.zeros(len(planes), np.uint8),
        counts,
        counts if code_size < 32 else _aligned_zeros(tile, np.uint16),
        stop,
    )


def _aligned_zeros(length, dtype):
    """Zeros that begin at a cache line: 64-byte vectors across two lines made the scan 1.5 times slower."""
    memory = np.zeros(length * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + length * np.dtype(dtype).itemsize].view(dtype)


@njit
def _fill_planes(database, start, size, planes):
    """Writes database[start:start + size] into planes and repeats the last code up to a multiple of LANES."""
    code_size = database.shape[1]
    flat = database[start:].reshape(-1)
    num_words = code_size // 8
    for word in range(num_words):
        p0, p1, p2, p3, p4, p5, p6, p7 = (
            planes[8 * word],
            planes[8 * word + 1],
            planes[8 * word + 2],
            planes[8 * word + 3],
            planes[8 * word + 4],
            planes[8 * word + 5],
            planes[8 * word + 6],
            planes[8 * word + 7],
        )
        for lane in range(size):
            value = load_word64(flat, lane * code_size + 8 * word)
            p0[lane], p1[lane] = np.uint8(value >> np.uint64(56)), np.uint8(value >> np.uint64(48))
            p2[lane], p3[lane] = np.uint8(value >> np.uint64(40)), np.uint8(value >> np.uint64(32))
            p4[lane], p5[lane] = np.uint8(value >> np.uint64(24)), np.uint8(value >> np.uint64(16))
            p6[lane], p7[lane] = np.uint8(value >> np.uint64(8)), np.uint8(value)
    for byte in range(8 * num_words, code_size):
        for lane in range(size):
            planes[byte, lane] = flat[lane * code_size + byte]
    for byte in range(code_size):
        planes[byte, size : _whole_lanes(size)] = planes[byte, size - 1]


@njit
def _whole_lanes(size):
    return (size + LANES - 1) // LANES * LANES


@njit
def _begin_tile(database, start, size, num_queries, scratch):
    """Makes the planes of database[start:start + size], unless the queries are few.

    Returns scratch's counts and distances, cut to `size` rounded up to a multiple of LANES.
    """
    planes, _, counts, distances, _ = scratch
    if num_queries > FEW_QUERIES:
        _fill_planes(database, start, size, planes)
    num_lanes = _whole_lanes(size)
    return counts[:num_lanes], distances[:num_lanes]


@_inlined
def _scan_planes(planes, query, counts, distances):
    """Writes the distances of the tile to a query, uint8 [planes] -> the lowest distance."""
    if distances.itemsize == 1:
        return _count(planes, 0, len(planes), query, distances)
    distances[:] = 0
    for first in range(0, len(planes), CHUNK):
        _count(planes, first, min(first + CHUNK, len(planes)), query, counts)
        for i in range(len(distances)):
            distances[i] += counts[i]
    return _lowest(distances)


@_inlined
def _lowest(distances):
    lowest = distances[0]
    for i in range(len(distances)):
        lowest = min(lowest, distances[i])
    return np.int64(lowest)


@njit
def _scan_rows(database, start, size, query, distances):
    """Does the same without planes, word by word along each code of database[start:start + size].

    This is faster for few queries.
    """
    code_size = database.shape[1]
    flat = database[start:].reshape(-1)
    if code_size == 8:  # a constant stride, which LLVM vectorises
        for lane in range(size):
            distances[lane] = _differing_bits(load_word64(flat, 8 * lane), load_word64(query, 0))
    else:
        for lane in range(size):
            position, distance = lane * code_size, np.uint64(0)
            for byte in range(0, code_size - 7, 8):
                distance += _differing_bits(load_word64(flat, position + byte), load_word64(query, byte))
            for byte in range(code_size // 8 * 8, code_size):
                distance += _differing_bits(flat[position + byte], query[byte])
            distances[lane] = distance
    distances[size:] = distances[size - 1]
    return _lowest(distances)


# ---- the nearest code --------------------------------------------------------------------------------


@kernel
def _nearest(scratch, queries, database, first, last, distances, indices):
    """Writes the nearest of database[first:last] to each query: distances int32 [n], indices int64 [n]."""
    code_size = queries.shape[1]
    planes, query, few = scratch[0], scratch[1], len(queries) <= FEW_QUERIES
    tile = planes.shape[1]
    distances[:] = 8 * code_size + 1
    for start in range(first, last, tile):
        if is_set(scratch[4]):
            break
        size = min(tile, last - start)
        tile_counts, tile_distances = _begin_tile(database, start, size, len(queries), scratch)
        for q in range(len(queries)):
            for byte in range(code_size):
                query[byte] = queries[q, byte]
            if not few and code_size < WIDE:
                found = _nearest_lane(planes, query, len(tile_counts))
                distance = found >> 32
                if distance < min(distances[q], 255):
                    distances[q], indices[q] = distance, start + (found & 0xFFFF_FFFF)
                if min(distance, distances[q]) < 255:
                    continue
            lowest = (
                _scan_rows(database, start, size, query, tile_distances)
                if few
                else _scan_planes(planes, query, tile_counts, tile_distances)
            )
            if lowest < distances[q]:
                distances[q], indices[q] = lowest, start + _first_within(tile_distances, lowest)


@njit
def _first_within(distances, limit):
    position = 0
    mask = _within(distances, position, limit)
    while mask == 0:
        position += LANES
        mask = _within(distances, position, limit)
    return position + _lowest_bit(mask)


# ---- the k nearest codes -----------------------------------------------------------------------------
# Each query has a list of candidates, with room for about 2 k. When it is full, a counting sort by distance
# keeps the best k, and from then on only a code nearer than the worst of them becomes a candidate. The sort
# is stable and candidates come in ascending order of their indices, so equal distances stay in that order.


@kernel
def _k_nearest(scratch, queries, database, first, last, candidates, distances, indices):
    """Writes the k nearest of database[first:last] to each query into distances and indices.

    distances int32 [n, k], indices int64 [n, k]; candidates, int64 [n, k or more], is working memory.
    """
    n, code_size = queries.shape
    planes, query, few = scratch[0], scratch[1], n <= FEW_QUERIES
    k, tile = distances.shape[1], planes.shape[1]
    counts, limits = np.zeros(n, np.int64), np.full(n, 8 * code_size, np.int64)
    starts, spare = np.empty(8 * code_size + 2, np.int64), np.empty(k, np.int64)
    for start in range(first, last, tile):
        if is_set(scratch[4]):
            return
        size = min(tile, last - start)
        tile_counts, tile_distances = _begin_tile(database, start, size, len(queries), scratch)
        for q in range(n):
            for byte in range(code_size):
                query[byte] = queries[q, byte]
            lowest = (
                _scan_rows(database, start, size, query, tile_distances)
                if few
                else _scan_planes(planes, query, tile_counts, tile_distances)
            )
            if lowest <= limits[q]:
                counts[q], limits[q] = _add_candidates(
                    tile_distances, size, start, candidates[q], counts[q], limits[q], starts, spare
                )
    for q in range(n):
        _keep_best(candidates[q], counts[q], starts, spare)
        for rank in range(k):
            distances[q, rank] = candidates[q, rank] >> INDEX_BITS
            indices[q, rank] = candidates[q, rank] & ((1 << INDEX_BITS) - 1)


@njit
def _add_candidates(distances, size, first_index, candidates, count, limit, starts, spare):
    """Adds the codes whose distance is within the limit to the candidates -> (new count, new limit).

    Only the first `size` distances count; the rest belongs to repeated codes.
    """
    k = len(spare)
    for position in range(0, size, LANES):
        mask = _within(distances, position, limit)
        while mask != 0:
            lane = position + _lowest_bit(mask)
            mask &= mask - np.uint64(1)
            if lane >= size:  # a repeated code at the end of the tile
                break
            distance = np.int64(distances[lane])
            if distance > limit:  # the limit has fallen since the mask was made
                continue
            candidates[count] = distance << INDEX_BITS | (first_index + lane)
            count += 1
            if count == len(candidates):
                _keep_best(candidates, count, starts, spare)
                count = k
                limit = (candidates[k - 1] >> INDEX_BITS) - 1
                if limit < 0:
                    return count, limit
    return count, limit


@njit
def _keep_best(candidates, count, starts, spare):
    """Moves the best k = len(spare) of candidates[:count], count >= k, to the front, sorted."""
    starts[:] = 0
    for i in range(count):
        starts[(candidates[i] >> INDEX_BITS) + 1] += 1
    for distance in range(1, len(starts)):
        starts[distance] += starts[distance - 1]
    for i in range(count):
        distance = candidates[i] >> INDEX_BITS
        rank = starts[distance]
        starts[distance] = rank + 1
        if rank < len(spare):
            spare[rank] = candidates[i]
    candidates[: len(spare)] = spare


def search(
    queries: np.ndarray, database: np.ndarray, k: int, num_threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """llc.hamming.search on the CPU, for 1 <= k <= m."""
    n, (m, code_size) = len(queries), database.shape
    num_threads = _threads_worth(n, m, code_size, num_threads)
    block = min(_block_size(n, num_threads), max(1, BLOCK_CANDIDATES // _capacity(k, m)))
    stop = np.zeros(1, np.uint8)
    # If there are fewer blocks of queries than threads, the database is divided too, and results are merged.
    num_parts = min(m, -(-num_threads // -(-n // block))) if n else 1
    bounds = [m * part // num_parts for part in range(num_parts + 1)]
    results = [
        (np.empty((n, min(k, b - a)), np.int32), np.empty((n, min(k, b - a)), np.int64))
        for a, b in zip(bounds, bounds[1:])
    ]

    def work(part, start):
        first, last = bounds[part], bounds[part + 1]
        some = queries[start : start + block]
        distances, indices = (result[start : start + block] for result in results[part])
        scratch = _scratch(code_size, m, stop)
        if k == 1:
            _nearest(scratch, some, database, first, last, distances[:, 0], indices[:, 0])
        else:
            candidates = np.empty((len(some), _capacity(k, last - first)), np.int64)
            _k_nearest(scratch, some, database, first, last, candidates, distances, indices)

    def merge():
        distances, indices = (np.concatenate(parts, axis=1) for parts in zip(*results))
        # the parts are in ascending order of indices, so a stable sort leaves ties in that order too
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        results[:] = [(np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1))]

    heard = stop if _is_long(n, m, code_size) else None
    pieces = [(part, start) for start in range(0, n, block) for part in range(num_parts)]
    in_threads(work, pieces, num_threads, heard)
    if num_parts > 1:
        in_threads(merge, [()], 1, heard)
    return results[0]


def _capacity(k, m):
    """The room in a query's list of candidates.

    With little room beyond k the limit falls early; with much room the list is rarely sorted.
    """
    return min(k + max(k, 32), m)


# ---- all codes within a radius, and all distances ----------------------------------------------------


@kernel
def _within_radius(scratch, queries, database, radius, ends, write, distances, indices):
    """Adds the number of codes within the radius to each query's end; if `write`, also writes them there."""
    m, code_size = database.shape
    planes, query, few = scratch[0], scratch[1], len(queries) <= FEW_QUERIES
    tile = planes.shape[1]
    for start in range(0, m, tile):
        if is_set(scratch[4]):
            break
        size = min(tile, m - start)
        tile_counts, tile_distances = _begin_tile(database, start, size, len(queries), scratch)
        for q in range(len(queries)):
            for byte in range(code_size):
                query[byte] = queries[q, byte]
            lowest = (
                _scan_rows(database, start, size, query, tile_distances)
                if few
                else _scan_planes(planes, query, tile_counts, tile_distances)
            )
            if lowest > radius:
                continue
            end = ends[q]
            for position in range(0, size, LANES):
                mask = _within(tile_distances, position, radius)
                while mask != 0:
                    lane = position + _lowest_bit(mask)
                    mask &= mask - np.uint64(1)
                    if lane >= size:  # a repeated code at the end of the tile
                        break
                    if write:
                        distances[end], indices[end] = tile_distances[lane], start + lane
                    end += 1
            ends[q] = end


def range_search(
    queries: np.ndarray, database: np.ndarray, radius: int, num_threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """llc.hamming.range_search on the CPU.

    It scans twice, first to count and then to write, so it never holds more than the result.
    """
    n, (m, code_size) = len(queries), database.shape
    num_threads = _threads_worth(n, m, code_size, num_threads)
    block = _block_size(n, num_threads)
    stop = np.zeros(1, np.uint8)
    heard = stop if _is_long(n, m, code_size) else None
    radius = min(radius, 8 * code_size)
    lims = np.zeros(n + 1, np.int64)

    def scan(ends, write, distances, indices):
        in_threads(
            lambda start: _within_radius(
                _scratch(code_size, m, stop),
                queries[start : start + block],
                database,
                radius,
                ends[start : start + block],
                write,
                distances,
                indices,
            ),
            [(start,) for start in range(0, n, block)],
            num_threads,
            heard,
        )

    scan(lims[1:], False, np.empty(0, np.int32), np.empty(0, np.int64))
    np.cumsum(lims, out=lims)
    distances, indices = np.empty(lims[-1], np.int32), np.empty(lims[-1], np.int64)
    scan(lims[:-1].copy(), True, distances, indices)
    return lims, distances, indices


@kernel
def _all(scratch, queries, database, distances):
    """Writes every distance into int32 [n, m]."""
    m, code_size = database.shape
    planes, query, few = scratch[0], scratch[1], len(queries) <= FEW_QUERIES
    tile = planes.shape[1]
    for start in range(0, m, tile):
        if is_set(scratch[4]):
            break
        size = min(tile, m - start)
        tile_counts, tile_distances = _begin_tile(database, start, size, len(queries), scratch)
        for q in range(len(queries)):
            for byte in range(code_size):
                query[byte] = queries[q, byte]
            if few:
                _scan_rows(database, start, size, query, tile_distances)
            else:
                _scan_planes(planes, query, tile_counts, tile_distances)
            for lane in range(size):
                distances[q, start + lane] = tile_distances[lane]


def pairwise(queries: np.ndarray, database: np.ndarray, num_threads: int) -> np.ndarray:
    """llc.hamming.pairwise on the CPU."""
    n, (m, code_size) = len(queries), database.shape
    distances = np.empty((n, m), np.int32)
    if m == 0:
        return distances
    num_threads = _threads_worth(n, m, code_size, num_threads)
    block = _block_size(n, num_threads)
    stop = np.zeros(1, np.uint8)
    in_threads(
        lambda start: _all(
            _scratch(code_size, m, stop),
            queries[start : start + block],
            database,
            distances[start : start + block],
        ),
        [(start,) for start in range(0, n, block)],
        num_threads,
        stop if _is_long(n, m, code_size) else None,
    )
    return distances


# ---- dividing the work -------------------------------------------------------------------------------


def _threads_worth(n, m, code_size, num_threads):
    """The number of threads that are worth starting, 1 to num_threads."""
    return max(1, min(num_threads, n * m * code_size // THREAD_BYTES))


def _is_long(n, m, code_size):
    """Whether the work may take longer than Ctrl-C should wait."""
    return n * m * (code_size + PAIR_BYTES) > LONG_BYTES


def _block_size(n, num_threads):
    """The number of queries in a block: each thread gets several blocks, but not very small ones."""
    return max(1, min(BLOCK_QUERIES, max(64, -(-n // (3 * num_threads)))))
