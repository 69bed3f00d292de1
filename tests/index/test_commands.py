"""python -m llc.index and python -m llc.search on an index, as their users call them."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc import search
from llc.errors import UserError
from llc.index import __main__ as command
from llc.index import segment
from llc.index.duplicates import duplicates
from tests.conftest import ROOT
from tests.index.conftest import NUM_BITS


@pytest.fixture
def photos_index(photos, model, tmp_path, capsys):
    """The path of an index of the photos, made by the command."""
    path = tmp_path / "PHOTOS.index"
    run("create", path, photos, f"--model={model}", "--batch_size=5")
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: a new index for codes of {NUM_BITS} bits of the model {model}",
        f"10 images in 2 class folders of {photos}",
        f"2 images directly in {photos}, without a class",
        f"{photos}: 12 images: 12 added",
        f"{path}: 12 codes",
    ]
    return path


def run(*words):
    command.main(list(map(str, words)))


def find(*words):
    search.main(list(map(str, words)))


def codes_index(path, codes, num_bits, **arrays):
    index = llc.Index(num_bits)
    index.add(codes, **arrays)
    index.save(path)
    return path


# ---- the command line


def test_the_commands_are_listed_and_the_nearest_is_named(capsys):
    run("--help")
    said = capsys.readouterr().out
    for name in (*command.COMMANDS, "search"):
        assert f"\n    {name} " in said
    with pytest.raises(UserError, match=r"serach is not a command; did you mean search\?\n"):
        run("serach", "x")
    with pytest.raises(UserError, match="COMMAND is missing\n"):
        run()


@pytest.mark.parametrize(
    "name, keys",
    [
        ("create", "INDEX DATA model= num_bits= skip_broken= remove_missing= files_below= dataset= split="),
        ("add", "INDEX DATA model= num_bits= checkpoint= skip_broken= remove_missing= files_below= device="),
        ("remove", "INDEX FILE ids= label="),
        ("stats", "INDEX json="),
        ("verify", "INDEX"),
        ("duplicates", "INDEX radius= json= montage="),
        ("export", "INDEX to= out= kind= lists= table="),
        ("import", "INDEX SOURCE form= id_column= num_bits= table= new_ids="),
        ("optimize", "INDEX"),
        ("search", "DATABASE IMAGES queries= like= k= radius= label= ids= json= montage= out="),
    ],
)
def test_each_command_says_what_it_takes_and_shows_an_example(name, keys, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    said = capsys.readouterr().out
    shown = "search" if name == "search" else f"index {name}"
    assert end.value.code == 0 and f"    python -m llc.{shown} " in said
    for key in keys.split():
        assert (f"  {key}" if key.isupper() else f"  --{key}") in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["create", "x.index"], "say what codes the index will hold: --model=MODEL"),
        (["create", "."], "it exists already"),
        (["create", "nowhere/x.index", "--num_bits=8"], "there is no folder nowhere"),
        (["create", "x.index", "--num_bits=5000"], "at most 4096"),
        (["create", "x.index", "a.npz", "--num_bits=8"], "a.npz: there is no such file"),
        (["add", "x.index"], "DATA is missing|data is required"),
        (["add", "x.index", "photos", "--files_below=."], "for files codes.npz alone"),
        (["add", "x.index", "."], "x.index"),
        (["add", "x.index", ".", "--skip_brocken"], "did you mean skip_broken"),
        (["remove", "x.index"], "name what to remove"),
        (["remove", "x.index", "--ids=a"], "ids"),
        (["stats", "x.index"], "x.index"),
        (["verify", "x.index"], "x.index"),
        (["duplicates", "x.index", "--radius=-1"], "at least 0"),
        (["export", "x.index", "--to=csv", "--out=x"], "one of faiss"),
        (["export", "x.index", "--to=npz"], "out is required"),
        (["search", "x.index", "a.jpg"], "there is no such index"),
    ],
)
def test_flags_that_are_wrong_are_named_and_nothing_is_made(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(*words)
    assert not os.listdir(tmp_path)


# ---- create, add, remove


def test_create_overwrites_nothing(photos_index, model, capsys):
    with pytest.raises(UserError, match="it exists already; python -m llc.index add adds to an index"):
        run("create", photos_index, f"--model={model}")
    assert len(llc.Index.open(photos_index)) == 12


def test_add_needs_the_model_only_once_and_reports_what_it_did(photos_index, photos, capsys):
    run("add", photos_index, photos, "--num_workers=1")
    assert f"{photos}: 12 images: 12 there already\n" in capsys.readouterr().out
    Image.new("RGB", (40, 40), "green").save(photos / "ants" / "new.png")
    (photos / "10.jpg").unlink()
    (photos / "11.jpg").write_text("a text")
    with pytest.raises(UserError, match=r"11\.jpg: .*--skip_broken"):
        run("add", photos_index, photos)
    capsys.readouterr()
    run("add", photos_index, photos, "--skip_broken", "--num_workers=1")
    said = capsys.readouterr().out
    assert f"left out: {photos / '11.jpg'}: is a text file" in said
    assert "12 images: 1 added, 10 there already, 1 left out, 1 gone" in said
    assert f"gone, but still in the index: {photos / '10.jpg'}; --remove_missing removes them" in said
    run("add", photos_index, photos, "--skip_broken", "--remove_missing")
    assert "1 removed, because their files are gone" in capsys.readouterr().out
    assert len(llc.Index.open(photos_index)) == 12


def test_an_index_without_a_model_takes_codes_and_keeps_the_first_model(
    tmp_path, photos, encoder, model, capsys
):
    path, codes = tmp_path / "x.index", tmp_path / "codes.npz"
    files = sorted(str(file.relative_to(photos)) for file in photos.glob("*/*"))
    np.savez(
        codes,
        codes=encoder.encode([photos / file for file in files]).numpy(),
        num_bits=NUM_BITS,
        files=np.array(files),
    )
    run("create", path, f"--num_bits={NUM_BITS}")
    run("add", path, codes, f"--files_below={photos}")
    assert "10 images: 10 added" in capsys.readouterr().out
    with pytest.raises(UserError, match="keeps no model: give --model="):
        run("add", path, photos)
    run("add", path, photos, f"--model={model}")
    # sizes and times of files that codes.npz named are not known, so they are encoded once more
    assert "12 images: 2 added, 10 changed and encoded anew" in capsys.readouterr().out
    index = llc.Index.open(path)
    assert index.model is not None and len(index) == 12
    find(path, photos / "11.jpg", "--k=1")
    assert str(photos / "11.jpg") in capsys.readouterr().out.splitlines()[1]


def test_remove_by_name_id_and_class(photos_index, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    run("remove", photos_index, "photos/11.jpg")
    assert capsys.readouterr().out == f"{photos_index}: 1 of 12 codes removed\n"
    index = llc.Index.open(photos_index)
    assert str(photos / "11.jpg") not in index.records(index.ids).files and (photos / "11.jpg").exists()
    for words, message in (
        (["photos/11.jpg"], "photos/11.jpg: the index has no such file"),
        (["photos/ant"], "photos/ant: the index has no such file"),
        (["photos/bees", "nowhere", "nowhere2"], r"nowhere: .*\(nor of 1 other names\); nothing was removed"),
        (["--ids=0,77"], "such as 77; nothing was removed"),
        (["--label=ant"], "has no such class; did you mean ants"),
    ):
        with pytest.raises(UserError, match=message):
            run("remove", photos_index, *words)
    assert len(llc.Index.open(photos_index)) == 11
    run("remove", photos_index, "photos/bees/")
    index = llc.Index.open(photos_index)
    assert len(index) == 6 and not any("bees" in name for name in index.records(index.ids).files)
    run("remove", photos_index, "--ids=0,1", "--label=ants")
    assert len(llc.Index.open(photos_index)) == 1
    with pytest.raises(UserError, match="process is writing"), llc.Index.open(photos_index, write=True):
        run("remove", photos_index, "photos")


# ---- stats, verify, optimize


def test_stats_as_a_table_and_as_json(photos_index, tmp_path, capsys):
    run("stats", photos_index)
    said = capsys.readouterr().out
    assert f"{photos_index}\n  codes                     12\n" in said
    assert "segment-00000001.llc" in said and "scan" in said
    run("stats", photos_index, "--json=-")
    figures = json.loads(capsys.readouterr().out)
    assert figures["num_codes"] == 12 and figures["num_bits"] == NUM_BITS
    run("stats", photos_index, f"--json={tmp_path / 'x.json'}")
    assert json.loads((tmp_path / "x.json").read_text()) == figures
    assert figures["model"] == str(photos_index / "encoder.safetensors")


def test_verify_names_what_is_broken(photos_index, capsys):
    run("verify", photos_index)
    said = capsys.readouterr().out.splitlines()
    assert "segment-00000001.llc: ok" in said and said[-1].endswith("nothing is broken")
    segment = photos_index / "segment-00000001.llc"
    data = bytearray(segment.read_bytes())
    data[-70] ^= 1
    segment.write_bytes(data)
    with pytest.raises(SystemExit) as end:
        run("verify", photos_index)
    said = capsys.readouterr().out
    assert end.value.code == 2 and "segment-00000001.llc: " in said and "1 of " in said
    assert "segment-00000001.llc: ok" not in said


def test_optimize_clears_what_was_removed(photos_index, capsys):
    run("remove", photos_index, "--ids=3,4")
    run("optimize", photos_index)
    assert capsys.readouterr().out.endswith("; 2 removed codes cleared\n")
    index = llc.Index.open(photos_index)
    assert index.stats()["num_removed"] == 0 and index.ids.tolist() == [0, 1, 2, *range(5, 12)]


# ---- duplicates


def slow_groups(codes, ids, radius):
    """Connected components, by following every pair."""
    group = {id: {id} for id in ids}
    for a, first in zip(ids, codes):
        for b, second in zip(ids, codes):
            if group[a] is not group[b] and int(np.unpackbits(first ^ second).sum()) <= radius:
                group[a] |= group[b]
                for id in group[b]:
                    group[id] = group[a]
    found = {tuple(sorted(members)) for members in group.values() if len(members) > 1}
    return sorted(found, key=lambda members: (-len(members), members))


@pytest.mark.parametrize("num_bits, radius", [(9, 0), (9, 1), (37, 0), (37, 2), (37, 5), (130, 3)])
def test_groups_of_duplicates_are_the_connected_components(num_bits, radius):
    rng = np.random.default_rng(num_bits + radius)
    centres = rng.integers(0, 2, (25, num_bits))
    rows = centres[rng.integers(0, 25, 120)] ^ (rng.random((120, num_bits)) < 0.6 * radius / num_bits)
    codes, ids = np.packbits(rows, axis=1), rng.permutation(1000)[:120]
    index = llc.Index(num_bits)
    index.add(codes, ids)
    index.remove(ids[:7])
    found = duplicates(index, radius)
    assert [tuple(group.tolist()) for group in found] == slow_groups(codes[7:], ids[7:].tolist(), radius)
    assert 3 < len(found) and all(group.dtype == np.int64 for group in found)
    assert duplicates(llc.Index(num_bits), radius) == []
    with pytest.raises(ValueError, match="radius"):
        duplicates(index, -1)


def test_duplicates_are_listed_with_names_and_distances(photos_index, photos, tmp_path, capsys):
    for name in ("copy.png", "another.png"):
        shutil.copy(photos / "bees" / "3.png", photos / name)
    shutil.copy(photos / "ants" / "2.jpg", photos / "bees" / "2.jpg")
    run("add", photos_index, photos)
    capsys.readouterr()
    sheet, file = tmp_path / "sheet.png", tmp_path / "groups.json"
    run("duplicates", photos_index, f"--montage={sheet}", f"--json={file}")
    said = capsys.readouterr().out.splitlines()
    groups = json.loads(file.read_text())
    assert said[0] == f"{photos_index}: {len(groups)} groups, {1 + 2 * len(groups)} of 15 images in them"
    assert said[1] == "group 1, 3 images:" and said[2].startswith("     0 bits  id ")
    assert said[2].endswith(f"  {photos / 'bees' / '3.png'}")
    first = groups[0]
    assert sorted(first["files"]) == sorted(
        str(photos / name) for name in ("bees/3.png", "copy.png", "another.png")
    )
    assert first["distances"] == [0, 0, 0]
    assert [str(photos / name) for name in ("ants/2.jpg", "bees/2.jpg")] in [one["files"] for one in groups]
    with Image.open(sheet) as image:
        assert image.width > 3 * 168 and image.height > 2 * 168
    run("duplicates", photos_index, "--json=-")
    assert json.loads(capsys.readouterr().out) == groups
    run("duplicates", photos_index, f"--radius={NUM_BITS}")
    assert "1 group, 15 of 15 images" in capsys.readouterr().out


# ---- export, import


def test_codes_of_an_unknown_length_are_said_to_be_taken_as_whole_bytes(photos_index, tmp_path, capsys):
    pytest.importorskip("faiss")
    run("export", photos_index, "--to=faiss", f"--out={tmp_path / 'x.faiss'}")
    run("import", tmp_path / "whole.index", tmp_path / "x.faiss")
    whole = llc.Index.open(tmp_path / "whole.index").num_bits
    assert f"taken for codes of {whole} bits; if they have fewer, give --num_bits" in capsys.readouterr().out
    run("import", tmp_path / "known.index", tmp_path / "x.faiss", f"--num_bits={whole}")
    assert "taken for" not in capsys.readouterr().out


def test_export_and_import(photos_index, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    out = tmp_path / "photos.parquet"
    run("export", photos_index, "--to=parquet", f"--out={out}")
    assert str(out) in capsys.readouterr().out
    run("import", tmp_path / "new.index", out)
    assert capsys.readouterr().out == f"{tmp_path / 'new.index'}: 12 codes added, 12 in all\n"
    one, other = llc.Index.open(photos_index), llc.Index.open(tmp_path / "new.index")
    assert (one.get(one.ids) == other.get(other.ids)).all()
    assert one.records(one.ids).files == other.records(other.ids).files
    run("import", tmp_path / "new.index", out, "--new_ids")
    assert len(llc.Index.open(tmp_path / "new.index")) == 24
    with pytest.raises(UserError, match="within the index"):
        run("export", photos_index, "--to=npz", f"--out={photos_index / 'x.npz'}")


# ---- search


def test_search_shows_neighbours_and_writes_them(photos_index, photos, tmp_path, capsys):
    out, file = tmp_path / "found.npz", tmp_path / "found.json"
    find(photos_index, photos / "ants" / "4.jpg", photos / "bees", f"--out={out}", f"--json={file}", "--k=4")
    said, arrays = capsys.readouterr().out, np.load(out)
    index = llc.Index.open(photos_index)
    names = [photos / "ants" / "4.jpg", *sorted((photos / "bees").iterdir())]
    ids = [index.find_files([str(name)])[0] for name in names]
    distances, expected = index.search(index.get(ids), 4)
    assert (arrays["ids"] == expected).all() and (arrays["distances"] == distances).all()
    assert f"{photos / 'ants' / '4.jpg'}\n     0 bits  id {ids[0]}  ants  {names[0]}\n" in said
    found = json.loads(file.read_text())
    assert found["k"] == 4 and [query["query"] for query in found["queries"]] == list(map(str, names))
    for query, row, near in zip(found["queries"], expected.tolist(), distances.tolist()):
        assert [(one["distance"], one["id"]) for one in query["neighbours"]] == list(zip(near, row))
        assert [one["file"] for one in query["neighbours"]] == index.records(row).files
    assert {one["label"] for query in found["queries"] for one in query["neighbours"]} >= {"ants", "bees"}


def test_search_by_ids_radius_class_and_a_list_of_ids(photos_index, capsys):
    def neighbours(*words):
        find(photos_index, *words, "--json=-")
        return [
            [(one["distance"], one["id"]) for one in query["neighbours"]]
            for query in json.loads(capsys.readouterr().out)["queries"]
        ]

    index = llc.Index.open(photos_index)
    everything = [
        [pair for pair in zip(d, i) if pair[1] != id]
        for id, d, i in zip((3, 7), *(a.tolist() for a in index.search(index.get([3, 7]), 12)))
    ]
    assert neighbours("--like=3,7", "--k=5") == [row[:5] for row in everything]
    assert neighbours("--like=3,7", "--k=50") == everything
    radius = everything[0][4][0]
    assert neighbours("--like=3,7", f"--radius={radius}") == [
        [pair for pair in row if pair[0] <= radius] for row in everything
    ]
    labels = index.records(index.ids).labels
    bees = [[pair for pair in row if labels[pair[1]] == 1] for row in everything]
    assert neighbours("--like=3,7", "--label=bees", "--k=50") == bees
    assert neighbours("--like=3,7", "--label=bees,ants", "--k=50") == [
        [pair for pair in row if labels[pair[1]] >= 0] for row in everything
    ]
    assert neighbours("--like=3,7", "--ids=1,2,3,9") == [
        [pair for pair in row if pair[1] in (1, 2, 3, 9)] for row in everything
    ]
    assert neighbours("--like=3,7", "--ids=1,2,3,9", "--label=bees") == [
        [pair for pair in row if pair[1] in (1, 2, 3, 9)] for row in bees
    ]
    find(photos_index, "--like=3", "--radius=0")
    assert ": nothing was found" in capsys.readouterr().out
    find(photos_index, "--like=3", f"--radius={NUM_BITS}", "--k=3")
    assert "  and 8 more; --k shows more, --json=FILE lists all\n" in capsys.readouterr().out


def test_lims_of_a_search_within_a_radius(photos_index, tmp_path):
    find(photos_index, "--like=3,7", "--radius=12", f"--out={tmp_path / 'found.npz'}")
    arrays = np.load(tmp_path / "found.npz")
    index = llc.Index.open(photos_index)
    for i, id in enumerate((3, 7)):
        _, distances, ids = index.range_search(index.get([id]), 12)
        part = slice(arrays["lims"][i], arrays["lims"][i + 1])
        assert (arrays["ids"][part] == ids[ids != id]).all()
        assert (arrays["distances"][part] == distances[ids != id]).all()


def test_codes_as_queries_and_an_index_without_names(tmp_path, capsys):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (30, 2)).astype(np.uint8)
    path = codes_index(tmp_path / "x.index", codes, 16, labels=np.arange(30) % 3)
    np.savez(tmp_path / "q.npz", codes=codes[5:8], num_bits=16)
    find(path, f"--queries={tmp_path / 'q.npz'}", "--k=2", "--label=2")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "0" and "  id 5  2" in said[1] and len(said) == 9
    np.savez(tmp_path / "q.npz", codes=codes[:3, :1], num_bits=8)
    with pytest.raises(UserError, match="has codes of 8 bits"):
        find(path, f"--queries={tmp_path / 'q.npz'}")
    with pytest.raises(UserError, match="have no names; give a number"):
        find(path, "--like=3", "--label=cat")


def test_the_montage_shows_queries_and_neighbours(photos_index, photos, tmp_path):
    out = tmp_path / "out.png"
    os.unlink(photos / "11.jpg")
    find(photos_index, photos / "ants" / "4.jpg", f"--montage={out}", "--k=12")
    with Image.open(out) as image:
        pixels = np.asarray(image)
    assert pixels.shape[1] == 8 + 13 * 176
    query, nearest = (pixels[33 : 33 + 168, x : x + 168] for x in (8, 8 + 176))
    inside = (query == nearest).all(2).mean()
    assert inside > 0.7  # the rest is the background of the query
    grey = (pixels == (208, 208, 208)).all(2).sum()
    assert 168 * 168 * 0.6 < grey < 168 * 168  # the image that is gone


def test_imagenets_classes_are_shown_in_words(tmp_path, capsys, monkeypatch):
    """JSON keeps their names."""
    path = codes_index(
        tmp_path / "c.index",
        np.zeros((3, 1), np.uint8),
        8,
        labels=[0, 1, -1],
        class_names=["n01440764", "n01443537"],
        files=["a.jpg", "b.jpg", "c.jpg"],
    )
    rows = []
    for module in (search, command):
        monkeypatch.setattr(module, "draw_sheet", lambda given, *_, **__: rows.extend(given))
        monkeypatch.setattr(module, "write_sheet", lambda *_: None)
    found = tmp_path / "found.json"
    find(path, "--like=0", f"--montage={tmp_path / 'x.png'}", f"--json={found}")
    assert "id 1  n01443537 goldfish  b.jpg\n" in capsys.readouterr().out
    assert json.loads(found.read_text())["queries"][0]["neighbours"][0]["label"] == "n01443537"
    assert [tile.captions[0] for tile in rows[0]] == ["query", "0 bits · goldfish", "0 bits"]
    run("duplicates", path, f"--montage={tmp_path / 'x.png'}")
    assert [tile.captions for tile in rows[1]] == [
        ("3 images · id 0", "tench", "a.jpg"),
        ("0 bits · id 1", "goldfish", "b.jpg"),
        ("0 bits · id 2", "c.jpg"),
    ]


def test_no_image_is_overwritten(photos_index, photos, tmp_path):
    new = tmp_path / "new.png"
    Image.new("RGB", (40, 40), "red").save(new)
    ours = photos / "ants" / "0.png"
    link = tmp_path / "link.png"
    link.symlink_to(ours)
    before = {path: path.read_bytes() for path in (new, ours)}
    for words, message in (
        ([new, f"--montage={new}"], "exists and is not a sheet"),
        ([new, f"--json={new}"], "it is read as well"),
        ([new, f"--out={ours}"], "it is an image of the index"),
        ([new, f"--json={ours}"], "it is an image of the index"),
        ([new, f"--json={link}"], "it is an image of the index"),
        ([new, f"--json={photos_index / 'x.json'}"], "it is within the index"),
        ([new, f"--json={tmp_path / 'a'}", f"--out={tmp_path / 'a'}"], "another flag names it, too"),
        ([new, "--json=nowhere/x.json"], "there is no folder nowhere"),
        ([new, "--montage=x.gif"], "expected a name that ends in"),
    ):
        with pytest.raises(UserError, match=message):
            find(photos_index, *words)
    assert before == {path: path.read_bytes() for path in before}


def test_outputs_cost_no_time_in_proportion_to_the_index(photos_index, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segment, "hash_of", None)  # of each name of the index
    old = tmp_path / "old.json"
    old.write_text("{}")
    find(photos_index, "--like=3", f"--json={old}")
    assert json.loads(old.read_text())["queries"]
    with pytest.raises(UserError, match="it is an image of the index"):
        find(photos_index, "--like=3", f"--json={photos / '11.jpg'}")
    (photos / "11.jpg").unlink()  # nothing can be lost there
    monkeypatch.setattr(llc.Index, "has_file", None)
    find(photos_index, "--like=3", f"--json={photos / '11.jpg'}")
    run("stats", photos_index, f"--json={tmp_path / 'new.json'}")
    monkeypatch.setattr(llc.Index, "batches", None)
    run("remove", photos_index, "--label=bees")
    assert "5 of 12 codes removed" in capsys.readouterr().out


def test_k_is_at_most_the_number_of_codes(photos_index, tmp_path, capsys):
    out = tmp_path / "found.npz"
    find(photos_index, "--like=3,7", "--k=1000000000000", f"--out={out}", "--json=-")
    arrays, found = np.load(out), json.loads(capsys.readouterr().out)
    assert arrays["ids"].shape == (2, 12) and (arrays["ids"][:, 11] == -1).all()
    assert found["k"] == 12 and [len(one["neighbours"]) for one in found["queries"]] == [11, 11]
    run("search", photos_index, "--like=3", "--radius=40", "--k=1000000000000")
    assert len(capsys.readouterr().out.splitlines()) == 12
    np.savez(tmp_path / "q.npz", codes=np.zeros((1, 5), np.uint8), num_bits=40)
    llc.Index(40).save(tmp_path / "empty.index")
    find(tmp_path / "empty.index", f"--queries={tmp_path / 'q.npz'}", "--k=1000000000000")
    assert capsys.readouterr().out == "0: nothing was found\n"


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "queries is required"),
        (["--like=99"], "such as 99"),
        (["nowhere.jpg"], "nowhere.jpg"),
        (["--like=1", "--label=wasps"], "no such class.*ants, bees"),
        (["--like=1", "--ids=99"], "such as 99"),
        (["--like=1", "--k=0"], "at least 1"),
        (["--like=1", "--radius=-2"], "at least -1"),
    ],
)
def test_questions_that_cannot_be_answered(words, message, photos_index):
    with pytest.raises(UserError, match=message):
        find(photos_index, *words)


def test_names_that_cannot_be_printed_are_printed_as_escapes(encoder, model, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    name = "red\x1b[31m\n.png"
    Image.new("RGB", (40, 40), "red").save(folder / "x.png")
    (folder / "x.png").rename(folder / name)
    path = tmp_path / "x.index"
    run("create", path, folder, f"--model={model}")
    find(path, folder / name)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "red\\x1b[31m\\n.png" in said
    run("remove", path, folder / name)
    assert len(llc.Index.open(path)) == 0


# ---- what an attack has found


def test_every_kind_of_source_is_added_and_searched(photos, model, tmp_path, capsys):
    """The commands' own options stand for those of reading, and have others as well."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        tar.add(photos / "ants", "ants")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as zipped:
        for path in sorted((photos / "bees").iterdir()):
            zipped.write(path, f"bees/{path.name}")
    (tmp_path / "t.csv").write_text(f"image,label\n{next(iter((photos / 'ants').iterdir()))},ants\n")
    path = tmp_path / "x.index"
    run("create", path, tmp_path / "train-0.tar", f"--model={model}", "--split=train")
    run("add", path, tmp_path / "z.zip", tmp_path / "t.csv")
    assert len(llc.Index.open(path)) == 11
    run("add", path, tmp_path / "train-0.tar", tmp_path / "z.zip", "--split=train")
    assert "5 there already" in capsys.readouterr().out
    find(path, tmp_path / "z.zip", "--k=1", f"--montage={tmp_path / 'out.png'}")
    assert capsys.readouterr().out.count("     0 bits ") == 5


