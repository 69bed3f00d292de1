"""The examples of docs/how-to/extending.md, as they stand, on the commands that they are for."""

import contextlib
import csv
import json
import os
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.waiting import seconds

DOC = (ROOT / "docs/how-to/extending.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOC, re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the plugins, and images in data/train.npz and data/val.npz."""
    folder, rng = tmp_path_factory.mktemp("extending"), np.random.default_rng(0)
    for name, text in BLOCKS.items():
        (folder / name).write_text(text)
    (folder / "data").mkdir()
    for split, count in (("train", 96), ("val", 30)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 60, (count, 32, 32, 3), np.uint8)
        images[np.arange(count), :, :, labels] += 150
        np.savez(
            folder / f"data/{split}.npz", images=images, labels=labels, class_names=["red", "green", "blue"]
        )
    return folder


def python(folder, *words):
    """Runs python WORDS in the folder of the plugins; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))},
        capture_output=True,
        text=True,
        timeout=seconds(240),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def betons(folder):
    for split in ("train", "val"):
        python(
            folder,
            ROOT / "write_ffcv.py",
            "--plugin=arrays.py",
            "--cfg.dataset=arrays",
            "--cfg.data_dir=data",
            f"--cfg.split={split}",
            f"--cfg.write_path={split}.beton",
            "--cfg.num_workers=2",
            "--cfg.chunk_size=10",
        )
    return folder


@pytest.fixture(scope="module")
def run(betons):
    python(
        betons,
        ROOT / "train_llc.py",
        "--plugin=hinge.py",
        "--plugin=small.py",
        "--plugin=cosine.py",
        "--plugin=database.py",
        "--plugin=cutout.py",
        "--data.loader=ffcv",
        "--data.operations=cutout",
        "--logging.to=csv,database",
        f"--config={ROOT / 'rn18_configs/llc_demo.yaml'}",
        "--data.train_dataset=train.beton",
        "--data.val_dataset=val.beton",
        "--model.arch=small",
        "--model.width=64",
        "--training.batch_size=16",
        "--training.stages=codebook,hinge",
        "--codebook.epochs=3",
        "--hinge.epochs=1",
        "--hinge.lr=0.03",
        "--hinge.margin=2",
        "--logging.name=NAME",
    )
    return betons


def test_every_example_has_a_command_and_a_way_in_python():
    names = {"cosine.py", "hinge.py", "small.py", "arrays.py", "length.py", "database.py", "cutout.py"}
    assert set(BLOCKS) == names
    for name in BLOCKS:
        assert f"--plugin={name}" in DOC and f"import {name.removesuffix('.py')}" in DOC.replace("llc, ", "")


def test_a_run_with_all_plugins(run):
    with open(run / "runs/NAME/results.csv") as file:
        final = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
    assert final["codebook/top1_cosine"] > 0.9  # the three colours are easy to tell apart
    assert final["hinge/top1_mhd"] > 0.9
    recipe = (run / "runs/NAME/config.yaml").read_text()
    assert "margin: 2.0" in recipe and "loader: ffcv" in recipe and "- cutout" in recipe


def test_a_logger_of_a_plugin(run):
    lines = [json.loads(line) for line in (run / "runs/NAME/log.jsonl").read_text().splitlines()]
    with contextlib.closing(sqlite3.connect(run / "runs/runs.db")) as database:
        rows = database.execute(
            "select run, epoch, value from log where name = 'loss' order by epoch"
        ).fetchall()
    assert rows == [("NAME", line["global_epoch"], line["loss"]) for line in lines] and len(rows) == 4
    printed = python(run, "-c", "import database; from llc.loggers import LOGGERS; print(list(LOGGERS))")
    assert printed.rstrip().endswith("'database']")


def test_a_finished_run_is_evaluated_with_a_plugin(run):
    plugins = ("--plugin=hinge.py", "--plugin=small.py", "--plugin=cosine.py")
    assert "cosine" in python(run, "-m", "llc.evaluate", "runs/NAME", *plugins)


def test_a_score_of_a_plugin(run):
    plugins = [f"--plugin={name}.py" for name in ("hinge", "small", "length")]
    (run / "other").mkdir()
    for i in range(5):
        Image.new("RGB", (32, 32), (i, i, i)).save(run / f"other/{i}.png")
    printed = python(
        run, "-m", "llc.evaluate", "runs/NAME", *plugins, "--ood.dataset=other/", "--json=out.json"
    )
    found = json.loads((run / "out.json").read_text())
    assert "length of z" in printed and 0 <= found["ood.other.auroc.length"] <= 1
    printed = python(run, "-c", "import length; from llc.evaluation.ood import SCORES; print(list(SCORES))")
    assert printed.rstrip().endswith("'length']")


def test_a_decoder_a_stage_and_a_backbone_in_python(run):
    printed = python(
        run,
        "-c",
        "import llc, cosine, hinge, small, numpy, torch\n"
        "pictures = torch.from_numpy(numpy.load('data/val.npz')['images'])[:3].permute(0, 3, 1, 2)\n"
        "print(llc.load('runs/NAME').classify(pictures, decode='cosine', k=1).names)\n"
        "assert 'hinge' in llc.stages.STAGES\n"
        "from llc import backbones; print(backbones.build('small').num_features)",
    )
    assert printed.split() == ["[['red'],", "['green'],", "['blue']]", "256"]


def test_a_source_in_python(folder):
    printed = python(
        folder,
        "-c",
        "import arrays; from llc.data.sources import open_source; print(len(open_source('arrays', 'data')))",
    )
    assert printed.split() == ["96"]
