"""Compares ways to learn codes: tunes each on a slice of train, then trains it with several seeds.

The comparison is measured on val.

    python -m llc.compare --config RECIPE.yaml --grid GRID.yaml --out=FOLDER [--jobs=N] [--dry_run]
        [--section.key=value ...]

The recipe is what all methods share; --section.key=value changes it. The grid says in what they differ
(experiments/ has some):

    headline: top1_mhd      # the metric, of the last stage, that methods are tuned by; default: top1_mhd
    tune_seeds: [0]         # training.seed of the trainings that tune; default: [0]
    seeds: [0, 1, 2]        # training.seed of the trainings that are compared; default: [0, 1, 2]
    held_out: 0.1           # the slice: this fraction of each class of train; default: 0.1
    held_out_seed: 0        # the seed that draws it; default: 0
    methods:
      sqrt:
        set: {codes.logit_scale: sqrt}                  # keys of the recipe
        tune: {codebook.lr: [0.03, 0.1], instance.lr: [0.01, 0.03]}     # axes of the method's own grid
      dense:
        set: {training.stages: dense, dense.epochs: 16, dense.lr: 0.1}
        headline: top1_class                            # in place of the grid's
        ceiling: true       # for one method: the table then shows how far the others are from it

1. Tuning. Every point of a method's grid is trained on train minus the slice. The point with the best mean
   headline over tune_seeds, on the slice at the last epoch, is chosen. A point that fails, or whose loss
   becomes NaN or infinite, is left out, and the report says so. A method with a single point needs no
   tuning.
2. Comparing. Each method at its chosen point is trained on all of train with each of `seeds`. The trainer
   validates after every epoch, but nothing is chosen by that: the table shows the final epoch.
3. The table. Every figure is the mean ± standard deviation (n - 1) over the seeds that finished. The top-1
   of each decoder is measured after the stage that learns what the decoder reads. `tied` is the fraction of
   images with more than one nearest class, `none` that of images whose code equals no class code.
   `collisions` counts the classes whose code an earlier class has too; distances are between class codes,
   in bits. kNN and mAP are retrieval within val by the packed image codes, each image left out of its own
   answer: kNN is the class that the 10 nearest vote for, images tied at the last distance with a share of
   the remaining votes; mAP is the mean average precision over the whole ranking, the expectation over all
   orders of equal distances. `gap` is a method's headline minus the
   ceiling's, in points. `seconds` is the time of training, without validation.

A training is `python -m llc.train` in a process of its own; --jobs of them run at a time, with the cores (and
GPUs) divided among them. FOLDER holds data/ (the slice and the rest of train as betons, together as large as
train), runs/ (the run folders), logs/ (what each training printed), records/, results.json, table.md and
table.txt.

The same command again continues. A run is known by its configuration, data and seed: finished runs, and those
whose loss became NaN or infinite, are not run again, interrupted ones are continued, failed ones are tried
again, and a changed grid trains only what is new. The code is not part of a run's identity, so use another
FOLDER for another version. On a CPU, results are the same to the bit with one thread for each training.
"""

import contextlib
import dataclasses
import json

from llc import config as edge
from llc.compare import farm, tables
from llc.compare.grid import Grid
from llc.compare.runs import Comparison, write_text
from llc.options import BOOLEANS, item_type, option
from llc.training import config as training_config


@dataclasses.dataclass(frozen=True)
class Options:
    """The comparison."""

    grid: str = option(help="the YAML file of methods, values to tune and seeds")
    out: str = option("runs/codes", help="the folder for everything that the comparison writes")
    jobs: int = option(1, minimum=1, help="trainings that run at a time")
    dry_run: bool = option(False, help="only list the runs", formerly=("dry",))


def main(argv):
    base, options = training_config.read(argv, description=__doc__, options=Options)
    comparison = Comparison(base, without(Options, argv), Grid.read(options.grid), options.out)
    if options.dry_run:
        print(comparison.listing())
        return
    farm.end_like_ctrl_c()
    with comparison.alone():
        results = run(comparison, options.jobs, argv)
    text = tables.table(results)
    for name, content in (
        ("results.json", json.dumps(results, indent=1)),
        ("table.txt", text),
        ("table.md", tables.table(results, markdown=True)),
    ):
        write_text(comparison.out / name, content + "\n")
    print(f"\n{text}\n\n{comparison.out}: results.json, table.md, table.txt")


def run(comparison, jobs, words):
    """Tunes, trains and measures; returns the report. words: the command line, for the record."""
    comparison.make_folders()
    if comparison.all_tuning:
        comparison.write_slices()
        farm.run_all(comparison, comparison.all_tuning, jobs)
    chosen, finals = {}, []
    for method in comparison.grid.methods:
        with contextlib.suppress(LookupError):
            chosen[method.name] = comparison.choose(method)
            finals += comparison.final_runs(method, chosen[method.name])
    farm.run_all(comparison, finals, jobs)
    return tables.report(comparison, chosen, finals, jobs, words)


def without(options, argv):
    """argv without the flags of a dataclass of options: the words that llc.train takes too."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    kept, queue = [], list(argv)
    while queue:
        word = queue.pop(0)
        name, has_value, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in fields:
            kept.append(word)
        elif not has_value and queue:
            is_bool = item_type(fields[name])[0] is bool
            if not is_bool or queue[0].lower() in BOOLEANS:
                queue.pop(0)
    return kept


if __name__ == "__main__":
    edge.run(main)
