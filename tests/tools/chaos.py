"""Kills trainings at random, resumes them, and compares how they end with one that was left alone.

    python -m tests.tools.chaos [--kills=50] [--seed=0] [--processes=2] [--seconds=0]

A kill takes about 5 s on 2 cores. Every start of a training is the same command line: `torchrun
--nproc_per_node=2 [--max-restarts=3] train_llc.py ... --resume=auto`. The runs must end with equal bits:
weights, optimiser state, codebook, fitted decoders, results, and the log except for its times.
"""

import collections
import dataclasses
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

from llc import config
from llc.data.writer import WriterConfig, write_beton
from llc.options import option
from tests import waiting

ROOT = Path(__file__).resolve().parent.parent.parent
TIMES = {"images_per_second", "train_seconds", "val_seconds"}
NUM_CLASSES, TRAIN_IMAGES, VAL_IMAGES = 5, 20, 4  # the last two: images per class
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
    """[train.beton, val.beton] of small noisy images, whose colour is their class."""
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
    """A running `torchrun` and its processes, which can be killed."""

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
                # as in scripts/slurm.sh
                "--signals_to_handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
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
        )

    def workers(self):
        """Ids of the processes that torchrun has started and that still run."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and _stat(entry.name)[1:2] == [str(self.torchrun.pid)]:
                self.seen.add(int(entry.name))
        return sorted(pid for pid in self.seen if _stat(pid)[:1] not in ([], ["Z"]))

    def wait(self, limit=120):
        """Waits until torchrun and all its processes have ended; returns the exit status.

        limit: seconds, before LLC_TEST_PATIENCE stretches them.
        """
        status = self.torchrun.wait(waiting.seconds(limit))
        deadline = time.monotonic() + waiting.seconds(40)
        while workers := self.workers():
            assert time.monotonic() < deadline, f"{workers} outlive torchrun\n{self.text()}"
            time.sleep(0.02)
        return status

    def text(self):
        self.output.seek(0)
        return self.output.read()


def _stat(pid):
    """[state, parent, ...] of a process, or [] if there is no such process."""
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
    """Everything about a run that interruptions must not change: {name: bytes or values}."""
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
        "decoder.npz": _decoder_of(run),
        "other checkpoints": flat(optimisers),
    }


def _decoder_of(run):
    """Arrays and description of a run's decoder.npz, but for the path of its betons, which may move."""
    if not (run / "decoder.npz").exists():
        return {}
    with np.load(run / "decoder.npz") as file:
        arrays = dict(file)
    description = json.loads(str(arrays.pop("description")))
    del description["source"]
    return description | {
        name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()
    }


def _without_times(line):
    return {key: value for key, value in line.items() if key not in TIMES}


def flat(value, path=""):
    """{path: value} of nested containers; a tensor becomes its dtype, shape and bytes."""
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
    """Names of the values that differ between two results of `end_of`."""
    return [
        f"{what}{key}"
        for what, values in reference.items()
        for key in (values if isinstance(values, dict) else [""])
        if (end[what].get(key) if key else end[what]) != (values[key] if key else values)
    ]


def await_moment(training, run, rng, whole, trains):
    """Waits for a random moment of a training and returns what kind of moment it is.

    whole: seconds that an undisturbed training takes. trains: how many of them follow its first checkpoint.
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
    """Kills `kills` times, or for `seconds` if that is not 0, and lets every run finish in the end.

    Every other run also restarts by --max-restarts. Returns a Counter of the kills by (way, moment), the
    number of runs, a Counter of what the starts printed, and descriptions of the runs that ended with other
    bits than the undisturbed one. Raises AssertionError if a training fails without having been killed, or
    never ends.
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
            f"undisturbed: {whole:.1f} s, {trains:.1f} s of them from the first checkpoint to the last; "
            f"{len(reference['log.jsonl'])} epochs"
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
                    training.workers()  # notes their ids now: once torchrun has gone, they cannot be found
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
            differing, how = differences(end_of(run), reference), "; ".join(history)
            if differing:
                wrong.append(f"{run.name}: {len(differing)} values, the first {differing[0]} ({how})")
            say(f"{run.name}: {len(history)} kills, {'DIFFERS' if differing else 'equal'} ({how})")
    return counts, num_runs, starts, wrong


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try."""

    kills: int = option(50, minimum=1, help="number of kills")
    seed: int = option(0, minimum=0, help="seed of the moments and of the ways to kill")
    processes: int = option(2, minimum=1, help="processes of each training")
    seconds: float = option(0.0, minimum=0, help="stop killing after this many seconds; 0: no limit")


def main(argv):
    options = config.read_one(Options, argv, description=__doc__)
    counts, num_runs, starts, wrong = chaos(options.kills, options.seed, options.processes, options.seconds)
    for (way, moment), count in sorted(counts.items()):
        print(f"{count:5d}  {way}, {moment}")
    equal = f"{num_runs - len(wrong)} of {num_runs} runs ended equal to the undisturbed one"
    print(f"{counts.total()} kills in {num_runs} runs; {equal}")
    print("what starts said: " + ", ".join(f"{count} {what!r}" for what, count in sorted(starts.items())))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    config.run(main)
