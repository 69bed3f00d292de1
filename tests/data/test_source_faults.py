"""Faults while a source is read: of one image, of the whole source, of the machine."""

import base64
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llc.data.image_errors import ImageError, MachineError, read_from
from llc.data.manifest import verify
from llc.data.sources import IndexedDataset, Source, SourceError, open_source
from llc.data.sources.joined import join
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from tests.data.helpers import REPOSITORY, picture
from tests.waiting import seconds

NUM = 12


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------------- a file that changes meanwhile


def tar(path, first):
    with tarfile.open(path, "w") as archive:
        for i in range(first, first + NUM):
            member = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png")
            member.size = len(png(i))
            archive.addfile(member, io.BytesIO(png(i)))


def zip_(path, first):
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(first, first + NUM):
            archive.writestr(f"{'ab'[i % 2]}/{i}.png", png(i))


def parquet(path, first):
    numbers = range(first, first + NUM)
    table = pa.table(
        {"image": [{"bytes": png(i), "path": ""} for i in numbers], "label": [0, 1] * (NUM // 2)}
    )
    pq.write_table(table, path, row_group_size=3)


def lmdb_(path, first):
    with lmdb.open(str(path), subdir=False, map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            for i in range(first, first + NUM):
                transaction.put(f"{'ab'[i % 2]}/{i}".encode(), png(i))


WRITERS = {"tar": tar, "zip": zip_, "parquet": parquet, "lmdb": lmdb_}


def config(tmp_path, **settings):
    return WriterConfig(write_path=str(tmp_path / "o.beton"), write_mode="raw", num_workers=2, **settings)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("how", ["cut off", "written again", "removed"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_that_changes_during_the_conversion_ends_it(kind, how, on_error, tmp_path):
    path = tmp_path / f"x.{kind}"
    WRITERS[kind](path, 0)
    source = open_source(kind, str(path))
    if how == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "removed":
        path.unlink()
    else:
        WRITERS[kind](tmp_path / "new", 100)
        os.replace(tmp_path / "new", path)
    message = (
        "cannot be read: No such file" if how == "removed" else "has changed since its content was listed"
    )
    with pytest.raises(UserError, match=rf"x.{kind} {message}.*; nothing was written") as caught:
        write_beton(config(tmp_path, on_error=on_error), source, show_progress=False)
    assert not isinstance(caught.value, ImageError) and "Traceback" not in str(caught.value)
    assert not (tmp_path / "o.beton").exists()


def test_a_zip_that_is_cut_off_while_it_is_open_is_no_broken_image(tmp_path):
    zip_(tmp_path / "x.zip", 0)
    source = open_source("zip", str(tmp_path / "x.zip"))
    source.image(0)
    os.truncate(tmp_path / "x.zip", 500)
    with pytest.raises(SourceError, match="x.zip has changed"):
        source.image(NUM - 1)


def test_a_source_that_fails_ends_the_command_without_a_traceback(tmp_path):
    tar(tmp_path / "x.tar", 0)
    script = (
        "import os, sys; from llc import config; from llc.data.sources import open_source\n"
        "from llc.data.writer import WriterConfig, write_beton\n"
        "def main(argv):\n"
        "    source = open_source('tar', 'x.tar')\n"
        "    os.truncate('x.tar', 5000)\n"
        "    write_beton(WriterConfig(write_path='o.beton'), source)\n"
        "config.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=seconds(60),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: x.tar has changed since its content was listed" in done.stderr


# ------------------------------------------------------------------------------------- errors of the system


@dataclass(frozen=True)
class Failing(Source):
    """Grey pictures, of which the third raises `error`."""

    error: Exception

    def image(self, i):
        if i == 2:
            raise self.error
        return Image.new("L", (9, 8), 50 + int(i))

    def name(self, i):
        return f"grey {i}"


def failing(error):
    return Failing(("grey",), np.zeros(6, np.int64), error)


MACHINE = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ConnectionResetError("the other side is gone"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_a_fault_of_the_machine_while_a_source_is_read_is_no_fault_of_the_target(error, tmp_path):
    with pytest.raises(UserError, match="grey 2: the machine .*; nothing was written") as caught:
        write_beton(config(tmp_path, on_error="skip"), failing(error), show_progress=False)
    assert "cannot be written" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file"), OSError("odd"), EOFError()]
)
def test_a_fault_of_one_image_leaves_that_image_out(error, tmp_path):
    write_beton(config(tmp_path, on_error="skip"), failing(error), show_progress=False)
    manifest = verify(tmp_path / "o.beton")
    assert manifest.num_samples == 5 and [skipped.name for skipped in manifest.skipped] == ["grey 2"]
    assert manifest.skipped[0].reason.startswith("cannot be read: ")


def test_joined_sources_name_the_root_of_a_fault():
    roots = ["x", "y"]
    for error, kind in ((MACHINE[0], MachineError), (FileNotFoundError(errno.ENOENT, "No"), ImageError)):
        source = join(roots, [failing(ZeroDivisionError()), failing(error)])
        with pytest.raises(kind, match="^y/grey 2: "):
            read_from(source.reader, source.handles(np.array([8]))[0])


class Items:
    def __init__(self, error):
        self.error = error

    def __getitem__(self, i):
        raise self.error


def test_an_indexed_dataset_tells_the_machine_from_the_image():
    for error in MACHINE:
        with pytest.raises(MachineError, match=r"D\[0\]: the machine"):
            IndexedDataset((), np.zeros(1, np.int64), "D", Items(error)).image(0)
    with pytest.raises(ImageError, match=r"D\[0\]: cannot be read: no such key"):
        IndexedDataset((), np.zeros(1, np.int64), "D", Items(ValueError("no such key"))).image(0)


@pytest.mark.parametrize("kind, where", [("parquet", "_Rows.row"), ("lmdb", "ENVIRONMENTS.open")])
def test_faults_of_the_machine_under_a_large_library(kind, where, tmp_path, monkeypatch):
    path = tmp_path / f"x.{kind}"
    WRITERS[kind](path, 0)
    source = open_source(kind, str(path))
    error = OSError(errno.EIO, "Input/output error")
    if kind == "lmdb":
        error = lmdb.Error("mdb_get: Input/output error")
        error.code = errno.EIO

    def fail(*_):
        raise error

    monkeypatch.setattr(f"llc.data.sources.{kind}.{where}", fail)
    with pytest.raises(MachineError, match="the machine could not read it: Input/output error"):
        source.image(0)
    error = OSError(errno.EACCES, "Permission denied")  # of the file, and so of all its images
    with pytest.raises(ImageError if kind == "lmdb" else SourceError, match="Permission denied"):
        read_from(source.reader, source.handles(np.array([0]))[0])


@pytest.mark.parametrize("number, kind", [(errno.EIO, MachineError), (errno.ENOENT, SourceError)])
def test_faults_while_a_table_is_read_are_not_an_images(number, kind, tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    data = base64.b64encode(png(0)).decode()
    path.write_text(json.dumps({"image": f"data:image/png;base64,{data}", "label": 0}) + "\n")
    source = open_source("auto", str(path))
    source.image(0)

    def fail(*_):
        raise OSError(number, "what the system says")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(kind, match="x.jsonl.* read.*what the system says"):
        source.image(0)
