"""hamming.PosteriorDecoder against its formula in plain numpy, on codes short and long; what it refuses."""

import math

import numpy as np
import pytest
import torch

from llc.hamming import PosteriorDecoder, decode_mhd, posterior, posterior_fit


def noisy_codes(num_bits, num_classes, per_class, flips=0.2, seed=0):
    """(codes of images, labels, class codes): each image's code is its class's with some bits flipped."""
    rng = np.random.default_rng([seed, num_bits])
    of_class = rng.integers(0, 2, (num_classes, num_bits))
    labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
    bits = of_class[labels] ^ (rng.random((len(labels), num_bits)) < flips)
    return np.packbits(bits, axis=1), labels, np.packbits(of_class, axis=1)


def distances(codes, others):
    return np.unpackbits(codes[:, None] ^ others[None], axis=2).sum(2).astype(float)


def scores_by_formula(codes, train, labels, num_classes, num_bits, q, class_codes=None, weight=0):
    """sum over a class's train codes of (1 - q)^(bits - d) q^d, float64 [n, num_classes]."""
    d = distances(codes, train)
    each = (1 - q) ** (num_bits - d) * q**d
    found = np.stack([each[:, labels == c].sum(1) for c in range(num_classes)], 1)
    if weight:
        d = distances(codes, class_codes)
        found += weight * (1 - q) ** (num_bits - d) * q**d
    return found


@pytest.mark.parametrize("num_bits", [1, 2, 3, 5, 8, 11, 14, 16])
@pytest.mark.parametrize("with_class_codes", [False, True])
def test_equals_its_formula(num_bits, with_class_codes):
    """14 bits have blocks beside the one that stays in the cache; fewer than 3 are less than a row."""
    num_classes = 7
    train, labels, class_codes = noisy_codes(num_bits, num_classes, 30)
    queries = noisy_codes(num_bits, num_classes, 40, flips=0.5, seed=1)[0]
    given = {"class_codes": class_codes} if with_class_codes else {}
    decoder = PosteriorDecoder.fit(train, labels, num_bits, num_classes, flip_probability=0.15, **given)
    weight = int(decoder.arrays["class_weight"])
    assert (weight > 0) == with_class_codes
    expected = scores_by_formula(queries, train, labels, num_classes, num_bits, 0.15, class_codes, weight)
    order = np.argsort(-expected, axis=1, kind="stable")
    classes, probabilities = decoder.decode(queries, num_classes)
    assert classes.dtype == np.int64 and probabilities.dtype == np.float32
    # float32 sums may order scores that are equal but for rounding in another way
    rows = np.arange(len(queries))[:, None]
    np.testing.assert_allclose(expected[rows, classes], expected[rows, order], rtol=1e-5)
    total = expected.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected[rows, classes] / total, rtol=1e-4)
    np.testing.assert_allclose(
        decoder.log_density(queries), np.log(total[:, 0] / (len(train) + weight * num_classes)), atol=1e-4
    )
    assert np.array_equal(decoder.classes(queries), classes[:, :1])
    assert np.array_equal(decoder.classes(queries, 3), classes[:, :3])


def test_ties_go_to_the_lowest_class():
    codes = np.array([[0b00000000], [0b11110000], [0b11110000]], np.uint8)
    decoder = PosteriorDecoder.fit(codes, np.array([2, 1, 0]), 4, 4, flip_probability=0.1)
    classes, probabilities = decoder.decode(np.array([[0b11110000], [0b00000000]], np.uint8), 4)
    assert classes.tolist() == [[0, 1, 2, 3], [2, 0, 1, 3]]  # no image: class 3 comes last
    assert probabilities[0, 0] == probabilities[0, 1] and probabilities[0, 3] == 0


def test_ties_go_to_the_lowest_class_beyond_the_table():
    """All classes have the same train codes. BLAS rounds the last of equal rows in another way."""
    codes = np.packbits(np.random.default_rng(0).integers(0, 2, (17, 9)), axis=1)
    queries = noisy_codes(9, 5, 20)[0]
    for num_classes in (47, 203):
        labels = np.repeat(np.arange(num_classes), 17)
        decoder = PosteriorDecoder.fit(
            np.tile(codes, (num_classes, 1)), labels, 9, num_classes, flip_probability=0.17
        )
        assert (decoder.classes(queries, num_classes) == np.arange(num_classes)).all()


