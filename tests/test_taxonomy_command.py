"""python -m llc.taxonomy on a trained run and on files of codes: its files, its figures, its messages."""

import csv
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc.codebook import majority_codes
from llc.data.batches import open_images
from llc.data.preprocessing import Preprocessing
from llc.distributed import Processes
from llc.evaluation import taxonomy
from llc.evaluation.bit_images import SIDE
from llc.hamming import decode_mhd
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import trained_network

FILES = {
    "tree.nwk",
    "tree.json",
    "dendrogram.svg",
    "dendrogram.png",
    "nearest.csv",
    "bits.txt",
    "bits.json",
    "taxonomy.json",
}
COMMAND = ("-m", "llc.taxonomy")


def figures_of(folder):
    return json.loads((folder / "taxonomy.json").read_text())


def names_in(svg):
    root = ElementTree.parse(svg).getroot()
    return {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}


def leaves(node):
    return [leaf for child in node["children"] for leaf in leaves(child)] if "children" in node else [node]


# ------------------------------------------------------------------------------------------------- a model


def test_a_run(finished_run, betons, tmp_path, call_llc):
    """On its own val_dataset, against all z at once."""
    out = tmp_path / "out"
    said = call_llc(
        *COMMAND, finished_run, f"--out={out}", "--decode=mhd", "--num_images=4", "--device=cpu"
    ).stdout
    assert {path.name for path in out.iterdir()} == FILES | {"bits.png"}

    encoder = llc.load(finished_run)
    images = open_images(
        str(betons[1]), encoder.preprocessing, batch_size=256, num_workers=1, processes=Processes()
    )
    with torch.inference_mode():
        batches = [(encoder(x).numpy(), y.numpy(), x.numpy()) for x, y in images.loader]
    z, labels, pixels = map(np.concatenate, zip(*batches))
    class_codes, num_classes = encoder.class_codes.numpy(), len(encoder.codebook)
    predicted = decode_mhd(np.packbits(z > 0, axis=1), class_codes)[:, 0]
    confusion = np.zeros((num_classes, num_classes), int)
    for label, other in zip(labels, predicted):
        confusion[label, other] += 1
    distances = taxonomy.class_distances(class_codes)
    expected = taxonomy.confusion_correlation(distances, confusion)
    figures = figures_of(out)
    assert figures["taxonomy.confusion_correlation"] == expected.value
    assert figures["taxonomy.confusion_p_value"] == expected.p_value
    assert ("taxonomy.confusion_correlation" in figures["undefined"]) == (expected.value is None)
    assert figures["taxonomy.num_images"] == len(z) == 66
    assert (figures["taxonomy.num_classes"], figures["taxonomy.num_bits"]) == (6, 10)
    assert figures["taxonomy.wordnet_correlation"] is None
    assert "WordNet ids" in figures["undefined"]["taxonomy.wordnet_correlation"]

    for bit, own in enumerate(json.loads((out / "bits.json").read_text())):
        ones = (encoder.codebook[:, bit] > 0).tolist()
        assert {*own["ones"]} == {name for name, one in zip(encoder.class_names, ones) if one}
        assert {*own["zeros"]} == {name for name, one in zip(encoder.class_names, ones) if not one}
        assert own["num_ones"] == sum(ones) and own["balance"] == sum(ones) / 6
        for side, sign in (("highest", -1), ("lowest", 1)):
            best = np.sort(sign * z[:, bit])[:4]
            assert np.allclose([sign * image["z"] for image in own[side]], best, atol=1e-4)
            for image in own[side]:
                assert abs(z[image["image"], bit] - image["z"]) < 1e-4 and "file" not in image
    bits = json.loads((out / "bits.json").read_text())
    with Image.open(out / "bits.png") as picture:
        sheet = np.asarray(picture)
    for bit, own in enumerate(bits):  # 10 rows, 4 images at the left and 4 at the right
        for place, image in enumerate(own["highest"] + own["lowest"][::-1]):
            x, y = 56 + place * (SIDE + 4) + (8 if place >= 4 else 0), 28 + bit * (SIDE + 4)
            small = Image.fromarray(pixels[image["image"]].transpose(1, 2, 0)).resize((SIDE, SIDE), 2)
            assert np.array_equal(sheet[y : y + SIDE, x : x + SIDE], np.asarray(small)), (bit, place)
    for label, row in enumerate(csv.DictReader((out / "nearest.csv").open())):
        assert (row["label"], row["name"]) == (str(label), encoder.class_names[label])
        for rank in range(1, 6):
            other = encoder.class_names.index(row[f"nearest_{rank}"])
            assert other != label and distances[label, other] == int(row[f"distance_{rank}"])
    assert {*encoder.class_names} <= names_in(out / "dendrogram.svg")
    with Image.open(out / "dendrogram.png") as picture:
        assert picture.width > picture.height > 100
    found = leaves(json.loads((out / "tree.json").read_text()))
    assert sorted(leaf["label"] for leaf in found) == list(range(6))
    for leaf in found:
        assert np.packbits([int(bit) for bit in leaf["code"]]).tolist() == class_codes[leaf["label"]].tolist()
    assert "NaN" not in "".join(path.read_text() for path in out.glob("*.json"))
    assert "nan" not in said and "6 classes, 10 bits" in said and "undefined, because class names" in said


