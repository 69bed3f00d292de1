"""An answer is from one state of the index, also where that changes while the answer is put together."""

import shutil
import threading

import numpy as np
import pytest

from llc.codes import pack_bits
from llc.encoder import Encoder
from llc.errors import UserError
from llc.index.images import encoder_for
from llc.index.index import Index
from llc.serve.limits import Refused
from llc.serve.pictures import Thumbnails
from llc.serve.service import Service
from tests.serve.server import expected
from tests.waiting import seconds


@pytest.fixture
def pair(tmp_path):
    """A service, and another Index of its folder, for changes."""
    rng = np.random.default_rng(0)
    index = Index(12)
    codes = rng.integers(0, 256, (50, 2), np.uint8) & np.array([255, 240], np.uint8)
    index.add(codes, labels=[0] * 50, class_names=["old"], files=[f"old/{i}.png" for i in range(50)])
    index.save(tmp_path / "small.index")
    reader = Index.open(tmp_path / "small.index")
    return Service(reader, None, Thumbnails(None)), reader, Index.open(tmp_path / "small.index")


def replace_all(writer):
    """Gives every id another code, file and class, and commits that."""
    ids, codes = writer.ids, writer.get(writer.ids)
    writer.remove(ids)
    names = [f"new/{id}.png" for id in ids]
    writer.add(
        codes ^ np.array([255, 240], np.uint8), ids, labels=[1] * 50, class_names=["old", "new"], files=names
    )
    writer.save()


@pytest.mark.parametrize("answer", ["search", "record"])
def test_a_commit_in_the_middle_of_an_answer_is_for_the_next(pair, monkeypatch, answer):
    service, reader, writer = pair
    code, before = reader.get([7]), expected(reader, reader.get([7]), 5)
    records = Index.records

    def slow(index, ids):
        """Between the search and the look at the records, another process commits, and that is taken over."""
        monkeypatch.setattr(Index, "records", records)
        replace_all(writer)
        service.refresh()
        return records(index, ids)

    monkeypatch.setattr(Index, "records", slow)
    if answer == "search":
        found = service.search(code, 5, None, ())
        assert [(one.distance, one.id) for one in found.neighbours] == before
        assert all(one.file == f"old/{one.id}.png" and one.label == "old" for one in found.neighbours)
    else:
        record = service.record(7)
        assert (record.code, record.file, record.label) == (code.tobytes().hex(), "old/7.png", "old")
    record = service.record(7)
    assert (record.file, record.label) == ("new/7.png", "new")
    assert record.code == (code ^ np.array([255, 240], np.uint8)).tobytes().hex()


def test_a_slow_search_holds_up_neither_a_refresh_nor_others(pair, monkeypatch):
    service, reader, writer = pair
    searching, go_on, search, slow_answers = threading.Event(), threading.Event(), Index.search, []

    def slow(*arguments, **named):
        searching.set()
        assert go_on.wait(seconds(30))
        return search(*arguments, **named)

    monkeypatch.setattr(Index, "search", slow)
    code = reader.get([7])
    thread = threading.Thread(target=lambda: slow_answers.append(service.search(code, 1, None, ())))
    thread.start()
    assert searching.wait(seconds(30))
    monkeypatch.setattr(Index, "search", search)
    replace_all(writer)
    service.refresh()
    assert service.search(code, 1, None, ()).neighbours[0].file.startswith("new/")
    assert thread.is_alive()
    go_on.set()
    thread.join()
    assert slow_answers[0].neighbours[0].file.startswith("old/")


def test_a_snapshot_stays_as_it_is(pair):
    service, _, writer = pair
    before = service.snapshot()
    replace_all(writer)
    service.refresh()
    assert before.record(7).file == "old/7.png" and service.record(7).file == "new/7.png"
    assert (before.code_at(7) != service.code_at(7)).any()


def test_an_index_is_opened_only_after_a_commit(pair, monkeypatch):
    service, _, writer = pair
    service.refresh()
    opened, open_index = [], Index.open
    monkeypatch.setattr(Index, "open", lambda path: opened.append(path) or open_index(path))
    service.refresh()
    assert not opened
    writer.remove([7])
    writer.save()
    service.refresh()
    service.refresh()
    assert len(opened) == 1


