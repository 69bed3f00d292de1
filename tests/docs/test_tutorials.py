"""The pages of docs/tutorials, each from top to bottom in a folder that holds what its commands name."""

import json
import shutil

import numpy as np
import torch
import torchvision
from PIL import Image

import llc
from llc import write
from llc.export import __main__ as export
from llc.index.__main__ import main as llc_index
from tests.conftest import ROOT, run_command
from tests.data import test_imagenet_source
from tests.data.test_imagenet_source import images  # noqa: F401 (a fixture)
from tests.docs.conftest import noise, page
from tests.docs.pages import SMALL, ask, blocks, command_lines, run_page
from tests.serve.server import serving

NAMES = ("photographs", "programs", "imagenet", "finetune", "paper")
PAGES = {page(f"tutorials/{name}.md") for name in NAMES}
SMALL_TRAINING = (
    "--model.width=8",
    "--training.batch_size=4",
    "--validation.batch_size=4",
    "--codebook.epochs=1",
    "--instance.epochs=1",
    "--data.num_workers=1",
)
SERVES = ("python -m llc.serve", "curl")


def run(name, folder, monkeypatch, **options):
    return run_page(page(f"tutorials/{name}.md"), folder, monkeypatch, **options)


# ---- an index of photographs


def unsorted_photographs(image_tree, folder):
    """Images in folders by date, and three of them once more, as JPEGs of lower quality; [(image, copy)]."""
    files = sorted(image_tree.glob("train/*/*"))
    folders = [folder / name for name in ("2019", "2021", "phone")]
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    for path in folders:
        path.mkdir(parents=True)
    for i, which in enumerate(order):
        Image.open(files[which]).resize((48, 48)).save(folders[i % 3] / f"IMG_{i:04}.jpg")
    copies = []
    for i in (4, 30, 77):
        image, copy = folders[i % 3] / f"IMG_{i:04}.jpg", folder / "phone" / f"received_{i}.jpg"
        Image.open(image).save(copy, quality=60)
        copies.append({str(image), str(copy)})
    return copies


def test_photographs(workspace, image_tree, monkeypatch, capsys):
    copies = unsorted_photographs(image_tree, workspace / "album")
    names = run("photographs", workspace, monkeypatch, skip=SERVES)
    found = [set(pair) for pair in names["copies"]]
    assert all(pair in found for pair in copies)
    assert names["ids"].shape == (2, 5)
    assert len(names["index"]) == 242
    said = capsys.readouterr().out
    assert "1 added" in said and "2 removed, because their files are gone" in said
    assert all((workspace / name).stat().st_size > 1000 for name in ("near.png", "groups.png"))


def test_an_index_takes_every_kind_of_model(workspace, monkeypatch):
    """The table of the page: a run, a file of one, a model of the original code."""
    monkeypatch.chdir(workspace)
    export.main(["runs/NAME", "--to=encoder", "--out=encoder.safetensors"])
    export.main(["runs/NAME", "--to=original"])
    for model in ("runs/NAME", "encoder.safetensors", "runs/NAME/original/model_best.pth"):
        llc_index(["create", f"{len(model)}.index", "photos", f"--model={model}"])
        assert len(llc.Index.open(f"{len(model)}.index")) == 60


# ---- codes in other programs


def test_programs(workspace, monkeypatch):
    names = run("programs", workspace, monkeypatch, skip=SERVES)
    assert names["bits"].shape == (66, 10)
    assert (names["classes"] == names["val"]["labels"]).mean() > 0.5
    assert [distance for _, distance, _ in names["nearest_rows"]][0] == 0
    with np.load("neighbours.npz") as file:
        assert file["indices"].shape == (1000, 3)
    assert names["packed"].shape == (2, 2)
    with serving(workspace / "photos.index", workspace) as server:
        searched, classified, encoded, like = ask(page("tutorials/programs.md"), server)
        assert len(searched["neighbours"]) == 1 and len(like["neighbours"]) == 5
        assert classified["classes"][0]["label"].startswith("class_")
        assert searched["code"] == encoded["code"] == names["packed"][0].tobytes().hex()
        near = names["search"]("cat.jpg", k=3, server=server.url)
        assert [image["distance"] for image in near] == sorted(image["distance"] for image in near)


# ---- training


