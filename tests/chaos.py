"""Kills trainings at random moments in random ways, continues them, and compares their ends with that of one left alone.

    python -m tests.chaos [--kills 50] [--seed 0] [--processes 2] [--seconds 0]       about 5 s a kill on 2 cores

Every training is `torchrun --nproc_per_node=2 [--max-restarts=3] train_llc.py ... --resume=auto`, always the same command line. The end must be equal
bit for bit: weights, optimiser state, codebook, results, and the log but for its times. --seconds ends early, after that much time.
"""

import argparse
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llc.data.writer import WriterConfig, write_beton

ROOT = Path(__file__).resolve().parent.parent
TIMES = {"images_per_second", "train_seconds", "val_seconds"}
NUM_CLASSES, TRAIN_IMAGES, VAL_IMAGES = 5, 20, 4  # images a class
RECIPE = (
    "--model.arch=resnet18",
    "--model.width=4",
    "--codes.num_bits=7",
    "--training.batch_size=12",
    "--validation.batch_size=5",
    "--codebook.epochs=12",
    "--codebook.lr=0.1",
    "--instance.epochs=8",
    "--instance.lr=0.05",
    "--instance.distillation=0.5",
    "--resolution.min_res=16",
    "--resolution.max_res=16",
    "--validation.resolution=16",
    "--training.ema_decay=0.9",
    "--training.checkpoint_minutes=0.001",
    "--data.num_workers=1",
    "--dist.timeout_minutes=2",
)


def make_betons(folder, seed=0, write_mode="raw"):
    """[train.beton, val.beton] of little noisy pictures; the class is the colour."""
    rng, betons = np.random.default_rng(seed), []
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        for label in range(NUM_CLASSES):
            images = folder / "images" / split / f"class_{label}"
            images.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(120, 40, (18, 20, 3)) + 60 * np.eye(3)[label % 3] * (1 + label // 3)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / f"{i:02d}.png")
        betons.append(folder / f"{split}.beton")
        write_beton(
            WriterConfig(
                data_dir=str(folder / "images"),
                write_path=str(betons[-1]),
                split=split,
                num_workers=1,
                write_mode=write_mode,
            ),
            show_progress=False,
        )
    return betons


class Training:
    """One process group of `torchrun`, which can be killed."""

    def __init__(self, betons, folder, processes, options=(), launcher=()):
        self.started, self.seen = time.monotonic(), set()
        self.output = tempfile.TemporaryFile("w+")
        self.torchrun = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={processes}",
                *launcher,
                "train_llc.py",
                *RECIPE,
                f"--data.train_dataset={betons[0]}",
                f"--data.val_dataset={betons[1]}",
                f"--logging.folder={folder.parent}",
                f"--logging.name={folder.name}",
                "--resume=auto",
                *options,
            ],
            cwd=ROOT,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"},
        )  # as in scripts/slurm.sh

    def workers(self):
        """Process ids of the trainings that torchrun has started and that still run."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and _stat(entry.name)[1:2] == [str(self.torchrun.pid)]:
                self.seen.add(int(entry.name))
        return sorted(pid for pid in self.seen if _stat(pid)[:1] not in ([], ["Z"]))

    def wait(self, seconds=120):
        """The exit status, when torchrun and all its processes have ended."""
        status = self.torchrun.wait(seconds)
        deadline = time.monotonic() + 40
        while workers := self.workers():
            assert time.monotonic() < deadline, f"{workers} outlive torchrun\n{self.text()}"
            time.sleep(0.02)
        return status

    def text(self):
        self.output.seek(0)
        return self.output.read()


def _stat(pid):
    """[state, parent, ...] of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _send(number, of):
    def kill(training, rng):
        for pid in of(training, rng):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it has just finished

    return kill


WAYS = {
    "SIGTERM to torchrun": _send(signal.SIGTERM, lambda t, rng: [t.torchrun.pid]),
    "SIGTERM to one process": _send(
        signal.SIGTERM, lambda t, rng: rng.sample(t.workers(), min(1, len(t.workers())))
    ),
    "SIGUSR1 to torchrun and all processes": _send(
        signal.SIGUSR1, lambda t, rng: [t.torchrun.pid, *t.workers()]
    ),
    "Ctrl-C: SIGINT to torchrun and all processes": _send(
        signal.SIGINT, lambda t, rng: [t.torchrun.pid, *t.workers()]
    ),
    "SIGKILL to one process": _send(
        signal.SIGKILL, lambda t, rng: rng.sample(t.workers(), min(1, len(t.workers())))
    ),
    "SIGKILL to torchrun": _send(signal.SIGKILL, lambda t, rng: [t.torchrun.pid]),
    "SIGKILL to everything": _send(signal.SIGKILL, lambda t, rng: [t.torchrun.pid, *t.workers()]),
}


