"""Hamming distances and packing by the native library; numpy in, numpy out.

src/hamming/hamming.h says what each function of the library does.

The arguments have been checked by llc.hamming and llc.codes: arrays are contiguous, and sizes fit together.
num_threads: the most threads that a call uses. instructions: one of llc.native.instruction_sets(), by default
the best; it changes no result. A call that may take long can be interrupted by Ctrl-C. All functions raise
MemoryError where the library finds no memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from llc.native import instruction_index, library, stoppable

# Work above this is done while the calling thread waits, so that Ctrl-C is heard at once. Its unit is a byte
# that is compared, and a pair of codes counts as PAIR_BYTES more. Work of this size takes 2 to 100 ms.
LONG_BYTES = 1 << 30
PAIR_BYTES = 32
ENTRY_BYTES = 64  # what an item of an array counts that is read or written once
MAX_TABLE_CLASSES = 1 << 25  # as many as TABLE_CLASS_BITS of src/hamming/kernels.h can number

_NO_MEMORY = 2  # the library's LLC_NO_MEMORY


def search(
    queries: np.ndarray, database: np.ndarray, k: int, num_threads: int, instructions: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """llc.hamming.search on the CPU, for 1 <= k <= m."""
    n, (m, code_size) = len(queries), database.shape
    distances, indices = np.empty((n, k), np.int32), np.empty((n, k), np.int64)
    _call(
        "llc_hamming_search",
        n * m * (code_size + PAIR_BYTES),
        lambda stop: (
            *_codes(queries, database),
            k,
            num_threads,
            instruction_index(instructions),
            stop,
            distances.ctypes.data,
            indices.ctypes.data,
        ),
    )
    return distances, indices


def range_search(
    queries: np.ndarray, database: np.ndarray, radius: int, num_threads: int, instructions: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """llc.hamming.range_search on the CPU.

    It scans twice, first to count and then to write, so it never holds more than the result.
    """
    n, (m, code_size) = len(queries), database.shape
    lims = np.zeros(n + 1, np.int64)

    def scan(ends, distances, indices):
        _call(
            "llc_hamming_range_search",
            n * m * (code_size + PAIR_BYTES),
            lambda stop: (
                *_codes(queries, database),
                min(radius, 8 * code_size),
                num_threads,
                instruction_index(instructions),
                stop,
                ends.ctypes.data,
                distances,
                indices,
            ),
        )

    scan(lims[1:], None, None)
    np.cumsum(lims, out=lims)
    distances, indices = np.empty(lims[-1], np.int32), np.empty(lims[-1], np.int64)
    if lims[-1]:
        scan(lims[:-1].copy(), distances.ctypes.data, indices.ctypes.data)
    return lims, distances, indices


def pairwise(
    queries: np.ndarray, database: np.ndarray, num_threads: int, instructions: str | None = None
) -> np.ndarray:
    """llc.hamming.pairwise on the CPU."""
    distances = np.empty((len(queries), len(database)), np.int32)
    _call(
        "llc_hamming_pairwise",
        distances.size * (queries.shape[1] + PAIR_BYTES),
        lambda stop: (
            *_codes(queries, database),
            num_threads,
            instruction_index(instructions),
            stop,
            distances.ctypes.data,
        ),
    )
    return distances


def rank(
    queries: np.ndarray,
    query_classes: np.ndarray,
    database: np.ndarray,
    classes: np.ndarray,
    k: int,
    neighbours: int,
    num_threads: int,
    instructions: str | None = None,
    leave_one_out: bool = False,
    in_order: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Where the relevant codes are in each query's ranking of the database: those of the query's class.

    query_classes int32 [n] and classes int32 [m], of the database's m < 2^31 codes: numbers from 0 on; -1 is
    a query's class without codes. leave_one_out: the queries are the database, and each is left out of its
    own ranking. 1 <= neighbours <= a ranking's length. -> (total, relevant, voted, precisions, hits):

    total, relevant: int32 [n, 8 * code_size + 1], how many codes, and relevant ones, are at each distance.
    voted: int32 [n], the class with most votes of the nearest `neighbours` codes; those at the last of their
    distances share the votes that are left equally, and equal votes go to the lowest class.
    precisions: float64 [n, 2], the sums of the precisions at the relevant codes among the first k and in the
    whole ranking, where equal distances stay in the database's order. hits: int32 [n], the relevant codes
    among the first k. Without in_order both are None.
    """
    n, (m, code_size) = len(queries), database.shape
    members = np.argsort(classes, kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(classes))
    total, relevant = (np.empty((n, 8 * code_size + 1), np.int32) for _ in range(2))
    voted = np.empty(n, np.int32)
    precisions = np.empty((n, 2)) if in_order else None
    hits = np.empty(n, np.int32) if in_order else None
    _call(
        "llc_hamming_rank",
        n * m * (code_size + PAIR_BYTES),
        lambda stop: (
            *_codes(queries, database),
            query_classes.ctypes.data,
            classes.ctypes.data,
            members.ctypes.data,
            ends.ctypes.data,
            len(ends),
            k,
            neighbours,
            leave_one_out,
            num_threads,
            instruction_index(instructions),
            stop,
            total.ctypes.data,
            relevant.ctypes.data,
            voted.ctypes.data,
            None if precisions is None else precisions.ctypes.data,
            None if hits is None else hits.ctypes.data,
        ),
    )
    return total, relevant, voted, precisions, hits


