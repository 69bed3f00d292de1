"""Images of every kind of source in an index: added once, found again by name, changed, gone, broken."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc.codes import pack_bits
from llc.data.images import load_rgb
from llc.data.reading import AUTO, Reading
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from llc.index import images as module
from llc.index.collection import Collection, container_of, has_vanished
from llc.index.images import add_codes, add_images, codes_of, collect, encoder_for, find_named, open_recorded
from tests.conftest import ROOT
from tests.index.conftest import NUM_BITS
from tests.waiting import seconds

FEW = {"batch_size": 4, "num_workers": 2, "show_progress": False}


def add(index, encoder, data, reading=AUTO, **options):
    return add_images(index, encoder, collect(data, reading), **{**FEW, **options})


# ---- sources


def tree(folder):
    """[(path below the folder, bytes)] of the images in class folders, in the order of a source."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in files]


def as_tar(photos, path):
    with tarfile.open(path, "w") as file:
        for name, data in tree(photos):
            member = tarfile.TarInfo(f"train/{name}")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path, Reading(dataset="tar", split="train")


def as_zip(photos, path):
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in tree(photos):
            file.writestr(name, data)
    return path, Reading()


def as_shards(photos, path):
    path.mkdir()
    for shard in range(3):
        with tarfile.open(path / f"s-{shard}.tar", "w") as file:
            for i, (name, data) in list(enumerate(tree(photos)))[shard::3]:
                for suffix, content in ((name.rpartition(".")[2], data), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{i:03}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return path, Reading()


def as_parquet(photos, path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.mkdir()
    content = tree(photos)
    for part in range(2):
        rows = content[part::2]
        table = pyarrow.table({"photo": [data for _, data in rows], "kind": [name[:4] for name, _ in rows]})
        parquet.write_table(table, path / f"val-{part}.parquet")
    return path, Reading(image_column="photo", label_column="kind")


def as_lmdb(photos, path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for name, data in tree(photos):
            transaction.put(name.encode(), data)
    return path, Reading()


def as_table(photos, path):
    path = path.with_suffix(".csv")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((photos / name, name[:4]) for name, _ in tree(photos))
    return path, Reading()


def as_beton(photos, path, write_mode="jpg"):
    path = path.with_suffix(".beton")
    config = WriterConfig(data_dir=str(photos), write_path=str(path), num_workers=1, write_mode=write_mode)
    write_beton(config, show_progress=False)
    return path, Reading()


SOURCES = {
    "tar": (as_tar, ""),
    "zip": (as_zip, ""),
    "shards": (as_shards, r"s-\d\.tar"),
    "parquet": (as_parquet, r"val-\d\.parquet"),
    "lmdb": (as_lmdb, ""),
    "beton": (as_beton, ""),
    "table": (as_table, None),
    "folder": (lambda photos, path: (photos, Reading()), None),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_images_of_a_source_are_added_once_and_opened_again(kind, photos, encoder, tmp_path):
    make, file = SOURCES[kind]
    data, reading = make(photos, tmp_path / "data")
    index = llc.Index(NUM_BITS)
    found = collect(data, reading)
    count = 12 if kind == "folder" else 10
    assert len(found) == count and len(set(found.files)) == count
    done = add(index, encoder, data, reading)
    assert (done.added, done.there, len(index)) == (count, 0, count)
    pixels = [np.array(load_rgb(found.source.image(i))) for i in range(count)]
    codes = encoder.encode([Image.fromarray(image) for image in pixels]).numpy()
    assert len(np.unique(codes, axis=0)) > 8
    records = index.records(range(count))
    assert records.files == found.files and (index.get(range(count)) == codes).all()
    for name, image in zip(records.files, pixels):
        assert (np.asarray(open_recorded(name)) == image).all()
        path, mark, _ = name.partition("#")
        if file is None:
            assert not mark and os.path.isabs(path) and os.path.isfile(path)
        elif file:
            assert re.fullmatch(file, os.path.basename(path)) and mark
        else:
            assert path == str(data) and mark
    status = os.stat(records.files[0].partition("#")[0])
    if kind != "lmdb":  # whose path is a folder
        assert (records.sizes[0], records.modified[0]) == (status.st_size, status.st_mtime_ns)
    assert index.class_names == (("0", "1") if kind == "shards" else ("ants", "bees"))
    assert sorted(set(records.labels)) == ([-1, 0, 1] if kind == "folder" else [0, 1])

    again = add(index, encoder, data, reading)
    assert (again.added, again.changed, again.there) == (0, 0, count)
    assert not again.missing and len(index) == count


def test_codes_of_a_beton_are_those_of_its_validation(photos, encoder, tmp_path, model):
    """The index decodes betons image by image, llc.encode by the native loader."""
    from llc import encode

    for write_mode in ("jpg", "raw"):
        data, _ = as_beton(photos, tmp_path / write_mode, write_mode)
        encode.main([str(model), f"--data={data}", f"--out={tmp_path / 'codes.npz'}"])
        index = llc.Index(NUM_BITS)
        add(index, encoder, data)
        assert (np.load(tmp_path / "codes.npz")["codes"] == index.get(index.ids)).all()


def test_a_folder_of_folders_may_hold_empty_ones_and_images_beside(tmp_path, photos):
    (photos / "empty").mkdir()
    assert len(collect(photos)) == 12
    for path in photos.glob("*/*"):
        path.unlink()
    assert len(collect(photos)) == 2
    for path in photos.glob("*.*"):
        path.unlink()
    with pytest.raises(UserError, match="holds no images"):
        collect(photos)


def test_names_of_any_kind_are_recorded_and_opened(tmp_path, encoder):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [
        "two\nlines.png",
        "\u732b \U0001f600.png",
        os.fsdecode(b"\xff\xfe.png"),
        "a#3.png",
        "b#3&c=d.png",
    ]
    for i, name in enumerate(names):
        Image.new("RGB", (9, 8), (40 * i, 0, 0)).save(folder / "x.png")
        (folder / "x.png").rename(folder / name)
    index = llc.Index(NUM_BITS)
    add(index, encoder, folder)
    index.save(tmp_path / "x.index")
    index = llc.Index.open(tmp_path / "x.index")
    files = [str(folder / name) for name in names]
    assert sorted(index.records(index.ids).files) == sorted(files)
    for i, file in enumerate(files):
        assert open_recorded(file).getpixel((0, 0)) == (40 * i, 0, 0)
    # a file that is called like an image inside another file
    (folder / "a#3.png").rename(folder / "a.png#3")
    assert open_recorded(str(folder / "a.png#3")).getpixel((0, 0)) == (120, 0, 0)


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "has no file name"),
        ("/nowhere/x.jpg", "No such file"),
        ("/nowhere/x.beton#3", "its file is not there"),
        ("{beton}#10", "holds 10 images"),
        ("{beton}#3&split=sideways", "split = .sideways.: expected one of train, val"),
        ("{beton}#3&color=red", "color is not a key"),
        ("{photos}#0&dataset=CIFAR10", "are not opened by their names"),
        ("{photos}#0&dataset=fashion-mnist", "are not opened by their names"),
        ("{photos}#0&dataset=FashionMNIST&split=train", "are not opened by their names"),
        ("/etc/passwd", "is a text file"),
    ],
)
def test_names_that_lead_to_no_image_are_errors_that_say_so(name, message, photos, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "create_connection", None)
    beton, _ = as_beton(photos, tmp_path / "data") if "beton}" in name else (None, None)
    with pytest.raises(UserError, match=message):
        open_recorded(name.format(beton=beton, photos=photos))


# ---- what changes


def test_changed_files_get_new_codes_and_keep_their_ids(photos, encoder, monkeypatch):
    monkeypatch.setattr(llc.Index, "remove", None)  # no row may be missing, not even for a moment
    index = llc.Index(NUM_BITS)
    add(index, encoder, photos)
    before = dict(zip(index.records(index.ids).files, index.ids.tolist()))
    changed, same = str(photos / "bees" / "1.jpg"), str(photos / "10.jpg")
    old = index.get([before[changed], before[same]])
    Image.new("RGB", (50, 50), "orange").save(changed)
    os.utime(same, ns=(5, 5))  # touched: the same picture
    Image.new("RGB", (50, 50), "blue").save(photos / "ants" / "new.png")
    done = add(index, encoder, photos)
    assert (done.added, done.changed, done.there) == (1, 2, 10)
    records = index.records([before[changed], before[same]])
    assert records.files == [changed, same] and records.modified[1] == 5
    new = index.get([before[changed], before[same]])
    assert (new[0] != old[0]).any() and (new[1] == old[1]).all()
    assert (new[:1] == encoder.encode(changed).numpy()).all()
    assert len(index) == 13 and str(photos / "ants" / "new.png") == index.records([12]).files[0]


def test_a_new_label_of_the_same_image_is_taken_over(photos, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(llc.Index, "remove", None)  # no row may be missing, not even for a moment
    data, _ = as_table(photos, tmp_path / "data")
    index = llc.Index(NUM_BITS)
    add(index, encoder, data)
    codes, ids = index.get(range(10)), index.ids
    data.write_text(data.read_text().replace("0.png,ants", "0.png,moth"))
    done = add(index, encoder, data)
    assert (done.relabelled, done.there, done.added, done.changed) == (1, 10, 0, 0)
    assert index.class_names == ("ants", "bees", "moth")
    records = index.records(range(10))
    assert (index.ids == ids).all() and (index.get(range(10)) == codes).all()
    moths = np.flatnonzero(records.labels == 2)
    assert [os.path.basename(records.files[i]) for i in moths] == ["0.png"]


def test_files_that_are_gone_are_named_and_removed_when_asked(photos, encoder, tmp_path):
    other = tmp_path / "photos2"  # its name begins with the other's
    other.mkdir()
    (photos / "10.jpg").rename(other / "10.jpg")
    beton, _ = as_beton(photos, photos / "ants" / "data")
    index = llc.Index(NUM_BITS)
    for data in (photos, other, beton):
        add(index, encoder, data)
    assert len(index) == 11 + 1 + 10
    (other / "10.jpg").unlink()
    gone = str(photos / "bees" / "3.png")
    os.unlink(gone)
    done = add(index, encoder, photos)
    assert done.missing == [gone] and not done.removed and len(index) == 22
    done = add(index, encoder, photos, remove_missing=True)
    assert done.missing == [gone] and done.removed and len(index) == 21
    assert find_named(index, [gone])[0] == -1
    assert (find_named(index, [str(other / "10.jpg"), f"{beton}#0"]) >= 0).all()
    beton.unlink()
    done = add(index, encoder, photos, remove_missing=True)
    assert len(done.missing) == 10 and len(index) == 11  # the beton was below this folder


def test_samples_that_a_file_has_no_more_are_gone(photos, encoder, tmp_path):
    beton, _ = as_beton(photos, tmp_path / "data")
    index = llc.Index(NUM_BITS)
    add(index, encoder, beton)
    (photos / "bees" / "1.jpg").unlink()
    beton.unlink()
    Path(f"{beton}.json").unlink()
    as_beton(photos, tmp_path / "data")
    done = add(index, encoder, beton, remove_missing=True)
    assert done.missing == [f"{beton}#9"] and done.changed == 9 and len(index) == 9


def slow_missing(index, images):
    """The names of rows whose images are gone, by asking the disk about each of them."""
    below = os.path.join(images.root, "")
    gone = []
    for name in index.records(index.ids).files:
        path, suffix = container_of(name)
        of_this = path in images.containers and path != name and suffix == images.suffix
        if (
            name
            and name not in images.files
            and (of_this or name.startswith(below) and path.startswith(below) and has_vanished(path))
        ):
            gone.append(name)
    return gone


@pytest.mark.parametrize("containers", [(), ("a.tar", "d/b.tar", "gone.tar")])
@pytest.mark.parametrize("suffix", ["", "&split=train"])
def test_what_is_gone_is_what_asking_about_each_name_finds(containers, suffix, tmp_path):
    root = tmp_path / "root"
    (root / "d" / "e#4").mkdir(parents=True)
    real = [
        "a.tar",
        "d/b.tar",
        "c",
        "c#3",
        "d/b.tar#1",
        "x#1.png",
        "y.png",
        "d/e#4/z.png",
        "#5",
        "w&split=train",
    ]
    for name in real:
        (root / name).write_text("")
    (tmp_path / "a.tar").write_text("")
    names = [
        *real,
        "y2.png",
        "x#2.png",
        "d/e#4/z2.png",
        "d/e#4/z.png#1",
        "gone.png",
        "e#5/z.png",
        "z&q=1",
        "",
    ]
    for holder in ("a.tar", "d/b.tar", "gone.tar", "c", "gone", "d/e#4/z.png", "x", "", "c#3", "d"):
        for place in (
            "0",
            "1",
            "3",
            "007",
            "1" * 18,
            "1" * 19,
            "",
            "1&",
            "1 ",
            "-1",
            "1&a=b/c",
            "1&A=b",
            "1\n",
        ):
            names += [f"{holder}#{place}", f"{holder}#{place}&split=train", f"{holder}#{place}&split=val&q="]
    names = sorted({str(folder / name) for folder in (root, tmp_path, tmp_path / "root2") for name in names})
    names += ["", "relative#1", str(root)]
    images = Collection(
        source=None,
        files=[name for i, name in enumerate(names) if i % 7 == 0],
        sizes=None,
        modified=None,
        root=str(root),
        containers=tuple(str(root / name) for name in containers),
        suffix=suffix,
    )
    index = llc.Index(8)
    index.add(np.zeros((len(names), 1), np.uint8), files=names)
    known = find_named(index, images.files)
    found, ids = module._missing(index, images, known[known >= 0])
    expected = slow_missing(index, images)
    assert found == expected and 30 < len(expected) < len(names) // 2
    assert index.records(ids).files == found


def test_a_container_with_many_images_is_looked_at_once(tmp_path, monkeypatch):
    for name in ("here.tar", "other.tar"):
        (tmp_path / name).write_text("")
    paths = [str(tmp_path / name) for name in ("here.tar", "other.tar", "gone.tar")]
    names = [f"{path}#{i}" for path in paths for i in range(500)]
    index = llc.Index(8)
    index.add(np.zeros((1500, 1), np.uint8), files=names)
    asked = []
    for owner, name in ((module, "has_vanished"), (module, "container_of"), (os, "listdir"), (os, "lstat")):
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda path, whole=whole: asked.append(path) or whole(path))
    images = Collection(None, names[:400], None, None, str(tmp_path), (paths[0],))
    found, _ = module._missing(index, images, np.arange(400))
    assert found == [*names[400:500], *names[1000:]] and 0 < len(asked) < 20
    asked.clear()
    images = Collection(None, names, None, None, str(tmp_path), tuple(paths))
    assert module._missing(index, images, np.arange(1500))[0] == [] and not asked


# ---- what is broken


def test_a_broken_image_is_named_and_what_came_before_is_kept(photos, encoder, tmp_path):
    index = llc.Index(NUM_BITS)
    index.save(tmp_path / "x.index")
    broken = photos / "bees" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=r"bees/5\.jpg: .*--skip_broken"):
        add(index, encoder, photos, batch_size=2)
    kept = len(llc.Index.open(tmp_path / "x.index"))
    assert 0 < kept < 12 and len(index) == kept
    (photos / "11.jpg").write_text("a text")
    done = add(index, encoder, photos, skip_broken=True)
    assert done.there == kept and done.there + done.added == 10
    (first, why), (second, what) = sorted(done.broken)
    assert (first, second) == (str(photos / "11.jpg"), str(broken)) and "text" in why and what
    assert "former" not in why + what
    assert len(llc.Index.open(tmp_path / "x.index")) == 10


