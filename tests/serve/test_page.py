"""The web page in a real browser: Debian's chromium, steered by its chromium-driver.

These tests are not skipped where there is no browser; `make test` installs it. LLC_SCREENSHOTS=FOLDER keeps
pictures of the page.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llc.index.index import Index
from tests.browser import Browser
from tests.serve.conftest import index_images
from tests.serve.server import expected, pairs, serving

TAB, ENTER = "\ue004", "\ue007"  # WebDriver's names of keys
EVIL = "!<img src=x onerror=alert(1)> & \"quotes'.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def index(image_tree, encoder, folder):
    """The images of two folders, one with a name that is HTML; ids above 2^53; one image is missing."""
    photos = folder / "photos"
    for name in ("class_0", "class_<b>1"):
        (photos / name).mkdir(parents=True)
    for i, path in enumerate(sorted((image_tree / "val").glob("class_[01]/*"))):
        target = photos / ("class_0" if "class_0" in str(path) else "class_<b>1")
        Image.open(path).save(target / (EVIL if i == 0 else f"{i}.png"))
    index = index_images(photos, encoder, first_id=(1 << 53) + 1)
    (photos / "class_0/2.png").unlink()
    index.save(folder / "page.index")
    return index


@pytest.fixture(scope="module")
def server(index, folder):
    with serving(index.path, folder) as server:
        yield server


@pytest.fixture(scope="module")
def browser(folder):
    with Browser(folder / "profile") as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    """The page as a visitor finds it; at the end, nothing may have been written to the console."""
    browser.tools("Emulation.setEmulatedMedia", features=[])
    browser.tools(
        "Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False
    )
    browser.open(server.url)
    browser.wait("document.querySelector('#about').textContent !== ''")
    browser.messages()
    yield browser
    # A thumbnail that is not there is no fault of the page.
    assert [said for said in browser.messages() if "/thumbnail" not in said] == []


def shown(page):
    """(distance, name) of the images of the grid, when all pictures are there or known to be missing."""
    page.wait("document.querySelectorAll('#grid li').length && !document.querySelector('#error').textContent")
    page.run("document.querySelectorAll('#grid img').forEach(one => { one.loading = 'eager'; })")
    page.wait("[...document.querySelectorAll('#grid img')].every(one => one.complete && one.naturalWidth)")
    cards = page.run(
        "return [...document.querySelectorAll('#grid li')].map(li => "
        "[...li.querySelectorAll('span')].map(span => span.textContent))"
    )
    assert all(one[0] == "no picture" for one in cards if len(one) == 4)
    return [(int(one[-2].removeprefix("distance ")), one[-3]) for one in cards]


def right(index, code, k=12, **named):
    """What the grid should show."""
    found = expected(index, code, k, **named)
    files = index.records([id for _, id in found]).files
    return [(distance, Path(file).name) for (distance, _), file in zip(found, files)]


def keep(page, name):
    if "LLC_SCREENSHOTS" in os.environ:
        page.screenshot(Path(os.environ["LLC_SCREENSHOTS"]) / f"{name}.png")


def test_a_dropped_image_gets_its_neighbours(page, index, encoder, image_tree):
    photo = sorted((image_tree / "train/class_1").iterdir())[0]
    code = encoder.encode([photo]).numpy()
    x, y = page.run(
        "const box = document.querySelector('#drop').getBoundingClientRect(); return [box.x + 20, box.y + 20]"
    )
    page.drop(photo, x, y)
    assert shown(page) == right(index, code)
    assert page.run("return document.querySelector('#query-code').textContent") == code.tobytes().hex()
    assert page.run("return document.querySelector('#preview').src").startswith("blob:")
    page.wait("document.querySelector('#preview').naturalWidth")
    classes = page.wait("[...document.querySelectorAll('#class-list li')].map(li => li.textContent)")
    best = encoder.classify([photo], k=5)
    assert classes == [
        f"{name} (distance {score})" for name, score in zip(best.names[0], best.scores[0].tolist())
    ]
    assert page.run("return document.querySelector('#status').textContent").startswith("12 images in ")
    keep(page, "light")


def test_a_drop_anywhere_on_the_page_counts(page, index, encoder, image_tree):
    photo = sorted((image_tree / "train/class_0").iterdir())[3]
    page.drop(photo, 500, 700)
    assert shown(page) == right(index, encoder.encode([photo]).numpy())


def test_a_chosen_image_and_its_options(page, index, encoder, image_tree):
    photo = sorted((image_tree / "train/class_1").iterdir())[1]
    code = encoder.encode([photo]).numpy()
    page.type("#file", photo)
    assert shown(page) == right(index, code)
    page.run(
        "const select = document.querySelector('#label'); select.value = 'class_<b>1';"
        "select.dispatchEvent(new Event('change'))"
    )
    page.wait("document.querySelectorAll('#grid li').length === 11")
    assert shown(page) == right(index, code, filter="class_<b>1")
    page.run(
        "document.querySelector('#label').value = ''; document.querySelector('#radius').value = 4;"
        "document.querySelector('#radius').dispatchEvent(new Event('change'))"
    )
    within = [found for found in right(index, code, 22) if found[0] <= 4]
    page.wait(f"document.querySelectorAll('#grid li').length === {min(12, len(within))}")
    page.run(
        "const select = document.querySelector('#decoder'); select.value = 'posterior';"
        "select.dispatchEvent(new Event('change'))"
    )
    page.wait("document.querySelector('#class-list li')?.textContent.endsWith('%)')")
    page.run("document.querySelector('#decoder').value = 'class';")
    page.run("document.querySelector('#decoder').dispatchEvent(new Event('change'))")
    page.wait("/[(]-?[0-9.]+[)]$/.test(document.querySelector('#class-list li')?.textContent)")


def test_a_click_finds_images_like_it_by_ids_that_are_no_floats(page, index):
    id = int(index.ids[0])
    assert float(id) != id and index.records([id]).files[0].endswith(EVIL)
    page.type("#code", index.get([id]).tobytes().hex() + ENTER)
    first = shown(page)
    assert first == right(index, index.get([id]))
    assert (0, EVIL) in first  # the name is text, not HTML
    which = [name for _, name in first].index(EVIL)
    asked = page.run(
        f"document.querySelectorAll('#grid button')[{which}].click();"
        "return document.querySelector('#status').textContent"
    )
    assert asked == "Searching …"
    page.wait("document.querySelector('#status').textContent.includes(' in ')")
    assert shown(page) == first
    assert page.run("return document.querySelector('#preview').src").endswith(f"/images/{id}/thumbnail")


def test_a_missing_file_has_a_place_in_the_grid(page, index):
    [gone] = [
        id for id, file in zip(index.ids.tolist(), index.records(index.ids).files) if file.endswith("0/2.png")
    ]
    page.type("#code", index.get([gone]).tobytes().hex() + ENTER)
    page.wait("document.querySelector('#grid span.picture')")
    assert (0, "2.png") in shown(page)


def test_errors_are_shown(page, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    page.type("#file", tmp_path / "text.png")
    page.wait("document.querySelector('#error').textContent.includes('a text file, not an image')")
    assert page.run("return document.querySelector('#status').textContent") == ""
    page.type("#code", "xyz" + ENTER)
    page.wait(
        "document.querySelector('#error').textContent.includes('5 hexadecimal') || "
        "document.querySelector('#error').textContent.includes('6 hexadecimal')"
    )
    page.messages()  # the browser notes both answers, 415 and 422


def test_the_keyboard_reaches_everything(page):
    """Tab by tab: the link, the file chooser, the options, the code, the button."""
    reached = []
    for _ in range(8):
        page.press([TAB])
        reached.append(page.run("return document.activeElement.id || document.activeElement.textContent"))
    assert reached == ["API", "file", "k", "radius", "label", "decoder", "code", "Search"]
    page.run("document.querySelector('#k').focus()")
    outline = "getComputedStyle(document.querySelector('#drop')).outlineStyle"
    assert page.run(f"return {outline}") == "none"
    page.run("document.querySelector('a').focus()")
    page.press([TAB])
    assert page.run(f"return {outline}") == "solid"
    unlabelled = (
        "return [...document.querySelectorAll('input, select')].filter(one => !one.labels.length).length"
    )
    assert page.run(unlabelled) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1000])
def test_colours_and_widths(page, index, scheme, width):
    page.tools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.tools(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    page.type("#code", index.get([index.ids[1]]).tobytes().hex() + ENTER)
    shown(page)
    keep(page, f"{scheme}-{width}")
    assert page.run("return document.documentElement.scrollWidth") <= width  # no scrolling sideways
    for selector in (
        "body",
        "header p",
        ".row label",
        "input#k",
        ".drop strong",
        ".card .name",
        ".small",
        ".go",
        "a",
    ):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2, level AA
    dark = luminance(page.run("return getComputedStyle(document.body).backgroundColor")) < 0.1
    assert dark == (scheme == "dark")


def luminance(colour):
    """The relative luminance of a CSS colour rgb(...), as WCAG 2 defines it."""
    values = np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(page, selector):
    """The contrast of an element's text with what is behind it."""
    ink, paper = page.run(
        """let one = document.querySelector(arguments[0]), ink = getComputedStyle(one).color;
        const paper = () => getComputedStyle(one).backgroundColor;
        while (paper() === "rgba(0, 0, 0, 0)" && one.parentElement) one = one.parentElement;
        return [ink, paper()];""",
        selector,
    )
    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_pages_load_nothing_from_elsewhere(page, server):
    for path, parts, count in (("", "#about:not(:empty)", 1), ("/docs", ".opblock", 7)):
        page.open(server.url + path)
        page.wait(f"document.querySelectorAll('{parts}').length === {count}")
        keep(page, path.strip("/") or "start")
        loaded = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert loaded and all(name.startswith((server.url, "data:")) for name in loaded), loaded


