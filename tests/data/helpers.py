"""Pictures, trees of them, and what tests ask of processes."""

import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from llc.data.encoding import shrink
from llc.data.sources import Source
from tests.waiting import seconds

REPOSITORY = Path(__file__).parents[2]


def picture(seed, height, width):
    """A smooth picture for every seed, uint8 [height, width, 3]; JPEG changes smooth pictures little."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC))


def write_tree(root, counts, suffix=".png"):
    """Writes an image tree. counts: {class name: number of images}.

    Returns {relative path: pixels} in the order of a converted tree.
    """
    pixels = {}
    for label, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = f"{name}/{i:03}{suffix}"
            pixels[path] = picture(1000 * label + i, 20 + i % 7, 30 - label)
            Image.fromarray(pixels[path]).save(root / path)
    return pixels


def children_of(pid):
    """Process ids of the living children of `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition, limit=60):
    """Polls; fails the test when the condition does not come true in time."""
    end = time.monotonic() + seconds(limit)
    while not (result := condition()):
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.02)
    return result


class FailingSource(Source):
    """26 grey pictures, of which the 21st raises a bug's exception, or (`leaves`) ends the process."""

    def __init__(self, leaves=False):
        super().__init__(("grey",), np.zeros(26, np.int64))
        object.__setattr__(self, "leaves", leaves)

    def image(self, i):
        if i == 20:
            os._exit(7) if self.leaves else 1 / 0
        return Image.new("L", (9, 8), i)

    def name(self, i):
        return f"grey {i}"


class ThreadsSource(Source):
    """One grey picture, as bright as the number of threads of the process that reads it, after a shrink."""

    def __init__(self):
        super().__init__(("grey",), np.zeros(1, np.int64))

    def image(self, i):
        shrink(np.zeros((300, 300, 3), np.uint8), 100)
        return Image.new("L", (9, 8), len(os.listdir("/proc/self/task")))

    def name(self, i):
        return f"grey {i}"


def marked(archive, flag):
    """A zip file's bytes with a flag set for all members: 1, encrypted; 32, patched data."""
    content = bytearray(archive)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # a member's headers
        start = content.find(signature)
        while start >= 0:
            content[start + place] |= flag
            start = content.find(signature, start + 4)
    return bytes(content)
