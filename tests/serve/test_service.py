"""An answer is from one state of the index, also where that changes while the answer is put together."""

import threading

import numpy as np
import pytest

from llc.encoder import Encoder
from llc.errors import UserError
from llc.index.index import Index
from llc.serve.limits import Refused
from llc.serve.pictures import Thumbnails
from llc.serve.service import Service
from tests.serve.server import expected


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
def test_a_commit_in_the_middle_of_an_answer_waits(pair, monkeypatch, answer):
    service, reader, writer = pair
    code, before = reader.get([7]), expected(reader, reader.get([7]), 5)
    refreshing = threading.Thread(target=service.refresh)
    records, answers = reader.records, []

    def slow(ids):
        """Between the search and the look at the records, another process commits."""
        if not answers:
            answers.append("asked")
            replace_all(writer)
            refreshing.start()
            refreshing.join(0.3)
            assert refreshing.is_alive()  # it waits for the answer
        return records(ids)

    monkeypatch.setattr(reader, "records", slow)
    if answer == "search":
        found = service.search(code, 5, None, ())
        assert [(one.distance, one.id) for one in found.neighbours] == before
        assert all(one.file == f"old/{one.id}.png" and one.class_name == "old" for one in found.neighbours)
    else:
        record = service.record(7)
        assert (record.code, record.file, record.label) == (code.tobytes().hex(), "old/7.png", 0)
    refreshing.join()
    record = service.record(7)
    assert (record.file, record.class_name) == ("new/7.png", "new")
    assert record.code == (code ^ np.array([255, 240], np.uint8)).tobytes().hex()


def test_searches_wait_for_no_refresh_without_a_commit(pair, monkeypatch):
    service, reader, writer = pair
    service.refresh()
    asked = []
    monkeypatch.setattr(reader, "refresh", lambda: asked.append(1))
    service.refresh()
    assert not asked
    writer.remove([7])
    writer.save()
    service.refresh()
    assert asked


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
