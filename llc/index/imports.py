"""Reads codes of other engines into an index.

    incoming = open_codes("photos.parquet")
    index = llc.Index(incoming.num_bits or 8 * incoming.code_size)
    add_to(index, incoming)

READERS has the forms. A form is told from what a file or folder holds. Codes are read in batches, so files
may be larger than memory, but for files of codes (.npz) and FAISS indexes, which are read whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llc import progress
from llc.code_files import read_codes
from llc.codes import code_size
from llc.data.sources import printable
from llc.errors import UserError
from llc.files import stand_in
from llc.index.arguments import MAX_ID
from llc.index.exchange import BATCH, CLASS_NAMES, NUM_BITS, check_table, is_uri, reason, table_names
from llc.index.index import MAX_BITS, Index
from llc.packages import needed

_MAX_LABEL = (1 << 31) - 1


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some codes in the order in which the other engine has them.

    codes uint8 [n, code_size]; ids int64 [n], None: the form has none. labels int64 [n] (-1: none) are
    positions in class_names, or, where that is None, just numbers. files: texts, "": none; sizes and modified
    int64 [n], -1: unknown. None: there is no such column.
    """

    codes: np.ndarray
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    files: Sequence[str] | None = None
    sizes: np.ndarray | None = None
    modified: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Incoming:
    """Codes that can be read, from the first on, as often as one likes.

    num_bits: None where neither the form nor the user says it: between 8 code_size - 7 and 8 code_size then.
    model_digest: what tells the model that made the codes from others (Index.model_digest), if it is known.
    """

    path: str
    num_bits: int | None
    code_size: int
    num_codes: int
    batches: Callable[[], Iterator[Batch]]
    model_digest: str | None = None


def open_codes(
    path: str,
    form: str = "auto",
    *,
    id_column: str = "",
    code_column: str = "",
    label_column: str = "",
    file_column: str = "",
    num_bits: int = 0,
    table: str = "",
) -> Incoming:
    """The codes at `path`: a file, a folder, or the address of a LanceDB database.

    form: one of FORMS. The columns are those of a table, in Parquet or LanceDB; "": those of an export (id,
    code, label with its class_name, file), of which only code must exist. An export's classes are by name; in
    other tables a label column of texts holds class names. num_bits: 0: as the form says. table: LanceDB's;
    "": the only one. Raises UserError.
    """
    if form == "auto":
        form = _form_of(path)
    if form not in READERS:
        raise UserError(f"--form={printable(form)}: expected one of {', '.join(FORMS)}")
    columns = {"id": id_column, "code": code_column, "label": label_column, "file": file_column}
    given = {f"--{name}_column": column for name, column in columns.items()} | {"--table": table}
    accepted = {"parquet": 4, "lancedb": 5}.get(form, 0)
    for flag, value in list(given.items())[accepted:]:
        if value:
            raise UserError(
                f"{flag}={printable(value)}: {printable(path)} is of the form {form}, without any"
            )
    if not 0 <= num_bits <= MAX_BITS:
        raise UserError(f"--num_bits={num_bits}: expected 1 to {MAX_BITS}, or 0 for what the file says")
    options: dict[str, Any] = {"columns": columns} if accepted else {}
    if form == "lancedb":
        options["table"] = table
    incoming = READERS[form](path, **options)
    if not incoming.num_codes:
        raise UserError(f"{printable(path)}: it holds no codes")
    return _with_num_bits(incoming, num_bits)


