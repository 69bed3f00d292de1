"""Run folders as readers see them: the configuration, the checkpoints, the class names.

A run folder is written by llc.training.run_folder. Everything read here is data: no file can run code.
"""

import json
from pathlib import Path

from llc import recipe, stages
from llc.errors import UserError
from llc.options import build
from llc.yaml_file import read_yaml


def read_config(folder):
    """The llc.recipe.Config of a run folder. Raises UserError if the folder is not one, or its file is damaged.

    A key of a stage that is not registered here is an error; the message says how to load its plugin.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (it has no config.yaml)")
    content, known = read_yaml(path), recipe.sections()
    for name in content:
        if name not in known:
            raise UserError(
                f"{path}: {name} is not a section; if it is a stage from outside llc, name its file with --plugin="
            )
    values = {}
    for name, kind in known.items():
        section = content.get(name)
        if section is not None and not isinstance(section, dict):
            raise UserError(f"{path}: {name} is a {type(section).__name__}; expected keys with values")
        values[name] = build(kind, section or {}, f"{path}: {name}.")
    return recipe.Config.of(values)


def checkpoints(folder):
    """{name: path} of the networks in a run folder: one for each finished stage, initial, model_best, ..."""
    found = {path.stem: path for path in sorted((Path(folder) / "checkpoints").glob("*.pth"))}
    return {name: path for name, path in found.items() if name != "last" and not name.startswith("previous_")}


def finished_stages(folder):
    """Names of the finished stages of a run folder, in order of preference for class codes (llc.stages)."""
    found = checkpoints(folder)
    return stages.by_class_codes([name for name in stages.STAGES if name in found])


def read_class_names(folder):
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


def check_class_names(names, source):
    """`names` if it is a list of texts. Raises UserError."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: class names are not a list of names")
    return names
