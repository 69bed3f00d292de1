"""Changes files at random and reads them.

    python -m tests.tools.fuzz [--mutations=2000] [--seed=0] [--reader=NAME]

One core tries about 1,000 mutations per second. Every reader must return, or raise a UserError that names the
file, soon and in little memory. What was read is then used as its users do: betons are decoded whole. Nothing
here catches a crash of the process, which is a failure too.
"""

import dataclasses
import io
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from llc import config
from llc.codebook import load_codebook
from llc.data import beton as layout
from llc.data.beton import read_tables
from llc.data.manifest import load_manifest
from llc.data.shards import open_shards
from llc.data.verify import check_samples
from llc.errors import UserError
from llc.options import option
from llc.recipe import sections
from llc.torch_files import read_torch_file
from tests import waiting
from tests.tools.chaos import ROOT, flat, make_betons

SECONDS = waiting.seconds(5.0)  # for one read
MEMORY = 200 << 20  # bytes by which all reads of a reader together may make the process grow

# ---- mutations ---------------------------------------------------------------------------------------------


def mutate(rng, data):
    """One to four random changes of `data`, bytes -> bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_MUTATIONS)(rng, data, rng.randrange(len(data) + 1))
    return bytes(data)


def _flip(rng, data, at):
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _number(rng, data, at):
    """Writes a number that is unlikely as a size or an offset, in 1 to 8 bytes."""
    width = rng.choice((1, 2, 4, 8))
    corner_cases = (0, 1, -1, 1 << 7, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1)
    value = rng.choice((*corner_cases, rng.getrandbits(64)))
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def _cut(rng, data, at):
    del data[at:]


def _remove(rng, data, at):
    del data[at : at + rng.choice((1, 2, 8, 100))]


def _repeat(rng, data, at):
    data[at:at] = data[at : at + rng.choice((1, 4, 60, 1000))] * rng.choice((1, 2, 50))


def _zeros(rng, data, at):
    width = min(rng.choice((1, 8, 64, 512)), len(data) - at)
    data[at : at + width] = bytes(width)


def _digits(rng, data, at):
    """In text: turns a digit into a huge or strange number."""
    places = [i for i, byte in enumerate(data[:2000]) if chr(byte).isdigit()]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice((b"99999999999999", b"-1", b"0", b"1e400", b"nan", b"9" * 5000))


def _bracket(rng, data, at):
    data[at:at] = rng.choice(
        (b"[" * 2000, b"{", b"&a ", b"*a", b"\n- ", b'"', b"!!python/name:os.system ", b"\xff\xfe")
    )


_MUTATIONS = (_flip, _flip, _number, _number, _cut, _remove, _repeat, _zeros, _digits, _bracket)

# ---- readers -----------------------------------------------------------------------------------------------


class Reader:
    """A function that reads a file, and the files that it needs.

    files: {name: content}; the first is the one that is changed. read: takes the path of the first.
    """

    def __init__(self, files, read, mutate=mutate):
        self.files, self.read, self.mutate = files, read, mutate


def readers(folder):
    """{name: Reader}"""
    train = make_betons(folder, write_mode="jpg")[1]
    beton = _only_used_bytes(train.read_bytes())
    (folder / "x.beton").write_bytes(beton)
    tables = read_tables(folder / "x.beton")
    manifest = (
        dataclasses.replace(load_manifest(train), file_size=len(beton), tables_sha256=tables.sha256)
        .to_json()
        .encode()
    )
    torch.manual_seed(0)
    state = {
        "network": {"a": torch.randn(7, 5), "b": torch.arange(4), "c": torch.randn(6, 2).T},
        "progress": {"epoch": 3, "lines": [{"x": 0.5}]},
    }
    torch.save(state, folder / "state.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    np.save(folder / "codebook.npy", np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32))
    recipe = ROOT / "rn50_configs" / "llc_20bit.yaml"

    def read_config(path):
        config.read(
            sections(),
            [
                "--config",
                str(recipe),
                "--config",
                str(path),
                "--data.train_dataset=a",
                "--data.val_dataset=b",
            ],
            description="",
        )

    def read_checkpoint(path):
        assert flat(read_torch_file(path)) == flat(state), "damage was not recognised"

    def read_beton(path):
        shards = open_shards(path)
        check_samples(shards, 1)

    return {
        "beton with its manifest": Reader({"x.beton": beton, "x.beton.json": manifest}, read_beton),
        "beton alone": Reader({"x.beton": beton}, read_beton, _mutate_tables),
        "manifest": Reader({"x.beton.json": manifest}, lambda path: load_manifest(path)),
        "checkpoint": Reader({"x.pth": (folder / "state.pth").read_bytes()}, read_checkpoint),
        "checkpoint with right checksums": Reader(
            {"x.pth": (folder / "state.pth").read_bytes()}, read_torch_file, _mutate_records
        ),
        "checkpoint of the old format": Reader({"x.pth": (folder / "old.pth").read_bytes()}, read_torch_file),
        "codebook": Reader({"x.npy": (folder / "codebook.npy").read_bytes()}, load_codebook),
        "configuration": Reader({"x.yaml": recipe.read_bytes()}, read_config),
    }


def _only_used_bytes(beton):
    """The beton without unused bytes: pages are mostly empty, and changing empty bytes would test nothing."""
    header = np.frombuffer(beton, layout.HEADER_TYPE, count=1).copy()
    n, table_at = int(header["num_samples"][0]), int(header["alloc_table_ptr"][0])
    metadata = np.frombuffer(beton, layout.METADATA_TYPE, n, layout.METADATA_START).copy()
    table = np.frombuffer(beton, layout.ALLOC_TYPE, n, table_at).copy()
    first = int(table["ptr"].min())
    end = int((table["ptr"] + table["size"]).max())
    moved = layout.METADATA_START + metadata.nbytes
    page = int(header["page_size"][0])
    assert moved + end - first < page  # everything in the first page
    metadata["f0"]["data_ptr"] -= first - moved
    table["ptr"] -= first - moved
    header["alloc_table_ptr"] = moved + end - first
    return (
        header.tobytes()
        + beton[header.nbytes : layout.METADATA_START]
        + metadata.tobytes()
        + beton[first:end]
        + table.tobytes()
    )


def _mutate_tables(rng, data):
    """Mostly changes numbers of the tables, which say where to read."""
    if rng.random() < 0.3:
        return mutate(rng, data)
    data = bytearray(data)
    n = int.from_bytes(data[8:16], "little")
    for _ in range(rng.choice((1, 2, 5))):
        start, end = rng.choice(
            (
                (0, 24),
                (layout.METADATA_START, layout.METADATA_START + n * layout.METADATA_TYPE.itemsize),
                (len(data) - n * layout.ALLOC_TYPE.itemsize, len(data)),
            )
        )
        before, at = len(data), rng.randrange(start, end)
        _number(rng, data, at)
        del data[before:]
    return bytes(data)


def _mutate_records(rng, data):
    """Writes a checkpoint with changed records and checksums that fit them."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        chosen = rng.choice([name for name in names if name.endswith("data.pkl")] * 6 + names)
        with zipfile.ZipFile(
            out, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
        ) as written:
            for name in names:
                content = archive.read(name)
                written.writestr(name, mutate(rng, content) if name == chosen else content)
    return out.getvalue()