def add_to(index: Index, incoming: Incoming, *, new_ids: bool = False) -> int:
    """Adds all codes -> how many. Ids are those of the form, or new ones: where it has none, or with new_ids.

    Raises UserError where codes do not fit the index or their form. What came before is in `index` then: do
    not save it.
    """
    path = printable(incoming.path)
    if incoming.num_bits not in (None, index.num_bits) or incoming.code_size != index.code_size:
        width = f"{incoming.code_size} bytes" if incoming.num_bits is None else f"{incoming.num_bits} bits"
        raise UserError(
            f"{path} has codes of {width}, the index of {index.num_bits} bits ({index.code_size} bytes): "
            "they were made by different models, or with another --num_bits"
        )
    if (
        None not in (incoming.model_digest, index.model_digest)
        and incoming.model_digest != index.model_digest
    ):
        raise UserError(
            f"{path}: its codes were made by another model than the index's, and codes of two models cannot "
            "be compared"
        )
    padding = (1 << (8 * index.code_size - index.num_bits)) - 1
    done = 0
    with progress.bar(incoming.num_codes, path, unit="codes") as bar:
        for batch in incoming.batches():
            broken = np.flatnonzero(batch.codes[:, -1] & padding)
            if len(broken):
                raise UserError(
                    f"{path}: the padding bits after the {index.num_bits} bits of a code must be 0, but "
                    f"those of row {done + broken[0]} are not; if codes have more bits, give --num_bits"
                )
            ids = None if new_ids else batch.ids
            if ids is not None:
                _check_ids(incoming, ids, done)
            try:
                index.add(
                    batch.codes,
                    ids,
                    labels=batch.labels,
                    class_names=None if batch.labels is None else batch.class_names,
                    files=batch.files,
                    sizes=batch.sizes,
                    modified=batch.modified,
                )
            except ValueError as error:
                if ids is not None:
                    _check_ids_of_before(incoming, ids, done)
                advice = "; --new_ids gives new ids" if str(error).startswith("ids") else ""
                raise UserError(
                    f"{path}, rows {done} to {done + len(batch.codes) - 1}: {error}{advice}"
                ) from error
            done += len(batch.codes)
            bar.update(len(batch.codes))
    return done


def _check_ids(incoming, ids, first):
    wrong = np.flatnonzero((ids < 0) | (ids > MAX_ID))
    if len(wrong):
        raise UserError(
            f"{printable(incoming.path)}: the id of row {first + wrong[0]} is {ids[wrong[0]]}; expected 0 to "
            f"{MAX_ID}; --new_ids gives new ids"
        )
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(same):
        one, other = order[same[0]], order[same[0] + 1]
        _twice(incoming, ids[one], first + one, first + other)


def _check_ids_of_before(incoming, ids, first):
    """Raises UserError if one of a batch's ids is in an earlier batch, so not in the index before."""
    done = 0
    for batch in incoming.batches():
        if done >= first:
            return
        _, ours, theirs = np.intersect1d(ids, batch.ids, assume_unique=True, return_indices=True)
        if len(ours):
            _twice(incoming, ids[ours[0]], done + theirs[0], first + ours[0])
        done += len(batch.codes)


def _twice(incoming, id, one, other):
    raise UserError(
        f"{printable(incoming.path)}: the id {id} is in rows {one} and {other}; ids must differ; --new_ids "
        "gives new ids"
    )


def _with_num_bits(incoming, num_bits):
    path, says = printable(incoming.path), incoming.num_bits
    if says is not None and num_bits not in (0, says):
        raise UserError(f"--num_bits={num_bits}: {path} says that its codes have {says} bits; leave it out")
    num_bits = says if says is not None else num_bits
    if num_bits and code_size(num_bits) != incoming.code_size:
        raise UserError(
            f"{path}: codes of {num_bits} bits have {code_size(num_bits)} bytes, but these have "
            f"{incoming.code_size}"
        )
    if incoming.code_size > code_size(MAX_BITS):
        raise UserError(
            f"{path}: its codes have {incoming.code_size} bytes; expected at most {code_size(MAX_BITS)}"
        )
    return dataclasses.replace(incoming, num_bits=num_bits or None)


def _form_of(path: str) -> str:
    """What is at a path. Raises UserError if it is nothing that is read here."""
    if is_uri(path):
        return "lancedb"
    accepted = (
        "expected a Parquet file or a folder of them, a LanceDB database, a binary index of FAISS, a file of "
        "codes (.npz), or an index of llc"
    )
    try:
        if os.path.isdir(path):
            names = [entry.name for entry in os.scandir(path)]
            if "index.json" in names:
                return "llc"
            if any(name.endswith(".lance") for name in names) or _is_lance_table(path, names):
                return "lancedb"
            if any(name.endswith(".parquet") for name in names):
                return "parquet"
            raise UserError(f"{printable(path)}: this folder holds no codes that can be read: {accepted}")
        something_else = stand_in(path)
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if something_else:
        raise UserError(f"{printable(path)}: {something_else}")
    if head == b"PAR1":
        return "parquet"
    if head[:2] == b"PK":
        return "npz"
    if head[:2] == b"IB":
        return "faiss"
    if head[:2] == b"Ix":
        raise UserError(f"{printable(path)}: this FAISS index holds real vectors, not binary codes")
    raise UserError(f"{printable(path)}: it is of no form that can be read: {accepted}")


def _is_lance_table(path, names):
    return path.rstrip("/").endswith(".lance") and "_versions" in names


