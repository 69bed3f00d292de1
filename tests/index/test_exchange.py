"""Exports are read by the engines that they are for, with the same neighbours; and imports."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import faiss
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.index import IvfFlat

import llc
from llc import hamming
from llc.code_files import read_codes
from llc.index import exports, imports
from llc.native import index as native
from tests.index.naive import clustered_codes, random_codes

NAMES = ("cat", "dog", "Füße 🐱")
WIDTHS = [1, 12, 20, 64, 77]
FIRST_BIG = 1 << 53  # the first integer after which float64 leaves some out
FORMS = [*exports.FORMS, "lancedb-ivf"]


@pytest.fixture(autouse=True, scope="module")
def tables_from_64_codes_on():
    """Small indexes have tables too, and so hold their codes in another order than that of ids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "MIN_TABLE_CODES", 64)
        yield


def some_ids(rng, n):
    """Small, consecutive ones, ones that float64 would round, and the highest; in no order."""
    low, consecutive = np.arange(n // 3) * 7, FIRST_BIG + 1 + np.arange(n // 3)
    high = (1 << 63) - 2 - 3 * np.arange(n - len(low) - len(consecutive))
    return rng.permutation(np.concatenate([low, consecutive, high]))


def make_index(num_bits=20, n=400, seed=0):
    """With removed rows, several segments, rows without a label or file, and file names of all kinds."""
    rng = np.random.default_rng([seed, num_bits, n])
    index = llc.Index(num_bits)
    ids, codes = some_ids(rng, n + 50), clustered_codes(rng, n + 50, num_bits)
    for part in np.array_split(np.arange(n + 50), 3):
        index.add(
            codes[part],
            ids[part],
            labels=rng.integers(-1, 3, len(part)),
            class_names=NAMES,
            files=[f"träger/{i} 犬.jpg" if i % 3 else "" for i in part.tolist()],
            sizes=rng.integers(-1, 1 << 40, len(part)),
            modified=rng.integers(-1, (1 << 62) + 1, len(part)),
        )
        len(index.search(codes[:1], 1))  # makes a segment of what was added
    index.remove(ids[rng.permutation(n + 50)[:50]])
    assert n < 400 or any(segment["tables"] for segment in index.stats()["segments"])
    return index


@pytest.fixture(params=WIDTHS)
def index(request):
    return make_index(request.param)


def queries_of(index, seed=1):
    """Near some codes of the index, and far from all."""
    rng = np.random.default_rng(seed)
    near = index.get(rng.choice(index.ids, 8)) ^ random_codes(rng, 8, index.num_bits, 0.03)
    return np.concatenate([near, random_codes(rng, 4, index.num_bits)])


def assert_same_neighbours(index, queries, distances, ids):
    """Another engine's answer equals the index's, up to which of the codes that are equally far it names."""
    expected, _ = index.search(queries, ids.shape[1])
    np.testing.assert_array_equal(distances, expected)
    for query, row, found in zip(queries, distances, ids):
        assert len(set(found.tolist())) == len(found)
        bits = np.unpackbits(index.get(found) ^ query, axis=1).sum(1)  # each id is that of a code that far
        np.testing.assert_array_equal(bits, row)


def export(index, form, path):
    to, _, kind = form.partition("-")
    return exports.export(index, to, str(path), kind=kind)


def imported(path, index=None, **flags):
    incoming = imports.open_codes(str(path), **flags)
    if index is None:
        index = llc.Index(incoming.num_bits or 8 * incoming.code_size)
    assert imports.add_to(index, incoming) == incoming.num_codes
    return index


# ---------------------------------------------------------------------------------------- FAISS


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_faiss_finds_the_same(kind, index, tmp_path):
    text = exports.export(index, "faiss", str(tmp_path / "x.faiss"), kind=kind)
    other = faiss.read_index_binary(str(tmp_path / "x.faiss"))
    assert other.d == 8 * index.code_size and other.ntotal == len(index) and str(other.d) in text
    if kind == "ivf":
        assert isinstance(other, faiss.IndexBinaryIVF)
        assert 1 < other.nlist <= len(index) // 40 and other.nprobe == min(other.nlist, 8)
        other.nprobe = other.nlist  # all lists: exact
    else:
        assert isinstance(faiss.downcast_IndexBinary(other.index), faiss.IndexBinaryFlat)
    queries = queries_of(index)
    for k in (30, len(index)):
        distances, ids = other.search(queries, k)
        assert_same_neighbours(index, queries, distances, ids)
    assert np.array_equal(np.sort(ids, axis=1)[0], index.ids) and index.ids[-1] > FIRST_BIG


def test_the_graph_of_faiss_finds_the_same(index, tmp_path):
    exports.export(index, "hnsw", str(tmp_path / "x.faiss"))
    other = faiss.read_index_binary(str(tmp_path / "x.faiss"))
    graph = faiss.downcast_IndexBinary(other.index)
    assert isinstance(graph, faiss.IndexBinaryHNSW) and graph.hnsw.efSearch == 128
    graph.hnsw.efSearch = 10 * len(index)
    queries = queries_of(index)
    distances, ids = other.search(queries, 30)
    if index.num_bits >= 64:
        assert_same_neighbours(index, queries, distances, ids)
    else:  # of codes of which many are equal, the graph has parts that a search does not reach
        for query, row, found in zip(queries, distances, ids):
            row, found = row[found >= 0], found[found >= 0]
            np.testing.assert_array_equal(np.unpackbits(index.get(found) ^ query, axis=1).sum(1), row)
    assert ids.max() > FIRST_BIG


def test_faiss_settings_find_nearly_all(tmp_path):
    rng = np.random.default_rng(0)
    index = llc.Index(64)
    index.add(clustered_codes(rng, 20_000, 64, 300, 0.08), 1 + rng.permutation(20_000))
    queries = index.get(np.arange(1, 200)) ^ random_codes(rng, 199, 64, 0.02)
    expected, _ = index.search(queries, 10)
    for kind in ("hnsw", "ivf"):
        exports.export(index, kind, str(tmp_path / kind))
        distances, _ = faiss.read_index_binary(str(tmp_path / kind)).search(queries, 10)
        assert 0.97 < (distances == expected).mean()


def test_lists_of_faiss_and_lancedb(tmp_path):
    index = make_index(64, 300)
    exports.export(index, "ivf", str(tmp_path / "x"), lists=7)
    assert faiss.read_index_binary(str(tmp_path / "x")).nlist == 7
    for to in ("faiss", "lancedb"):
        with pytest.raises(llc.UserError, match="--lists=301: .*300.*fewer"):
            exports.export(index, to, str(tmp_path / "y"), kind="ivf", lists=301)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# ---------------------------------------------------------------------------------------- LanceDB


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_lancedb_finds_the_same(kind, index, tmp_path):
    text = exports.export(index, "lancedb", str(tmp_path / "db"), kind=kind, lists=5 * (kind == "ivf"))
    assert text.startswith("table codes, 400 codes")
    table = lancedb.connect(tmp_path / "db").open_table("codes")
    assert [i.index_type for i in table.list_indices()] == ["IvfFlat"] * (kind == "ivf")
    queries = queries_of(index)
    for k in (30, len(index)):
        answers = []
        for query in queries:
            search = table.search(query, vector_column_name="code").distance_type("hamming").limit(k)
            answers.append((search.nprobes(5) if kind == "ivf" else search).to_arrow())
        distances = np.array([answer["_distance"].to_pylist() for answer in answers])
        ids = np.array([answer["id"].to_pylist() for answer in answers])
        assert_same_neighbours(index, queries, distances, ids)
    assert np.array_equal(np.sort(ids, axis=1)[0], index.ids) and index.ids[-1] > FIRST_BIG

    cats = table.search(queries[0], vector_column_name="code").where("class_name = 'cat'", prefilter=True)
    distances, _ = index.search(queries[:1], 9, filter="cat")
    found = cats.distance_type("hamming").nprobes(5).limit(9).to_arrow()
    assert found["_distance"].to_pylist() == distances[0].tolist()
    assert index.records(np.array(found["id"])).files == [text or "" for text in found["file"].to_pylist()]


def test_lancedb_takes_a_second_table_and_an_empty_folder(tmp_path):
    first, second = make_index(20, 30), make_index(64, 40)
    (tmp_path / "db").mkdir()
    export(first, "lancedb", tmp_path / "db")
    exports.export(second, "lancedb", str(tmp_path / "db"), table="more")
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["codes.lance", "more.lance"]
    assert len(imported(tmp_path / "db", table="more")) == 40
    assert len(imported(tmp_path / "db" / "codes.lance")) == 30
    with pytest.raises(llc.UserError, match="has a table more already"):
        exports.export(second, "lancedb", str(tmp_path / "db"), table="more")
    with pytest.raises(llc.UserError, match="several tables; --table names one of: codes, more"):
        imports.open_codes(str(tmp_path / "db"))
    with pytest.raises(llc.UserError, match="no table nope; --table"):
        imports.open_codes(str(tmp_path / "db"), table="nope")


def test_an_address_of_a_store(tmp_path):
    """LanceDB takes file:// as it takes s3://, without a temporary folder and a rename."""
    index, place = make_index(20, 50), f"file://{tmp_path}/db"
    exports.export(index, "lancedb", place, kind="ivf")
    assert np.array_equal(imported(place).ids, index.ids)
    with pytest.raises(llc.UserError, match="has a table codes already"):
        exports.export(index, "lancedb", place)
    with pytest.raises(llc.UserError, match="LanceDB Cloud"):
        exports.export(index, "lancedb", "db://mine")
    with pytest.raises(llc.UserError, match="only --to=lancedb writes to an object store"):
        exports.export(index, "parquet", "s3://bucket/x.parquet")


def test_a_failure_leaves_no_table_in_a_store(tmp_path, monkeypatch):
    index, place = make_index(20, 50), f"file://{tmp_path}/db"

    def fails(size):
        yield next(iter(llc.Index.batches(index, 10)))
        raise llc.UserError("the index is damaged")

    monkeypatch.setattr(index, "batches", fails)
    for out in (place, str(tmp_path / "folder")):
        with pytest.raises(llc.UserError, match="the index is damaged"):
            exports.export(index, "lancedb", out)
    assert not (tmp_path / "folder").exists() and not list((tmp_path / "db").glob("codes.lance/**/*.lance"))
    monkeypatch.undo()
    exports.export(index, "lancedb", place)
    assert len(imported(place)) == 50


@pytest.mark.parametrize("moment", ["rows", "index"])
def test_ctrl_c_leaves_no_table_in_a_store(moment, tmp_path, monkeypatch):
    index, place = make_index(20, 50), f"file://{tmp_path}/db"

    taken = []

    def slow(size):  # LanceDB's thread takes them
        for i, batch in enumerate(llc.Index.batches(index, 10)):
            if i == 1:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)
            taken.append(i)
            yield batch

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    if moment == "rows":
        monkeypatch.setattr(index, "batches", slow)
    else:
        monkeypatch.setattr(lancedb.table.LanceTable, "create_index", interrupted)
    for out in (place, str(tmp_path / "folder")):
        with pytest.raises(KeyboardInterrupt):
            exports.export(index, "lancedb", out, kind="ivf")
        time.sleep(0.6 * (moment == "rows"))  # until the thread has seen it
    assert lancedb.connect(place).list_tables().tables == [] and os.listdir(tmp_path) in ([], ["db"])
    assert taken == [0, 1, 0, 1] * (moment == "rows")

    def fails(*_, **__):
        raise RuntimeError("no connection")

    monkeypatch.setattr(lancedb.db.LanceDBConnection, "drop_table", fails)
    monkeypatch.setattr(lancedb.table.LanceTable, "create_index", fails)
    monkeypatch.setattr(index, "batches", lambda size: llc.Index.batches(index, size))
    with pytest.raises(
        llc.UserError, match="no connection; and the table codes, .* could not be dropped: no"
    ):
        exports.export(index, "lancedb", place, kind="ivf")


