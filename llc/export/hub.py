"""--to=hub: a folder for the Hugging Face Hub: a saved encoder, its description, and a model card."""

import copy
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llc
from llc import checkpoints, hub, runs
from llc.codes import code_size
from llc.data.sources import printable
from llc.encoder import Encoder
from llc.errors import UserError
from llc.evaluation.decoders import DECODERS, usable
from llc.evaluation.metrics import EMA, name
from llc.export.card import Figures, Model, text
from llc.files import atomic_write, sync_folder
from llc.packages import needed
from llc.report import reading

_FILES = (hub.WEIGHTS, hub.CARD, hub.CONFIG)  # the last says of which network the first must be
_CARD_DIGEST = "readme_sha256"  # in config.json, of the card as it was written
_ID = r"[A-Za-z0-9_][\w.-]*"
# Sections of a recipe that say where and by whom a run was made, not what was trained.
_OWN_SECTIONS = ("logging", "dist")


def write(encoder, path, options):
    """Writes the folder, whole or not at all where there was none; into one that is there, file by file.

    Raises UserError, also if the folder holds something else than an earlier export.
    """
    encoder.check_codes()
    _check_options(options)
    needed("huggingface_hub", "--to=hub", extra="hub")  # which writes the card's metadata
    folder = Path(os.path.realpath(path))
    _check_folder(folder, options)
    figures, encoder = _figures(encoder, options), _shareable(encoder)
    model = Model(
        title=_title(options),
        address=options.repo,
        encoder=encoder,
        figures=figures,
        license=options.license,
        datasets=options.datasets,
    )
    card = text(model).encode()
    config = _config(encoder) | {_CARD_DIGEST: hashlib.sha256(card).hexdigest()}
    data = json.dumps(config, indent=2, allow_nan=False).encode("ascii") + b"\n"
    there, temporary = folder.is_dir(), None
    try:
        # in a folder that is there, because its parent may be another file system
        parent = folder if there else folder.parent
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}.", suffix=".tmp"))
        encoder.save(temporary / hub.WEIGHTS)
        atomic_write(temporary / hub.CONFIG, lambda file: file.write(data))
        atomic_write(temporary / hub.CARD, lambda file: file.write(card))
        if there:
            for file in _FILES:
                os.replace(temporary / file, folder / file)
        else:
            os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp's is for its owner alone
            os.rename(temporary, folder)  # fails if it holds something by now
        sync_folder(parent)
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"{printable(path)}: {', '.join(_FILES)}: {encoder.num_bits} bits, {len(encoder.codebook)} classes, "
        "for llc.load and the Hugging Face Hub"
    )
    if isinstance(model.figures, str):
        print(f"  the card has no figures: {model.figures}")
    if not options.repo:
        print("  the card calls the repository OWNER/NAME; --repo=OWNER/NAME gives it its name")
    if not options.license:
        print("  the card states no licence; --license=ID adds one")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_options(options):
    """Raises UserError for values that the Hub does not take."""
    if options.repo and not re.fullmatch(rf"{_ID}/{_ID}", options.repo, re.ASCII):
        raise UserError(f"--repo={options.repo}: expected OWNER/NAME, the name of a repository on the Hub")
    if options.license and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", options.license):
        raise UserError(
            f"--license={options.license}: expected an identifier of the Hub, such as mit, apache-2.0 or "
            "cc-by-4.0"
        )
    for one in options.datasets:
        if not re.fullmatch(rf"{_ID}(/{_ID})?", one, re.ASCII):
            raise UserError(
                f"--datasets={one}: expected names of data sets on the Hub, such as cifar10 or OWNER/NAME"
            )


# ------------------------------------------------------------------------------------------------ the folder


def _check_folder(folder, options):
    """Raises UserError where the folder cannot be made, or holds something that must not be replaced."""
    shown = f"--out={printable(folder)}"
    if hub.is_address(options.out):
        raise UserError(
            f"--out={options.out}: nothing is uploaded; name a folder on this machine, and upload that with "
            "`hf upload OWNER/NAME FOLDER`"
        )
    if not folder.parent.is_dir():
        raise UserError(f"{shown}: there is no folder {printable(folder.parent)}; make it first")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{shown}: it exists and is not a folder; name another")
    found = sorted(os.listdir(folder))
    if all(entry.startswith(".") for entry in found):  # none, or a fresh clone of an empty repository
        return
    what = f"it is not empty ({printable(found[0])}, ...), and is not an earlier export of this kind"
    if not hub.is_folder(folder):
        raise UserError(f"{shown}: {what}: name another folder, or empty it first")
    if os.path.realpath(options.run) == str(folder):
        raise UserError(
            f"{shown}: it is the model that is read; export from the run again, or to another folder"
        )
    try:
        config = hub.read_config(folder)
    except UserError as error:
        raise UserError(f"{shown}: {what} ({error}): name another folder, or empty it first") from error
    card = folder / hub.CARD
    if card.exists() and hashlib.sha256(_read(card)).hexdigest() != config.get(_CARD_DIGEST):
        raise UserError(
            f"{shown}: its {hub.CARD} was changed after it was written, and would be replaced: move it "
            "elsewhere first, and put your changes into the new one"
        )


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


