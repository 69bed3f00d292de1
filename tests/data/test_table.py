"""Tables of images: which images, labels and classes they give, and what is refused by file and line."""

import base64
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from llc.data.images import ImageError, load_rgb
from llc.data.manifest import verify
from llc.data.sources import Columns, SourceError, open_named, open_source, recognise, table
from tests.data.helpers import picture


def png(seed):
    file = io.BytesIO()
    Image.fromarray(picture(seed, 7, 9)).save(file, "PNG")
    return file.getvalue()


def text_of(seed):
    return base64.b64encode(png(seed)).decode()


@pytest.fixture
def folder(tmp_path):
    """Pictures a/0.png to a/5.png."""
    (tmp_path / "a").mkdir()
    for i in range(6):
        (tmp_path / f"a/{i}.png").write_bytes(png(i))
    return tmp_path


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def open_table(path, split="train", **columns):
    return open_named("table", str(path), split, Columns(**columns))


def assert_pictures(source, seeds):
    assert len(source) == len(seeds)
    reader = pickle.loads(pickle.dumps(source.reader))
    for i, (seed, handle) in enumerate(zip(seeds, source.handles(np.arange(len(seeds))))):
        image, name = reader.read(handle)
        assert name == source.name(i)
        assert np.array_equal(load_rgb(image), picture(seed, 7, 9)), i
        assert np.array_equal(load_rgb(source.image(i)), picture(seed, 7, 9)), i


# ---------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", "image,label\na/2.png,cat\na/0.png,ant\na/1.png,cat\n"),
        ("t.CSV", "a/2.png,cat\r\na/0.png,ant\r\na/1.png,cat"),
        ("t.csv", b"\xef\xbb\xbfimage,label\n\na/2.png,cat\n\na/0.png,ant\n  \na/1.png,cat\n\n"),
        ("t.csv", b"\xef\xbb\xbfa/2.png, cat\n a/0.png ,ant\na/1.png,cat\n"),
        ("t.csv", '"label","file_name"\n"cat","a/2.png"\nant,"a/0.png"\ncat,a/1.png\n'),
        ("t.csv", "photo,class\na/2.png,cat\na/0.png,ant\na/1.png,cat\n"),
        ("t.csv", "cat,a/2.png\nant,a/0.png\ncat,a/1.png\n"),
        ("t.tsv", "path\tlabel\na/2.png\tcat\na/0.png\tant\na/1.png\tcat\n"),
        (
            "t.jsonl",
            '{"image": "a/2.png", "label": "cat"}\n\n{"label": "ant", "image": "a/0.png"}\n'
            '{"image": "a/1.png", "label": "cat", "more": [1]}',
        ),
        (
            "t.ndjson",
            b'\xef\xbb\xbf{"img": "a/2.png", "cls": "cat"}\r\n'
            b'{"img": "a/0.png", "cls": "ant"}\r\n{"img": "a/1.png", "cls": "cat"}\r\n',
        ),
    ],
)
def test_formats(name, text, folder):
    path = write(folder, name, text)
    assert recognise(str(path)) == "table"
    for split in ("train", "val"):
        source = open_source("auto", str(path), split=split)
        assert source.class_names == ("ant", "cat") and source.labels.tolist() == [1, 0, 1]
        assert source.labels.dtype == np.int64 and not source.numbered_classes
        assert [source.name(i) for i in range(3)] == ["a/2.png", "a/0.png", "a/1.png"]
        assert_pictures(source, [2, 0, 1])


def test_quoted_fields_with_commas_quotes_and_line_ends(folder):
    odd = folder / 'a/x, "y"\nz.png'
    odd.write_bytes(png(4))
    path = write(folder, "t.csv", 'image,label\n"a/x, ""y""\nz.png","tench, Tinca tinca"\na/1.png,ant\n')
    source = open_table(path)
    assert source.class_names == ("ant", "tench, Tinca tinca") and source.labels.tolist() == [1, 0]
    assert_pictures(source, [4, 1])


def test_absolute_paths_and_names_that_are_not_utf8(folder):
    with open(bytes(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(png(3))
    path = write(folder, "t.csv", b"caf\xe9.png,1\n" + bytes(folder) + b"/a/5.png,0\n")
    assert_pictures(open_table(path), [3, 5])


def test_numbers_as_labels_are_in_order_of_value(folder):
    for text in (
        "a/0.png,10\na/1.png,9\na/2.png,10\n",
        "image,label\na/0.png,10.0\na/1.png,9.0\na/2.png,10\n",
    ):
        source = open_table(write(folder, "t.csv", text))
        assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 0, 1]
        assert source.numbered_classes
    rows = [{"image": f"a/{i}.png", "label": label} for i, label in enumerate([10, 9.0, "10"])]
    source = open_table(write(folder, "t.jsonl", "\n".join(map(json.dumps, rows))))
    assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 0, 1]
    # one name that is no number makes all of them names
    source = open_table(write(folder, "t.csv", "a/0.png,10\na/1.png,9\na/2.png,x\n"))
    assert source.class_names == ("10", "9", "x") and not source.numbered_classes