# ---------------------------------------------------------------------------------------- Parquet, npz


def test_parquet_holds_the_columns(index, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_ROW_GROUP", 150)
    export(index, "parquet", tmp_path / "x.parquet")
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [150, 150, 100]
    table = file.read()
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "int64",
        "code": f"fixed_size_binary[{index.code_size}]",
        "label": "int32",
        "class_name": "string",
        "file": "string",
        "size": "int64",
        "modified": "int64",
    }
    assert int(table.schema.metadata[b"llc.num_bits"]) == index.num_bits
    assert json.loads(table.schema.metadata[b"llc.class_names"]) == list(NAMES)

    rows, records = table.to_pylist(), index.records(index.ids)
    assert [row["id"] for row in rows] == index.ids.tolist()
    assert [row["code"] for row in rows] == [code.tobytes() for code in index.get(index.ids)]
    labels = records.labels.tolist()
    assert [row["label"] for row in rows] == [None if label < 0 else label for label in labels]
    assert [row["class_name"] for row in rows] == [None if label < 0 else NAMES[label] for label in labels]
    assert [row["file"] or "" for row in rows] == records.files and None in table["file"].to_pylist()
    for name in ("size", "modified"):
        values = [-1 if row[name] is None else row[name] for row in rows]
        assert values == {"size": records.sizes, "modified": records.modified}[name].tolist()

    # a search written by hand on what the file holds
    queries = queries_of(index)
    codes, ids = np.array([list(row["code"]) for row in rows], np.uint8), np.array(table["id"])
    distances = np.unpackbits(codes[None] ^ queries[:, None], axis=2).sum(2)
    order = np.lexsort((np.broadcast_to(ids, distances.shape), distances))[:, :25]
    for ours, theirs in zip(index.search(queries, 25), (np.take_along_axis(distances, order, 1), ids[order])):
        np.testing.assert_array_equal(ours, theirs)