# ------------------------------------------------------------------------------------------------ tables


def read_parquet(path: str, *, columns: dict[str, str]) -> Incoming:
    """A Parquet file, or all files *.parquet of a folder in the order of their names. Needs pyarrow."""
    pa = needed("pyarrow", "reading Parquet", extra="search")
    parquet = needed("pyarrow.parquet", "reading Parquet", extra="search")
    paths = [path]
    if os.path.isdir(path):
        paths = sorted(str(name) for name in Path(path).glob("*.parquet"))

    def rows_of(name):
        def read(chosen):
            try:
                with parquet.ParquetFile(name) as file:
                    yield from file.iter_batches(BATCH, columns=chosen)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{printable(name)}: cannot be read: {reason(error)}") from error

        return read

    parts = []
    for name in paths:
        try:
            with parquet.ParquetFile(name) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{printable(name)}: cannot be read as Parquet: {reason(error)}") from error
        if num_rows:
            parts.append(_Table(name, schema, num_rows, rows_of(name), columns, pa).incoming())
    return _joined(path, parts)


def read_lancedb(path: str, *, columns: dict[str, str], table: str = "") -> Incoming:
    """A table of a LanceDB database, which is a folder or an object store. Needs lancedb."""
    lancedb = needed("lancedb", "reading LanceDB", extra="search")
    pa = needed("pyarrow", "reading LanceDB", extra="search")
    if table:
        check_table(table)
    place = path
    if not is_uri(path):
        if not os.path.isdir(path):  # LanceDB would make it
            raise UserError(f"{printable(path)}: there is no such folder")
        folder = Path(path)
        if _is_lance_table(path, os.listdir(path)):
            if table not in ("", folder.stem):
                raise UserError(f"--table={table}: {printable(path)} is a table itself; leave --table out")
            place, table = str(folder.parent), folder.stem
    try:
        database = lancedb.connect(place)
        names = table_names(database)
        if not names or (table and table not in names) or (not table and len(names) > 1):
            there = ", ".join(printable(name) for name in names[:20]) or "none"
            what = f"no table {table}" if table and names else "no tables" if not names else "several tables"
            raise UserError(f"{printable(path)}: this database has {what}; --table names one of: {there}")
        opened = database.open_table(table or names[0])
        schema, num_rows = opened.schema, opened.count_rows()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{printable(path)}: cannot be read by LanceDB: {reason(error)}") from error

    def read(chosen):
        try:
            yield from opened.search().select(chosen).to_batches(BATCH)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{printable(path)}: cannot be read by LanceDB: {reason(error)}") from error

    return _Table(path, schema, num_rows, read, columns, pa).incoming()


