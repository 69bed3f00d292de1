"""The HTML page of a report: what its parts are called, what they mean, and the template filled with them.

page.html holds the layout and the sentences that stand on every page. Here are the numbers as text, and the
sentences that depend on them. Whatever comes from a run, such as the names of classes, may hold anything: it
is escaped, and characters that are invisible or change the direction of text are shown as escapes.
"""

import base64
import collections
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llc.data.sources import printable
from llc.evaluation import metrics, wordnet
from llc.evaluation.decoders import DECODERS, Decoder
from llc.packages import needed
from llc.recipe import Config
from llc.report.contents import Health, Report, Run
from llc.report.figures import Figure, comparison_figures, figures
from llc.report.reading import value_text
from llc.stages import STAGES
from llc.text import counted

PURPOSE = "llc.report"
MARK = '<meta name="generator" content="llc.report">'  # in page.html: by this a report knows an older one
_LONGEST = 60  # characters of a name; a thousand long ones in each bit's list would fill megabytes
_NAMED = 12  # names of a list that are shown before "and 37 more"
_IMAGE_BYTES = 2_500_000  # of the bits' images in the page; the neighbours' come on top
_PERCENT = "\u00a0%"  # on one line with its number
_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
_NO_RECIPE = ("logging", "dist")  # sections on where a run was written, and by which processes

# What the accuracy of a decoder means, as the end of a sentence that begins with a percentage.
_RIGHT = "of the val images are classified right"
_DECODERS = {
    "class": f"{_RIGHT} if the network's real-valued output is compared with all class codes, and the class "
    "that fits best wins.",
    "mhd": f"{_RIGHT} by minimum Hamming distance (MHD): the class wins whose code differs from the image's "
    "code in the fewest bits.",
    "ed": f"{_RIGHT} by exact decoding (ED): the image's code must equal a class's code bit for bit, or the "
    "image has no class.",
    "posterior": f"{_RIGHT} if the class is taken that is most probable for the image's code, as learnt from "
    "the codes of the train images.",
}
_DENSE = f"{_RIGHT} by the ordinary classifier that was trained first, from which the class codes are made."


def render(reports: Sequence[Report], command: str) -> str:
    """The page of one report, or of several beside each other, as the text of an HTML file.

    command: how the page was made, for the reader. Raises UserError if a package is missing.
    """
    jinja2 = needed("jinja2", PURPOSE, extra="report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llc.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"percent": _percent, "number": _number, "name": _shortened, "data_uri": _data_uri}
    names = _names([report.run for report in reports])
    several = len(reports) > 1
    views = [
        _view(report, name, f"r{place}-" if several else "")
        for place, (report, name) in enumerate(zip(reports, names), 1)
    ]
    return environment.get_template("page.html").render(
        views=views,
        comparison=_comparison(reports, names) if several else None,
        title="Comparison of " + ", ".join(names) if several else f"Report on {names[0]}",
        command=command,
        named=_NAMED,
    )


# ------------------------------------------------------------------------------------------------- text


def _visible(value: Any) -> Any:
    """Text as the page shows it. What is already HTML, such as a figure, stays as it is."""
    return printable(value) if type(value) is str else value


def _percent(fraction: float, digits: int = 1) -> str:
    return "–" if math.isnan(fraction) else f"{100 * fraction:.{digits}f}{_PERCENT}"


def _number(value: float, digits: int = 2) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _shortened(name: str) -> str:
    """A name without its middle, if it is very long."""
    name = printable(name)
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST // 2]}…{name[-(_LONGEST // 2) + 1 :]}"


def _data_uri(image: tuple[bytes, str]) -> str:
    data, media_type = image
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _names(runs: Sequence[Run]) -> list[str]:
    """What the page calls the runs: the names of their folders, and folders above that tell them apart."""
    parts = [(*run.path.resolve().parts[1:-1], run.name) for run in runs]
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(of_run[-length:]) for of_run, length in zip(parts, lengths)]
        count = collections.Counter(names)
        longer = [
            length + (count[name] > 1 and length < len(of_run))
            for of_run, name, length in zip(parts, names, lengths)
        ]
        if longer == lengths:
            return names
        lengths = longer


