"""Adds images to an index: those of a source that are not there yet, or codes that were made before.

A file that is in the index with the same size and time of modification is not read again; one that has
changed gets a new code and keeps its id. What is done is saved every few seconds, so work that ends early
goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator

import numpy as np
import torch

from llc import checkpoints, gpu, progress
from llc.code_files import NETWORK, check_same_network, read_codes
from llc.codes import pack_bits
from llc.data.batches import prepare
from llc.data.image_errors import ImageError, read_from
from llc.data.images import load_rgb
from llc.data.sources import as_unicode, printable
from llc.encoder import Encoder, describe_non_finite, load, non_finite
from llc.errors import UserError
from llc.index.collection import Collection, collect, container_of, has_vanished, open_recorded
from llc.index.index import Index
from llc.index.storage import Model
from llc.inference import evaluating

__all__ = [
    "Added",
    "Collection",
    "add_codes",
    "add_images",
    "codes_of",
    "collect",
    "encoder_for",
    "find_named",
    "open_recorded",
]

SAVE_SECONDS = 20.0  # a kill loses the images of this time
_LOOKED_UP = 1 << 16  # names or rows that are compared at a time
_BLANK = np.zeros((1, 1, 3), np.uint8)  # in the place of an image that cannot be read


@dataclasses.dataclass
class Added:
    """What `add_images` and `add_codes` did; numbers of images.

    total: in the source; there: in the index already; added; changed: encoded anew; relabelled: of another
    class than before; repeated: named a second time by the source. broken: (name, what is wrong) of images
    that were left out. missing: names in the index whose files are gone; removed: whether they were removed.
    """

    total: int
    there: int = 0
    added: int = 0
    changed: int = 0
    relabelled: int = 0
    repeated: int = 0
    broken: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    removed: bool = False

    def __str__(self) -> str:
        """The numbers that are not 0, in words."""
        left_out = len(self.broken)
        parts = [
            (self.added, "added"),
            (self.changed, "changed and encoded anew"),
            (self.relabelled, "of another class than before"),
            (self.there, "there already"),
            (self.repeated, "named twice"),
            (left_out, "left out"),
            (len(self.missing), "removed, because their files are gone" if self.removed else "gone"),
        ]
        said = ", ".join(f"{count:,} {what}" for count, what in parts if count)
        return f"{self.total:,} image{'s' * (self.total != 1)}: {said or 'nothing to do'}"


def add_images(
    index: Index,
    encoder: Encoder,
    images: Collection,
    *,
    batch_size: int = 256,
    num_workers: int = -1,
    skip_broken: bool = False,
    remove_missing: bool = False,
    show_progress: bool = True,
) -> Added:
    """Encodes the images that the index does not have as they are now, and adds them.

    index: opened for writing, or in memory; one with a folder is saved every SAVE_SECONDS and at the end.
    encoder: on the device where it is to compute; the index's model from now on (Index.set_model). images:
    what `collect` found.

    skip_broken: images that cannot be read, or whose z is NaN or infinite, are left out; else the first ends
    the work, and what was encoded before is kept. remove_missing: images that the index has from this source,
    or from below this folder, are removed if their files are gone.

    Raises UserError, also if the index has another model. Raises ValueError for a batch_size below 1.
    """
    encoder.check_codes()
    index.set_model(encoder)
    done = Added(len(images))
    _add_rows(index, images, np.empty(0, np.int64), None, np.empty((0, index.code_size), np.uint8))  # checks
    known = find_named(index, images.files)
    chosen, ids = _to_encode(index, images, known, done)
    done.missing, gone = _missing(index, images, known)
    writer = _Writer(index, images, done)
    try:
        with progress.bar(len(chosen), "add", disable=not show_progress) as bar, evaluating(encoder.network):
            for first, codes, faults in _encoded(encoder, images, chosen, batch_size, num_workers):
                last = first + len(codes)
                if faults and not skip_broken:
                    fault = _fault_of(images, chosen[first:last], faults, len(codes))
                    raise UserError(f"{fault}; --skip_broken leaves such images out")
                good = np.array([i not in faults for i in range(len(codes))])
                for i, why in sorted(faults.items()):
                    which = chosen[first + i]
                    former = "; the index keeps the code of its former contents" if known[which] >= 0 else ""
                    said = why if isinstance(why, str) else "z is NaN or infinite"
                    done.broken.append((images.files[which], said + former))
                writer.take(chosen[first:last][good], ids[first:last][good], codes[good])
                bar.update(len(codes))
        if len(chosen) and len(done.broken) == len(chosen) and not done.there:
            name, why = done.broken[0]
            raise UserError(
                f"none of the {len(chosen):,} images has a code; the first: {printable(name)}: "
                f"{printable(why)}"
            )
        if remove_missing and len(gone):
            index.remove(gone)
            done.removed = True
        writer.save(always=True)
    except BaseException as error:  # Ctrl-C, too: what was encoded is kept
        _save_after(error, writer)
        raise
    return done


def _save_after(error, writer):
    """Saves what was encoded before an error. What goes wrong then does not hide the error."""
    try:
        writer.save()
    except UserError as second:
        if isinstance(error, UserError) and str(second) != str(error):
            raise UserError(f"{error}; what was encoded last could not be saved: {second}") from error
    except BaseException:  # another Ctrl-C
        pass


def add_codes(index: Index, path: str | os.PathLike[str], root: str = "") -> Added:
    """Adds the codes of a file of `python -m llc.encode`, or of one with the same arrays (llc.code_files).

    Labels and class names come along, and `ids`, int64 [n], if the file has them. Codes with a name that the
    index has already are skipped, or take the place of that name's code if they differ. root: the folder that
    the names of its files are relative to; then they are recorded as absolute paths, so that the images can
    be found. The index is saved if it has a folder. Raises UserError, and then nothing was added.
    """
    arrays = read_codes(os.fspath(path))
    codes, num_bits = arrays["codes"], int(arrays["num_bits"])
    shown = printable(path)
    if num_bits != index.num_bits:
        raise UserError(
            f"{shown}: its codes have {num_bits} bits, the index's {index.num_bits}; python -m llc.encode "
            f"MODEL --num_bits={index.num_bits} makes such codes, if MODEL has as many bits"
        )
    if NETWORK in arrays and index.model is not None:
        of_index = checkpoints.digest(load(index.model).network)
        check_same_network(shown, str(arrays[NETWORK]), _title(index), of_index)
    n = len(codes)
    files = None
    if "files" in arrays:
        if arrays["files"].shape != (n,) or arrays["files"].dtype.kind != "U":
            raise UserError(f"{shown}: files are {arrays['files'].dtype}; expected {n} texts")
        files = [str(name) for name in arrays["files"]]
        if root:
            files = [os.path.abspath(os.path.join(root, name)) for name in files]
    elif root:
        raise UserError(f"{shown}: it names no files, so leave out the folder of its files")
    labels, class_names = arrays.get("labels"), arrays.get("class_names")
    names = None if class_names is None or labels is None else [str(name) for name in class_names]
    done = Added(n)
    chosen, ids = np.arange(n), np.full(n, -1, np.int64)
    try:
        if "ids" in arrays:
            index.add(codes, arrays["ids"], labels=labels, class_names=names or None, files=files)
            done.added = n
        else:
            if files is not None:
                ids = find_named(index, files)
                chosen = _firsts(files)
                done.repeated = n - len(chosen)
                known = chosen[ids[chosen] >= 0]
                same = known[(index.get(ids[known]) == codes[known]).all(1)]
                done.there = len(same)
                chosen = chosen[~np.isin(chosen, same)]
            for replaced in (False, True):
                rows = chosen[(ids[chosen] >= 0) == replaced]
                (index.replace if replaced else index.add)(
                    ids=ids[rows] if replaced else None,
                    codes=codes[rows],
                    labels=None if labels is None else labels[rows],
                    class_names=names or None,
                    files=None if files is None else [files[i] for i in rows.tolist()],
                )
                if replaced:
                    done.changed = len(rows)
                else:
                    done.added = len(rows)
    except ValueError as error:  # of ids and labels that the file brings along
        raise UserError(f"{shown}: {error}") from error
    if index.path is not None:
        index.save()
    return done


def find_named(index: Index, files: list[str]) -> np.ndarray:
    """The ids of recorded names, int64 [n]; -1 for those that the index does not have."""
    parts = [
        index.find_files(files[first : first + _LOOKED_UP]) for first in range(0, len(files), _LOOKED_UP)
    ]
    return np.concatenate([np.empty(0, np.int64), *parts])


# ---- the model


def encoder_for(
    index: Index, model: str = "", *, checkpoint: str = "", num_bits: int = 0, device: str = "cpu"
) -> Encoder:
    """The encoder that makes the codes of an index: its own, or `model`, which must then be the same.

    model, checkpoint, num_bits: as llc.load takes them; "" and 0: as the index says. device: where it is to
    be; "auto": on the GPU if there is one. Raises UserError.
    """
    if model:
        encoder = load(model, checkpoint=checkpoint or None, num_bits=num_bits or None)
    elif index.model is None:
        raise UserError(
            f"{_title(index)} keeps no model: give --model=MODEL, the model that made its codes, or will "
            "make them (a run folder, or a file that llc.load takes)"
        )
    elif checkpoint or num_bits:
        flag = f"--checkpoint={printable(checkpoint)}" if checkpoint else f"--num_bits={num_bits}"
        raise UserError(f"{flag}: for --model=MODEL alone; {_title(index)} keeps its model as it is")
    else:
        encoder = load(index.model)
    encoder.check_codes()
    shown = printable(model or str(index.model))
    if encoder.num_bits != index.num_bits:
        raise UserError(
            f"{shown} makes codes of {encoder.num_bits} bits, and those of {_title(index)} have "
            f"{index.num_bits}"
            + (f"; --num_bits={index.num_bits} takes the first" if encoder.num_bits > index.num_bits else "")
        )
    if index.model_digest not in (None, Model.of(encoder).digest):
        raise UserError(
            f"--model={shown}: the codes of {_title(index)} were made by another model, or with other "
            "preprocessing, and cannot be compared with those of this one: leave --model out to use the "
            "index's own, or make a new index"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return encoder.to(gpu.device(device))


def _title(index):
    return "the index" if index.path is None else printable(index.path)


def codes_of(
    encoder: Encoder, images: Collection, *, batch_size: int = 256, num_workers: int = -1
) -> np.ndarray:
    """The codes of all images, uint8 [n, code_size]. Raises UserError naming an image that has none."""
    everything = np.arange(len(images))
    parts = []
    with evaluating(encoder.network):
        for first, codes, faults in _encoded(encoder, images, everything, batch_size, num_workers):
            if faults:
                raise _fault_of(images, everything[first : first + len(codes)], faults, len(codes))
            parts.append(codes)
    return np.concatenate(parts)


# ---- which images


def _firsts(files):
    """The positions of names that did not come before, ascending, int64."""
    return np.fromiter(sorted({name: i for i, name in reversed(list(enumerate(files)))}.values()), np.int64)


def _to_encode(index, images, known, done):
    """(positions of the images to encode, int64 [m], ascending; their ids in the index, -1 for new ones).

    known: the ids of all images, int64 [n], -1 for new ones. Images whose class alone has changed get their
    new label here.
    """
    positions = _firsts(images.files)
    done.repeated = len(images) - len(positions)
    ids = known[positions]
    same = np.zeros(len(positions), bool)
    for first in range(0, len(positions), _LOOKED_UP):
        part = slice(first, first + _LOOKED_UP)
        there = np.flatnonzero(ids[part] >= 0) + first
        records = index.records(ids[there])
        now = positions[there]
        same[there] = (records.sizes == images.sizes[now]) & (records.modified == images.modified[now])
        done.relabelled += _relabel(index, images, now[same[there]], ids[there][same[there]])
    done.there = int(same.sum())
    return positions[~same], ids[~same]


def _relabel(index, images, positions, ids):
    """Gives rows whose image is now of another class that class; returns how many there were."""
    source = images.source
    if len(ids) == 0 or not source.class_names:
        return 0
    number = {name: label for label, name in enumerate(index.class_names)}
    classes = [number.get(as_unicode(name), -2) for name in source.class_names]  # -2: new to the index
    now = np.array([*classes, -1])[source.labels[positions]]
    records = index.records(ids)
    other = np.flatnonzero(records.labels != now)
    if len(other) == 0:
        return 0
    ids, positions = ids[other], positions[other]
    _add_rows(index, images, positions, ids, index.get(ids), replacing=True)
    return len(other)


def _missing(index, images, known):
    """(names, ids) of rows of this source, or of below this folder, whose images are gone.

    known: ids of rows whose images the source has. The time grows with the number of the other rows.
    """
    if not images.containers and not os.path.isdir(images.root):
        return [], np.empty(0, np.int64)  # a single image
    others = index.ids
    others = others[~np.isin(others, known)]
    if not len(others):
        return [], others
    is_gone, names, ids = _gone_from(images), [], []
    for first in range(0, len(others), _LOOKED_UP):
        records = index.records(others[first : first + _LOOKED_UP])
        for name, id in zip(records.files, records.ids.tolist()):
            if is_gone(name):
                names.append(name)
                ids.append(id)
    return names, np.array(ids, np.int64)


def _gone_from(images):
    """A function that says whether a name is of this source, or of below its folder, and its image is gone.

    A file may hold a million images, so what is asked of the disk is kept for each such file.
    """
    here, containers = frozenset(images.files), frozenset(images.containers)
    below = os.path.join(images.root, "")
    container_is_gone, called_inside = functools.cache(has_vanished), functools.cache(_called_inside)

    @functools.cache
    def is_inside(path, suffix):
        return container_of(f"{path}#0{suffix}") != (f"{path}#0{suffix}", "")

    def is_gone(name):
        path, mark, place = name.rpartition("#")
        if not name or not name.startswith(below) and path not in containers or name in here:
            return False
        suffix = place.lstrip("0123456789")
        folder, file = os.path.split(path)
        if mark and 1 <= len(place) - len(suffix) <= 18 and file not in called_inside(folder):
            inside = is_inside(path, suffix)
        else:
            path, suffix = container_of(name)
            inside = path != name
        if not inside:
            return name.startswith(below) and has_vanished(name)
        of_this = path in containers and suffix == images.suffix
        return of_this or path.startswith(below) and container_is_gone(path)

    return is_gone


class _Everything:
    """Holds every name."""

    def __contains__(self, name: object) -> bool:
        return True


def _called_inside(folder):
    """What stands before a # in the names of a folder: files that are called like images inside others.

    Of a folder that cannot be listed, every name.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, ValueError):
        return _Everything()
    return frozenset(name[:i] for name in names for i, letter in enumerate(name) if letter == "#")


