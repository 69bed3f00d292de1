"""Run folders as readers see them: the configuration, the checkpoints, the class names.

A run folder is written by llc.training.run_folder. Everything read here is data: no file can run code.
"""

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

from llc import hub, recipe, stages
from llc.errors import UserError
from llc.options import build
from llc.yaml_file import read_yaml


def read_config(folder: str | PathLike[str]) -> recipe.Config:
    """The configuration of a run folder.

    Raises UserError if the folder is not a run folder, or if its config.yaml is damaged or has a section that
    is not registered here; for a stage from outside llc the message says how to load its plugin.
    """
    path = Path(folder) / "config.yaml"
    if not os.path.lexists(folder):
        raise UserError(f"{folder} does not exist, so it is not a run folder")
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (it has no config.yaml)")
    known = recipe.sections()
    try:
        content = read_yaml(path)
    except UserError as error:  # it speaks of a flag, which nobody gave
        raise UserError(str(error).removeprefix("--config ")) from error
    unknown = [str(name) for name in content if name not in known]
    if unknown:
        raise UserError(
            f"{path}: {', '.join(unknown)}: not a section of a recipe; if it is a stage from outside llc, "
            "name its file with --plugin=FILE.py (in Python: import it)"
        )
    values = {}
    for name, kind in known.items():
        section = content.get(name) or {}
        if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
            raise UserError(f"{path}: {name} is {section!r:.60}; expected names of keys, each with a value")
        values[name] = build(kind, section, f"{path}: {name}.")
    try:
        return recipe.Config.of(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def is_folder(path: str | PathLike[str]) -> bool:
    """Whether there is a folder at `path` that should be a run's, and not one for the Hugging Face Hub."""
    return os.path.isdir(path) and not hub.is_folder(path)


def checkpoints(folder: str | PathLike[str]) -> dict[str, Path]:
    """{name: path} of the networks in a run folder: one per finished stage, initial, model_best, ..."""
    paths = {path.stem: path for path in sorted((Path(folder) / "checkpoints").glob("*.pth"))}
    return {name: path for name, path in paths.items() if name != "last" and not name.startswith("previous_")}


def is_own_file(folder: str | PathLike[str], path: str | PathLike[str]) -> bool:
    """Whether `path` is a file that the run in `folder` consists of, and not one that was put beside it.

    A folder may also be one as the Hugging Face Hub holds it.
    """
    inside = Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder)))
    if hub.is_folder(folder):
        return str(inside) in (hub.WEIGHTS, hub.CONFIG, hub.CARD, "decoder.npz")
    own = ("config.yaml", "class_names.json", "codebook.npy", "decoder.npz", "log.jsonl", "results.csv")
    own += ("log.csv", "loggers.json")
    return (
        inside.parts[0] in ("checkpoints", "wandb")
        or str(inside) in own
        or inside.name.startswith("events.out.")
    )


def finished_stages(folder: str | PathLike[str]) -> list[str]:
    """Names of the finished stages of a run folder, in order of preference for class codes (llc.stages).

    A dense stage, which has no codes, is left out unless it is the only one.
    """
    found = checkpoints(folder)
    names = stages.by_class_codes([name for name in stages.STAGES if name in found])
    return [name for name in names if not stages.STAGES[name].dense] or names


def read_class_names(folder: str | PathLike[str]) -> list[str] | None:
    """The class names of a run folder, in label order, or None if it has none. Raises UserError."""
    path = Path(folder) / "class_names.json"
    try:
        return check_class_names(json.loads(path.read_text("ascii")), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON list of names: {error}") from error


def check_class_names(names: Any, source: str | PathLike[str]) -> list[str]:
    """`names`, if it is a list of texts. Raises UserError naming the source."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: class names are not a list of names")
    return names
