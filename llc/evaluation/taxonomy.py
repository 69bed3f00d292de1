"""The taxonomy in class codes: their tree, and how their distances agree with confusion and with WordNet.

Everything here is a function of arrays. It needs scipy, which the extra `evaluation` installs; `python -m
llc.taxonomy` is the command.

C: classes. A class code is a packed code (llc.codes); distances are Hamming distances in bits.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from llc.arguments import class_labels, one_of, whole_number
from llc.codes import unpack_bits
from llc.hamming import pairwise
from llc.packages import needed

PURPOSE = "the taxonomy"  # what needs scipy and matplotlib
LINKAGES = ("average", "complete", "single")
# Up to so many classes the order of the leaves is the best one, which takes 7 s for 1,000 and grows with the
# cube of their number.
_MAX_ORDERED = 1500
_EQUAL = 1e-9  # heights of merges that differ by less are equal: averages of whole numbers, rounded


# ---------------------------------------------------------------------------------------- codes and distances


def class_distances(class_codes: np.ndarray) -> np.ndarray:
    """The distance of every class code from every other: uint8 [C, code_size] -> int32 [C, C].

    Raises ValueError unless these are packed codes of two classes or more.
    """
    found = pairwise(class_codes, class_codes)
    if len(found) < 2:
        raise ValueError(f"class_codes: expected those of 2 or more classes, got {len(found)}")
    return found


def nearest(distances: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The k classes nearest to each class, itself left out; of equally near ones the lowest comes first.

    distances [C, C] -> (distances [C, k], classes int64 [C, k]). Raises ValueError unless 1 <= k < C.
    """
    distances = _square("distances", distances)
    k = whole_number("k", k, 1, len(distances) - 1, "the number of other classes")
    order = np.argsort(distances, axis=1, kind="stable")
    others = order[order != np.arange(len(order))[:, None]].reshape(len(order), -1)[:, :k]
    return np.take_along_axis(distances, others, axis=1), others


# ------------------------------------------------------------------------------------------------- the tree


@dataclasses.dataclass(frozen=True)
class Node:
    """A class (a leaf, without children), or a merge of two or more nodes.

    distance: the height of the merge in bits, 0 for a leaf. children: their places in Tree.nodes. leaves: the
    number of classes below, 1 for a leaf.
    """

    distance: float
    children: tuple[int, ...]
    leaves: int


@dataclasses.dataclass(frozen=True)
class Tree:
    """A hierarchical clustering of classes.

    nodes: the C leaves in label order, then the merges, each after its children; the root is the last.
    order: the labels int64 [C] from the first leaf to the last as a picture shows them. merges: float64
    [C - 1, 4], as scipy.cluster.hierarchy.linkage returns them. cophenetic: float64 [C, C], the height at
    which two classes are merged.
    """

    nodes: tuple[Node, ...]
    order: np.ndarray
    merges: np.ndarray
    cophenetic: np.ndarray


def tree(class_codes: np.ndarray, linkage: str = "average") -> Tree:
    """The Tree of class codes by agglomerative clustering, from uint8 [C, code_size].

    linkage: the distance of two clusters is the mean ("average", also called UPGMA), the largest ("complete")
    or the smallest ("single") of the distances between their classes. Merges of one cluster at the same
    height are one node with several children, because codes of few bits tie often and the order of ties means
    nothing. Where ties leave a choice between different trees, scipy's rule decides, by the classes' order,
    so the same codes always give the same tree.

    The order of the leaves minimises the sum of distances between neighbours (Bar-Joseph et al., "Fast
    optimal leaf ordering for hierarchical clustering", Bioinformatics 17, 2001) up to 1,500 classes.
    Raises ValueError as `class_distances` does and for an unknown linkage, UserError without scipy.
    """
    one_of("linkage", linkage, LINKAGES)
    distances = class_distances(class_codes)
    hierarchy, spatial = (
        needed(module, PURPOSE, extra="evaluation")
        for module in ("scipy.cluster.hierarchy", "scipy.spatial.distance")
    )
    condensed = distances[np.triu_indices(len(distances), 1)].astype(np.float64)
    merges = hierarchy.linkage(condensed, linkage)
    cophenetic = spatial.squareform(hierarchy.cophenet(merges))
    if len(distances) <= _MAX_ORDERED:
        merges = hierarchy.optimal_leaf_ordering(merges, condensed)
    nodes = _nodes(merges)
    return Tree(nodes, _order(nodes), merges, cophenetic)


