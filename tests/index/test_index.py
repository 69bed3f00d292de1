import copy
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import llc
from tests.conftest import ROOT
from tests.index.naive import Naive, clustered_codes, random_codes


def assert_equal(index, naive, queries, rng):
    """Whether an index answers every question as the naive one does."""
    ids = np.array(sorted(naive.rows), np.int64)
    assert len(index) == len(ids)
    np.testing.assert_array_equal(index.ids, ids)
    shuffled = rng.permutation(ids)
    assert index.get(shuffled).tobytes() == b"".join(naive.rows[id][0].tobytes() for id in shuffled.tolist())
    records = index.records(shuffled)
    assert records.files == [naive.rows[id][2] for id in shuffled.tolist()]
    assert [index.class_names[label] if label >= 0 else "" for label in records.labels] == [
        naive.rows[id][1] for id in shuffled.tolist()
    ]
    for method in ("auto", "tables", "scan"):
        for k in (1, 3, len(ids) + 2):
            for ours, theirs in zip(index.search(queries, k, method=method), naive.search(queries, k)):
                np.testing.assert_array_equal(ours, theirs)
        radius = index.num_bits // 4
        for ours, theirs in zip(
            index.range_search(queries, radius, method=method), naive.range_search(queries, radius)
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_bits", [1, 12, 20, 64, 70])
def test_any_history_equals_a_dictionary(num_bits, tmp_path):
    """Adds, removals, saves, reopening, in an order by chance; ids that go up, and ids that do not."""
    rng = np.random.default_rng(num_bits)
    index, naive, path = llc.Index(num_bits), Naive(num_bits), tmp_path / "x.index"
    queries = random_codes(rng, 3, num_bits)
    for step in range(40):
        action = rng.choice(["add", "add", "add with ids", "remove", "save", "open", "optimize", "ask"])
        if action.startswith("add"):
            n = int(rng.integers(0, 40))
            codes, ids = clustered_codes(rng, n, num_bits, 4), None
            if action == "add with ids":
                wanted = rng.integers(0, 100_000, n)
                ids = rng.permutation(np.setdiff1d(wanted, np.array(list(naive.rows), np.int64)))
                codes = codes[: len(ids)]
            names = ["dog", f"class {step % 3}", "cat"]
            labels = rng.integers(-1, 3, len(codes))
            files = [f"{step}/päth {i}.jpg" if i % 3 else "" for i in range(len(codes))]
            added = index.add(codes, ids, labels=labels, class_names=names, files=files)
            naive.add(added, codes, [names[label] if label >= 0 else "" for label in labels], files)
        elif action == "remove" and naive.rows:
            gone = rng.choice(list(naive.rows), min(len(naive.rows), int(rng.integers(0, 30))), replace=False)
            assert index.remove(gone) == len(gone)
            naive.remove(gone)
        elif action == "save":
            index.save(path)
        elif action == "open" and path.exists():
            index.save(path)
            index = llc.Index.open(path)
        elif action == "optimize":
            index.optimize()
        elif action == "ask":
            assert_equal(index, naive, queries, rng)
    assert len(naive.rows) > 20
    assert_equal(index, naive, queries, rng)
    index.optimize()
    assert_equal(index, naive, queries, rng)
    assert index.stats()["num_removed"] == 0
    if path.exists():
        index.save()
        assert_equal(llc.Index.open(path), naive, queries, rng)


def test_a_large_index_with_tables_equals_one_without(tmp_path):
    """Many rows, so that tables are made, and removed rows, filters and several segments meet them."""
    rng = np.random.default_rng(0)
    codes, queries = (
        clustered_codes(rng, 60_000, 64),
        clustered_codes(np.random.default_rng(0), 60_020, 64)[-20:],
    )
    ids = rng.permutation(1 << 20)[:60_000]
    labels = rng.integers(0, 5, len(codes))
    index = llc.Index(64)
    index.add(codes[:50_000], ids[:50_000], labels=labels[:50_000], class_names=list("abcde"))
    assert index.stats()["segments"][0]["tables"]  # else this tests nothing
    index.add(codes[50_000:], ids[50_000:], labels=labels[50_000:], class_names=list("abcde"))
    gone = rng.choice(ids, 5000, replace=False)
    index.remove(gone)
    there = ~np.isin(ids, gone)
    every = llc.hamming.pairwise(queries, codes)

    def expected(allowed, k):
        rows = np.flatnonzero(allowed)
        order = [rows[np.lexsort((ids[rows], distances[rows]))[:k]] for distances in every]
        return np.stack([every[i][best] for i, best in enumerate(order)]), ids[np.stack(order)]

    for method in ("auto", "tables", "scan"):
        for name, filter, allowed in [
            ("all", None, there),
            ("label", 2, there & (labels == 2)),
            ("names", ["a", "e"], there & np.isin(labels, [0, 4])),
            ("few ids", ids[:300], there & (np.arange(60_000) < 300)),
            ("many ids", ids[:40_000], there & (np.arange(60_000) < 40_000)),
            ("mask", np.isin(index.ids, ids[labels == 1]), there & (labels == 1)),
        ]:
            distances, found = expected(allowed, 100)
            ours = index.search(queries, 100, filter=filter, method=method)
            np.testing.assert_array_equal(ours[0], distances, name)
            np.testing.assert_array_equal(ours[1], found, name)
            lims, near, near_ids = index.range_search(queries, 6, filter=filter, method=method)
            within = (every <= 6) & allowed
            np.testing.assert_array_equal(np.diff(lims), within.sum(1), name)
            assert lims[-1] > 20
            np.testing.assert_array_equal(near[: lims[1]], np.sort(every[0][within[0]]))
            assert set(near_ids[: lims[1]]) == set(ids[within[0]])
    index.save(tmp_path / "x")
    opened = llc.Index.open(tmp_path / "x")
    np.testing.assert_array_equal(opened.search(queries, 50)[1], index.search(queries, 50)[1])


def test_removed_ids_are_not_given_again(tmp_path):
    index = llc.Index(8)
    index.add(np.zeros((3, 1), np.uint8))
    index.remove([1, 2])
    index.save(tmp_path / "x")
    index = llc.Index.open(tmp_path / "x")
    assert index.add(np.zeros((2, 1), np.uint8)).tolist() == [3, 4]
    assert index.add(np.ones((1, 1), np.uint8), [1]).tolist() == [1]  # unless they are asked for
    assert 1 in index and 2 not in index and "1" not in index and -1 not in index
    assert index.ids.tolist() == [0, 1, 3, 4] and index.get([1]).tolist() == [[1]]


def test_ids_above_2_to_the_53_and_the_highest(tmp_path):
    index, high = llc.Index(16), np.array([2**53 + 1, 2**53, 2**63 - 2])
    index.add(np.array([[1, 0], [2, 0], [3, 0]], np.uint8), high)
    index.save(tmp_path / "x")
    index = llc.Index.open(tmp_path / "x")
    assert index.ids.tolist() == sorted(high.tolist())
    assert index.search(np.array([[3, 0]], np.uint8), 3)[1].tolist() == [[2**63 - 2, 2**53, 2**53 + 1]]
    with pytest.raises(ValueError, match="there are no 1 free ids"):
        index.add(np.zeros((1, 2), np.uint8))
    assert len(index) == 3


def test_the_highest_id_alone_is_opened_again(tmp_path):
    index = llc.Index(8)
    index.add(np.zeros((1, 1), np.uint8), [2**63 - 2])
    index.save(tmp_path / "x")
    assert llc.Index.open(tmp_path / "x").ids.tolist() == [2**63 - 2]


def test_what_add_returns_is_not_the_indexs_own():
    index = llc.Index(8)
    for given in (None, [10, 11]):
        ids = index.add(np.zeros((2, 1), np.uint8), given)
        ids += 100
    assert index.ids.tolist() == [0, 1, 10, 11]


def test_rows_are_replaced_in_one_step():
    index = llc.Index(8)
    index.add(
        np.array([[1], [2], [3]], np.uint8), files=["a", "b", "c"], labels=[0, 1, 0], class_names=["x", "y"]
    )
    index.replace(
        [2, 0], np.array([[30], [10]], np.uint8), files=["C", "A"], labels=[0, 0], class_names=["z"]
    )
    assert index.get([0, 1, 2]).tolist() == [[10], [2], [30]] and len(index) == 3
    records = index.records([0, 1, 2])
    assert records.files == ["A", "b", "C"] and records.labels.tolist() == [2, 1, 2]
    assert index.class_names == ("x", "y", "z") and index.next_id == 3
    for ids, message in ([0, 0], "each may be given once"), ([0, 9], "1 are not in the index, such as 9"):
        with pytest.raises(ValueError, match=message):
            index.replace(ids, np.zeros((2, 1), np.uint8))
    assert index.get([0]).tolist() == [[10]]


def test_ids_are_selected_by_filters_and_files_are_asked_for():
    index = llc.Index(8)
    index.add(np.zeros((4, 1), np.uint8), [7, 3, 5, 9], labels=[0, 1, 0, -1], class_names=["x", "y"],
              files=["ab", "b", "xab", ""])  # fmt: skip
    index.remove([5])
    assert index.select("x").tolist() == [7] and index.select(["x", "y"]).tolist() == [3, 7]
    assert index.select(-1).tolist() == [9] and index.select([9, 3, 4]).tolist() == [3, 9]
    assert index.select(np.array([True, False, True])).tolist() == [3, 9]
    assert index.has_file("ab") and index.has_file("b") and not index.has_file("xab")
    assert not index.has_file("a") and not index.has_file("")
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(index)


def test_an_empty_index_answers(tmp_path):
    index, query = llc.Index(9), np.zeros((2, 2), np.uint8)
    index.save(tmp_path / "x")
    for one in (index, llc.Index.open(tmp_path / "x")):
        assert len(one) == 0 and one.ids.shape == (0,) and list(one.batches()) == []
        distances, ids = one.search(query, k=4)
        assert distances.dtype == np.int32 and ids.dtype == np.int64 and ids.shape == (2, 4)
        assert (distances == -1).all() and (ids == -1).all()
        assert one.range_search(query, 9)[0].tolist() == [0, 0, 0]
        assert one.search(query[:0], 3)[1].shape == (0, 3)
        assert one.add(query[:0]).shape == (0,) and len(one) == 0
        assert one.get([]).shape == (0, 2) and one.remove([]) == 0


def test_tensors_are_taken_and_what_is_added_is_copied():
    index, codes = llc.Index(8), np.array([[1], [2]], np.uint8)
    index.add(codes)
    codes[:] = 255
    assert index.get([0, 1]).tolist() == [[1], [2]]
    index.add(torch.tensor([[7]], dtype=torch.uint8), torch.tensor([9]))
    assert index.search(torch.tensor([[7]], dtype=torch.uint8), 1)[1].tolist() == [[9]]
    index.add(np.array([[1, 5], [2, 6]], np.uint8)[:, 1:], [20, 10])  # not contiguous, not in order
    assert index.get([10, 20]).tolist() == [[6], [5]]


def test_batches_are_in_order_and_no_larger_than_asked():
    rng = np.random.default_rng(1)
    index, ids = llc.Index(16), rng.permutation(3000)
    for part in np.array_split(ids, 7):  # segments whose ids interleave
        index.add(random_codes(rng, len(part), 16), part, files=[f"{id}" for id in part.tolist()])
        len(index.ids)
    index.remove(np.arange(500, 1500))
    for size in (1, 64, 1000, 5000):
        batches = list(index.batches(size))
        assert max(len(ids) for ids, _, _ in batches) <= size
        assert np.concatenate([ids for ids, _, _ in batches]).tolist() == [*range(500), *range(1500, 3000)]
        for ids, codes, records in batches[:20]:
            np.testing.assert_array_equal(codes, index.get(ids))
            assert records.files == [str(id) for id in ids.tolist()] == index.records(ids).files


def test_files_are_found_by_name():
    index = llc.Index(8)
    code = np.zeros((3, 1), np.uint8)
    index.add(code, files=["a", "b", ""], sizes=[1, 2, 3], modified=[10, 20, 30])
    index.add(code[:2], files=["c\udcff", "a"])
    assert index.find_files(["a", "x", "c\udcff", "b", ""]).tolist() == [0, -1, 3, 1, -1]
    index.remove([0])
    assert index.find_files(["a", "b"]).tolist() == [4, 1]
    records = index.records([4, 1, 2])
    assert records.files == ["a", "b", ""] and records.sizes.tolist() == [-1, 2, 3]
    assert records.modified.tolist() == [-1, 20, 30]


def test_searches_go_on_while_rows_are_added_and_removed():
    """Every answer is that of the index as it was at some moment: rows of one addition come together."""
    index, stop, wrong = llc.Index(32), threading.Event(), []
    query = np.zeros((1, 4), np.uint8)

    def search():
        while not stop.is_set():
            found = index.search(query, 64)[1][0]
            found = found[found >= 0]
            if len(found) % 4 or (found.reshape(-1, 4) % 4 != np.arange(4)).any():
                wrong.append(found)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(200):
        ids = index.add(np.zeros((4, 4), np.uint8))
        if step % 3 == 2:
            index.remove(ids)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(index) == 4 * (200 - 66)


def test_stats_count_rows_labels_and_bytes():
    index = llc.Index(8)
    index.add(np.zeros((5, 1), np.uint8), labels=[0, -1, 0, 1, 1], files=["abc"] * 5)
    index.remove([3])
    stats = index.stats()
    assert (stats["num_codes"], stats["num_removed"], stats["num_labelled"], stats["next_id"]) == (4, 1, 3, 5)
    [segment] = stats["segments"]
    assert segment["bytes"] == stats["bytes"] == 5 * (1 + 4 + 3 + 8) + 1  # code, label, name, end; bitmap
    assert segment["tables"] == [] and segment["file"] is None


CODE = np.zeros((2, 2), np.uint8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda i: i.add(CODE[:, :1]), "codes: expected packed codes uint8 \\[n, 2\\], for 12 bits"),
        (lambda i: i.add(CODE.astype(int)), "codes: expected packed codes uint8"),
        (lambda i: i.add([[0, 0]]), "codes: .* got a list"),
        (lambda i: i.add(CODE + 1), "codes: the padding bits after the 12 bits"),
        (lambda i: i.add(CODE, [1]), "ids: expected 2, one for each code, got 1"),
        (lambda i: i.add(CODE, [5, 5]), "ids: each may be given once, but 5"),
        (lambda i: i.add(CODE, [5, 1]), "ids: 1 are in the index already, such as 1"),
        (lambda i: i.add(CODE, [5, -1]), "ids: expected 0 to"),
        (lambda i: i.add(CODE, [5, 2**63 - 1]), "ids: expected 0 to"),
        (lambda i: i.add(CODE, [0.5, 1]), "ids: expected integers"),
        (lambda i: i.add(CODE, labels=[1]), "labels: expected 2 integers"),
        (lambda i: i.add(CODE, labels=[-2, 0]), "labels: expected -1 to"),
        (lambda i: i.add(CODE, labels=[0, 2], class_names=["a", "b"]), "labels: expected -1 to 1"),
        (
            lambda i: i.add(CODE, labels=[0, 0], class_names=["a", "a"]),
            "class_names: expected texts, each once",
        ),
        (lambda i: i.add(CODE, files=["a"]), "files: expected 2"),
        (lambda i: i.add(CODE, files=["a", 1]), "files: expected texts, got 1"),
        (lambda i: i.add(CODE, files=["a", "b"], sizes=[1]), "sizes: expected 2 integers"),
        (lambda i: i.remove([0, 7, 8]), "ids: 2 are not in the index, such as 7"),
        (lambda i: i.remove([0], missing="no"), "missing: expected one of error, ignore"),
        (lambda i: i.get([7]), "ids: 1 are not in the index, such as 7"),
        (lambda i: i.records([7]), "ids: 1 are not in the index"),
        (lambda i: i.search(CODE[0]), "queries: expected packed codes"),
        (lambda i: i.search(CODE, 0), "k: expected 1 or more, got 0"),
        (lambda i: i.search(CODE, 1, method="fast"), "method: expected one of auto, tables, scan"),
        (lambda i: i.search(CODE, 1, num_threads=0), "num_threads: expected 1 or more"),
        (lambda i: i.search(CODE, 1, filter=[True]), "filter: expected a mask with one bool for each"),
        (lambda i: i.search(CODE, 1, filter="dog"), "filter: the index has no class 'dog'"),
        (lambda i: i.add(CODE, class_names=["a"]), "class_names: they name labels, and there are none"),
        (lambda i: i.search(CODE, 1, filter=1.5), "filter: expected ids"),
        (lambda i: i.search(CODE, 1, filter=[-1]), "filter: expected 0 to"),
        (lambda i: i.range_search(CODE, -1), "radius: expected 0 or more, got -1"),
        (lambda i: i.save(), "path: this index was not saved before"),
        (lambda i: i.refresh(), "refresh: this index has no folder"),
        (lambda i: llc.Index(0), "num_bits: expected 1 to 4096"),
        (lambda i: llc.Index(4097), "num_bits: expected 1 to 4096"),
    ],
)
def test_wrong_arguments_are_named_and_change_nothing(call, message):
    index = llc.Index(12)
    index.add(CODE)
    with pytest.raises(ValueError, match=message):
        call(index)
    assert len(index) == 2 and index.next_id == 2 and index.class_names == ()


