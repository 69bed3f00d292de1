"""What a report measures on images, against slow and obvious references, and on a trained run."""

import csv
import dataclasses
import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc.codes import pack_bits, unpack_bits
from llc.data.batches import open_images
from llc.distributed import Processes
from llc.errors import UserError
from llc.evaluation import retrieval
from llc.evaluation.decoders import calibration_bins, calibration_error
from llc.hamming import decode_ed, decode_mhd
from llc.report import measuring
from llc.report.measuring import confusions, measure, pairs
from llc.report.reading import read_run


@pytest.fixture(scope="module")
def run(finished_run):
    return read_run(finished_run)


@pytest.fixture(scope="module")
def measured(run):
    return measure(run, progress=False)


@pytest.fixture(scope="module")
def truth(run, betons):
    """(z, labels, pixels) of all val images at once."""
    encoder = llc.load(run.path, checkpoint="instance")
    images = open_images(
        str(betons[1]), encoder.preprocessing, batch_size=66, num_workers=1, processes=Processes()
    )
    with torch.inference_mode():
        ((z, labels, pixels),) = [(encoder(x), y, x) for x, y in images.loader]
    return z.numpy(), labels.numpy(), pixels.permute(0, 2, 3, 1).numpy()


def bits_apart(a, b):
    return int((unpack_bits(a[None], 8 * len(a)) != unpack_bits(b[None], 8 * len(b))).sum())


# ------------------------------------------------------------------------------------------------------ a run


def test_accuracies_are_those_of_the_run(measured, run, finished_run):
    """The same network, images and flips as at the end of the training, to the last digit of results.csv."""
    assert (measured.stage, measured.decoder, measured.num_images) == ("instance", "posterior", 66)
    with open(finished_run / "results.csv") as file:
        finals = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
    assert {name.split("_")[1] for name in measured.accuracy} == {"class", "mhd", "ed", "posterior"}
    for name, value in measured.accuracy.items():
        assert f"{value:.6f}" == f"{finals[f'instance/{name}']:.6f}", name
    assert measured.reliability.ece == measured.accuracy["ece_posterior_flip"] > 0


def test_codes_and_bits(measured, run, truth):
    z, labels, pixels = truth
    assert measured.num_codes == len({code.tobytes() for code in np.packbits(z > 0, axis=1)})
    class_bits = unpack_bits(run.class_codes, 10)
    for bit, found in enumerate(measured.bits):
        assert found.ones == [label for label in range(6) if class_bits[label, bit]]
        assert found.balance == pytest.approx((z[:, bit] > 0).mean())
        for shown, sign in ((found.highest, -1), (found.lowest, 1)):
            assert len(set(shown)) == 6
            assert np.allclose(sign * z[shown, bit], np.sort(sign * z[:, bit])[:6], atol=1e-4)


def test_queries_and_their_neighbours(measured, truth):
    z, labels, _ = truth
    codes = np.packbits(z > 0, axis=1)
    apart = np.array([[bits_apart(a, b) for b in codes] for a in codes])
    assert len(measured.queries) == 12 == len({query.image for query in measured.queries})
    for query in measured.queries:
        assert query.label == labels[query.image]
        shown = [one.image for one in query.neighbours]
        assert query.image not in shown and len(set(shown)) == 8
        others = np.delete(apart[query.image], query.image)
        assert [one.distance for one in query.neighbours] == np.sort(others)[:8].tolist()
        for one in query.neighbours:
            assert one.distance == apart[query.image, one.image] and one.label == labels[one.image]
    wrong = [query.decoded != query.label for query in measured.queries]
    assert wrong == sorted(wrong)  # the right ones first
    assert len({query.label for query in measured.queries if query.decoded == query.label}) >= 5


def test_images_are_small_jpegs_of_what_the_network_sees(measured, truth):
    grey = truth[2].mean(3)  # JPEG halves the resolution of colour, and the images are noisy
    shown = {query.image for query in measured.queries}
    shown |= {one.image for query in measured.queries for one in query.neighbours}
    shown |= {image for bit in measured.bits for image in (*bit.highest, *bit.lowest)}
    assert set(measured.images) == shown
    for position, (data, media_type) in measured.images.items():
        with Image.open(io.BytesIO(data)) as image:
            assert media_type == "image/jpeg" and image.format == "JPEG" and image.size == (32, 32)
            apart = [np.abs(np.asarray(image).mean(2) - other).mean() for other in grey]
        assert apart[position] == min(apart) < 0.7 * np.sort(apart)[1]


