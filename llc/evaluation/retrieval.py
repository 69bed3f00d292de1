"""Retrieval by packed codes: how well the codes nearest to a query's are those of the query's own class.

`evaluate` gives the metrics; `rank` gives a Ranking, which also gives the metrics of single queries, and
curves. An item of the database is relevant to a query if and only if their labels are equal.

Short codes have many equal distances, and a ranking says nothing about the order within them. So mAP,
precision and recall are expectations over all orders, each equally probable. They are exact, because only the
numbers of items and of relevant items at each distance matter (McSherry and Najork, Computing Information
Retrieval Performance Measures Efficiently in the Presence of Tied Scores, ECIR 2008; He et al., Hashing as
Tie-Aware Learning to Rank, CVPR 2018), and they do not depend on the order of the database.

Published figures are often of other definitions of mean average precision, which differ in what is divided
by, in queries without hits, and in ties. Those of three much-used programs are reported beside ours:
docs/how-to/retrieval.md.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from llc.arguments import class_labels, whole_number
from llc.codes import code_size
from llc.hamming.neighbours import as_array, check_codes
from llc.native import hamming

Array: TypeAlias = np.ndarray | torch.Tensor  # on any device, each as it comes

RADIUS = 2  # of the "hash lookup" of the field
MAX_ITEMS = 2**31 - 1  # of a database, as the native library counts them
BLOCK = 1 << 20  # counts of queries that are worked on at a time


def evaluate(
    queries: Array,
    query_labels: Array,
    database: Array,
    database_labels: Array,
    k: int = 1000,
    *,
    leave_one_out: bool = False,
    neighbours: int = 10,
    conventions: bool = True,
    shuffle: int | None = None,
) -> dict[str, float]:
    """The retrieval metrics of queries in a database, {name: fraction of 1}, as Ranking.metrics lists them.

    The arguments are those of `rank`. Raises ValueError as `rank` does, and if no query has a relevant item.
    """
    return rank(
        queries,
        query_labels,
        database,
        database_labels,
        k,
        leave_one_out=leave_one_out,
        neighbours=neighbours,
        conventions=conventions,
        shuffle=shuffle,
    ).metrics()


def rank(
    queries: Array,
    query_labels: Array,
    database: Array,
    database_labels: Array,
    k: int = 1000,
    *,
    leave_one_out: bool = False,
    neighbours: int = 10,
    conventions: bool = True,
    shuffle: int | None = None,
) -> "Ranking":
    """Compares queries with a database and counts items and relevant items at each distance.

    queries uint8 [n, code_size], database uint8 [m, code_size], packed; labels int64 [n] and [m], 0 or more.
    They are numpy arrays or torch tensors; what is on CUDA is moved to the CPU. k: the cut-off of map@k,
    precision@k and recall@k; above the database's size the whole ranking counts. neighbours: how many nearest
    items vote in the kNN accuracy; more than there are means all. leave_one_out: the queries are the
    database, in the same order, and each is compared with all items but itself. conventions: also count for
    the HashNet, DeepHash and OrthoHash figures, which need an order of equal distances: the database's, or
    with `shuffle` a random one drawn by this seed. Take that where the database lies class after class, as
    most do, because its own order can move these figures by many points.

    Raises ValueError for what are not packed codes or labels, sizes that do not fit together, an empty set,
    k or neighbours below 1, and with leave_one_out if queries and database differ or hold a single item.

    Memory: 8 bytes for each query and distance; and for each thread less than 50 MB or, if it is more, up to
    32 bytes for each item of the database.
    """
    sought, items = _codes("queries", queries), _codes("database", database)
    check_codes(queries=sought, database=items)
    sought_labels = class_labels("query_labels", query_labels, len(sought))
    item_labels = class_labels("database_labels", database_labels, len(items))
    if len(items) > MAX_ITEMS:
        raise ValueError(f"database: up to {MAX_ITEMS:,} codes can be ranked, got {len(items):,}")
    k = whole_number("k", k, 1, MAX_ITEMS)
    neighbours = whole_number("neighbours", neighbours, 1, MAX_ITEMS)
    if leave_one_out:
        if not (np.array_equal(sought, items) and np.array_equal(sought_labels, item_labels)):
            raise ValueError(
                "queries: with leave_one_out they and their labels must be the database and its labels, in "
                "the same order"
            )
        if len(items) < 2:
            raise ValueError("database: with leave_one_out it must hold 2 codes or more, got 1")
    num_items = len(items) - leave_one_out
    names, classes = np.unique(item_labels, return_inverse=True)
    query_classes = np.minimum(np.searchsorted(names, sought_labels), len(names) - 1)
    query_classes[names[query_classes] != sought_labels] = -1
    order = None
    if conventions and shuffle is not None:
        order = np.random.default_rng(whole_number("shuffle", shuffle, 0)).permutation(len(items))
        items, classes = items[order], classes[order]
        if leave_one_out:
            sought, query_classes = items, classes
    total, relevant, voted, precisions, hits = hamming.rank(
        sought,
        query_classes.astype(np.int32),
        items,
        classes.astype(np.int32),
        min(k, num_items),
        min(neighbours, num_items),
        torch.get_num_threads(),
        leave_one_out=leave_one_out,
        in_order=conventions,
    )
    ranking = Ranking(total, relevant, k, neighbours, voted == query_classes, precisions, hits)
    if order is None or not leave_one_out:
        return ranking
    row = np.argsort(order)  # of each query in the results
    per_query = ("total", "relevant", "knn_right", "precisions", "hits")
    return dataclasses.replace(ranking, **{name: getattr(ranking, name)[row] for name in per_query})


def counts_size(num_queries: int, num_bits: int) -> int:
    """The bytes that a Ranking takes: they grow with the queries and the bits, not with the database."""
    return 2 * np.dtype(np.int32).itemsize * num_queries * (8 * code_size(num_bits) + 1)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How a database is ranked for each of n queries, in counts; made by `rank`.

    total, relevant: int32 [n, num_distances], the items, and the relevant ones, at distance 0, 1, ...
    k, neighbours: as given to `rank`.
    knn_right: bool [n], whether the nearest `neighbours` items vote for the query's class. Items at the last
        of their distances share the votes that are left equally, as they do on average over all orders of
        them. Equal votes go to the lowest class.
    precisions, hits: for the ranking with one order of equal distances (`shuffle` of `rank`), float64 [n, 2],
        the sums of the precisions at the relevant items among the first k and in the whole ranking, and int32
        [n], the relevant items among the first k; None without `conventions`.
    """

    total: np.ndarray
    relevant: np.ndarray
    k: int
    neighbours: int
    knn_right: np.ndarray
    precisions: np.ndarray | None = None
    hits: np.ndarray | None = None

    @property
    def num_items(self) -> int:
        """The length of a ranking: the database's size, or one less where each query is left out."""
        return int(self.total[0].sum(dtype=np.int64))

    @property
    def num_relevant(self) -> np.ndarray:
        """The number of items that are relevant to each query, int64 [n]."""
        return self.relevant.sum(1, dtype=np.int64)

    def metrics(self) -> dict[str, float]:
        """{name: fraction of 1}, means over the queries; K stands for the number `k`.

        map, map@K: mean average precision, of the whole ranking and of the first K items; the average
            precision of a query is the sum of the precisions at its relevant items, divided by their number
            in the database, or by K if that is less
        map.hashnet, map@K.hashnet, and so on with .deephash and .orthohash: as those programs define it, with
            equal distances in one of the orders that they may give (`_in_order`, `shuffle` of `rank`)
        map.strict, map@K.strict: the same as map, but relevant items come last among equal distances, and
            queries without relevant items count as 0: no order gives less, and none of the rules above
        precision@1, precision@2, precision@5, ..., precision@K, and recall@...: of the first items
        precision_within_2: of the items up to 2 bits away; 0 for a query without such items
        empty_within_2: the fraction of queries without such items
        knn@NEIGHBOURS: accuracy of the class that the nearest items vote for
        without_relevant: the fraction of queries without relevant items; map, map@K and recall leave them out
        tied@K: the fraction of queries of which items K and K + 1 are equally far, so that the first K items
            are a matter of chance

        The conventions are there if `rank` counted for them. Raises ValueError if no query has a relevant
        item.
        """
        k = self.k
        values = {
            "map": self._mean_with_relevant(self.average_precisions()),
            f"map@{k}": self._mean_with_relevant(self.average_precisions(k)),
        }
        if self.precisions is not None and self.hits is not None:
            values |= _in_order("map", self.precisions[:, 1], self.num_relevant)
            values["map.strict"] = float(np.nan_to_num(self.average_precisions(worst=True)).mean())
            values |= _in_order(f"map@{k}", self.precisions[:, 0], self.hits)
            values[f"map@{k}.strict"] = float(np.nan_to_num(self.average_precisions(k, worst=True)).mean())
        sizes = self.sizes()
        precision, recall = self.curve(sizes)
        values |= {f"precision@{size}": float(value) for size, value in zip(sizes, precision)}
        values |= {f"recall@{size}": float(value) for size, value in zip(sizes, recall)}
        return values | {
            f"precision_within_{RADIUS}": float(self.by_radius()[0][RADIUS]),
            f"empty_within_{RADIUS}": float((self.total[:, : RADIUS + 1] == 0).all(1).mean()),
            f"knn@{self.neighbours}": float(self.knn_right.mean()),
            "without_relevant": float((self.num_relevant == 0).mean()),
            f"tied@{k}": self.tied(k),
        }

    def average_precisions(self, k: int | None = None, worst: bool = False) -> np.ndarray:
        """The average precision of each query, float64 [n]; NaN for queries without relevant items.

        k: of the first k items; None: of the whole ranking. worst: in the worst order of equal distances, in
        which relevant items come last, instead of the expectation over all orders.

        Of a group of T items with equal distance, of which R are relevant, behind N nearer items of which H
        are relevant, item j of T is relevant with probability R / T, and then (j - 1) (R - 1) / (T - 1) of
        those before it in the group are expected to be. So it adds R / T (H + 1 + (j - 1) (R - 1) / (T - 1))
        / (N + j). Over j this is a sum of harmonic numbers.
        """
        k = self.num_items if k is None else whole_number("k", k, 1)
        found = np.empty(len(self.total))
        for rows in self._blocks():
            total, relevant = self.total[rows], self.relevant[rows]
            items, hits = self._up_to(rows)
            nearer, relevant_nearer = items - total, hits - relevant
            if worst:
                first = nearer + total - relevant  # behind which the group's relevant items are
                taken = np.clip(k - first, 0, relevant)
                sums = taken + (relevant_nearer - first) * inverses(first, taken)
            else:
                taken = np.clip(k - nearer, 0, total)
                slope = (relevant - 1) / np.maximum(total - 1, 1)
                constant = relevant_nearer + 1 - slope * (nearer + 1)
                sums = relevant / np.maximum(total, 1) * (slope * taken + constant * inverses(nearer, taken))
            of = np.where(hits[:, -1] == 0, np.nan, np.minimum(hits[:, -1], k))
            found[rows] = sums.sum(1) / of
        return found

    def sizes(self) -> list[int]:
        """1, 2, 5, 10, 20, 50, ... up to k or the number of items, and k itself."""
        end, power = min(self.k, self.num_items), 1
        sizes = {self.k}
        while power <= end:
            sizes |= {factor * power for factor in (1, 2, 5) if factor * power <= end}
            power *= 10
        return sorted(sizes)

    def curve(self, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall of the first items of a ranking, for each of `sizes`.

        Two arrays float64 [len(sizes)]: expectations over all orders of equal distances, as means over the
        queries; for recall over those with relevant items. A size above the number of items means all of
        them. Raises ValueError if no query has a relevant item.
        """
        taken = np.minimum([whole_number("sizes", size, 1) for size in sizes], self.num_items)
        with_relevant = self._with_relevant()
        precision, recall = np.zeros((2, len(taken)))
        for items, hits in map(self._up_to, self._blocks()):
            for x, y in zip(np.pad(items, ((0, 0), (1, 0))), np.pad(hits, ((0, 0), (1, 0)))):
                # Within equal distances the expected number of hits grows evenly.
                expected = np.interp(taken, x, y)
                precision += expected / taken
                recall += expected / max(y[-1], 1)
        return precision / len(self.total), recall / with_relevant.sum()

    def by_radius(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall of the items up to 0, 1, ... bits away.

        Two arrays float64 [num_distances]: means over the queries, for recall over those with relevant items.
        The precision of a query without items so near counts as 0. Raises ValueError if no query has a
        relevant item.
        """
        with_relevant = self._with_relevant()
        precision, recall = np.zeros((2, self.total.shape[1]))
        for items, hits in map(self._up_to, self._blocks()):
            precision += (hits / np.maximum(items, 1)).sum(0)
            recall += (hits / np.maximum(hits[:, -1:], 1)).sum(0)
        return precision / len(self.total), recall / with_relevant.sum()

    def tied(self, k: int) -> float:
        """The fraction of queries of which items k and k + 1 are equally far; 0 if there is no item k + 1."""
        if k >= self.num_items:
            return 0.0
        return sum(int((self._up_to(rows)[0] != k).all(1).sum()) for rows in self._blocks()) / len(self.total)

    def _up_to(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of items and of relevant ones up to each distance, int64 [rows, num_distances]."""
        items, hits = (np.cumsum(counts[rows], 1, dtype=np.int64) for counts in (self.total, self.relevant))
        return items, hits

    def _with_relevant(self) -> np.ndarray:
        with_relevant = self.num_relevant > 0
        if not with_relevant.any():
            raise ValueError("query_labels: no query has an item with its label in the database")
        return with_relevant

    def _mean_with_relevant(self, values: np.ndarray) -> float:
        return float(values[self._with_relevant()].mean())

    def _blocks(self) -> Iterator[slice]:
        """Slices of the queries, so that memory for intermediate results is bounded."""
        n, num_distances = self.total.shape
        step = max(1, BLOCK // num_distances)
        return (slice(start, start + step) for start in range(0, n, step))


def _in_order(name: str, precisions: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """The mean average precision by the definitions of three programs, for one order of equal distances.

    precisions: float64 [n], the sum of the precisions at the relevant items that are looked at; hits: int
    [n], their number. All three divide by that number, also where more items of the database are relevant.

    hashnet: thuml/HashNet, pytorch/src/test.py, mean_average_precision. Leaves queries without hits out; if
        there are no others, its result is NaN and ours is 0.
    deephash: swuxyj/DeepHash-pytorch, utils/tools.py, CalcTopMap. Counts queries without hits as 0.
    orthohash: kamwoh/orthohash, functions/hashing.py, calculate_mAP. The same; it only sorts otherwise.

    Their sorts are not stable, so their order within equal distances is arbitrary; ours is that of `rank`.
    """
    each = precisions / np.maximum(hits, 1)
    with_hits = each[hits > 0]
    over_all = float(each.mean())
    return {
        f"{name}.hashnet": float(with_hits.mean()) if len(with_hits) else 0.0,
        f"{name}.deephash": over_all,
        f"{name}.orthohash": over_all,
    }


EXACT = 32  # up to here the inverses are added up; beyond it the series below has no visible error
_SUMS = np.zeros((EXACT + 1, EXACT + 1))  # [after, after + number]
for _after in range(EXACT):
    _SUMS[_after, _after + 1 :] = np.cumsum(1 / np.arange(_after + 1, EXACT + 1))


def inverses(after: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The sums 1 / (after + 1) + ... + 1 / (after + number), float64, for integers of 0 or more.

    Beyond EXACT they are differences of harmonic numbers H(x) = ln x + c + 1 / 2x - 1 / 12x^2 + 1 / 120x^4 -
    1 / 252x^6 + 1 / 240x^8 - ..., taken term by term, so that no digits are lost between large numbers.
    """
    until = after + number
    few = _SUMS[np.minimum(after, EXACT), np.minimum(until, EXACT)]
    a, b = np.maximum(after, EXACT).astype(np.float64), np.maximum(until, EXACT).astype(np.float64)
    return few + np.log1p((b - a) / a) - (b - a) / (2 * a * b) + _tail(b) - _tail(a)


def _tail(x: np.ndarray) -> np.ndarray:
    y = 1 / (x * x)
    return -y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))


def _codes(name: str, codes: Any) -> np.ndarray:
    """Packed codes as a numpy array. Raises ValueError if they are something else, or none."""
    codes = codes.cpu() if isinstance(codes, torch.Tensor) else codes
    check_codes(**{name: codes})
    if len(codes) == 0:
        raise ValueError(f"{name}: holds no codes")
    return as_array(codes)
