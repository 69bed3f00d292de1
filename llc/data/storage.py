"""Where the decoder finds a batch's samples: in mapped files, or in pages read ahead.

Both serve the batches of one epoch in order. Inside `with storage:`, storage.addresses(b) is uint64 [B]:
where in memory the data of the samples batches[b], int64 [B], begins. The data stays valid until batch b +
LIFE is requested. Raises UserError where a file cannot be read.
"""

import contextlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from llc.data.beton import BetonError
from llc.errors import UserError

LIFE = 3  # a batch's data stays valid until this many later batches were requested
# Bytes of pages among which a page-wise order mixes samples, per process: 64 pages of FFCV's size.
WINDOW_BYTES = 1 << 29
_MAPPED_SAMPLES = 256  # samples whose data a process keeps mapped; the kernel maps up to 2 MB around each
_READ_AHEAD_BYTES = 1 << 26  # bytes of pages that are read before the batch that needs them
_NUM_READERS = 4  # concurrent reads: a single one would mostly wait for the latency of a networked disk


class MappedFiles:
    """Files mapped into memory: what was read stays in the kernel's page cache while there is room."""

    def __init__(self, shards, batches):
        self._shards, self._batches, self._num_mapped = shards, batches, 0

    def __enter__(self):
        with contextlib.ExitStack() as opened:
            self._maps = []
            for path, file_size in zip(self._shards.paths, self._shards.file_sizes):
                with _opened(path, file_size) as file:
                    self._maps.append(opened.enter_context(_mapped(path, file)))
            self._opened = opened.pop_all()
        self._bases = np.array(
            [np.frombuffer(mapped, np.uint8).ctypes.data for mapped in self._maps], np.uint64
        )
        return self

    def __exit__(self, *exception):
        self._opened.close()

    def addresses(self, b):
        indices = self._batches[b]
        self._num_mapped += len(indices)
        if self._num_mapped > _MAPPED_SAMPLES:
            # Nothing is read twice in an epoch, so what was read is unmapped. Otherwise this process's memory
            # would seem to grow to the size of the files. They stay in the page cache.
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._num_mapped = len(indices)
        return self._bases[self._shards.shard_of(indices)] + self._shards.images["data_ptr"][indices]


