"""What write_ffcv.py chooses to write: classes, images of each, several roots, a random order, a part."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llc.data.manifest import load_manifest, verify
from llc.data.shards import open_shards
from llc.data.sources import OPENERS, RECOGNISERS, Source, SourceError, open_source, register, shuffle
from llc.data.sources.joined import split_roots
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from tests.data.betons import stored_samples
from tests.data.helpers import REPOSITORY, picture, write_tree
from tests.waiting import seconds


def convert(path, data_dir, **settings):
    """Writes raw pixels; returns the manifest and [(pixels, label)], in order, read by nothing of llc's."""
    config = WriterConfig(
        write_path=str(path), data_dir=str(data_dir), **{"write_mode": "raw", "num_workers": 2, **settings}
    )
    manifest = write_beton(config, show_progress=False)
    assert verify(path) == manifest
    return manifest, [(sample.pixels().tobytes(), sample.label) for sample in stored_samples(path)]


def pictures(tree, *names):
    return [tree.pixels[name].tobytes() for name in names]


@pytest.fixture
def registry():
    """Restores the tables of sources."""
    before = dict(OPENERS), dict(RECOGNISERS)
    yield
    for table, content in zip((OPENERS, RECOGNISERS), before):
        table.clear()
        table.update(content)


@dataclass(frozen=True)
class Greys(Source):
    """One grey picture per label; the first image is 0, the second 1, and so on. Classes are not sorted."""

    numbered: bool = False

    def image(self, i):
        return Image.new("L", (4, 3), int(i))

    def name(self, i):
        return f"grey {i}"

    @property
    def numbered_classes(self):
        return self.numbered


def greys(names, labels, **more):
    return Greys(tuple(names), np.array(labels, np.int64), **more)


# ----------------------------------------------------------------------------------------- classes


def class_file(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    return str(path)


def test_only_the_classes_of_the_file_are_written_in_its_order(tree, tmp_path, capsys):
    classes = class_file(tmp_path, "# two of three\n\n  cow  \nant six legs, no wings\n")
    manifest, found = convert(tmp_path / "out.beton", tree, classes=classes)
    assert manifest.class_names == ("cow", "ant") and manifest.class_counts == (9, 5)
    assert manifest.class_words == ("", "six legs, no wings")
    cows, ants = ([name for name in tree.pixels if name.startswith(kind)] for kind in ("cow", "ant"))
    assert [pixels for pixels, _ in found] == pictures(tree, *cows, *ants)  # class by class, as before
    assert [label for _, label in found] == [0] * 9 + [1] * 5
    assert f"2 of 3 classes, as {classes} lists them" in capsys.readouterr().out


def test_lines_are_names_before_their_first_words_are(registry, tmp_path):
    register("seas")(lambda data_dir, split: greys(("sea", "sea lion", "lion"), [2, 1, 0, 1]))
    chosen = open_source("seas", "", classes=class_file(tmp_path, "\ufeffsea lion\nlion king\n"))
    assert chosen.class_names == ("sea lion", "lion") and chosen.class_words == ("", "king")
    assert chosen.labels.tolist() == [1, 0, 0] and chosen.indices.tolist() == [0, 1, 3]


def test_words_of_the_source_follow_its_classes(registry, tmp_path):
    words = ("tench, Tinca tinca", "", "hen")
    register("birds")(lambda data_dir, split: greys(("n1", "n2", "n3"), [0, 1, 2], class_words=words))
    classes = class_file(tmp_path, "n3\nn1 a fish\n")
    assert open_source("birds", "", classes=classes).class_words == ("hen", "a fish")
    ordered = open_source("birds", "", class_names=("n0", "n3", "n2", "n1"))
    assert ordered.class_words == ("", "hen", "", "tench, Tinca tinca")
    assert open_source("birds", "", per_class=1, subset=2, shuffle_seed=0, part=(1, 2)).class_words == words


def test_a_class_of_the_file_without_images_is_noted(tree, tmp_path, capsys):
    shutil.rmtree(tree / "bee")
    (tree / "bee").mkdir()
    manifest, found = convert(tmp_path / "out.beton", tree, classes=class_file(tmp_path, "bee\ncow\n"))
    assert manifest.class_counts == (0, 9) and {label for _, label in found} == {1}
    assert "1 of 2 classes have no images in this split: bee" in capsys.readouterr().out
    with pytest.raises(SourceError, match="no images of the 1 classes: bee"):
        open_source("folder", tree, classes=class_file(tmp_path, "bee"))


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "cow\nbeee\nzebra\nAnt\n",
            r"classes.txt: 3 of its 4 names are not classes here: line 2: beee \(near: bee\); line 3: zebra;"
            r" line 4: Ant \(near: ant\). The 3 classes are: ant, bee, cow",
        ),
        ("cow\n# x\ncow flies\n", "classes.txt names the class cow in lines 1 and 3"),
        ("\n# nothing\n", "classes.txt names no class; write one a line"),
    ],
)
def test_lists_of_classes_that_cannot_be_followed(text, message, tree, tmp_path):
    with pytest.raises(SourceError, match=message):
        open_source("folder", tree, classes=class_file(tmp_path, text))


