"""pairwise, search and range_search against a double loop over Python integers' bit_count."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from llc.codes import pack_bits
from llc.hamming import pairwise, range_search, search


def random_codes(n, num_bits, seed, distinct=None):
    """uint8 [n, code_size]; with `distinct`, only so many different codes, so that duplicates and ties abound."""
    rng = np.random.default_rng(seed)
    codes = pack_bits(rng.normal(size=(distinct or n, num_bits)))
    return codes if distinct is None else codes[rng.integers(0, distinct, n)]


def slow_pairwise(queries, database):
    def as_ints(codes):
        return [int.from_bytes(code.tobytes(), "big") for code in codes]
    return [[(a ^ b).bit_count() for b in as_ints(database)] for a in as_ints(queries)]


def slow_search(queries, database, k):
    ranked = [sorted((distance, index) for index, distance in enumerate(row))[:k] for row in slow_pairwise(queries, database)]
    return [[d for d, _ in row] for row in ranked], [[i for _, i in row] for row in ranked]


sizes = st.one_of(st.integers(1, 5), st.integers(1, 70))
lengths = st.one_of(st.integers(1, 24), st.integers(1, 300))


@given(n=sizes, m=sizes, num_bits=lengths, seed=st.integers(0, 999))
def test_pairwise_equals_bit_count_of_xor(n, m, num_bits, seed):
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1)
    distances = pairwise(queries, database)
    assert distances.dtype == np.int32 and distances.tolist() == slow_pairwise(queries, database)


@given(n=sizes, m=sizes, num_bits=lengths, seed=st.integers(0, 999), data=st.data())
def test_search_sorts_by_distance_then_index(n, m, num_bits, seed, data):
    k = data.draw(st.integers(1, m), label="k")
    distinct = data.draw(st.one_of(st.none(), st.integers(1, 4)), label="distinct")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    distances, indices = search(queries, database, k)
    assert distances.dtype == np.int32 and indices.dtype == np.int64
    assert (distances.tolist(), indices.tolist()) == slow_search(queries, database, k)


@given(n=sizes, m=sizes, num_bits=lengths, seed=st.integers(0, 999), data=st.data())
def test_range_search_finds_all_within_the_radius(n, m, num_bits, seed, data):
    radius = data.draw(st.integers(0, num_bits), label="radius")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1)
    lims, distances, indices = range_search(queries, database, radius)
    assert (lims.dtype, distances.dtype, indices.dtype) == (np.int64, np.int32, np.int64)
    expected = [[(d, i) for i, d in enumerate(row) if d <= radius] for row in slow_pairwise(queries, database)]
    assert lims.tolist() == np.cumsum([0] + [len(row) for row in expected]).tolist()
    assert list(zip(distances.tolist(), indices.tolist())) == [pair for row in expected for pair in row]
