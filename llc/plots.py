"""Pictures by matplotlib in one style: as SVG for a page, whose colours follow its theme, or as a file.

    figure = charts.lines({"train": (epochs, losses)}, "epoch", "loss")
    page = plots.svg(figure, prefix="loss", title="Loss")
    plots.save(figure, "loss.png", "--plot")

llc.charts draws the usual ones. They are drawn in INK, FAINT and SERIES, the colours of a file. `svg`
replaces them by currentColor and by the page's variables --faint and --series-1 to --series-6. The same data
give the same bytes. It needs matplotlib, which the extra `report` installs.
"""

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from llc.data.sources import printable
from llc.errors import UserError
from llc.files import atomic_write
from llc.packages import needed

INK, FAINT = "#1b1f24", "#57606a"
SERIES = ("#0b62c4", "#b8500a", "#17803d", "#8250df", "#bf3989", "#1b7c83")
WIDTH, HEIGHT = 5.2, 2.9  # inches
FORMATS = (".png", ".svg", ".pdf")
FONT_SIZE = 9  # points
PURPOSE = "a picture of figures"  # what needs matplotlib
_MARK = "llc.plots"  # within each file, by which a newer picture knows an older one
_CSS = {INK: "currentColor", FAINT: "var(--faint)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text, which can be searched for and read aloud
    "svg.hashsalt": "llc",  # ids by contents, not by chance
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": FONT_SIZE,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.03,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.2,
}


@contextlib.contextmanager
def style() -> Iterator[Any]:
    """Within it, matplotlib draws and writes in our style. Gives matplotlib, or raises UserError without."""
    matplotlib = needed("matplotlib", PURPOSE, extra="report")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box in a PNG; an SVG is complete
        yield matplotlib


def new(width: float = WIDTH, height: float = HEIGHT, layout: str | None = "constrained") -> Any:
    """An empty matplotlib Figure, in inches. Call it, and draw on it, within style()."""
    figures = needed("matplotlib.figure", PURPOSE, extra="report")
    figure = figures.Figure((width, height), layout=layout)
    needed("matplotlib.backends.backend_agg", PURPOSE, extra="report").FigureCanvasAgg(figure)
    return figure


# --------------------------------------------------------------------------------------------------- writing


def encoded(figure: Any, kind: str, **settings: Any) -> bytes:
    """The figure as a file's bytes: png, svg or pdf. settings: as of matplotlib's savefig."""
    metadata = {
        "png": {"Software": _MARK},
        "svg": {"Date": None, "Creator": _MARK},
        "pdf": {"CreationDate": None, "Creator": _MARK},
    }
    out = io.BytesIO()
    with style():
        figure.savefig(out, **{"format": kind, "metadata": metadata[kind], **settings})
    return out.getvalue()


def check_name(path: str, flag: str) -> None:
    """Raises UserError if no picture can be written at `path`, given by `flag`. For use before long work.

    The name must end as one of FORMATS does. A file that is there is overwritten only if it is a picture of
    ours. An empty path, the default of such flags, is no picture.
    """
    if not path:
        return
    named = f"{flag}={printable(path)}"
    if os.path.splitext(path)[1].lower() not in FORMATS:
        raise UserError(f"{named}: expected a name that ends in {', '.join(FORMATS)}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UserError(f"{named}: there is no folder {printable(folder)}; make it first")
    if os.path.lexists(path) and not _is_ours(path):
        raise UserError(f"{named}: it exists and is not a picture of llc, so it is kept; name another file")
    needed("matplotlib", flag, extra="report")


def _is_ours(path):
    try:
        with open(path, "rb") as file:
            return _MARK.encode() in file.read()
    except OSError:
        return False


def save(figure: Any, path: str, flag: str) -> None:
    """Writes a figure to `path`, given by `flag`, whole or not at all. Raises what check_name raises."""
    check_name(path, flag)
    data = encoded(figure, os.path.splitext(path)[1].lower()[1:], dpi=150)
    atomic_write(path, lambda file: file.write(data))


def svg(figure: Any, prefix: str, title: str, alt: str = "") -> str:
    """The figure as an <svg> element for a page of HTML, as wide as its place there.

    prefix begins all ids in it, so it must differ between the figures of a page. title and alt are what a
    screen reader says. The background is transparent.
    """
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    root = ElementTree.fromstring(encoded(figure, "svg", metadata=nothing, transparent=True))
    used = {
        found
        for element in root.iter()
        for value in element.attrib.values()
        for found in re.findall(r"^#(.+)$|^url\(#(.+)\)$", value)
    }
    made = _for_page(root, prefix, {one or other for one, other in used})
    labels = []
    for place, (tag, text) in enumerate((("title", title), ("desc", alt))):
        if text:
            labels.append(f"{prefix}-{tag}")
            element = ElementTree.Element(tag, id=labels[-1])
            element.text = printable(text)
            made.insert(place, element)
    made.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": " ".join(labels),
        "style": "stroke-linejoin:round",  # in place of matplotlib's <style>, which would reach all of a page
    }
    return ElementTree.tostring(made, encoding="unicode")


def _for_page(element, prefix, used):
    """A copy of an element and all in it, without namespaces, style sheets, and ids that nothing uses."""
    made = ElementTree.Element(element.tag.rpartition("}")[2])
    made.text = element.text if element.text and element.text.strip() else None
    for name, value in element.attrib.items():
        name = name.rpartition("}")[2]
        if name == "id":
            if value not in used:
                continue
            value = f"{prefix}-{value}"
        elif name in ("d", "transform", "x", "y", "points", "width", "height"):
            value = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)
            value = re.sub(r"\s+", " ", value).strip()
        elif name == "href" or value.startswith("url(#"):
            value = value.replace("#", f"#{prefix}-")
        else:
            value = re.sub(r"'DejaVu Sans'", "sans-serif", value)
            value = re.sub(r"#[0-9a-f]{6}", lambda colour: _CSS.get(colour[0], colour[0]), value)
            value = re.sub(r"([:;]) ", r"\1", value)
        if value != "rotate(-0)" and not (name == "transform" and value.startswith("rotate(-0 ")):
            made.set(name, value)
    for child in element:
        copy = _for_page(child, prefix, used)
        if copy.tag == "g" and not copy.attrib:
            made.extend(copy)
        elif copy.tag not in ("style", "metadata") and (len(copy) or copy.tag != "defs"):
            made.append(copy)
    return made