def test_stats_are_counted_once_for_each_state(pair, monkeypatch):
    service, _, writer = pair
    service.refresh()
    counted, stats = [], Index.stats
    monkeypatch.setattr(Index, "stats", lambda index: counted.append(index) or stats(index))
    for _ in range(3):
        found = service.stats()
        assert (found["num_codes"], found["num_labelled"], found["class_names"]) == (50, 50, ["old"])
        service.refresh()
    assert len(counted) == 1
    writer.remove([7])
    writer.save()
    service.refresh()
    for _ in range(3):
        assert (service.stats()["num_codes"], service.stats()["num_labelled"]) == (49, 49)
    assert len(counted) == 2


def test_an_index_of_other_codes_is_not_taken_over(pair):
    service, reader, _ = pair
    reader.path.rename(reader.path.parent / "away")
    Index(24).save(reader.path)
    for _ in range(4):
        service.refresh()
        assert "replaced by an index of 24 bits" in service.stale and service.record(7).file == "old/7.png"
        assert service.stats()["stale"] == service.stale
    shutil.rmtree(reader.path)
    (reader.path.parent / "away").rename(reader.path)
    service.refresh()
    assert service.stale is None and service.record(7).file == "old/7.png"


# ---- an index of another model at the same path


def index_of(encoder, first, path=None):
    """An index of 30 codes from a number on, that keeps an encoder if there is one."""
    index = Index(20)
    codes = np.random.default_rng(first).integers(0, 256, (30, 3), np.uint8)
    codes[:, -1] &= 0xF0
    index.add(codes, np.arange(first, first + 30))
    if encoder is not None:
        index.set_model(encoder)
    if path is not None:
        shutil.rmtree(path, ignore_errors=True)
        index.save(path)
    return index


def served(path, encoder, own=True):
    """A service as __main__ makes it; own: without --model."""
    encoder_of = (lambda index: None if index.model is None else encoder_for(index)) if own else None
    return Service(Index.open(path), encoder, Thumbnails(None), encoder_of=encoder_of)


def code_by(service, photo):
    return pack_bits(service.project(photo)).numpy()


def test_an_index_of_another_model_brings_its_own(tmp_path, image_tree, encoder, other_encoder):
    photo = sorted((image_tree / "val/class_0").iterdir())[0]
    codes = [one.encode([photo]).numpy() for one in (encoder, other_encoder)]
    assert (codes[0] != codes[1]).any()
    path = tmp_path / "photos.index"
    index_of(encoder, 0, path)
    service = served(path, encoder)
    before = service.snapshot()
    best = before.classify("mhd", 3, None, codes[0])
    for kept, first, code in ((other_encoder, 100, codes[1]), (encoder, 200, codes[0])):
        index = index_of(kept, first, path)
        service.refresh()
        assert service.stale is None
        assert (code_by(service, photo.read_bytes()) == code).all()
        found = service.search(code, 5, None, ())
        assert [(one.distance, one.id) for one in found.neighbours] == expected(index, code, 5)
        right = kept.classify([photo], "mhd", 3)
        classes = service.classify("mhd", 3, None, code).classes
        assert [one.label for one in classes] == right.names[0]
        assert [one.score for one in classes] == right.scores[0].tolist()
    # an answer that began before the index was replaced is of the old model and the old codes
    assert (code_by(before, photo.read_bytes()) == codes[0]).all() and before.record(7).id == 7
    assert before.classify("mhd", 3, None, codes[0]) == best


