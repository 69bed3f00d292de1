"""Packages that only some commands need, by the extras of pyproject.toml that bring them."""

import importlib
from typing import Any

from llc.errors import UserError

_INSTALLED_AS = {"sklearn": "scikit-learn", "faiss": "faiss-cpu", "fastapi_offline": "fastapi-offline"}


def needed(module: str, purpose: str, *, extra: str) -> Any:
    """The module of that name. Raises UserError that says what needs it, and how to install it.

    extra: the extra of llcodes that brings the package along with all others that the purpose needs.
    """
    package = module.split(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        package = _INSTALLED_AS.get(package, package)
        raise UserError(
            f"{purpose} needs {package}, which cannot be imported ({error}): pip install 'llcodes[{extra}]'"
        ) from error
