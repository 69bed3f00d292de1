"""The documents: their blocks of code, and how a page is run from top to bottom as a reader would."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

from llc import config
from tests.conftest import ROOT
from tests.waiting import seconds

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "BENCHMARKS.md", "EXPERIMENTS.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# The visible mark of a block that no test runs, in the paragraph before it: **Needs a GPU.**
MARK = re.compile(r"\*\*Needs [^*]*\b(GPUs?|network|Docker)\b[^*]*\*\*")
# In the documents these folders lie at the root; here they are below the page's folder.
AT_ROOT = re.compile(r"(?<![\w./-])/(imagenet|betons|local)\b")
# What a page's commands need besides what the page says, because the images here are few.
SMALL = {
    "train_llc.py": (
        "--model.width=8",
        "--training.batch_size=24",
        "--validation.batch_size=16",
        "--codebook.epochs=2",
        "--instance.epochs=1",
        "--data.num_workers=1",
    ),
    "write_ffcv.py": ("--cfg.num_workers=1",),
}
LAUNCHERS = ("python", ".venv/bin/python")


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code in a document. marked: it says that it needs a GPU, a network or Docker."""

    path: Path
    line: int
    language: str
    text: str
    marked: bool

    @property
    def place(self):
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path):
    """All fenced blocks of a document, in order."""
    text = path.read_text()
    found = []
    for match in re.finditer(r"^( *)```(\S*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        paragraphs = re.split(r"\n\s*\n", text[: match.start()].rstrip())
        body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        line = text[: match.start()].count("\n") + 1
        found.append(Block(path, line, match[2], body, bool(MARK.search(paragraphs[-1]))))
    return found


def command_lines(block):
    """The words of each command of a block, without comments."""
    text = block.text.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def commands(path):
    """The commands of llc in a document's blocks: the words after the launcher, such as python."""
    found = []
    for block in blocks(path):
        if block.language != "bash":
            continue
        for words in command_lines(block):
            if words[0] not in (*LAUNCHERS, "torchrun", "sbatch", "docker"):
                continue
            start = next(
                (i for i, word in enumerate(words) if re.search(r"(_llc|_ffcv)\.py$|^-m$", word)), None
            )
            if start is None and "scripts/slurm.sh" in words:
                start = words.index("scripts/slurm.sh")
                words[start] = "train_llc.py"
            if start is not None:
                found.append(words[start:])
    return found


def run_page(path, folder, monkeypatch, *, small=SMALL, skip=()):
    """Runs all blocks of a page that are not marked, one after the other, in `folder`.

    Commands of llc run within this process, except training. small: words that are added to a command, by
    the name of its script or module, or by both words of, say, "llc.benchmark hamming". skip: beginnings of
    commands that another test runs, or that serve until they are stopped. Returns the names that blocks of
    Python have set.
    """
    monkeypatch.chdir(folder)
    names = {"__name__": "__main__"}
    for block in blocks(path):
        if block.marked or block.language not in ("bash", "python"):
            continue
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
            continue
        for words in command_lines(block):
            if not " ".join(words).startswith(tuple(skip)):
                _run(block.place, [AT_ROOT.sub(rf"{folder}/\1", word) for word in words], small, monkeypatch)
    return names


SCRIPTS = {"write_ffcv.py": "llc.write", "train_llc.py": "llc.train"}


def _run(place, words, small, monkeypatch):
    """One command; fails if its status is not 0."""
    is_python = words[0] in LAUNCHERS
    words = words[is_python:]
    name = words[1] if words[0] == "-m" else os.path.basename(words[0])
    words = [*words, *small.get(name, ()), *small.get(" ".join([name, *words[2:3]]), ())]
    module = name if words[0] == "-m" else SCRIPTS.get(name)
    if is_python and module and (module != "llc.train" or "--dry_run" in words):
        arguments = words[2 if words[0] == "-m" else 1 :]
        assert _status(module, arguments, monkeypatch) == 0, (place, words)
        return
    if is_python:
        if words[0].endswith(".py") and not os.path.exists(words[0]):
            words[0] = str(ROOT / words[0])
        words = [sys.executable, *words]
    done = subprocess.run(words, env=_environment(), capture_output=True, text=True, timeout=seconds(240))
    assert done.returncode == 0, (place, words, done.stdout + done.stderr)


def _status(name, arguments, monkeypatch):
    """The exit status of a module of llc that runs within this process."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            config.run(module.main)
        except SystemExit as end:
            return end.code or 0
    return 0


def ask(path, server):
    """The answers to all requests by curl on a page, sent to `server` instead of the port that it names."""
    answers = []
    for block in blocks(path):
        for words in command_lines(block) if block.language == "bash" else ():
            if words[0] == "curl":
                _, flag, data, url = words
                is_file = {"--data-binary": True, "--json": False}[flag]
                body = Path(data.removeprefix("@")).read_bytes() if is_file else data.encode()
                kind = "application/x-www-form-urlencoded" if is_file else "application/json"  # as curl does
                place = url.replace("http://127.0.0.1:8000", server.url.rstrip("/"))
                request = urllib.request.Request(place, body, {"Content-Type": kind})
                with urllib.request.urlopen(request, timeout=seconds(60)) as answer:
                    answers.append(json.load(answer))
    return answers


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.getcwd()))}