def test_another_decoder_other_numbers_and_a_folder(run, image_tree, truth, betons):
    """The folder holds the images of the beton, class after class as well."""
    z, labels, _ = truth
    found = measure(
        run,
        data=str(image_tree / "val"),
        decoder="ed",
        num_queries=3,
        num_neighbours=2,
        num_images=1,
        num_confusions=2,
        progress=False,
    )
    assert found.title == str(image_tree / "val") and found.decoder == "ed" and found.num_images == 66
    assert len(found.queries) == 3 and all(len(query.neighbours) == 2 for query in found.queries)
    assert all(len(bit.highest) == len(bit.lowest) == 1 for bit in found.bits) and len(found.confusions) <= 2
    assert (
        any(query.decoded == -1 for query in found.queries)
        or not (decode_ed(np.packbits(z > 0, axis=1), run.class_codes) < 0).any()
    )


def test_the_seed_decides(run):
    one, same, other = (
        measure(run, decoder="mhd", seed=seed, progress=False, num_images=1).queries for seed in (1, 1, 2)
    )
    assert one == same and one != other


# -------------------------------------------------------------------------------------------------- its parts


def test_confusions_against_counting():
    rng = np.random.default_rng(3)
    labels, decoded = rng.integers(0, 5, 300), rng.integers(-1, 5, 300)
    codes = pack_bits(rng.normal(size=(5, 11)))
    counts = {}
    for label, other in zip(labels.tolist(), decoded.tolist()):
        if other not in (label, -1):
            counts[label, other] = counts.get((label, other), 0) + 1
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = confusions(labels, decoded, codes, 7)
    assert [((one.label, one.decoded), one.count) for one in found] == expected[:7]
    for one in found:
        assert one.of == (labels == one.label).sum()
        assert one.distance == bits_apart(codes[one.label], codes[one.decoded])
    assert confusions(labels, labels, codes, 7) == []
    assert len(confusions(labels, decoded, codes, 100)) == len(expected)


@pytest.mark.parametrize("num_bits", [3, 8, 21])
def test_pairs_against_counting(num_bits):
    rng = np.random.default_rng(num_bits)
    codes, labels = pack_bits(rng.normal(size=(37, num_bits))), rng.integers(0, 4, 37)
    counts = np.zeros((num_bits + 1, 2))
    for a in range(37):
        for b in range(a):
            counts[bits_apart(codes[a], codes[b]), int(labels[a] != labels[b])] += 1
    found = pairs(codes, labels, num_bits, rng)
    assert found.shape == (num_bits + 1, 2)
    assert np.allclose(found, counts / counts.sum(0), atol=1e-12)


def test_pairs_of_long_codes_are_of_fewer_images(monkeypatch):
    """So that memory is bounded: of 8 images with codes of 9 bits, 4 may be counted."""
    counted = []

    def rank(codes, *others, **settings):
        counted.append(len(codes))
        return retrieval.rank(codes, *others, **settings)

    monkeypatch.setattr(measuring, "_MAX_COUNTS", 40)
    monkeypatch.setattr(measuring, "retrieval", SimpleNamespace(rank=rank))
    rng = np.random.default_rng(0)
    codes, labels = np.packbits(rng.random((8, 9)) < 0.5, axis=1), np.arange(8) % 2
    assert pairs(codes, labels, 9, rng).shape == (10, 2) and counted == [4]


def test_pairs_of_no_or_one_kind_and_of_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    codes = pack_bits(rng.normal(size=(9, 5)))
    assert pairs(codes[:1], np.zeros(1, int), 5, rng).tolist() == [[0, 0]] * 6
    alike = pairs(codes, np.zeros(9, int), 5, rng)
    assert alike[:, 0].sum() == pytest.approx(1) and not alike[:, 1].any()
    monkeypatch.setattr(measuring, "_MAX_PAIRED", 4)
    drawn = pairs(codes, np.arange(9), 5, rng)
    assert drawn[:, 1].sum() == pytest.approx(1)
    assert np.allclose(drawn[:, 1] * 6, (drawn[:, 1] * 6).round())  # the 6 pairs of 4 images


