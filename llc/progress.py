"""How far long work is: a bar on a terminal, elsewhere (as in a log file) a plain line every 30 seconds.

    with progress.bar(total, "train.beton", unit="img") as bar:
        for images in batches:
            ...
            bar.update(len(images))

A line looks like `train.beton: 35 % (448,000 of 1,281,167 img), 3,120 img/s, 04:27 left`. Work that counts
bytes too shows them as `3,120 img/s, 214 MB/s`. Work that ends sooner writes no line. Everything goes to
stderr.
"""

import sys
import time

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines
NOTE_SECONDS = 2.0  # between two notes on a terminal


def bar(total, description, unit="img", initial=0, disable=False):
    """A context manager with `update(n=1, num_bytes=0)`, `note(**values)` and `due`.

    total: units of work. num_bytes: how many bytes belong to these units. Where there are any, their rate is
    shown in MB (1,000,000 bytes) per second. initial: units that were done before, in an earlier process.
    disable: show nothing, as on all but the main process. `note(loss=..., lr=...)` shows values beside the
    progress. If they cost something, compute them only while `due` is true, because the next `update` may
    then show them.
    """
    if disable:
        return _Hidden()
    kind = _Bar if sys.stderr.isatty() else _Lines
    return kind(total, description, unit, initial)


def each(items, total, description, unit="img", disable=False):
    """Yields the items, each of which is one unit of `total`, and shows how many were used."""
    with bar(total, description, unit, disable=disable) as shown:
        for item in items:
            yield item
            shown.update()


def say(text, processes=None):
    """Prints a line on stdout, on the main process alone."""
    if processes is None or processes.is_main:
        print(text, flush=True)


class _Hidden:
    due = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def update(self, n=1, num_bytes=0):
        pass

    def note(self, **values):
        pass


class _Bar:
    """tqdm's bar, which is erased when the work is done."""

    def __init__(self, total, description, unit, initial):
        self._tqdm = tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            unit_scale=total >= 100_000,
            mininterval=0.5,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
        )
        self._noted = self._rated = _now()
        self._num_bytes, self._rate, self._note = 0, "", ""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._tqdm.close()

    def update(self, n=1, num_bytes=0):
        self._num_bytes += num_bytes
        passed = _now() - self._rated
        if self._num_bytes and passed >= NOTE_SECONDS:
            self._rate = _megabytes(self._num_bytes / passed)
            self._rated, self._num_bytes = _now(), 0
            self._show()
        self._tqdm.update(n)

    @property
    def due(self):
        return _now() - self._noted >= NOTE_SECONDS

    def note(self, **values):
        self._noted = _now()
        self._note = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
        self._show()

    def _show(self):
        text = ", ".join(filter(None, (self._rate, self._note)))
        self._tqdm.set_postfix_str(text, refresh=False)


class _Lines:
    """One line at most every LINE_SECONDS; its rate is that of the time since the line before."""

    def __init__(self, total, description, unit, initial):
        self._total, self._description, self._unit = total, description, unit
        self._done = self._done_before = initial
        self._written, self._note, self._num_bytes = _now(), "", 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    @property
    def due(self):
        return _now() - self._written >= LINE_SECONDS

    def note(self, **values):
        self._note = "".join(f", {name} {_short(value)}" for name, value in values.items())

    def update(self, n=1, num_bytes=0):
        self._done += n
        self._num_bytes += num_bytes
        if not self.due or self._done >= self._total:
            return
        now = _now()
        rate = (self._done - self._done_before) / (now - self._written)
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
        bytes_rate = f", {_megabytes(self._num_bytes / (now - self._written))}" if self._num_bytes else ""
        print(
            f"{self._description}: {100 * self._done // self._total} % ({self._done:,} of {self._total:,} "
            f"{self._unit}), {rate:,.{0 if rate >= 100 else 1}f} {self._unit}/s{bytes_rate}, {left} left"
            f"{self._note}",
            file=sys.stderr,
            flush=True,
        )
        self._written, self._done_before, self._num_bytes = now, self._done, 0


def _megabytes(bytes_per_second):
    rate = bytes_per_second / 1e6
    return f"{rate:,.{0 if rate >= 100 else 1}f} MB/s"


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _now():
    return time.monotonic()