def test_more_classes_than_a_table_has(monkeypatch):
    """All 60 classes of codes of 24 bits, whose table would be 8 GB; in several parts, and of tensors."""
    train, labels, class_codes = noisy_codes(24, 60, 4)
    decoder = PosteriorDecoder.fit(train, labels, 24, 60, class_codes=class_codes, flip_probability=0.2)
    weight = int(decoder.arrays["class_weight"])
    queries = noisy_codes(24, 60, 1, flips=0.3, seed=2)[0]
    expected = scores_by_formula(queries, train, labels, 60, 24, 0.2, class_codes, weight)
    monkeypatch.setattr(posterior, "_CHUNK", 20_000)
    classes, probabilities = decoder.decode(queries, 60)
    rows = np.arange(len(queries))[:, None]
    np.testing.assert_allclose(
        expected[rows, classes], np.sort(expected, axis=1)[:, ::-1], rtol=1e-5, atol=1e-12
    )
    np.testing.assert_allclose(
        probabilities, expected[rows, classes] / expected.sum(1, keepdims=True), rtol=1e-4
    )
    assert (np.sort(classes, axis=1) == np.arange(60)).all()
    for k in (1, 5, 6, 59):
        assert np.array_equal(decoder.classes(queries, k), classes[:, :k])
    found = decoder.decode(torch.from_numpy(queries), 7)
    assert np.array_equal(found[0].numpy(), classes[:, :7])
    assert np.array_equal(found[1].numpy(), probabilities[:, :7])
    assert decoder.decode(queries[:0], 9)[0].shape == (0, 9)