# ---- encoding


def _encoded(
    encoder: Encoder, images: Collection, chosen: np.ndarray, batch_size: int, num_workers: int
) -> Iterator[tuple[int, np.ndarray, dict[int, str | None]]]:
    """Yields (first, codes uint8 [b, code_size], faults) of images[chosen[first : first + b]], in order.

    faults: {place in the batch: what is wrong with the image, or None where z is NaN or infinite}.
    """
    source, reader, broken = images.source, images.source.reader, {}

    def pixels_of(item):
        i, handle = item
        name = printable(images.files[chosen[i]])
        try:
            image, _ = read_from(reader, handle)
            return load_rgb(image, name)
        except ImageError as error:
            broken[i] = error.reason
            return _BLANK

    def items():
        for first in range(0, len(chosen), batch_size):
            part = chosen[first : first + batch_size]
            yield from zip(range(first, first + len(part)), source.handles(part))

    first = 0
    batches = prepare(
        pixels_of, items(), encoder.preprocessing, batch_size=batch_size, num_workers=num_workers
    )
    for batch in batches:
        with torch.inference_mode():
            z = encoder(batch.to(encoder.device, non_blocking=True))
            codes, not_finite = pack_bits(z).cpu().numpy(), non_finite(z).cpu().numpy()
        del batch, z  # so that their memory is free while the next batch is made
        faults: dict[int, str | None] = dict.fromkeys(np.flatnonzero(not_finite).tolist())
        faults |= {i: broken.pop(first + i) for i in range(len(codes)) if first + i in broken}
        yield first, codes, faults
        first += len(codes)


