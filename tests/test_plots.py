"""Charts as SVG for a page and as files: what they say, that pages can hold several, and what is refused."""

import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from llc import charts, plots
from llc.errors import UserError
from llc.evaluation import taxonomy
from llc.evaluation.dendrogram import inline
from tests.pictures import SVG, texts_in

X = [1, 2, 3, 4]


def codes(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)


def line_chart(last=0.5):
    return charts.lines(
        {"first": (X, [0.1, 0.2, 0.3, last]), "second": (X, [0.2, float("nan"), 0.3, 0.4])},
        "epoch",
        "accuracy",
        stages=[("codebook", 0.5, 3.5), ("instance", 3.5, 4.5)],
        percent=True,
        integers=True,
    )


CHARTS = {
    "lines": line_chart,
    "bars": lambda: charts.bars(
        range(5), {"a": [1, 2, 3, 2, 1], "b": [0, 1, 2, 3, 4]}, "bit", "share", level=2
    ),
    "horizontal": lambda: charts.horizontal_bars(
        {"small": {"llc": 12345.6, "other": 2.0}, "large": {"llc": 7.0}},
        "images/s",
        highlighted=("llc",),
        digits=1,
    ),
    "reliability": lambda: charts.reliability(
        np.linspace(0, 1, 4),
        np.int64([0, 3, 9]),
        np.float64([np.nan, 0.5, 0.9]),
        np.float64([np.nan, 0.4, 1]),
    ),
    "overlaid": lambda: charts.overlaid(
        {"known": np.float64([1, 2, 2.5, np.inf]), "other": np.float64([0, 1.1, np.nan])}, "score", "share"
    ),
    "curves": lambda: charts.curves(
        {"k": {"p": ([1, 10, 1000], [1, 0.5, 0.1])}, "recall": {"p": ([0, 1], [1, 0])}}, "share"
    ),
    "tree": lambda: inline(taxonomy.tree(codes(8)), list("abcdefgh")),
}


def parsed(svg):
    return ElementTree.fromstring(svg)


def texts(svg):
    return {"".join(element.itertext()) for element in parsed(svg).iter(f"{SVG}text")}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_in_a_page_has_css_colours_and_ids_of_its_own(name):
    svg = plots.svg(CHARTS[name](), "mine", "A <title>", "in words")
    root = parsed(svg)
    assert svg.startswith("<svg ") and "viewBox" in root.attrib and root.get("role") == "img"
    assert not {"width", "height"} & set(root.attrib)
    labels = [root.find(f"*[@id='{id}']").text for id in root.get("aria-labelledby").split()]
    assert labels == ["A <title>", "in words"]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids) and all(id.startswith("mine-") for id in ids)
    referred = set(re.findall(r"url\(#(.+?)\)|href=\"#(.+?)\"", svg))
    assert {one or other for one, other in referred} == set(ids) - {"mine-title", "mine-desc"}
    assert "currentColor" in svg and "var(--faint)" in svg and "var(--series-1)" in svg
    assert not re.search(r":#[0-9a-f]{6}|<style|<metadata|xlink|DejaVu|<!--|\d\.\d{4}", svg)
    assert svg == plots.svg(CHARTS[name](), "mine", "A <title>", "in words")


def test_what_is_drawn_can_be_read_as_text():
    svg = plots.svg(line_chart(), "a", "")
    assert {"first", "second", "epoch", "accuracy", "codebook", "instance", "1", "4", "50.0 %"} <= texts(svg)
    svg = plots.svg(CHARTS["horizontal"](), "a", "")
    assert {"12,345.6", "2.0", "7.0", "llc", "other", "small", "large", "images/s"} <= texts(svg)


def test_other_data_make_another_chart():
    assert plots.svg(line_chart(0.5), "a", "") != plots.svg(line_chart(0.4), "a", "")


def test_names_may_hold_anything():
    names = ["<b>&amp;", "$x^2$ and $", "a\x07b", "\u4e2d", "x" * 300]
    svg = plots.svg(charts.lines({name: (X, X) for name in names}, "x", "y"), "a", "\x00<title>", "\x1b")
    assert {"<b>&amp;", "$x^2$ and $", r"a\x07b", "\u4e2d"} <= texts(svg)
    assert max(map(len, texts(svg))) < 60


