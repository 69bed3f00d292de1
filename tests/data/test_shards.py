"""Several betons as one dataset: which files, in which order, and that they agree."""

import json

import numpy as np
import pytest

from llc.data import beton
from llc.data import shards as module
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.manifest import Manifest, ManifestError, Skipped, data_checksums, verify
from llc.data.shards import check_parts_of_all, open_shards
from llc.distributed import Processes
from llc.errors import UserError
from tests.data.betons import write_small_beton
from tests.data.helpers import picture


def write(path, labels, class_names=("ant", "bee", "cow"), **more):
    """A beton of raw pictures, as high as their place in it + 5, and its manifest, with `more` in it."""
    write_small_beton(
        path, [picture(i, 5 + i, 9) for i in range(len(labels))], labels, [beton.RAW] * len(labels)
    )
    tables = beton.read_tables(path)
    counts = tuple(tables.class_counts(len(class_names)))
    Manifest(
        class_names,
        counts,
        len(labels),
        tables.file_size,
        tables.sha256,
        writer={"write_mode": "raw"},
        **more,
    ).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "b.beton", [0, 1, 1])
    write(tmp_path / "a.beton", [2, 2])
    write(tmp_path / "c.beton", [1, 2, 0, 0, 0])
    return tmp_path


@pytest.mark.parametrize(
    "where, names",
    [
        ("{0}/b.beton", "b"),
        ("{0}/b.beton,{0}/a.beton", "ba"),
        (" {0}/b.beton , {0}/a.beton, ", "ba"),
        ("{0}/*.beton", "abc"),
        ("{0}/[bc]*", "bc"),  # and not their manifests
        ("{0}/c.beton,{0}/[ab].beton", "cab"),
    ],
)
def test_one_several_or_a_glob(where, names, folder):
    shards = open_shards(where.format(folder))
    assert [path.name for path in shards.paths] == [f"{name}.beton" for name in names]
    labels = {"a": [2, 2], "b": [0, 1, 1], "c": [1, 2, 0, 0, 0]}
    assert shards.labels.tolist() == sum((labels[name] for name in names), [])
    places = [(shard, i) for shard, name in enumerate(names) for i in range(len(labels[name]))]
    assert shards.shard_of(np.arange(len(shards))).tolist() == [shard for shard, _ in places]
    assert [int(height) - 5 for height in shards.images["height"]] == [i for _, i in places]
    assert [shards.name(k) for k in range(len(shards))] == [
        f"sample {i} of {shards.paths[shard]}" for shard, i in places
    ]
    manifest = shards.manifest
    assert manifest.class_names == ("ant", "bee", "cow") and manifest.num_samples == len(shards)
    assert manifest.class_counts == tuple(np.bincount(shards.labels, minlength=3).tolist())
    assert manifest.writer == {"write_mode": "raw"}


def test_one_beton_keeps_its_manifest_and_others_change_the_checksum(folder):
    assert open_shards(folder / "a.beton").manifest == verify(folder / "a.beton")
    a_b, b_a = (open_shards(f"{folder}/{x}.beton,{folder}/{y}.beton").manifest for x, y in ("ab", "ba"))
    assert len({a_b.tables_sha256, b_a.tables_sha256, verify(folder / "a.beton").tables_sha256}) == 3


def test_a_name_with_a_comma_and_an_asterisk_is_a_name(tmp_path):
    path = write(tmp_path / "a,b*.beton", [0, 1])
    assert open_shards(path).paths == (path,)


@pytest.mark.parametrize(
    "where, message",
    [
        ("{0}/nowhere.beton", "nowhere.beton does not exist"),
        ("{0}/a.beton,{0}/nowhere.beton", "nowhere.beton does not exist"),
        (
            "{0}/x*.beton",
            r"x\*.beton: no file has such a name; give a beton, several separated by commas, or a glob",
        ),
        (" , ", "names no beton"),
        ("{0}/a.beton,{0}/../{1}/a.beton", "a.beton is named twice .*; every image would come twice"),
        ("{0}/[ab].beton,{0}/b.beton", "b.beton is named twice"),
    ],
)
def test_what_cannot_be_opened_is_named(where, message, folder):
    with pytest.raises(UserError, match=message):
        open_shards(where.format(folder, folder.name))


def test_shards_of_other_classes_or_damaged_are_refused(folder):
    write(folder / "d.beton", [0, 1], class_names=("ant", "bee"))
    with pytest.raises(
        ManifestError, match=r"a.beton has 3 classes and .*d.beton 2, .*label 2: 'cow' and nothing"
    ):
        open_shards(f"{folder}/*.beton")
    (folder / "d.beton").unlink()
    manifest = folder / "c.beton.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "file_size": 7}))
    with pytest.raises(UserError, match="c.beton is not the file of its manifest"):
        open_shards(f"{folder}/*.beton")


# ------------------------------------------------------------------------------------ the parts of a whole


@pytest.fixture
def parts(tmp_path):
    """Three parts of eight images, part-1.beton to part-3.beton."""
    for i, labels in enumerate(([0, 1, 2], [1, 2, 0], [2, 0]), 1):
        write(tmp_path / f"part-{i}.beton", labels, part=(i, 3), order={"shuffled": 1})
    return tmp_path


def test_all_parts_are_one_dataset_and_one_alone_is_one_by_its_name(parts):
    shards = open_shards(parts / "*.beton")
    assert shards.labels.tolist() == [0, 1, 2, 1, 2, 0, 2, 0] and shards.manifest.part is None
    assert open_shards(parts / "part-2.beton").manifest.part == (2, 3)


