"""What a run does beside its steps: it listens for signals, writes files in a thread, and watches whether its losses are numbers."""

import collections
import contextlib
import ctypes
import os
import queue
import signal
import threading

import torch

EXIT_STATUS = (
    75  # of a run that was told to stop and can be continued: EX_TEMPFAIL, "try again", of sysexits.h
)
_MAX_JOBS = 4  # waiting to be written: a disk slower than the run holds it up, rather than filling the memory with states
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_SAME_SECONDS = 1.0  # in which two SIGINTs are one Ctrl-C, of the terminal and of a wrapper that passes it on

_set_handler = ctypes.CDLL(None).signal
_set_handler.argtypes, _set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p


class Stopped(Exception):
    """The run was told to stop, and its state is on the disk."""


class StopSignals:
    """`with StopSignals() as signals:` SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (Slurm's warning) no longer end the process: they set
    `signals.received`, the signal's name, until then "".

    A second Ctrl-C, from a second after the first on, ends a process of its own at once, even one that waits in native code (which must have
    released the GIL). Under torchrun it does not: torchrun passes on the Ctrl-C that the terminal has sent to its processes already, and kills
    what has not ended after 30 seconds.
    """

    def __init__(self):
        self.received, self._ended = "", threading.Event()

    def __enter__(self):
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        # Python calls `_receive` when the main thread is back from native code, which may be never; the pipe hears of a signal without it.
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        self._fd_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="llc-signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *exception):
        signal.set_wakeup_fd(self._fd_before)
        self._ended.set()
        with contextlib.suppress(BlockingIOError):  # full: there is something to read
            os.write(self._told, b"\0")
        self._listener.join()
        os.close(self._told)
        os.close(
            self._heard
        )  # not by the listener: it may have ended, on a last signal's byte, before it is told to
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name

    def _listen(self):
        while True:
            (number,) = os.read(self._heard, 1)
            if self._ended.is_set():
                return
            if (
                number == signal.SIGINT
                and "TORCHELASTIC_RUN_ID" not in os.environ
                and not self._ended.wait(_SAME_SECONDS)
            ):
                # C's, as Python's own may be called by the main thread only. The next Ctrl-C is the kernel's affair.
                _set_handler(signal.SIGINT, signal.SIG_DFL)


class BackgroundWriter:
    """Calls functions in a thread, one after the other, at most _MAX_JOBS behind.

    What one raises is raised by the next `check`, `submit` or `wait`; those submitted after it are not called, as they may rely on it.
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

    def _work(self):
        while (job := self._jobs.get()) is not None:
            function, arguments = job
            try:
                if self._error is None:
                    function(*arguments)
            except BaseException as error:
                self._error = error
            finally:
                del job, function, arguments  # a state's memory is not kept until the next one comes
                self._jobs.task_done()


def snapshot(state):
    """A copy of nested dicts, lists and tuples, its tensors in memory of their own on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(snapshot, state))
    return state


class LossWatch:
    """Looks at every loss, on CUDA when it has arrived on the host by itself: no step waits for the device.

    found: (batch, value) of the first loss seen that is not finite, or None.
    """

    def __init__(self):
        self.found, self._pending = None, collections.deque()

    def add(self, batch, loss):
        """loss: a scalar tensor on the device, of step `batch`."""
        arrived = None
        if loss.device.type == "cuda":
            # PyTorch's allocator gives the page-locked memory away again only after the copy
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((batch, loss, arrived))
        self.look()

    def look(self, wait=False):
        """Looks at what has arrived; wait: at everything."""
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
