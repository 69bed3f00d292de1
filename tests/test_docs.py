"""What the documents show: examples run, commands have their flags, and the tree is that of the code."""

import ast
import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import llc
from llc import recipe
from llc.data.writer import WriterConfig
from llc.evaluate.options import USES
from llc.index import __main__ as index_command
from tests.conftest import ROOT

WITH_EXAMPLES = sorted(path for path in (ROOT / "llc").rglob("*.py") if ">>> " in path.read_text())
DOCUMENTS = [ROOT / "README.md", ROOT / "EXPERIMENTS.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_docstrings(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted and not result.failed


def test_there_are_examples():
    assert {"__init__.py", "encoder.py"} <= {path.name for path in WITH_EXAMPLES}


# ------------------------------------------------------------------------------------------------ Python


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_the_readmes_library_example(finished_run, image_tree, tmp_path, monkeypatch, capsys):
    """The block of Python in the README, as it stands, where its files are."""
    (block,) = blocks("README.md")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished_run, "runs/NAME")
    for name, label in (("cat", 1), ("dog", 4)):
        Image.open(sorted((image_tree / "val" / f"class_{label}").glob("*.jpg"))[0]).save(f"{name}.jpg")
    codes = llc.pack_bits(torch.randn(50, llc.load("runs/NAME").num_bits))
    np.savez("codes.npz", codes=codes.numpy())
    names = {}
    exec(block, names)
    assert names["codes"].shape == (2, 2) and Path("encoder.safetensors").is_file()
    assert "class_1" in capsys.readouterr().out
    distances = names["distances"]
    assert distances.shape == (2, 10) and (distances[:, 0] <= distances[:, -1]).all()
    assert (names["found"] == names["indices"].numpy()).all()  # ids count from 0


def test_the_example_of_hamming_search():
    (block,) = blocks("docs/search.md")
    names = {}
    exec(block, names)
    assert names["codes"].shape == (1000, 3)
    assert names["classes"][:100, 0].tolist() == list(range(100))  # each class's own code comes first
    assert names["lims"][-1] == len(names["indices"])


def test_the_example_of_the_posterior_decoder():
    (block,) = blocks("docs/decoding.md")
    names = {}
    exec(block, names)
    assert names["classes"].shape == names["probabilities"].shape == (5000, 3)
    assert (names["classes"][:, 0] == names["labels"]).mean() > 0.7 and names["density"].shape == (5000,)


def test_the_example_of_retrieval():
    (block,) = blocks("docs/retrieval.md")
    names = {}
    exec(block, names)
    assert 0.5 < names["metrics"]["map"] < 1 and names["precision"].shape == names["recall"].shape == (100,)


def test_the_examples_of_an_index(finished_run, image_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(image_tree / "val", "photos")
    index_command.main(["create", "PHOTOS.index", f"--model={finished_run}"])
    names = {}
    for block in blocks("docs/indexing.md"):
        exec(block, names)
    assert names["found"].shape == names["distances"].shape and len(names["index"]) == 66
    assert "66 images: 66 added" in capsys.readouterr().out and len(names["records"].files) == 3
    assert all(len(group) > 1 for group in names["groups"])


def test_the_examples_of_exports_and_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported, shards = blocks("docs/engines.md")
    exec(exported, {})
    exec(shards, {})


def test_no_other_document_has_python_that_does_not_run():
    """docs/extending.md has its own test, tests/test_extending.py."""
    assert {path.name for path in DOCUMENTS if "```python" in path.read_text()} == {
        "README.md",
        "engines.md",
        "indexing.md",
        "retrieval.md",
        "search.md",
        "decoding.md",
        "extending.md",
    }


# ------------------------------------------------------------------------------------------------ commands


def commands(path):
    """The command lines of llc in a document's indented blocks: lists of words without the launcher."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    lines = re.findall(r"^    ((?:.*\\\n)*.*)", text, re.MULTILINE)
    found = []
    for line in lines:
        if line.startswith(("python ", "torchrun ", "sbatch ")):
            words = shlex.split(line.replace("\\\n", " "), comments=True)
            start = next(
                (i for i, word in enumerate(words) if re.search(r"(_llc|_ffcv)\.py$|^-m$", word)), None
            )
            if start is None and "scripts/slurm.sh" in words:
                start = words.index("scripts/slurm.sh")
                words[start] = "train_llc.py"
            if start is not None:
                found.append(words[start:])
    return found


COMMANDS = {
    f"{path.name} {' '.join(words)[:60]} {number}": words
    for path in DOCUMENTS
    for number, words in enumerate(commands(path))
}


def test_there_are_commands():
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_shown_command_has_its_flags(words, call_llc):
    """Each flag is in the command's --help, and each recipe that it names exists."""
    size = 2 if words[0] == "-m" else 1
    program, rest = words[:size], words[size:]
    if program in (["-m", "llc.benchmark"], ["-m", "llc.index"]):
        program.append(rest.pop(0))
    own = [word for word in rest if word.startswith("--")]
    with_plugin = any(word.startswith("--plugin") for word in own)  # its keys are known to the plugin alone
    known = call_llc(*program, "--help").stdout
    for word in own:
        flag = word.split("=")[0]
        if flag in ("--config", "--plugin") or with_plugin and flag.startswith("--hinge."):
            continue
        assert re.search(rf"{re.escape(flag)}\b", known), f"{' '.join(words)}: {flag} is not in its --help"
    for word in words:
        if re.fullmatch(r"(rn50_configs|rn18_configs|experiments)/.*\.yaml", word.split("=")[-1]):
            assert (ROOT / word.split("=")[-1]).is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_and_links_of_a_document_exist(path):
    """`section.key` in the text is a key of a recipe or a command; a relative link leads to a file."""
    text = path.read_text()
    sections = {**recipe.sections(), **USES, "cfg": WriterConfig}
    for dashes, section, key in re.findall(rf"`(-{{0,2}})({'|'.join(sections)})\.([a-z_]+)", text):
        if section in USES and not dashes:
            continue  # a figure, such as retrieval.map
        assert key in ("npy", "npz") or key in sections[section].__dataclass_fields__, (
            f"{path.name}: {section}.{key} is not a key"
        )
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), f"{path.name}: {target} does not exist"


def test_lines_of_documents_end_at_110_columns():
    """Tables, code and the picture of the data flow may be longer."""
    for path in DOCUMENTS:
        for line in path.read_text().splitlines():
            assert len(line) <= 110 or line.startswith(("|", "    ")), f"{path.name}: {line}"


# ------------------------------------------------------------------------------------------------ the tree


def test_the_tree_of_the_design_is_the_codes():
    """Each module has a line in docs/design.md, under its folder; add or remove the lines that this names."""
    (tree,) = re.findall(r"```text\n(.*?)```", (ROOT / "docs/design.md").read_text(), re.DOTALL)
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
    assert not there - shown, f"docs/design.md has no line for {sorted(there - shown)}"
    assert not shown - there, f"docs/design.md has lines for what does not exist: {sorted(shown - there)}"


def imports_of(path):
    """The modules of llc, as llc.x or llc.x.y, that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("llc"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llc":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_hamming_and_codes_import_nothing_from_above():
    """Imports point down: what docs/design.md says of the lowest rooms."""
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
    commands = ("encode.py", "search.py", "export.py", "write.py", "train.py")
    commands += ("config.py", "verify.py", "__main__.py")
    rooms = ("training", "compare", "benchmark", "evaluate", "serve", "report", "taxonomy.py")
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