@pytest.mark.parametrize("num_bits", [20, 24])
def test_tables_of_many_codes(num_bits):
    """Every block of a large table: random codes, against the formula."""
    train, labels, _ = noisy_codes(num_bits, 3, 20)
    decoder = PosteriorDecoder.fit(train, labels, num_bits, 3, flip_probability=0.2)
    queries = np.random.default_rng(1).integers(0, 256, (500, num_bits // 8 + (num_bits % 8 > 0)), np.uint8)
    if num_bits % 8:
        queries[:, -1] &= 0xF0
    expected = scores_by_formula(queries, train, labels, 3, num_bits, 0.2)
    classes, probabilities = decoder.decode(queries, 3)
    rows = np.arange(len(queries))[:, None]
    np.testing.assert_allclose(
        probabilities, expected[rows, classes] / expected.sum(1, keepdims=True), rtol=1e-4
    )
    assert (np.diff(probabilities, axis=1) <= 0).all()


def likelihood_left_out(train, labels, num_bits, num_classes, q, class_codes, weight):
    """The mean over the images of log P(own class), each left out of the train codes, one by one."""
    logs = []
    for i in range(len(train)):
        rest = np.arange(len(train)) != i
        scores = scores_by_formula(
            train[i : i + 1], train[rest], labels[rest], num_classes, num_bits, q, class_codes, weight
        )[0]
        logs.append(np.log(scores[labels[i]] / scores.sum()))
    return np.mean(logs)


@pytest.mark.parametrize("flips", [0.05, 0.3])
def test_the_flip_probability_is_the_most_likely_one_with_each_image_left_out(flips):
    train, labels, class_codes = noisy_codes(8, 4, 12, flips=flips)
    decoder = PosteriorDecoder.fit(train, labels, 8, 4, class_codes=class_codes)
    found = {
        (q, weight): likelihood_left_out(train, labels, 8, 4, q, class_codes, weight)
        for q in posterior_fit.FLIP_PROBABILITIES
        for weight in posterior_fit.CLASS_WEIGHTS
    }
    assert max(found, key=found.get) == (decoder.flip_probability, decoder.arrays["class_weight"])


def test_a_class_with_one_image_or_none_is_decoded_by_its_class_code():
    queries, of_queries, class_codes = noisy_codes(16, 50, 40, flips=0.15)
    labels = np.arange(0, 50, 2)  # one image each; the odd classes have none
    noise = np.packbits(np.random.default_rng(3).random((25, 16)) < 0.15, axis=1)
    decoder = PosteriorDecoder.fit(class_codes[labels] ^ noise, labels, 16, 50, class_codes=class_codes)
    right = decoder.classes(queries)[:, 0] == of_queries
    assert right.mean() > (decode_mhd(queries, class_codes)[:, 0] == of_queries).mean() - 0.02
    assert right[of_queries % 2 == 1].mean() > 0.3


def test_better_than_nearest_code_and_calibrated_where_classes_have_more_than_one_code():
    """Each class's images lie around two codes, only one of which is the class code."""
    rng = np.random.default_rng(5)
    centres = rng.integers(0, 2, (20, 2, 16))

    def draw(n):
        labels = rng.integers(0, 20, n)
        bits = centres[labels, rng.integers(0, 2, n)] ^ (rng.random((n, 16)) < 0.1)
        return np.packbits(bits, axis=1), labels

    train, queries = draw(8000), draw(4000)
    class_codes = np.packbits(centres[:, 0], axis=1)
    decoder = PosteriorDecoder.fit(*train, 16, 20, class_codes=class_codes)
    classes, probabilities = decoder.decode(queries[0])
    right = classes[:, 0] == queries[1]
    assert right.mean() > (decode_mhd(queries[0], class_codes)[:, 0] == queries[1]).mean() + 0.2
    assert abs(right.mean() - probabilities.mean()) < 0.05
    assert right[probabilities[:, 0] > 0.9].mean() > 0.9 > right[probabilities[:, 0] < 0.5].mean() + 0.3


def scores_of_bits(decoder, codes, prefix=""):
    """Scores float64 in nats [n, num_classes], from the decoder's whole numbers."""
    bits = np.unpackbits(codes, axis=1, count=decoder.num_bits).astype(np.int64)
    weights, offsets = decoder.arrays[f"{prefix}weights"], decoder.arrays[f"{prefix}offsets"]
    return (bits @ weights.T.astype(np.int64) + offsets) / posterior.UNIT


@pytest.mark.parametrize("num_bits", [25, 37, 64, 100])
def test_long_codes_are_decoded_by_weighted_sums_of_their_bits(num_bits):
    train, labels, class_codes = noisy_codes(num_bits, 30, 20, flips=0.35)
    queries = noisy_codes(num_bits, 30, 20, flips=0.35, seed=num_bits)[0]
    decoder = PosteriorDecoder.fit(train, labels, num_bits, 30, class_codes=class_codes)
    scores = scores_of_bits(decoder, queries)
    classes, probabilities = decoder.decode(queries, 30)
    assert probabilities.dtype == np.float32
    assert np.array_equal(classes, np.argsort(-scores, axis=1, kind="stable"))
    expected = np.exp(scores - scores.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, np.take_along_axis(expected, classes, 1), rtol=1e-3, atol=1e-6)
    joint = scores_of_bits(decoder, queries, "density_")
    logs = joint.max(1) + np.log(np.exp(joint - joint.max(1, keepdims=True)).sum(1)) - math.log(len(train))
    found = decoder.log_density(queries)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, logs, rtol=1e-4)
    for k in (1, 5):
        assert np.array_equal(decoder.classes(queries, k), classes[:, :k])
    # what is used on CUDA, here on the CPU
    tables = [torch.from_numpy(part) for part in decoder._byte_tables(None, "")]
    found, sums, totals = posterior.linear_on_device(torch.from_numpy(queries), *tables, 5)
    assert np.array_equal(found.numpy(), classes[:, :5])
    assert np.array_equal(sums.numpy(), np.take_along_axis(scores * posterior.UNIT, classes[:, :5], 1))
    np.testing.assert_allclose(1 / totals.numpy(), probabilities[:, 0], rtol=1e-4)


def test_long_codes_are_decoded_better_than_by_nearest_code_the_more_images_there_are():
    """Bits are wrong with a probability of their own in each class, which only images can tell."""
    rng = np.random.default_rng(0)
    of_class, wrong = rng.integers(0, 2, (20, 32)), rng.random((20, 32)) * 0.8

    def draw(per_class):
        labels = np.repeat(np.arange(20), per_class)
        bits = of_class[labels] ^ (rng.random((len(labels), 32)) < wrong[labels])
        return np.packbits(bits, axis=1), labels

    class_codes, (queries, of_queries) = np.packbits(of_class, axis=1), draw(100)
    nearest = (decode_mhd(queries, class_codes)[:, 0] == of_queries).mean()
    accuracies = []
    for per_class in (1, 10, 200):
        decoder = PosteriorDecoder.fit(*draw(per_class), 32, 20, class_codes=class_codes)
        classes, probabilities = decoder.decode(queries)
        accuracies.append((classes[:, 0] == of_queries).mean())
        assert abs(probabilities.mean() - accuracies[-1]) < 0.25
    assert nearest - 0.02 < accuracies[0] < accuracies[1] < accuracies[2] and accuracies[2] > nearest + 0.2


def test_the_density_of_long_codes_is_that_of_independent_bits():
    train, labels, _ = noisy_codes(40, 3, 50, flips=0.2)
    decoder = PosteriorDecoder.fit(train, labels, 40, 3)
    bits = np.unpackbits(train, axis=1)
    mean = (bits.sum(0) + 1) / 152
    p = np.stack([bits[labels == c].sum(0) + posterior_fit.PRIOR_IMAGES * mean for c in range(3)])
    p /= 50 + posterior_fit.PRIOR_IMAGES
    of_classes = np.where(bits[:, None] == 1, p, 1 - p).prod(2) / 3
    np.testing.assert_allclose(decoder.log_density(train), np.log(of_classes.sum(1)), atol=0.2)


def test_the_density_of_many_images_of_one_code():
    """The log odds of a bit that is the same in 10,000 images exceed what a byte table holds."""
    codes = np.repeat(np.array([[255] * 4, [0] * 4], np.uint8), 10_000, axis=0)
    decoder = PosteriorDecoder.fit(codes, np.repeat([0, 1], 10_000), 32, 2)
    ones, zeros = decoder.log_density(codes[[0, -1]])
    assert ones == pytest.approx(zeros, abs=0.2) and ones == pytest.approx(math.log(0.5), abs=0.2)


def test_long_codes_are_fitted_in_inference_mode():
    train, labels, class_codes = noisy_codes(40, 3, 20)
    arrays = PosteriorDecoder.fit(train, labels, 40, 3, class_codes=class_codes).arrays
    with torch.inference_mode():
        other = PosteriorDecoder.fit(torch.from_numpy(train), labels, 40, 3, class_codes=class_codes).arrays
    assert {k: v.tolist() for k, v in arrays.items()} == {k: v.tolist() for k, v in other.items()}


def test_the_order_of_the_images_changes_nothing():
    for num_bits in (12, 40):
        train, labels, class_codes = noisy_codes(num_bits, 9, 25, flips=0.3)
        order = np.random.default_rng(0).permutation(len(train))
        arrays = PosteriorDecoder.fit(train, labels, num_bits, 9, class_codes=class_codes).arrays
        other = PosteriorDecoder.fit(train[order], labels[order], num_bits, 9, class_codes=class_codes).arrays
        assert {k: v.tolist() for k, v in arrays.items()} == {k: v.tolist() for k, v in other.items()}


@pytest.mark.parametrize("num_bits", [12, 40])
def test_tensors_and_restored_arrays_give_the_same(num_bits):
    train, labels, class_codes = noisy_codes(num_bits, 9, 25, flips=0.3)
    decoder = PosteriorDecoder.fit(
        torch.from_numpy(train),
        torch.from_numpy(labels),
        num_bits,
        9,
        class_codes=torch.from_numpy(class_codes),
    )
    classes, probabilities = decoder.decode(train, 4)
    again = PosteriorDecoder(decoder.arrays)
    found = again.decode(torch.from_numpy(train), 4)
    assert all(isinstance(part, torch.Tensor) for part in found)
    assert np.array_equal(found[0].numpy(), classes) and np.array_equal(found[1].numpy(), probabilities)
    assert np.array_equal(again.classes(torch.from_numpy(train)).numpy(), classes[:, :1])
    assert np.array_equal(again.log_density(torch.from_numpy(train)).numpy(), decoder.log_density(train))
    assert again.decode(train[:0], 2)[0].shape == (0, 2) and len(again.log_density(train[:0])) == 0


CODES, LABELS = np.zeros((3, 2), np.uint8), np.array([0, 1, 1])


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((CODES, LABELS, 17, 2), {}, "codes: 2 bytes each; 17 bits are 3 bytes"),
        ((CODES.astype(int), LABELS, 16, 2), {}, "codes: expected packed codes uint8"),
        ((CODES, LABELS[:2], 16, 2), {}, r"labels: expected 3 integers.*\[2\]"),
        ((CODES, LABELS / 1, 16, 2), {}, "labels: expected 3 integers.*float64"),
        ((CODES, LABELS, 16, 1), {}, "labels: expected 0 to 0, found 0 to 1"),
        ((CODES, LABELS - 1, 16, 2), {}, "labels: expected 0 to 1, found -1 to 0"),
        ((CODES[:0], LABELS[:0], 16, 2), {}, "codes: there are none to learn from"),
        ((CODES, LABELS, 0, 2), {}, "num_bits: expected 1 or more"),
        ((CODES, LABELS, 16, 2), {"flip_probability": 0.5}, "flip_probability: expected 0.03 to 0.5"),
        (
            (CODES, LABELS, 16, 2),
            {"class_codes": CODES},
            r"class_codes: expected uint8 \[2, 2\], got \[3, 2\]",
        ),
        (
            (np.zeros((3, 4), np.uint8), LABELS, 30, 2),
            {"flip_probability": 0.1},
            "flip_probability: for codes of up to 24 bits; these have 30",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        PosteriorDecoder.fit(*arguments, **options)


def test_codes_and_k_that_do_not_fit():
    decoder = PosteriorDecoder.fit(CODES, LABELS, 16, 2)
    with pytest.raises(ValueError, match="codes: 3 bytes each; this decoder is for 16 bits, 2 bytes"):
        decoder.classes(np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"k: expected 1 to 2 \(the number of classes\), got 3"):
        decoder.classes(CODES, 3)
    with pytest.raises(ValueError, match="codes: 3 bytes each"):
        decoder.log_density(np.zeros((1, 3), np.uint8))


@pytest.mark.parametrize("num_bits", [12, 40])
def test_arrays_that_are_no_decoder(num_bits):
    """Each array missing, of another type, of another shape, or out of range is refused."""
    train, labels, class_codes = noisy_codes(num_bits, 9, 25)
    arrays = PosteriorDecoder.fit(train, labels, num_bits, 9, class_codes=class_codes).arrays
    changes = [(name, None) for name in arrays if name != "weights"]
    changes += [(name, array.astype(np.float32)) for name, array in arrays.items()]
    changes += [(name, array[None]) for name, array in arrays.items()]
    wrong = {
        12: {
            "codes": -1, "counts": 0, "class_codes": 1 << 12, "class_weight": -1, "num_bits": 25, "ends": 0,
            "flip_probability": 0.5,
        },
        40: {"weights": 2000, "offsets": -(1 << 31), "density_weights": -2000, "num_images": 0},
    }  # fmt: skip
    changes += [(name, np.full_like(arrays[name], value)) for name, value in wrong[num_bits].items()]
    for name, array in changes:
        changed = {key: value for key, value in (arrays | {name: array}).items() if value is not None}
        with pytest.raises(ValueError):
            PosteriorDecoder(changed)
    with pytest.raises(ValueError, match="is missing|are"):
        PosteriorDecoder({})
