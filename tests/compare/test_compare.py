"""`python -m llc.compare`: a comparison of two methods and a ceiling on tiny betons, in real processes."""

import collections
import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import llc.benchmark.__main__ as benchmark
import llc.compare.__main__ as compare
from llc.codebook import health, load_codebook
from llc.compare import farm, tables
from llc.compare.grid import Grid
from llc.compare.runs import Comparison
from llc.data.loaders import ValLoader
from llc.data.manifest import data_checksums
from llc.data.shards import open_shards
from llc.data.subset import held_out, write_subset
from llc.data.verify import check_samples
from llc.distributed import Processes
from llc.errors import UserError
from llc.training import config as training_config
from tests.conftest import ROOT
from tests.data.helpers import wait_until
from tests.tools.chaos import make_betons
from tests.waiting import seconds

RECIPE = """
model: {arch: resnet18, width: 4}
codes: {num_bits: 7}
codebook: {epochs: 1, lr: 0.1}
instance: {epochs: 1, lr: 0.05}
resolution: {min_res: 16, max_res: 16}
training: {batch_size: 10}
validation: {batch_size: 8, resolution: 16, lr_tta: false}
"""
GRID = """
seeds: [3, 4]
held_out: 0.2
methods:
  sqrt:
    set: {codes.logit_scale: sqrt}
    tune: {codebook.lr: [0.05, 1.0e+30]}     # with the second, the loss becomes NaN or infinite
  plain:
  dense:
    set: {training.stages: dense, dense.epochs: 1, dense.lr: 0.1}
    headline: top1_class
    ceiling: true
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_betons(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def command(tiny, tmp_path_factory):
    """command(grid text, out, *more words): the words behind `python`."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "recipe.yaml").write_text(RECIPE)

    def of(grid, out, *more):
        (folder / "grid.yaml").write_text(grid)
        return [
            "-m",
            "llc.compare",
            f"--config={folder / 'recipe.yaml'}",
            f"--grid={folder / 'grid.yaml'}",
            f"--out={out}",
            f"--data.train_dataset={tiny[0]}",
            f"--data.val_dataset={tiny[1]}",
            *more,
        ]

    return of


@pytest.fixture(scope="module")
def compared(command, run_llc, tmp_path_factory):
    """(the folder of a finished comparison, what it printed)."""
    out = tmp_path_factory.mktemp("compared")
    return out, run_llc(*command(GRID, out, "--jobs=2")).stdout


def results(folder):
    with open(folder / "results.csv") as file:
        return {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}


def test_the_table_says_what_the_runs_wrote(compared):
    out, printed = compared
    report = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in report["table"]] == ["sqrt", "plain", "dense"]
    for row in report["table"]:
        first, last = ("dense", None) if row["method"] == "dense" else ("codebook", "instance")
        folders = sorted((out / "runs").glob(f"final_{row['method']}_seed*"))
        assert len(folders) == 2
        for figure, metric in (
            ("class", f"{first}/top1_class"),
            ("mhd", f"{last}/top1_mhd"),
            ("ed", f"{last}/top1_ed"),
            ("tied", f"{last}/tied_mhd"),
            ("none", f"{last}/none_ed"),
            ("posterior", f"{last}/top1_posterior"),
            ("ece", f"{last}/ece_posterior"),
        ):
            if metric.startswith("None/"):  # a dense network has no codes
                assert figure not in row["figures"]
                continue
            values = [results(folder)[metric] for folder in folders]
            found = row["figures"][figure]
            assert found["values"] == values and found["mean"] == pytest.approx(statistics.mean(values))
            assert found["std"] == pytest.approx(statistics.stdev(values))
        books = [health(load_codebook(folder)) for folder in folders]
        assert row["figures"]["min_distance"]["values"] == [book.min_distance for book in books]
        assert row["figures"]["collisions"]["values"] == [len(book.collisions) for book in books]
        (line,) = re.findall(rf"^{row['method']} .*$", printed, re.MULTILINE)
        shown = row["figures"]["mhd" if last else "class"]
        assert f"{100 * shown['mean']:.2f} ± {100 * shown['std']:.2f}" in line and "2/2" in line
        assert f"| {100 * shown['mean']:.2f} ± " in (out / "table.md").read_text()
    sqrt, _, dense = report["table"]
    assert (
        sqrt["gap"] == pytest.approx(sqrt["figures"]["mhd"]["mean"] - dense["figures"]["class"]["mean"])
        and dense["gap"] is None
    )


