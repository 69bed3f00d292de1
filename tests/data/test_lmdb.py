"""LMDB databases: image files by key and Caffe's Datum, LSUN's layout, and what is refused."""

import io
import pickle

import lmdb
import numpy as np
import pytest
from PIL import Image

from llc.data.images import ImageError, load_rgb
from llc.data.manifest import verify
from llc.data.sources import SourceError, open_named, open_source, recognise
from llc.data.sources.lmdb import looks_like_lmdb, parse_datum
from llc.errors import UserError
from tests.data.helpers import picture


def png(seed):
    file = io.BytesIO()
    Image.fromarray(picture(seed, 7, 9)).save(file, "PNG")
    return file.getvalue()


def write(path, values, subdir=True):
    """A database of {key: value}."""
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
    return path


def varint(number):
    number %= 1 << 64
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def datum(data=None, label=None, encoded=None, shape=None, extra=b""):
    """A Datum as protocol buffers write it."""
    parts = [b""]
    for field, number in zip((1, 2, 3), shape or ()):
        parts.append(varint(field << 3) + varint(number))
    if data is not None:
        parts.append(varint(4 << 3 | 2) + varint(len(data)) + data)
    if label is not None:
        parts.append(varint(5 << 3) + varint(label))
    if encoded is not None:
        parts.append(varint(7 << 3) + varint(encoded))
    return b"".join(parts) + extra


def open_lmdb(path, split="train"):
    return open_named("lmdb", str(path), split)


def assert_pictures(source, seeds):
    assert len(source) == len(seeds)
    reader = pickle.loads(pickle.dumps(source.reader))
    for i, (seed, handle) in enumerate(zip(seeds, source.handles(np.arange(len(seeds))))):
        image, name = reader.read(handle)
        assert name == source.name(i) and np.array_equal(load_rgb(image), picture(seed, 7, 9))
        assert np.array_equal(load_rgb(source.image(i)), picture(seed, 7, 9))


def test_image_files_without_labels(tmp_path):
    values = {b"%04x" % (97 * i): png(i) for i in range(5)}
    for path in (write(tmp_path / "folder", values), write(tmp_path / "file.lmdb", values, subdir=False)):
        assert recognise(str(path)) == "LMDB"
        source = open_source("auto", str(path))
        assert source.class_names == () and source.labels.tolist() == [-1] * 5
        assert source.name(1) == "0061"
        assert_pictures(source, range(5))


def test_classes_in_keys(tmp_path):
    values = {b"n02/a.JPEG": png(0), b"n01/b.JPEG": png(1), b"n02/sub/c.JPEG": png(2), b"__len__": b"3"}
    source = open_lmdb(write(tmp_path / "db", values))
    assert source.class_names == ("n01", "n02") and source.labels.tolist() == [0, 1, 1]
    assert not source.numbered_classes
    assert_pictures(source, [1, 0, 2])
    values = {b"train/n01/a": png(3), b"train/n02/a": png(4), b"val/n02/a": png(5)}
    path = write(tmp_path / "splits", values)
    assert_pictures(open_lmdb(path), [3, 4])
    source = open_lmdb(path, "val")
    assert source.class_names == ("n02",)
    assert_pictures(source, [5])


def test_lsun_has_a_database_per_class(tmp_path):
    for name, seeds in (
        ("bedroom_train", (1, 2)),
        ("tower_train", (3,)),
        ("tower_val", (4,)),
        ("bedroom_val", ()),
    ):
        write(tmp_path / f"{name}_lmdb", {b"%d" % seed: png(seed) for seed in seeds or (5,)})
    assert recognise(str(tmp_path)) == "LMDB"
    source = open_source("auto", str(tmp_path))
    assert source.class_names == ("bedroom", "tower") and source.labels.tolist() == [0, 0, 1]
    assert source.name(2) == "tower_train_lmdb/3"
    assert_pictures(source, [1, 2, 3])
    assert_pictures(open_source("auto", str(tmp_path), split="val"), [5, 4])