# ---- the loop ----------------------------------------------------------------------------------------------


class TooLong(BaseException):
    pass


def fuzz(reader, mutations, seed, folder):
    """Reads changed versions of a reader's file. Returns (number refused, descriptions of problems)."""
    rng, refused, problems = random.Random(seed), 0, []
    folder = folder / f"fuzz_{time.monotonic_ns()}"
    folder.mkdir()
    paths = [folder / name for name in reader.files]
    for path, content in zip(paths, reader.files.values()):
        path.write_bytes(content)
    first, whole = paths[0], next(iter(reader.files.values()))
    reader.read(first)  # the unchanged file must be readable

    def too_long(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGALRM, too_long)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for number in range(mutations):
            first.write_bytes(reader.mutate(rng, whole))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    reader.read(first)
            except UserError as error:
                refused += 1
                if first.name not in str(error):
                    problems.append(
                        f"mutation {number} of seed {seed}: the message does not name the file: {error}"
                    )
            except TooLong:
                problems.append(f"mutation {number} of seed {seed}: took longer than {SECONDS} s")
            except BaseException:
                problems.append(f"mutation {number} of seed {seed}: {traceback.format_exc()}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    if grown > MEMORY:
        problems.append(f"seed {seed}: the reads took {grown >> 20} MB of memory")
    return refused, problems


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try."""

    mutations: int = option(2000, minimum=1, help="mutations of each reader's file")
    seed: int = option(0, minimum=0, help="seed of the mutations")
    reader: str = option("", help="only the readers whose name contains this")


def main(argv):
    options = config.read_one(Options, argv, description=__doc__)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="llc-fuzz-") as folder:
        chosen = {name: r for name, r in readers(Path(folder)).items() if options.reader in name}
        if not chosen:
            raise UserError(f"--reader={options.reader}: no reader's name contains this")
        for name, reader in chosen.items():
            started = time.monotonic()
            refused, problems = fuzz(reader, options.mutations, options.seed, Path(folder))
            failed += len(problems)
            print(
                f"{name}: {options.mutations} mutations, {refused} refused with a message, "
                f"{options.mutations - refused - len(problems)} read, {len(problems)} problems, "
                f"{time.monotonic() - started:.1f} s",
                flush=True,
            )
            for problem in problems[:3]:
                print(problem, file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    config.run(main)