def test_labels_without_names_are_not_mixed_with_names():
    index = llc.Index(8)
    index.add(np.zeros((1, 1), np.uint8), labels=[3])
    with pytest.raises(
        ValueError, match="class_names: the index's labels, up to 3, are numbers without names"
    ):
        index.add(np.zeros((1, 1), np.uint8), labels=[0], class_names=["a"])
    assert index.search(np.zeros((1, 1), np.uint8), 2, filter=3)[1].tolist() == [[0, -1]]
    named = llc.Index(8)
    named.add(np.zeros((1, 1), np.uint8), labels=[0], class_names=["a"])
    with pytest.raises(ValueError, match="filter: expected a label from -1 to 0, got 1"):
        named.search(np.zeros((1, 1), np.uint8), 2, filter=1)


def test_segments_are_merged_as_they_become_many_but_not_beyond_what_memory_holds(monkeypatch):
    def sizes(index):
        return [segment["num_codes"] for segment in index.stats()["segments"]]

    index = llc.Index(8)
    for _ in range(500):
        index.add(np.zeros((1, 1), np.uint8))
        len(index.ids)  # so that it becomes a segment
    assert sum(sizes(index)) == 500 and len(sizes(index)) <= 6
    assert all(one >= 4 * other for one, other in zip(sizes(index), sizes(index)[1:]))
    monkeypatch.setattr("llc.index.index.MERGED_BYTES", 1000)
    for _ in range(10):
        index.add(np.zeros((300, 1), np.uint8))
        len(index.ids)
    assert max(sizes(index)) == 900 and sum(sizes(index)) == 3500
    index.optimize()
    assert sizes(index) == [3500]


def test_a_long_answer_takes_no_more_memory_with_many_threads():
    """Where threads divide the codes, each keeps what it finds for every query; 16 once took 360 MB."""
    script = r"""
import re, numpy, llc
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])  # KB
rng = numpy.random.default_rng(0)
index = llc.Index(num_bits=64)
index.add(rng.integers(0, 256, (1_100_000, 8), numpy.uint8))
queries = rng.integers(0, 256, (64, 8), numpy.uint8)
index.search(queries[:1], k=1, method="scan")
before = peak()
distances, _ = index.search(queries, k=15_000, num_threads=16, method="scan")
assert (distances[:, 1:] >= distances[:, :-1]).all()
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 256 * 1024  # KB
