"""The extras of pyproject.toml: each brings what its purpose needs, and the core does without all of them."""

import ast
import functools
import json
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.conftest import ROOT, draw
from tests.test_setup import PROJECT
from tests.waiting import seconds

# What a user of llc may install; the others are for those who change it or measure it.
EXTRAS = {
    name: lines
    for name, lines in PROJECT["optional-dependencies"].items()
    if name not in ("test", "docs", "benchmark")
}


def closure(lines):
    """The names of the distributions that requirements bring here, with all that those require."""
    found, left = set(), [(Requirement(line), "") for line in lines]
    while left:
        requirement, asked = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in found:
                found.add((name, extra))
                left += [(Requirement(line), extra) for line in _requires(name)]
    return {name for name, _ in found}


def _requires(name):
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # such as torch's CUDA, which a torch without CUDA does not have
        return []


@functools.cache
def owners():
    """{top-level module: the distributions that bring it} of all that is installed."""
    found = metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


def modules_of(distributions):
    """The top-level modules that these distributions bring, and no other installed one does."""
    return {module for module, names in owners().items() if names <= distributions}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The report of tests/core_alone.py, and the modules that were hidden from it."""
    folder, rng = tmp_path_factory.mktemp("alone"), np.random.default_rng(3)
    for split, count in (("train", 8), ("val", 4)):
        for label in range(2):
            (folder / "images" / split / f"class_{label}").mkdir(parents=True)
            for i in range(count):
                path = folder / "images" / split / f"class_{label}" / f"{i}.jpg"
                Image.fromarray(draw(rng, label)).save(path)
    optional = closure(line for lines in EXTRAS.values() for line in lines)
    hidden = modules_of(optional - closure(PROJECT["dependencies"]))
    (folder / "hidden.json").write_text(json.dumps(sorted(hidden)))
    (folder / "rn18_configs").symlink_to(ROOT / "rn18_configs")
    done = subprocess.run(
        [sys.executable, "-m", "tests.core_alone", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds(240),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), hidden


def test_the_core_runs_without_any_extra(alone):
    report, hidden = alone
    for lines in EXTRAS.values():  # the search for their modules did find some
        assert any(modules_of({canonicalize_name(Requirement(line).name)}) & hidden for line in lines)
    assert not hidden & {"torch", "numpy", "PIL", "safetensors", "tensorboard"}
    assert report["loaded"] == []
    core = report["core"]
    assert all(decoder in core["evaluated"] for decoder in ("MHD", "ED", "posterior"))
    assert core["same code"] and core["distance"] == 0
    assert "0 bits" in core["nearest"] and "class_0" in core["nearest"], core["nearest"]
    assert "8 images" in core["added"], core["added"]


def test_what_needs_an_extra_names_it(alone):
    report, _ = alone
    assert {extra for extra, *_ in report["refusals"]} == set(EXTRAS)
    for extra, called, status, message in report["refusals"]:
        assert status == 2, (called, message)
        assert "needs" in message and f"pip install 'llcodes[{extra}]'" in message, (called, message)


def test_modules_import_without_extras_unless_they_say_which_they_need(alone):
    report, hidden = alone
    for name, lacking in report["unimportable"].items():
        if lacking == "triton":  # torch without CUDA has none
            continue
        assert lacking.partition(".")[0] in hidden, (name, lacking)
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert any(f"the extra `{extra}`" in docstring for extra in EXTRAS), (
            f"{name} does not import without {lacking}, and its docstring does not name the extra"
        )


def test_the_table_of_extras_is_pyprojects():
    text = (ROOT / "docs/install.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert {name: brought.split(", ") for name, brought in rows} == {
        name: [Requirement(line).name for line in lines] for name, lines in EXTRAS.items()
    }


def uses():
    """(the place, module, extra) of each call of llc.packages.needed whose words stand there."""
    for path in sorted(ROOT.glob("llc/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needed":
                [extra] = [word.value.value for word in node.keywords if word.arg == "extra"]
                modules = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
                yield f"{path.relative_to(ROOT)}:{node.lineno}", modules, extra


def test_each_extra_brings_what_is_said_to_need_it():
    found = list(uses())
    assert len(found) > 20
    for place, modules, extra in found:
        assert extra in EXTRAS, place
        brought = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        for module in modules:
            assert brought & owners()[module.partition(".")[0]], (place, module, extra)