def test_datum_with_image_files_and_with_pixels(tmp_path):
    pixels = picture(1, 7, 9)
    values = {
        b"00000000_n01/a.JPEG": datum(png(0), 10, True),
        b"00000001_n01/b.JPEG": datum(pixels[:, :, ::-1].transpose(2, 0, 1).tobytes(), 9, False, (3, 7, 9)),
        b"00000002_n01/c.JPEG": datum(png(2), 300, 1, (3, 0, 0)),
    }
    source = open_lmdb(write(tmp_path / "ilsvrc12_train_lmdb", values))
    assert source.class_names == ("9", "10", "300") and source.labels.tolist() == [1, 0, 2]
    assert source.numbered_classes
    assert_pictures(source, [0, 1, 2])
    grey = {b"0": datum(bytes(range(6)), 0, None, (1, 2, 3))}
    source = open_lmdb(write(tmp_path / "mnist_train_lmdb", grey))
    assert load_rgb(source.image(0))[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_caffes_train_and_val_beside_each_other(tmp_path):
    write(tmp_path / "ilsvrc12_train_lmdb", {b"0": datum(png(0), 0, True)})
    write(tmp_path / "ilsvrc12_val_lmdb", {b"0": datum(png(1), 0, True)})
    assert_pictures(open_source("auto", str(tmp_path)), [0])
    assert_pictures(open_source("auto", str(tmp_path), split="val"), [1])


def test_labels_that_datum_leaves_out(tmp_path):
    source = open_lmdb(write(tmp_path / "none", {b"0": datum(png(0), None, 1), b"1": datum(png(1), None, 1)}))
    assert source.class_names == () and source.labels.tolist() == [-1, -1]
    source = open_lmdb(write(tmp_path / "some", {b"0": datum(png(0), None, 1), b"1": datum(png(1), 3, 1)}))
    assert source.class_names == ("0", "3") and source.labels.tolist() == [0, 1]
    with pytest.raises(SourceError, match="neg: 1 has the label -2"):
        open_lmdb(write(tmp_path / "neg", {b"0": datum(png(0), 0, 1), b"1": datum(png(1), -2, 1)}))


def test_datum_message():
    found = parse_datum(datum(b"abc", -5, True, (3, 4, 500)))
    assert bytes(found.pop("data")) == b"abc"
    assert found == {"channels": 3, "height": 4, "width": 500, "label": -5, "encoded": 1}
    assert parse_datum(datum(extra=b"\x35\0\0\0\0" + b"\x32\x04\0\0\0\0")) == {"float_data": True}
    whole = datum(b"abcdef", 300, True, (3, 4, 500))
    for wrong in (whole[:-1], whole[:12], b"\xff" * 20, b"\x0b\0", b"\x60\1", b"\x20\1"):
        with pytest.raises(ValueError):
            parse_datum(wrong)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {b"0": pickle.dumps((b"jpeg", 3), 4), b"__len__": b"x"},
            "key 0: the value is a pickled Python object",
        ),
        ({b"0": b"\x92\xc4\x02ab\x03"}, "unknown kind. Image files .* .by pickle, pyarrow"),
        ({b"0": datum(extra=b"\x35\0\0\0\0")}, "a Datum of floating-point pixels"),
        ({b"0": datum(b"123456", 1, False, (1, 2, 2))}, "of an unknown kind"),
        ({b"0": datum(png(0), 1, 1), b"1": png(1)}, "key 1 is not a Datum, as others are"),
        ({b"a/0": png(0), b"b": png(1)}, "the key b names no class; others do: CLASS/NAME"),
        ({b"__keys__": b"x"}, "is an empty database"),
    ],
)
def test_databases_that_cannot_be_used(values, message, tmp_path):
    path = write(tmp_path / "db", values)
    with pytest.raises(SourceError, match=message) as caught:
        open_lmdb(path)
    assert str(path) in str(caught.value)


def test_places_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="gone.lmdb does not exist"):
        open_source("auto", str(tmp_path / "gone.lmdb"))
    with pytest.raises(SourceError, match="holds no LMDB database"):
        open_lmdb(tmp_path)
    assert not looks_like_lmdb(tmp_path) and not looks_like_lmdb("")
    for name in ("a", "b"):
        write(tmp_path / f"{name}.lmdb", {b"0": png(0)})
    with pytest.raises(SourceError, match="holds several databases: a.lmdb, b.lmdb; give the one"):
        open_lmdb(tmp_path)
    (tmp_path / "text.lmdb").write_text("hello " * 2000)
    with pytest.raises(SourceError, match="text.lmdb is not an LMDB database"):
        open_lmdb(tmp_path / "text.lmdb")
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(UserError, match=r"databases needs lmdb, .*pip install 'llcodes\[lmdb\]'"):
        open_lmdb(tmp_path / "a.lmdb")


def test_a_database_that_is_cut_off(tmp_path):
    path = write(tmp_path / "db", {b"%d" % i: png(i) * 30 for i in range(20)})
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="data.mdb is not complete: .* bytes; copy it again"):
        open_lmdb(path)


def test_broken_images_are_named(tmp_path):
    values = {
        b"0": datum(png(0), 0, 1),
        b"1": datum(bytes(7), 0, 0, (2, 2, 2)),
        b"2": datum(bytes(8), 0, 0, (2, 2, 2)),
    }
    source = open_lmdb(write(tmp_path / "db", values))
    with pytest.raises(ImageError, match="1: is a Datum that has 7 bytes for 2 x 2 x 2 pixels"):
        source.image(1)
    with pytest.raises(ImageError, match="2: is a Datum that has 2 channels; 1 and 3 are known"):
        source.image(2)


def test_a_beton_of_a_database(write_ffcv, tmp_path):
    values = {b"%s/%d" % (b"xyz"[i % 3 : i % 3 + 1], i): png(i) for i in range(9)}
    values[b"x/9"] = b"\x89PNG broken"
    path = write(tmp_path / "db", values)
    flags = dict(data_dir=path, dataset="lmdb")
    done = write_ffcv(**flags, write_path=tmp_path / "0.beton")
    assert done.returncode == 2 and "x/9: " in done.stderr
    contents = []
    for workers in (1, 3):
        beton = tmp_path / f"{workers}.beton"
        done = write_ffcv(**flags, write_path=beton, num_workers=workers, on_error="skip")
        assert done.returncode == 0, done.stderr
        contents.append(beton.read_bytes())
    assert contents[0] == contents[1]
    assert verify(beton).class_names == ("x", "y", "z") and verify(beton).class_counts == (3, 3, 3)
