"""Trees and named datasets: which images, their order and labels, and the messages of refusals."""

import gzip
import os
import shutil
import stat
import struct
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llc.data.images import ImageError, load_rgb
from llc.data.sources import (
    IndexedDataset,
    SourceError,
    fashion_mnist,
    hold_out,
    open_source,
    printable,
    take_evenly,
    with_class_names,
)
from llc.data.sources.base import some
from tests.data.helpers import REPOSITORY
from tests.waiting import seconds


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def names(source):
    return [source.name(i) for i in range(len(source))]


# ---------------------------------------------------------------------------------------------- trees


def test_classes_are_the_sorted_folders_and_files_are_sorted(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "B/x.png", "a/z.JPEG", "a/a.gif", "10/a.Webp", "9/a.tiff")
    source = open_source("folder", tmp_path)
    assert source.class_names == ("10", "9", "B", "a", "b")  # plain sorted(): by code point
    assert names(source) == ["10/a.Webp", "9/a.tiff", "B/x.png", "a/a.gif", "a/z.JPEG", "b/10.jpg", "b/2.jpg"]
    assert source.labels.tolist() == [0, 1, 2, 3, 3, 4, 4] and source.labels.dtype == np.int64
    assert source.class_counts().tolist() == [1, 1, 1, 2, 2]


def test_files_at_any_depth_and_other_files_are_counted(tmp_path):
    touch(
        tmp_path,
        "a/deep/er/1.png",
        "a/0.png",
        "a/notes.txt",
        "a/deep/x.xml",
        "a/.hidden.png",
        ".git/z.png",
        "top.png",
        "b/1.bmp",
    )
    source = open_source("imagenet", tmp_path)
    assert names(source) == ["a/0.png", "a/deep/er/1.png", "b/1.bmp"]
    found, others, beside = source.notes
    assert found == f"3 images in 2 class folders of {tmp_path}"
    assert others.startswith("2 files there are not images") and "a/deep/x.xml" in others
    assert beside.startswith("1 images directly in") and "top.png" in beside


def test_images_load(tree):
    source = open_source("folder", tree)
    assert len(source) == 26
    for i, (path, pixels) in enumerate(tree.pixels.items()):
        assert source.name(i) == path
        assert np.array_equal(load_rgb(source.image(i)), pixels)


