"""ImageNet in every form in which it is handed out: the same images, labels and words from each."""

import csv
import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from llc.data.images import load_rgb
from llc.data.manifest import verify
from llc.data.reading import AUTO, find_source
from llc.data.sources import SourceError, open_source, recognise
from llc.data.sources.imagenet import GROUND_TRUTH
from tests.data.helpers import picture

# WordNet ids in the order of the devkit's numbers, which is another one than the sorted one.
WNIDS = ("n02119789", "n01440764", "n02100735", "n01443537")
WORDS = {
    "n02119789": "kit fox, Vulpes macrotis",
    "n01440764": "tench, Tinca tinca",
    "n02100735": "English setter",
    "n01443537": "goldfish, Carassius auratus",
}
SORTED = tuple(sorted(WNIDS))
VAL = (3, 1, 4, 1, 2, 3, 4, 2, 1, 3, 2, 4)  # ILSVRC2012_ID of val images 1, 2, ...
TRAIN = {"n02119789": 3, "n01440764": 5, "n02100735": 2, "n01443537": 4}


def encoded(seed, kind="JPEG", mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(picture(seed, 24 + seed % 5, 30)).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def images():
    """{"train": {"n01440764/n01440764_10026.JPEG": bytes, ...}, "val": {"ILSVRC2012_val_....JPEG": ...}}"""
    train = {
        f"{wnid}/{wnid}_{number}.JPEG": encoded(100 * k + number)
        for k, (wnid, count) in enumerate(TRAIN.items())
        for number in range(8, 8 + count)  # 8, 9, 10, 11: not in the order of the names
    }
    train["n02100735/n02100735_8.JPEG"] = encoded(1, "PNG")  # ImageNet has one such
    train["n02119789/n02119789_9.JPEG"] = encoded(2, "JPEG", "CMYK")  # and 22 of these
    val = {f"ILSVRC2012_val_{i:08}.JPEG": encoded(1000 + i) for i in range(1, len(VAL) + 1)}
    return {"train": train, "val": val}


def tar_of(files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def class_tars_of(train):
    classes = {}
    for name, content in train.items():
        wnid, base = name.split("/")
        classes.setdefault(wnid, {})[base] = content
    return {f"{wnid}.tar": tar_of(files) for wnid, files in classes.items()}


def devkit_files():
    """{name below ILSVRC2012_devkit_t12: bytes}; meta.mat as the real one has it, inner nodes included."""
    from scipy.io import savemat

    numbers = ("ILSVRC2012_ID", "num_children", "wordnet_height", "num_train_images")
    names = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images".split()
    fields = [(name, float if name in numbers else object) for name in names]
    synsets = np.zeros((len(WNIDS) + 2, 1), fields)
    for i, wnid in enumerate(WNIDS):
        synsets[i, 0] = (i + 1, wnid, WORDS[wnid], "a gloss", 0, np.zeros(0), 0, TRAIN[wnid])
    synsets[-2, 0] = (5, "n00001740", "entity", "a gloss", 2, np.array([1.0, 6.0]), 2, 0)
    synsets[-1, 0] = (6, "n00015388", "animal", "a gloss", 3, np.array([2.0, 3, 4]), 1, 0)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=True)
    return {
        "readme.txt": b"The development kit",
        "data/meta.mat": file.getvalue(),
        f"data/{GROUND_TRUTH}": "".join(f"{number}\n" for number in VAL).encode(),
    }


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_devkit(folder, form="tar.gz"):
    files = {f"ILSVRC2012_devkit_t12/{name}": content for name, content in devkit_files().items()}
    if form == "folder":
        write_files(folder, files)
    else:
        import gzip

        (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar_of(files)))


