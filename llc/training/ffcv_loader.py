"""Training batches from FFCV's own Loader (data.loader=ffcv), for those who add FFCV operations of their own.

Without such operations the batches are those of llc.data.loaders.TrainLoader, bit for bit: the same order,
the same crops and flips, the same pixels. FFCV makes them in its thread, with llc.ffcv's decoder at the head
of its pipeline. It needs the extra `ffcv`.
"""

import contextlib

import numpy as np
import torch

from llc.data.loaders import TrainLoader
from llc.errors import UserError
from llc.packages import needed


class FFCVTrainLoader(TrainLoader):
    """TrainLoader, whose batches FFCV's Loader makes. operations: names of llc.ffcv.register, in order.

    A batch is valid until the next one is taken; then FFCV may use its memory again. Raises UserError where
    FFCV is missing, for several betons, and for operations that are not registered or make other than images.
    """

    BATCHES_AHEAD = 3  # finished batches that wait; FFCV's default

    def __init__(self, shards, *, operations=(), **options):
        with _torch_threads_kept():
            needed("ffcv", "data.loader=ffcv", extra="ffcv")
            from llc.ffcv import REGISTERED
        super().__init__(shards, **options)
        if len(shards.paths) > 1:
            raise UserError(
                f"data.loader = ffcv reads one beton, and data.train_dataset names {len(shards.paths)}; "
                "write them as one, or use data.loader=llc"
            )
        for name in operations:
            if name not in REGISTERED:
                known = f"there are {', '.join(REGISTERED)}" if REGISTERED else "none is"
                raise UserError(
                    f"data.operations: {name} is not registered ({known}); name the file that registers it "
                    "as --plugin=FILE.py"
                )
        self._operations, self._ffcv, self._running = tuple(operations), None, None

    def epoch(self, epoch, resolution, start_batch=0):
        """As TrainLoader.epoch, but only one epoch runs at a time: it ends the one before."""
        if self._running is not None:
            self._running.close()
        self._running = self._batches(epoch, resolution, self.order(epoch)[start_batch:])
        return self._running

    def _batches(self, epoch, resolution, order):
        if not len(order):
            return
        with _torch_threads_kept():
            from llc.ffcv import iteration

            if self._ffcv is None:
                self._ffcv, self._decoder = self._make(resolution)
            if tuple(self._decoder.output_size) != (resolution, resolution):
                self._decoder.output_size = (resolution, resolution)
                if self._operations:  # whose code may know the size
                    self._ffcv.generate_code()
            self._ffcv.next_epoch = epoch + 1  # as FFCV leaves it, once it has begun this epoch
            batches = iteration(self._ffcv, order.reshape(-1))
        try:
            for indices, (images,) in zip(order, batches, strict=True):
                self._check(images, resolution)
                yield images, self._labels(indices)
        finally:
            batches.close()

    def _make(self, resolution):
        """(FFCV's Loader, the decoder in its pipeline). Takes seconds: numba compiles."""
        from ffcv.loader import Loader, OrderOption
        from ffcv.reader import Reader
        from ffcv.transforms import ToDevice, ToTensor, ToTorchImage
        from numba import config as numba

        from llc.ffcv import REGISTERED, RandomResizedCropRGBImageDecoder

        path = str(self._shards.paths[0])
        decoder = RandomResizedCropRGBImageDecoder(
            (resolution, resolution), scale=(self._min_scale, 1.0), seed=self._seed, flip_probability=0.5
        )
        decoder.num_threads = self._num_threads
        decoder.advice = (
            "write it again, or train on the others with data.loader=llc and data.on_error=skip_sample"
        )
        own = {False: [], True: []}
        for name in self._operations:
            registered = REGISTERED[name]
            made = _made(name, registered.make)
            for operation in made:
                _check_place(name, operation, registered.on_tensors, resolution, self._device)
            own[registered.on_tensors] += made
        cuda = self._device.type == "cuda"
        to_device = [ToDevice(self._device, non_blocking=True)] if cuda else []
        image, label = Reader(path).field_names[:2]
        loader = Loader(
            path,
            batch_size=self._batch_size,
            # FFCV gives this number to torch as well, whose sums on a CPU depend on it
            num_workers=min(self._num_threads if cuda else torch.get_num_threads(), numba.NUMBA_NUM_THREADS),
            os_cache=self._pages is None,
            order=OrderOption.SEQUENTIAL,  # the order is given for each epoch
            batches_ahead=self.BATCHES_AHEAD,
            pipelines={
                image: [decoder, *own[False], ToTensor(), *to_device, ToTorchImage(), *own[True]],
                label: None,  # the labels are known
            },
        )
        return loader, decoder

    def _labels(self, indices):
        labels = torch.from_numpy(self._shards.labels[indices])
        if self._device.type != "cuda":
            return labels
        return labels.pin_memory().to(self._device, non_blocking=True)

    def _check(self, images, resolution):
        expected = (self._batch_size, 3, resolution, resolution)
        if images.dtype != torch.uint8 or tuple(images.shape) != expected:
            raise UserError(
                f"data.operations = {','.join(self._operations)}: they make batches of "
                f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}; training takes uint8 "
                f"{list(expected)}, which the network normalises itself"
            )


def _check_place(name, operation, on_tensors, resolution, device):
    """Raises UserError for an operation that works on what is not there at its place.

    With some of them FFCV's Loader would never be ready.
    """
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State

    kinds = (Operation, torch.nn.Module) if on_tensors else (Operation,)
    if not isinstance(operation, kinds):
        raise UserError(
            f"data.operations: {name} has {type(operation).__name__}, which is no FFCV operation"
            + ("" if on_tensors else "; modules of torch need @register(NAME, on_tensors=True)")
        )
    if isinstance(operation, torch.nn.Module):
        return
    shape, dtype = (resolution, resolution, 3), np.dtype("u1")
    before = State(jit_mode=True, device=torch.device("cpu"), shape=shape, dtype=dtype)
    if on_tensors:
        before = State(jit_mode=False, device=device, shape=(3, resolution, resolution), dtype=torch.uint8)
    try:
        after, _ = operation.declare_state_and_memory(before)
        fits = after.jit_mode != on_tensors
    except AssertionError:  # FFCV's, about compiled code that would get tensors
        fits = False
    if not fits:
        works, place = ("arrays", "without") if on_tensors else ("tensors", "with")
        raise UserError(
            f"data.operations: {name} has {type(operation).__name__}, which works on {works}; register it "
            f"{place} on_tensors=True"
        )


def _made(name, make):
    """The operations that a registered function returns. Raises UserError where there are none."""
    try:
        return list(make())
    except Exception as error:  # a plugin's function may raise anything
        raise UserError(
            f"data.operations: the function of {name} must return a list of operations; "
            f"{type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _torch_threads_kept():
    """Leaves torch's number of threads as it was; importing FFCV sets it to 1."""
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
