"""The folder of an index: nothing lost, whatever happens; one writer; damage that is named."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

import llc
from llc.errors import UserError
from llc.index import storage
from llc.index.array_file import read_arrays, write_arrays
from llc.index.index import Index
from llc.index.verify import _contradictions, verify
from tests import waiting
from tests.index.naive import clustered_codes, random_codes

ROOT = Path(__file__).parents[2]
NUM_BITS = 24


def change(index, step):
    """One change, the same for the same step and index."""
    rng = np.random.default_rng(step)
    n = 25_000 if step == 2 else int(rng.integers(1, 300))  # once enough for tables
    files = [f"{step}/{i}.jpg" for i in range(n)]
    labels, names = rng.integers(0, 2, n), [f"c{step % 5}", "b"]
    index.add(clustered_codes(rng, n, NUM_BITS), labels=labels, class_names=names, files=files)
    if step % 3 == 1:
        index.remove(rng.choice(index.ids, len(index) // 3, replace=False))
    if step % 7 == 6:
        index.optimize()


def state(index):
    """Everything that an index holds, as one value."""
    ids = index.ids
    records = index.records(ids)
    return (
        ids.tobytes(),
        index.get(ids).tobytes(),
        [index.class_names[label] for label in records.labels],
        records.files,
        index.next_id,
    )


def states(count):
    """The states after 0, 1, ..., count changes."""
    index, found = Index(NUM_BITS), []
    for step in range(count + 1):
        found.append(state(index))
        change(index, step)
    return found


def problems(path):
    return [(name, what) for name, found in verify(path) for what in found]


# ---- crashes


WRITER = """
import sys
from llc.index.index import Index
from tests.index.test_storage import change
index = Index.open(sys.argv[1], write=True)
for step in range(int(sys.argv[2]), 1000):
    change(index, step)
    index.save()
    print(step, flush=True)
"""


def test_kills_at_random_moments_leave_the_last_state_that_was_saved(tmp_path):
    path, done, rng = tmp_path / "x.index", 0, random.Random()
    Index(NUM_BITS).save(path)
    reference, left_behind = Index(NUM_BITS), 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, str(done)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        said = process.stdout.readline()  # it has started and saved once
        assert said, process.wait()
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        told = [said, *process.stdout]
        process.wait()
        last_told = int(told[-1])
        for step in range(done, last_told + 1):
            change(reference, step)
        done = last_told + 1
        index = Index.open(path)
        found = state(index)
        if found != state(reference):  # it had saved once more, and could not say so
            change(reference, done)
            done += 1
            assert found == state(reference)
        assert problems(path) == []
        with Index.open(path, write=True) as index:  # the lock died with its owner
            left_behind += bool(set(os.listdir(path)) - named_files(path))
    Index.open(path).save()  # a writer deletes what kills have left
    assert set(os.listdir(path)) == named_files(path)
    print(f"{left_behind} of 6 kills left files behind")


def named_files(path):
    manifest = storage.read_manifest(path)
    files = {name for stored in manifest.segments for name in (stored.file, stored.kept_file) if name}
    return files | {"index.json", "lock"}


class Crash(BaseException):
    pass


def crash_from(patch, function, number):
    """From its call `number` on, counted from 1, a function raises Crash.

    A crashed process does nothing more, so later calls raise it, too. Returns a list that gets an item with
    each call.
    """
    module, name = function.split(".")
    real, calls = getattr(sys.modules[module], name), []

    def crash(*args, **kwargs):
        calls.append(name)
        if len(calls) >= number:
            raise Crash
        return real(*args, **kwargs)

    patch.setattr(function, crash)
    return calls


@pytest.mark.parametrize("function", ["os.replace", "os.fsync", "os.unlink", "tempfile.mkstemp", "os.chmod"])
def test_a_crash_at_any_file_operation_leaves_the_state_before_or_after(function, tmp_path, monkeypatch):
    wanted = states(4)
    index = Index(NUM_BITS)
    for step in range(3):
        change(index, step)
    index.save(tmp_path / "start")
    outcomes = set()
    for number in range(1, 40):
        path = tmp_path / f"{number}.index"
        shutil.copytree(tmp_path / "start", path)
        index = Index.open(path)
        change(index, 3)  # adds a segment
        index.remove(index.ids[:50])
        after = state(index)
        with monkeypatch.context() as patch:
            calls = crash_from(patch, function, number)
            with contextlib.suppress(Crash):
                index.save()
        found = state(Index.open(path))
        assert found in (wanted[3], after) and problems(path) == []
        outcomes.add(found == after)
        if len(calls) < number:
            assert found == after
            break
    else:
        pytest.fail("it never ended without a crash")
    assert outcomes == ({True} if function == "os.unlink" else {True, False})


def test_an_index_is_saved_to_a_new_folder_completely_or_not_at_all(tmp_path, monkeypatch):
    index = Index(NUM_BITS)
    change(index, 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="x.index.*: cannot be written: No space left on device"):
            index.save(tmp_path / "x.index")
    assert os.listdir(tmp_path) == [] and index.path is None
    index.save(tmp_path / "x.index")
    assert state(Index.open(tmp_path / "x.index")) == state(index)


def test_a_full_disk_is_named_and_leaves_the_index_as_it_was(tmp_path):
    """A real limit: files may not become larger than 100 kB."""
    index = Index(64)
    index.add(np.zeros((10, 8), np.uint8))
    index.save(tmp_path / "x.index")
    script = """
