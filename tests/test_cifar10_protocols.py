"""experiments/cifar10_protocols.py: the images of its splits, and the command on a small tree of images."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc.codes import pack_bits
from llc.data.preprocessing import Preprocessing
from llc.data.shards import open_shards
from llc.errors import UserError
from llc.evaluation import retrieval
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network
from tests.conftest import ROOT, draw

protocols = importlib.import_module("experiments.cifar10_protocols")

# CIFAR-10's labels: 5,000 train images of each class, then 1,000 test images of each
LABELS = np.concatenate([np.repeat(np.arange(10), 5000), np.repeat(np.arange(10), 1000)])
SIZES = {  # queries, train, database; DeepHash-pytorch, utils/tools.py
    "cifar10": (1_000, 5_000, 54_000),
    "cifar10-1": (1_000, 5_000, 59_000),
    "cifar10-2": (10_000, 50_000, 50_000),
}


def split(protocol, **options):
    return protocols.split_of(protocol, LABELS, 50_000, **options)


def per_class(rows):
    return np.bincount(LABELS[rows], minlength=10).tolist()


@pytest.mark.parametrize("protocol", SIZES)
def test_the_sizes_are_the_protocols(protocol):
    made = split(protocol)
    for rows, size in zip((made.queries, made.train, made.database), SIZES[protocol]):
        assert len(set(rows.tolist())) == len(rows) == size
        assert per_class(rows) == [size // 10] * 10
        assert (np.diff(rows) > 0).all() and 0 <= rows.min() and rows.max() < 60_000
    assert not np.intersect1d(made.queries, np.union1d(made.train, made.database)).size


def test_the_first_two_share_queries_and_train_images():
    first, second = split("cifar10"), split("cifar10-1")
    assert (first.queries == second.queries).all() and (first.train == second.train).all()
    assert not np.intersect1d(first.train, first.database).size
    assert (second.database == np.sort(np.concatenate([first.train, first.database]))).all()
    assert (second.database == np.setdiff1d(np.arange(60_000), second.queries)).all()


def test_they_are_drawn_by_the_seed_from_all_images():
    first, again, other = split("cifar10"), split("cifar10"), split("cifar10", seed=1)
    assert (first.queries == again.queries).all() and (first.train == again.train).all()
    # 1,000 of 60,000 twice have 17 in common in expectation
    assert 0 < len(np.intersect1d(first.queries, other.queries)) < 40
    # a sixth of the images are CIFAR-10's own test images
    assert 120 < (first.queries >= 50_000).sum() < 220 and 700 < (first.train >= 50_000).sum() < 970


def test_the_third_is_cifars_own_division():
    made = split("cifar10-2", seed=5)
    assert (made.train == np.arange(50_000)).all() and (made.database == made.train).all()
    assert (made.queries == np.arange(50_000, 60_000)).all()


@pytest.mark.parametrize("protocol", SIZES)
def test_held_out_queries_are_train_images_and_no_real_query_is_used(protocol):
    real, made = split(protocol), split(protocol, fraction=0.1)
    assert (
        len(made.queries) == SIZES[protocol][1] // 10
        and per_class(made.queries) == [len(made.queries) // 10] * 10
    )
    assert (np.union1d(made.queries, made.train) == real.train).all()
    assert not np.intersect1d(made.queries, made.train).size
    assert (made.database == np.setdiff1d(real.database, made.queries)).all()
    for rows in (made.queries, made.train, made.database):
        assert not np.intersect1d(rows, real.queries).size
    assert made.name != real.name  # a training of its own


def test_a_class_with_too_few_images_is_refused():
    with pytest.raises(UserError, match="class 0 has 6,000 images, but 1,000 queries, 5,000 train images"):
        split("cifar10", num_queries=1000, num_train=5000)


def test_measure_on_codes_that_one_can_check_by_eye():
    """Two classes with the codes 0000 and 1111; one of three queries has the other class's code."""
    network = Network("resnet18", 4, 2, width=4)
    network.codebook.data.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    preprocessing = Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)
    encoder = llc.Encoder(network, preprocessing, ["a", "b"])
    zero, one = pack_bits(network.codebook.detach()).numpy()
    codes = np.array([zero, one, one, zero, one, zero, one])
    labels = np.array([0, 1, 0, 0, 1, 0, 1])
    rows = protocols.Split(np.array([0, 1, 2]), np.array([3, 4]), np.array([3, 4, 5, 6]), "", "")
    found = protocols.measure(codes, labels, rows, encoder)
    assert (found["queries"], found["train"], found["database"]) == (3, 2, 4)
    assert found["top1_mhd"] == found["precision@1"] == pytest.approx(2 / 3)
    # the third query finds its two items at ranks 3 and 4
    assert found["map"] == pytest.approx((1 + 1 + (1 / 3 + 2 / 4) / 2) / 3)


# ------------------------------------------------------------------------------------------------ the command

