"""Checks everything in the folder of an index: checksums, and whether the arrays agree with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llc.codes import code_size
from llc.errors import UserError
from llc.index.array_file import crc32, read_arrays
from llc.index.segment import Segment
from llc.index.storage import MANIFEST, Folder, Manifest, Model, open_segment, read_manifest, with_kept


def verify(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Reads everything in the folder of an index -> (file, what is wrong with it), one by one.

    If another process commits meanwhile, it goes on with the files of the new manifest. Raises UserError if
    there is no manifest that can be understood.
    """
    manifest = read_manifest(folder)
    done: set[str] = set()
    while True:
        missing = yield from _verify_segments(folder, manifest, done)
        if not missing:
            break
        newer = read_manifest(folder)
        if newer.generation == manifest.generation:
            for file in missing:
                yield file, ["it is missing"]
            break
        manifest = newer
    yield MANIFEST, _equal_ids(folder, manifest)
    if manifest.model is not None:
        yield manifest.model.file, _problems_of_model(folder / manifest.model.file, manifest)


def _verify_segments(folder, manifest, done):
    """Yields what `verify` does of the segments' files that are not `done` -> the files that are missing."""
    missing = []
    for stored in manifest.segments:
        segment = None
        if stored.file not in done:
            problems: list[str] = []
            try:
                header, arrays = read_arrays(folder / stored.file, stored.checksum)
                segment = open_segment(folder / stored.file, stored, manifest)
                for name, array in arrays.items():
                    if crc32(array) != header["arrays"][name].get("crc32"):
                        problems.append(f"{name}: the checksum is wrong")
                problems += _contradictions(segment, manifest)
            except FileNotFoundError:
                missing.append(stored.file)
                continue
            except UserError as error:
                problems.append(str(error))
            yield stored.file, problems
            done.add(stored.file)
        if stored.kept_file is not None and stored.kept_file not in done:
            try:
                found = _problems_of_kept(folder, segment, stored, manifest)
            except FileNotFoundError:
                missing.append(stored.kept_file)
                continue
            yield stored.kept_file, found
            done.add(stored.kept_file)
    return missing


def _equal_ids(folder, manifest):
    """Whether two segments hold a row of the same id."""
    try:
        _, segments = Folder(folder).read()
        ids = np.sort(np.concatenate([np.empty(0, np.int64), *(s.ids_of(s.live_ranks()) for s in segments)]))
    except UserError:
        return []  # said already of the file that is broken
    count = int((ids[1:] == ids[:-1]).sum())
    return [f"{count} ids are in several segments"] if count else []


def _problems_of_model(path, manifest):
    from llc.encoder import load  # here, because it takes long to import

    try:
        digest = Model.of(load(path)).digest
    except (UserError, OSError) as error:
        return [str(error)]
    return [] if digest == manifest.model.digest else ["it is not the model that made the index's codes"]


def _problems_of_kept(folder, segment, stored, manifest):
    """Raises FileNotFoundError."""
    path = folder / stored.kept_file
    try:
        if segment is None:
            segment = open_segment(folder / stored.file, stored, manifest)
        header, arrays = read_arrays(path, None)
        kept = with_kept(folder, segment, stored).kept
    except UserError as error:
        return [str(error)]
    problems = []
    if crc32(arrays["kept"]) != header["arrays"]["kept"].get("crc32"):
        problems.append("kept: the checksum is wrong")
    count = int(np.bitwise_count(kept).sum(dtype=np.int64))
    if count != segment.num_rows - header["num_removed"]:
        problems.append(f"it keeps {count} rows, and should keep {segment.num_rows - header['num_removed']}")
    return problems


def _contradictions(segment: Segment, manifest: Manifest) -> list[str]:
    """What is wrong with the contents of a segment whose arrays have the right shapes."""
    n, problems = segment.num_rows, []

    def check(fine, what):
        if not fine:
            problems.append(what)

    padding = (1 << 8 * code_size(manifest.num_bits) - manifest.num_bits) - 1
    check(not (segment.codes[:, -1] & padding).any(), "codes: some padding bits are not 0")
    if segment.ids is not None and n:
        ascending = bool((segment.ids[1:] > segment.ids[:-1]).all())
        check(ascending and segment.ids[0] >= 0, "ids: they are not ascending from 0 on")
        check(segment.ids[-1] < manifest.next_id, "ids: one is not below the next free id")
    elif n:
        check(segment.first_id + n <= manifest.next_id, "ids: one is not below the next free id")
    if segment.labels is not None and n:
        limit = max(manifest.max_label + 1, len(manifest.class_names))
        fine = segment.labels.min() >= -1 and segment.labels.max() < limit
        check(fine, f"labels: they are not all between -1 and {limit - 1}")
    if segment.name_ends is not None and segment.names is not None and n:
        ends = segment.name_ends
        fine = ends[0] >= 0 and bool((ends[1:] >= ends[:-1]).all()) and ends[-1] == len(segment.names)
        check(fine, "name_ends: they do not divide the names")
    if segment.ranks is not None and segment.order is not None:
        check(_is_permutation(segment.ranks), "ranks: they are no permutation of the rows")
        if not problems:
            expected = np.empty(n, np.uint32)
            expected[segment.ranks] = np.arange(n, dtype=np.uint32)
            check(np.array_equal(expected, segment.order), "order: it is not the inverse of ranks")
    for i, (bits, offsets, positions) in enumerate(segment.tables):
        what = f"table {i}"
        if not (offsets[0] == 0 and offsets[-1] == n and bool((offsets[1:] >= offsets[:-1]).all())):
            problems.append(f"{what}: the offsets do not divide the rows")
        elif positions is not None and not _is_permutation(positions):
            problems.append(f"{what}: the positions are no permutation of the rows")
        else:
            fine = _are_in_buckets(segment, bits, offsets, positions)
            check(fine, f"{what}: rows are not in their buckets, in order")
    return problems


def _is_permutation(values):
    n = len(values)
    if n and values.max() >= n:
        return False
    seen = np.zeros(n, bool)
    seen[values] = True
    return bool(seen.all())


def _are_in_buckets(segment, bits, offsets, positions):
    """Whether each row is in the bucket of its code, and those of a bucket are in ascending order."""
    step = 1 << 20
    numbers = segment.ranks if positions is None else positions  # what ascends in a bucket
    for first in range(0, segment.num_rows, step):
        last = min(first + step + 1, segment.num_rows)  # one more, to compare with
        codes = segment.codes[first:last] if positions is None else segment.codes[positions[first:last]]
        buckets = bucket_numbers(codes, bits)
        rows = np.arange(first, last)
        if (offsets[buckets] > rows).any() or (offsets[buckets + 1] <= rows).any():
            return False
        part = numbers[first:last]
        if ((buckets[1:] == buckets[:-1]) & (part[1:] <= part[:-1])).any():
            return False
    return True


def bucket_numbers(codes: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """Some bits of codes uint8 [n, code_size] as numbers, the first bit the highest, int64 [n]."""
    numbers = np.zeros(len(codes), np.int64)
    every_byte = np.arange(256)
    for byte in sorted({bit // 8 for bit in bits}):
        values = np.zeros(256, np.int64)  # what this byte contributes
        for place, bit in enumerate(reversed(bits)):
            if bit // 8 == byte:
                values |= (every_byte >> (7 - bit % 8) & 1) << place
        numbers |= values[codes[:, byte]]
    return numbers
