"""What decoders learnt: its file, the network it belongs to, and the commands and calls that use it."""

import json
import math
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import llc
from llc import checkpoints
from llc.data.preprocessing import Preprocessing
from llc.errors import UserError
from llc.evaluation import fitting
from llc.evaluation.decoders import calibration_error
from llc.hamming import PosteriorDecoder
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network
from tests.data.helpers import marked
from tests.original import pictures

NUM_CLASSES = 5


def encoder_of(num_bits=11):
    network = trained_network("resnet18", num_bits, NUM_CLASSES, width=8)
    return llc.Encoder(network, Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD))


def fitted_to(encoder):
    """(Fitted, codes, labels) of 60 images whose labels have to do with their codes."""
    codes = encoder.encode(pictures(60, seed=1, size=32)).numpy()
    labels = codes[:, 0].astype(np.int64) % NUM_CLASSES
    return fitting.fit(encoder.network, codes, labels, source="train.beton", images="abc"), codes, labels


@pytest.mark.parametrize("num_bits", [11, 40])
def test_a_file_holds_what_was_learnt(num_bits, tmp_path):
    encoder = encoder_of(num_bits)
    fitted, codes, labels = fitted_to(encoder)
    fitted.save(tmp_path / "decoder.npz")
    again = fitting.read(tmp_path / "decoder.npz", encoder.network)
    assert again.description() == fitted.description()
    assert again.source == "train.beton" and again.images == "abc" and again.num_images == 60
    expected = PosteriorDecoder.fit(codes, labels, num_bits, NUM_CLASSES, class_codes=encoder.class_codes)
    for decoder in (fitted.learnt["posterior"], again.learnt["posterior"]):
        for one, other in zip(decoder.decode(codes, 3), expected.decode(codes, 3), strict=True):
            assert np.array_equal(one, other)


def test_a_decoder_belongs_to_the_network_that_made_the_codes(tmp_path):
    encoder = encoder_of()
    path, network = tmp_path / "decoder.npz", encoder.network
    assert not fitting.find(path, network)
    fitted_to(encoder)[0].save(path)
    assert fitting.find(path, network)
    network.codebook.data += 1  # which changes no code
    assert fitting.find(path, network)
    for name, value in network.state_dict().items():
        if name != "codebook" and value.is_floating_point():
            before = value.clone()
            value += 0.5
            assert not fitting.find(path, network), name
            value.copy_(before)
    assert fitting.find(path, network)
    codebook, network.codebook = network.codebook, torch.nn.Parameter(torch.zeros(0, 11))
    assert not fitting.find(path, network)  # as of the original's models of image codes alone
    network.codebook = codebook
    network.projection.weight.data *= 2
    with pytest.raises(
        UserError, match=r"decoder.npz: this decoder was fitted to the codes of another network"
    ):
        fitting.read(path, network)


def test_no_images_no_decoder():
    encoder = encoder_of()
    with pytest.raises(UserError, match="train.beton: no image has a label and a code"):
        fitting.fit(encoder.network, np.zeros((0, 2), np.uint8), np.zeros(0, np.int64), source="train.beton")


