"""Evaluation mode for a while, whatever mode the modules of a network are in."""

import contextlib
import threading
import weakref
from collections.abc import Iterator

from torch import nn

_lock = threading.Lock()
# Network -> [how many blocks of `evaluating` are at work, the modules that were in training mode].
_at_work: weakref.WeakKeyDictionary[nn.Module, list] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A context in which all modules of `network` are in evaluation mode; each gets its own mode back.

    Several threads may use it on one network at once. The modes come back when the last of them is done,
    because a thread that finished earlier would otherwise put the others into training mode.
    """
    with _lock:
        work = _at_work.setdefault(network, [0, []])
        work[0] += 1
        training = [module for module in network.modules() if module.training]
        work[1] += training
        for module in training:
            module.training = False
    try:
        yield
    finally:
        with _lock:
            work[0] -= 1
            if not work[0]:
                for module in work[1]:
                    module.training = True
                work[1].clear()