def end_of(run):
    """Everything that must not depend on what happened on the way: {what: bytes or values}."""
    state = torch.load(run / "checkpoints" / "last.pth", weights_only=True)
    state["progress"]["lines"] = [_without_times(line) for line in state["progress"]["lines"]]
    log = [_without_times(json.loads(line)) for line in (run / "log.jsonl").read_text().splitlines()]
    optimisers = {
        path.stem: torch.load(path, weights_only=True)
        for path in sorted((run / "checkpoints").glob("*.pth"))
        if path.stem in ("codebook", "instance_ema", "joint", "joint_ema", "model_best")
    }
    return {
        "last.pth": flat(state),
        "log.jsonl": log,
        "codebook.npy": (run / "codebook.npy").read_bytes(),
        "results.csv": (run / "results.csv").read_bytes(),
        "other checkpoints": flat(optimisers),
    }


def _without_times(line):
    return {key: value for key, value in line.items() if key not in TIMES}


def flat(value, path=""):
    """{path: value} of nested containers, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return {path: (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())}
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {
            k: v for number, inner in enumerate(value) for k, v in flat(inner, f"{path}/{number}").items()
        }
    return {path: value}


def differences(end, reference):
    """Names of what differs between two ends."""
    return [
        f"{what}{key}"
        for what, values in reference.items()
        for key in (values if isinstance(values, dict) else [""])
        if (end[what].get(key) if key else end[what]) != (values[key] if key else values)
    ]


def await_moment(training, run, rng, whole, trains):
    """Waits for a random moment of a training and returns its name: any, in its steps, or while a checkpoint is being written.

    whole, trains: seconds that an undisturbed one takes, and the part of them from its first checkpoint on.
    """
    moment = rng.choices(("any time", "in its steps", "while it writes a checkpoint"), (1, 3, 2))[0]
    last, until = run / "checkpoints" / "last.pth", training.started + rng.uniform(0, whole)
    if moment != "any time":
        before = _identity_of(last)
        while training.torchrun.poll() is None and _identity_of(last) == before:
            time.sleep(0.002)
        until = time.monotonic() + rng.uniform(0, trains)
    while training.torchrun.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    if moment == "while it writes a checkpoint":
        while training.torchrun.poll() is None and not any(last.parent.glob(".last.pth.*.tmp")):
            pass
    return moment


def _identity_of(path):
    try:
        return path.stat().st_ino
    except OSError:
        return None


def chaos(kills, seed, processes=2, seconds=0.0, say=print, options=()):
    """Kills until so many have hit, or for so many seconds; every run is continued to its end, every other one by --max-restarts too.

    Returns a Counter of (way, moment) of the kills, the number of runs, a Counter of how starts went on, and what differs from the
    undisturbed run. Raises AssertionError where a training does not end, or fails on its own.
    """
    rng, began = random.Random(seed), time.monotonic()
    counts, starts, wrong, num_runs = collections.Counter(), collections.Counter(), [], 0
    with tempfile.TemporaryDirectory(prefix="llc-chaos-") as folder:
        folder = Path(folder)
        betons = make_betons(folder)
        undisturbed, times = Training(betons, folder / "undisturbed", processes, options), []
        for file in ("checkpoints/last.pth", "results.csv"):
            while not (folder / "undisturbed" / file).exists() and undisturbed.torchrun.poll() is None:
                time.sleep(0.002)
            times.append(time.monotonic())
        assert undisturbed.wait() == 0, undisturbed.text()
        whole, trains = times[1] - undisturbed.started, times[1] - times[0]
        reference = end_of(folder / "undisturbed")
        say(
            f"undisturbed: {whole:.1f} s, {trains:.1f} s of them from the first checkpoint to the last; {len(reference['log.jsonl'])} epochs"
        )

        def wanted():
            return counts.total() < kills and not (seconds and time.monotonic() - began > seconds)

        while wanted():
            num_runs += 1
            run, history = folder / f"run_{num_runs}", []
            launcher = ("--max-restarts=3",) if num_runs % 2 else ()
            status = None
            while status != 0:
                training, hit = Training(betons, run, processes, options, launcher), False
                if wanted():
                    moment, way = await_moment(training, run, rng, whole, trains), rng.choice(list(WAYS))
                    training.workers()  # those of a torchrun that is gone could not be found
                    hit = training.torchrun.poll() is None
                    if hit:
                        WAYS[way](training, rng)
                        counts[way, moment] += 1
                        history.append(f"{way}, {moment}")
                status, text = training.wait(), training.text()
                starts.update(
                    re.findall(
                        r"continues(?= in epoch)|is finished$|another process still writes", text, re.M
                    )
                )
                assert status == 0 or hit, f"{history}\n{text}"
            found = differences(end_of(run), reference)
            if found:
                wrong.append(f"{run.name}: {len(found)} values, the first {found[0]} ({'; '.join(history)})")
            say(
                f"{run.name}: {len(history)} kills, {'equal' if not found else 'DIFFERS'} ({'; '.join(history)})"
            )
    return counts, num_runs, starts, wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.0)
    words = parser.parse_args()
    counts, num_runs, starts, wrong = chaos(words.kills, words.seed, words.processes, words.seconds)
    for (way, moment), count in sorted(counts.items()):
        print(f"{count:5d}  {way}, {moment}")
    print(
        f"{counts.total()} kills in {num_runs} runs; {num_runs - len(wrong)} of {num_runs} runs ended equal to the undisturbed one"
    )
    print("what starts said: " + ", ".join(f"{count} {what!r}" for what, count in sorted(starts.items())))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