# ---------------------------------------------------------------------------------------------- its contents


def _shareable(encoder):
    """The same encoder without names of folders of this machine, which a saved encoder would tell."""
    shared = copy.copy(encoder)
    shared.recipe = {
        section: _without_folders(keys) if isinstance(keys, Mapping) else _without_folder(keys)
        for section, keys in encoder.recipe.items()
        if section not in _OWN_SECTIONS
    }
    if encoder.fitted is not None:
        shared.fitted = dataclasses.replace(encoder.fitted, source=_without_folder(encoder.fitted.source))
    return shared


def _without_folders(keys):
    return {key: value if key == "arch" else _without_folder(value) for key, value in keys.items()}


def _without_folder(value):
    """A value of a recipe, of whose paths the last part is left. JSON has no NaN, which becomes a text."""
    if isinstance(value, (list, tuple)):
        return [_without_folder(part) for part in value]
    if isinstance(value, Mapping):
        return _without_folders(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, str) or hub.is_address(value):
        return value
    return ",".join(re.split(r"[/\\]", part.rstrip("/\\"))[-1] for part in value.split(","))


def _config(encoder: Encoder) -> dict[str, Any]:
    """config.json: how the model is built, and what its codes are, for people and other programs."""
    return {
        "library_name": hub.LIBRARY,
        "format": hub.FORMAT,
        "llc_version": llc.__version__,
        "num_bits": encoder.num_bits,
        "code_size": code_size(encoder.num_bits),
        "num_classes": len(encoder.codebook),
        "stage": encoder.stage,
        "network": encoder.network.options,
        "network_digest": checkpoints.digest(encoder.network),
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "flip": encoder.flip,
        "precision": encoder.precision,
        "class_names": encoder.class_names if encoder.named else None,
        "decoders": usable(encoder.learnt) if len(encoder.codebook) else [],
        "recipe": encoder.recipe,
    }


def _title(options):
    """What the card calls the model: the repository's name, else the run's."""
    if options.repo:
        return options.repo.split("/")[1]
    if hub.is_address(options.run):
        return options.run.split("@")[0].split("/")[-1]
    path = Path(os.path.realpath(options.run))
    return printable(path.name if path.is_dir() else path.stem)


def _figures(encoder: Encoder, options: Any) -> Figures | str:
    """What the run measured of this very network on its val images, or why that is not known."""
    if not runs.is_folder(options.run):
        return "the model was not exported from its run, and figures are kept there alone"
    folder = Path(options.run)
    config = runs.read_config(folder)
    if options.codebook:
        return "the run's figures are for another codebook"
    if encoder.num_bits != config.codes.num_bits:
        return f"the run's figures are for all {config.codes.num_bits} bits"
    ema = options.checkpoint == f"{encoder.stage}_ema"
    if not ema and options.checkpoint not in ("", encoder.stage):
        return f"the run does not keep figures of its checkpoint {options.checkpoint}"
    lines, _ = reading.read_log(folder, must_exist=True)
    of_stage = [line for line in lines if line["stage"] == encoder.stage]
    if not of_stage and config.stage(encoder.stage).epochs:
        return f"log.jsonl has no epoch of the {encoder.stage} stage"
    last = of_stage[-1] if of_stage else {}
    values = {key: value for key, value in last.items() if isinstance(value, float)}
    for full_name, (final, _) in reading.read_results(folder).items():
        stage, _, metric = full_name.partition("/")
        if stage == encoder.stage:  # what was fitted at the end is here alone
            values.setdefault(metric, final)
    own = usable(encoder.learnt)
    if encoder.fitted is not None and encoder.fitted.source != config.data.train_dataset:
        own = usable({})  # the figures are of decoders that were fitted to other images
    found = {
        decoder: {
            metric: values[full_name]
            for metric in ("top1", "top5", *DECODERS[decoder].details)
            if math.isfinite(
                values.get(full_name := name(metric, decoder, encoder.flip) + EMA * ema, math.nan)
            )
        }
        for decoder in own
    }
    found = {decoder: metrics for decoder, metrics in found.items() if "top1" in metrics}
    if not found:
        return "the run has none that fit its own settings"
    return Figures(
        decoders=found,
        stage=encoder.stage,
        epoch=last.get("epoch", 0),
        data=_without_folder(config.data.val_dataset),
        num_images=reading.count_val_images(folder, config),
        ema=ema,
    )