@pytest.mark.parametrize(
    "words",
    [
        ("search", "--like=0", "--json={}/mine.png"),
        ("search", "--like=0", "--out={}/mine.png"),
        ("search", "--like=0", "--json={}/other.index/index.json"),
        ("stats", "--json={}/mine.png"),
        ("duplicates", "--json={}/mine.png"),
    ],
)
def test_results_replace_no_file_of_another_kind(words, photos_index, tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "mine.png")
    codes_index(tmp_path / "other.index", np.zeros((1, 1), np.uint8), 8)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command_name, *flags = [word.format(tmp_path) for word in words]
    with pytest.raises(UserError, match="name another file|write elsewhere"):
        run(command_name, photos_index, *flags)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_older_result_is_replaced(photos_index, tmp_path, capsys):
    for _ in range(2):
        find(photos_index, "--like=0", f"--json={tmp_path / 'found.json'}", f"--out={tmp_path / 'found.npz'}")
    assert json.loads((tmp_path / "found.json").read_text())


def test_an_index_of_another_model_is_not_imported(photos_index, encoder, tmp_path):
    network = copy.deepcopy(encoder.network)
    with torch.no_grad():
        network.projection.weight.add_(1)
    other = llc.Index(NUM_BITS)
    other.set_model(llc.Encoder(network, encoder.preprocessing))
    other.add(np.zeros((1, NUM_BITS // 8), np.uint8))
    other.save(tmp_path / "other.index")
    with pytest.raises(UserError, match="its codes were made by another model than the index's"):
        run("import", photos_index, tmp_path / "other.index", "--new_ids")
    assert len(llc.Index.open(photos_index)) == 12


def test_create_looks_at_its_data_first(model, tmp_path):
    with pytest.raises(UserError, match="nothere does not exist"):
        run("create", tmp_path / "x.index", tmp_path / "nothere", f"--model={model}")
    assert not (tmp_path / "x.index").exists()


def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path):
    rng = np.random.default_rng(0)
    codes_index(tmp_path / "x.index", rng.integers(0, 256, (30_000, 1), dtype=np.uint8), 8)
    words = ["-m", "llc.index", "duplicates", str(tmp_path / "x.index"), "--json=-"]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
