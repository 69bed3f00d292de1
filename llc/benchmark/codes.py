"""Ways to learn codes, trained on the same data for the same epochs: tuned on a slice of train, compared on val over several seeds.

    python -m llc.benchmark codes --config RECIPE.yaml --grid GRID.yaml --out=FOLDER [--jobs=N] [--dry] [--section.key=value ...]

The recipe is what all methods share; --section.key=value changes it. The grid says in what they differ (experiments/ has one):

    headline: top1_mhd                  # of the last stage; what a method is tuned by; a method may have its own. Default: top1_mhd
    tune_seeds: [0]                     # training.seed of the trainings on train minus the slice. Default: [0]
    seeds: [0, 1, 2]                    # of the trainings that are compared. Default: [0, 1, 2]
    held_out: 0.1                       # the slice: this share of each class of train, ...
    held_out_seed: 0                    # ... drawn by this seed. Defaults: 0.1, 0
    methods:
      sqrt:
        set: {codes.logit_scale: sqrt}  # keys of the recipe
        tune: {codebook.lr: [0.03, 0.1], instance.lr: [0.01, 0.03]}   # the axes of the method's grid; none: nothing to tune
      dense:
        set: {training.stages: codebook, codes.num_bits: num_classes, codes.init_codebook: onehot, codebook.freeze_epoch: 0, codebook.epochs: 16}
        headline: top1_class
        ceiling: true                   # of one method: the table has the others' distance to it

`codes.num_bits: num_classes`, `codes.init_codebook: onehot` and `codebook.freeze_epoch: 0` make a dense classifier: a code of one bit a class that stands
still, whose class logits are those of a linear layer.

1. Every point of a method's grid is trained on train minus the slice, and judged on the slice by the headline at the last epoch, mean over
   tune_seeds. A point whose loss becomes no number, or that fails, is lost, and the report says so. A method with one point skips this.
2. Each method at its best point is trained on all of train with each of `seeds`. The trainer looks at val after every epoch, nothing is
   chosen by that: the table has the final epoch.
3. The table: mean ± standard deviation (n - 1) over the seeds that finished. `class` is top1_class at the end of the first stage, MHD, ED, tied
   (nearest class not unique) and none (equals no class code) at the end of the last. `collisions` counts classes whose code an earlier
   class has; distances are between class codes, in bits. Retrieval is on val against itself, each image left out of its own
   answer, by the packed instance codes and llc.hamming.search: kNN is the majority of the 10 nearest (a tie goes to the class that
   comes first among them), mAP the mean average precision over the whole ranking. Images at equal distance are in a random order fixed once. `gap`
   is a method's headline less the ceiling's, in points. `seconds` is training without validation.

A training is `python train_llc.py` in a process of its own, --jobs of them at a time (default 1) with the cores (and GPUs) divided among them. FOLDER
holds data/ (the slice and the rest of train, as betons: as large as train together; ImageNet's are written in the time its bytes take to be read
and written), runs/ (run folders: some 8 times the network each), logs/ (what each printed), records/, results.json, table.md, table.txt.
The same command again continues: a run is known by its configuration, data and seed, so finished ones (also those whose loss became no number)
are not run again, interrupted ones are continued, failed ones are tried again, and a changed grid trains what is new. The code is not part of
that: use another FOLDER for another version. Results on a CPU are the same to the bit for the same number of threads. --dry lists the runs.
"""

import collections
import contextlib
import csv
import dataclasses
import difflib
import fcntl
import hashlib
import io
import itertools
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import llc
from llc import config as edge
from llc.codebook import health, load_codebook, save_codebook
from llc.data.shards import open_shards
from llc.data.subset import held_out, write_subset
from llc.encode import encode
from llc.encoder import load
from llc.errors import UserError
from llc.files import atomic_write
from llc.hamming import search
from llc.training import config as training_config
from llc.training import resume

