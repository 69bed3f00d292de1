"""llc.native.hamming: every instruction set gives what plain numpy gives, at irregular sizes; and threads."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llc.native import hamming, instruction_sets, library
from tests.conftest import ROOT
from tests.waiting import seconds

every_instruction_set = pytest.mark.parametrize("instructions", instruction_sets())
DONE, STOPPED = 0, 1


def ones(codes):
    return np.unpackbits(codes, axis=-1).sum(-1, dtype=np.int32)


def codes_and_distances(n, m, code_size):
    """Queries, a database with equal and opposite codes, and all their distances."""
    rng = np.random.default_rng([n, m, code_size])
    queries = rng.integers(0, 256, (n, code_size), dtype=np.uint8)
    database = rng.integers(0, 256, (m, code_size), dtype=np.uint8)
    database[m // 2] = database[m // 3]
    queries[-1] = database[m // 2]
    database[-1] = ~queries[0]
    return queries, database, np.stack([ones(query ^ database) for query in queries])


def nearest(distances, k):
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, 1), indices


def assert_same(found, expected):
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


@every_instruction_set
@pytest.mark.parametrize("code_size", [1, 2, 3, 4, 5, 8, 9, 16, 31, 32, 33, 63, 64, 200])
@pytest.mark.parametrize("n, m", [(1, 1), (2, 70), (3, 300), (4, 1), (5, 63), (7, 256), (30, 1100)])
def test_equals_numpy(n, m, code_size, instructions):
    """Up to three queries are compared with codes as they are, more with planes, in groups of 64 to 256."""
    queries, database, distances = codes_and_distances(n, m, code_size)
    assert np.array_equal(hamming.pairwise(queries, database, 1, instructions), distances)
    for k in {1, min(2, m), min(40, m), m}:
        assert_same(hamming.search(queries, database, k, 1, instructions), nearest(distances, k))
    for radius in (0, 4 * code_size, 8 * code_size, 8 * code_size + 9):
        lims, *found = hamming.range_search(queries, database, radius, 1, instructions)
        within = distances <= radius
        assert lims.tolist() == [0, *np.cumsum(within.sum(1))]
        assert_same(found, (distances[within], np.nonzero(within)[1]))


@every_instruction_set
@pytest.mark.parametrize("code_size", [3, 8, 32, 70])
def test_threads_blocks_and_tiles_change_nothing(code_size, instructions):
    """Work of several blocks of queries, which divide among threads, and many tiles."""
    queries, database, distances = codes_and_distances(400, 4100, code_size)
    database[1000:3000] = database[:2000]  # ties across tiles
    distances[:, 1000:3000] = distances[:, :2000]
    within = distances <= 4 * code_size - 8
    for num_threads in (1, 2, 7):
        assert np.array_equal(hamming.pairwise(queries, database, num_threads, instructions), distances)
        for k in (1, 30, 1500):
            found = hamming.search(queries, database, k, num_threads, instructions)
            assert all(map(np.array_equal, found, nearest(distances, k)))
        lims, *found = hamming.range_search(queries, database, 4 * code_size - 8, num_threads, instructions)
        assert np.array_equal(lims[1:], np.cumsum(within.sum(1)))
        assert all(map(np.array_equal, found, (distances[within], np.nonzero(within)[1])))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("n", [1, 9])
def test_for_few_queries_the_database_is_divided_among_threads(n, k):
    queries, database, distances = codes_and_distances(n, 3_000_000 // n, 8)
    database[2000::2000] = database[0]  # ties across all parts
    distances[:, 2000::2000] = distances[:, :1]
    for num_threads in (2, 5):
        assert_same(hamming.search(queries, database, k, num_threads), nearest(distances, k))


@every_instruction_set
@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 7, 8, 9, 11, 12, 13, 15, 16, 17])
def test_a_table_has_the_nearest_class_of_every_code(num_bits, instructions):
    rng = np.random.default_rng(num_bits)
    used = np.uint8([255] * (num_bits // 8) + [0xFF00 >> num_bits % 8 & 255] * (num_bits % 8 > 0))
    class_codes = rng.integers(0, 256, (40, len(used)), dtype=np.uint8) & used
    numbers = np.arange(1 << num_bits, dtype=np.uint32) << (32 - num_bits)
    every = numbers.byteswap().view(np.uint8).reshape(-1, 4)[:, : len(used)].copy()
    expected = np.stack([ones(every ^ code) for code in class_codes]).argmin(0)
    for num_threads in (1, 3):
        table = hamming.build_table(class_codes, num_bits, num_threads, instructions)
        assert table.dtype == np.int32 and np.array_equal(table, expected)
    for n in (0, 1, 2, len(every)):  # the last codes are read byte by byte
        classes = hamming.look_up(every[:n].copy(), num_bits, table, 2, instructions)
        assert np.array_equal(classes, expected[:n])


@every_instruction_set
@pytest.mark.parametrize("item_size", [1, 2, 4, 8])
@pytest.mark.parametrize("num_bits", [1, 3, 8, 15, 16, 20, 64, 65])
def test_packing_compares_with_0_and_the_limit(num_bits, item_size, instructions):
    rng = np.random.default_rng([num_bits, item_size])
    dtype = np.dtype(f"u{item_size}")
    largest = int(np.iinfo(dtype).max)
    for n in (0, 1, 2, 33):
        for limit in (1, largest // 3, largest // 2, largest):
            near = np.array([0, 1, limit - 1, limit, min(limit + 1, largest), largest], dtype)
            values = rng.choice(near, (n, num_bits))
            values[rng.random(values.shape) < 0.3] = rng.integers(0, largest, dtype=dtype, endpoint=True)
            expected = np.packbits((values > 0) & (values <= limit), axis=1)
            assert np.array_equal(hamming.pack_bits(values, limit, 2, instructions), expected)


def test_many_values_and_codes_divide_among_threads():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (300_001, 23), dtype=np.uint8)
    codes = hamming.pack_bits(bits, 1, 3)
    assert np.array_equal(codes, np.packbits(bits, axis=1))
    table = rng.integers(0, 50, 1 << 23).astype(np.int32)
    numbers = np.pad(codes, ((0, 0), (1, 0))).view(">u4")[:, 0] >> 1
    classes = hamming.look_up(codes, 23, table, 3)
    assert np.array_equal(classes, table[numbers])
    class_codes = codes[:50].copy()
    kept = classes.copy()
    hamming.keep_exact(codes, class_codes, kept, 3)
    assert np.array_equal(kept, np.where((codes == class_codes[classes]).all(1), classes, -1))


def ranked_slowly(distances, query_classes, classes, k, neighbours, leave_one_out):
    """What hamming.rank returns, from sorted distances [n, m]."""
    rows = []
    for i, (of_query, own) in enumerate(zip(distances, query_classes)):
        kept = np.arange(len(classes)) != (i if leave_one_out else -1)
        of_query, class_of = of_query[kept], classes[kept]
        total, relevant = (np.bincount(d, minlength=256) for d in (of_query, of_query[class_of == own]))
        order = np.argsort(of_query, kind="stable")
        ranks = np.flatnonzero(class_of[order] == own) + 1
        precisions = np.arange(1, len(ranks) + 1) / ranks
        last = of_query[order[neighbours - 1]]
        nearer, tied = class_of[of_query < last], class_of[of_query == last]
        left = neighbours - len(nearer)
        votes = [(nearer == c).sum() * len(tied) + (tied == c).sum() * left for c in range(classes.max() + 1)]
        sums = precisions[ranks <= k].sum(), precisions.sum()
        rows.append((total, relevant, np.argmax(votes), sums, (ranks <= k).sum()))
    return [np.array(part) for part in zip(*rows)]


def assert_ranked(found, expected):
    for counts, counts_expected in zip(found[:2], expected[:2]):
        size = counts.shape[1]
        assert np.array_equal(counts, counts_expected[:, :size]) and not counts_expected[:, size:].any()
    assert np.array_equal(found[2], expected[2]) and np.array_equal(found[4], expected[4])
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-12)


@every_instruction_set
@pytest.mark.parametrize("code_size", [1, 3, 8, 13, 31])
@pytest.mark.parametrize("n, m, num_classes", [(1, 1, 1), (2, 70, 3), (5, 63, 60), (40, 1100, 7)])
def test_rankings_equal_sorting(n, m, num_classes, code_size, instructions):
    queries, database, distances = codes_and_distances(n, m, code_size)
    rng = np.random.default_rng(num_classes)
    classes = rng.integers(0, num_classes, m).astype(np.int32)
    query_classes = rng.integers(-1, classes.max() + 1, n).astype(np.int32)
    for k, neighbours in {(1, m), (max(1, m // 3), min(7, m)), (m, 1)}:
        found = hamming.rank(queries, query_classes, database, classes, k, neighbours, 1, instructions)
        assert_ranked(found, ranked_slowly(distances, query_classes, classes, k, neighbours, False))
        without = hamming.rank(
            queries, query_classes, database, classes, k, neighbours, 1, instructions, in_order=False
        )
        assert without[3:] == (None, None) and all(map(np.array_equal, without[:3], found[:3]))


@every_instruction_set
@pytest.mark.parametrize("code_size", [2, 8])
def test_rankings_leave_each_query_out(code_size, instructions):
    codes, classes = codes_and_distances(1, 300, code_size)[1], np.arange(300, dtype=np.int32) % 7
    codes[::3] = codes[0]  # others at distance 0, before and behind
    distances = np.stack([ones(code ^ codes) for code in codes])
    found = hamming.rank(codes, classes, codes, classes, 20, 9, 1, instructions, leave_one_out=True)
    assert (found[0].sum(1) == 299).all()
    assert_ranked(found, ranked_slowly(distances, classes, classes, 20, 9, True))


@pytest.mark.parametrize("code_size", [8, 1000])
def test_rankings_are_the_same_bits_for_all_threads_and_instructions(code_size):
    """Long codes and very many ties divide a block of queries, to bound its memory; each has to be found."""
    queries, database, _ = codes_and_distances(300, 20_000 if code_size == 8 else 300, code_size)
    database[len(database) // 4 :] = queries[:1]
    classes = (np.arange(len(database)) % 3).astype(np.int32)
    query_classes = (np.arange(len(queries)) % 3).astype(np.int32)
    expected = None
    for instructions in instruction_sets():
        for num_threads in (1, 2, 7):
            found = hamming.rank(
                queries, query_classes, database, classes, 100, 30, num_threads, instructions
            )
            expected = expected or found
            assert all(part.tobytes() == other.tobytes() for part, other in zip(found, expected))
    for i in (0, 1, 127, 128, 299):
        distances = ones(queries[i] ^ database)
        places = np.argsort(distances, kind="stable")
        ranks = np.flatnonzero(classes[places] == query_classes[i]) + 1
        assert expected[3][i, 1] == pytest.approx((np.arange(1, len(ranks) + 1) / ranks).sum(), rel=1e-12)
        assert expected[4][i] == (ranks <= 100).sum()
        assert expected[0][i].tolist() == np.bincount(distances, minlength=8 * code_size + 1).tolist()
    assert len(set(expected[2])) > 1


def test_a_ranking_that_is_stopped_says_so():
    codes, classes = np.zeros((9, 8), np.uint8), np.zeros(9, np.int32)
    members, ends = np.arange(9, dtype=np.int32), np.array([9])
    for stop, status in ((0, DONE), (1, STOPPED)):
        flag = np.array([stop], np.uint8)
        total, relevant = (np.full((9, 65), -1, np.int32) for _ in range(2))
        voted = np.full(9, -1, np.int32)
        arrays = [array.ctypes.data for array in (classes, classes, members, ends)]
        results = [array.ctypes.data for array in (flag, total, relevant, voted)]
        result = library().llc_hamming_rank(
            codes.ctypes.data, 9, codes.ctypes.data, 9, 8, *arrays, 1, 3, 2, 0, 2, 0, *results, None, None
        )
        assert result == status and (voted == 0).all() == (total[:, 0] == 9).all() == (not stop)


# ---- threads and processes -----------------------------------------------------------------------------


def search_slowly(queries, database):
    return hamming.search(queries, database, 10, 2)


def test_several_threads_search_at_once():
    queries, database, distances = codes_and_distances(50, 20_000, 16)
    expected = nearest(distances, 10)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: search_slowly(queries, database), range(40)):
            assert all(map(np.array_equal, found, expected))


def test_search_goes_on_after_a_fork():
    """The library has no threads of its own between calls, so a child has lost none."""
    queries, database, distances = codes_and_distances(50, 20_000, 16)
    expected = nearest(distances, 10)
    search_slowly(queries, database)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(search_slowly, (queries, database)).get(seconds(60))
    assert all(map(np.array_equal, found, expected))


def test_other_python_threads_run_during_a_search():
    queries, database = np.zeros((2000, 32), np.uint8), np.zeros((100_000, 32), np.uint8)
    distances, indices = np.empty((2000, 1), np.int32), np.empty((2000, 1), np.int64)
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    library().llc_hamming_search(
        queries.ctypes.data,
        len(queries),
        database.ctypes.data,
        len(database),
        32,
        1,
        1,
        0,
        None,
        distances.ctypes.data,
        indices.ctypes.data,
    )
    after = counted[0]
    done.set()
    thread.join()
    assert after > before + 100


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n", [1, 9])
def test_a_search_that_is_stopped_says_so_and_reads_nothing_more(n, k):
    queries, database = np.zeros((n, 8), np.uint8), np.zeros((1 << 16, 8), np.uint8)
    for stop, status, found in ((0, DONE, True), (1, STOPPED, False)):
        flag = np.array([stop], np.uint8)
        distances, indices = np.full((n, k), -1, np.int32), np.full((n, k), -1, np.int64)
        result = library().llc_hamming_search(
            queries.ctypes.data,
            n,
            database.ctypes.data,
            len(database),
            8,
            k,
            2,
            0,
            flag.ctypes.data,
            distances.ctypes.data,
            indices.ctypes.data,
        )
        assert result == status and (indices == np.arange(k)).all() == found


NO_MEMORY = """
import resource, numpy as np
from llc.native import hamming
database = np.zeros((2_000_000, 1), np.uint8)
hamming.search(database[:1], database, 1, 1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (30 << 20),) * 2)  # the results take 24 MB
try:
    hamming.search(database[:1], database, len(database), 1)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer would end the process"
)
def test_no_memory_is_an_error():
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], cwd=ROOT, capture_output=True, text=True, timeout=seconds(60)
    )
    assert done.stdout == "no memory for a search in packed codes\n", done.stderr


