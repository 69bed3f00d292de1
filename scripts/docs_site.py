"""Makes the pages of the documentation that are not in docs/, for MkDocs: `make docs` builds all of them.

MkDocs calls on_files and on_page_markdown (mkdocs.yml names this file as a hook). The home page is README.md.
The pages of reference/ are generated: each command with all its keys, from what its --help prints, and the
modules of the library, whose docstrings mkdocstrings shows; Examples is for that.
"""

import contextlib
import importlib
import io
import posixpath
import re
import sys
from pathlib import Path

import griffe
import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Pages that lie beside docs/, by their place on the site.
BESIDE = {
    "index.md": "README.md",
    "benchmarks.md": "BENCHMARKS.md",
    "experiments.md": "EXPERIMENTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
# All modules that can be run: python -m MODULE.
COMMANDS = (
    "llc.write",
    "llc.train",
    "llc.evaluate",
    "llc.encode",
    "llc.index",
    "llc.search",
    "llc.serve",
    "llc.taxonomy",
    "llc.report",
    "llc.compare",
    "llc.export",
    "llc.data.verify",
    "llc.benchmark",
    "llc.doctor",
)
# What a program calls. `llc` itself offers the most used names of these: llc.load, llc.Index, ...
LIBRARY = (
    "llc.encoder",
    "llc.codes",
    "llc.hamming",
    "llc.hamming.neighbours",
    "llc.hamming.decoders",
    "llc.hamming.posterior",
    "llc.index.index",
    "llc.evaluation.retrieval",
    "llc.evaluation.ood",
    "llc.evaluation.taxonomy",
    "llc.evaluation.decoders",
    "llc.data.batches",
    "llc.ffcv",
    "llc.data.sources.base",
    "llc.backbones",
    "llc.stages",
    "llc.loggers.base",
    "llc.montage",
    "llc.errors",
)
_KEY = re.compile(r"  --([\w.]+)=(?:FILE(?:\.py)?)?  (.*?)(?: \[([^\[]*(?:\[[^\[]*)*)\])?$")
_WORD = re.compile(r"  ([A-Z][A-Z_]*)  (.*) \[(.*)\]$")


def on_config(config):
    """Adds the generated pages to the navigation."""
    commands = [{module: f"reference/{module}.md"} for module in COMMANDS]
    library = [{module: f"reference/library/{module}.md"} for module in LIBRARY]
    written = [f"reference/{path.name}" for path in sorted((ROOT / "docs" / "reference").glob("*.md"))]
    config.nav.insert(-2, {"Reference": [*written, {"Commands": commands}, {"Library": library}]})
    return config


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    sys.path.insert(0, str(ROOT))
    pages = {place: (ROOT / name).read_text() for place, name in BESIDE.items()}
    for name in sorted((ROOT / "licenses").iterdir()):
        pages[f"licenses/{name.name}"] = name.read_text()
    pages |= {f"reference/{module}.md": command_page(module) for module in COMMANDS}
    for module in LIBRARY:
        pages[f"reference/library/{module}.md"] = f"# {module}\n\n::: {module}\n"
    for place, text in pages.items():
        if place in files.src_uris:
            raise ValueError(f"docs/{place} and a page that scripts/docs_site.py makes have the same place")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links between the repository's files links between the site's pages, and formulas MathML."""
    here = page.file.src_uri
    source = BESIDE.get(here, f"docs/{here}")  # the page's place in the repository
    places = {name: place for place, name in BESIDE.items()}

    def moved(link):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        place = places.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{link[2] or ''})"

    markdown = re.sub(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)
    return re.sub(r"^```math\n(.*?)^```$", _formula, markdown, flags=re.MULTILINE | re.DOTALL)


def _formula(block):
    """A block of LaTeX, which GitHub shows as a formula, as MathML, which browsers show without a script."""
    return "\n".join(
        f'<div class="formula">{latex2mathml.converter.convert(line, display="block")}</div>'
        for line in block[1].strip().split("\n\n")
    )


# ---- commands


def help_of(module, *words):
    """What `python -m MODULE WORDS --help` prints."""
    main = importlib.import_module(
        module if hasattr(importlib.import_module(module), "main") else f"{module}.__main__"
    ).main
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return text.getvalue()


def command_page(module):
    """A page in Markdown about a command, and about each of its own commands."""
    text = help_of(module)
    if "\narguments:\n" in text:
        return f"# {module}\n\n{markdown_of(text)}"
    names = re.findall(r"^    (\w+) ", text, re.MULTILINE)
    parts = [f"# {module}\n\n{text.split(chr(10) * 2)[0]}\n\n    python -m {module} COMMAND ...\n"]
    parts += [f"## {name}\n\n{markdown_of(help_of(module, name))}" for name in names]
    return "\n".join(parts)


def markdown_of(text):
    """The text of --help as Markdown: the description, and a table of keys for each section."""
    description, _, listing = text.partition("\narguments:\n")
    parts, rows = [_escaped(description.strip())], []
    for line in [*listing.splitlines(), ""]:
        if key := _KEY.match(line):
            rows.append((f"`--{key[1]}`", key[2], key[3] or ""))
        elif word := _WORD.match(line):
            rows.append((f"`{word[1]}`", word[2], word[3]))
        elif line.strip():
            parts += [_table(rows), f"**{_escaped(line.strip())}**"]
            rows = []
    parts.append(_table(rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows):
    if not rows:
        return ""
    lines = ["| key | what it is | values; default |", "|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(_cell(part) for part in row) + " |" for row in rows])


def _cell(text):
    text = text if text.startswith("`") else _escaped(text)
    return text.replace("|", "\\|")


def _escaped(text):
    """Text whose letters mean nothing in Markdown, but for blocks that are indented."""
    lines = (
        line if line.startswith("    ") else re.sub(r"([*_\[\]])", r"\\\1", line).replace("<", "&lt;")
        for line in text.splitlines()
    )
    return "\n".join(lines)


# ---- docstrings


class Examples(griffe.Extension):
    """Shows the examples in docstrings (>>> ...) as code. In Markdown they would be quotations."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^>>> .*(?:\n.+)*",
                lambda found: f"```pycon\n{found[0]}\n```",
                obj.docstring.value,
                flags=re.MULTILINE,
            )
