"""A tree of classes (llc.evaluation.taxonomy) as a picture: a file, or for a page. It needs matplotlib."""

from collections.abc import Sequence
from typing import Any

from llc import plots
from llc.evaluation.taxonomy import PURPOSE, Tree
from llc.packages import needed

_ROW = 0.15  # inches for each class, which fits the font
_FONT_SIZE = 7.5  # points
_LETTER = 0.068  # inches that a letter of this size takes, or less
_TREE_WIDTH, _MARGIN, _HEAD = 7.0, 0.25, 0.75  # inches
_MAX_LETTERS = 200  # a longer name is cut
# On a page, which may be as narrow as a phone; its figures have a heading of their own.
_PAGE_TREE_WIDTH, _PAGE_HEAD, _PAGE_MAX_LETTERS = 3.4, 0.5, 30
_CUT = 0.7  # of the root's distance, below which a subtree has a colour of its own
_DPI, _MAX_PIXELS = 110, 30_000  # of the PNG; many programs read no picture higher than 32,767 pixels


def draw(tree: Tree, names: Sequence[str], title: str) -> tuple[bytes, bytes]:
    """Draws a tree, from the root at the left to the classes at the right: (SVG, PNG).

    names: in label order. The height grows with the number of classes. In the SVG names are text, which can
    be searched for. A PNG of more than some 1,800 classes has fewer pixels for each of them than reading them
    takes; the SVG has no such limit. Subtrees whose classes are merged below 0.7 times the root's height have
    a colour of their own. Raises ValueError for another number of names, UserError without matplotlib.
    """
    figure = _figure(tree, names, title, _TREE_WIDTH, _HEAD, _MAX_LETTERS)
    dpi = min(_DPI, _MAX_PIXELS / max(figure.get_size_inches()))
    return plots.encoded(figure, "svg"), plots.encoded(figure, "png", dpi=dpi)


def inline(tree: Tree, names: Sequence[str]) -> Any:
    """The same as a figure for llc.plots.svg: narrower, without a title, and long names are cut."""
    return _figure(tree, names, "", _PAGE_TREE_WIDTH, _PAGE_HEAD, _PAGE_MAX_LETTERS)


def _figure(tree, names, title, tree_width, head, max_letters):
    if len(names) != len(tree.order):
        raise ValueError(f"names: expected {len(tree.order)}, one for each class, got {len(names)}")
    needed("matplotlib", PURPOSE, extra="evaluation")
    with plots.style() as matplotlib:
        shown = [name if len(name) <= max_letters else f"{name[: max_letters - 1]}…" for name in names]
        rows = len(names) * _ROW
        label_width = max(map(len, shown)) * _LETTER + 0.1
        width, height = _MARGIN + tree_width + label_width + _MARGIN, rows + head + _MARGIN
        figure = plots.new(width, height, layout=None)
        axes = figure.add_axes((_MARGIN / width, _MARGIN / height, tree_width / width, rows / height))
        for colour, points in _paths(*_lines(tree)).items():
            axes.plot(*zip(*points), color=colour, linewidth=0.9, solid_capstyle="butt")
        top = max(tree.nodes[-1].distance, 1.0)
        axes.set(xlim=(1.02 * top, -0.01 * top), ylim=(len(names) - 0.5, -0.5), yticks=[])
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
        axes.set_xlabel("distance at which classes are merged, bits", fontsize=_FONT_SIZE)
        axes.tick_params(labelsize=_FONT_SIZE, top=True)
        for side in ("left", "right", "bottom"):
            axes.spines[side].set_visible(False)
        axes.spines["top"].set_visible(True)
        beside = -0.02 * top  # in the units of x, which runs to the left
        for row, label in enumerate(tree.order.tolist()):
            axes.text(beside, row, shown[label], va="center", fontsize=_FONT_SIZE, parse_math=False)
        figure.text(
            _MARGIN / width, 1 - 0.08 / height, title, va="top", fontsize=9, weight="bold", parse_math=False
        )
    return figure


def groups(tree: Tree) -> list[int]:
    """The subtrees that have a colour of their own, as numbers of nodes, from the top of the picture down.

    They are the largest whose classes are merged below 0.7 times the root's distance. Neighbours differ in
    colour; of more than 6, every sixth has the same one.
    """
    place = {label: row for row, label in enumerate(tree.order.tolist())}
    cut = _CUT * tree.nodes[-1].distance
    first: list[int] = []  # row of each node
    for number, node in enumerate(tree.nodes):
        first.append(min(first[child] for child in node.children) if node.children else place[number])
    found = {
        child
        for node in tree.nodes
        if node.distance > cut
        for child in node.children
        if tree.nodes[child].children and tree.nodes[child].distance <= cut
    }
    return sorted(found, key=lambda number: first[number])


def _paths(lines, colours):
    """{colour: the points of all its lines, with NaNs between them}: a path each, as a short SVG needs."""
    paths: dict[str, list[tuple[float, float]]] = {}
    for line, colour in zip(lines, colours):
        paths.setdefault(colour, []).extend([*line, (float("nan"), float("nan"))])
    return paths


def _lines(tree: Tree) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """Lines of the picture, as lists of points (distance, row), and their colours."""
    place = {label: row for row, label in enumerate(tree.order.tolist())}
    cut = _CUT * tree.nodes[-1].distance
    colour = [plots.FAINT] * len(tree.nodes)
    for place_of_group, number in enumerate(groups(tree)):
        colour[number] = plots.SERIES[place_of_group % len(plots.SERIES)]
    for number in range(len(tree.nodes) - 1, -1, -1):  # parents first
        node = tree.nodes[number]
        if node.distance <= cut:
            for child in node.children:
                colour[child] = colour[number]
    rows: list[float] = []
    lines, colours = [], []
    for number, node in enumerate(tree.nodes):
        if not node.children:
            rows.append(place[number])
            continue
        own = [rows[child] for child in node.children]
        rows.append((min(own) + max(own)) / 2)
        lines.append([(node.distance, min(own)), (node.distance, max(own))])
        colours.append(colour[number])
        for child, row in zip(node.children, own):
            lines.append([(tree.nodes[child].distance, row), (node.distance, row)])
            colours.append(colour[child] if node.distance > cut else colour[number])
    return lines, colours