def counted_codes(num_bits, num_classes, num_codes):
    """Codes of classes as numbers, ascending within each; class 1 has none."""
    rng = np.random.default_rng([num_bits, num_codes])
    labels = np.sort(rng.integers(0, num_classes - 1, num_codes))
    labels[labels >= 1] += 1
    codes = rng.integers(0, 1 << num_bits, num_codes).astype(np.uint32)
    counts = rng.integers(1, 4, num_codes).astype(np.int32)
    return codes, counts, np.searchsorted(labels, np.arange(num_classes), side="right"), labels


@pytest.mark.parametrize("num_bits", [3, 7, 12, 13, 15])
def test_a_posterior_table_has_the_highest_sums_of_every_code(num_bits):
    codes, counts, ends, labels = counted_codes(num_bits, 6, 40)
    every = np.arange(1 << num_bits, dtype=np.uint32)
    distance = ones((every[:, None] ^ codes).view(np.uint8).reshape(len(every), len(codes), 4))
    scores = np.stack([(counts * 0.25**distance)[:, labels == c].sum(1) for c in range(6)], 1)
    for k in (1, 3, 6):
        classes, best, total = hamming.posterior_table(
            codes, counts.astype(np.float32), ends, num_bits, 0.25, k, 1
        )
        np.testing.assert_allclose(total, scores.sum(1), rtol=1e-5)
        np.testing.assert_allclose(best.T, -np.sort(-scores, axis=1)[:, :k], rtol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(scores, classes.T.astype(int), 1), best.T, rtol=1e-5)
        for threads in (2, 5):
            assert_same(
                hamming.posterior_table(codes, counts.astype(np.float32), ends, num_bits, 0.25, k, threads),
                (classes, best, total),
            )