TRAIN, TEST, CLASSES = 12, 4, 3  # images of each class
TINY = (
    "--model.width=4 --codes.hidden=0 --training.batch_size=4 --dense.epochs=2 --dense.lr_peak_epoch=0"
    " --dense.lr=0.02 --instance.epochs=1 --resolution.min_res=16 --resolution.max_res=16"
    " --validation.resolution=16 --validation.batch_size=8"
)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            folder = root / name / f"class_{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw(rng, label, (32, 32))).save(folder / f"{i:04d}.png")
    return root


def flags(cifar, folder, *words):
    return (
        "experiments.cifar10_protocols",
        f"--data_dir={cifar}",
        f"--folder={folder}",
        "--num_bits=6",
        "--num_queries=2",
        "--num_train=5",
        "--num_workers=1",
        f"--train={TINY}",
        *words,
    )


def read_results(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]


def test_one_command_trains_encodes_and_measures(cifar, tmp_path, call_llc):
    done = call_llc(*flags(cifar, tmp_path))
    results = read_results(tmp_path)
    sizes = {row["protocol"]: (row["queries"], row["train"], row["database"]) for row in results}
    assert sizes == {"cifar10": (6, 15, 27), "cifar10-1": (6, 15, 42), "cifar10-2": (12, 36, 36)}
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["cifar10_500_per_class_6bit_seed0", "cifar10_6bit_seed0"]
    shards = open_shards(f"{tmp_path}/images/train.beton,{tmp_path}/images/test.beton")
    for row in results:
        name = row["run"]
        codes = np.load(tmp_path / "runs" / name / "codes.npz")
        assert (codes["labels"] == shards.labels).all() and int(codes["num_bits"]) == 6
        split_name = name.replace("_6bit", "")
        rows = np.load(tmp_path / "splits" / f"{row['protocol']}_{split_name}.npz")
        queries, database = (
            (codes["codes"][rows[part]], codes["labels"][rows[part]]) for part in ("queries", "database")
        )
        measured = retrieval.evaluate(*queries, *database, k=1000, shuffle=0)
        assert {key: row[key] for key in measured} == measured
        # what was trained on is what the split says
        trained = open_shards(tmp_path / "splits" / f"{split_name}_train.beton")
        assert trained.labels.tolist() == shards.labels[rows["train"]].tolist()
        assert trained.sizes.tolist() == shards.sizes[rows["train"]].tolist()
        # the accuracy from the stored codes is the trainer's own on the queries
        lines = dict(
            line.split(",")[:2] for line in (tmp_path / "runs" / name / "results.csv").read_text().split()
        )
        assert row["top1_mhd"] == pytest.approx(float(lines["instance/top1_mhd_flip"]), abs=1e-6)
        assert (
            f"| {row['protocol']} | {row['queries']} | {row['train']} | {row['database']} | 6 |"
            in done.stdout
        )
        assert f"{100 * row['map']:.2f}" in done.stdout
    assert codes["class_names"].tolist() == ["class_0", "class_1", "class_2"]

    # the same command again trains nothing and gives the same
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pth")}
    again = call_llc(*flags(cifar, tmp_path))
    assert "is finished" in again.stdout and before == {path: path.stat().st_mtime_ns for path in before}
    assert read_results(tmp_path) == results

    # a folder of other images, or with another split, is refused
    done = call_llc(*flags(cifar, tmp_path, "--num_train=6"), check=False)
    assert done.returncode == 2 and "holds another split" in done.stderr and "another --folder" in done.stderr
    (tmp_path / "other").symlink_to(cifar)
    done = call_llc(*flags(tmp_path / "other", tmp_path), check=False)
    assert done.returncode == 2 and f"was made from --data_dir={cifar}" in done.stderr


def test_settings_are_chosen_on_a_slice_of_train(cifar, tmp_path, call_llc):
    call_llc(*flags(cifar, tmp_path, "--held_out=0.2", "--protocols=cifar10-1", "--seed=3"))
    (row,) = read_results(tmp_path)
    assert (row["queries"], row["train"], row["database"]) == (3, 12, 39)
    names = [path.name for folder in ("runs", "results") for path in (tmp_path / folder).iterdir()]
    assert names == [
        "cifar10_500_per_class_held_out_0.2_6bit_seed3",
        "cifar10-1_held_out_0.2_6bit_seed3.json",
    ]


def test_what_it_refuses(cifar, tmp_path, call_llc):
    done = call_llc(*flags(cifar, tmp_path / "a", "--protocols=cifar10-3"), check=False)
    assert done.returncode == 2 and "cifar10-3" in done.stderr and "cifar10-2" in done.stderr
    done = call_llc(*flags(cifar, tmp_path / "b", "--num_train=20"), check=False)
    assert done.returncode == 2 and "lower --num_queries or --num_train" in done.stderr
    assert not any((tmp_path / "b" / "runs").iterdir())


def test_the_recipes_are_what_the_protocols_name():
    for protocol in SIZES:
        assert (ROOT / "experiments" / f"{split(protocol).recipe}.yaml").is_file()
