"""Trees, correlations and WordNet's distances against slow and obvious computations, and cases by hand."""

import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from llc.codebook import majority_codes
from llc.errors import UserError
from llc.evaluation import taxonomy, wordnet
from llc.evaluation.dendrogram import draw
from llc.evaluation.taxonomy import Extremes
from tests.conftest import ROOT


def packed(texts):
    """Packed codes from texts of 0 and 1."""
    return np.packbits([[int(bit) for bit in text] for text in texts], axis=1)


def random_codes(n, num_bits, seed):
    return np.packbits(np.random.default_rng(seed).integers(0, 2, (n, num_bits)), axis=1)


def as_ints(codes):
    return [int.from_bytes(row.tobytes(), "big") for row in codes]


# two near pairs: a-b differ in 1 bit, c-d in 2; between the pairs 4, 6, 5 and 7 bits
FOUR = packed(["00000000", "00000001", "11110000", "11111100"])


# ---------------------------------------------------------------------------------------- codes and distances


@given(n=st.integers(2, 20), num_bits=st.integers(1, 70), seed=st.integers(0, 99))
def test_distances_and_nearest_equal_bit_counts(n, num_bits, seed):
    codes = random_codes(n, num_bits, seed)
    expected = [[(a ^ b).bit_count() for b in as_ints(codes)] for a in as_ints(codes)]
    distances = taxonomy.class_distances(codes)
    assert distances.tolist() == expected
    k = min(5, n - 1)
    near, classes = taxonomy.nearest(distances, k)
    for i in range(n):
        wanted = sorted((expected[i][j], j) for j in range(n) if j != i)[:k]
        assert list(zip(near[i].tolist(), classes[i].tolist())) == wanted


