"""The slow, obvious index that llc.Index is compared with: a dictionary that is sorted for every query."""

import numpy as np


class Naive:
    def __init__(self, num_bits):
        self.num_bits = num_bits
        self.rows = {}  # id -> (code, class name or "", file)

    def add(self, ids, codes, names=None, files=None):
        for i, id in enumerate(ids.tolist()):
            self.rows[id] = (codes[i].copy(), names[i] if names else "", files[i] if files else "")

    def remove(self, ids):
        for id in ids:
            del self.rows[int(id)]

    def near(self, query, radius, allowed=None):
        """[(distance, id)], in order."""
        found = []
        for id, (code, *_) in self.rows.items():
            distance = int(np.unpackbits(query ^ code).sum())
            if distance <= radius and (allowed is None or id in allowed):
                found.append((distance, id))
        return sorted(found)

    def search(self, queries, k, allowed=None):
        distances, ids = np.full((len(queries), k), -1, np.int32), np.full((len(queries), k), -1, np.int64)
        for i, query in enumerate(queries):
            for rank, (distance, id) in enumerate(self.near(query, self.num_bits, allowed)[:k]):
                distances[i, rank], ids[i, rank] = distance, id
        return distances, ids

    def range_search(self, queries, radius, allowed=None):
        found = [self.near(query, radius, allowed) for query in queries]
        lims = np.cumsum([0, *map(len, found)])
        return lims, [d for near in found for d, _ in near], [id for near in found for _, id in near]


def random_codes(rng, n, num_bits, p=0.5):
    """Codes whose bits are 1 with probability p, uint8 [n, code_size]."""
    return np.packbits(rng.random((n, num_bits)) < p, axis=1)


def clustered_codes(rng, n, num_bits, num_centres=20, noise=0.05):
    """Codes as training makes them: centres, each bit of which is flipped with probability `noise`."""
    centres = rng.random((num_centres, num_bits)) < 0.5
    flips = rng.random((n, num_bits)) < noise
    return np.packbits(centres[rng.integers(num_centres, size=n)] ^ flips, axis=1)
