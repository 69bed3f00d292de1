"""The pages of docs/how-to, each from top to bottom in a folder that holds what its commands name."""

import csv
import json
import re
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet

import llc
from llc import write
from llc.data.preprocessing import Preprocessing
from llc.doctor import __main__ as doctor
from llc.doctor import disk, machine
from llc.doctor.finding import guarded
from llc.encode import main as encode
from llc.export import __main__ as export
from llc.index import exports
from llc.index.__main__ import main as llc_index
from tests.conftest import ROOT, trained_network
from tests.data import (
    test_archives,
    test_imagenet_source,
    test_lmdb,
    test_parquet,
    test_sources,
    test_webdataset,
)
from tests.data.test_imagenet_source import images  # noqa: F401 (a fixture)
from tests.docs.conftest import noise, page, photographs
from tests.docs.pages import ask, run_page
from tests.serve.server import serving

NAMES = ("sources", "data", "training", "resume", "compare", "search", "export", "indexing", "engines")
NAMES += ("hub", "report", "retrieval", "ood", "taxonomy", "machines", "gpu", "extending", "logging")
NAMES += ("doctor", "ffcv")
PAGES = {page(f"how-to/{name}.md") for name in NAMES}


def run(name, folder, monkeypatch, **options):
    return run_page(page(f"how-to/{name}.md"), folder, monkeypatch, **options)


def class_tree(image_tree, folder, names=("ants", "bees"), count=8):
    for split in ("train", "val"):
        photographs(image_tree, folder / split, names, count)


# ---- data and training


def test_convert_from_each_source(image_tree, images, tmp_path, monkeypatch):  # noqa: F811
    photographs(image_tree, tmp_path / "photos", ("cat", "dog"), count=20)
    test_archives.zip_tree(tmp_path / "photos.zip", tmp_path / "photos")
    test_archives.tar_tree(tmp_path / "photos.tar", tmp_path / "photos")
    with open(tmp_path / "photos.csv", "w", newline="") as file:
        rows = ((f"photos/cat/{i}.jpg", "cat") for i in (1, 2))
        csv.writer(file).writerows([("path", "class"), *rows, ("photos/dog/1.jpg", "dog")])
    (tmp_path / "imagenet-tars").mkdir()
    test_imagenet_source.make_tars(tmp_path / "imagenet-tars", images)
    test_imagenet_source.make_kaggle_zip(tmp_path, images)
    test_webdataset.make_shards(tmp_path / "shards", [f"train-{i:06}.tar" for i in range(3)])
    test_parquet.write(tmp_path / "data" / "train-0.parquet", range(5), [0, 1, 2, 0, 1])
    datum, other = (test_lmdb.datum(test_lmdb.png(i), label=i, encoded=1) for i in (0, 1))
    test_lmdb.write(
        tmp_path / "caffe_train_lmdb", {b"0": datum, b"1": datum.replace(b"\x28\x00", b"\x28\x01")}
    )
    run("sources", tmp_path, monkeypatch)
    made = {path.name[0]: json.loads(path.read_text()) for path in tmp_path.glob("[b-j]*.beton.json")}
    assert sorted(made) == list("bcdefghij")
    assert made["b"]["class_names"] == made["c"]["class_names"] and len(made["f"]["class_names"]) == 4
    assert [made[x]["num_samples"] for x in "degij"] == [40, 40, 5, 3, 2]


def test_images_to_betons(image_tree, tmp_path, monkeypatch):
    class_tree(image_tree, tmp_path / "imagenet", count=16)
    (tmp_path / "betons").mkdir()
    for part in (1, 2):
        target = f"--cfg.write_path={tmp_path}/betons/train-part-{part}.beton"
        write.main([f"--cfg.data_dir={tmp_path}/imagenet", f"--cfg.part={part}/2", target])
    run("data", tmp_path, monkeypatch)
    assert (tmp_path / "train.jpg").stat().st_size > 1000


def test_training(workspace, monkeypatch):
    run("training", workspace, monkeypatch)
    assert {path.parent.name for path in workspace.glob("runs/*/results.csv")} == {"NAME", "first", "second"}
    assert not (workspace / "runs/second/checkpoints/codebook.pth").exists()


def test_resuming(workspace, monkeypatch):
    run("resume", workspace, monkeypatch)
    assert len((workspace / "runs/queued/log.jsonl").read_text().splitlines()) == 3


