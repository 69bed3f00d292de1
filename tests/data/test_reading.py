"""Commands read images from any source: recognised, named, with and without labels, two batches in memory."""

import dataclasses
import gc
import os
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc import encode, search
from llc.data.batches import open_images, prepare
from llc.data.preprocessing import Preprocessing
from llc.data.reading import Reading
from llc.data.sources import OPENERS, RECOGNISERS, Source, SourceError, register
from llc.data.sources.base import Columns
from llc.data.writer import WriterConfig, write_beton
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import draw, trained_network

NAMES = ("ant", "bee", "cow")
ANY = (Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD),)
ALONE = {"batch_size": 3, "num_workers": 1, "processes": Processes()}


@dataclasses.dataclass(frozen=True)
class Drawn(Source):
    """Images that are drawn from a seed; only its reader draws them, as in sources with long lists."""

    def image(self, i):
        raise AssertionError("the reader reads, not the source")

    def name(self, i):
        return f"drawing {i}\n"

    @property
    def reader(self):
        return Reader()

    def handles(self, indices):
        return [(int(i), int(i) % 3) for i in indices]


class Reader:
    threads = set()

    def read(self, handle):
        self.threads.add(threading.get_ident())
        return drawn(*handle), f"drawing {handle[0]}\n"


def drawn(seed, label):
    return Image.fromarray(draw(np.random.default_rng(seed), 2 * label, (30 + seed, 40)))


@pytest.fixture
def opened():
    """Registers the source of *.drawn files; the list of how it was opened. Forgets the source afterwards."""
    before, calls = (dict(OPENERS), dict(RECOGNISERS)), []

    @register("Drawn", recognises=lambda path: path.endswith(".drawn"))
    def open_drawn(data_dir, split, columns):
        calls.append((data_dir, split, columns))
        if not os.path.exists(data_dir):
            raise SourceError(f"{data_dir} does not exist")
        names = tuple(open(data_dir).read().split())
        labels = np.arange(7) % 3 if names else np.full(7, -1)
        return Drawn(names, labels.astype(np.int64), notes=("seven drawings",))

    yield calls
    for table, content in zip((OPENERS, RECOGNISERS), before):
        table.clear()
        table.update(content)


@pytest.fixture(scope="module")
def encoder():
    network = trained_network("resnet18", 40, 3, width=8)
    return llc.Encoder(network, Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD), NAMES)


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "encoder.safetensors"
    encoder.save(path)
    return str(path)


@pytest.fixture
def data(tmp_path):
    """data(class names): a file that the source takes."""

    def of(*names):
        path = tmp_path / "some.drawn"
        path.write_text(" ".join(names))
        return str(path)

    return of


def encoded(model, data, tmp_path, *words):
    encode.main([model, f"--data={data}", f"--out={tmp_path / 'codes.npz'}", "--batch_size=3", *words])
    return dict(np.load(tmp_path / "codes.npz"))


