"""What the documents say of the code: examples of docstrings run, and the tree is that of the code."""

import ast
import doctest
import importlib
import re

import pytest

from tests.conftest import ROOT

DESIGN = ROOT / "docs/explanation/design.md"
WITH_EXAMPLES = sorted(path for path in (ROOT / "llc").rglob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted and not result.failed


def test_there_are_examples():
    assert {"__init__.py", "encoder.py"} <= {path.name for path in WITH_EXAMPLES}


# ------------------------------------------------------------------------------------------------ the tree


def test_the_tree_of_the_design_is_the_codes():
    """Each module has a line in the design's tree, under its folder; this names those to add or remove."""
    (tree,) = re.findall(r"```text\n(llc/\n.*?)```", DESIGN.read_text(), re.DOTALL)
    shown, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        shown.add(name if not line.startswith(" ") else folder + name)
    there = set()
    for path in (ROOT / "llc").rglob("*.py"):
        if path.name == "__init__.py":
            there.add(f"{path.parent.relative_to(ROOT)}/")
        elif not path.name.startswith("_"):
            there.add(str(path.relative_to(ROOT)))
    assert not there - shown, f"{DESIGN.name} has no line for {sorted(there - shown)}"
    assert not shown - there, f"{DESIGN.name} has lines for what does not exist: {sorted(shown - there)}"


def imports_of(path):
    """The modules of llc, as llc.x or llc.x.y, that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("llc"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llc":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_hamming_and_codes_import_nothing_from_above():
    """Imports point down: what docs/explanation/design.md says of the lowest rooms."""
    allowed = {
        "native": {"environment", "errors", "native"},
        "codes": {"arguments", "kernels", "native"},
        "hamming": {"arguments", "codes", "errors", "hamming", "kernels", "native"},
    }
    for room, below in allowed.items():
        for path in [ROOT / f"llc/{room}.py", *(ROOT / "llc" / room).glob("*.py")]:
            for name in imports_of(path) if path.is_file() else ():
                parts = name.split(".")[1:2]
                assert set(parts) <= below, f"{path.relative_to(ROOT)} imports {name}"


def test_the_library_imports_neither_the_trainer_nor_the_command_line():
    above = ("llc.training", "llc.config", "llc.compare", "llc.benchmark", "llc.evaluate")
    commands = ("encode.py", "search.py", "write.py", "train.py")
    commands += ("config.py", "verify.py", "__main__.py")
    rooms = ("training", "compare", "benchmark", "evaluate", "serve", "report", "taxonomy.py")
    rooms += ("export", "doctor")
    seen = 0
    for path in (ROOT / "llc").rglob("*.py"):
        if path.relative_to(ROOT / "llc").parts[0] in (*rooms, *commands):
            continue
        if path.name in commands:
            continue
        seen += 1
        for name in imports_of(path):
            assert not name.startswith(above), f"{path.relative_to(ROOT)} imports {name}"
    assert seen > 50
