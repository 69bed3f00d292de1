"""Checks betons completely: their tables, every sample by decoding it, and all data against checksums.

The exit status is 0 if all is as it was written, else 1. A JPEG that is cut off or broken is named. A changed
bit anywhere in the data, raw pixels included, is found, and the block of samples that holds it is named. A
manifest from before there were checksums is reported: without them, only a change that the decoder notices is
found.

    python -m llc.data.verify train.beton
    python -m llc.data.verify 'shards/*.beton' val.beton --num_workers=8
    python -m llc.data.verify train.beton --sheet=train.png [--num_sheet=50] [--seed=0]

--sheet also draws some samples, chosen at random, with their classes and sizes, into one picture, so that
you see at once whether a conversion went right. --seed chooses other ones. A sample that does not decode is a
grey tile that says why.
"""

import dataclasses
import os
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from llc import config as command_line
from llc import montage, progress
from llc.data.beton import JPG
from llc.data.manifest import data_checksums
from llc.data.shards import Shards, open_shards
from llc.data.sources import printable
from llc.data.storage import read_sample
from llc.errors import UserError
from llc.evaluation import wordnet
from llc.native import codec, library
from llc.options import option

_MAX_SHOWN = 20
_BLOCK = 64  # samples that a thread takes at a time
_COLUMNS = 10  # of a sheet


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """What is checked."""

    file: tuple[str, ...] = option(positional=True, help="betons or globs, checked one after the other")
    num_workers: int = option(-1, minimum=-1, help="threads that decode (-1: one per core)")
    sheet: str = option("", help="draw random samples into this file: .png, .jpg or .webp; one beton or glob")
    num_sheet: int = option(
        50, minimum=1, maximum=_COLUMNS * montage.MAX_ROWS, help="samples in the sheet, at most"
    )
    seed: int = option(0, minimum=0, help="chooses the samples in the sheet")


def check_samples(shards: Shards, num_threads, progress=lambda num_samples: None):
    """Decodes every sample.

    Returns [(index, problem)] of the samples that do not decode to an image of the size in their tables, and
    the CRC-32 of each sample's data, uint32 [n]. progress(num_samples) is called after every few samples. The
    data is read, never mapped, so a file that becomes shorter meanwhile is a UserError, not a crash.
    """
    crcs = np.zeros(len(shards), np.uint32)

    def check(start):
        problems = []
        for index in range(start, min(start + _BLOCK, len(shards))):
            data = read_sample(shards, index)
            crcs[index] = zlib.crc32(data)
            problem = _problem(data, shards.images[index])
            if problem:
                problems.append((index, problem))
        return problems

    library()  # raises here, once, if the library was not built
    problems = []
    with ThreadPoolExecutor(num_threads, "llc-verify") as pool:
        for start, block in zip(
            range(0, len(shards), _BLOCK), pool.map(check, range(0, len(shards), _BLOCK))
        ):
            problems += block
            progress(min(_BLOCK, len(shards) - start))
    return problems, crcs


def changed_blocks(shards: Shards, crcs):
    """[(shard, first sample, last sample)] of the blocks whose checksum is not the one in the manifest.

    crcs: of all samples' data, as check_samples returns them. Shards without checksums in their manifest are
    skipped.
    """
    changed = []
    for shard, manifest in enumerate(shards.manifests):
        if not manifest.checksums:
            continue
        step = manifest.samples_per_checksum
        current = data_checksums(crcs[shards.starts[shard] : shards.starts[shard + 1]], step)
        for block, (now, written) in enumerate(zip(current, manifest.checksums)):
            if now != written:
                changed.append((shard, block * step, min((block + 1) * step, manifest.num_samples) - 1))
    return changed


def _problem(data, image):
    """What is wrong with a sample's data, or ""."""
    if image["mode"] != JPG:
        return ""  # any bytes are raw pixels, and their number was checked with the tables
    try:
        pixels = codec.decode(data)
    except codec.DecodeError as error:
        return str(error)
    height, width = int(image["height"]), int(image["width"])
    if pixels.shape[:2] == (height, width):
        return ""
    return f"it is {pixels.shape[1]} x {pixels.shape[0]} pixels; the tables say {width} x {height}"