def test_a_class_is_found_by_its_words(registry, tmp_path):
    register("fish")(lambda data_dir, split: greys(("n1",), [0], class_words=("tench, Tinca tinca",)))
    with pytest.raises(SourceError, match=r"line 1: tinca tinka \(near: n1 \(tench, Tinca tinca\)\)"):
        open_source("fish", "", classes=class_file(tmp_path, "tinca tinka"))


def test_files_that_are_no_lists_of_classes(tree, tmp_path):
    with pytest.raises(SourceError, match="nowhere.txt cannot be read: No such file"):
        open_source("folder", tree, classes=str(tmp_path / "nowhere.txt"))
    with pytest.raises(SourceError, match="to follow a manifest use class_names_from"):
        open_source("folder", tree, classes="train.beton.json")
    with pytest.raises(SourceError, match="classes and class_names_from both say"):
        open_source("folder", tree, classes="x", class_names=("a",))


def test_names_for_classes_that_are_only_numbers(registry, tmp_path):
    register("digits")(lambda data_dir, split: greys("012", [2, 0, 1, 2], numbered=True))
    source = open_source(
        "digits", "", classes=class_file(tmp_path, "no\nn01440764 tench\n#\ntwo words\nmore\n")
    )
    assert source.class_names == ("no", "n01440764", "two words", "more")
    assert source.class_words == ("", "tench", "", "") and source.labels.tolist() == [2, 0, 1, 2]
    assert any("1 of 4 classes have no images in this split: more" in note for note in source.notes)
    chosen = open_source("digits", "", classes=class_file(tmp_path, "2\n0 nothing\n"))
    assert chosen.class_names == ("2", "0") and chosen.labels.tolist() == [0, 1, 0]
    with pytest.raises(SourceError, match="names 2 classes, but the classes here are numbers up to 2"):
        open_source("digits", "", classes=class_file(tmp_path, "a\nb\n"))
    with pytest.raises(SourceError, match="names the class crane in lines 1 and 3"):
        open_source("digits", "", classes=class_file(tmp_path, "crane\nb\ncrane\n"))
    source = open_source("digits", "", class_names=("cow", "ant", "bee"))  # as of a manifest
    assert source.class_names == ("cow", "ant", "bee") and source.labels.tolist() == [2, 0, 1, 2]
    assert "the classes are numbers, and 3 names are given for them: 0 is cow" in source.notes
    with pytest.raises(SourceError, match="3 classes are not among the 2 of class_names_from: 0, 1, 2"):
        open_source("digits", "", class_names=("cow", "ant"))


@pytest.mark.parametrize(
    "numbers, labels",
    [
        (("0", "3"), [0, 3]),  # classes without images have no number
        (("1", "3"), [1, 3]),
        (("1", "4"), [0, 3]),  # 4 names and a class 4: they count from 1
        (("2", "4"), [1, 3]),
    ],
)
def test_numbers_count_from_zero_or_from_one(numbers, labels, registry, tmp_path):
    register("sparse")(lambda data_dir, split: greys(numbers, [0, 1], numbered=True))
    classes = class_file(tmp_path, "a\nb\nc\nd\n")
    assert open_source("sparse", "", classes=classes).labels.tolist() == labels
    assert open_source("sparse", "", class_names=tuple("abcd")).labels.tolist() == labels