def test_npz_is_a_file_of_codes_with_ids(index, tmp_path):
    export(index, "npz", tmp_path / "x.npz")
    arrays = read_codes(tmp_path / "x.npz")
    assert set(arrays) == {"codes", "num_bits", "ids", "labels", "class_names", "files"}
    assert {name: arrays[name].dtype for name in ("codes", "ids", "labels")} == {
        "codes": np.uint8,
        "ids": np.int64,
        "labels": np.int64,
    }
    queries = queries_of(index)
    distances, indices = hamming.search(queries, arrays["codes"], 20)
    for ours, theirs in zip(index.search(queries, 20), (distances, arrays["ids"][indices])):
        np.testing.assert_array_equal(ours, theirs)  # ids ascend, so equally far codes are in one order


def test_the_file_of_codes_of_an_index_without_labels_and_files(tmp_path):
    index = llc.Index(9)
    index.add(np.array([[1, 128]], np.uint8), [1 << 60])
    export(index, "npz", tmp_path / "x.npz")
    assert set(read_codes(tmp_path / "x.npz")) == {"codes", "num_bits", "ids"}
    index = llc.Index(9)
    index.add(np.array([[1, 128]], np.uint8), labels=[3])
    export(index, "npz", tmp_path / "y.npz")
    assert read_codes(tmp_path / "y.npz")["labels"].tolist() == [3]


