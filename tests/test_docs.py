"""The examples of the docstrings and of the README run, and say what they say there."""

import doctest
import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT

WITH_EXAMPLES = sorted(path for path in (ROOT / "llc").rglob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted and not result.failed


def test_there_are_examples():
    assert {"__init__.py", "encoder.py"} <= {path.name for path in WITH_EXAMPLES}


def test_the_readmes_library_example(finished_run, image_tree, tmp_path, monkeypatch, capsys):
    """The block of Python in the README, as it stands, where its files are."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished_run, "runs/NAME")
    for name, label in (("cat", 1), ("dog", 4)):
        Image.open(sorted((image_tree / "val" / f"class_{label}").glob("*.jpg"))[0]).save(f"{name}.jpg")
    codes = torch.randint(0, 256, (50, 2), dtype=torch.uint8)
    np.savez("codes.npz", codes=codes.numpy())
    names = {}
    exec(block, names)
    assert names["codes"].shape == (2, 2) and Path("encoder.safetensors").is_file()
    assert "class_1" in capsys.readouterr().out
    assert (
        names["distances"].shape == (2, 10) and (names["distances"][:, 0] <= names["distances"][:, -1]).all()
    )
