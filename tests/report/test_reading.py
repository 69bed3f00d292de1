"""Run folders and files of llc.evaluate read for a report: what is found, and what is said of broken ones."""

import json
import shutil

import numpy as np
import pytest
import yaml

import llc
from llc.codes import pack_bits, unpack_bits
from llc.errors import UserError
from llc.evaluation import ood
from llc.report import reading
from llc.report.reading import health, read_curves, read_detections, read_run
from tests.conftest import ROOT


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the run, which may be changed."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def change(run, section, **values):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def refused(function, path):
    with pytest.raises(UserError) as caught:
        function(path)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ run folders


def test_a_finished_run(finished_run, betons):
    found = read_run(finished_run)
    assert found.name == "run" and found.stages == ["codebook", "instance"] and found.num_bits == 10
    assert [line["global_epoch"] for line in found.epochs] == list(range(1, 14))
    assert found.class_names == [f"class_{label}" for label in range(6)]
    codebook = np.load(finished_run / "codebook.npy")
    assert np.array_equal(found.class_codes, np.packbits(codebook > 0, axis=1))
    rows = [line.split(",") for line in (finished_run / "results.csv").read_text().splitlines()[1:]]
    assert list(found.results) == [row[0] for row in rows]
    for name, final, best, _ in rows:
        assert np.array_equal(found.results[name], [float(final), float(best)], equal_nan=True)
    assert np.isnan(found.results["instance/top1_posterior_flip"][1])
    assert found.tree is not None and sorted(found.tree.order.tolist()) == list(range(6))
    for split, count in (("train", 240), ("val", 66)):
        text = found.origin[f"{split} images"]
        assert f"{count} images of 6 classes" in text and text.endswith("the same as in the training")
    assert found.origin["processes"] == "2" and "instance.pth" in found.origin["checkpoint"]
    assert f"torch {llc.load.__globals__['torch'].__version__}" in found.origin["versions of this report"]
    assert "unknown" in found.origin["versions of the training"]


def test_differences_are_from_the_nearest_recipe(finished_run):
    """The run was made from this recipe, with these flags."""
    found = read_run(finished_run)
    assert found.base == "rn18_configs/llc_demo.yaml"
    assert {one.key: (one.value, one.base) for one in found.differences} == {
        "model.width": ("8", "32"),
        "codes.num_bits": ("10", "16"),
        "codebook.epochs": ("8", "2"),
        "codebook.lr_peak_epoch": ("1.0", "0.5"),
        "instance.epochs": ("5", "1"),
        "training.batch_size": ("24", "256"),
        "validation.batch_size": ("16", "256"),
    }


def test_a_recipe_without_changes_has_no_differences(run, tmp_path):
    """Where the data are, and in which folder, is no difference; nor are stages that do not run."""
    recipe = yaml.safe_load((ROOT / "rn18_configs/llc_demo.yaml").read_text())
    recipe["data"] |= {"train_dataset": "a.beton", "val_dataset": "b.beton", "num_workers": 3}
    recipe |= {"logging": {"folder": "elsewhere"}, "joint": {"epochs": 77}}
    recipe["codes"]["num_bits"] = 16
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    np.save(run / "codebook.npy", np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32))
    found = read_run(run)
    assert (found.base, found.differences) == ("rn18_configs/llc_demo.yaml", [])


