"""The folder of an index: what is in its files, how changes become visible, and how they are checked.

    index.json             the manifest: everything that is not an array, and which files belong to the index
    segment-00000001.llc   a segment's arrays; written once, never changed
    kept-00000007-0001.llc the bitmap of a segment's rows that were not removed
    encoder.safetensors    the model that makes the codes, if the index keeps it
    lock                   locked (flock) by the one process that writes

A change writes new files first, and then the manifest, by one atomic rename. That is the commit: a crash at
any moment leaves the last manifest and all files that it names; files that no manifest names are deleted by
the next writer. A reader that finds a file gone, because it read a manifest just before a writer replaced
it, reads the new one. array_file.py says what is in a file of arrays; verify.py checks everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llc.codes import code_size
from llc.errors import UserError
from llc.files import atomic_write, sync_folder
from llc.index.arguments import MAX_ID
from llc.index.array_file import (
    MAX_TEXT,
    VERSION,
    broken,
    dictionary,
    is_number,
    json_object,
    newer_format,
    read_arrays,
    shown,
    write_arrays,
)
from llc.index.segment import COLUMNS, MAX_ROWS, Segment, Stored
from llc.native.index import MAX_TABLES, Table

if TYPE_CHECKING:
    from llc.encoder import Encoder

FORMAT = "llc index"
MANIFEST = "index.json"
_LOCK = "lock"
_MODEL_FILE = "encoder.safetensors"
_OWN = re.compile(r"segment-\d{8,}\.llc|kept-\d{8,}-\d{4}\.llc|encoder\.safetensors|\..*\.tmp")
_MAX_SEGMENTS = 9999
_RETRIES = 10  # for readers, while others write


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that makes an index's codes: what tells it from others, and its file in the folder."""

    digest: str
    file: str = _MODEL_FILE

    @classmethod
    def of(cls, encoder: Encoder) -> Model:
        from llc import checkpoints  # torch takes long to import, and most indexes are opened without it

        how = [checkpoints.digest(encoder.network), dataclasses.asdict(encoder.preprocessing), encoder.flip]
        return cls(hashlib.blake2b(json.dumps(how).encode(), digest_size=32).hexdigest())


@dataclasses.dataclass(frozen=True)
class Manifest:
    """index.json. generation counts the commits, num_files the files of arrays that were ever written."""

    num_bits: int
    next_id: int = 0
    class_names: tuple[str, ...] = ()
    max_label: int = -1
    model: Model | None = None
    generation: int = 0
    num_files: int = 0
    segments: tuple[Stored, ...] = ()

    def dump(self) -> bytes:
        """The file's contents."""
        data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        text = json.dumps({**data, "checksum": _checksum_of(data)}, indent=1)
        return text.encode("ascii")


def _checksum_of(data):
    return zlib.crc32(json.dumps(data, sort_keys=True).encode("ascii"))


