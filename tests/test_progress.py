"""Progress: a few plain lines where stderr is no terminal, by a fake clock; a bar on a real terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from llc import progress
from tests.conftest import ROOT
from tests.waiting import seconds


@pytest.fixture
def clock(monkeypatch):
    """A list whose only value is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr("llc.progress._now", lambda: now[0])
    return now


def work(clock, bar, seconds_each, units):
    for n in units:
        clock[0] += seconds_each
        bar.update(n)


def test_a_log_gets_a_line_every_thirty_seconds_with_fraction_rate_and_time_left(clock, capsys):
    with progress.bar(4000, "train.beton") as bar:
        work(clock, bar, 10, [100] * 8)  # 80 s
    assert capsys.readouterr().err.splitlines() == [
        "train.beton: 7 % (300 of 4,000 img), 10.0 img/s, 06:10 left",
        "train.beton: 15 % (600 of 4,000 img), 10.0 img/s, 05:40 left",
    ]


def test_the_rate_is_that_of_the_last_half_minute(clock, capsys):
    with progress.bar(100_000, "x", unit="step") as bar:
        work(clock, bar, 30, [3, 9000])
    assert (
        capsys.readouterr().err.splitlines()[-1] == "x: 9 % (9,003 of 100,000 step), 300 step/s, 05:03 left"
    )


def test_work_that_ends_within_thirty_seconds_writes_nothing(clock, capsys):
    with progress.bar(100, "short") as bar:
        work(clock, bar, 0.29, [1] * 100)
    with progress.bar(2, "its last unit comes late") as bar:
        work(clock, bar, 20, [1, 1])
    assert capsys.readouterr() == ("", "")


def test_work_done_by_an_earlier_process_counts_for_the_fraction_and_not_for_the_rate(clock, capsys):
    with progress.bar(1000, "codebook 2/4", unit="step", initial=500) as bar:
        work(clock, bar, 30, [30])
    assert capsys.readouterr().err == "codebook 2/4: 53 % (530 of 1,000 step), 1.0 step/s, 07:50 left\n"


def test_notes_are_due_when_a_line_is_and_stand_at_its_end(clock, capsys):
    with progress.bar(10, "codebook 1/4", unit="step") as bar:
        for loss in (3.0, 2.0, 1.25):
            clock[0] += 16
            if bar.due:
                bar.note(loss=loss, lr=0.1)
            bar.update()
    assert capsys.readouterr().err.endswith("left, loss 2, lr 0.1\n")
    assert not bar.due


def test_bytes_are_shown_as_megabytes_per_second_since_the_line_before(clock, capsys):
    with progress.bar(1000, "train.beton") as bar:
        for num_bytes in (45_000_000, 0, 3_000_000_000, 15_000_000_000):
            clock[0] += 15
            bar.update(10, num_bytes)
            bar.note(skipped=2)
    assert capsys.readouterr().err.splitlines() == [
        "train.beton: 2 % (20 of 1,000 img), 0.7 img/s, 1.5 MB/s, 24:30 left, skipped 2",
        "train.beton: 4 % (40 of 1,000 img), 0.7 img/s, 600 MB/s, 24:00 left, skipped 2",
    ]


def test_each_yields_the_items(clock, capsys):
    seen = []
    for item in progress.each("abc", 3, "blocks", unit="block"):
        clock[0] += 31
        seen.append(item)
    assert seen == ["a", "b", "c"]
    assert [line.split("(")[1].split(")")[0] for line in capsys.readouterr().err.splitlines()] == [
        "1 of 3 block",
        "2 of 3 block",
    ]


def test_a_disabled_bar_shows_nothing_and_is_never_due(clock, capsys):
    with progress.bar(10, "x", disable=True) as bar:
        clock[0] += 99
        assert not bar.due
        bar.note(loss=1.0)
        bar.update()
    assert capsys.readouterr() == ("", "")


ON_A_TERMINAL = """
import time
from llc import progress
with progress.bar(20, "train.beton") as bar:
    for step in range(20):
        time.sleep(0.15)
        if bar.due:
            bar.note(loss=1.23456, lr=0.1)
        bar.update(1, 30_000_000)
"""


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 4096):
            text += part
    except OSError:  # how Linux says that the other side is closed
        pass
    assert process.wait(seconds(20)) == 0
    text = text.decode()
    assert "train.beton:" in text and "/20" in text and "img/s" in text
    assert " MB/s, loss=1.235, lr=0.1" in text
    assert text.count("\n") == 0  # one line, drawn again and again