def test_a_decoder_without_figures_has_no_column(compared):
    """As in a comparison of runs that did not fit any."""
    report = json.loads((compared[0] / "results.json").read_text())
    assert tables.table(report).split("\n")[0].split()[3:9] == "class MHD ED posterior tied none".split()
    report["table"].pop()  # a dense network has no codes
    for row in report["table"][1:]:
        del row["figures"]["posterior"], row["figures"]["ece"]
    lines = tables.table(report).split("\n")
    assert "posterior" in lines[0] and " - " not in lines[1] and lines[2].count(" - ") == 2
    del report["table"][0]["figures"]["posterior"], report["table"][0]["figures"]["ece"]
    head = tables.table(report).split("\n")[0].split()
    assert head[3:9] == "class MHD ED tied none collisions".split()


def test_a_lost_point_is_reported_and_not_chosen(compared):
    out, printed = compared
    report = json.loads((out / "results.json").read_text())
    assert report["table"][0]["point"] == {"codebook.lr": 0.05}
    scores = report["tuning"]["sqrt"]
    (folder,) = (out / "runs").glob(f"tune_sqrt_seed0_{'?' * 12}/results.csv")
    assert (
        scores[0]["headline"] == results(folder.parent)["instance/top1_mhd"] and scores[1]["headline"] is None
    )
    assert "sqrt: codebook.lr 1e+30, seed 0 (tune) diverged: the loss became" in printed
    assert [run["status"] for run in report["runs"]].count("diverged") == 1


def test_tuning_saw_a_slice_of_train_and_the_seeds_are_the_grids(compared, tiny):
    out, _ = compared
    report = json.loads((out / "results.json").read_text())
    tune = [run for run in report["runs"] if run["phase"] == "tune"]
    final = [run for run in report["runs"] if run["phase"] == "final"]
    assert {run["seed"] for run in tune} == {0} and collections.Counter(run["seed"] for run in final) == {
        3: 3,
        4: 3,
    }
    for run in tune:
        rest, slice_ = (
            open_shards(run["config"]["data"]["train_dataset"]),
            open_shards(run["config"]["data"]["val_dataset"]),
        )
        assert (len(rest), len(slice_)) == (80, 20) and np.bincount(slice_.labels).tolist() == [4] * 5
    assert {run["config"]["data"]["train_dataset"] for run in final} == {str(tiny[0])}
    assert {run["config"]["data"]["val_dataset"] for run in final} == {str(tiny[1])}


def test_the_dense_codebook_stays_one_bit_a_class(compared):
    out, _ = compared
    for folder in (out / "runs").glob("final_dense_*"):
        assert torch.equal(load_codebook(folder) > 0, torch.eye(5) > 0)


@pytest.fixture
def dry(command, capsys):
    """dry(grid text, out) -> what --dry_run prints."""

    def of(grid, out):
        compare.main([*command(grid, out)[2:], "--dry_run"])
        return capsys.readouterr().out

    return of


def test_a_restart_runs_nothing_again(compared, command, dry, call_llc):
    out, printed = compared
    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    logs = {path: path.read_text() for path in (out / "logs").iterdir()}
    again = call_llc(*command(GRID, out, "--jobs=2")).stdout
    assert "2 runs, 2 of them done before" in again and "6 runs, 6 of them done before" in again
    assert times == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert logs == {path: path.read_text() for path in (out / "logs").iterdir()}
    assert printed.partition("method")[2].splitlines()[:4] == again.partition("method")[2].splitlines()[:4]
    listed = dry(GRID, out)
    assert (
        listed.count("finished") == 7
        and listed.count("diverged") == 1
        and "2 runs to tune + 6 to compare = 8" in listed
    )


def test_dry_runs_nothing_and_another_lr_is_another_run(compared, dry, tmp_path):
    assert dry(GRID, tmp_path / "out").count("to run") == 8 and not (tmp_path / "out").exists()
    assert dry(GRID.replace("0.05", "0.06"), compared[0]).count("to run") == 1 + 2
    assert dry(GRID.replace("[3, 4]", "[3, 5]"), compared[0]).count("to run") == 3
    not_fitted = GRID.replace("  plain:", "  plain: {set: {validation.fit_decoder: false}}")
    assert dry(not_fitted, compared[0]).count("to run") == 0  # what is trained is the same


