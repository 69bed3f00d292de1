"""The trainings of a comparison: which there are, what each is known by, and what is known of it.

A run's folder is named after a digest of everything that its result depends on: configuration, data and seed.
That is how a comparison that is started again finds the runs that are finished.
"""

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import json
import statistics
from pathlib import Path

import numpy as np

from llc.compare.grid import Grid, Method
from llc.data.shards import open_shards
from llc.data.subset import held_out, write_subset
from llc.errors import UserError
from llc.evaluation import metrics
from llc.evaluation.decoders import DECODERS, fitted_decoders
from llc.files import atomic_write
from llc.recipe import ITQ, Config
from llc.training import config as training_config
from llc.training import resume
from llc.training.build import check_sizes
from llc.training.start import given_codebook

FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training.

    phase: tune or final; point: its place in the method's grid, {key: value}; name: of its run folder; words:
    llc.train's command line, without the plugins; config: the configuration that they make.
    """

    phase: str
    method: Method
    point: dict
    seed: int
    name: str
    words: tuple[str, ...]
    config: Config

    @property
    def title(self):
        return f"{point_text(self.point)}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    status: finished, diverged (the loss became NaN or infinite) or failed; message: what the training said
    in the latter two; metrics: {STAGE/METRIC: value at the last epoch}, from results.csv; log: log.jsonl's
    lines.
    """

    status: str
    message: str = ""
    metrics: dict = dataclasses.field(default_factory=dict)
    log: list = dataclasses.field(default_factory=list)