# ---------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form, index, tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "BATCH", 37)
    monkeypatch.setattr(exports, "BATCH", 41)
    export(index, form, tmp_path / "x")
    says = {} if form.split("-")[0] in ("lancedb", "parquet", "npz") else {"num_bits": index.num_bits}
    back = imported(tmp_path / "x", **says)
    assert back.num_bits == index.num_bits
    np.testing.assert_array_equal(back.ids, index.ids)
    np.testing.assert_array_equal(back.get(back.ids), index.get(index.ids))
    queries = queries_of(index)
    for ours, theirs in zip(index.search(queries, 50), back.search(queries, 50)):
        np.testing.assert_array_equal(ours, theirs)
    if says:
        return
    before, after = index.records(index.ids), back.records(back.ids)
    names = ("labels", "files") if form == "npz" else ("labels", "files", "sizes", "modified")
    for name in names:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert back.class_names == index.class_names


def test_an_index_of_llc_is_read_too(tmp_path, index):
    index.save(tmp_path / "x.index")
    back = imported(tmp_path / "x.index")
    np.testing.assert_array_equal(back.ids, index.ids)
    assert back.records(back.ids).files == index.records(index.ids).files


def test_new_ids_and_an_index_with_codes_and_other_classes(tmp_path):
    index = make_index(20, 60)
    export(index, "parquet", tmp_path / "x.parquet")
    other = llc.Index(20)
    other.add(np.zeros((5, 3), np.uint8), labels=[1, 0, 1, -1, 0], class_names=["bird", "dog"])
    incoming = imports.open_codes(str(tmp_path / "x.parquet"))
    assert imports.add_to(other, incoming, new_ids=True) == 60
    assert other.ids.tolist() == list(range(65))
    assert other.class_names == ("bird", "dog", "cat", "Füße 🐱")
    np.testing.assert_array_equal(other.get(np.arange(5, 65)), index.get(index.ids))
    before = [NAMES[label] if label >= 0 else "" for label in index.records(index.ids).labels]
    labels = other.records(np.arange(5, 65)).labels
    assert [other.class_names[label] if label >= 0 else "" for label in labels] == before


def test_file_names_that_are_no_text_become_escapes(tmp_path):
    index = llc.Index(8)
    index.add(np.zeros((2, 1), np.uint8), files=[b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "ü"])
    for form in ("parquet", "lancedb", "npz"):
        export(index, form, tmp_path / form)
        assert imported(tmp_path / form).records([0, 1]).files == ["caf\\xe9.jpg", "ü"]


# ---------------------------------------------------------------------------------------- tables of others


CODES = np.array([[1, 128, 7], [0, 0, 255], [9, 9, 9], [255, 255, 0]], np.uint8)
BYTES = [code.tobytes() for code in CODES]
CODE_COLUMNS = {
    "fixed": pa.array(BYTES, pa.binary(3)),
    "binary": pa.array(BYTES, pa.binary()),
    "large binary": pa.array(BYTES, pa.large_binary()),
    "slice of fixed": pa.array([b"xxx", *BYTES], pa.binary(3))[1:],
    "slice of binary": pa.array([b"xx", *BYTES], pa.binary())[1:],
    "dictionary": pa.array(BYTES, pa.binary()).dictionary_encode(),
    "lists": pa.array(CODES.tolist(), pa.list_(pa.uint8())),
    "large lists of int64": pa.array(CODES.tolist(), pa.large_list(pa.int64())),
    "fixed lists": pa.array(CODES.tolist(), pa.list_(pa.uint8(), 3)),
    "slice of fixed lists": pa.array([[4, 4, 4], *CODES.tolist()], pa.list_(pa.uint8(), 3))[1:],
}


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("codes", CODE_COLUMNS.values(), ids=CODE_COLUMNS)
@pytest.mark.parametrize("form", ["parquet", "lancedb"])
def test_a_code_column_of_any_type(codes, form, tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "BATCH", 2)
    ids = pa.array([5, (1 << 62) + 1, 0, 3], pa.uint64())
    table = pa.table({"hash": codes, "key": ids, "path": ["a", None, "c", "d"]})
    if form == "parquet":
        pq.write_table(table, tmp_path / "x", row_group_size=3)
    else:
        lancedb.connect(tmp_path / "x").create_table("any", data=table)
    flags = {"id_column": "key", "code_column": "hash", "file_column": "path", "form": form}
    assert imports.open_codes(str(tmp_path / "x"), **flags).num_bits is None
    index = imported(tmp_path / "x", **flags)
    assert index.num_bits == 24
    np.testing.assert_array_equal(index.get(np.array(ids, np.int64)), CODES)
    assert index.records([5, (1 << 62) + 1, 0, 3]).files == ["a", "", "c", "d"]


