"""Looks at the installation and the machine, and says what is wrong and what to do.

    python -m llc.doctor
    python -m llc.doctor /betons --config=rn50_configs/llc_20bit.yaml --data.train_dataset=/betons/train.beton
        measures the disk of that folder, not of this one, and compares it with what a recipe needs
    python -m llc.doctor --json
        the same as JSON: a list of {check, status, found, advice}

A line for each check: a word (ok, note, warning, error), the check, what was found, what to do. The exit
status is 1 if there is an error, else 0. Nothing is changed; a temporary file of 134 MB is written to FOLDER
and removed, unless a large beton is there to read. --config and keys with a section are those of a recipe, as
for llc.train; without them, and with a GPU, the comparison is with ImageNet.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

from llc import config
from llc.doctor import disk, machine, software
from llc.doctor.finding import ERROR, WARNING, apart, guarded
from llc.errors import UserError
from llc.options import option


@dataclasses.dataclass(frozen=True)
class Options:
    """What is looked at."""

    folder: str = option(".", help="folder whose disk is measured", positional=True)
    json: bool = option(False, help="print JSON")
    images_per_second: int = option(
        0,
        minimum=0,
        help="how fast the GPUs train together, for the comparison with the disk; 0: 3,000 for each GPU",
    )


def findings(options, recipe):
    """Yields the Finding of every check, in order. recipe: the words of a recipe's command line."""
    here = {
        "python": software.python,
        "packages": software.needed_packages,
        "known_pairs": software.bad_pairs,
    }
    for name, check in here.items():
        yield guarded(name, check)
    num_gpus = 0
    for found in apart("llc.doctor.machine", list(machine.CHECKS)):
        num_gpus = found.found.count("cuda:") if found.check == "gpus" else num_gpus
        yield found
    of_folder = {"disk_space": disk.space, "file_system": disk.file_system, "disk_speed": disk.speed}
    here = {
        "memory": machine.memory,
        "shared_memory": machine.shared_memory,
        **{name: functools.partial(check, options.folder) for name, check in of_folder.items()},
        "recipe": lambda: disk.recipe_needs(options.folder, recipe, num_gpus, options.images_per_second),
        "variables": machine.variables,
        "open_files": machine.open_files,
        "locked_memory": machine.locked_memory,
        "encoding": machine.encoding,
    }
    for name, check in here.items():
        yield guarded(name, check)
    for name in software.extras():
        yield guarded(f"extra_{name}", software.extra(name))


def split(argv):
    """(words of the doctor's own, words of a recipe: --config and keys with a section)."""
    own, recipe, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        key, has_value, _ = word.partition("=")
        if key in ("--config", "--config-file") or key.startswith("--") and "." in key:
            recipe += [word] if has_value or not words else [word, words.pop(0)]
        else:
            own.append(word)
    return own, recipe


def main(argv):
    own, recipe = split(argv)
    options = config.read_one(Options, own, description=__doc__)
    if not Path(options.folder).is_dir():
        what = "is not a folder" if Path(options.folder).exists() else "does not exist"
        raise UserError(f"{options.folder} {what}; name the folder whose disk is to be measured")
    found = []
    for finding in findings(options, recipe):
        found.append(finding)
        if not options.json:
            print(finding, flush=True)
    counts = {status: sum(f.status == status for f in found) for status in (ERROR, WARNING)}
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        print(", ".join(f"{counts[kind]} {kind}{'s' * (counts[kind] != 1)}" for kind in (ERROR, WARNING)))
    if counts[ERROR]:
        sys.exit(1)


if __name__ == "__main__":
    config.run(main)