import sys, numpy as np, signal
from llc.errors import UserError
from llc.index.index import Index
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = Index.open(sys.argv[1])
index.add(np.random.default_rng(0).integers(0, 256, (100_000, 8)).astype(np.uint8))
try:
    index.save()
except UserError as error:
    print(error)
    assert len(index) == 100_010
"""
    limit = (100_000, 100_000)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.index"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 0, done.stderr
    assert "segment-00000002.llc: cannot be written: File too large" in done.stdout
    assert len(Index.open(tmp_path / "x.index")) == 10 and problems(tmp_path / "x.index") == []
    assert set(os.listdir(tmp_path / "x.index")) == named_files(tmp_path / "x.index")


# ---- several processes


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "x.index"
    Index(8).save(path)
    with Index.open(path, write=True) as index:
        with pytest.raises(UserError, match="this process is writing to the index already; close"):
            Index.open(path, write=True)
        done = subprocess.run(
            [sys.executable, "-m", "llc.index", "optimize", path], capture_output=True, text=True, cwd=ROOT
        )
        assert (
            done.returncode == 2
            and f"another process is writing to the index (process {os.getpid()})" in done.stderr
        )
        other = Index.open(path)  # reading is allowed
        other.add(np.zeros((1, 1), np.uint8))
        with pytest.raises(UserError, match="is writing to the index already"):
            other.save()
        index.add(np.ones((1, 1), np.uint8))
        index.save()
    with pytest.raises(UserError, match="another process has changed the index since it was opened"):
        other.save()
    assert Index.open(path).get([0]).tolist() == [[1]]
    index = Index.open(path, write=True)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()  # it has the lock's file open, too
    try:
        index.close()
        with Index.open(path, write=True):
            pass
    finally:
        child.kill()
        child.join()


def test_readers_see_whole_states_while_another_process_writes(tmp_path):
    path = tmp_path / "x.index"
    Index(NUM_BITS).save(path)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, "0"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline()
        reader, seen, end = Index.open(path), [], time.monotonic() + waiting.seconds(60)
        while len(seen) < 8 and time.monotonic() < end:
            if reader.refresh():
                seen.append((len(reader), reader.next_id, state(reader)))
            opened = Index.open(path)
            assert len(opened.ids) == len(opened)
    finally:
        process.kill()
        process.wait()
    assert len(seen) == 8
    index = Index(NUM_BITS)
    expected = {}
    for step in range(1000):
        change(index, step)
        expected[index.next_id] = state(index)
        if index.next_id >= seen[-1][1]:
            break
    assert all(expected[next_id] == found for _, next_id, found in seen)


def test_a_reader_keeps_its_snapshot_until_it_asks_for_a_newer_one(tmp_path):
    path = tmp_path / "x.index"
    writer = Index(NUM_BITS)
    change(writer, 0)
    writer.save(path)
    reader = Index.open(path)
    before = state(reader)
    for step in (1, 2, 6):
        change(writer, step)
        writer.save()  # deletes the files that the reader has open
    assert state(reader) == before
    assert reader.refresh() and state(reader) == state(writer) and not reader.refresh()
    reader.add(random_codes(np.random.default_rng(0), 1, NUM_BITS))
    with pytest.raises(ValueError, match="changes that were not saved"):
        reader.refresh()


def test_a_copy_is_saved_elsewhere_and_nothing_is_overwritten(tmp_path):
    index = Index(NUM_BITS)
    change(index, 0)
    index.save(tmp_path / "a")
    change(index, 1)
    index.save(tmp_path / "b")
    assert index.path == tmp_path / "a"
    assert state(Index.open(tmp_path / "b")) == state(index) != state(Index.open(tmp_path / "a"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("b", "file", "folder"):
        with pytest.raises(UserError, match=f"{name}: it exists already"):
            index.save(tmp_path / name)
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        index.save(tmp_path / "nowhere" / "x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_folder_is_searched_and_not_changed(tmp_path):
    path = tmp_path / "x.index"
    index = Index(8)
    index.add(np.zeros((1, 1), np.uint8))
    index.save(path)
    os.unlink(path / "lock") if (path / "lock").exists() else None
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", path, path], capture_output=True).returncode == 0
    mounted = mounted and subprocess.run(["mount", "-o", "remount,ro,bind", path]).returncode == 0
    if not mounted:
        pytest.skip("this machine mounts nothing")
    try:
        index = Index.open(path)
        assert index.search(np.zeros((1, 1), np.uint8), 1)[1].tolist() == [[0]]
        index.add(np.ones((1, 1), np.uint8))
        with pytest.raises(UserError, match="x.index: cannot be changed: Read-only file system"):
            index.save()
    finally:
        subprocess.run(["umount", path], check=True)


def test_verify_goes_on_with_the_new_files_when_another_process_commits(tmp_path):
    path, index = tmp_path / "x.index", Index(NUM_BITS)
    for step in (0, 1, 2, 3):
        change(index, step)
        index.save(path if step == 0 else None)
    checking = verify(path)
    next(checking), next(checking)
    index.remove(index.ids[::5])
    index.optimize()
    index.save()
    assert [what for _, found in checking for what in found] == []


# ---- damage


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A saved index with tables, removed rows and labels."""
    path = tmp_path_factory.mktemp("healthy") / "x.index"
    index = Index(NUM_BITS)
    change(index, 2)
    index.save(path)
    change(index, 3)
    index.save()
    index.remove(index.ids[::7])
    index.save()
    assert {len(segment["tables"]) > 0 for segment in index.stats()["segments"]} == {True, False}
    assert problems(path) == []
    return path


