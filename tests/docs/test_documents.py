"""The text of all documents: their commands have the flags that they show, keys and links exist."""

import importlib
import re
from pathlib import Path

import pytest

from llc import recipe
from llc.data.writer import WriterConfig
from llc.evaluate.options import USES
from tests.conftest import ROOT
from tests.docs.pages import DOCUMENTS, blocks, commands

# The languages of blocks: commands and Python, which run; what is printed; formulas; scripts.
LANGUAGES = {"bash", "python", "text", "math", "json", "yaml", "shell"}
IDS = {"ids": lambda path: str(path.relative_to(ROOT))}
COMMANDS = {
    f"{path.relative_to(ROOT)} {' '.join(words)[:60]} {number}": words
    for path in DOCUMENTS
    for number, words in enumerate(commands(path))
}


def test_there_are_commands():
    assert len(COMMANDS) > 100


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_shown_command_has_its_flags(words, call_llc):
    """Each flag is in the command's --help, and each recipe that it names exists."""
    size = 2 if words[0] == "-m" else 1
    program, rest = words[:size], words[size:]
    if program[-1].startswith("tests."):
        return  # a tool of the project's own, not a command of llc
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
        if re.fullmatch(r"(\w+_configs|experiments)/.*\.yaml", word.split("=")[-1]):
            assert (ROOT / word.split("=")[-1]).is_file()


@pytest.mark.parametrize("path", DOCUMENTS, **IDS)
def test_blocks_have_a_language(path):
    """Blocks are fenced, so that a reader, the site and these tests know what each is."""
    for block in blocks(path):
        assert block.language in LANGUAGES, block.place
    outside = re.sub(r"^( *)```.*?^\1```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for paragraph in outside.split("\n\n"):
        assert not paragraph.startswith("    "), f"{path.name}: a block without a fence: {paragraph}"


@pytest.mark.parametrize("path", DOCUMENTS, **IDS)
def test_keys_and_links_of_a_document_exist(path):
    """`section.key` in the text is a key of a recipe or a command; a relative link leads to a file."""
    text = path.read_text()
    sections = {**recipe.sections(), **USES, "cfg": WriterConfig}
    for dashes, section, key in re.findall(rf"`(-{{0,2}})({'|'.join(sections)})\.([a-z_]+)", text):
        if section in USES and not dashes:
            continue  # a figure, such as retrieval.map
        endings = ("npy", "npz", "pth", "safetensors", "onnx", "pt", "pt2")  # of model.onnx and other files
        assert key in endings or key in sections[section].__dataclass_fields__, (
            f"{path.name}: {section}.{key} is not a key"
        )
    for words, target in re.findall(r"\[([^\]]*)\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), f"{path.name}: {target} does not exist"
        assert not words.endswith(".md"), f"{path.name}: a link is called what its page is called: {words}"


@pytest.mark.parametrize("path", DOCUMENTS, **IDS)
def test_lines_of_documents_end_at_110_columns(path):
    """Tables and what programs print may be longer."""
    printed = {line for block in blocks(path) if block.language == "text" for line in block.text.splitlines()}
    for line in path.read_text().splitlines():
        assert len(line) <= 110 or line.startswith("|") or line in printed, f"{path.name}: {line}"


OWN = Path(__file__)
RUNNERS = sorted(path.stem for path in OWN.parent.glob("test_*.py") if path != OWN)


def test_every_page_with_code_is_run():
    """A test of this folder runs a page's blocks, unless each says that it needs a GPU or a network."""
    run = set()
    for name in RUNNERS:
        run |= importlib.import_module(f"tests.docs.{name}").PAGES
    for path in DOCUMENTS:
        left = [b.place for b in blocks(path) if b.language in ("bash", "python") and not b.marked]
        assert not left or path in run, f"no test runs {left}"
