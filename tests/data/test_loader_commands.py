"""The keys of section `data` by command: what a run sees does not depend on how its betons are read."""

import re
import shutil

import numpy as np
import pytest

import train_llc
from llc.errors import UserError
from tests.conftest import SMALL


def test_evaluation_by_pages_and_of_shards_equals_that_of_the_beton(
    finished_run, betons, run_llc, call_llc, tmp_path
):
    """On two processes; the glob matches one beton of another name."""
    for suffix in ("", ".json"):
        shutil.copy(f"{betons[1]}{suffix}", tmp_path / f"part-0.beton{suffix}")
    files = [tmp_path / "whole.npz", tmp_path / "parts.npz"]
    call_llc("-m", "llc.evaluate", finished_run, f"--predictions={files[0]}")
    run_llc(
        "-m",
        "llc.evaluate",
        finished_run,
        f"--predictions={files[1]}",
        "--data.in_memory=0",
        f"--data.val_dataset={tmp_path}/part-*.beton",
        processes=2,
    )
    whole, parts = map(np.load, files)
    assert len(whole["labels"]) == 66
    for key in ("labels", "codes", "top_class"):
        assert np.array_equal(whole[key], parts[key]), key


def test_training_by_pages_on_two_processes_learns(betons, run_llc, tmp_path):
    done = run_llc(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]},{betons[1]}",
        f"--data.val_dataset={betons[1]}",
        "--data.in_memory=0",
        "--training.stages=codebook",
        "--codebook.epochs=2",
        f"--logging.folder={tmp_path}",
        "--data.on_error=skip_sample",
        processes=2,
    )
    assert f"2 epochs of {(240 + 66) // 24} steps" in done.stdout and "codebook 2/2: loss" in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data.on_error=ignore"], "data.on_error = 'ignore': it takes one of fail, skip_sample"),
        (["--data.train_dataset=nowhere-*.beton"], "nowhere-*.beton: no file has such a name"),
    ],
)
def test_bad_values_are_named(words, message, betons, tmp_path):
    data = [f"--data.train_dataset={betons[0]}", f"--data.val_dataset={betons[1]}"]
    with pytest.raises(UserError, match=re.escape(message)):
        train_llc.main([*SMALL, *data, f"--logging.folder={tmp_path}", *words])