def test_without_recipes_the_defaults_are_the_base(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SHIPPED", tmp_path)
    found = read_run(run)
    assert found.base == "the defaults"
    values = {one.key: (one.value, one.base) for one in found.differences}
    assert values["model.arch"] == ("resnet18", "resnet50") and values["codes.num_bits"] == ("10", "20")
    assert values["codebook.epochs"] == ("8", "(empty)") and "codes.hidden" not in values


def test_a_run_without_class_names_or_results(run):
    for name in ("class_names.json", "results.csv"):
        (run / name).unlink()
    found = read_run(run)
    assert found.class_names[:2] == ["class 0", "class 1"] and found.results == {}


def test_a_run_before_its_first_epoch_ends(run):
    """Only what is there then: the class codes are those of the checkpoint."""
    codes = read_run(run).class_codes
    for name in ("results.csv", "log.jsonl", "codebook.npy"):
        (run / name).unlink()
    for name in ("codebook", "instance", "model_best"):
        (run / "checkpoints" / f"{name}.pth").unlink()
    found = read_run(run)
    assert list(found.stages) == [] and list(found.epochs) == [] and np.array_equal(found.class_codes, codes)
    assert found.origin["checkpoint"].startswith("none")
    (run / "checkpoints/last.pth").unlink()
    assert "no class codes yet" in refused(read_run, run)


def test_a_run_that_is_dense_or_still_in_its_dense_stage(run):
    dense = {"epochs": 2, "lr": 0.1}
    change(run, "dense", **dense)
    change(run, "training", stages="dense")
    assert "dense classifier" in refused(read_run, run)
    change(run, "training", stages="dense,instance")
    assert len(read_run(run).epochs) == 13  # it has epochs of the instance stage
    log = [json.loads(line) | {"stage": "dense"} for line in (run / "log.jsonl").open()]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    np.save(run / "codebook.npy", np.eye(6, 10, dtype=np.float32))  # not the class codes of the run
    assert len(read_run(run).class_codes) == 6  # the instance stage is finished: it had no epochs
    for name in ("results.csv", "checkpoints/instance.pth"):
        (run / name).unlink()
    assert "the instance stage" in refused(read_run, run)


def test_data_that_are_gone_or_others(run, betons, tmp_path):
    change(run, "data", val_dataset=str(tmp_path / "gone.beton"))
    origin = read_run(run).origin
    assert "gone.beton" in origin["val images"] and "unknown" in origin["val images"]
    assert "unknown whether" in origin["train images"]
    for end in ("", ".json"):
        shutil.copy(f"{betons[1]}{end}", f"{tmp_path / 'train.beton'}{end}")
    change(run, "data", val_dataset=str(betons[1]), train_dataset=str(tmp_path / "train.beton"))
    origin = read_run(run).origin
    assert (
        "66 images" in origin["train images"]
        and "not the images that the training had" in origin["train images"]
    )
    assert origin["val images"].endswith("the same as in the training")


def test_a_last_line_that_is_being_written_is_left_out_and_said(run):
    assert read_run(run).notes == []
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(text + text.splitlines()[0][:40])
    found = read_run(run)
    assert len(found.epochs) == 13 and "log.jsonl is cut off" in found.notes[0]
    assert "Restore the file" in found.notes[0]
    (run / "results.csv").unlink()
    unfinished, cut_off = read_run(run).notes
    assert "it was being written" in cut_off
    assert unfinished == (
        "This run is not finished: its log ends after epoch 5 of 5 of the instance stage. "
        "Images are encoded by the network at the end of the instance stage."
    )


def test_a_finished_stage_whose_network_is_missing(run):
    """Its numbers stay, and what is missing is said; a stage that a later one followed was finished, too."""
    (run / "checkpoints/instance.pth").unlink()
    found = read_run(run)
    assert found.stages == ["codebook", "instance"] and found.without_checkpoint == ["instance"]
    assert found.origin["checkpoint"].startswith("checkpoints/codebook.pth")
    assert ["checkpoints/instance.pth is missing" in note for note in found.notes] == [True]
    (run / "results.csv").unlink()
    assert read_run(run).stages == ["codebook"]  # which the instance stage may still be
    (run / "checkpoints/codebook.pth").unlink()
    assert read_run(run).without_checkpoint == ["codebook"]


def test_the_identity_of_the_val_images(run, betons, tmp_path):
    """It is that of the training, and of the images that are there where last.pth is missing."""
    stored = read_run(run).val_data
    change(run, "data", val_dataset=str(betons[0]))
    assert read_run(run).val_data == stored and len(stored) == 64
    (run / "checkpoints/last.pth").unlink()
    assert read_run(run).val_data not in (stored, "")
    change(run, "data", val_dataset=str(betons[1]))
    assert read_run(run).val_data == stored
    change(run, "data", val_dataset=str(tmp_path / "gone.beton"))
    assert read_run(run).val_data == ""


EPOCH = '{"stage": "codebook", "epoch": 1, "global_epoch": 1, "loss": %s, "train_seconds": %s}'


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("log.jsonl", '{"stage": "codebook", "epo\n', "line 1 is damaged"),
        ("log.jsonl", EPOCH % ("1.5", '"x"') + "\n", "train_seconds is 'x', not a number"),
        ("log.jsonl", EPOCH % ("1" + 400 * "0", "2") + "\n", "loss is a whole number of 300 digits"),
        ("log.jsonl", "[1]\n", "not a table"),
        ("log.jsonl", '{"stage": "codebook", "epoch": 1}\n', "global_epoch is missing"),
        (
            "log.jsonl",
            '{"stage": "a", "epoch": 1, "global_epoch": 1, "loss": "low"}\n',
            "'low', not a number",
        ),
        ("log.jsonl", b"\xff\xfe\x00", "not text"),
        ("log.jsonl", None, "missing"),
        ("results.csv", "", "no column metric"),
        ("results.csv", "metric,final,best_epoch,headline\n", "no results"),
        ("results.csv", "metric,final,best_epoch\na/top1,high,0\n", "'high', not a number"),
        ("results.csv", "metric,final,best_epoch\na/top1,1\n", "2 values"),
        ("results.csv", "metric,final,best_epoch\ntop1,1,1\n", "STAGE/METRIC"),
        ("class_names.json", '["one"]', "1 names, but the codebook has 6"),
        ("class_names.json", "{", "class_names.json"),
        ("codebook.npy", b"\x93NUMPY", "codebook.npy"),
        ("codebook.npy", None, "codebook.npy"),
        ("config.yaml", None, "not a run folder"),
        ("config.yaml", "model: [", "config.yaml"),
    ],
)
def test_a_broken_file_is_named(run, name, content, said):
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(read_run, run)
    assert said in message and str(run) in message and (name in message or content is None)