@pytest.mark.parametrize("numbers", [("0", "4"), ("1", "5")])
def test_numbers_that_have_no_name(numbers, registry, tmp_path):
    register("sparse")(lambda data_dir, split: greys(numbers, [0, 1], numbered=True))
    with pytest.raises(
        SourceError, match=f"names 4 classes, but the classes here are numbers up to {numbers[1]}"
    ):
        open_source("sparse", "", classes=class_file(tmp_path, "a\nb\nc\nd\n"))


# ----------------------------------------------------------------------------------------- images per class


def test_per_class_takes_evenly_spaced_images_of_each(tree, tmp_path):
    manifest, found = convert(tmp_path / "out.beton", tree, per_class=3)
    assert manifest.class_counts == (3, 3, 3)
    names = [
        f"{kind}/{i:03}.png" for kind, places in (("ant", (0, 2, 4)), ("bee", (2, 6, 10))) for i in places
    ]
    assert [pixels for pixels, _ in found[:6]] == pictures(tree, *names)


def test_per_class_keeps_the_order_of_the_source(registry):
    register("mixed")(lambda data_dir, split: greys("ab", [1, 0, 1, 1, 0, 0, 1]))
    assert open_source("mixed", "", per_class=2).indices.tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize(
    "count, message",
    [
        (9, r"per_class=9: 1 of 3 classes have fewer images: ant \(5\)"),
        (10, r"2 of 3 classes have fewer images: ant \(5\), cow \(9\)"),
        (0, "per_class=0: it takes 1 or more"),
    ],
)
def test_classes_with_fewer_images_are_named(count, message, tree):
    with pytest.raises(SourceError, match=message):
        open_source("folder", tree, per_class=count)


# ----------------------------------------------------------------------------------------- several roots


def test_roots_are_joined_class_by_class(tmp_path):
    first = write_tree(tmp_path / "a", {"ant": 3, "bee": 2})
    second = {}
    for label, (name, count) in enumerate({"ant": 1, "bee": 4}.items()):
        (tmp_path / "b" / name).mkdir(parents=True)
        for i in range(count):
            second[f"{name}/{i:03}.png"] = picture(500 + 10 * label + i, 9, 11)
            Image.fromarray(second[f"{name}/{i:03}.png"]).save(tmp_path / "b" / name / f"{i:03}.png")
    where = f"{tmp_path}/a, {tmp_path}/b"
    manifest, found = convert(tmp_path / "out.beton", where)
    expected = [
        (pixels.tobytes(), label)
        for label, kind in enumerate(("ant", "bee"))
        for root in (first, second)
        for name, pixels in root.items()
        if name.startswith(kind)
    ]
    assert found == expected and manifest.class_counts == (4, 6)
    source = open_source("auto", where)
    assert [source.name(i) for i in (2, 3)] == [f"{tmp_path}/a/ant/002.png", f"{tmp_path}/b/ant/000.png"]
    assert source.image(3) == f"{tmp_path}/b/ant/000.png"
    assert source.reader.read(source.handles(np.array([9]))[0])[1] == f"{tmp_path}/b/bee/003.png"


def test_roots_of_other_order_and_unsorted_come_one_after_the_other(registry):
    sources = {"x": greys("ab", [1, 0, 1]), "y": greys("ba", [0, 1], class_words=("bee", ""))}
    register("any")(lambda data_dir, split: sources[data_dir])
    source = open_source("any", "x,y")
    assert source.class_names == ("a", "b") and source.labels.tolist() == [1, 0, 1, 1, 0]
    assert source.class_words == ("", "bee")
    assert [source.image(i).getpixel((0, 0)) for i in range(5)] == [0, 1, 2, 0, 1]
    handles = source.handles(np.array([4, 0, 3]))
    assert [source.reader.read(handle)[1] for handle in handles] == ["y/grey 1", "x/grey 0", "y/grey 0"]


def test_roots_with_different_classes_are_refused_with_what_differs(tmp_path):
    write_tree(tmp_path / "a", {"ant": 1, "bee": 1})
    write_tree(tmp_path / "b", {"bee": 1, "cow": 1, "dog": 1})
    message = r"a and .*/b have different classes: only .*/a has ant; only .*/b has cow, dog\."
    with pytest.raises(SourceError, match=message):
        open_source("auto", f"{tmp_path}/a,{tmp_path}/b")


