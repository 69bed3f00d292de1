"""Thumbnails are of files that the index records, and of nothing else, whatever names and links say."""

import gc
import io
import os
import shutil
import tarfile
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from llc.serve.limits import Refused
from llc.serve.pictures import Thumbnails


@pytest.fixture
def place(tmp_path):
    """A folder of images, one outside, and a file that is none."""
    (tmp_path / "photos/deep").mkdir(parents=True)
    for name, colour in (
        ("photos/red.png", (250, 0, 0)),
        ("photos/deep/green.jpg", (0, 250, 0)),
        ("secret.png", (0, 0, 250)),
    ):
        Image.new("RGB", (900, 600), colour).save(tmp_path / name)
    (tmp_path / "photos/notes.txt").write_text("notes")
    (tmp_path / "photos/text.png").write_text("not an image")
    return tmp_path


def recorded(path):
    """What an index records of a file: its name, size and time of modification."""
    found = os.stat(path)
    return str(path), found.st_size, found.st_mtime_ns


def colour_of(jpeg):
    image = Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG" and image.size == (320, 213)
    return "red green blue".split()[int(np.asarray(image).mean((0, 1)).argmax())]


def refused(thumbnails, *record, status=404):
    with pytest.raises(Refused) as error:
        thumbnails.of(*record)
    assert error.value.status == status, error.value.reason
    assert "secret" not in error.value.reason
    return error.value.reason


def test_files_as_they_were_indexed(place):
    thumbnails = Thumbnails(None)
    red, secret = place / "photos/red.png", place / "secret.png"
    name, size, modified = recorded(red)
    for _ in range(2):  # the second from memory
        assert colour_of(thumbnails.of(name, size, modified)) == "red"
    # An index that knows neither size nor time, or a forged one, leads to no file.
    for wrong in ((-1, -1), (size + 1, modified), (size, modified + 1), (0, 0)):
        refused(thumbnails, str(secret), *wrong)
        refused(thumbnails, name, *wrong)
    os.rename(red, place / "moved.png")
    assert "not there" in refused(thumbnails, name, size, modified)
    red.symlink_to(secret)
    assert "changed" in refused(thumbnails, name, size, modified)
    red.unlink()
    Image.new("RGB", (900, 600), (250, 0, 0)).save(red, pnginfo=None, compress_level=0)
    assert "changed" in refused(thumbnails, name, size, modified)


@pytest.mark.parametrize("folder", [None, "photos"])
def test_what_is_no_image_file_is_not_read(place, folder):
    thumbnails = Thumbnails(folder and str(place / folder))
    refused(thumbnails, *recorded(place / "photos/notes.txt"))
    refused(thumbnails, *recorded(place / "photos/text.png"), status=415)
    refused(thumbnails, *recorded(place / "photos/deep"))
    os.mkfifo(place / "photos/pipe.png")
    refused(thumbnails, *recorded(place / "photos/pipe.png"))
    os.mkdir(place / "photos/folder.png")
    refused(thumbnails, *recorded(place / "photos/folder.png"))
    for name in ("", ".", "/", "\0", "a\0.png", "red.png/", "/dev/stdin", "/proc/self/mem", "\udcff.png"):
        refused(thumbnails, name, 0, 0)
    refused(thumbnails, f"{place}/photos/" + "x" * 5000 + ".png", 0, 0)


