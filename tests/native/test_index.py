"""llc.native.index: every method, instruction set and division gives what numpy gives; damaged arrays."""

import ctypes
import itertools
import math

import numpy as np
import pytest

from llc.errors import UserError
from llc.index.verify import bucket_numbers
from llc.native import index, instruction_sets
from llc.native.index import SegmentArrays, Segments, Table

METHODS = ("auto", "tables", "scan")
WHOLE = tuple(range(20))  # the bits of a table of codes of 20 bits
every_instruction_set = pytest.mark.parametrize("instructions", instruction_sets())


# ------------------------------------------------------------------------------------- the slow, obvious way


def all_distances(queries, codes):
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.int32)
    return np.stack([ones[query ^ codes].sum(1, dtype=np.int32) for query in queries])


def nearest(distances, ids, k):
    """The first k columns in the order (distance, id), padded with -1."""
    order = np.lexsort((np.broadcast_to(ids, distances.shape), distances), axis=1)[:, :k]
    padding = ((0, 0), (0, k - order.shape[1]))
    found = np.take_along_axis(distances, order, 1), ids[order]
    return tuple(np.pad(part, padding, constant_values=-1) for part in found)


def within(distances, ids, radius):
    """(lims, distances, ids) of all within a radius, each query's in the order (distance, id)."""
    parts = []
    for row in distances:
        [near] = np.nonzero(row <= radius)
        parts.append(near[np.lexsort((ids[near], row[near]))])
    lims = np.cumsum([0, *map(len, parts)])
    of_rows = [row[part] for row, part in zip(distances, parts)]
    return lims, np.concatenate(of_rows), ids[np.concatenate(parts)]


def assert_same(found, expected):
    for ours, slow in zip(found, expected, strict=True):
        assert ours.shape == slow.shape and np.array_equal(ours, slow)


# -------------------------------------------------------------------------------------------- codes, segments


def masked(codes, num_bits):
    """Codes whose padding bits are 0."""
    codes[:, -1] &= 0xFF00 >> (num_bits - 1) % 8 + 1 & 255
    return codes