@pytest.mark.parametrize(
    "removed, where, message",
    [
        (
            "2",
            "{0}/*.beton",
            r"/\*.beton: part 2 of 3 is missing; write it with --cfg.part=2/3, or name a single",
        ),
        ("", "{0}/part-2.beton,{0}/part-3.beton", "part 1 of 3 is missing"),
        ("13", "{0}/*.beton", "part 1 of 3, 3 of 3 is missing"),  # a glob of which only one was written
    ],
)
def test_a_missing_part_is_named(removed, where, message, parts):
    for i in removed:
        (parts / f"part-{i}.beton").unlink()
    with pytest.raises(ManifestError, match=message):
        open_shards(where.format(parts))


def test_machines_may_hold_different_parts(parts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert len(open_shards(f"{parts}/part-[12].beton")) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ManifestError, match="part 3 of 3 is missing"):
        open_shards(f"{parts}/part-[12].beton")


class Machines(Processes):
    """One of several processes; `of_all`: what each of them names."""

    def __init__(self, of_all):
        super().__init__(0, len(of_all))
        self.of_all = of_all

    def gather_objects(self, value):
        values = [module._named(open_shards(where)) for where in self.of_all]
        assert values[self.rank] == value
        return values


def compared(monkeypatch, *of_all):
    monkeypatch.setenv("WORLD_SIZE", str(len(of_all)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_parts_of_all(open_shards(of_all[0]), Machines(of_all))


def test_the_parts_of_all_machines_together_are_complete(parts, monkeypatch):
    one, two, three = (f"{parts}/part-{i}.beton" for i in (1, 2, 3))
    every = f"{parts}/part-*.beton"
    for of_all in (
        (f"{one},{two}", three),
        (one, two, three),
        (f"{one},{two}", f"{two},{three}"),  # machines may share a part
        (every, every),
        (two, two),  # one part alone, by its name
    ):
        compared(monkeypatch, *of_all)
    message = "part 3 of 3 is missing on all machines together; write it with --cfg.part=3/3"
    for of_all in ((f"{one},{two}", one), (one, two), (f"{parts}/part-[12].beton",) * 2):
        with pytest.raises(ManifestError, match=message):
            compared(monkeypatch, *of_all)
    write(parts / "part-3.beton", [2, 0], part=(3, 3), order="source")
    with pytest.raises(ManifestError, match="not made from the same images in the same order"):
        compared(monkeypatch, f"{one},{two}", three)


def test_both_loaders_compare_the_parts(parts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shards, of_all = open_shards(f"{parts}/part-[12].beton"), (f"{parts}/part-[12].beton",) * 2
    with pytest.raises(ManifestError, match="part 3 of 3 is missing"):
        TrainLoader(shards, batch_size=1, num_workers=1, processes=Machines(of_all), seed=0, min_scale=1)
    with pytest.raises(ManifestError, match="part 3 of 3 is missing"):
        ValLoader(shards, batch_size=1, num_workers=1, processes=Machines(of_all), resolution=8, crop_ratio=1)


def test_parts_with_equal_tables_are_different_betons(tmp_path):
    for i in (1, 2):
        images = [picture(10 * i + k, 9, 9) for k in range(3)]
        write_small_beton(tmp_path / f"{i}.beton", images, [0] * 3, [beton.RAW] * 3)
        tables = beton.read_tables(tmp_path / f"{i}.beton")
        checksums = data_checksums([i] * 3)
        Manifest(("ant",), (3,), 3, tables.file_size, tables.sha256, part=(i, 2), checksums=checksums).save(
            tmp_path / f"{i}.beton"
        )
    first, second = (verify(tmp_path / f"{i}.beton") for i in (1, 2))
    assert first.tables_sha256 == second.tables_sha256 and first.identity != second.identity
    assert len(open_shards(tmp_path / "*.beton")) == 6


def test_a_part_that_comes_twice_is_named(parts):
    write(parts / "copy.beton", [1, 2, 0], part=(2, 3), order={"shuffled": 1})
    with pytest.raises(ManifestError, match="copy.beton and .*part-2.beton are both part 2 of 3, and equal"):
        open_shards(parts / "*.beton")


def test_parts_of_two_datasets_are_counted(parts):
    for i, labels in enumerate(([0, 0, 0], [1, 1], [2, 2]), 1):
        write(parts / f"more-{i}.beton", labels, part=(i, 3))
    write(parts / "other-1.beton", [0] * 5, part=(1, 2))
    write(parts / "other-2.beton", [1] * 5, part=(2, 2))
    write(parts / "no-part.beton", [0] * 9)
    assert len(open_shards(parts / "*.beton")) == 8 + 7 + 10 + 9
    (parts / "more-3.beton").unlink()
    with pytest.raises(ManifestError, match="part 3 of 3 is missing"):
        open_shards(parts / "*.beton")


@pytest.mark.parametrize(
    "labels, order", [([1, 2, 0], "source"), ([1, 2, 0], {"shuffled": 2}), ([1], {"shuffled": 1})]
)
def test_parts_of_different_conversions_are_refused(labels, order, parts):
    write(parts / "part-2.beton", labels, part=(2, 3), order=order)
    message = (
        f"not made from the same images in the same order .*part 2 of 3, {len(labels)} images in the order"
    )
    with pytest.raises(ManifestError, match=message):
        open_shards(parts / "*.beton")


def test_what_was_left_out_belongs_to_its_part(parts):
    write(
        parts / "part-2.beton",
        [1, 2],
        part=(2, 3),
        order={"shuffled": 1},
        skipped=(Skipped("x.jpg", "broken"),),
    )
    assert len(open_shards(parts / "*.beton")) == 7
