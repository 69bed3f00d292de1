"""The writer's worker processes, which encode chunks of samples and write them where they belong.

A worker is a new interpreter, not a fork, because a forked process can deadlock on locks of the parent's
threads, and a library cannot know what threads its caller has. To keep start-up cheap, a worker imports
little (no torch, and Pillow only when it needs it), its numpy starts no threads, and it gets the names of
files chunk by chunk.
"""

import collections
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import traceback
import types
import warnings
import zlib
from multiprocessing import connection, spawn

import numpy as np

from llc import environment
from llc.data import beton
from llc.data.encoding import encode_sample
from llc.data.image_errors import ImageError, machine_fault, read_from
from llc.errors import UserError

# A worker computes in one thread. Starting OpenBLAS's threads takes most of numpy's import time, and they
# would burn CPU time while they wait for work.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
_LIBC, _SYNC_FILE_RANGE_WRITE = ctypes.CDLL(None), 2  # the number is Linux's
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WHY_KILLED = {
    signal.SIGKILL: " (the system does that when memory runs out)",
    signal.SIGBUS: " (the system does that when a file that is read was cut off, or its disk failed)",
}
_MAX_BUFFERS = 1000  # of one pwritev call, which accepts 1024 (IOV_MAX) on Linux

# ------------------------------------------------------------------------------------ as the parent sees them


class Worker:
    """A worker process as its parent sees it. `chunks`: numbers of the chunks that it encodes, in order."""

    def __init__(self, process, pipe):
        self.process, self.pipe = process, pipe
        self.chunks = collections.deque()
        self.held_bytes = 0

    def encode(self, start, handles):
        """Has samples start, start + 1, ... encoded; `handles` are those of the source's reader."""
        self._send(pickle.dumps(("encode", start, handles)))

    def write(self, offset):
        """Has the oldest encoded chunk written from byte `offset` on, or dropped (None)."""
        self._send(pickle.dumps(("write", offset)))

    def _send(self, message):
        try:
            self.pipe.send_bytes(message)
        except OSError:
            self.raise_death()

    def raise_death(self):
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        if status is None or status >= 0:
            how = f"ended with status {status}"
        else:
            how = f"was killed by {signal.Signals(-status).name}"
            how += _WHY_KILLED.get(-status, "")
        raise UserError(f"worker process {self.process.pid} {how}; nothing was written")


class Workers:
    """The worker processes, which live inside a `with` block and are gone after it, whatever happened.

    reader: a llc.data.sources.Source, of which workers use only `read`. descriptor: of the beton, open for
    writing.
    """

    def __init__(self, num_workers, reader, config, descriptor):
        self._num_workers, self._reader, self._config, self._descriptor = (
            num_workers,
            reader,
            config,
            descriptor,
        )
        self._workers = []

    def __enter__(self):
        try:
            # The settings without their class, whose module imports more than a worker needs.
            start = pickle.dumps((self._reader, types.SimpleNamespace(**vars(self._config))))
        except Exception as error:  # pickle raises nearly any type
            raise self._not_sent(error) from error
        try:
            for _ in range(self._num_workers):
                self._start_one()
            for worker in self._workers:
                worker._send(start)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _not_sent(self, why):
        return UserError(
            f"this {type(self._reader).__name__} cannot be sent to worker processes: {why}. What it holds"
            " must be picklable, of classes"
            " and functions that are defined in modules (not in the script that is run)"
        )

    def _start_one(self):
        ours, theirs = connection.Pipe()
        script = (
            f"import sys; sys.path[:] = {[os.fspath(entry) for entry in sys.path]!a}; from llc.data.workers"
            " import work;"
            f" work({theirs.fileno()}, {self._descriptor}, {os.getpid()})"
        )
        # A worker starts with the signals blocked and unblocks them when it can handle them, so that Ctrl-C
        # during its imports gives no traceback.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process = subprocess.Popen(
                [spawn.get_executable(), "-c", script],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._descriptor),
                env=environment.of_child(**_ONE_THREAD),
            )
            self._workers.append(Worker(process, ours))
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __iter__(self):
        return iter(self._workers)

    def receive(self):
        """Waits for messages, yields (worker, kind, *content). Raises UserError if a worker failed."""
        for ready in connection.wait([worker.pipe for worker in self._workers]):
            worker = next(worker for worker in self._workers if worker.pipe is ready)
            try:
                kind, *content = ready.recv()
            except (EOFError, OSError):
                worker.raise_death()
            if kind == "error":
                raise OSError(*content)
            if kind == "not read":
                raise self._not_sent(*content)
            if kind == "stopped":
                raise UserError(f"{content[0]}; nothing was written")
            if kind == "bug":
                raise UserError(f"a worker process failed; nothing was written:\n{content[0]}")
            yield worker, kind, *content

    def __exit__(self, *_):
        # Killed, because they hold nothing that needs a clean end and may be deep in a decoder.
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.pipe.close()


