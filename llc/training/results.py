"""What a run reports: the line of an epoch, results.csv, the headlines."""

import math

from llc.evaluation import metrics as names
from llc.evaluation.decoders import DECODERS


def epoch_text(stage, line, metrics, flip):
    """The line that is printed after an epoch. line: of log.jsonl; metrics: {name: value}.

    Decoders that learn from the train set have no figures before the end of the run, and are not named.
    """
    return (
        f"{stage.name} {line['epoch']}/{stage.epochs}: loss {line['loss']:.4f}, "
        f"{_top1(metrics, flip)} % top-1, {line['images_per_second']:.0f} images/s"
    )


def untrained_text(stage):
    """The line that is printed of a stage of no epochs."""
    return f"{stage.name} stage: no epochs; its codes are made from the dense classifier and stay as they are"


def first_bits_text(num_bits, metrics, flip):
    """The line that is printed of the codes of the first bits. metrics: {name: value}."""
    return f"first {num_bits} bits: {_top1(metrics, flip)} % top-1"


def _top1(metrics, flip):
    top1 = {d.short: metrics.get(names.name("top1", d.name, flip)) for d in DECODERS.values()}
    return ", ".join(f"{title} {100 * v:.2f}" for title, v in top1.items() if v is not None)


def rows(config, progress):
    """The rows of results.csv: STAGE/METRIC, final value, value in the best epoch, whether it is a headline.

    Where the best epoch lacks a metric its value is nan: decoders that learn have figures at the end alone,
    and in a resumed run a decoder may have been added since.
    """
    found = []
    for name in config.stages:
        headlines = names.headlines(config.stage(name), config.validation.lr_tta)
        best = progress.bests.get(name, {})
        for metric, value in progress.finals[name].items():
            at_best = best.get(metric, math.nan)
            found.append([f"{name}/{metric}", f"{value:.6f}", f"{at_best:.6f}", int(metric in headlines)])
    return found


def final_figures(config, progress):
    """{STAGE/METRIC: final value}, as in results.csv."""
    return {
        f"{name}/{metric}": value for name in config.stages for metric, value in progress.finals[name].items()
    }


def headline_texts(config, progress):
    """A line for each headline metric of each stage."""
    return [
        f"{name} stage, {metric}: {100 * value:.2f} %"
        for name in config.stages
        for metric, value in progress.finals[name].items()
        if metric in names.headlines(config.stage(name), config.validation.lr_tta)
    ]
