"""A source -> a beton (FFCV's format, read by any FFCV 1.0.2) and its manifest, in several processes.

The same images and settings give the same file, byte for byte, for any number of workers. A worker takes a chunk of samples, encodes
it, and reports the sizes; this process, which alone decides on places, answers in the order of the samples where the chunk
belongs; the worker writes it there itself. No image passes through a pipe, nothing is locked or shared but
the open file, so a worker that dies at any moment is noticed at once and leaves nothing behind.

The file grows under a temporary name beside its target and is renamed when it is whole and on the disk; so is the manifest, last.
A crash between the two renames leaves a manifest that does not fit its beton, which `manifest.verify` says.
"""

import collections
import dataclasses
import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from multiprocessing import connection as pipes
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from llc.config import option
from llc.data import beton
from llc.data.images import ImageError, load_rgb
from llc.data.manifest import Manifest, Skipped, load_manifest, manifest_path
from llc.data.sources import open_source, printable
from llc.errors import UserError

_JPEG_MAX_SIDE = 65_500  # pixels; libjpeg's limit, just below what the beton's 16 bits hold
_HELD_BYTES = 1 << 25  # encoded data that a worker may hold while earlier chunks are not placed; it stays idle above
_MAX_LISTED = 1_000  # unreadable images that are listed on the screen


@dataclasses.dataclass(frozen=True)
class WriterConfig:
    """How images become a beton. Names and defaults are those of ffcv-imagenet's ResNet50 setting."""

    write_path: str = option(help="the beton to write; its manifest is written beside it, as WRITE_PATH.json")
    data_dir: str = option(
        "", help="the folder that holds a folder of images per class, or that holds such folders as train/ and val/; the root folder of"
        " a torchvision dataset"
    )  # fmt: skip
    dataset: str = option("folder", help="folder (imagenet means the same), or a torchvision dataset: FashionMNIST, CIFAR10, ...")
    split: str = option("train", choices=("train", "val"), help="the split to write")
    write_mode: str = option(
        "proportion", choices=("raw", "jpg", "smart", "proportion"), help="how images are stored: pixels, JPEG, JPEG where the pixels"
        " take more than smart_threshold bytes, JPEG for the share compress_probability"
    )  # fmt: skip
    max_resolution: int = option(500, minimum=0, help="images are shrunk until no side is longer, in pixels (0: never)")
    num_workers: int = option(-1, minimum=-1, help="processes (-1: one per core)")
    chunk_size: int = option(100, minimum=1, maximum=10_000, help="images that a worker takes at a time, at most")
    jpeg_quality: int = option(90, minimum=1, maximum=100, help="quality of the JPEGs")
    subset: int = option(-1, minimum=-1, help="write only so many images, evenly spaced over all (-1: all)")
    compress_probability: float = option(0.5, minimum=0, maximum=1, help="write_mode=proportion: share of images stored as JPEG")
    smart_threshold: int = option(0, minimum=0, help="write_mode=smart: bytes of pixels above which JPEG is used (0: never)")
    val_fraction: float = option(
        0.0, minimum=0, maximum=0.99, help="hold this share of each class of the training images out as the val split"
    )  # fmt: skip
    class_names_from: str = option("", help="a manifest, such as train.beton.json: labels are given in its order of classes")
    on_error: str = option(
        "fail", choices=("fail", "skip"), help="images that cannot be read: write nothing, or leave them out; both list all of them"
    )  # fmt: skip


def write_beton(config, source=None, show_progress=True):
    """Writes `config.write_path` and its manifest, and returns the Manifest.

    `source` is a llc.data.sources.Source; without one, config's is opened. Raises UserError, and then (as after Ctrl-C, SIGTERM or
    SIGHUP) nothing is left behind and a beton that stood there before is untouched.
    """
    started = time.perf_counter()
    target = _check_target(config.write_path)
    if source is None:
        class_names = load_manifest(config.class_names_from).class_names if config.class_names_from else None
        source = open_source(
            config.dataset, config.data_dir, config.split,
            val_fraction=config.val_fraction, class_names=class_names, subset=config.subset,
        )  # fmt: skip
    for note in source.notes:
        print(printable(note))
    if config.write_mode == "smart" and not config.smart_threshold:
        print("write_mode=smart without smart_threshold stores every image as raw pixels, as FFCV does")

    with _ended_by_signals(target), _temporary_beside(target) as (temporary, descriptor):
        try:
            kept, skipped = _write_samples(source, config, temporary, descriptor, show_progress)
            os.fsync(descriptor)
            tables = beton.read_tables(temporary)  # what was written, as a reader will find it
            counts = np.bincount(source.labels[kept], minlength=len(source.class_names))
            manifest = Manifest(
                tuple(source.class_names), tuple(counts.tolist()), len(kept), tables.file_size, tables.sha256,
                writer=dataclasses.asdict(config), skipped=skipped,
            )  # fmt: skip
            _put_in_place(temporary, target, manifest)
        except OSError as error:
            raise _write_error(target, error) from error
    _say_what_was_written(target, manifest, time.perf_counter() - started)
    return manifest