def test_the_folder_above_the_classes_is_said_to_be_one_class(tmp_path):
    touch(tmp_path, "up/photos/cat/1.png", "up/photos/dog/1.png")
    (count, said) = open_source("folder", tmp_path / "up").notes
    assert count == f"2 images in 1 class folder of {tmp_path / 'up'}"
    assert said == (
        f"that is one class; if the folders in {tmp_path / 'up/photos'} are the classes, name it instead"
    )
    assert len(open_source("folder", tmp_path / "up/photos").notes) == 1


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "store/cats/1.png")
    (tmp_path / "tree").mkdir()
    os.symlink(tmp_path / "store/cats", tmp_path / "tree/cat")
    assert names(open_source("folder", tmp_path / "tree")) == ["cat/1.png"]
    os.symlink(tmp_path / "store", tmp_path / "store/cats/loop")
    with pytest.raises(SourceError, match="tree/cat/loop is a link to a folder that contains it: remove"):
        open_source("folder", tmp_path / "tree")
    (tmp_path / "up/phone").mkdir(parents=True)
    touch(tmp_path, "up/phone/1.png")
    os.symlink("..", tmp_path / "up/phone/loop")  # the folder that is entered again is no link itself
    with pytest.raises(SourceError, match="up/phone/loop is a link to a folder that contains it: remove"):
        open_source("folder", tmp_path / "up")


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path):
    touch(tmp_path, "a/1.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "a/2.png")
    source = open_source("folder", tmp_path)
    assert names(source) == ["a/1.png", "a/2.png"]
    with pytest.raises(ImageError, match="a/2.png: .*No such file"):
        load_rgb(source.image(1))


@pytest.mark.parametrize("place", [".", "a", "a/deep"])
@pytest.mark.parametrize(
    "make, message",
    [
        (os.mkfifo, "is a named pipe"),
        (lambda path: os.mknod(path, stat.S_IFSOCK), "is a socket"),
        (lambda path: path.symlink_to("/dev/null"), "is a link to /dev/null, and that is a device"),
        (lambda path: path.symlink_to("/not/mounted"), "is a link to /not/mounted, which is not there"),
        (lambda path: path.symlink_to(path.name), "is a link to .*, which leads back to it"),
        (
            lambda path: path.symlink_to("x" * 300),
            "is a link to x+, which cannot be read: File name too long",
        ),
    ],
)
def test_what_is_neither_folder_nor_file_is_an_error(make, message, place, tmp_path):
    """A link to an unmounted disk may be a class: without it the others would get other labels."""
    touch(tmp_path, "a/deep/1.png", "b/1.png", "b/notes.txt")
    make(tmp_path / place / "aa")
    with pytest.raises(SourceError, match=f"{tmp_path / place / 'aa'} {message}"):
        open_source("folder", tmp_path)


@pytest.mark.parametrize("target", ["/not/mounted", "train", "x" * 300])
def test_links_to_splits_that_lead_nowhere(target, tmp_path):
    touch(tmp_path, "val/a/1.png")
    (tmp_path / "train").symlink_to(target)
    with pytest.raises(SourceError, match=f"{tmp_path}/train is a link to {target}, which"):
        open_source("folder", tmp_path)
    for name in ("folder", "CIFAR10", "FashionMNIST"):
        with pytest.raises(SourceError, match=f"{tmp_path}/train is a link to {target}, which"):
            open_source(name, tmp_path / "train")
    assert names(open_source("folder", tmp_path, split="val")) == ["a/1.png"]


@pytest.mark.parametrize("target", ["2.png", "x" * 300 + ".png"])
def test_a_link_in_a_class_that_cannot_be_followed_is_an_image_that_cannot_be_read(target, tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "a/2.png").symlink_to(target)
    source = open_source("folder", tmp_path)
    assert names(source) == ["a/1.png", "a/2.png"]
    with pytest.raises(ImageError, match="a/2.png: "):
        load_rgb(source.image(1))


@pytest.mark.parametrize("name", ["folder", "CIFAR10", "FashionMNIST"])
@pytest.mark.parametrize("path", ["x" * 300, "/x" * 3000, "a\0b"])
def test_paths_that_the_system_refuses(path, name, tmp_path):
    with pytest.raises(SourceError, match="cannot be read: (File name too long|embedded null byte)"):
        open_source(name, f"{tmp_path}/{path}")


def test_folders_deeper_than_python_may_recurse(tmp_path):
    deep = "a" + "/d" * 1200
    subprocess.run(["mkdir", "-p", tmp_path / deep], check=True)
    try:
        (tmp_path / deep / "1.png").write_bytes(b"")
        assert names(open_source("folder", tmp_path)) == [f"{deep}/1.png"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # Python's own clean-up recurses


def test_closed_folders_are_errors_that_name_them(tmp_path):
    """In a process without root's privileges, which opens a source of each kind."""
    touch(tmp_path, "tree/a/1.png", "tree/b/1.png", "closed/x/1.png", "open/a/1.png")
    (tmp_path / "linked/a").mkdir(parents=True)
    (tmp_path / "linked/b").symlink_to(tmp_path / "closed/x")
    closed = [tmp_path / "closed", tmp_path / "tree/b"]
    for folder in closed:
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        folder.chmod(0o000)
    script = """
import sys
from llc.data.sources import SourceError, open_source
for dataset, folder in [word.split(":") for word in sys.argv[1:]]:
    try:
        open_source(dataset, folder)
    except SourceError as error:
        print(error)
"""
    cases = {
        f"folder:{tmp_path}/tree": f"{tmp_path}/tree/b cannot be listed: Permission denied",
        f"folder:{tmp_path}/linked": f"{tmp_path}/linked/b is a link to {tmp_path}/closed/x, which cannot be"
        " read: Permission denied; mend the link or remove it",
    }
    for dataset in ("folder", "FashionMNIST", "CIFAR10"):
        cases[f"{dataset}:{tmp_path}/closed/x"] = f"{tmp_path}/closed/x cannot be read: Permission denied"
    command = [sys.executable, "-c", script, *cases]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root without its privileges needs setpriv")
        command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds(120))
    for folder in closed:
        folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(cases.values())


def test_what_systems_make_is_no_class_and_no_image(tmp_path):
    made = ("@eaDir", "lost+found", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints")
    made += ("System Volume Information",)
    touch(tmp_path, "a/1.png", "a/deep/2.png", "b/1.png", "b/Thumbs.db", "desktop.ini", "b/notes.txt")
    touch(tmp_path, "a/deep/@eaDir/2.png/SYNOPHOTO_THUMB_M.jpg", *(f"{name}/1.png" for name in made))
    source = open_source("folder", tmp_path)
    assert source.class_names == ("a", "b") and names(source) == ["a/1.png", "a/deep/2.png", "b/1.png"]
    assert source.notes[1] == "1 files there are not images by their names and were ignored, like b/notes.txt"
    assert source.notes[2] == (
        "made by systems, not by people, and ignored: $RECYCLE.BIN, .ipynb_checkpoints, @eaDir,"
        " System Volume Information, __MACOSX, and 4 more"
    )
    # they make no root a dataset of classes either
    touch(tmp_path, "root/train/a/1.png", "root/lost+found/x", "only/lost+found/1.png")
    with pytest.raises(SourceError, match="split=val: .* no folder val or test"):
        open_source("folder", tmp_path / "root", split="val")
    with pytest.raises(SourceError, match=r"holds no folder: .*; lost\+found is made by systems"):
        open_source("folder", tmp_path / "only")


def test_classes_that_differ_by_case_or_encoding_stay_two_and_are_named(tmp_path):
    touch(tmp_path, "Cat/1.png", "cat/1.png", "caf\u00e9/1.png", "cafe\u0301/1.png", "dog/1.png")
    source = open_source("folder", tmp_path)
    assert len(source.class_names) == 5
    assert source.notes[-1] == (
        "class folders that differ only by case or by the encoding of accents stay different classes:"
        " Cat and cat, 'cafe\\u0301' and 'caf\\xe9'"
    )
    (tmp_path / "cat").rename(tmp_path / "kat")
    (tmp_path / "caf\u00e9").rename(tmp_path / "caf")
    assert len(open_source("folder", tmp_path).notes) == 1


# Names that a terminal would act on: a new line, a colour, a backspace, an escape in 8 bits, text from right
# to left, a name that looks like another, and a byte that is not UTF-8.
NASTY = [
    "a\nb",
    "a\x1b[31mb",
    "a\bb",
    "a\x9b31mb",
    "a\u202egpj",
    "a\u2066b",
    "a\u200bb",
    "a\ufeffb",
    "a\udcffb",
]
SHOWN = [
    r"a\nb",
    r"a\x1b[31mb",
    r"a\x08b",
    r"a\x9b31mb",
    r"a\u202egpj",
    r"a\u2066b",
    r"a\u200bb",
    r"a\ufeffb",
    r"a\xffb",
]


@pytest.mark.parametrize("name, shown", [*zip(NASTY, SHOWN)])
def test_names_cannot_act_on_a_terminal(name, shown, tmp_path):
    assert printable(name) == shown == printable(shown) and some([name, "b"]) == f"{shown}, b"
    root = tmp_path / name
    touch(root, f"{name}/{name}.png", f"{name}/{name}.txt", f"{name}.png", f"b{name}/1.png", f"B{name}/1.png")
    touch(root, f"{name}/@eaDir/{name}")
    source = open_source("folder", root)
    assert f"{name}/{name}.png" in names(source) and name in source.class_names  # as they are
    texts = [*source.notes]
    assert len(texts) == 5 and all(shown in text for text in texts)
    (root / f"empty{name}").mkdir()
    errors = [("folder", root), ("folder", root / "gone"), ("folder", root / f"{name}.png")]
    (root / f"{name}/link").symlink_to(f"/gone/{name}")
    errors.append(("folder", root / name))
    errors += [("CIFAR10", root / f"{name}.png"), ("folder", root / name / "link")]
    for dataset, path in errors:
        with pytest.raises(SourceError) as caught:
            open_source(dataset, path)
        texts.append(str(caught.value))
        assert shown in texts[-1]
    assert all(printable(text) == text for text in texts)


def test_text_that_is_printable_stays_as_it_is():
    for text in (
        "caf\u00e9 \u0142 \u4e2d\u6587 \u0645\u06cc\u200c\u062e",
        "\U0001f469\u200d\U0001f373",
        "a\\nb",
        "a  b",
    ):
        assert printable(text) == text
    assert printable("a\ud800b") == r"a\ud800b"  # no file name, but JSON may hold it


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb"):
        pass
    os.mkdir(tmp_path / "empty")
    with pytest.raises(SourceError, match="1 of 2 class folders") as caught:
        open_source("folder", tmp_path)
    str(caught.value).encode()  # can be printed
    os.rmdir(tmp_path / "empty")
    os.rename(folder, os.fsencode(tmp_path) + b"/caf\xea")
    source = open_source("folder", tmp_path)
    assert os.fsencode(source.name(0)) == b"caf\xea/\xff.png"


@pytest.mark.parametrize(
    "paths, message",
    [
        ((), "holds no folder: one folder of images per class"),
        (("1.png", "2.png"), "holds no folder: .*directly in it, like 1.png, have no class"),
        (("a/", "b/"), r"holds no images in its 2 folders \(a, b\)"),
        (("a/notes.txt",), r"holds no images in its 1 folders \(a\); images end in .avif .bmp"),
        (
            ("a/1.png", "b/", "c/x.txt", "d/1.png"),
            "2 of 4 class folders hold no images: b, c; fill or remove them",
        ),
    ],
)
def test_trees_that_cannot_be_used(paths, message, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for path in paths:
        (root / path).mkdir() if path.endswith("/") else touch(root, path)
    with pytest.raises(SourceError, match=message) as caught:
        open_source("folder", root)
    assert str(root) in str(caught.value)


def test_many_empty_classes_are_listed_up_to_a_limit(tmp_path):
    touch(tmp_path, "full/1.png")
    for i in range(50):
        (tmp_path / f"empty{i:02}").mkdir()
    with pytest.raises(SourceError, match="50 of 51 .* empty00, .*empty19, and 30 more"):
        open_source("folder", tmp_path)


def test_missing_folder_and_file_for_a_folder(tmp_path):
    with pytest.raises(SourceError, match="nowhere does not exist"):
        open_source("folder", tmp_path / "nowhere")
    touch(tmp_path, "file")
    with pytest.raises(SourceError, match="file is a file of an unknown kind"):
        open_source("folder", tmp_path / "file")
    with pytest.raises(SourceError, match="data_dir is missing"):
        open_source("folder", "")


# ------------------------------------------------------------------------------------------- splits of a tree


def test_split_folders_are_used_where_they_hold_class_folders(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "meta.mat")
    assert names(open_source("folder", tmp_path)) == ["a/1.png", "b/2.png"]
    assert names(open_source("folder", tmp_path, split="val")) == ["a/3.png", "b/4.png"]
    # the folder itself may be given too
    assert names(open_source("folder", tmp_path / "val", split="train")) == ["a/3.png", "b/4.png"]


def test_test_folder_is_val_where_there_is_no_val(tmp_path):
    touch(tmp_path, "train/a/1.png", "test/a/2.png")
    source = open_source("folder", tmp_path, split="val")
    assert names(source) == ["a/2.png"] and str(tmp_path / "test") in source.notes[0]
    touch(tmp_path, "val/a/3.png")
    assert names(open_source("folder", tmp_path, split="val")) == ["a/3.png"]


def test_a_class_called_train_is_a_class(tmp_path):
    touch(tmp_path, "train/1.png", "plane/2.png", "tram/3.png")
    assert open_source("folder", tmp_path).class_names == ("plane", "train", "tram")


@pytest.mark.parametrize(
    "paths, split, message",
    [
        (
            ("train/a/1.png", "val/1.png"),
            "val",
            "no folder val or test .*train does.*val_fraction",
        ),  # ImageNet's val as it comes
        (("train/a/1.png",), "val", "no folder val or test"),
        (("val/a/1.png",), "train", "no folder train "),
        (("train/1.png", "val/1.png"), "train", "train, val do not"),
    ],
)
def test_a_root_without_the_split_is_not_taken_for_classes(paths, split, message, tmp_path):
    touch(tmp_path, *paths)
    with pytest.raises(SourceError, match=message):
        open_source("folder", tmp_path, split=split)


# --------------------------------------------------------------------------------------- val_fraction, subset


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    val_fraction=st.floats(0.001, 0.99),
    shuffle=st.booleans(),
)
def test_val_fraction_divides_every_class(counts, val_fraction, shuffle):
    labels = np.repeat(np.arange(len(counts)), counts)
    if shuffle:
        labels = np.random.default_rng(0).permutation(labels)
    source = IndexedDataset(tuple("abcdef"[: len(counts)]), labels, "images", None)
    train, val = (hold_out(source, val_fraction, split) for split in ("train", "val"))
    assert sorted([*train.indices, *val.indices]) == list(range(len(labels)))
    assert (train.class_counts() >= 1).all() and (val.class_counts() >= 1).all()
    # rounded, unless none or all would be held out
    assert (np.abs(val.class_counts() - val_fraction * np.array(counts)) <= 1).all()
    assert np.array_equal(labels[val.indices], val.labels)


def test_val_fraction_is_evenly_spaced_over_the_sorted_files(tree):
    val = open_source("folder", tree, split="val", val_fraction=0.25)
    assert names(val) == [
        "ant/002.png",
        "bee/002.png",
        "bee/006.png",
        "bee/010.png",
        "cow/002.png",
        "cow/006.png",
    ]
    train = open_source("folder", tree, val_fraction=0.25)
    assert sorted(names(train) + names(val)) == list(tree.pixels)
    assert "6 of 26 images held out" in val.notes[-1]


def test_val_fraction_divides_the_training_images_also_where_a_val_folder_stands(tmp_path):
    touch(tmp_path, *(f"train/a/{i}.png" for i in range(4)), "val/a/v.png")
    assert names(open_source("folder", tmp_path, split="val", val_fraction=0.5)) == ["a/1.png", "a/3.png"]


def test_a_class_of_one_image_cannot_be_divided(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png", "b/2.png", "c/1.png")
    with pytest.raises(SourceError, match="classes of a single image: a, c"):
        open_source("folder", tmp_path, val_fraction=0.1)


@pytest.mark.parametrize("val_fraction", [-0.1, 1, 1.5, float("nan")])
def test_val_fraction_is_a_share(val_fraction, tree):
    with pytest.raises(SourceError, match="val_fraction"):
        open_source("folder", tree, val_fraction=val_fraction)


@given(total=st.integers(1, 60), data=st.data())
def test_subset_is_evenly_spaced(total, data):
    count = data.draw(st.integers(1, total))
    source = IndexedDataset(("a",), np.zeros(total, np.int64), "images", None)
    indices = take_evenly(source, count).indices
    assert len(set(indices.tolist())) == count and indices.min() >= 0 and indices.max() < total
    gaps = np.diff([*indices, indices[0] + total])
    assert gaps.max() - gaps.min() <= 1


def test_subset_of_a_tree_reaches_all_classes(tree):
    source = open_source("folder", tree, subset=6)
    assert source.class_names == ("ant", "bee", "cow")
    assert source.class_counts().min() >= 1 and len(source) == 6


@pytest.mark.parametrize("subset", [0, 27, -2])
def test_subset_that_is_not_there(subset, tree):
    with pytest.raises(SourceError, match=f"subset={subset}: there are 26 images"):
        open_source("folder", tree, subset=subset)


# ----------------------------------------------------------------------------------------- forced class names


def test_class_names_give_the_labels(tree):
    source = open_source("folder", tree, class_names=("cow", "zebra", "ant", "bee"))
    assert source.class_names == ("cow", "zebra", "ant", "bee")
    assert source.class_counts().tolist() == [9, 0, 5, 12]
    assert names(source)[:2] == ["cow/000.png", "cow/001.png"]
    assert all(source.name(i).startswith(source.class_names[label]) for i, label in enumerate(source.labels))
    assert np.array_equal(load_rgb(source.image(9)), tree.pixels["ant/000.png"])
    assert "1 of 4 classes have no images in this split: zebra" in source.notes[-1]


def test_an_empty_class_folder_is_allowed_with_class_names(tree):
    (tree / "dog").mkdir()
    source = open_source("folder", tree, class_names=("ant", "bee", "cow", "dog"))
    assert source.class_counts().tolist() == [5, 12, 9, 0] and "dog" in source.notes[-1]


def test_a_class_outside_the_given_names_is_an_error(tree):
    with pytest.raises(
        SourceError,
        match=r"2 classes are not among the 3 of class_names_from: bee, cow; without images here: be, co",
    ):
        open_source("folder", tree, class_names=("ant", "be", "co"))


def test_class_names_of_a_dataset_keep_its_order():
    source = IndexedDataset(("x", "y", "z"), np.array([2, 0, 1, 2]), "images", None)
    again = with_class_names(source, ("z", "y", "x"))
    assert again.labels.tolist() == [0, 2, 1, 0] and again.indices.tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------- datasets by name


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_dataset(folder, split, count, pack=True, seed=0):
    rng = np.random.default_rng(seed)
    pictures, labels = (
        rng.integers(0, 256, (count, 28, 28), np.uint8),
        (np.arange(count) * 3 % 10).astype(np.uint8),
    )
    folder.mkdir(parents=True, exist_ok=True)
    stem = {"train": "train", "val": "t10k"}[split]
    for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
        data = idx(array)
        path = folder / f"{stem}-{kind}-ubyte{'.gz' if pack else ''}"
        path.write_bytes(gzip.compress(data) if pack else data)
    return pictures, labels


@pytest.fixture
def no_system_files(monkeypatch, tmp_path):
    """As on a machine without Debian's package, without a network, and with an empty working folder."""
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_FOLDER", str(tmp_path / "system"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies that it was made with
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("pack", [True, False])
def test_fashion_mnist_from_its_files(place, pack, no_system_files):
    folder = no_system_files / "data"
    expected = {}
    for split, count in (("train", 30), ("val", 20)):
        expected[split] = write_idx_dataset(folder / place, split, count, pack, seed=count)
    for split, (pictures, labels) in expected.items():
        source = open_source("FashionMNIST", folder, split=split)
        assert (
            source.class_names[0] == "T-shirt/top"
            and source.class_names[9] == "Ankle boot"
            and len(source.class_names) == 10
        )
        assert source.labels.tolist() == labels.tolist() and len(source) == len(labels)
        for i in (0, len(labels) - 1):
            assert np.array_equal(load_rgb(source.image(i)), np.stack([pictures[i]] * 3, axis=2))
        assert source.name(3) == f"FashionMNIST {split}[3]"


def test_fashion_mnist_from_the_system(no_system_files):
    write_idx_dataset(no_system_files / "system", "train", 12)
    for data_dir in ("", no_system_files / "elsewhere"):
        source = open_source("fashionmnist", data_dir)
        assert len(source) == 12 and str(no_system_files / "system") in source.notes[0]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[:-1], "cut off: 783 bytes of data"),
        (lambda data: data[:10], "not an IDX file"),
        (lambda data: b"\0\0\x0d\3" + data[4:], "not an IDX file"),
        (lambda data: struct.pack(">BBBBIII", 0, 0, 8, 3, 1 << 31, 1 << 31, 1 << 31) + data[16:], "cut off"),
    ],
)
def test_broken_idx_files(damage, message, no_system_files):
    folder = no_system_files / "data"
    write_idx_dataset(folder, "train", 1, pack=False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=message):
        open_source("FashionMNIST", folder)
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes())[:-9])
    path.unlink()
    with pytest.raises(SourceError, match="train-images-idx3-ubyte.gz cannot be read|cut off|not an IDX"):
        open_source("FashionMNIST", folder)