def test_files_that_are_no_decoder(tmp_path):
    encoder = encoder_of()
    path = tmp_path / "decoder.npz"
    fitted, _, _ = fitted_to(encoder)
    fitted.save(path)
    whole, network = path.read_bytes(), encoder.network
    arrays = dict(np.load(path))

    def refused(message):
        with pytest.raises(UserError, match=f"decoder.npz: .*{message}"):
            fitting.read(path, network)

    for content, message in (
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"no archive", "not a decoder"),
        (whole[:-30], "not a decoder"),
    ):
        path.write_bytes(content)
        refused(message)
    for changes, message in (
        ({"description": np.array(json.dumps(fitted.description() | {"format": 99}))}, "format is 99"),
        ({"description": np.array("[1]")}, "not a decoder"),
        ({"description": np.array("{")}, "not a decoder"),
        ({"description": np.array(json.dumps(fitted.description() | {"num_images": math.inf}))}, "infinity"),
        ({"description": np.array(json.dumps(fitted.description() | {"source": 3}))}, "not a decoder"),
        ({"posterior.counts": -arrays["posterior.counts"]}, "counts"),
        ({"posterior.codes": arrays["posterior.codes"] + (1 << 20)}, "codes"),
    ):
        np.savez(path, **(arrays | changes))
        refused(message)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "description"})
    refused("not a decoder")
    np.savez_compressed(path, **arrays)  # a small file could claim to hold much
    refused("compressed")
    np.savez(path, **arrays)
    path.write_bytes(marked(path.read_bytes(), 1))
    refused("not a decoder as llc writes: .*encrypted")
    path.write_bytes(marked(whole, 32))
    refused("not a decoder as llc writes: compressed patched data")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("description.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, "
                         b"'shape': (1000000000000000,), }".ljust(128) + b"\n")  # fmt: skip
    refused("not a decoder")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        fitting.read(tmp_path / "none.npz", network)
    other = encoder_of(num_bits=12)
    description = fitted.description() | {"network": checkpoints.digest(other.network)}
    np.savez(path, **(arrays | {"description": np.array(json.dumps(description))}))
    with pytest.raises(UserError, match="for 5 classes and 11 bits, not 5 and 12"):
        fitting.read(path, other.network)


# ---------------------------------------------------------------------------------------------- the library


def test_an_encoder_decodes_with_it_and_carries_it(tmp_path):
    encoder, images = encoder_of(), pictures(60, seed=1, size=32)
    with pytest.raises(
        UserError, match="'posterior': this decoder learns from the train set's codes, and has not"
    ):
        encoder.classify(images, decode="posterior")
    encoder.fitted, codes, labels = fitted_to(encoder)
    found = encoder.classify(images, decode="posterior", k=3)
    classes, probabilities = encoder.learnt["posterior"].decode(codes, 3)
    assert np.array_equal(found.labels, classes) and np.array_equal(found.scores, probabilities)
    assert (found.labels[:, 0].numpy() == labels).mean() > 0.9
    assert encoder.classify(images, decode="posterior", k=50).labels.shape == (60, NUM_CLASSES)

    encoder.save(tmp_path / "saved")
    again = llc.load(tmp_path / "saved")
    assert again.fitted.description() == encoder.fitted.description()
    assert torch.equal(again.classify(images, "posterior", k=3).labels, found.labels)
    other = encoder_of()
    other.network.projection.weight.data *= 2
    other.save(tmp_path / "other")
    encoder.fitted.save(tmp_path / "other.decoder.npz")
    assert llc.load(tmp_path / "other").fitted is None  # it belongs to another network
    with pytest.raises(UserError, match="another network"):
        llc.load(tmp_path / "other", decoder=tmp_path / "other.decoder.npz")
    encoder.fitted = None
    encoder.save(tmp_path / "plain")
    assert llc.load(tmp_path / "plain").fitted is None
    shutil.copy(tmp_path / "other.decoder.npz", tmp_path / "plain.decoder.npz")
    assert llc.load(tmp_path / "plain").fitted.source == "train.beton"
    assert llc.load(tmp_path / "plain", decoder=tmp_path / "other.decoder.npz").fitted is not None


