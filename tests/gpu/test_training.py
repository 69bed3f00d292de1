"""From image files to results.csv by the README's commands, stopped in both stages, resumed to the same bits.

On a machine without a CUDA device LLC_REHEARSE=1 runs the same with a small network, so that the test itself
can be tested.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, run_command
from tests.tools.chaos import differences, end_of
from tests.waiting import seconds

CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA and not os.environ.get("LLC_REHEARSE"), reason="needs a CUDA device"),
]

NUM_CLASSES, PER_CLASS, SIZE = (
    (20, {"train": 256, "val": 50}, 160) if CUDA else (4, {"train": 40, "val": 10}, 64)
)
RECIPE = (
    *(
        ("--config=rn50_configs/llc_20bit.yaml", "--model.arch=resnet18", "--training.batch_size=256")
        if CUDA
        else (
            "--config=rn18_configs/llc_demo.yaml",
            "--model.width=8",
            "--training.batch_size=16",
            "--codes.num_bits=8",
        )
    ),
    f"--resolution.min_res={96 if CUDA else 32}",
    f"--resolution.max_res={160 if CUDA else 96}",
    "--resolution.start_ramp=0",
    "--resolution.end_ramp=2",
    "--codebook.epochs=4",
    "--codebook.lr_peak_epoch=1",
    "--codebook.lr=0.1",
    "--instance.epochs=2",
    "--instance.lr=0.04",
    "--instance.distillation=0.5",
    f"--validation.resolution={128 if CUDA else 64}",
    "--validation.batch_size=100",
    "--training.ema_decay=0.9",
    "--codes.min_distance=1",
    "--training.deterministic=1",
)
RESOLUTIONS = [96, 128, 160, 160, 160, 160] if CUDA else [32, 64, 96, 96, 96, 96]


@pytest.fixture(scope="module")
def betons(tmp_path_factory):
    """(train.beton, val.beton); classes differ in the direction and the colour of stripes."""
    folder, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    colours = np.array([[200, 60, 60], [60, 180, 60], [70, 70, 220], [180, 180, 60]])
    written = []
    for split, count in PER_CLASS.items():
        for label in range(NUM_CLASSES):
            images = folder / split / f"class_{label:02d}"
            images.mkdir(parents=True)
            angle = np.pi / 2 * (label // 4) / 4  # up to a right angle: no class is another's mirror image
            colour = colours[label % 4]
            for i in range(count):
                wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) / 6 + rng.uniform(0, 6)) > 0
                pixels = (
                    40 + wave[..., None] * colour * rng.uniform(0.4, 0.8) + rng.normal(0, 30, (SIZE, SIZE, 3))
                )
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    images / f"{i:03d}.jpg", quality=90
                )
        written.append(folder / f"{split}.beton")
        run_command(
            "write_ffcv.py",
            f"--cfg.data_dir={folder}",
            f"--cfg.split={split}",
            f"--cfg.write_path={written[-1]}",
        )
    return written


def train(betons, folder, name, stop_after=None):
    """Runs to the end, or stops the run as soon as it prints `stop_after`; returns exit status and output.

    Each run has a cache of compiled code of its own, as if it ran on another machine.
    """
    process = subprocess.Popen(
        [
            sys.executable,
            "train_llc.py",
            *RECIPE,
            f"--data.train_dataset={betons[0]}",
            f"--data.val_dataset={betons[1]}",
            f"--logging.folder={folder}",
            f"--logging.name={name}",
            "--resume=auto",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor_{name}"),
            "TRITON_CACHE_DIR": str(folder / f"triton_{name}"),
        },
    )
    text = ""
    while chunk := process.stdout.read1(1 << 16).decode(errors="replace"):
        text += chunk
        if stop_after and stop_after in text:
            process.send_signal(signal.SIGUSR1)
            stop_after = None
    return process.wait(seconds(60)), text


def test_three_resolutions_two_stops_the_same_bits_and_what_was_learnt(betons, tmp_path):
    with ThreadPoolExecutor() as pool:  # at once, because each run spends minutes compiling
        undisturbed = pool.submit(train, betons, tmp_path, "undisturbed")
        # the first line of an epoch stands before its validation: stopped in the second epoch, then in the
        # instance stage
        for stop in ("codebook 1/4: loss", "instance 1/2: loss"):
            status, text = train(betons, tmp_path, "run", stop)
            assert status == 75 and "stopped by SIGUSR1" in text, text
        status, text = train(betons, tmp_path, "run")
        assert status == 0 and "continues in epoch 2 of the instance stage" in text, text
        status, text = undisturbed.result()
        assert status == 0, text
    assert differences(end_of(tmp_path / "run"), end_of(tmp_path / "undisturbed")) == []

    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["resolution"] for line in lines] == RESOLUTIONS
    assert [line["compiled"] for line in lines] == [CUDA] * len(lines)
    with open(tmp_path / "run" / "results.csv") as file:
        final = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
    headlines = [
        final[name]
        for name in ("codebook/top1_class_flip", "instance/top1_mhd_flip", "instance/top1_ed_flip")
    ]
    assert min(headlines) > (3 if CUDA else 1.5) / NUM_CLASSES, headlines
    evaluated = run_command("-m", "llc.evaluate", tmp_path / "run").stdout
    # other cuDNN algorithms than the deterministic run's, so that an image may be decided otherwise
    assert float(re.search(r"MHD +top-1 +([\d.]+) %", evaluated)[1]) == pytest.approx(
        100 * headlines[1], abs=1.0
    )
