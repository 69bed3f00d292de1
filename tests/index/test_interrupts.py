"""Ctrl-C at any line of a change: the index is as before the change or as after it, in memory and on disk."""

import os

import numpy as np
import pytest

import llc
from llc.index.index import Index
from tests import interrupting

FILES = tuple(f"/llc/index/{name}.py" for name in ("index", "segment", "storage", "state", "array_file"))
FILES += ("/llc/files.py",)
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 256, (60, 8), dtype=np.uint8)
MANY = RNG.integers(0, 256, (25_000, 8), dtype=np.uint8)  # enough for tables


def interrupted(change, number):
    """Calls change() with a KeyboardInterrupt at the line `number` of llc/index -> whether it came."""
    return interrupting.interrupted(change, number, lambda code: code.co_filename.endswith(FILES))


def rows(index):
    """{id: code}; each id is found once, and all codes are found."""
    ids = index.ids
    assert len(np.unique(ids)) == len(ids) == len(index)
    found = index.search(CODES[:1], len(ids) + 1)[1]
    assert sorted(found[0, :-1].tolist()) == ids.tolist()
    return dict(zip(ids.tolist(), map(bytes, index.get(ids))))


def small():
    """Two segments, and rows that are not yet in one."""
    index = llc.Index(64)
    index.add(CODES[:40], files=[f"{i}.jpg" for i in range(40)])
    assert len(index.ids) == 40
    index.add(CODES[40:45])
    assert len(index.ids) == 45
    index.add(CODES[45:50])
    return index


def large():
    index = llc.Index(64)
    index.add(MANY)
    return index


CHANGES = {
    "search": (small, lambda index: index.search(CODES[:1]), {}),
    "build tables": (large, lambda index: index.search(CODES[:1]), {}),
    "add": (small, lambda index: index.add(CODES[50:]), {i: bytes(CODES[i]) for i in range(50, 60)}),
    "replace": (
        small,
        lambda index: index.replace([3, 47], CODES[50:52]),
        {3: bytes(CODES[50]), 47: bytes(CODES[51])},
    ),
    "remove": (small, lambda index: index.remove([3, 45]), {3: None, 45: None}),
    "optimize": (small, lambda index: index.optimize(), {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_made_or_not(name):
    make, change, difference = CHANGES[name]
    before = rows(make())
    after = {id: code for id, code in (before | difference).items() if code is not None}
    for number in range(1, 2000):
        index = make()
        came = interrupted(lambda: change(index), number)  # noqa: B023
        found = rows(index)
        assert found in (before, after), f"line {number}"
        if not came:
            assert found == after
            break
        change(index) if found == before else None
        assert rows(index) == after, f"line {number}, after the second try"
    assert 10 < number < 1999
    if name == "build tables":
        assert len(index.stats()["segments"][0]["tables"]) > 1


@pytest.mark.parametrize("new", [True, False], ids=["new folder", "commit"])
def test_a_save_is_made_or_not(new, tmp_path):
    for number in range(1, 4000, 5):
        path, index = tmp_path / f"{number}.index", small()
        before = None
        if not new:
            index.save(path)
            before = rows(index)
            index.remove([3])
            index.add(CODES[50:])
        wanted = rows(index)
        came = interrupted(lambda: index.save(path), number)  # noqa: B023
        assert rows(index) == wanted
        if path.exists():
            on_disk = rows(Index.open(path))
            assert on_disk in (before, wanted), f"line {number}"
        if not came:
            assert on_disk == wanted
            break
        if not path.exists() or index.path is not None:
            index.save(path)
            assert rows(Index.open(path)) == wanted, f"line {number}, after the second try"
    assert 10 < number < 3990


def test_a_refresh_is_made_or_not_and_loses_nothing_of_others(tmp_path):
    for number in range(1, 2000, 3):
        path, writer = tmp_path / f"{number}.index", small()
        writer.save(path)
        reader = Index.open(path)
        writer.add(CODES[50:])
        writer.save()
        came = interrupted(reader.refresh, number)
        if came:
            reader.refresh()
        reader.add(CODES[:1], [1000])
        reader.save()
        assert len(rows(Index.open(path))) == 61, f"line {number}"
        if not came:
            break
    assert 10 < number < 1990
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_an_index_that_was_replaced_is_not_overwritten(tmp_path):
    """A reader of 64 bits, whose folder then holds another index: it says so whenever it is asked."""
    small().save(tmp_path / "x")
    reader = Index.open(tmp_path / "x")
    os.rename(tmp_path / "x", tmp_path / "old")
    other = llc.Index(16)
    other.add(np.zeros((3, 2), np.uint8))
    other.save(tmp_path / "x")
    for _ in range(3):
        with pytest.raises(llc.UserError, match="it was replaced by an index of 16 bits"):
            reader.refresh()
    reader.add(CODES[50:])
    with pytest.raises(llc.UserError, match="another process has changed the index"):
        reader.save()
    assert len(Index.open(tmp_path / "x")) == 3