def test_a_run_with_its_decoder_a_folder_and_no_images(finished_run, image_tree, tmp_path, call_llc):
    """The posterior decoder is taken where it is fitted; files are named where the source names them."""
    call_llc(*COMMAND, finished_run, f"--out={tmp_path / 'a'}", f"--data={image_tree}", "--permutations=0")
    figures = figures_of(tmp_path / "a")
    assert figures["taxonomy.confusion_decoder"] == "posterior" and figures["taxonomy.num_images"] == 66
    assert figures["taxonomy.confusion_p_value"] is None
    bits = json.loads((tmp_path / "a/bits.json").read_text())
    for image in bits[0]["highest"] + bits[9]["lowest"]:
        assert (image_tree / image["file"]).is_file()
    assert bits[0]["highest"][0]["file"] in (tmp_path / "a/bits.txt").read_text().replace("\n", " ")

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    call_llc(*COMMAND, run, "--data=none")
    assert {path.name for path in (run / "taxonomy").iterdir()} == FILES
    assert "no images" in figures_of(run / "taxonomy")["undefined"]["taxonomy.confusion_correlation"]
    assert "highest" not in json.loads((run / "taxonomy/bits.json").read_text())[0]
    config = (run / "config.yaml").read_text()
    assert "val.beton" in config
    (run / "config.yaml").write_text(config.replace("val.beton", "gone.beton"))
    said = call_llc(*COMMAND, run, f"--out={tmp_path / 'b'}").stdout
    assert "gone.beton, the run's data.val_dataset, is not there" in said
    assert figures_of(tmp_path / "b")["taxonomy.data"] is None

    flat = tmp_path / "flat"  # images without classes: bits have images, and there is no confusion
    flat.mkdir()
    for i, path in enumerate(sorted(image_tree.glob("val/*/*.png"))[:5]):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    call_llc(*COMMAND, finished_run, f"--out={tmp_path / 'c'}", f"--data={flat}")
    assert "no labels" in figures_of(tmp_path / "c")["undefined"]["taxonomy.confusion_correlation"]
    assert len(json.loads((tmp_path / "c/bits.json").read_text())[0]["highest"]) == 5


def test_a_model_without_names_takes_label_numbers(tmp_path, call_llc):
    encoder = llc.Encoder(
        trained_network("resnet18", 12, 4, width=8),
        Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD),
    )
    encoder.save(tmp_path / "encoder.safetensors")
    words = [*COMMAND, tmp_path / "encoder.safetensors", f"--out={tmp_path / 'out'}"]
    call_llc(*words, "--num_bits=7", "--linkage=complete")
    figures = figures_of(tmp_path / "out")
    assert (figures["taxonomy.num_bits"], figures["taxonomy.linkage"]) == (7, "complete")
    assert {*"0123"} <= names_in(tmp_path / "out/dendrogram.svg")
    codes = encoder.first_bits(7).class_codes.numpy()
    for leaf in leaves(json.loads((tmp_path / "out/tree.json").read_text())):
        assert leaf["name"] == str(leaf["label"])
        assert np.packbits([int(bit) for bit in leaf["code"]]).tolist() == codes[leaf["label"]].tolist()


