"""Converts a source to a beton, which any FFCV 1.0.2 can read, and its manifest, in several processes.

The same images and settings give the same file, byte for byte, for any number of workers. A worker encodes a
chunk of samples and reports their sizes. This process assigns file offsets in the order of the samples; the
worker then writes its chunk there. No image passes through a pipe, and nothing is locked or shared but the
open file, so the death of a worker is noticed at once and leaves nothing behind.

JPEGs are stored as 4:2:0 of the given quality with restart markers, whatever the files are, because that
reads fastest (most of ImageNet's files are 4:4:4). `keep_jpeg` keeps their pictures instead.

The file grows under a temporary name beside its target and is renamed when it is complete and on the disk;
the manifest follows last. A crash between the two renames leaves a manifest that does not fit its beton,
which `manifest.verify` reports.
"""

import dataclasses
import errno
import fcntl
import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llc import progress
from llc.data import beton
from llc.data.manifest import Manifest, Skipped, data_checksums, load_manifest, manifest_path
from llc.data.sources import Columns, as_unicode, open_source, parse_part, printable
from llc.data.workers import Workers, write_at
from llc.errors import UserError
from llc.options import option

# Encoded data that a worker may hold while earlier chunks have no place yet; above that it gets no new chunk.
_HELD_BYTES = 1 << 25
# The approximate size of an encoded chunk, small enough to stay in the caches until it is written. Chunks of
# 28 MB (100 pictures, half of them pixels) took up to a quarter longer, mostly to get new memory.
_CHUNK_BYTES = 4 << 20
_FIRST_CHUNK = 16  # samples, before it is known how large they are
_MAX_LISTED = 1_000  # unreadable images that are listed on the screen


@dataclasses.dataclass(frozen=True)
class WriterConfig:
    """How images become a beton. Names and defaults are those of ffcv-imagenet's ResNet50 setting."""

    write_path: str = option(help="the beton to write; its manifest is written beside it, as WRITE_PATH.json")
    data_dir: str = option(
        "",
        help="where the images are: a folder with a folder of images per class, or with such folders in"
        " train/ and val/; the file or folder of another kind of dataset; several of these, separated by"
        " commas, which have the same classes and are joined",
    )
    dataset: str = option(
        "auto",
        help="auto: the kind of dataset that data_dir looks like; folder (imagenet means the same),"
        " ImageNet-tars, ImageNet-Kaggle, zip, tar, WebDataset, Parquet, table, LMDB, FashionMNIST, a"
        " plugin's source, or a torchvision dataset: CIFAR10, ...",
    )
    image_column: str = option(
        "",
        help="tables, Parquet: the name or number (from 0) of the column with the images; WebDataset: the"
        " extension of the images (empty: found by itself)",
    )
    label_column: str = option(
        "",
        help="tables, Parquet: the name or number (from 0) of the column with the labels; WebDataset: their"
        " extension, or field of a sample's JSON (empty: found by itself)",
    )
    header: str = option(
        "auto", choices=("auto", "yes", "no"), help="text tables: whether the first line names the columns"
    )
    split: str = option("train", choices=("train", "val"), help="the split to write")
    write_mode: str = option(
        "proportion",
        choices=("raw", "jpg", "smart", "proportion"),
        help="how images are stored: raw: as pixels; jpg: as JPEG; smart: as JPEG where the pixels take"
        " more than smart_threshold bytes; proportion: as JPEG for the fraction compress_probability",
    )
    max_resolution: int = option(
        500, minimum=0, help="images are shrunk until no side is longer, in pixels (0: never)"
    )
    num_workers: int = option(-1, minimum=-1, help="processes (-1: one per core)")
    chunk_size: int = option(
        100, minimum=1, maximum=10_000, help="the most images that a worker takes at a time"
    )
    jpeg_quality: int = option(90, minimum=1, maximum=100, help="quality of the JPEGs")
    keep_jpeg: bool = option(
        False,
        help="JPEG files that fit into max_resolution keep their picture, whatever jpeg_quality says; most"
        " are read more slowly then",
    )
    per_class: int = option(
        -1, minimum=-1, help="write only this many images of each class, evenly spaced over it (-1: all)"
    )
    subset: int = option(-1, minimum=-1, help="write only this many images, evenly spaced over all (-1: all)")
    shuffle: int = option(
        -1, minimum=-1, help="write the images in a random order with this seed (-1: in the dataset's order)"
    )
    part: str = option(
        "", help="i/n: write only part i of n, counted from 1, so that several machines share the work"
    )
    compress_probability: float = option(
        0.5, minimum=0, maximum=1, help="write_mode=proportion: fraction of images stored as JPEG"
    )
    smart_threshold: int = option(
        0, minimum=0, help="write_mode=smart: bytes of pixels above which JPEG is used (0: never)"
    )
    val_fraction: float = option(
        0.0,
        minimum=0,
        maximum=0.99,
        help="hold this fraction of each class of the training images out as the val split",
    )
    class_names_from: str = option(
        "", help="a manifest, such as train.beton.json, whose order of classes the labels follow"
    )
    classes: str = option(
        "",
        help="a text file with a class name a line: write only images of these classes, with labels in this"
        " order",
    )
    on_error: str = option(
        "fail",
        choices=("fail", "skip"),
        help="images that cannot be read: fail: write nothing; skip: leave them out. Both list every such"
        " image",
    )


