"""The thread that works ahead, and its end in every case."""

import gc
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llc.data.prefetch import Prefetch
from tests.data.helpers import REPOSITORY, wait_until
from tests.waiting import seconds


class Source:
    """A generator that notes how far it got and whether it was closed."""

    def __init__(self, end=10, error_at=None):
        self.made, self.closed, self._end, self._error_at = 0, False, end, error_at

    def __iter__(self):
        try:
            for i in range(self._end):
                if i == self._error_at:
                    raise OSError("disk gone")
                self.made += 1
                yield i
        finally:
            self.closed = True


@pytest.fixture(autouse=True, scope="module")
def nothing_of_other_files():
    """Ends the loaders that tests of other files left in reference cycles, such as those of tracebacks."""
    gc.collect()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("llc-")]


def test_yields_all_in_order_and_ends():
    source = Source(1000)
    assert list(Prefetch(iter(source), 3)) == list(range(1000))
    assert source.closed and not threads()
    prefetch = Prefetch(iter(Source(2)), 5, receive=lambda item: -item)
    assert [next(prefetch), next(prefetch)] == [0, -1]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(prefetch)


@pytest.mark.parametrize("num_ahead", [1, 3])
def test_works_ahead_that_far_and_no_further(num_ahead):
    source = Source()
    prefetch = Prefetch(iter(source), num_ahead)
    for taken in range(3):
        wait_until(lambda taken=taken: source.made == taken + num_ahead)
        time.sleep(0.02)  # it would continue now
        assert source.made == taken + num_ahead
        assert next(prefetch) == taken
    prefetch.close()
    assert source.closed and not threads()


def test_ends_with_break_and_with_an_exception_in_the_loop():
    source = Source()
    for i in Prefetch(iter(source), 2):
        if i == 3:
            break
    assert source.closed and not threads()
    source = Source()
    with pytest.raises(ZeroDivisionError):
        for i in Prefetch(iter(source), 2):
            1 / (i - 3)
    assert source.closed and not threads()


def test_ends_when_dropped_even_within_a_cycle():
    source = Source()
    cycle = [Prefetch(iter(source), 2)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert source.closed and not threads()


def test_ends_when_dropped_in_a_thread_that_it_waits_for():
    """Garbage collection may run in any thread, so also in a worker of the source's own pool."""
    asked, collected = threading.Event(), threading.Event()

    def work():
        asked.wait()
        gc.collect()
        collected.set()

    def items():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work)
            while True:
                yield

    gc.disable()
    try:
        cycle = [Prefetch(items(), 2)]
        next(cycle[0])
        thread = threads()
        cycle.append(cycle)
        del cycle
        asked.set()
        assert collected.wait(seconds(60))
    finally:
        gc.enable()
    wait_until(lambda: thread and not threads())


def test_an_exception_of_the_source_comes_in_its_place():
    source, seen = Source(error_at=4), []
    with pytest.raises(OSError, match="disk gone"):
        for i in Prefetch(iter(source), 3):
            seen.append(i)
    assert seen == [0, 1, 2, 3] and source.closed and not threads()


SCRIPT = """
import sys, time
from llc.data.prefetch import Prefetch
def items():
    try:
        while True:
            yield "item"
    finally:
        print("closed", flush=True)
prefetch = Prefetch(items(), 2)
for item in prefetch:
    print(item, flush=True)
    if sys.argv[1] == "exit":
        break
    time.sleep(60)
"""


@pytest.mark.parametrize("how, status", [("exit", 0), ("interrupt", -signal.SIGINT)])
def test_a_process_ends_and_closes_what_it_holds(how, status):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "item\n"
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
    out = process.stdout.read()  # not communicate, which would miss what readline has read ahead
    assert process.wait(timeout=seconds(60)) == status and out == "closed\n"