def main(argv):
    options = command_line.read_one(VerifyConfig, argv, description=__doc__)
    if options.sheet:
        _check_sheet(options)
    num_threads = options.num_workers if options.num_workers > 0 else len(os.sched_getaffinity(0))
    findings = sum(_verify(path, num_threads) for path in options.file)
    if options.sheet:
        write_sheet(options.file[0], options.sheet, options.num_sheet, options.seed)
    if findings:
        sys.exit(1)


def _check_sheet(options):
    """Raises UserError if no sheet can be written, before the long work."""
    montage.check_sheet_name(options.sheet, "--sheet")
    if not (folder := Path(options.sheet).parent).is_dir():
        raise UserError(
            f"--sheet={printable(options.sheet)}: there is no folder {printable(folder)}; make it first"
        )
    if len(options.file) > 1:
        raise UserError(
            f"--sheet={printable(options.sheet)}: a sheet shows one beton or glob, not {len(options.file)}; "
            "run the command once for each"
        )


def write_sheet(where, path, num_samples, seed):
    """Draws random samples of the betons `where`, in their order there, and says where the sheet is."""
    shards = open_shards(where, spot_check=False)
    chosen = np.random.default_rng(seed).permutation(len(shards))[:num_samples]
    words = wordnet.shown(shards.manifest.class_names, shards.manifest.class_words)
    tiles = [_tile(shards, index, words) for index in sorted(chosen.tolist())]
    sheet = montage.draw_sheet(
        [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)],
        lambda index: _pixels(shards, index),
        heading=f"{where}: {len(tiles):,} of {len(shards):,} samples, chosen at random (seed {seed})",
    )
    montage.write_sheet(path, sheet)
    print(f"{printable(path)}: {len(tiles):,} samples, chosen at random with seed {seed}")


def _tile(shards, index, words):
    """words: what to call the classes."""
    image = shards.images[index]
    form = "JPEG" if image["mode"] == JPG else "raw"
    return montage.Tile(
        index,
        (
            printable(words[shards.labels[index]]),
            f"{image['width']} x {image['height']}, {form}",
            f"sample {index:,}",
        ),
    )


def _class(shards, index):
    """The name of a sample's class, with a word behind it where it is known."""
    manifest, label = shards.manifest, shards.labels[index]
    return wordnet.with_word(
        manifest.class_names[label], manifest.class_words[label] if manifest.class_words else ""
    )


def _pixels(shards, index):
    """uint8 [H, W, 3] of a sample. Raises ValueError that says what is wrong with it."""
    data, image = read_sample(shards, index), shards.images[index]
    if problem := _problem(data, image):
        raise ValueError(problem)
    if image["mode"] == JPG:
        return codec.decode(data)
    return np.frombuffer(data, np.uint8).reshape(int(image["height"]), int(image["width"]), 3)


def _verify(where, num_threads):
    """Prints what is wrong with the betons `where`; returns how many findings there are."""
    started = time.perf_counter()
    shards = open_shards(where, spot_check=False)
    with progress.bar(len(shards), "verify") as bar:
        damaged, crcs = check_samples(shards, num_threads, bar.update)
    for index, problem in damaged[:_MAX_SHOWN]:
        print(f"{shards.name(index)} (class {printable(_class(shards, index))}): {problem}")
    if len(damaged) > _MAX_SHOWN:
        print(f"and {len(damaged) - _MAX_SHOWN} more")
    changed = changed_blocks(shards, crcs)
    for shard, first, last in changed[:_MAX_SHOWN]:
        print(
            f"samples {first} to {last} of {shards.paths[shard]}: some of their bytes have changed since"
            " they were"
            " written; copy or write the file again"
        )
    if len(changed) > _MAX_SHOWN:
        print(f"and {len(changed) - _MAX_SHOWN} more such blocks")
    for path, manifest in zip(shards.paths, shards.manifests):
        if not manifest.checksums:
            print(
                f"{path} has no checksums in its manifest: bytes that changed and still decode are not found"
            )
    seconds = time.perf_counter() - started
    jpegs = int(np.count_nonzero(shards.images["mode"] == JPG))
    print(
        f"{where}: {len(shards):,} samples ({jpegs:,} JPEG), {len(damaged)} damaged, {len(changed)} blocks"
        " changed,"
        f" {seconds:.1f} s ({len(shards) / seconds:,.0f} images/s)"
    )
    return len(damaged) + len(changed)


if __name__ == "__main__":
    command_line.run(main)
