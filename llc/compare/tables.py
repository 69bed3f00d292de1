"""What a comparison found: the figures of each method over its seeds, and the table of them as text."""

import contextlib
import dataclasses
import io
import os
import platform
import shlex
import statistics

import torch

import llc
from llc.codebook import health, load_codebook
from llc.compare import farm
from llc.compare.runs import FAILED, FINISHED, point_text, suffixed
from llc.encode import Encoding, encode
from llc.encoder import load
from llc.errors import UserError
from llc.evaluation import metrics
from llc.evaluation.decoders import DECODERS
from llc.evaluation.retrieval import rank

NEIGHBOURS = 10  # k of the kNN accuracy

# ------------------------------------------------------------------------------------------------ columns


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its title, its figure's key, and its digits. percent: the figure is a fraction of 1."""

    title: str
    figure: str
    digits: int = 2
    percent: bool = True

    def text(self, figure):
        """A figure as `_over_seeds` makes it: mean ± standard deviation, or "-" if there is none."""
        if figure is None:
            return "-"
        scale = 100 if self.percent else 1
        mean = f"{scale * figure['mean']:.{self.digits}f}"
        return mean if figure["std"] is None else f"{mean} ± {scale * figure['std']:.{self.digits}f}"


@dataclasses.dataclass(frozen=True)
class DecoderColumn(Column):
    """A column of one metric of one decoder: (metric, decoder)."""

    source: tuple = ()


def decoder_columns():
    """The top-1 of every registered decoder, then the details that some have."""
    columns = [
        DecoderColumn(decoder.short, decoder.name, source=("top1", decoder)) for decoder in DECODERS.values()
    ]
    for decoder in DECODERS.values():
        for metric in decoder.details:
            taken = any(column.figure == metric for column in columns)
            name = metrics.name(metric, decoder.name) if taken else metric
            columns.append(DecoderColumn(name, name, source=(metric, decoder)))
    return columns


OTHER_COLUMNS = (
    Column("collisions", "collisions", 1, percent=False),
    Column("min distance", "min_distance", 1, percent=False),
    Column("mean distance", "mean_distance", 1, percent=False),
    Column("kNN", "knn"),
    Column("mAP", "map"),
    Column("seconds", "seconds", 0, percent=False),
)

# ------------------------------------------------------------------------------------------------ the report


def report(comparison, chosen, finals, jobs, words):
    """Everything that was found, which json can write.

    chosen: {method's name: its point}, of the methods that have one; finals: the runs at these points; words:
    the command line, for the record.
    """
    grid = comparison.grid
    descriptions = {run: _describe(comparison, run) for run in (*comparison.all_tuning, *finals)}
    rows = [_row(comparison, method, chosen.get(method.name), descriptions) for method in grid.methods]
    ceiling = next((row for row in rows if row["ceiling"] and row["figures"]), None)
    for row in rows:
        row["gap"] = None
        if ceiling and ceiling is not row and row["figures"]:
            row["gap"] = row["figures"]["headline"]["mean"] - ceiling["figures"]["headline"]["mean"]
    return {
        "command": shlex.join(["python", "-m", "llc.compare", *farm.plugin_words(), *words]),
        "llc": llc.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jobs": jobs,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "train": {
            "beton": comparison.base.data.train_dataset,
            "images": len(comparison.train),
            "classes": comparison.num_classes,
        },
        "val": {"beton": comparison.base.data.val_dataset, "images": len(comparison.val)},
        "neighbours": min(NEIGHBOURS, len(comparison.val) - 1),
        "held_out": grid.held_out,
        "tune_seeds": grid.tune_seeds,
        "seeds": grid.seeds,
        "table": rows,
        "tuning": {
            method.name: [
                {"point": point, "headline": score}
                for point, score in zip(method.points, comparison.scores(method))
            ]
            for method in grid.methods
            if comparison.tuning[method.name]
        },
        "runs": list(descriptions.values()),
    }


def _row(comparison, method, point, descriptions):
    """A method's row of the table, but for its gap. descriptions: {run: its description}."""
    own = {run: d for run, d in descriptions.items() if run.method is method}
    figures = [
        _figures(comparison, run, d)
        for run, d in own.items()
        if run.phase == "final" and d["status"] == FINISHED
    ]
    notes = [
        f"{run.title} ({run.phase}) {d['status']}: {d['message']}"
        for run, d in own.items()
        if d["status"] != FINISHED
    ]
    if point is None:
        notes.append("no point of the grid finished: nothing to compare")
    common = [name for name in figures[0] if all(name in f for f in figures)] if figures else []
    return {
        "method": method.name,
        "ceiling": method.ceiling,
        "headline": method.headline,
        "point": point,
        "num_seeds": len(figures),
        "of_seeds": len(comparison.grid.seeds),
        "notes": notes + _at_an_end(method, point),
        "figures": {name: _over_seeds([f[name] for f in figures]) for name in common},
    }


