"""Retrieval by packed codes: how well the nearest codes of an image are those of its own class."""

import collections
import statistics

import numpy as np

from llc.hamming import search


def leave_one_out(codes, labels, k, seed=0, block=256):
    """kNN accuracy and mean average precision of a set of codes, each queried against all others of the set.

    codes uint8 [n, code_size], packed; labels int64 [n]; k < n. Returns {"knn", "map", "k"}, the first two as
    fractions of 1.

    knn: the class that is most frequent among the k nearest; a tie goes to the class that comes first among
    them. map: the mean over the images of average precision, which is the mean, over the other images of the
    same class, of the precision at their ranks. It is taken over the whole ranking, and images without others
    of their class are left out of it.

    Codes at equal distance are ranked in a random order drawn by the seed: data usually lies class after
    class, and ties in the order of the data would favour the classes that come first. Memory: block x n
    neighbours at a time.
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    codes, labels = np.ascontiguousarray(codes[order]), labels[order]
    num_correct, precisions, ranks = 0, [], np.arange(1, len(codes))
    for start in range(0, len(codes), block):
        own = np.arange(start, min(start + block, len(codes)))
        nearest = search(codes[own], codes, len(codes))[1]
        others = nearest[nearest != own[:, None]].reshape(len(own), -1)
        classes = labels[others]
        for votes, label in zip(classes[:, :k], labels[own]):
            # Counter keeps the order in which its keys came first, and most_common keeps it among equals.
            num_correct += collections.Counter(votes.tolist()).most_common(1)[0][0] == label
        hits = classes == labels[own, None]
        num_hits = hits.sum(1)
        precision = (hits * (np.cumsum(hits, 1) / ranks)).sum(1)
        precisions += (precision[num_hits > 0] / num_hits[num_hits > 0]).tolist()
    return {
        "knn": num_correct / len(codes),
        "map": statistics.fmean(precisions) if precisions else 0.0,
        "k": k,
    }