class Pages(NamedTuple):
    """The P pages that hold samples.

    of_sample: int64 [n], each sample's page; shards, starts, sizes: int64 [P], where the used bytes of each
    page are.
    """

    of_sample: np.ndarray
    shards: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @property
    def window(self):
        """Pages that fit into WINDOW_BYTES; at least 2."""
        return max(2, WINDOW_BYTES // int(self.sizes.max()))


def pages_of(shards):
    """The Pages of `shards`, in the order of the files."""
    shard = shards.shard_of(np.arange(len(shards)))
    begin = shards.images["data_ptr"].astype(np.int64)
    page = begin // np.array(shards.page_sizes)[shard]
    _, of_sample = np.unique(shard << 48 | page, return_inverse=True)
    num_pages = int(of_sample.max()) + 1
    starts, ends, shard_of_page = (
        np.full(num_pages, np.iinfo(np.int64).max),
        np.zeros(num_pages, np.int64),
        np.zeros(num_pages, np.int64),
    )
    np.minimum.at(starts, of_sample, begin)
    np.maximum.at(ends, of_sample, begin + shards.sizes)
    shard_of_page[of_sample] = shard
    return Pages(of_sample, shard_of_page, starts, ends - starts)


class PagedFiles:
    """Whole pages, read ahead in the order of their first use and dropped after their last.

    buffer_size: the largest number of bytes held: the most pages that LIFE consecutive batches use, and
    _READ_AHEAD_BYTES.
    """

    def __init__(self, shards, batches, pages):
        self._shards, self._batches, self._pages = shards, batches, pages
        num_batches, num_pages = len(batches), len(pages.sizes)
        page = np.concatenate([pages.of_sample[indices] for indices in batches])
        batch = np.repeat(np.arange(num_batches), [len(indices) for indices in batches])
        first, self._last = np.full(num_pages, num_batches), np.full(num_pages, -1)
        # Where a page has several values, the last assignment counts.
        first[page[::-1]], self._last[page] = batch[::-1], batch
        used = np.flatnonzero(self._last >= 0)
        self._by_first = used[np.argsort(first[used], kind="stable")]
        self._by_last = used[np.argsort(self._last[used], kind="stable")]
        begun = np.cumsum(np.bincount(first[used], minlength=num_batches))
        ended = np.cumsum(np.bincount(self._last[used] + LIFE, minlength=num_batches))[:num_batches]
        self._slot_size = int(pages.sizes.max())
        num_slots = int((begun - ended).max()) + max(1, _READ_AHEAD_BYTES // self._slot_size)
        self._num_slots = min(num_slots, len(used))
        self.buffer_size = self._num_slots * self._slot_size

    def __enter__(self):
        self._buffer = np.empty((self._num_slots, self._slot_size), np.uint8)
        self._free_slots, self._slots = (
            list(range(self._num_slots)),
            np.zeros(len(self._pages.sizes), np.int64),
        )
        self._reads, self._num_read, self._num_dropped = {}, 0, 0
        with contextlib.ExitStack() as opened:
            self._files = [
                opened.enter_context(_opened(*file))
                for file in zip(self._shards.paths, self._shards.file_sizes)
            ]
            self._opened = opened.pop_all()
        self._readers = ThreadPoolExecutor(_NUM_READERS, "llc-read-ahead")
        return self

    def __exit__(self, *exception):
        self._readers.shutdown(cancel_futures=True)
        self._opened.close()
        del self._buffer

    def addresses(self, b):
        while self._num_dropped < self._num_read and self._last[self._by_last[self._num_dropped]] <= b - LIFE:
            page = self._by_last[self._num_dropped]
            del self._reads[page]
            self._free_slots.append(self._slots[page])
            self._num_dropped += 1
        while self._free_slots and self._num_read < len(self._by_first):
            page = self._by_first[self._num_read]
            self._slots[page] = self._free_slots.pop()
            self._reads[page] = self._readers.submit(self._read, page)
            self._num_read += 1
        indices = self._batches[b]
        pages = self._pages.of_sample[indices]
        for page in np.unique(pages):
            self._reads[page].result()
        offsets = self._shards.images["data_ptr"][indices].astype(np.int64) - self._pages.starts[pages]
        return (self._buffer.ctypes.data + self._slots[pages] * self._slot_size + offsets).astype(np.uint64)

    def _read(self, page):
        shard, start, size = (int(column[page]) for column in self._pages[1:])
        _read_exactly(
            self._files[shard],
            memoryview(self._buffer[self._slots[page]])[:size],
            start,
            self._shards.paths[shard],
        )


def read_sample(shards, index):
    """The data of one sample, uint8 [size], read from its file."""
    shard = int(shards.shard_of(index))
    data = np.empty(int(shards.sizes[index]), np.uint8)
    with _opened(shards.paths[shard], shards.file_sizes[shard]) as file:
        _read_exactly(file, memoryview(data), int(shards.images["data_ptr"][index]), shards.paths[shard])
    return data


def check_unchanged(shards, indices):
    """Raises UserError where a file of these samples is gone, or its size changed since it was opened."""
    for shard in np.unique(shards.shard_of(indices)):
        with _opened(shards.paths[shard], shards.file_sizes[shard]):
            pass


@contextlib.contextmanager
def _opened(path, file_size):
    """The descriptor of the file at `path`, whose size must still be that of its checked tables."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if os.fstat(file).st_size != file_size:
            raise BetonError(
                f"{path} changed since it was opened: {os.fstat(file).st_size:,} bytes, no longer"
                f" {file_size:,}"
            )
        yield file
    finally:
        os.close(file)


def _mapped(path, file):
    try:
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"{path} cannot be mapped into memory: {error.strerror}; read it by pages, with data.in_memory=0"
        ) from error


def _read_exactly(file, memory, start, path):
    """Fills `memory` from byte `start` on."""
    while len(memory):
        try:
            count = os.preadv(file, [memory], start)
        except OSError as error:
            raise UserError(f"{path} cannot be read at byte {start:,}: {error.strerror}") from error
        if not count:
            raise BetonError(f"{path} became shorter while it was read")
        memory, start = memory[count:], start + count
