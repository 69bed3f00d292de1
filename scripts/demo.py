"""The whole path on real images: write betons, train both stages, evaluate, report. `make demo` runs it.

    .venv/bin/python scripts/demo.py [--data=FOLDER] [--folder=runs]

Uses Fashion-MNIST, or the images of FOLDER: one folder per class, of which a tenth is held out, or train/ and
val/ with such folders in them. Fashion-MNIST takes about 4 minutes on 2 CPU cores. The images of no known
class, which out-of-distribution detection should tell from these, are scikit-learn's handwritten digits.
"""

import csv
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from llc import config
from llc.options import option

ROOT = Path(__file__).resolve().parent.parent


def run(title, *command):
    """Runs a Python command in the project's folder and returns its seconds. If it fails, the demo ends."""
    print(f"\n== {title}\n$ {' '.join(map(str, command))}", flush=True)
    started = time.perf_counter()
    status = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode
    if status:
        sys.exit(f"error: the step '{title}' failed (exit status {status}); its message is above")
    return time.perf_counter() - started


def write_digits(folder):
    """Writes scikit-learn's handwritten digits, 8 x 8 pixels, as image files of 28 x 28."""
    folder.mkdir()
    for i, digit in enumerate(load_digits().images):
        Image.fromarray((digit / 16 * 255).astype("uint8")).resize((28, 28)).save(folder / f"{i:04d}.png")


@dataclasses.dataclass(frozen=True)
class Options:
    """Which images, and where the results go."""

    data: str = option("", help="a folder of images, one folder per class, instead of Fashion-MNIST")
    folder: str = option("runs", help="where the betons and the run folder are written")


def main(argv):
    options = config.read_one(Options, argv, description=__doc__)
    name = time.strftime("demo_%Y-%m-%d_%H-%M-%S")
    base = Path(options.folder).resolve()
    base.mkdir(parents=True, exist_ok=True)
    train, val = base / f"{name}_train.beton", base / f"{name}_val.beton"
    if options.data:
        data = Path(options.data).resolve()
        source = [f"--cfg.data_dir={data}", "--cfg.max_resolution=64", "--cfg.write_mode=raw"]
        if not (data / "train").is_dir() or not any((data / split).is_dir() for split in ("val", "test")):
            source.append("--cfg.val_fraction=0.1")
    else:
        source = ["--cfg.dataset=FashionMNIST", "--cfg.write_mode=raw"]
    seconds = {
        "write": run(
            "images -> betons: train",
            "write_ffcv.py",
            *source,
            "--cfg.split=train",
            f"--cfg.write_path={train}",
        )
    }
    seconds["write"] += run(
        "images -> betons: val",
        "write_ffcv.py",
        *source,
        "--cfg.split=val",
        f"--cfg.write_path={val}",
        f"--cfg.class_names_from={train}.json",
    )
    num_images = json.loads(Path(f"{train}.json").read_text())["num_samples"]
    # a small folder is trained for more epochs: as many images in all as of Fashion-MNIST
    epochs = [
        f"--{stage}.epochs={max(count, count * 60_000 // num_images)}"
        for stage, count in (("codebook", 2), ("instance", 1))
    ]
    seconds["train"] = run(
        "both stages",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
        "train_llc.py",
        "--config",
        "rn18_configs/llc_demo.yaml",
        f"--data.train_dataset={train}",
        f"--data.val_dataset={val}",
        f"--logging.folder={base}",
        f"--logging.name={name}",
        *(epochs if options.data else ()),
    )
    digits, figures = base / f"{name}_digits", base / name / "uses.json"
    scores, curves = base / name / "ood.npz", base / name / "retrieval.csv"
    write_digits(digits)
    seconds["evaluate"] = run(
        "evaluation of the finished run, from packed codes: classes, retrieval, images of no known class",
        "-m",
        "llc.evaluate",
        base / name,
        f"--retrieval.database={val}",
        f"--retrieval.csv={curves}",
        f"--ood.dataset=digits={digits}",
        f"--ood.scores={scores}",
        f"--json={figures}",
    )
    seconds["report"] = run(
        "all of it on one page",
        "-m",
        "llc.report",
        base / name,
        f"--ood_scores={scores}",
        f"--retrieval_csv={curves}",
    )
    with open(base / name / "results.csv") as file:
        final = {row["metric"]: 100 * float(row["final"]) for row in csv.DictReader(file)}
    parts = ", ".join(f"{part} {value:.0f}" for part, value in seconds.items())
    tied = f"{final['instance/tied_mhd_flip']:.2f} % tied"
    percent = {name: 100 * value for name, value in json.loads(figures.read_text()).items()}
    auroc = ", ".join(
        f"{percent[f'ood.digits.auroc.{score}']:.2f} % by {score}" for score in ("density", "mhd", "energy")
    )
    print(f"""
  class codes (codebook stage)   {final["codebook/top1_class_flip"]:6.2f} % top-1
  MHD         (instance stage)   {final["instance/top1_mhd_flip"]:6.2f} % top-1, {tied}
  ED          (instance stage)   {final["instance/top1_ed_flip"]:6.2f} % top-1
  retrieval   (instance stage)   {percent["retrieval.map"]:6.2f} % mAP, each val image in all others
  digits told from val images    AUROC {auroc}
  seconds     {parts}; together {sum(seconds.values()):.0f}
  run folder  {base / name}
  report      {base / name / "report.html"}

Open the report in a browser. Next: `make demo DATA=/a/folder` on your own images (one folder per class), or
README.md's ImageNet path.""")


if __name__ == "__main__":
    config.run(main)
