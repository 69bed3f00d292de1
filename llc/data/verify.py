"""Checks betons whole: their tables against their manifests, every sample by decoding it, and all data against the manifests' checksums.

    python -m llc.data.verify FILE.beton [MORE.beton ...] [--num_workers=N]        exit status 0: all is as it was written; 1: it is not

Several files, or a glob, are checked one after the other; N threads decode, as many as there are cores if not given. A JPEG that is cut off
or broken is named; a changed bit anywhere in the data, raw pixels too, is found, and the block of samples named that holds it. A manifest
without checksums (written before there were any) is said to be one: then only a change that the decoder notices is found.
"""

import os
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from llc import config as edge
from llc.data import native
from llc.data.beton import JPG
from llc.data.manifest import data_checksums
from llc.data.shards import Shards, open_shards
from llc.data.storage import read_sample
from llc.errors import UserError

_MAX_SHOWN = 20
_BLOCK = 64  # samples that a thread takes at a time


def check_samples(shards: Shards, num_threads, progress=lambda samples: samples):
    """([(index, what is wrong)] of every sample that does not decode to an image of the size its tables say, CRC-32s of all samples'
    data, uint32 [n]).

    The data is read, never mapped: a file that becomes shorter meanwhile is a UserError too, not a crash.
    """
    crcs = np.zeros(len(shards), np.uint32)

    def check(start):
        found = []
        for index in range(start, min(start + _BLOCK, len(shards))):
            data = read_sample(shards, index)
            crcs[index] = zlib.crc32(data)
            problem = _problem(data, shards.images[index])
            if problem:
                found.append((index, problem))
        return found

    native.library()  # says what to do where it was not built, once
    with ThreadPoolExecutor(num_threads, "llc-verify") as pool:
        return [
            entry for block in progress(pool.map(check, range(0, len(shards), _BLOCK))) for entry in block
        ], crcs


def changed_blocks(shards: Shards, crcs):
    """[(shard, first sample in it, last one)] of the blocks whose data has another checksum than the manifests say.

    crcs: of all samples' data, as check_samples gives them. Shards whose manifest has no checksums are passed over.
    """
    changed = []
    for shard, manifest in enumerate(shards.manifests):
        step = manifest.samples_per_checksum
        found = (
            data_checksums(crcs[shards.starts[shard] : shards.starts[shard + 1]], step)
            if manifest.checksums
            else ()
        )
        for block, (now, written) in enumerate(zip(found, manifest.checksums)):
            if now != written:
                changed.append((shard, block * step, min((block + 1) * step, manifest.num_samples) - 1))
    return changed


def _problem(data, image):
    if image["mode"] != JPG:
        return ""  # raw pixels: any bytes are an image, and their number was checked with the tables; the checksums tell
    try:
        pixels = native.decode(data)
    except native.DecodeError as error:
        return str(error)
    said = int(image["height"]), int(image["width"])
    return (
        ""
        if pixels.shape[:2] == said
        else f"it is {pixels.shape[1]} x {pixels.shape[0]} pixels; the tables say {said[1]} x {said[0]}"
    )


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
    if sum(_verify(path, num_threads) for path in files):
        sys.exit(1)


def _verify(where, num_threads):
    """Prints what was found; returns the number of findings."""
    started = time.perf_counter()
    shards = open_shards(where)
    damaged, crcs = check_samples(
        shards,
        num_threads,
        lambda blocks: tqdm(
            blocks,
            total=-(-len(shards) // _BLOCK),
            unit="block",
            leave=False,
            disable=not sys.stderr.isatty(),
        ),
    )
    for index, problem in damaged[:_MAX_SHOWN]:
        print(f"{shards.name(index)} (class {shards.manifest.class_names[shards.labels[index]]}): {problem}")
    if len(damaged) > _MAX_SHOWN:
        print(f"and {len(damaged) - _MAX_SHOWN} more")
    changed = changed_blocks(shards, crcs)
    for shard, first, last in changed[:_MAX_SHOWN]:
        print(
            f"samples {first} to {last} of {shards.paths[shard]}: some of their bytes are not those that were written; copy or write it again"
        )
    if len(changed) > _MAX_SHOWN:
        print(f"and {len(changed) - _MAX_SHOWN} more such blocks")
    for path, manifest in zip(shards.paths, shards.manifests):
        if not manifest.checksums:
            print(
                f"{path} has no checksums in its manifest to compare its data with: bytes that changed and still decode go unseen"
            )
    seconds = time.perf_counter() - started
    jpegs = int(np.count_nonzero(shards.images["mode"] == JPG))
    print(
        f"{where}: {len(shards):,} samples ({jpegs:,} JPEG), {len(damaged)} damaged, {len(changed)} blocks changed,"
        f" {seconds:.1f} s ({len(shards) / seconds:,.0f} a second)"
    )
    return len(damaged) + len(changed)


if __name__ == "__main__":
    edge.run(main)
