"""The files and the summary of `python -m llc.taxonomy`, as texts and bytes; nothing is written here."""

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llc.codes import unpack_bits
from llc.data.sources import as_unicode, printable
from llc.evaluation import taxonomy, wordnet
from llc.evaluation.bit_images import Thumbnails, draw_bits
from llc.evaluation.dendrogram import draw
from llc.evaluation.taxonomy import Correlation, Extremes, Tree

_NEAREST = 5  # classes in nearest.csv
_PAIRS_SHOWN = 5  # pairs of classes in the summary
_WIDTH = 110  # columns of bits.txt


@dataclasses.dataclass(frozen=True)
class Found:
    """What the files are made of.

    title: the model, as it was named. class_codes uint8 [C, code_size]; names: the classes', in label order,
    all different. data: the images, as they were named. confusion: counts [C, C], or None without labelled
    images; no_confusion then says why. decoder: by which images were decoded. extremes: the images with the
    highest and lowest z, or None without real values, and thumbnails: small copies of them; name_of: an
    image's file by its position, if it has one.
    """

    title: str
    class_codes: np.ndarray
    num_bits: int
    names: list[str]
    data: str = ""
    num_images: int = 0
    confusion: np.ndarray | None = None
    no_confusion: str = "no images were given (--data)"
    decoder: str = ""
    extremes: Extremes | None = None
    thumbnails: Thumbnails | None = None
    name_of: Callable[[int], str] | None = None


def report(
    found: Found,
    hierarchy: wordnet.Hierarchy | None,
    no_hierarchy: str,
    *,
    linkage: str,
    permutations: int,
    seed: int,
) -> tuple[dict[str, str | bytes], str]:
    """({file name: content}, the summary for the screen).

    hierarchy: of the classes' names; if it is None, no_hierarchy says why. linkage, permutations, seed: see
    llc.evaluation.taxonomy. Raises wordnet.NoCommonHypernym.
    """
    names, shown = found.names, _shown(found.names, hierarchy)
    words = None if hierarchy is None else [hierarchy.words[name] for name in names]
    distances = taxonomy.class_distances(found.class_codes)
    tree = taxonomy.tree(found.class_codes, linkage)
    correlations = _correlations(found, tree, distances, hierarchy, no_hierarchy, permutations, seed)
    settings = {"linkage": linkage, "permutations": permutations, "seed": seed}
    figures = _figures(found, distances, correlations, settings)
    bits = _bits(found, tree, hierarchy, seed)
    size = f"{len(names):,} classes, {found.num_bits} bits"
    title = printable(as_unicode(found.title))
    svg, png = draw(tree, shown, f"{Path(title).name}: {size}, {linkage} linkage")
    near = taxonomy.nearest(distances, min(_NEAREST, len(names) - 1))
    contents: dict[str, str | bytes] = {
        "tree.nwk": taxonomy.newick(tree, shown),
        "tree.json": taxonomy.tree_json(tree, names, found.class_codes, found.num_bits, words),
        "dendrogram.svg": svg,
        "dendrogram.png": png,
        "nearest.csv": _nearest_csv(names, shown, words, *near),
        "bits.txt": _bits_text(found, tree, bits, shown),
        "bits.json": json.dumps(bits, indent=1) + "\n",
        "taxonomy.json": json.dumps(figures, indent=1) + "\n",
    }
    if found.extremes is not None and found.thumbnails is not None:
        contents["bits.png"] = draw_bits(found.extremes, found.thumbnails)
    return contents, _summary(f"{title}: {size}", found, distances, shown, correlations, settings)


def _shown(names: list[str], hierarchy: wordnet.Hierarchy | None) -> list[str]:
    """What pictures and texts call the classes, all different: the hierarchy's first word, or the name."""
    if hierarchy is None:
        return [printable(name) for name in names]
    return [printable(name) for name in wordnet.shown(names, [hierarchy.words[name] for name in names])]


# ----------------------------------------------------------------------------------------------- the figures


