"""A decoder from a plugin: trainings load it, the table shows it, and methods can be tuned by it."""

import json
import subprocess
import sys

import pytest

from llc.compare import tables
from llc.compare.grid import headline_metrics
from llc.evaluation import decoders
from tests.compare.test_compare import RECIPE
from tests.conftest import ROOT
from tests.tools.chaos import make_betons
from tests.waiting import seconds

PLUGIN = """
from llc.evaluation.decoders import MHD, register


@register
class Twice(MHD):
    \"\"\"MHD under another name.\"\"\"

    name, title, short = "twice", "MHD again", "again"
    details = {"tied": "tied for nearest", "tied5": "tied across the fifth place"}
"""


@pytest.fixture
def twice():
    """The plugin's decoder in this process, for the test."""

    exec(PLUGIN, {})
    yield decoders.DECODERS["twice"]
    del decoders.DECODERS["twice"]


def test_columns_of_a_registered_decoder(twice):
    before = ["class", "MHD", "ED", "posterior"]
    titles = [column.title for column in tables.decoder_columns()]
    assert titles == [*before, "again", "tied", "none", "ece", "tied_twice", "tied5"]
    assert headline_metrics()[-2:] == ["top1_twice", "top5_twice"]


def test_a_comparison_with_a_plugin(tmp_path):
    train, val = make_betons(tmp_path)
    (tmp_path / "twice.py").write_text(PLUGIN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "grid.yaml").write_text("seeds: [3]\nmethods:\n  plain: {headline: top1_twice}")
    words = [
        f"--config={tmp_path / 'recipe.yaml'}",
        f"--grid={tmp_path / 'grid.yaml'}",
        f"--out={tmp_path / 'out'}",
        f"--data.train_dataset={train}",
        f"--data.val_dataset={val}",
        f"--plugin={tmp_path / 'twice.py'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "llc.compare", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds(240),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    figures = report["table"][0]["figures"]
    assert figures["twice"] == figures["mhd"] == figures["headline"]
    assert figures["tied_twice"] == figures["tied"]
    assert f"--plugin={tmp_path / 'twice.py'}" in report["runs"][0]["command"]
    assert f"--plugin={tmp_path / 'twice.py'}" in report["command"]