@given(num_classes=st.integers(1, 5), num_bits=st.integers(1, 19), seed=st.integers(0, 99))
def test_majority_codes_count_bits(num_classes, num_bits, seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, 12)])
    bits = rng.integers(0, 2, (len(labels), num_bits))
    found = majority_codes(np.packbits(bits, axis=1), labels, num_classes, num_bits)
    assert found.shape == (num_classes, -(-num_bits // 8))
    for label in range(num_classes):
        for bit in range(num_bits):
            votes = Counter(bits[labels == label, bit].tolist())
            assert np.unpackbits(found[label])[bit] == (votes[1] > votes[0])


def test_a_tied_majority_is_0():
    codes = packed(["10", "01", "11", "11"])
    assert majority_codes(codes, np.array([0, 0, 1, 1]), 2, 2).tolist() == [[0], [0b11000000]]


# ------------------------------------------------------------------------------------------------- the tree


@pytest.mark.parametrize(("linkage", "root"), [("average", 5.5), ("complete", 7), ("single", 4)])
def test_a_tree_by_hand(linkage, root):
    found = taxonomy.tree(FOUR, linkage)
    assert [(node.distance, node.leaves) for node in found.nodes[4:]] == [(1, 2), (2, 2), (root, 4)]
    assert found.cophenetic.tolist() == [
        [0, 1, root, root],
        [1, 0, root, root],
        [root, root, 0, 2],
        [root, root, 2, 0],
    ]
    # a and c, the nearest of different pairs, are neighbours
    assert found.order.tolist() in ([1, 0, 2, 3], [3, 2, 0, 1])
    text = taxonomy.newick(found, ["a", "b's", "c, d", "d"])
    first, second = f"('b''s':0.5,a:0.5):{root / 2 - 0.5:g}", f"('c, d':1,d:1):{root / 2 - 1:g}"
    backwards = f"(d:1,'c, d':1):{root / 2 - 1:g},(a:0.5,'b''s':0.5):{root / 2 - 0.5:g}"
    assert text in (f"({first},{second});\n", f"({backwards});\n")


def test_merges_at_one_height_are_one_node():
    """Five codes, each 2 bits from the others, and one that two classes share."""
    codes = packed(["10000", "01000", "00100", "00010", "00001", "00001"])
    for linkage in taxonomy.LINKAGES:
        found = taxonomy.tree(codes, linkage)
        assert [(node.distance, len(node.children)) for node in found.nodes[6:]] == [(0, 2), (2, 5)]


def slow_clustering(distances, linkage):
    """Cophenetic distances, by merging the nearest two clusters again and again; None if any two tie."""
    n = len(distances)
    clusters, cophenetic = [[i] for i in range(n)], [[Fraction(0)] * n for _ in range(n)]
    while len(clusters) > 1:
        heights = []
        for a, b in itertools.combinations(range(len(clusters)), 2):
            apart = [distances[i][j] for i in clusters[a] for j in clusters[b]]
            mean = Fraction(sum(apart), len(apart))
            heights.append(({"average": mean, "complete": max(apart), "single": min(apart)}[linkage], a, b))
        heights.sort()
        if len(heights) > 1 and heights[0][0] == heights[1][0]:
            return None
        height, a, b = heights[0]
        for i in clusters[a]:
            for j in clusters[b]:
                cophenetic[i][j] = cophenetic[j][i] = Fraction(height)
        clusters[a] += clusters.pop(b)
    return [[float(height) for height in row] for row in cophenetic]


@settings(max_examples=50)
@given(n=st.integers(2, 7), seed=st.integers(0, 999), linkage=st.sampled_from(taxonomy.LINKAGES))
def test_the_tree_equals_slow_clustering_where_nothing_ties(n, seed, linkage):
    codes = random_codes(n, 500, seed)
    expected = slow_clustering(taxonomy.class_distances(codes).tolist(), linkage)
    assume(expected is not None)
    assert np.allclose(taxonomy.tree(codes, linkage).cophenetic, expected, rtol=0, atol=1e-9)


@settings(max_examples=50)
@given(n=st.integers(2, 12), num_bits=st.integers(1, 12), seed=st.integers(0, 999))
def test_single_linkage_is_the_smallest_largest_step_also_with_ties(n, num_bits, seed):
    codes = random_codes(n, num_bits, seed)
    reach = taxonomy.class_distances(codes).tolist()
    for middle, i, j in itertools.product(range(n), repeat=3):  # Floyd and Warshall's algorithm
        reach[i][j] = min(reach[i][j], max(reach[i][middle], reach[middle][j]))
    assert taxonomy.tree(codes, "single").cophenetic.tolist() == reach


NAMES = ("cat", "it's", "a b", "x,y", "(z)", "p:q;[r]", "", "ä\u4e2d", "under_score", "'", "1.5e+3", "\\")


def parse_newick(text):
    """(name, length, children) of a tree in Newick, nested."""
    place = 0

    def node():
        nonlocal place
        children = []
        if text[place] == "(":
            while text[place] in "(,":
                place += 1
                children.append(node())
            assert text[place] == ")"
            place += 1
        quoted = re.compile(r"'((?:[^']|'')*)'").match(text, place)
        plain = re.compile(r"[^\s()\[\]':;,]*").match(text, place)
        name = quoted[1].replace("''", "'") if quoted else plain[0]
        place = (quoted or plain).end()
        length = re.compile(r":([0-9.e-]+)").match(text, place)
        place = length.end() if length else place
        return name, float(length[1]) if length else 0.0, children

    root = node()
    assert text[place:] == ";\n"
    return root


@settings(max_examples=60)
@given(
    num_bits=st.integers(1, 30), seed=st.integers(0, 999), names=st.permutations(NAMES), n=st.integers(2, 12)
)
def test_newick_and_json_hold_the_tree(num_bits, seed, names, n):
    codes, names = random_codes(n, num_bits, seed), names[:n]
    found = taxonomy.tree(codes)
    paths = {}

    def leaves(node):
        """{name: its path's length up to this node}; fills paths."""
        name, _, children = node
        below = {} if children else {name: 0.0}
        for child in children:
            own = {leaf: length + child[1] for leaf, length in leaves(child).items()}
            for a, b in itertools.product(below, own):
                paths[frozenset((a, b))] = below[a] + own[b]
            below |= own
        return below

    assert list(leaves(parse_newick(taxonomy.newick(found, names)))) == [names[i] for i in found.order]
    for i, j in itertools.combinations(range(n), 2):
        assert math.isclose(paths[frozenset((names[i], names[j]))], found.cophenetic[i, j], abs_tol=1e-6)

    bits = np.unpackbits(codes, axis=1)[:, :num_bits]
    seen = []

    def check(node, above):
        if "children" in node:
            assert len(node["children"]) >= 2 and node["distance"] < above
            found_leaves = [leaf for child in node["children"] for leaf in check(child, node["distance"])]
            assert node["leaves"] == len(found_leaves)
            for i, j in itertools.combinations(found_leaves, 2):
                assert found.cophenetic[i, j] <= node["distance"] + 1e-6
            return found_leaves
        label = node["label"]
        assert node["name"] == names[label] and node["words"] == str(label)
        assert node["code"] == "".join(map(str, bits[label])) and node["leaves"] == 1
        seen.append(label)
        return [label]

    text = taxonomy.tree_json(found, names, codes, num_bits, list(map(str, range(n))))
    check(json.loads(text), math.inf)
    assert seen == found.order.tolist()


def test_a_tree_as_deep_as_it_is_large():
    """A chain: each class is farther from the rest than the one before, by more each time."""
    n = 60
    rows = np.zeros((n, 2000), np.uint8)
    for i in range(1, n):
        rows[i, i * (i - 1) // 2 : i * (i + 1) // 2] = 1
    found = taxonomy.tree(np.packbits(rows, axis=1), "single")
    assert len(found.nodes) == 2 * n - 1
    assert taxonomy.newick(found, [f"c{i}" for i in range(n)]).count("(") == n - 1
    assert sorted(found.order.tolist()) == list(range(n))


def test_the_same_codes_give_the_same_tree_and_picture():
    codes, names = random_codes(30, 6, 0), [f"class {i}" for i in range(30)]  # 6 bits: many ties
    first, second = taxonomy.tree(codes), taxonomy.tree(codes.copy())
    assert taxonomy.newick(first, names) == taxonomy.newick(second, names)
    assert draw(first, names, "title") == draw(second, names, "title")


def test_the_picture_holds_the_names():
    names = ["it's", "a, b", "<&>", "$x^2$", "ä", "\u4e2d", "x" * 90]
    svg, png = draw(taxonomy.tree(random_codes(7, 20, 1)), names, "a <title>")
    root = ElementTree.fromstring(svg)
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {*names, "a <title>"} <= texts
    assert png.startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------------- correlations


def square(values, n):
    """A symmetric matrix from the values above its diagonal."""
    found = np.zeros((n, n))
    found[np.triu_indices(n, 1)] = values
    return found + found.T


def test_spearman_by_hand():
    """Ranks 1 2 3 4 5 6 and 2 1 4 3 6 5: 1 - 6 * 6 / (6 * 35)."""
    a, b = square([10, 20, 30, 40, 50, 60], 4), square([2, 1, 4, 3, 600, 5], 4)
    found = taxonomy.rank_correlation(a, b, permutations=0)
    assert math.isclose(found.value, 1 - 36 / 210) and found.num_pairs == 6 and found.p_value is None


@given(n=st.integers(3, 9), seed=st.integers(0, 99))
def test_the_rank_correlation_is_scipys(n, seed):
    rng = np.random.default_rng(seed)
    size = n * (n - 1) // 2
    a, b = rng.integers(0, 6, size), rng.integers(0, 4, size)  # with ties
    assume(len({*a}) > 1 and len({*b}) > 1)
    found = taxonomy.rank_correlation(square(a, n), square(b, n), permutations=9)
    assert math.isclose(found.value, stats.spearmanr(a, b).statistic, abs_tol=1e-12)
    assert found.p_value in [count / 10 for count in range(1, 11)]


def test_the_mantel_p_value_is_that_of_all_orders():
    rng = np.random.default_rng(3)
    a = square(rng.normal(size=15), 6)
    b = a + square(1.5 * rng.normal(size=15), 6)
    pairs = np.triu_indices(6, 1)

    def correlation(order):
        return stats.spearmanr(a[pairs], b[np.ix_(order, order)][pairs]).statistic

    real = abs(correlation(range(6)))
    all_orders = [list(order) for order in itertools.permutations(range(6))]
    exact = np.mean([abs(correlation(order)) >= real - 1e-9 for order in all_orders])
    assert 0.02 < exact < 0.5
    found = taxonomy.rank_correlation(a, b, permutations=4000, seed=1)
    # 5 standard deviations of a fraction of 4,000 draws
    assert abs(found.p_value - exact) < 5 * (exact * (1 - exact) / 4000) ** 0.5
    assert found == taxonomy.rank_correlation(a, b, permutations=4000, seed=1)


def test_a_strong_correlation_has_the_smallest_p_value():
    distances = taxonomy.class_distances(random_codes(12, 40, 0))
    found = taxonomy.rank_correlation(distances, -distances, permutations=199)
    assert math.isclose(found.value, -1) and found.p_value == 1 / 200


DISTANCES = np.array([[0, 1, 2, 9], [1, 0, 3, 9], [2, 3, 0, 9], [9, 9, 9, 0]])


def test_confusion_by_hand():
    """Confusions 0-1: (0.2 + 0) / 2, 0-2: (0 + 0.1) / 2, 1-2: 0; class 3 has no images."""
    confusion = np.array([[8, 2, 0, 0], [0, 10, 0, 0], [2, 0, 17, 1], [0, 0, 0, 0]])
    found = taxonomy.confusion_correlation(DISTANCES, confusion)
    assert math.isclose(found.value, -1) and found.num_pairs == 3 and not found.undefined
    # with absolute numbers instead of fractions 0-1 and 0-2 would tie
    labels, predicted = zip(*[(i, j) for i in range(4) for j in range(4) for _ in range(confusion[i, j])])
    assert (taxonomy.confusion_matrix(np.array(labels), np.array(predicted), 4) == confusion).all()


@pytest.mark.parametrize(
    ("distances", "confusion", "why"),
    [
        (DISTANCES, np.zeros((4, 4), int), "no images"),
        (DISTANCES, np.diag([3, 1, 2, 5]), "no image is decoded as another class"),
        (DISTANCES, np.array([[3, 0, 0, 2], [0, 1, 0, 1], [0, 0, 1, 1], [0] * 4]), "no image is decoded as"),
        (DISTANCES, np.array([[3, 1, 0, 0], [1, 2, 0, 0], [0] * 4, [0] * 4]), "1 pairs .* too few"),
        (1 - np.eye(4), np.array([[1, 1, 0, 0], *3 * [[0, 0, 1, 1]]]), "all distances between class codes"),
        (DISTANCES, np.ones((4, 4), int), "all confusions are equal"),
    ],
)
def test_an_undefined_correlation_says_why(distances, confusion, why):
    found = taxonomy.confusion_correlation(distances, confusion)
    assert found.value is None and found.p_value is None and re.search(why, found.undefined)


def test_the_cophenetic_correlation():
    found = taxonomy.cophenetic_correlation(taxonomy.tree(FOUR), taxonomy.class_distances(FOUR))
    expected = stats.pearsonr([1, 5.5, 5.5, 5.5, 5.5, 2], [1, 4, 6, 5, 7, 2]).statistic
    assert math.isclose(found.value, expected)
    equal = packed(["100", "010", "001"])
    found = taxonomy.cophenetic_correlation(taxonomy.tree(equal), taxonomy.class_distances(equal))
    assert found.value is None and "equal" in found.undefined


# ----------------------------------------------------------------------------------------------- single bits


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_extremes_are_those_of_a_sort(sizes, count, seed):
    rng = np.random.default_rng(seed)
    z = rng.integers(-4, 5, (sum(sizes), 3)).astype(np.float32)  # with ties
    extremes = Extremes(3, count)
    for part in np.split(z, np.cumsum(sizes)[:-1]):
        extremes.add(part)
    for bit in range(3):
        for sign, (values, places) in ((-1, extremes.highest), (1, extremes.lowest)):
            expected = sorted(range(len(z)), key=lambda i: (sign * z[i, bit], i))[:count]
            assert places[bit].tolist() == expected and (values[bit] == z[expected, bit]).all()


def test_the_group_that_a_bit_tells_apart():
    members = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]], bool)
    bits = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]])
    groups, phi, chance = taxonomy.best_groups(bits, members)
    assert groups[:2].tolist() == [0, 1] and np.allclose(phi, [1, 1, 0])
    assert 0.2 < chance < 0.8
    assert np.allclose(taxonomy.best_groups(1 - bits, members)[1], [-1, -1, 0])


