"""Retrieval metrics against slow references, other people's definitions, and values worked out by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llc.evaluation.retrieval import Ranking, evaluate, inverses, rank
from llc.hamming import pairwise

TIED = [  # metrics that have to do with the order of the database, or with a single one of the orders
    f"{name}.{convention}" for name in ("map", "map@K") for convention in ("hashnet", "deephash", "orthohash")
]


def codes_at(distances, num_bits=16):
    """Codes whose distances from a code of zeros are these: uint8 [n, code_size]."""
    return np.packbits(np.arange(num_bits) < np.asarray(distances)[:, None], axis=1)


def one_query(distances, hits):
    """The arguments of `rank` for a query at these distances from the database; hits: which are relevant."""
    return (np.zeros((1, 2), np.uint8), np.ones(1, np.int64), codes_at(distances), np.asarray(hits, np.int64))


def random_sets(n, m, num_bits, num_classes, seed, flips=0.25):
    """Queries and a database whose codes have to do with their classes; short ones have many ties."""
    rng = np.random.default_rng(seed)
    of_class = rng.random((num_classes, num_bits)) < 0.5
    labels = [rng.integers(0, num_classes, size) for size in (n, m)]
    queries, database = (
        np.packbits(of_class[part] ^ (rng.random((len(part), num_bits)) < flips), axis=1) for part in labels
    )
    return queries, labels[0], database, labels[1]


# ---- by hand, and by averaging over all orders -------------------------------------------------------------


def average_precision(hits, k, num_relevant):
    """Of a list of hits, first to last; exact."""
    precisions = [Fraction(sum(hits[: i + 1]), i + 1) for i in range(min(k, len(hits))) if hits[i]]
    return sum(precisions, Fraction(0)) / min(num_relevant, k)


def all_orders(distances, items):
    """The items in every order that does not decrease the distances."""
    groups = [
        [item for other, item in zip(distances, items) if other == distance]
        for distance in sorted(set(distances))
    ]
    for orders in itertools.product(*map(itertools.permutations, groups)):
        yield list(itertools.chain(*orders))


def mean(values):
    values = list(values)
    return sum(values, Fraction(0)) / len(values)


def test_a_ranking_by_hand():
    found = evaluate(*one_query([1, 2, 3], [1, 0, 1]), k=2)
    assert found["map"] == pytest.approx(5 / 6)  # precisions 1 and 2/3
    assert found["map@2"] == pytest.approx(1 / 2)  # of min(2 relevant, 2)
    assert found["map@2.hashnet"] == found["map@2.deephash"] == 1  # of the single hit among the first two
    assert found["map.strict"] == pytest.approx(5 / 6) and found["map@2.strict"] == pytest.approx(1 / 2)
    assert [found[f"precision@{k}"] for k in (1, 2)] == [1, 1 / 2]
    assert [found[f"recall@{k}"] for k in (1, 2)] == [1 / 2, 1 / 2]
    assert found["precision_within_2"] == 1 / 2 and found["empty_within_2"] == 0
    assert found["knn@10"] == 1 and found["without_relevant"] == 0 and found["tied@2"] == 0
    # two orders of the last two: 1, 1/2 and 1, 2/3
    tied = evaluate(*one_query([1, 3, 3], [1, 0, 1]), k=2)
    assert tied["map"] == pytest.approx((1 + 5 / 6) / 2) and tied["map@2"] == pytest.approx((1 / 2 + 1) / 2)
    assert tied["map.strict"] == pytest.approx(5 / 6) and tied["map@2.strict"] == 1 / 2
    assert tied["precision@2"] == 3 / 4 and tied["recall@2"] == 3 / 4 and tied["tied@2"] == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7).filter(
        lambda items: any(hit for _, hit in items)
    ),
    st.integers(1, 9),
)
def test_expectations_are_means_over_all_orders(items, k):
    distances, hits = [d for d, _ in items], [int(hit) for _, hit in items]
    found, m, num_relevant = evaluate(*one_query(distances, hits), k=k), len(items), sum(hits)
    orders = list(all_orders(distances, hits))
    for name, first in (("map", m), (f"map@{k}", k)):
        values = [average_precision(order, first, num_relevant) for order in orders]
        assert found[name] == pytest.approx(float(mean(values)), rel=1e-13)
        assert found[f"{name}.strict"] == pytest.approx(float(min(values)), rel=1e-13)
    for name in found:
        metric, _, size = name.partition("@")
        if metric in ("precision", "recall"):
            expected = mean(Fraction(sum(order[: int(size)])) for order in orders)
            expected /= min(int(size), m) if metric == "precision" else num_relevant
            assert found[name] == pytest.approx(float(expected), rel=1e-13)
    ordered = sorted(distances)
    assert found[f"tied@{k}"] == (k < m and ordered[k - 1] == ordered[k])
    precision, recall = rank(*one_query(distances, hits)).by_radius()
    for radius in range(17):
        within = [hit for distance, hit in items if distance <= radius]
        assert precision[radius] == pytest.approx(sum(within) / max(len(within), 1))
        assert recall[radius] == pytest.approx(sum(within) / num_relevant)
    assert found["precision_within_2"] == precision[2]
    assert found["empty_within_2"] == (min(distances) > 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_knn_is_decided_by_the_expected_votes(items, neighbours, label):
    distances, labels = zip(*items)
    votes = [
        mean(Fraction(order[:neighbours].count(c)) for order in all_orders(distances, labels))
        for c in range(4)
    ]
    _, _, database, _ = one_query(distances, labels)
    ranking = rank(
        np.zeros((1, 2), np.uint8), np.array([label]), database, np.array(labels), neighbours=neighbours
    )
    assert ranking.knn_right.tolist() == [votes.index(max(votes)) == label]


def test_queries_without_relevant_items():
    queries, database = np.zeros((3, 2), np.uint8), codes_at([1, 2, 5])
    found = evaluate(queries, np.array([7, 10**15, 3]), database, np.array([4, 10**15, 7]), k=2, neighbours=1)
    assert found["without_relevant"] == pytest.approx(1 / 3)
    # label 7 is at rank 3, 10^15 at rank 2, 3 nowhere
    assert found["map"] == pytest.approx((1 / 3 + 1 / 2) / 2) and found["map@2"] == (0 + 1 / 2) / 2
    assert found["map.hashnet"] == found["map"] and found["map@2.hashnet"] == 1 / 2
    for convention in ("deephash", "orthohash", "strict"):
        assert found[f"map.{convention}"] == pytest.approx((1 / 3 + 1 / 2) / 3)
        assert found[f"map@2.{convention}"] == pytest.approx(1 / 2 / 3)
    assert found["precision@2"] == pytest.approx((0 + 1 / 2 + 0) / 3) and found["recall@2"] == (0 + 1) / 2
    assert found["knn@1"] == 0
    no_hits = evaluate(queries[:1], np.array([7]), database, np.array([4, 4, 7]), k=2)
    assert no_hits["map@2.hashnet"] == no_hits["map@2"] == 0 < no_hits["map"]


def test_names_and_their_order():
    sets = random_sets(5, 30, 8, 3, 0)
    found = evaluate(*sets, k=7, neighbours=3)
    conventions = ("hashnet", "deephash", "orthohash", "strict")
    names = ["map", "map@7", *(f"{name}.{c}" for name in ("map", "map@7") for c in conventions)]
    names += [f"{metric}@{size}" for metric in ("precision", "recall") for size in (1, 2, 5, 7)]
    names += ["precision_within_2", "empty_within_2", "knn@3", "without_relevant", "tied@7"]
    assert list(found) == names and all(type(value) is float for value in found.values())
    without = evaluate(*sets, k=7, neighbours=3, conventions=False)
    assert without == {name: value for name, value in found.items() if "." not in name}
    assert rank(*sets, k=1000).sizes() == [1, 2, 5, 10, 20, 1000]
    assert rank(*sets, k=20).sizes() == [1, 2, 5, 10, 20]


# ---- other definitions -------------------------------------------------------------------------------------


def test_without_ties_all_definitions_are_that_of_scikit_learn():
    average_precision_score = pytest.importorskip("sklearn.metrics").average_precision_score
    rng = np.random.default_rng(3)
    distances = np.stack([rng.permutation(64) for _ in range(20)])
    labels, values = rng.integers(0, 4, 64), set()
    for of_query in distances:
        args = (np.zeros((1, 8), np.uint8), np.array([2]), codes_at(of_query, 64), labels)
        expected = average_precision_score(labels == 2, -of_query)
        found = evaluate(*args, k=64)
        assert all(found[name] == pytest.approx(expected, rel=1e-12) for name in found if name[:3] == "map")
        assert found == {  # a larger k is the whole ranking
            name.replace("1000", "64"): value for name, value in evaluate(*args).items()
        }
        values.add(expected)
    assert len(values) > 10


# What the functions themselves returned, run on these codes (as +-1 values) and labels (one-hot):
# mean_average_precision of github.com/thuml/HashNet at 48652bf, CalcTopMap of swuxyj/DeepHash-pytorch at
# 15429eb, calculate_mAP of kamwoh/orthohash at a0e80ba. For the second set, which has ties, their sorts were
# made stable.
WITHOUT_TIES = (
    np.array([[0, 0], [255, 255], [0, 0], [255, 255]], np.uint8),
    np.array([0, 0, 2, 3]),
    codes_at([5, 12, 0, 16, 9, 3, 14, 7, 1, 11, 6, 2, 15, 10, 4, 13, 8]),
    np.array([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2, 1, 0, 0, 2, 1, 1]),
)
WITH_TIES = (
    np.array([[0x00], [0xF0], [0x30], [0x00]], np.uint8),
    np.array([0, 1, 2, 3]),
    np.array([[0, 16, 48, 32, 240, 112, 16, 0, 48, 224, 128, 240]], np.uint8).T,
    np.array([1, 0, 1, 0, 0, 1, 0, 0, 2, 1, 2, 1]),
)
GOLDEN = [  # sets, k, HashNet, DeepHash, OrthoHash
    (WITHOUT_TIES, 17, 0.5499247022041139, 0.4124435266530855, 0.4124435266530854),
    (WITHOUT_TIES, 3, 1.0, 0.5, 0.5),
    (WITHOUT_TIES, 4, 0.875, 0.4375, 0.4375),
    (WITH_TIES, 12, 0.5339393939393939, 0.40045454545454545, 0.40045454545454545),
    (WITH_TIES, 3, 0.5555555555555555, 0.41666666666666663, 0.41666666666666663),
    (WITH_TIES, 5, 0.6194444444444445, 0.46458333333333335, 0.46458333333333335),
]


@pytest.mark.parametrize("sets, k, hashnet, deephash, orthohash", GOLDEN)
def test_the_conventions_give_what_the_programs_give(sets, k, hashnet, deephash, orthohash):
    found, m = evaluate(*sets, k=k), len(sets[2])
    for name in {f"map@{k}", "map"} if k == m else {f"map@{k}"}:
        assert found[f"{name}.hashnet"] == pytest.approx(hashnet, rel=1e-14)
        assert found[f"{name}.deephash"] == pytest.approx(deephash, rel=1e-14)
        assert found[f"{name}.orthohash"] == pytest.approx(orthohash, rel=1e-14)


def conventions_slowly(queries, query_labels, database, labels, k):
    """(hashnet, deephash) of the first k, by a stable sort."""
    values = []
    for distances, label in zip(pairwise(queries, database), query_labels):
        hits = (labels[np.argsort(distances, kind="stable")] == label)[:k]
        places = np.flatnonzero(hits) + 1
        values.append(np.mean(np.arange(1, len(places) + 1) / places) if len(places) else None)
    kept = [value for value in values if value is not None]
    return sum(kept) / max(len(kept), 1), sum(kept) / len(values)


@pytest.mark.parametrize("num_bits", [3, 11, 70, 260])
def test_conventions_on_tied_codes(num_bits):
    sets = random_sets(60, 500, num_bits, 40, num_bits)
    missing = sets[3] == sets[1][0]
    sets[3][missing] = sets[1][0] + 1000  # a query without relevant items
    for k in (1, 10, 400):
        found = evaluate(*sets, k=k)
        for name, first in (("map", 500), (f"map@{k}", k)):
            hashnet, deephash = conventions_slowly(*sets, first)
            assert found[f"{name}.hashnet"] == pytest.approx(hashnet, rel=1e-12)
            assert found[f"{name}.deephash"] == pytest.approx(deephash, rel=1e-12)
            assert found[f"{name}.orthohash"] == found[f"{name}.deephash"]
            assert found[f"{name}.strict"] <= found[name] and found[f"{name}.strict"] <= deephash + 1e-12
    assert 0 < found["without_relevant"] < 1


# ---- properties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", [5, 24, 64])
def test_neither_a_mask_nor_the_order_of_the_database_matters(num_bits):
    queries, query_labels, database, labels = random_sets(40, 300, num_bits, 7, 1)
    found = evaluate(queries, query_labels, database, labels, k=20)
    rng = np.random.default_rng(2)
    mask = np.packbits(rng.random(num_bits) < 0.5)
    assert evaluate(queries ^ mask, query_labels, database ^ mask, labels, k=20) == found
    order, independent = rng.permutation(300), [name.replace("K", "20") for name in TIED]
    shuffled = evaluate(queries, query_labels, database[order], labels[order], k=20)
    assert {n: v for n, v in shuffled.items() if n not in independent} == {
        n: v for n, v in found.items() if n not in independent
    }
    assert num_bits > 5 or any(shuffled[name] != found[name] for name in independent)


@pytest.mark.parametrize("num_bits, num_classes", [(4, 3), (13, 30), (64, 9)])
def test_leave_one_out_equals_removing_each_query(num_bits, num_classes):
    codes, labels, _, _ = random_sets(60, 1, num_bits, num_classes, 5)
    labels[7] = 99  # alone in its class
    together = rank(codes, labels, codes, labels, 10, leave_one_out=True, neighbours=4)
    assert together.num_items == 59
    for i in range(60):
        rest = np.arange(60) != i
        alone = rank(codes[i : i + 1], labels[i : i + 1], codes[rest], labels[rest], 10, neighbours=4)
        for name in ("total", "relevant", "knn_right", "precisions", "hits"):
            assert np.array_equal(getattr(together, name)[i], getattr(alone, name)[0]), name
    assert np.isnan(together.average_precisions()[7]) and 0 < together.knn_right.mean() < 1


def test_tensors_arrays_and_any_number_of_threads_give_the_same():
    sets = random_sets(300, 5000, 20, 10, 6)
    found, threads = evaluate(*sets), torch.get_num_threads()
    assert evaluate(*map(torch.from_numpy, sets)) == found
    assert evaluate(torch.from_numpy(sets[0]), sets[1].astype(np.uint8), *sets[2:]) == found
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert evaluate(*sets) == found
    finally:
        torch.set_num_threads(threads)


def test_curves_over_many_queries_are_means():
    sets = random_sets(50, 200, 9, 6, 7)
    ranking, ks = rank(*sets, k=200), [1, 3, 50, 200, 999]
    each = [rank(sets[0][i : i + 1], sets[1][i : i + 1], *sets[2:], k=200) for i in range(50)]
    for curve in (lambda one: one.curve(ks), Ranking.by_radius):
        np.testing.assert_allclose(curve(ranking), np.mean([curve(one) for one in each], axis=0), rtol=1e-12)
    precision, recall = ranking.curve(ks)
    assert recall[3] == recall[4] == 1 and precision[3] == precision[4]


# ---- arithmetic --------------------------------------------------------------------------------------------


@given(st.integers(0, 90), st.integers(0, 90))
def test_sums_of_inverses(after, number):
    expected = math.fsum(1 / (after + i) for i in range(1, number + 1))
    assert inverses(np.array(after), np.array(number)) == pytest.approx(expected, rel=1e-14)


def test_no_digits_are_lost_in_large_databases():
    m = 10**7
    far = Ranking(np.array([[m - 1, 1]]), np.array([[0, 1]]), 1, 1, np.array([True]))
    assert far.average_precisions()[0] == pytest.approx(1 / m, rel=1e-9)
    assert far.average_precisions(worst=True)[0] == pytest.approx(1 / m, rel=1e-9)
    tied = Ranking(np.array([[m]]), np.array([[1]]), 1, 1, np.array([True]))
    harmonic = math.log(m) + 0.57721566490153286 + 1 / (2 * m)
    assert tied.average_precisions()[0] == pytest.approx(harmonic / m, rel=1e-12)
    assert tied.average_precisions(worst=True)[0] == pytest.approx(1 / m, rel=1e-9)
    all_relevant = Ranking(np.array([[m // 3, m]]), np.array([[m // 3, m]]), 1, 1, np.array([True]))
    assert all_relevant.average_precisions()[0] == pytest.approx(1, rel=1e-13)


# ---- wrong arguments ---------------------------------------------------------------------------------------

CODES, LABELS = np.zeros((3, 2), np.uint8), np.arange(3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"queries": CODES.astype(np.int32)}, "^queries: expected packed codes uint8"),
        ({"database": CODES[0]}, "^database: expected packed codes uint8"),
        ({"database": CODES.tolist()}, "^database: expected packed codes .* got a list"),
        ({"database": CODES[:, :1]}, "queries have 2 bytes per code, database 1"),
        ({"queries": CODES[:0], "query_labels": LABELS[:0]}, "^queries: holds no codes"),
        ({"database": CODES[:0], "database_labels": LABELS[:0]}, "^database: holds no codes"),
        ({"query_labels": LABELS[:2]}, "^query_labels: expected 3 integers, one for each code"),
        ({"database_labels": LABELS[:2]}, "^database_labels: expected 3 integers, one for each code"),
        ({"database_labels": LABELS - 1}, "^database_labels: expected 0 or more, found -1 to 1"),
        ({"query_labels": LABELS.astype(float)}, "^query_labels: expected 3 integers.* got float64"),
        ({"query_labels": LABELS.astype(np.uint64) + 2**63}, "^query_labels: expected 0 or more, found 92"),
        ({"query_labels": LABELS[:, None]}, r"^query_labels: expected 3 integers.* \[3, 1\]"),
        ({"query_labels": list("abc")}, "^query_labels: expected 3 integers"),
        ({"query_labels": LABELS + 3}, "^query_labels: no query has an item"),
        ({"k": 0}, "^k: expected 1 to 2147483647, got 0"),
        ({"k": 2.0}, "^k: expected an integer"),
        ({"neighbours": 0}, "^neighbours: expected 1 to 2147483647"),
        ({"leave_one_out": True, "queries": CODES + 1}, "^queries: with leave_one_out"),
        ({"leave_one_out": True, "query_labels": LABELS[::-1]}, "^queries: with leave_one_out"),
        ({"leave_one_out": True, "queries": CODES[:2], "query_labels": LABELS[:2]}, "^queries: with leave"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"queries": CODES, "query_labels": LABELS, "database": CODES, "database_labels": LABELS}
    assert evaluate(**arguments)["knn@10"] == 1 / 3
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments | changes)


def test_one_item_cannot_be_left_out_of_itself():
    with pytest.raises(ValueError, match="2 codes or more, got 1"):
        rank(CODES[:1], LABELS[:1], CODES[:1], LABELS[:1], leave_one_out=True)


def test_a_random_order_of_the_database_changes_the_conventions_alone():
    rng = np.random.default_rng(5)
    labels = np.sort(rng.integers(0, 4, 300))  # class after class
    codes = np.packbits(rng.random((300, 8)) < 0.2 + 0.2 * labels[:, None], axis=1)
    for queries, leave_one_out in ((codes[::7], False), (codes, True)):
        sets = (queries, labels[::7] if len(queries) < 300 else labels, codes, labels)
        plain = rank(*sets, k=20, leave_one_out=leave_one_out)
        shuffled = rank(*sets, k=20, leave_one_out=leave_one_out, shuffle=1)
        for name in ("total", "relevant", "knn_right"):  # by query, in the order of the queries
            assert np.array_equal(getattr(plain, name), getattr(shuffled, name)), name
        ours, other = plain.metrics(), shuffled.metrics()
        changed = {name for name in ours if ours[name] != other[name]}
        assert changed == {
            f"{m}.{c}" for m in ("map", "map@20") for c in ("hashnet", "deephash", "orthohash")
        }
        order = np.random.default_rng(1).permutation(300)
        if not leave_one_out:
            again = rank(*sets[:2], codes[order], labels[order], k=20).metrics()
            assert {name: again[name] for name in changed} == {name: other[name] for name in changed}
    with pytest.raises(ValueError, match="shuffle: expected 0 or more"):
        rank(codes, labels, codes, labels, shuffle=-1)
