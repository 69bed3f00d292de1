"""Checks betons whole: their tables against their manifests, and every sample by decoding it.

    python -m llc.data.verify FILE.beton [MORE.beton ...] [--num_workers=N]        exit status 0: every sample decodes; 1: some do not

Several files, or a glob, are checked one after the other; N threads decode, as many as there are cores if not given. A JPEG that is cut off
or broken is found, and a changed byte where the decoder notices it; changed raw pixels cannot be told from others.
"""
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from llc import config as edge
from llc.data import native
from llc.data.beton import JPG
from llc.data.shards import Shards, open_shards
from llc.data.storage import read_sample
from llc.errors import UserError

_MAX_SHOWN = 20
_BLOCK = 64  # samples that a thread takes at a time


def damaged_samples(shards: Shards, num_threads, progress=lambda samples: samples):
    """[(index, what is wrong)] of every sample that does not decode to an image of the size its tables say.

    The data is read, never mapped: a file that becomes shorter meanwhile is a UserError too, not a crash.
    """
    def check(start):
        found = []
        for index in range(start, min(start + _BLOCK, len(shards))):
            problem = _problem(shards, index)
            if problem:
                found.append((index, problem))
        return found

    native.library()  # says what to do where it was not built, once
    with ThreadPoolExecutor(num_threads, "llc-verify") as pool:
        return [entry for block in progress(pool.map(check, range(0, len(shards), _BLOCK))) for entry in block]


def _problem(shards, index):
    data, image = read_sample(shards, index), shards.images[index]
    if image["mode"] != JPG:
        return ""  # raw pixels: any bytes are an image, and their number was checked with the tables
    try:
        pixels = native.decode(data)
    except native.DecodeError as error:
        return str(error)
    said = int(image["height"]), int(image["width"])
    return "" if pixels.shape[:2] == said else f"it is {pixels.shape[1]} x {pixels.shape[0]} pixels; the tables say {said[1]} x {said[0]}"


def main(argv):
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return
    files, num_threads = [], len(os.sched_getaffinity(0))
    for word in argv:
        key, _, value = word.partition("=")
        if key == "--num_workers" and value.isdecimal() and int(value):
            num_threads = int(value)
        elif word.startswith("--"):
            raise UserError(f"{word} is not known; the only flag is --num_workers=N, N at least 1")
        else:
            files.append(word)
    if not files:
        raise UserError("which beton? python -m llc.data.verify FILE.beton")
    num_damaged = sum(_verify(path, num_threads) for path in files)
    if num_damaged:
        sys.exit(1)


def _verify(where, num_threads):
    """Prints what was found; returns the number of damaged samples."""
    started = time.perf_counter()
    shards = open_shards(where)
    damaged = damaged_samples(shards, num_threads, lambda blocks: tqdm(
        blocks, total=-(-len(shards) // _BLOCK), unit="block", leave=False, disable=not sys.stderr.isatty()))
    for index, problem in damaged[:_MAX_SHOWN]:
        print(f"{shards.name(index)} (class {shards.manifest.class_names[shards.labels[index]]}): {problem}")
    if len(damaged) > _MAX_SHOWN:
        print(f"and {len(damaged) - _MAX_SHOWN} more")
    seconds = time.perf_counter() - started
    jpegs = int(np.count_nonzero(shards.images["mode"] == JPG))
    print(f"{where}: {len(shards):,} samples ({jpegs:,} JPEG), {len(damaged)} damaged, {seconds:.1f} s ({len(shards) / seconds:,.0f} a second)")
    return len(damaged)


if __name__ == "__main__":
    edge.run(main)
