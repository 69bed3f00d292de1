"""Writes the codes of an index in the forms of other engines.

`python -m llc.index export` calls `export`; EXPORTS has the forms. Ids are int64 and codes are packed in all
of them, as in the index, and a search that compares all codes finds the same distances there.

FAISS and LanceDB count in whole bytes: to them, codes of 20 bits have 24. The padding bits are 0 in every
code, those of queries among them, so they add nothing to a distance.

An output is written whole or not at all, and nothing that exists is overwritten. Codes are read in batches;
only FAISS needs all of them in memory, because its indexes are there.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llc import progress
from llc.data.sources import as_unicode, printable
from llc.errors import UserError
from llc.files import atomic_write, sync_folder
from llc.index.exchange import BATCH, CLASS_NAMES, NUM_BITS, TABLE, check_table, is_uri, reason, table_names
from llc.packages import needed

if TYPE_CHECKING:
    from llc.index.index import Index

_ROW_GROUP = 2 * BATCH  # rows of a Parquet file that are written, and read, together
_HNSW_LINKS, _HNSW_EF_SEARCH = 32, 128  # on 200,000 clustered codes of 64 bits: .998 of the right distances
_MAX_LISTS = 65_536
# FAISS asks for 39 or more training codes per list, and trains on a float32 per bit. The time for training
# grows with the square of the number of lists.
_PER_LIST, _MAX_TRAINING_BYTES = 40, 2 << 30


def export(index: Index, to: str, path: str, *, kind: str = "", lists: int = 0, table: str = "") -> str:
    """Writes all codes of an index to `path` -> what was written, in words.

    to: one of FORMS. kind, lists and table are given on to the form's function, which says what they mean;
    "" and 0 leave the choice to it. Raises UserError if something cannot be written, if something is at
    `path`, or if the form has no such kind.
    """
    if to in ("hnsw", "ivf"):
        if kind not in ("", to):
            raise UserError(f"--to={to} is --to=faiss --kind={to}; --kind={kind} contradicts that")
        to, kind = "faiss", to
    if to not in EXPORTS:
        raise UserError(f"--to={printable(to)}: expected one of {', '.join(FORMS)}")
    kinds = {"faiss": tuple(_FAISS), "lancedb": ("flat", "ivf")}.get(to, ())
    if kind and kind not in kinds:
        raise UserError(
            f"--kind={printable(kind)}: --to={to} has "
            + (f"the kinds {', '.join(kinds)}" if kinds else "no kinds; leave --kind out")
        )
    if lists and kind != "ivf":
        raise UserError(f"--lists={lists} belongs to --kind=ivf of --to=faiss and --to=lancedb")
    if table and to != "lancedb":
        raise UserError(f"--table={printable(table)} belongs to --to=lancedb")
    options: dict[str, Any] = {}
    if kinds:
        options = {"kind": kind or "flat", "lists": lists}
    if to == "lancedb":
        options["table"] = table or TABLE
    return EXPORTS[to](index, path, **options)


# ------------------------------------------------------------------------------------------------ Parquet


def export_parquet(index: Index, path: str) -> str:
    """A Parquet file of ids, codes, labels and files; exchange.py says which columns. Needs pyarrow."""
    pa = needed("pyarrow", "--to=parquet", extra="search")
    parquet = needed("pyarrow.parquet", "--to=parquet", extra="search")
    _check_new_file(index, path)
    schema = _schema(index, pa, pa.binary(index.code_size))

    def write(file):
        # Codes and ids are all different, so a dictionary of their values would only cost time.
        with parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=["class_name"], write_statistics=["id", "label"]
        ) as writer:
            for group in _groups(_tables(index, schema, pa, path, _ROW_GROUP), pa):
                writer.write_table(group, row_group_size=_ROW_GROUP)

    _write_new(path, write)
    return f"{len(index):,} codes of {index.num_bits} bits, {index.code_size} bytes each"


def _groups(batches, pa):
    """Tables of _ROW_GROUP rows each, but for the last: an index's batches may be shorter."""
    waiting, num_rows = [], 0
    for batch in batches:
        waiting.append(batch)
        num_rows += batch.num_rows
        while num_rows >= _ROW_GROUP:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, _ROW_GROUP)
            waiting = table.slice(_ROW_GROUP).to_batches()
            num_rows -= _ROW_GROUP
    if num_rows:
        yield pa.Table.from_batches(waiting)