def test_what_is_between_commas(tmp_path):
    assert split_roots("a, b,") == ["a", "b"] and split_roots("") == [""] and split_roots("a ") == ["a "]
    assert split_roots("x/{0,1}.tar,y/{2,3}.tar") == ["x/{0,1}.tar", "y/{2,3}.tar"]
    nested = "x/{a,{b,c},d}-{0..3,7}.tar"
    assert split_roots(nested) == [nested] and split_roots(f"{nested}, y") == [nested, "y"]
    assert split_roots("x{,y") == ["x{", "y"] and split_roots("x},{y,z}") == ["x}", "{y,z}"]
    (tmp_path / "a,b").mkdir()
    assert split_roots(tmp_path / "a,b") == [tmp_path / "a,b"]
    (tmp_path / "a,b,c.tar").write_text("")
    where = f"{tmp_path}/x,{tmp_path}/a,b,c.tar, {tmp_path}/a,b,y"
    assert split_roots(where) == [f"{tmp_path}/x", f"{tmp_path}/a,b,c.tar", f"{tmp_path}/a,b", "y"]
    with pytest.raises(SourceError, match="names a/../a twice; every image of it would come twice"):
        split_roots("a,b,a/../a")


def test_names_with_control_characters_are_stored_as_they_are_and_printed_as_escapes(tmp_path, capsys):
    for root in ("a", "b\033[1m"):
        write_tree(tmp_path / root, {"ant\u202e": 2})
    victim = f"{tmp_path}/b\033[1m/ant\u202e/\n\udcff.png"
    Path(victim).write_bytes(b"\x89PNG")
    manifest, _ = convert(tmp_path / "out.beton", f"{tmp_path}/a,{tmp_path}/b\033[1m", on_error="skip")
    assert manifest.class_names == ("ant\u202e",)
    assert [skipped.name for skipped in manifest.skipped] == [victim.replace("\udcff", "\\xff")]
    assert verify(tmp_path / "out.beton") == manifest
    printed = capsys.readouterr().out
    assert r"b\x1b[1m/ant\u202e/\n\xff.png: " in printed and not {"\033", "\u202e"} & set(printed)


def test_an_unreadable_image_is_named_with_its_root(tmp_path, capsys):
    for root in "ab":
        write_tree(tmp_path / root, {"ant": 2})
    (tmp_path / "b/ant/001.png").write_bytes(b"\x89PNG")
    manifest, found = convert(tmp_path / "out.beton", f"{tmp_path}/a,{tmp_path}/b", on_error="skip")
    assert len(found) == 3 and [skipped.name for skipped in manifest.skipped] == [f"{tmp_path}/b/ant/001.png"]


# ----------------------------------------------------------------------------------------- order and parts


def test_shuffle_is_a_permutation_that_the_seed_fixes(tree, tmp_path):
    plain, in_order = convert(tmp_path / "plain.beton", tree)
    one, of_one = convert(tmp_path / "1.beton", tree, shuffle=1)
    _, of_two = convert(tmp_path / "2.beton", tree, shuffle=2)
    assert (plain.order, one.order) == ("source", {"shuffled": 1})
    assert Counter(of_one) == Counter(of_two) == Counter(in_order)
    assert len({tuple(order) for order in (in_order, of_one, of_two)}) == 3
    assert one.class_counts == plain.class_counts == (5, 12, 9)
    assert load_manifest(tmp_path / "1.beton").order == {"shuffled": 1}
    labels = [label for _, label in of_one]
    assert sum(a != b for a, b in zip(labels, labels[1:])) > 8  # no longer class by class (2 changes)


def test_the_random_order_never_changes():
    """Parts that were written by different machines and versions fit together only if it stays the same."""
    assert shuffle(greys("a", [0] * 10), 3).indices.tolist() == [1, 6, 9, 0, 4, 5, 3, 2, 7, 8]