def _nodes(merges: np.ndarray) -> tuple[Node, ...]:
    """Nodes of scipy's merges of two, in which equal heights are joined."""
    num_classes = len(merges) + 1
    heights = [0.0] * num_classes
    children: list[list[int]] = [[] for _ in range(num_classes)]
    for left, right, height, _ in merges.tolist():
        below: list[int] = []
        for child in (int(left), int(right)):
            joined = children[child] and heights[child] >= height - _EQUAL
            below += children[child] if joined else [child]
        heights.append(height)
        children.append(below)
    used, todo = set(), [len(heights) - 1]
    while todo:
        node = todo.pop()
        used.add(node)
        todo += children[node]
    place = {old: new for new, old in enumerate(sorted(used))}
    nodes: list[Node] = []
    for old in sorted(used):
        own = tuple(place[child] for child in children[old])
        nodes.append(Node(heights[old], own, sum(nodes[child].leaves for child in own) or 1))
    return tuple(nodes)


def _order(nodes: Sequence[Node]) -> np.ndarray:
    leaves, todo = [], [len(nodes) - 1]
    while todo:
        place = todo.pop()
        if nodes[place].children:
            todo += reversed(nodes[place].children)
        else:
            leaves.append(place)
    return np.array(leaves, np.int64)


def newick(tree: Tree, names: Sequence[str]) -> str:
    """The tree as one line in the Newick format, with the classes' names in label order.

    A branch's length is half the difference of the heights at its ends, in bits, so the path between two
    classes is as long as the distance at which they are merged. A name of other characters than letters,
    digits, point, plus and minus is put between single quotes, and its own single quotes are doubled. Raises
    ValueError for another number of names.
    """
    _names(tree, names)
    above = _heights_above(tree)
    texts: list[str] = []
    for place, node in enumerate(tree.nodes):  # children come first; a recursion could be too deep
        text = f"({','.join(texts[child] for child in node.children)})" if node.children else ""
        label = "" if node.children else _newick_name(names[place])
        length = "" if place == len(tree.nodes) - 1 else f":{(above[place] - node.distance) / 2:.10g}"
        texts.append(f"{text}{label}{length}")
        for child in node.children:
            texts[child] = ""  # no longer needed
    return f"{texts[-1]};\n"


def _newick_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9.+-]+", name):
        return name
    quoted = name.replace("'", "''")
    return f"'{quoted}'"


def _heights_above(tree: Tree) -> list[float]:
    """The height of each node's parent; the root's own for the root."""
    above = [tree.nodes[-1].distance] * len(tree.nodes)
    for node in tree.nodes:
        for child in node.children:
            above[child] = node.distance
    return above


def tree_json(
    tree: Tree,
    names: Sequence[str],
    class_codes: np.ndarray,
    num_bits: int,
    words: Sequence[str] | None = None,
) -> str:
    """The tree as JSON text: nested objects, one line for each.

    A merge has distance (bits), leaves (the number of classes below) and children; a class has name, label,
    words (if they are given), code (text of 0 and 1, the first bit first), distance 0 and leaves 1. Raises
    ValueError for another number of names or codes.
    """
    _names(tree, names)
    codes = unpack_bits(class_codes, num_bits)
    _names(tree, codes)
    texts: list[str] = []
    for place, node in enumerate(tree.nodes):
        common = {"distance": round(node.distance, 9), "leaves": node.leaves}
        if node.children:
            below = ",\n".join(texts[child] for child in node.children)
            texts.append(f'{json.dumps(common)[:-1]}, "children": [\n{below}]}}')
        else:
            own: dict[str, Any] = {"name": names[place], "label": place}
            if words is not None:
                own["words"] = words[place]
            texts.append(json.dumps(own | {"code": "".join(map(str, codes[place].tolist()))} | common))
        for child in node.children:
            texts[child] = ""
    return f"{texts[-1]}\n"


def cophenetic_correlation(tree: Tree, distances: np.ndarray) -> "Correlation":
    """How faithful the tree is: Pearson's correlation of merge heights and distances, over pairs of classes.

    Sokal and Rohlf, "The comparison of dendrograms by objective methods", Taxon 11, 1962. It has no p-value.
    Undefined if all heights or all distances are equal.
    """
    pairs = np.triu_indices(len(distances), 1)
    heights, apart = tree.cophenetic[pairs], np.asarray(distances, np.float64)[pairs]
    for values, what in ((apart, "distances between class codes"), (heights, "heights of merges")):
        if np.ptp(values) < _EQUAL:
            return Correlation(None, None, len(apart), f"all {what} are equal")
    return Correlation(_pearson(heights, apart), None, len(apart))


