"""Runs that are stopped, damaged, refused, hit by a NaN loss, or out of disk, and how they end.

Everything goes through train_llc.main on small betons, in this process unless processes are what is tested.
"""

import contextlib
import csv
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import llc
import train_llc
from llc import backbones
from llc import encode as encode_command
from llc.codebook import health
from llc.data.beton import read_tables
from llc.encode import Encoding, encode
from llc.errors import UserError
from llc.evaluate import __main__ as evaluate
from llc.export import __main__ as export
from llc.report import __main__ as report
from llc.training import min_distance
from llc.training.engine import Engine
from llc.training.interruption import EXIT_STATUS, StopSignals
from llc.training.run_folder import RunFolder
from llc.training.supervisor import Supervisor
from tests.tools.chaos import ROOT, Training, chaos, differences, end_of, make_betons
from tests.waiting import seconds

SHORT = (
    "--model.arch=resnet18",
    "--model.width=4",
    "--codes.num_bits=7",
    "--training.batch_size=20",
    "--validation.batch_size=8",
    "--codebook.epochs=2",
    "--codebook.lr=0.1",
    "--instance.epochs=2",
    "--instance.lr=0.05",
    "--resolution.min_res=16",
    "--resolution.max_res=16",
    "--validation.resolution=16",
    "--training.ema_decay=0.9",
    "--data.num_workers=1",
)
STEPS = 5  # an epoch of SHORT


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost these small networks more time than they save, on a busy machine twenty times as much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", str(len(os.sched_getaffinity(0))))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_betons(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def command(tiny):
    """command(run, *options): the arguments of a short training in the run folder `run`."""

    def of(run, *options):
        return [
            *SHORT,
            f"--data.train_dataset={tiny[0]}",
            f"--data.val_dataset={tiny[1]}",
            f"--logging.folder={run.parent}",
            f"--logging.name={run.name}",
            "--resume=auto",
            *options,
        ]

    return of


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train_llc.main(command(run))
    return run


class Saboteur:
    """Wraps Engine.step: calls before(number, images) at every step; number counts them from the start."""

    def __init__(self, monkeypatch, before):
        self.number, step = 0, Engine.step

        def counted(engine, images, *more):
            before(self.number, images)
            self.number += 1
            return step(engine, images, *more)

        monkeypatch.setattr(Engine, "step", counted)


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    return Saboteur(monkeypatch, lambda n, images: os.kill(os.getpid(), number) if n == step else None)


def last(run):
    return torch.load(run / "checkpoints" / "last.pth", weights_only=True)


# ---- stopped and resumed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, step",
    [(signal.SIGTERM, 0), (signal.SIGINT, 6), (signal.SIGUSR1, STEPS * 2), (signal.SIGTERM, STEPS * 4 - 1)],
)
def test_a_run_stopped_by_a_signal_ends_with_its_status_and_continues_to_the_same_end(
    number, step, command, undisturbed, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, step, number)
        with pytest.raises(SystemExit) as stopped:
            train_llc.main(command(run))
    assert stopped.value.code == EXIT_STATUS == 75
    assert number.name in capsys.readouterr().out
    progress = last(run)["progress"]
    # within the step, or the validation that follows an epoch's last one
    assert progress["global_epoch"] * STEPS + progress["batch"] == step + 1
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    train_llc.main(command(run))
    assert differences(end_of(run), end_of(undisturbed)) == []


def test_stopped_at_every_step_a_run_ends_as_if_it_had_not_been(command, undisturbed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    saboteur = stop_at(monkeypatch, 0)
    for stops in range(STEPS * 4 + 1):  # noqa: B007
        saboteur.number = 0
        try:
            train_llc.main(command(run))
            break
        except SystemExit as stopped:
            assert stopped.code == EXIT_STATUS
    assert stops == STEPS * 4
    assert differences(end_of(run), end_of(undisturbed)) == []


def test_a_run_with_a_teacher_stopped_in_its_instance_stage_ends_as_if_it_had_not_been(
    command, undisturbed, tmp_path, monkeypatch
):
    """Its teacher is the network at the end of the codebook stage, not that of the checkpoint."""
    teacher = "--instance.distillation=1"
    train_llc.main(command(tmp_path / "whole", teacher))
    weights = [
        torch.load(run / "checkpoints" / "instance.pth", weights_only=True)["network"]["projection.weight"]
        for run in (tmp_path / "whole", undisturbed)
    ]
    assert not torch.equal(*weights)  # the teacher has something to say
    for step in (STEPS * 2 - 1, STEPS * 2, STEPS * 3 + 1):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(SystemExit):
                train_llc.main(command(tmp_path / f"run_{step}", teacher))
        train_llc.main(command(tmp_path / f"run_{step}", teacher))
        assert differences(end_of(tmp_path / f"run_{step}"), end_of(tmp_path / "whole")) == []


@pytest.mark.parametrize(
    "decay, option, was",
    [
        ("0", "--instance.distillation=0.5", "instance.distillation was 0"),
        ("0", "--training.ema_decay=0.5", "training.ema_decay was 0"),
        ("0.9", "--training.ema_decay=0", "training.ema_decay was above 0"),
    ],
)
def test_teacher_and_moving_average_cannot_be_switched_in_the_middle_of_a_stage(
    decay, option, was, command, tmp_path, monkeypatch
):
    words = command(tmp_path / "run", f"--training.ema_decay={decay}")
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS * 2 + 1)
        with pytest.raises(SystemExit):
            train_llc.main(words)
    with pytest.raises(UserError, match=f"{was} when the checkpoint's stage began"):
        train_llc.main([*words, option, "--resume_anyway=1"])
    train_llc.main(words)


