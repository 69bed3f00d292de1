"""`make docs`: the site builds without a broken link, and its reference has every command with every key."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    # not --quiet, with which warnings such as that of a broken link do not count
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def pages():
    """scripts/docs_site.py as a module."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "docs_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runnable():
    """All modules of llc that end with a call of llc.config.run, by the names that `python -m` takes."""
    for path in sorted((ROOT / "llc").rglob("*.py")):
        last = ast.parse(path.read_text()).body[-1:]
        if last and isinstance(last[0], ast.If) and "__name__" in ast.dump(last[0]):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


def test_every_command_has_a_page(pages):
    found = {name for name in runnable() if not re.match(r"llc\.benchmark\.", name)}
    assert found == set(pages.COMMANDS)


def test_pages_have_every_key(pages, site):
    for module in pages.COMMANDS:
        html = (site / "reference" / f"{module}.html").read_text()
        names = re.findall(r"^    (\w+) ", pages.help_of(module), re.MULTILINE)
        subcommands = "\narguments:\n" not in pages.help_of(module)
        for words in [[name] for name in names] if subcommands else [[]]:
            keys = re.findall(r"^  (--[\w.]+)=", pages.help_of(module, *words), re.MULTILINE)
            assert "--config" in keys
            assert [key for key in keys if f"<code>{key}</code>" not in html] == []


def test_the_library_is_described(site):
    html = (site / "reference" / "library" / "llc.index.index.html").read_text()
    assert 'id="llc.index.index.Index.search"' in html
    assert "&gt;&gt;&gt;" in html  # an example, as code and not as a quotation
    assert "<blockquote>" not in html


def test_nothing_is_loaded_from_elsewhere(site):
    """The pages can be read without a network."""
    for path in site.rglob("*.html"):
        for kind, place in re.findall(
            r"<(script|link|img|iframe)[^>]*?(?:src|href)=\"?([^\s\">]+)", path.read_text()
        ):
            assert (
                not place.startswith(("http:", "https:", "//")) or kind == "link" and "canonical" in place
            ), (path, place)