class Comparison:
    """The runs of a grid over a recipe, in the folder `out`.

    base: the recipe's Config; words: the command line that made it, which all runs share. tuning: {method's
    name: its runs on train minus the held-out slice}, none for a method with a single point. Raises UserError
    if any run of the grid would be refused, so that a bad key shows before hours of training. What
    model.weights holds is seen only when a run starts.
    """

    def __init__(self, base, words, grid: Grid, out):
        self.base, self.words, self.grid, self.out = base, words, grid, Path(out)
        self.train, self.val = open_shards(base.data.train_dataset), open_shards(base.data.val_dataset)
        self.num_classes = self.train.manifest.num_classes
        self.tuning = {method.name: self._tuning_runs(method) for method in grid.methods}
        for method in grid.methods:
            self.final_runs(method, method.points[0])

    @property
    def all_tuning(self):
        return [run for runs in self.tuning.values() for run in runs]

    # ---- planning

    def _tuning_runs(self, method):
        if len(method.points) == 1:
            return []
        seeds = self.grid.tune_seeds
        return [self.make("tune", method, point, seed) for point in method.points for seed in seeds]

    def final_runs(self, method, point):
        """The runs of a method on all of train, one per seed."""
        return [self.make("final", method, point, seed) for seed in self.grid.seeds]

    def make(self, phase, method, point, seed):
        """A Run. Raises UserError, with the method's name, if its configuration makes no sense."""
        overrides = {**method.overrides, **point}
        overrides["training.seed"] = seed
        try:
            words = [*self.words, *(f"--{key}={_as_text(key, value)}" for key, value in overrides.items())]
            config, _ = training_config.read(words, description="")
            _check_headline(method, config)
            check_sizes(config, self.num_classes, 1)
            codebook = self._codebook(config)
        except UserError as error:
            message = str(error).removeprefix("command line: ")
            raise UserError(f"{self.grid.path}: methods.{method.name}: {message}") from error
        name = f"{phase}_{method.name}_seed{seed}_{self._digest(phase, config, codebook)}"
        if phase == "tune":
            words += [
                f"--data.train_dataset={self.slice('rest')}",
                f"--data.val_dataset={self.slice('held_out')}",
            ]
        words += [f"--logging.folder={self.out / 'runs'}", f"--logging.name={name}"]
        config, _ = training_config.read(words, description="")
        return Run(phase, method, point, seed, name, tuple(words), config)

    def _codebook(self, config):
        """The codebook that a run starts from; None for one that is made when the run starts."""
        return None if config.codes.init_codebook == ITQ else given_codebook(config, self.num_classes)

    def _digest(self, phase, config, codebook):
        """Twelve hexadecimal digits that say what a run trains, on which data and from which values."""
        identity = resume.identity(config, self.train, self.train if phase == "tune" else self.val, codebook)
        del identity["config"]["codes.init_codebook"]  # a path; the identity holds a digest of the values
        if phase == "tune":
            identity["held_out"] = [self.grid.held_out, self.grid.held_out_seed]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def slice(self, part):
        """The beton of a part of train: rest or held_out. Its name depends on what train holds."""
        train = resume.identity(self.base, self.train, self.train, None)["train_data"]
        key = json.dumps([train, self.grid.held_out, self.grid.held_out_seed])
        return self.out / "data" / f"{part}_{hashlib.sha256(key.encode()).hexdigest()[:12]}.beton"

    def listing(self):
        """The runs, what is known of each, and their number, as text."""
        lines = [f"tune   {run.method.name:20s} {run.title}: {self._state(run)}" for run in self.all_tuning]
        for method in self.grid.methods:
            try:
                runs = self.final_runs(method, self.choose(method))
            except LookupError:
                seeds = self.grid.seeds
                lines += [f"final  {method.name:20s} the best point, seed {seed}: to run" for seed in seeds]
            else:
                lines += [f"final  {method.name:20s} {run.title}: {self._state(run)}" for run in runs]
        num_tuning, num_final = len(self.all_tuning), len(self.grid.methods) * len(self.grid.seeds)
        total = f"{num_tuning} runs to tune + {num_final} to compare = {num_tuning + num_final}"
        return "\n".join([*lines, total])

    def _state(self, run):
        outcome = self.outcome(run)
        if outcome is not None:
            return "failed, to run again" if outcome.status == FAILED else outcome.status
        return "to be continued" if self.folder(run).exists() else "to run"

    # ---- files

    @contextlib.contextmanager
    def alone(self):
        """Holds the folder's lock. Raises UserError if another comparison is running there."""
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"--out={self.out}: another comparison is at work there; wait for it, or choose another "
                    "folder"
                ) from None
            yield

    def make_folders(self):
        for name in ("data", "runs", "logs", "records"):
            (self.out / name).mkdir(parents=True, exist_ok=True)

    def write_slices(self):
        """Writes the held-out slice and the rest of train as betons, if they are not there yet."""
        out = held_out(self.train.labels, self.grid.held_out, self.grid.held_out_seed)
        for part, chosen in (("rest", ~out), ("held_out", out)):
            path = self.slice(part)
            if not Path(f"{path}.json").exists():  # the manifest is written last
                write_subset(self.train, np.flatnonzero(chosen), path)
            print(f"{path}: {chosen.sum():,} of the {len(out):,} train images", flush=True)

    def folder(self, run):
        """The run folder."""
        return self.out / "runs" / run.name

    def log(self, run):
        """The file of everything that the run's training printed."""
        return self.out / "logs" / f"{run.name}.txt"

    def _record_file(self, run):
        return self.out / "records" / f"{run.name}.json"

    def record(self, run):
        """What the comparison wrote down of a run: how it ended, if not well, and its retrieval figures."""
        try:
            return json.loads(self._record_file(run).read_text())
        except FileNotFoundError:
            return {}

    def keep(self, run, **content):
        """Replaces the record of a run; without content removes it."""
        if content:
            write_text(self._record_file(run), json.dumps(content, indent=1))
        else:
            self._record_file(run).unlink(missing_ok=True)

    # ---- what came of the runs

    def outcome(self, run):
        """The run's Outcome, or None if it has not ended."""
        folder = self.folder(run)
        if (folder / "results.csv").exists():
            with open(folder / "results.csv") as file:
                values = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
            return Outcome(FINISHED, "", values, _log_lines(folder))
        record = self.record(run)
        if "status" not in record:
            return None
        return Outcome(record["status"], record["message"], {}, _log_lines(folder))

    def headline(self, run, values):
        """The headline of a finished run, a fraction of 1. values: the metrics of its Outcome.

        Raises UserError if the run did not measure it: a decoder that was not registered then.
        """
        config = run.config
        key = f"{config.stages[-1]}/{suffixed(run.method.headline, config)}"
        if key not in values:
            raise UserError(
                f"{self.folder(run)} has no {key}, the headline of {run.method.name}: it was trained without "
                "that decoder; move the folder away to train it again"
            )
        return values[key]

    def scores(self, method):
        """The mean headline of each point on the held-out slice; None unless all its seeds have finished."""
        scores = []
        for point in method.points:
            runs = [run for run in self.tuning[method.name] if run.point == point]
            outcomes = [self.outcome(run) for run in runs]
            finished = all(outcome is not None and outcome.status == FINISHED for outcome in outcomes)
            values = [self.headline(run, o.metrics) for run, o in zip(runs, outcomes)] if finished else []
            scores.append(statistics.fmean(values) if values else None)
        return scores

    def choose(self, method):
        """The point with the best mean headline; the first of equal ones.

        Raises LookupError if no point has one, because they have not run yet or are all lost.
        """
        if len(method.points) == 1:
            return method.points[0]
        scores = [(score, -i) for i, score in enumerate(self.scores(method)) if score is not None]
        if not scores:
            raise LookupError(method.name)
        return method.points[-max(scores)[1]]


def _check_headline(method, config):
    """Raises UserError if a method is tuned by a decoder that its runs do not measure."""
    decoder = method.headline.partition("_")[2]
    if DECODERS[decoder].of_image_codes and config.stage(config.stages[-1]).dense:
        raise UserError(
            f"headline = {method.headline}: a dense network has no codes; its headline is top1_class or "
            "top5_class"
        )
    if decoder in fitted_decoders() and not config.validation.fit_decoder:
        raise UserError(
            f"headline = {method.headline}: the runs do not measure it, because validation.fit_decoder is "
            "false; set that to true, or choose another headline"
        )


def suffixed(metric, config):
    """A metric's name as a run with this configuration writes it: with _flip if it averages over flips."""
    return metric + (metrics.FLIP if config.validation.lr_tta else "")


def point_text(point):
    """A point of a grid in words."""
    return ", ".join(f"{key} {value}" for key, value in point.items()) or "as set"


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    atomic_write(path, lambda file: file.write(text.encode()))


def _log_lines(folder):
    """The lines of log.jsonl; [] if the run has not written any."""
    try:
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _as_text(key, value):
    """A value of a YAML file as on the command line, where commas separate a list. Raises UserError."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (str, int, float)) for item in items):
        raise UserError(f"{key} = {value!r}: expected a text, a number, true or false, or a list of these")
    return ",".join(map(str, items))