def write_beton(config, source=None, show_progress=True):
    """Writes `config.write_path` and its manifest, and returns the Manifest.

    `source` is a llc.data.sources.Source, which is written as it is. Without one, the images that config asks
    for are opened. Raises UserError. Then, and after Ctrl-C, SIGTERM or SIGHUP, nothing is left behind and a
    beton that existed before is unchanged.
    """
    started = time.perf_counter()
    target = _check_target(config.write_path)
    order, part = "source", None
    if source is None:
        part = parse_part(config.part)
        source = _open(config, part)
        if config.shuffle != -1:
            order = {"shuffled": config.shuffle}
    for note in source.notes:
        print(printable(note))
    _check_source(source, config.data_dir)
    if config.write_mode == "smart" and not config.smart_threshold:
        print("write_mode=smart without smart_threshold stores every image as raw pixels, as FFCV does")

    with _ended_by_signals(target), _temporary_beside(target) as (temporary, descriptor):
        try:
            kept, skipped, checksums = _write_samples(source, config, temporary, descriptor, show_progress)
            os.fsync(descriptor)
            tables = beton.read_tables(temporary)  # what was written, as a reader sees it
            counts = np.bincount(source.labels[kept], minlength=len(source.class_names))
            manifest = Manifest(
                tuple(source.class_names),
                tuple(counts.tolist()),
                len(kept),
                tables.file_size,
                tables.sha256,
                writer=dataclasses.asdict(config),
                skipped=skipped,
                checksums=checksums,
                class_words=tuple(source.class_words),
                order=order,
                part=part,
            )
            _put_in_place(temporary, target, manifest)
        except OSError as error:
            raise _write_error(target, error) from error
    _say_what_was_written(target, manifest, time.perf_counter() - started)
    return manifest


def _open(config, part):
    class_names = load_manifest(config.class_names_from).class_names if config.class_names_from else None
    return open_source(
        config.dataset,
        config.data_dir,
        config.split,
        config.val_fraction,
        class_names,
        config.subset,
        columns=Columns(config.image_column, config.label_column, config.header),
        classes=config.classes,
        per_class=config.per_class,
        shuffle_seed=config.shuffle,
        part=part,
    )


def _check_source(source, data_dir):
    """Raises UserError, before the work begins, for what a beton and its manifest cannot hold."""
    if not source.class_names or source.labels.min(initial=0) < 0:
        raise UserError(
            f"the images{f' of {printable(data_dir)}' if data_dir else ''} have no labels, and a beton holds"
            " a label for every image. Sort the images into a folder per class, or name the column of labels"
            " with --cfg.label_column; python -m llc.encode reads images without labels directly"
        )
    if len(source.class_words) not in (0, len(source.class_names)):
        raise UserError(f"{len(source.class_names)} classes, but words for {len(source.class_words)} of them")