@pytest.mark.parametrize(
    "column, labels, names",
    [
        (pa.array(["b", None, "a", "b"]), [0, -1, 1, 0], ("b", "a")),
        (pa.array(["b", None, "a", "b"]).dictionary_encode(), [0, -1, 1, 0], ("b", "a")),
        (pa.array([2, -1, 0, None], pa.int8()), [2, -1, 0, -1], ()),
        (pa.array([2.0, None, 0.0, 2.0]), [2, -1, 0, 2], ()),
        (pa.nulls(4), [-1, -1, -1, -1], ()),
    ],
    ids=["texts", "categories", "integers", "floats", "nothing"],
)
@pytest.mark.parametrize("named", ["label", "y"])
def test_labels_of_any_type(column, labels, names, named, tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "BATCH", 3)
    write(tmp_path / "x.parquet", {"code": BYTES, "id": [1, 2, 3, 4], named: column})
    flags = {"label_column": "y"} if named == "y" else {}
    index = imported(tmp_path / "x.parquet", **flags)
    assert index.records([1, 2, 3, 4]).labels.tolist() == labels and index.class_names == names


def test_an_export_that_lost_its_metadata_keeps_its_classes_by_name(tmp_path):
    index = make_index(16, 50)
    export(index, "parquet", tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "y.parquet")
    back = imported(tmp_path / "y.parquet")
    classes = [
        [i.class_names[label] if label >= 0 else "" for label in i.records(i.ids).labels]
        for i in (index, back)
    ]
    assert classes[0] == classes[1]
    assert np.array_equal(back.records(back.ids).modified, index.records(index.ids).modified)


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    (tmp_path / "parts").mkdir()
    for i in range(4):
        write(tmp_path / f"parts/part-{i}.parquet", {"code": BYTES[i : i + 1], "id": [10 - i]})
    write(
        tmp_path / "parts/part-9.parquet", {"code": pa.array([], pa.binary()), "id": pa.array([], pa.int64())}
    )
    index = imported(tmp_path / "parts")
    np.testing.assert_array_equal(index.get([10, 9, 8, 7]), CODES)
    write(tmp_path / "parts/part-5.parquet", {"code": [b"ab"], "id": [99]})
    with pytest.raises(llc.UserError, match=r"part-5.parquet has codes of \? bits, 2 bytes"):
        imports.open_codes(str(tmp_path / "parts"))


def test_times_of_any_kind(tmp_path):
    """Nanoseconds as integers, or timestamps of any unit."""
    for column in (
        pa.array([10**18, None, 0, 5 * 10**9]),
        pa.array([10**15, None, 0, 5 * 10**6], pa.timestamp("us", tz="UTC")),
        pa.array([10**9, None, 0, 5], pa.timestamp("s")),
    ):
        path = write(
            tmp_path / "x.parquet", {"code": BYTES, "file": ["a", "b", "c", "d"], "modified": column}
        )
        assert imported(path).records(range(4)).modified.tolist() == [10**18, -1, 0, 5 * 10**9]


def test_columns_of_other_meaning_are_left_alone(tmp_path):
    write(
        tmp_path / "x.parquet", {"code": BYTES, "size": ["S", "M", "L", "XL"], "file": ["a", "b", "c", "d"]}
    )
    index = imported(tmp_path / "x.parquet")  # no ids: new ones
    assert index.ids.tolist() == [0, 1, 2, 3] and index.records([2]).sizes.tolist() == [-1]


def table_fault(message, flags=None, **columns):
    return pytest.param({"code": BYTES, "id": [1, 2, 3, 4]} | columns, flags or {}, message)


