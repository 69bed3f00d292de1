"""When and how a run's files are written: in a thread, by the main process."""

import time

import torch

from llc.training.interruption import BackgroundWriter, snapshot


class Saver:
    """Calls a RunFolder's methods in the background.

    run_folder is None on all but the main process, because the others write nothing. minutes: between two
    checkpoints within an epoch; 0: none there. keep: how many checkpoints stay. deliveries: to the loggers, a
    llc.training.delivery.Deliveries, or None.
    """

    def __init__(self, run_folder, minutes, keep, deliveries=None):
        self.run_folder, self._seconds, self._keep = run_folder, 60 * minutes, keep
        self._deliveries = deliveries
        self._writer, self._last = BackgroundWriter(), time.monotonic()

    def is_due(self):
        """Whether it is time for a checkpoint. If so, the next one is due a whole interval later."""
        due = bool(self.run_folder and self._seconds and time.monotonic() - self._last >= self._seconds)
        if due:
            self._last = time.monotonic()
        return due

    def submit(self, method, *arguments):
        """Calls the run folder's `method` in the background, with copies of the arguments as they are now."""
        if self.run_folder:
            self._writer.submit(getattr(self.run_folder, method), *map(snapshot, arguments))

    def save_last(self, state):
        """Writes last.pth in the background."""
        self._last = time.monotonic()
        if self.run_folder:
            self._writer.submit(self._save_if_finite, snapshot(state))

    def _save_if_finite(self, state):
        # An update whose loss was finite can still spoil the weights; the next loss will tell.
        if all(torch.isfinite(value).all() for value in state["network"].values()):
            self.run_folder.save_last(state, self._keep)
            if self._deliveries:
                # only now: a run that is killed before this point trains the epoch again
                self._deliveries.send(state["progress"]["lines"])

    def check(self):
        """Raises what a call in the background has raised."""
        self._writer.check()

    def wait(self):
        """Returns when everything is written."""
        self._writer.wait()

    def close(self):
        """`wait`, without raising; the thread ends."""
        self._writer.close()
