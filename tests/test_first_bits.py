"""The first bits of a model's codes as codes of their own: the library, saved files, every command."""

import re
import shutil

import numpy as np
import pytest
import torch
import torchvision

import llc
from llc.codebook import health, load_codebook
from llc.codes import pack_bits, unpack_bits
from llc.data.preprocessing import Preprocessing
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.evaluation import fitting
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network
from tests.original import normalised, pictures, random_values, resnet18, save_files

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")
PREPROCESSING = Preprocessing(32, 0.875, "area", IMAGENET_MEAN, IMAGENET_STD)


def encoder_of(**options):
    """11 bits, 7 classes, with a decoder fitted to 60 images whose labels have to do with their codes."""
    network = trained_network("resnet18", 11, 7, width=8, logit_scale=0.5)
    with torch.no_grad():  # what all images have in common leaves the projection, so that no bit is constant
        mean = network.features(pictures(60, seed=1, size=32)).mean(0)
        network.projection.weight -= torch.outer(network.projection.weight @ mean, mean) / mean.square().sum()
    encoder = llc.Encoder(network, PREPROCESSING, **options)
    codes = encoder.encode(pictures(60, seed=1, size=32)).numpy()
    labels = codes[:, 0].astype(np.int64) % 7
    encoder.fitted = fitting.fit(encoder.network, codes, labels, source="train.beton", images="abc")
    return encoder


def first(codes, num_bits, of_bits):
    """The first num_bits bits of packed codes of of_bits bits, packed, through bits of 0 and 1."""
    return np.packbits(np.unpackbits(codes, axis=1)[:, :of_bits][:, :num_bits], axis=1)


# ---------------------------------------------------------------------------------------------- the library


def test_an_encoder_keeps_the_rest_but_not_a_decoder_of_whole_codes():
    encoder = encoder_of(
        class_names=NAMES, flip=True, precision="fp32", stage="codebook", recipe={"model": {"width": 8}}
    )
    cut = encoder.first_bits(5)
    for name in ("preprocessing", "class_names", "named", "flip", "precision", "stage", "recipe"):
        assert getattr(cut, name) == getattr(encoder, name), name
    assert cut.num_bits == 5 and torch.equal(cut.codebook, encoder.codebook[:, :5])
    images = pictures(40, seed=11, size=36)
    codes = encoder.encode(images)
    assert torch.equal(unpack_bits(cut.encode(images), 5), unpack_bits(codes, 11)[:, :5])
    assert len(torch.unique(codes[:, 0] & 0b11111000)) > 3
    assert cut.fitted is None and "posterior" not in cut.learnt
    with pytest.raises(UserError, match="'posterior': this decoder learns from the train set's codes"):
        cut.classify(images, "posterior")
    assert torch.equal(
        cut.classify(images, k=3).labels, llc.decode_mhd(cut.encode(images), pack_bits(cut.codebook), 3)
    )
    assert not encoder_of().first_bits(5).named
    same = encoder.first_bits(11)
    assert same.fitted is encoder.fitted and torch.equal(same.encode(images), codes)
    with pytest.raises(UserError, match="num_bits = 12: the codes have 11 bits; give 1 to 11"):
        encoder.first_bits(12)


def test_first_bits_are_loaded_from_and_saved_in_a_file(tmp_path):
    encoder, images = encoder_of(class_names=NAMES), pictures(9, seed=3, size=40)
    encoder.save(tmp_path / "whole")
    cut = llc.load(tmp_path / "whole", num_bits=9)
    expected = unpack_bits(encoder.encode(images), 11)[:, :9]
    assert torch.equal(unpack_bits(cut.encode(images), 9), expected) and cut.fitted is None
    cut.save(tmp_path / "cut")
    again = llc.load(tmp_path / "cut")
    assert again.num_bits == 9 and again.class_names == NAMES and again.fitted is None
    assert torch.equal(again.project(images), cut.project(images))
    assert torch.equal(again.classify(images, "class").scores, cut.classify(images, "class").scores)
    assert llc.load(tmp_path / "whole", num_bits=11).fitted is not None
    codebook = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    np.save(tmp_path / "codebook.npy", codebook)
    other = llc.load(tmp_path / "whole", tmp_path / "codebook.npy", class_names=("x", "y", "z"), num_bits=2)
    assert np.array_equal(other.codebook, codebook[:, :2])
    for num_bits in (0, 12):
        with pytest.raises(UserError, match=f"num_bits = {num_bits}: the codes have 11 bits; give 1 to 11"):
            llc.load(tmp_path / "whole", num_bits=num_bits)