def test_lines_differ_without_colours():
    svg = plots.svg(line_chart(), "a", "")
    drawn = [
        element.get("style")
        for element in parsed(svg).iter(f"{SVG}path")
        if "series" in str(element.get("style"))
    ]
    assert any("dasharray" in style for style in drawn) and any("dasharray" not in style for style in drawn)


def test_marked_bars_have_another_colour():
    heights = {"pairs": [2, 3, 4]}
    plain = plots.svg(charts.bars(range(3), heights, "x", "y"), "a", "")
    marked = plots.svg(charts.bars(range(3), heights, "x", "y", marked=(0,)), "a", "")
    assert [svg.count("var(--series-1)") for svg in (plain, marked)] == [3, 2]
    assert [svg.count("var(--series-2)") for svg in (plain, marked)] == [0, 1]


def heights_of(figure):
    return [patch.get_data().values for patch in figure.axes[0].patches[1::2]]


def test_histograms_are_fractions_of_each_sample_and_lose_no_extreme():
    rng = np.random.default_rng(0)
    known, other = rng.normal(size=5000), rng.normal(2, 1, size=300)
    known[:3] = 1e6, np.inf, np.nan
    heights = heights_of(charts.overlaid({"known": known, "other": other}, "score", "share"))
    assert [len(values) for values in heights] == [40, 40]
    assert [values.sum() for values in heights] == pytest.approx([1, 1])
    assert heights[0][-1] >= 2 / 4999


def test_distances_in_bits_have_a_bar_each():
    samples = {"known": np.float64([-1, -1, -2, -5]), "other": np.float64([-5, -7])}
    heights = heights_of(charts.overlaid(samples, "score", "share"))
    assert heights[0].tolist() == [0, 0, 0.25, 0, 0, 0.25, 0.5] and heights[1].tolist() == [
        0.5,
        0,
        0.5,
        0,
        0,
        0,
        0,
    ]


def test_a_tree_of_a_thousand_classes_is_small_enough_for_a_page(monkeypatch):
    monkeypatch.setattr(taxonomy, "_MAX_ORDERED", 0)  # the best order of leaves takes 7 s
    svg = plots.svg(
        inline(taxonomy.tree(codes(1000)), [f"a name, not short {i}" for i in range(1000)]), "a", ""
    )
    assert len(svg) < 600_000 and {f"a name, not short {i}" for i in range(1000)} <= texts(svg)


# ----------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name, start", [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_name_decides_the_format_and_the_same_data_give_the_same_file(name, start, tmp_path):
    path = tmp_path / name
    plots.save(line_chart(), str(path), "--plot")
    written = path.read_bytes()
    assert written.startswith(start)
    plots.save(line_chart(0.4), str(path), "--plot")  # a picture of ours is written again
    assert path.read_bytes() != written
    plots.save(line_chart(), str(path), "--plot")
    assert path.read_bytes() == written and [file.name for file in tmp_path.iterdir()] == [name]


def test_a_file_has_real_colours(tmp_path):
    plots.save(line_chart(), str(tmp_path / "a.svg"), "--plot")
    written = (tmp_path / "a.svg").read_text()
    assert plots.SERIES[0] in written and "var(" not in written and "first" in texts_in(tmp_path / "a.svg")
    with Image.open(io.BytesIO(plots.encoded(line_chart(), "png"))) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.gif", "a.gif: expected a name that ends in .png, .svg, .pdf"),
        ("a", "a: expected a name that ends in"),
        ("none/a.png", "there is no folder .*none; make it first"),
        ("photo.png", "photo.png: it exists and is not a picture of llc, so it is kept"),
        ("folder.png", "it exists and is not a picture of llc"),
    ],
)
def test_names_that_are_refused(name, message, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "folder.png").mkdir()
    before = (tmp_path / "photo.png").read_bytes()
    for refuse in (plots.check_name, lambda path, flag: plots.save(line_chart(), path, flag)):
        with pytest.raises(UserError, match=f"^--plot=.*{message}"):
            refuse(str(tmp_path / name), "--plot")
    assert (tmp_path / "photo.png").read_bytes() == before


def test_no_name_is_no_picture_and_a_missing_matplotlib_is_said_before(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.check_name("", "--plot")
    with pytest.raises(UserError, match=r"--plot needs matplotlib.*pip install 'llcodes\[report\]'"):
        plots.check_name(str(tmp_path / "a.png"), "--plot")