def test_images_and_labels_must_belong_together(no_system_files):
    folder = no_system_files / "data"
    write_idx_dataset(folder, "train", 4, pack=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 3], np.uint8)))
    with pytest.raises(SourceError, match="4 images, 3 labels"):
        open_source("FashionMNIST", folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 3, 10], np.uint8)))
    with pytest.raises(SourceError, match="labels up to 10"):
        open_source("FashionMNIST", folder)


def test_torchvision_dataset_with_train_flag(no_system_files):
    folder = no_system_files / "data"
    pictures, labels = write_idx_dataset(folder / "MNIST/raw", "train", 40, pack=False)
    write_idx_dataset(folder / "MNIST/raw", "val", 7, pack=False)
    source = open_source("mnist", folder)
    assert source.class_names[7] == "7 - seven" and source.labels.tolist() == labels.tolist()
    assert np.array_equal(load_rgb(source.image(4))[:, :, 1], pictures[4])
    assert source.notes == (f"MNIST, train=True: read from {folder}",)
    assert len(open_source("MNIST", folder, split="val")) == 7
    assert (
        len(
            open_source("MNIST", folder, split="val", val_fraction=0.25, class_names=source.class_names[::-1])
        )
        == 10
    )


def test_torchvision_dataset_with_split_argument_of_other_names(no_system_files):
    # Country211 calls val "valid"
    for path in (
        "train/AD/1.png",
        "train/BE/2.png",
        "valid/AD/3.png",
        "valid/BE/4.png",
        "test/AD/5.png",
        "test/BE/6.png",
    ):
        touch(no_system_files, f"data/country211/{path}")
        Image.new("RGB", (4, 3), (int(path[-5]), 0, 0)).save(no_system_files / "data/country211" / path)
    source = open_source("Country211", no_system_files / "data", split="val")
    assert source.class_names == ("AD", "BE") and source.labels.tolist() == [0, 1]
    assert [load_rgb(source.image(i))[0, 0, 0] for i in range(2)] == [3, 4]
    assert "split=valid" in source.notes[0]


