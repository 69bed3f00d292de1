"""Segments, the immutable parts that an index consists of.

A row is a code with its id, label and file. Within a segment a row has two numbers. Its rank is its place in
the order of ids. Its position is its place in `codes`: with tables, codes that share the bits of the first
table lie together. Without tables both are the same. Removing rows makes a new Segment that shares all arrays
but a bitmap.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from llc.errors import UserError
from llc.native import index as native

COLUMNS = {"labels": np.int32, "sizes": np.int64, "modified": np.int64}  # by rank; -1: unknown
MAX_ROWS = (1 << 32) - 1  # ranks and positions are uint32


class Damaged(UserError):
    """An index whose arrays contradict each other, as those of a damaged or forged file may."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the index is damaged ({what}): python -m llc.index verify INDEX says where")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows in ascending order of ids, before they become a segment, or taken out of one.

    codes uint8 [n, code_size], labels int32 [n], sizes (bytes) and modified (nanoseconds) int64 [n]; names:
    UTF-8 of all files uint8, one after another; name_ends int64 [n]: where each ends. A column that says
    nothing of any row is None. given_ids int64 [n]; None: the ids go up by one from first_id.
    """

    codes: np.ndarray
    given_ids: np.ndarray | None
    first_id: int = 0
    labels: np.ndarray | None = None
    sizes: np.ndarray | None = None
    modified: np.ndarray | None = None
    names: np.ndarray | None = None
    name_ends: np.ndarray | None = None

    @property
    def ids(self) -> np.ndarray:
        """int64 [n]"""
        if self.given_ids is None:
            return np.arange(self.first_id, self.first_id + len(self.codes))
        return self.given_ids

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, chosen: np.ndarray) -> Rows:
        """The rows at `chosen`, int64 [m], in that order."""
        names, ends = take_names(self.names, self.name_ends, chosen)
        columns = {name: _taken(getattr(self, name), chosen) for name in COLUMNS}
        return Rows(self.codes[chosen], self.ids[chosen], 0, **columns, names=names, name_ends=ends)


@dataclasses.dataclass(frozen=True)
class Stored:
    """The files in an index's folder that hold a segment; the checksum is of the segment file's header."""

    file: str
    checksum: int
    kept_file: str | None = None


@dataclasses.dataclass(frozen=True)
class Segment:
    """Up to MAX_ROWS rows. The module says what ranks and positions are.

    codes uint8 [n, code_size] and `kept`, a bitmap uint8 [ceil(n / 8)] of the rows that were not removed (bit
    p & 7 of byte p >> 3; None: all), are by position. ids int64 [n], ascending (None: first_id + rank), and
    the columns are by rank. ranks uint32 [n]: the rank of each position; order uint32 [n]: the position of
    each rank, None: made when it is needed.
    """

    codes: np.ndarray
    first_id: int
    ids: np.ndarray | None = None
    ranks: np.ndarray | None = None
    order: np.ndarray | None = None
    tables: tuple[native.Table, ...] = ()
    planned: tuple[tuple[int, ...], ...] = ()  # the bits of the tables that it is to have
    labels: np.ndarray | None = None
    sizes: np.ndarray | None = None
    modified: np.ndarray | None = None
    names: np.ndarray | None = None
    name_ends: np.ndarray | None = None
    kept: np.ndarray | None = None
    num_removed: int = 0
    stored: Stored | None = None

    @classmethod
    def of(cls, rows: Rows, num_bits: int, num_threads: int) -> Segment:
        """A segment of rows; if tables make searching faster, with the first of them (with_next_table)."""
        plan, codes = native.table_plan(rows.codes, num_bits), rows.codes
        fields: dict[str, Any] = {}
        if plan:
            codes, ranks, offsets = native.sort(codes, plan[0], num_threads)
            fields |= {"ranks": ranks, "tables": (native.Table(plan[0], offsets),), "planned": tuple(plan)}
        ids, n = rows.given_ids, len(rows)
        first_id = rows.first_id if ids is None else int(ids[0]) if n else 0
        if ids is not None and (n == 0 or int(ids[-1]) - first_id == n - 1):
            ids = None
        columns = {name: getattr(rows, name) for name in (*COLUMNS, "names", "name_ends")}
        return cls(codes, first_id, ids=ids, **columns, **fields)

    @property
    def complete(self) -> bool:
        """Whether it has all the tables that make searching it faster."""
        return len(self.tables) >= len(self.planned)

    def with_next_table(self, num_threads: int) -> Segment:
        """The segment with one table more; not for a segment that is complete."""
        bits = self.planned[len(self.tables)]
        table = native.Table(bits, *native.table(self.codes, bits, num_threads))
        return self._replaced(tables=(*self.tables, table))

    def arrays(self, allowed: np.ndarray | None) -> native.SegmentArrays:
        """The segment as the native library takes it. allowed: a bitmap by position, None: all rows."""
        return native.SegmentArrays(self.codes, self.ranks, self.ids, self.first_id, allowed, self.tables)

    @property
    def num_rows(self) -> int:
        """The number of rows, removed ones among them."""
        return len(self.codes)

    def __len__(self) -> int:
        return len(self.codes) - self.num_removed

    @functools.cached_property
    def _positions_by_rank(self) -> np.ndarray | None:
        if self.ranks is None or self.order is not None:
            return self.order
        if len(self.ranks) and self.ranks.max() >= len(self.ranks):
            raise Damaged("a rank is too high")
        order = np.zeros(len(self.ranks), np.uint32)
        order[self.ranks] = np.arange(len(self.ranks), dtype=np.uint32)
        return order

    def positions_of(self, ranks: np.ndarray) -> np.ndarray:
        """The positions of ranks, int64 [m]."""
        order = self._positions_by_rank
        if order is None:
            return ranks
        positions = order[ranks].astype(np.int64)
        if len(positions) and positions.max() >= self.num_rows:
            raise Damaged("a position is too high")
        return positions

    def ids_of(self, ranks: np.ndarray) -> np.ndarray:
        """The ids of ranks, int64 [m]."""
        return self.first_id + ranks if self.ids is None else self.ids[ranks]

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The ranks of ids, int64 [m]; -1 for those that are not here or were removed."""
        n = self.num_rows
        if n == 0 or len(ids) == 0:
            return np.full(len(ids), -1, np.int64)
        if self.ids is None:
            inside = (ids >= self.first_id) & (ids - self.first_id < n)  # ids >= 0, so nothing overflows
            ranks = np.where(inside, ids - self.first_id, -1)
        else:
            ranks = np.minimum(np.searchsorted(self.ids, ids), n - 1)
            ranks = np.where(self.ids[ranks] == ids, ranks, -1)
        return np.where(self.has(ranks), ranks, -1)

    def has(self, ranks: np.ndarray) -> np.ndarray:
        """Whether rows were not removed, bool [m]; False for the rank -1."""
        there = ranks >= 0
        if self.kept is not None:
            positions = self.positions_of(np.maximum(ranks, 0))
            there &= (self.kept[positions >> 3] >> (positions & 7) & 1).astype(bool)
        return there

    def live_ranks(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """The ranks in [first, last) of rows that were not removed, ascending, int64."""
        ranks = np.arange(first, self.num_rows if last is None else min(last, self.num_rows))
        return ranks if self.kept is None else ranks[self.has(ranks)]

    def rows(self, ranks: np.ndarray) -> Rows:
        """Rows by their ranks, int64 [m], in that order."""
        names, ends = take_names(self.names, self.name_ends, ranks)
        columns = {name: _taken(getattr(self, name), ranks) for name in COLUMNS}
        codes = self.codes[self.positions_of(ranks)]
        return Rows(codes, self.ids_of(ranks), 0, **columns, names=names, name_ends=ends)

    def without(self, ranks: np.ndarray) -> Segment:
        """The segment without rows that are in it, by their ranks, int64 [m], each once."""
        kept = full_bitmap(self.num_rows) if self.kept is None else self.kept.copy()
        positions = self.positions_of(ranks)
        np.bitwise_and.at(kept, positions >> 3, ~(1 << (positions & 7)).astype(np.uint8))
        stored = None if self.stored is None else dataclasses.replace(self.stored, kept_file=None)
        return self._replaced(kept=kept, num_removed=self.num_removed + len(ranks), stored=stored)

    def stored_as(self, stored: Stored) -> Segment:
        return self._replaced(stored=stored)

    def with_kept(self, kept: np.ndarray | None, num_removed: int, stored: Stored) -> Segment:
        """The segment with the rows that a stored bitmap keeps."""
        return self._replaced(kept=kept, num_removed=num_removed, stored=stored)

    def _replaced(self, **changes: Any) -> Segment:
        """The same segment with some fields changed; what was computed from the other fields is kept."""
        segment = dataclasses.replace(self, **changes)
        for name in ("_positions_by_rank", "_hashes"):
            if name in self.__dict__:
                segment.__dict__[name] = self.__dict__[name]
        return segment

    def allowed(self, by_rank: np.ndarray | None) -> np.ndarray | None:
        """A bitmap by position of rows that may be found: not removed, and among by_rank, bool [n]."""
        if by_rank is None:
            return self.kept
        try:
            by_position = by_rank if self.ranks is None else by_rank[self.ranks]
        except IndexError as error:
            raise Damaged("a rank is too high") from error
        bitmap = np.packbits(by_position, bitorder="little")
        return bitmap if self.kept is None else bitmap & self.kept

    @functools.cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """(hashes of the files' names uint64 [n], ascending; the ranks that they belong to)."""
        assert self.names is not None and self.name_ends is not None
        ends, everything = self.name_ends.tolist(), memoryview(self.names.tobytes())
        hashes = np.fromiter(
            (hash_of(everything[first:last]) for first, last in zip([0, *ends], ends)), np.uint64, len(ends)
        )
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def find_files(self, names: Sequence[bytes]) -> np.ndarray:
        """The ranks of files by name, int64 [m]; -1 for names that are not here. Of several, the lowest."""
        found = np.full(len(names), -1, np.int64)
        if self.names is None or self.name_ends is None:
            return found
        hashes, ranks = self._hashes
        wanted = np.fromiter(map(hash_of, names), np.uint64, len(names))
        firsts, lasts = (np.searchsorted(hashes, wanted, side=side) for side in ("left", "right"))
        counts = lasts - firsts
        places = np.repeat(np.arange(len(names)), counts)
        # all ranks with a wanted hash, those of one name ascending, because the sort of hashes is stable
        same = ranks[np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(len(places))]
        there = self.has(same)
        for i, rank in zip(places[there].tolist(), same[there].tolist()):
            if found[i] < 0 and names[i] and name_at(self.names, self.name_ends, rank) == names[i]:
                found[i] = rank
        return found

    def has_file(self, name: bytes) -> bool:
        """Whether a row has this file. It looks through all names, without hashing them."""
        if self.names is None or self.name_ends is None:
            return False
        everything, start = self.names.tobytes(), -1
        while (start := everything.find(name, start + 1)) >= 0:
            rank = int(np.searchsorted(self.name_ends, start, side="right"))
            if rank < self.num_rows and name_at(self.names, self.name_ends, rank) == name:
                if self.has(np.array([rank]))[0]:
                    return True
        return False


def hash_of(name: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def full_bitmap(n: int) -> np.ndarray:
    """A bitmap of n ones, uint8 [ceil(n / 8)]; the bits behind them are 0."""
    bitmap = np.full((n + 7) // 8, 255, np.uint8)
    if n % 8:
        bitmap[-1] = (1 << n % 8) - 1
    return bitmap


def merged(parts: Sequence[Rows]) -> Rows:
    """Rows of several parts, in ascending order of ids, of which no two are equal."""
    if len(parts) == 1:
        return parts[0]
    ids = None
    ends = np.cumsum([parts[0].first_id, *map(len, parts)])
    if any(part.given_ids is not None for part in parts) or [p.first_id for p in parts] != ends[:-1].tolist():
        ids = np.concatenate([part.ids for part in parts])
    columns = {name: _joined(name, parts) for name in COLUMNS}
    names = name_ends = None
    if any(part.names is not None for part in parts):
        filled = [
            (part.names, part.name_ends) if part.names is not None else no_names(part) for part in parts
        ]
        names = np.concatenate([names for names, _ in filled])
        starts = np.cumsum([0, *(len(names) for names, _ in filled)])
        name_ends = np.concatenate([start + ends for start, (_, ends) in zip(starts, filled)])
    codes = np.concatenate([part.codes for part in parts])
    rows = Rows(codes, ids, parts[0].first_id, **columns, names=names, name_ends=name_ends)
    return rows if ids is None or is_ascending(ids) else rows.take(np.argsort(ids, kind="stable"))


def is_ascending(ids: np.ndarray) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def no_names(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.uint8), np.zeros(len(rows), np.int64)


def join_names(names: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as Rows holds them: (names uint8, name_ends int64 [n])."""
    ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), dtype=np.int64)
    return np.frombuffer(b"".join(names), np.uint8), ends


def name_at(names: np.ndarray, ends: np.ndarray, rank: int) -> bytes:
    """One of the texts that Rows holds."""
    first, last = int(ends[rank - 1]) if rank else 0, int(ends[rank])
    if not 0 <= first <= last <= len(names):
        raise Damaged("a file's name is outside the names")
    return names[first:last].tobytes()


def take_names(names, ends, chosen):
    """The texts at `chosen`, int64 [m], as Rows holds them; (None, None) where there are none."""
    if names is None:
        return None, None
    lasts = ends[chosen]
    firsts = np.where(chosen > 0, ends[np.maximum(chosen - 1, 0)], 0)
    lengths = lasts - firsts
    if len(chosen) and (firsts.min() < 0 or lengths.min() < 0 or lasts.max() > len(names)):
        raise Damaged("a file's name is outside the names")
    new_ends = np.cumsum(lengths, dtype=np.int64)
    total = int(new_ends[-1]) if len(new_ends) else 0
    source = np.arange(total) + np.repeat(firsts - (new_ends - lengths), lengths)
    return names[source], new_ends


def _taken(column, chosen):
    return None if column is None else column[chosen]


def _joined(name, parts):
    """A column of several parts; those without it are filled with -1."""
    columns = [getattr(part, name) for part in parts]
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(len(part), -1, COLUMNS[name]) if column is None else column
            for part, column in zip(parts, columns)
        ]
    )