class Folder:
    """The folder of a saved index, and the writer's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: io.FileIO | None = None
        self._attempted: Manifest | None = None  # the manifest that was written last, or was about to be

    def is_at(self, path: Path) -> bool:
        """Whether this is the folder at `path`."""
        return os.path.realpath(path) == os.path.realpath(self.path)

    # ---- the lock

    def lock(self) -> None:
        """Makes this the only writer, until `unlock`. Raises UserError if another process is writing."""
        if self._lock is not None:
            return
        if not (self.path / MANIFEST).is_file():
            read_manifest(self.path)  # says what is there instead
        path = self.path / _LOCK
        try:
            # a file object, because it is closed, and so unlocked, also where an error leaves it behind
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
        except OSError as error:
            raise UserError(
                f"{shown(self.path)}: cannot be changed: {error.strerror}; it can still be read and searched"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"{shown(path)}: cannot be locked: {error.strerror}; without locks two writers could "
                    "destroy each other's work, so keep the index on a file system that has them"
                ) from error
            writer = file.read(100).decode("ascii", "replace").strip()
            if writer == str(os.getpid()):
                who, advice = "this process is writing to the index already", "close() that one first"
            else:
                who = f"another process is writing to the index (process {writer or '?'})"
                advice = "wait until it has finished, or stop it"
            raise UserError(f"{shown(self.path)}: {who}; {advice}") from error
        self._lock = file
        with contextlib.suppress(OSError):  # the number is for messages only; the disk may be full
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode("ascii"))

    def unlock(self) -> None:
        file, self._lock = self._lock, None
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_UN)  # forked processes, which have the file open too, do not keep it
            file.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock for as long as the block runs, or longer if it is held already."""
        held = self._lock is not None
        try:
            self.lock()
            yield
        finally:
            if not held:
                self.unlock()

    # ---- reading

    def read(self, known: Sequence[Segment] = ()) -> tuple[Manifest, list[Segment]]:
        """The manifest and the segments. Segments of `known` whose files are the same are taken over."""
        for attempt in range(_RETRIES):
            manifest = read_manifest(self.path)
            try:
                segments = _open_segments(self.path, manifest, known)
                break
            except FileNotFoundError as error:
                if attempt == _RETRIES - 1 or read_manifest(self.path).generation == manifest.generation:
                    raise UserError(
                        f"{shown(self.path)}: the file {shown(error.filename)} is missing, so the index is "
                        "not complete; restore it from a copy"
                    ) from error
        return manifest, segments

    def newer(self, seen: Manifest | None, known: Sequence[Segment]) -> tuple[Manifest, list[Segment]] | None:
        """As `read`, if something was committed since the manifest `seen`; else None."""
        return None if read_manifest(self.path) == seen else self.read(known)

    # ---- writing

    def commit(
        self, manifest: Manifest, segments: Sequence[Segment], encoder: Encoder | None, seen: Manifest | None
    ) -> tuple[Manifest, list[Segment]]:
        """Writes what is new of the segments, and then the manifest -> both, as they are stored now.

        encoder: a model to be kept, or None. seen: the manifest on which the changes are based. Raises
        UserError.
        """
        with self._locked():
            there = read_manifest(self.path)
            # An error after the rename, such as Ctrl-C, may have hidden that the last commit was done.
            if there != seen and (there != self._attempted or self._attempted is None):
                raise UserError(
                    f"{shown(self.path)}: another process has changed the index since it was opened; "
                    "open it again, and repeat the change"
                )
            manifest = dataclasses.replace(
                manifest, generation=there.generation + 1, num_files=there.num_files
            )
            try:
                manifest, written = _write(self.path, manifest, segments, encoder, self._about_to_commit)
            except BaseException:
                # On a full disk, what was written would stay in the way. The manifest is read again, because
                # the error may have come after its rename.
                with contextlib.suppress(UserError):
                    _delete_others(self.path, read_manifest(self.path))
                raise
            _delete_others(self.path, manifest)
        return manifest, written

    def _about_to_commit(self, manifest: Manifest) -> None:
        self._attempted = manifest

    def tidy(self) -> None:
        """Deletes files that no manifest names, as kills leave them. Raises UserError."""
        with self._locked():
            _delete_others(self.path, read_manifest(self.path))


def create(
    path: Path,
    manifest: Manifest,
    segments: Sequence[Segment],
    source: Folder | None,
    encoder: Encoder | None,
) -> tuple[Manifest, list[Segment]]:
    """Writes an index to a new folder, completely or not at all -> what was written.

    source: the folder that holds the model, if there is one. Raises UserError, also if something is at path.
    """
    if os.path.lexists(path):
        raise UserError(
            f"{shown(path)}: it exists already; give the name of a new folder (an index is not overwritten)"
        )
    if not path.parent.is_dir():
        raise UserError(f"{shown(path)}: there is no folder {shown(path.parent)}; make it first")
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:200]}.", suffix=".tmp"))
        if source is not None and manifest.model is not None:
            with open(source.path / manifest.model.file, "rb") as model:
                atomic_write(temporary / manifest.model.file, lambda file: shutil.copyfileobj(model, file))
        unstored = [dataclasses.replace(segment, stored=None) for segment in segments]
        manifest, written = _write(temporary, manifest, unstored, encoder)
        os.chmod(temporary, 0o755)
        if os.path.lexists(path):
            raise UserError(f"{shown(path)}: it was made by another process in the meantime")
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be written: {error.strerror or error}") from error
    except UserError as error:
        if temporary is None:
            raise
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return manifest, written