def test_where_logs_go(workspace, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run("logging", workspace, monkeypatch)
    [sent] = (workspace / "runs/tracked/wandb").glob("offline-run-*/*.wandb")
    assert sent.stat().st_size > 1000
    assert len((workspace / "runs/tracked/log.csv").read_text().splitlines()) == 4


def test_the_doctor(workspace, monkeypatch, capsys):
    """Its checks run in this process, which has imported what they import."""
    apart = lambda module, names: (guarded(name, machine.CHECKS[name]) for name in names)  # noqa: E731
    monkeypatch.setattr(doctor, "apart", apart)
    monkeypatch.setattr(disk, "_WRITTEN_BYTES", 1 << 24)
    run("doctor", workspace, monkeypatch)
    printed = capsys.readouterr().out
    lines, _, listed = printed.partition("\n[")
    assert "ok       python" in lines and re.search(r"\d+ errors?, \d+ warnings?$", lines.rstrip())
    [needs] = [entry for entry in json.loads(f"[{listed}") if entry["check"] == "recipe"]
    assert "KB in train.beton" in needs["found"]


def test_within_ffcvs_loader(workspace, monkeypatch):
    # tests/test_extending.py trains with these operations
    names = run("ffcv", workspace, monkeypatch, skip=("python train_llc.py",))
    assert names["first"][0].shape == (32, 3, 32, 32) and names["second"][0].shape == (32, 3, 48, 48)


# ---- models and codes


def published_model(folder):
    """model_best.pth and codebook.npy in the form of the original code."""
    export.main(["runs/NAME", "--to=original"])
    for name in ("model_best.pth", "codebook.npy"):
        shutil.copy(folder / "runs/NAME/original" / name, folder / name)


def test_encoding_and_searching(workspace, image_tree, monkeypatch):
    test_webdataset.make_shards(workspace / "shards", [f"val-{i:03}.tar" for i in range(10)], per_shard=1)
    names = json.loads((workspace / "val.beton.json").read_text())["class_names"]
    test_parquet.write(workspace / "data/validation-0.parquet", range(6), range(6), names=names)
    test_sources.write_idx_dataset(workspace / "fashion", "train", 20)
    (workspace / "photos.csv").write_text("path\nphotos/cat/1.jpg\nphotos/dog/2.jpg\n")
    names = run("search", workspace, monkeypatch)
    assert names["codes"].shape == (1000, 3)
    assert names["classes"][:100, 0].tolist() == list(range(100))  # each class's own code comes first
    assert names["lims"][-1] == len(names["indices"])
    assert np.load("codes8.npz")["codes"].shape == (66, 1)


def test_exporting(workspace, monkeypatch):
    """runs/NAME is of a narrow ResNet18, which torchvision does not have; a ResNet50 takes its place."""
    monkeypatch.chdir(workspace)
    published_model(workspace)
    network = trained_network("resnet50", 20, 6)
    preprocessing = Preprocessing(224, 0.875, "area", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    llc.Encoder(network, preprocessing).save("resnet50.safetensors")
    export.main(["resnet50.safetensors", "--to=backbone", "--out=runs/NAME/backbone.safetensors"])
    words = ["resnet50.safetensors", "--to=timm", "--out=runs/NAME/timm.safetensors"]
    export.main([*words, "--check=photos", "--check_images=2"])
    skip = tuple(f"python -m llc.export runs/NAME --to={form}" for form in ("backbone", "timm"))
    names = run("export", workspace, monkeypatch, skip=skip)
    assert (workspace / "runs/NAME/encoder.safetensors").is_file()
    assert (workspace / "runs/NAME/model_int8.onnx").is_file()
    encoder = llc.load("runs/NAME")
    own = encoder.preprocess(["cat.jpg", "dog.jpg"]).numpy()
    assert np.abs(own.astype(int) - names["images"]).max() <= 1 and own.std() > 1
    assert names["bits"].shape == (2, encoder.num_bits)
    assert np.array_equal(np.packbits(names["bits"], axis=1), names["codes"].numpy())


def test_the_hub(workspace, monkeypatch):
    names = run("hub", workspace, monkeypatch)
    assert names["codes"].shape == (2, 2) and len(names["classes"].names[0]) == 3
    assert "OWNER/NAME" not in (workspace / "stripes/README.md").read_text()


def test_an_index(workspace, image_tree, monkeypatch):
    photographs(image_tree, workspace / "photos", ("2019", "owl"), count=5)
    shutil.copy(workspace / "cat.jpg", workspace / "photos/cat.jpg")
    test_webdataset.make_shards(workspace / "shards", ["train-0.tar", "train-1.tar"])
    monkeypatch.chdir(workspace)
    rng = np.random.default_rng(0)
    files = [f"cat/{i + 1}.jpg" for i in range(20)]
    np.savez("codes.npz", codes=rng.integers(0, 256, (20, 8), np.uint8), num_bits=64, files=files)
    index = llc.Index(num_bits=64)
    index.add(rng.integers(0, 256, (50, 8), np.uint8), np.arange(1000, 1050))
    exports.export(index, "parquet", "codes.parquet")
    names = run("indexing", workspace, monkeypatch, skip=("python -m llc.serve", "curl"))
    assert names["found"].shape == names["distances"].shape
    assert all(len(group) > 1 for group in names["groups"])
    assert len(names["records"].files) == 3


def test_requests_to_a_server(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    llc_index(["create", "PHOTOS.index", "photos", "--model=runs/NAME"])
    with serving(workspace / "PHOTOS.index", workspace) as server:
        nearest, within, classes = ask(page("how-to/indexing.md"), server)
    assert len(nearest["neighbours"]) == 5 and within["more"] in (True, False)
    assert classes


def test_other_engines(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    llc_index(["create", "PHOTOS.index", "photos", "--model=runs/NAME"])
    table = pyarrow.table({"key": [7, 9], "hash": [b"\x00" * 7 + b"\x10", b"\xff" * 7 + b"\xf0"]})
    pyarrow.parquet.write_table(table, "other.parquet")
    run("engines", workspace, monkeypatch)
    assert len(llc.Index.open("COPY.index")) == 60
    assert llc.Index.open("OTHER.index").num_bits == 60


# ---- measuring


def test_reports(workspace, image_tree, monkeypatch):
    for name in "ABC":
        shutil.copytree(workspace / "runs/NAME", workspace / "runs" / name)
    noise(workspace / "other", np.random.default_rng(0))
    run("report", workspace, monkeypatch)
    assert "<html" in (workspace / "compared.html").read_text()
    assert "AUROC" in (workspace / "runs/NAME/report.html").read_text()


def test_retrieval(workspace, image_tree, monkeypatch):
    class_tree(image_tree, workspace, names=[f"class_{i}" for i in range(6)])
    shutil.move(workspace / "train", workspace / "old")
    shutil.move(workspace / "val", workspace / "new")
    encode_both(workspace, monkeypatch)
    names = run("retrieval", workspace, monkeypatch, skip=("python experiments/cifar10_protocols.py",))
    assert 0.5 < names["metrics"]["map"] < 1
    assert names["precision"].shape == names["recall"].shape == (100,)


def test_unknown_classes(workspace, image_tree, monkeypatch):
    photographs(image_tree, workspace / "photos/animals", ("owl",), count=12)
    noise(workspace / "noise", np.random.default_rng(0))
    encode_both(workspace, monkeypatch)
    write.main([f"--cfg.data_dir={workspace}/photos", f"--cfg.write_path={workspace}/other.beton"])
    encode(["runs/NAME", "--data=noise", "--out=other.npz"])
    run("ood", workspace, monkeypatch)
    assert {"animals.mhd", "noise.mhd", "evaluated.mhd"} <= set(np.load("scores.npz").files)


def encode_both(folder, monkeypatch):
    """Codes of both betons, as train.npz and val.npz."""
    monkeypatch.chdir(folder)
    for name in ("train", "val"):
        encode(["runs/NAME", f"--data={name}.beton", f"--out={name}.npz"])


def test_taxonomy(workspace, monkeypatch):
    encode_both(workspace, monkeypatch)
    published_model(workspace)
    export.main(["runs/NAME", "--to=encoder", "--out=encoder.safetensors"])
    run("taxonomy", workspace, monkeypatch)
    made = {path.parent.name for path in workspace.rglob("tree.nwk")}
    assert made == {"taxonomy", "complete", "of_encoder", "of_published", "of_codes"}


FAST = {
    "llc.benchmark hamming": ("--queries=50", "--repeats=1", "--scale=0.001"),
    "llc.benchmark index": ("--size=2000", "--rounds=1", "--singles=10", "--queries=10"),
    "llc.benchmark retrieval": ("--queries=50", "--database=500", "--rounds=1", "--numpy_queries=5"),
}
# tests/benchmark runs these; the programs that they are measured beside compile for half a minute each time
OTHERS = tuple(f"python -m llc.benchmark {name}" for name in ("loader", "writer", "epoch"))


def test_comparing(workspace, monkeypatch, capsys):
    (workspace / "experiments").symlink_to(ROOT / "experiments")  # the commands are for a clone
    run("compare", workspace, monkeypatch, small=FAST, skip=OTHERS)
    assert (workspace / "decode.svg").is_file()
    assert "dense-first" in capsys.readouterr().out