# ------------------------------------------------------------------------------------------------- numbers


@dataclasses.dataclass(frozen=True)
class Headline:
    """A number that a run is known by. share: of a bar, 0 to 1, if the number is a fraction of images."""

    key: str  # the same in every run that has it
    title: str
    value: float
    text: str
    meaning: str
    share: float | None = None
    best: Any = None  # max or min: which of several runs is best
    half_width: float = 0.0  # of the 95 % interval of the value, 0 if it is unknown


def _headlines(report: Report) -> list[Headline]:
    run = report.run
    found = [
        dataclasses.replace(one, half_width=half_width(one.value, _num_images(report)))
        for one in list(_accuracies(run))
        or list(_logged_accuracies(run))
        or list(_measured_accuracies(report))
    ]
    flip = run.config.validation.lr_tta
    for stage in run.stages:
        tied = run.results.get(f"{stage}/{metrics.name('tied', 'mhd', flip)}")
        if tied and not math.isnan(tied[0]) and STAGES[stage].learns_codes:
            found.append(
                _fraction(
                    "tied",
                    "Ties",
                    tied[0],
                    "of the val images are equally near to several class codes; MHD then takes the first.",
                    None,
                )
            )
        error = run.results.get(f"{stage}/{metrics.name('ece', 'posterior', flip)}")
        if error and not math.isnan(error[0]):
            found.append(
                _fraction(
                    "ece",
                    "Calibration error",
                    error[0],
                    "is how far the posterior decoder's probabilities are, on average, from how often it is "
                    "right; 0 is perfect.",
                    min,
                )
            )
    found.append(_collisions(run))
    datasets = dict.fromkeys(detection.dataset for detection in report.detections)
    for dataset in datasets:
        best = max((one for one in report.detections if one.dataset == dataset), key=lambda one: one.auroc)
        found.append(
            _fraction(
                f"ood {dataset}",
                f"{dataset} told apart",
                best.auroc,
                "AUROC: the chance that an image of a known class looks more familiar than one of "
                f"{dataset}; 50 % is a guess. Of the scores, {best.score} tells best on these images.",
            )
        )
    return found