def _schema(index, pa, code_type):
    metadata = {
        NUM_BITS: str(index.num_bits),
        CLASS_NAMES: json.dumps([as_unicode(name) for name in index.class_names]),
    }
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("code", code_type, nullable=False),
            pa.field("label", pa.int32()),
            pa.field("class_name", pa.string()),
            pa.field("file", pa.string()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),  # of timestamps with ns, Python takes only those of pandas
        ],
        metadata=metadata,
    )


def _tables(index, schema, pa, path, size) -> Iterator[Any]:
    """The index's rows as record batches of the schema."""
    code_type = schema.field("code").type
    names = pa.array([as_unicode(name) for name in index.class_names], pa.string())
    for ids, codes, records in _batches(index, path, size):
        buffer = pa.py_buffer(np.ascontiguousarray(codes))
        if pa.types.is_fixed_size_binary(code_type):
            code = pa.Array.from_buffers(code_type, len(ids), [None, buffer])
        else:
            bytes_of = pa.Array.from_buffers(pa.uint8(), codes.size, [None, buffer])
            code = pa.FixedSizeListArray.from_arrays(bytes_of, type=code_type)
        label = pa.array(records.labels, pa.int32(), mask=records.labels < 0)
        named = names.take(label) if len(names) else pa.nulls(len(ids), pa.string())
        file = pa.array([as_unicode(name) if name else None for name in records.files], pa.string())
        file_size = pa.array(records.sizes, pa.int64(), mask=records.sizes < 0)
        modified = pa.array(records.modified, pa.int64(), mask=records.modified < 0)
        columns = [pa.array(ids), code, label, named, file, file_size, modified]
        yield pa.record_batch(columns, schema=schema)


# ------------------------------------------------------------------------------------------------ npz


def export_npz(index: Index, path: str) -> str:
    """A file of codes as python -m llc.encode writes, with ids int64 [n] beside them.

    It has labels and class_names, and files if the index has any. The array of files takes four bytes for
    each character of the longest name, times n, as numpy stores texts.
    """
    _check_new_file(index, path)
    n = len(index)
    longest, labelled = 0, False
    for _, _, records in _batches(index, path):
        longest = max(longest, max(len(as_unicode(name)) for name in records.files))
        labelled = labelled or bool((records.labels >= 0).any())
    class_names = np.array([as_unicode(name) for name in index.class_names], "U")

    def write(file):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _add_array(archive, "num_bits", np.dtype(np.int64), (), [np.array(index.num_bits)])
            codes = (codes for _, codes, _ in _batches(index, path))
            _add_array(archive, "codes", np.dtype(np.uint8), (n, index.code_size), codes)
            _add_array(archive, "ids", np.dtype(np.int64), (n,), (ids for ids, _, _ in _batches(index, path)))
            if labelled or len(class_names):
                labels = (records.labels.astype(np.int64) for _, _, records in _batches(index, path))
                _add_array(archive, "labels", np.dtype(np.int64), (n,), labels)
            if len(class_names):
                _add_array(archive, "class_names", class_names.dtype, class_names.shape, [class_names])
            if longest:
                text = np.dtype(("U", longest))
                files = (
                    np.array([as_unicode(name) for name in records.files], text)
                    for _, _, records in _batches(index, path)
                )
                _add_array(archive, "files", text, (n,), files)

    _write_new(path, write)
    return f"{n:,} codes of {index.num_bits} bits, {index.code_size} bytes each"