# ------------------------------------------------------------------------------------------------ class codes


@pytest.mark.parametrize("num_bits", [3, 8, 13])
def test_health_against_counting_pairs(num_bits):
    codes = pack_bits(np.random.default_rng(num_bits).normal(size=(11, num_bits)))
    codes[7] = codes[4] = codes[2]
    found, bits = health(codes, num_bits), unpack_bits(codes, num_bits)
    counts, same = [0] * (num_bits + 1), []
    for a in range(11):
        for b in range(a):
            distance = sum(int(x != y) for x, y in zip(bits[a], bits[b]))
            counts[distance] += 1
            same += [{a, b}] * (distance == 0)
    assert found.counts.tolist() == counts and counts[0] >= 3
    assert found.balance.tolist() == [sum(column) / 11 for column in bits.T.tolist()]
    assert [2, 4, 7] == [
        label for group in found.shared if 2 in group for label in group if label in (2, 4, 7)
    ]
    assert sum(len(group) * (len(group) - 1) // 2 for group in found.shared) == counts[0]
    nearest = [min((bits[a] != bits[b]).sum() for b in range(11) if b != a) for a in range(11)]
    assert found.nearest.tolist() == nearest


def test_health_of_one_class():
    found = health(np.array([[128]], np.uint8), 3)
    assert found.counts.tolist() == [0, 0, 0, 0] and found.balance.tolist() == [1, 0, 0] and not found.shared


# -------------------------------------------------------------------------------------- files of llc.evaluate


def test_auroc_is_that_of_all_pairs():
    rng = np.random.default_rng(1)
    inside, outside = rng.integers(0, 6, 23), rng.integers(0, 5, 17)  # many ties
    expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside])
    assert 0.55 < expected < 0.75
    assert ood.auroc(inside, outside) == pytest.approx(expected, abs=1e-12)
    assert ood.detection(inside, outside)["auroc"] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="scores_out: holds no scores"):
        ood.auroc(inside, outside[:0])