OPTIONS = {
    "grid": "the YAML file of methods, learning rates and seeds", "out": "the folder for everything (default: runs/codes)",
    "jobs": "trainings at a time (default 1)", "dry": "1: only list the runs",
}  # fmt: skip
OURS = (
    "logging.folder",
    "logging.name",
    "training.seed",
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
)  # not a method's
HEADLINES = ("top1_mhd", "top1_class", "top1_ed", "top5_mhd", "top5_class")
NEIGHBOURS = 10
STOP_SECONDS = 120.0  # for the trainings to write a checkpoint


def main(argv):
    argv = ["--dry=1" if word == "--dry" else word for word in argv]
    base, options = training_config.read(argv, description=__doc__, options=OPTIONS)
    if not options["grid"]:
        raise UserError(
            "--grid is required: the YAML file of methods, learning rates and seeds (--help shows one)"
        )
    comparison = Comparison(
        base, _without_options(argv), Grid.read(options["grid"]), Path(options["out"] or "runs/codes")
    )
    jobs = options["jobs"] or "1"
    if not jobs.isdigit() or int(jobs) < 1:
        raise UserError(f"--jobs={jobs}: it takes a whole number, at least 1")
    if options["dry"] not in (None, "0"):
        print(comparison.listing())
        return
    for number in (signal.SIGTERM, signal.SIGHUP):  # end like Ctrl-C does, with the trainings
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    with comparison.alone():
        report = comparison.run(int(jobs))
    text = table(report)
    for name, content in (
        ("results.json", json.dumps(report, indent=1)),
        ("table.txt", text),
        ("table.md", table(report, markdown=True)),
    ):
        _write(comparison.out / name, content + "\n")
    print(f"\n{text}\n\n{comparison.out}: results.json, table.md, table.txt")


# ------------------------------------------------------------------------------------------------ the grid


@dataclasses.dataclass(frozen=True)
class Method:
    """overrides: {key: value}; axes: {key: values}; ceiling: whether the others are measured against it."""

    name: str
    overrides: dict
    axes: dict
    headline: str
    ceiling: bool

    @property
    def points(self):
        """The grid: a list of {key: value}, one {} where there are no axes."""
        return [dict(zip(self.axes, values)) for values in itertools.product(*self.axes.values())]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid file, checked but for the recipe's keys and values, which training.config reads."""

    path: str
    methods: tuple
    tune_seeds: tuple
    seeds: tuple
    held_out: float
    held_out_seed: int

    @classmethod
    def read(cls, path):
        content = edge.read_yaml(path, "grid")
        known = {
            "headline": str,
            "tune_seeds": list,
            "seeds": list,
            "held_out": (int, float),
            "held_out_seed": int,
            "methods": dict,
        }
        _check(path, content, known)
        if not content.get("methods"):
            raise UserError(
                f"{path}: methods is missing: a name for each, with set and tune (--help shows a grid)"
            )
        methods = []
        for name, fields in content["methods"].items():
            where = f"{path}: methods.{name}"
            if not re.fullmatch(r"[A-Za-z0-9._+-]+", str(name)):
                raise UserError(
                    f"{where}: a name has letters, digits and . _ + - (run folders are called by it)"
                )
            _check(where, fields or {}, {"set": dict, "tune": dict, "headline": str, "ceiling": bool})
            fields = {
                "set": {},
                "tune": {},
                "headline": content.get("headline", "top1_mhd"),
                "ceiling": False,
                **(fields or {}),
            }
            for key, values in fields["tune"].items():
                if not isinstance(values, list) or not values:
                    raise UserError(
                        f"{where}.tune: {key} is {values!r}; it takes a list of values, such as [0.03, 0.1]"
                    )
            for key in (*fields["set"], *fields["tune"]):
                if key in OURS:
                    raise UserError(
                        f"{where}: {key} is not a method's: the comparison sets it (seeds: `seeds` and `tune_seeds`)"
                    )
            both = sorted(set(fields["set"]) & set(fields["tune"]))
            if both:
                raise UserError(f"{where}: {both[0]} is in set and in tune; leave one")
            if fields["headline"] not in HEADLINES:
                raise UserError(
                    f"{where}: headline = {fields['headline']}: it takes one of {', '.join(HEADLINES)}"
                )
            methods.append(
                Method(str(name), fields["set"], fields["tune"], fields["headline"], fields["ceiling"])
            )
        if sum(method.ceiling for method in methods) > 1:
            raise UserError(
                f"{path}: ceiling is true of {', '.join(m.name for m in methods if m.ceiling)}; one method can be it"
            )
        grid = cls(
            str(path),
            tuple(methods),
            tuple(content.get("tune_seeds", [0])),
            tuple(content.get("seeds", [0, 1, 2])),
            content.get("held_out", 0.1),
            content.get("held_out_seed", 0),
        )
        for name in ("tune_seeds", "seeds"):
            seeds = getattr(grid, name)
            if (
                not seeds
                or len(set(seeds)) < len(seeds)
                or not all(type(seed) is int and seed >= 0 for seed in seeds)
            ):
                raise UserError(
                    f"{path}: {name} = {list(seeds)}: it takes different whole numbers, at least one"
                )
        if not 0 < grid.held_out < 1:
            raise UserError(f"{path}: held_out = {grid.held_out}: it takes a share between 0 and 1")
        if grid.held_out_seed < 0:
            raise UserError(
                f"{path}: held_out_seed = {grid.held_out_seed}: it takes a whole number, at least 0"
            )
        return grid