@pytest.mark.parametrize(
    "name, text, note",
    [
        ("t.csv", "a/0.png\na/1.png\n", "no label column was found"),
        ("t.csv", "image\na/0.png\na/1.png\n", "no label column was found"),
        ("t.csv", "image,width,size\na/0.png,3,4\na/1.png,3,4\n", "other columns: width, size"),
        ("t.csv", "a/0.png,3,4\na/1.png,3,4\n", "other columns: 1, 2"),
        ("t.csv", "image,label\na/0.png,\na/1.png, \n", "every label in column label is missing"),
        ("t.csv", "image,label\na/0.png,-1\na/1.png,-1\n", None),
        ("t.jsonl", '{"image": "a/0.png", "label": null}\n{"image": "a/1.png"}\n', "every label in column"),
    ],
)
def test_images_without_labels(name, text, note, folder):
    source = open_table(write(folder, name, text))
    assert source.class_names == () and source.labels.tolist() == [-1, -1]
    assert note is None or note in source.notes[-1]
    assert_pictures(source, [0, 1])


# ----------------------------------------------------------------------------------- images within the table


def test_bytes_in_a_column_and_data_uris(folder):
    uris = [f"data:image/png;base64,{text_of(i)}" for i in range(3)]
    quoted = "".join(f"%{byte:02x}" for byte in png(3))
    tables = {
        "b.csv": "label,bytes\nx,{}\ny,{}\nx,{}\n".format(*map(text_of, range(3))),
        "u.csv": '"{}",x\n"{}",y\na/2.png,x\n'.format(*uris),
        "u.tsv": "image\tlabel\n{}\tx\n{}\ty\n{}\tx\n".format(*uris),
        "b.jsonl": "".join(json.dumps({"bytes": text_of(i), "label": "xyx"[i]}) + "\n\n" for i in range(3)),
    }
    for name, text in tables.items():
        source = open_table(write(folder, name, text))
        assert source.class_names == ("x", "y") and source.labels.tolist() == [0, 1, 0]
        assert_pictures(source, [0, 1, 2])
    assert source.name(2) == "b.jsonl, line 5"
    source = open_table(write(folder, "q.csv", f'image,label\n"data:image/png,{quoted}",x\n'))
    assert_pictures(source, [3])