# --------------------------------------------------------------------------------------------- correlations


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation over pairs of classes, and how probable one as strong is by chance.

    value: None where it is undefined, and then `undefined` says why. p_value: of a two-sided Mantel test;
    None without a test.
    """

    value: float | None
    p_value: float | None
    num_pairs: int
    undefined: str = ""


def rank_correlation(
    distances: np.ndarray, other: np.ndarray, *, permutations: int = 999, seed: int = 0, what: str = "other"
) -> Correlation:
    """Spearman's rank correlation of two symmetric matrices [C, C], over the pairs of different classes.

    Ties get the mean of their ranks. Pairs that share a class are not independent, so the p-value is that of
    a Mantel test: the classes of one matrix are permuted at random, `permutations` times, and p is the
    fraction of permutations, the real order counted as one, with a correlation as far from 0 as the real one
    (Mantel, "The detection of disease clustering and a generalized regression approach", Cancer Research 27,
    1967). No p is below 1 / (permutations + 1). permutations=0: no test.

    what: names the other matrix where the correlation is undefined because all of its values are equal.
    Raises ValueError unless both are square, of one size and symmetric.
    """
    permutations = whole_number("permutations", permutations, 0)
    distances, other = (_symmetric(n, m) for n, m in (("distances", distances), ("other", other)))
    if distances.shape != other.shape:
        raise ValueError(f"other: expected {len(distances)} classes as in distances, got {len(other)}")
    pairs = np.triu_indices(len(distances), 1)
    num_pairs = len(pairs[0])
    if num_pairs < 2:
        return Correlation(None, None, num_pairs, f"{num_pairs} pairs of classes are too few")
    for values, name in ((distances, "distances between class codes"), (other, what)):
        if np.ptp(values[pairs]) == 0:
            return Correlation(None, None, num_pairs, f"all {name} are equal")
    rankdata = needed("scipy.stats", PURPOSE, extra="evaluation").rankdata
    ranks = []
    for values in (distances, other):
        own = rankdata(values[pairs])
        own -= own.mean()
        square = np.zeros(values.shape)
        square[pairs] = own / np.linalg.norm(own)
        ranks.append(square + square.T)
    value = float(((ranks[0] * ranks[1]).sum() / 2).clip(-1, 1))
    if not permutations:
        return Correlation(value, None, num_pairs)
    rng, as_strong = np.random.default_rng(seed), 1
    for _ in range(permutations):
        order = rng.permutation(len(distances))
        found = np.vdot(ranks[0], ranks[1][np.ix_(order, order)]) / 2
        as_strong += abs(found) >= abs(value) - _EQUAL
    return Correlation(value, int(as_strong) / (permutations + 1), num_pairs)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class are decoded as each class: int64 [C, C], row the label.

    labels, predicted int64 [n], 0 to num_classes - 1. Raises ValueError for others.
    """
    num_classes = whole_number("num_classes", num_classes, 1)
    labels = class_labels("labels", labels, len(labels), num_classes)
    predicted = class_labels("predicted", predicted, len(labels), num_classes)
    pairs = labels * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def confusion_correlation(
    distances: np.ndarray, confusion: np.ndarray, *, permutations: int = 999, seed: int = 0
) -> Correlation:
    """`rank_correlation` of code distance and confusion; it is negative where near classes are confused more.

    confusion: counts [C, C], row the label, as of `confusion_matrix`. The confusion of two classes is the
    mean of two fractions: of the images of one that are decoded as the other, and the reverse. Classes
    without images are left out. Undefined without images, without confusions, and as `rank_correlation`.
    Raises ValueError as it does, and for negative counts.
    """
    distances, confusion = _symmetric("distances", distances), _square("confusion", confusion)
    if confusion.shape != distances.shape or (confusion < 0).any():
        raise ValueError(f"confusion: expected counts of {len(distances)} classes, got {confusion.shape}")
    present = np.flatnonzero(confusion.sum(1))
    if not len(present):
        return Correlation(None, None, 0, "there are no images with labels")
    block = np.ix_(present, present)
    fractions = confusion[block] / confusion[present].sum(1, keepdims=True)
    if not (fractions - np.diag(fractions.diagonal())).any():
        pairs = len(present) * (len(present) - 1) // 2
        return Correlation(None, None, pairs, "no image is decoded as another class that has images")
    return rank_correlation(
        distances[block],
        (fractions + fractions.T) / 2,
        permutations=permutations,
        seed=seed,
        what="confusions",
    )


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# --------------------------------------------------------------------------------------------- single bits


