"""What must hold between indexes, whatever they answer: which changes of codes and ids keep the answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llc
from llc.index import exports, imports
from llc.native import index as native
from tests.index.naive import clustered_codes, random_codes

METHODS = ("auto", "tables", "scan")


@pytest.fixture(autouse=True, scope="module")
def tables_from_64_codes_on():
    """Small indexes have tables too, and so hold their codes in another order than that of ids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "MIN_TABLE_CODES", 64)
        yield


def index_of(codes, num_bits, ids=None, parts=1):
    """An index; parts: how many segments are made on the way."""
    index = llc.Index(num_bits)
    for part in np.array_split(np.arange(len(codes)), parts):
        index.add(codes[part], None if ids is None else ids[part])
        index.search(codes[:1], 1)
    if len(codes) >= 64 * parts:
        assert any(segment["tables"] for segment in index.stats()["segments"])
    return index


def codes_and_queries(rng, n, num_bits):
    """Clustered codes, as learnt ones are, with equal ones among them; queries near to them and far away."""
    codes = clustered_codes(rng, n, num_bits)
    near = codes[rng.integers(n, size=5)] ^ random_codes(rng, 5, num_bits, 0.04)
    return codes, np.concatenate([near, random_codes(rng, 3, num_bits)])


def assert_same_answers(one, other, queries, other_queries=None, k=40):
    """Whether two indexes answer alike, by every method: distances and ids, in order."""
    other_queries = queries if other_queries is None else other_queries
    for method in METHODS:
        ours, theirs = one.search(queries, k, method=method), other.search(other_queries, k, method=method)
        for name, a, b in zip(("distances", "ids"), ours, theirs):
            np.testing.assert_array_equal(a, b, f"search, {method}: {name}")
        for radius in (0, 2, one.num_bits // 3):
            ours = one.range_search(queries, radius, method=method)
            theirs = other.range_search(other_queries, radius, method=method)
            for name, a, b in zip(("lims", "distances", "ids"), ours, theirs):
                np.testing.assert_array_equal(a, b, f"range_search {radius}, {method}: {name}")


settings_of_an_index = {
    "n": st.integers(1, 3000),
    "num_bits": st.integers(1, 140),
    "seed": st.integers(0, 1 << 30),
}


@given(**settings_of_an_index)
def test_one_mask_over_all_codes_and_queries_changes_nothing(n, num_bits, seed):
    rng = np.random.default_rng(seed)
    codes, queries = codes_and_queries(rng, n, num_bits)
    mask = random_codes(rng, 1, num_bits)
    plain = index_of(codes, num_bits)
    masked = index_of(codes ^ mask, num_bits, parts=1 + seed % 3)
    assert_same_answers(plain, masked, queries, queries ^ mask)


@given(**settings_of_an_index)
def test_the_order_of_bits_does_not_matter(n, num_bits, seed):
    rng = np.random.default_rng(seed)
    codes, queries = codes_and_queries(rng, n, num_bits)
    order = rng.permutation(num_bits)

    def permuted(packed):
        return np.packbits(np.unpackbits(packed, axis=1, count=num_bits)[:, order], axis=1)

    plain, other = index_of(codes, num_bits), index_of(permuted(codes), num_bits)
    assert_same_answers(plain, other, queries, permuted(queries))


@given(**settings_of_an_index)
def test_bits_that_all_codes_share_do_not_matter(n, num_bits, seed):
    """Neither where they are: before all others, behind them, or both."""
    rng = np.random.default_rng(seed)
    codes, queries = codes_and_queries(rng, n, num_bits)
    before, behind = random_codes(rng, 1, 11), random_codes(rng, 1, 6)

    def longer(packed):
        bits = np.unpackbits(packed, axis=1, count=num_bits)
        ends = [
            np.unpackbits(end, axis=1, count=c).repeat(len(packed), 0)
            for end, c in ((before, 11), (behind, 6))
        ]
        return np.packbits(np.concatenate([ends[0], bits, ends[1]], axis=1), axis=1)

    plain, other = index_of(codes, num_bits), index_of(longer(codes), num_bits + 17)
    for k in (1, 40):
        for ours, theirs in zip(plain.search(queries, k), other.search(longer(queries), k)):
            np.testing.assert_array_equal(ours, theirs)


@given(**settings_of_an_index)
def test_ids_that_grow_alike_give_the_same_answers(n, num_bits, seed):
    """Ties go to the lower id, so only the order of ids matters, up to the highest ids that there are."""
    rng = np.random.default_rng(seed)
    codes, queries = codes_and_queries(rng, n, num_bits)
    ids = np.unique(rng.integers(1 << 53, (1 << 63) - 1, n + 100))[:n]
    ids[-1] = (1 << 63) - 2
    order = rng.permutation(n)
    plain = index_of(codes, num_bits)
    other = index_of(codes[order], num_bits, ids[order], parts=3)
    for method in METHODS:
        distances, found = plain.search(queries, 40, method=method)
        other_distances, other_found = other.search(queries, 40, method=method)
        np.testing.assert_array_equal(distances, other_distances)
        np.testing.assert_array_equal(np.where(found < 0, -1, ids[found]), other_found)


@pytest.mark.parametrize("num_bits", [8, 20, 64, 130])
@pytest.mark.parametrize("method", METHODS)
def test_the_nearest_100_begin_the_nearest_10000(num_bits, method):
    rng = np.random.default_rng(num_bits)
    codes, queries = codes_and_queries(rng, 12_000, num_bits)
    index = index_of(codes, num_bits, parts=2)
    all_distances, all_ids = index.search(queries, 10_000, method=method)
    for k in (1, 10, 100, 1000, 9_999):
        distances, ids = index.search(queries, k, method=method)
        np.testing.assert_array_equal(distances, all_distances[:, :k])
        np.testing.assert_array_equal(ids, all_ids[:, :k])
    # and range_search is the part of it that is near enough
    radius = int(np.median(all_distances[:, 500]))
    lims, distances, ids = index.range_search(queries, radius, method=method)
    for i, row in enumerate(all_distances):
        count = lims[i + 1] - lims[i]
        near = row <= radius
        assert count == near.sum() or count >= 10_000
        shown = min(count, 10_000)
        np.testing.assert_array_equal(ids[lims[i] : lims[i] + shown], all_ids[i, :shown])
        np.testing.assert_array_equal(distances[lims[i] : lims[i] + shown], row[:shown])


@pytest.mark.parametrize("num_bits", [5, 20, 64, 77])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_any_history_an_index_equals_one_built_afresh(num_bits, seed, tmp_path):
    rng = np.random.default_rng([num_bits, seed])
    index, path = llc.Index(num_bits), tmp_path / "x.index"
    rows = {}  # id -> (code, class, file)
    names = ["a", "b", "c"]
    for step in range(25):
        n = int(rng.integers(0, 300))
        ids = np.unique(rng.integers(0, (1 << 63) - 1, n))
        ids = rng.permutation(np.array([id for id in ids.tolist() if id not in rows], np.int64))
        codes, labels = clustered_codes(rng, len(ids), num_bits, 5), rng.integers(-1, 3, len(ids))
        files = [f"{step}/{i}" for i in range(len(ids))]
        index.add(codes, ids, labels=labels, class_names=names, files=files)
        rows |= {
            id: (code, names[label] if label >= 0 else "", file)
            for id, code, label, file in zip(ids.tolist(), codes, labels, files)
        }
        gone = rng.permutation(np.array(list(rows), np.int64))[: int(rng.integers(0, 1 + len(rows) // 3))]
        index.remove(gone)
        for id in gone.tolist():
            del rows[id]
        if step % 7 == 3:  # saved, and opened by another reader, and by the next writer
            index.save(path)
            index.close()
            index = llc.Index.open(path, write=True)
    ids = np.array(sorted(rows), np.int64)
    fresh = llc.Index(num_bits)
    classes = [rows[id][1] for id in ids.tolist()]
    fresh.add(
        np.stack([rows[id][0] for id in ids.tolist()]),
        ids,
        labels=[names.index(name) if name else -1 for name in classes],
        class_names=names,
        files=[rows[id][2] for id in ids.tolist()],
    )
    index.save(path)
    index.close()
    optimized = llc.Index.open(path)
    queries = np.concatenate([random_codes(rng, 3, num_bits), index.get(ids[:5])])
    optimized.optimize()
    for other in (index, llc.Index.open(path), optimized):
        np.testing.assert_array_equal(other.ids, fresh.ids)
        assert len(other) == len(fresh)
        shuffled = rng.permutation(ids)
        np.testing.assert_array_equal(other.get(shuffled), fresh.get(shuffled))
        records = other.records(shuffled)
        assert records.files == [rows[id][2] for id in shuffled.tolist()]
        assert [other.class_names[label] if label >= 0 else "" for label in records.labels] == [
            rows[id][1] for id in shuffled.tolist()
        ]
        assert_same_answers(fresh, other, queries)
        for ours, theirs in zip(fresh.search(queries, 9, filter="b"), other.search(queries, 9, filter="b")):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_bits", [1, 20, 64])
@pytest.mark.parametrize("form", [None, *exports.FORMS])
def test_ids_above_2_to_the_53_survive(form, num_bits, tmp_path):
    """Neighbours of these differ by 1, which a float64 cannot tell."""
    rng = np.random.default_rng(num_bits)
    ids = np.concatenate([(1 << bits) - 1 + np.arange(3) for bits in range(53, 63)] + [[(1 << 63) - 2]])
    codes = random_codes(rng, len(ids), num_bits)
    index = index_of(codes, num_bits, ids)
    if form is None:
        index.save(tmp_path / "x")
        other = llc.Index.open(tmp_path / "x")
    else:
        exports.export(index, form, str(tmp_path / "x"))
        says = {} if form in ("lancedb", "parquet", "npz") else {"num_bits": num_bits}
        other = llc.Index(num_bits)
        imports.add_to(other, imports.open_codes(str(tmp_path / "x"), **says))
    assert other.ids.tolist() == sorted(set(ids.tolist())) and len(ids) == len(set(ids.tolist()))
    np.testing.assert_array_equal(other.get(ids), codes)
    assert_same_answers(index, other, random_codes(rng, 4, num_bits))


def test_shards_that_are_merged_answer_as_one_index():
    rng = np.random.default_rng(0)
    codes, queries = codes_and_queries(rng, 5000, 20)
    whole = index_of(codes, 20)
    shards = [llc.Index(20) for _ in range(3)]
    of_shard = rng.integers(3, size=5000)
    for number, shard in enumerate(shards):
        shard.add(codes[of_shard == number], np.flatnonzero(of_shard == number))
    for k in (1, 50, 6000):
        answers = [shard.search(queries, k) for shard in shards]
        distances, ids = (np.concatenate(parts, axis=1) for parts in zip(*answers))
        order = np.lexsort((ids, np.where(ids < 0, 1 << 30, distances)), axis=1)[:, :k]
        expected = whole.search(queries, k)
        np.testing.assert_array_equal(np.take_along_axis(distances, order, 1), expected[0])
        np.testing.assert_array_equal(np.take_along_axis(ids, order, 1), expected[1])
