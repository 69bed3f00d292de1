"""Betons -> batches on the device: for training (random crops and flips), validation and encoding.

A training batch is a pure function of (betons, seed, epoch, number of the batch), whatever the number of
threads; sampling.py defines it. FFCV's own Loader is not used, for these reasons: its crops and flips cannot
be seeded, it decodes a whole JPEG however small the crop, it deals out equal numbers of images to threads
however much work each is, and it compiles for 5 to 8 seconds in every process. Here one call per batch into
the native library (llc.native.codec) does the work.

A thread makes batches ahead. Whoever holds a batch owns it: its memory is reused only when nothing refers to
it any more.
"""

import collections
import functools
import hashlib
import os
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from llc import environment
from llc.arguments import fraction, one_of, whole_number, worker_count
from llc.data import sampling
from llc.data.prefetch import Prefetch
from llc.data.shards import check_parts_of_all
from llc.data.storage import LIFE, MappedFiles, PagedFiles, check_unchanged, pages_of, read_sample
from llc.errors import UserError
from llc.native import codec

_NUM_AHEAD = 1  # finished batches that wait, besides those being decoded (LIFE) and in use
# How many samples are tried in place of a damaged one. If all are damaged, the file is.
_MAX_REPLACEMENTS = 20
# The largest fraction of a machine's images that an epoch may leave out because another machine has fewer.
_MAX_UNEVEN = 0.05


def default_workers():
    """The cores that this process may use, divided among the processes of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // environment.local_world_size())


class TrainLoader:
    """Training batches: random crops and flips, in an order that (seed, epoch) determine.

    `epoch(e, resolution)` yields (images uint8 [B, 3, resolution, resolution], channels last, labels int64
    [B]) on the device. shards: shards.Shards. B: batch_size, per process; every process takes
    batches_per_epoch of them. min_scale: smallest area of a random crop, as a fraction of the image.
    in_memory: the betons fit into this machine's memory; otherwise pages are read into a bounded buffer, and
    the order is random within a window (sampling.pagewise_order). on_error: a damaged sample ends the epoch
    with a UserError that names it ("fail"), or is replaced by another one, drawn by (seed, epoch, sample)
    too, and a warning at the end of the epoch names it ("skip_sample"). A file that cannot be read, or
    changed, is a UserError in either case.

    The betons may differ between processes, as where each machine has its own shards; then those processes
    that have the same betons divide them among themselves. Raises UserError where classes or numbers of
    images do not fit together, where a part of the betons is missing on all machines together
    (shards.check_parts_of_all), and where no batch can be filled.
    """

    def __init__(
        self, shards, *, batch_size, num_workers, processes, seed, min_scale, in_memory=True, on_error="fail"
    ):
        batch_size = whole_number("batch_size", batch_size, 1)
        num_workers = worker_count("num_workers", num_workers)
        min_scale = fraction("min_scale", min_scale)
        one_of("on_error", on_error, ("fail", "skip_sample"))
        self._shards, self._batch_size, self._seed, self._min_scale = shards, batch_size, seed, min_scale
        self._on_error, self._device = on_error, processes.device
        self._num_threads = num_workers if num_workers > 0 else default_workers()
        self._rank, self._world_size, self.batches_per_epoch = _share(shards, batch_size, processes)
        self._pages = None if in_memory else pages_of(shards)

    def order(self, epoch):
        """The samples of this process's batches, int64 [batches_per_epoch, B]."""
        cut = self._batch_size, self._seed, epoch, self._rank, self._world_size
        if self._pages is None:
            order = sampling.random_order(len(self._shards), *cut)
        else:
            order = sampling.pagewise_order(self._pages.of_sample, *cut, window=self._pages.window)
        return order[: self.batches_per_epoch]

    def epoch(self, epoch, resolution, start_batch=0):
        """The batches of one epoch from `start_batch` on. Several epochs may run at once."""

        resolution = whole_number("resolution", resolution, 1)

        def draw(indices, heights, widths):
            return sampling.random_crops(indices, heights, widths, self._seed, epoch, self._min_scale)

        def replace(index, status, out):
            if self._on_error == "fail":
                raise _damaged(
                    self._shards,
                    index,
                    status,
                    "; write it again, or train on the others with data.on_error=skip_sample",
                )
            for candidate in sampling.replacements(
                index, len(self._shards), self._seed, epoch, _MAX_REPLACEMENTS
            ):
                data = read_sample(self._shards, candidate)
                samples = _samples(self._shards, np.array([candidate]), [data.ctypes.data])
                crops, flips = draw(np.array([index]), samples.heights, samples.widths)
                if codec.decode_batch(samples, crops, flips, out[None])[0] == codec.OK:
                    replaced.append(index)
                    return self._shards.labels[candidate]
            raise _damaged(
                self._shards,
                index,
                status,
                f", and so are {_MAX_REPLACEMENTS} others drawn in its place; write it again",
            )

        def batches():
            try:
                yield from _decode(
                    self._shards, order, storage, draw, replace, resolution, self._num_threads, self._device
                )
            finally:
                if replaced:
                    warnings.warn(_replaced_text(self._shards, replaced, epoch), stacklevel=2)

        order, replaced = self.order(epoch)[start_batch:], []
        if not len(order):
            return iter(())
        storage = (
            MappedFiles(self._shards, order)
            if self._pages is None
            else PagedFiles(self._shards, order, self._pages)
        )
        return Prefetch(batches(), _NUM_AHEAD, _receiver(self._device))