TABLE_FAULTS = [
    table_fault("no column hash; --code_column names one of: code, id", {"code_column": "hash"}),
    table_fault("no column key; --id_column names one of", {"id_column": "key"}),
    table_fault("no column path; --file_column", {"file_column": "path"}),
    table_fault("no column y; --label_column", {"label_column": "y"}),
    table_fault("code is string; expected binary, or lists", code=["ab", "cd", "ef", "gh"]),
    table_fault("code is int64; expected binary", code=[1, 2, 3, 4]),
    table_fault("code is list<.*double.*>; expected lists of uint8", code=[[0.5], [1.0], [2.0], [3.0]]),
    table_fault("numbers that are no bytes", code=[[1], [2], [300], [3]]),
    table_fault("numbers that are no bytes", code=[[1], [2], [-1], [3]]),
    table_fault("missing number", code=[[1], [2], [None], [3]]),
    table_fault("code has 2 bytes in row 3, but 3 before", code=[*BYTES[:3], b"ab"]),
    table_fault("code is empty in row 0", code=[b"", b"", b"", b""]),
    table_fault("code has no value in row 2", code=[*BYTES[:2], None, BYTES[3]]),
    table_fault("id has no value in row 1", id=[1, None, 3, 4]),
    table_fault("the id of row 2 is -3; expected 0 to", id=[1, 2, -3, 4]),
    table_fault(f"the id of row 0 is {2**63 - 1}", id=[2**63 - 1, 2, 3, 4]),
    table_fault("ids that are too high", id=pa.array([1, 2, 3, 1 << 63], pa.uint64())),
    table_fault("the id 2 is in rows 0 and 1; ids must differ; --new_ids", id=[2, 2, 3, 4]),
    table_fault("the id 1 is in rows 0 and 3; ids must differ; --new_ids", id=[1, 2, 3, 1]),
    table_fault("id is double; expected integers", id=[1.0, 2.0, 3.0, 4.0]),
    table_fault("id is string; expected integers", id=["1", "2", "3", "4"]),
    table_fault("padding bits after the 20 bits .* those of row 0 are not", {"num_bits": 20}),
    table_fault("codes of 25 bits have 4 bytes, but these have 3", {"num_bits": 25}),
    table_fault("label is bool; expected integers, or texts", label=[True, False, True, True]),
    table_fault("labels that are no whole numbers", label=[0.5, 1.0, 2.0, 3.0]),
    table_fault("label has -2 in row 3; expected 0 to", label=[1, 2, 3, -2]),
    table_fault("label has 2147483648 in row 1", label=[1, 1 << 31, 3, 2]),
    table_fault("file is int64; expected texts", file=[1, 2, 3, 4]),
    table_fault("x.parquet is of the form parquet, without any", {"table": "codes"}),
    table_fault("--num_bits=4097: expected 1 to 4096", {"num_bits": 4097}),
    table_fault("its codes have 513 bytes; expected at most 512", code=[bytes(513)] * 4),
]


@pytest.mark.parametrize("columns, flags, message", TABLE_FAULTS)
def test_faults_of_tables_are_named(columns, flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "BATCH", 2)
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(llc.UserError, match=message) as caught:
        imported(path, **flags)
    assert "x.parquet" in str(caught.value) or str(caught.value).startswith("--")


def test_ids_that_the_index_has_already(tmp_path):
    path = write(tmp_path / "x.parquet", {"code": BYTES, "id": [1, 2, 3, 4]})
    index = llc.Index(24)
    index.add(CODES[:1], [3])
    with pytest.raises(
        llc.UserError, match="x.parquet, rows 0 to 3: .* in the index already, such as 3.*--new_ids"
    ):
        imported(path, index)


