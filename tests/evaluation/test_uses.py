"""llc.evaluate's retrieval and out-of-distribution detection: of runs, and of codes without a model."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from llc import load, unpack_bits
from llc.evaluate import retrieval as of_evaluate
from llc.evaluate.origin import digest
from llc.evaluation import ood, retrieval
from llc.hamming import pairwise


@pytest.fixture(scope="module")
def codes_of(finished_run, betons, tmp_path_factory, made_once):
    """{"train", "val": path of the codes.npz that llc.encode writes}."""
    from tests.conftest import run_command

    def encode(folder):
        for path in betons:
            run_command("-m", "llc.encode", finished_run, f"--data={path}", f"--out={folder / path.stem}.npz")

    folder = made_once("codes", encode)
    return {name: folder / f"{name}.npz" for name in ("train", "val")}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A folder of 40 images of noise."""
    folder, rng = tmp_path_factory.mktemp("other") / "noise", np.random.default_rng(0)
    folder.mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def figures(call_llc, tmp_path, *words):
    """({name: value} of --json, what was printed)."""
    path = tmp_path / "figures.json"
    path.unlink(missing_ok=True)
    text = call_llc("-m", "llc.evaluate", *words, f"--json={path}").stdout
    return json.loads(path.read_text()), text


def of(found, section):
    return {
        name.removeprefix(f"{section}."): value
        for name, value in found.items()
        if name.startswith(f"{section}.")
    }


# ------------------------------------------------------------------------------------------------- retrieval


def test_retrieval_of_a_run_equals_that_of_its_codes_and_the_librarys(
    finished_run, betons, codes_of, call_llc, tmp_path
):
    sets = {name: np.load(path) for name, path in codes_of.items()}
    expected = retrieval.evaluate(
        sets["val"]["codes"],
        sets["val"]["labels"],
        sets["train"]["codes"],
        sets["train"]["labels"],
        k=50,
        shuffle=0,
    )
    found, text = figures(
        call_llc, tmp_path, finished_run, f"--retrieval.database={betons[0]}", "--retrieval.k=50"
    )
    assert of(found, "retrieval") == expected
    assert 0.9 < found["retrieval.map"] <= 1 and 0 < found["retrieval.recall@10"] < 0.5
    assert f"mAP {100 * found['retrieval.map']:.2f} %" in text
    assert found["instance.top1_mhd_flip"] > 0.5  # the decoders' figures are there, too
    mixed, _ = figures(
        call_llc, tmp_path, finished_run, f"--retrieval.database={codes_of['train']}", "--retrieval.k=50"
    )
    assert of(mixed, "retrieval") == expected
    words = (codes_of["val"], f"--retrieval.database={codes_of['train']}", "--retrieval.k=50")
    alone, _ = figures(call_llc, tmp_path, *words)
    assert of(alone, "retrieval") == expected and set(alone) == {f"retrieval.{name}" for name in expected}


def test_where_the_queries_are_the_database_each_is_left_out(
    finished_run, betons, codes_of, call_llc, tmp_path
):
    val = np.load(codes_of["val"])
    arrays = val["codes"], val["labels"], val["codes"], val["labels"]
    expected = retrieval.evaluate(*arrays, leave_one_out=True, shuffle=0)
    assert expected != retrieval.evaluate(*arrays, shuffle=0)
    for words in (
        (finished_run, f"--retrieval.database={betons[1]}"),
        (finished_run, f"--retrieval.database={betons[1]}", f"--retrieval.queries={betons[1]}"),
        (finished_run, f"--retrieval.database={codes_of['val']}"),
        (codes_of["val"], f"--retrieval.database={codes_of['val']}"),
        (
            codes_of["train"],
            f"--retrieval.queries={codes_of['val']}",
            f"--retrieval.database={codes_of['val']}",
        ),
    ):
        found, text = figures(call_llc, tmp_path, *words)
        assert of(found, "retrieval") == expected, words
        assert "each left out of its own answer" in text