# ------------------------------------------------------------------------------------------------ all samples


def _write_samples(source, config, path, descriptor, show_progress):
    """Writes the whole beton to the open file.

    Returns the indices of the samples in it, int64, what was Skipped, and the checksums.
    """
    num_samples = len(source)
    num_workers = config.num_workers if config.num_workers > 0 else len(os.sched_getaffinity(0))
    # Smaller chunks than requested where a few large ones would leave workers idle at the end.
    most = min(config.chunk_size, -(-num_samples // (4 * num_workers)))
    chunks = []  # (first sample, one after the last) of each that was handed out

    images = np.zeros(num_samples, beton.IMAGE_TYPE)
    sizes = np.zeros(num_samples, np.int64)  # stays 0 for a sample that cannot be read
    crcs = np.zeros(num_samples, np.uint32)
    unreadable = {}
    offset = beton.data_start(num_samples)
    next_sample, num_encoded, num_bytes, next_placed, num_finished = 0, 0, 0, 0, 0
    encoded = {}  # {number of a chunk that has no place yet: its worker}
    with (
        Workers(min(num_workers, -(-num_samples // most)), source.reader, config, descriptor) as workers,
        progress.bar(num_samples, Path(config.write_path).name, disable=not show_progress) as bar,
    ):
        while next_sample < num_samples or num_finished < len(chunks):
            chunk_size = min(
                most, num_encoded * _CHUNK_BYTES // max(num_bytes, 1) if num_encoded else _FIRST_CHUNK
            )
            for worker in workers:
                while (
                    next_sample < num_samples and len(worker.chunks) < 2 and worker.held_bytes < _HELD_BYTES
                ):
                    start, next_sample = next_sample, min(next_sample + max(chunk_size, 1), num_samples)
                    worker.encode(start, source.handles(np.arange(start, next_sample)))
                    worker.chunks.append(len(chunks))
                    chunks.append((start, next_sample))
            for worker, kind, *content in workers.receive():
                if kind == "written":
                    num_finished += 1
                    continue
                number = worker.chunks.popleft()
                part = slice(*chunks[number])
                images[part], sizes[part], crcs[part], problems = content
                unreadable.update(problems)
                encoded[number] = worker
                worker.held_bytes += int(sizes[part].sum())
                num_encoded, num_bytes = (
                    num_encoded + part.stop - part.start,
                    num_bytes + int(sizes[part].sum()),
                )
                if unreadable:
                    bar.note(**{"skipped" if config.on_error == "skip" else "unreadable": len(unreadable)})
                bar.update(part.stop - part.start)
            while next_placed in encoded:
                worker = encoded.pop(next_placed)
                part = slice(*chunks[next_placed])
                held_bytes = int(sizes[part].sum())
                worker.held_bytes -= held_bytes
                # If this will fail, continue only to find all unreadable images, and fill no disk.
                hopeless = bool(unreadable) and config.on_error == "fail"
                worker.write(None if hopeless else offset)
                bar.update(0, 0 if hopeless else held_bytes)
                images["data_ptr"][part], offset = beton.place(offset, sizes[part])
                next_placed += 1

    if unreadable and config.on_error == "fail":
        raise UserError(_list_unreadable(source, unreadable))
    kept = np.flatnonzero(sizes)
    if not len(kept):
        raise UserError(
            f"none of the {num_samples} images can be read; nothing was"
            f" written:\n{_listing(source, unreadable)}"
        )
    head, table, table_start = beton.assemble_tables(images[kept], source.labels[kept], sizes[kept], offset)
    write_at(descriptor, head, 0)
    write_at(descriptor, table, table_start)
    skipped = tuple(Skipped(as_unicode(source.name(i)), reason) for i, reason in sorted(unreadable.items()))
    return kept, skipped, data_checksums(crcs[kept])


def _listing(source, unreadable):
    lines = [
        f"  {printable(source.name(i))}: {printable(reason)}"
        for i, reason in sorted(unreadable.items())[:_MAX_LISTED]
    ]
    if len(unreadable) > _MAX_LISTED:
        lines.append(f"  ... and {len(unreadable) - _MAX_LISTED} more")
    return "\n".join(lines)


def _list_unreadable(source, unreadable):
    return (
        f"{len(unreadable)} of {len(source)} images cannot be read; nothing was written. Mend or remove"
        " them, or leave them out with"
        f" --cfg.on_error=skip:\n{_listing(source, unreadable)}"
    )


# ------------------------------------------------------------------------------------------------ the file


def _check_target(write_path):
    target = Path(write_path)
    if not write_path:
        raise UserError("write_path is empty: give the beton to write, such as train.beton")
    if target.suffix == ".json":
        raise UserError(f"write_path={target} would look like a manifest; call the beton something.beton")
    if target.is_dir():
        raise UserError(f"write_path={target} is a folder; give a file, such as {target / 'train.beton'}")
    if target.exists() and not target.is_file():
        raise UserError(f"write_path={target} is not a regular file")
    if not target.parent.is_dir():
        raise UserError(f"write_path={target}: the folder {target.parent} does not exist; make it first")
    return target


@contextmanager
def _temporary_beside(target):
    """An empty temporary file beside `target`, as (path, descriptor); removed at the end.

    The file is locked while it is in use. Unlocked ones, left behind by killed conversions to the same
    target, are removed.
    """
    prefix, suffix = f".{target.name}.", ".tmp"
    for stale in target.parent.glob(f"{_escape(prefix)}*{suffix}"):
        _remove_unlocked(stale)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix)
    except OSError as error:
        raise _write_error(target, error) from error
    temporary = Path(temporary)
    try:
        _lock(descriptor)
        yield temporary, descriptor
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _escape(name):
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lock(descriptor):
    """Tries to lock an open file; returns whether it worked. Some network file systems have no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def _remove_unlocked(path):
    try:
        if time.time() - path.stat().st_mtime < 10:
            return  # may be so new that its owner has not locked it yet
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        if _lock(descriptor):
            path.unlink(missing_ok=True)
            print(f"removed {path}, left behind by a conversion that was killed")
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _put_in_place(temporary, target, manifest):
    """Renames the finished beton and its manifest, both already on the disk."""
    destination = manifest_path(target)
    with _temporary_beside(destination) as (text, descriptor):
        write_at(descriptor, manifest.to_json().encode("ascii"), 0)
        os.fsync(descriptor)
        for path in (temporary, text):
            os.chmod(path, 0o644)  # temporary files are made for the owner only
        os.replace(temporary, target)
        os.replace(text, destination)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # not every file system can do it, and the files themselves are safe
    finally:
        os.close(folder)


@contextmanager
def _ended_by_signals(target):
    """Makes SIGTERM and SIGHUP end the block as Ctrl-C does: with clean-up, and exit status 128 + signal."""

    def end(number, _):
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, end)
    except ValueError:
        pass  # not the main thread, which alone may handle signals
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        print(f"stopped; {target} was not written", flush=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_error(target, error):
    message = f"{target} cannot be written: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message += (
            f" ({shutil.disk_usage(target.parent).free / 1e9:.1f} GB are free in {target.parent.absolute()})"
        )
    return UserError(f"{message}; nothing was left there")


def _say_what_was_written(target, manifest, seconds):
    if manifest.skipped:
        print(f"{len(manifest.skipped)} images cannot be read and were left out:")
        for skipped in manifest.skipped[:_MAX_LISTED]:
            print(f"  {printable(skipped.name)}: {printable(skipped.reason)}")
        if len(manifest.skipped) > _MAX_LISTED:
            print(f"  ... and {len(manifest.skipped) - _MAX_LISTED} more; all are in {manifest_path(target)}")
    print(
        f"{target}: {manifest.num_samples:,} images, {manifest.num_classes} classes, {manifest.file_size:,}"
        f" bytes, {seconds:.1f} s"
        f" ({manifest.num_samples / seconds:,.0f} images/s)"
    )