def tables():
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("ImageId", "PredictionString"))
    for i in (5, 2, 12, 1, 3, 4, 7, 6, 11, 8, 9, 10):
        wnid = WNIDS[VAL[i - 1] - 1]
        boxes = f"{wnid} 85 1 499 272 " + (f"{wnid} 1 2 3 4 " if i % 3 == 0 else "")
        table.writerow((f"ILSVRC2012_val_{i:08}", boxes))
    return {
        "LOC_val_solution.csv": text.getvalue().encode(),
        "LOC_synset_mapping.txt": "".join(f"{wnid} {WORDS[wnid]}\n" for wnid in SORTED).encode(),
        "LOC_sample_submission.csv": b"ImageId,PredictionString\n",
    }


def kaggle_files(images):
    place = "ILSVRC/Data/CLS-LOC"
    return {
        "LOC_sample_submission.csv": tables()["LOC_sample_submission.csv"],
        "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_8.xml": b"<annotation/>",
        **{f"{place}/test/ILSVRC2012_test_{i:08}.JPEG": encoded(i) for i in (1, 2)},
        **{f"{place}/train/{name}": content for name, content in images["train"].items()},
        **{f"{place}/val/{name}": content for name, content in images["val"].items()},
        **tables(),
    }


def make_tars(folder, images):
    write_files(
        folder,
        {
            "ILSVRC2012_img_train.tar": tar_of(class_tars_of(images["train"])),
            "ILSVRC2012_img_val.tar": tar_of(images["val"]),
        },
    )
    write_devkit(folder)


def make_class_tars(folder, images):
    write_files(
        folder, {f"train/{name}": content for name, content in class_tars_of(images["train"]).items()}
    )
    write_files(folder / "val", images["val"])
    write_devkit(folder, "folder")


def make_kaggle(folder, images):
    write_files(folder, kaggle_files(images))


