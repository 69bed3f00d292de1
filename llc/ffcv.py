"""llc's decoder within FFCV's own Loader: FFCV's image decoders and flip, with seeds and errors.

    from llc.ffcv import CenterCropRGBImageDecoder, RandomHorizontalFlip, RandomResizedCropRGBImageDecoder

They need the extra `ffcv`, and take the places of FFCV's classes of these names in the pipelines of an
`ffcv.loader.Loader`. What is other than with FFCV's:

- Only the part of a JPEG that a crop needs is decoded, and the pixels are those of llc's own loader
  (llc.native.codec): the accurate inverse DCT, averages by area, bit for bit the same everywhere.
- Crops and flips are functions of (seed, epoch, index of the sample), for any num_workers, batch size, order
  and memory manager; those of llc's own loader (llc.data.sampling). The epoch is the Loader's: 0 at first,
  and one more each time that it is iterated over. `loader.next_epoch = 7` continues at epoch 7. Of two
  iterations at a time, the second must begin after the first batch of the first.
- A sample that cannot be decoded ends the loop over the Loader with a UserError that names it. FFCV's
  decoder leaves the image of an earlier batch in its place.
- No buffer for whole images: the Loader needs much less memory.

`register` adds operations of one's own to a training with data.loader=ffcv (docs/how-to/ffcv.md).
"""

import contextlib
import dataclasses
import itertools
import queue
import threading
import warnings
import weakref

import numpy as np
import torch

from llc.arguments import fraction, whole_number
from llc.data import sampling
from llc.errors import UserError
from llc.native import codec
from llc.packages import needed

try:
    needed("ffcv", "llc.ffcv", extra="ffcv")
except UserError as error:  # as an import says that it lacks a module
    raise ModuleNotFoundError(str(error), name="ffcv") from error

from ffcv.fields import rgb_image
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import flip as ffcv_flip
from numba import objmode

# numba says it of code that takes the GIL; here that is a few lines, which call C++ without it
warnings.filterwarnings("ignore", ".*Code running in object mode", module=r".*\bllc.ffcv$")

_OPERATIONS = weakref.WeakValueDictionary()  # number -> an operation below, for the code that FFCV compiles
_numbers = itertools.count()


class _Decoder:
    """What both decoders share. FFCV compiles `generate_code`'s function; the work is done by `_decode`.

    num_threads: of the decoder; None: the Loader's num_workers. advice: what an error about a sample says to
    do.
    """

    num_threads: int | None = None
    advice = "write it again, or give the Loader indices without it"

    def __init__(self, output_size):
        self._number = next(_numbers)
        _OPERATIONS[self._number] = self
        self._shape(output_size)

    def _shape(self, output_size):
        height, width = output_size
        return whole_number("output_size", height, 1), whole_number("output_size", width, 1), 3

    def declare_state_and_memory(self, previous_state):
        """FFCV calls this before every epoch, so a changed `output_size` counts from the next one on."""
        shape = self._shape(self.output_size)
        state = dataclasses.replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1"))
        return state, AllocationQuery(shape, np.dtype("u1"))

    def generate_code(self):
        self._num_workers = Compiler.num_threads  # of the Loader that asks
        number, read = self._number, self.memory_read

        def decode(batch_indices, images, metadata, storage_state):
            # Not uint64: FFCV marks numba's type of uint64 arrays as read-only, for all code of the process.
            addresses = np.empty(len(batch_indices), np.int64)
            sizes = np.empty(len(batch_indices), np.int64)
            for i in range(len(batch_indices)):
                data = read(metadata[batch_indices[i]]["data_ptr"], storage_state)
                addresses[i], sizes[i] = data.ctypes.data, data.size
            with objmode():
                _decode(number, batch_indices, metadata, addresses, sizes, images)
            return images[: len(batch_indices)]

        return decode

    def decode_batch(self, indices, metadata, addresses, sizes, images, epoch):
        """Writes the samples `indices`, int64 [n], to images, uint8 [n, H, W, 3]; returns status, int32 [n].

        metadata: FFCV's rows of all samples. addresses, sizes: int64 [n], where each sample's data lies.
        """
        rows = metadata[indices]
        samples = codec.Samples(
            addresses.astype(np.uint64), sizes, rows["mode"], rows["width"], rows["height"]
        )
        crops, flips = self._crops(indices, rows["height"], rows["width"], epoch)
        return codec.decode_batch(samples, crops, flips, images, self.num_threads or self._num_workers)