def test_runs_that_fail_are_rows_that_say_so(command, dry, call_llc, tmp_path):
    grid = "seeds: [0]\nmethods:\n  large: {set: {training.batch_size: 1000}}"
    printed = call_llc(*command(grid, tmp_path)).stdout
    assert re.search(r"^large +as set +0/1 +-", printed, re.MULTILINE)
    assert (
        "large: as set, seed 0 (final) failed: exit status 2:" in printed
        and "training.batch_size = 1000 is too large" in printed
    )
    assert json.loads((tmp_path / "results.json").read_text())["table"][0]["figures"] == {}
    assert "failed, to run again" in dry(grid, tmp_path)


@pytest.mark.parametrize(
    "grid, message",
    [
        (
            "methods:\n  one: {set: {codes.num_bit: 8}}",
            "methods.one: codes.num_bit is not a key; did you mean codes.num_bits?",
        ),
        ("methods:\n  one: {tune: {codebook.lr: [0.1, fast]}}", "codebook.lr = 'fast'"),
        ("methods:\n  one: {tune: {codebook.lr: 0.1}}", "codebook.lr = 0.1: expected a list"),
        ("methods:\n  one: {tunes: {}}", "tunes is not a key; did you mean tune?"),
        ("method:\n  one:", "method is not a key; did you mean methods?"),
        ("methods:\n  one: {set: {training.seed: 1}}", "training.seed is not a method's key"),
        (
            "methods:\n  one: {headline: top1}",
            "headline = top1: expected one of top1_class, top5_class, top1_mhd",
        ),
        ("methods:\n  one: {set: {codes.nested: '8,9'}}", "codes.nested = 8,9: codes have 7 bits"),
        ("methods:\n  one: {set: {codes.nested: [8, 9]}}", "codes.nested = 8,9: codes have 7 bits"),
        ("methods:\n  one: {set: {codes.nested: }}", "methods.one: codes.nested = None: expected"),
        ("methods:\n  one: {set: {codes.nested: {a: 1}}}", "codes.nested = {'a': 1}: expected"),
        ("methods:\n  one: {tune: {model.weights: [null]}}", "methods.one: model.weights = None: expected"),
        ("methods:\n  one: {tune: {model.weights: [{a: 1}]}}", "model.weights = {'a': 1}: expected a text"),
        ("methods:\n  one: {set: {codes.nested: [4, null]}}", "codes.nested = [4, None]: expected a text"),
        ("methods:\n  one: {tune: {codes.nested: [4, [[4]]]}}", "codes.nested = [[4]]: expected a text"),
        ("methods:\n  one: {set: {codes.min_distance: 7}}", "codes.min_distance = 7: no code of 7 bits has"),
        ("seeds: [1, 1]\nmethods:\n  one:", "seeds = [1, 1]"),
        ("methods:\n  one: {ceiling: true}\n  two: {ceiling: true}", "ceiling is true for one, two"),
        (
            "methods:\n  one: {set: {training.stages: dense, dense.epochs: 1, dense.lr: 1}}",
            "methods.one: headline = top1_mhd: a dense network has no codes; its headline is top1_class",
        ),
        (
            "methods:\n  one: {headline: top5_posterior, set: {validation.fit_decoder: false}}",
            "methods.one: headline = top5_posterior: the runs do not measure it",
        ),
    ],
)
def test_a_grid_that_makes_no_sense_is_an_error_before_anything_runs(grid, message, command, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        compare.main(command(grid, tmp_path / "out")[2:])
    assert not (tmp_path / "out").exists()


def test_the_lists_of_a_grid_reach_the_trainings(command, tmp_path):
    grid = "methods: {one: {set: {logging.to: [csv]}, tune: {codes.nested: [[], 4, [3, 5]]}}}"
    words = compare.without(compare.Options, command(grid, tmp_path)[2:])
    base, _ = training_config.read(words, description="")
    (tmp_path / "grid.yaml").write_text(grid)
    runs = Comparison(base, words, Grid.read(tmp_path / "grid.yaml"), tmp_path / "out").tuning["one"]
    assert [run.config.codes.nested for run in runs] == [(), (4,), (3, 5)]
    assert {run.config.logging.to for run in runs} == {("csv",)}


def test_ctrl_c_stops_the_trainings_and_the_same_command_continues(command, dry, call_llc, tmp_path):
    grid = "seeds: [0]\nmethods:\n  long: {set: {codebook.epochs: 30}}"
    words = command(grid, tmp_path, "--jobs=2")
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = wait_until(lambda: next((tmp_path / "runs").glob("*/log.jsonl"), None))
    with pytest.raises(UserError, match="another comparison is at work"):
        compare.main(words[2:])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 130 and "stopping 1 training(s)" in errors
    epochs = len(log.read_text().splitlines())
    lock = log.parent / ".lock"
    assert (
        1 <= epochs < 31 and subprocess.run(["flock", "-n", lock, "true"]).returncode == 0
    )  # nobody is at work there
    time.sleep(0.2)
    assert len(log.read_text().splitlines()) == epochs
    assert "to be continued" in dry(grid, tmp_path)
    call_llc(*words)
    assert len(log.read_text().splitlines()) == 31
    assert "continues in epoch" in next((tmp_path / "logs").iterdir()).read_text()


def test_a_slice_and_its_rest_are_the_betons_samples(tiny, tmp_path):
    """Each sample's decoded pixels, against the beton they were copied from."""
    shards = open_shards(tiny[0])
    out = held_out(shards.labels, 0.1, 5)
    assert np.bincount(shards.labels[out]).tolist() == [2] * 5
    assert (held_out(shards.labels, 0.1, 5) == out).all() and (held_out(shards.labels, 0.1, 6) != out).any()
    whole = pixels(shards)
    for name, chosen in (("slice", out), ("rest", ~out)):
        write_subset(shards, np.flatnonzero(chosen), tmp_path / f"{name}.beton")
        copied = open_shards(tmp_path / f"{name}.beton")
        assert copied.manifest.class_names == shards.manifest.class_names
        assert copied.labels.tolist() == shards.labels[chosen].tolist() and torch.equal(
            pixels(copied), whole[torch.from_numpy(chosen)]
        )
        damaged, crcs = check_samples(copied, 2)
        assert copied.manifests[0].checksums == data_checksums(crcs) and not damaged


def pixels(shards):
    return torch.cat(
        [
            images
            for images, _ in ValLoader(
                shards, batch_size=16, num_workers=1, processes=Processes(), resolution=16, crop_ratio=1.0
            )
        ]
    )


def test_every_class_keeps_an_image_on_either_side():
    out = held_out(np.array([0, 0, 1, 1, 1]), 0.01, 0)
    assert [out[:2].sum(), out[2:].sum()] == [1, 1]
    with pytest.raises(UserError, match="label 1 has a single"):
        held_out(np.array([0, 0, 1]), 0.5, 0)


def test_cores_are_divided_among_the_jobs():
    cores = len(os.sched_getaffinity(0))
    for jobs, threads in ((1, cores), (cores, 1), (2 * cores, 1)):
        found, number = farm.divided(0, jobs)
        assert (
            number == threads
            and found["OMP_NUM_THREADS"] == str(threads)
            and found["LOCAL_WORLD_SIZE"] == str(jobs)
        )


EXPERIMENTS = sorted((ROOT / "experiments").glob("*_grid.yaml"))


def test_experiments_are_pairs_of_recipe_and_grid():
    assert {path.name.replace("_grid", "") for path in EXPERIMENTS} == {
        path.name
        for path in (ROOT / "experiments").glob("*.yaml")
        if not path.name.startswith("cifar10")  # run by cifar10_protocols.py
    } - {path.name for path in EXPERIMENTS} and EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_grids_and_recipes_we_ship_are_read(path):
    recipe = f"--config={path.with_name(path.name.replace('_grid', ''))}"
    grid, (shared, _) = Grid.read(path), training_config.read([recipe], description="")
    assert (
        shared.stages == ("codebook", "instance")
        and len(grid.seeds) > 1
        and sum(method.ceiling for method in grid.methods) == 1
    )
    for method in grid.methods:
        for point in method.points:
            words = [f"--{key}={value}" for key, value in {**method.overrides, **point}.items()]
            read, _ = training_config.read([recipe, *words], description="")
            # all methods train equally long
            assert (
                sum(read.stage(stage).epochs for stage in read.stages)
                == shared.stage("codebook").epochs + shared.stage("instance").epochs
            )


# -------------------------------------------------------------------------------- the command line


def test_the_old_spelling_says_what_it_is_called_now(dry, command, tmp_path):
    with pytest.raises(UserError, match="python -m llc.compare"):
        benchmark.main(["codes", "--dry"])
    with pytest.raises(UserError, match="--dry_run"):
        compare.main([*command(GRID, tmp_path / "out")[2:], "--dry"])


@pytest.mark.parametrize(
    "words", [["--grid=g.yaml", "--dry_run"], ["--grid", "g.yaml", "--dry_run", "yes", "--jobs", "2"]]
)
def test_trainings_get_the_command_line_without_the_comparisons_flags(words):
    shared = ["--config", "recipe.yaml", "--validation.lr_tta", "--training.seed=1"]
    assert compare.without(compare.Options, [*shared[:2], *words, *shared[2:]]) == shared