@pytest.mark.parametrize("seed", [-1, 5])
def test_three_parts_together_are_the_whole(seed, tree, tmp_path):
    whole, of_whole = convert(tmp_path / "whole.beton", tree, shuffle=seed)
    parts = [convert(tmp_path / f"part-{i}.beton", tree, shuffle=seed, part=f"{i}/3") for i in (1, 2, 3)]
    assert [manifest.num_samples for manifest, _ in parts] == [9, 9, 8]
    assert [manifest.part for manifest, _ in parts] == [(1, 3), (2, 3), (3, 3)] and whole.part is None
    for i, (manifest, found) in enumerate(parts):
        assert found == of_whole[i::3]  # so they are disjoint, and together the whole
        assert manifest.class_names == whole.class_names and manifest.order == whole.order
    shards = open_shards(f"{tmp_path}/part-*.beton")
    assert len(shards) == 26 and shards.manifest.class_counts == whole.class_counts
    assert shards.manifest.part is None and shards.manifest.order == "unknown"


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", "/"])
def test_parts_that_there_are_not(part, tree, tmp_path):
    with pytest.raises(UserError, match=f"part={part}: give i/n, part i of n, counted from 1"):
        convert(tmp_path / "out.beton", tree, part=part)
    with pytest.raises(UserError, match="part=1/27: there are only 26 images for 27 parts"):
        convert(tmp_path / "out.beton", tree, part="1/27")


def test_all_choices_together_and_any_number_of_workers_write_the_same_bytes(tmp_path):
    """Joined, three classes of four, held out, 6 a class, 17 of these, shuffled, divided, one left out."""
    for root, more in (("a", 0), ("b", 3)):
        write_tree(tmp_path / root, {"ant": 7 + more, "bee": 5, "cow": 9, "dog": 4 + more}, ".jpg")
    settings = {
        "classes": class_file(tmp_path, "cow\ndog\nant\n"),
        "val_fraction": 0.2,
        "per_class": 6,
        "subset": 17,
        "shuffle": 4,
        "on_error": "skip",
        "write_mode": "proportion",
        "chunk_size": 2,
    }
    where = f"{tmp_path}/a,{tmp_path}/b"
    source = open_source(
        "auto", where, "train", 0.2, None, 17, classes=settings["classes"], per_class=6, shuffle_seed=4
    )
    victim = source.image(4)
    with open(victim, "wb") as file:
        file.write(b"\xff\xd8 is no JPEG")
    names = [source.name(i) for i in range(17)]
    whole_notes = " ".join(source.notes)
    steps = ["3 of 4 classes", "val_fraction=0.2", "per_class=6", "subset=17", "shuffle=4"]
    assert sorted(steps, key=whole_notes.index) == steps
    contents, skipped = {}, []
    for workers in (1, 3):
        for i in (1, 2):
            path = tmp_path / f"{workers}-{i}.beton"
            config = WriterConfig(
                write_path=str(path), data_dir=where, num_workers=workers, part=f"{i}/2", **settings
            )
            manifest = write_beton(config, show_progress=False)
            assert manifest.class_names == ("cow", "dog", "ant")
            contents[workers, i] = path.read_bytes()
            skipped += [entry.name for entry in manifest.skipped]
            kept = [name for name in names[i - 1 :: 2] if name != victim]
            labels = [("cow", "dog", "ant").index(name.split("/")[-2]) for name in kept]
            assert [sample.label for sample in stored_samples(path)] == labels
    assert contents[1, 1] == contents[3, 1] and contents[1, 2] == contents[3, 2]
    assert contents[1, 1] != contents[1, 2] and skipped == [victim] * 2
    assert len(open_shards(f"{tmp_path}/3-?.beton")) == 16  # what was left out belongs to its part


# ----------------------------------------------------------------------------------------- which source


def test_a_dataset_is_recognised_and_named(registry, tmp_path, capsys):
    @register("Boxes", recognises=lambda data_dir: str(data_dir).endswith(".box"))
    def open_boxes(data_dir, split, columns):
        return greys((columns.image, columns.label, columns.header), [2, 1, 0], notes=("3 boxes",))

    config = WriterConfig(
        write_path=str(tmp_path / "out.beton"),
        data_dir="my.box",
        num_workers=1,
        image_column="front",
        label_column="3",
        header="no",
    )
    manifest = write_beton(config, show_progress=False)
    assert manifest.class_names == ("front", "3", "no")
    assert capsys.readouterr().out.splitlines()[:2] == ["my.box was recognised as Boxes", "3 boxes"]
    joined = open_source("auto", "a.box,b.box")
    assert joined.notes[::2] == ("a.box was recognised as Boxes", "b.box was recognised as Boxes")
    assert len(joined) == 6