def clustered(rng, n, num_bits, flips=0.06, centres=9):
    """Codes around some centres, and queries: some near a centre, one equal to a code, one far from all."""
    middle = rng.integers(0, 2, (centres, num_bits), dtype=np.uint8)

    def near(size):
        return middle[rng.integers(0, centres, size)] ^ (rng.random((size, num_bits)) < flips)

    codes, queries = np.packbits(near(n), axis=1), np.packbits(near(5), axis=1)
    if n:
        queries[1] = codes[n // 2]
    queries[2] = masked(rng.integers(0, 256, (1, codes.shape[1]), dtype=np.uint8), num_bits)
    return codes, queries


def uniform(rng, n, num_bits):
    codes = rng.integers(0, 256, (n + 5, (num_bits + 7) // 8), dtype=np.uint8)
    masked(codes, num_bits)
    return codes[:n].copy(), codes[n:].copy()


def plan_of(num_bits, num_tables):
    """num_tables tables with all bits in turn, but at most 16 bits each."""
    return [tuple(range(first, num_bits, num_tables))[:16] for first in range(num_tables)]


def segment(codes, num_tables=0, ids=None, first_id=0, allowed=None, num_bits=None, plan=None):
    """A segment of codes in the order of their ids. allowed: bool [n], in the same order."""
    if plan is None:
        plan = plan_of(num_bits, num_tables) if num_tables else []
    ordered, ranks, tables = codes, None, ()
    if plan:
        ordered, ranks, offsets = index.sort(codes, plan[0], 1)
        tables = Table(plan[0], offsets), *(Table(bits, *index.table(ordered, bits, 1)) for bits in plan[1:])
    if allowed is not None:
        by_position = allowed if ranks is None else allowed[ranks]
        allowed = np.packbits(by_position, bitorder="little")
    return SegmentArrays(ordered, ranks, ids, first_id, allowed, tables)


def check(segments, queries, distances, ids, ks=(1, 10), radii=(0, 3), methods=METHODS, **options):
    for method, num_threads in itertools.product(methods, (1, 2)):
        for k in ks:
            found = index.search(segments, queries, k, num_threads, method, **options)
            assert found[0].dtype == np.int32 and found[1].dtype == np.int64
            assert_same(found, nearest(distances, ids, k))
        for radius in radii:
            found = index.range_search(segments, queries, radius, num_threads, method, **options)
            assert_same(found, within(distances, ids, radius))


# ------------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize("num_bits", [1, 7, 8, 20, 33, 64, 65, 128, 300, 1000, 4096])
@pytest.mark.parametrize("n", [0, 1, 2, 63, 500])
@pytest.mark.parametrize("make", [clustered, uniform])
def test_equals_numpy(num_bits, n, make):
    codes, queries = make(np.random.default_rng([num_bits, n]), n, num_bits)
    distances, ids = all_distances(queries, codes), np.arange(n) + 7
    for num_tables in {0, 1, min(3, num_bits), min(5, num_bits)}:
        segments = Segments([segment(codes, num_tables, first_id=7, num_bits=num_bits)], num_bits)
        methods = METHODS if num_tables != 1 else ("auto", "scan")
        check(segments, queries, distances, ids, (1, 10, n + 3), (0, num_bits // 8, 9000), methods)


@every_instruction_set
@pytest.mark.parametrize("num_bits, num_tables", [(20, 1), (20, 2), (64, 4), (65, 5), (128, 8), (300, 12)])
@pytest.mark.parametrize("make", [clustered, uniform])
def test_many_codes(num_bits, num_tables, make, instructions):
    n = 40_000
    codes, queries = make(np.random.default_rng(num_bits), n, num_bits)
    distances, ids = all_distances(queries, codes), np.arange(n)
    plan = [WHOLE] if num_tables == 1 else None
    segments = Segments([segment(codes, num_tables, num_bits=num_bits, plan=plan)], num_bits)
    check(segments, queries, distances, ids, (1, 10, 3000), (0, 3, num_bits // 6), instructions=instructions)
    # few queries go another way than many
    check(segments, queries[:1], distances[:1], ids, (10,), (3,), instructions=instructions)


@pytest.mark.parametrize("num_bits", [20, 64])
def test_segments_ids_and_bitmaps(num_bits):
    """Segments with and without tables, whose ids alternate, are above 2^53, and partly not allowed."""
    rng = np.random.default_rng(num_bits)
    codes, queries = clustered(rng, 9000, num_bits, centres=3)
    distances = all_distances(queries, codes)
    ids = np.sort(rng.choice(1 << 40, len(codes), replace=False)) + (1 << 60)
    part = rng.integers(0, 4, len(codes))
    for share in (0.0, 0.002, 0.1, 0.6, 1.0):
        allowed = rng.random(len(codes)) < share
        made = [
            segment(codes[part == i], tables, ids[part == i], allowed=allowed[part == i], num_bits=num_bits)
            for i, tables in enumerate((2, 0, 3, 0))
        ]
        segments = Segments(made, num_bits)
        assert segments.num_allowed == allowed.sum()
        check(segments, queries, distances[:, allowed], ids[allowed], (1, 10, 9999), (0, 4, 20))


@pytest.mark.parametrize("num_bits, plan", [(20, [WHOLE]), (64, None), (64, [])])
def test_equal_codes_come_in_the_order_of_ids(num_bits, plan):
    """Few different codes, and one that most have: the limit says nothing about ids."""
    rng = np.random.default_rng(0)
    few, queries = uniform(rng, 30, num_bits)
    codes = few[np.minimum(rng.integers(0, 60, 20_000), 29)]
    queries[0] = few[29]
    distances, ids = all_distances(queries, codes), np.arange(len(codes)) * 3
    segments = Segments([segment(codes, 4, ids, num_bits=num_bits, plan=plan)], num_bits)
    check(segments, queries, distances, ids, (1, 10, 15_000), (0, 12))
    halves = [
        segment(codes[i::2].copy(), 4, ids[i::2].copy(), num_bits=num_bits, plan=plan) for i in range(2)
    ]
    check(Segments(halves, num_bits), queries, distances, ids, (1, 10, 15_000), (0, 12))


@pytest.mark.parametrize("share", [None, 0.7])
@pytest.mark.parametrize("num_tables", [0, 4])
@pytest.mark.parametrize("num_bits", [6, 20, 64])
def test_scans_keep_the_right_codes(num_bits, num_tables, share):
    """Queries near and far in turn, from many codes at each distance to few, and lists of all lengths."""
    rng = np.random.default_rng([num_bits, num_tables])
    codes, _ = clustered(rng, 9000, num_bits, flips=0.2, centres=2)
    far = uniform(rng, 20, num_bits)[0]
    queries = np.stack([codes[:20], far], axis=1).reshape(40, -1)
    allowed = None if share is None else rng.random(len(codes)) < share
    made = [
        segment(codes[i::2].copy(), num_tables, ids, allowed=allowed if allowed is None else allowed[i::2],
                num_bits=num_bits)
        for i, ids in enumerate((np.arange(0, 9000, 2), np.arange(1, 9000, 2)))
    ]  # fmt: skip
    kept = np.arange(len(codes)) if allowed is None else np.flatnonzero(allowed)
    distances = all_distances(queries, codes)[:, kept]
    for segments, columns in ((made[:1], kept % 2 == 0), (made, kept >= 0)):
        for k in (1, 2, 7, 8, 9, 10, 17, 24, 100, 700):
            expected = nearest(distances[:, columns], kept[columns], k)
            for num_threads in (1, 4):
                found = index.search(Segments(segments, num_bits), queries, k, num_threads, "scan")
                assert_same(found, expected)


def test_many_queries_divide_and_learn():
    """Batches in which most queries, some, or none can be answered by tables."""
    rng = np.random.default_rng(1)
    codes, _ = clustered(rng, 30_000, 64, flips=0.03)
    segments = Segments([segment(codes, 4, num_bits=64), segment(codes[:70], first_id=10**6)], 64)
    both, ids = np.concatenate([codes, codes[:70]]), np.r_[np.arange(30_000), 10**6 + np.arange(70)]
    far = uniform(rng, 300, 64)[0]
    for queries in (codes[:300], far, np.concatenate([codes[:150], far[:150]])[rng.permutation(300)]):
        expected = nearest(all_distances(queries, both), ids, 20)
        for method, num_threads in itertools.product(METHODS, (1, 3)):
            assert_same(index.search(segments, queries, 20, num_threads, method), expected)


def test_long_searches_run_in_a_thread(monkeypatch):
    """What the tables cannot answer goes on in a thread, from where they left off."""
    monkeypatch.setattr(index, "LONG_BYTES", 1000)
    rng = np.random.default_rng(2)
    codes, queries = clustered(rng, 30_000, 64)
    queries[3:] = uniform(rng, 2, 64)[0]
    segments = Segments(
        [segment(codes[:20_000], 4, num_bits=64), segment(codes[20_000:], first_id=20_000)], 64
    )
    distances, ids = all_distances(queries, codes), np.arange(len(codes))
    check(segments, queries, distances, ids)
    for i in range(5):
        check(segments, queries[i : i + 1], distances[i : i + 1], ids)


@pytest.mark.parametrize("num_bits", [1, 12, 20, 64, 100])
@pytest.mark.parametrize("n", [0, 1, 5, 1000, 200_000])
def test_a_table_holds_each_code_in_its_bucket(num_bits, n):
    rng = np.random.default_rng(n)
    codes = uniform(rng, n, num_bits)[0]
    every_bit = np.unpackbits(codes, axis=1)
    some = rng.permutation(num_bits)[:17].tolist()
    for bits in {(0,), (num_bits - 1,), tuple(range(min(num_bits, 20))), tuple(some), tuple(sorted(some))}:
        size = len(bits)
        numbers = every_bit[:, list(bits)] @ (1 << np.arange(size)[::-1])
        assert np.array_equal(bucket_numbers(codes, bits), numbers)
        for num_threads in (1, 3):
            offsets, positions = index.table(codes, bits, num_threads)
            assert np.array_equal(positions, np.argsort(numbers, kind="stable"))
            assert np.array_equal(offsets, np.searchsorted(np.sort(numbers), np.arange((1 << size) + 1)))
        ordered, ranks, own = index.sort(codes, bits, 2)
        assert np.array_equal(ordered, codes[ranks]) and np.array_equal(own, offsets)


@pytest.mark.parametrize("num_bits", [1, 8, 20, 33, 64, 128, 300])
def test_plans_share_the_bits_among_tables(num_bits):
    for n in (0, 100, 10**5, 10**6, 10**8, 2**32 - 1):
        sizes = index.table_sizes(n, num_bits)
        assert n > 100 or sizes == []
        assert sum(sizes) <= num_bits and all(0 < size <= index.MAX_TABLE_BITS for size in sizes)
    codes = uniform(np.random.default_rng(0), 30_000, num_bits)[0]
    plan = index.table_plan(codes, num_bits)
    assert [len(bits) for bits in plan] == index.table_sizes(len(codes), num_bits)
    bits = [bit for of_table in plan for bit in of_table]
    assert len(set(bits)) == len(bits) and set(bits) <= set(range(num_bits))
    assert index.table_plan(codes[:100], num_bits) == []


def test_uneven_bits_are_shared_out():
    rng = np.random.default_rng(0)
    fractions = np.full(64, 0.5)
    fractions[20:29] = 0.02
    fractions[[40, 50, 60, 63]] = 0.0, 1.0, 1.0, 0.0  # constant: nothing but memory is lost without them
    codes = np.packbits(rng.random((2_000_000 // 64, 64)) < fractions, axis=1)
    plan = index.table_plan(np.repeat(codes, 40, axis=0), 64)
    assert [len(bits) for bits in plan] == [21, 21, 21]
    assert [sum(20 <= bit < 29 for bit in bits) for bits in plan] == [3, 3, 3]
    assert len({40, 50, 60, 63} - {bit for bits in plan for bit in bits}) == 1


# ----------------------------------------------------------------------------------------------------- groups


def groups_slowly(codes, ids, radius):
    parents = list(range(len(codes)))

    def find(i):
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    for i, row in enumerate(all_distances(codes, codes) <= radius if len(codes) else []):
        for j in np.nonzero(row)[0]:
            parents[find(i)] = find(j)
    members = {}
    for i in range(len(codes)):
        members.setdefault(find(i), []).append(int(ids[i]))
    return sorted(sorted(group) for group in members.values() if len(group) > 1)


@pytest.mark.parametrize("num_bits", [1, 7, 20, 33, 64, 100, 300])
@pytest.mark.parametrize("n", [0, 1, 2, 40, 700])
@pytest.mark.parametrize("radius", [0, 1, 2, 4, 9, 1000])
def test_groups_equal_a_slow_union_find(num_bits, n, radius):
    rng = np.random.default_rng([num_bits, n, radius])
    codes, _ = clustered(
        rng, n, num_bits, flips=min(0.3, radius / num_bits / 2 + 0.01), centres=max(1, n // 4)
    )
    ids = np.sort(rng.choice(1 << 62, n, replace=False))
    allowed = rng.random(n) < 0.8
    part = rng.integers(0, 2, n)
    made = [
        segment(
            codes[part == i],
            i and min(2, num_bits),
            ids[part == i],
            allowed=allowed[part == i],
            num_bits=num_bits,
        )
        for i in range(2)
    ]
    lims, found = index.groups(Segments(made, num_bits), radius)
    expected = groups_slowly(codes[allowed], ids[allowed], radius)
    assert [found[a:b].tolist() for a, b in itertools.pairwise(lims)] == expected
    if n == 700 and 0 < radius < 5 and num_bits > 20:
        assert len(expected) > 1


# ---------------------------------------------------------------------------------------------------- damage


def test_arrays_that_do_not_fit_are_refused():
    codes = np.zeros((10, 8), np.uint8)
    whole = segment(codes, 2, num_bits=64)
    Segments([whole], 64)
    first, second = whole.tables
    for damage in (
        {"codes": codes[:, :7]},
        {"codes": codes.astype(np.int64)},
        {"ranks": whole.ranks[:9]},
        {"ranks": None},
        {"ids": np.arange(10, dtype=np.int32)},
        {"allowed": np.zeros(1, np.uint8)},
        {"tables": (first._replace(offsets=first.offsets[:-1]), second)},
        {"tables": (first, second._replace(positions=None))},
        {"tables": (first, second._replace(positions=second.positions[:5]))},
        {"tables": (first, second._replace(bits=(first.bits[0], *second.bits[1:])))},
        {"tables": (first, second._replace(bits=(64, *second.bits[1:])))},
        {"tables": (first, second._replace(bits=(-1, *second.bits[1:])))},
        {"tables": (first, second._replace(bits=second.bits[1:]))},
        {"tables": (first, second._replace(bits=(second.bits[1], *second.bits[1:])))},
    ):
        with pytest.raises(ValueError):
            Segments([whole._replace(**damage)], 64)


@pytest.mark.parametrize("seed", range(60))
def test_garbage_in_tables_is_an_error_or_no_harm(seed):
    """Whatever offsets, positions and ranks say, nothing else is read. `make sanitize` watches."""
    rng = np.random.default_rng(seed)
    num_bits, plan = [
        (16, [tuple(range(16))]),
        (64, [tuple(range(0, 64, 8)), (60, 1, 3), tuple(range(33, 40))]),
    ][seed % 2]
    codes, queries = clustered(rng, 2000, num_bits, centres=3)
    made = segment(codes, plan=plan)
    arrays = [made.ranks, *(table.offsets for table in made.tables)]
    arrays += [table.positions for table in made.tables[1:]]
    for array in arrays:
        if rng.random() < 0.6:
            where = rng.random(len(array)) < rng.choice([0.002, 0.1, 1.0])
            high = rng.choice([2000, 2001, 2**32])
            array[where] = rng.integers(0, high, int(where.sum()), dtype=np.uint32)
    segments = Segments([made], num_bits)
    for method, num_threads in itertools.product(METHODS, (1, 2)):
        for call in (
            lambda: index.search(segments, queries, 10, num_threads, method),  # noqa: B023
            lambda: index.range_search(segments, queries, 5, num_threads, method),  # noqa: B023
            lambda: index.groups(segments, 2),
        ):
            try:
                call()
            except UserError as error:
                assert "verify" in str(error)


def test_a_broken_table_is_named():
    codes, queries = clustered(np.random.default_rng(0), 2000, 64)
    made = segment(codes, 4, num_bits=64)
    made.tables[1].positions[:] = 2000
    with pytest.raises(UserError, match="damaged.*llc.index verify"):
        index.search(Segments([made], 64), queries, 10, 1, "tables")


def test_a_stopped_search_ends():
    codes, queries = uniform(np.random.default_rng(0), 200_000, 64)
    segments = Segments([segment(codes, 4, num_bits=64)], 64)
    stop = np.ones(1, np.uint8)
    distances, ids = np.empty((5, 10), np.int32), np.empty((5, 10), np.int64)
    for method in METHODS:
        query = index._query(segments, queries, 2, method, None)
        query.stop = stop.ctypes.data
        arguments = (10, distances.ctypes.data, ids.ctypes.data)
        assert index.library().llc_index_search(ctypes.byref(query), *arguments) == 1


def test_estimates_of_memory_hold_for_large_indexes():
    """Codes, ranks and tables of 100 million codes take at most three times the codes."""
    for num_bits in (64, 128, 256):
        n, size = 10**8, num_bits // 8
        sizes = index.table_sizes(n, num_bits)
        tables = sum(4 * ((1 << size) + 1) for size in sizes) + 4 * n * (len(sizes) - 1)
        assert n * size + 4 * n + tables <= 3 * n * size
        assert math.isclose(sum(sizes), num_bits, rel_tol=0.5)