def test_images_with_a_low_probability_get_no_class():
    encoder, images = encoder_of(), pictures(60, seed=1, size=32)
    encoder.fitted = fitted_to(encoder)[0]
    plain = encoder.classify(images, "posterior", k=2)
    limit = float(plain.scores[:, 0].median())
    found = encoder.classify(images, "posterior", k=2, min_probability=limit)
    rejected = plain.scores[:, 0] < limit
    assert 0 < rejected.sum() < 60 and torch.equal(found.scores, plain.scores)
    assert (found.labels[rejected] == -1).all() and torch.equal(
        found.labels[~rejected], plain.labels[~rejected]
    )
    assert found.names[int(rejected.nonzero()[0])] == [None, None]
    with pytest.raises(ValueError, match="min_probability: decode='mhd' gives no probabilities"):
        encoder.classify(images, min_probability=0.5)
    with pytest.raises(ValueError, match="min_probability: expected a number above 0 and at most 1, got 2"):
        encoder.classify(images, "posterior", min_probability=2)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, d: t.update({"fitted.posterior.counts": t["fitted.posterior.counts"] - 9}), "counts"),
        (lambda t, d: t.pop("fitted.posterior.ends"), "ends is missing"),
        (lambda t, d: d["fitted"].update(network="another"), "another network"),
        (lambda t, d: d.pop("fitted"), "KeyError|not a decoder"),
        (lambda t, d: d.update(fitted=None), "not a decoder"),
    ],
)
def test_a_saved_encoder_whose_decoder_is_damaged(change, message, tmp_path):
    encoder = encoder_of()
    encoder.fitted = fitted_to(encoder)[0]
    path = tmp_path / "saved"
    encoder.save(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        description = json.loads(file.metadata()["llc"])
    change(tensors, description)
    save_file(tensors, path, {"llc": json.dumps(description)})
    with pytest.raises(UserError, match=f"saved: .*({message})"):
        llc.load(path)


def test_an_encoder_saved_before_decoders_could_be_fitted(tmp_path):
    encoder_of().save(tmp_path / "saved")
    with safe_open(tmp_path / "saved", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        description = json.loads(file.metadata()["llc"])
    del description["fitted"]
    save_file(tensors, tmp_path / "saved", {"llc": json.dumps(description)})
    assert llc.load(tmp_path / "saved").fitted is None


# ---------------------------------------------------------------------------------------------- measures


def test_calibration_error_by_hand():
    probabilities = torch.tensor([0.05, 0.95, 0.95, 0.91, 0.5, 1.0])
    hits = torch.tensor([True, True, False, True, False, True])
    # bins of 0.1: (0, 0.1]: 1 - 0.05; (0.4, 0.5]: 0.5; (0.9, 1]: 3 right of 4, 3.81 expected
    expected = (0.95 + 0.5 + abs(3 - 3.81)) / 6
    assert calibration_error(hits, probabilities, num_bins=10) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(hits[:1], torch.tensor([0.0])) == 1.0


# ---------------------------------------------------------------------------------------------- the command


def without_decoder(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "decoder.npz").unlink()
    return run


def posterior_line(text):
    return next((line for line in text.splitlines() if re.match(r"  posterior +top-1", line)), None)


def test_evaluation_fits_what_a_run_fits_at_its_end(finished_run, betons, call_llc, tmp_path):
    run = without_decoder(finished_run, tmp_path)
    before = call_llc("-m", "llc.evaluate", run).stdout
    assert posterior_line(before) is None
    fitted = call_llc("-m", "llc.evaluate", run, f"--fit_decoder={betons[0]}").stdout
    assert f"{run / 'decoder.npz'}: fitted to 240 images of {betons[0]}" in fitted.replace("\n", " ")
    expected = call_llc("-m", "llc.evaluate", finished_run, f"--predictions={tmp_path / 'all.npz'}").stdout
    assert posterior_line(fitted) == posterior_line(expected) is not None
    assert re.search(r"top-1 +[\d.]+ % +top-5 +[\d.]+ % +calibration error [\d.]+ %", posterior_line(fitted))
    assert posterior_line(call_llc("-m", "llc.evaluate", run).stdout) == posterior_line(expected)
    with np.load(run / "decoder.npz") as own, np.load(finished_run / "decoder.npz") as trained:
        assert own.files == trained.files
        for name in own.files:
            if name != "description":
                assert np.array_equal(own[name], trained[name]), name
    # by hand, from the predictions
    predictions = np.load(tmp_path / "all.npz")
    decoder = llc.load(finished_run).learnt["posterior"]
    classes, probabilities = decoder.decode(predictions["codes"], 5)
    assert np.array_equal(predictions["top_posterior"], classes)
    assert np.array_equal(predictions["probability_posterior"], probabilities)
    top1 = 100 * (classes[:, 0] == predictions["labels"]).mean()
    assert float(re.search(r"top-1 +([\d.]+)", posterior_line(fitted))[1]) == pytest.approx(top1, abs=0.006)
    # a second time nothing is overwritten
    error = call_llc("-m", "llc.evaluate", run, f"--fit_decoder={betons[0]}", check=False)
    assert error.returncode != 0 and "decoder.npz exists already" in error.stderr


def test_rejected_images_are_counted(finished_run, call_llc, tmp_path):
    text = call_llc(
        "-m", "llc.evaluate", finished_run, "--min_probability=0.6", f"--predictions={tmp_path / 'p.npz'}"
    ).stdout
    predictions = np.load(tmp_path / "p.npz")
    accepted = predictions["probability_posterior"][:, 0] >= 0.6
    right = (predictions["top_posterior"][:, 0] == predictions["labels"])[accepted].mean()
    assert (
        f"posterior    probability 0.6 or more: {accepted.sum()} images, top-1 {100 * right:.2f} % on them"
        in text
    )


def test_probabilities_of_a_model_without_a_decoder_are_refused(finished_run, tmp_path, call_llc):
    run = without_decoder(finished_run, tmp_path)
    done = call_llc("-m", "llc.evaluate", run, "--min_probability=0.6", check=False)
    assert done.returncode == 2 and "--min_probability=0.6: no decoder that gives" in done.stderr
    assert "--fit_decoder=TRAIN" in done.stderr and not done.stdout.count("MHD")
    done = call_llc("-m", "llc.evaluate", finished_run, "--min_probability=0.6", "--num_bits=4", check=False)
    assert done.returncode == 2 and "is fitted to codes of 4 bits" in done.stderr.replace("\n", " ")


def test_a_decoder_is_not_fitted_to_what_it_is_measured_on(finished_run, betons, call_llc, tmp_path):
    run = without_decoder(finished_run, tmp_path)

    def refused(*words):
        done = call_llc("-m", "llc.evaluate", run, *words, check=False)
        assert done.returncode != 0 and not (run / "decoder.npz").exists()
        return done.stderr

    text = refused(f"--fit_decoder={betons[1]}")
    assert f"--fit_decoder={betons[1]}: these are the images of data.val_dataset" in text.replace("\n", " ")
    text = refused(f"--fit_decoder={betons[1]}", f"--data.val_dataset={betons[0]}")
    assert "a val split, as its manifest says" in text
    assert "none.beton" in refused("--fit_decoder=none.beton")
    assert "there is no folder" in refused(f"--fit_decoder={betons[0]}", "--decoder=no/such/folder.npz")
    # the images of the train set as val: the decoder, which has seen them, is left out
    text = call_llc("-m", "llc.evaluate", finished_run, f"--data.val_dataset={betons[0]}").stdout
    assert "posterior: fitted to these very images, so not measured on them" in text
    assert "MHD" in text and posterior_line(text) is None


def test_a_file_gets_its_decoder_beside_it(finished_run, betons, image_tree, call_llc, tmp_path):
    """Fitted to a folder of images, which gives other pixels than a beton only by JPEG's loss."""
    encoder = llc.load(finished_run)
    encoder.fitted = None
    encoder.save(tmp_path / "model.safetensors")
    words = ["-m", "llc.evaluate", tmp_path / "model.safetensors", f"--data.val_dataset={image_tree / 'val'}"]
    text = call_llc(*words, f"--fit_decoder={image_tree / 'train'}").stdout
    assert "model.safetensors.decoder.npz: fitted to 240 images" in text.replace("\n", " ")
    assert posterior_line(call_llc(*words).stdout) == posterior_line(text) is not None
    assert llc.load(tmp_path / "model.safetensors").fitted.num_images == 240
    done = call_llc(
        *words, f"--fit_decoder={image_tree / 'val'}", f"--decoder={tmp_path / 'other.npz'}", check=False
    )
    assert done.returncode != 0 and "these are the images of data.val_dataset" in done.stderr
    text = call_llc(
        *words, f"--fit_decoder={image_tree / 'train'}", f"--decoder={tmp_path / 'other.npz'}"
    ).stdout
    assert posterior_line(call_llc(*words, f"--decoder={tmp_path / 'other.npz'}").stdout) == posterior_line(
        text
    )