def _correlations(
    found: Found,
    tree: Tree,
    distances: np.ndarray,
    hierarchy: wordnet.Hierarchy | None,
    no_hierarchy: str,
    permutations: int,
    seed: int,
) -> dict[str, Correlation]:
    """{name: Correlation} of code distances with what they are compared with."""
    none = Correlation(None, None, 0, no_hierarchy)
    values = {
        "cophenetic": taxonomy.cophenetic_correlation(tree, distances),
        "confusion": Correlation(None, None, 0, found.no_confusion),
        "wordnet": none,
        "wordnet_wu_palmer": none,
    }
    if found.confusion is not None:
        values["confusion"] = taxonomy.confusion_correlation(
            distances, found.confusion, permutations=permutations, seed=seed
        )
    if hierarchy is not None:
        for name, other in zip(
            ("wordnet", "wordnet_wu_palmer"), wordnet.distances(hierarchy, found.names), strict=True
        ):
            values[name] = taxonomy.rank_correlation(
                distances, other, permutations=permutations, seed=seed, what="distances in the hierarchy"
            )
    return values


def _figures(
    found: Found, distances: np.ndarray, correlations: dict[str, Correlation], settings: dict[str, Any]
) -> dict[str, Any]:
    """What taxonomy.json holds. A figure that is undefined is null there, and "undefined" says why."""
    apart = distances[np.triu_indices(len(distances), 1)]
    figures: dict[str, Any] = {
        "num_classes": len(found.names),
        "num_bits": found.num_bits,
        "min_distance": int(apart.min()),
        "mean_distance": float(apart.mean()),
        "equal_pairs": int((apart == 0).sum()),
    }
    for name, correlation in correlations.items():
        figures[f"{name}_correlation"] = correlation.value
        if name != "cophenetic":
            figures[f"{name}_p_value"] = correlation.p_value
            figures[f"{name}_pairs"] = correlation.num_pairs
    figures["confusion_decoder"] = found.decoder or None
    figures["num_images"] = found.num_images
    figures["model"], figures["data"] = as_unicode(found.title), as_unicode(found.data) or None
    undefined = {f"{name}_correlation": c.undefined for name, c in correlations.items() if c.value is None}
    return {f"taxonomy.{key}": value for key, value in (figures | settings).items()} | {
        "undefined": {f"taxonomy.{key}": why for key, why in undefined.items()}
    }


def _summary(
    title: str,
    found: Found,
    distances: np.ndarray,
    shown: list[str],
    correlations: dict[str, Correlation],
    settings: dict[str, Any],
) -> str:
    rows, columns = np.triu_indices(len(distances), 1)
    apart = distances[rows, columns]
    lines = [title]
    equal = int((apart == 0).sum())
    lines.append(
        f"  class codes        {apart.min()} to {apart.max()} bits apart, {apart.mean():.2f} on average; "
        f"{equal:,} pairs of classes have the same code"
    )
    first = np.argsort(apart, kind="stable")[:_PAIRS_SHOWN]
    pairs = [f"{shown[rows[i]]} - {shown[columns[i]]} ({apart[i]})" for i in first]
    lines.append(f"  nearest            {'; '.join(pairs)}")
    titles = {
        "cophenetic": "tree",
        "confusion": "confusion",
        "wordnet": "WordNet, path",
        "wordnet_wu_palmer": "WordNet, Wu-Palmer",
    }
    details = {
        "cophenetic": f"cophenetic correlation, {settings['linkage']} linkage",
        "confusion": f"{found.num_images:,} images, {found.decoder}; negative if near classes are confused",
        "wordnet": "positive if classes with near codes are near in WordNet",
        "wordnet_wu_palmer": "as above",
    }
    for name, correlation in correlations.items():
        if correlation.value is None:
            text = f"undefined, because {correlation.undefined}"
        else:
            text = f"{correlation.value:.3f}"
            if correlation.p_value is not None:
                text += f", Mantel p = {correlation.p_value:.3g}"
            if name != "cophenetic":
                text += f", {correlation.num_pairs:,} pairs"
            text += f" ({details[name]})"
        lines.append(f"  {titles[name]:18s} {text}")
        if name == "wordnet" and correlation.value is None:
            break  # the same holds for the next
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- the files