def _add_array(archive, name, dtype, shape, parts):
    """Adds an array to an .npz, part by part: numpy.savez needs it whole."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())


# ------------------------------------------------------------------------------------------------ FAISS


def export_faiss(index: Index, path: str, *, kind: str = "flat", lists: int = 0) -> str:
    """A binary index of FAISS with 64-bit ids, for faiss.read_index_binary. Needs faiss.

    kind: flat is IndexBinaryFlat, exact; hnsw is IndexBinaryHNSW, a graph; both inside an IndexBinaryIDMap,
    because they have no ids of their own. ivf is IndexBinaryIVF: the codes in `lists` lists by their nearest
    centroid, of which a search looks at some; 0: about 2 sqrt(n) lists. hnsw and ivf find most of the
    nearest codes, not all. The file holds settings that find nearly all (hnsw.efSearch, nprobe).

    Labels, class names and files are left out, because FAISS has none.
    """
    faiss = needed("faiss", "--to=faiss", extra="search")
    _check_new_file(index, path)
    try:
        made, words = _FAISS[kind](faiss, index, lists)
        for ids, codes, _ in _batches(index, path):
            made.add_with_ids(codes, ids)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{printable(path)}: FAISS could not make its index: {reason(error)}") from error

    def write(file):
        faiss.write_index_binary(made, faiss.PyCallbackIOWriter(file.write))

    _write_new(path, write)
    return f"{len(index):,} codes of {8 * index.code_size} bits, {words}; without labels and files"


def _faiss_flat(faiss, index, lists):
    return _with_ids(faiss, faiss.IndexBinaryFlat(8 * index.code_size)), "IndexBinaryFlat with ids"


def _faiss_hnsw(faiss, index, lists):
    graph = faiss.IndexBinaryHNSW(8 * index.code_size, _HNSW_LINKS)
    graph.hnsw.efSearch = _HNSW_EF_SEARCH
    words = f"IndexBinaryHNSW with ids, {_HNSW_LINKS} links, efSearch {_HNSW_EF_SEARCH}"
    return _with_ids(faiss, graph), words


def _faiss_ivf(faiss, index, lists):
    n, num_bits = len(index), 8 * index.code_size
    most = max(1, min(n, _MAX_TRAINING_BYTES // (4 * num_bits)))  # codes to train on
    if lists > most:
        raise UserError(f"--lists={lists}: FAISS can train at most {most:,} lists here; ask for fewer")
    lists = lists or max(1, min(_MAX_LISTS, round(2 * math.sqrt(n)), most // _PER_LIST))
    quantizer = faiss.IndexBinaryFlat(num_bits)
    ivf = faiss.IndexBinaryIVF(quantizer, num_bits, lists)
    ivf.referenced_by_us = quantizer  # else Python would free it
    ids = index.ids
    ivf.train(index.get(ids[np.linspace(0, n - 1, min(most, _PER_LIST * lists)).astype(np.int64)]))
    ivf.nprobe = min(lists, max(8, lists // 32))
    return ivf, f"IndexBinaryIVF, {lists:,} lists, nprobe {ivf.nprobe}"


_FAISS: dict[str, Callable[..., Any]] = {"flat": _faiss_flat, "hnsw": _faiss_hnsw, "ivf": _faiss_ivf}


def _with_ids(faiss, inner):
    outer = faiss.IndexBinaryIDMap(inner)
    outer.referenced_by_us = inner
    return outer


# ------------------------------------------------------------------------------------------------ LanceDB


def export_lancedb(index: Index, path: str, *, kind: str = "flat", lists: int = 0, table: str = TABLE) -> str:
    """A table of a LanceDB database; exchange.py says which columns. Needs lancedb.

    path: a folder that is new, empty, or a database without this table; or an object store, such as
    s3://bucket/folder, whose credentials LanceDB takes from the environment. kind: flat compares all codes;
    ivf adds an IVF_FLAT index by Hamming distance, which looks at some of `lists` partitions (0: LanceDB
    chooses their number). Search the column `code` with distance_type("hamming").
    """
    lancedb = needed("lancedb", "--to=lancedb", extra="search")
    vector_indexes = needed("lancedb.index", "--to=lancedb", extra="search")
    pa = needed("pyarrow", "--to=lancedb", extra="search")
    check_table(table)
    _check_not_empty(index)
    schema = _schema(index, pa, pa.list_(pa.field("item", pa.uint8(), nullable=False), index.code_size))
    if lists > len(index):
        raise UserError(f"--lists={lists}: there are only {len(index):,} codes; ask for fewer lists")

    def fill(place):
        database = lancedb.connect(place)
        rows = _Remembering(_tables(index, schema, pa, path, BATCH))
        try:
            made = database.create_table(table, data=iter(rows), schema=schema, mode="create")
        except Exception:
            if rows.error is not None:  # LanceDB would raise its own, with a traceback for a message
                raise rows.error from None
            raise
        finally:
            rows.end()
        if kind == "ivf":
            config = vector_indexes.IvfFlat(distance_type="hamming", num_partitions=lists or None)
            made.create_index("code", config=config)

    try:
        if is_uri(path):
            _fill_store(lancedb, path, table, fill)
        else:
            _fill_folder(Path(path), table, fill)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{printable(path)}: cannot be written: {reason(error)}") from error
    how = ", IVF_FLAT by Hamming distance" if kind == "ivf" else ""
    return f"table {table}, {len(index):,} codes of {index.num_bits} bits, {index.code_size} bytes each{how}"


class _Remembering:
    """Items, and the error that getting them raised.

    LanceDB gets them in a thread of its own, while Ctrl-C arrives in the main thread, which then calls end().
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self.error: Exception | None = None
        self._has_ended = False
        self._busy = threading.Lock()

    def __iter__(self):
        while True:
            with self._busy:
                if self._has_ended:
                    raise RuntimeError("the export has ended")
                try:
                    item = next(self.items)
                except StopIteration:
                    return
                except Exception as error:
                    self.error = error
                    raise
            yield item

    def end(self) -> None:
        """Waits for the item that is being made, and gives no more."""
        with self._busy:
            self._has_ended = True


