"""python -m llc.data.verify: samples that do not decode and blocks with changed data are named."""

import json
import shutil
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from llc import montage
from llc.data import verify
from llc.data.beton import JPG, read_tables
from llc.data.manifest import load_manifest
from llc.data.storage import read_sample
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


# ------------------------------------------------------------------------------------------- contact sheets


def test_a_sheet_shows_random_samples_with_their_classes(beton, tmp_path, capsys, monkeypatch):
    drawn = []

    def draw_sheet(rows, open_image, **others):
        drawn.append((rows, [open_image(tile.source) for row in rows for tile in row]))
        return montage.draw_sheet(rows, open_image, **others)

    monkeypatch.setattr(verify, "montage", mock.Mock(wraps=montage, MAX_ROWS=50, draw_sheet=draw_sheet))
    for seed in (0, 0, 1):
        verify.main([str(beton), f"--sheet={tmp_path / 'x.png'}", "--num_sheet=12", f"--seed={seed}"])
    assert f"{tmp_path / 'x.png'}: 12 samples, chosen at random with seed 1" in capsys.readouterr().out
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width > 10 * montage.SIDE and sheet.height > 2 * montage.SIDE
    tables, names = read_tables(beton), load_manifest(beton).class_names
    chosen = [[tile.source for row in rows for tile in row] for rows, _ in drawn]
    assert chosen[0] == chosen[1] != chosen[2] and all(len(set(indices)) == 12 for indices in chosen)
    assert [len(row) for row in drawn[0][0]] == [10, 2]
    for tile, pixels in zip([tile for row in drawn[0][0] for tile in row], drawn[0][1]):
        height, width = (int(tables.images[key][tile.source]) for key in ("height", "width"))
        name = names[int(tables.labels[tile.source])]
        assert tile.captions == (name, f"{width} x {height}, JPEG", f"sample {tile.source}")
        assert pixels.shape == (height, width, 3)


def test_a_sheet_and_lines_say_what_imagenets_classes_are(beton, tmp_path, capsys, monkeypatch):
    """In the words of the manifest, and where it has none in WordNet's."""
    copy, manifest = shutil.copy(beton, tmp_path / "x.beton"), json.loads(Path(f"{beton}.json").read_text())
    manifest["class_names"][:2] = ["n01440764", "n01443537"]
    drawn = {}
    monkeypatch.setattr(
        montage, "draw_sheet", lambda rows, *_, **__: drawn.update({t.source: t for r in rows for t in r})
    )
    monkeypatch.setattr(montage, "write_sheet", lambda *_: None)
    for words in ([], ["a fish, of a lake", *[""] * (len(manifest["class_names"]) - 1)]):
        Path(f"{copy}.json").write_text(json.dumps({**manifest, "class_words": words}))
        shards = verify.open_shards(str(copy))
        first, second = ((shards.labels == label).argmax() for label in (0, 1))
        verify.write_sheet(str(copy), "x.png", 500, 0)
        said = [drawn[index].captions[0] for index in (first, second)]
        assert said == ["a fish" if words else "tench", "goldfish"]
    with open(copy, "r+b") as file:
        file.seek(int(read_tables(copy).images["data_ptr"][second]) + 4)
        file.write(bytes(40))
    assert "(class n01443537 goldfish): " in ended(copy, capsys)[1]


def test_raw_samples_are_drawn_as_they_are(shards, tmp_path):
    opened = verify.open_shards(str(shards / "a-0.beton"))
    for index in np.flatnonzero(opened.images["mode"] != JPG)[:3].tolist():
        stored = np.asarray(read_sample(opened, index))
        assert np.array_equal(verify._pixels(opened, index).ravel(), np.frombuffer(stored, np.uint8))
        assert "raw" in verify._tile(opened, index, opened.manifest.class_names).captions[1]


@pytest.mark.parametrize("at", [0, 4])  # what does not even begin as a JPEG, and what only begins so
def test_a_sample_that_does_not_decode_is_a_grey_tile_that_says_why(at, beton, tmp_path, capsys):
    copy = shutil.copy(beton, tmp_path / "x.beton")
    shutil.copy(f"{beton}.json", tmp_path / "x.beton.json")
    with open(copy, "r+b") as file:
        file.seek(int(read_tables(copy).images["data_ptr"][3]) + at)
        file.write(bytes(40))
    with pytest.raises(SystemExit) as ended:
        verify.main([str(copy), f"--sheet={tmp_path / 'x.webp'}", "--num_sheet=500"])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "1 damaged" in said and "x.webp: 100 samples" in said
    with pytest.raises(ValueError) as error:
        verify._pixels(verify.open_shards(str(copy), spot_check=False), 3)
    assert str(error.value) in said
    with Image.open(tmp_path / "x.webp") as sheet:
        corner = montage._GAP + 3 * (montage.SIDE + montage._GAP) + 2, montage._LINE + 2 * montage._GAP + 2
        assert all(abs(value - 208) < 6 for value in sheet.convert("RGB").getpixel(corner))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sheet=x.gif"], "--sheet=x.gif: expected a name that ends in .png"),
        (["--sheet=nowhere/x.png"], "--sheet=nowhere/x.png: there is no folder nowhere; make it first"),
        (["b.beton", "--sheet=x.png"], "a sheet shows one beton or glob, not 2"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_is_an_error_before_long_work(words, message):
    with pytest.raises(UserError) as error:
        verify.main(["nowhere.beton", *words])
    assert message in str(error.value)