def test_a_changed_file_that_is_broken_now_stays_as_it_was(photos, encoder):
    index = llc.Index(NUM_BITS)
    add(index, encoder, photos)
    before = index.get(index.ids)
    (photos / "11.jpg").write_text("a text")
    done = add(index, encoder, photos, skip_broken=True)
    [(_, why)] = done.broken
    assert why.endswith("; the index keeps the code of its former contents")
    assert (index.get(index.ids) == before).all()


def test_z_that_is_not_finite_is_an_error_that_names_the_image(photos, encoder):
    class Failing(llc.Encoder):
        """NaN for images that are mostly red."""

        def forward(self, images):
            z = super().forward(images)
            red = images[:, 0].float().mean((1, 2)) > 250
            z[red, 3] = float("nan")
            return z

    failing = Failing(encoder.network, encoder.preprocessing)
    Image.new("RGB", (40, 40), "red").save(photos / "red.png")
    index = llc.Index(NUM_BITS)
    with pytest.raises(UserError, match=r"NaN or infinite .*red\.png.*--skip_broken"):
        add(index, failing, photos)
    done = add(index, failing, photos, skip_broken=True)
    assert done.broken == [(str(photos / "red.png"), "z is NaN or infinite")] and len(index) == 12
    with pytest.raises(UserError, match="none of the 1 images"):
        add(llc.Index(NUM_BITS), failing, photos / "red.png", skip_broken=True)