def test_calibration_bins_against_counting():
    rng = np.random.default_rng(5)
    probabilities = torch.from_numpy(np.append(rng.random(200) ** 0.5 * 0.9, [0, 1 / 15, 2 / 15]))
    hits = torch.from_numpy(rng.random(203)) < probabilities
    counts, confidence, accuracy = calibration_bins(hits, probabilities)
    for i in range(15):
        own = [
            p for p in range(203) if i / 15 < probabilities[p] <= (i + 1) / 15 or i == probabilities[p] == 0
        ]
        assert counts[i] == len(own)
        if own:
            assert confidence[i] == pytest.approx(probabilities[own].mean().item())
            assert accuracy[i] == pytest.approx(hits[own].double().mean().item())
        else:
            assert confidence[i].isnan() and accuracy[i].isnan()
    assert (counts == 0).any()
    gaps = ((accuracy - confidence).abs() * counts).nansum() / 203
    assert calibration_error(hits, probabilities) == pytest.approx(gaps.item(), abs=1e-12)


def test_queries_are_half_right_and_of_many_classes():
    labels = np.repeat(np.arange(10), 20)
    decoded = np.where(np.arange(200) % 2, labels, (labels + 1) % 10)
    found = measuring._spread(labels, decoded, 12, np.random.default_rng(0))
    right = [place for place in found if decoded[place] == labels[place]]
    assert found[:6] == right and len({*labels[right]}) == 6 and len({*labels[found[6:]]}) == 6
    for decoded, expected in ((labels, True), ((labels + 1) % 10, False)):  # of one kind alone
        found = measuring._spread(labels, decoded, 12, np.random.default_rng(0))
        assert len({*found}) == 12 and {*(decoded[found] == labels[found])} == {expected}
    assert len(measuring._spread(labels[:2], labels[:2], 12, np.random.default_rng(0))) == 2


def test_the_images_stay_small(monkeypatch, run):
    """Fewer images on either side of a bit where there are many bits, and coarser ones if they are large."""
    monkeypatch.setattr(measuring, "_MAX_IMAGES", 12 * 9 + 2 * 10 * 2)
    monkeypatch.setattr(measuring, "_MAX_BYTES", 1)
    found = measure(run, decoder="mhd", progress=False)
    assert all(len(bit.highest) == 2 for bit in found.bits)
    coarse = sum(len(data) for data, _ in found.images.values())
    monkeypatch.setattr(measuring, "_MAX_BYTES", 1 << 30)
    assert coarse < 0.8 * sum(
        len(data) for data, _ in measure(run, decoder="mhd", progress=False).images.values()
    )
    monkeypatch.setattr(measuring, "_MAX_IMAGES", 8)
    found = measure(run, decoder="mhd", num_queries=0, progress=False)
    assert [len(bit.highest) for bit in found.bits] == [1] * 4 + [0] * 6 and not found.queries


# ------------------------------------------------------------------------------------ what cannot be measured


def test_what_cannot_be_measured(run, betons, image_tree, tmp_path):
    def refused(run=run, **options):
        with pytest.raises(UserError) as caught:
            measure(run, progress=False, **options)
        return str(caught.value)

    data = dataclasses.replace(run.config.data, val_dataset="gone.beton")
    elsewhere = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    assert "gone.beton" in refused(elsewhere) and "--data" in refused(elsewhere)
    assert measure(elsewhere, data=str(betons[1]), progress=False).num_images == 66
    assert "other.beton" in refused(data="other.beton")
    assert "expected auto, class, mhd" in refused(decoder="nearest")

    flat = tmp_path / "flat"  # images without classes
    flat.mkdir()
    shutil.copy(next(image_tree.glob("val/*/*.png")), flat / "a.png")
    assert "have no label" in refused(data=str(flat))

    unfinished = tmp_path / "run"
    shutil.copytree(run.path, unfinished)
    (unfinished / "decoder.npz").unlink()
    found = dataclasses.replace(run, path=unfinished)
    assert "is not fitted to this run" in refused(found, decoder="posterior")
    without = measure(found, progress=False)
    assert without.decoder == "mhd" and without.reliability is None
    codes_right = decode_mhd(run.class_codes, run.class_codes)[:, 0].tolist()
    assert codes_right == list(range(6))
    for stage in ("codebook", "instance"):
        (unfinished / "checkpoints" / f"{stage}.pth").unlink()
    assert "no network of a finished stage" in refused(dataclasses.replace(found, stages=()))


def test_a_decoder_is_not_measured_on_what_it_learnt_from(run, betons):
    """The posterior decoder was fitted to these images."""
    found = measure(run, data=str(betons[0]), progress=False)
    assert found.decoder == "mhd" and found.reliability is None
    assert not any("posterior" in name for name in found.accuracy)
    with pytest.raises(UserError, match="fitted to these very images"):
        measure(run, data=str(betons[0]), decoder="posterior", progress=False)