def test_torchvision_dataset_that_is_nowhere(no_system_files):
    for name in ("CIFAR10", "FashionMNIST"):
        with pytest.raises(SourceError) as caught:
            open_source(name, no_system_files / "data")
        message = str(caught.value)
        assert f"not found in {no_system_files / 'data'}" in message and "could not be downloaded" in message
        assert ("dataset-fashion-mnist" in message) == (name == "FashionMNIST")
        assert not (no_system_files / "data").exists()  # not even an empty folder stays


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("Cifar101", "train", "dataset=Cifar101 is not known; did you mean CIFAR10 or CIFAR100"),
        ("foldr", "train", "did you mean folder"),
        ("EuroSAT", "val", "has one split only; .*val_fraction"),
        ("EMNIST", "train", "EMNIST has no split that could be train"),
    ],
)
def test_datasets_that_cannot_be_used(name, split, message, no_system_files):
    with pytest.raises(SourceError, match=message):
        open_source(name, no_system_files / "data", split=split)


def test_dataset_image_that_cannot_be_read_is_named():
    class Broken:
        def __getitem__(self, i):
            raise RuntimeError("no such\n  record")

    source = IndexedDataset(("a",), np.zeros(3, np.int64), "Things train", Broken())
    with pytest.raises(ImageError, match=r"Things train\[2\]: cannot be read: no such record"):
        source.image(2)