def test_a_decoder_belongs_to_one_number_of_bits(tmp_path):
    encoder = encoder_of()
    encoder.save(tmp_path / "whole")
    encoder.fitted.save(tmp_path / "11.npz")
    cut, images = encoder.first_bits(5), pictures(60, seed=1, size=32)
    codes = cut.encode(images).numpy()
    fitting.fit(cut.network, codes, np.arange(60) % 7, source="train.beton").save(tmp_path / "5.npz")
    found = llc.load(tmp_path / "whole", num_bits=5, decoder=tmp_path / "5.npz")
    assert np.array_equal(
        found.classify(images, "posterior", k=2).labels, found.learnt["posterior"].decode(codes, 2)[0]
    )
    for num_bits, name in ((5, "11.npz"), (6, "5.npz"), (None, "5.npz")):
        with pytest.raises(UserError, match=f"{name}: .* another network, or to another number of .* bits"):
            llc.load(tmp_path / "whole", num_bits=num_bits, decoder=tmp_path / name)
    # neither is found where it is looked for
    shutil.copy(tmp_path / "11.npz", tmp_path / "whole.decoder.npz")
    assert llc.load(tmp_path / "whole", num_bits=5).fitted is None


# ---------------------------------------------------------------------------------------------- codes


@pytest.fixture(scope="module")
def whole_codes(finished_run, tmp_path_factory):
    """What the evaluation of the finished run wrote for its val beton, with codes of 10 bits."""
    path = tmp_path_factory.mktemp("whole") / "predictions.npz"
    evaluate.main([str(finished_run), f"--predictions={path}"])
    return dict(np.load(path))


def test_encode_and_search_with_first_bits(
    finished_run, betons, image_tree, whole_codes, call_llc, run_llc, tmp_path
):
    of_bits = {num_bits: tmp_path / f"{num_bits}.npz" for num_bits in (4, 9, 10)}
    words = ["-m", "llc.encode", finished_run, f"--data={betons[1]}"]
    said = run_llc(*words, "--num_bits=4", f"--out={of_bits[4]}").stdout  # the command itself, once
    assert "66 codes of 4 bits, 1 bytes each" in said
    call_llc(*words, "--num_bits=9", f"--out={of_bits[9]}")
    call_llc(*words, f"--out={of_bits[10]}")
    for num_bits, path in of_bits.items():
        found = np.load(path)
        assert found["num_bits"] == num_bits and found["labels"].tolist() == whole_codes["labels"].tolist()
        assert np.array_equal(found["codes"], first(whole_codes["codes"], num_bits, 10))
    assert len(np.unique(np.load(of_bits[4])["codes"])) > 3

    image = sorted((image_tree / "val" / "class_4").glob("*.png"))[0]
    query = llc.load(finished_run, num_bits=4).encode(image)
    expected = llc.hamming.search(query, torch.from_numpy(np.load(of_bits[4])["codes"]), 3)
    search = ["-m", "llc.search", of_bits[4], f"--queries={image}", f"--model={finished_run}", "--k=3"]
    call_llc(*search, "--num_bits=4", f"--out={tmp_path / 'found.npz'}")
    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["distances"], expected[0]) and np.array_equal(found["indices"], expected[1])

    def refused(*words):
        done = call_llc(*words, check=False)
        assert done.returncode == 2
        return done.stderr.replace("\n", " ")

    # 9 bits and 10 take the same two bytes
    text = refused("-m", "llc.search", of_bits[9], f"--queries={of_bits[10]}")
    assert "codes of 10 bits" in text and "of 9: they were made by different models, or with another" in text
    assert "has codes of 10 bits" in refused(*search)
    text = refused("-m", "llc.search", of_bits[10], f"--queries={of_bits[10]}", "--num_bits=4")
    assert "--num_bits=4" in text and "holds codes already" in text
    for num_bits, message in ((11, "give 1 to 10"), (-1, "at least 0")):
        text = refused(*words, f"--num_bits={num_bits}", f"--out={tmp_path / 'none.npz'}")
        assert message in text and not (tmp_path / "none.npz").exists()