def test_histograms_count_the_distances_to_each_class():
    codes, counts, ends, labels = counted_codes(24, 6, 200)
    queries = codes[::7].copy()
    distance = ones((queries[:, None] ^ codes).view(np.uint8).reshape(len(queries), len(codes), 4))
    found = hamming.posterior_histograms(queries, codes, counts, ends, 24, 2)
    for c in range(6):
        for row, of_query in zip(found[:, c], distance[:, labels == c], strict=True):
            assert row.tolist() == np.bincount(of_query, counts[labels == c], minlength=25).tolist()


@pytest.mark.parametrize("code_size", [1, 4, 5, 13])
def test_linear_scores_are_sums_over_bytes(code_size):
    rng = np.random.default_rng(code_size)
    codes = rng.integers(0, 256, (600, code_size), dtype=np.uint8)
    tables = rng.integers(-8000, 8000, (code_size, 256, 37)).astype(np.int16)
    tables[:, :, 20] = tables[:, :, 3]  # ties
    tables[:, 0] = 0  # as in every table: no bit, no score
    offsets = rng.integers(-5000, 5000, 37).astype(np.int32)
    offsets[20] = offsets[3]
    falloff = rng.random(4096).astype(np.float32)
    scores = offsets + sum(tables[byte, codes[:, byte]].astype(np.int64) for byte in range(code_size))
    order = np.argsort(-scores, axis=1, kind="stable")
    below = np.minimum(scores.max(1, keepdims=True) - scores, 4096)
    expected = np.append(falloff, np.float32(0))[below].sum(1)
    for k in (1, 4, 37):
        for threads in (1, 3):
            classes, best, totals = hamming.posterior_linear(codes, tables, offsets, k, threads, falloff)
            assert np.array_equal(classes, order[:, :k])
            assert np.array_equal(best, np.take_along_axis(scores, order[:, :k], 1))
            np.testing.assert_allclose(totals, expected, rtol=1e-5)
    assert hamming.posterior_linear(codes, tables, offsets, 1, 1)[2] is None