class _Table:
    """A table of Arrow: which of its columns hold what, and their values as arrays.

    read(names of columns) yields record batches.
    """

    def __init__(self, path, schema, num_rows, read, columns, pa):
        self.path, self.schema, self.num_rows, self.read, self.pa = path, schema, num_rows, read, pa
        self.compute = needed("pyarrow.compute", "reading tables", extra="search")
        self.metadata = schema.metadata or {}
        self.class_names = self._class_names()
        self.id = self._column(columns["id"], "id", "--id_column")
        self.code = self._column(columns["code"], "code", "--code_column", must=True)
        self.file = self._column(columns["file"], "file", "--file_column")
        # Other programs drop the metadata, and with it the classes that labels are positions of.
        usual = ("label",) if self.class_names is not None else ("class_name", "label")
        self.label = self._column(columns["label"], usual, "--label_column")
        # A column of another file with such a name may mean anything.
        self.size = self._of_files("size", pa.types.is_int64)
        self.modified = self._of_files("modified", pa.types.is_int64, pa.types.is_timestamp)

    def _of_files(self, name, *kinds):
        """The name if there is such a column, and one of files."""
        if self.file is None or self.schema.names.count(name) != 1:
            return None
        return name if any(is_kind(self.schema.field(name).type) for is_kind in kinds) else None

    def _column(self, given, usual, flag, must=False):
        """The name of a column, None if there is none and none is asked for."""
        usual = (usual,) if isinstance(usual, str) else usual
        for name in (given,) if given else usual:
            count = self.schema.names.count(name)
            if count > 1:
                raise UserError(f"{printable(self.path)}: it has {count} columns called {printable(name)}")
            if count:
                return name
        if given or must:
            names = ", ".join(printable(name) for name in self.schema.names[:30]) or "none"
            raise UserError(
                f"{printable(self.path)}: it has no column {printable(given or usual[0])}; {flag} names one "
                f"of: {names}"
            )
        return None

    def _class_names(self):
        """The classes that an export's metadata lists, None if there are none."""
        text = self.metadata.get(CLASS_NAMES)
        if text is None:
            return None
        try:
            names = json.loads(text)
        except ValueError:
            names = None
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or len(set(names)) < len(names)
        ):
            raise UserError(
                f"{printable(self.path)}: its metadata {CLASS_NAMES.decode()} is no JSON list of texts, "
                "each once"
            )
        return names or None

    def _num_bits(self):
        text = self.metadata.get(NUM_BITS)
        if text is None:
            return None
        if not text.isdigit() or not 1 <= int(text[:9]) <= MAX_BITS:
            raise UserError(
                f"{printable(self.path)}: its metadata {NUM_BITS.decode()} is {printable(repr(text[:20]))}; "
                f"expected 1 to {MAX_BITS}"
            )
        return int(text)

    def incoming(self):
        width = None
        for batch in self.read([self.code]) if self.num_rows else ():
            if batch.num_rows:
                width = self._codes(batch.column(0), None, 0).shape[1]
                break
        return Incoming(self.path, self._num_bits(), width or 0, self.num_rows, lambda: self._batches(width))

    def _batches(self, width):
        names = [self.code, self.id, self.label, self.file, self.size, self.modified]
        chosen = list(dict.fromkeys(name for name in names if name))
        row = 0
        for batch in self.read(chosen):
            columns = dict(zip(batch.schema.names, batch.columns))
            if not batch.num_rows:
                continue
            labels, class_names = self._labels(columns, row)
            yield Batch(
                self._codes(columns[self.code], width, row),
                None if self.id is None else self._ids(columns[self.id], row),
                labels,
                class_names,
                None if self.file is None else self._files(columns[self.file]),
                self._numbers(columns, self.size),
                self._numbers(columns, self.modified),
            )
            row += batch.num_rows

    def _fail(self, column, what):
        raise UserError(f"{printable(self.path)}: column {printable(column)} {what}")

    def _plain(self, array):
        """The array without a dictionary or an extension around it."""
        if isinstance(array, self.pa.ExtensionArray):
            array = array.storage
        if isinstance(array, self.pa.DictionaryArray):
            array = array.dictionary_decode()
        return array

    def _check_no_nulls(self, array, column, first):
        if array.null_count:
            nulls = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
            self._fail(column, f"has no value in row {first + nulls[0]}; every code needs one")

    def _codes(self, array, width, first):
        """uint8 [n, width]; width: None: that of the first code. Raises UserError unless all have it."""
        pa, compute = self.pa, self.compute
        array = self._plain(array)
        self._check_no_nulls(array, self.code, first)
        types, type = pa.types, array.type
        if types.is_fixed_size_binary(type):
            lengths = np.full(len(array), type.byte_width)
        elif types.is_fixed_size_list(type):
            lengths = np.full(len(array), type.list_size)
        elif types.is_binary(type) or types.is_large_binary(type):
            lengths = compute.binary_length(array).to_numpy()
        elif types.is_list(type) or types.is_large_list(type):
            lengths = compute.list_value_length(array).to_numpy()
        else:
            self._fail(
                self.code, f"is {type}; expected binary, or lists of uint8, of one length: packed codes"
            )
        width = int(lengths[0]) if width is None else width
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            self._fail(
                self.code, f"has {lengths[wrong[0]]} bytes in row {first + wrong[0]}, but {width} before that"
            )
        if width == 0:
            self._fail(self.code, f"is empty in row {first}")
        if types.is_fixed_size_binary(type):
            data = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width :]
        elif types.is_binary(type) or types.is_large_binary(type):
            offset = np.int32 if types.is_binary(type) else np.int64
            start = np.frombuffer(array.buffers()[1], offset)[array.offset]
            data = np.frombuffer(array.buffers()[2], np.uint8)[start:]
        else:
            values = array.flatten()
            if not types.is_integer(values.type):
                self._fail(self.code, f"is {type}; expected lists of uint8: packed codes, 8 bits a number")
            if values.null_count:
                self._fail(self.code, f"has a list with a missing number in rows {first} or later")
            try:
                data = values.cast(pa.uint8()).to_numpy()
            except pa.ArrowInvalid as error:
                self._fail(self.code, f"has numbers that are no bytes: {reason(error)}")
        return data[: len(array) * width].reshape(-1, width)

    def _ids(self, array, first):
        array = self._plain(array)
        if not self.pa.types.is_integer(array.type):
            self._fail(self.id, f"is {array.type}; expected integers as ids; --new_ids gives new ids")
        self._check_no_nulls(array, self.id, first)
        try:
            return array.cast(self.pa.int64()).to_numpy()
        except self.pa.ArrowInvalid as error:
            self._fail(self.id, f"has ids that are too high: {reason(error)}; --new_ids gives new ids")

    def _labels(self, columns, first):
        """(labels int64 [n] or None, their class names or None)"""
        if self.label is None:
            return None, None
        array, pa = self._plain(columns[self.label]), self.pa
        if _is_text(pa, array.type):
            encoded = array.cast(pa.large_string()).dictionary_encode()
            return encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy(), encoded.dictionary.to_pylist()
        if pa.types.is_null(array.type):
            return np.full(len(array), -1, np.int64), None
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
            self._fail(self.label, f"is {array.type}; expected integers, or texts: names of classes")
        try:  # pandas makes floating-point numbers of integers where some are missing
            labels = array.cast(pa.int64()).fill_null(-1).to_numpy()
        except pa.ArrowInvalid as error:
            self._fail(self.label, f"has labels that are no whole numbers: {reason(error)}")
        limit = _MAX_LABEL if self.class_names is None else len(self.class_names) - 1
        wrong = np.flatnonzero((labels < -1) | (labels > limit))
        if len(wrong):
            self._fail(
                self.label,
                f"has {labels[wrong[0]]} in row {first + wrong[0]}; expected 0 to {limit}, -1 or nothing",
            )
        return labels, self.class_names

    def _files(self, array):
        array = self._plain(array)
        if self.pa.types.is_null(array.type):
            return [""] * len(array)
        if not _is_text(self.pa, array.type):
            self._fail(self.file, f"is {array.type}; expected texts")
        return [text or "" for text in array.to_pylist()]

    def _numbers(self, columns, name):
        if name is None:
            return None
        array, pa = columns[name], self.pa
        try:
            if pa.types.is_timestamp(array.type):
                array = array.cast(pa.timestamp("ns", tz=array.type.tz))
            values = array.cast(pa.int64()).fill_null(-1).to_numpy()
        except pa.ArrowInvalid as error:
            self._fail(name, f"cannot be read: {reason(error)}")
        return np.maximum(values, -1)