# ---------------------------------------------------------------------------------------------- evaluate


def top1(text):
    """{decoder's title: top-1 in %} of a report."""
    return {name: float(number) for name, number in re.findall(r"^  (\S.*?) +top-1 +([\d.]+) %", text, re.M)}


def check_report(text, predictions, encoder, whole_codes):
    """A report and predictions of the first 4 bits against decoding the first bits of the whole codes."""
    codes = first(whole_codes["codes"], 4, 10)
    assert np.array_equal(predictions["codes"], codes)
    classes = llc.decode_mhd(codes, first(encoder.class_codes.numpy(), 4, 10), 5)
    assert np.array_equal(predictions["top_mhd"][:, :5], classes)
    by_hand = 100 * (classes[:, 0] == whole_codes["labels"]).mean()
    assert top1(text)["MHD"] == pytest.approx(by_hand, abs=0.006)
    assert by_hand != 100 * (whole_codes["top_mhd"][:, 0] == whole_codes["labels"]).mean()
    assert ": 66 images, 4 bits, left-right flips averaged\n" in text
    assert f"  {health(encoder.codebook[:, :4])}\n" in text
    assert str(health(encoder.codebook[:, :4])) != str(health(encoder.codebook))


def test_evaluation_of_first_bits_of_a_run(finished_run, betons, whole_codes, call_llc, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    own = (run / "decoder.npz").read_bytes()
    encoder, words = llc.load(run), ["-m", "llc.evaluate", run, "--num_bits=4"]
    text = call_llc(*words, f"--predictions={tmp_path / 'p.npz'}").stdout
    check_report(text, np.load(tmp_path / "p.npz"), encoder, whole_codes)
    assert np.array_equal(load_codebook(run)[:, :4], encoder.first_bits(4).codebook)
    assert "  posterior: fitted to all 10 bits, so not used\n" in text and "posterior" not in top1(text)
    # all bits are what there is without the flag
    plain = call_llc("-m", "llc.evaluate", run).stdout
    assert call_llc("-m", "llc.evaluate", run, "--num_bits=10").stdout == plain
    assert "posterior" in top1(plain) and "fitted to all" not in plain and ": 66 images, 10 bits" in plain

    fit, file = f"--fit_decoder={betons[0]}", tmp_path / "4.npz"
    (run / "other name").symlink_to(run)
    for decoder in ([], [f"--decoder={run / 'other name' / 'decoder.npz'}"]):
        done = call_llc(*words, fit, *decoder, check=False)
        message = done.stderr.replace("\n", " ")
        assert done.returncode == 2 and "--fit_decoder with --num_bits=4: " in message
        assert "decoder.npz is for decoders of whole codes; name a file for decoders of so many" in message
    fitted = call_llc(*words, fit, f"--decoder={file}").stdout
    assert f"{file}: fitted to 240 images" in fitted.replace("\n", " ") and "fitted to all" not in fitted
    text = call_llc(*words, f"--decoder={file}", f"--predictions={tmp_path / 'p4.npz'}").stdout
    assert top1(text) == top1(fitted) and top1(text)["posterior"] > 100 / 6
    predictions = np.load(tmp_path / "p4.npz")
    decoder = llc.load(run, num_bits=4, decoder=file).learnt["posterior"]
    assert np.array_equal(predictions["top_posterior"], decoder.decode(predictions["codes"], 5)[0])
    for num_bits in (0, 5):
        done = call_llc("-m", "llc.evaluate", run, f"--num_bits={num_bits}", f"--decoder={file}", check=False)
        assert done.returncode == 2 and "another network, or to another number" in done.stderr
    done = call_llc("-m", "llc.evaluate", run, "--num_bits=11", check=False)
    assert done.returncode == 2 and "num_bits = 11: the codes have 10 bits; give 1 to 10" in done.stderr
    assert (run / "decoder.npz").read_bytes() == own
    # without a decoder of its own a run would get one here
    (run / "decoder.npz").unlink()
    done = call_llc(*words, fit, check=False)
    assert done.returncode == 2 and not (run / "decoder.npz").exists()
    assert "fitted to all" not in call_llc(*words).stdout


def test_evaluation_of_first_bits_of_a_file(finished_run, betons, whole_codes, call_llc, tmp_path):
    """The saved encoder holds the decoder of its whole codes."""
    encoder, file = llc.load(finished_run), tmp_path / "model.safetensors"
    encoder.save(file)
    words = ["-m", "llc.evaluate", file, f"--data.val_dataset={betons[1]}", "--num_bits", "4"]
    text = call_llc(*words, f"--predictions={tmp_path / 'p.npz'}").stdout
    check_report(text, np.load(tmp_path / "p.npz"), encoder, whole_codes)
    assert "  posterior: fitted to all 10 bits, so not used\n" in text and "posterior" not in top1(text)
    fit = f"--fit_decoder={betons[0]}"
    done = call_llc(*words, fit, check=False)
    assert done.returncode == 2 and "model.safetensors.decoder.npz is for decoders of whole" in done.stderr
    text = call_llc(*words, fit, f"--decoder={tmp_path / '4.npz'}").stdout
    assert top1(call_llc(*words, f"--decoder={tmp_path / '4.npz'}").stdout) == top1(text)
    assert "posterior" in top1(text) and not list(tmp_path.glob("*.decoder.npz"))


def test_published_figures_are_not_shown_beside_first_bits(image_tree, call_llc, tmp_path):
    model, codebook = save_files(random_values(resnet18(10, 6, width=8)), tmp_path)
    words = ["-m", "llc.evaluate", f"--original={model}", f"--codebook={codebook}"]
    words += [f"--data.val_dataset={image_tree / 'val'}", "--validation.resolution=32"]
    whole, cut = call_llc(*words).stdout, call_llc(*words, "--num_bits=4").stdout
    for words in ("published 74.5 %", "published: ResNet50, 20 bits"):
        assert words in whole and words not in cut
    assert ": 66 images, 4 bits" in cut


# ---------------------------------------------------------------------------------------------- export


def test_export_of_first_bits(finished_run, call_llc, tmp_path):
    run, images = shutil.copytree(finished_run, tmp_path / "run"), pictures(9, seed=7, size=40)
    words, cut = ["-m", "llc.export", run], llc.load(run, num_bits=4)
    call_llc(*words, "--to=encoder")
    whole = (run / "encoder.safetensors").read_bytes()
    said = call_llc(*words, "--to=encoder", "--num_bits=4").stdout
    assert f"{run / 'encoder_4bit.safetensors'}: 4 bits, 6 classes" in said
    assert (run / "encoder.safetensors").read_bytes() == whole
    again = llc.load(run / "encoder_4bit.safetensors")
    assert torch.equal(again.project(images), cut.project(images)) and again.class_names == cut.class_names
    call_llc(*words, "--to=original", "--num_bits=4", "--checkpoint=codebook")
    state = torch.load(run / "original_4bit" / "model_best.pth", weights_only=True)["state_dict"]
    assert state["module.fc_lr.weight"].shape[0] == 4
    codebook = load_codebook(finished_run)
    assert np.array_equal(np.load(run / "original_4bit" / "codebook.npy"), codebook[:, :4])
    done = call_llc(*words, "--to=backbone", "--num_bits=4", check=False)
    assert done.returncode == 2 and "without --with_classifier, a backbone has no codes" in done.stderr
    done = call_llc(*words, "--to=encoder", "--num_bits=11", check=False)
    assert done.returncode == 2 and "num_bits = 11: the codes have 10 bits; give 1 to 10" in done.stderr


@torch.no_grad()
def test_a_backbone_with_a_classifier_of_first_bits(call_llc, tmp_path):
    network = trained_network("resnet18", 11, 7, logit_scale=0.25)
    llc.Encoder(network, Preprocessing(64, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)).save(tmp_path / "model")
    out = tmp_path / "dense.pth"
    call_llc(
        *("-m", "llc.export", tmp_path / "model", "--to=backbone", "--with_classifier", "--num_bits=4"),
        f"--out={out}",
    )
    dense = torchvision.models.resnet18(num_classes=7).eval()
    dense.load_state_dict(torch.load(out, weights_only=True), strict=True)
    images = pictures(5, seed=8)
    z = network(images)
    assert torch.allclose(dense(normalised(images)), network.class_logits(z, 4), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(network.class_logits(z, 4), network.class_logits(z), rtol=0.1)