def test_a_kill_loses_little_and_a_second_run_goes_on(encoder, model, tmp_path):
    folder, rng = tmp_path / "many", np.random.default_rng(0)
    folder.mkdir()
    for i in range(150):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(folder / f"{i:03}.png")
    path = tmp_path / "x.index"
    index = llc.Index(NUM_BITS)
    index.set_model(encoder)
    index.save(path)
    script = (
        "import sys, time\n"
        "from llc.index import images, __main__ as command\n"
        "images.SAVE_SECONDS = 0\n"
        "save = images._Writer.save\n"
        "def slow(*words, **named):\n"
        "    save(*words, **named)\n"
        "    time.sleep(0.05)\n"
        "images._Writer.save = slow\n"
        "command.main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", script, "add", path, folder, "--batch_size=4", "--num_workers=1"]
    for least in (20, 60):
        process = subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + seconds(120)
        while len(llc.Index.open(path)) < least and time.monotonic() < limit:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = len(llc.Index.open(path))
        assert least <= done < 150
    with llc.Index.open(path, write=True) as index:
        last = add(index, encoder, folder)
    assert last.there == done and last.added == 150 - done
    whole = llc.Index(NUM_BITS)
    add(whole, encoder, folder)
    index = llc.Index.open(path)
    assert (index.ids == whole.ids).all() and (index.get(index.ids) == whole.get(whole.ids)).all()
    assert index.records(index.ids).files == whole.records(whole.ids).files