def _remove(folder: Path) -> None:
    """Removes a folder, into which LanceDB's threads may still write for a moment after Ctrl-C."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _fill_folder(folder: Path, table: str, fill: Callable[[str], None]) -> None:
    """Fills a temporary folder, and renames it, or its table, to where it belongs."""
    place = folder / f"{table}.lance"
    exists = os.path.lexists(folder)
    if exists:
        if not folder.is_dir():
            raise UserError(f"--out={printable(folder)}: it exists and is no folder; give a new name")
        if os.path.lexists(place):
            raise UserError(
                f"--out={printable(folder)}: this database has a table {table} already; give another "
                "--table, or a new folder"
            )
        entries = [entry.name for entry in os.scandir(folder)]
        if entries and not any(name.endswith(".lance") for name in entries):
            raise UserError(
                f"--out={printable(folder)}: this folder holds other things (such as "
                f"{printable(entries[0])}); give a new one, or that of a LanceDB database"
            )
    else:
        _check_parent(folder)
    # In a folder that exists, because it may be on another disk than the one that it is in.
    beside = folder if exists else folder.parent
    temporary = Path(tempfile.mkdtemp(dir=beside, prefix=f".{table}.", suffix=".tmp"))
    try:
        fill(str(temporary / "database"))
        _sync(temporary)
        if exists:
            os.rename(temporary / "database" / f"{table}.lance", place)
        else:
            os.rename(temporary / "database", folder)  # fails if something has come there since
        sync_folder(beside)
    finally:
        _remove(temporary)


def _fill_store(lancedb, path, table, fill):
    """Fills a store in place, and drops the table after any error, Ctrl-C among them.

    LanceDB makes a table by writing its manifest last, so whoever looks for it sees all rows or nothing.
    """
    database = lancedb.connect(path)
    if table in table_names(database):
        raise UserError(
            f"--out={printable(path)}: this database has a table {table} already; give another --table"
        )
    try:
        fill(path)
    except BaseException as error:
        if "already exists" not in str(error):  # else somebody else made it
            try:
                database.drop_table(table, ignore_missing=True)
            except Exception as second:
                raise UserError(
                    f"{printable(path)}: {reason(error)}; and the table {table}, which is not complete, "
                    f"could not be dropped: {reason(second)}"
                ) from error
        raise


def _sync(folder: Path) -> None:
    """Flushes all files of a folder to disk, before it gets its name."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))


# ------------------------------------------------------------------------------------------------ all


EXPORTS: dict[str, Callable[..., str]] = {
    "faiss": export_faiss,
    "lancedb": export_lancedb,
    "parquet": export_parquet,
    "npz": export_npz,
}
FORMS = ("faiss", "hnsw", "ivf", "lancedb", "parquet", "npz")  # of --to


def _batches(index, path, size=BATCH):
    """The index's batches, with progress."""
    with progress.bar(len(index), printable(path), unit="codes") as bar:
        for ids, codes, records in index.batches(size):
            yield ids, codes, records
            bar.update(len(ids))


def _check_not_empty(index: Index) -> None:
    if not len(index):
        raise UserError("the index holds no codes, so there is nothing to export; add some first")


def _check_new_file(index: Index, path: str) -> None:
    """Raises UserError unless a new file can be made at `path`, before long work."""
    _check_not_empty(index)
    if "://" in path:
        raise UserError(f"--out={printable(path)}: only --to=lancedb writes to an object store")
    if os.path.isdir(path):
        raise UserError(f"--out={printable(path)}: this is a folder; expected the name of a new file")
    if os.path.lexists(path):
        raise UserError(f"--out={printable(path)}: it exists, and is not overwritten; give a new name")
    _check_parent(Path(path))


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        parent = printable(path.parent)
        raise UserError(f"--out={printable(path)}: there is no folder {parent}; make it first")


def _write_new(path: str, write: Callable[[Any], Any]) -> None:
    def still_new():
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "it came to be in the meantime, and is not overwritten")

    atomic_write(path, write, rotate=still_new)
