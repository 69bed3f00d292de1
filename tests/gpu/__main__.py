"""Runs the tests of tests/gpu and the benchmarks on a machine with a GPU. `make test-gpu` calls it.

    python -m tests.gpu [--only=NAME,...] [--json=gpu.json] [--rehearse]

The tests take about 10 minutes on an H200. Every part runs in a process of its own, because an error on the
device spoils whatever follows it in the same process. A table of all parts is printed at the end. The JSON
file holds the table and the benchmarks' figures; it is written after each part. --only chooses parts by the
beginnings of their names. Tests that need two GPUs are left out on a machine with one. The exit status is 0
if every part ran and passed, and 1 if anything failed or was skipped.

--rehearse runs the same commands, as small as possible, without a GPU. The tests that need one are skipped,
so the exit status is 1.
"""

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from llc import config
from llc.errors import UserError
from llc.options import option

ROOT = Path(__file__).resolve().parent.parent.parent
SEVERAL_GPUS = "test_several_gpus"  # left out on a machine with one GPU
WORKLOADS = (
    "top1_64",
    "top1_256",
    "top100_64",
    "top100_256",
    "decode",
    "pack",
    "one_64",
    "table20",
    "table24",
)
RECIPE = (
    "--config=rn50_configs/llc_20bit.yaml",
    "--training.batch_size=512",
    "--validation.batch_size=512",
    "--rounds=3",
)
SMALLEST = (
    "--config=rn18_configs/llc_demo.yaml",
    "--model.width=8",
    "--training.batch_size=16",
    "--validation.batch_size=16",
    "--batches=1",
    "--rounds=1",
)
# beside the recipe as it is: what resolution, compilation and BlurPool each cost
VARIANTS = {
    "epoch_192px": ("--resolution.min_res=192",),
    "epoch_224px": ("--resolution.min_res=224", "--resolution.max_res=224"),
    "epoch_eager": ("--training.compile=off",),
    "epoch_no_blurpool": ("--training.use_blurpool=0",),
}


@dataclasses.dataclass
class Part:
    """One command of the table.

    command: the words after `python`; {report} stands for the file that the command writes. kind: tests,
    hamming or epoch; it says what that file holds. minutes: the time limit.
    """

    name: str
    kind: str
    command: tuple
    minutes: float = 10


def parts(rehearse):
    found = [
        Part(
            f"tests_{path.stem.removeprefix('test_')}",
            "tests",
            (
                "-m",
                "pytest",
                str(path.relative_to(ROOT)),
                "-q",
                "-rfEs",
                "-p",
                "no:cacheprovider",
                "--junitxml={report}",
            ),
            15,
        )
        for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
        if path.stem != SEVERAL_GPUS or torch.cuda.device_count() > 1
    ]
    size = ("--device=cpu", "--scale=0.002", "--repeats=2", "--seconds=0") if rehearse else ("--device=cuda",)
    found += [
        Part(
            f"hamming_{name}",
            "hamming",
            ("-m", "llc.benchmark", "hamming", name, *size, "--json={report}"),
            3,
        )
        for name in (WORKLOADS[:1] if rehearse else WORKLOADS)
    ]
    epoch, others = (
        ("-m", "llc.benchmark", "epoch", "--json={report}"),
        "all" if find_spec("ffcv") else "torchvision",
    )
    if rehearse:
        return [*found, Part("epoch", "epoch", (*epoch, *SMALLEST))]
    found += [
        Part("epoch", "epoch", (*epoch, *RECIPE, "--batches=80")),
        Part("epoch_beside_others", "epoch", (*epoch, *RECIPE, "--batches=80", f"--vs={others}")),
    ]
    return found + [
        Part(name, "epoch", (*epoch, *RECIPE, "--batches=20", *words), 5) for name, words in VARIANTS.items()
    ]