# ------------------------------------------------------------------------------------------------ as they are


def work(pipe, descriptor, parent):
    """The life of a worker: it follows Worker's commands in order until it is killed or its parent is gone.

    pipe, descriptor: open file descriptors of the parent's connection and of the beton. parent: the parent's
    process id.
    """
    # Ctrl-C reaches all processes of the terminal; the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    warnings.simplefilter("ignore")  # Pillow warns about odd files once per worker, without their names
    pipe = connection.Connection(pipe)
    try:
        pipe.send(_obey(pipe, descriptor, parent))
        while True:
            # Wait until the parent has read the message and ends this process. If this end of the pipe closed
            # now, the parent would notice that first.
            pipe.recv()
    except (EOFError, ConnectionError):
        pass  # the parent is gone


def _obey(pipe, descriptor, parent):
    """Follows the parent's commands; returns what went wrong, as a message.

    Raises EOFError or ConnectionError when the parent is gone.
    """
    message = pipe.recv_bytes()
    try:
        reader, config = pickle.loads(message)
    except UserError as error:
        return "stopped", str(error)
    except Exception as error:
        return "not read", str(error)
    held = collections.deque()  # encoded chunks that have no place yet
    try:
        while True:
            kind, *content = pipe.recv()
            if kind == "encode":
                images, crcs, chunk, problems = _encode_chunk(reader, config, *content, parent)
                held.append(chunk)
                pipe.send(("encoded", images, [len(data) for data in chunk], crcs, problems))
            else:
                chunk = held.popleft()
                if content[0] is not None:
                    try:
                        _write_chunk(descriptor, chunk, content[0])
                    except OSError as error:
                        return "error", error.errno, error.strerror
                pipe.send(("written",))
    except (EOFError, ConnectionError):
        raise
    except UserError as error:  # such as a SourceError: not the image is at fault, so none is left out
        return "stopped", str(error)
    except MemoryError:
        return "stopped", "the machine has no memory left to encode images"
    except Exception as error:
        fault = machine_fault(error)
        return ("bug", traceback.format_exc()) if fault is None else ("stopped", f"an image: {fault}")


def _encode_chunk(reader, config, start, handles, parent):
    """Encodes samples start, start + 1, ...

    Returns (IMAGE_TYPE [len(handles)]; CRC-32s of their data, uint32; a list of that data, empty where a
    sample is unreadable; [(index, reason)] of the unreadable ones).
    """
    images = np.zeros(len(handles), beton.IMAGE_TYPE)
    crcs = np.zeros(len(handles), np.uint32)
    chunk, problems = [], []
    for row, handle in enumerate(handles):
        if os.getppid() != parent:
            raise EOFError
        try:
            image, name = read_from(reader, handle)
            sample = encode_sample(image, start + row, config, name)
        except ImageError as error:
            problems.append((start + row, error.reason))
            chunk.append(b"")
        else:
            images[row] = (sample.mode, sample.width, sample.height, 0)
            crcs[row] = zlib.crc32(sample.data)  # now, while it is in the cache
            chunk.append(sample.data)
    return images, crcs, chunk, problems


def _write_chunk(descriptor, chunk, offset):
    sizes = [len(data) for data in chunk]
    places, _ = beton.place(offset, sizes)
    breaks = np.flatnonzero(places[1:] != (places + sizes)[:-1]) + 1
    breaks = sorted({*breaks.tolist(), *range(0, len(chunk), _MAX_BUFFERS), len(chunk)})
    for first, behind in zip(breaks, breaks[1:]):
        part, start = chunk[first:behind], int(places[first])
        # One call for all buffers, because joining a chunk of raw pictures first would take long.
        count = os.pwritev(descriptor, part, start)
        if count < sum(sizes[first:behind]):
            write_at(descriptor, memoryview(b"".join(part))[count:], start + count)
    _begin_writeback(descriptor, int(places[0]), int(places[-1]) + sizes[-1] - int(places[0]))


def _begin_writeback(descriptor, start, size):
    """Lets the system start to put these bytes on the disk, so that the final fsync waits for less."""
    if size and hasattr(_LIBC, "sync_file_range"):
        # Its result is ignored, because the final fsync reports errors.
        _LIBC.sync_file_range(descriptor, ctypes.c_int64(start), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def write_at(descriptor, data, offset):
    """Writes all bytes of `data` from byte `offset` of the open file on. Raises OSError."""
    left = memoryview(data)
    while len(left):
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count