def test_columns_of_what_has_none_are_refused(tree, tmp_path):
    with pytest.raises(SourceError, match="dataset=folder has no columns, so leave"):
        convert(tmp_path / "out.beton", tree, label_column="x")


def test_images_without_labels_are_refused_before_the_work(registry, tmp_path, capsys):
    bare = greys((), [-1, -1], notes=("bare, as it was found",))
    register("bare")(lambda data_dir, split: bare)
    with pytest.raises(
        UserError, match="of here have no labels, .* a folder per class, or .*--cfg.label_column"
    ):
        convert(tmp_path / "out.beton", "here", dataset="bare")
    assert list(tmp_path.iterdir()) == []
    assert "bare, as it was found" in capsys.readouterr().out  # says why there are none
    with pytest.raises(UserError, match="here has no labels, so its images cannot be chosen by class"):
        convert(tmp_path / "out.beton", "here", dataset="bare", per_class=1)
    assert len(open_source("bare", "here,there", subset=3)) == 3  # which is enough for encoding


def test_words_that_do_not_fit_the_classes_are_refused_before_the_work(registry, tmp_path):
    register("wordy")(lambda data_dir, split: greys("ab", [0, 1], class_words=("x",)))
    with pytest.raises(UserError, match="2 classes, but words for 1 of them"):
        convert(tmp_path / "out.beton", "", dataset="wordy")


def test_the_command_writes_parts_and_says_so(tree, tmp_path, write_ffcv):
    done = write_ffcv(
        data_dir=tree, write_path=tmp_path / "part-2.beton", part="2/3", shuffle=1, per_class=5, num_workers=2
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:4] == [
        "per_class=5: evenly spaced over each class, of 26 images",
        "shuffle=1: the images are in a random order",
        "part 2 of 3: 5 of 15 images (numbers 2, 5, ...)",
    ]
    assert f"{tmp_path / 'part-2.beton'}: 5 images, 3 classes" in lines[-1]
    done = write_ffcv(data_dir=tree, write_path=tmp_path / "x.beton", shuffle=-2)
    assert done.returncode == 2 and "cfg.shuffle" in done.stderr and "at least -1" in done.stderr


def test_the_slurm_recipe_of_the_documents(tmp_path):
    """The script in docs/how-to/data.md, run for each task as by Slurm, for 3 parts and other folders."""
    text = (REPOSITORY / "docs/how-to/data.md").read_text()
    (script,) = re.findall(r"```shell\n(.*?)```", text, re.DOTALL)
    write_tree(tmp_path / "images/train", {"ant": 4, "bee": 6})
    for old, new in (
        ("1-8", "1-3"),
        ("$i/8", "$i/3"),
        (".venv/bin/python", sys.executable),
        ("/imagenet", f"{tmp_path}/images"),
        ("/betons", str(tmp_path)),
    ):
        assert old in script
        script = script.replace(old, new)
    for task in (1, 2, 3):
        if task == 3:
            with pytest.raises(UserError, match="part 3 of 3 is missing"):
                open_shards(f"{tmp_path}/train-part-*.beton")
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(
            ["bash", "-c", script], cwd=REPOSITORY, env=environment, check=True, timeout=seconds(120)
        )
    shards = open_shards(f"{tmp_path}/train-part-*.beton")
    assert shards.manifest.class_counts == (4, 6)


def test_progress_shows_megabytes_written_and_how_many_were_skipped(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llc.progress.LINE_SECONDS", 0.0)  # a line at every step
    (tree / "ant/000.png").write_bytes(b"")
    config = WriterConfig(
        write_path=str(tmp_path / "out.beton"),
        data_dir=str(tree),
        num_workers=1,
        chunk_size=2,
        on_error="skip",
    )
    write_beton(config)
    lines = capsys.readouterr().err.splitlines()
    assert all(
        re.search(r"^out.beton: \d+ % \(\d+ of 26 img\), .* img/s, .* left, skipped 1$", x) for x in lines
    )
    assert any(re.search(r"img/s, [\d.,]+ MB/s, ", line) for line in lines)
