"""The command: which files it writes and overwrites, and what it says when something is missing."""

import re
import shutil

import numpy as np
import pytest
import yaml

from llc.report import page
from llc.report.page import MARK


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the run, which may be changed."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of what is beside them, because charts take seconds to draw."""
    monkeypatch.setattr(page, "figures", lambda *_: {})
    monkeypatch.setattr(page, "comparison_figures", lambda *_: {})


def set_val_dataset(run, path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["val_dataset"] = str(path)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def refused(call_llc, *words):
    done = call_llc("-m", "llc.report", *words, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    return done.stderr


def test_a_page_is_written_into_the_run_folder_and_again(run, call_llc):
    done = call_llc("-m", "llc.report", run)
    written = run / "report.html"
    assert str(written) in done.stdout
    text = written.read_text("utf-8")
    assert MARK in text and 'id="bits"' in text and text.count("<img ") > 20
    assert "class_3" in text and f"python -m llc.report {run}" in text
    written.write_text(text[:3000])  # a report, by its mark
    call_llc("-m", "llc.report", run, "--data=none")
    again = written.read_text("utf-8")
    assert "They were not asked for (--data=none)." in again and 'id="bits"' not in again


def test_val_images_that_are_gone(run, without_figures, call_llc):
    set_val_dataset(run, run / "gone.beton")
    done = call_llc("-m", "llc.report", run)
    assert "images are not measured" in done.stdout and "gone.beton" in done.stdout
    text = (run / "report.html").read_text("utf-8")
    assert "gone.beton" in text and "<img " not in text and 'id="training"' in text
    assert "other.beton" in refused(call_llc, run, f"--data={run / 'other.beton'}")


def test_other_images_can_be_named(run, without_figures, betons, call_llc):
    set_val_dataset(run, run / "gone.beton")
    call_llc("-m", "llc.report", run, f"--data={betons[1]}")
    assert (run / "report.html").read_text("utf-8").count("<img ") > 20


def test_two_runs_are_compared(run, without_figures, finished_run, tmp_path, call_llc):
    written = tmp_path / "both.html"
    call_llc("-m", "llc.report", run, finished_run, f"--out={written}", "--data=none")
    text = written.read_text("utf-8")
    assert 'id="comparison"' in text and 'id="r1-run"' in text and 'id="r2-run"' in text
    assert "The recipes are the same." in text


def test_files_of_an_evaluation(run, betons, image_tree, tmp_path, call_llc):
    scores, curves = tmp_path / "ood.npz", tmp_path / "retrieval.csv"
    call_llc(
        "-m",
        "llc.evaluate",
        run,
        f"--ood.dataset=other={image_tree / 'train'}",
        f"--ood.scores={scores}",
        f"--retrieval.database={betons[0]}",
        f"--retrieval.csv={curves}",
    )
    words = f"--ood_scores={scores}", f"--retrieval_csv={curves}", "--data=none"
    done = call_llc("-m", "llc.report", run, *words)
    assert f"{run}: reading the run\ndrawing the figures\n" in done.stdout
    text = (run / "report.html").read_text("utf-8")
    assert 'id="figure-ood-0"' in text and 'id="figure-retrieval"' in text and "AUROC" in text
    assert "another run" not in text and "was measured with" not in text

    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / "instance.pth", tmp_path / "instance.pth")
    shutil.copy(
        checkpoints / "codebook.pth", checkpoints / "instance.pth"
    )  # another network, as of another run
    for word, file in zip(words[:2], (scores, curves)):
        message = refused(call_llc, run, word, "--data=none")
        assert (
            f"{file}: it is not about the run {run}" in message and f"of {run}, and this run has" in message
        )

    shutil.copy(tmp_path / "instance.pth", checkpoints / "best.pth")  # the run's, but not the network shown
    call_llc("-m", "llc.report", run, words[0], "--data=none")
    assert "was measured with checkpoints/best.pth." in (run / "report.html").read_text("utf-8")
    (checkpoints / "best.pth").unlink()
    (checkpoints / "instance.pth").unlink()
    call_llc("-m", "llc.report", run, words[1], "--data=none")
    text = (run / "report.html").read_text("utf-8")
    assert "unknown whether that is this run&#39;s" in text and "instance.pth is missing" in text


def test_files_that_do_not_name_a_network_are_taken_with_a_note(run, without_figures, tmp_path, call_llc):
    """Such are those of older versions, and of codes without a model."""
    scores, curves = tmp_path / "ood.npz", tmp_path / "retrieval.csv"
    rng = np.random.default_rng(0)
    np.savez(scores, **{"evaluated.mhd": rng.normal(size=9), "other.mhd": rng.normal(size=9)})
    curves.write_text("at,value,precision,recall,model,network\nk,1,0.5,0.1,codes.npz,\n")
    call_llc("-m", "llc.report", run, f"--ood_scores={scores}", f"--retrieval_csv={curves}", "--data=none")
    text = (run / "report.html").read_text("utf-8")
    assert "ood.npz does not say which network it was measured with" in text
    assert "retrieval.csv was made from codes.npz, codes without a network" in text


@pytest.mark.parametrize(
    "name", ["config.yaml", "checkpoints/a.html", "notes.html", "report.txt", "a/b.html", ""]
)
def test_what_is_not_overwritten(run, call_llc, name):
    """Files of the run, other people's pages, folders, and names that no browser opens."""
    (run / "notes.html").write_text("<h1>my notes</h1>")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    reason = {
        "config.yaml": "ends in .html",
        "checkpoints/a.html": "a file of the run",
        "notes.html": "not a report of llc",
        "report.txt": "ends in .html",
        "a/b.html": "there is no folder",
        "": "ends in .html",
    }[name]
    assert reason in refused(call_llc, run, f"--out={run / name}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_is_asked_wrongly(run, tmp_path, call_llc):
    assert "not a run folder (it has no config.yaml)" in refused(call_llc, tmp_path)
    assert f"{tmp_path / 'nope'} does not exist" in refused(call_llc, tmp_path / "nope")
    assert "named twice" in refused(call_llc, run, run / ".", f"--out={tmp_path / 'out.html'}")
    assert "2 files for 1 run;" in refused(call_llc, run, "--ood_scores=a.npz,b.npz")
    assert re.search(
        "a.npz.*no such file|no.*file.*a.npz", refused(call_llc, run, "--ood_scores=a.npz"), re.I | re.S
    )
    assert "runs is required" in refused(call_llc)


def test_images_of_another_set_are_called_so(run, betons, without_figures, call_llc):
    call_llc("-m", "llc.report", run, f"--data={betons[0]}")
    text = (run / "report.html").read_text("utf-8")
    assert "Each row is one of the images of train.beton" in text and "Images of train.beton</dt>" in text
    assert "The numbers below are of the run" in text
    assert "val images decoded by" not in text


def test_a_decoder_that_is_asked_for_is_never_left_out(run, call_llc):
    assert "it takes auto, class, mhd, ed, posterior" in refused(call_llc, run, "--decode=posteriour")
    (run / "decoder.npz").unlink()
    assert "posterior" in refused(call_llc, run, "--decode=posterior")
    assert not (run / "report.html").exists()