def test_imagenet(images, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A small ImageNet as it is downloaded; a small run stands for that on 8 GPUs."""
    (tmp_path / "betons").mkdir()
    (tmp_path / "imagenet").mkdir()
    test_imagenet_source.make_tars(tmp_path / "imagenet", images)
    betons = {split: tmp_path / "betons" / f"{split}.beton" for split in ("train", "val")}
    for split, path in betons.items():
        write.main(
            [f"--cfg.data_dir={tmp_path}/imagenet", f"--cfg.split={split}", f"--cfg.write_path={path}"]
        )
    run_command(
        "train_llc.py",
        "--config=rn18_configs/llc_demo.yaml",
        *SMALL_TRAINING,
        *(f"--data.{split}_dataset={path}" for split, path in betons.items()),
        f"--logging.folder={tmp_path}/runs",
        "--logging.name=NAME",
    )
    planned = ("--training.batch_size=4", "--logging.name=planned")  # because runs/NAME is there
    run("imagenet", tmp_path, monkeypatch, small={**SMALL, "train_llc.py": planned})
    said = capsys.readouterr().out
    assert "recognised as ImageNet-tars" in said and "dense stage: 48 epochs of 3 steps" in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 <= figures["instance.top1_mhd"] <= 1
    report = (tmp_path / "runs/NAME/report.html").read_text()
    assert "goldfish" in report and "recall" in report.lower()
    assert (tmp_path / "runs/NAME/taxonomy").is_dir()


def published_resnet(folder):
    """Random weights in files of the form of torchvision's published ones: a ResNet50 and a ResNet18."""
    torch.manual_seed(0)
    for name, file in (("resnet50", "resnet50-11ad3fa6.pth"), ("resnet18", "resnet18.pth")):
        torch.save(getattr(torchvision.models, name)().state_dict(), folder / file)


def marked_training(name):
    """The arguments of the last training command of a page that is marked."""
    return [
        words
        for block in blocks(page(f"tutorials/{name}.md"))
        if block.marked
        for words in command_lines(block)
        if "train_llc.py" in words
    ][-1][2:]


def test_finetuning(workspace, monkeypatch, capsys):
    published_resnet(workspace)
    shutil.copytree(workspace / "runs/NAME", workspace / "runs/own")
    planned = ("--training.batch_size=24", "--logging.name=planned")  # because runs/own is there
    run("finetune", workspace, monkeypatch, small={**SMALL, "train_llc.py": planned})
    said = capsys.readouterr().out
    assert "backbone weights from IMAGENET1K_V2, published weights" in said
    assert "resnet50-11ad3fa6.pth, its dense classifier left out" in said
    assert said.count("dense stage: 10 epochs of 2 steps") == 2
    smaller = ("--model.arch=resnet18", "--model.weights=resnet18.pth")
    smaller += ("--resolution.min_res=32", "--resolution.max_res=32", "--validation.resolution=32")
    smaller += ("--training.batch_size=24", "--dense.epochs=1", "--dense.lr_peak_epoch=0")
    smaller += ("--data.num_workers=1", f"--logging.folder={workspace}/runs")
    arguments = [
        word.replace("=train.beton", f"={workspace}/train.beton").replace(
            "=val.beton", f"={workspace}/val.beton"
        )
        for word in (*marked_training("finetune"), *smaller)
    ]
    arguments = [word.replace("resnet18.pth", f"{workspace}/resnet18.pth") for word in arguments]
    run_command("train_llc.py", *arguments, "--logging.name=tuned")
    results = (workspace / "runs/tuned/results.csv").read_text()
    assert "dense/top1_class_flip" in results and "instance/top1_mhd_flip" in results


def test_the_paper(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    export.main(["runs/NAME", "--to=original"])
    for name in ("model_best.pth", "codebook.npy"):
        shutil.copy(f"runs/NAME/original/{name}", name)
    noise(workspace / "other", np.random.default_rng(0))
    shutil.copytree(ROOT / "experiments", workspace / "experiments")
    (workspace / "data").mkdir()
    for split in ("train", "val"):
        shutil.copy(f"{split}.beton", f"data/tiny50_{split}.beton")
        shutil.copy(f"{split}.beton.json", f"data/tiny50_{split}.beton.json")
    fewer = ("--training.batch_size=24", "--validation.batch_size=16", "--data.num_workers=1")
    fewer += ("--codebook.epochs=2", "--codebook.lr_peak_epoch=0", "--instance.epochs=1")
    run("paper", workspace, monkeypatch, small={**SMALL, "train_llc.py": fewer})
    said = capsys.readouterr().out
    assert "published 75.5 %" in said and "instance stage: 1 epoch of" in said
    assert "retrieval.map@1000" in json.loads((workspace / "retrieval.json").read_text())
    assert "ood.other.auroc.exact" in json.loads((workspace / "ood.json").read_text())
    small = (workspace / "runs/small/results.csv").read_text()
    assert "codebook/top1_class" in small and "instance/top1_ed" in small
