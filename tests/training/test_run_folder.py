"""A run folder whose checkpoints are gone is never begun anew: whatever starts there says what it holds."""

import shutil

import pytest
import torch

import train_llc
from llc.errors import UserError
from llc.training.run_folder import RunFolder

OPTIONS = (
    "--config=rn18_configs/llc_demo.yaml",
    "--data.train_dataset=no.beton",
    "--data.val_dataset=no.beton",
)
FINISHED = (
    "config.yaml class_names.json log.jsonl codebook.npy decoder.npz results.csv events.out.tfevents.1 "
    "checkpoints/initial.pth checkpoints/codebook.pth checkpoints/instance.pth checkpoints/model_best.pth "
    "checkpoints/last.pth checkpoints/previous_1.pth"
).split()
RESUMABLE = {"checkpoints/last.pth", "checkpoints/previous_1.pth"}


@pytest.fixture
def folder(tmp_path):
    """folder(names): a run folder `mine` that holds files of these names."""

    def of(names):
        run = tmp_path / "mine"
        shutil.rmtree(run, ignore_errors=True)
        (run / "checkpoints").mkdir(parents=True)
        for name in names:
            (run / name).write_text(f"data: {{}}\n# {name}\n")
        return run

    return of


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def start(run, *words):
    train_llc.main([*OPTIONS, f"--logging.folder={run.parent}", f"--logging.name={run.name}", *words])


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
@pytest.mark.parametrize("how", ["auto", "folder"])
@pytest.mark.parametrize(
    "kept",
    [
        set(FINISHED) - RESUMABLE,
        {"config.yaml", "results.csv"},
        {"config.yaml", "codebook.npy"},
        {"config.yaml", "decoder.npz"},
        {"config.yaml", "log.jsonl"},
        {"config.yaml", "checkpoints/instance.pth"},
        {"config.yaml", "checkpoints/initial.pth", "checkpoints/model_best.pth"},
        {"config.yaml", "checkpoints/last.damaged"},
        {"config.yaml", "encoder.safetensors"},
    ],
    ids=lambda names: f"{len(names)} {max(names)}",
)
def test_resuming_without_a_checkpoint_names_what_is_there(kept, how, dry, folder):
    run = folder(kept)
    before = contents(run)
    with pytest.raises(UserError) as refused:
        start(run, f"--resume={'auto' if how == 'auto' else run}", *dry)
    message = str(refused.value)
    assert f"run folder {run} has no checkpoint to resume from" in message
    assert all(
        name in message for name in kept - {"config.yaml", "class_names.json", "checkpoints/initial.pth"}
    )
    assert "choose another logging.name, or remove this folder first" in message
    assert ("llc.load(" in message) == any(name.endswith(".pth") for name in kept)
    assert contents(run) == before


def test_a_plain_start_does_not_advise_to_resume_what_cannot_be_resumed(folder):
    run = folder(set(FINISHED) - RESUMABLE)
    for words in ((), ("--dry_run",)):
        with pytest.raises(
            UserError, match="exists already.*results.csv.*remove this folder first"
        ) as refused:
            start(run, *words)
        assert "--resume" not in str(refused.value)
    run = folder(FINISHED)
    with pytest.raises(UserError, match=f"exists already.*continue it with --resume={run}"):
        start(run)


def test_without_its_checkpoints_folder_too(folder):
    run = folder({"config.yaml", "results.csv", "codebook.npy"})
    (run / "checkpoints").rmdir()
    with pytest.raises(UserError, match="no checkpoint to resume from.*codebook.npy, results.csv"):
        start(run, "--resume=auto")


def test_a_start_that_was_killed_before_any_work_begins_anew(folder):
    run = folder(
        {"config.yaml", "class_names.json", "checkpoints/initial.pth", "checkpoints/.last.pth.x.tmp"}
    )
    opened = RunFolder.open_to_continue(run)
    assert opened.load_last() is None
    opened.save_last({"number": torch.tensor(3)}, keep=2)
    assert opened.load_last()["number"] == 3
    opened.close()