def test_a_source_is_recognised_and_read_by_its_reader_in_threads(
    opened, encoder, model, data, tmp_path, capsys
):
    Reader.threads.clear()
    found = encoded(model, data("cow", "ant", "bee"), tmp_path, "--num_workers=2")
    assert opened == [(data("cow", "ant", "bee"), "val", Columns())]
    expected = encoder.encode([drawn(i, i % 3) for i in range(7)])
    assert len(torch.unique(expected, dim=0)) > 3 and (found["codes"] == expected.numpy()).all()
    assert found["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found["class_names"].tolist() == ["cow", "ant", "bee"]
    assert found["files"].tolist() == [f"drawing {i}\n" for i in range(7)]
    assert "seven drawings" in capsys.readouterr().out
    assert threading.get_ident() not in Reader.threads and 1 <= len(Reader.threads) <= 2


def test_a_source_is_named_and_told_its_split_and_columns(opened, model, data, tmp_path):
    path = data("ant")
    os.rename(path, path + ".txt")
    words = ("--split=train", "--image_column=2", "--label_column=kind", "--header=yes")
    found = encoded(model, path + ".txt", tmp_path, "--dataset=drawn", *words)
    assert opened == [(path + ".txt", "train", Columns("2", "kind", "yes"))] and len(found["codes"]) == 7


def test_evaluation_takes_the_models_label_order(opened, model, data, tmp_path, capsys):
    predictions = tmp_path / "predictions.npz"
    evaluate.main([model, f"--data.val_dataset={data('cow', 'ant', 'bee')}", f"--predictions={predictions}"])
    assert np.load(predictions)["labels"].tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert ": 7 images, 40 bits" in capsys.readouterr().out
    with pytest.raises(UserError, match="zebra"):
        evaluate.main([model, f"--data.val_dataset={data('cow', 'ant', 'zebra')}"])


def test_evaluation_says_for_how_many_images_z_is_no_number(opened, model, data, monkeypatch, capsys):
    def spoilt(*words, **options):
        found = llc.load(*words, **options)
        found.network.register_forward_hook(lambda module, arguments, z: z * float("nan"))
        return found

    monkeypatch.setattr(evaluate, "load", spoilt)
    with pytest.raises(UserError, match="z is NaN or infinite for 7 of 7 images, so they have no codes"):
        evaluate.main([model, f"--data.val_dataset={data('cow', 'ant', 'bee')}"])
    assert "top-1" not in capsys.readouterr().out


def test_names_are_stored_as_they_are(model, tmp_path, capsys):
    tree = tmp_path / "images\033"
    for name in ("ant\u202e", "bee\n"):
        (tree / name).mkdir(parents=True)
        drawn(1, 1).save(tree / name / "1\033\udcff.png")
    found = encoded(model, tree, tmp_path)
    assert found["class_names"].tolist() == ["ant\u202e", "bee\n"]
    assert found["files"].tolist() == ["ant\u202e/1\033\\xff.png", "bee\n/1\033\\xff.png"]
    assert "\033" not in capsys.readouterr().out


def test_messages_about_classes_escape_their_names(model, tmp_path):
    for name in ("ant", "bee\033[1m", "cow"):
        (tmp_path / "t" / name).mkdir(parents=True)
        drawn(1, 1).save(tmp_path / "t" / name / "1.png")
    beton = str(tmp_path / "o\033.beton")
    config = WriterConfig(write_path=beton, data_dir=str(tmp_path / "t"), num_workers=1)
    write_beton(config, show_progress=False)
    with pytest.raises(UserError, match="label 1 is bee.* and bee; write it") as caught:
        evaluate.main([model, f"--data.val_dataset={beton}"])
    assert r"bee\x1b[1m" in str(caught.value) and str(caught.value).isprintable()


def test_a_folder_of_images_is_listed_as_a_tree_is(model, tmp_path):
    drawn(1, 1).save(tmp_path / "1.png")
    (tmp_path / "@eaDir").mkdir()  # made by a system
    assert open_images(tmp_path, *ANY, **ALONE).files == ["1.png"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is a named pipe, neither a folder nor a file"):
        open_images(tmp_path, *ANY, **ALONE)


def test_images_without_labels_are_encoded_and_not_evaluated(opened, model, data, tmp_path):
    found = encoded(model, data(), tmp_path)
    assert found["labels"].tolist() == [-1] * 7 and found["class_names"].shape == (0,)
    with pytest.raises(UserError, match=r"7 of 7 images have no label.*--label_column.*llc\.encode"):
        evaluate.main([model, f"--data.val_dataset={data()}"])


def test_queries_come_from_any_source(opened, model, data, tmp_path, capsys):
    found = encoded(model, data(), tmp_path)
    capsys.readouterr()
    codes = tmp_path / "codes.npz"
    search.main([str(codes), f"--queries={data()}", f"--model={model}", f"--out={tmp_path / 'near.npz'}"])
    near = np.load(tmp_path / "near.npz")
    assert (near["distances"][:, 0] == 0).all() and len(near["indices"]) == len(found["codes"])


def test_folders_splits_and_single_images(encoder, model, tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for label in range(3):
            folder = tmp_path / "tree" / split / NAMES[label]
            folder.mkdir(parents=True)
            for i in range(count):
                drawn(10 * label + i, label).save(folder / f"{i}.png")
    found = encoded(model, tmp_path / "tree", tmp_path)
    assert found["files"].tolist() == ["val/ant/0.png", "val/bee/0.png", "val/cow/0.png"]
    found = encoded(model, tmp_path / "tree", tmp_path, "--split=train", "--dataset=imagenet")
    assert found["files"].tolist()[:3] == ["train/ant/0.png", "train/ant/1.png", "train/bee/0.png"]
    image = tmp_path / "tree/train/bee/1.png"
    one = encoded(model, image, tmp_path)
    assert one["files"].tolist() == ["1.png"] and one["labels"].tolist() == [-1]
    assert (one["codes"] == found["codes"][3]).all() and (found["codes"][3] != found["codes"][0]).any()


def test_what_cannot_be_read_is_named(opened, model, tmp_path):
    for words, message in [
        (["--data="], "no images are named"),
        ([f"--data={tmp_path / 'no.drawn'}"], "no.drawn does not exist"),
        ([f"--data={tmp_path / 'no.beton'}"], "no.beton"),
        ([f"--data={tmp_path}", "--dataset=drawing"], "did you mean Drawn"),
        ([f"--data={tmp_path}", "--label_column=1"], "read as folder, which has no columns"),
        ([f"--data={tmp_path / 'x.beton'}", "--header=no"], "read as beton, which has no columns"),
        ([f"--data={tmp_path}"], "holds no images"),
        ([f"--data={model}", "--dataset=folder"], "cannot be listed: Not a directory"),
    ]:
        with pytest.raises(UserError, match=message):
            encode.main([model, f"--out={tmp_path / 'codes.npz'}", *words])
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(UserError, match="loop"):
        encode.main([model, f"--out={tmp_path / 'codes.npz'}", f"--data={tmp_path}"])
    assert not (tmp_path / "codes.npz").exists()


def test_each_process_reads_its_own_images(opened, data):
    rule = Preprocessing(8, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)
    labels = []
    for rank in range(3):
        images = open_images(
            data("ant", "bee", "cow"),
            rule,
            batch_size=2,
            num_workers=1,
            processes=Processes(rank, 3),
            reading=Reading(dataset="Drawn"),
        )
        batches = list(images.loader)
        assert torch.equal(
            torch.cat([pixels for pixels, _ in batches]),
            torch.from_numpy(
                np.stack([rule(np.asarray(drawn(i, i % 3))) for i in range(rank, 7, 3)])
            ).permute(0, 3, 1, 2),
        )
        labels.append(torch.cat([own for _, own in batches]).tolist())
    assert labels == [[0, 0, 0], [1, 1], [2, 2]]


# ------------------------------------------------------------------------------------------------ batches


class Pixels:
    """A preprocessing that only copies."""

    resolution = 64

    def __call__(self, pixels):
        return pixels


def test_two_batches_are_in_memory_at_a_time():
    pixels = np.zeros((64, 64, 3), np.uint8)
    size = 128 * pixels.nbytes
    gc.collect()
    tracemalloc.start()
    try:
        # of each image a copy, so that it takes memory while it waits
        batches = prepare(lambda i: pixels.copy(), range(128 * 9), Pixels(), batch_size=128, num_workers=2)
        count = sum(map(len, batches))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 128 * 9 and peak < 3 * size  # all of them at once would be 9


def test_an_error_comes_in_place_of_its_batch():
    def pixels_of(i):
        if i == 5:
            raise UserError("image 5")
        return np.full((64, 64, 3), i, np.uint8)

    batches = prepare(pixels_of, iter(range(9)), Pixels(), batch_size=2, num_workers=3)
    assert [next(batches)[:, 0, 0, 0].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="image 5"):
        next(batches)