def _check(where, content, known):
    """Raises UserError for a key that is not known, or a value of another type. known: {key: type or types}."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected keys ({', '.join(known)}), found {content!r:.60}")
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            raise UserError(
                f"{where}: {key} is not a key; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(known)}"
            )
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        if type(value) not in kinds:
            raise UserError(
                f"{where}: {key} = {value!r:.60}: it takes a {' or '.join(kind.__name__ for kind in kinds)}"
            )


# ------------------------------------------------------------------------------------------------ runs


@dataclasses.dataclass(frozen=True)
class Run:
    """One training. phase: tune or final; point: its place in the method's grid; words: of the command line; config: what they make."""

    phase: str
    method: Method
    point: dict
    seed: int
    name: str
    words: tuple
    config: training_config.Config


@dataclasses.dataclass
class Outcome:
    """status: finished, diverged (the loss became no number) or failed. metrics: results.csv's final values, by stage/metric."""

    status: str
    message: str = ""
    metrics: dict = dataclasses.field(default_factory=dict)
    log: list = dataclasses.field(default_factory=list)


class Comparison:
    """The runs of a grid over a recipe, in the folder `out`. base: the recipe's Config; words: the command line that made it."""

    def __init__(self, base, words, grid, out):
        self.base, self.words, self.grid, self.out = base, words, grid, out
        self.train, self.val = open_shards(base.data.train_dataset), open_shards(base.data.val_dataset)
        self.num_classes = self.train.manifest.num_classes
        self.script = Path(llc.__file__).resolve().parent.parent / "train_llc.py"
        if not self.script.is_file():
            raise UserError(
                f"{self.script} is not there: trainings are started with it; work in a clone of the project (pip install -e .)"
            )
        self.tuning = {
            method.name: [
                self._make("tune", method, point, seed) for point in method.points for seed in grid.tune_seeds
            ]
            if len(method.points) > 1
            else []
            for method in grid.methods
        }
        for method in grid.methods:  # a bad key shows before hours of training
            for seed in grid.seeds:
                self._make("final", method, method.points[0], seed)

    # ---- planning

    def _make(self, phase, method, point, seed):
        overrides = {**method.overrides, **point}
        codebook = None
        if overrides.get("codes.num_bits") == "num_classes":
            overrides["codes.num_bits"] = self.num_classes
        if overrides.get("codes.init_codebook") == "onehot":
            codebook = self._onehot_codes
            overrides["codes.init_codebook"] = str(self._onehot)
        overrides["training.seed"] = seed
        words = [*self.words, *(f"--{key}={value}" for key, value in overrides.items())]
        try:
            config, _ = training_config.read(words, description="")
            if codebook is not None and config.codes.num_bits != self.num_classes:
                raise UserError(
                    f"codes.init_codebook = onehot needs codes.num_bits: num_classes, which is {self.num_classes}; it is "
                    f"{config.codes.num_bits}"
                )
            if codebook is None and config.codes.init_codebook:
                codebook = load_codebook(config.codes.init_codebook, config.codes.num_bits)
        except UserError as error:
            raise UserError(
                f"{self.grid.path}: methods.{method.name}: {str(error).removeprefix('command line: ')}"
            ) from error
        identity = resume.identity(config, self.train, self.train if phase == "tune" else self.val, codebook)
        del identity["config"]["codes.init_codebook"]  # a path; the values are in the identity
        if phase == "tune":
            identity["held_out"] = [self.grid.held_out, self.grid.held_out_seed]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        name = f"{phase}_{method.name}_seed{seed}_{digest[:12]}"
        data = (
            {"data.train_dataset": self._slice("rest"), "data.val_dataset": self._slice("held_out")}
            if phase == "tune"
            else {}
        )
        words += [
            *(f"--{key}={value}" for key, value in data.items()),
            f"--logging.folder={self.out / 'runs'}",
            f"--logging.name={name}",
        ]
        config, _ = training_config.read(words, description="")
        return Run(phase, method, point, seed, name, tuple(words), config)

    @property
    def _onehot(self):
        return self.out / "codebooks" / f"onehot_{self.num_classes}.npy"

    @property
    def _onehot_codes(self):
        return 2 * torch.eye(self.num_classes) - 1

    def _slice(self, part):
        """Where `part` of train is: rest or held_out. The name says of which train, so that another one's is not taken for it."""
        key = [
            resume.identity(self.base, self.train, self.train, None)["train_data"],
            self.grid.held_out,
            self.grid.held_out_seed,
        ]
        return self.out / "data" / f"{part}_{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.beton"

    def listing(self):
        """The runs and their number, as text."""
        lines, tuning = [], [run for runs in self.tuning.values() for run in runs]
        for run in tuning:
            lines.append(
                f"tune   {run.method.name:20s} {_text(run.point)}, seed {run.seed}: {self._state(run)}"
            )
        for method in self.grid.methods:
            try:
                point = self._choose(method)
            except LookupError:
                point = None
            for seed in self.grid.seeds:
                if point is None:
                    lines.append(f"final  {method.name:20s} the best point, seed {seed}: to run")
                else:
                    lines.append(
                        f"final  {method.name:20s} {_text(point)}, seed {seed}: {self._state(self._make('final', method, point, seed))}"
                    )
        finals = len(self.grid.methods) * len(self.grid.seeds)
        return "\n".join(
            [*lines, f"{len(tuning)} runs to tune + {finals} to compare = {len(tuning) + finals}"]
        )

    def _state(self, run):
        known = self.outcome(run)
        if known is not None:
            return known.status if known.status != "failed" else "failed, to run again"
        return "to be continued" if (self.out / "runs" / run.name).exists() else "to run"

    # ---- what is known of a run

    def outcome(self, run):
        """Its Outcome, or None where it was not run to an end."""
        folder = self.out / "runs" / run.name
        if (folder / "results.csv").exists():
            with open(folder / "results.csv") as file:
                metrics = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
            return Outcome("finished", "", metrics, _lines(folder))
        record = self._record(run)
        return (
            Outcome(record["status"], record["message"], {}, _lines(folder)) if "status" in record else None
        )

    def _record(self, run):
        """What we wrote down of a run, beside what it wrote: how it ended, if not well; retrieval."""
        try:
            return json.loads((self.out / "records" / f"{run.name}.json").read_text())
        except FileNotFoundError:
            return {}

    def _keep(self, run, **content):
        _write(self.out / "records" / f"{run.name}.json", json.dumps(content, indent=1))

    # ---- running

    @contextlib.contextmanager
    def alone(self):
        """Two comparisons in one folder would start each other's runs. Raises UserError where another is at work."""
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"--out={self.out}: another comparison is at work there; wait for it, or choose another folder"
                ) from None
            yield

    def run(self, jobs):
        """Tunes, trains, measures; returns the report, which json can write."""
        for folder in ("data", "runs", "logs", "records", "codebooks"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        if any(
            m.overrides.get("codes.init_codebook") == "onehot"
            or "onehot" in m.axes.get("codes.init_codebook", ())
            for m in self.grid.methods
        ):
            save_codebook(self._onehot, self._onehot_codes)
        tuning = [run for runs in self.tuning.values() for run in runs]
        if tuning:
            self._write_slices()
            self._run_all(tuning, jobs)
        chosen, finals = {}, []
        for method in self.grid.methods:
            with contextlib.suppress(LookupError):
                chosen[method.name] = self._choose(method)
                finals += [self._make("final", method, chosen[method.name], seed) for seed in self.grid.seeds]
        self._run_all(finals, jobs)
        return self._report(tuning, chosen, finals, jobs)

    def _write_slices(self):
        out = held_out(self.train.labels, self.grid.held_out, self.grid.held_out_seed)
        for part, chosen in (("rest", ~out), ("held_out", out)):
            path = self._slice(part)
            if not Path(f"{path}.json").exists():  # it is written last
                write_subset(self.train, np.flatnonzero(chosen), path)
            print(f"{path}: {chosen.sum():,} of the {len(out):,} train images", flush=True)

    def _choose(self, method):
        """The point with the best mean headline; the first of equals. Raises LookupError where none has one: not yet run, or all lost."""
        if len(method.points) == 1:
            return method.points[0]
        scores = [(score, -number) for number, score in enumerate(self._scores(method)) if score is not None]
        if not scores:
            raise LookupError(method.name)
        return method.points[-max(scores)[1]]

    def _scores(self, method):
        """The mean headline of each point on the held-out slice, None for one that has not finished with every seed."""
        scores = []
        for point in method.points:
            runs = [run for run in self.tuning[method.name] if run.point == point]
            found = [self.outcome(run) for run in runs]
            finished = all(outcome is not None and outcome.status == "finished" for outcome in found)
            scores.append(
                statistics.fmean(
                    self.headline(method, run.config, outcome.metrics) for run, outcome in zip(runs, found)
                )
                if finished
                else None
            )
        return scores

    def headline(self, method, config, metrics):
        """A finished run's headline, a share of 1."""
        return metrics[f"{config.stages[-1]}/{_suffixed(method.headline, config)}"]

    def _run_all(self, runs, jobs):
        """Runs what is not finished, `jobs` at a time. However this ends, no training is left behind."""
        waiting = collections.deque(
            run for run in runs if (known := self.outcome(run)) is None or known.status == "failed"
        )
        print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done before", flush=True)
        free, active, done = list(range(jobs)), {}, len(runs) - len(waiting)
        try:
            while waiting or active:
                while waiting and free:
                    run, slot = waiting.popleft(), free.pop(0)
                    active[slot] = run, self._start(run, slot, jobs), time.monotonic()
                time.sleep(0.05)
                for slot, (run, process, started) in list(active.items()):
                    if process.poll() is None:
                        continue
                    del active[slot]
                    free.append(slot)
                    outcome = self._ended(run, process.returncode)
                    done += 1
                    said = (
                        outcome.message
                        if outcome.status != "finished"
                        else f"{run.method.headline} {100 * self.headline(run.method, run.config, outcome.metrics):.2f} %"
                    )
                    print(
                        f"{done}/{len(runs)} {run.phase} {run.method.name} {_text(run.point)}, seed {run.seed}: {outcome.status}, {said} "
                        f"({time.monotonic() - started:.0f} s)",
                        flush=True,
                    )
        finally:
            _stop([process for _, process, _ in active.values()])

    def _start(self, run, slot, jobs):
        surroundings, threads = environment(slot, jobs)
        workers = [f"--data.num_workers={threads}"] if run.config.data.num_workers == -1 else []
        with open(self.out / "logs" / f"{run.name}.txt", "ab") as log:
            # in a group of its own: Ctrl-C reaches it through _stop alone, once
            return subprocess.Popen(
                [sys.executable, str(self.script), *run.words, *workers, "--resume=auto"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | surroundings,
                start_new_session=True,
            )

    def _ended(self, run, status):
        (self.out / "records" / f"{run.name}.json").unlink(missing_ok=True)  # of an earlier try
        folder = self.out / "runs" / run.name
        if not (folder / "results.csv").exists():
            message = _last_words(self.out / "logs" / f"{run.name}.txt") or "it said nothing"
            diverged = (
                status == 2
                and message.startswith("the loss became")
                and (folder / "checkpoints" / "non_finite.json").exists()
            )
            self._keep(
                run,
                status="diverged" if diverged else "failed",
                message=message if diverged else f"exit status {status}: {message}",
            )
        return self.outcome(run)

    # ---- what came of it

    def _report(self, tuning, chosen, finals, jobs):
        rows, described = [], [self._describe(run) for run in tuning]
        for method in self.grid.methods:
            own = [(run, self._describe(run)) for run in finals if run.method is method]
            described += [described for _, described in own]
            good = [(run, description) for run, description in own if description["status"] == "finished"]
            figures = [self._figures(run, description) for run, description in good]
            notes = [
                f"{_text(d['point'])}, seed {d['seed']} ({d['phase']}) {d['status']}: {d['message']}"
                for d in described
                if d["method"] == method.name and d["status"] != "finished"
            ]
            if method.name not in chosen:
                notes.append("no point of the grid finished: nothing to compare")
            notes += _edges(method, chosen.get(method.name))
            rows.append(
                {
                    "method": method.name,
                    "ceiling": method.ceiling,
                    "headline": method.headline,
                    "point": chosen.get(method.name),
                    "num_seeds": len(figures),
                    "of_seeds": len(self.grid.seeds),
                    "notes": notes,
                    "figures": {
                        name: _spread([f[name] for f in figures]) for name in (figures[0] if figures else ())
                    },
                }
            )
        ceiling = next((row for row in rows if row["ceiling"] and row["figures"]), None)
        for row in rows:
            row["gap"] = (
                row["figures"]["headline"]["mean"] - ceiling["figures"]["headline"]["mean"]
                if ceiling and ceiling is not row and row["figures"]
                else None
            )
        scores = {
            m.name: [{"point": p, "headline": s} for p, s in zip(m.points, self._scores(m))]
            for m in self.grid.methods
            if self.tuning[m.name]
        }
        return {
            "command": shlex.join(["python", "-m", "llc.benchmark", "codes", *sys.argv[2:]]),
            "llc": llc.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "jobs": jobs,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "train": {
                "beton": self.base.data.train_dataset,
                "images": len(self.train),
                "classes": self.num_classes,
            },
            "val": {"beton": self.base.data.val_dataset, "images": len(self.val)},
            "neighbours": min(NEIGHBOURS, len(self.val) - 1),
            "held_out": self.grid.held_out,
            "tune_seeds": self.grid.tune_seeds,
            "seeds": self.grid.seeds,
            "table": rows,
            "tuning": scores,
            "runs": described,
        }

    def _describe(self, run):
        outcome = self.outcome(run)
        found = {
            "name": run.name,
            "phase": run.phase,
            "method": run.method.name,
            "point": run.point,
            "seed": run.seed,
            "set": run.method.overrides,
            "command": shlex.join(["python", "train_llc.py", *run.words, "--resume=auto"]),
            "config": dataclasses.asdict(run.config),
            **dataclasses.asdict(outcome),
        }
        if run.phase == "final" and outcome.status == "finished":
            record = self._record(run)
            if "retrieval" not in record:
                try:
                    record["retrieval"] = retrieval(self.out / "runs" / run.name, run.config)
                except UserError as error:
                    return found | {
                        "status": "failed",
                        "message": f"trained, but its codes of val cannot be made: {error}",
                    }
                self._keep(run, **record)
            codebook = dataclasses.asdict(health(load_codebook(self.out / "runs" / run.name)))
            found |= {"codebook": codebook, "retrieval": record["retrieval"]}
        return found

    def _figures(self, run, description):
        """The numbers of a finished run that the table shows; accuracies as shares of 1."""
        metrics, codebook, (first, last) = (
            description["metrics"],
            description["codebook"],
            (run.config.stages[0], run.config.stages[-1]),
        )
        shares = {
            name: metrics[f"{last}/{_suffixed(metric, run.config)}"]
            for name, metric in (
                ("mhd", "top1_mhd"),
                ("ed", "top1_ed"),
                ("tied", "tied_mhd"),
                ("none", "none_ed"),
            )
        }
        return {
            "headline": self.headline(run.method, run.config, metrics),
            "class": metrics[f"{first}/{_suffixed('top1_class', run.config)}"],
            **shares,
            "collisions": len(codebook["collisions"]),
            "min_distance": codebook["min_distance"],
            "mean_distance": codebook["mean_distance"],
            "knn": description["retrieval"]["knn"],
            "map": description["retrieval"]["map"],
            "seconds": sum(line["train_seconds"] for line in description["log"]),
        }


def environment(slot, jobs):
    """({variable: value}, threads) of a training in place `slot` of `jobs`: an equal share of the cores, one of the GPUs."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    # the trainer divides the cores by LOCAL_WORLD_SIZE, whoever the other processes of the machine are
    found = {
        "OMP_NUM_THREADS": str(threads),
        "LOCAL_WORLD_SIZE": str(jobs),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(torch.cuda.device_count()))
        )
        found["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % torch.cuda.device_count()]
    return found, threads


def _stop(processes):
    """Has trainings write a checkpoint and end; a second Ctrl-C, or STOP_SECONDS, ends them at once."""
    processes = [process for process in processes if process.poll() is None]
    if not processes:
        return
    print(
        f"stops {len(processes)} training(s), which write a checkpoint first; the same command continues",
        file=sys.stderr,
        flush=True,
    )
    try:
        for process in processes:
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _without_options(argv):
    """argv without our own flags: what train_llc.py is to be given."""
    words, queue = [], list(argv)
    while queue:
        word = queue.pop(0)
        if word[2:].partition("=")[0] in OPTIONS:
            if "=" not in word:
                queue.pop(0)
        else:
            words.append(word)
    return words


def _suffixed(metric, config):
    return metric + ("_flip" if config.validation.lr_tta else "")


def _lines(folder):
    """log.jsonl's lines, as far as there are any."""
    try:
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _last_words(path):
    """The last error that a training printed, or its last line; on one line."""
    text = re.split(r"[\r\n]", path.read_bytes()[-20_000:].decode("utf-8", "replace"))
    lines = [line.strip() for line in text if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(lines[errors[-1] :][:5]).removeprefix("error: ") if errors else "".join(lines[-1:])


# ------------------------------------------------------------------------------------------------ retrieval


def retrieval(run_folder, config):
    """{"knn", "map", "k"} of a finished run's packed codes on val, each image against all others."""
    encoder = load(run_folder, checkpoint=config.stages[-1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = SimpleNamespace(device=device, batch_size=config.validation.batch_size, num_workers=-1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # a bar a run
        found = encode(encoder, config.data.val_dataset, arguments)
    return leave_one_out(found["codes"], found["labels"], min(NEIGHBOURS, len(found["labels"]) - 1))


def leave_one_out(codes, labels, k, seed=0, block=256):
    """kNN accuracy and mean average precision of packed codes uint8 [n, code_size] with labels int64 [n], each against the n - 1 others.

    kNN: the majority of the k nearest; a tie goes to the class that comes first among them. Average precision: the mean, over the other
    images of the class, of the precision at their ranks; images without such others are left out. Equal distances come in a random order drawn by the
    seed, as data lies class after class. Memory: block * n answers at a time. Returns {"knn", "map", "k"}, shares of 1.
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    codes, labels = np.ascontiguousarray(codes[order]), labels[order]
    num_right, precisions, ranks = 0, [], np.arange(1, len(codes))
    for start in range(0, len(codes), block):
        own = np.arange(start, min(start + block, len(codes)))
        nearest = search(codes[own], codes, len(codes))[1]
        others = nearest[nearest != own[:, None]].reshape(len(own), -1)
        found = labels[others]
        for classes, label in zip(found[:, :k], labels[own]):
            votes = collections.Counter(
                classes.tolist()
            )  # most_common keeps the order of first coming among equals
            num_right += votes.most_common(1)[0][0] == label
        hits = found == labels[own, None]
        total = hits.sum(1)
        precision = (hits * (np.cumsum(hits, 1) / ranks)).sum(1)
        precisions += (precision[total > 0] / total[total > 0]).tolist()
    return {"knn": num_right / len(codes), "map": statistics.fmean(precisions) if precisions else 0.0, "k": k}


# ------------------------------------------------------------------------------------------------ the table


def _spread(values):
    """{"mean", "std", "values"}; std is that of a sample (n - 1), None for one value."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _edges(method, point):
    """A best value at the end of its axis may not be the best there is."""
    numbers = {
        key: values
        for key, values in method.axes.items()
        if len(values) > 1 and all(isinstance(v, (int, float)) for v in values)
    }
    return [
        f"{key} = {point[key]} is at the end of its axis"
        for key, values in numbers.items()
        if point and point[key] in (min(values), max(values))
    ]


COLUMNS = (  # title, figure, how it is written
    ("class", "class", "%"), ("MHD", "mhd", "%"), ("ED", "ed", "%"), ("tied", "tied", "%"), ("none", "none", "%"), ("collisions", "collisions", "1"),
    ("min distance", "min_distance", "1"), ("mean distance", "mean_distance", "1"), ("kNN", "knn", "%"), ("mAP", "map", "%"),
    ("seconds", "seconds", "0"),
)  # fmt: skip


def table(report, markdown=False):
    """The report as text: a table, what it is of, and what went wrong."""
    rows = [["method", "chosen", "n", *(title for title, _, _ in COLUMNS), "gap"]]
    for row in report["table"]:
        cells = [_figure(row["figures"].get(name), kind) for _, name, kind in COLUMNS]
        rows.append(
            [
                row["method"],
                "-" if row["point"] is None else _text(row["point"]),
                f"{row['num_seeds']}/{row['of_seeds']}",
                *cells,
                "-" if row["gap"] is None else f"{100 * row['gap']:+.2f}",
            ]
        )
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|" + "---|" * len(rows[0]))
    else:
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    train, val = report["train"], report["val"]
    hardware = (
        ", ".join(report["gpus"]) or f"{max(1, report['cores'] // report['jobs'])} CPU thread(s) a training"
    )
    lines += [
        "",
        f"{train['images']:,} train and {val['images']:,} val images of {train['classes']} classes; mean ± standard deviation over "
        f"seeds, final epoch, %; tuned on {100 * report['held_out']:g} % of train; kNN (k = {report['neighbours']}) and mAP: val against "
        f"itself, leave-one-out; gap: to the ceiling's headline, points; {report['jobs']} job(s), {hardware}, torch {report['torch']}",
    ]
    notes = [f"{row['method']}: {note}" for row in report["table"] for note in row["notes"]]
    return "\n".join(
        [
            *lines,
            *([""] if markdown and notes else []),
            *(f"- {note}" if markdown else note for note in notes),
        ]
    )


def _figure(found, kind):
    if found is None:
        return "-"
    scale, digits = (100, 2) if kind == "%" else (1, int(kind))
    text = f"{scale * found['mean']:.{digits}f}"
    return text if found["std"] is None else f"{text} ± {scale * found['std']:.{digits}f}"


def _text(point):
    return ", ".join(f"{key} {value}" for key, value in point.items()) or "as set"


def _write(path, text):
    atomic_write(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    edge.run(main)