def make_kaggle_zip(folder, images, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(folder / "imagenet-object-localization-challenge.zip", "w", method) as archive:
        for name, content in kaggle_files(images).items():
            archive.writestr(name, content)


def make_tree(folder, images):
    """As ImageNet is usually prepared."""
    write_files(folder / "train", images["train"])
    write_files(
        folder / "val",
        {
            f"{WNIDS[VAL[int(name[15:23]) - 1] - 1]}/{name}": content
            for name, content in images["val"].items()
        },
    )


def make_flat_tree(folder, images):
    """A train tree, and val as it was unpacked."""
    write_files(folder / "train", images["train"])
    write_files(folder / "val", images["val"])


FORMS = {
    "tars": (make_tars, "ImageNet-tars"),
    "class tars": (make_class_tars, "ImageNet-tars"),
    "kaggle": (make_kaggle, "ImageNet-Kaggle"),
    "kaggle zip": (make_kaggle_zip, "ImageNet-Kaggle"),
    "flat val, devkit": (lambda *args: (make_flat_tree(*args), write_devkit(args[0])), "folder"),
    "flat val, table": (lambda *args: (make_flat_tree(*args), write_files(args[0], tables())), "folder"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("tree")
    make_tree(folder, images)
    return {split: open_source("folder", folder, split) for split in ("train", "val")}


def pixels(source):
    return [load_rgb(source.image(i)) for i in range(len(source))]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form, images, expected, tmp_path):
    make, dataset = FORMS[form]
    make(tmp_path, images)
    assert recognise(tmp_path) == recognise(os.fspath(tmp_path)) == dataset
    for split in ("train", "val"):
        source = open_source(dataset, tmp_path, split)
        assert source.class_names == SORTED == expected[split].class_names
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == expected[split].labels.tolist() and len(source) == len(images[split])
        for one, other in zip(pixels(source), pixels(expected[split])):
            assert np.array_equal(one, other)
        names = [expected[split].name(i) for i in range(len(source))]
        assert [source.name(i) for i in range(len(source))] == [
            name.split("/")[1] if split == "val" else name for name in names
        ]
        if split == "train" and form.startswith("flat"):
            assert source.class_words == ()
        else:
            assert source.class_words == tuple(WORDS[wnid] for wnid in SORTED)


def test_val_labels_are_right(images, tmp_path):
    """Without any other reader of labels: image i has the class that the ground truth gives it."""
    make_tars(tmp_path, images)
    source = open_source("ImageNet-tars", tmp_path, "val")
    for i in range(len(source)):
        number = int(source.name(i).removeprefix("ILSVRC2012_val_").removesuffix(".JPEG"))
        assert source.class_names[source.labels[i]] == WNIDS[VAL[number - 1] - 1]
        assert source.image(i) == images["val"][source.name(i)]


@pytest.mark.parametrize("form", ["tars", "kaggle zip"])
def test_betons_are_the_same_from_every_form(form, images, tmp_path, write_ffcv):
    make_tree(tmp_path / "tree", images)
    make, dataset = FORMS[form]
    (tmp_path / "packed").mkdir()
    make(tmp_path / "packed", images)
    for split in ("train", "val"):
        contents = []
        for folder, name, workers in (("tree", "folder", 1), ("packed", dataset, 1), ("packed", dataset, 3)):
            beton = tmp_path / "x.beton"
            done = write_ffcv(
                data_dir=tmp_path / folder,
                dataset=name,
                split=split,
                write_path=beton,
                num_workers=workers,
                chunk_size=2,
            )
            assert done.returncode == 0, done.stderr
            assert verify(beton).class_names == SORTED
            contents.append(beton.read_bytes())
        assert contents[0] == contents[1] == contents[2]


def test_a_tar_serves_where_its_split_was_not_unpacked(images, expected, tmp_path):
    make_tars(tmp_path, images)
    write_files(tmp_path / "train", images["train"])
    assert recognise(tmp_path) == "folder"  # the tree counts, as before
    for dataset in ("folder", "imagenet"):
        assert "class folders" in open_source(dataset, tmp_path, "train").notes[0]
        source = open_source(dataset, tmp_path, "val")
        assert source.labels.tolist() == expected["val"].labels.tolist()
        assert "ILSVRC2012_img_val.tar" in source.notes[0]
    shutil.rmtree(tmp_path / "train")
    assert "tars of classes" in open_source("imagenet", tmp_path, "train").notes[0]


def test_a_single_tar(images, tmp_path):
    make_tars(tmp_path, images)
    for name, split in (("ILSVRC2012_img_train.tar", "train"), ("ILSVRC2012_img_val.tar", "val")):
        assert recognise(tmp_path / name) == "ImageNet-tars"
        assert len(open_source("ilsvrc2012", tmp_path / name, split)) == len(images[split])


def test_train_needs_no_devkit(images, tmp_path):
    make_tars(tmp_path, images)
    os.remove(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    source = open_source("ImageNet-tars", tmp_path)
    assert source.class_names == SORTED and source.class_words == ()
    with pytest.raises(
        SourceError, match="val.tar: The labels .* are missing. .*ILSVRC2012_devkit_t12.tar.gz"
    ):
        open_source("ImageNet-tars", tmp_path, "val")


@pytest.mark.parametrize("place", ["", "val", "data"])
def test_where_the_devkit_may_lie(place, images, tmp_path):
    make_flat_tree(tmp_path, images)
    if place == "data":
        write_files(tmp_path, devkit_files())
    else:
        write_devkit(tmp_path / place)
    source = open_source("folder", tmp_path, "val")
    assert source.class_names == SORTED and len(source) == 12


@pytest.mark.parametrize("place", [".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggle_is_found_from_every_level(place, images, tmp_path, monkeypatch):
    make_kaggle(tmp_path, images)
    assert recognise(tmp_path / place) == "ImageNet-Kaggle"
    monkeypatch.chdir(tmp_path / place)
    for folder in (tmp_path / place, "."):
        for split in ("train", "val"):
            source = open_source("kaggle", folder, split)
            assert source.class_words == tuple(WORDS[wnid] for wnid in SORTED)
            assert len(source) == len(images[split])


def test_kaggle_zip_itself_and_table_beside_it(images, expected, tmp_path):
    make_kaggle_zip(tmp_path, images, zipfile.ZIP_STORED)
    path = tmp_path / "imagenet-object-localization-challenge.zip"
    assert recognise(path) == "ImageNet-Kaggle"
    assert len(open_source("kaggle", path)) == 14
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for info in whole.infolist():
            if not info.filename.startswith("LOC_"):
                archive.writestr(f"imagenet/{info.filename}", whole.read(info))
    with pytest.raises(SourceError, match="b.zip, .*labels .*are missing; put LOC_val_solution.csv"):
        open_source("kaggle", tmp_path / "b.zip", "val")
    write_files(tmp_path, tables())
    source = open_source("kaggle", tmp_path / "b.zip", "val")
    assert source.labels.tolist() == expected["val"].labels.tolist()


# ------------------------------------------------------------------------------------------------ refusals


def test_a_flat_val_without_labels_says_what_is_missing(images, tmp_path, write_ffcv):
    make_flat_tree(tmp_path, images)
    done = write_ffcv(data_dir=tmp_path, split="val", dataset="folder", write_path=tmp_path / "x.beton")
    assert done.returncode == 2
    for part in (
        f"{tmp_path / 'val'} holds 12 images such as ILSVRC2012_val_00000001.JPEG",
        f"into {tmp_path}: ILSVRC2012_devkit_t12.tar.gz, which image-net.org hands out",
        "LOC_val_solution.csv, which is in Kaggle's",
    ):
        assert part in done.stderr


def test_commands_read_a_flat_val_as_the_writer_does(images, tmp_path):
    make_flat_tree(tmp_path, images)
    write_devkit(tmp_path)
    written, read = open_source("auto", str(tmp_path), "val"), find_source(str(tmp_path), AUTO)
    assert read.class_names == written.class_names and read.labels.tolist() == written.labels.tolist()
    assert names_of(read) == [os.path.join("val", name) for name in names_of(written)]
    alone = find_source(str(tmp_path / "val"), AUTO)  # a folder of images
    assert alone.class_names == () and sorted(names_of(alone)) == sorted(names_of(written))


def names_of(source):
    return [source.name(i) for i in range(len(source))]


def damage_devkit(folder, change):
    files = devkit_files()
    change(files)
    write_files(folder, {f"ILSVRC2012_devkit_t12/{name}": content for name, content in files.items()})


GROUND = f"data/{GROUND_TRUTH}"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda files: files.update({GROUND: files[GROUND] + b"1\n"}),
            "holds 12 of the 13 images .*_00000013.JPEG",
        ),
        (lambda files: files.update({GROUND: files[GROUND][:-2]}), "00000012.JPEG has no label in"),
        (
            lambda files: files.update({GROUND: b"9\n" + files[GROUND]}),
            "line 1 of .* is 9; .*of the 4 classes",
        ),
        (lambda files: files.update({GROUND: b"x" + files[GROUND]}), "line 1 of .* is x3;"),
        (lambda files: files.pop(GROUND), f"{GROUND_TRUTH} cannot be read: No such file"),
        (lambda files: files.update({"data/meta.mat": b"x"}), "meta.mat is not that of ImageNet's devkit"),
    ],
)
def test_devkits_that_do_not_fit(change, message, images, tmp_path):
    write_files(tmp_path, {"ILSVRC2012_img_val.tar": tar_of(images["val"])})
    damage_devkit(tmp_path, change)
    with pytest.raises(SourceError, match=message):
        open_source("ImageNet-tars", tmp_path, "val")


def test_a_damaged_devkit_tar(images, tmp_path):
    make_tars(tmp_path, images)
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SourceError, match="devkit_t12.tar.gz.* get a new copy"):
        open_source("ImageNet-tars", tmp_path, "val")
    path.write_bytes(b"<html>")
    with pytest.raises(SourceError, match="devkit_t12.tar.gz.* get a new copy"):
        open_source("ImageNet-tars", tmp_path, "val")


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "its first line is ''"),
        (b"image,label\n", "first line is 'image,label', not 'ImageId,PredictionString'"),
        (b"ImageId,PredictionString\n", "holds no labels"),
        (b"ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "line 2 is 'ILSVRC2012_val_00000001,'"),
        (b"ImageId,PredictionString\nILSVRC2012_test_00000001,n01440764 1\n", "line 2 is 'ILSVRC2012_test"),
        (
            b"ImageId,PredictionString\nILSVRC2012_val_00000001,n99 1\n",
            "n99 is not in LOC_synset_mapping.txt",
        ),
        (
            b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1\n"
            b"ILSVRC2012_val_00000001,n02119789 1\n",
            "line 3 gives ILSVRC2012_val_00000001 another class",
        ),
        (
            b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1\n",
            "has no label in .*solution.csv",
        ),
        (b"\xff\xfe", "LOC_val_solution.csv cannot be read"),
    ],
)
def test_tables_that_do_not_fit(text, message, images, tmp_path):
    make_flat_tree(tmp_path, images)
    write_files(tmp_path, {**tables(), "LOC_val_solution.csv": text})
    with pytest.raises(SourceError, match=message):
        open_source("folder", tmp_path, "val")


