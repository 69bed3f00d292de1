"""python -m tests.serve.writer INDEX N: commits N changes to an index, one after another.

Each takes rows away and adds some under the same ids, with other codes and files, so that an answer that
mixed two states would show.
"""

import sys
import time

import numpy as np

from llc.index.index import Index


def change(index, generation):
    """The change that makes an index's state number `generation` from the one before."""
    rng = np.random.default_rng(generation)
    gone = rng.choice(index.ids, 60, replace=False)
    index.remove(gone)
    ids = np.concatenate([gone, np.arange(index.next_id, index.next_id + 10)])
    codes = rng.integers(0, 256, (len(ids), index.code_size), np.uint8)
    codes[:, -1] &= 0xF0  # 20 bits
    index.add(codes, ids, labels=rng.integers(0, 6, len(ids)), files=[f"{generation}/{id}.png" for id in ids])


if __name__ == "__main__":
    with Index.open(sys.argv[1], write=True) as opened:
        for number in range(1, int(sys.argv[2]) + 1):
            change(opened, number)
            opened.save()
            time.sleep(0.02)
