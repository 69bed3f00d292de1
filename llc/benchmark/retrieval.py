"""Retrieval metrics beside sorting every ranking with numpy, as the field's programs do.

    python -m llc.benchmark retrieval [--queries=5000] [--database=128503] [--classes=100] [--bits=20,64]
        [--k=1000] [--numpy_queries=100] [--threads=2] [--rounds=5] [--json=FILE] [--plot=FILE.png]

The defaults have the sizes of ImageNet with 100 classes, which papers on hashing use. Codes are random: those
of a class with some bits wrong. Ours is `llc.evaluation.retrieval.evaluate`: all metrics from codes to a
dictionary, with and without the definitions of other programs. numpy's way is a single mean average
precision, map@K.deephash: for each query the product with the database of +-1 values in float32, a sort, and
the precisions at the hits. Its sort is stable, so both must find the same number, which is checked. It only
gets the first --numpy_queries queries, because it is slow; compare the seconds per 1,000 queries.

After a first call of each that is not timed, all ways run in turns, every second turn in reverse order. The
table has the median of the rounds and their range. numpy sorts on one thread, whatever --threads says.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from llc import charts, plots
from llc import config as edge
from llc.benchmark import _machine
from llc.evaluation.retrieval import evaluate
from llc.options import option
from llc.text import counted

WRONG_BITS = 0.15  # the fraction of an image's bits that differ from its class's code
OURS, WITHOUT, NUMPY = "llc", "llc, without conventions", "numpy, one mAP"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    queries: int = option(5000, minimum=1, help="number of queries")
    database: int = option(128_503, minimum=1, help="codes that are searched")
    classes: int = option(100, minimum=1, help="number of classes")
    bits: tuple[int, ...] = option((20, 64), minimum=1, help="lengths of the codes")
    k: int = option(1000, minimum=1, help="the first items of which map@K is")
    numpy_queries: int = option(100, minimum=1, help="queries of numpy's way, the first ones")
    threads: int = option(torch.get_num_threads(), minimum=1, help="threads of llc")
    rounds: int = option(5, minimum=1, help="measurements of each way")
    json: str = option("", help="write the figures to this file")
    plot: str = option("", help="draw the figures as bars, to a .png, .svg or .pdf")


def main(argv):
    settings = edge.read_one(Settings, argv, description=__doc__)
    plots.check_name(settings.plot, "--plot")
    torch.set_num_threads(settings.threads)
    report = measure(settings)
    print(describe(report))
    if settings.json:
        Path(settings.json).write_text(json.dumps(report, indent=1) + "\n")
    if settings.plot:
        _machine.save_plot(chart(report), settings.plot)


def measure(settings):
    """-> {"machine", "versions", "settings", "figures": [a dict for each length of codes]}."""
    return {
        **_machine.describe("llc", "numpy", "torch"),
        "settings": dataclasses.asdict(settings),
        "figures": [_measure(num_bits, settings) for num_bits in settings.bits],
    }


def _measure(num_bits, settings):
    codes = _codes(num_bits, settings)
    some = min(settings.numpy_queries, settings.queries)
    first = (codes[0][:some], codes[1][:some], *codes[2:])
    k = min(settings.k, settings.database)
    ways = {
        OURS: (settings.queries, lambda: evaluate(*codes, k)),
        WITHOUT: (settings.queries, lambda: evaluate(*codes, k, conventions=False)),
        NUMPY: (some, lambda: mean_average_precision(*first, k)),
    }
    values = {name: call() for name, (_, call) in ways.items()}
    found = evaluate(*first, k)[f"map@{k}.deephash"]
    if not np.isclose(found, values[NUMPY], rtol=1e-10):
        raise AssertionError(f"{num_bits} bits: map@{k}.deephash is {found}, by sorting {values[NUMPY]}")
    if any(value != values[OURS][name] for name, value in values[WITHOUT].items()):
        raise AssertionError(f"{num_bits} bits: metrics change without conventions")
    seconds = {name: [] for name in ways}
    for turn in _machine.rounds(settings.rounds, f"{num_bits} bits"):
        for name, (_, call) in list(ways.items())[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {
        "bits": num_bits,
        "map": values[OURS]["map"],
        "queries": {name: number for name, (number, _) in ways.items()},
        "seconds": seconds,
    }


def mean_average_precision(queries, query_labels, database, labels, k):
    """map@k.deephash by sorting, a query at a time."""
    signs, others = (2 * np.unpackbits(codes, axis=1).astype(np.float32) - 1 for codes in (queries, database))
    values = []
    for sign, label in zip(signs, query_labels):
        order = np.argsort(-(others @ sign), kind="stable")[:k]
        ranks = np.flatnonzero(labels[order] == label) + 1
        values.append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0)
    return float(np.mean(values))


def chart(report):
    """Bars of the seconds for 1,000 queries, a panel for each length of codes."""
    panels = {
        f"{figure['bits']} bits": {
            name: 1000 * statistics.median(values) / figure["queries"][name]
            for name, values in figure["seconds"].items()
        }
        for figure in report["figures"]
    }
    return charts.horizontal_bars(
        panels,
        "seconds for 1,000 queries, less is better",
        heading=_machine.first_line(report),
        highlighted=(OURS,),
        digits=3,
    )


def describe(report):
    """The table for people."""
    settings = report["settings"]
    lines = [
        _machine.first_line(report),
        f"{settings['queries']:,} queries, {settings['database']:,} codes of {settings['classes']:,} "
        f"classes, k = {settings['k']:,}, {counted(settings['threads'], 'thread')}, "
        f"{settings['rounds']} rounds",
        "",
        f"{'bits':>4s}  {'way':26s}{'queries':>8s}{'seconds (range)':>26s}{'s per 1,000':>13s}{'ratio':>9s}",
    ]
    for figure in report["figures"]:
        rates = {
            name: 1000 * statistics.median(values) / figure["queries"][name]
            for name, values in figure["seconds"].items()
        }
        for name, values in figure["seconds"].items():
            cell = f"{statistics.median(values):.3f} ({min(values):.3f} - {max(values):.3f})"
            lines.append(
                f"{figure['bits']:4d}  {name:26s}{figure['queries'][name]:8,d}{cell:>26s}{rates[name]:13.3f}"
                f"{rates[name] / rates[OURS]:8.1f}x"
            )
    return "\n".join(lines)


def _codes(num_bits, settings):
    """Queries, their labels, a database, its labels."""
    rng = np.random.default_rng(0)
    of_class = rng.random((settings.classes, num_bits)) < 0.5
    parts = []
    for number in (settings.queries, settings.database):
        labels = np.arange(number) % settings.classes  # so that each class has codes
        wrong = rng.random((number, num_bits)) < WRONG_BITS
        parts += [np.packbits(of_class[labels] ^ wrong, axis=1), labels]
    return tuple(parts)


if __name__ == "__main__":
    edge.run(main)