def build_table(
    class_codes: np.ndarray, num_bits: int, num_threads: int, instructions: str | None = None
) -> np.ndarray:
    """The nearest class of every code of num_bits bits -> int32 [2^num_bits]; ties go to the lowest class.

    class_codes: uint8 [num_classes, code_size], of which the first num_bits <= 24 bits are in use. Raises
    ValueError if there are more than MAX_TABLE_CLASSES classes.
    """
    if len(class_codes) > MAX_TABLE_CLASSES:
        raise ValueError(
            f"class_codes: a table takes up to {MAX_TABLE_CLASSES} classes, got {len(class_codes)}"
        )
    table = np.empty(1 << num_bits, np.int32)
    _call(
        "llc_hamming_build_table",
        len(table) * ENTRY_BYTES * num_bits,
        lambda stop: (
            class_codes.ctypes.data,
            *class_codes.shape,
            num_bits,
            num_threads,
            instruction_index(instructions),
            stop,
            table.ctypes.data,
        ),
    )
    return table


def look_up(
    codes: np.ndarray, num_bits: int, table: np.ndarray, num_threads: int, instructions: str | None = None
) -> np.ndarray:
    """The nearest class of each code: codes uint8 [n, code_size], a table by build_table -> int64 [n]."""
    classes = np.empty(len(codes), np.int64)
    _call(
        "llc_hamming_look_up",
        len(codes) * ENTRY_BYTES,
        lambda stop: (
            codes.ctypes.data,
            *codes.shape,
            num_bits,
            table.ctypes.data,
            num_threads,
            instruction_index(instructions),
            stop,
            classes.ctypes.data,
        ),
    )
    return classes


def keep_exact(codes: np.ndarray, class_codes: np.ndarray, classes: np.ndarray, num_threads: int) -> None:
    """Sets classes, int64 [n], to -1 where the code of the class differs from the given code."""
    _call(
        "llc_hamming_keep_exact",
        codes.size + len(codes) * ENTRY_BYTES,
        lambda stop: (
            codes.ctypes.data,
            *codes.shape,
            class_codes.ctypes.data,
            num_threads,
            stop,
            classes.ctypes.data,
        ),
    )