class ValLoader:
    """Validation batches: (images uint8 [b, 3, resolution, resolution], labels int64 [b]), b <= batch_size.

    Rank r gets samples r, r + world_size, ... in order. The crop is the middle square, crop_ratio of the
    shorter side. A damaged sample is always a UserError, because an accuracy counts every image once. Raises
    UserError where processes have different betons.

    num_batches: of this process; num_shared_batches: those that every process has.
    """

    _on_error, _advice = "fail", ""

    def __init__(self, shards, *, batch_size, num_workers, processes, resolution, crop_ratio, in_memory=True):
        batch_size = whole_number("batch_size", batch_size, 1)
        num_workers = worker_count("num_workers", num_workers)
        resolution = whole_number("resolution", resolution, 1)
        crop_ratio = fraction("crop_ratio", crop_ratio)
        check_parts_of_all(shards, processes)
        self._shards, self._device, self._resolution, self._crop_ratio = (
            shards,
            processes.device,
            resolution,
            crop_ratio,
        )
        self._num_threads = num_workers if num_workers > 0 else default_workers()
        parts = self._divided(_of_all(shards, processes))
        own = parts[processes.rank]
        self.indices = np.arange(own.start, own.stop, own.step)
        self._batches = [self.indices[k : k + batch_size] for k in range(0, len(own), batch_size)]
        self.num_batches = len(self._batches)
        self.num_shared_batches = min(-(-len(part) // batch_size) for part in parts)
        self._pages = None if in_memory else pages_of(shards)

    def _divided(self, of_all):
        """The samples of each process, ranges by rank. of_all: the result of `_of_all`."""
        if len({digest for digest, _, _ in of_all}) > 1:
            raise UserError(
                f"{self._shards}: the processes have different val betons; every machine needs the same"
            )
        return [range(rank, len(self._shards), len(of_all)) for rank in range(len(of_all))]

    def __iter__(self):
        def crop(indices, heights, widths):
            return sampling.centre_crops(heights, widths, self._crop_ratio), np.zeros(len(indices), bool)

        def replace(index, status, out):
            if self._on_error == "fail":
                raise _damaged(self._shards, index, status, f"; write it again{self._advice}")
            out[:] = 0
            left_out.append(index)
            return -1

        def batches():
            try:
                yield from _decode(
                    self._shards,
                    self._batches,
                    storage,
                    crop,
                    replace,
                    self._resolution,
                    self._num_threads,
                    self._device,
                )
            finally:
                if left_out:
                    warnings.warn(
                        f"samples left out because they cannot be decoded ({len(left_out)}): "
                        f"{_names(self._shards, left_out)}",
                        stacklevel=2,
                    )

        if not self._batches:
            return iter(())
        left_out = []
        storage = (
            MappedFiles(self._shards, self._batches)
            if self._pages is None
            else PagedFiles(self._shards, self._batches, self._pages)
        )
        return Prefetch(batches(), _NUM_AHEAD, _receiver(self._device))


class EncodingLoader(ValLoader):
    """Batches as ValLoader's of train betons that are encoded: each image once on all processes together.

    Their order means nothing, so each process gets consecutive samples, and few pages are read by two. As in
    training, the betons may differ between processes; those with the same betons divide them among
    themselves. on_error: a damaged sample is a UserError that names it ("fail"), or becomes a black image
    with the label -1, and a warning at the end names it ("skip_sample").
    """

    _advice = ", or leave such samples out with data.on_error=skip_sample"

    def __init__(self, shards, *, on_error="fail", **options):
        one_of("on_error", on_error, ("fail", "skip_sample"))
        super().__init__(shards, **options)
        self._on_error = on_error

    def _divided(self, of_all):
        parts = []
        for rank, (_, _, num) in enumerate(of_all):
            place, sharers = _place(of_all, rank)
            parts.append(range(num * place // sharers, num * (place + 1) // sharers))
        return parts


# ---------------------------------------------------------------------------------------------- who gets what


def _of_all(shards, processes):
    """(digest of the data, digest of the classes, number of samples) of each process, by rank."""

    def digest(text):
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:7], "big")

    names = "\0".join(shards.manifest.class_names)
    mine = torch.tensor(
        [[digest("".join(m.identity for m in shards.manifests)), digest(names), len(shards)]],
        device=processes.device,
    )
    return [tuple(row[0].tolist()) for row in processes.gather(mine)]


def _share(shards, batch_size, processes):
    """(rank and world size among the processes with the same betons, batches per epoch of every process)."""
    check_parts_of_all(shards, processes)
    of_all = _of_all(shards, processes)
    for rank, (_, names, _) in enumerate(of_all):
        if names != of_all[0][1]:
            raise UserError(
                f"processes 0 and {rank} have train betons of different classes; write all of them with"
                " --cfg.class_names_from of one "
                "manifest"
            )
    sharers = collections.Counter(digest for digest, _, _ in of_all)
    batches = {num: sampling.num_batches(num, batch_size, sharers[digest]) for digest, _, num in of_all}
    fewest = min(batches.values())
    if not fewest:
        smallest = min(batches, key=batches.get)
        raise UserError(
            f"{shards}: {smallest} images do not fill one batch; training.batch_size = "
            f"{batch_size * processes.world_size} is too large"
        )
    if fewest < (1 - _MAX_UNEVEN) * max(batches.values()):
        raise UserError(
            f"the machines' train betons fill from {fewest} to {max(batches.values())} batches an epoch, and"
            " every process has to take as "
            f"many; divide the images evenly among the machines, within {_MAX_UNEVEN:.0%}"
        )
    return *_place(of_all, processes.rank), fewest


def _place(of_all, rank):
    """(rank, world size) of a process among those with the same betons. of_all: the result of `_of_all`."""
    with_its_betons = [other for other, (digest, _, _) in enumerate(of_all) if digest == of_all[rank][0]]
    return with_its_betons.index(rank), len(with_its_betons)


# ------------------------------------------------------------------------------------------------ batches


def _decode(shards, batches, storage, draw, replace, resolution, num_threads, device):
    """Yields (images, labels) on the device for each of `batches`, int64 [B].

    draw(indices, heights, widths) -> crops, flips. replace(index, status, out) -> label: fills the place of a
    damaged sample, or raises.
    """
    memory = _PinnedMemory(device) if device.type == "cuda" else _Memory()
    num_calls = min(2, num_threads)
    threads_each = -(-num_threads // num_calls)

    def decode(indices, addresses):
        samples = _samples(shards, indices, addresses)
        crops, flips = draw(indices, samples.heights, samples.widths)
        out = memory.take((len(indices), resolution, resolution, 3))
        status = codec.decode_batch(samples, crops, flips, out.numpy(), threads_each)
        labels = shards.labels[indices]
        bad = np.flatnonzero(status != codec.OK)
        check_unchanged(shards, indices[bad])
        for i in bad:
            if status[i] == codec.UNREADABLE:
                raise UserError(
                    f"{shards.name(int(indices[i]))} can no longer be read: {codec.status_text(status[i])}"
                )
            labels[i] = replace(int(indices[i]), status[i], out.numpy()[i])
        return memory.send(out, torch.from_numpy(labels))

    # Two calls at a time share the threads, and one more is ready, so that no core waits for the last image
    # of a batch, or while crops are drawn. Do not bind a batch to a local: the reference would block reuse of
    # its memory.
    with storage, ThreadPoolExecutor(num_calls, "llc-decode") as pool:
        decoding = collections.deque()
        for b, indices in enumerate(batches):
            if len(decoding) == LIFE:
                yield decoding.popleft().result()
            decoding.append(pool.submit(decode, indices, storage.addresses(b)))
        while decoding:
            yield decoding.popleft().result()


def _samples(shards, indices, addresses):
    images = shards.images[indices]
    return codec.Samples(
        np.asarray(addresses, np.uint64),
        shards.sizes[indices],
        images["mode"],
        images["width"],
        images["height"],
    )


def _damaged(shards, index, status, advice):
    return UserError(f"{shards.name(index)} cannot be decoded ({codec.status_text(status)}){advice}")


def _replaced_text(shards, replaced, epoch):
    return (
        f"epoch {epoch}: other samples took the places of {len(replaced)} that cannot be decoded: "
        f"{_names(shards, replaced)}"
    )


def _names(shards, indices):
    """What messages call these samples; the first five of them."""
    return ", ".join(shards.name(index) for index in sorted(indices)[:5]) + (
        ", ..." if len(indices) > 5 else ""
    )


class _Memory:
    """Memory of batches on the CPU, reused when the last tensor in it is gone.

    Fresh pages would cost the kernel 5 % of the decoding time.
    """

    def __init__(self):
        self._free = collections.deque()

    def take(self, shape):
        """A uint8 tensor of this shape; nothing else uses its memory while a tensor does."""
        size = int(np.prod(shape))
        memory = self._free.pop() if self._free else np.empty(0, np.uint8)
        if memory.size < size:
            memory = np.empty(size, np.uint8)
        handed = memory[:size].reshape(shape)
        weakref.finalize(handed, self._free.append, memory).atexit = False
        return torch.from_numpy(handed)  # refers to `handed` as long as one of its views exists

    def send(self, images, labels):
        return images.permute(0, 3, 1, 2), labels


class _PinnedMemory:
    """Page-locked memory, and the copy from it to the GPU, which overlaps with computation there.

    PyTorch's allocator reuses a page-locked block only after the copies from it: no waiting here.
    """

    def __init__(self, device):
        self._device, self._stream = device, _copy_stream(device)

    def take(self, shape):
        with torch.cuda.device(self._device):
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def send(self, images, labels):
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            images = images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            labels = labels.pin_memory().to(self._device, non_blocking=True)
            return images, labels, self._stream.record_event()


@functools.cache
def _copy_stream(device):
    """The stream of all copies to a device.

    PyTorch's allocator keeps freed memory for the stream that it was allocated on. If every loader had a
    stream of its own, each epoch would leave the memory of its batches behind.
    """
    return torch.cuda.Stream(device)


def _receiver(device):
    """A function that is applied to each batch in the thread that uses it."""

    def after_its_copy(batch):
        images, labels, copied = batch
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in (images, labels):
            # Its memory must not be reused before the work that is on that stream by then.
            tensor.record_stream(current)
        return images, labels

    return after_its_copy if device.type == "cuda" else lambda batch: batch