def use(path):
    """Everything that reads the arrays of an index."""
    index = Index.open(path)
    queries = random_codes(np.random.default_rng(0), 4, NUM_BITS)
    for method in ("auto", "tables", "scan"):
        index.search(queries, 20, method=method)
        index.range_search(queries, 5, method=method)
    index.search(queries, 5, filter="b")
    list(index.batches())
    index.find_files(["2/17.jpg"])
    index.get(index.ids)
    index.optimize()


def test_verify_names_what_is_broken(healthy, tmp_path):
    for file in sorted(named_files(healthy) - {"lock", "index.json"}):
        path = tmp_path / file
        shutil.copytree(healthy, path)
        data = bytearray((path / file).read_bytes())
        for place in (len(data) // 3, len(data) - 70):
            data[place] ^= 16
        (path / file).write_bytes(data)
        assert {name for name, _ in problems(path)} == {file}
        (path / file).unlink()
        assert {name for name, _ in problems(path)} >= {file}
        with pytest.raises(UserError, match=f"{file} is missing, so the index is not complete"):
            Index.open(path)


def test_verify_finds_an_id_in_two_segments_and_rows_out_of_order(healthy, tmp_path):
    path = tmp_path / "x.index"
    shutil.copytree(healthy, path)
    rewrite(path, lambda data: data["segments"].append({**data["segments"][1], "kept_file": None}))
    assert any("ids are in several segments" in what for _, what in problems(path))
    segment = Index.open(healthy)._snapshot().segments[0]
    _, offsets, _ = segment.tables[0]
    at = int(np.flatnonzero(np.diff(offsets) > 1)[0])  # a bucket of two or more
    first = int(offsets[at])
    ranks, order = segment.ranks.copy(), segment.order.copy()
    ranks[[first, first + 1]] = ranks[[first + 1, first]]
    order[ranks[[first, first + 1]]] = first, first + 1
    damaged = dataclasses.replace(segment, ranks=ranks, order=order)
    [what] = _contradictions(damaged, storage.read_manifest(healthy))
    assert what == "table 0: rows are not in their buckets, in order"


def rewrite(path, change):
    """Changes a manifest, with a checksum that is right."""
    data = json.loads((path / "index.json").read_text())
    del data["checksum"]
    change(data)
    checksum = zlib.crc32(json.dumps(data, sort_keys=True).encode())
    (path / "index.json").write_text(json.dumps({**data, "checksum": checksum}))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda data: data.update(version=2),
            "its format has version 2, and this llc reads version 1; use a newer",
        ),
        (lambda data: data.update(format="another"), "this is not an index of llc"),
        (lambda data: data.update(num_bits=10**9), "num_bits is 1000000000"),
        (lambda data: data.update(next_id=-1), "next_id is -1"),
        (lambda data: data.update(class_names="ab"), "class_names are not a list of texts"),
        (lambda data: data.update(segments=[1]), "it holds 1 where a JSON object is expected"),
        (lambda data: data["segments"][0].update(file="../../secret"), "it names '../../secret'"),
        (lambda data: data["segments"][0].update(kept_file="/etc/passwd"), "which is no file of an index"),
        (lambda data: data["segments"][0].update(checksum=1), "its header is damaged"),
        (lambda data: data.update(num_bits=16), "its codes have 24 bits, and the index has 16"),
        (
            lambda data: data.update(model={"digest": "x", "file": "/etc/passwd"}),
            "its model is not described",
        ),
    ],
)
def test_a_manifest_that_is_foreign_newer_or_forged_is_refused(change, message, healthy, tmp_path):
    path = tmp_path / "x.index"
    shutil.copytree(healthy, path)
    rewrite(path, change)
    with pytest.raises(UserError, match=message):
        Index.open(path)


