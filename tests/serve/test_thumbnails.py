"""Thumbnails are of files that the index records, and of nothing else, whatever names and links say."""

import io
import os

import numpy as np
import pytest
from PIL import Image

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