def test_train_tars_that_cannot_be_used(images, tmp_path):
    path = tmp_path / "ILSVRC2012_img_train.tar"
    inner = class_tars_of(images["train"])

    def refuse(files, message):
        path.write_bytes(files if isinstance(files, bytes) else tar_of(files))
        with pytest.raises(SourceError, match=message):
            open_source("ImageNet-tars", tmp_path)

    whole = tar_of(inner)
    refuse(
        whole[: len(whole) // 2], "img_train.tar is cut off: n.*.tar in it ends at byte .* download it again"
    )
    refuse(
        {**inner, "n01440764.tar": inner["n01440764.tar"][:1000]},
        "n01440764.tar in .*img_train.tar is cut off",
    )
    refuse({**inner, "a/n01440764.tar": b""}, "n01440764.tar is there twice")
    refuse({**inner, "n01440764.tar": tar_of({"readme": b""})}, "1 of its tars hold no images: n01440764")
    refuse(
        {**inner, "n1.tar": tar_of({"x.JPEG": b"", "./x.JPEG": b""})}, "n1.tar in .*: x.JPEG is there twice"
    )
    refuse({"n1/x.JPEG": b"", "n2/x.JPEG": b""}, "holds no tars of classes, .*give dataset=tar")
    with pytest.raises(SourceError, match="split=val: .*ILSVRC2012_img_val.tar does not exist"):
        open_source("ImageNet-tars", tmp_path, "val")


def test_other_files_in_the_tars_are_said(images, tmp_path):
    inner = class_tars_of(images["train"])
    inner["n01440764.tar"] = tar_of({"._x.JPEG": b"", "notes.txt": b"", "n01440764_1.JPEG": encoded(1)})
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of({**inner, "readme": b"", "._n.tar": b""}))
    source = open_source("ImageNet-tars", tmp_path)
    assert source.class_counts().tolist() == [1, 4, 2, 3]
    assert source.notes[0].startswith("10 images in 4 tars of classes") and source.notes[1].startswith(
        "2 files"
    )


@pytest.mark.parametrize("make", [make_tree, make_flat_tree])
def test_trees_are_not_taken_for_anything_else(make, images, tmp_path):
    make(tmp_path, images)
    (tmp_path / "backup.tar").write_bytes(b"")
    assert recognise(tmp_path) == "folder"
    for odd in (
        "",
        tmp_path / "gone",
        "a\0b",
        tmp_path / "*.tar",
        "/dev/null",
        "{",
        tmp_path / "train" / "n02100735",
    ):
        assert recognise(odd) in ("folder", "WebDataset")