# --------------------------------------------------------------------------------------------------- WordNet

ANIMALS = """# a comment
thing\t\tthing, object

animal\tthing\tanimal
pet\tthing\tpet
cat\tanimal\t cat, true cat
tabby\tcat,pet\ttabby
dog\tanimal, pet\tdog
table\tthing
"""


@pytest.fixture
def animals(tmp_path):
    path = tmp_path / "animals.txt"
    path.write_text(ANIMALS)
    return wordnet.read(path)


def test_distances_in_a_small_hierarchy(animals):
    names = ["tabby", "dog", "table"]
    steps, dissimilarity = wordnet.distances(animals, names)
    # tabby - pet - dog; tabby - pet - thing - table; dog - animal (or pet) - thing - table
    assert steps.tolist() == [[0, 2, 3], [2, 0, 3], [3, 3, 0]]
    # of depth 2 (pet): 4 / (4 + 2); of depth 1 (thing): 2 / (2 + 3)
    third, of_root = 1 - 4 / 6, 1 - 2 / 5
    expected = [[0, third, of_root], [third, 0, of_root], [of_root, of_root, 0]]
    assert np.allclose(dissimilarity, expected)
    assert animals.ancestors("tabby") == {"tabby": 0, "cat": 1, "pet": 1, "animal": 2, "thing": 2}
    assert [animals.depth(name) for name in ("thing", "animal", "tabby")] == [1, 2, 3]
    assert wordnet.shown(["cat", "table"], [animals.words[name] for name in ("cat", "table")]) == [
        "cat",
        "table",
    ]
    assert animals.missing(["cat", "cow"]) == ["cow"]


