"""The charts of a report: what each shows, in words too, and how to read it.

A figure is there only if a report has the data for it. llc.charts draws them.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llc import charts, plots
from llc.data.sources import printable
from llc.evaluation import dendrogram, metrics
from llc.evaluation.decoders import DECODERS
from llc.report.contents import Curve, Detection, Report, Run
from llc.stages import STAGES
from llc.text import counted

_DISTANCE = "distance, bits"


@dataclasses.dataclass(frozen=True)
class Figure:
    """svg: an <svg> element for a page, which holds title and alt. alt: what the figure shows, in words.

    caption: how to read it.
    """

    svg: str
    title: str
    alt: str
    caption: str


def figures(report: Report, class_names: Sequence[str] = (), prefix: str = "") -> dict[str, Figure]:
    """{key: figure} of all that a report has data for, ood_0, ood_1, ... for its detections.

    class_names: what to call the classes, in label order, if not by the run's names. prefix: begins the ids
    in each SVG, so it must differ between the reports of a page; by default it depends on the run's folder.
    """
    run, measured = report.run, report.measured
    prefix = prefix or _prefix([run])
    drawn = {
        "loss": _loss(run),
        "learning_rate": _learning_rate(run),
        "resolution": _resolution(run),
        "accuracy": _accuracy(run),
        "throughput": _throughput(run),
        "distances": _distances(run),
        "balance": _balance(report),
        "pairs": _pairs(measured.pairs, printable(measured.called)) if measured else None,
        "reliability": _reliability(measured.reliability) if measured and measured.reliability else None,
        "dendrogram": _dendrogram(run, class_names or run.class_names),
    }
    drawn |= {f"ood_{number}": _ood(detection) for number, detection in enumerate(report.detections)}
    drawn["retrieval"] = _retrieval(report.curves)
    return _written(drawn, prefix)


def comparison_figures(reports: Sequence[Report], names: Sequence[str] = ()) -> dict[str, Figure]:
    """{key: figure} of several runs, a line for each. names: what to call them, if not by their folders."""
    runs = [report.run for report in reports]
    given = list(names) or [run.name for run in runs]
    called = {  # runs of the same name are told apart by a number
        f"{name} ({number})" if given.count(name) > 1 else name: run
        for number, (name, run) in enumerate(zip(given, runs), 1)
    }
    drawn = {
        **{f"accuracy_{decoder}": _compared_accuracy(called, decoder) for decoder in DECODERS},
        "loss": _compared_loss(called),
        "distances": _compared_distances(called),
    }
    return _written(drawn, f"all-{_prefix(runs)}")


def _prefix(runs):
    return f"r{zlib.crc32(repr([str(run.path) for run in runs]).encode()):08x}-"


@dataclasses.dataclass(frozen=True)
class _Drawn:
    chart: Any
    title: str
    alt: str
    caption: str


def _written(drawn: Mapping[str, _Drawn | None], prefix: str) -> dict[str, Figure]:
    return {
        key: Figure(
            plots.svg(one.chart, f"{prefix}svg-{key}", one.title, one.alt), one.title, one.alt, one.caption
        )
        for key, one in drawn.items()
        if one is not None
    }


# ------------------------------------------------------------------------------------------- over the epochs


def _points(run: Run, key: str) -> dict[str, tuple[list[float], list[float]]]:
    """{stage: (epochs, values)} of a key of log.jsonl, without epochs that lack it."""
    stages: dict[str, tuple[list[float], list[float]]] = {}
    for line in run.epochs:
        value = line.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            x, y = stages.setdefault(str(line["stage"]), ([], []))
            x.append(float(line["global_epoch"]))
            y.append(float(value))
    return stages


def _joined(stages: Mapping[str, tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """One line, broken between stages, because their values are not one course."""
    x, y = [], []
    for of_x, of_y in stages.values():
        x += [*of_x, of_x[-1]]
        y += [*of_y, math.nan]
    return x[:-1], y[:-1]


def _spans(run: Run) -> list[tuple[str, float, float]]:
    """(stage, begin, end) on the axis of epochs."""
    numbers: dict[str, list[float]] = {}
    for line in run.epochs:
        numbers.setdefault(str(line["stage"]), []).append(float(line["global_epoch"]))
    return [(printable(stage), min(x) - 0.5, max(x) + 0.5) for stage, x in numbers.items()]


def _over_epochs(run: Run, series: Mapping[str, Mapping[str, Any]], y_label: str, **settings: Any) -> Any:
    joined = {name: _joined(stages) for name, stages in series.items()}
    return charts.lines(joined, "epoch", y_label, stages=_spans(run), integers=True, **settings)


def _course(stages: Mapping[str, tuple[list[float], list[float]]], text: Any) -> str:
    """In words: where each stage begins and ends. text: of a value."""
    parts = []
    for stage, (_, y) in stages.items():
        values = text(y[0]) if len(y) == 1 else f"from {text(y[0])} to {text(y[-1])}"
        parts.append(f"{printable(stage)} stage, {counted(len(y), 'epoch')}: {values}")
    return "; ".join(parts)


def _loss(run: Run) -> _Drawn | None:
    stages = _points(run, "loss")
    if not stages:
        return None
    return _Drawn(
        _over_epochs(run, {"loss": stages}, "loss"),
        "Training loss",
        f"Line chart of the mean training loss of each epoch. {_course(stages, '{:.3g}'.format)}.",
        "The mean over the images of each epoch, lower is better. "
        "Each stage has a loss of its own, so compare epochs within a stage only.",
    )


def _learning_rate(run: Run) -> _Drawn | None:
    stages = _points(run, "lr")
    if not stages:
        return None
    highest = max(max(y) for _, y in stages.values())
    return _Drawn(
        _over_epochs(run, {"learning rate": stages}, "learning rate", zero=True),
        "Learning rate",
        f"Line chart of the learning rate at the end of each epoch, at most {highest:.3g}. "
        f"{_course(stages, '{:.3g}'.format)}.",
        "The learning rate at the end of each epoch.",
    )


def _resolution(run: Run) -> _Drawn | None:
    stages = _points(run, "resolution")
    if not stages:
        return None
    sizes = {size for _, y in stages.values() for size in y}
    if len(sizes) == 1:  # a page says it in words
        return None
    shown = f"{min(sizes):.0f} pixels to {max(sizes):.0f} pixels"
    return _Drawn(
        _over_epochs(run, {"resolution": stages}, "pixels", zero=True),
        "Resolution",
        f"Line chart of the resolution of training images in each epoch: {shown}.",
        "The height and width of the training images. Low resolutions make the early epochs cheap.",
    )


def _throughput(run: Run) -> _Drawn | None:
    stages = _points(run, "images_per_second")
    if not stages:
        return None
    rates = [rate for _, y in stages.values() for rate in y]
    return _Drawn(
        _over_epochs(run, {"images/s": stages}, "images per second", zero=True),
        "Throughput",
        f"Line chart of the training images per second in each epoch: median {np.median(rates):,.0f}, "
        f"lowest {min(rates):,.0f}, highest {max(rates):,.0f}.",
        "Training images per second, validation not included. It falls where the resolution rises; "
        "other dips come from a resumed epoch, or from the machine: slow storage, or other programs.",
    )


def _accuracies(run: Run) -> dict[str, Any]:
    """{decoder: {stage: (epochs, top-1)}}, as the run judges itself: with or without mirror images."""
    for flip in dict.fromkeys((run.config.validation.lr_tta, False, True)):
        found = {name: _points(run, metrics.name("top1", name, flip)) for name in DECODERS}
        found = {name: stages for name, stages in found.items() if stages}
        if found:
            return found
    return {}


def _accuracy(run: Run) -> _Drawn | None:
    found = _accuracies(run)
    if not found:
        return None
    last = ", ".join(
        f"{DECODERS[name].title} {_percent(list(stages.values())[-1][1][-1])}"
        for name, stages in found.items()
    )
    dense = (
        " Before there are codes, that is the dense classifier's." if "dense" in _points(run, "lr") else ""
    )
    return _Drawn(
        _over_epochs(
            run,
            {DECODERS[name].title: stages for name, stages in found.items()},
            "top-1 accuracy",
            percent=True,
            zero=True,
        ),
        "Accuracy on the val set",
        f"Line chart of the top-1 accuracy of each decoder over the epochs. At the end: {last}.",
        "Top-1 accuracy on the val set after each epoch, one line a decoder. "
        f"“{DECODERS['class'].title}” compares an image's real values with the class codes.{dense}",
    )


# ----------------------------------------------------------------------------------------------------- codes


def _distances(run: Run) -> _Drawn | None:
    counts = run.health.counts
    total, equal = int(counts.sum()), int(counts[0])
    if not total:
        return None
    bits = np.arange(len(counts))
    mean = float(bits @ counts) / total
    lowest = int(np.flatnonzero(counts)[0])
    near = f"{counted(equal, 'pair')} share a code" if equal else f"the nearest two differ in {lowest}"
    return _Drawn(
        charts.bars(
            bits.tolist(), {"pairs": counts.tolist()}, f"Hamming {_DISTANCE}", "pairs of classes", marked=(0,)
        ),
        "Distances between class codes",
        f"Histogram of the Hamming distances of {counted(total, 'pair')} of class codes: {mean:.1f} of "
        f"{run.num_bits} bits on average; {near}.",
        "How many pairs of classes have codes that differ in so many bits. Pairs at 0, in another colour, "
        "have the same code, so MHD cannot tell them apart; the further to the right, the better.",
    )


def _balance(report: Report) -> _Drawn | None:
    balance, measured = report.run.health.balance, report.measured
    if not len(balance):
        return None
    series = {"of the classes": [float(value) for value in balance]}
    images = ""
    if measured and len(measured.bits) == len(balance):
        series[f"of the {measured.called}"] = values = [bit.balance for bit in measured.bits]
        images = f", and for {_percent(min(values))} to {_percent(max(values))} of the {measured.called}"
    return _Drawn(
        charts.bars(range(len(balance)), series, "bit", "share with a 1", percent=True, level=0.5),
        "Balance of the bits",
        f"Bar chart of the share of codes in which each of {counted(len(balance), 'bit')} is 1. A bit is 1 "
        f"for {_percent(min(balance))} to {_percent(max(balance))} of the classes{images}.",
        "The share of codes in which each bit is 1. A bit near the dashed line at 50 % tells most; "
        "one at 0 % or 100 % tells nothing.",
    )


def _pairs(pairs: np.ndarray, called: str) -> _Drawn:
    bits = np.arange(len(pairs))
    kinds = ("same class", "images of one class"), ("different classes", "images of two classes")
    there = [(side, *kind) for side, kind in enumerate(kinds) if pairs[:, side].any()]
    means = [f"{words} differ in {float(bits @ pairs[:, side]):.1f} bits" for side, _, words in there]
    return _Drawn(
        charts.bars(
            bits.tolist(),
            {name: pairs[:, side].tolist() for side, name, _ in there},
            f"Hamming {_DISTANCE}",
            "share of pairs",
            percent=True,
        ),
        "Distances between images",
        f"Bar chart of the Hamming distances of pairs of {called}, on average: {', '.join(means)}.",
        f"Pairs of {called} by the distance of their codes, each kind as shares of its own number. The less "
        "the two kinds overlap, the better a search by code finds images of the same class.",
    )


def _reliability(found: Any) -> _Drawn:
    filled = np.flatnonzero(found.counts)
    points = "; ".join(
        f"{_percent(found.confidence[i], 0)} sure, {_percent(found.accuracy[i], 0)} right" for i in filled
    )
    return _Drawn(
        charts.reliability(found.edges, found.counts, found.confidence, found.accuracy),
        "Reliability of the posterior decoder",
        f"Reliability diagram of {int(found.counts.sum()):,} images: {points}. The expected calibration "
        f"error is {_percent(found.ece)}.",
        "Of images to whose first class the decoder gives the same probability, how many it has right. On "
        "the dashed line its probabilities are true; below it, it is too sure. The bars count the images.",
    )


def _dendrogram(run: Run, class_names: Sequence[str]) -> _Drawn | None:
    if run.tree is None:
        return None
    merges = [node.distance for node in run.tree.nodes if node.children]
    num_groups, num_colours = len(dendrogram.groups(run.tree)), len(plots.SERIES)
    again = ""
    if num_groups > num_colours:
        again = (
            f" There are {num_groups:,} such branches and {num_colours} colours, so those of one colour that "
            "are not neighbours need not be related."
        )
    return _Drawn(
        dendrogram.inline(run.tree, [printable(name) for name in class_names]),
        "Tree of the classes",
        f"Dendrogram of {len(class_names):,} classes: the first are merged at a distance of "
        f"{min(merges):.3g} bits, all at {max(merges):.3g} bits.",
        "Classes are merged where their codes are near; the further to the right two branches meet, the "
        "fewer bits their codes differ in. Branches that meet before 0.7 times the root's distance have one "
        f"colour.{again}",
    )


# ------------------------------------------------------------------------------- other data sets, retrieval


def _ood(detection: Detection) -> _Drawn | None:
    inside, outside = (values[~np.isnan(values)] for values in (detection.inside, detection.outside))
    if not len(inside) or not len(outside):
        return None
    score, dataset = printable(detection.score), printable(detection.dataset)
    return _Drawn(
        charts.overlaid(
            {"known classes": inside, dataset: outside},
            f"score {score}, high for known classes",
            "share of images",
        ),
        f"Known or not: {dataset}, by {score}",
        f"Two histograms of the score {score}: {counted(len(inside), 'image')} of the val set, median "
        f"{np.median(inside):.3g}, and {counted(len(outside), 'image')} of {dataset}, median "
        f"{np.median(outside):.3g}. AUROC {detection.auroc:.3f}.",
        "Each data set as shares of its own images. The AUROC is the probability that a known image scores "
        f"higher than one of the other data set, here {_percent(detection.auroc)}; guessing gives 50 %.",
    )


def _retrieval(found: Iterable[Curve]) -> _Drawn | None:
    panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    words = []
    for curve in found:
        known = np.isfinite(curve.x) & np.isfinite(curve.y)
        x, y = np.asarray(curve.x)[known].tolist(), np.asarray(curve.y)[known].tolist()
        if x:
            name = printable(curve.name)
            panels.setdefault(_axis(name, x), {})[name] = (x, y)
            words.append(f"{name}: {_percent(y[0])} at {x[0]:g}, {_percent(y[-1])} at {x[-1]:,g}")
    if not panels:
        return None
    return _Drawn(
        charts.curves(panels, "share"),
        "Retrieval",
        f"Curves of image retrieval by code. {'; '.join(words)}.",
        "Precision is the share of found images that have the query's class; recall is the share of the "
        "images of the query's class that are found. Both are means over the queries.",
    )


def _axis(name: str, x: Sequence[float]) -> str:
    """What a curve's x axis is, from its name and values."""
    if any(word in name.lower() for word in ("distance", "radius", "within")):
        return f"images within a Hamming {_DISTANCE}"
    over_recall = name.endswith("over recall") or any(value != round(value) for value in x)
    return "recall" if over_recall else "k, number of nearest images"


