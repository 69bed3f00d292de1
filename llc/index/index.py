"""llc.Index: packed codes with ids, searched exactly.

>>> import numpy as np, llc
>>> index = llc.Index(num_bits=16)
>>> index.add(np.array([[0, 0], [255, 0], [0, 1]], np.uint8))
array([0, 1, 2])
>>> distances, ids = index.search(np.array([[0, 3]], np.uint8), k=2)
>>> print(distances, ids)
[[1 2]] [[2 0]]

An index consists of segments (segment.py). What is added becomes a small one when it is searched or saved
for the first time, and small ones are merged as they become many, so each row is written anew a number of
times that grows with the logarithm of the number of rows. What is searched is a tuple of segments that never
change, so any number of threads may search while one adds and removes.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llc.arguments import one_of, whole_number
from llc.codes import Array, code_size
from llc.errors import UserError
from llc.index import storage
from llc.index.arguments import MAX_ID, as_bytes, as_codes, as_column, as_ids, as_labels
from llc.index.segment import COLUMNS, MAX_ROWS, Damaged, Rows, Segment, is_ascending, join_names, merged
from llc.index.state import Filter, State
from llc.native import index as native

if TYPE_CHECKING:
    from llc.encoder import Encoder

MAX_BITS = 4096
_METHODS = ("auto", "tables", "scan")
# A segment is merged with the one before it while that has less than GROWTH times as many rows.
GROWTH = 4
# Segments are not merged beyond this many bytes of codes, because merging happens in memory.
MERGED_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Records:
    """What an index knows of n rows beside their codes, in the order in which they were asked for.

    ids int64 [n]; labels int32 [n], -1: none; files: texts, "": none; sizes (bytes) and modified
    (nanoseconds since 1970) int64 [n] of the files, -1: unknown.
    """

    ids: np.ndarray
    labels: np.ndarray
    files: list[str]
    sizes: np.ndarray
    modified: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class _Contents:
    """All that changes of an index. Each change replaces it by one assignment.

    So other threads see all of a change or nothing, and so does whoever goes on after a Ctrl-C.

    pending: rows that are not yet in the state, and those pending before them, or None. saved: whether it is
    as in the folder. seen: the folder's manifest, as it was read or written last. encoder: a model that is
    not yet in the folder.
    """

    state: State
    pending: tuple[Rows, Any] | None = None
    num_pending: int = 0
    class_names: tuple[str, ...] = ()
    next_id: int = 0
    max_label: int = -1
    saved: bool = False
    seen: storage.Manifest | None = None
    model: storage.Model | None = None
    encoder: Encoder | None = None

    def changed(self, **changes: Any) -> _Contents:
        return dataclasses.replace(self, **{"saved": False, **changes})

    def with_rows(self, rows: Rows, **changes: Any) -> _Contents:
        pending, count = (rows, self.pending), self.num_pending + len(rows)
        return self.changed(pending=pending, num_pending=count, **changes)

    def manifest(self) -> storage.Manifest:
        """What a manifest says of it, but for the files."""
        return storage.Manifest(
            self.state.num_bits, self.next_id, self.class_names, self.max_label, model=self.model
        )

    @classmethod
    def read(cls, manifest: storage.Manifest, segments: Sequence[Segment]) -> _Contents:
        return cls(
            State(segments, manifest.num_bits),
            class_names=manifest.class_names,
            next_id=manifest.next_id,
            max_label=manifest.max_label,
            saved=True,
            seen=manifest,
            model=manifest.model,
        )


class Index:
    """Codes of num_bits bits, 1 to 4096, with ids, and perhaps labels and file names.

    It is empty at first; `Index.open` opens one that was saved. Raises ValueError for another num_bits.
    """

    def __init__(self, num_bits: int) -> None:
        self.num_bits = whole_number("num_bits", num_bits, 1, MAX_BITS)
        self.code_size = code_size(self.num_bits)
        self._contents = _Contents(State((), self.num_bits))
        self._mutex = threading.RLock()  # one change at a time
        self._folder: storage.Folder | None = None

    def __reduce__(self) -> Any:
        raise TypeError("an llc.Index cannot be copied or pickled; save() it, and open it where it is needed")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; a label is a position among them."""
        return self._contents.class_names

    @property
    def next_id(self) -> int:
        """The id that is given next: above all that were ever in the index."""
        return self._contents.next_id

    # ---- what is in it

    def __len__(self) -> int:
        contents = self._contents
        return contents.state.size + contents.num_pending

    def __contains__(self, id: object) -> bool:
        try:
            number = operator.index(id)  # type: ignore[arg-type]
        except TypeError:
            return False
        return 0 <= number <= MAX_ID and bool(self._snapshot().has(np.array([number]))[0])

    def __repr__(self) -> str:
        return f"<llc.Index of {len(self):,} codes of {self.num_bits} bits>"

    @property
    def ids(self) -> np.ndarray:
        """All ids, int64 [len(index)], ascending."""
        return self._snapshot().ids()

    def get(self, ids: Any) -> np.ndarray:
        """The codes of ids, uint8 [n, code_size], in their order.

        Raises ValueError for ids that are not in the index.
        """
        state, ids = self._snapshot(), as_ids(ids)
        codes = np.empty((len(ids), self.code_size), np.uint8)
        for segment, rows, ranks in state.each(ids):
            codes[rows] = segment.codes[segment.positions_of(ranks)]
        return codes

    def records(self, ids: Any) -> Records:
        """Labels and files of ids, int [n], in their order. Raises ValueError for ids not in the index."""
        state, ids = self._snapshot(), as_ids(ids)
        columns = {name: np.full(len(ids), -1, dtype) for name, dtype in COLUMNS.items()}
        files = [""] * len(ids)
        for segment, rows, ranks in state.each(ids):
            found = segment.rows(ranks)
            for name in COLUMNS:
                values = getattr(found, name)
                if values is not None:
                    columns[name][rows] = values
            if found.names is not None:
                for row, text in zip(rows.tolist(), _texts(found)):
                    files[row] = text
        if len(ids) and self.class_names and columns["labels"].max() >= len(self.class_names):
            raise Damaged("a label has no class name")
        return Records(ids, files=files, **columns)

    def find_files(self, files: Sequence[str]) -> np.ndarray:
        """The ids of files by their recorded names, int64 [n]; -1 for those that are not in the index.

        Of several rows with one name, the lowest id.
        """
        names = [as_bytes("files", name) for name in files]
        found = np.full(len(names), -1, np.int64)
        for segment in self._snapshot().segments:
            ranks = segment.find_files(names)
            there = np.flatnonzero(ranks >= 0)
            ids = segment.ids_of(ranks[there])
            found[there] = np.where(found[there] < 0, ids, np.minimum(found[there], ids))
        return found

    def has_file(self, file: str) -> bool:
        """Whether a row has this file. For a single question, this is faster than `find_files`."""
        name = as_bytes("file", file)
        return bool(name) and any(segment.has_file(name) for segment in self._snapshot().segments)

    def select(self, filter: Filter) -> np.ndarray:
        """The ids that a filter of `search` allows, int64 [m], ascending. Raises ValueError."""
        return self._snapshot().select(filter, self.class_names)

    def groups(self, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """Groups of two or more codes that chains connect whose steps are at most `radius` bits long.

        -> (lims int64 [num_groups + 1], ids int64): group i is ids[lims[i]:lims[i + 1]], ascending. The time
        is about linear in the number of codes as long as the radius is short.
        """
        radius = whole_number("radius", radius, 0)
        return native.groups(self._snapshot().everything, radius)

    def batches(self, size: int = 65536) -> Iterator[tuple[np.ndarray, np.ndarray, Records]]:
        """(ids, codes, records) of all rows, up to `size` at a time, in ascending order of ids."""
        size = whole_number("size", size, 1)
        return self._batches(self._snapshot(), size)

    def _batches(self, state: State, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, Records]]:
        # A batch takes from each segment the rows up to the lowest id at which one of them has given `size`.
        cursors = [0] * len(state.segments)
        while True:
            parts, limits = [], []
            for i, segment in enumerate(state.segments):
                ranks = np.empty(0, np.int64)
                while len(ranks) < size and cursors[i] < segment.num_rows:  # skips removed rows
                    found = segment.live_ranks(cursors[i], cursors[i] + size)
                    cursors[i] += size
                    ranks = np.concatenate([ranks, found])
                ids = segment.ids_of(ranks)
                parts.append((segment, ranks, ids))
                if cursors[i] < segment.num_rows and len(ids):
                    limits.append(int(ids[-1]))
            limit = min(limits, default=MAX_ID)
            taken = []
            for i, (segment, ranks, ids) in enumerate(parts):
                count = int(np.searchsorted(ids, limit, side="right"))
                taken.append((segment, ranks[:count]))
                if count < len(ranks):
                    cursors[i] = int(ranks[count])
            rows = merged([segment.rows(ranks) for segment, ranks in taken]) if taken else None
            if rows is None or len(rows) == 0:
                if any(cursor < s.num_rows for cursor, s in zip(cursors, state.segments)):
                    raise Damaged("ids are not ascending")
                return
            for first in range(0, len(rows), size):
                part = rows.take(np.arange(first, min(first + size, len(rows))))
                yield part.ids, part.codes, _records_of(part)

    def stats(self) -> dict[str, Any]:
        """What the index consists of: numbers of rows, bytes, and how each segment is searched."""
        state = self._snapshot()
        labels = sum(
            int((s.labels[s.live_ranks()] >= 0).sum()) for s in state.segments if s.labels is not None
        )
        return {
            "num_codes": state.size,
            "num_bits": self.num_bits,
            "code_size": self.code_size,
            "num_removed": sum(segment.num_removed for segment in state.segments),
            "num_labelled": labels,
            "num_classes": len(self.class_names),
            "next_id": self.next_id,
            "bytes": sum(map(_bytes_of, state.segments)),
            "segments": [
                {
                    "file": None if segment.stored is None else segment.stored.file,
                    "num_codes": len(segment),
                    "num_removed": segment.num_removed,
                    "first_id": segment.first_id,
                    "tables": [len(table.bits) for table in segment.tables],
                    "bytes": _bytes_of(segment),
                }
                for segment in state.segments
            ],
        }

    # ---- changes

    def add(
        self,
        codes: Array,
        ids: Any = None,
        *,
        labels: Any = None,
        class_names: Sequence[str] | None = None,
        files: Sequence[str] | None = None,
        sizes: Any = None,
        modified: Any = None,
    ) -> np.ndarray:
        """Adds n codes, uint8 [n, code_size] -> their ids, int64 [n].

        ids: integers of 0 or more, [n], none of which may be in the index; None: the next free ones, which
        are never ids that were removed. labels [n]: numbers of class_names, -1: none. class_names: texts;
        names that are new become new classes of the index. Without them, labels are numbers of
        index.class_names if the index has any, else just numbers. files [n]: texts, "": none, with their
        sizes in bytes and times of modification in nanoseconds, -1: unknown. Raises ValueError, and then
        nothing is added.
        """
        packed = as_codes("codes", codes, self.num_bits)
        columns = self._as_columns(len(packed), files, sizes, modified)
        with self._mutex:
            new_ids = self._as_new_ids(ids, len(packed))
            if ids is not None:
                self._check_new(new_ids)
            self._add(packed, new_ids, labels, class_names, columns, consecutive=ids is None)
        return new_ids

    def replace(
        self,
        ids: Any,
        codes: Array,
        *,
        labels: Any = None,
        class_names: Sequence[str] | None = None,
        files: Sequence[str] | None = None,
        sizes: Any = None,
        modified: Any = None,
    ) -> None:
        """Gives ids that are in the index other codes, labels and files, in one step.

        ids: int [n], each once; the other arguments are those of `add`. Raises ValueError, and then nothing
        is changed.
        """
        packed = as_codes("codes", codes, self.num_bits)
        columns = self._as_columns(len(packed), files, sizes, modified)
        with self._mutex:
            state, new_ids = self._snapshot(), self._as_new_ids(ids, len(packed))
            _check_unique(new_ids)
            state.check(new_ids)
            without, _ = state.without(new_ids)
            self._add(packed, new_ids, labels, class_names, columns, state=without)

    def _as_columns(self, n: int, files: Any, sizes: Any, modified: Any) -> dict[str, Any]:
        """What is known of the files of n codes, as Rows takes it."""
        columns: dict[str, Any] = {
            "sizes": as_column("sizes", sizes, n),
            "modified": as_column("modified", modified, n),
        }
        if files is not None:
            if len(files) != n:
                raise ValueError(f"files: expected {n}, one for each code, got {len(files)}")
            texts = [as_bytes("files", name) for name in files]
            columns["names"], columns["name_ends"] = join_names(texts)
        return columns

    def _as_new_ids(self, ids: Any, n: int) -> np.ndarray:
        if ids is None:
            if self.next_id + n - 1 > MAX_ID:
                raise ValueError(f"ids: after {self.next_id - 1} there are no {n} free ids; give your own")
            return np.arange(self.next_id, self.next_id + n)
        new_ids = as_ids(ids)
        if len(new_ids) != n:
            raise ValueError(f"ids: expected {n}, one for each code, got {len(new_ids)}")
        return new_ids

    def _add(
        self,
        codes: np.ndarray,
        ids: np.ndarray,
        labels: Any,
        class_names: Sequence[str] | None,
        columns: dict[str, Any],
        *,
        consecutive: bool = False,
        **changes: Any,
    ) -> None:
        """Adds checked rows, and makes other changes, in one step."""
        contents = self._contents
        numbers, names = as_labels(labels, class_names, len(codes), contents.class_names, contents.max_label)
        if len(codes) == 0:
            return
        if consecutive or is_ascending(ids):
            # copies, because the caller may write to theirs
            rows = Rows(codes.copy(), None if consecutive else ids.copy(), int(ids[0]), numbers, **columns)
        else:
            rows = Rows(codes, ids, 0, numbers, **columns).take(np.argsort(ids, kind="stable"))
        self._contents = contents.with_rows(
            rows,
            class_names=names,
            max_label=max(contents.max_label, -1 if numbers is None else int(numbers.max())),
            next_id=max(contents.next_id, int(ids.max()) + 1),
            **changes,
        )

    def remove(self, ids: Any, *, missing: str = "error") -> int:
        """Removes rows by their ids, int [n] -> how many were removed.

        missing: "error" raises ValueError if an id is not in the index, and then removes none; "ignore". Each
        call copies a bitmap with a bit for each row, so remove many ids by one call.
        """
        one_of("missing", missing, ("error", "ignore"))
        with self._mutex:
            state, ids = self._snapshot(), np.unique(as_ids(ids))
            if missing == "error":
                state.check(ids)
            without, count = state.without(ids)
            if count:
                self._contents = self._contents.changed(state=without)
        return count

    def optimize(self) -> None:
        """Makes one segment of all, without removed rows, in memory; for more than 2^32 rows several."""
        with self._mutex:
            segments = self._snapshot().segments
            if len(segments) > 1 or any(segment.num_removed for segment in segments):
                built = self._built([_live_rows(segment) for segment in segments])
                self._contents = self._contents.changed(state=State(built, self.num_bits))
                self._snapshot()

    # ---- search

    def search(
        self,
        queries: Array,
        k: int = 10,
        *,
        filter: Filter = None,
        method: str = "auto",
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest codes of each query, exactly, sorted by distance, then id.

        queries uint8 [n, code_size] -> (distances int32 [n, k], ids int64 [n, k]). Where there are fewer than
        k, the rest of both is -1.

        filter: which rows may be found. Integers [m]: ids (those that are not in the index find nothing);
        bool [len(index)]: a mask in the order of index.ids; one integer: a label; a text or a list of texts:
        names of classes. method: "tables" looks in tables of some of the bits (multi-index hashing), "scan"
        compares all codes, "auto" takes what is faster; the results are the same. num_threads: None: as many
        as torch uses. Raises ValueError for wrong arguments.
        """
        packed = as_codes("queries", queries, self.num_bits)
        k = whole_number("k", k, 1)
        segments, threads = self._prepare(filter, method, num_threads)
        return native.search(segments, packed, k, threads, method)

    def range_search(
        self,
        queries: Array,
        radius: int,
        *,
        filter: Filter = None,
        method: str = "auto",
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All codes within a radius of each query: distance <= radius.

        queries uint8 [n, code_size] -> (lims int64 [n + 1], distances int32 [total], ids int64 [total]). What
        was found for query i is at lims[i]:lims[i + 1], sorted by distance, then id. The other arguments, and
        errors, are those of `search`.
        """
        packed = as_codes("queries", queries, self.num_bits)
        radius = whole_number("radius", radius, 0)
        segments, threads = self._prepare(filter, method, num_threads)
        return native.range_search(segments, packed, min(radius, self.num_bits), threads, method)

    def _prepare(self, filter: Filter, method: str, num_threads: int | None) -> tuple[native.Segments, int]:
        if method not in _METHODS:
            one_of("method", method, _METHODS)
        return self._snapshot().allowing(filter, self.class_names), _threads(num_threads)

    # ---- files

    @classmethod
    def open(cls, path: str | os.PathLike[str], write: bool = False) -> Index:
        """Opens an index that was saved at `path`, a folder, which is mapped into memory and read as needed.

        Changes are in memory until `save()`. write: takes the lock of the one writer at once, until `close()`
        or the end of a `with` block; without it save() takes the lock, and fails if another process has
        changed the index since it was opened. Raises UserError if there is no index, if it is damaged, of a
        newer format, or being written by another process.
        """
        folder = storage.Folder(Path(path))
        if write:
            folder.lock()
        try:
            manifest, segments = folder.read()
            index = cls(manifest.num_bits)
            index._folder, index._contents = folder, _Contents.read(manifest, segments)
        except BaseException:
            folder.unlock()
            raise
        return index

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Writes what was changed to the index's folder, as one step: a crash leaves it as it was before.

        path: a new folder, for an index that has none yet, or for a copy; None, or the folder that was
        opened: that one. Raises UserError if something else is at `path`, if the disk is full, if another
        process is writing, or has changed the index since it was opened.
        """
        with self._mutex:
            self._snapshot()
            contents, here = self._contents, self._folder
            if path is not None and (here is None or not here.is_at(Path(path))):
                written = storage.create(
                    Path(path), contents.manifest(), contents.state.segments, here, contents.encoder
                )
                if here is None:
                    self._folder, self._contents = storage.Folder(Path(path)), _Contents.read(*written)
                return
            if here is None:
                raise ValueError(
                    "path: this index was not saved before; give the folder that it is to become"
                )
            if contents.saved:
                here.tidy()
                return
            written = here.commit(
                contents.manifest(), contents.state.segments, contents.encoder, contents.seen
            )
            self._contents = _Contents.read(*written)

    def refresh(self) -> bool:
        """Takes over what other processes have saved since -> whether there was something.

        Raises ValueError if this index has no folder, or changes of its own that were not saved.
        """
        with self._mutex:
            contents = self._contents
            if self._folder is None:
                raise ValueError("refresh: this index has no folder")
            if not contents.saved:
                raise ValueError("refresh: the index has changes that were not saved; save() them first")
            newer = self._folder.newer(contents.seen, contents.state.segments)
            if newer is None:
                return False
            manifest, segments = newer
            if manifest.num_bits != self.num_bits:
                raise UserError(f"{self.path}: it was replaced by an index of {manifest.num_bits} bits")
            self._contents = _Contents.read(manifest, segments)
            return True

    def close(self) -> None:
        """Gives the lock back. What was not saved stays in memory."""
        if self._folder is not None:
            self._folder.unlock()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path | None:
        """The folder where the index is saved, None for one in memory."""
        return None if self._folder is None else self._folder.path

    @property
    def model(self) -> Path | None:
        """The saved encoder in the index's folder, for llc.load; None if there is none."""
        model = self._contents.model
        return None if model is None or self.path is None else self.path / model.file

    @property
    def model_digest(self) -> str | None:
        """What tells the model of this index's codes from others (storage.Model), if it is known."""
        contents = self._contents
        if contents.encoder is not None:
            return storage.Model.of(contents.encoder).digest
        return None if contents.model is None else contents.model.digest

    def set_model(self, encoder: Encoder) -> None:
        """Keeps the encoder with the index: the next save() writes it into the folder.

        Raises UserError if its codes have another length, or if the index has another model already.
        """
        if encoder.num_bits != self.num_bits:
            raise UserError(
                f"the model makes codes of {encoder.num_bits} bits, the index has {self.num_bits}"
            )
        with self._mutex:
            if self.model_digest not in (None, storage.Model.of(encoder).digest):
                raise UserError("the index's codes were made by another model; use that, or make a new index")
            if self._contents.model is None:
                self._contents = self._contents.changed(encoder=encoder)

    # ---- within

    def _snapshot(self) -> State:
        """The state with everything that was added, and with all tables."""
        contents = self._contents
        if contents.num_pending == 0 and contents.state.complete:
            return contents.state
        with self._mutex:
            if self._contents.num_pending:
                self._contents = self._sealed(self._contents)
            # One table at a time takes the place of a state that answers as well without it, only slower. So
            # the pending rows are freed before there are all tables, and nothing is lost by a Ctrl-C.
            while not self._contents.state.complete:
                contents = self._contents
                state = contents.state.with_next_table(torch.get_num_threads())
                self._contents = dataclasses.replace(contents, state=state)
            return self._contents.state

    def _sealed(self, contents: _Contents) -> _Contents:
        """The pending rows as the last segment, merged with others where these are too many."""
        pending, rest = [], contents.pending
        while rest is not None:
            rows, rest = rest
            pending.append(rows)
        segments, total, count = contents.state.segments, contents.num_pending, 0
        most = min(MERGED_BYTES // self.code_size, MAX_ROWS)
        while count < len(segments) and (size := len(segments[-1 - count])) < GROWTH * total:
            if total + size > most:
                break
            total += size
            count += 1
        merging = segments[len(segments) - count :]
        built = self._built([*map(_live_rows, merging), *pending[::-1]])
        state = State([*segments[: len(segments) - count], *built], self.num_bits)
        return dataclasses.replace(contents, state=state, pending=None, num_pending=0)

    def _built(self, parts: Sequence[Rows]) -> list[Segment]:
        """Segments of rows, as few as possible, with a first table at most."""
        rows, threads = merged(parts), torch.get_num_threads()
        firsts = range(0, len(rows), MAX_ROWS)
        if len(firsts) <= 1:
            return [Segment.of(rows, self.num_bits, threads)]
        chunks = (rows.take(np.arange(first, min(first + MAX_ROWS, len(rows)))) for first in firsts)
        return [Segment.of(chunk, self.num_bits, threads) for chunk in chunks]

    def _check_new(self, ids: np.ndarray) -> None:
        if len(ids) == 0:
            return
        _check_unique(ids)
        if ids.min() >= self.next_id:
            return  # above all that were ever in the index
        taken = self._snapshot().has(ids)
        if taken.any():
            raise ValueError(
                f"ids: {int(taken.sum())} are in the index already, such as {ids[taken][0]}; remove them "
                "first"
            )


def _check_unique(ids: np.ndarray) -> None:
    ordered = ids if is_ascending(ids) else np.sort(ids)
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        raise ValueError(f"ids: each may be given once, but {ordered[same[0]]} is there several times")


def _threads(num_threads: int | None) -> int:
    return torch.get_num_threads() if num_threads is None else whole_number("num_threads", num_threads, 1)


def _live_rows(segment: Segment) -> Rows:
    return segment.rows(segment.live_ranks())


def _texts(rows: Rows) -> list[str]:
    assert rows.names is not None and rows.name_ends is not None
    everything, ends = rows.names.tobytes(), rows.name_ends.tolist()
    return [
        everything[first:last].decode("utf-8", "surrogateescape") for first, last in zip([0, *ends], ends)
    ]


def _records_of(rows: Rows) -> Records:
    def column(name: str) -> np.ndarray:
        values = getattr(rows, name)
        return np.full(len(rows), -1, COLUMNS[name]) if values is None else values

    files = [""] * len(rows) if rows.names is None else _texts(rows)
    return Records(rows.ids, files=files, **{name: column(name) for name in COLUMNS})


def _bytes_of(segment: Segment) -> int:
    arrays: list[np.ndarray | None] = [getattr(segment, field.name) for field in dataclasses.fields(segment)]
    tables = [array for table in segment.tables for array in (table.offsets, table.positions)]
    return sum(array.nbytes for array in [*arrays, *tables] if isinstance(array, np.ndarray))
