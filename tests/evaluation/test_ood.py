"""Scores of OOD detection against slow references, measures against pairs and all thresholds; bad input."""

import contextlib
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from llc.codes import pack_bits, unpack_bits
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation import ood
from llc.evaluation.predict import encode_all, encode_images, predict
from llc.hamming import PosteriorDecoder
from llc.network import Network
from tests.conftest import ROOT

BUILT_IN = ["exact", "mhd", "density", "posterior", "softmax", "energy"]
OF_CODES = BUILT_IN[:4]
NUM_BITS, NUM_CLASSES = 10, 6


def small_network():
    torch.manual_seed(0)
    network = Network("resnet18", NUM_BITS, NUM_CLASSES, width=4, logit_scale=0.7)
    torch.nn.init.normal_(network.codebook)
    return network.eval()


def bits_of(values):
    return (np.asarray(values) > 0).astype(int).tolist()


def fitted(network, n=70):
    """(posterior decoder, bits of the train images, their labels): codes near their class's."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, NUM_CLASSES, n)
    bits = np.array(bits_of(network.codebook.detach()))[labels] ^ (rng.random((n, NUM_BITS)) < 0.2)
    codes, of_classes = np.packbits(bits, axis=1), pack_bits(network.codebook.detach()).numpy()
    decoder = PosteriorDecoder.fit(codes, labels, NUM_BITS, NUM_CLASSES, class_codes=of_classes)
    return decoder, bits.tolist(), labels.tolist()


def distance(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_each_score_equals_a_slow_reference():
    network = small_network()
    decoder, train, labels = fitted(network)
    z = torch.randn(40, NUM_BITS, generator=torch.Generator().manual_seed(5))
    z[:20] = network.codebook.detach()[torch.arange(20) % NUM_CLASSES] * torch.rand(20, 1)
    class_bits, q = bits_of(network.codebook.detach()), decoder.flip_probability
    weight = int(decoder.arrays["class_weight"])
    expected = {name: [] for name in BUILT_IN}
    for row in z.tolist():
        bits = bits_of(row)
        distances = [distance(bits, of_class) for of_class in class_bits]
        expected["exact"].append(float(bits in class_bits))
        expected["mhd"].append(-min(distances))
        # A train code d bits away becomes this code with probability q^d (1 - q)^(num_bits - d).
        joint = [weight * q**d * (1 - q) ** (NUM_BITS - d) for d in distances]
        for code, label in zip(train, labels):
            d = distance(bits, code)
            joint[label] += q**d * (1 - q) ** (NUM_BITS - d)
        expected["density"].append(math.log(sum(joint) / (len(train) + weight * NUM_CLASSES)))
        expected["posterior"].append(max(joint) / sum(joint))
        logits = [
            0.7 * sum(value * (1 if bit else -1) for value, bit in zip(row, of_class))
            for of_class in class_bits
        ]
        total = sum(map(math.exp, logits))
        expected["softmax"].append(max(map(math.exp, logits)) / total)
        expected["energy"].append(math.log(total))

    learnt = {"posterior": decoder}
    with torch.no_grad():
        found = {name: ood.bind(name, network, learnt)(z) for name in ood.usable(learnt)}
    assert list(found) == list(expected)
    assert len(set(expected["exact"])) == 2 and len(set(expected["mhd"])) > 2
    for name, values in expected.items():
        assert found[name].dtype == torch.float64
        # float32 products and tables
        assert found[name].tolist() == pytest.approx(values, rel=2e-5, abs=2e-5), name
    for kind in (lambda codes: codes, lambda codes: codes.numpy()):
        class_codes = kind(pack_bits(network.codebook.detach()))
        of_codes = ood.from_codes(kind(pack_bits(z)), class_codes, decoder)
        assert list(of_codes) == OF_CODES
        for name, values in of_codes.items():
            assert values.dtype in (np.float64, torch.float64)
            assert values.tolist() == found[name].tolist(), name


def test_what_the_scores_read_and_need():
    reading_codes = [name for name, score in ood.SCORES.items() if isinstance(score, ood.CodeScore)]
    assert list(ood.SCORES) == BUILT_IN and reading_codes == OF_CODES
    assert ood.usable({}) == ["exact", "mhd", "softmax", "energy"]
    assert [name for name, score in ood.SCORES.items() if score.is_rule] == ["exact"]
    network = small_network()
    class_codes = pack_bits(network.codebook.detach()).numpy()
    assert list(ood.from_codes(class_codes, class_codes)) == ["exact", "mhd"]
    assert list(ood.from_codes(class_codes, None, fitted(network)[0])) == ["density", "posterior"]
    assert ood.from_codes(class_codes, None) == {}
    assert {len(values) for values in ood.from_codes(class_codes[:0], class_codes).values()} == {0}
    with pytest.raises(ValueError, match="the code sizes differ"):
        ood.from_codes(class_codes, class_codes[:, :1])
    with pytest.raises(ValueError, match="this decoder is for 10 bits"):
        ood.from_codes(class_codes[:, :1], None, fitted(network)[0])


# --------------------------------------------------------------------------------------------- over a loader


def batches_of(images, labels, size=4):
    return list(zip(images.split(size), labels.split(size)))


def pictures(n):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("flip", [False, True])
def test_scores_and_codes_of_a_loader_are_those_of_its_images(flip):
    network, images = small_network(), pictures(11)
    labels = torch.tensor([3, -1, 0, 5, -1, 2, 2, 1, 4, 0, -1])
    decoder = fitted(network)[0]
    with torch.no_grad():
        z = network(images)
        z = (z + network(images.flip(3))) / 2 if flip else z
        expected = {name: ood.bind(name, network, {"posterior": decoder})(z) for name in BUILT_IN}
    batches, how = batches_of(images, labels), {"flip": flip, "autocast": contextlib.nullcontext}
    found, num_broken = ood.scores(network, batches, Processes(), learnt={"posterior": decoder}, **how)
    assert num_broken == 0 and list(found) == BUILT_IN
    for name, values in expected.items():
        assert found[name].dtype == np.float64
        # the batches are smaller here, so float32 sums may be in another order
        assert found[name].tolist() == pytest.approx(values.tolist(), rel=1e-4, abs=1e-5), name
    assert list(ood.scores(network, batches, Processes(), **how)[0]) == ood.usable({})

    codes, of_images, num_broken = encode_images(network, batches, Processes(), **how)
    assert (codes.dtype, of_images.dtype, num_broken) == (np.uint8, np.int64, 0)
    assert (codes == pack_bits(z).numpy()).all() and len(np.unique(codes, axis=0)) > 1
    assert of_images.tolist() == labels.tolist()
    codes, of_images = encode_all(network, batches, Processes(), **how)
    assert (codes == pack_bits(z).numpy()[labels >= 0]).all()
    assert of_images.tolist() == labels[labels >= 0].tolist()


def test_images_whose_z_is_nan_or_infinite_are_counted():
    network, images, labels = small_network(), pictures(9), torch.arange(9)

    def spoil(module, arguments, z):  # in batches of 4: the first image of each, and the last of the second
        z = z.clone()
        z[0, 3] = float("nan")
        if (arguments[0][-1] == images[7]).all():
            z[-1, 0] = float("inf")
        return z

    network.register_forward_hook(spoil)
    batches, how = batches_of(images, labels), {"flip": False, "autocast": contextlib.nullcontext}
    found, num_broken = ood.scores(network, batches, Processes(), **how)
    assert num_broken == 4 and {len(values) for values in found.values()} == {9}
    codes, of_images, num_broken = encode_images(network, batches, Processes(), **how)
    assert num_broken == 4 and codes.shape == (9, 2) and of_images.tolist() == list(range(9))
    assert encode_all(network, batches, Processes(), **how)[1].tolist() == [1, 2, 3, 5, 6]
    found = predict(network, batches, Processes(), num_classes=NUM_CLASSES, **how)[""]
    assert found.num_non_finite.dtype == torch.int64 and int(found.num_non_finite) == 4


def test_a_loader_without_images():
    how = {"flip": True, "autocast": contextlib.nullcontext}
    found, num_broken = ood.scores(small_network(), [], Processes(), **how)
    assert num_broken == 0 and {values.shape for values in found.values()} == {(0,)}
    codes, labels, num_broken = encode_images(small_network(), [], Processes(), **how)
    assert codes.shape == (0, 2) and labels.shape == (0,) and num_broken == 0
    assert encode_all(small_network(), [], Processes(), **how)[0].shape == (0, 2)


TWO_PROCESSES = '''
"""Scores and codes on two processes, compared with those that each process computes alone."""

import contextlib
import os

import torch

from llc.distributed import Processes
from llc.evaluation import ood
from llc.evaluation.predict import encode_all, encode_images
from tests.evaluation.test_ood import fitted, pictures, small_network

processes = Processes.start(2, backend="gloo")
network = small_network()
with torch.no_grad():
    network.projection.weight[0, 0] += 1e-3  # any change; the network is the same on both processes
learnt = {"posterior": fitted(network)[0]}


def spoil(module, arguments, z):  # the images whose first pixel is 7
    return z.where(arguments[0][:, 0, 0, 0, None] != 7, torch.nan)


network.register_forward_hook(spoil)
how = {"flip": False, "autocast": contextlib.nullcontext}
for n in (9, 1):  # with one image, a process has none
    images, labels = pictures(n), torch.arange(n) - 2
    images[:, 0, 0, 0] = torch.tensor([7 if i in (2, 5) else 8 for i in range(n)])
    # images one by one, because sums over larger batches may round differently
    all_batches = list(zip(images.split(1), labels.split(1)))
    own = all_batches[processes.rank :: processes.world_size]
    alone = Processes()
    scores, num_broken = ood.scores(network, own, processes, learnt=learnt, **how)
    expected, expected_broken = ood.scores(network, all_batches, alone, learnt=learnt, **how)
    assert num_broken == expected_broken == (2 if n > 1 else 0)
    assert list(scores) == list(expected)
    for name, values in expected.items():
        assert values.shape == scores[name].shape == (n,)
        assert (values.tobytes() == scores[name].tobytes()), name
    assert n == 1 or len(set(expected["energy"].tolist())) > n // 2
    codes, of_images, num_broken = encode_images(network, own, processes, **how)
    expected_codes, _, _ = encode_images(network, all_batches, alone, **how)
    assert (codes == expected_codes).all() and codes.shape == (n, 2)
    assert of_images.tolist() == labels.tolist() and num_broken == expected_broken
    # encode_all takes images that are divided in any way
    cut = 2 if n > 1 else 0
    own = all_batches[:cut] if processes.rank == 0 else all_batches[cut:]
    codes, of_images = encode_all(network, own, processes, **how)
    expected_codes, expected_labels = encode_all(network, all_batches, alone, **how)
    assert (codes == expected_codes).all() and of_images.tolist() == expected_labels.tolist()
    # in one piece: print would write the end of the line by itself, behind what the other process writes
    os.write(1, f"{n} images: equal, {len(codes)} labelled\\n".encode())
processes.stop()
'''


def test_two_processes_equal_one(run_llc, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    lines = run_llc(script, processes=2).stdout.splitlines()
    assert sorted(lines) == sorted(2 * ["9 images: equal, 5 labelled", "1 images: equal, 0 labelled"])


# ----------------------------------------------------------------------------------------------- registration


@pytest.fixture
def table():
    """The table of scores, restored afterwards."""
    before = dict(ood.SCORES)
    yield ood.SCORES
    ood.SCORES.clear()
    ood.SCORES.update(before)


def test_a_registered_score_appears_everywhere(table):
    @ood.register
    class NumOnes(ood.CodeScore):
        name, title = "num_ones", "bits that are 1"

        def of_codes(self, codes, class_codes, posterior):
            return unpack_bits(codes, 8 * codes.shape[1]).sum(1)

    @ood.register
    class Norm(ood.Score):
        name, title = "norm", "norm of z"

        def bind(self, network, learnt):
            return lambda z: z.norm(dim=1)

    network = small_network()
    z = torch.tensor([[1.0] * 3 + [-1.0] * 7, [2.0] * 10])
    assert ood.bind("num_ones", network)(z).tolist() == [3, 10]
    assert ood.bind("norm", network)(z).tolist() == pytest.approx([10**0.5, 40**0.5])
    assert ood.from_codes(pack_bits(z).numpy(), None, None) == {}
    class_codes = pack_bits(network.codebook.detach()).numpy()
    assert ood.from_codes(pack_bits(z).numpy(), class_codes)["num_ones"].tolist() == [3, 10]
    batches, how = (
        batches_of(pictures(6), torch.arange(6)),
        {"flip": False, "autocast": contextlib.nullcontext},
    )
    found, _ = ood.scores(network, batches, Processes(), **how)
    assert list(found) == ["exact", "mhd", "softmax", "energy", "num_ones", "norm"]
    measures = ood.evaluate(found, {name: values - 1 for name, values in found.items()})
    assert measures["auroc.norm"] > 0.5 and "f1.num_ones" in measures and "f1_all.norm" not in measures


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"name": "mhd"}, "'mhd' is registered already, as NearestCode"),
        ({"name": "a.b"}, r"expected letters, digits and _, as in auroc\.NAME"),
        ({}, "the class has no name"),
    ],
)
def test_a_score_that_cannot_be_registered(attributes, message, table):
    with pytest.raises(ValueError, match=message):
        ood.register(type("Own", (ood.Score,), {"title": "own", **attributes}))
    assert list(table) == BUILT_IN


def test_scores_of_a_wrong_shape_are_an_error(table):
    own = type(
        "Own", (ood.CodeScore,), {"name": "own", "title": "own", "of_codes": lambda self, codes, *_: codes}
    )
    ood.register(own)
    with pytest.raises(ValueError, match=r"score 'own': expected scores \[3\], got \[3, 2\]"):
        ood.bind("own", small_network())(torch.zeros(3, NUM_BITS))
    with pytest.raises(ValueError, match=r"score 'own': expected scores \[3\], got \[3, 1\]"):
        ood.from_codes(np.zeros((3, 1), np.uint8), np.zeros((2, 1), np.uint8))


# --------------------------------------------------------------------------------------------------- measures


def area(points):
    """The area under straight lines between points (x, y), of which the x ascend."""
    return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in zip(points, points[1:]))


def slow_aupr(positive, negative):
    """Precision over recall, where high scores are positive: (0, 1), then a point per distinct score."""
    points = [(0.0, 1.0)]
    for threshold in sorted({*positive, *negative}, reverse=True):
        found = sum(score >= threshold for score in positive)
        wrong = sum(score >= threshold for score in negative)
        points.append((found / len(positive), found / (found + wrong)))
    return area(points)


def slow_detection(scores_in, scores_out):
    pairs = [(a > b) + (a == b) / 2 for a in scores_in for b in scores_out]
    fpr95 = min(
        sum(score < threshold for score in scores_in) / len(scores_in)
        for threshold in [*scores_in, *scores_out, math.inf]
        # in whole numbers, where 0.95 has no rounding
        if 100 * sum(score < threshold for score in scores_out) >= 95 * len(scores_out)
    )
    negated_in, negated_out = [-score for score in scores_in], [-score for score in scores_out]
    return {
        "auroc": sum(pairs) / len(pairs),
        "aupr_in": slow_aupr(scores_in, scores_out),
        "aupr_out": slow_aupr(negated_out, negated_in),
        "fpr95": fpr95,
    }


# few different numbers, so that ties are common, and up to 40 images, so that 95 % is not all of them
some_scores = st.lists(st.integers(-6, 6).map(lambda value: value / 4), min_size=1, max_size=40)


@settings(max_examples=40)
@given(some_scores, some_scores)
def test_detection_equals_slow_references(scores_in, scores_out):
    found = ood.detection(scores_in, scores_out)
    assert found == pytest.approx(slow_detection(scores_in, scores_out), abs=1e-12)
    is_in = [1] * len(scores_in) + [0] * len(scores_out)
    assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(is_in, scores_in + scores_out))


@settings(max_examples=40)
@given(some_scores, some_scores, st.sampled_from([math.exp, lambda s: s**3 - 100, lambda s: 1e6 * s]))
def test_only_the_order_of_the_scores_counts(scores_in, scores_out, increasing):
    mapped = [np.array([increasing(score) for score in side]) for side in (scores_in, scores_out)]
    assert ood.detection(*mapped) == ood.detection(scores_in, scores_out)


@settings(max_examples=40)
@given(some_scores, some_scores)
def test_swapping_the_sides_mirrors_auroc(scores_in, scores_out):
    found, swapped = ood.detection(scores_in, scores_out), ood.detection(scores_out, scores_in)
    assert found["auroc"] + swapped["auroc"] == pytest.approx(1, abs=1e-12)
    # With the sides swapped and the order reversed, each side has the other's role.
    mirrored = ood.detection([-score for score in scores_out], [-score for score in scores_in])
    assert mirrored["auroc"] == pytest.approx(found["auroc"], abs=1e-12)
    assert (mirrored["aupr_in"], mirrored["aupr_out"]) == pytest.approx((found["aupr_out"], found["aupr_in"]))


def test_detection_by_hand():
    # From the highest: in, out, in, then a tie of both.
    found = ood.detection([4, 2, 1], [3, 1])
    assert found["auroc"] == pytest.approx((2 + 1 + 0.5) / 6)
    # points (recall, precision): (0, 1), (1/3, 1), (1/3, 1/2), (2/3, 2/3), (1, 3/5)
    assert found["aupr_in"] == pytest.approx(1 / 3 + (1 / 2 + 2 / 3) / 6 + (2 / 3 + 3 / 5) / 6)
    # OOD positive: (0, 1), (1/2, 1/2), (1/2, 1/3), (1, 1/2), (1, 2/5)
    assert found["aupr_out"] == pytest.approx((1 + 1 / 2) / 4 + (1 / 3 + 1 / 2) / 4)
    # Both OOD images are rejected with a threshold above 3, and with them 2 of 3 others.
    assert found["fpr95"] == pytest.approx(2 / 3)
    assert ood.detection([2, 3], [0, 1]) == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95": 0}
    # As a docstring says: a constant score.
    constant = {"auroc": 0.5, "aupr_in": (1 + 0.75) / 2, "aupr_out": (1 + 0.25) / 2, "fpr95": 1}
    assert ood.detection([5] * 30, [5] * 10) == constant


# (in, out, {measure: value}): the values are those of OpenOOD's auc_and_fpr_recall(conf, label, 0.95),
# openood/evaluators/metrics.py at commit 3c35632.
OPENOOD = [
    (
        [-3, -2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4],
        [-5, -4, -4, -3, -3, -3, -2, -2, -2, -2, -1, -1, -1, 0, 0, 2, -6, -6, -7, -4, -5, -1],
        {
            "auroc": 0.8647727272727272,
            "aupr_in": 0.8542034313725491,
            "aupr_out": 0.8894905217331688,
            "fpr95": 0.55,
        },
    ),
    (
        [0.91, 0.4, 0.77, 0.77, 0.35, 0.62, 0.99, 0.99, 0.1],
        [0.3, 0.62, 0.1, 0.05, 0.35, 0.2, 0.77, 0.5],
        {
            "auroc": 0.7847222222222222,
            "aupr_in": 0.8398478835978836,
            "aupr_out": 0.746881764069264,
            "fpr95": 0.6666666666666666,
        },
    ),
]


@pytest.mark.parametrize("scores_in, scores_out, expected", OPENOOD)
def test_detection_has_openoods_values(scores_in, scores_out, expected):
    assert ood.detection(scores_in, scores_out) == pytest.approx(expected, abs=1e-12)


def test_fpr95_counts_every_threshold():
    """OpenOOD, which leaves out points of the ROC curve on a straight line, has fpr95 = 1 here."""
    found = ood.detection(range(40), range(40))
    assert found["fpr95"] == 38 / 40
    # and the rest as OpenOOD
    rest = {"auroc": 0.5, "aupr_in": 0.5062500000000001, "aupr_out": 0.5062500000000001}
    assert {name: found[name] for name in rest} == pytest.approx(rest, abs=1e-12)


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.lists(st.booleans(), min_size=1, max_size=12))
def test_decide_equals_sklearn(accepted_in, accepted_out):
    truth = [0] * len(accepted_in) + [1] * len(accepted_out)
    rejected = [not accepted for accepted in accepted_in + accepted_out]
    values = sklearn_metrics.precision_recall_fscore_support(
        truth, rejected, average="binary", zero_division=0
    )
    found = ood.decide(accepted_in, accepted_out)
    assert list(found.values()) == pytest.approx(values[:3]) and list(found) == ["precision", "recall", "f1"]


def test_decide_by_hand():
    # 3 rejected, of which 2 OOD; 4 OOD images
    found = ood.decide([True, False, True], [False, True, False, True])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7})
    assert ood.decide([True], [True]) == {"precision": 0, "recall": 0, "f1": 0}


@settings(max_examples=40)
@given(some_scores, some_scores)
def test_thresholds_equal_those_found_by_trying_all(scores_in, scores_out):
    def f1(threshold):
        accepted = [[score >= threshold for score in side] for side in (scores_in, scores_out)]
        return ood.decide(*accepted)["f1"]

    occurring = sorted({*scores_in, *scores_out})
    best = max(map(f1, [*occurring, math.inf]))
    found = ood.best_threshold(scores_in, scores_out)
    assert f1(found) == best and all(f1(lower) < best for lower in occurring if lower < found)
    assert found in occurring or occurring[-1] < found < occurring[-1] + 1e-9
    keeping = [
        threshold
        for threshold in scores_in
        if 100 * sum(score >= threshold for score in scores_in) >= 95 * len(scores_in)
    ]
    assert ood.keeping_threshold(scores_in) == max(keeping)


# --------------------------------------------------------------------------------------------------- evaluate


def drawn_scores(n, shift, seed):
    rng = np.random.default_rng(seed)
    graded = rng.normal(shift, 1, n).round(1)
    return {"exact": (graded > 0.5).astype(float), "own": graded, "mhd": graded.round()}


def test_evaluate_measures_on_images_that_tuned_nothing():
    """Two images of each kind: one tunes, the other is measured; by the seed all four choices occur."""
    inside, outside = {"own": [10.0, 1.0]}, {"own": [0.0, 5.0]}
    # tuned on (in, out) -> the lowest accepted score, f1 on the other two
    expected = {
        (10.0, 0.0): (10.0, ood.decide([False], [False])["f1"]),  # 1 and 5 are rejected
        (10.0, 5.0): (10.0, ood.decide([False], [False])["f1"]),  # 1 and 0 are rejected
        (1.0, 0.0): (1.0, ood.decide([True], [True])["f1"]),  # 10 and 5 are accepted
        (1.0, 5.0): (np.nextafter(5.0, 6), ood.decide([True], [False])["f1"]),  # rejecting both was best
    }
    seen = set()
    for seed in range(40):
        measures = ood.evaluate(inside, outside, seed=seed)
        assert measures == ood.evaluate(inside, outside, seed=seed) and measures["num_tuning"] == 2
        drawn = [
            np.array(side["own"])[ood._draw(2, 1, [seed, place])][0]
            for place, side in enumerate((inside, outside))
        ]
        seen.add(tuple(drawn))
        threshold, f1 = expected[tuple(drawn)]
        assert (measures["threshold.own"], measures["f1.own"]) == (threshold, f1)
        assert measures["threshold_keep95.own"] == drawn[0]
    assert seen == set(expected)


def test_evaluate_gives_all_measures():
    inside, outside = drawn_scores(400, 2, 1), drawn_scores(300, 0, 2)
    measures = ood.evaluate(inside, outside, num_tuning=101, seed=3)
    drawn = [ood._draw(n, 50, [3, place]) for place, n in enumerate((400, 300))]
    assert measures.pop("num_tuning") == 100 and [chosen.sum() for chosen in drawn] == [50, 50]
    expected = {}
    for name in inside:
        expected |= {f"{key}.{name}": v for key, v in ood.detection(inside[name], outside[name]).items()}
        if name == "exact":
            cases = {"": (0.5, True), "_all": (0.5, False)}
        else:
            tuning = [side[name][chosen] for side, chosen in zip((inside, outside), drawn)]
            cases = {
                "": (ood.best_threshold(*tuning), True),
                "_keep95": (ood.keeping_threshold(tuning[0]), True),
            }
        for suffix, (threshold, only_rest) in cases.items():
            rest = [
                side[name][~chosen if only_rest else slice(None)]
                for side, chosen in zip((inside, outside), drawn)
            ]
            found = ood.decide(*(values >= threshold for values in rest))
            expected |= {f"{key}{suffix}.{name}": value for key, value in found.items()}
            if name != "exact":
                expected[f"threshold{suffix}.{name}"] = threshold
    assert measures == expected
    assert all(type(value) is float and math.isfinite(value) for value in measures.values())
    assert 0.5 < measures["f1.own"] < 1 and 0.5 < measures["auroc.exact"] < measures["auroc.own"] < 1
    assert (
        measures["f1.own"] != measures["f1_keep95.own"] and measures["f1.exact"] != measures["f1_all.exact"]
    )


def test_half_of_the_images_of_a_kind_tune_at_most():
    one = {"own": np.arange(100.0)}
    for num_out, num_tuning, expected in [(100, 3000, 100), (7, 3000, 6), (2, 10, 2), (100, 31, 30)]:
        found = ood.evaluate(one, {"own": np.arange(num_out) - 0.5}, num_tuning=num_tuning)
        assert found["num_tuning"] == expected


@pytest.mark.parametrize("function", [ood.detection, ood.best_threshold])
@pytest.mark.parametrize(
    "bad, message",
    [
        ([], "holds no scores"),
        ([1.0, math.nan, math.inf], "2 of 3 scores are NaN or infinite"),
        ([[1.0]], r"expected real numbers \[n\], got float64 \[1, 1\]"),
        (["high"], r"expected real numbers \[n\], got <U4 \[1\]"),
        (3.0, r"expected real numbers \[n\], got float64 \[\]"),
    ],
)
def test_scores_that_cannot_be_measured(function, bad, message):
    for name, arguments in (("scores_in", (bad, [1.0])), ("scores_out", ([1.0], bad))):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            function(*arguments)


@pytest.mark.parametrize("bad", [[], [0.0, 1.0], [[True]], True])
def test_decisions_that_are_none(bad):
    with pytest.raises(ValueError, match="accepted_in: expected one bool or more"):
        ood.decide(bad, [True])
    with pytest.raises(ValueError, match="accepted_out: expected one bool or more"):
        ood.decide([True], bad)


GOOD = {"mhd": [1.0, 2.0, 3.0], "own": [4.0, 5.0, 6.0]}


@pytest.mark.parametrize(
    "inside, outside, options, message",
    [
        ({}, {}, {}, "there are no scores"),
        (GOOD, {"mhd": [1.0, 2.0]}, {}, "only one of them has own"),
        ({"mhd": [1.0, 2.0]}, GOOD, {}, "only one of them has own"),
        (GOOD, GOOD | {"own": [1.0, 2.0]}, {}, "outside: expected scores of the same images.*mhd 3, own 2"),
        (GOOD, {"mhd": [1.0], "own": [2.0]}, {}, "outside: holds 1 image, but one is needed to tune"),
        ({"mhd": [], "own": []}, GOOD, {}, r"inside\['mhd'\]: holds no scores"),
        (GOOD, GOOD | {"own": [1.0, 2.0, math.nan]}, {}, r"outside\['own'\]: 1 of 3 scores are NaN"),
        (GOOD, GOOD, {"num_tuning": 1}, "num_tuning: expected 2 or more, got 1"),
        (GOOD, GOOD, {"num_tuning": 2.0}, "num_tuning: expected an integer"),
        (GOOD, GOOD, {"seed": -1}, "seed: expected 0 or more"),
    ],
)
def test_what_evaluate_refuses(inside, outside, options, message):
    with pytest.raises(ValueError, match=message):
        ood.evaluate(inside, outside, **options)


def test_without_scikit_learn_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"needs scikit-learn, which .*pip install 'llcodes\[evaluation\]'"):
        ood.detection([1.0], [0.0])
    assert ood.decide([True], [False])["f1"] == 1  # which needs none