def test_large_images_in_base64(tmp_path):
    """Longer than the 128 KB that the csv module takes unasked; wrapped lines in quotes."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    wrapped = base64.encodebytes(file.getvalue()).decode()
    source = open_table(write(tmp_path, "t.csv", f'bytes,label\n"{wrapped}",x\n"{wrapped}",y\n'))
    assert np.array_equal(load_rgb(source.image(1)), pixels) and source.labels.tolist() == [0, 1]


def test_base64_that_is_none_is_an_image_that_cannot_be_read(tmp_path):
    source = open_table(
        write(tmp_path, "t.csv", f"bytes,label\n{text_of(0)},x\n%%%,x\n{text_of(0)[:-1]},x\n")
    )
    assert np.array_equal(load_rgb(source.image(0)), picture(0, 7, 9))
    for i in (1, 2):
        with pytest.raises(ImageError, match=f"t.csv, line {i + 2}: is not an image in Base64"):
            source.image(i)


# ---------------------------------------------------------------------------------------------------- columns


def test_columns_by_name_and_number(folder):
    path = write(folder, "t.csv", "id,photo,kind,size\n0,a/0.png,cat,1\n1,a/1.png,ant,2\n")
    with pytest.raises(SourceError, match="t.csv: none of the first 2 images exists, such as .*/0. Paths"):
        open_table(path)  # `id` is a usual name
    source = open_table(path, image="photo", label="kind")
    assert source.class_names == ("ant", "cat") and source.labels.tolist() == [1, 0]
    assert_pictures(source, [0, 1])
    assert open_table(path, image="1", label="3").class_names == ("1", "2")
    with pytest.raises(SourceError, match="no label column 'kin'; its columns are id, photo, kind, size"):
        open_table(path, image="photo", label="kin")
    path = write(folder, "n.csv", "0,a/0.png,cat,1\n1,a/1.png,ant,2\n")
    source = open_table(path, label="2")
    assert source.class_names == ("ant", "cat")
    assert_pictures(source, [0, 1])


def test_header_can_be_said(folder):
    path = write(folder, "t.csv", "a/0.png,label\na/1.png,ant\n")
    assert open_table(path).class_names == ("ant", "label")
    source = open_table(path, header="yes", image="a/0.png")
    assert source.class_names == ("ant",) and source.name(0) == "a/1.png"
    path = write(folder, "u.csv", "image,label\na/1.png,ant\n")
    source = open_table(path, header="no", image="0", label="1")
    assert source.class_names == ("ant", "label") and source.name(0) == "image"


def test_ids_without_suffix_in_a_folder_called_like_the_table(tmp_path):
    for place in ("train", "images"):
        root = tmp_path / place
        (root / place).mkdir(parents=True)
        for i, suffix in enumerate((".jpg", ".png", ".JPEG")):
            Image.fromarray(np.full((8, 8, 3), 10 + 100 * i, np.uint8)).save(root / place / f"x{i}{suffix}")
        source = open_table(
            write(root, "train.csv", "id_code,diagnosis\nx0,2\nx1,0\nx2,2\n"), label="diagnosis"
        )
        assert source.class_names == ("0", "2") and source.labels.tolist() == [1, 0, 1]
        for i in range(3):
            assert np.array_equal(load_rgb(source.image(i)), np.full((8, 8, 3), 10 + 100 * i))


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "t.csv",
            "image,label\na/0.png,x\na/1.png\n",
            "t.csv, line 3 has 1 fields, but 2 are needed: image, l",
        ),
        (
            "t.csv",
            'image,label\n"a/0\n.png",x\na/1.png,y,z\n',
            "t.csv, line 4 has 3 fields, but 2 are needed",
        ),
        ("t.csv", "image,label\na/0.png,x\na/1.png,\n", "line 3 has no label in column label, while other"),
        ("t.csv", "image,label\na/0.png,x\n,y\n", "line 3 has no image: image is ''"),
        ("t.csv", "image,label\na/0.png,x\na/1.png,y\na/./0.png,y\n", "lists a/./0.png twice: lines 2 and 4"),
        ("t.csv", "image,label\na/0.png,1\na/1.png,-1\n", "line 3 has the label -1, as 1 of 2 images"),
        ("t.csv", 'image,label\n"a/0.png"x,1\n', "t.csv, line 2 cannot be read"),
        ("t.csv", "image,label\n", "holds the names of columns and no images"),
        ("t.csv", "", "t.csv is empty"),
        ("t.csv", "image,label\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("t.csv", "image,img,label\na,b,c\n", "several columns that may be the image: image, img"),
        ("t.csv", "image,label,class\na/0.png,b,c\n", "several columns that may be the label: label, class"),
        ("t.csv", "a,b\nc,d\ne,f\n", "none of the first 3 images exists, such as .*/a. Paths are relative"),
        (
            "t.csv",
            "image,label\nhttps://x.org/a.png,x\n",
            "line 2 gives an address, https://x.org/a.png; down",
        ),
        ("t.jsonl", '{"image": "a/0.png"}\n{"image": \n', "t.jsonl, line 2 is not JSON"),
        ("t.jsonl", '{"image": "a/0.png"}\n["a/1.png"]\n', "t.jsonl, line 2 is not a JSON object"),
        ("t.jsonl", '{"image": "a/0.png"}\n{"img": "a/1.png"}\n', "line 2 has no image: image is None"),
        (
            "t.jsonl",
            '{"image": "a/0.png", "label": [1, 2]}\n',
            r"line 1: label is \[1, 2\]; a label is the name",
        ),
        (
            "t.jsonl",
            '{"photo": "x", "label": 1}\n',
            "which column holds the images is not clear: photo, label",
        ),
    ],
)
def test_tables_that_cannot_be_used(name, text, message, folder):
    with pytest.raises(SourceError, match=message) as caught:
        open_table(write(folder, name, text))
    assert str(folder / name) in str(caught.value)


def test_what_is_a_table(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert not table.looks_like_table(tmp_path / "folder.csv") and not table.looks_like_table("")
    with pytest.raises(SourceError, match="gone.csv does not exist"):
        open_source("auto", str(tmp_path / "gone.csv"))
    with pytest.raises(SourceError, match="is not a table, whose name ends in .csv, .tsv, .jsonl, .ndjson"):
        open_table(tmp_path / "t.txt")


def test_a_missing_file_is_an_image_that_cannot_be_read(folder, write_ffcv):
    path = write(folder, "t.csv", "a/0.png,x\na/gone.png,y\na/1.png,x\n")
    flags = dict(data_dir=path, dataset="table", write_path=folder / "x.beton")
    done = write_ffcv(**flags)
    assert done.returncode == 2 and "a/gone.png: cannot be read as an image: No such file" in done.stderr
    done = write_ffcv(**flags, on_error="skip")
    assert done.returncode == 0 and verify(folder / "x.beton").class_counts == (2, 0)


def test_betons_are_the_same_for_any_number_of_workers(folder, write_ffcv):
    rows = [f"a/{i}.png,{'xyz'[i % 3]}\n" for i in (3, 1, 5, 0)] + [f'"data:;base64,{text_of(9)}",x\n']
    path = write(folder, "t.csv", "".join(rows))
    contents = []
    for workers in (1, 3):
        beton = folder / f"{workers}.beton"
        done = write_ffcv(data_dir=path, dataset="table", write_path=beton, num_workers=workers)
        assert done.returncode == 0, done.stderr
        contents.append(beton.read_bytes())
    assert contents[0] == contents[1] and verify(beton).class_counts == (3, 1, 1)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_csv_with_another_delimiter_is_told(mark, tmp_path):
    (tmp_path / "t.csv").write_text(f"path{mark}label\nimages/a.jpg{mark}1\n")
    with pytest.raises(SourceError, match="Its fields seem to be separated by .*; save it with commas"):
        open_source("auto", str(tmp_path / "t.csv"))
