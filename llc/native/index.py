"""Search in segments of packed codes, with tables of multi-index hashing; numpy in, numpy out.

src/index/index.h says what each function of the library does, and probe.h how the tables are searched.

Arguments have been checked by llc.index, but arrays may come from files that are damaged: what tables and
ranks say is checked before it is used, and is a UserError where it cannot be. Ids are unique. Results are
exact and sorted by distance, then by id: the same for every method, number of threads and division into
segments. All functions may be called by many threads at once. Ctrl-C is heard while a call takes long.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llc.errors import UserError
from llc.native import instruction_index, library, stoppable

METHODS = {"auto": 0, "tables": 1, "scan": 2}
# Work above this is done while the calling thread waits, so that Ctrl-C is heard at once. Its unit is a byte
# that is compared; a core compares some 10^10 a second.
LONG_BYTES = 1 << 28
MIN_TABLE_CODES = 20_000  # below it a scan takes about as long as a search in tables
MAX_TABLE_BITS = 27
SMALL_BYTES = 1 << 26  # memory that tables may take, however few codes there are
MAX_TABLES = 24
SAMPLE = 4096  # codes that tell which bits are even

_Nothing = ctypes.c_char * 0
_NO_MEMORY, _BROKEN, _LONG = 2, 3, 4  # the library's statuses


class Table(NamedTuple):
    """Some bits of a code are the number of its bucket, the first the highest.

    bits: at most 31; tables of one segment have none in common. offsets: uint32 [2^len(bits) + 1]; positions:
    uint32 [n], None in a segment's first table. Bucket b holds positions[offsets[b]:offsets[b + 1]], in
    ascending order.
    """

    bits: tuple[int, ...]
    offsets: np.ndarray
    positions: np.ndarray | None = None


class SegmentArrays(NamedTuple):
    """The arrays of a segment of n < 2^32 codes, by position; llc/native/src/index/index.h says more.

    codes: uint8 [n, code_size], with tables sorted by the bucket of tables[0], and by id in a bucket.
    ranks: uint32 [n], the place of each position in the order of ids; None without tables: its position.
    ids: int64 [n], ascending, by rank; None: first_id + rank. allowed: uint8 [ceil(n / 8)], a bitmap by
    position whose first bit is the lowest: 1 may be found; None: all may.
    """

    codes: np.ndarray
    ranks: np.ndarray | None = None
    ids: np.ndarray | None = None
    first_id: int = 0
    allowed: np.ndarray | None = None
    tables: tuple[Table, ...] = ()


class _Table(ctypes.Structure):
    _fields_ = [
        ("bits", ctypes.c_void_p),
        ("num_bits", ctypes.c_int64),
        ("words", ctypes.c_void_p),
        ("num_words", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
    ]


class _Segment(ctypes.Structure):
    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("ranks", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("first_id", ctypes.c_int64),
        ("allowed", ctypes.c_void_p),
        ("num_allowed", ctypes.c_int64),
        ("tables", ctypes.POINTER(_Table)),
        ("num_tables", ctypes.c_int64),
    ]


class _Query(ctypes.Structure):
    _fields_ = [
        ("segments", ctypes.POINTER(_Segment)),
        ("num_segments", ctypes.c_int64),
        ("queries", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("code_size", ctypes.c_int32),
        ("num_bits", ctypes.c_int32),
        ("method", ctypes.c_int32),
        ("brief", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("instructions", ctypes.c_int32),
        ("pending", ctypes.c_void_p),
        ("stop", ctypes.c_void_p),
    ]


class Segments:
    """The segments of a snapshot, prepared for any number of searches.

    It keeps their arrays alive. Raises ValueError where an array has another dtype or length than its segment
    needs, or where tables have a bit in common.
    """

    def __init__(self, segments: Sequence[SegmentArrays], num_bits: int):
        self.num_bits, self.code_size = num_bits, (num_bits + 7) // 8
        self.arrays = tuple(segments)
        self.num_codes = sum(len(segment.codes) for segment in segments)
        bits = [_table_bits(segment, num_bits) for segment in segments]
        self._tables = [_tables(segment, of_tables) for segment, of_tables in zip(segments, bits)]
        self._bits = bits  # whose addresses the tables have
        self._segments = (_Segment * len(self.arrays))(
            *(self._segment(segment, tables) for segment, tables in zip(segments, self._tables))
        )
        self.num_allowed = sum(segment.num_allowed for segment in self._segments)
        self.bytes = self.num_codes * self.code_size
        self._query = _Query(
            self._segments, len(self.arrays), code_size=self.code_size, num_bits=num_bits, num_threads=1
        )

    def _segment(self, segment, tables):
        n = len(segment.codes)
        if n >= 1 << 32:
            raise ValueError(f"a segment holds fewer than 2^32 codes, got {n}")
        if segment.tables and segment.ranks is None:
            raise ValueError("a segment with tables needs ranks")
        allowed = _address("allowed", segment.allowed, np.uint8, ((n + 7) // 8,))
        return _Segment(
            _address("codes", segment.codes, np.uint8, (n, self.code_size)),
            n,
            _address("ranks", segment.ranks, np.uint32, (n,)),
            _address("ids", segment.ids, np.int64, (n,)),
            segment.first_id,
            allowed,
            n if allowed is None else library().llc_index_count(allowed, n),
            tables,
            len(tables),
        )


def _table_bits(segment, num_bits):
    """(bits, words) of each table, as _bits_and_words makes them."""
    used = np.zeros(num_bits, bool)
    found = []
    for number, table in enumerate(segment.tables):
        bits, words = _bits_and_words(tuple(table.bits), num_bits)
        if used[bits].any():
            raise ValueError(f"tables: {table.bits} has a bit that another table has")
        used[bits] = True
        if (table.positions is None) != (number == 0):
            raise ValueError("tables: all but the first have positions")
        found.append((bits, words))
    return found


@functools.lru_cache(maxsize=256)  # a search with another filter prepares all segments again
def _bits_and_words(table_bits, num_bits):
    """The bits of a table, int32, and the library's IndexWords of them."""
    fine = all(isinstance(bit, int) and 0 <= bit < num_bits for bit in table_bits)
    if not fine or not 0 < len(set(table_bits)) == len(table_bits) <= 31:
        raise ValueError(f"tables: {table_bits} are not different bits of {num_bits}, at most 31")
    masks: dict[int, int] = {}
    last_byte = max((num_bits + 7) // 8 - 8, 0)  # of a word
    for bit in table_bits:
        byte = min(bit // 64 * 8, last_byte)
        place = bit - 8 * byte
        masks[byte] = masks.get(byte, 0) | 1 << (8 * (place // 8) + 7 - place % 8)
    # in the order of a code's bytes on every machine
    words = np.array([(mask, byte) for byte, mask in masks.items()], [("mask", "<u8"), ("byte", np.int64)])
    return np.array(table_bits, np.int32), words


def _tables(segment, bits):
    n = len(segment.codes)
    return (_Table * len(segment.tables))(
        *(
            _Table(
                of_table.ctypes.data,
                len(of_table),
                words.ctypes.data,
                len(words),
                _address("offsets", table.offsets, np.uint32, ((1 << len(of_table)) + 1,)),
                _address("positions", table.positions, np.uint32, (n,)),
            )
            for table, (of_table, words) in zip(segment.tables, bits)
        )
    )


def _address(name, array, dtype, shape):
    if array is None:
        return None
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected {np.dtype(dtype)} {list(shape)} without gaps, got {array.dtype} "
            f"{list(array.shape)}"
        )
    return array.ctypes.data


# ------------------------------------------------------------------------------------------------- searching


def search(
    segments: Segments,
    queries: np.ndarray,
    k: int,
    num_threads: int,
    method: str = "auto",
    instructions: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k >= 1 nearest codes of each query -> (distances int32 [n, k], ids int64 [n, k]).

    queries: uint8 [n, code_size]. Where there are fewer than k codes the rest is -1. method: "auto";
    "tables": where a segment has them, never give up; or "scan". instructions: one of
    llc.native.instruction_sets(), by default the best; it changes no result.
    """
    n = len(queries)
    if k > segments.num_allowed:
        most = segments.num_allowed
        distances, ids = np.full((n, k), -1, np.int32), np.full((n, k), -1, np.int64)
        if n and most:
            distances[:, :most], ids[:, :most] = search(
                segments, queries, most, num_threads, method, instructions
            )
        return distances, ids
    distances, ids = np.empty((n, k), np.int32), np.empty((n, k), np.int64)
    _run(
        library().llc_index_search,
        segments,
        _query(segments, queries, num_threads, method, instructions),
        k,
        _data(distances),
        _data(ids),
    )
    return distances, ids


def range_search(
    segments: Segments,
    queries: np.ndarray,
    radius: int,
    num_threads: int,
    method: str = "auto",
    instructions: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All codes within a radius of each query -> (lims int64 [n + 1], distances int32, ids int64).

    Those of query i are [lims[i]:lims[i + 1]]. The arguments are those of `search`.
    """
    lims = np.zeros(len(queries) + 1, np.int64)
    found = ctypes.c_void_p()
    function = library().llc_index_range_search
    query = _query(segments, queries, num_threads, method, instructions)
    _run(function, segments, query, radius, _data(lims), ctypes.addressof(found))
    total = int(lims[-1])
    try:
        distances, ids = np.empty(total, np.int32), np.empty(total, np.int64)
    except BaseException:
        library().llc_index_take(found, None, None)
        raise
    library().llc_index_take(found, _data(distances), _data(ids))
    return lims, distances, ids


def groups(segments: Segments, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of two or more codes that chains connect whose steps are at most `radius` bits long.

    -> (lims int64 [num_groups + 1], ids int64): group i is ids[lims[i]:lims[i + 1]], in ascending order, and
    the groups are sorted by their lowest id. Only codes that may be found count, at most 2^32 - 2 of them.
    It takes any number of segments, and tables are of no use to it. Equal codes are joined first. The time
    is about linear in the number of codes while the radius is short: a million codes of 64 bits within 2 take
    under a second. It runs on one thread, and besides the segments it needs about 45 bytes for a code, and
    twice the code.
    """
    if segments.num_allowed > (1 << 32) - 2:
        raise ValueError(f"groups: {segments.num_allowed} codes are more than 2^32 - 2")
    num_groups, num_ids, found = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_void_p()
    radius = min(radius, segments.num_bits)

    def call(stop):
        return library().llc_index_groups(
            segments._segments,
            len(segments.arrays),
            segments.code_size,
            segments.num_bits,
            radius,
            stop,
            ctypes.addressof(num_groups),
            ctypes.addressof(num_ids),
            ctypes.addressof(found),
        )

    _raise(stoppable(call) if segments.num_allowed > 10_000 else call(None))
    try:
        lims, ids = np.empty(num_groups.value + 1, np.int64), np.empty(num_ids.value, np.int64)
    except BaseException:
        library().llc_index_take_groups(found, None, None)
        raise
    library().llc_index_take_groups(found, _data(lims), _data(ids))
    return lims, ids


def _query(segments, queries, num_threads, method, instructions):
    query = _Query.from_buffer_copy(segments._query)  # faster than filling in every field
    query.queries, query.n = _data(queries), len(queries)
    query.method, query.num_threads = METHODS[method], num_threads
    if instructions is not None:
        query.instructions = instruction_index(instructions)
    return query


def _run(function, segments, query, *arguments):
    """Calls a function of the library with a query.

    A thread takes longer to start than tables to answer. So where the work may take long, the calling thread
    looks into the tables first; if that does not suffice, another thread does the rest.
    """
    if query.n * segments.bytes <= LONG_BYTES:
        _raise(function(ctypes.byref(query), *arguments))
        return
    pending = np.zeros(max(len(segments.arrays), 1), np.uint8)
    query.pending = _data(pending)
    if query.n <= 4 and query.method == 0:
        query.brief = 1
        status = function(ctypes.byref(query), *arguments)
        if status != _LONG:
            _raise(status)
            return
        query.brief = 0

    def call(stop):
        query.stop = stop
        return function(ctypes.byref(query), *arguments)

    _raise(stoppable(call))


def _raise(status):
    if status == _NO_MEMORY:
        raise MemoryError("no memory for a search in an index")
    if status == _BROKEN:
        raise UserError(
            "the index is damaged: a table says what no table can say; `python -m llc.index verify INDEX` "
            "names the file"
        )


def _data(array: np.ndarray) -> int:
    # Both are faster than array.ctypes.data; the first takes a third of its time.
    if array.flags.writeable:
        return ctypes.addressof(_Nothing.from_buffer(array))
    return array.__array_interface__["data"][0]


# -------------------------------------------------------------------------------------------------- building


def table_sizes(n: int, num_bits: int) -> list[int]:
    """The numbers of bits of the tables that pay for n codes; [] where a scan is as fast.

    One table, whose bucket is the code, where its offsets need no more than 16 bytes for a code. Else tables
    of about log2(n) bits, so that a bucket holds about one random code. They are fewer and shorter, and may
    leave bits out, where codes, ranks, positions and offsets would need more than three times the codes'
    memory (for codes of less than 8 bytes: the codes' and 16 bytes for each), and more than SMALL_BYTES
    beside the codes. `python -m llc.benchmark index` measures them.
    """
    if n < MIN_TABLE_CODES:
        return []
    if num_bits <= MAX_TABLE_BITS and 1 << num_bits <= 4 * n:
        return [num_bits]
    # for positions and offsets, beside ranks
    room = max(2 * ((num_bits + 7) // 8) * n, 16 * n, SMALL_BYTES) - 4 * n
    # one table fewer where all would be much shorter for a bit or two: probing longer buckets costs more
    num_tables = min(math.ceil(num_bits / math.log2(n) - 0.25), MAX_TABLES)
    while num_tables > 1 and 4 * n * (num_tables - 1) >= room:
        num_tables -= 1
    fits = int(math.log2((room - 4 * n * (num_tables - 1)) / (4 * num_tables) - 1))
    ends = [num_bits * (j + 1) // num_tables for j in range(num_tables)]
    most = min(fits, int(math.log2(n)) + 1, MAX_TABLE_BITS)
    return [min(end - begin, most) for begin, end in zip([0, *ends], ends)]


def table_plan(codes: np.ndarray, num_bits: int) -> list[tuple[int, ...]]:
    """The bits of the tables that pay for codes, uint8 [n, code_size]; [] where a scan is as fast.

    Bits that are nearly always 0, or 1, make large buckets. So bits are dealt to the tables in turn, those
    whose ones and zeros are most even first, and the least even may be left out. A sample of the codes says
    how even they are.
    """
    sizes = table_sizes(len(codes), num_bits)
    if not sizes:
        return []
    if sizes == [num_bits]:
        return [tuple(range(num_bits))]
    sample = np.unpackbits(codes[:: len(codes) // SAMPLE + 1], axis=1)[:, :num_bits]
    bits = iter(np.argsort(np.abs(sample.mean(axis=0) - 0.5), kind="stable").tolist())
    dealt: list[list[int]] = [[] for _ in sizes]
    for turn in range(max(sizes)):
        for size, table in zip(sizes, dealt):
            if turn < size:
                table.append(next(bits))
    return [tuple(sorted(table)) for table in dealt]


def sort(
    codes: np.ndarray, first: tuple[int, ...], num_threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first table, with the bits `first`, of codes in the order of ids.

    -> (codes sorted by its buckets, ranks uint32 [n], its offsets)
    """
    offsets, ranks = table(codes, first, num_threads)
    ordered = np.empty_like(codes)
    _build(
        "llc_index_gather", codes, lambda stop: (ranks.ctypes.data, num_threads, stop, ordered.ctypes.data)
    )
    return ordered, ranks, offsets


def table(codes: np.ndarray, bits: tuple[int, ...], num_threads: int) -> tuple[np.ndarray, np.ndarray]:
    """A table of sorted codes, with some of their bits -> (offsets, positions)."""
    of_table = np.array(bits, np.int32)
    offsets, positions = np.empty((1 << len(bits)) + 1, np.uint32), np.empty(len(codes), np.uint32)
    _build(
        "llc_index_build_table",
        codes,
        lambda stop: (
            of_table.ctypes.data,
            len(bits),
            num_threads,
            stop,
            offsets.ctypes.data,
            positions.ctypes.data,
        ),
    )
    return offsets, positions


def _build(name: str, codes: np.ndarray, arguments: Callable[[int | None], tuple[Any, ...]]) -> None:
    function = getattr(library(), name)

    def call(stop):
        return function(codes.ctypes.data, *codes.shape, *arguments(stop))

    _raise(stoppable(call) if len(codes) > 1 << 20 else call(None))
