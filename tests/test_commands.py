"""The README's command lines on small image files: convert, train, evaluate, resume, and their errors."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

import train_llc
from llc.codebook import health, load_codebook
from llc.errors import UserError
from tests.conftest import SMALL

CHANCE = 1 / 6


def results(run):
    with open(run / "results.csv") as file:
        return {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}


def test_two_process_training_learns_and_fills_the_run_folder(finished_run):
    final = results(finished_run)
    assert final["codebook/top1_class_flip"] > 3 * CHANCE
    assert final["instance/top1_mhd_flip"] > 3 * CHANCE
    assert final["instance/top1_posterior_flip"] > 3 * CHANCE and "codebook/top1_posterior" not in final
    for name in ("initial", "codebook", "instance", "last", "model_best"):
        assert (finished_run / "checkpoints" / f"{name}.pth").is_file()
    lines = [json.loads(line) for line in (finished_run / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["codebook"] * 8 + ["instance"] * 5
    assert all(
        {"loss", "lr", "top1_class", "top5_mhd", "top1_ed", "images_per_second"} <= line.keys()
        for line in lines
    )
    assert list(finished_run.glob("events.out.tfevents*"))
    codebook = np.load(finished_run / "codebook.npy")
    assert codebook.dtype == np.float32 and codebook.shape == (6, 10)
    assert yaml.safe_load((finished_run / "config.yaml").read_text())["codes"]["num_bits"] == 10


def test_the_instance_stage_leaves_the_codebook_as_it_was(finished_run):
    books = [
        torch.load(finished_run / "checkpoints" / f"{n}.pth", weights_only=True)["network"]["codebook"]
        for n in ("initial", "codebook", "instance")
    ]
    assert not torch.equal(books[0], books[1]) and torch.equal(books[1], books[2])


def test_two_process_evaluation_equals_one_process_sample_for_sample(
    finished_run, run_llc, call_llc, tmp_path
):
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    texts = [
        call_llc("-m", "llc.evaluate", finished_run, f"--predictions={files[0]}").stdout,
        run_llc("-m", "llc.evaluate", finished_run, f"--predictions={files[1]}", processes=2).stdout,
    ]
    one, two = map(np.load, files)
    assert len(one["labels"]) == 66 and (one["labels"] == np.repeat(np.arange(6), 11)).all()
    for key in ("labels", "codes", "top_class"):
        assert (one[key] == two[key]).all(), key
    numbers = [re.findall(r"(class codes|MHD|ED|posterior) +top-1 +([\d.]+) %", text) for text in texts]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 4
    for place, decoder in ((1, "mhd"), (3, "posterior")):
        assert float(numbers[0][place][1]) == pytest.approx(
            100 * results(finished_run)[f"instance/top1_{decoder}_flip"], abs=0.01
        )
    assert "collisions" in texts[0]


def test_one_process_fits_the_decoders_that_two_did(finished_run, call_llc, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    written = ["decoder.npz", "results.csv"]
    for name in written:
        (run / name).unlink()
    done = call_llc("train_llc.py", "--resume", run)
    assert "fitted to the codes of 240 train images: posterior" in done.stdout
    for name in written:
        assert (run / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_run_stopped_between_epochs_goes_on_where_it_was(finished_run, betons, call_llc, tmp_path):
    """The state after an epoch, put back, is resumed: earlier lines stay, later ones are made again."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    state = torch.load(run / "checkpoints" / "last.pth", weights_only=True)
    before = (run / "log.jsonl").read_text().splitlines()
    state["progress"].update(stage=1, epoch=3, global_epoch=11, lines=state["progress"]["lines"][:11])
    state["progress"]["finals"].pop("instance")
    (run / "results.csv").unlink()
    torch.save(state, run / "checkpoints" / "last.pth")
    done = call_llc("train_llc.py", "--resume", run)
    assert "2 processes at work before, now 1" in done.stdout
    after = (run / "log.jsonl").read_text().splitlines()
    assert after[:11] == before[:11] and len(after) == 13 and after[11:] != before[11:]
    assert "instance 4/5" in done.stdout and "instance 3/5" not in done.stdout


def test_instance_stage_alone_on_a_given_codebook_and_network(finished_run, betons, run_llc, tmp_path):
    """With the engine's options, which two processes must agree on."""
    done = run_llc(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        "--logging.name=run",
        "--training.stages=instance",
        "--instance.epochs=2",
        f"--model.weights={finished_run}",
        f"--codes.init_codebook={finished_run / 'codebook.npy'}",
        "--training.accumulation_steps=2",
        "--training.ema_decay=0.9",
        "--training.clip_grad_norm=5",
        "--instance.distillation=0.5",
        "--dist.grad_compression=bf16",
        processes=2,
    )
    assert "Warning" not in done.stderr
    assert (np.load(tmp_path / "run" / "codebook.npy") == np.load(finished_run / "codebook.npy")).all()
    final = results(tmp_path / "run")
    assert final["instance/top1_mhd_flip"] > 3 * CHANCE and final["instance/top1_mhd_flip_ema"] > 3 * CHANCE
    assert (tmp_path / "run" / "checkpoints" / "instance_ema.pth").is_file()


