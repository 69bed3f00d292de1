"""What a run reports: the line of an epoch, results.csv, the headlines."""

import math

from llc.evaluation import metrics as names
from llc.evaluation.decoders import DECODERS


def epoch_text(stage, line, metrics, flip):
    """The line that is printed after an epoch. line: of log.jsonl; metrics: {name: value}."""
    top1 = {d.short: metrics[names.name("top1", d.name, flip)] for d in DECODERS.values()}
    accuracies = ", ".join(f"{title} {100 * value:.2f}" for title, value in top1.items())
    return (
        f"{stage.name} {line['epoch']}/{stage.epochs}: loss {line['loss']:.4f}, {accuracies} % top-1, "
        f"{line['images_per_second']:.0f} images/s"
    )


def rows(config, progress):
    """The rows of results.csv: STAGE/METRIC, final value, value in the best epoch, whether it is a headline.

    The best epoch of a resumed run may lack a metric, because its decoder was added since: its value is nan.
    """
    found = []
    for name in config.stages:
        headlines = names.headlines(config.stage(name), config.validation.lr_tta)
        best = progress.bests.get(name, {})
        for metric, value in progress.finals[name].items():
            at_best = best.get(metric, math.nan)
            found.append([f"{name}/{metric}", f"{value:.6f}", f"{at_best:.6f}", int(metric in headlines)])
    return found


def headline_texts(config, progress):
    """A line for each headline metric of each stage."""
    return [
        f"{name} stage, {metric}: {100 * value:.2f} %"
        for name in config.stages
        for metric, value in progress.finals[name].items()
        if metric in names.headlines(config.stage(name), config.validation.lr_tta)
    ]
