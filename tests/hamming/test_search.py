"""pairwise, search and range_search on the CPU against a double loop over Python integers' bit_count."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llc.hamming import neighbours, pairwise, range_search, search
from tests.data.helpers import wait_until
from tests.hamming.helpers import random_codes, slow_pairwise, slow_range_search, slow_search
from tests.waiting import seconds

sizes = st.one_of(st.integers(1, 5), st.integers(1, 140))
lengths = st.one_of(st.integers(1, 24), st.integers(1, 300))
few = st.one_of(st.none(), st.integers(1, 4))


@given(n=st.integers(1, 20), m=sizes, num_bits=lengths, seed=st.integers(0, 999))
def test_pairwise_equals_bit_count_of_xor(n, m, num_bits, seed):
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1)
    distances = pairwise(queries, database)
    assert distances.dtype == np.int32 and distances.tolist() == slow_pairwise(queries, database)


@given(
    n=st.integers(1, 20), m=sizes, num_bits=lengths, seed=st.integers(0, 999), distinct=few, data=st.data()
)
def test_search_sorts_by_distance_then_index(n, m, num_bits, seed, distinct, data):
    k = data.draw(st.one_of(st.just(1), st.integers(1, m)), label="k")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    distances, indices = search(queries, database, k)
    assert distances.dtype == np.int32 and indices.dtype == np.int64
    assert (distances.tolist(), indices.tolist()) == slow_search(queries, database, k)


@given(
    n=st.integers(1, 20), m=sizes, num_bits=lengths, seed=st.integers(0, 999), distinct=few, data=st.data()
)
def test_range_search_finds_all_within_the_radius(n, m, num_bits, seed, distinct, data):
    radius = data.draw(st.integers(0, num_bits + 9), label="radius")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    lims, distances, indices = range_search(queries, database, radius)
    assert (lims.dtype, distances.dtype, indices.dtype) == (np.int64, np.int32, np.int64)
    assert (lims.tolist(), list(zip(distances.tolist(), indices.tolist()))) == slow_range_search(
        queries, database, radius
    )


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("num_bits", [24, 64, 248, 249, 256, 257, 2048, 4096])
def test_extreme_distances_at_the_lengths_where_the_arithmetic_changes(num_bits, n):
    """For codes of up to 31 bytes distances are summed in bytes. Few queries are scanned in another way."""
    # the first query is all zeros, the others are all ones
    queries = np.packbits(np.arange(n)[:, None].repeat(num_bits, 1).astype(bool), axis=1)
    database = np.concatenate([queries[:1].repeat(65, 0), queries[1:2], random_codes(70, num_bits, 1)])
    assert pairwise(queries, database).tolist() == slow_pairwise(queries, database)
    for k in (1, 3, len(database)):
        assert tuple(a.tolist() for a in search(queries, database, k)) == slow_search(queries, database, k)
    lims, *found = range_search(queries, database, 0)
    assert lims.tolist() == [0, *range(65, 65 + n)] and found[1].tolist() == [*range(65)] + [65] * (n - 1)


@pytest.mark.parametrize("num_bits", [256, 300, 504, 512])
@pytest.mark.parametrize(
    "weights", [(256, 255, 255, 256), (256, 254, 255, 254), (254, 253, 256, 256), (256, 256, 256, 255)]
)
def test_nearest_codes_that_are_further_than_a_byte_counts(num_bits, weights):
    """In tile i the codes are weights[i] or one more away from 0; 255 is the largest distance in a byte."""
    queries = np.zeros((6, num_bits), np.uint8)
    queries[1::2, -1] = 1  # a bit that is 0 in all database codes that are long enough
    database = np.zeros((4 * 1100, num_bits), np.uint8)
    for i, row in enumerate(database):
        row[: weights[i // 1100] + (0 if i % 1100 == 1099 else i % 2)] = 1  # some are one bit further away
    queries, database = (np.packbits(bits, axis=1) for bits in (queries, database))
    for k in (1, 2):
        assert tuple(a.tolist() for a in search(queries, database, k)) == slow_search(queries, database, k)


@pytest.mark.parametrize("num_bits", [20, 64, 300])
def test_many_candidates_of_many_queries(num_bits):
    """There are enough to fill the lists of candidates several times, over several tiles, with ties."""
    queries, database = random_codes(5, num_bits, 0), random_codes(5000, num_bits, 1, 2500)
    for k in (2, 40, 700):
        assert tuple(a.tolist() for a in search(queries, database, k)) == slow_search(queries, database, k)


def test_longest_codes():
    queries, database = (
        random_codes(5, 8 * neighbours.MAX_CODE_SIZE, 0),
        random_codes(3, 8 * neighbours.MAX_CODE_SIZE, 1),
    )
    queries[0], database[2] = 0, 255
    assert pairwise(queries, database).tolist() == slow_pairwise(queries, database)
    assert search(queries, database, 3)[1].tolist() == slow_search(queries, database, 3)[1]


@pytest.mark.parametrize("m", [4095, 4096, 4097, 9000])
@pytest.mark.parametrize("distinct", [None, 7])
def test_databases_of_several_tiles(m, distinct):
    queries, database = random_codes(3, 20, 0, distinct), random_codes(m, 20, 1, distinct)
    for k in (1, 2, 100, m):
        assert tuple(a.tolist() for a in search(queries, database, k)) == slow_search(queries, database, k)
    lims, distances, indices = range_search(queries, database, 6)
    assert (lims.tolist(), list(zip(distances.tolist(), indices.tolist()))) == slow_range_search(
        queries, database, 6
    )


def test_a_code_at_the_very_end_is_found():
    database = np.full((10_000, 5), 255, np.uint8)
    for position in (0, 63, 64, 3275, 3276, 4095, 4096, 9_998, 9_999):
        database[:] = 255
        database[position] = 0
        for k in (1, 2):
            distances, indices = search(np.zeros((1, 5), np.uint8), database, k)
            assert (
                distances[0].tolist() == [0, 40][:k]
                and indices[0].tolist() == [position, 0 if position else 1][:k]
            )


def interrupted(work):
    """Sends Ctrl-C to this process while `work` runs -> seconds until it is heard."""
    sent = []

    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, send)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
            timer.join()  # the work was too short
        return time.monotonic() - sent[0]
    finally:
        timer.cancel()


@pytest.mark.parametrize("code_size", [8, 512, neighbours.MAX_CODE_SIZE])
@pytest.mark.parametrize(
    "call",
    [
        lambda queries, database: search(queries, database, 1),
        lambda queries, database: search(queries, database, 10),
        lambda queries, database: range_search(queries, database, 0),
        lambda queries, database: pairwise(queries, database),
    ],
    ids=["nearest", "k nearest", "range", "pairwise"],
)
@pytest.mark.alone
def test_ctrl_c_is_heard_soon_and_the_threads_end(call, code_size):
    """Work of seconds, in which Python's own code is not reached."""
    database = np.zeros(((64 << 20) // code_size, code_size), np.uint8)
    queries = np.zeros((64 if code_size == 8 else 1000, code_size), np.uint8)
    num_threads = threading.active_count()
    assert interrupted(lambda: [call(queries, database) for _ in range(20)]) < seconds(0.5)
    wait_until(lambda: threading.active_count() <= num_threads)


@pytest.mark.parametrize(
    "view",
    [
        lambda c: c[::2],
        lambda c: c[:, 1:6],
        lambda c: c[:, ::3],
        lambda c: np.asfortranarray(c),
        lambda c: c[::-1],
    ],
)
def test_layouts_that_are_not_contiguous(view):
    queries, database = view(random_codes(40, 96, 0)), view(random_codes(60, 96, 1))
    queries.flags.writeable = False
    expected = slow_search(queries, database, 5)
    assert tuple(a.tolist() for a in search(queries, database, 5)) == expected
    tensors = [torch.from_numpy(c.copy(order="K")) for c in (queries, database)]
    distances, indices = search(*tensors, 5)
    assert isinstance(distances, torch.Tensor) and (distances.dtype, indices.dtype) == (
        torch.int32,
        torch.int64,
    )
    assert (distances.tolist(), indices.tolist()) == expected
    assert pairwise(*tensors).tolist() == slow_pairwise(queries, database)
    assert [part.tolist() for part in range_search(*tensors, 40)] == [
        part.tolist() for part in range_search(queries, database, 40)
    ]


def test_empty_queries_and_databases():
    codes, none = random_codes(5, 20, 0), np.empty((0, 3), np.uint8)
    assert pairwise(none, codes).shape == (0, 5) and pairwise(codes, none).shape == (5, 0)
    assert [part.shape for part in search(none, codes, 2)] == [(0, 2), (0, 2)]
    assert [part.shape for part in search(none, codes, 1)] == [(0, 1), (0, 1)]
    assert [part.tolist() for part in range_search(none, codes, 3)] == [[0], [], []]
    assert [part.tolist() for part in range_search(codes, none, 3)] == [[0] * 6, [], []]
    with pytest.raises(ValueError, match="database: holds no codes"):
        search(codes, none, 1)


CODES = torch.zeros(4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    "queries, database, message",
    [
        (CODES.int(), CODES, "queries: expected packed codes uint8 .* got torch.int32"),
        (CODES, CODES.bool(), "database: expected packed codes uint8 .* got torch.bool"),
        (CODES.numpy(), CODES.numpy().astype(float), "database: expected packed codes uint8 .* got float64"),
        (CODES[0], CODES, r"queries: .* got torch.uint8 \[3\]"),
        (CODES[:, :0], CODES[:, :0], r"queries: .* got torch.uint8 \[4, 0\]"),
        (CODES.repeat(1, 3000), CODES, "queries: .* code_size 1 to 8191"),
        (CODES, CODES[:, :2], "queries have 3 bytes per code, database 2"),
        (CODES, CODES.numpy(), "queries are a Tensor, database a ndarray"),
        (
            CODES.tolist(),
            CODES,
            "queries: expected packed codes in a torch tensor or numpy array, got a list",
        ),
        (CODES, CODES.to("meta"), "queries are on cpu, database on meta: move one"),
        (CODES.to("meta"), CODES.to("meta"), "on meta: .* cpu or cuda"),
    ],
)
def test_codes_that_do_not_match_are_refused_by_name(queries, database, message):
    for call in (pairwise, lambda q, d: search(q, d, 1), lambda q, d: range_search(q, d, 1)):
        with pytest.raises(ValueError, match=message):
            call(queries, database)


@pytest.mark.parametrize(
    "k, message",
    [
        (0, "k: expected 1 to 4"),
        (-1, "k: expected 1 to 4"),
        (5, "k: expected 1 to 4"),
        (1.0, "k: expected an integer, got 1.0"),
        (None, "k: expected an integer"),
    ],
)
def test_numbers_of_neighbours_are_refused_by_name(k, message):
    with pytest.raises(ValueError, match=message):
        search(CODES, CODES, k)


@pytest.mark.parametrize(
    "radius, message", [(-1, "radius: expected 0 or more"), (0.5, "radius: expected an integer")]
)
def test_radii_are_refused_by_name(radius, message):
    with pytest.raises(ValueError, match=message):
        range_search(CODES, CODES, radius)