def test_the_joint_stage_in_two_processes(betons, run_llc, call_llc, tmp_path):
    """With every part of the method that a recipe can switch on."""
    run_llc(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        "--logging.name=run",
        "--training.stages=joint",
        "--joint.epochs=12",
        "--joint.lr=0.1",
        "--joint.lr_peak_epoch=1",
        "--joint.freeze_epoch=9",
        "--codes.logit_scale=learnable",
        "--codes.normalize=batchnorm",
        "--codes.init_distance=4",
        "--codes.min_distance=4",
        processes=2,
    )
    assert health(load_codebook(tmp_path / "run")).min_distance >= 4
    final = results(tmp_path / "run")
    assert all(final[f"joint/{name}_flip"] > 3 * CHANCE for name in ("top1_class", "top1_mhd", "top1_ed")), (
        final
    )
    checkpoints = {
        name: torch.load(tmp_path / "run" / "checkpoints" / f"{name}.pth", weights_only=True)
        for name in ("initial", "joint")
    }
    learnt = checkpoints["joint"]["network"]["log_logit_scale"]
    assert checkpoints["initial"]["network"]["log_logit_scale"] == pytest.approx(
        np.log(10**-0.5)
    ) and learnt != pytest.approx(np.log(10**-0.5))
    text = call_llc("-m", "llc.evaluate", tmp_path / "run").stdout
    evaluated = dict(re.findall(r"(class codes|MHD|ED) +top-1 +([\d.]+) %", text))
    assert (
        float(evaluated["ED"]) == pytest.approx(100 * final["joint/top1_ed_flip"], abs=0.01)
        and len(evaluated) == 3
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--training.stages=joint"], "joint.epochs is required (training.stages = joint)"),
        (["--codes.logit_scale=0"], "it takes one of none, sqrt, learnable, or a positive number"),
        (["--codes.init_distance=8"], "lower it to that, or raise codes.num_bits"),
        (["--codes.num_bits=2", "--codes.min_distance=2"], "no code of 2 bits has this distance between"),
        (["--training.batch_size=many"], "training.batch_size = 'many': it takes a whole number"),
        (["--codebook.lr_schedule_type=square"], "it takes one of triangular, cosine, step"),
        (["--codebook.epochs=1", "--codebook.lr_peak_epoch=3"], "codebook.lr_peak_epoch = 3"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--training.stages=instance"], "codes.init_codebook"),
        (["--model.arch=vit_b_16"], "not a ResNet"),
        (["--resume=nowhere"], "not a run folder"),
    ],
)
def test_bad_input_is_named(words, message, betons, tmp_path):
    data = [f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}"]
    with pytest.raises(UserError, match=re.escape(message)):
        train_llc.main([*SMALL, *data, f"--logging.folder={tmp_path}", *words])


@pytest.mark.parametrize(
    "how, words, message",
    [
        ("run_llc", ["--training.batch_sise=3"], "did you mean training.batch_size?"),
        ("call_llc", ["--data.val_dataset=nowhere.beton"], "nowhere.beton"),
    ],
)
def test_bad_input_ends_non_zero(how, words, message, betons, request, tmp_path):
    done = request.getfixturevalue(how)(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        *words,
        check=False,
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_unknown_key_in_yaml_is_an_error(call_llc, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training: {batch_sise: 3}\n")
    done = call_llc("train_llc.py", f"--config={recipe}", check=False)
    assert (
        done.returncode == 2
        and "mine.yaml: training.batch_sise is not a key; did you mean training.batch_size?" in done.stderr
    )


def test_train_and_val_that_disagree_are_refused(betons, image_tree, call_llc, tmp_path):
    shutil.copytree(image_tree / "val", tmp_path / "other")
    (tmp_path / "other" / "class_0").rename(tmp_path / "other" / "zebra")
    other = tmp_path / "other.beton"
    call_llc("write_ffcv.py", f"--cfg.data_dir={tmp_path / 'other'}", f"--cfg.write_path={other}")
    done = call_llc(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={other}",
        f"--logging.folder={tmp_path}",
        check=False,
    )
    assert done.returncode == 2 and "--cfg.class_names_from" in done.stderr and "Traceback" not in done.stderr