def test_groups_are_the_entries_that_divide_the_classes(animals):
    entries, members = wordnet.groups(animals, ["tabby", "dog", "table"])
    # animal and pet have the same members, the same depth, and a comes before p; cat has one member
    assert entries == ["animal"] and members.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("cat\n", "line 1.*expected a name, a TAB"),
        ("cat\t\tcat\textra\n", "line 1.*expected a name"),
        ("\tanimal\tcat\n", "line 1"),
        ("animal\t\ncat\tanimal\ncat\t\n", "line 3: cat has a line already"),
        ("cat\tanimal\n", "cat has the hypernym animal, which has no line"),
        ("a\tb\nb\tc\nc\ta\nroot\t\n", "lead back"),
        (b"caf\xe9\t\n", "UTF-8"),
    ],
)
def test_a_bad_hierarchy_is_named(tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"bad.txt.*{message}"):
        wordnet.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        wordnet.read(tmp_path / "nothing.txt")


def test_two_roots_have_no_distance(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text("a\t\nb\t\nc\ta\nd\tb\n")
    with pytest.raises(wordnet.NoCommonHypernym, match="'c' and 'd'"):
        wordnet.distances(wordnet.read(path), ["c", "d"])
    with pytest.raises(ValueError, match="'x'"):
        wordnet.distances(wordnet.read(path), ["c", "x"])


def test_the_hierarchy_of_imagenet():
    hierarchy = wordnet.read()
    above = {hypernym for of_entry in hierarchy.hypernyms.values() for hypernym in of_entry}
    classes = sorted(set(hierarchy.hypernyms) - above)
    assert len(classes) == 1000 and all(map(wordnet.is_wordnet_id, hierarchy.hypernyms))
    assert [name for name, of_entry in hierarchy.hypernyms.items() if not of_entry] == ["n00001740"]
    tench, goldfish, tabby, persian = "n01440764", "n01443537", "n02123045", "n02123394"
    assert [wordnet.word(name) for name in (tench, goldfish, tabby, persian)] == [
        "tench",
        "goldfish",
        "tabby",
        "Persian cat",
    ]
    steps, dissimilarity = wordnet.distances(hierarchy, [tench, goldfish, tabby, persian])
    # both fishes are cyprinids, both cats domestic cats
    assert steps[0, 1] == steps[2, 3] == 2 and steps[0, 2] > 8
    assert 0 < dissimilarity[0, 1] < dissimilarity[0, 2] < 1


def test_what_classes_are_called():
    """By the data's own words, else by WordNet's; two of ImageNet's classes are cranes."""
    assert wordnet.with_word("n01440764") == "n01440764 tench"
    assert wordnet.with_word("n01440764", "a fish, of a lake") == "n01440764 a fish"
    assert [wordnet.with_word(name) for name in ("tench", "n00000000", "")] == ["tench", "n00000000", ""]
    assert wordnet.with_word("cat", "cat, true cat") == "cat"
    names = ["n02012849", "n03126707", "n01440764", "n00000000", "mine"]
    cranes = ["crane (n02012849)", "crane (n03126707)"]
    assert wordnet.shown(names) == [*cranes, "tench", "n00000000", "mine"]
    assert wordnet.shown(names[2:], ["", "", "tench"]) == ["tench (n01440764)", "n00000000", "tench (mine)"]
    assert wordnet.shown([]) == []


def test_wordnets_notice_is_in_the_file_and_beside_the_licence():
    head = [line[2:] for line in wordnet.IMAGENET.read_text().splitlines() if line.startswith("#")]
    licence = (ROOT / "licenses/wordnet.txt").read_text()
    notice = licence[licence.index("This software and database") :].strip()
    assert notice in "\n".join(head) and "WordNet 3.0 Copyright 2006 by Princeton University" in notice


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: taxonomy.class_distances(FOUR[:1]), "2 or more classes, got 1"),
        (lambda: taxonomy.class_distances(FOUR.astype(int)), "class_codes|queries"),
        (lambda: taxonomy.tree(FOUR, "ward"), "linkage: expected one of average"),
        (lambda: taxonomy.tree(FOUR[:1]), "2 or more classes"),
        (lambda: taxonomy.newick(taxonomy.tree(FOUR), ["a"]), "names: expected 4.*got 1"),
        (lambda: draw(taxonomy.tree(FOUR), ["a"], ""), "names: expected 4.*got 1"),
        (lambda: taxonomy.nearest(DISTANCES, 4), "k: expected 1 to 3"),
        (lambda: majority_codes(FOUR, np.array([0, 0, 0, 2]), 3, 8), "class 1 has no image"),
        (lambda: majority_codes(FOUR, np.array([0, -1, 1, 1]), 2, 8), "0 to 1, found -1 to 1"),
        (lambda: majority_codes(FOUR, np.array([0, 1, 2, 1]), 2, 8), "0 to 1, found 0 to 2"),
        (lambda: majority_codes(FOUR, np.array([0, 1]), 2, 8), "labels: expected 4 integers"),
        (lambda: majority_codes(FOUR, np.array([0, 1, 1, 1]), 2, 9), "9 bits"),
        (lambda: taxonomy.rank_correlation(DISTANCES, DISTANCES[:3, :3]), "4 classes"),
        (lambda: taxonomy.rank_correlation(DISTANCES, np.triu(DISTANCES)), "symmetric"),
        (lambda: taxonomy.rank_correlation(DISTANCES, DISTANCES * np.nan), "NaN"),
        (lambda: taxonomy.rank_correlation(DISTANCES, DISTANCES, permutations=-1), "permutations"),
        (lambda: taxonomy.confusion_correlation(DISTANCES, -np.eye(4)), "counts of 4 classes"),
        (
            lambda: taxonomy.confusion_matrix(np.array([0]), np.array([4]), 4),
            "predicted: expected 0 to 3, found 4",
        ),
        (lambda: taxonomy.best_groups(np.zeros((4, 2)), np.zeros((3, 5), bool)), "members"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
