"""Measures a part of llc on this machine, other ways to do the same beside it.

python -m llc.benchmark NAME [--key=value ...]      (NAME --help shows its arguments)
"""

import ast
import importlib
import sys
from pathlib import Path

from llc import config
from llc.errors import UserError


def main(argv):
    """Dispatches to the `main(argv)` of llc.benchmark.NAME; a module is imported only when it is asked for."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if argv and argv[0] in names:
        importlib.import_module(f"llc.benchmark.{argv[0]}").main(argv[1:])
        return
    listing = "\n".join(f"    {name:10s} {_first_line(folder / f'{name}.py')}" for name in names)
    if argv and argv[0] in ("--help", "-h"):
        print(f"{__doc__}\n{listing}")
        return
    raise UserError(f"{argv[0] if argv else 'nothing'} is no benchmark; NAME is one of\n{listing}")


def _first_line(path):
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]


if __name__ == "__main__":
    config.run(main)