# ------------------------------------------------------------------------------------------------ one sample


@dataclasses.dataclass(frozen=True)
class EncodedSample:
    """A sample as it is stored: `mode` is beton.JPG or beton.RAW, `data` uint8 [bytes]."""

    mode: int
    width: int
    height: int
    data: np.ndarray


def encode_sample(image, index, config, name=None):
    """What load_rgb takes -> EncodedSample: decoded, shrunk, and encoded as `config` says.

    A function of the image, its index in the source and the config alone. Raises ImageError, which calls the image `name`.
    """
    pixels = shrink(load_rgb(image, name), config.max_resolution)
    height, width = pixels.shape[:2]
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ImageError(name, f"has {width} x {height} pixels; a side has at most {_JPEG_MAX_SIDE} (set max_resolution)")
    if _is_stored_as_jpeg(pixels.nbytes, index, config):
        encoded = EncodedSample(beton.JPG, width, height, _encode_jpeg(pixels, config.jpeg_quality))
    else:
        encoded = EncodedSample(beton.RAW, width, height, pixels.reshape(-1))
    if encoded.data.nbytes > beton.PAGE_SIZE:
        raise ImageError(
            name, f"takes {encoded.data.nbytes:,} bytes with its {width} x {height} pixels; a beton's page holds {beton.PAGE_SIZE:,}"
            " (set max_resolution, or write_mode=jpg)"
        )  # fmt: skip
    return encoded


