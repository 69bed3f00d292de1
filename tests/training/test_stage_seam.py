"""A stage from a plugin file: the command line trains with it, and the library and evaluate find it."""

import csv
import json
import sys

import pytest

import llc
from llc import plugins, stages
from llc.errors import UserError
from tests.tools.chaos import make_betons
from tests.training.test_survival import SHORT

PLUGIN = '''
"""The mine stage: pulls z towards the label's class code by their squared distance."""

import dataclasses
from typing import ClassVar

from llc.codes import binarize
from llc.options import option
from llc.stages import Stage, register


@register("mine")
@dataclasses.dataclass(frozen=True)
class MineStage(Stage):
    """The mine stage: squared distance to class codes."""

    learns_codebook: ClassVar[bool] = False
    learns_codes: ClassVar[bool] = True
    best_metric: ClassVar[str] = "top1_mhd"

    strength: float = option(1.0, minimum=0, help="factor of the squared distance")

    def loss(self, z, network, batch):
        return self.strength * (z - binarize(network.codebook[batch.labels])).square().mean()
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_llc):
    """(plugin file, run folder): the codebook stage, then the plugin's."""
    folder = tmp_path_factory.mktemp("seam")
    plugin = folder / "llc_mine.py"
    plugin.write_text(PLUGIN)
    betons = make_betons(folder)
    run_llc(
        "train_llc.py",
        *SHORT,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={folder}",
        "--logging.name=run",
        f"--plugin={plugin}",
        "--training.stages=codebook,mine",
        "--mine.epochs=1",
        "--mine.lr=0.01",
        "--mine.strength=2",
    )
    return plugin, folder / "run"


@pytest.fixture
def loaded(trained, monkeypatch):
    """The plugin, loaded into this process for one test."""
    monkeypatch.setattr(stages, "STAGES", dict(stages.STAGES))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "loaded", [])
    plugins.load(str(trained[0]))
    yield
    del sys.modules["llc_mine"]


def test_its_metrics_and_its_checkpoint_are_in_the_run_folder(trained):
    run = trained[1]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["codebook", "codebook", "mine"]
    with open(run / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"].split("/")[0] for row in rows} == {"codebook", "mine"}
    headlines = {row["metric"] for row in rows if row["headline"] == "1"}
    of_codes = {f"mine/top1_{decoder}_flip" for decoder in ("mhd", "ed", "posterior")}
    assert headlines == {"codebook/top1_class_flip", *of_codes}
    assert (run / "checkpoints" / "mine.pth").is_file() and (run / "checkpoints" / "mine_ema.pth").is_file()
    # squared distances to codes of +-1, twice: not the cross entropies of the other stages
    assert 0.5 < lines[-1]["loss"] < 20


def test_with_the_plugin_the_library_and_evaluate_find_the_stage(trained, loaded, run_llc):
    encoder = llc.load(trained[1])
    assert encoder.stage == "mine" and encoder.recipe["mine"]["strength"] == 2
    assert llc.load(trained[1], checkpoint="codebook").stage == "codebook"
    text = run_llc("-m", "llc.evaluate", trained[1], f"--plugin={trained[0]}").stdout
    assert "MHD" in text and "class codes" in text


def test_with_the_plugin_a_finished_run_is_finished_and_its_weights_start_another(trained, run_llc):
    plugin, run = trained
    assert "is finished" in run_llc("train_llc.py", f"--resume={run}", f"--plugin={plugin}").stdout


def test_without_the_plugin_errors_name_the_flag(trained, call_llc):
    plugin, run = trained
    with pytest.raises(UserError, match="mine: not a section.*--plugin="):
        llc.load(run)
    for words in (["-m", "llc.evaluate", run], ["train_llc.py", f"--resume={run}"]):
        done = call_llc(*words, check=False)
        assert done.returncode == 2 and "--plugin=" in done.stderr, done.stderr


def test_a_name_that_is_taken_or_unusable_is_refused():
    for name in ("codebook", "my stage"):
        with pytest.raises(ValueError, match=name):
            stages.register(name)(stages.Stage)