# ----------------------------------------------------------------------------------------------- several runs


def _compared_accuracy(runs: Mapping[str, Run], decoder: str) -> _Drawn | None:
    """The accuracies by one decoder; None unless all runs logged it."""
    found = {name: _accuracies(run) for name, run in runs.items()}
    if not all(decoder in of_run for of_run in found.values()):
        return None
    points = {name: of_run[decoder] for name, of_run in found.items()}
    last = ", ".join(
        f"{printable(name)} {_percent(list(stages.values())[-1][1][-1])}" for name, stages in points.items()
    )
    title = DECODERS[decoder].title
    dense = [name for name in points if any(STAGES[stage].dense for stage in points[name])]
    explained = (
        f" Before there are codes, that is the dense classifier's: of {', '.join(map(printable, dense))}."
        if dense
        else ""
    )
    return _Drawn(
        charts.lines(
            {name: _joined(stages) for name, stages in points.items()},
            "epoch",
            f"top-1 accuracy, {title}",
            percent=True,
            zero=True,
            integers=True,
        ),
        f"Accuracy on the val set by {title}",
        f"Line chart of the top-1 accuracy of {len(runs)} runs by {title}. At the end: {last}.",
        "Top-1 accuracy on the val set after each epoch, one line a run. Epochs are counted over all stages."
        + explained,
    )