def shrink(pixels, max_resolution):
    """uint8 [H, W, 3] -> the same with its longer side at most `max_resolution` (0: any) by averaging areas; no side becomes 0."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if not max_resolution or longer <= max_resolution:
        return pixels
    size = [max(side * max_resolution // longer, 1) for side in (width, height)]  # rounded down, as FFCV does
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _is_stored_as_jpeg(num_bytes, index, config):
    if config.write_mode == "smart":
        return bool(config.smart_threshold) and num_bytes > config.smart_threshold
    if config.write_mode == "proportion":
        return uniform(index) < config.compress_probability
    return config.write_mode == "jpg"


def uniform(index):
    """A number in [0, 1) that looks random and is a function of `index`: SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (index + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return ((x ^ x >> 31) >> 11) * 2.0**-53


def _encode_jpeg(pixels, quality):
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of {pixels.shape}")
    return data.reshape(-1)


def place(offset, sizes):
    """Where samples of `sizes` bytes go, one behind the other from byte `offset` on, none across a page.

    Returns their places, int64 [len(sizes)], and the byte behind the last.
    """
    places = np.empty(len(sizes), np.int64)
    for k, size in enumerate(sizes):
        if offset % beton.PAGE_SIZE + size > beton.PAGE_SIZE:
            offset = _next_page(offset)
        places[k] = offset
        offset += int(size)
    return places, offset


def _next_page(offset):
    return -(-offset // beton.PAGE_SIZE) * beton.PAGE_SIZE


# ------------------------------------------------------------------------------------------------ all samples


def _write_samples(source, config, path, descriptor, show_progress):
    """Writes the whole beton to the open file; returns the indices of the samples in it, int64, and what was Skipped."""
    num_samples = len(source)
    num_workers = config.num_workers if config.num_workers > 0 else len(os.sched_getaffinity(0))
    # Smaller chunks than asked for where a few large ones would leave workers idle at the end.
    chunk_size = min(config.chunk_size, -(-num_samples // (4 * num_workers)))
    chunks = [(start, min(start + chunk_size, num_samples)) for start in range(0, num_samples, chunk_size)]

    images = np.zeros(num_samples, beton.IMAGE_TYPE)
    sizes = np.zeros(num_samples, np.int64)  # stays 0 for a sample that cannot be read
    unreadable = {}
    offset = _next_page(beton.METADATA_START + num_samples * beton.METADATA_TYPE.itemsize)
    next_chunk, next_placed, num_finished = 0, 0, 0
    encoded = {}  # number of a chunk that waits for its place -> its worker
    with (
        _Workers(min(num_workers, len(chunks)), source, config, descriptor) as workers,
        tqdm(
            total=num_samples, desc=Path(config.write_path).name, unit="img", disable=not show_progress, dynamic_ncols=True,
            mininterval=0.5 if os.isatty(2) else 10,
        ) as bar,
    ):  # fmt: skip
        while num_finished < len(chunks):
            for worker in workers:
                while next_chunk < len(chunks) and len(worker.chunks) < 2 and worker.held_bytes < _HELD_BYTES:
                    worker.send("encode", *chunks[next_chunk])
                    worker.chunks.append(next_chunk)
                    next_chunk += 1
            for worker, kind, *content in workers.receive():
                if kind == "written":
                    num_finished += 1
                    continue
                number = worker.chunks.popleft()
                part = slice(*chunks[number])
                images[part], sizes[part], problems = content
                unreadable.update(problems)
                encoded[number] = worker
                worker.held_bytes += int(sizes[part].sum())
                bar.update(part.stop - part.start)
            while next_placed in encoded:
                worker = encoded.pop(next_placed)
                part = slice(*chunks[next_placed])
                worker.held_bytes -= int(sizes[part].sum())
                hopeless = bool(unreadable) and config.on_error == "fail"  # go on to find all of them, but fill no disk
                worker.send("write", None if hopeless else offset)
                images["data_ptr"][part], offset = place(offset, sizes[part])
                next_placed += 1

    if unreadable and config.on_error == "fail":
        raise UserError(_list_unreadable(source, unreadable))
    kept = np.flatnonzero(sizes)
    if not len(kept):
        raise UserError(f"none of the {num_samples} images can be read; nothing was written:\n{_listing(source, unreadable)}")
    _write_tables(descriptor, images[kept], source.labels[kept], sizes[kept], _next_page(offset))
    return kept, tuple(Skipped(printable(source.name(i)), reason) for i, reason in sorted(unreadable.items()))


def _write_tables(descriptor, images, labels, sizes, end):
    metadata = np.zeros(len(images), beton.METADATA_TYPE)
    metadata["f0"], metadata["f1"] = images, labels
    alloc_table = np.zeros(len(images), beton.ALLOC_TYPE)
    alloc_table["sample_id"], alloc_table["ptr"], alloc_table["size"] = np.arange(len(images)), images["data_ptr"], sizes
    _write_at(descriptor, beton.header_bytes(len(images), end) + metadata.tobytes(), 0)
    _write_at(descriptor, alloc_table.tobytes(), end)


def _write_at(descriptor, data, offset):
    left = memoryview(data)
    while len(left):
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


def _listing(source, unreadable):
    lines = [f"  {printable(source.name(i))}: {reason}" for i, reason in sorted(unreadable.items())[:_MAX_LISTED]]
    if len(unreadable) > _MAX_LISTED:
        lines.append(f"  ... and {len(unreadable) - _MAX_LISTED} more")
    return "\n".join(lines)


def _list_unreadable(source, unreadable):
    return (
        f"{len(unreadable)} of {len(source)} images cannot be read; nothing was written. Mend or remove them, or leave them out with"
        f" --cfg.on_error=skip:\n{_listing(source, unreadable)}"
    )


# ------------------------------------------------------------------------------------------------ the workers


class _Worker:
    """A worker process as its parent sees it. `chunks`: numbers of those it has to encode, in its order."""

    def __init__(self, process, pipe):
        self.process, self.pipe = process, pipe
        self.chunks = collections.deque()
        self.held_bytes = 0

    def send(self, *command):
        try:
            self.pipe.send(command)
        except OSError:
            self.raise_death()

    def raise_death(self):
        self.process.join(5)
        status = self.process.exitcode
        if status is None or status >= 0:
            how = f"ended with status {status}"
        else:
            how = f"was killed by {signal.Signals(-status).name}"
            how += " (the system does that when memory runs out)" if -status == signal.SIGKILL else ""
        raise UserError(f"worker process {self.process.pid} {how}; nothing was written")


class _Workers:
    """The worker processes, from `with` on until its end; they are gone after it, whatever happened."""

    def __init__(self, num_workers, source, config, descriptor):
        self._num_workers, self._args = num_workers, (source, config, descriptor)
        self._workers = []

    def __enter__(self):
        # Forked: the source is there at once, however long its lists. A new interpreter for each would load them all again.
        context = multiprocessing.get_context("fork")
        pairs = [context.Pipe() for _ in range(self._num_workers)]
        # Signals wait until a child has its own handlers: ours would unwind this function in the child.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        try:
            for ours, theirs in pairs:
                # Every other end is closed in the child, or the death of its owner would go unnoticed.
                others = [end for pair in pairs for end in pair if end is not theirs]
                process = context.Process(target=_work, args=(theirs, others, blocked, os.getpid(), *self._args), daemon=True)
                with warnings.catch_warnings():
                    # Python 3.12 warns of forking beside threads; ours are numpy's and OpenCV's, idle, and not used in the child.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                self._workers.append(_Worker(process, ours))
        except BaseException:
            self.__exit__()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return self

    def __iter__(self):
        return iter(self._workers)

    def receive(self):
        """Waits for messages and yields (worker, kind, *content). Raises UserError where a worker failed or died."""
        for ready in pipes.wait([worker.pipe for worker in self._workers]):
            worker = next(worker for worker in self._workers if worker.pipe is ready)
            try:
                kind, *content = ready.recv()
            except (EOFError, OSError):
                worker.raise_death()
            if kind == "error":
                raise OSError(*content)
            if kind == "bug":
                raise UserError(f"a worker process failed; nothing was written:\n{content[0]}")
            yield worker, kind, *content

    def __exit__(self, *_):
        # Killed rather than asked: they hold nothing that needs an end, and may be deep in a decoder.
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()


def _work(pipe, others, signals, parent, source, config, descriptor):
    """The life of a worker: obeys "encode" and "write" in the order in which they come, until it is killed or left alone."""
    for end in others:
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the terminal; the parent acts on it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    warnings.simplefilter("ignore")  # Pillow's remarks on odd files, once per worker and without a name
    cv2.setNumThreads(1)
    held = collections.deque()  # encoded chunks that wait for their place
    try:
        while True:
            kind, *content = pipe.recv()
            if kind == "encode":
                images, chunk, problems = _encode_chunk(source, config, *content, parent)
                held.append(chunk)
                pipe.send(("encoded", images, [len(data) for data in chunk], problems))
            else:
                chunk = held.popleft()
                if content[0] is not None:
                    _write_chunk(descriptor, chunk, content[0])
                pipe.send(("written",))
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except OSError as error:
        pipe.send(("error", error.errno, error.strerror))
    except Exception:
        pipe.send(("bug", traceback.format_exc()))


def _encode_chunk(source, config, start, stop, parent):
    """Samples start..stop -> IMAGE_TYPE [stop - start], their data (empty where unreadable), and [(index, reason)]."""
    images = np.zeros(stop - start, beton.IMAGE_TYPE)
    chunk, problems = [], []
    for row, index in enumerate(range(start, stop)):
        if os.getppid() != parent:
            raise EOFError
        name = source.name(index)
        try:
            sample = encode_sample(source.image(index), index, config, name)
        except ImageError as error:
            problems.append((index, error.reason))
            chunk.append(b"")
        else:
            images[row] = (sample.mode, sample.width, sample.height, 0)
            chunk.append(sample.data)
    return images, chunk, problems


def _write_chunk(descriptor, chunk, offset):
    places, _ = place(offset, [len(data) for data in chunk])
    ends = places + [len(data) for data in chunk]
    breaks = np.flatnonzero(places[1:] != ends[:-1]) + 1
    for first, behind in zip([0, *breaks], [*breaks, len(chunk)]):
        _write_at(descriptor, b"".join(bytes(data) for data in chunk[first:behind]), int(places[first]))


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
    """An empty file in the folder of `target`, as (path, descriptor); it is removed at the end if it is still there.

    It is locked while it is in use. What a killed conversion to the same target left behind is not, and is removed.
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
    """Whether this open file could be locked; some network file systems have no locks."""
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
        _write_at(descriptor, manifest.to_json().encode("ascii"), 0)
        os.fsync(descriptor)
        for path in (temporary, text):
            os.chmod(path, 0o644)  # temporary files are made for the owner only
        os.replace(temporary, target)
        os.replace(text, destination)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # not every file system has it, and the files themselves are safe
    finally:
        os.close(folder)


@contextmanager
def _ended_by_signals(target):
    """SIGTERM and SIGHUP end what runs inside like Ctrl-C does: cleaned up, then exit status 128 + signal."""

    def end(number, _):
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, end)
    except ValueError:
        pass  # not the main thread: signals are its caller's affair
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
        message += f" ({shutil.disk_usage(target.parent).free / 1e9:.1f} GB are free in {target.parent.absolute()})"
    return UserError(f"{message}; nothing was left there")


def _say_what_was_written(target, manifest, seconds):
    if manifest.skipped:
        print(f"{len(manifest.skipped)} images cannot be read and were left out:")
        for skipped in manifest.skipped[:_MAX_LISTED]:
            print(f"  {skipped.name}: {skipped.reason}")
        if len(manifest.skipped) > _MAX_LISTED:
            print(f"  ... and {len(manifest.skipped) - _MAX_LISTED} more; all are in {manifest_path(target)}")
    print(
        f"{target}: {manifest.num_samples:,} images, {manifest.num_classes} classes, {manifest.file_size:,} bytes, {seconds:.1f} s"
        f" ({manifest.num_samples / seconds:,.0f} images/s)"
    )
