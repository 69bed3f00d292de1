"""Additions that live outside the package: a decoder, a backbone, a dataset source, a stage (docs/extending.md).

An addition registers itself when its module is imported. From Python an import is all it takes; every command
has --plugin=FILE.py or --plugin=MODULE, which may be repeated. A plugin is code: only the command line names
one, never a file that llc reads.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from llc.errors import UserError

loaded = []  # as --plugin named them, for the commands that start others


def take(argv):
    """Imports what --plugin=NAME names in argv; returns argv without these words. Raises UserError."""
    words, rest = list(argv), []
    while words:
        word = words.pop(0)
        if word.split("=")[0] != "--plugin":
            rest.append(word)
            continue
        name = word.partition("=")[2] or (words.pop(0) if words and "=" not in word else "")
        if not name:
            raise UserError("--plugin needs a value: --plugin=FILE.py or --plugin=MODULE")
        load(name)
    return rest


def load(name):
    """Imports a plugin: a Python file or a module's name. Raises UserError if there is none."""
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError(f"--plugin={name}: there is no such file")
        module = path.stem
        if getattr(sys.modules.get(module), "__file__", str(path)) != str(path):
            raise UserError(f"--plugin={name}: another module is called {module}; rename the file")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # worker processes find it there too
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not os.path.samefile(spec.origin, path):
            raise UserError(f"--plugin={name}: another module is called {module}; rename the file")
        importlib.import_module(module)
        name = str(path)
    else:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise UserError(f"--plugin={name}: there is no such module; a file's name ends in .py")
        importlib.import_module(name)
    if name not in loaded:
        loaded.append(name)