def _write(folder, manifest, segments, encoder, before_commit=lambda manifest: None):
    """Writes files of what is not yet in the folder, and the manifest, of which before_commit hears."""
    if len(segments) > _MAX_SEGMENTS:
        raise UserError(f"{shown(folder)}: {len(segments)} segments are too many; call optimize() first")
    if encoder is not None:
        encoder.save(folder / _MODEL_FILE)
        manifest = dataclasses.replace(manifest, model=Model.of(encoder))
    number, written = manifest.num_files, []
    for i, segment in enumerate(segments):
        stored = segment.stored
        if stored is None:
            number += 1
            file = f"segment-{number:08}.llc"
            stored = Stored(file, write_arrays(folder / file, *_arrays_of(segment, manifest.num_bits)))
        if segment.kept is not None and stored.kept_file is None:
            kept_file = f"kept-{manifest.generation:08}-{i:04}.llc"
            head = {"num_rows": segment.num_rows, "num_removed": segment.num_removed, "of": stored.checksum}
            write_arrays(folder / kept_file, head, {"kept": segment.kept})
            stored = dataclasses.replace(stored, kept_file=kept_file)
        written.append(segment.stored_as(stored))
    manifest = dataclasses.replace(
        manifest, num_files=number, segments=tuple(segment.stored for segment in written)
    )
    before_commit(manifest)
    atomic_write(folder / MANIFEST, lambda file: file.write(manifest.dump()))
    return manifest, written


def _delete_others(folder, manifest):
    """Deletes files that the manifest does not name: of older states, and what crashes have left."""
    named = {name for stored in manifest.segments for name in (stored.file, stored.kept_file)}
    named |= {MANIFEST, _LOCK}
    if manifest.model is not None:
        named.add(manifest.model.file)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name not in named and _OWN.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


# ---- segments


