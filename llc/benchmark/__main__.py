"""Measures a part of llc on this machine, beside other ways to do the same.

python -m llc.benchmark NAME [--key=value ...]      (NAME --help shows its arguments)
"""

import ast
import importlib
from pathlib import Path

from llc import config
from llc.errors import UserError

MOVED = {
    "codes": "python -m llc.compare"
}  # benchmarks of earlier versions that are commands of their own now


def main(argv):
    """Passes the rest of argv to `main` of llc.benchmark.NAME. Only that module is imported."""
    modules = _modules()
    name = argv[0] if argv else ""
    if name in modules:
        importlib.import_module(f"llc.benchmark.{name}").main(argv[1:])
        return
    listing = "\n".join(f"    {name:10s} {_first_line(path)}" for name, path in modules.items())
    if name in ("--help", "-h"):
        print(f"{__doc__}\n{listing}")
        return
    if name in MOVED:
        raise UserError(f"`python -m llc.benchmark {name}` is now called `{MOVED[name]}` (--help says more)")
    raise UserError(
        f"{f'{name} is not a benchmark' if name else 'NAME is missing'}; NAME is one of\n{listing}"
    )


def _modules():
    """{name: file} of the benchmarks: the modules and packages of this folder, but private ones."""
    folder = Path(__file__).parent
    files = [*folder.glob("[!_]*.py"), *folder.glob("[!_]*/__init__.py")]
    return dict(sorted((path.parent.name if path.stem == "__init__" else path.stem, path) for path in files))


def _first_line(path):
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]


if __name__ == "__main__":
    config.run(main)