def pack_bits(
    values: np.ndarray, limit: int, num_threads: int, instructions: str | None = None
) -> np.ndarray:
    """Packs values [n, num_bits] into codes uint8 [n, code_size]: a bit is 1 iff 0 < value <= limit.

    The values are uint8, uint16, uint32 or uint64.
    """
    n, num_bits = values.shape
    codes = np.empty((n, (num_bits + 7) // 8), np.uint8)
    _call(
        "llc_pack_bits",
        values.size * ENTRY_BYTES,
        lambda stop: (
            values.ctypes.data,
            n,
            num_bits,
            values.itemsize,
            limit,
            num_threads,
            instruction_index(instructions),
            stop,
            codes.ctypes.data,
        ),
    )
    return codes


def posterior_table(
    codes: np.ndarray,
    counts: np.ndarray,
    ends: np.ndarray,
    num_bits: int,
    ratio: float,
    k: int,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k classes of the highest scores of every code of num_bits <= 24 bits, ties to the lowest class.

    codes uint32 [m]: the codes of each class, as numbers, one class after another; counts float32 [m]: how
    often each occurs; ends int64 [num_classes]: where each class ends. A code x scores, for a class, the sum
    over the class's codes of count * ratio^distance. -> (classes int32 [k, 2^num_bits], their scores float32
    [k, 2^num_bits], the sum of all classes' scores float32 [2^num_bits])
    """
    n = 1 << num_bits
    classes, scores, total = np.empty((k, n), np.int32), np.empty((k, n), np.float32), np.empty(n, np.float32)
    _call(
        "llc_posterior_table",
        n * len(ends) * num_bits,
        lambda stop: (
            codes.ctypes.data,
            counts.ctypes.data,
            ends.ctypes.data,
            len(ends),
            num_bits,
            ratio,
            k,
            num_threads,
            stop,
            classes.ctypes.data,
            scores.ctypes.data,
            total.ctypes.data,
        ),
    )
    return classes, scores, total


def posterior_histograms(
    queries: np.ndarray,
    codes: np.ndarray,
    counts: np.ndarray,
    ends: np.ndarray,
    num_bits: int,
    num_threads: int,
) -> np.ndarray:
    """How many codes of each class are 0, 1, ..., num_bits bits away -> int32 [n, num_classes, num_bits + 1].

    queries uint32 [n], of up to 32 bits; codes, counts (int32) and ends: as for posterior_table.
    """
    histograms = np.empty((len(queries), len(ends), num_bits + 1), np.int32)
    _call(
        "llc_posterior_histograms",
        len(queries) * len(codes) * PAIR_BYTES,
        lambda stop: (
            queries.ctypes.data,
            len(queries),
            codes.ctypes.data,
            counts.ctypes.data,
            ends.ctypes.data,
            len(ends),
            num_bits,
            num_threads,
            stop,
            histograms.ctypes.data,
        ),
    )
    return histograms


def posterior_linear(
    codes: np.ndarray,
    tables: np.ndarray,
    offsets: np.ndarray,
    k: int,
    num_threads: int,
    falloff: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The k classes of the highest sums, ties to the lowest class -> classes int64 [n, k], sums int32 [n, k].

    codes uint8 [n, code_size]; tables int16 [code_size, 256, num_classes]: what each value of each byte adds;
    offsets int32 [num_classes]: where the sums begin. With falloff float32 [4096] there is a third result,
    else None: totals float32 [n], over all classes, of the falloff at the difference between the highest sum
    and the class's; 0 for larger differences.
    """
    n, code_size = codes.shape
    classes, scores = np.empty((n, k), np.int64), np.empty((n, k), np.int32)
    totals = None if falloff is None else np.empty(n, np.float32)
    _call(
        "llc_posterior_linear",
        n * len(offsets) * (code_size + PAIR_BYTES),
        lambda stop: (
            codes.ctypes.data,
            n,
            code_size,
            tables.ctypes.data,
            offsets.ctypes.data,
            len(offsets),
            k,
            None if falloff is None else falloff.ctypes.data,
            num_threads,
            stop,
            classes.ctypes.data,
            scores.ctypes.data,
            None if totals is None else totals.ctypes.data,
        ),
    )
    return classes, scores, totals


def _codes(queries, database):
    return queries.ctypes.data, len(queries), database.ctypes.data, *database.shape


def _call(name: str, work: int, arguments: Callable[[int | None], tuple[Any, ...]]) -> None:
    """Calls a function of the library. arguments: the address of `stop`, or None -> its arguments."""
    function = getattr(library(), name)
    if work <= LONG_BYTES:
        status = function(*arguments(None))
    else:
        status = stoppable(lambda stop: function(*arguments(stop)))
    if status == _NO_MEMORY:
        raise MemoryError("no memory for a search in packed codes")