def test_two_sigints_at_once_are_one_ctrl_c(command, tmp_path, monkeypatch):
    """The terminal's, and that of a wrapper which passes it on."""

    def twice(n, images):
        if n == 1:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)

    Saboteur(monkeypatch, twice)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        train_llc.main(command(tmp_path / "run"))
    assert stopped.value.code == EXIT_STATUS
    caught = int(re.search(r"SigCgt:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    assert signal.getsignal(signal.SIGINT) is handler and caught >> (signal.SIGINT - 1) & 1  # C's handler too


def test_a_signal_at_the_very_end_breaks_nothing(monkeypatch):
    """Whose byte the listener takes for the one that tells it to end."""
    with StopSignals() as signals:
        set_ended, listener = signals._ended.set, signals._listener
        monkeypatch.setattr(signals._ended, "set", lambda: (set_ended(), listener.join(seconds(20))))
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == "SIGINT" and not listener.is_alive()


JOINT = (
    "--training.stages=joint",
    "--joint.epochs=3",
    "--joint.lr=0.1",
    "--joint.freeze_epoch=1.4",
    "--codes.logit_scale=learnable",
    "--codes.normalize=batchnorm",
    "--codes.init_distance=3",
)


def test_a_joint_run_stopped_before_and_after_its_codebook_freezes_ends_as_if_it_had_not_been(
    command, tmp_path, monkeypatch
):
    """The codebook freezes at step 7: it changes until then and stays equal to the bit afterwards."""
    codebooks = []
    with monkeypatch.context() as patch:
        seen = Engine.step
        patch.setattr(
            Engine,
            "step",
            lambda engine, *args: (
                seen(engine, *args),
                codebooks.append(engine.network.codebook.detach().clone()),
            )[0],
        )
        train_llc.main(command(tmp_path / "whole", *JOINT))
    assert len(codebooks) == 3 * STEPS
    assert all(torch.equal(codebook, codebooks[6]) for codebook in codebooks[6:]) and not torch.equal(
        codebooks[6], codebooks[5]
    )
    for step in (2, 6, 7, 11):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(SystemExit):
                train_llc.main(command(tmp_path / f"run_{step}", *JOINT))
        train_llc.main(command(tmp_path / f"run_{step}", *JOINT))
        assert differences(end_of(tmp_path / f"run_{step}"), end_of(tmp_path / "whole")) == []
    with open(tmp_path / "whole" / "results.csv") as file:
        headlines = {row["metric"] for row in csv.DictReader(file) if row["headline"] == "1"}
    assert headlines == {f"joint/top1_{name}_flip" for name in ("class", "mhd", "ed", "posterior")}


@pytest.mark.parametrize(
    "options, steps",
    [
        (("--codebook.lr=0.0001", "--instance.distillation=0.5"), (9, 12)),
        (
            ("--training.stages=joint", "--joint.epochs=2", "--joint.lr=0.0001", "--joint.freeze_epoch=1.4"),
            (5, 8),
        ),
        (("--codebook.freeze_epoch=0",), (2,)),
    ],
)
def test_classes_of_one_code_are_moved_apart_when_the_codebook_freezes(
    command, tmp_path, monkeypatch, capsys, options, steps
):
    """In every file of the run, the moving average's too; a run stopped before or after ends the same."""
    np.save(tmp_path / "same.npy", np.full((5, 7), 0.3, np.float32))
    options += (f"--codes.init_codebook={tmp_path / 'same.npy'}", "--codes.min_distance=2")
    train_llc.main(command(tmp_path / "whole", *options))
    output = capsys.readouterr().out
    assert (
        "codes.min_distance = 2: 4 of 5 class codes were moved" in output
        and "0 collisions, distance min 2" in output
        and "warning" not in output
    )
    codebook = torch.from_numpy(np.load(tmp_path / "whole" / "codebook.npy"))
    assert health(codebook).min_distance == 2
    for path in (tmp_path / "whole" / "checkpoints").glob("*.pth"):
        network = torch.load(path, weights_only=True)["network"]
        assert (
            path.stem in ("initial", "model_best", "previous_1")
            or health(network["codebook"]).min_distance == 2
        ), path
    for step in steps:
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(SystemExit):
                train_llc.main(command(tmp_path / f"run_{step}", *options))
        train_llc.main(command(tmp_path / f"run_{step}", *options))
        assert differences(end_of(tmp_path / f"run_{step}"), end_of(tmp_path / "whole")) == []


DENSE = ("--dense.epochs=2", "--dense.lr=0.1", "--codes.min_distance=1")


def test_a_dense_stage_and_codes_from_it_stopped_and_resumed_end_as_if_not_stopped(
    command, tmp_path, monkeypatch, capsys
):
    """Stopped within the dense stage, as the next begins with other layers, and within that."""
    options = (*DENSE, "--training.stages=dense,instance", "--instance.distillation=0.5", "--codes.hidden=6")
    train_llc.main(command(tmp_path / "whole", *options))
    output = capsys.readouterr().out
    assert "codebook from the classifier of the dense stage" in output
    assert re.search(r"dense 2/2: loss [\d.]+, class [\d.]+ % top-1,", output)
    for step in (STEPS + 2, 2 * STEPS, 3 * STEPS + 1):
        run = tmp_path / f"run_{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(SystemExit):
                train_llc.main(command(run, *options))
        # the best network so far is of the stage that it names
        best = llc.load(run, checkpoint="model_best")
        assert (best.stage, best.num_bits) == (("dense", 5) if step < 3 * STEPS else ("instance", 7))
        train_llc.main(command(run, *options))
        assert differences(end_of(run), end_of(tmp_path / "whole")) == []
    whole = tmp_path / "whole"
    lengths = [llc.load(whole, checkpoint=name).num_bits for name in ("initial", "dense", "instance")]
    assert lengths == [5, 5, 7]
    assert llc.load(whole).stage == "instance" and np.load(whole / "codebook.npy").shape == (5, 7)
    with open(whole / "results.csv") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    headlines = {metric for metric, row in rows.items() if row["headline"] == "1"}
    assert not [metric for metric in rows if metric.startswith("dense/") and "_class" not in metric]
    assert headlines == {"dense/top1_class_flip"} | {
        f"instance/top1_{name}_flip" for name in ("mhd", "ed", "posterior")
    }
    capsys.readouterr()
    evaluate.main([str(whole)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  class codes"))
    assert f"top-1 {100 * float(rows['instance/top1_class_flip']['final']):6.2f} %" in line


def test_codes_of_no_training_are_those_of_the_dense_network_stopped_and_resumed_or_not(
    command, tmp_path, monkeypatch, capsys
):
    options = (*DENSE, "--training.stages=dense,instance", "--codes.head=expected", "--instance.epochs=0")
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_llc.main(command(whole, *options))
    assert "instance stage: no epochs; its codes are made from" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_at(patch, 2 * STEPS - 1)
        with pytest.raises(SystemExit):
            train_llc.main(command(run, *options))
    train_llc.main(command(run, *options))
    assert differences(end_of(run), end_of(whole)) == []
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["dense", "dense"]
    with open(whole / "results.csv") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    headlines = {metric for metric, row in rows.items() if row["headline"] == "1"}
    assert {f"instance/top1_{name}_flip" for name in ("mhd", "ed", "posterior")} < headlines
    dense, codes = llc.load(whole, checkpoint="dense").network, llc.load(whole).network
    assert torch.equal(codes.projection.weight, 4 * codes.codebook.sign().T)  # not trained
    for name, value in dense.backbone.state_dict().items():
        assert torch.equal(value, codes.backbone.state_dict()[name])
    assert llc.load(whole, checkpoint="model_best").stage == "instance"
    capsys.readouterr()
    evaluate.main([str(whole)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  MHD"))
    assert f"top-1 {100 * float(rows['instance/top1_mhd_flip']['final']):6.2f} %" in line
    report.main([str(whole), "--data=none", f"--out={tmp_path / 'report.html'}"])
    assert "2 dense" in (tmp_path / "report.html").read_text()


def test_a_dense_stage_that_ends_in_nan_is_named(command, tmp_path, monkeypatch):
    """Its last update spoils the weights, after the last loss that is looked at."""

    def spoil(engine, images, *more):
        loss = step(engine, images, *more)
        if next(count) == 2 * STEPS - 1:
            engine.network.projection.weight.data.fill_(torch.nan)
        return loss

    step, count = Engine.step, itertools.count()
    monkeypatch.setattr(Engine, "step", spoil)
    with pytest.raises(UserError, match="the dense stage ended with NaN or infinite weights.*dense.lr"):
        train_llc.main(command(tmp_path / "run", *DENSE, "--training.stages=dense,instance"))


def test_a_dense_run_begins_with_the_dense_network_of_another(command, tmp_path):
    options = (*DENSE, "--codes.hidden=6")
    train_llc.main(command(tmp_path / "first", *options, "--training.stages=dense,instance"))
    train_llc.main(
        command(
            tmp_path / "next", *options, "--training.stages=dense", f"--model.weights={tmp_path / 'first'}"
        )
    )
    states = [
        torch.load(tmp_path / path, weights_only=True)["network"]
        for path in ("first/checkpoints/dense.pth", "next/checkpoints/initial.pth")
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("head", ["linear", "expected"])
def test_a_frozen_codebook_is_moved_apart_once(head, command, tmp_path, monkeypatch):
    """Where there is no room for the distance, a second call may move other codes, also in a resumed run."""
    calls = []

    def moves_all(network, codes, processes, whose=""):
        if not whose:
            calls.append(network)
            network.codebook.data.neg_()

    monkeypatch.setattr(min_distance, "enforce", moves_all)
    options = (*DENSE, "--training.stages=dense,instance", "--codes.nested=3", f"--codes.head={head}")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 3 * STEPS)
        with pytest.raises(SystemExit):
            train_llc.main(command(run, *options))
    before = last(run)["network"]["codebook"]
    train_llc.main(command(run, *options))
    after = torch.load(run / "checkpoints" / "instance.pth", weights_only=True)["network"]["codebook"]
    assert len(calls) == 1 and torch.equal(after, before)


def test_a_checkpoint_between_a_dense_stage_and_the_next_holds_the_classifier(command, tmp_path, monkeypatch):
    """Of a run that is killed when the dense stage's end has just been saved."""
    options = (*DENSE, "--training.stages=dense,instance", "--instance.distillation=0.5")
    train_llc.main(command(tmp_path / "whole", *options))
    with monkeypatch.context() as patch:
        saved = Supervisor.save_last

        def killed(supervisor, engine):
            saved(supervisor, engine)
            if engine is None:
                supervisor._saver.wait()
                raise KeyboardInterrupt

        patch.setattr(Supervisor, "save_last", killed)
        with pytest.raises(KeyboardInterrupt):
            train_llc.main(command(tmp_path / "run", *options))
    state = last(tmp_path / "run")
    assert state["engine"] is None and state["progress"]["stage"] == 1
    assert state["network"]["projection.weight"].shape[0] == 7 and state["classifier"][0].shape[0] == 5
    train_llc.main(command(tmp_path / "run", *options))
    assert differences(end_of(tmp_path / "run"), end_of(tmp_path / "whole")) == []


def test_a_dense_stage_trains_as_frozen_one_hot_codes_do(command, tiny, tmp_path, capsys):
    np.save(tmp_path / "onehot.npy", 2 * np.eye(5) - 1)
    train_llc.main(command(tmp_path / "dense", *DENSE, "--training.stages=dense"))
    train_llc.main(
        command(
            tmp_path / "onehot",
            f"--codes.init_codebook={tmp_path / 'onehot.npy'}",
            "--codes.num_bits=5",
            "--codebook.freeze_epoch=0",
            "--codes.logit_scale=0.5",
            "--training.stages=codebook",
        )
    )
    assert np.array_equal(np.load(tmp_path / "onehot" / "codebook.npy"), 2 * np.eye(5, dtype=np.float32) - 1)
    networks = [
        torch.load(tmp_path / name, weights_only=True)["network"]
        for name in ("dense/checkpoints/dense.pth", "onehot/checkpoints/codebook.pth")
    ]
    assert all(torch.equal(value, networks[1][key]) for key, value in networks[0].items())
    capsys.readouterr()
    evaluate.main([str(tmp_path / "dense")])
    output = capsys.readouterr().out
    assert "class codes  top-1" in output and "MHD" not in output  # a dense network has no codes
    run, out = str(tmp_path / "dense"), str(tmp_path / "out")
    for command_of, words in (
        (encode_command, (run, f"--data={tiny[1]}", f"--out={out}.npz")),
        (export, (run, "--to=original", f"--out={out}")),
        (evaluate, (run, "--num_bits=3")),
        (evaluate, (run, f"--fit_decoder={tiny[0]}")),
    ):
        with pytest.raises(UserError, match="a dense classifier, which has no codes"):
            command_of.main(list(words))
    assert not list(tmp_path.glob("out*")) and not (tmp_path / "dense" / "decoder.npz").exists()


def test_codes_made_from_a_dense_run_stopped_and_resumed_without_it_end_as_if_not_stopped(
    command, tmp_path, monkeypatch, capsys
):
    """The dense teacher's values come from the checkpoint."""
    dense = tmp_path / "dense"
    train_llc.main(command(dense, *DENSE, "--training.stages=dense"))
    assert np.array_equal(np.load(dense / "codebook.npy"), 2 * np.eye(5) - 1)
    options = (
        "--training.stages=instance",
        "--codes.init_codebook=itq",
        "--instance.distillation=1",
        "--codes.hidden=6",
        f"--model.weights={dense}",
    )
    train_llc.main(command(tmp_path / "whole", *options))
    assert "backbone and codebook from the dense classifier of" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 1)
        with pytest.raises(SystemExit):
            train_llc.main(command(tmp_path / "run", *options))
    shutil.rmtree(dense)
    train_llc.main(command(tmp_path / "run", *options))
    assert differences(end_of(tmp_path / "run"), end_of(tmp_path / "whole")) == []
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    encoder = llc.load(tmp_path / "run")
    encoder.save(tmp_path / "encoder.safetensors")
    assert encoder.network.options["hidden"] == 6
    assert torch.equal(llc.load(tmp_path / "encoder.safetensors").encode(images), encoder.encode(images))


def test_an_instance_stage_follows_a_joint_one_and_both_stages_too(command, tmp_path, capsys):
    joint = tmp_path / "joint"
    train_llc.main(command(joint, *JOINT))
    after = ("--codes.normalize=batchnorm", f"--model.weights={joint}")
    train_llc.main(
        command(tmp_path / "instance", *after, "--training.stages=instance", f"--codes.init_codebook={joint}")
    )
    assert np.array_equal(np.load(tmp_path / "instance" / "codebook.npy"), np.load(joint / "codebook.npy"))
    train_llc.main(
        command(tmp_path / "both", *after, "--instance.codebook_weight=1", "--codebook.instance_weight=2")
    )
    assert capsys.readouterr().out.count(f"network weights from {joint / 'checkpoints' / 'joint.pth'}") == 2
    with pytest.raises(UserError, match="trained with codes.normalize = batchnorm, but here it is none"):
        train_llc.main(command(tmp_path / "other", f"--model.weights={joint}"))


def test_a_joint_stage_needs_its_own_length_and_rate(command, tmp_path):
    with pytest.raises(UserError, match="joint.epochs is required.*\n.*joint.lr is required"):
        train_llc.main(command(tmp_path / "run", "--training.stages=joint"))


def test_a_run_from_before_a_key_existed_resumes_with_the_keys_default(command, copy, undisturbed):
    state = last(copy)
    later = (
        "joint.",
        "codebook.instance_weight",
        "codebook.freeze_epoch",
        "instance.codebook_weight",
        "codes.normalize",
        "codes.init_scale",
        "codes.init_distance",
        "codes.min_distance",
    )
    for key in [key for key in state["identity"]["config"] if key.startswith(later)]:
        del state["identity"]["config"][key]
    torch.save(state, copy / "checkpoints" / "last.pth")
    with pytest.raises(UserError, match="codebook.instance_weight was 0.0 and is 4.0"):
        train_llc.main(command(copy, "--codebook.instance_weight=4"))
    train_llc.main(command(copy))
    assert differences(end_of(copy), end_of(undisturbed)) == []


def test_a_finished_run_says_so_and_is_left_alone(command, undisturbed, capsys):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}
    train_llc.main(command(undisturbed))
    assert f"{undisturbed} is finished" in capsys.readouterr().out
    assert before == {
        path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"
    }


def test_a_run_killed_before_its_first_checkpoint_starts_again(command, undisturbed, tmp_path):
    run = RunFolder.create(tmp_path, "run")
    run._lock.close()
    train_llc.main(command(run.path))
    assert differences(end_of(run.path), end_of(undisturbed)) == []


def test_after_a_start_that_failed_the_corrected_command_starts(command, undisturbed, tmp_path):
    """Without --resume=auto too; but what holds a run is never taken over."""

    def afresh(*options):
        train_llc.main([word for word in command(tmp_path / "run", *options) if word != "--resume=auto"])

    with pytest.raises(UserError, match="nothing.beton"):
        afresh("--data.train_dataset=nothing.beton")
    afresh()
    end = end_of(tmp_path / "run")
    assert differences(end, end_of(undisturbed)) == []
    with pytest.raises(UserError, match="exists already"):
        afresh()
    assert differences(end_of(tmp_path / "run"), end) == []


def test_a_folder_in_which_another_process_begins_a_run_is_not_taken_over(tmp_path, monkeypatch):
    first = RunFolder.create(tmp_path, "run")
    take_lock = RunFolder._take_lock

    def late(run):
        first.save_class_names(["a"])
        first.close()
        take_lock(run)

    monkeypatch.setattr(RunFolder, "_take_lock", late)
    with pytest.raises(UserError, match="another process has begun a run"):
        RunFolder.create(tmp_path, "run")


def test_auto_needs_a_name_and_takes_no_other_folder(command, tmp_path):
    with pytest.raises(UserError, match="--logging.name=NAME"):
        train_llc.main([*command(tmp_path / "x"), "--logging.name="])
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="not a run folder"):
        train_llc.main(command(tmp_path / "photos"))


def test_two_do_not_write_to_one_run_folder(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path, "run")
    monkeypatch.setattr("llc.training.run_folder._LOCK_SECONDS", 0.2)
    with pytest.raises(UserError, match="another process is at work"):
        RunFolder.open_to_continue(run.path)
    run._lock.close()
    RunFolder.open_to_continue(run.path)


@pytest.fixture(scope="module")
def stopped(command, tmp_path_factory):
    """A run folder of a run stopped in its second epoch; to be copied."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(SystemExit):
            train_llc.main(command(run))
    return run


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.mark.parametrize(
    "option, message",
    [
        ("--codebook.lr=0.2", "codebook.lr was 0.1 and is 0.2"),
        ("--training.seed=1", "training.seed was 0 and is 1"),
        ("--codebook.epochs=3", "codebook.epochs was 2 and is 3"),
        ("--codes.num_bits=9", "codes.num_bits was 7 and is 9"),
    ],
)
def test_another_configuration_is_named_and_refused(option, message, command, copy):
    before = (copy / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        train_llc.main(command(copy, option))
    assert (copy / "config.yaml").read_bytes() == before


def test_fewer_epochs_than_are_done_end_the_stage(command, copy):
    train_llc.main(command(copy, "--codebook.epochs=1", "--resume_anyway=1"))
    assert [line["stage"] for line in last(copy)["progress"]["lines"]] == ["codebook", "instance", "instance"]


def test_more_epochs_are_trained_anyway_but_no_other_network(command, copy):
    with pytest.raises(UserError, match="cannot be continued"):
        train_llc.main(command(copy, "--codes.num_bits=9", "--resume_anyway=1"))
    train_llc.main(command(copy, "--codebook.epochs=3", "--resume_anyway=1"))
    assert len(last(copy)["progress"]["lines"]) == 5
    assert yaml.safe_load((copy / "config.yaml").read_text())["codebook"]["epochs"] == 3


def test_another_dataset_and_another_codebook_are_named(command, copy, tmp_path):
    (tmp_path / "other").mkdir()
    other = make_betons(tmp_path / "other", seed=1)[0]
    np.save(tmp_path / "codebook.npy", np.random.default_rng(0).normal(size=(5, 7)))
    with pytest.raises(UserError, match="data.train_dataset is another beton") as refused:
        train_llc.main(
            command(
                copy, f"--data.train_dataset={other}", f"--codes.init_codebook={tmp_path / 'codebook.npy'}"
            )
        )
    assert "codes.init_codebook" in str(refused.value) and "val_dataset" not in str(refused.value)


def test_paths_may_change(command, copy, undisturbed, tiny, tmp_path):
    moved = [shutil.copy(beton, tmp_path / beton.name) for beton in tiny]
    for beton in tiny:
        shutil.copy(f"{beton}.json", tmp_path)
    recipe = yaml.safe_load((copy / "config.yaml").read_text())
    del recipe["validation"]["fit_decoder"]  # as in a run from before there was this key
    (copy / "config.yaml").write_text(yaml.safe_dump(recipe))
    train_llc.main(
        [
            "--resume",
            str(copy),
            f"--data.train_dataset={moved[0]}",
            f"--data.val_dataset={moved[1]}",
            "--data.num_workers=2",
            "--training.keep=5",
        ]
    )
    assert differences(end_of(copy), end_of(undisturbed)) == []


# ---- decoders are fitted at the end ------------------------------------------------------------------------


@pytest.fixture
def trained(undisturbed, tmp_path):
    """A run folder as it is when all stages have ended and decoders are to be fitted."""
    run = shutil.copytree(undisturbed, tmp_path / "trained")
    (run / "results.csv").unlink()
    (run / "decoder.npz").unlink()
    return run


def figures(run):
    """{metric: final value} of results.csv."""
    with open(run / "results.csv") as file:
        return {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}


def without_fitted(run):
    """The figures but for those of decoders that learn."""
    return {metric: value for metric, value in figures(run).items() if "posterior" not in metric}


@pytest.mark.parametrize("flip", [True, False])
def test_the_fitted_decoders_figures_are_those_of_the_train_sets_codes(flip, command, trained, tiny):
    """Recomputed with a sum over all train images for each code."""
    options = () if flip else ("--validation.lr_tta=0", "--resume_anyway=1")
    train_llc.main(command(trained, *options))
    encoder = llc.load(trained)

    def codes_of(beton, with_flip):
        encoder.flip = with_flip
        arrays = encode(encoder, beton, Encoding(batch_size=16, device="cpu"))
        return np.unpackbits(arrays["codes"], axis=1)[:, :7], arrays["labels"]

    train, train_labels = codes_of(tiny[0], flip)
    with np.load(trained / "decoder.npz") as learnt:
        q, weight = float(learnt["posterior.flip_probability"]), int(learnt["posterior.class_weight"])
        description = json.loads(str(learnt["description"]))
    assert description["num_images"] == 100 and description["source"] == str(tiny[0])
    class_codes = np.load(trained / "codebook.npy") > 0
    seen = np.concatenate([train, np.repeat(class_codes, weight, 0)])
    seen_labels = np.concatenate([train_labels, np.repeat(np.arange(5), weight)])
    for suffix, with_flip in (("", False), *([("_flip", True)] if flip else [])):
        val, labels = codes_of(tiny[1], with_flip)
        posterior = np.zeros((len(val), 5))
        for code, label in zip(seen, seen_labels):
            distances = (val != code).sum(1)
            posterior[:, label] += q**distances * (1 - q) ** (7 - distances)
        posterior /= posterior.sum(1, keepdims=True)
        hits, probabilities = posterior.argmax(1) == labels, posterior.max(1)
        bins = np.ceil(15 * probabilities)
        gaps = [abs((hits * 1.0 - probabilities)[bins == b].sum()) for b in set(bins)]
        found = figures(trained)
        assert found[f"instance/top1_posterior{suffix}"] == pytest.approx(hits.mean(), abs=1e-6)
        assert found[f"instance/ece_posterior{suffix}"] == pytest.approx(sum(gaps) / 20, abs=1e-5)
        assert 0.2 < hits.mean() < 1
    assert ("instance/top1_posterior_flip" in found) == flip


@pytest.mark.parametrize(
    "number, batch", [(signal.SIGTERM, 0), (signal.SIGINT, 12), (signal.SIGUSR1, 13), (signal.SIGTERM, 15)]
)
def test_stopped_while_decoders_are_fitted_a_run_ends_as_if_it_had_not_been(
    number, batch, command, trained, undisturbed, monkeypatch, capsys
):
    """There are 13 batches of train images, then 3 of val images."""
    seen, after_the_stages = [], Supervisor.after_the_stages

    def stop(supervisor):
        if len(seen) == batch:
            os.kill(os.getpid(), number)
        seen.append(batch)
        after_the_stages(supervisor)

    if not batch:  # once in the process that has trained, too
        shutil.rmtree(trained)
    with monkeypatch.context() as patch:
        patch.setattr(Supervisor, "after_the_stages", stop)
        with pytest.raises(SystemExit) as stopped:
            train_llc.main(command(trained))
        assert stopped.value.code == EXIT_STATUS and len(seen) == batch + 1
        assert f"stopped by {number.name}; continue with --resume={trained}" in capsys.readouterr().out
        assert last(trained)["progress"]["stage"] == 2
        assert not (trained / "results.csv").exists()
        assert (trained / "decoder.npz").exists() == (batch >= 13)
        train_llc.main(command(trained))
    assert len(seen) == batch + 1 + 16
    assert differences(end_of(trained), end_of(undisturbed)) == []
    assert (trained / "decoder.npz").read_bytes() == (undisturbed / "decoder.npz").read_bytes()


STOP_ONE = """
import os, signal, train_llc
from llc import config
from llc.training.supervisor import Supervisor
after_the_stages, count = Supervisor.after_the_stages, 0

def stop(supervisor):
    global count
    count += 1
    if count == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    after_the_stages(supervisor)

Supervisor.after_the_stages = stop
config.run(train_llc.main)
"""


def test_a_signal_to_one_process_that_encodes_stops_all(
    command, trained, undisturbed, tmp_path, run_llc, monkeypatch
):
    script = tmp_path / "stop_one.py"
    script.write_text(STOP_ONE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = run_llc(script, *command(trained), processes=2, check=False)
    assert "stopped by a signal to another process; continue with" in done.stdout, done.stderr
    assert "exitcode  : 75" in done.stderr
    assert not (trained / "results.csv").exists() and not (trained / "decoder.npz").exists()
    train_llc.main(command(trained))
    assert differences(end_of(trained), end_of(undisturbed)) == []


def test_without_room_for_the_fitted_decoders_a_run_says_so_and_can_be_resumed(
    command, trained, undisturbed, monkeypatch
):
    (trained / "decoder.npz").write_bytes(b"of another network")
    with monkeypatch.context() as patch:
        fill_the_disk(patch, "decoder.npz", 1)
        with pytest.raises(UserError, match=r"decoder.npz: cannot be written: No space left on device"):
            train_llc.main(command(trained))
    assert not list(trained.rglob("*.tmp")) and not (trained / "results.csv").exists()
    assert (trained / "decoder.npz").read_bytes() == b"of another network"
    train_llc.main(command(trained))
    assert differences(end_of(trained), end_of(undisturbed)) == []


def test_decoders_need_not_be_fitted(command, trained, undisturbed, capsys):
    train_llc.main(command(trained, "--validation.fit_decoder=0"))
    assert "encoding" not in capsys.readouterr().out and not (trained / "decoder.npz").exists()
    assert figures(trained) == without_fitted(undisturbed) != figures(undisturbed)


def test_without_any_code_a_run_ends_with_its_other_results(command, trained, undisturbed, capsys):
    state = last(trained)
    state["network"]["backbone.layer4.1.bn2.bias"][:] = 10.0
    state["network"]["projection.weight"][0] = 3e38  # so that the first value of z is infinite
    torch.save(state, trained / "checkpoints" / "last.pth")
    train_llc.main(command(trained))
    said = capsys.readouterr().out
    assert said.count("z is NaN or infinite for every train image") == said.count("warning") == 1
    assert not (trained / "decoder.npz").exists() and figures(trained) == without_fitted(undisturbed)


def test_a_damaged_train_image_is_left_out_of_what_decoders_learn_from(command, trained, tmp_path):
    betons = make_betons(tmp_path, write_mode="jpg")
    with open(betons[0], "r+b") as file:
        file.seek(int(read_tables(betons[0]).images["data_ptr"][37]) + 2)
        file.write(bytes(20))
    words = command(trained, f"--data.train_dataset={betons[0]}", "--resume_anyway=1")
    with pytest.raises(UserError, match=r"sample 37 of .* cannot be decoded.*data.on_error=skip_sample"):
        train_llc.main(words)
    with pytest.warns(UserWarning, match=r"left out because they cannot be decoded \(1\): sample 37 of"):
        train_llc.main([*words, "--data.on_error=skip_sample"])
    with np.load(trained / "decoder.npz") as learnt:
        assert json.loads(str(learnt["description"]))["num_images"] == 99
        assert learnt["posterior.counts"].sum() == 99


# ---- damaged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    damage, command, copy, undisturbed, capsys
):
    path = copy / "checkpoints" / "last.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    {
        "cut": lambda: os.truncate(path, 5000),
        "empty": lambda: os.truncate(path, 0),
        "flip": lambda: path.write_bytes(content),
        "gone": path.unlink,
    }[damage]()
    train_llc.main(command(copy))
    said = capsys.readouterr().err
    assert damage == "gone" or (
        "last.damaged" in said and "previous_1.pth is taken" in said and "last.pth" in said
    )
    assert differences(end_of(copy), end_of(undisturbed)) == []


def test_a_run_without_any_whole_checkpoint_is_an_error_that_names_them(command, copy):
    for path in (copy / "checkpoints").glob("*.pth"):
        os.truncate(path, 3000)
    with pytest.raises(UserError, match="no checkpoint of this run can be read") as error:
        train_llc.main(command(copy))
    assert "last.pth" in str(error.value) and "previous_1.pth" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("network"),
        lambda state: state["progress"].update(stage="x"),
        lambda state: state["progress"].update(batch=-1),
        lambda state: state["progress"].update(lines=3),
        lambda state: state["progress"].update(stage=2),
        lambda state: state.update(identity=[]),
        lambda state: state["network"].update({"projection.weight": torch.zeros(1)}),
        lambda state: state.pop("of_process"),
        lambda state: state.update(of_process=torch.zeros(1, 3)),
        lambda state: state["engine"].pop("optimizer"),
    ],
)
def test_a_checkpoint_of_other_content_is_refused_with_a_message(change, command, copy):
    state = last(copy)
    change(state)
    torch.save(state, copy / "checkpoints" / "last.pth")
    with pytest.raises(UserError, match="last.pth"):
        train_llc.main(command(copy))


def test_as_many_checkpoints_as_asked_for_are_kept(tmp_path):
    run = RunFolder.create(tmp_path, "run")
    for number in range(6):
        run.save_last({"number": number}, keep=3)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "last.pth",
        "previous_1.pth",
        "previous_2.pth",
    ]
    assert [run.load(name)["number"] for name in ("last", "previous_1", "previous_2")] == [5, 4, 3]


# ---- a NaN or infinite loss --------------------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the loss of one batch NaN whenever it comes: the batch of step 7, which is batch 2 of epoch 2."""
    found, loss_of = [], Engine._loss
    Saboteur(monkeypatch, lambda n, images: found.append(images.clone()) if n == 7 and not found else None)

    def loss(engine, images, *more):
        value = loss_of(engine, images, *more)
        return value * float("nan") if found and torch.equal(images, found[0]) else value

    monkeypatch.setattr(Engine, "_loss", loss)


def test_a_nan_loss_stops_the_run_and_names_its_samples(poisoned, command, tiny, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        UserError, match=r"became nan at step 7 of the codebook stage \(epoch 2, batch 2, lr 0.03\)"
    ) as error:
        train_llc.main(command(run))
    assert "non_finite.json" in str(error.value) and "training.skip_non_finite=1" in str(error.value)
    report = json.loads((run / "checkpoints" / "non_finite.json").read_text())
    assert report["loss_of_process"] == {"0": "nan"} and report["batch"] == 2
    from llc.data.loaders import TrainLoader
    from llc.data.shards import open_shards
    from llc.distributed import Processes

    shards = open_shards(tiny[0])
    order = TrainLoader(
        shards, batch_size=20, num_workers=1, processes=Processes(), seed=0, min_scale=0.08
    ).order(1)
    assert report["samples_of_process"]["0"] == [shards.name(index) for index in order[2].tolist()]
    assert report["samples_of_process_in_the_batch_before"]["0"] == [
        shards.name(index) for index in order[1].tolist()
    ]
    state = last(run)
    assert state["progress"]["global_epoch"] == 1 and all(
        torch.isfinite(value).all() for value in state["network"].values()
    )


def test_as_many_batches_are_skipped_as_allowed(command, tmp_path, monkeypatch, capsys, request):
    """The end is that of a run that had never seen these batches."""
    with monkeypatch.context() as patch:
        patch.setattr("llc.training.state.Progress.__init__", _with_left_out([[1, 1], [1, 2]]))
        train_llc.main(command(tmp_path / "without"))
    request.getfixturevalue("poisoned")
    train_llc.main(command(tmp_path / "run", "--training.skip_non_finite=1"))
    assert "skips batch 2 and the one before it" in capsys.readouterr().out
    assert last(tmp_path / "run")["progress"]["num_non_finite"] == 1
    found = differences(end_of(tmp_path / "run"), end_of(tmp_path / "without"))
    assert found == ["last.pth/progress/num_non_finite"]


def _with_left_out(batches):
    from llc.training.state import Progress

    made = Progress.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **{"left_out": list(batches), **kwargs})

    return init


def test_nan_weights_are_never_the_last_checkpoint(command, tmp_path):
    with pytest.raises(UserError, match="the loss became"):
        train_llc.main(
            command(tmp_path / "run", "--codebook.lr=1e30", "--training.checkpoint_minutes=0.00001")
        )
    assert all(torch.isfinite(value).all() for value in last(tmp_path / "run")["network"].values())


# ---- a full disk -------------------------------------------------------------------------------------------


def test_logs_that_cannot_be_written_do_not_stop_a_run(command, undisturbed, tmp_path, monkeypatch, capsys):
    def full(self, lines):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_write_log", full)
        train_llc.main(command(tmp_path / "run"))
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert not (tmp_path / "run" / "log.jsonl").exists()
    assert differences(last_only(tmp_path / "run"), last_only(undisturbed)) == []


def last_only(run):
    from tests.tools.chaos import flat

    return {"codebook.npy": (run / "codebook.npy").read_bytes(), "network": flat(last(run)["network"])}


def fill_the_disk(patch, name, number):
    """Leaves no room for write `number` of the file `name`, counted from 1."""
    seen, mkstemp = [], tempfile.mkstemp

    def on_a_full_disk(*args, **kwargs):
        if kwargs["prefix"] == f".{name}.":
            seen.append(name)
            if len(seen) == number:
                return os.open("/dev/full", os.O_WRONLY), mkstemp(*args, **kwargs)[1]
        return mkstemp(*args, **kwargs)

    patch.setattr("llc.files.tempfile.mkstemp", on_a_full_disk)


@pytest.mark.parametrize("name", ["last.pth", "model_best.pth", "codebook.npy"])
def test_a_full_disk_is_named_ends_the_run_and_leaves_the_last_good_checkpoint(
    name, command, undisturbed, tmp_path, monkeypatch
):
    """The second write of this file finds no room, half way."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_the_disk(patch, name, 2)
        with pytest.raises(UserError, match=f"{name}: cannot be written: No space left on device"):
            train_llc.main(command(run, "--training.checkpoint_minutes=0.00001"))
    gc.collect()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("llc-")]
    assert not list(run.rglob("*.tmp"))
    train_llc.main(command(run, "--training.checkpoint_minutes=0"))
    assert differences(end_of(run), end_of(undisturbed)) == []


# ---- processes ---------------------------------------------------------------------------------------------


def test_kills_at_random_moments_lose_nothing():
    counts, _, _, wrong = chaos(
        kills=2, seed=7, say=lambda text: None, options=("--codebook.epochs=5", "--instance.epochs=3")
    )
    assert counts.total() == 2 and wrong == []


def test_the_error_of_the_process_that_fails_is_shown(tiny, tmp_path):
    """A sample of the second process alone is damaged; both end at once, and torchrun's report says why."""
    folder = tmp_path / "data"
    folder.mkdir()
    betons = [shutil.copy(beton, folder / beton.name) for beton in make_betons(tmp_path, write_mode="jpg")]
    for beton in betons:
        shutil.copy(tmp_path / f"{beton.name}.json", folder)
    from llc.data import sampling

    broken = int(sampling.random_order(100, 6, 0, 0, rank=1, world_size=2)[3][0])
    with open(betons[0], "r+b") as file:
        file.seek(int(read_tables(betons[0]).images["data_ptr"][broken]) + 2)
        file.write(bytes(20))
    training = Training(betons, tmp_path / "run", 2)
    started = time.monotonic()
    assert training.wait() == 1
    assert time.monotonic() - started < seconds(60)
    report = training.text().partition("Root Cause")[2]
    assert f"sample {broken} of {betons[0]} cannot be decoded" in report and "rank      : 1" in report, (
        training.text()
    )


def test_a_second_ctrl_c_ends_a_process_at_once(command, tmp_path):
    """Even one that hangs in native code, from which Python's handlers are never reached."""
    hang = (
        "import ctypes, sys, train_llc; from llc.training.engine import Engine\n"
        "mutex, lock = ctypes.create_string_buffer(128), ctypes.CDLL(None).pthread_mutex_lock\n"
        "def step(*args):\n lock(mutex); print('hangs', flush=True); lock(mutex)\n"
        "Engine.step = step; train_llc.main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hang, *command(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline().strip() != "hangs":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    try:
        for _ in range(20):  # two that come before a busy machine lets the process run are one to the system
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds(3))
                break
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()


def test_continuing_on_another_number_of_processes_says_so_and_trains(command, copy, run_llc):
    done = run_llc("train_llc.py", *command(copy), processes=2)
    assert "1 process at work before, now 2" in done.stdout
    assert len(last(copy)["progress"]["lines"]) == 4


POISON = """
import os, torch, train_llc
from llc import config
from llc.training.engine import Engine
loss_of, found, count = Engine._loss, [], 0

def loss(engine, images, *more):
    global count
    count += 1
    if count == 7 and os.environ["RANK"] == "1":
        found.append(images.clone())
    value = loss_of(engine, images, *more)
    return value * float("nan") if found and torch.equal(images, found[0]) else value

Engine._loss = loss
config.run(train_llc.main)
"""


def test_a_nan_loss_on_one_process_is_skipped_on_all(command, tmp_path, monkeypatch):
    """Batch 1 of epoch 2, on the second process; at first without permission to skip."""
    script, run = tmp_path / "poison.py", tmp_path / "run"
    script.write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def train(*options):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node=2",
                script,
                *command(run, *options),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=seconds(120),
        )

    done = train()
    assert (
        done.returncode == 1
        and "error: the loss became nan at step 6 of the codebook stage (epoch 2, batch 1" in done.stderr
    ), done.stderr
    report = json.loads((run / "checkpoints" / "non_finite.json").read_text())
    assert report["loss_of_process"] == {"1": "nan"} and [
        len(names) for names in report["samples_of_process"].values()
    ] == [10, 10]
    shutil.rmtree(run)
    done = train("--training.skip_non_finite=1")
    assert done.returncode == 0, done.stderr
    progress = last(run)["progress"]
    assert (
        progress["num_non_finite"] == 1
        and progress["left_out"] == [[1, 0], [1, 1]]
        and len(progress["lines"]) == 4
    )


def test_a_size_that_the_backbone_does_not_take_is_refused_before_training(command, tmp_path):
    with pytest.raises(
        UserError, match="sides are multiples of 16 pixels, got 24 x 24.*validation.resolution"
    ):
        train_llc.main(
            command(
                tmp_path / "run",
                "--model.arch=timm:test_vit",
                "--model.width=64",
                "--validation.resolution=24",
            )
        )
    assert not (tmp_path / "run" / "checkpoints" / "last.pth").exists()


def test_dropout_draws_the_same_values_after_a_run_is_resumed(command, tmp_path, monkeypatch):
    """What a network draws at random is a function of seed and position, not of what ran before."""
    monkeypatch.setattr(backbones, "_registered", dict(backbones._registered))

    @backbones.register("test_dropout", classifier="2")
    def dropout():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 10))

    options = ("--model.arch=test_dropout", "--model.width=64", "--training.stages=codebook")
    train_llc.main(command(tmp_path / "whole", *options))
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 2)
        with pytest.raises(SystemExit):
            train_llc.main(command(tmp_path / "stopped", *options))
    torch.rand(7)  # something else draws in between
    train_llc.main(command(tmp_path / "stopped", *options))
    assert differences(end_of(tmp_path / "stopped"), end_of(tmp_path / "whole")) == []
    monkeypatch.setattr("llc.training.trainer.step_seed", lambda *position: 0)
    train_llc.main(command(tmp_path / "other", *options))
    assert differences(end_of(tmp_path / "other"), end_of(tmp_path / "whole"))  # it matters


