"""Calls of the native library that Ctrl-C stops."""

import ctypes
import os
import signal
import threading
import time

import numpy as np
import pytest

from llc.native import stoppable
from tests.interrupting import interrupted


def test_a_call_returns_its_status():
    assert stoppable(lambda stop: 7) == 7


def test_ctrl_c_again_and_again_waits_for_the_call_to_return():
    """Its arrays belong to frames that an error leaves, so it must not write afterwards."""
    returned = []

    def call(stop):
        flag = ctypes.c_uint8.from_address(stop)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        assert flag.value == 1  # it was told to stop
        returned.append(True)
        return 1

    with pytest.raises(KeyboardInterrupt):
        stoppable(call)
    assert returned


@pytest.mark.parametrize("line", range(1, 9))
def test_an_error_at_any_line_leaves_no_call_behind(line):
    running, calls = np.zeros(1, bool), []

    def call(stop):
        running[0] = True
        time.sleep(0.05)
        calls.append(1)
        running[0] = False
        return 0

    came = interrupted(lambda: stoppable(call), line, lambda code: code is stoppable.__code__)
    assert came and not running[0]
    done = len(calls)
    time.sleep(0.15)
    assert len(calls) == done  # nothing begins later
    assert threading.active_count() < 20