@pytest.mark.parametrize(
    "own, kept, says", [(False, True, "of another model than --model"), (True, False, "keeps no model")]
)
def test_codes_of_a_model_that_is_not_there_are_not_searched(
    tmp_path, image_tree, encoder, other_encoder, own, kept, says
):
    photo = sorted((image_tree / "val/class_0").iterdir())[0]
    code, path = encoder.encode([photo]).numpy(), tmp_path / "photos.index"
    before = index_of(encoder, 0, path)
    service = served(path, encoder, own)
    index_of(other_encoder if kept else None, 100, path)
    for _ in range(4):
        service.refresh()
        assert says in service.stale
        assert (code_by(service, photo.read_bytes()) == code).all()
        found = service.search(code, 5, None, ())
        assert [(one.distance, one.id) for one in found.neighbours] == expected(before, code, 5)
    index_of(encoder, 200, path)
    service.refresh()
    assert service.stale is None and service.record(200).id == 200


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(tmp_path, encoder, other_encoder):
    path = tmp_path / "photos.index"
    index_of(encoder, 0, path)
    service = served(path, encoder)
    index_of(other_encoder, 100, path)
    model = Index.open(path).model
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])  # as where it is still being copied
    service.refresh()
    assert service.stale and service.record(7).id == 7
    model.write_bytes(whole)
    service.refresh()
    assert service.stale is None and service.record(100).id == 100


def test_an_index_may_get_the_model_that_is_served(tmp_path, encoder, other_encoder):
    path = tmp_path / "photos.index"
    index_of(None, 0, path)
    named, bare = served(path, encoder, own=False), served(path, None)
    with Index.open(path, write=True) as index:
        index.remove([7])
        index.save()  # neither says whose codes these are: --model has said it
        named.refresh()
        assert named.stale is None and 7 not in index_ids(named)
        index.set_model(encoder)
        index.save()
    for service in (named, bare):
        service.refresh()
        assert service.stale is None and service.takes_images
    index_of(other_encoder, 100, path)
    named.refresh()
    assert "of another model than --model" in named.stale and named.record(8).id == 8


def index_ids(service):
    zero = np.zeros((1, 3), np.uint8)
    return {one.id for one in service.search(zero, 1000, None, ()).neighbours}


def test_classes_without_names_are_numbers():
    index = Index(12)
    index.add(np.zeros((4, 2), np.uint8), labels=[3, 5, -1, 3])
    service, code = Service(index, None, Thumbnails(None)), np.zeros((1, 2), np.uint8)
    assert [one.label for one in service.search(code, 9, None, ()).neighbours] == [3, 5, None, 3]
    assert [one.id for one in service.search(code, 9, None, ["3"]).neighbours] == [0, 3]
    assert service.search(code, 9, None, ["999999999"]).neighbours == []
    for wrong in (["three"], ["-1"], ["3", "5"], ["9" * 5000], ["\u0663"], [""]):
        with pytest.raises(Refused, match="give one number"):
            service.search(code, 9, None, wrong)


def test_an_index_in_memory_is_served(tmp_path):
    index = Index(12)
    index.add(np.zeros((1, 2), np.uint8))
    service = Service(index, None, Thumbnails(None))
    service.refresh()
    assert service.stale is None and service.record(0).id == 0


def test_an_index_that_comes_back_is_no_longer_stale(pair):
    service, reader, _ = pair
    service.refresh()
    manifest = reader.path / "index.json"
    manifest.rename(reader.path / "away")
    service.refresh()
    assert "index.json" in service.stale or "no index" in service.stale
    assert service.record(7).id == 7
    (reader.path / "away").rename(manifest)
    service.refresh()
    assert service.stale is None


def test_what_is_gone_is_missing(pair):
    service, reader, writer = pair
    writer.remove([7])
    writer.save()
    assert service.record(7).id == 7
    service.refresh()
    for ask in (service.record, service.code_at, service.thumbnail):
        with pytest.raises(Refused, match="no id 7") as error:
            ask(7)
        assert error.value.status == 404


def test_an_empty_index_has_no_neighbours(tmp_path):
    index = Index(12)
    index.save(tmp_path / "empty.index")
    service = Service(Index.open(tmp_path / "empty.index"), None, Thumbnails(None))
    for radius in (None, 3):
        found = service.search(np.zeros((1, 2), np.uint8), 5, radius, ())
        assert (found.neighbours, found.more) == ([], False)


def test_the_model_must_fit(encoder: Encoder):
    with pytest.raises(UserError, match="codes of 20 bits, the index has codes of 12"):
        Service(Index(12), encoder, Thumbnails(None))