@pytest.mark.parametrize(
    "tables",
    [
        None,
        {},
        "ab",
        [1],
        [[True, 1]],
        [[-1]],
        [[24]],
        [[10**30]],
        [[0.5]],
        [["1"]],
        [[[0]]],
        [[0, 0]],
        [[0], [0]],
        [[]],
        [[*range(24), *range(8)]],
        [list(range(24))],  # bits enough, but not as many as the tables in the file have
        [list(range(11)), list(range(11, 24))],
        [[bit] for bit in range(24)],
    ],
    ids=repr,
)
def test_forged_tables_are_refused(tables, healthy, tmp_path):
    path = tmp_path / "x.index"
    shutil.copytree(healthy, path)
    forge_tables(path, tables)
    with pytest.raises(UserError, match="tables|offsets"):
        Index.open(path)


def test_more_tables_than_any_segment_has_are_refused(tmp_path):
    index = Index(64)
    index.add(np.random.default_rng(0).integers(0, 256, (20_000, 8), dtype=np.uint8))
    index.save(tmp_path / "x.index")
    forge_tables(tmp_path / "x.index", [[bit] for bit in range(25)])
    with pytest.raises(UserError, match="it has 25 tables, and no segment has more than 24"):
        Index.open(tmp_path / "x.index")


def forge_tables(path, tables):
    """Says something else of the tables of the segment that has some, with checksums that are right."""
    [stored] = [one.stored for one in Index.open(path)._snapshot().segments if one.tables]
    header, arrays = read_arrays(path / stored.file, stored.checksum)
    arrays = {name: array.copy() for name, array in arrays.items()}  # before the file is replaced
    head = {name: header[name] for name in ("num_bits", "num_rows", "first_id")}
    checksum = write_arrays(path / stored.file, {**head, "tables": tables}, arrays)

    def change(data):
        [segment] = [one for one in data["segments"] if one["file"] == stored.file]
        segment["checksum"] = checksum

    rewrite(path, change)


def test_a_manifest_that_was_edited_is_refused(healthy, tmp_path):
    path = tmp_path / "x.index"
    shutil.copytree(healthy, path)
    text = (path / "index.json").read_text()
    (path / "index.json").write_text(text.replace('"next_id": ', '"next_id": 9'))
    with pytest.raises(UserError, match="its checksum is wrong"):
        Index.open(path)


def test_what_is_no_index_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, what in [
        ("file", "this is a file"),
        ("folder", "it has no index.json"),
        ("none", "no such folder"),
    ]:
        for write in (False, True):
            with pytest.raises(UserError, match=what):
                Index.open(tmp_path / name, write=write)
    assert os.listdir(tmp_path / "folder") == []