def test_what_the_messages_about_a_wrong_place_say(tmp_path):
    touch(tmp_path, "packed/train-000.tar.gz", "data/images/1.png", "data/labels.csv", "data/notes.md")
    with pytest.raises(SourceError, match="holds no folder: .*unknown kind, like train-000.tar.gz"):
        open_source("auto", str(tmp_path / "packed"))
    with pytest.raises(SourceError, match="does not exist. Wildcards .* several folders with commas"):
        open_source("auto", str(tmp_path / "dat*"))
    with pytest.raises(SourceError, match="does not exist; give one table, or several with commas"):
        open_source("auto", str(tmp_path / "*.csv"))
    beside = [note for note in open_source("auto", str(tmp_path / "data")).notes if "labels.csv" in note]
    assert len(beside) == 1 and "in place of" in beside[0]
    for address in (
        "s3://bucket/photos",
        "https://x.org/x-{0..9}.tar",
        "hf://x/train.parquet",
        "gs://x/a.csv",
    ):
        with pytest.raises(SourceError, match="does not exist. It is an address, .*: download them first"):
            open_source("auto", address)
    touch(tmp_path, "data/more/2.png")  # two classes: the table may be anything
    assert not [note for note in open_source("auto", str(tmp_path / "data")).notes if "in place of" in note]