def half_width(fraction: float, n: int) -> float:
    """Half the width of Wilson's 95 % interval of a fraction of n images; 0 if n is 0.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if not n:
        return 0.0
    return _Z * math.sqrt(fraction * (1 - fraction) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)


def _num_images(report: Report) -> int:
    """How many images the accuracies are of, 0 if it is unknown."""
    measured, run = report.measured, report.run
    on_others = measured is not None and measured.called != "val images"
    if not run.results and measured is not None and not any(_logged_accuracies(run)):
        return measured.num_images
    return run.num_val or (measured.num_images if measured is not None and not on_others else 0)


def _accuracies(run: Run) -> Iterator[Headline]:
    """Top-1 of each decoder, of the stage that trains what it reads."""
    for stage in run.stages:
        for metric in metrics.headlines(STAGES[stage], run.config.validation.lr_tta):
            final = run.results.get(f"{stage}/{metric}", (math.nan, math.nan))[0]
            if not math.isnan(final):
                found = _accuracy(_decoder_of(metric), STAGES[stage].dense, final)
                if stage != run.stages[-1] and not STAGES[stage].dense:
                    note = f" Measured with the network of the {stage} stage."
                    found = dataclasses.replace(found, meaning=found.meaning + note)
                yield found


def _logged_accuracies(run: Run) -> Iterator[Headline]:
    """The same after the last epoch of the log, of a run without results.csv because it is not finished."""
    if run.results or not run.epochs:
        return
    line = run.epochs[-1]
    stage, when = line["stage"], f"{line['stage']} epoch {line['epoch']}"
    for metric in metrics.headlines(STAGES[stage], run.config.validation.lr_tta):
        if metric in line:
            found = _accuracy(_decoder_of(metric), STAGES[stage].dense, line[metric])
            # beside a finished run's results it is another number
            key, title = f"{found.key} after {when}", f"{found.title}, {when}"
            yield dataclasses.replace(found, key=key, title=title)


def _measured_accuracies(report: Report) -> Iterator[Headline]:
    """The same as measured now, of a run without results.csv whose log does not have them."""
    for metric, value in (report.measured.accuracy if report.measured else {}).items():
        if decoder := _decoder_of(metric):
            found = _accuracy(decoder, False, value)
            called = printable(report.measured.called)
            yield dataclasses.replace(
                found,
                key=f"measured {found.key}",  # beside another run's results it is another number
                meaning=found.meaning.replace(_RIGHT, f"of the {called} are classified right"),
            )


def _with_half_width(headline: Headline) -> str:
    if not headline.half_width:
        return headline.text
    return f"{headline.text.removesuffix(_PERCENT)} ± {100 * headline.half_width:.1f}{_PERCENT}"


def _decoder_of(metric: str) -> Decoder | None:
    """The decoder whose top-1 a metric is: of its name, or "top1_NAME", perhaps with more behind it."""
    words = metric.removeprefix("top1_").removesuffix(metrics.EMA).removesuffix(metrics.FLIP)
    return DECODERS.get(words)


def _accuracy(decoder: Decoder, dense: bool, value: float) -> Headline:
    if dense:
        return _fraction("dense", "Dense classifier", value, _DENSE)
    title = decoder.title[:1].upper() + decoder.title[1:]
    meaning = _DECODERS.get(decoder.name, f"{_RIGHT} by the decoder {decoder.name}.")
    return _fraction(f"top1 {decoder.name}", title, value, meaning)


def _decoder_text(name: str) -> str:
    """What decodes, as the end of "decoded by"."""
    return "the posterior decoder" if name == "posterior" else DECODERS[name].title


def _fraction(key: str, title: str, value: float, meaning: str, best: Any = max) -> Headline:
    return Headline(key, title, value, _percent(value), meaning, min(max(value, 0), 1), best)


def _collisions(run: Run) -> Headline:
    pairs = int(run.health.counts[0])
    meaning = "pairs of classes have the same code, so every class can be found."
    if pairs:
        hidden = counted(sum(len(group) - 1 for group in run.health.shared), "class", "classes")
        meaning = (
            f"{'pair of classes has' if pairs == 1 else 'pairs of classes have'} the same code. {hidden} can "
            "never be the answer of MHD or ED, because ties go to the first class."
        )
    return Headline("collisions", "Codes shared", pairs, f"{pairs:,}", meaning, None, min)


# ------------------------------------------------------------------------------------------------- a run


def _view(report: Report, name: str, prefix: str) -> dict[str, Any]:
    """What the template shows of one run. prefix: of all ids, so that those of several runs differ."""
    run, measured = report.run, report.measured
    class_names = _class_names(run)
    drawn = figures(report, class_names, prefix or "run-")
    with_images = _bits_with_images(report)
    return {
        "name": name,
        "prefix": prefix,
        "report": report,
        "run": run,
        "measured": measured,
        "class_names": class_names,
        "parts": _parts(report, drawn),
        "figures": drawn,
        "detections": [drawn[key] for key in drawn if key.startswith("ood_")],
        "headlines": _headlines(report),
        "lead": _lead(run),
        "stages": ", then ".join(
            name if name in run.stages else f"{name} (not finished)" for name in run.config.stages
        ),
        "notes": [*run.notes, *report.notes],
        "facts": _facts(report),
        "results": [
            [*key.partition("/")[::-2], *(_percent(value, 2) for value in values)]
            for key, values in run.results.items()
        ],
        "differences": [(one.key, one.value, one.base) for one in run.differences],
        "recipe": _flat(run.config),
        "codes_text": _codes_text(run.health, run.num_bits),
        "with_images": with_images,
        "decoder": _decoder_text(measured.decoder) if measured else "",
        "confusions": _confusions(report, class_names),
        "right": [q for q in measured.queries if q.decoded == q.label] if measured else [],
        "wrong": [q for q in measured.queries if q.decoded != q.label] if measured else [],
    }


def _class_names(run: Run) -> list[str]:
    """The class names, or their words where they are WordNet's ids of ImageNet's classes."""
    return wordnet.shown(run.class_names)


def _lead(run: Run) -> str:
    """A sentence on what the run is."""
    config, num_classes = run.config, len(run.class_names)
    epochs = _epochs(run)
    chance = f"; guessing would be right for {_percent(1 / num_classes)}" if num_classes else ""
    return (
        f"A {config.model.arch} gives each image a code of {counted(run.num_bits, 'bit')}, and tells "
        f"{counted(num_classes, 'class', 'classes')} apart by it{chance}."
        + (f" It was trained for {epochs} {'epoch' if len(run.epochs) == 1 else 'epochs'}." if epochs else "")
    )


def _epochs(run: Run) -> str:
    """How many epochs of each stage were trained, such as 15 codebook + 5 instance."""
    count = collections.Counter(str(line["stage"]) for line in run.epochs)
    return " + ".join(f"{number} {stage}" for stage, number in count.items())


def _facts(report: Report) -> dict[str, str]:
    """Short facts below the title: {what: text}."""
    run, measured = report.run, report.measured
    speeds = sorted(line["images_per_second"] for line in run.epochs if line.get("images_per_second", 0) > 0)
    parts = [line.get(key, 0) for line in run.epochs for key in ("train_seconds", "val_seconds")]
    seconds = sum(part for part in parts if math.isfinite(part))
    sizes = {line["resolution"] for line in run.epochs if "resolution" in line}
    return {
        "Classes": f"{len(run.class_names):,}",
        "Bits": f"{run.num_bits:,}",
        **({"Epochs": f"{len(run.epochs):,}"} if run.epochs else {}),
        **({"Resolution": f"{sizes.pop():,} pixels"} if len(sizes) == 1 else {}),
        **({"Time": _duration(seconds)} if seconds else {}),
        **({"Median speed": f"{speeds[len(speeds) // 2]:,.0f} images/s"} if speeds else {}),
        **({printable(measured.called).capitalize(): f"{measured.num_images:,}"} if measured else {}),
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _parts(report: Report, drawn: Mapping[str, Figure]) -> dict[str, str]:
    """{id: title} of the parts of the page that there is something for, in their order."""
    measured = report.measured
    parts = {
        "headlines": "In short",
        "training": "Training",
        "recipe": "Recipe",
        "codes": "Class codes",
        "tree": "Tree of classes",
        "bits": "What each bit sees",
        "neighbours": "Nearest images",
        "confusions": "What is confused",
        "reliability": "Can its confidence be trusted?",
        "detection": "Images of no known class",
        "retrieval": "Retrieval",
        "origin": "How this was made",
    }
    missing = {
        "tree": "dendrogram" not in drawn,
        "bits": not (measured and measured.bits),
        "neighbours": not (measured and measured.queries),
        "confusions": not (measured and measured.confusions or "pairs" in drawn),
        "reliability": "reliability" not in drawn,
        "detection": not any(key.startswith("ood_") for key in drawn),
        "retrieval": "retrieval" not in drawn,
    }
    return {id: title for id, title in parts.items() if not missing.get(id)}


def _confusions(report: Report, class_names: Sequence[str]) -> list[list[str]]:
    return [
        [
            _shortened(class_names[one.label]),
            _shortened(class_names[one.decoded]) if one.decoded >= 0 else "no class",
            f"{one.count:,} of {one.of:,}",
            _percent(one.count / one.of, 0),
            f"{one.distance}",
        ]
        for one in (report.measured.confusions if report.measured else ())
    ]


def _flat(config: Config) -> dict[str, str]:
    """{section.key: text} of a recipe, stages that do not run left out."""
    return {
        f"{section}.{key}": value_text(value)
        for section, keys in config.as_dict().items()
        if section not in STAGES or section in config.stages
        for key, value in keys.items()
    }


def _codes_text(health: Health, num_bits: int) -> str:
    """A sentence on how far the class codes are apart."""
    counts = [int(count) for count in health.counts]
    total = sum(counts)
    if not total:
        return "There is one class, so there are no distances between class codes."
    mean = sum(distance * count for distance, count in enumerate(counts)) / total
    nearest = next(distance for distance, count in enumerate(counts) if count)
    least, most = min(health.balance), max(health.balance)
    return (
        f"Two class codes differ in {mean:.2f} of {num_bits} bits on average; random ones would in "
        f"{num_bits / 2:g}. The nearest two differ in {counted(nearest, 'bit')}. Each bit is 1 for "
        f"{_percent(least, 0)} to {_percent(most, 0)} of the classes; 50 % says most."
    )


def _bits_with_images(report: Report) -> int:
    """How many bits, the first ones, are shown with their images, so that the page stays small."""
    if report.measured is None:
        return 0
    total = 0
    for place, bit in enumerate(report.measured.bits):
        shown = [
            report.measured.images[i] for i in (*bit.highest, *bit.lowest) if i in report.measured.images
        ]
        total += sum(len(data) for data, _ in shown)
        if not shown or total > _IMAGE_BYTES:
            return place
    return len(report.measured.bits)


# ------------------------------------------------------------------------------------------------- several


def _comparison(reports: Sequence[Report], names: Sequence[str]) -> dict[str, Any]:
    """What the template shows of several runs side by side."""
    runs = [report.run for report in reports]
    columns = [{headline.key: headline for headline in _headlines(report)} for report in reports]
    headlines: dict[str, Headline] = {}
    for column in columns:
        headlines |= {key: headline for key, headline in column.items() if key not in headlines}
    comparable = len({tuple(run.class_names) for run in runs}) == 1
    rows = []
    for key, headline in headlines.items():
        values = [column[key].value if key in column else math.nan for column in columns]
        given = [value for value in values if not math.isnan(value)]
        best = None
        if comparable and headline.best and len(given) > 1 and min(given) < max(given):
            best = headline.best(given)
        # What lies within the interval of the best may be as good.
        room = max(
            (one.half_width for one in (c[key] for c in columns if key in c) if one.value == best), default=0
        )
        cells = [
            (
                _with_half_width(column[key]) if key in column else "–",
                best is not None and abs(value - best) <= room,
            )
            for column, value in zip(columns, values)
        ]
        rows.append((headline.title, cells))
    rows.append(("Epochs", [(_epochs(run), False) for run in runs]))
    return {
        "names": names,
        "rows": rows,
        "starred": any(best for _, cells in rows for _, best in cells),
        "intervals": any(one.half_width for column in columns for one in column.values()),
        "differences": _differences([run.config for run in runs]),
        "figures": comparison_figures(reports, names),
        "notes": _notes(runs),
    }


def _differences(configs: Sequence[Config]) -> list[list[str]]:
    """[key, value of each run] of the recipe's keys in which runs differ; "–": the run lacks the stage."""
    flat = [_flat(config) for config in configs]
    rows = []
    for key in flat[0]:
        section = key.partition(".")[0]
        if section in _NO_RECIPE:
            continue
        values = [
            "–" if section in STAGES and section not in config.stages else one[key]
            for config, one in zip(configs, flat)
        ]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _num_val_paths(runs: Sequence[Run]) -> int:
    return len({os.path.normpath(run.config.data.val_dataset) for run in runs})


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before numbers of these runs are compared."""
    notes = []
    if len({tuple(run.class_names) for run in runs}) > 1:
        notes.append(
            "The runs have different classes, so their accuracies cannot be compared, and no best is marked."
        )
    elif len({run.val_data for run in runs if run.val_data}) > 1:
        notes.append("The runs were validated on different data, so compare their accuracies with care.")
    elif not all(run.val_data for run in runs) and _num_val_paths(runs) > 1:
        notes.append(
            "The runs name different val sets, and not all of these can be read here, so they may be "
            "different images: compare accuracies with care."
        )
    if len({run.num_bits for run in runs}) > 1:
        notes.append("The codes differ in length: a longer code may cost more memory and search time.")
    return notes