def _arrays_of(segment: Segment, num_bits: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(what a segment's header says beside arrays, {name: array})."""
    arrays = {
        name: getattr(segment, name) for name in ("codes", "ids", "ranks", *COLUMNS, "names", "name_ends")
    }
    if segment.ranks is not None:
        # Else the first look at a single id would have to make it from the ranks of all rows.
        arrays["order"] = segment.positions_of(np.arange(segment.num_rows)).astype(np.uint32)
    for i, (_, offsets, positions) in enumerate(segment.tables):
        arrays |= {f"offsets{i}": offsets, f"positions{i}": positions}
    head = {
        "num_bits": num_bits,
        "num_rows": segment.num_rows,
        "first_id": segment.first_id,
        "tables": [table.bits for table in segment.tables],
    }
    return head, {name: array for name, array in arrays.items() if array is not None}


def _open_segments(folder, manifest, known):
    by_file = {segment.stored.file: segment for segment in known if segment.stored is not None}
    segments = []
    for stored in manifest.segments:
        segment = by_file.get(stored.file)
        if segment is not None and segment.stored == stored:
            segments.append(segment)
            continue
        if segment is None or segment.stored.checksum != stored.checksum:
            segment = open_segment(folder / stored.file, stored, manifest)
        segments.append(with_kept(folder, segment, stored))
    return segments


def open_segment(path, stored, manifest):
    """A segment, whose arrays have the shapes that they must have. Raises UserError."""
    header, arrays = read_arrays(path, stored.checksum)
    n: Any = header.get("num_rows")
    first_id: Any = header.get("first_id")
    bits = header.get("num_bits")
    if bits != manifest.num_bits:
        raise broken(path, f"its codes have {bits!r:.20} bits, and the index has {manifest.num_bits}")
    if not is_number(n, 0, MAX_ROWS) or not is_number(first_id, 0, MAX_ID + 1 - max(n, 1)):
        raise broken(path, "its number of rows or its first id is no number that an index can have")
    plan = header.get("tables")
    if not isinstance(plan, list) or not all(isinstance(bits, list) for bits in plan):
        raise broken(path, "its tables are not described")
    used = [bit for bits in plan for bit in bits]
    fine = all(is_number(bit, 0, manifest.num_bits - 1) for bit in used) and len(set(used)) == len(used)
    if not fine or not all(1 <= len(bits) <= 31 for bits in plan):
        raise broken(path, "its tables are of bits that a code has not, or share a bit")
    if len(plan) > MAX_TABLES:
        raise broken(path, f"it has {len(plan)} tables, and no segment has more than {MAX_TABLES}")
    size = code_size(manifest.num_bits)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"codes": ("|u1", (n, size)), "ids": ("<i8", (n,))}
    shapes |= {name: (np.dtype(dtype).str, (n,)) for name, dtype in COLUMNS.items()}
    shapes |= {"name_ends": ("<i8", (n,))}
    if plan:
        shapes |= {"ranks": ("<u4", (n,)), "order": ("<u4", (n,))}
    for i, bits in enumerate(plan):
        shapes[f"offsets{i}"] = ("<u4", ((1 << len(bits)) + 1,))
        if i:
            shapes[f"positions{i}"] = ("<u4", (n,))
    optional = {"ids", "names", "name_ends", *COLUMNS}
    names = arrays.get("names")
    if names is not None:
        shapes["names"] = ("|u1", (len(names),) if names.ndim == 1 else (0,))
    for name, (dtype, shape) in shapes.items():
        array = arrays.get(name)
        if array is None and name not in optional:
            raise broken(path, f"it has no {name}")
        if array is not None and (array.dtype.str, array.shape) != (dtype, shape):
            raise broken(
                path,
                f"{name} are {array.dtype} {list(array.shape)}; expected {np.dtype(dtype)} {list(shape)}",
            )
    if arrays.keys() - shapes.keys():
        raise broken(path, f"it holds {shown(min(arrays.keys() - shapes.keys()))}, which no segment has")
    if (names is None) != (arrays.get("name_ends") is None):
        raise broken(path, "it has names without their ends, or the other way round")
    tables = tuple(
        Table(tuple(bits), arrays[f"offsets{i}"], arrays.get(f"positions{i}")) for i, bits in enumerate(plan)
    )
    fields = ("codes", "ids", "ranks", "order", *COLUMNS, "names", "name_ends")
    without_kept = dataclasses.replace(stored, kept_file=None)
    found: dict[str, Any] = {name: arrays.get(name) for name in fields}
    return Segment(first_id=first_id, tables=tables, stored=without_kept, **found)


def with_kept(folder, segment, stored):
    """The segment without the rows that are removed in its stored form."""
    if stored.kept_file is None:
        return segment.with_kept(None, 0, stored)
    path = folder / stored.kept_file
    header, arrays = read_arrays(path, None)
    kept, n, num_removed = arrays.get("kept"), segment.num_rows, header.get("num_removed")
    if header.get("of") != stored.checksum or not is_number(num_removed, 0, n):
        raise broken(path, f"it does not belong to {stored.file}")
    if kept is None or kept.dtype != np.uint8 or kept.shape != ((n + 7) // 8,):
        raise broken(path, f"it holds no bitmap of {n} rows")
    return segment.with_kept(kept, num_removed, stored)


# ---- the manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the index in a folder. Raises UserError if there is none that can be understood."""
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_TEXT + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not os.path.lexists(folder):
            what = "there is no such folder; python -m llc.index create makes an index"
        elif not folder.is_dir():
            what = "this is a file; an index is a folder"
        else:
            what = f"this folder holds no index: it has no {MANIFEST}"
        raise UserError(f"{shown(folder)}: {what}") from error
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    data = json_object(path, text)
    if data.get("format") != FORMAT:
        raise UserError(f"{shown(path)}: this is not an index of llc")
    if data.get("version") != VERSION:
        raise newer_format(path, data.get("version"))
    checksum = data.pop("checksum", None)
    if checksum != _checksum_of(data):
        raise broken(path, "its checksum is wrong: it was changed by something other than llc")
    names, model, segments = data.get("class_names"), data.get("model"), data.get("segments")
    numbers = {
        "num_bits": (1, 4096),
        "next_id": (0, MAX_ID + 1),
        "max_label": (-1, (1 << 31) - 1),
        "generation": (0, MAX_ID),
        "num_files": (0, MAX_ID),
    }
    for key, (lowest, highest) in numbers.items():
        if not is_number(data.get(key), lowest, highest):
            raise broken(path, f"{key} is {data.get(key)!r:.40}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise broken(path, "class_names are not a list of texts")
    if not isinstance(segments, list):
        raise broken(path, "segments are not a list")
    return Manifest(
        class_names=tuple(names),
        model=None if model is None else _model(path, model),
        segments=tuple(_stored(path, stored) for stored in segments),
        **{key: data[key] for key in numbers},
    )


def _model(path, model):
    model = dictionary(path, model)
    if not isinstance(model.get("digest"), str) or model.get("file") != _MODEL_FILE:
        raise broken(path, "its model is not described")
    return Model(model["digest"])


def _stored(path, stored):
    """Names of files that can only be files of this folder."""
    stored = dictionary(path, stored)
    file, kept_file = stored.get("file"), stored.get("kept_file")
    fine = isinstance(file, str) and re.fullmatch(r"segment-\d{8,}\.llc", file) is not None
    if fine and kept_file is not None:
        fine = isinstance(kept_file, str) and re.fullmatch(r"kept-\d{8,}-\d{4}\.llc", kept_file) is not None
    if not fine:
        raise broken(path, f"it names {file!r:.60}, which is no file of an index")
    if not is_number(stored.get("checksum"), 0, (1 << 32) - 1):
        raise broken(path, f"{file} has no checksum")
    return Stored(file, stored["checksum"], kept_file)
