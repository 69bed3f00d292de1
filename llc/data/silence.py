"""Keeps from the terminal what C libraries print about a file, because they do not name the file."""

import contextlib
import os
import threading

_lock = threading.Lock()
_depth, _terminal = 0, None


@contextlib.contextmanager
def silenced():
    """Within it nothing reaches standard error, from any thread of this process.

    libtiff prints straight to file descriptor 2. What goes wrong, its caller says in an error.
    """
    global _depth, _terminal
    with _lock:
        if _depth == 0:
            try:
                _terminal = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            except OSError:  # no standard error, or no descriptor left: then it is not silenced
                pass
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _terminal is not None:
                os.dup2(_terminal, 2)
                os.close(_terminal)
                _terminal = None