def test_classes_are_matched_by_their_names(codes_of, call_llc, tmp_path):
    expected, _ = figures(call_llc, tmp_path, codes_of["val"], f"--retrieval.database={codes_of['train']}")
    train = dict(np.load(codes_of["train"]))
    order = np.array([3, 1, 5, 0, 4, 2])
    train["class_names"] = train["class_names"][order]
    train["labels"] = np.argsort(order)[train["labels"]]
    np.savez(tmp_path / "reordered.npz", **train)
    words = codes_of["val"], f"--retrieval.database={tmp_path / 'reordered.npz'}"
    assert figures(call_llc, tmp_path, *words)[0] == expected


def test_the_curves_are_written(codes_of, call_llc, tmp_path):
    found, _ = figures(
        call_llc,
        tmp_path,
        codes_of["val"],
        f"--retrieval.database={codes_of['train']}",
        f"--retrieval.csv={tmp_path / 'curves.csv'}",
    )
    with open(tmp_path / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    by_k = {int(row["value"]): row for row in rows if row["at"] == "k"}
    within = {int(row["value"]): row for row in rows if row["at"] == "distance"}
    assert sorted(by_k) == list(range(1, 241)) and sorted(within) == list(range(11))
    assert float(by_k[10]["precision"]) == found["retrieval.precision@10"]
    assert float(within[2]["precision"]) == found["retrieval.precision_within_2"]
    assert float(by_k[240]["recall"]) == float(within[10]["recall"]) == 1
    network = str(np.load(codes_of["val"])["network"])[:16]
    assert {(row["model"], row["network"]) for row in rows} == {(str(codes_of["val"]), network)}


def test_what_retrieval_cannot_do_is_said(finished_run, betons, codes_of, call_llc, tmp_path):
    train = dict(np.load(codes_of["train"]))

    def written(**changes):
        path = tmp_path / "changed.npz"
        np.savez(path, **{key: value for key, value in (train | changes).items() if value is not None})
        return path

    def refused(*words):
        done = call_llc("-m", "llc.evaluate", *words, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    run, val = finished_run, codes_of["val"]
    assert "--retrieval.queries=x.npz: there is nothing to search" in refused(
        run, "--retrieval.queries=x.npz"
    )
    assert "no/such" in refused(run, "--retrieval.database=no/such.beton")
    labels = train["labels"].copy()
    labels[:7] = -1
    assert "7 of 240 images have no label" in refused(val, f"--retrieval.database={written(labels=labels)}")
    assert "240 of 240 images have no label" in refused(
        val, f"--retrieval.database={written(labels=None, class_names=None)}"
    )
    assert "labels are int64 [239]" in refused(
        val, f"--retrieval.database={written(labels=train['labels'][:239])}"
    )
    names = np.array([f"other_{i}" for i in range(6)])
    assert "it has no class of MODEL" in refused(val, f"--retrieval.database={written(class_names=names)}")
    assert "its codes have 9 bits" in refused(
        val,
        f"--retrieval.database={written(codes=train['codes'] & np.uint8([255, 128]), num_bits=np.array(9))}",
    )
    codes = train["codes"].copy()
    codes[5, 1] |= 1
    assert "padding bits after the 10 bits" in refused(val, f"--retrieval.database={written(codes=codes)}")
    assert "holds codes and no model to encode images" in refused(val, f"--retrieval.database={betons[0]}")
    assert "--retrieval.database" in refused(val)  # nothing is asked for
    assert "holds codes, and this flag is for a model" in refused(val, "--num_bits=4")
    assert "holds codes, and this flag is for images" in refused(val, "--split=train")
    for flag in ("--min_probability=0.5", f"--predictions={tmp_path / 'p.npz'}"):
        assert "name its train set" in refused(val, flag, f"--retrieval.database={codes_of['train']}")
    far = written(class_names=None, labels=train["labels"] + 10**12)
    assert "no image of it has the class" in refused(val, f"--retrieval.database={far}")
    assert "its labels go up to 1000000000005" in refused(val, f"--fit_decoder={far}")
    assert "what is read is this file, too" in refused(val, f"--fit_decoder={far}", f"--json={far}")
    same = f"--json={tmp_path / 'out'}"
    assert "--json" in refused(
        val, f"--retrieval.database={val}", same, f"--retrieval.csv={tmp_path / 'out'}"
    )
    assert "there is no folder" in refused(val, f"--retrieval.database={val}", "--json=no/such/out.json")


def test_other_images_of_the_same_names_are_other_images(finished_run, image_tree, call_llc, tmp_path):
    """Each query is left out where the images are the same, not where only their files are called so."""
    for folder, noise in (("one", 0), ("other", 150)):
        rng = np.random.default_rng(noise)
        for path in sorted(image_tree.glob("val/*/*.png"))[::2]:
            target = tmp_path / folder / path.relative_to(image_tree / "val")
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(path)) + rng.normal(0, noise, (*Image.open(path).size[::-1], 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)
    words = (finished_run, f"--data.val_dataset={tmp_path / 'one'}")
    _, text = figures(call_llc, tmp_path, *words, f"--retrieval.database={tmp_path / 'other'}")
    assert "searched with" in text and "left out" not in text
    _, text = figures(call_llc, tmp_path, *words, f"--retrieval.database={tmp_path / 'one'}")
    assert "each left out of its own answer" in text
    found, _ = figures(call_llc, tmp_path, *words, f"--ood.dataset={tmp_path / 'other'}")
    assert found["ood.other.auroc.energy"] > 0.5
    done = call_llc("-m", "llc.evaluate", *words, f"--ood.dataset=x={tmp_path / 'one'}", check=False)
    assert done.returncode == 2 and "these are the images of data.val_dataset" in done.stderr


def test_a_ranking_that_does_not_fit_into_memory_is_said_before_long_work(codes_of, call_llc, monkeypatch):
    monkeypatch.setattr(of_evaluate, "_free_memory", lambda: 66 * 17 * 8 - 1)
    words = "-m", "llc.evaluate", codes_of["val"], f"--retrieval.database={codes_of['train']}"
    done = call_llc(*words, check=False)
    assert done.returncode == 2 and "66 queries of 10 bits takes 0.0 GB of memory" in done.stderr
    for free in (66 * 17 * 8, 0):  # 0: unknown
        monkeypatch.setattr(of_evaluate, "_free_memory", lambda free=free: free)
        assert call_llc(*words).returncode == 0
    monkeypatch.undo()
    assert of_evaluate._free_memory() > 1 << 20


def test_the_size_of_a_ranking_is_that_of_its_counts():
    codes = np.zeros((5, 3), np.uint8)
    ranking = retrieval.rank(codes, np.zeros(5, int), codes, np.zeros(5, int), 1)
    assert retrieval.counts_size(5, 20) == ranking.total.nbytes + ranking.relevant.nbytes


def test_names_in_bytes_are_texts(codes_of, call_llc, tmp_path):
    train = dict(np.load(codes_of["train"]))
    train["class_names"] = np.char.encode(train["class_names"], "utf-8")
    np.savez(tmp_path / "bytes.npz", **train)
    expected, _ = figures(call_llc, tmp_path, codes_of["val"], f"--retrieval.database={codes_of['train']}")
    found, _ = figures(call_llc, tmp_path, codes_of["val"], f"--retrieval.database={tmp_path / 'bytes.npz'}")
    assert found == expected
    train["class_names"] = np.array([b"\xff%d" % i for i in range(6)])
    np.savez(tmp_path / "bytes.npz", **train)
    done = call_llc(
        "-m", "llc.evaluate", codes_of["val"], f"--retrieval.database={tmp_path / 'bytes.npz'}", check=False
    )
    assert done.returncode == 2 and "bytes that are not UTF-8" in done.stderr


# ------------------------------------------------------------------------------ codes without a model


def test_codes_without_a_model_are_decoded_by_the_majority_of_the_train_codes(codes_of, call_llc, tmp_path):
    found, text = figures(call_llc, tmp_path, codes_of["val"], f"--fit_decoder={codes_of['train']}")
    train, val = (np.load(codes_of[name]) for name in ("train", "val"))
    of_class = []
    for label in range(6):
        bits = unpack_bits(train["codes"][train["labels"] == label], 10)
        of_class.append([2 * sum(column) > len(column) for column in bits.T.tolist()])
    distances = pairwise(val["codes"], np.packbits(np.array(of_class), axis=1))
    assert found["codes.top1_mhd"] == pytest.approx((distances.argmin(1) == val["labels"]).mean())
    exact = np.where(distances.min(1) == 0, distances.argmin(1), -1)
    assert found["codes.top1_ed"] == pytest.approx((exact == val["labels"]).mean())
    assert found["codes.top1_posterior"] > 0.5 and "posterior" in text and "codes.top1_class" not in found


def test_train_codes_that_do_not_fit_are_an_error(codes_of, call_llc, tmp_path):
    def refused(*words):
        done = call_llc("-m", "llc.evaluate", codes_of["val"], *words, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    train = dict(np.load(codes_of["train"]))
    assert "decoders learn from the train set" in refused(f"--fit_decoder={codes_of['val']}")
    np.savez(tmp_path / "few.npz", **{**train, "labels": train["labels"].clip(max=3)})
    assert "2 of 6 classes have no codes" in refused(f"--fit_decoder={tmp_path / 'few.npz'}")
    np.savez(tmp_path / "named.npz", **{**train, "class_names": np.array(list("abcdef"))})
    assert "6 of its 6 classes are not among the 6" in refused(f"--fit_decoder={tmp_path / 'named.npz'}")


# -------------------------------------------------------------------------------- out-of-distribution images


def test_detection_equals_the_librarys(finished_run, betons, codes_of, noise, call_llc, run_llc, tmp_path):
    scores = tmp_path / "scores.npz"
    words = (finished_run, f"--ood.dataset={noise}", f"--ood.scores={scores}")
    found, text = figures(call_llc, tmp_path, *words)
    arrays = dict(np.load(scores))
    known = digest(load(finished_run).network)
    description = json.loads(str(arrays.pop("description")))
    assert description == {"format": 1, "model": str(finished_run), "network": known}
    inside, outside = ({k: v for k, v in of(arrays, name).items()} for name in ("evaluated", "noise"))
    assert set(inside) == set(outside) == {"exact", "mhd", "density", "posterior", "softmax", "energy"}
    assert {len(own) for own in inside.values()} == {66} and {len(own) for own in outside.values()} == {40}
    assert of(found, "ood.noise") == ood.evaluate(inside, outside)
    assert "40 images of noise beside 66" in text and f"{100 * found['ood.noise.auroc.mhd']:.2f}" in text
    assert inside["mhd"].mean() > outside["mhd"].mean()

    distributed = tmp_path / "two.npz"
    run_llc("-m", "llc.evaluate", *words[:2], f"--ood.scores={distributed}", processes=2)
    for name, values in np.load(distributed).items():
        if name == "description":
            assert json.loads(str(values)) == description
            continue
        np.testing.assert_allclose(values, arrays[name], rtol=1e-4, atol=1e-4)


def test_detection_from_codes_equals_that_of_images(finished_run, codes_of, noise, call_llc, tmp_path):
    call_llc("-m", "llc.encode", finished_run, f"--data={noise}", f"--out={tmp_path / 'noise.npz'}")
    whole, _ = figures(call_llc, tmp_path, finished_run, f"--ood.dataset={noise}")
    mixed, _ = figures(call_llc, tmp_path, finished_run, f"--ood.dataset=noise={tmp_path / 'noise.npz'}")
    of_codes = {name for name in of(whole, "ood.noise") if not name.endswith(("softmax", "energy"))}
    assert of_codes == set(of(mixed, "ood.noise")) and len(of_codes) > 10
    for name in of_codes:
        assert whole[f"ood.noise.{name}"] == mixed[f"ood.noise.{name}"]
    alone, _ = figures(
        call_llc,
        tmp_path,
        codes_of["val"],
        f"--fit_decoder={codes_of['train']}",
        f"--ood.dataset={tmp_path / 'noise.npz'}",
    )
    assert of_codes <= {name.removeprefix("ood.noise.") for name in alone}


def test_detection_needs_no_labels(codes_of, call_llc, tmp_path):
    val = dict(np.load(codes_of["val"]))
    del val["labels"], val["class_names"]
    np.savez(tmp_path / "unlabelled.npz", **val)
    words = (f"--fit_decoder={codes_of['train']}", f"--ood.dataset=x={codes_of['train']}")
    found, _ = figures(call_llc, tmp_path, tmp_path / "unlabelled.npz", *words)
    labelled, _ = figures(call_llc, tmp_path, codes_of["val"], *words)
    assert of(found, "ood.x") == of(labelled, "ood.x") and set(found) == {
        name for name in labelled if not name.startswith("codes.")
    }


def test_several_sets_have_names_of_their_own(finished_run, noise, call_llc, tmp_path):
    found, text = figures(call_llc, tmp_path, finished_run, f"--ood.dataset={noise},again={noise}")
    assert of(found, "ood.noise") == of(found, "ood.again") and "images of again" in text
    done = call_llc("-m", "llc.evaluate", finished_run, f"--ood.dataset={noise},{noise}", check=False)
    assert done.returncode == 2 and "would both be called noise; write NAME=PATH" in done.stderr


def test_what_detection_cannot_do_is_said(finished_run, betons, codes_of, noise, call_llc, tmp_path):
    def refused(*words):
        done = call_llc("-m", "llc.evaluate", *words, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    assert "these are the images of data.val_dataset" in refused(finished_run, f"--ood.dataset={betons[1]}")
    assert "--ood.scores=x.npz: there are no other images" in refused(finished_run, "--ood.scores=x.npz")
    assert "--fit_decoder=train.npz" in refused(codes_of["val"], f"--ood.dataset={codes_of['train']}")
    assert "no/such" in refused(finished_run, "--ood.dataset=no/such/folder")


def test_a_model_without_codes_has_no_uses(betons, run_llc, call_llc, tmp_path):
    run_llc(
        "train_llc.py",
        "--config=rn18_configs/llc_demo.yaml",
        "--model.width=8",
        "--training.stages=dense",
        "--dense.epochs=1",
        "--dense.lr=0.05",
        "--training.batch_size=24",
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        "--logging.name=dense",
    )
    done = call_llc(
        "-m", "llc.evaluate", tmp_path / "dense", f"--retrieval.database={betons[0]}", check=False
    )
    assert done.returncode == 2 and "dense" in done.stderr and "Traceback" not in done.stderr


def test_what_stands_in_for_a_network_gives_the_bits_of_codes_as_signs():
    from llc.evaluate.subject import CodesNetwork

    codes = np.array([[0b10100000], [0b01000000]], np.uint8)
    network = CodesNetwork(codes, 3)
    assert network(torch.from_numpy(codes)).tolist() == [[1, -1, 1], [-1, 1, -1]]
    assert torch.equal(network.codebook, network(torch.from_numpy(codes)))


# ------------------------------------------------------------------------------------------------ near misses


def test_no_file_that_is_read_is_overwritten(finished_run, betons, codes_of, call_llc, tmp_path):
    run, decoder = tmp_path / "run", tmp_path / "own.npz"
    shutil.copytree(finished_run, run)
    shutil.copy(run / "decoder.npz", decoder)
    database = f"--retrieval.database={codes_of['train']}"
    for words, part in (
        ((run, f"--json={run / 'decoder.npz'}"), "a part of the run"),
        ((run, f"--json={run / 'config.yaml'}"), "a part of the run"),
        ((run, f"--predictions={run / 'checkpoints/instance.pth'}"), "a part of the run"),
        ((run, f"--decoder={decoder}", f"--json={decoder}"), "what is read is this file"),
        ((run, f"--json={betons[1]}"), "what is read is this file"),
        ((run, database, f"--retrieval.csv={codes_of['train']}"), "what is read is this file"),
        ((codes_of["val"], database, f"--json={codes_of['val']}"), "what is read is this file"),
    ):
        before = {path: path.read_bytes() for path in (*run.rglob("*.*"), decoder, *betons) if path.is_file()}
        done = call_llc("-m", "llc.evaluate", *words, check=False)
        assert done.returncode == 2 and part in done.stderr, done.stderr
        assert before == {path: path.read_bytes() for path in before}
    call_llc("-m", "llc.evaluate", run, f"--json={run / 'figures.json'}")  # beside them there is room
    assert (run / "figures.json").is_file()


def perfect(files):
    """The codes of 3 classes with 4 images each, which are their classes' codes."""
    labels = np.repeat(np.arange(3), 4)
    codes = np.array([[0b11000000], [0b00110000], [0b00001100]], np.uint8)[labels]
    return {"codes": codes, "num_bits": np.array(8), "labels": labels, "files": np.array(files)}


def test_sets_of_equal_codes_are_told_apart_by_the_names_of_the_images(call_llc, tmp_path):
    names = [f"{i}.png" for i in range(12)]
    np.savez(tmp_path / "a.npz", **perfect(names))
    np.savez(tmp_path / "b.npz", **perfect([f"other/{name}" for name in names]))
    words = (tmp_path / "a.npz", f"--retrieval.database={tmp_path / 'b.npz'}")
    found, text = figures(call_llc, tmp_path, *words)
    assert "searched with" in text and found["retrieval.recall@2"] == pytest.approx(2 / 4)
    found, text = figures(call_llc, tmp_path, *words[:1], f"--retrieval.database={tmp_path / 'a.npz'}")
    assert "left out" in text and found["retrieval.recall@2"] == pytest.approx(2 / 3)
    figures(call_llc, tmp_path, *words[:1], f"--fit_decoder={tmp_path / 'b.npz'}")  # is no fault
    done = call_llc("-m", "llc.evaluate", *words[:1], f"--fit_decoder={tmp_path / 'a.npz'}", check=False)
    assert done.returncode == 2 and "decoders learn from the train set" in done.stderr


def test_what_may_surprise_is_said(codes_of, call_llc, tmp_path):
    val = dict(np.load(codes_of["val"]))
    order = np.random.default_rng(0).permutation(len(val["labels"]))
    np.savez(
        tmp_path / "shuffled.npz", **{**val, "codes": val["codes"][order], "labels": val["labels"][order]}
    )
    _, text = figures(
        call_llc, tmp_path, codes_of["val"], f"--retrieval.database={tmp_path / 'shuffled.npz'}"
    )
    assert "in another order: each finds itself" in text
    del val["class_names"]
    np.savez(tmp_path / "unnamed.npz", **val)
    _, text = figures(
        call_llc, tmp_path, codes_of["train"], f"--retrieval.database={tmp_path / 'unnamed.npz'}"
    )
    assert "unnamed.npz has no class names: labels are compared as numbers" in text


def test_faults_of_codes_made_elsewhere(codes_of, call_llc, tmp_path):
    val, path = dict(np.load(codes_of["val"])), tmp_path / "made.npz"

    def refused(*words):
        done = call_llc("-m", "llc.evaluate", *words, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    train = f"--fit_decoder={codes_of['train']}"
    database = f"--retrieval.database={codes_of['val']}"
    for num_bits in (np.array([10]), np.array(10.0), np.array("10")):
        np.savez(path, **{**val, "num_bits": num_bits})
        assert "num_bits is" in refused(path, database) and "one whole number" in refused(path, database)
    np.savez(path, **{**val, "labels": val["labels"].astype(object)})
    assert "holds Python objects" in refused(path, database)
    np.savez_compressed(
        path, **{**val, "codes": np.random.default_rng(0).integers(0, 4, (5000, 2), np.uint8) << 6}
    )
    content = bytearray(path.read_bytes())
    start = content.index(b"codes.npy") + 60
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    assert "made.npz: not a file of codes" in refused(path, database)
    assert "it takes a whole number" in refused(codes_of["val"], database, f"--retrieval.k={10**20}")
    np.savez(
        path,
        **{name: array[:1] if array.shape else array for name, array in val.items()}
        | {"class_names": val["class_names"]},
    )
    assert "it has 1 image" in refused(codes_of["val"], train, f"--ood.dataset={path}")
    assert "these are the images of MODEL" in refused(
        codes_of["val"], train, f"--ood.dataset=x={codes_of['val']}"
    )