def test_a_folder_is_not_left(place):
    photos = place / "photos"
    thumbnails = Thumbnails(str(photos))
    for name in ("red.png", str(photos / "red.png"), "deep/../red.png", f"{photos}/../photos/./red.png"):
        assert colour_of(thumbnails.of(name, -1, -1)) == "red"
    assert colour_of(thumbnails.of("deep/green.jpg", -1, -1)) == "green"
    secret = recorded(place / "secret.png")
    for name in (
        str(place / "secret.png"),
        "../secret.png",
        "deep/../../secret.png",
        f"{photos}/../secret.png",
    ):
        refused(thumbnails, name, *secret[1:])
    (photos / "link.png").symlink_to(place / "secret.png")
    (photos / "up").symlink_to(place)
    (photos / "round.png").symlink_to("round.png")
    for name in ("link.png", "up/secret.png", "up/../secret.png", "round.png"):
        refused(thumbnails, name, *secret[1:])
    # links within the folder are fine
    (photos / "inside.png").symlink_to("deep/green.jpg")
    (photos / "down").symlink_to("deep")
    for name in ("inside.png", "down/green.jpg"):
        assert colour_of(thumbnails.of(name, -1, -1)) == "green"


def test_a_link_made_in_the_meantime_is_not_followed(place, monkeypatch):
    """Between the look at the path and its opening, somebody puts a link in its place."""
    photos = place / "photos"
    thumbnails = Thumbnails(str(photos))
    resolve = os.path.realpath

    def slow(path, **named):
        found = resolve(path, **named)
        if "green" in str(path):
            (photos / "deep/green.jpg").unlink()
            (photos / "deep").rmdir()
            (photos / "deep").symlink_to(place / "elsewhere")
        if "red" in str(path):
            (photos / "red.png").unlink()
            (photos / "red.png").symlink_to(place / "secret.png")
        return found

    (place / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(place / "elsewhere/green.jpg")
    monkeypatch.setattr(os.path, "realpath", slow)
    refused(thumbnails, "deep/green.jpg", -1, -1)
    refused(thumbnails, "red.png", -1, -1)


def test_images_inside_a_file(betons, tmp_path):
    val = str(betons[1])
    record = recorded(val)
    thumbnails, below, elsewhere = (
        Thumbnails(None),
        Thumbnails(str(betons[1].parent)),
        Thumbnails(str(tmp_path)),
    )
    first = thumbnails.of(f"{val}#0", *record[1:])
    assert Image.open(io.BytesIO(first)).format == "JPEG"
    assert first == below.of(f"{val}#0", -1, -1) != thumbnails.of(f"{val}#9", *record[1:])
    refused(thumbnails, f"{val}#9", record[1], 0)
    refused(thumbnails, f"{val}#9999", *record[1:])
    refused(thumbnails, f"{val}#9&dataset=../x", *record[1:])
    refused(elsewhere, f"{val}#0", *record[1:])


def as_parquet(path, images):
    pq.write_table(pa.table({"image": images, "label": [0] * len(images)}), path)
    return recorded(path)


def test_images_that_a_parquet_file_names_are_not_read(place):
    """Whoever makes such a file may name any file of the machine. Images that are in it are shown."""
    photos = place / "photos"
    data = (photos / "red.png").read_bytes()
    paths = ["../secret.png", str(place / "secret.png"), "red.png", "/proc/self/cwd/x.png"]
    for name, images in {
        "paths.parquet": paths,
        "structs.parquet": [{"bytes": None, "path": path} for path in paths],
        "mixed.parquet": [{"bytes": data if i == 3 else None, "path": paths[i]} for i in range(4)],
    }.items():
        name, size, modified = as_parquet(photos / name, images)
        for folder in (None, str(photos), str(place)):
            for i in range(4):
                thumbnails = Thumbnails(folder)
                if "mixed" in name and i == 3:
                    assert colour_of(thumbnails.of(f"{name}#3", size, modified)) == "red"
                else:
                    refused(thumbnails, f"{name}#{i}", size, modified)


def test_other_readers_of_a_file_lead_nowhere_either(place):
    """The flags in a name choose how a file is read; none of them opens another file."""
    photos, rows = place / "photos", f"path,label\n{place}/secret.png,a\n../secret.png,b\n"
    for name in ("list.tar", "list.zip", "list.parquet", "list.beton"):
        (photos / name).write_text(rows)
        name, size, modified = recorded(photos / name)
        for dataset in ("table", "folder", "lmdb", "webdataset", "tar", "zip", "parquet", "image", "beton"):
            for folder in (None, str(photos)):
                refused(Thumbnails(folder), f"{name}#0&dataset={dataset}", size, modified)
                refused(Thumbnails(folder), f"{name}#0&dataset={dataset}&image_column=path", size, modified)


def packed(path, *images):
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(images):
            tar.add(image, f"{i}.png")
    return recorded(path)


def test_the_file_in_an_archive_is_that_which_was_checked(place, monkeypatch):
    """A relative name of a container means another file to whoever opens it from the current folder."""
    photos, elsewhere = place / "photos", place / "elsewhere"
    elsewhere.mkdir()
    packed(photos / "x.tar", photos / "red.png")
    packed(elsewhere / "x.tar", place / "secret.png")
    monkeypatch.chdir(elsewhere)
    thumbnails = Thumbnails(str(photos))
    for name in ("x.tar#0", "./x.tar#0", "deep/../x.tar#0", "../photos/x.tar#0"):
        refused(thumbnails, name, -1, -1)
    assert colour_of(thumbnails.of(f"{photos}/x.tar#0", -1, -1)) == "red"
    refused(thumbnails, f"{elsewhere}/x.tar#0", -1, -1)


@pytest.mark.parametrize("kind", ["tar", "parquet", "beton"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_file_put_in_the_place_of_an_archive_is_not_read(place, monkeypatch, kind, in_folder):
    """Between the check and the reading, somebody puts a link in its place, to another file."""
    photos = place / "photos"
    inside, secret = photos / f"x.{kind}", place / f"secret.{kind}"
    for path, image in ((inside, photos / "red.png"), (secret, place / "secret.png")):
        if kind == "tar":
            packed(path, image)
        elif kind == "parquet":
            as_parquet(path, [image.read_bytes()])
        else:
            tree = place / f"tree of {image.stem}"
            (tree / "class").mkdir(parents=True)
            shutil.copy(image, tree / "class")
            write_beton(
                WriterConfig(data_dir=str(tree), write_path=str(path), write_mode="raw", num_workers=1),
                show_progress=False,
            )
    name, size, modified = recorded(inside)
    thumbnails, fstat = Thumbnails(str(photos) if in_folder else None), os.fstat

    def slow(handle):
        found = fstat(handle)
        if not inside.is_symlink() and found.st_ino == inside.stat().st_ino:
            inside.unlink()
            inside.symlink_to(secret)
        return found

    monkeypatch.setattr(os, "fstat", slow)
    assert colour_of(thumbnails.of(f"{name}#0", size, modified)) == "red"
    assert inside.is_symlink()  # so the next one is that link
    refused(thumbnails, f"{name}#0", size + 1, modified)


def test_archives_that_are_open_are_few_and_closed_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    names = [packed(place / f"photos/{i}.tar", place / "photos/red.png") for i in range(20)]
    thumbnails, before = Thumbnails(None), len(os.listdir("/proc/self/fd"))
    for name, size, modified in names:
        assert colour_of(thumbnails.of(f"{name}#0", size, modified)) == "red"
    assert len(os.listdir(tmp_path / "temporary")) == 8
    assert before < len(os.listdir("/proc/self/fd")) <= before + 2 * 8
    del thumbnails
    gc.collect()
    assert not os.listdir(tmp_path / "temporary") and len(os.listdir("/proc/self/fd")) <= before


def test_images_that_a_table_names_are_not_read(place):
    (place / "photos/list.csv").write_text("path,label\n../secret.png,a\nred.png,b\n")
    for folder in (None, str(place / "photos")):
        for i in range(2):
            name, size, modified = recorded(place / "photos/list.csv")
            refused(Thumbnails(folder), f"{name}#{i}", size, modified)


def test_a_missing_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(UserError, match="--images="):
            Thumbnails(str(tmp_path / name))