def _is_text(pa, type):
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _joined(path, parts):
    """Several files as one; those of a folder must agree on what codes are."""
    if not parts:
        return Incoming(path, None, 0, 0, lambda: iter(()))
    if len(parts) == 1:
        return dataclasses.replace(parts[0], path=path)
    first = parts[0]
    for part in parts[1:]:
        if (part.num_bits, part.code_size) != (first.num_bits, first.code_size):
            raise UserError(
                f"{printable(part.path)} has codes of {part.num_bits or '?'} bits, {part.code_size} bytes; "
                f"{printable(first.path)} of {first.num_bits or '?'} bits, {first.code_size} bytes: give "
                "files of one kind"
            )
    num_codes = sum(part.num_codes for part in parts)
    return Incoming(
        path,
        first.num_bits,
        first.code_size,
        num_codes,
        lambda: (b for part in parts for b in part.batches()),
    )


# ------------------------------------------------------------------------------------------------ FAISS


def read_faiss(path: str) -> Incoming:
    """A binary index of FAISS: flat, HNSW or IVF, with or without an IndexBinaryIDMap around it. Needs faiss.

    It does not say how many bits of the last byte are padding. FAISS reads it: take files of trusted sources
    only.
    """
    faiss = needed("faiss", "reading FAISS indexes", extra="search")
    try:
        outer = faiss.read_index_binary(path)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise UserError(f"{printable(path)}: cannot be read by FAISS: {reason(error)}") from error
    inner, ids = outer, None
    if isinstance(outer, faiss.IndexBinaryIDMap):  # and IndexBinaryIDMap2, which derives from it
        ids, inner = faiss.vector_to_array(outer.id_map), faiss.downcast_IndexBinary(outer.index)
    if isinstance(inner, faiss.IndexBinaryHNSW):
        inner = faiss.downcast_IndexBinary(inner.storage)
    width = outer.d // 8
    if isinstance(inner, faiss.IndexBinaryIVF):
        parts = _lists_of(faiss, inner)
    elif isinstance(inner, faiss.IndexBinaryFlat):
        parts = _rows_of(faiss, inner)
    else:
        raise UserError(
            f"{printable(path)}: this is FAISS's {type(inner).__name__}; expected IndexBinaryFlat, "
            "IndexBinaryHNSW or IndexBinaryIVF, with or without IndexBinaryIDMap"
        )

    def batches():
        for numbers, codes in parts():
            if ids is not None:
                if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(ids):
                    raise UserError(f"{printable(path)}: this FAISS index is damaged: it has too few ids")
                numbers = ids[numbers]
            yield Batch(codes, numbers)  # without ids, FAISS answers with positions

    batches.keeps = outer  # type: ignore[attr-defined]  # its parts must live as long as they are read
    return Incoming(path, None, width, int(outer.ntotal), batches)