# ---------------------------------------------------------------------------------------------------- codes

# fishes, cats and dogs; two cranes, which share their first word, as nothing else here does
IDS = ["n01440764", "n01443537", "n02123045", "n02123394", "n02085620", "n02086240", "n02012849", "n03126707"]


def save_codes(path, *, names=IDS, num_bits=12, seed=0, **changes):
    """Codes of 10 images of each class; those of classes beside each other are similar."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), 10)
    centres = np.repeat(rng.normal(size=((len(names) + 1) // 2, num_bits)), 2, axis=0)[: len(names)]
    z = (centres + 0.5 * rng.normal(size=centres.shape))[labels] + 0.6 * rng.normal(
        size=(len(labels), num_bits)
    )
    arrays = {
        "codes": np.packbits(z > 0, axis=1),
        "num_bits": num_bits,
        "labels": labels,
        "class_names": np.array(names),
    }
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return arrays


def test_codes_of_imagenets_classes(tmp_path, call_llc):
    arrays = save_codes(tmp_path / "codes.npz")
    said = call_llc(*COMMAND, tmp_path / "codes.npz", f"--out={tmp_path / 'out'}").stdout
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == FILES
    shown = {"tench", "goldfish", "tabby", "Persian cat", "crane (n02012849)", "crane (n03126707)"}
    assert shown <= names_in(out / "dendrogram.svg")
    assert "'crane (n03126707)'" in (out / "tree.nwk").read_text()
    figures = figures_of(out)
    class_codes = majority_codes(arrays["codes"], arrays["labels"], 8, 12)
    distances = taxonomy.class_distances(class_codes)
    confusion = taxonomy.confusion_matrix(arrays["labels"], decode_mhd(arrays["codes"], class_codes)[:, 0], 8)
    expected = taxonomy.confusion_correlation(distances, confusion)
    assert figures["taxonomy.confusion_correlation"] == expected.value < 0
    assert figures["taxonomy.confusion_decoder"] == "mhd" and figures["taxonomy.num_images"] == 80
    assert figures["taxonomy.wordnet_correlation"] > 0.1 and figures["taxonomy.wordnet_p_value"] < 1
    assert figures["taxonomy.wordnet_wu_palmer_correlation"] > 0.1 and figures["undefined"] == {}
    bits = json.loads((out / "bits.json").read_text())
    assert len(bits) == 12 and "highest" not in bits[0] and {*bits[0]["ones"], *bits[0]["zeros"]} == {*IDS}
    assert all(0 < abs(own["group"]["phi"]) <= 1 for own in bits if 0 < own["num_ones"] < 8)
    assert {*bits[0]["group"]} >= {"name", "words", "phi", "phi_by_chance"}
    assert "Mantel p = " in said and "WordNet" in said
    words = {row["name"]: row["words"] for row in csv.DictReader((out / "nearest.csv").open())}
    assert words["n01443537"] == "goldfish, Carassius auratus"


def test_odd_names_and_codes_of_other_images(tmp_path, call_llc):
    names = ["it's", "a, b", "$x$", "<&>", "n01440764", "\u4e2d"]
    own = save_codes(tmp_path / "codes.npz", names=names)
    other = save_codes(tmp_path / "val.npz", names=names, seed=1)
    words = [*COMMAND, tmp_path / "codes.npz", "--permutations=9"]
    call_llc(*words, f"--out={tmp_path / 'own'}")
    call_llc(*words, f"--out={tmp_path / 'val'}", f"--data={tmp_path / 'val.npz'}")
    class_codes = majority_codes(own["codes"], own["labels"], 6, 12)
    predicted = decode_mhd(other["codes"], class_codes)[:, 0]
    expected = taxonomy.confusion_correlation(
        taxonomy.class_distances(class_codes),
        taxonomy.confusion_matrix(other["labels"], predicted, 6),
        permutations=9,
    )
    results = [figures_of(tmp_path / folder) for folder in ("val", "own")]
    values = [found["taxonomy.confusion_correlation"] for found in results]
    assert values[0] == expected.value != values[1]
    assert "WordNet ids" in results[0]["undefined"]["taxonomy.wordnet_correlation"]
    assert {*names} <= names_in(tmp_path / "val/dendrogram.svg")
    tree = json.loads((tmp_path / "val/tree.json").read_text())
    assert {leaf["name"] for leaf in leaves(tree)} == {*names}
    assert "'it''s'" in (tmp_path / "val/tree.nwk").read_text()


def test_a_hierarchy_of_ones_own(tmp_path, call_llc):
    save_codes(tmp_path / "codes.npz", names=["ant", "bee", "cat", "dog"])
    (tmp_path / "own.txt").write_text(
        "any\t\nant\tinsect\tthe ant\nbee\tinsect\ninsect\tany\ncat\tany\ndog\tany\n"
    )
    words = [
        *COMMAND,
        tmp_path / "codes.npz",
        f"--out={tmp_path / 'out'}",
        f"--wordnet={tmp_path / 'own.txt'}",
    ]
    call_llc(*words)
    assert figures_of(tmp_path / "out")["taxonomy.wordnet_pairs"] == 6
    assert {"the ant", "bee"} <= names_in(tmp_path / "out/dendrogram.svg")
    (tmp_path / "own.txt").write_text("any\t\nant\tany\nbee\tany\ncat\tany\n")
    assert "1 of 4 classes have no line in it, dog" in call_llc(*words, "--out=x", check=False).stderr
    (tmp_path / "own.txt").write_text("any\t\nant\tany\nbee\tany\ncat\tany\ndog\t\n")
    done = call_llc(*words, f"--out={tmp_path / 'other'}", check=False)
    assert done.returncode == 2 and "no hypernym in common" in done.stderr


def test_what_is_undefined_is_said(tmp_path, call_llc):
    """Two classes whose images are never confused; ids that ImageNet-1K does not have."""
    save_codes(
        tmp_path / "codes.npz",
        names=["n00000001", "n00000002"],
        codes=np.repeat(np.array([[0, 0], [255, 240]], np.uint8), 10, axis=0),
    )
    said = call_llc(*COMMAND, tmp_path / "codes.npz", f"--out={tmp_path / 'out'}").stdout
    figures = figures_of(tmp_path / "out")
    for name, why in (
        ("cophenetic", "all distances between class codes are equal"),
        ("confusion", "no image is decoded as another class"),
        ("wordnet", "2 ids are not of ImageNet-1K, n00000001"),
    ):
        assert figures[f"taxonomy.{name}_correlation"] is None
        assert why in figures["undefined"][f"taxonomy.{name}_correlation"] and why in said
    assert "nan" not in said.lower()


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["ant"]}, "has 1 class; a taxonomy needs 2 or more"),
        ({"labels": None}, "holds no labels"),
        ({"labels": np.full(80, -1)}, "80 of 80 labels are -1"),
        ({"labels": np.array([-1] + [0] * 79)}, "1 of 80 labels are -1"),
        ({"labels": np.zeros(80)}, "labels are float64"),
        ({"labels": np.repeat(np.arange(8), 10) // 2}, "4 of 8 classes have no image, n02085620 for one"),
        ({"labels": np.repeat(np.arange(8), 10) + 1}, "labels go from 1 to 8"),
        ({"names": ["ant", "bee", "ant"]}, "class_names holds a name twice"),
        ({"class_names": np.arange(8)}, "class_names are int64"),
        ({"codes": None}, "not a file of codes"),
    ],
)
def test_bad_codes_are_named(tmp_path, call_llc, changes, message):
    save_codes(tmp_path / "codes.npz", **changes)
    done = call_llc(*COMMAND, tmp_path / "codes.npz", f"--out={tmp_path / 'out'}", check=False)
    assert done.returncode == 2 and message in done.stderr and "codes.npz" in done.stderr
    assert not (tmp_path / "out").exists()


def test_codes_without_class_names_have_numbers(tmp_path, call_llc):
    save_codes(tmp_path / "codes.npz", class_names=None)
    call_llc(*COMMAND, tmp_path / "codes.npz", f"--out={tmp_path / 'out'}", "--data=none")
    assert {*"01234567"} <= names_in(tmp_path / "out/dendrogram.svg")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out="], "--out is missing"),
        (["--out=FOLDER/no/such"], "there is no folder"),
        (["--out=FOLDER/codes.npz"], "is not a folder"),
        (["--num_bits=3"], "--num_bits=3: .* holds codes, not a model"),
        (["--codebook=x.npy"], "holds codes, not a model"),
        (["--decode=posterior"], "no fitted decoder"),
        (["--data=val.beton"], "another .npz"),
        (["--data=FOLDER/other.npz"], "its classes or its number of bits are not those"),
        (["--linkage=ward"], "linkage = 'ward'"),
        (["--wordnet=FOLDER/no.txt"], "no.txt: cannot be read"),
    ],
)
def test_bad_flags_are_named(tmp_path, call_llc, flags, message):
    save_codes(tmp_path / "codes.npz")
    save_codes(tmp_path / "other.npz", num_bits=11)
    flags = [flag.replace("FOLDER", str(tmp_path)) for flag in flags]
    done = call_llc(*COMMAND, tmp_path / "codes.npz", f"--out={tmp_path / 'out'}", *flags, check=False)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "other.npz"]


def test_bad_models_are_named(tmp_path, call_llc, finished_run):
    network = trained_network("resnet18", 12, 4, width=8)
    preprocessing = Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD)
    for name, options, message in (
        ("twice", {"class_names": ["a", "b", "a", "c"]}, "several classes, 'a'"),
        ("dense", {"stage": "dense"}, "dense"),
    ):
        llc.Encoder(network, preprocessing, **options).save(tmp_path / name)
        done = call_llc(*COMMAND, tmp_path / name, f"--out={tmp_path / 'out'}", check=False)
        assert done.returncode == 2 and message in done.stderr
    network.codebook = torch.nn.Parameter(torch.empty(0, 12))
    network.options["num_classes"] = 0
    llc.Encoder(network, preprocessing).save(tmp_path / "no_codebook")
    words = [*COMMAND, tmp_path / "no_codebook", f"--out={tmp_path / 'out'}"]
    done = call_llc(*words, check=False)
    assert done.returncode == 2 and "holds no codebook" in done.stderr and "--codebook=" in done.stderr
    np.save(tmp_path / "codebook.npy", np.random.default_rng(0).normal(size=(5, 12)))
    call_llc(*words, f"--codebook={tmp_path / 'codebook.npy'}")
    assert figures_of(tmp_path / "out")["taxonomy.num_classes"] == 5
    words = [*COMMAND, finished_run, f"--out={tmp_path / 'new'}", "--num_bits=4"]
    done = call_llc(*words, "--decode=posterior", check=False)
    assert done.returncode == 2 and "not fitted to this model" in done.stderr


def test_what_exists_stays(tmp_path, call_llc):
    save_codes(tmp_path / "codes.npz")
    out = tmp_path / "out"
    out.mkdir()
    words = [*COMMAND, tmp_path / "codes.npz", f"--out={out}", "--permutations=9"]
    call_llc(*words)  # an empty folder is taken
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert {path.name for path in before} == FILES
    done = call_llc(*words, "--linkage=single", check=False)
    assert done.returncode == 2 and "name another with --out=FOLDER, or remove it" in done.stderr
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "out"]


@pytest.mark.parametrize("module", ["scipy", "matplotlib"])
def test_a_missing_library_is_named(tmp_path, call_llc, monkeypatch, module):
    save_codes(tmp_path / "codes.npz")
    monkeypatch.setitem(sys.modules, module, None)
    done = call_llc(*COMMAND, tmp_path / "codes.npz", f"--out={tmp_path / 'out'}", check=False)
    assert done.returncode == 2 and f"needs {module}" in done.stderr
    assert "pip install 'llcodes[evaluation]'" in done.stderr
