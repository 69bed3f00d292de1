"""The charts of reports and benchmarks, as matplotlib figures, which llc.plots writes out.

It needs matplotlib, which the extra `report` installs.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from llc.data.sources import printable
from llc.plots import FAINT, FONT_SIZE, HEIGHT, INK, SERIES, WIDTH, new, style

_LETTER = 0.075  # inches that a letter of FONT_SIZE takes, or less
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # lines differ without colours, too
_LARGEST = 1e200  # values beyond it cannot be drawn
_MOST_MARKERS = 40  # with more points, their circles would hide the line


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    stages: Sequence[tuple[str, float, float]] = (),
    percent: bool = False,
    zero: bool = False,
    integers: bool = False,
) -> Any:
    """Lines {name: (x, y)}; a NaN in y breaks a line.

    stages: (name, first x, last x) of parts of the x axis, which are set apart and named. percent: y is a
    fraction. zero: the y axis begins at 0. integers: x are whole numbers.
    """
    with style() as matplotlib:
        figure = new(height=HEIGHT + 0.2 * bool(stages) + 0.2 * (len(series) > 1))
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(series.items()):
            axes.plot(
                x, y, label=_shown(name), marker="o" if len(x) <= _MOST_MARKERS else "", **_look(number)
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        if zero:
            axes.set_ylim(0, 1.05 * axes.dataLim.y1 or 1)
        if integers:
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator("auto", integer=True, min_n_ticks=1))
        _format_y(matplotlib, axes, percent)
        _name_stages(axes, stages)
        _legend(figure, series)
        return figure


def _name_stages(axes, stages):
    """Vertical lines between stages, and their names above the axes."""
    low, high = axes.get_xlim()
    narrow = len(stages) > 2 and any(last - first < 0.2 * (high - low) for _, first, last in stages)
    for number, (name, first, last) in enumerate(stages):
        if number:
            axes.axvline(first, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
        at, side = (first + last) / 2, "center"
        if len(stages) > 1 and number in (0, len(stages) - 1):
            at, side = (max(first, low), "left") if number == 0 else (min(last, high), "right")
        height = 1.11 if narrow and number % 2 else 1.02
        axes.text(at, height, _shown(name), ha=side, color=FAINT, transform=axes.get_xaxis_transform())


def bars(
    positions: Sequence[int],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    *,
    percent: bool = False,
    marked: Collection[int] = (),
    level: float | None = None,
) -> Any:
    """Bars over whole numbers, beside each other for several series {name: heights}.

    percent: heights are fractions. marked: positions whose bar has another colour. level: a horizontal line.
    """
    with style() as matplotlib:
        figure = new(height=HEIGHT + 0.2 * (len(series) > 1))
        axes, width = figure.subplots(), 0.86 / len(series)
        for number, (name, heights) in enumerate(series.items()):
            at = np.asarray(positions) + (number - (len(series) - 1) / 2) * width
            colours = [SERIES[1] if position in marked else SERIES[number % 6] for position in positions]
            axes.bar(at, heights, width, color=colours, label=_shown(name))
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set_xlim(min(positions) - 0.6, max(positions) + 0.6)
        _format_y(matplotlib, axes, percent)
        _legend(figure, series)
        return figure


def horizontal_bars(
    panels: Mapping[str, Mapping[str, float]],
    x_label: str,
    *,
    heading: str = "",
    highlighted: Collection[str] = (),
    digits: int = 0,
) -> Any:
    """Bars with their values, as {panel: {row: value}}; each panel has a scale of its own.

    highlighted: the rows in colour. digits: decimals of the values.
    """
    with style():
        rows = [len(panel) for panel in panels.values()]
        figure = new(7, 0.27 * sum(rows) + 0.35 * len(rows) + 0.75)
        if heading:
            figure.suptitle(heading, fontsize=FONT_SIZE, ha="left", x=0.01, parse_math=False)
        all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=[count + 0.4 for count in rows])
        for axes, (title, panel) in zip(all_axes[:, 0], panels.items()):
            colours = [SERIES[0] if name in highlighted else FAINT for name in panel]
            made = axes.barh(range(len(panel)), list(panel.values()), 0.72, color=colours)
            axes.bar_label(made, [f"{value:,.{digits}f}" for value in panel.values()], padding=3)
            axes.set_yticks(range(len(panel)), [_shown(name) for name in panel], color=INK, parse_math=False)
            axes.set(xticks=[], ylim=(len(panel) - 0.5, -0.5), xlim=(0, 1.22 * (max(panel.values()) or 1)))
            axes.set_title(title, parse_math=False)
            axes.grid(visible=False)
            axes.spines["bottom"].set_visible(False)
        all_axes[-1, 0].set_xlabel(x_label)
        return figure


def reliability(edges: np.ndarray, counts: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> Any:
    """A reliability diagram: accuracy over confidence by bins, and the number of images of each bin below.

    edges [B + 1], the others [B]; NaN in empty bins.
    """
    with style() as matplotlib:
        figure = new(height=4.3)
        above, below = figure.subplots(2, sharex=True, height_ratios=(3.2, 1))
        above.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=_DASHES[1], label="calibrated")
        filled = counts > 0
        above.plot(confidence[filled], accuracy[filled], color=SERIES[0], marker="o", label="measured")
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        above.legend(loc="upper left")
        below.bar(edges[:-1], counts, np.diff(edges) * 0.9, align="edge", color=SERIES[0])
        below.set(xlabel="probability of the first class", ylabel="images")
        below.grid(axis="x", visible=False)
        _format_y(matplotlib, above, True)
        _format_y(matplotlib, below, False)
        below.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3, integer=True))
        below.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=" %"))
        return figure


def overlaid(samples: Mapping[str, np.ndarray], x_label: str, y_label: str) -> Any:
    """Histograms of several samples {name: values} over each other, each as fractions of its own size.

    Values beyond the middle 99.8 % of all are counted in the outermost bins, so that one does not squeeze the
    others. Infinite ones count as the outermost, NaNs not at all.
    """
    finite = np.concatenate([values[np.isfinite(values)] for values in samples.values()])
    different = np.unique(finite.clip(-_LARGEST, _LARGEST))
    low, high = different[0], different[-1]
    few = high - low <= 60 and max(abs(low), abs(high)) < 1e15
    if few and np.array_equal(different, np.round(different)):  # such as distances in bits
        edges = np.arange(low - 0.5, high + 1)
    else:
        low, high = np.percentile(finite.clip(-_LARGEST, _LARGEST), (0.1, 99.9))
        least = max(abs(low), abs(high), 1) * 1e-12  # so that the edges differ
        edges = np.linspace(low, max(high, low + 40 * least), 41)
    with style() as matplotlib:
        figure = new(height=HEIGHT + 0.2)
        axes = figure.subplots()
        for number, (name, values) in enumerate(samples.items()):
            kept = np.clip(values[~np.isnan(values)], edges[0], edges[-1])
            fractions = np.histogram(kept, edges)[0] / max(len(kept), 1)
            axes.stairs(fractions, edges, fill=True, alpha=0.3, color=SERIES[number % 6])
            axes.stairs(fractions, edges, label=_shown(name), **_look(number))
        axes.set(xlabel=_shown(x_label), ylabel=y_label)
        axes.grid(axis="x", visible=False)
        _format_y(matplotlib, axes, True)
        _legend(figure, samples)
        return figure


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], y_label: str) -> Any:
    """Curves {name: (x, y)} of fractions in panels {label of x: curves}, one below the other.

    An x axis that goes up to more than 200 is logarithmic, because what happens at its beginning matters.
    """
    with style() as matplotlib:
        figure = new(height=0.4 + 2.3 * len(panels))
        names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
        for axes, (x_label, panel) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items()):
            for name, (x, y) in panel.items():
                marker = "o" if len(x) == 1 else ""  # a line needs two points
                axes.plot(x, y, label=_shown(name), marker=marker, **_look(names.index(name)))
            largest = max(max(x) for x, _ in panel.values())
            if largest > 200:
                axes.set_xscale("log")
            percent = matplotlib.ticker.PercentFormatter(1, symbol=" %")
            axes.xaxis.set_major_formatter("{x:,.0f}" if largest > 1 else percent)
            axes.set(xlabel=x_label, ylabel=y_label)
            axes.set_ylim(0)
            axes.minorticks_off()
            _format_y(matplotlib, axes, True)
        handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
        figure.legend(handles=list(handles.values()), loc="outside upper left", ncols=_columns(names))
        return figure


def _look(number):
    return {"color": SERIES[number % len(SERIES)], "linestyle": _DASHES[number % len(_DASHES)]}


def _shown(name):
    """A name in a chart: without control characters, not too long, and no mathematics."""
    name = printable(name)
    name = name if len(name) <= 48 else f"{name[:30]}…{name[-17:]}"
    if name.startswith("_"):  # matplotlib leaves such names out of legends
        name = f"\u200b{name}"
    return name.replace("$", r"\$") if name.count("$") > 1 else name


def _format_y(matplotlib, axes, percent):
    if percent:
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=" %"))
    elif axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _legend(figure, names):
    if len(names) > 1:
        figure.legend(loc="outside upper left", ncols=_columns(names))


def _columns(names):
    """Columns of a legend that fit above a chart."""
    room = WIDTH / (_LETTER * max(len(_shown(name)) for name in names) + 0.5)
    return max(1, min(int(room), len(names)))
