"""Random codes, and slow reference implementations that anyone can check: bit_count of integers, sorted."""

import numpy as np

from llc.codes import pack_bits


def random_codes(n, num_bits, seed, distinct=None):
    """uint8 [n, code_size]; with `distinct`, only that many different codes, so that there are many ties."""
    rng = np.random.default_rng(seed)
    codes = pack_bits(rng.normal(size=(distinct or n, num_bits)))
    return codes if distinct is None else codes[rng.integers(0, distinct, n)]


def slow_pairwise(queries, database):
    def as_ints(codes):
        return [int.from_bytes(bytes(code), "big") for code in codes.tolist()]

    return [[(a ^ b).bit_count() for b in as_ints(database)] for a in as_ints(queries)]


def slow_search(queries, database, k):
    ranked = [
        sorted((distance, index) for index, distance in enumerate(row))[:k]
        for row in slow_pairwise(queries, database)
    ]
    return [[d for d, _ in row] for row in ranked], [[i for _, i in row] for row in ranked]


def slow_range_search(queries, database, radius):
    """Returns (lims, [(distance, index), ...])."""
    found = [[(d, i) for i, d in enumerate(row) if d <= radius] for row in slow_pairwise(queries, database)]
    return np.cumsum([0] + [len(row) for row in found]).tolist(), [pair for row in found for pair in row]
