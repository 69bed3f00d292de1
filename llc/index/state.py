"""What a search sees of an index: segments that never change, and which of their rows a filter allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from llc.index.arguments import as_ids
from llc.index.segment import Damaged, Segment, is_ascending
from llc.native import index as native

Filter = Any  # ids, a mask, a label or class names: Index.search says what each is

# Of a segment, up to this part, or so many rows, are copied and scanned if a filter allows no others. Where
# it allows more, a search skips those that it does not allow.
_FEW_PART, _FEW_ROWS = 32, 4096
_MAX_FILTERS = 8  # filters by label that are kept


class State:
    """The segments of an index at some moment, ready for the native library."""

    def __init__(self, segments: Sequence[Segment], num_bits: int) -> None:
        self.segments = tuple(segments)
        self.num_bits = num_bits
        self.size = sum(map(len, self.segments))
        self.everything = native.Segments([segment.arrays(segment.kept) for segment in segments], num_bits)
        if self.everything.num_allowed != self.size:
            raise Damaged("a number of removed rows is not that of its bitmap")
        self.complete = all(segment.complete for segment in self.segments)
        self._by_labels: dict[tuple[int, ...], native.Segments] = {}

    # ---- rows by id

    def find(self, ids: np.ndarray) -> list[np.ndarray]:
        """For each segment the ranks of ids, int64 [n]; -1 where they are not in it."""
        return [segment.find(ids) for segment in self.segments]

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Which of the ids are in the index, bool [n]."""
        there = np.zeros(len(ids), bool)
        for ranks in self.find(ids):
            there |= ranks >= 0
        return there

    def each(self, ids: np.ndarray) -> Iterator[tuple[Segment, np.ndarray, np.ndarray]]:
        """(segment, places in ids, ranks) of each segment that has some of the ids.

        Raises ValueError for ids that are in none.
        """
        self.check(ids)
        for segment, ranks in zip(self.segments, self.find(ids)):
            places = np.flatnonzero(ranks >= 0)
            if len(places):
                yield segment, places, ranks[places]

    def check(self, ids: np.ndarray) -> None:
        """Raises ValueError unless all ids are in the index."""
        missing = ids[~self.has(ids)]
        if len(missing):
            raise ValueError(f"ids: {len(missing)} are not in the index, such as {missing[0]}")

    def ids(self) -> np.ndarray:
        """All ids, int64 [size], ascending."""
        parts = [segment.ids_of(segment.live_ranks()) for segment in self.segments]
        ids = np.concatenate([np.empty(0, np.int64), *parts])
        return ids if is_ascending(ids) else np.sort(ids)

    # ---- other states

    def without(self, ids: np.ndarray) -> tuple[State, int]:
        """The state without ids, each of which is given once, and how many of them it had."""
        segments, count = [], 0
        for segment, ranks in zip(self.segments, self.find(ids)):
            ranks = ranks[ranks >= 0]
            count += len(ranks)
            segments.append(segment.without(ranks) if len(ranks) else segment)
        return State([segment for segment in segments if len(segment)], self.num_bits), count

    def with_next_table(self, num_threads: int) -> State:
        """The state with one table more; not for one that is complete."""
        segments = list(self.segments)
        i = next(i for i, segment in enumerate(segments) if not segment.complete)
        segments[i] = segments[i].with_next_table(num_threads)
        return State(segments, self.num_bits)

    # ---- filters

    def allowing(self, filter: Filter, class_names: Sequence[str]) -> native.Segments:
        """The segments with only the rows that a filter allows. Raises ValueError."""
        if filter is None:
            return self.everything
        labels = _as_labels(filter, class_names)
        if labels is None:
            return self._only(self._ranks(filter))
        segments = self._by_labels.get(labels)
        if segments is None:
            segments = self._only([_with_labels(segment, labels) for segment in self.segments])
            self._by_labels[labels] = segments
            if len(self._by_labels) > _MAX_FILTERS:
                self._by_labels.pop(next(iter(self._by_labels)), None)  # the oldest
        return segments

    def select(self, filter: Filter, class_names: Sequence[str]) -> np.ndarray:
        """The ids that a filter allows, int64 [m], ascending. Raises ValueError."""
        labels = _as_labels(filter, class_names)
        found = self._ranks(filter) if labels is None else [_with_labels(s, labels) for s in self.segments]
        parts = [segment.ids_of(ranks) for segment, ranks in zip(self.segments, found)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def _ranks(self, filter: Filter) -> list[np.ndarray]:
        """For each segment the ranks of the rows that ids or a mask allow, each once."""
        array = filter.cpu().numpy() if isinstance(filter, torch.Tensor) else np.asarray(filter)
        if array.dtype == bool:
            return self._masked(array)
        if array.ndim == 1 and (array.dtype.kind in "iu" or array.size == 0):
            ids = np.unique(as_ids(array.astype(np.int64) if array.size == 0 else array, "filter"))
            return [ranks[ranks >= 0] for ranks in self.find(ids)]
        raise ValueError(
            "filter: expected ids (integers [m]), a mask (bool [len(index)]), a label (one integer), or "
            f"names of classes, got {filter!r:.80}"
        )

    def _masked(self, mask: np.ndarray) -> list[np.ndarray]:
        """For each segment the ranks of rows where the mask is True."""
        if mask.shape != (self.size,):
            raise ValueError(
                f"filter: expected a mask with one bool for each of the index's {self.size} codes, in the "
                f"order of index.ids, got {list(mask.shape)}"
            )
        ranks = [segment.live_ranks() for segment in self.segments]
        if len(ranks) == 1:
            return [ranks[0][mask]]
        ids, masked = self.ids(), []
        for segment, mine in zip(self.segments, ranks):
            masked.append(mine[mask[np.searchsorted(ids, segment.ids_of(mine))]])
        return masked

    def _only(self, allowed: Sequence[np.ndarray]) -> native.Segments:
        """The segments with only the rows of these ranks, each once."""
        segments = []
        for segment, ranks in zip(self.segments, allowed):
            if len(ranks) == 0:
                continue
            if len(ranks) <= max(segment.num_rows // _FEW_PART, _FEW_ROWS):
                ranks = np.sort(ranks)
                codes, ids = segment.codes[segment.positions_of(ranks)], segment.ids_of(ranks)
                segments.append(Segment(codes, int(ids[0]), ids=ids).arrays(None))
            else:
                by_rank = np.zeros(segment.num_rows, bool)
                by_rank[ranks] = True
                segments.append(segment.arrays(segment.allowed(by_rank)))
        return native.Segments(segments, self.num_bits)


def _as_labels(filter: Filter, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The labels that a filter names, ascending; None for a filter of another kind."""
    if isinstance(filter, (int, np.integer)) and not isinstance(filter, bool):
        if class_names and not -1 <= filter < len(class_names):
            raise ValueError(f"filter: expected a label from -1 to {len(class_names) - 1}, got {filter}")
        return (int(filter),)
    names = [filter] if isinstance(filter, str) else filter
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) for n in names):
        return None
    numbers = {name: label for label, name in enumerate(class_names)}
    for name in names:
        if name not in numbers:
            known = f", such as {class_names[0]!r:.80}" if class_names else ""
            raise ValueError(
                f"filter: the index has no class {name!r:.80}; it has {len(class_names)} classes{known}"
            )
    return tuple(sorted({numbers[name] for name in names}))


def _with_labels(segment: Segment, labels: tuple[int, ...]) -> np.ndarray:
    """The ranks of rows that have one of the labels; -1 is that of rows without."""
    if segment.labels is None:
        return segment.live_ranks() if -1 in labels else np.empty(0, np.int64)
    ranks = np.flatnonzero(np.isin(segment.labels, labels))
    return ranks[segment.has(ranks)]