def interrupted_at(number, function, functions):
    """Runs a function, with Ctrl-C before a line, by its number among those of `functions` -> whether so."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code not in functions:
            return None
        if event == "line":
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_ctrl_c_at_any_line_loses_nothing_and_adds_nothing_twice(photos, tmp_path):
    images = collect(photos)
    codes = np.arange(60, dtype=np.uint8).reshape(12, 5)
    lines = {
        function.__code__
        for function in (module._Writer.save, module._Writer._put, module._add_rows, llc.Index.save)
    } | {llc.Index.add.__code__, llc.Index.replace.__code__}
    number, stopped = 0, True
    while stopped:
        number += 1
        index = llc.Index(NUM_BITS)
        index.add(np.full((6, 5), 255, np.uint8), files=images.files[:6])
        index.save(tmp_path / f"{number}.index")
        writer = module._Writer(index, images, module.Added(12))
        writer.take(np.arange(2, 9), np.array([2, 3, 4, 5, -1, -1, -1]), codes[2:9])
        writer.take(np.array([9, 0]), np.array([-1, 0]), codes[[9, 0]])
        stopped = interrupted_at(number, writer.save, lines)
        writer.save()
        for one in (index, llc.Index.open(tmp_path / f"{number}.index")):
            assert one.ids.tolist() == list(range(10))
            assert one.records(one.ids).files == images.files[:10]
            expected = codes[:10].copy()
            expected[1] = 255
            assert (one.get(one.ids) == expected).all()
    assert number > 40


def test_the_first_error_is_not_hidden_by_one_while_saving(photos, encoder, tmp_path, monkeypatch):
    broken = photos / "bees" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:300])

    def full(self, path=None):
        raise UserError("the disk is full")

    index = llc.Index(NUM_BITS)
    index.save(tmp_path / "x.index")
    monkeypatch.setattr(llc.Index, "save", full)
    with pytest.raises(
        UserError, match=r"bees/5\.jpg: .*--skip_broken.*; what .*not be saved: the disk is full"
    ):
        add(index, encoder, photos, batch_size=2)
    with pytest.raises(UserError, match="^the disk is full$"):
        add(index, encoder, photos, skip_broken=True)

    def interrupted(*_, **__):
        yield 0, np.zeros((2, 5), np.uint8), {}
        raise KeyboardInterrupt

    monkeypatch.undo()
    index = llc.Index(NUM_BITS)
    index.save(tmp_path / "y.index")
    monkeypatch.setattr(llc.Index, "save", full)
    monkeypatch.setattr(module, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(index, encoder, photos)
    assert len(index) == 2


# ---- the model


def test_another_model_is_refused_by_name(photos, encoder, model, tmp_path):
    index = llc.Index(NUM_BITS)
    with pytest.raises(UserError, match="the index keeps no model: give --model="):
        encoder_for(index)
    add(index, encoder_for(index, str(model)), photos)
    index.save(tmp_path / "x.index")
    index = llc.Index.open(tmp_path / "x.index")
    assert encoder_for(index).num_bits == NUM_BITS
    assert (codes_of(encoder_for(index), collect(photos), batch_size=5) == index.get(index.ids)).all()
    with pytest.raises(UserError, match="--num_bits=8: for --model=MODEL alone"):
        encoder_for(index, num_bits=8)
    encoder.first_bits(8).save(tmp_path / "short.safetensors")
    with pytest.raises(
        UserError, match="short.safetensors makes codes of 8 bits, and those of .*x.index have 40"
    ):
        encoder_for(index, str(tmp_path / "short.safetensors"))
    network = llc.load(model).network
    with torch.no_grad():
        network.projection.weight[0] *= -1
    llc.Encoder(network, encoder.preprocessing).save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="--model=.*other.safetensors: .*were made by another model"):
        encoder_for(index, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="another model"):
        add(index, llc.load(tmp_path / "other.safetensors"), photos)
    short = llc.Index(8)
    with pytest.raises(UserError, match="have 8; --num_bits=8 takes the first"):
        encoder_for(short, str(model))
    add(short, encoder_for(short, str(model), num_bits=8), photos)
    assert (short.get(short.ids)[:, 0] == index.get(index.ids)[:, 0]).all()


# ---- codes


def codes_file(path, codes, num_bits, **arrays):
    np.savez(path, codes=codes, num_bits=num_bits, **arrays)
    return path


def test_codes_of_a_file_are_added_once(tmp_path, monkeypatch):
    monkeypatch.setattr(llc.Index, "remove", None)  # no row may be missing, not even for a moment
    rng = np.random.default_rng(1)
    codes = pack_bits(rng.normal(size=(6, 12)))
    names = np.array(["a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg", "b/4.jpg", "a/1.jpg"])
    arrays = {"labels": [0, 0, 1, 1, -1, 0], "class_names": np.array(["a", "b"]), "files": names}
    path = codes_file(tmp_path / "codes.npz", codes, 12, **arrays)
    index = llc.Index(12)
    done = add_codes(index, path)
    assert (done.added, done.repeated) == (5, 1) and index.class_names == ("a", "b")
    assert index.records(range(5)).labels.tolist() == [0, 0, 1, 1, -1]
    assert index.records([2]).files == ["b/2.jpg"] and (index.get(range(5)) == codes[:5]).all()
    assert add_codes(index, path).there == 5 and len(index) == 5
    codes[3] ^= 128
    done = add_codes(index, codes_file(path, codes, 12, **arrays))
    assert (done.changed, done.there) == (1, 4) and (index.get([3]) == codes[3]).all()
    done = add_codes(index, path, str(tmp_path))
    assert done.added == 5 and index.records([5]).files == [str(tmp_path / "a/0.jpg")]


def test_codes_with_ids_of_their_own(tmp_path):
    codes = pack_bits(np.random.default_rng(1).normal(size=(3, 12)))
    ids = np.array([5, (1 << 60) + 1, 2])
    index = llc.Index(12)
    assert add_codes(index, codes_file(tmp_path / "codes.npz", codes, 12, ids=ids)).added == 3
    assert index.ids.tolist() == sorted(ids.tolist()) and (index.get(ids) == codes).all()
    with pytest.raises(UserError, match="codes.npz: ids: 3 are in the index already"):
        add_codes(index, tmp_path / "codes.npz")


@pytest.mark.parametrize(
    "arrays, num_bits, root, message",
    [
        ({}, 11, "", "its codes have 11 bits, the index's 12"),
        ({"ids": np.array([-1, 2, 3])}, 12, "", "codes.npz: ids"),
        ({"ids": np.array(["1", "2", "3"])}, 12, "", "codes.npz: ids"),
        ({"files": np.array(["a"])}, 12, "", "expected 3 texts"),
        ({"labels": [0, 1, 2], "class_names": np.array(["a", "b", "c"])}, 12, "", "cannot be mixed"),
        ({}, 12, "photos", "it names no files"),
    ],
)
def test_codes_that_do_not_fit_add_nothing(arrays, num_bits, root, message, tmp_path):
    codes = pack_bits(np.random.default_rng(1).normal(size=(3, num_bits)))
    index = llc.Index(12)
    index.add(codes[:1] & 0xF0, labels=[7])
    with pytest.raises(UserError, match=message):
        add_codes(index, codes_file(tmp_path / "codes.npz", codes, num_bits, **arrays), root)
    assert len(index) == 1


def test_a_source_whose_classes_do_not_fit_is_refused_before_it_is_encoded(photos, encoder, monkeypatch):
    index = llc.Index(NUM_BITS)
    index.add(np.zeros((1, 5), np.uint8), labels=[7])
    monkeypatch.setattr(module, "_encoded", None)
    with pytest.raises(UserError, match="photos: .*cannot be mixed"):
        add(index, encoder, photos)