def _describe(comparison, run):
    """What results.json says of a run; for a finished final run this includes codebook and retrieval."""
    outcome = comparison.outcome(run)
    description = {
        "name": run.name,
        "phase": run.phase,
        "method": run.method.name,
        "point": run.point,
        "seed": run.seed,
        "set": run.method.overrides,
        "command": shlex.join(["python", *farm.command(run)]),
        "config": run.config.as_dict(),
        **dataclasses.asdict(outcome),
    }
    if run.phase == "tune" or outcome.status != FINISHED:
        return description
    record, folder = comparison.record(run), comparison.folder(run)
    if "retrieval" not in record:
        try:
            record["retrieval"] = retrieval(folder, run.config)
        except UserError as error:
            message = f"trained, but val cannot be encoded: {error}"
            return description | {"status": FAILED, "message": message}
        comparison.keep(run, **record)
    codebook = dataclasses.asdict(health(load_codebook(folder)))
    return description | {"codebook": codebook, "retrieval": record["retrieval"]}


def _figures(comparison, run, description):
    """{figure: number} of a finished run; accuracies as fractions of 1.

    Each decoder's are from the stage that learns what it reads. A decoder that was not registered, or not
    fitted, when the run was trained has none.
    """
    values, codebook, of_decoders = description["metrics"], description["codebook"], {}
    for column in decoder_columns():
        metric, decoder = column.source
        stage = metrics.stage_of(decoder, run.config.stages)
        key = f"{stage}/{suffixed(metrics.name(metric, decoder.name), run.config)}"
        if key in values:
            of_decoders[column.figure] = values[key]
    return {
        "headline": comparison.headline(run, values),
        **of_decoders,
        "collisions": len(codebook["collisions"]),
        "min_distance": codebook["min_distance"],
        "mean_distance": codebook["mean_distance"],
        "knn": description["retrieval"]["knn"],
        "map": description["retrieval"]["map"],
        "seconds": sum(line["train_seconds"] for line in description["log"]),
    }


def retrieval(run_folder, config):
    """{"knn", "map", "k"} of a finished run's codes of val, each image against all others."""
    encoder = load(run_folder, checkpoint=config.stages[-1])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its bar
        options = Encoding(batch_size=config.validation.batch_size)
        arrays = encode(encoder, config.data.val_dataset, options)
    codes, labels = arrays["codes"], arrays["labels"]
    k = min(NEIGHBOURS, len(labels) - 1)
    ranking = rank(codes, labels, codes, labels, leave_one_out=True, neighbours=k, conventions=False)
    precisions = ranking.average_precisions()[ranking.num_relevant > 0]  # one alone in its class has none
    return {
        "knn": float(ranking.knn_right.mean()),
        "map": float(precisions.mean()) if len(precisions) else 0.0,
        "k": k,
    }


def _over_seeds(values):
    """{"mean", "std", "values"}; std is the sample standard deviation (n - 1), None for a single value."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _at_an_end(method, point):
    """Notes on the chosen values that are at an end of their axis: beyond it there may be better ones."""
    return [
        f"{key} = {point[key]} is at the end of its axis"
        for key, values in method.axes.items()
        if point and len(values) > 1 and all(isinstance(value, (int, float)) for value in values)
        if point[key] in (min(values), max(values))
    ]


# ------------------------------------------------------------------------------------------------ text


def table(results, markdown=False):
    """A report as text: the table, a sentence on what it shows, and what went wrong.

    Decoders that no method has a figure of, as where none was fitted, have no column.
    """
    figures = {name for row in results["table"] for name in row["figures"]}
    columns = [*(column for column in decoder_columns() if column.figure in figures), *OTHER_COLUMNS]
    cells = [["method", "chosen", "n", *(column.title for column in columns), "gap"]]
    for row in results["table"]:
        cells.append(
            [
                row["method"],
                "-" if row["point"] is None else point_text(row["point"]),
                f"{row['num_seeds']}/{row['of_seeds']}",
                *(column.text(row["figures"].get(column.figure)) for column in columns),
                "-" if row["gap"] is None else f"{100 * row['gap']:+.2f}",
            ]
        )
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|" + "---|" * len(cells[0]))
    else:
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    notes = [f"{row['method']}: {note}" for row in results["table"] for note in row["notes"]]
    if markdown:
        notes = ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*lines, "", _caption(results), *notes])


def _caption(results):
    train, val = results["train"], results["val"]
    threads = max(1, results["cores"] // results["jobs"])
    hardware = ", ".join(results["gpus"]) or f"{threads} CPU thread(s) per training"
    return (
        f"{train['images']:,} train and {val['images']:,} val images of {train['classes']} classes; mean ± "
        f"standard deviation over seeds, final epoch, %; tuned on {100 * results['held_out']:g} % of train; "
        f"kNN (k = {results['neighbours']}) and mAP: val against itself, leave-one-out; gap: to the "
        f"ceiling's headline, points; {results['jobs']} job(s), {hardware}, torch {results['torch']}"
    )