def _compared_loss(runs: Mapping[str, Run]) -> _Drawn | None:
    points = {name: stages for name, run in runs.items() if (stages := _points(run, "loss"))}
    if not points:
        return None
    last = ", ".join(
        f"{printable(name)} {list(stages.values())[-1][1][-1]:.3g}" for name, stages in points.items()
    )
    return _Drawn(
        charts.lines(
            {name: _joined(stages) for name, stages in points.items()}, "epoch", "loss", integers=True
        ),
        "Training loss",
        f"Line chart of the training loss of {len(points)} runs. At the end: {last}.",
        "The mean training loss of each epoch, one line a run, broken between stages. Losses of different "
        "stages, or of runs with other recipes, may not be comparable.",
    )


def _compared_distances(runs: Mapping[str, Run]) -> _Drawn | None:
    counts = {name: run.health.counts for name, run in runs.items() if run.health.counts.sum()}
    if not counts:
        return None
    means = ", ".join(
        f"{printable(name)} {float(np.arange(len(own)) @ own) / own.sum():.1f} of {len(own) - 1} bits"
        for name, own in counts.items()
    )
    series = {name: (list(range(len(own))), (own / own.sum()).tolist()) for name, own in counts.items()}
    return _Drawn(
        charts.lines(
            series,
            f"Hamming {_DISTANCE}",
            "share of pairs of classes",
            percent=True,
            zero=True,
            integers=True,
        ),
        "Distances between class codes",
        f"Line chart of the Hamming distances of pairs of class codes. On average: {means}.",
        "The share of pairs of classes whose codes differ in so many bits, one line a run. Pairs at 0 have "
        "the same code.",
    )


# ------------------------------------------------------------------------------------------------------ text


def _percent(fraction: float, digits: int = 1) -> str:
    """With a space at which no line breaks."""
    return f"{100 * fraction:.{digits}f}\u00a0%"
