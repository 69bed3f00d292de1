"""The progress bar of the commands that convert and check images."""

import os
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(total, description, unit, hidden=False, leave=True):
    """`with bar(...) as shown: shown.update(n)` after every n units. leave: it stays on the screen."""
    interval = 0.5 if os.isatty(2) else 10  # seconds
    with tqdm(
        total=total,
        desc=description,
        unit=unit,
        disable=hidden,
        leave=leave,
        dynamic_ncols=True,
        mininterval=interval,
    ) as shown:
        yield shown