def test_the_documentation_page_can_ask(page, server, index):
    page.open(f"{server.url}/docs")
    page.wait("document.querySelectorAll('.opblock').length === 7")
    page.run("document.querySelector('[id$=stats_stats_get] button').click()")
    page.wait("document.querySelector('.try-out button')").keys()
    page.run("document.querySelector('.try-out button').click()")
    page.wait("document.querySelector('.execute')").keys()
    page.run("document.querySelector('.execute').click()")
    page.wait("document.querySelector('.live-responses-table .microlight')").keys()
    text = page.run("return document.querySelector('.live-responses-table .microlight').textContent")
    assert f'"num_codes": {len(index)}' in text


def test_a_server_without_images_has_a_page_for_codes(browser, index, folder, tmp_path):
    bare = Index(20)
    bare.add(index.get(index.ids), index.ids)
    bare.save(tmp_path / "bare.index")
    with serving(tmp_path / "bare.index", tmp_path) as server:
        browser.open(server.url)
        browser.wait("document.querySelector('#about').textContent !== ''")
        for id in ("drop", "classes-field", "decoder-field"):
            assert browser.run("return document.getElementById(arguments[0]).hidden", id)
        code = index.get([index.ids[3]])
        browser.type("#code", code.tobytes().hex() + ENTER)
        browser.wait("document.querySelectorAll('#grid li').length === 12")
        answer = server.search({"code": code.tobytes().hex()}, "k=12")
        assert pairs(answer) == expected(index, code, 12)
