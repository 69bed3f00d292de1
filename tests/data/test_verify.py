"""python -m llc.data.verify: samples that do not decode and blocks with changed data are named."""

import json
import shutil
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from llc.data import verify
from llc.data.beton import JPG, read_tables
from llc.data.manifest import load_manifest
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from llc.native.codec import decode
from tests.data.helpers import write_tree
from tests.tools.chaos import make_betons


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return make_betons(tmp_path_factory.mktemp("verify"), write_mode="jpg")[0]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_damaged_samples_are_named_and_the_status_tells(num_workers, beton, tmp_path, capsys):
    copy = shutil.copy(beton, tmp_path / "x.beton")
    shutil.copy(f"{beton}.json", tmp_path / "x.beton.json")
    verify.main([str(copy), f"--num_workers={num_workers}"])
    assert "100 samples (100 JPEG), 0 damaged" in capsys.readouterr().out
    tables = read_tables(copy)
    # beyond what opening a beton reads: no header, and an end-of-image marker before the image's end
    for sample, at, change in ((3, 4, bytes(40)), (77, int(tables.sizes[77]) - 60, b"\xff\xd9")):
        with open(copy, "r+b") as file:
            file.seek(int(tables.images["data_ptr"][sample]) + at)
            file.write(change)
    with pytest.raises(SystemExit) as ended:
        verify.main([str(copy), f"--num_workers={num_workers}"])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "2 damaged" in said
    assert (
        f"sample 3 of {copy} (class class_0): " in said and f"sample 77 of {copy} (class class_3): " in said
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two betons of 300 samples less one unreadable one, half JPEG, half pixels.

    They hold the same samples, written with different numbers of workers.
    """
    folder = tmp_path_factory.mktemp("checksums")
    write_tree(folder / "images", {"ant": 150, "bee": 150})
    (folder / "images/ant/003.png").write_bytes(b"no picture")
    for name, num_workers, chunk_size in (("a-0", 1, 100), ("a-1", 2, 7)):
        write_beton(
            WriterConfig(
                write_path=str(folder / f"{name}.beton"),
                data_dir=str(folder / "images"),
                num_workers=num_workers,
                chunk_size=chunk_size,
                on_error="skip",
            ),
            show_progress=False,
        )
    return folder


def copy_of(shards, folder):
    for path in shards.glob("a-*"):
        shutil.copy(path, folder)
    return folder


def flip(path, tables, sample, at, bit=1):
    with open(path, "r+b") as file:
        file.seek(int(tables.images["data_ptr"][sample]) + at)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ bit]))


def ended(path, capsys):
    """(exit status, output) of verify."""
    status = 0
    try:
        verify.main([str(path)])
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def test_checksums_do_not_depend_on_who_wrote(shards, capsys):
    manifests = [load_manifest(shards / f"a-{k}.beton") for k in range(2)]
    assert manifests[0].num_samples == 299 and len(manifests[0].checksums) == 2
    assert manifests[0].checksums == manifests[1].checksums and len(set(manifests[0].checksums)) == 2
    tables, data = read_tables(shards / "a-0.beton"), (shards / "a-0.beton").read_bytes()
    assert 100 < np.count_nonzero(tables.images["mode"] == JPG) < 200
    ends = zip(tables.images["data_ptr"].tolist(), tables.sizes.tolist())
    crcs = [zlib.crc32(data[start : start + size]).to_bytes(4, "little") for start, size in ends]
    assert manifests[0].checksums == (zlib.crc32(b"".join(crcs[:256])), zlib.crc32(b"".join(crcs[256:])))
    assert ended(shards / "a-*.beton", capsys) == (0, mock.ANY)


def test_a_flipped_bit_of_a_pixel_is_found_and_its_block_named(shards, tmp_path, capsys):
    path = copy_of(shards, tmp_path) / "a-1.beton"
    tables = read_tables(path)
    sample = 256 + int(np.flatnonzero(tables.images["mode"][256:] != JPG)[0])
    flip(path, tables, sample, 77)
    status, said = ended(tmp_path / "a-*.beton", capsys)
    assert status == 1 and "0 damaged, 1 blocks changed" in said
    assert f"samples 256 to 298 of {path}: " in said and said.count("samples ") == 2  # the other is the sum


def test_a_flipped_bit_of_a_jpeg_that_still_decodes_is_found(shards, tmp_path, capsys):
    path = copy_of(shards, tmp_path) / "a-0.beton"
    tables = read_tables(path)
    sample = int(np.flatnonzero(tables.images["mode"] == JPG)[3])
    start, size = int(tables.images["data_ptr"][sample]), int(tables.sizes[sample])
    whole = path.read_bytes()[start : start + size]
    scan = whole.index(b"\xff\xda") + 14
    for at in range(scan, size - 2):
        changed = bytearray(whole)
        changed[at] ^= 1
        try:
            if (decode(bytes(changed)) != decode(whole)).any():
                break
        except UserError:
            continue
    flip(path, tables, sample, at)
    status, said = ended(path, capsys)
    assert status == 1 and "0 damaged, 1 blocks changed" in said and f"samples 0 to 255 of {path}: " in said


def test_a_manifest_without_checksums_is_read_and_said_to_be_one(shards, tmp_path, capsys):
    path = copy_of(shards, tmp_path) / "a-1.beton"
    content = json.loads(Path(f"{path}.json").read_text())
    del content["checksums"], content["samples_per_checksum"]
    Path(f"{path}.json").write_text(json.dumps(content))
    tables = read_tables(path)
    flip(path, tables, int(np.flatnonzero(tables.images["mode"] != JPG)[0]), 5)
    status, said = ended(tmp_path / "a-*.beton", capsys)
    assert status == 0 and "0 damaged, 0 blocks changed" in said
    assert f"{path} has no checksums" in said and "a-0.beton has no" not in said