class RandomResizedCropRGBImageDecoder(_Decoder, rgb_image.RandomResizedCropRGBImageDecoder):
    """FFCV's RandomResizedCropRGBImageDecoder, with seeded crops.

    output_size: (height, width) in pixels; where it is changed, the next epoch has the new size. scale: the
    smallest and the largest area of a crop, as fractions of the image. ratio: the smallest and the largest
    width / height. seed: of crops and flips, a whole number. flip_probability: the fraction of images that
    are also flipped left to right, which costs no time here. With scale=(m, 1), the usual ratio and
    flip_probability=0.5 the images are those of llc's TrainLoader with the same seed and min_scale=m. Raises
    ValueError for other values.
    """

    def __init__(self, output_size, scale=(0.08, 1.0), ratio=sampling.RATIO, *, seed=0, flip_probability=0.0):
        rgb_image.RandomResizedCropRGBImageDecoder.__init__(self, output_size, scale, ratio)
        _Decoder.__init__(self, output_size)
        self.seed = whole_number("seed", seed, 0)
        self.flip_probability = _probability("flip_probability", flip_probability)
        low, high = scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale: expected two rising numbers above 0 and at most 1, got {scale!r:.80}")
        low, high = ratio
        if not 0 < low <= high < np.inf:
            raise ValueError(f"ratio: expected two rising numbers above 0, got {ratio!r:.80}")

    def _crops(self, indices, heights, widths, epoch):
        return sampling.random_crops(
            indices, heights, widths, self.seed, epoch, *self.scale, self.ratio, self.flip_probability
        )


class CenterCropRGBImageDecoder(_Decoder, rgb_image.CenterCropRGBImageDecoder):
    """FFCV's CenterCropRGBImageDecoder: the middle square, `ratio` of the shorter side.

    output_size: (height, width) in pixels. The images are those of llc's ValLoader with crop_ratio=ratio.
    Raises ValueError for a ratio that is not above 0 and at most 1.
    """

    def __init__(self, output_size, ratio):
        rgb_image.CenterCropRGBImageDecoder.__init__(self, output_size, fraction("ratio", ratio))
        _Decoder.__init__(self, output_size)

    def _crops(self, indices, heights, widths, epoch):
        return sampling.centre_crops(heights, widths, self.ratio), np.zeros(len(indices), bool)


class RandomHorizontalFlip(ffcv_flip.RandomHorizontalFlip):
    """FFCV's RandomHorizontalFlip, seeded; RandomResizedCropRGBImageDecoder's flip_probability is faster.

    Both flip the same images, where seed and probability are the same. flip_prob: the fraction of images that
    are flipped left to right. Raises ValueError for other values.
    """

    def __init__(self, flip_prob=0.5, *, seed=0):
        super().__init__(_probability("flip_prob", flip_prob))
        self.seed = whole_number("seed", seed, 0)
        self._number = next(_numbers)
        _OPERATIONS[self._number] = self

    def declare_state_and_memory(self, previous_state):
        if len(previous_state.shape) != 3 or previous_state.shape[2] != 3:
            raise ValueError(f"RandomHorizontalFlip takes [H, W, 3], not {list(previous_state.shape)}")
        return super().declare_state_and_memory(previous_state)

    def generate_code(self):
        number, each = self._number, Compiler.get_iterator()

        def flip(images, flipped, batch_indices):
            flips = np.empty(len(batch_indices), np.bool_)
            with objmode():
                _draw_flips(number, batch_indices, flips)
            height, width = images.shape[1], images.shape[2]
            for i in each(len(batch_indices)):
                first, step = (width - 1, -1) if flips[i] else (0, 1)
                for y in range(height):
                    for x in range(width):
                        source = first + step * x
                        # as slices numba needs five times as long to compile it, and three times to run it
                        flipped[i, y, x, 0] = images[i, y, source, 0]
                        flipped[i, y, x, 1] = images[i, y, source, 1]
                        flipped[i, y, x, 2] = images[i, y, source, 2]
            return flipped[: len(batch_indices)]

        flip.is_parallel = True
        flip.with_indices = True
        return flip


def _probability(name, value):
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r:.80}")
    return float(value)


# ---------------------------------------------------------------------------------- called from FFCV's thread


def _decode(number, batch_indices, metadata, addresses, sizes, images):
    """Decodes one batch; an error goes to the loop over the Loader."""
    with _RaisedInLoop():
        decoder, indices = _OPERATIONS[number], batch_indices.astype(np.int64)
        _wait_for_copies()
        status = decoder.decode_batch(indices, metadata, addresses, sizes, images, _epoch())
        bad = np.flatnonzero(status != codec.OK)
        if len(bad):
            index, status = indices[bad[0]], status[bad[0]]
            what = "can no longer be read" if status == codec.UNREADABLE else "cannot be decoded"
            file = getattr(_loader(), "fname", "the beton")
            raise UserError(
                f"sample {index} of {file} {what} ({codec.status_text(status)}); {decoder.advice}"
            )