class Extremes:
    """The images with the highest and the lowest z of each bit, among all batches that were added.

    Memory: 4 x num_bits x count numbers, whatever the number of images. Equal values: the image that came
    first.

    highest, lowest: (z float32 [num_bits, m], positions int64 [num_bits, m]), the most extreme first; m is
    count, or the number of images if that is less.
    """

    def __init__(self, num_bits: int, count: int) -> None:
        self.count, self.num_images = whole_number("count", count, 1), 0
        empty = np.empty((num_bits, 0), np.float32), np.empty((num_bits, 0), np.int64)
        self.highest, self.lowest = empty, empty

    def add(self, z: np.ndarray) -> None:
        """Adds the z of the images that follow, float32 [b, num_bits]."""
        positions = np.broadcast_to(self.num_images + np.arange(len(z)), z.T.shape)
        self.highest = self._best(self.highest, z.T, positions, -1)
        self.lowest = self._best(self.lowest, z.T, positions, 1)
        self.num_images += len(z)

    def _best(
        self, known: tuple[np.ndarray, np.ndarray], z: np.ndarray, positions: np.ndarray, sign: int
    ) -> tuple[np.ndarray, np.ndarray]:
        values = np.concatenate([known[0], z], axis=1)
        order = np.argsort(sign * values, axis=1, kind="stable")[:, : self.count]
        places = np.concatenate([known[1], positions], axis=1)
        return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)


def best_groups(
    bits: np.ndarray, members: np.ndarray, *, permutations: int = 99, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """For each bit the group of classes that it tells apart best from the rest, such as the animals.

    bits 0/1 [C, num_bits], members bool [G, C] (llc.evaluation.wordnet.groups) -> (groups int64 [num_bits],
    phi float64 [num_bits], chance). phi is the correlation of bit and membership, 1 if exactly the group's
    classes have the bit, -1 if exactly all others have it, and 0 for a bit that is equal in all classes. The
    best of many groups fits any bit to some degree: chance is the mean |phi| of the best group after the
    classes were permuted at random.
    """
    bits, members = np.asarray(bits, np.float64), np.asarray(members, np.float64)
    if bits.ndim != 2 or members.ndim != 2 or not len(members) or members.shape[1] != len(bits):
        raise ValueError(f"members: expected [groups, {len(bits)}] with a group, got {list(members.shape)}")
    parts = []
    for values in (bits, members.T):
        values = values - values.mean(0)
        norms = np.linalg.norm(values, axis=0)
        parts.append(np.divide(values, norms, out=np.zeros_like(values), where=norms > _EQUAL))
    of_bits, of_groups = parts

    def phi_of(order: np.ndarray) -> np.ndarray:
        return of_groups[order].T @ of_bits

    phi, rng = phi_of(np.arange(len(bits))), np.random.default_rng(seed)
    best = np.abs(phi).round(9).argmax(0)  # rounded, so that the first of equal groups is taken everywhere
    by_chance = [np.abs(phi_of(rng.permutation(len(bits)))).max(0).mean() for _ in range(permutations)]
    of_best = phi[best, np.arange(bits.shape[1])].clip(-1, 1)
    return best, of_best, float(np.mean(by_chance)) if by_chance else 0.0


# --------------------------------------------------------------------------------------------------- checks


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once, each once, in order."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [name for name, count in seen.items() if count > 1]


def _names(tree: Tree, names: Sequence[Any] | np.ndarray) -> None:
    if len(names) != len(tree.order):
        raise ValueError(f"names: expected {len(tree.order)}, one for each class, got {len(names)}")


def _square(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.dtype.kind not in "iufb":
        raise ValueError(f"{name}: expected numbers [C, C], got {values.dtype} {list(values.shape)}")
    return values


def _symmetric(name: str, values: Any) -> np.ndarray:
    values = _square(name, values)
    if not np.array_equal(values, values.T):  # false for NaN, too
        raise ValueError(f"{name}: expected a symmetric matrix without NaN")
    return values