def test_detections(tmp_path):
    rng = np.random.default_rng(2)
    arrays = {
        f"{name}.{score}": rng.normal(size=size)
        for name, size in (("evaluated", 9), ("my.digits", 5), ("noise", 4))
        for score in ("mhd", "density")
    }
    arrays["noise.extra"] = np.zeros(4)  # not measured on the images evaluated
    np.savez(tmp_path / "ood.npz", **arrays)
    found = read_detections(tmp_path / "ood.npz")
    names = [(one.dataset, one.score) for one in found]
    assert names == [(n, s) for n in ("my.digits", "noise") for s in ("mhd", "density")]
    for one in found:
        assert np.array_equal(one.inside, arrays[f"evaluated.{one.score}"])
        assert np.array_equal(one.outside, arrays[f"{one.dataset}.{one.score}"])
        assert one.auroc == ood.auroc(one.inside, one.outside)


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"codes": np.zeros(3)}, "not the name of a score"),
        ({"evaluated.mhd": np.zeros(3)}, "not a file of scores"),
        ({"digits.mhd": np.zeros(3)}, "not a file of scores"),
        ({"evaluated.mhd": np.zeros(3), "digits.mhd": np.zeros((3, 2))}, "digits.mhd is float64 [3, 2]"),
        ({"evaluated.mhd": np.zeros(3), "digits.mhd": np.array([0, np.nan])}, "1 of 2 scores are NaN"),
        ({"evaluated.mhd": np.zeros(3), "digits.mhd": np.zeros(0)}, "expected real numbers"),
        ({"evaluated.mhd": np.zeros(3), "digits.mhd": np.array(["a"])}, "expected real numbers"),
        ({"evaluated.mhd": np.array([{}])}, "not a .npz file of numbers"),
        (b"PK\x03\x04 cut off", "not a .npz file"),
        (b"", "an empty file"),
        (None, "cannot be read"),
    ],
)
def test_files_that_hold_no_scores(tmp_path, arrays, said):
    path = tmp_path / "ood.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    message = refused(read_detections, path)
    assert said in message and str(path) in message


def test_curves(tmp_path):
    path = tmp_path / "retrieval.csv"
    path.write_text("at,value,precision,recall\nk,2,0.4,0.2\nk,1,0.5,0.1\nk,9,0.3,0.9\ndistance,0,0.7,0.01\n")
    precision, recall, both = read_curves(path)
    assert (precision.name, recall.name, both.name) == ("precision@k", "recall@k", "precision over recall")
    assert precision.x.tolist() == recall.x.tolist() == [1, 2, 9] and precision.y.tolist() == [0.5, 0.4, 0.3]
    assert both.x.tolist() == recall.y.tolist() == [0.1, 0.2, 0.9] and both.y.tolist() == precision.y.tolist()


@pytest.mark.parametrize(
    "text, said",
    [
        ("at,value,recall\nk,1,1\n", "no column precision"),
        ("at,value,precision,recall\nk,1,many,1\n", "line 2: precision is 'many'"),
        ("at,value,precision,recall\nk,1,nan,1\n", "line 2 holds NaN"),
        ("at,value,precision,recall\ndistance,1,1,1\n", "no lines of k"),
        ("at,value,precision,recall\nk,1\n", "2 values"),
        ("", "no column at"),
        (None, "no such file"),
    ],
)
def test_files_that_hold_no_curves(tmp_path, text, said):
    path = tmp_path / "retrieval.csv"
    if text is not None:
        path.write_text(text)
    message = refused(read_curves, path)
    assert said in message and str(path) in message
