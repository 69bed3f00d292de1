"""The whole path on real images: write betons, train both stages under torchrun, evaluate. `make demo` runs it.

    .venv/bin/python scripts/demo.py [--data=FOLDER] [--folder=runs]

Fashion-MNIST, or FOLDER: one folder a class (a tenth of each class is held out), or train/ and val/ holding such folders.
2 CPU cores take about 4 minutes on Fashion-MNIST.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(title, *command):
    """Runs a command of the README from the project's root; returns its seconds, or ends with its exit status."""
    print(f"\n== {title}\n$ {' '.join(map(str, command))}", flush=True)
    started = time.perf_counter()
    status = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode
    if status:
        sys.exit(f"error: the step '{title}' failed (exit status {status}); its message stands above")
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", help="a folder of images, one folder a class, in place of Fashion-MNIST")
    parser.add_argument("--folder", default="runs", help="where the betons and the run folder go")
    arguments = parser.parse_args()
    name = time.strftime("demo_%Y-%m-%d_%H-%M-%S")
    base = Path(arguments.folder).resolve()
    base.mkdir(parents=True, exist_ok=True)
    train, val = base / f"{name}_train.beton", base / f"{name}_val.beton"
    if arguments.data:
        data = Path(arguments.data).resolve()
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
    # as many images in all as the recipe's epochs have of Fashion-MNIST, however small the folder
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
        *(epochs if arguments.data else ()),
    )
    seconds["evaluate"] = run(
        "evaluation of the finished run, from packed codes", "-m", "llc.evaluate", base / name
    )
    with open(base / name / "results.csv") as file:
        final = {row["metric"]: 100 * float(row["final"]) for row in csv.DictReader(file)}
    print(f"""
  class codes (codebook stage)   {final["codebook/top1_class_flip"]:6.2f} % top-1
  MHD         (instance stage)   {final["instance/top1_mhd_flip"]:6.2f} % top-1, {final["instance/tied_mhd_flip"]:.2f} % tied
  ED          (instance stage)   {final["instance/top1_ed_flip"]:6.2f} % top-1
  seconds     {", ".join(f"{part} {value:.0f}" for part, value in seconds.items())}; together {sum(seconds.values()):.0f}
  run folder  {base / name}

Next: `make demo DATA=/a/folder` on your own images (one folder a class), or the ImageNet path of README.md.""")


if __name__ == "__main__":
    main()