def _rows_of(faiss, flat):
    def parts():
        for first in range(0, flat.ntotal, BATCH):
            count = min(BATCH, flat.ntotal - first)
            yield np.arange(first, first + count), flat.reconstruct_n(first, count)

    return parts


def _lists_of(faiss, ivf):
    lists = ivf.invlists
    width = ivf.code_size

    def parts():
        # Lists are short or long: short ones are put together, long ones are taken in parts.
        gathered: list[tuple[np.ndarray, np.ndarray]] = []
        count = 0
        for number in range(ivf.nlist):
            size = lists.list_size(number)
            if not size:
                continue
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            codes = faiss.rev_swig_ptr(lists.get_codes(number), size * width).reshape(size, width)
            for first in range(0, size, BATCH):
                gathered.append((ids[first : first + BATCH].copy(), codes[first : first + BATCH].copy()))
                count += len(gathered[-1][0])
                if count >= BATCH:
                    yield tuple(map(np.concatenate, zip(*gathered)))
                    gathered.clear()
                    count = 0
        if gathered:
            yield tuple(map(np.concatenate, zip(*gathered)))

    return parts


# ------------------------------------------------------------------------------------------------ llc


def read_npz(path: str) -> Incoming:
    """A file of codes, of python -m llc.encode or an export. Arrays: llc.code_files; ids int64 [n] if any."""
    arrays = read_codes(path)
    codes, num_bits = arrays["codes"], int(arrays["num_bits"])
    n = len(codes)
    ids, labels, files = arrays.get("ids"), arrays.get("labels"), arrays.get("files")
    if ids is not None:
        if ids.shape != (n,) or ids.dtype.kind not in "iu":
            raise UserError(
                f"{printable(path)}: ids are {ids.dtype} {list(ids.shape)}; expected whole numbers [{n}], "
                "one for each code"
            )
        if ids.max() > MAX_ID:  # of uint64, which would become negative
            raise UserError(f"{printable(path)}: ids go up to {ids.max()}; expected at most {MAX_ID}")
        ids = ids.astype(np.int64)
    if labels is not None and labels.max() > _MAX_LABEL:
        raise UserError(f"{printable(path)}: labels go up to {labels.max()}; expected at most {_MAX_LABEL}")
    if files is not None and (files.shape != (n,) or files.dtype.kind != "U"):
        raise UserError(
            f"{printable(path)}: files are {files.dtype} {list(files.shape)}; expected texts [{n}]"
        )
    class_names = arrays.get("class_names")
    names = None if class_names is None or not len(class_names) else class_names.tolist()

    def batches():
        for first in range(0, n, BATCH):
            part = slice(first, first + BATCH)
            yield Batch(
                codes[part],
                None if ids is None else ids[part],
                None if labels is None else labels[part],
                names,
                None if files is None else files[part].tolist(),
            )

    return Incoming(path, num_bits, codes.shape[1], n, batches)


def read_index(path: str) -> Incoming:
    """Another index of llc, such as one that was made on another machine."""
    index = Index.open(path)

    def batches():
        names = list(index.class_names) or None
        for ids, codes, records in index.batches(BATCH):
            yield Batch(codes, ids, records.labels, names, records.files, records.sizes, records.modified)

    return Incoming(path, index.num_bits, index.code_size, len(index), batches, index.model_digest)


READERS: dict[str, Callable[..., Incoming]] = {
    "parquet": read_parquet,
    "lancedb": read_lancedb,
    "faiss": read_faiss,
    "npz": read_npz,
    "llc": read_index,
}
FORMS = ("auto", *READERS)  # of --form