def test_an_index_of_another_length(tmp_path):
    path = write(tmp_path / "x.parquet", {"code": BYTES, "id": [1, 2, 3, 4]})
    for num_bits, says in ((12, 0), (24, 23), (20, 24)):
        with pytest.raises(llc.UserError, match=f"the index of {num_bits} bits"):
            imported(path, llc.Index(num_bits), num_bits=says)
    path = write(tmp_path / "y.parquet", {"code": [b"\xff\xf0"], "id": [1]})
    assert imported(path, llc.Index(12)).get([1]).tolist() == [[255, 240]]  # the index says how many bits
    export(make_index(20, 10), "parquet", tmp_path / "z.parquet")
    with pytest.raises(llc.UserError, match="--num_bits=24: .*z.parquet says that its codes have 20 bits"):
        imports.open_codes(str(tmp_path / "z.parquet"), num_bits=24)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"llc.num_bits": "many"}, "llc.num_bits is .*many.*; expected 1 to 4096"),
        ({"llc.num_bits": "5000"}, "expected 1 to 4096"),
        ({"llc.num_bits": "9" * 5000}, "expected 1 to 4096"),
        ({"llc.num_bits": "16"}, "codes of 16 bits have 2 bytes, but these have 3"),
        ({"llc.class_names": "cat"}, "llc.class_names is no JSON list"),
        ({"llc.class_names": '["a", "a"]'}, "llc.class_names is no JSON list"),
        ({"llc.class_names": '["a", "b"]'}, "label has 2 in row 1; expected 0 to 1"),
    ],
)
def test_faults_of_the_metadata_are_named(metadata, message, tmp_path):
    table = pa.table({"code": BYTES, "id": [1, 2, 3, 4], "label": [0, 2, 1, 0]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    with pytest.raises(llc.UserError, match=message):
        imported(tmp_path / "x.parquet")


# ---------------------------------------------------------------------------------------- other indexes


def faiss_indexes():
    """name -> (a FAISS index of CODES, the ids that it answers with)"""
    ids = np.array([1 << 60, 3, 2, (1 << 53) + 1])
    made = {"flat": faiss.IndexBinaryFlat(24), "hnsw": faiss.IndexBinaryHNSW(24, 4)}
    quantizer = faiss.IndexBinaryFlat(24)
    for name in ("ivf", "ivf with ids", "ivf in a map"):
        made[name] = faiss.IndexBinaryIVF(quantizer, 24, 2)
        made[name].quantizer_of_python = quantizer
        made[name].train(CODES)
    answers = {}
    for name, index in made.items():
        if name == "ivf with ids":
            index.add_with_ids(CODES, ids)
        elif name == "ivf in a map":
            made[name] = faiss.IndexBinaryIDMap(index)
            made[name].add_with_ids(CODES, ids)
        else:
            index.add(CODES)
        answers[name] = ids if " " in name else np.arange(4)
    for wrap in (faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2):
        for inner in (faiss.IndexBinaryFlat(24), faiss.IndexBinaryHNSW(24, 4)):
            name = f"{type(inner).__name__} in {wrap.__name__}"
            made[name] = wrap(inner)
            made[name].inner_of_python = inner
            made[name].add_with_ids(CODES, ids)
            answers[name] = ids
    return {name: (made[name], answers[name]) for name in made}


def test_binary_indexes_of_faiss(tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "BATCH", 3)
    indexes = faiss_indexes()
    assert len(indexes) == 9
    for name, (other, ids) in indexes.items():
        faiss.write_index_binary(other, str(tmp_path / "x"))
        index = imported(tmp_path / "x")
        assert index.num_bits == 24, name
        np.testing.assert_array_equal(index.get(ids), CODES, name)
        distances, found = other.search(CODES, 1)
        assert not distances.any() and found[:, 0].tolist() == ids.tolist(), name


def test_faults_of_faiss_files_are_named(tmp_path):
    path = str(tmp_path / "x.faiss")
    faiss.write_index(faiss.IndexFlatL2(4), path)
    with pytest.raises(llc.UserError, match="x.faiss: this FAISS index holds real vectors"):
        imports.open_codes(path)
    other = faiss.IndexBinaryHash(24, 8)
    other.add(CODES)
    faiss.write_index_binary(other, path)
    with pytest.raises(llc.UserError, match="this is FAISS's IndexBinaryHash; expected IndexBinaryFlat"):
        imports.open_codes(path)
    export(make_index(20, 100), "faiss", tmp_path / "y.faiss")
    whole = (tmp_path / "y.faiss").read_bytes()
    for size in (5, 30, 100, len(whole) - 1):
        (tmp_path / "x.faiss").write_bytes(whole[:size])
        with pytest.raises(llc.UserError, match="x.faiss: cannot be read by FAISS: "):
            imports.open_codes(path)
    with pytest.raises(llc.UserError, match="padding bits after the 17 bits"):
        imported(tmp_path / "y.faiss", num_bits=17)


def npz_fault(message, **arrays):
    return pytest.param({"codes": CODES, "num_bits": 24, "ids": [1, 2, 3, 4]} | arrays, message)


@pytest.mark.parametrize(
    "arrays, message",
    [
        npz_fault("ids are float64", ids=[1.0, 2.0, 3.0, 4.0]),
        npz_fault(r"ids are int64 \[2\]; expected whole numbers \[4\]", ids=[1, 2]),
        npz_fault("ids go up to 9223372036854775808", ids=np.array([1, 2, 3, 1 << 63], np.uint64)),
        npz_fault("the id of row 3 is -1", ids=[1, 2, 3, -1]),
        npz_fault("the id 3 is in rows 0 and 2", ids=[3, 2, 3, 1]),
        npz_fault("padding bits", num_bits=20),
        npz_fault("labels go up to", labels=[0, 1, 2, 1 << 31]),
        npz_fault("files are int64", files=[0, 1, 2, 3]),
    ],
)
def test_faults_of_files_of_codes_are_named(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(llc.UserError, match=message) as caught:
        imported(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value)


def test_what_is_no_form_is_named(tmp_path):
    def expect(name, message, **flags):
        with pytest.raises(llc.UserError, match=message) as caught:
            imports.open_codes(str(tmp_path / name), **flags)
        assert name in str(caught.value)

    expect("nothing", "cannot be read: No such file")
    (tmp_path / "text.csv").write_text("id,code\n1,ff\n")
    expect("text.csv", "no form that can be read: expected a Parquet file")
    (tmp_path / "empty").write_bytes(b"")
    expect("empty", "an empty file")
    (tmp_path / "pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    expect("pointer.parquet", "git lfs pull")
    (tmp_path / "folder").mkdir()
    expect("folder", "this folder holds no codes")
    expect("folder", "no tables", form="lancedb")
    expect("missing", "there is no such folder", form="lancedb")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "half.parquet").write_bytes(write(tmp_path / "x", {"code": BYTES}).read_bytes()[:60])
    expect("half.parquet", "cannot be read as Parquet")
    write(tmp_path / "none.parquet", {"code": pa.array([], pa.binary(3))})
    expect("none.parquet", "it holds no codes")
    with pytest.raises(llc.UserError, match="--form=csv: expected one of auto, parquet"):
        imports.open_codes(str(tmp_path / "x"), form="csv")


# ---------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten(form, tmp_path):
    index = make_index(20, 30)
    for path, contents in ((tmp_path / "file", b"mine"), (tmp_path / "folder", None)):
        if contents is None:
            path.mkdir()
            (path / "mine").write_bytes(b"mine")
        else:
            path.write_bytes(contents)
        with pytest.raises(llc.UserError, match=f"--out=.*{path.name}"):
            export(index, form, path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(llc.UserError, match="--out=.*link"):
        export(index, form, tmp_path / "link")
    with pytest.raises(llc.UserError, match="there is no folder .*missing; make it first"):
        export(index, form, tmp_path / "missing" / "x")
    with pytest.raises(llc.UserError, match="holds no codes"):
        export(llc.Index(20), form, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    assert (tmp_path / "file").read_bytes() == (tmp_path / "folder/mine").read_bytes() == b"mine"


@pytest.mark.parametrize("form", ["faiss", "parquet", "npz", "lancedb"])
def test_a_file_that_came_in_the_meantime_is_kept(form, tmp_path, monkeypatch):
    index, path = make_index(20, 30), tmp_path / "x"

    def batches(size):
        if not path.exists():
            path.write_bytes(b"mine")
        return llc.Index.batches(index, size)

    monkeypatch.setattr(index, "batches", batches)
    with pytest.raises(llc.UserError, match="x: cannot be written: "):
        export(index, form, path)
    assert path.read_bytes() == b"mine" and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk(form, small_disk):
    index = make_index(512, 8000)  # 512,000 bytes of codes
    with pytest.raises(llc.UserError, match="x: cannot be written: .*[Nn]o space left"):
        export(index, form, small_disk / "x")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    "to, module, package",
    [
        ("faiss", "faiss", "faiss-cpu"),
        ("hnsw", "faiss", "faiss-cpu"),
        ("lancedb", "lancedb", "lancedb"),
        ("parquet", "pyarrow", "pyarrow"),
    ],
)
def test_a_missing_package_is_named(to, module, package, tmp_path, monkeypatch):
    index = make_index(20, 30)
    export(index, to, tmp_path / "x")
    monkeypatch.setitem(sys.modules, module, None)
    install = rf"needs {package}, .*pip install 'llcodes\[search\]'$"
    with pytest.raises(llc.UserError, match=f"--to={to if to != 'hnsw' else 'faiss'} {install}"):
        export(index, to, tmp_path / "y")
    with pytest.raises(llc.UserError, match=f"reading .* {install}"):
        imports.open_codes(str(tmp_path / "x"))


@pytest.mark.parametrize(
    "to, flags, message",
    [
        ("csv", {}, "--to=csv: expected one of faiss, hnsw, ivf, lancedb, parquet, npz"),
        ("faiss", {"kind": "lsh"}, "--kind=lsh: --to=faiss has the kinds flat, hnsw, ivf"),
        ("lancedb", {"kind": "hnsw"}, "--to=lancedb has the kinds flat, ivf"),
        ("parquet", {"kind": "flat"}, "--to=parquet has no kinds"),
        ("hnsw", {"kind": "ivf"}, "--kind=ivf contradicts that"),
        ("faiss", {"lists": 5}, "--lists=5 belongs to --kind=ivf"),
        ("npz", {"table": "x"}, "--table=x belongs to --to=lancedb"),
        ("lancedb", {"table": "../x"}, "--table=../x: expected letters"),
    ],
)
def test_flags_that_do_not_belong_together(to, flags, message, tmp_path):
    with pytest.raises(llc.UserError, match=re.escape(message)):
        exports.export(make_index(20, 30), to, str(tmp_path / "x"), **flags)


def test_no_engine_is_loaded_before_it_is_needed_nor_torchvision_for_codes_alone():
    code = (
        "import sys, llc.index.__main__, llc.search\n"
        "print({'faiss', 'lancedb', 'pyarrow', 'torchvision'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_index_of_lancedb_can_be_made_later(tmp_path):
    """A table of --kind=flat is one that LanceDB can index itself."""
    index = make_index(20, 300)
    export(index, "lancedb", tmp_path / "db")
    table = lancedb.connect(tmp_path / "db").open_table("codes")
    table.create_index("code", config=IvfFlat(distance_type="hamming", num_partitions=4))
    query = queries_of(index)[0]
    found = (
        table.search(query, vector_column_name="code")
        .distance_type("hamming")
        .nprobes(4)
        .limit(20)
        .to_arrow()
    )
    assert_same_neighbours(index, query[None], np.array([found["_distance"]]), np.array([found["id"]]))
