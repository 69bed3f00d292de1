"""The figures of a report: which there are, what their words say, and that they fit on one page."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from llc import charts, plots
from llc.evaluation import dendrogram
from llc.evaluation.taxonomy import tree
from llc.report.contents import Curve, Report
from llc.report.figures import comparison_figures, figures
from tests.pictures import SVG
from tests.report.synthetic import make_report

OF_RUN = [
    "loss",
    "learning_rate",
    "resolution",
    "accuracy",
    "throughput",
    "distances",
    "balance",
    "dendrogram",
]


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def drawn(report):
    return figures(report)


def without_epochs(report):
    """A report with few figures, which takes less time."""
    return Report(dataclasses.replace(report.run, epochs=[]))


def texts(figure):
    root = ElementTree.fromstring(figure.svg)
    return {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}


def ids(drawn):
    return [id for figure in drawn.values() for id in re.findall(r' id="([^"]+)"', figure.svg)]


def test_all_that_a_report_holds_is_drawn(drawn):
    assert {*drawn} == {*OF_RUN, "pairs", "reliability", "ood_0", "ood_1", "retrieval"}
    for figure in drawn.values():
        assert figure.title in figure.svg and figure.alt.endswith(".") and figure.caption.endswith(".")
        assert re.search(r"\d", figure.alt) and "nan" not in figure.svg.lower() + figure.alt


def test_a_run_alone_has_the_figures_of_a_run(report):
    assert [*figures(Report(report.run))] == OF_RUN


def test_an_empty_run_has_no_figures(report):
    empty = dataclasses.replace(report.run.health, counts=np.zeros(11, np.int64), balance=np.zeros(0))
    assert figures(Report(dataclasses.replace(report.run, epochs=[], tree=None, health=empty))) == {}


def test_ids_of_several_reports_on_a_page_differ(report, drawn):
    other = make_report("b", seed=1)
    prefixed = figures(without_epochs(report), prefix="mine-")
    found = [
        *ids(drawn),
        *ids(figures(without_epochs(other))),
        *ids(prefixed),
        *ids(comparison_figures([report, other])),
    ]
    assert len(set(found)) == len(found) > 40 and all(id.startswith("mine-") for id in ids(prefixed))


def test_words_agree_with_the_numbers(report, drawn):
    assert (
        "codebook stage, 4 epochs: from 3 to 0.75; instance stage, 2 epochs: from 0.6 to 0.5"
        in drawn["loss"].alt
    )
    last = report.run.epochs[-1]
    assert f"MHD {100 * last['top1_mhd_flip']:.1f}\u00a0%" in drawn["accuracy"].alt
    assert "class 0" in texts(drawn["dendrogram"])
    assert {"class codes", "MHD", "ED", "codebook", "instance"} <= texts(drawn["accuracy"])
    assert "40 pixels" not in drawn["resolution"].alt and "36 pixels to 56 pixels" in drawn["resolution"].alt
    counts = report.run.health.counts
    mean = (np.arange(11) @ counts) / counts.sum()
    assert (
        f"15 pairs of class codes: {mean:.1f} of 10 bits on average; 1 pair share" in drawn["distances"].alt
    )
    assert "var(--series-2)" in drawn["distances"].svg
    pairs = report.measured.pairs
    assert f"differ in {np.arange(11) @ pairs[:, 0]:.1f} bits" in drawn["pairs"].alt
    assert "80 images of the val set" in drawn["ood_0"].alt and "AUROC 0.920" in drawn["ood_0"].alt
    assert (
        "error is 8.0\u00a0%" in drawn["reliability"].alt
        and "97\u00a0% sure, 93\u00a0% right" in drawn["reliability"].alt
    )
    assert "recall@k: 5.0\u00a0% at 1, 100.0\u00a0% at 20" in drawn["retrieval"].alt


def test_codes_that_all_differ_have_no_marked_pairs(report):
    counts = report.run.health.counts.copy()
    counts[0] = 0
    health = dataclasses.replace(report.run.health, counts=counts)
    run = dataclasses.replace(report.run, epochs=[], tree=None, health=health)
    alt = figures(Report(run))["distances"].alt
    assert alt.endswith(f"the nearest two differ in {np.flatnonzero(counts)[0]}.")


def test_epochs_that_were_not_validated_or_diverged_are_left_out(report):
    lines = [dict(line) for line in report.run.epochs]
    lines[0]["loss"] = float("inf")
    for line in lines[1:4]:
        del line["top1_mhd_flip"]
    run = dataclasses.replace(report.run, epochs=lines)
    found = figures(Report(run))
    assert "codebook stage, 3 epochs: from 1.5 to 0.75" in found["loss"].alt
    assert "MHD" in found["accuracy"].alt and "nan" not in found["accuracy"].svg.lower()


def test_accuracies_without_mirror_images_are_drawn_if_there_are_no_others(report, drawn):
    lines = [{key.removesuffix("_flip"): value for key, value in line.items()} for line in report.run.epochs]
    found = figures(Report(dataclasses.replace(report.run, epochs=lines)))["accuracy"]
    assert (found.svg, found.alt) == (drawn["accuracy"].svg, drawn["accuracy"].alt)


def test_a_resolution_that_never_changes_is_no_figure(report):
    lines = [{**line, "resolution": 64} for line in report.run.epochs]
    run = dataclasses.replace(report.run, epochs=lines)
    assert [*figures(Report(run))] == [key for key in OF_RUN if key != "resolution"]


def test_branches_of_a_tree_beside_each_other_differ_in_colour():
    """Also where there are more branches than colours, which the caption then says."""
    rng = np.random.default_rng(0)
    of_class = np.repeat(rng.random((9, 64)) < 0.5, 2, axis=0)  # nine pairs of classes, far from each other
    of_class[1::2, 0] ^= True
    report = make_report(num_classes=18, num_bits=64)
    found = tree(np.packbits(of_class, axis=1))
    report = dataclasses.replace(report, run=dataclasses.replace(report.run, tree=found))
    groups = dendrogram.groups(found)
    rows = {label: row for row, label in enumerate(found.order.tolist())}
    assert [min(rows[label] for label in found.nodes[number].children) for number in groups] == [
        *range(0, 18, 2)
    ]
    colour_at = {min(row for _, row in line): colour for line, colour in zip(*dendrogram._lines(found))}
    assert [colour_at[row] for row in range(0, 18, 2)] == [plots.SERIES[place % 6] for place in range(9)]
    assert "9 such branches and 6 colours" in figures(without_epochs(report))["dendrogram"].caption
    assert "6 colours" not in figures(without_epochs(make_report()))["dendrogram"].caption


def test_the_tree_shows_the_names_that_are_given(report):
    names = ["<ant>", "b & c", "cat $1$", "d\x07g", "e" * 90, "\u4e2d"]
    shown = texts(figures(without_epochs(report), names)["dendrogram"])
    assert {"<ant>", "b & c", "cat $1$", r"d\x07g", "e" * 29 + "…", "\u4e2d"} <= shown


def test_curves_over_k_and_over_recall_have_axes_of_their_own(report):
    x, y = np.float64([1, 10, 500]), np.float64([0.9, 0.5, 0.1])
    curves = [Curve("precision@k", x, y), Curve("precision over recall", y[::-1], y[::-1])]
    shown = texts(figures(dataclasses.replace(without_epochs(report), curves=curves))["retrieval"])
    assert {"precision@k", "precision over recall", "k, number of nearest images", "recall"} <= shown


@pytest.mark.parametrize(
    "name, x, axis",
    [
        ("precision over recall", 0.5, "recall"),
        ("precision over recall", 1.0, "recall"),
        ("another", 0.5, "recall"),
        ("precision@k", 1.0, "k, number of nearest images"),
    ],
)
def test_a_curve_of_one_point_is_a_marker_on_its_own_axis(name, x, axis, report):
    curves = [Curve(name, np.float64([x]), np.float64([0.25]))]
    figure = figures(dataclasses.replace(without_epochs(report), curves=curves))["retrieval"]
    other = figures(
        dataclasses.replace(without_epochs(report), curves=[Curve(name, *2 * [np.float64([0.2, x])])])
    )
    assert axis in texts(figure)
    assert figure.svg.count("<use ") > other["retrieval"].svg.count("<use ")


def test_runs_are_compared_line_by_line(report):
    other = make_report("b", num_bits=12, seed=1)
    found = comparison_figures([report, other])
    assert [*found] == ["accuracy_class", "accuracy_mhd", "accuracy_ed", "loss", "distances"]
    for figure in found.values():
        assert {"a", "b"} <= texts(figure)
        assert "var(--series-1)" in figure.svg and "var(--series-2)" in figure.svg
    last = other.run.epochs[-1]["top1_mhd_flip"]
    assert (
        f"b {100 * last:.1f}\u00a0%" in found["accuracy_mhd"].alt and "of 12 bits" in found["distances"].alt
    )


def test_runs_of_one_name_are_told_apart(report):
    assert {"a (1)", "a (2)"} <= texts(comparison_figures([report, make_report("a", seed=3)])["loss"])
    assert {"x", "y"} <= texts(comparison_figures([report, report], ["x", "y"])["loss"])


def test_runs_with_decoders_of_their_own_are_not_compared_by_them(report):
    lines = [{key: value for key, value in line.items() if "mhd" not in key} for line in report.run.epochs]
    other = Report(dataclasses.replace(report.run, epochs=lines))
    found = comparison_figures([report, other])
    assert [key for key in found if "accuracy" in key] == ["accuracy_class", "accuracy_ed"]
    assert found["accuracy_class"].title.endswith("by class codes")
    lines = [{key: value for key, value in line.items() if "top1" not in key} for line in lines]
    other = Report(dataclasses.replace(report.run, epochs=lines))
    assert not [key for key in comparison_figures([report, other]) if "accuracy" in key]


def test_names_that_matplotlib_would_take_for_something_else():
    """A name that begins with "_" would be left out of a legend, and one between dollars is a formula."""
    line = {"_hidden": ([1, 2], [0.1, 0.2]), "b": ([1, 2], [0.3, 0.1])}
    figure = charts.lines(line, "epoch", "loss", stages=[(r"$\foo$", 1, 2)])
    assert {"\u200b_hidden", "b"} == {text.get_text() for text in figure.legends[0].get_texts()}
    plots.svg(figure, "x-", "loss", "")
    plots.svg(charts.overlaid({"a": np.ones(3), "_b": np.zeros(4)}, r"score $\bar$", "share"), "x-", "", "")


@pytest.mark.parametrize(
    "values", [np.full(5, 1e20), np.array([-1e308, 1e308]), np.array([0, 1e9]), np.zeros(1)]
)
def test_histograms_of_extreme_scores(values):
    figure = charts.overlaid({"a": values, "b": values[:1]}, "score", "share")
    assert len(figure.axes[0].patches) == 4
