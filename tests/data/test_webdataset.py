"""WebDataset shards: keys, samples, labels and class names as the format defines them; patterns of names."""

import gzip
import io
import json
import lzma
import subprocess

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from llc.data.images import load_rgb
from llc.data.manifest import verify
from llc.data.sources import Columns, SourceError, open_named, open_source, recognise
from llc.data.sources.patterns import expand, expand_braces
from tests.data.helpers import picture
from tests.data.test_archives import write_tar


def encoded(seed, kind="JPEG"):
    file = io.BytesIO()
    Image.fromarray(picture(seed, 20, 30)).save(file, kind)
    return file.getvalue()


def shard(path, *samples):
    """samples: dicts of extension -> bytes or text, with their key under ""."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for sample in samples:
        for extension, data in sample.items():
            if extension:
                files.append((f"{sample['']}.{extension}", data.encode() if isinstance(data, str) else data))
    return write_tar(path, files)


def names(source):
    return [source.name(i) for i in range(len(source))]


def classes(source):
    return [source.class_names[label] for label in source.labels]


# ------------------------------------------------------------------------------------------------ samples


def test_keys_end_at_the_first_dot_of_the_base_name(tmp_path):
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("v1.0/a.jpg", b"one"),
            ("v1.0/a.seg.png", b"a mask"),  # extension seg.png
            ("v1.0/a.cls", b"3"),
            ("v1.0/a.b.jpg", b"not an image: extension b.jpg"),
            ("v1.0/b.cls", b" 1\n"),
            ("v1.0/b.JPG", b"two"),
            ("v1.1/b.webp", b"three"),  # another key, because its folder is another
            ("v1.1/b.cls", b"3"),
            ("v1.1/README", b"no extension: ignored"),
            ("v1.1/.hidden.jpg", b"no key: ignored"),
            ("v1.1/c.cls", b"2"),  # no image: ignored
        ],
    )
    source = open_source("WebDataset", path)
    assert names(source) == ["x.tar/v1.0/a.jpg", "x.tar/v1.0/b.JPG", "x.tar/v1.1/b.webp"]
    assert [source.image(i) for i in range(3)] == [b"one", b"two", b"three"]
    assert classes(source) == ["3", "1", "3"] and source.class_names == ("1", "3")
    assert any(note.startswith("1 samples without an image") for note in source.notes)
    assert any(note.startswith("2 members without an extension") for note in source.notes)


def test_samples_are_consecutive_members(tmp_path):
    path = shard(
        tmp_path / "x.tar",
        {"": "a", "jpg": "1", "cls": "0"},
        {"": "b", "jpg": "2", "cls": "1"},
        {"": "a", "cls": "2", "png": "3"},
    )
    source = open_source("wds", path)
    assert [source.image(i) for i in range(3)] == [b"1", b"2", b"3"] and source.labels.tolist() == [0, 1, 2]
    write_tar(path, [("a.jpg", b""), ("b.jpg", b""), ("b.cls", b"1"), ("a.cls", b"1")])
    with pytest.raises(SourceError, match="1 of 2 samples have no label, such as x.tar/a.jpg"):
        open_source("wds", path)
    write_tar(path, [("d/a.jpg", b""), ("d/a.JPG", b""), ("d/a.cls", b"1")])
    with pytest.raises(SourceError, match="x.tar: the sample d/a has two members .jpg"):
        open_source("wds", path)
    # what looks the same may not be: these are two keys
    write_tar(path, [("a.jpg", b""), ("./a.cls", b"1")])
    assert open_source("wds", path).class_names == ()


def test_the_image_is_chosen_by_extension(tmp_path):
    path = shard(
        tmp_path / "x.tar", {"": "a", "webp": "w", "png": "p", "jpeg": "j", "mask.png": "m", "cls": "0"}
    )
    assert open_source("wds", path).image(0) == b"j"
    assert open_named("wds", path, "train", Columns(image="mask.png")).image(0) == b"m"
    assert open_named("wds", path, "train", Columns(image=".PNG")).image(0) == b"p"
    with pytest.raises(SourceError, match="no sample with an image: .* ends in .tif"):
        open_named("wds", path, "train", Columns(image="tif"))


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    "labels, column, expected",
    [
        ([{"cls": "10"}, {"cls": "9\n"}, {"cls": "2"}], "", ["10", "9", "2"]),
        ([{"json": '{"label": 4, "cls": 7}'}, {"json": '{"label": 5.0}'}], "", ["4", "5"]),
        ([{"json": '{"class": "cat"}'}, {"json": '{"cls": "dog"}'}], "", ["cat", "dog"]),
        (
            [{"json": '{"w": 3, "label": null}', "txt": "fox \n"}, {"json": "[1]", "txt": "ox"}],
            "",
            ["fox", "ox"],
        ),
        ([{"cls": "1", "json": '{"label": 5}', "txt": "x"}], "", ["1"]),  # .cls comes first
        ([{"cls": "1", "json": '{"of": "é"}'}, {"cls": "1", "json": '{"of": "f"}'}], "of", ["é", "f"]),
        ([{"cls": "1", "txt": "été"}], "txt", ["été"]),
        ([{"cls": "1", "fine.cls": "77"}], "fine.cls", ["77"]),
        ([{"json": "3"}, {"json": "12"}], "", ["3", "12"]),
    ],
)
def test_where_labels_come_from(labels, column, expected, tmp_path):
    path = shard(tmp_path / "x.tar", *({"": f"{i}", "jpg": "x", **label} for i, label in enumerate(labels)))
    source = open_named("webdataset", path, "train", Columns(label=column))
    assert classes(source) == expected and source.labels.dtype == np.int64
    numbers = all(name.isdecimal() for name in expected)
    assert source.numbered_classes == numbers
    assert list(source.class_names) == sorted(set(expected), key=int if numbers else None)  # 9 before 10


@pytest.mark.parametrize(
    "labels, column, message",
    [
        ([{"cls": "cat"}], "", "x.tar: 0.cls holds 'cat'; a .cls is an integer"),
        ([{"cls": "-2"}], "", "0.cls holds '-2'"),
        ([{"cls": "9" * 30}], "", "0.cls holds '999"),
        ([{"cls": "1"}, {"cls": "-1"}], "", "x.tar/1.jpg has the label -1"),
        ([{"json": "{"}], "", "x.tar: 0.json is not JSON"),
        ([{"json": '{"label": [1]}'}], "", r"0.json: its label is \[1\]; a label is an integer or a text"),
        ([{"json": '{"label": true}'}], "", "its label is true"),
        ([{"txt": b"\xff"}], "", "0.txt is not a text in UTF-8"),
        (
            [{"json": '{"label": 3}'}, {"json": '{"label": "x"}'}],
            "",
            "some labels are numbers, as of x.tar/0.jpg",
        ),
        ([{"cls": "1"}], "kind", "no sample has the label 'kind'"),
        (
            [{"json": '{"kind": 1}'}, {"json": "{}"}],
            "kind",
            "1 of 2 samples have no label, such as x.tar/1.jpg",
        ),
    ],
)
def test_labels_that_cannot_be_used(labels, column, message, tmp_path):
    path = shard(tmp_path / "x.tar", *({"": f"{i}", "jpg": "x", **label} for i, label in enumerate(labels)))
    with pytest.raises(SourceError, match=message):
        open_named("webdataset", path, "train", Columns(label=column))


def test_unlabelled_samples_and_captions(tmp_path):
    path = shard(tmp_path / "x.tar", *({"": f"{i}", "jpg": "x"} for i in range(5)))
    source = open_named("wds", path, "train")
    assert source.class_names == () and source.labels.tolist() == [-1] * 5
    assert "no sample has a label (.cls, .json or .txt)" in source.notes
    texts = [f"a photo of thing {i}" for i in range(40)]
    path = shard(tmp_path / "x.tar", *({"": f"{i}", "jpg": "x", "txt": text} for i, text in enumerate(texts)))
    source = open_named("wds", path, "train")
    assert source.class_names == () and "captions and not classes" in source.notes[1]
    assert len(open_named("wds", path, "train", Columns(label="txt")).class_names) == 40


@pytest.mark.parametrize(
    "place, content",
    [
        ("train/classnames.txt", "tench\ngoldfish\ngreat white shark\n\n"),
        ("train/classnames.txt", "tench\r\ngoldfish\r\ngreat white shark"),
        ("train/classes.txt", "tench\ngoldfish\ngreat white shark"),
        (
            "train/dataset_info.json",
            json.dumps(
                {
                    "features": {
                        "image": {"_type": "Image"},
                        "label": {"names": ["tench", "goldfish", "great white shark"], "_type": "ClassLabel"},
                    }
                }
            ),
        ),
    ],
)
def test_class_names_beside_the_shards(place, content, tmp_path):
    shard(tmp_path / "train/0.tar", {"": "a", "jpg": "x", "cls": "2"}, {"": "b", "jpg": "x", "cls": "0"})
    (tmp_path / place).write_text(content)
    source = open_source("wds", tmp_path)
    assert source.class_names == ("tench", "goldfish", "great white shark") and source.labels.tolist() == [
        2,
        0,
    ]
    shard(tmp_path / "train/0.tar", {"": "a", "jpg": "x", "cls": "3"})
    with pytest.raises(SourceError, match="0.tar/a.jpg has the label 3"):
        open_source("wds", tmp_path)
    (tmp_path / place).write_text("{" if place.endswith("json") else "a\n\nb\n")
    with pytest.raises(SourceError, match="is not JSON" if place.endswith("json") else "has an empty line"):
        open_source("wds", tmp_path)


def test_class_names_in_the_folder_above_are_not_taken(tmp_path):
    shard(tmp_path / "train/0.tar", {"": "a", "jpg": "x", "cls": "1"}, {"": "b", "jpg": "x", "cls": "0"})
    (tmp_path / "classnames.txt").write_text("of\nanother\ndata set\n")
    for data_dir in (tmp_path, tmp_path / "train"):
        assert open_source("wds", data_dir).class_names == ("0", "1")


# ------------------------------------------------------------------------------------------------ shards


def make_shards(folder, names, per_shard=3):
    """A shard for each name; returns the pixels of all images in order. Class: number of the image % 4."""
    pixels, number = [], 0
    for name in names:
        samples = []
        for _ in range(per_shard):
            data = encoded(number, "PNG")
            pixels.append(load_rgb(data))
            samples.append({"": f"{number:06}", "png": data, "cls": str(number % 4)})
            number += 1
        shard(folder / name, *samples)
    return pixels


def test_a_beton_is_the_same_for_any_number_of_workers(tmp_path, write_ffcv):
    pixels = make_shards(tmp_path, [f"shard-{i:06}.tar" for i in range(7)])
    contents = []
    for data_dir, workers in (
        (tmp_path, 1),
        (tmp_path / "shard-{000000..000006}.tar", 3),
        (tmp_path / "*.tar", 2),
    ):
        done = write_ffcv(
            data_dir=data_dir,
            dataset="WebDataset",
            write_path=tmp_path / "x.beton",
            num_workers=workers,
            chunk_size=2,
        )
        assert done.returncode == 0, done.stderr
        assert "21 images in 7 shards" in done.stdout
        contents.append((tmp_path / "x.beton").read_bytes())
    assert contents[0] == contents[1] == contents[2]
    manifest = verify(tmp_path / "x.beton")
    assert manifest.class_names == ("0", "1", "2", "3") and manifest.class_counts == (6, 5, 5, 5)
    source = open_source("wds", tmp_path)
    assert all(np.array_equal(load_rgb(source.image(i)), pixels[i]) for i in range(21))


@pytest.mark.parametrize(
    "files, pattern, split, expected",
    [
        (("train-0.tar", "train-1.tar", "val-0.tar"), "", "train", (0, 1)),
        (("train-0.tar", "train-1.tar", "val-0.tar"), "", "val", (2,)),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), "", "val", (1,)),
        (("train/0.tar", "val/0.tar", "val/1.tar"), "", "train", (0,)),
        (("train/0.tar", "val/0.tar", "val/1.tar"), "", "val", (1, 2)),
        (("train/0.tar", "test/0.tar"), "", "val", (1,)),
        (("0.tar", "1.tar"), "", "train", (0, 1)),
        (("0.tar", "1.tar"), "", "val", (0, 1)),  # nothing says which is which
        (("val-0.tar", "val-1.tar"), "val-{0..1}.tar", "train", (0, 1)),  # named by the user
        (("train-0.tar", "val-0.tar"), "*.tar", "val", (1,)),
        (("train-0.tar", "val-0.tar"), "{train,val}-0.tar", "train", (0,)),
        (("a,b.tar", "c.tar"), "a,b.tar", "train", (0,)),
    ],
)
def test_which_shards_are_a_splits(files, pattern, split, expected, tmp_path):
    for number, name in enumerate(files):
        shard(tmp_path / name, {"": "a", "jpg": str(number), "cls": "0"})
    path = tmp_path / pattern if pattern else tmp_path
    assert recognise(path) == "WebDataset"
    source = open_source("auto", str(path), split)
    assert [int(source.image(i)) for i in range(len(source))] == list(expected)


def test_shards_that_are_missing(tmp_path):
    make_shards(tmp_path, ["train-000.tar", "train-002.tar"], 1)
    for pattern, message in (
        ("train-{000..002}.tar", "train-001.tar does not exist; .*{000..002}.tar names it"),
        ("val-*.tar", "no file fits the pattern"),
        ("gone.tar", "gone.tar does not exist$"),
        ("gone", "gone does not exist"),
        ("train-{0..9999999}.tar", "names more than 1,000,000 files"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source("wds", tmp_path / pattern)
    with pytest.raises(SourceError, match="holds nothing for split=val, only train"):
        open_source("wds", tmp_path, "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty holds no shards"):
        open_source("wds", tmp_path / "empty")
    with pytest.raises(SourceError, match="data_dir is missing"):
        open_source("wds", "")


def test_damaged_shards_are_named(tmp_path):
    make_shards(tmp_path, ["0.tar", "1.tar"])
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:1000])
    with pytest.raises(SourceError, match="1.tar is cut off: 000003.png in it ends at byte"):
        open_source("wds", tmp_path)


def test_what_is_not_taken_for_shards(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "backup.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert recognise(tmp_path) == "folder"
    assert recognise(tmp_path / "gone.tar") == "folder"
    assert recognise("") == "folder"


# ------------------------------------------------------------------------------------------------ patterns


WORDS = st.text("ab,.{}0129-", max_size=8)


@example(["{0},}", "{a},b,c}d}", "{a}{b,c}", "{a},b", "{0..1},}"])
@given(st.lists(WORDS, min_size=1, max_size=12))
def test_braces_are_those_of_bash(words):
    """`bash` itself is the reference; words of its own syntax are left out."""
    done = subprocess.run(
        ["bash", "-c", "\n".join(f"printf '[%s]' _{word}; echo" for word in words)],
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(words)
    for word, line in zip(words, lines):
        if "{}" not in word and "{,}" not in word and "-0" not in word:
            assert "".join(f"[{text}]" for text in expand_braces("_" + word)) == line, word


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("x-{000000..000003}.tar", "x-000000.tar x-000001.tar x-000002.tar x-000003.tar"),
        ("{8..10}", "8 9 10"),
        ("{08..10}", "08 09 10"),
        ("{3..1}", "3 2 1"),
        ("{0..10..5}", "0 5 10"),
        ("{a,b{c,d{1..2}}}e", "ae bce bd1e bd2e"),
        ("{a,b}-{0..1}", "a-0 a-1 b-0 b-1"),
        ("{a}{b}", "{a}{b}"),
        ("{a,b", "{a,b"),
        ("a}{b,c}", "a}b a}c"),
        ("{{0..1},7}", "0 1 7"),
        ("{{a,b}", "{a {b"),
        ("{a,}x", "ax x"),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern) == expected.split()


def test_braces_keep_their_order_and_wildcards_are_sorted(tmp_path):
    for name in ("b1", "b0", "a1", "a0", "{x}"):
        (tmp_path / name).write_bytes(b"")
    found = [path.rpartition("/")[2] for path in expand(f"{tmp_path}/{{b,a}}*")]
    assert found == ["b0", "b1", "a0", "a1"]
    assert expand(f"{tmp_path}/{{x}}") == [f"{tmp_path}/{{x}}"]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.xz"])
def test_a_compressed_tar_is_recognised_and_the_message_says_how_to_unpack_it(name, tmp_path):
    path = tmp_path / name
    pack = {"xz": lzma.compress}.get(name.rpartition(".")[2], gzip.compress)
    path.write_bytes(pack(shard(tmp_path / "x.tar", {"": "a", "jpg": encoded(0), "cls": "0"}).read_bytes()))
    with pytest.raises(SourceError, match=f"{name} is compressed with .*; unpack it once, with"):
        open_source("auto", str(path))


def test_a_tree_in_a_tar_is_told_from_unlabelled_samples(tmp_path):
    tree = shard(tmp_path / "tree.tar", {"": "cat/a", "jpg": encoded(0)}, {"": "dog/b", "jpg": encoded(1)})
    assert "give dataset=tar" in open_source("auto", str(tree)).notes[-1]
    assert classes(open_source("tar", str(tree))) == ["cat", "dog"]
    flat = shard(tmp_path / "flat.tar", {"": "a", "jpg": encoded(0)})
    assert "dataset=tar" not in open_source("auto", str(flat)).notes[-1]