def _wait_for_copies():
    """Waits until the GPU no longer reads the memory that this thread decodes into next.

    FFCV's ToDevice copies in the background, on the current stream, which is the slot's own. FFCV makes that
    stream wait for the training step that used the slot's images, but not the CPU, which could be several
    batches ahead and overwrite what is not copied yet.
    """
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def _draw_flips(number, batch_indices, flips):
    with _RaisedInLoop():
        operation = _OPERATIONS[number]
        indices = batch_indices.astype(np.int64)
        flips[:] = sampling.random_flips(indices, operation.seed, _epoch(), operation.flip_prob)


def _loader():
    """The FFCV Loader whose batch this thread makes, or None."""
    return getattr(threading.current_thread(), "loader", None)


def _epoch():
    """The epoch that this thread makes batches of: FFCV starts a thread (EpochIterator) for each.

    The Loader counts its epochs up before it starts the thread. The first batch's epoch is kept, because the
    Loader may be iterated over again before this iteration ends, though not before its first batch.
    """
    thread, loader = threading.current_thread(), _loader()
    if loader is None:
        return 0
    if not hasattr(thread, "llc_epoch"):
        thread.llc_epoch = loader.next_epoch - 1
    return thread.llc_epoch


class _Failure:
    """Takes the place of a batch in FFCV's queue, and raises its error where FFCV's loop takes it apart."""

    def __init__(self, iterator, error):
        self._iterator, self._error = iterator, error

    def __iter__(self):
        self._iterator.close()  # as FFCV does at the end of an epoch
        raise self._error


class _RaisedInLoop:
    """A context in FFCV's thread: an exception within it is raised in the loop over the Loader.

    Otherwise FFCV's thread would print it and end, and the loop would wait for ever. The loop first gets the
    batches before it. StopIteration ends FFCV's thread as if the epoch were over. In another thread the
    exception is raised as usual.
    """

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        thread = threading.current_thread()
        if error is None or _loader() is None or isinstance(error, StopIteration):
            return False
        while not thread.terminate_event.is_set():
            try:
                thread.output_queue.put(_Failure(thread, error), timeout=0.5)
                break
            except queue.Full:
                pass
        raise StopIteration from None


class _Iteration(EpochIterator):
    """FFCV's thread for an epoch, whose loop hears of every error in it, also those of other operations."""

    def run(self):
        with contextlib.suppress(StopIteration), _RaisedInLoop():
            super().run()

    def close(self):
        """Ends the thread and waits for its end."""
        self.iter_ixes = iter(())  # no further batch
        self.terminate_event.set()
        while self.is_alive() and self is not threading.current_thread():
            with contextlib.suppress(queue.Empty):
                self.output_queue.get(timeout=0.05)
        for stream in self.cuda_streams:  # which may still copy from memory that is freed now
            if stream is not None:
                stream.synchronize()
        if not self.closed:
            super().close()
            self.closed = True


def iteration(loader, order):
    """The batches of an FFCV Loader over the samples `order`, int64 [n], in this order; has close().

    As iter(loader), which takes the order that the Loader was made with; loader.next_epoch - 1 is the epoch.
    """
    return _Iteration(loader, order)


# ---------------------------------------------------------------------------------- operations of one's own


@dataclasses.dataclass(frozen=True)
class Registered:
    """Operations by name: make() returns a list of them. on_tensors: of `register`."""

    make: object
    on_tensors: bool


REGISTERED: dict[str, Registered] = {}


def register(name, *, on_tensors=False):
    """A decorator that adds a function which returns a list of FFCV operations, for data.operations=NAME.

    They follow llc's decoder, which has also flipped the images, and get them as FFCV's operations do: arrays
    uint8 [B, H, W, 3]; with on_tensors, after ToTensor, ToDevice and ToTorchImage, tensors uint8 [B, 3, H, W]
    on the device, and may be nn.Modules. They must return the same shape and dtype. Raises ValueError where
    the name is taken, or has a comma.
    """
    if name in REGISTERED or "," in name or not name.strip():
        raise ValueError(f"operations {name!r}: the name is taken, empty, or has a comma")

    def add(make):
        REGISTERED[name] = Registered(make, on_tensors)
        return make

    return add
