"""What the commands on an index share: `python -m llc.index` and `python -m llc.search`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llc.data.sources import printable
from llc.data.sources.base import some
from llc.encode import check_out
from llc.encoder import Encoder
from llc.errors import UserError
from llc.files import atomic_write
from llc.index.images import encoder_for
from llc.index.index import Index
from llc.index.storage import MANIFEST
from llc.montage import check_sheet_name
from llc.options import did_you_mean

_SUFFIXES = {"--json": ".json", "--out": ".npz"}  # of files that are replaced: a mistyped name costs no image


def check_outputs(
    index: Index, files: Mapping[str, str], read: Iterable[str] = (), *, may_be_folder: bool = False
) -> None:
    """Raises UserError if a file to write cannot be written, or is one that the command or the index reads.

    files: {flag: path, "" or "-" for none}; read: paths that are read; may_be_folder: whether a folder may be
    written instead. For use before long work.
    """
    taken = {os.path.realpath(path): "it is read as well" for path in read if path}
    for flag, path in files.items():
        if path in ("", "-"):
            continue
        shown = f"{flag}={printable(path)}"
        if not (may_be_folder and os.path.isdir(path)):
            check_out(path, flag)
        if flag == "--montage":
            check_sheet_name(path, flag)
        real = os.path.realpath(path)
        if index.path is not None and Path(real).is_relative_to(os.path.realpath(index.path)):
            raise UserError(f"{shown}: it is within the index; write it elsewhere")
        if os.path.basename(real) == MANIFEST and os.path.isfile(real):
            raise UserError(f"{shown}: it is the manifest of an index; write elsewhere")
        if real in taken:
            raise UserError(f"{shown}: {taken[real]}; name another file")
        # Only a file that is there can be lost, and to look for a name takes a pass over all names.
        if os.path.isfile(path) and any(index.has_file(name) for name in {os.path.abspath(path), real}):
            raise UserError(f"{shown}: it is an image of the index; name another file")
        suffix = _SUFFIXES.get(flag)
        if suffix is not None and os.path.isfile(real) and not real.lower().endswith(suffix):
            raise UserError(
                f"{shown}: it exists, and only a file {suffix} is replaced; name another file, or delete it "
                "first"
            )
        taken[real] = "another flag names it, too"


def model_of(index: Index, options: Any) -> Encoder:
    """The model that makes the index's codes, by a command's --model, --checkpoint, --num_bits, --device.

    Raises UserError.
    """
    return encoder_for(
        index, options.model, checkpoint=options.checkpoint, num_bits=options.num_bits, device=options.device
    )


def label_of(index: Index, name: str) -> int:
    """The label of a class by its name, or by its number where classes have no names. Raises UserError."""
    if name in index.class_names:
        return index.class_names.index(name)
    if not index.class_names and name.isdecimal():
        return int(name)
    names = [printable(known) for known in index.class_names]
    if not names:
        raise UserError(f"--label={printable(name)}: the index's classes have no names; give a number")
    raise UserError(
        f"--label={printable(name)}: the index has no such class{did_you_mean(name, names) or '.'} It has "
        f"{some(names, 10)}"
    )


def write_json(path: str, content: Any) -> None:
    """Writes JSON to a file, whole or not at all, or prints it if path is "-". Raises UserError."""
    if path == "-":
        print(json.dumps(content))
    else:
        atomic_write(path, lambda file: file.write(json.dumps(content, indent=1).encode("ascii") + b"\n"))


def bits(count: int) -> str:
    """A number of bits, in words."""
    return f"{count} bit" if count == 1 else f"{count} bits"
