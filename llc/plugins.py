"""Additions from outside the package: a decoder, a backbone, a dataset source, a stage.

docs/how-to/extending.md has examples. An addition registers itself when its module is imported. From Python
an import is all it takes; every command has --plugin=FILE.py or --plugin=MODULE, which may be repeated. A
plugin is code: only the command line names one, never a file that llc reads.
"""

import importlib
import importlib.util
import sys
import traceback
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
    """Imports a plugin: a Python file or a module's name.

    Raises UserError if there is no such file or module, if its name is taken, or if importing it fails.
    """
    if name.endswith(".py"):
        path = Path(name).resolve()
        module = _module_of(name, path)
        plugin = str(path)
    else:
        module = plugin = name
        try:
            exists = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError) as error:
            missing = getattr(error, "name", None)
            if missing and missing != name and not name.startswith(f"{missing}."):
                raise UserError(f"--plugin={name}: importing it failed: {error}") from error
            exists = False
        if not exists:
            raise UserError(f"--plugin={name}: there is no such module; a file's name ends in .py")
    try:
        importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--plugin={name}: importing it failed: {type(error).__name__}: {error} "
            f"({last.filename}, line {last.lineno})"
        ) from error
    if plugin not in loaded:
        loaded.append(plugin)


def _module_of(name, path):
    """The name under which a plugin's file is imported; its folder is added to sys.path.

    Worker processes find the module there too. Raises UserError if the file or the name cannot be used.
    """
    if not path.is_file():
        raise UserError(f"--plugin={name}: there is no such file")
    module = path.stem
    if not module.isidentifier():
        raise UserError(f"--plugin={name}: {module} is no name of a Python module; rename the file")
    taken = UserError(f"--plugin={name}: another module is called {module}; rename the file")
    if module in sys.modules:
        if getattr(sys.modules[module], "__file__", None) != str(path):
            raise taken
        return module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.has_location or Path(spec.origin).resolve() != path:
        raise taken
    return module
