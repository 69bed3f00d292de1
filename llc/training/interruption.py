"""What a run does beside its steps: listens for signals, writes files in a thread, watches its losses."""

import collections
import contextlib
import ctypes
import os
import queue
import signal
import threading

import torch

from llc import environment

EXIT_STATUS = 75  # of a run that was stopped and can be resumed: EX_TEMPFAIL, "try again", of sysexits.h
_MAX_JOBS = 4  # waiting to be written; beyond that a slow disk slows the run, instead of filling the memory
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_SAME_SECONDS = (
    1.0  # two SIGINTs within it are one Ctrl-C: the terminal's, and that of a wrapper that passes it on
)

_set_handler = ctypes.CDLL(None).signal
_set_handler.argtypes, _set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p


class Stopped(Exception):
    """A signal has stopped the run, and its state is on the disk."""


class StopSignals:
    """`with StopSignals() as signals:` signals set `signals.received` instead of ending the process.

    It is the signal's name, "" until then; the signals are SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (Slurm's
    warning). A second Ctrl-C, sent at least 1 s after the first, kills a process that torchrun did not start
    immediately, even if it waits in native code (which must have released the GIL). Under torchrun it does
    not, because torchrun passes on the Ctrl-C that the terminal has already sent to its processes; it kills
    what has not ended after 30 seconds.
    """

    def __init__(self):
        self.received, self._ended = "", threading.Event()

    def __enter__(self):
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        # Python calls `_receive` when the main thread returns from native code, which it may never do. The
        # pipe gets the signal's number at once.
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._fd_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="llc-signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *exception):
        signal.set_wakeup_fd(self._fd_before)
        self._ended.set()
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so the listener will wake up anyway
            os.write(self._write_end, b"\0")
        self._listener.join()
        os.close(self._write_end)
        # not closed by the listener, which a last signal's byte may have ended before the write above
        os.close(self._read_end)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name

    def _listen(self):
        while True:
            (number,) = os.read(self._read_end, 1)
            if self._ended.is_set():
                return
            if (
                number == signal.SIGINT
                and not environment.under_torchrun()
                and not self._ended.wait(_SAME_SECONDS)
            ):
                # C's function, because only the main thread may call Python's. The kernel handles the next
                # Ctrl-C.
                _set_handler(signal.SIGINT, signal.SIG_DFL)


class BackgroundWriter:
    """Calls functions in a thread, one after the other; at most _MAX_JOBS wait.

    If one raises, the next `check`, `submit` or `wait` raises its error, and later functions are not called,
    because they may rely on it.
    """

    def __init__(self):
        self._jobs, self._error = queue.Queue(_MAX_JOBS), None
        self._thread = threading.Thread(target=self._work, name="llc-writer", daemon=True)
        self._thread.start()

    def submit(self, function, *arguments):
        self.check()
        self._jobs.put((function, arguments))

    def check(self):
        if self._error is not None:
            raise self._error

    def wait(self):
        """Returns when everything submitted is done."""
        self._jobs.join()
        self.check()

    def close(self):
        """`wait`, without raising; the thread ends."""
        self._jobs.put(None)
        self._thread.join()
        # torch.save never frees an error of the file that it writes to. That error leads to this object, and
        # from here to all that the main thread's frames held when the error was raised there.
        self._error = None

    def _work(self):
        while (job := self._jobs.get()) is not None:
            function, arguments = job
            try:
                if self._error is None:
                    function(*arguments)
            except BaseException as error:
                self._error = error
            finally:
                del job, function, arguments  # or a state's memory would be kept until the next one comes
                self._jobs.task_done()


def snapshot(state):
    """A copy of nested dicts, lists and tuples, with copies of their tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(snapshot, state))
    return state


class LossWatch:
    """Looks for a NaN or infinite loss without waiting for the device.

    On CUDA each loss is copied to the host in the background and looked at once it has arrived. found:
    (batch, value) of the first NaN or infinite loss, or None.
    """

    def __init__(self):
        self.found, self._pending = None, collections.deque()

    def add(self, batch, loss):
        """loss: a scalar tensor on the device, of step `batch`."""
        arrived = None
        if loss.device.type == "cuda":
            # PyTorch's allocator reuses the page-locked memory only after the copy
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((batch, loss, arrived))
        self.look()

    def look(self, wait=False):
        """Looks at the losses that have arrived; wait: waits for all of them."""
        while self._pending:
            batch, loss, arrived = self._pending[0]
            if arrived is not None:
                if wait:
                    arrived.synchronize()
                elif not arrived.query():
                    return
            self._pending.popleft()
            if self.found is None and not torch.isfinite(loss):
                self.found = batch, float(loss)