def _fault_of(images, positions, faults, num_images):
    """The error of the first image in a batch that has no code."""
    i = min(faults)
    name, why = images.files[positions[i]], faults[i]
    if why is None:
        count = sum(reason is None for reason in faults.values())
        where = describe_non_finite(count, num_images, f" (the first: {printable(name)})")
        return UserError(f"z is {where}")
    return UserError(f"{printable(name)}: {why}")


class _Writer:
    """Collects codes, and puts them into the index every SAVE_SECONDS."""

    def __init__(self, index: Index, images: Collection, done: Added) -> None:
        self._index, self._images, self._done = index, images, done
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._has_begun = False  # to put what is waiting into the index
        self._is_unsaved = False  # something that is in the index
        self._saved = time.monotonic()

    def take(self, positions: np.ndarray, ids: np.ndarray, codes: np.ndarray) -> None:
        """ids: -1 for images that are new to the index."""
        self._waiting.append((positions, ids, codes, ids < 0))
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self, always: bool = False) -> None:
        """always: also if nothing was waiting, because something else has changed.

        After an error, Ctrl-C among them, a second call goes on where the first was stopped.
        """
        if self._waiting:
            self._is_unsaved = True
            self._put()
        if (always or self._is_unsaved) and self._index.path is not None:
            self._index.save()
        self._is_unsaved = False
        self._saved = time.monotonic()

    def _put(self) -> None:
        positions, ids, codes, new = (np.concatenate(part) for part in zip(*self._waiting))
        # Each step is done as a whole or not at all, and ids that are chosen beforehand tell whether it is.
        is_added = not new.any() or self._has_begun and int(ids[new][0]) in self._index
        if not self._has_begun:
            ids[new] = np.arange(self._index.next_id, self._index.next_id + new.sum())
            self._waiting = [(positions, ids, codes, new)]
            self._has_begun = True
        if not is_added:
            _add_rows(self._index, self._images, positions[new], ids[new], codes[new])
        if not new.all():
            _add_rows(self._index, self._images, positions[~new], ids[~new], codes[~new], replacing=True)
        self._waiting = []
        self._has_begun = False
        self._done.changed += int((~new).sum())
        self._done.added += int(new.sum())


def _add_rows(index, images, positions, ids, codes, *, replacing=False):
    """Adds images with their codes. replacing: in the place of rows with these ids."""
    source = images.source
    try:
        (index.replace if replacing else index.add)(
            ids=ids,
            codes=codes,
            labels=source.labels[positions] if source.class_names else None,
            class_names=[as_unicode(name) for name in source.class_names] or None,
            files=[images.files[i] for i in positions.tolist()],
            sizes=images.sizes[positions],
            modified=images.modified[positions],
        )
    except ValueError as error:  # labels with and without names cannot be mixed
        raise UserError(f"{printable(images.root)}: {error}") from error