def test_changed_files_are_refused_or_used_without_a_crash(healthy, tmp_path):
    """Files from strangers: bytes changed at random, with right checksums of headers, used in all ways.

    Another process uses them, so that a crash in the native library would be seen.
    """
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, healthy, tmp_path, "60"], capture_output=True, text=True, cwd=ROOT,
        timeout=waiting.seconds(300),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    refused, used = map(int, done.stdout.split())
    assert refused > 5 and used > 5


FUZZ = """
import json, os, random, shutil, sys
from pathlib import Path
from llc.errors import UserError
from tests.index.test_storage import rewrite, use
import zlib
healthy, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
refused = used = 0
for seed in range(count):
    rng = random.Random(seed)
    path = folder / "fuzzed.index"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(healthy, path)
    file = rng.choice(sorted(p for p in path.iterdir() if p.suffix == ".llc"))
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    header = data[16:16 + length]
    kind = rng.randrange(4)
    if kind == 0:      # anywhere
        for _ in range(rng.randrange(1, 50)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:    # a range of an array, which then holds large or random numbers
        first = rng.randrange(16 + length, len(data))
        last = min(len(data), first + rng.randrange(1, 1 << rng.randrange(1, 18)))
        data[first:last] = bytes([255]) * (last - first) if rng.random() < .5 else rng.randbytes(last - first)
    elif kind == 2:    # the file ends early, or has more behind it
        data = data[:rng.randrange(len(data))] if rng.random() < .7 else data + b"x" * 1000
    else:              # numbers of the header
        text = header.decode()
        numbers = [i for i, c in enumerate(text) if c.isdigit()]
        at = rng.choice(numbers)
        text = text[:at] + str(rng.randrange(10)) + text[at + 1:]
        data[16:16 + length] = text.encode()
    file.write_bytes(data)
    length = int.from_bytes(data[8:16], "little")
    def right(manifest):
        for stored in manifest["segments"]:
            if stored["file"] == file.name:
                stored["checksum"] = zlib.crc32(bytes(data[16:16 + length]))
    rewrite(path, right)
    try:
        use(path)
        used += 1
    except (UserError, ValueError) as error:
        assert str(error), seed
        refused += 1
    from llc.index.verify import verify
    for name, what in verify(path):
        pass
print(refused, used)
"""


# ---- sizes


def test_a_billion_codes_open_at_once(tmp_path):
    """A sparse file: 8 GB of zeros that take no room."""
    path, n = tmp_path / "x.index", 1_000_000_000
    index = Index(64)
    index.add(np.zeros((1, 8), np.uint8))
    index.save(path)
    [stored] = storage.read_manifest(path).segments
    file = path / stored.file
    data = file.read_bytes()
    header = json.loads(data[16 : 16 + int.from_bytes(data[8:16], "little")])
    header["num_rows"] = n
    header["arrays"]["codes"]["shape"] = [n, 8]
    text = json.dumps(header).encode()
    start = -(-(16 + len(text)) // 64) * 64
    with open(file, "wb") as out:
        out.write(data[:8] + len(text).to_bytes(8, "little") + text)
        out.truncate(start + 8 * n)
    rewrite(path, lambda manifest: manifest.update(next_id=n))
    rewrite(path, lambda manifest: manifest["segments"][0].update(checksum=zlib.crc32(text)))
    times = []
    for _ in range(5):
        before = time.perf_counter()
        index = Index.open(path)
        times.append(time.perf_counter() - before)
        assert len(index) == n
    assert min(times) < 10  # it reads nothing but headers; BENCHMARKS.md has the time
    assert n - 1 in index and n not in index
    assert index.get([n - 1, 17]).tolist() == [[0] * 8] * 2
    index.add(np.ones((1, 8), np.uint8))  # nothing of the large segment is copied
    assert index.next_id == n + 1 and len(index) == n + 1
    index.save()
    assert llc.Index.open(path).get([n]).tolist() == [[1] * 8]


def test_more_than_2_to_the_31_codes_in_an_index(tmp_path):
    """Two segments whose rows are numbered beyond 32 bits together, found by their ids."""
    index = Index(8)
    index.add(np.arange(256, dtype=np.uint8)[:, None], np.arange(256) + (1 << 31) - 128)
    index.add(np.arange(256, dtype=np.uint8)[:, None], np.arange(256) + (1 << 33))
    index.save(tmp_path / "x")
    index = Index.open(tmp_path / "x")
    distances, ids = index.search(np.array([[200]], np.uint8), 2)
    assert distances.tolist() == [[0, 0]] and ids.tolist() == [[(1 << 31) - 128 + 200, (1 << 33) + 200]]