def _nearest_csv(
    names: list[str], shown: list[str], words: list[str] | None, distances: np.ndarray, classes: np.ndarray
) -> str:
    """A line for each class: its label, name, words, and its nearest classes with their distances."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["label", "name"] + ([] if words is None else ["words"])
    for rank in range(1, classes.shape[1] + 1):
        head += [f"nearest_{rank}", f"distance_{rank}"]
    writer.writerow(head)
    for label, name in enumerate(names):
        row: list[Any] = [label, name] + ([] if words is None else [words[label]])
        for other, distance in zip(classes[label].tolist(), distances[label].tolist()):
            row += [shown[other], distance]
        writer.writerow(row)
    return text.getvalue()


def _bits(found: Found, tree: Tree, hierarchy: wordnet.Hierarchy | None, seed: int) -> list[dict[str, Any]]:
    """What bits.json holds: an object for each bit. Classes are in the order of the tree's leaves."""
    sides = unpack_bits(found.class_codes, found.num_bits)
    order = tree.order.tolist()
    bits: list[dict[str, Any]] = [
        {
            "bit": bit,
            "num_ones": int(ones.sum()),
            "balance": float(ones.mean()),
            "ones": [found.names[label] for label in order if ones[label]],
            "zeros": [found.names[label] for label in order if not ones[label]],
        }
        for bit, ones in enumerate(sides.T)
    ]
    if hierarchy is not None:
        for own, group in zip(bits, _groups(found, sides, hierarchy, seed)):
            own["group"] = group
    if found.extremes is not None:
        for side, (z, places) in (("highest", found.extremes.highest), ("lowest", found.extremes.lowest)):
            for own, values, images in zip(bits, z.tolist(), places.tolist()):
                own[side] = [_image(found, i) | {"z": value} for i, value in zip(images, values)]
    return bits


def _image(found: Found, i: int) -> dict[str, Any]:
    return {"image": i} if found.name_of is None else {"image": i, "file": found.name_of(i)}


def _groups(
    found: Found, sides: np.ndarray, hierarchy: wordnet.Hierarchy, seed: int
) -> Iterable[dict[str, Any]]:
    """The hierarchy's entry that each bit tells apart best; none if no entry divides the classes."""
    entries, members = wordnet.groups(hierarchy, found.names)
    if not entries:
        return
    groups, phi, chance = taxonomy.best_groups(sides, members, seed=seed)
    for bit, (group, value) in enumerate(zip(groups.tolist(), phi.tolist())):
        inside, ones = members[group], sides[:, bit] == 1
        yield {
            "name": entries[group],
            "words": hierarchy.words[entries[group]],
            "phi": value,
            "phi_by_chance": chance,
            "classes": int(inside.sum()),
            "ones": int((ones & inside).sum()),
            "ones_outside": int((ones & ~inside).sum()),
        }


def _bits_text(found: Found, tree: Tree, bits: list[dict[str, Any]], shown: list[str]) -> str:
    """bits.txt: what bits.json holds, in words."""
    sides, order, num_classes = unpack_bits(found.class_codes, found.num_bits), tree.order, len(shown)
    title, data = printable(as_unicode(found.title)), printable(as_unicode(found.data))
    lines = [
        f"The {found.num_bits} bits of {title}, from bit 0, the first. Classes are in the order of the tree, "
        "so that similar ones are near each other."
    ]
    if found.extremes is not None:
        of = "position, from 0" if found.name_of is None else "file"
        lines.append(f"z: the network's value, whose sign is the bit; images by {of}, of {data}.")
    for own in bits:
        ones = sides[order, own["bit"]] == 1
        count = f"{own['num_ones']} of {num_classes} classes ({own['balance']:.0%})"
        lines += ["", f"bit {own['bit']}: 1 for {count}"]
        if group := own.get("group"):
            outside = num_classes - group["classes"]
            lines.append(
                f"  best group: {group['words'] or group['name']} ({group['name']}), 1 for {group['ones']} "
                f"of its {group['classes']} classes, for {group['ones_outside']} of the other {outside}; "
                f"phi {group['phi']:.2f}, by chance {group['phi_by_chance']:.2f}"
            )
        for bit, chosen, side in ((1, ones, "highest"), (0, ~ones, "lowest")):
            lines.append(f"  {bit}: {', '.join(shown[label] for label in order[chosen]) or 'no class'}")
            if side in own:
                images = (f"{image.get('file', image['image'])} ({image['z']:.3g})" for image in own[side])
                lines.append(f"    {side} z: {printable(', '.join(images))}")
    return "\n".join(_wrapped(lines)) + "\n"


def _wrapped(lines: Sequence[str]) -> Iterable[str]:
    """Lines of at most _WIDTH columns where names allow it; the rest of a line is indented further."""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2) if line.startswith(" ") else ""
        yield from textwrap.wrap(
            line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