def run(part, folder, environment):
    """Runs a part. Returns {name, status, seconds, says, report}.

    status: passed, skipped or failed. says: the text for the table. report: what the command wrote.
    """
    file, started = folder / f"{part.name}.report", time.monotonic()
    command = [sys.executable, *(word.format(report=file) for word in part.command)]
    print(f"\n== {part.name}: {' '.join(command[1:])}", flush=True)
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        code = process.wait(60 * part.minutes)
    except subprocess.TimeoutExpired:
        # the processes that it started would keep the GPU busy during the parts that follow
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = f"still running after {part.minutes:g} minutes"
    result = {
        "name": part.name,
        "status": "passed",
        "seconds": round(time.monotonic() - started, 1),
        "says": "",
        "report": None,
    }
    try:
        result["report"] = _counts(file) if part.kind == "tests" else json.loads(file.read_text())
        result["says"] = {"tests": _say_counts, "hamming": _say_ratios, "epoch": say_rates}[part.kind](
            result["report"]
        )
    except Exception as error:  # whatever this part wrote, the others must run
        code = code or f"its report is missing or not what was expected ({type(error).__name__}: {error})"
    if part.kind == "tests" and result["report"] and code in (0, 5):  # 5: pytest had nothing to run
        counts = result["report"]
        result["status"] = "skipped" if counts["skipped"] or not counts["passed"] else "passed"
    elif code:
        result["status"] = "failed"
        result["says"] = f"{result['says']} exit status {code}".strip() if isinstance(code, int) else code
    return result


def _counts(file):
    """Numbers of passed, failed and skipped tests in a JUnit file, and the reasons for skipping."""
    suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    number = {
        key: sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    failed = number["failures"] + number["errors"]
    reasons = sorted({skip.get("message", "") for suite in suites for skip in suite.iter("skipped")})
    return {
        "passed": number["tests"] - failed - number["skipped"],
        "failed": failed,
        "skipped": number["skipped"],
        "reasons": reasons,
    }


def _say_counts(counts):
    return ", ".join(f"{counts[key]} {key}" for key in ("passed", "failed", "skipped") if counts[key]) + (
        f" ({'; '.join(counts['reasons'])})" if counts["reasons"] else ""
    )


def _say_ratios(report):
    (workload,) = report["workloads"]
    ours, *others = workload["ways"]
    rate = workload["work"] * ours["n"] / ours["median"]
    return ", ".join(
        [
            f"{1e3 * ours['median']:.3g} ms",
            *(f"{rate / limit:.2f} of the {name}" for name, limit in workload["limits"].items() if limit),
            *(f"{way['ours_is']:.3g} x {way['way']}" for way in others),
        ]
    )


def say_rates(report):
    rates = report["images_per_second"]
    return ", ".join(
        [
            f"{rates['epoch']:.0f} images/s, {report['share_of_limit']:.3f} of the {report['limit']} alone",
            f"{report['step_flops_per_second'] / report['matrix_flops_per_second']:.2f} of the matrix rate",
            *(
                f"{rates['epoch'] / rate:.2f} x {name.removesuffix(' epoch')}"
                for name, rate in rates.items()
                if name.endswith(" epoch")
            ),
        ]
    )


def machine():
    """What the results depend on."""

    def said_by(*command):
        try:
            return subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, timeout=60
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    versions = {}
    for name in ("torch", "torchvision", "triton", "numpy", "faiss-gpu", "faiss-cpu", "ffcv"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "gpu": said_by(
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": said_by("git", "rev-parse", "HEAD"),
        **versions,
    }


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    only: str = option(
        "", help="parts to run: beginnings of their names (tests, hamming, epoch, ...), separated by commas"
    )
    json: str = option("gpu.json", help="the file to write")
    rehearse: bool = option(False, help="on a machine without a GPU: the same commands, small")


def main(argv):
    options = config.read_one(Options, argv, description=__doc__)
    if not torch.cuda.is_available() and not options.rehearse:
        raise UserError("torch sees no GPU on this machine; --rehearse tries the commands without one")
    wanted = tuple(options.only.split(","))
    existing = parts(options.rehearse)
    chosen = [part for part in existing if part.name.startswith(wanted)]
    if not chosen:
        names = ", ".join(part.name for part in existing)
        raise UserError(f"--only={options.only}: no part's name begins with this; there are {names}")
    environment, results = os.environ | ({"LLC_REHEARSE": "1"} if options.rehearse else {}), []
    about = machine()
    with tempfile.TemporaryDirectory(prefix="llc-gpu-") as folder:
        for part in chosen:
            results.append(run(part, Path(folder), environment))
            written = {"machine": about, "rehearsed": options.rehearse, "parts": results}
            Path(options.json).write_text(json.dumps(written, indent=1) + "\n")
    print()
    for key, value in about.items():
        if value:
            print(f"{key:12s} {value}")
    print(f"\n{'part':20s} {'result':8s} {'seconds':>8s}")
    for result in results:
        print(f"{result['name']:20s} {result['status']:8s} {result['seconds']:8.1f}  {result['says']}")
    bad = [result["name"] for result in results if result["status"] != "passed"]
    outcome = f"not passed: {', '.join(bad)}" if bad else f"all {len(results)} parts passed"
    print(f"\n{options.json}: {outcome}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    config.run(main)
