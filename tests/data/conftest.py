"""A small real image tree, and the command that converts it."""

import os
import signal
import subprocess
import sys

import pytest

from tests.data.helpers import REPOSITORY, wait_until, write_tree
from tests.waiting import seconds


@pytest.fixture
def tree(tmp_path):
    """Three classes of 5, 12 and 9 lossless pictures of varying sizes; the path carries `.pixels`."""

    class Tree(type(tmp_path)):
        pixels = None

    root = Tree(tmp_path / "images")
    root.pixels = write_tree(root, {"ant": 5, "bee": 12, "cow": 9})
    return root


@pytest.fixture
def no_shared_memory_is_left():
    """A check that shared memory which was not there before the test does not stay.

    What processes of other tests have there at the moment goes in time.
    """
    before = set(os.listdir("/dev/shm"))

    def check():
        new = set(os.listdir("/dev/shm")) - before
        wait_until(lambda: not new & set(os.listdir("/dev/shm")))

    return check


def command(flags):
    return [
        sys.executable,
        str(REPOSITORY / "write_ffcv.py"),
        *(f"--cfg.{key}={value}" for key, value in flags.items()),
    ]


@pytest.fixture
def write_ffcv():
    """Runs write_ffcv.py to its end; returns its CompletedProcess, with text."""

    def run(preexec_fn=None, **flags):
        return subprocess.run(
            command(flags), capture_output=True, text=True, timeout=seconds(120), preexec_fn=preexec_fn
        )

    return run


@pytest.fixture
def start_write_ffcv():
    """Starts write_ffcv.py as a process group of its own, which does not outlive the test."""
    started = []

    def start(**flags):
        process = subprocess.Popen(
            command(flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if process.stdout and not process.stdout.closed:
            process.communicate()