THREE = """
import copy, torch
from llc import config
from llc.distributed import Processes
from llc.network import Network, running_statistics
from llc.recipe import Dist, Training
from llc.stages import CodebookStage
from llc.training.engine import Engine

def start(processes):
    torch.manual_seed(0)
    network = Network("resnet18", 7, 5, width=4)
    torch.nn.init.normal_(network.codebook)
    return network, Engine(network, CodebookStage(), Training(), Dist(), processes)

def train(engine, rank, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 * step + rank)
        images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        engine.step(images, torch.randint(0, 5, (4,), generator=generator), 0.05)

def main(argv):
    processes = Processes.start(1)
    whole, engine = start(processes)
    train(engine, processes.rank, 0, 6)
    stopped, engine = start(processes)
    train(engine, processes.rank, 0, 3)
    state = copy.deepcopy((stopped.state_dict(), engine.state_dict()))
    statistics = copy.deepcopy(running_statistics(stopped))
    continued, engine = start(processes)
    continued.load_state_dict(state[0])
    engine.load_state_dict(state[1])
    for tensor, value in zip(running_statistics(continued), statistics):
        tensor.copy_(value)
    train(engine, processes.rank, 3, 6)
    assert not torch.equal(whole.projection.weight, stopped.projection.weight)
    states = whole.state_dict(), continued.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states)))
    processes.stop()

config.run(main)
"""


def test_three_processes_add_gradients_up_in_the_same_order_after_a_start(tmp_path, run_llc, monkeypatch):
    script = tmp_path / "three.py"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script.write_text(THREE)
    run_llc(script, processes=3)
