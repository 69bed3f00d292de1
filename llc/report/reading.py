"""Reads a run folder, and files that `python -m llc.evaluate` wrote about it; no images are needed.

Every file may be missing, cut off or of another kind; then a UserError names it and says what to do.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import llc
from llc import checkpoints, recipe, runs, stages
from llc import config as edge
from llc.codebook import load_codebook
from llc.codes import pack_bits, unpack_bits
from llc.data.manifest import load_manifest, manifest_path
from llc.data.shards import Shards, open_shards
from llc.data.sources import printable
from llc.encoder import load
from llc.errors import UserError
from llc.evaluate.origin import DESCRIPTION, Origin, digest
from llc.evaluation import ood
from llc.evaluation.taxonomy import class_distances, tree
from llc.files import RECIPE_FOLDERS, SHIPPED, stand_in
from llc.report.contents import Curve, Detection, Difference, Health, Run
from llc.torch_files import read_torch_file
from llc.training import resume

DEFAULTS = "the defaults"  # the base of differences where no recipe is known
UNKNOWN = "unknown"
# Keys that say where things are, or how many do the work, not what is trained.
_NOT_COMPARED = ("data.train_dataset", "data.val_dataset", "data.num_workers")
_NOT_COMPARED_SECTIONS = ("logging", "dist")
_LOG, _RESULTS = "log.jsonl", "results.csv"
# of a line of the log
_NUMBERS = (
    "epoch",
    "global_epoch",
    "loss",
    "lr",
    "resolution",
    "images_per_second",
    "train_seconds",
    "val_seconds",
)
_EVALUATED = "evaluated"  # in a file of scores, the images that are in-distribution


def read_run(path: str | os.PathLike[str]) -> Run:
    """The Run in a run folder, also of a training that still runs or was interrupted.

    Without class_names.json the classes are called "class 0", "class 1", ... Class codes come from
    codebook.npy, and before it is written from the newest checkpoint. Raises UserError for what is not a run
    folder, for damaged files, and for a run that has no class codes: a dense classifier, or one whose first
    checkpoint is still to come.
    """
    folder = Path(path) if Path(path).name else Path(path).resolve()
    config = runs.read_config(folder)
    saved = runs.checkpoints(folder)
    epochs, is_cut_off = read_log(folder, must_exist=any(name in saved for name in config.stages))
    results = read_results(folder)
    finished = _finished(config, saved, epochs, results)
    missing = [name for name in finished if name not in saved]
    class_codes = _class_codes(folder, config, {*finished, *(str(line["stage"]) for line in epochs)})
    num_bits, num_classes = config.codes.num_bits, len(class_codes)
    names = runs.read_class_names(folder)
    if names is None:
        names = [f"class {label}" for label in range(num_classes)]
    if len(names) != num_classes:
        raise UserError(
            f"{folder / 'class_names.json'}: {len(names)} names, but the codebook has {num_classes} classes; "
            "one of the two is of another run"
        )
    base, differences = _compared(config)
    last = _last(folder)
    train, val = (_shards(where) for where in (config.data.train_dataset, config.data.val_dataset))
    return Run(
        path=folder,
        config=config,
        class_names=names,
        class_codes=class_codes,
        num_bits=num_bits,
        epochs=epochs,
        results=results,
        stages=finished,
        base=base,
        differences=differences,
        health=health(class_codes, num_bits),
        tree=tree(class_codes) if num_classes > 1 else None,
        origin=_origin(config, finished, missing, last, train, val),
        val_data=_val_data(config, last, val),
        num_val=_num_val(config, last, val),
        without_checkpoint=missing,
        notes=[*_unfinished(config, finished, epochs, results), *_notes(missing, is_cut_off, bool(results))],
    )


# --------------------------------------------------------------------------------------------- class codes


def _class_codes(folder: Path, config: recipe.Config, begun: Collection[str]) -> np.ndarray:
    """The packed class codes of a run. begun: the stages that are finished or have an epoch.

    Raises UserError if it has none.
    """
    first, *others = config.stages
    if config.stage(first).dense and not others:
        raise UserError(
            f"{folder}: a dense classifier, which has no codes to report on; a run with another stage after "
            "it has them (training.stages=dense,instance)"
        )
    # During a dense stage codebook.npy holds the dense layer's one-hot codes.
    if config.stage(first).dense and not {*others} & {*begun}:
        raise UserError(
            f"{folder}: it has no class codes yet, because they come with the stage after the {first} stage; "
            f"wait for the first epoch of the {others[0]} stage, or continue the run"
        )
    path, last = folder / "codebook.npy", folder / "checkpoints" / "last.pth"
    if path.exists():
        return pack_bits(load_codebook(path, config.codes.num_bits).numpy())
    if begun:
        raise UserError(f"{path}: it is missing, though log.jsonl has epochs of this run; copy it here too")
    if not last.exists():
        raise UserError(
            f"{folder}: it has neither codebook.npy nor checkpoints/last.pth, so there are no class codes "
            "yet; wait for the end of the first epoch, or continue the run"
        )
    codebook = checkpoints.read_state(last).get("codebook")
    if codebook is None or codebook.ndim != 2 or codebook.shape[1] != config.codes.num_bits:
        raise UserError(f"{last}: holds no codebook [num_classes, {config.codes.num_bits}]")
    return pack_bits(codebook.float().numpy())


def health(class_codes: np.ndarray, num_bits: int) -> Health:
    """The Health of class codes, uint8 [C, code_size]."""
    num_classes = len(class_codes)
    balance = unpack_bits(class_codes, num_bits).mean(0)
    if num_classes < 2:
        return Health(np.zeros(num_bits + 1, np.int64), (), balance, np.zeros(num_classes, np.int32))
    distances = class_distances(class_codes)
    counts = np.bincount(distances.ravel(), minlength=num_bits + 1)
    counts[0] -= num_classes  # of a class from itself
    np.fill_diagonal(distances, num_bits + 1)
    _, group = np.unique(class_codes, axis=0, return_inverse=True)
    together: dict[int, list[int]] = {}
    for label, own in enumerate(group.ravel().tolist()):
        together.setdefault(own, []).append(label)
    shared = sorted(labels for labels in together.values() if len(labels) > 1)
    return Health(counts // 2, shared, balance, distances.min(1))


# ----------------------------------------------------------------------------------------- logs and results


def _finished(
    config: recipe.Config,
    saved: Collection[str],
    epochs: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
) -> list[str]:
    """The finished stages, in the order of training, whether their networks are there or not.

    A stage is finished if its network was saved, if it has results, or if a later one has begun.
    """
    known = {*saved, *(name.partition("/")[0] for name in results)}
    begun = [
        number for number, name in enumerate(config.stages) if any(one["stage"] == name for one in epochs)
    ]
    return [
        name for number, name in enumerate(config.stages) if name in known or begun and number < max(begun)
    ]


def _unfinished(
    config: recipe.Config,
    finished: Sequence[str],
    epochs: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
) -> list[str]:
    """What the reader must know of a run that is still training, or was stopped."""
    if results:
        return []
    if not epochs:
        return ["This run is not finished: none of its epochs has ended."]
    stage, epoch = epochs[-1]["stage"], epochs[-1]["epoch"]
    of_all = f" of {config.stage(stage).epochs}" if stage in config.stages else ""
    coding = [name for name in finished if not stages.STAGES[name].dense]
    return [
        f"This run is not finished: its log ends after epoch {epoch}{of_all} of the {stage} stage."
        + (f" Images are encoded by the network at the end of the {coding[-1]} stage." if coding else "")
    ]


def _notes(missing: Sequence[str], is_cut_off: bool, is_finished: bool) -> list[str]:
    """What the reader must know of a run's files."""
    notes = [
        f"checkpoints/{name}.pth is missing, though the {name} stage is finished, so nothing here is "
        "measured with that network."
        for name in missing
    ]
    if is_cut_off:
        why = (
            "Restore the file from a copy to see it."
            if is_finished
            else "If the training still runs, it was being written."
        )
        notes.append(f"The last line of {_LOG} is cut off, so its epoch is left out. {why}")
    return notes


def read_log(folder: Path, must_exist: bool) -> tuple[list[dict[str, Any]], bool]:
    """(the lines of log.jsonl, whether a last one was left out); none before the first epoch ends.

    A last line that is cut off is left out, because a run may be writing it. Raises UserError.
    """
    path = folder / _LOG
    text = _read_text(path)
    if text is None:
        if must_exist:
            raise UserError(
                f"{path}: it is missing, though stages of this run are finished; copy it here too"
            )
        return [], False
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_checked_line(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline ends it
                return found, True
            raise UserError(
                f"{path}: line {number} is damaged ({error}); restore the file from a copy, or continue the "
                "run, which writes it again"
            ) from error
    return found, False


def _checked_line(line: Any) -> dict[str, Any]:
    """A line of log.jsonl. Raises ValueError if it is something else."""
    if not isinstance(line, dict):
        raise ValueError("not a table of keys")
    if not isinstance(line.get("stage"), str):
        raise ValueError("it names no stage")
    for key in ("epoch", "global_epoch", "loss"):
        if key not in line:
            raise ValueError(f"{key} is missing")
    for key in line:
        is_number = isinstance(line[key], (int, float)) and not isinstance(line[key], bool)
        if (key in _NUMBERS or key.startswith("top")) and not is_number:
            raise ValueError(f"{key} is {line[key]!r:.40}, not a number")
        if isinstance(line[key], int) and abs(line[key]) >= 10**300:  # more than a float holds
            raise ValueError(f"{key} is a whole number of 300 digits or more")
    return line


def read_results(folder: Path) -> dict[str, tuple[float, float]]:
    """{"STAGE/METRIC": (final, best epoch's)} of results.csv, {} before the run is finished."""
    path = folder / _RESULTS
    text = _read_text(path)
    if text is None:
        return {}
    found: dict[str, tuple[float, float]] = {}
    for number, row in _rows(path, text, ("metric", "final", "best_epoch")):
        name = row["metric"]
        if "/" not in name:
            raise UserError(f"{path}: line {number}: metric is {name!r:.60}, not STAGE/METRIC")
        found[name] = (
            _number(path, number, "final", row["final"]),
            _number(path, number, "best_epoch", row["best_epoch"]),
        )
    if not found:
        raise UserError(f"{path}: it holds no results; restore it from a copy, or continue the run")
    return found


def _read_text(path: Path) -> str | None:
    """The text of a file, None if there is none. Raises UserError."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: it is not text ({error})") from error


def _rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the line, {column: text}) of a CSV file with these columns, perhaps among others."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        head = next(reader, [])
        if missing := [name for name in columns if name not in head]:
            raise UserError(f"{path}: there is no column {missing[0]}; its first line is {head!r:.80}")
        for row in reader:
            if len(row) != len(head):
                raise UserError(f"{path}: line {reader.line_num} has {len(row)} values, not {len(head)}")
            yield reader.line_num, dict(zip(head, row))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not CSV: {error}") from error


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}: line {line}: {column} is {text!r:.60}, not a number") from None


# ------------------------------------------------------------------------------------------------- the recipe


def _compared(config: recipe.Config) -> tuple[str, list[Difference]]:
    """(base, differences) from the shipped recipe that differs in the fewest keys, or from the defaults.

    Stages that the run does not have are left out, and keys that say where things are.
    """
    own = _flat(config.as_dict(), config)
    best: tuple[str, list[Difference]] | None = None
    for name, values in _bases(config).items():
        found = [
            Difference(key, value_text(value), value_text(values.get(key)))
            for key, value in own.items()
            if value != values.get(key)
        ]
        if best is None or len(found) < len(best[1]):
            best = name, found
    assert best is not None, "the defaults are always there"
    return best


def _bases(config: recipe.Config) -> dict[str, dict[str, Any]]:
    """{name: its values} of the shipped recipes, or of the defaults where there are none."""
    found = {}
    for path in sorted(path for folder in RECIPE_FOLDERS for path in (SHIPPED / folder).glob("*.yaml")):
        given = [f"--{key}=-" for key in ("data.train_dataset", "data.val_dataset")]
        try:
            values = edge.read(recipe.sections(), ["--config", str(path), *given], description="")
        except UserError:  # such as a recipe of a stage that only a plugin has; the others can be compared
            continue
        of_sections = {name: dataclasses.asdict(section) for name, section in values.items()}
        found[f"{path.parent.name}/{path.name}"] = _flat(of_sections, config)
    if found:
        return found
    defaults = {
        section: {
            field.name: None if field.default is dataclasses.MISSING else field.default
            for field in dataclasses.fields(kind)
        }
        for section, kind in recipe.sections().items()
    }
    return {DEFAULTS: _flat(defaults, config)}


def _flat(sections: Mapping[str, Mapping[str, Any]], config: recipe.Config) -> dict[str, Any]:
    """{"section.key": value} of what is compared."""
    return {
        f"{section}.{key}": tuple(value) if isinstance(value, list) else value
        for section, values in sections.items()
        if section not in _NOT_COMPARED_SECTIONS
        and (section not in stages.STAGES or section in config.stages)
        for key, value in values.items()
        if f"{section}.{key}" not in _NOT_COMPARED
    }


def value_text(value: Any) -> str:
    """A value as the command line takes it, and "(empty)" for none."""
    if isinstance(value, bool):
        return str(value).lower()
    text = (
        ",".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)
    )
    return text or "(empty)"


# ------------------------------------------------------------------------------------------ where it is from


def _val_data(config: recipe.Config, last: Mapping[str, Any], val: Shards | None) -> str:
    """A digest of the val images of a training, or else of those that are there now, "" if it is unknown."""
    stored = _stored_identity(last).get("val_data")
    if isinstance(stored, str):
        return stored
    return "" if val is None else resume.identity(config, val, val, None)["val_data"]


def count_val_images(folder: Path, config: recipe.Config) -> int:
    """How many val images the training in a run folder had, 0 if it is unknown."""
    return _num_val(config, _last(folder), _shards(config.data.val_dataset))


def _num_val(config: recipe.Config, last: Mapping[str, Any], val: Shards | None) -> int:
    """How many val images the training had, 0 if it is unknown."""
    stored = _stored_identity(last).get("val_data")
    if (
        val is None
        or isinstance(stored, str)
        and stored != resume.identity(config, val, val, None)["val_data"]
    ):
        return 0
    return len(val)


def _stored_identity(last: Mapping[str, Any]) -> Mapping[str, Any]:
    identity = last.get("identity")
    return identity if isinstance(identity, dict) else {}


def _origin(
    config: recipe.Config,
    finished: Sequence[str],
    missing: Collection[str],
    last: Mapping[str, Any],
    train: Shards | None,
    val: Shards | None,
) -> dict[str, str]:
    """{what: text} on how a run and its report were made. What is not known is said to be unknown."""
    stored = _stored_identity(last)
    now = resume.identity(config, train, val, None) if train and val else {}
    code_stages = [name for name in finished if not stages.STAGES[name].dense and name not in missing]
    of_process = last.get("of_process")
    number = len(of_process) if isinstance(of_process, torch.Tensor) and of_process.ndim else 0
    return {
        "checkpoint": (
            f"checkpoints/{code_stages[-1]}.pth, the network at the end of the {code_stages[-1]} stage"
            if code_stages
            else "none: no stage with codes is finished"
        ),
        "finished stages": ", ".join(finished) or "none",
        "train images": _data(
            config.data.train_dataset, train, stored.get("train_data"), now.get("train_data")
        ),
        "val images": _data(config.data.val_dataset, val, stored.get("val_data"), now.get("val_data")),
        "seed": str(config.training.seed),
        "processes": f"{number}" if number else UNKNOWN,
        "device of the training": f"{UNKNOWN}; a run folder does not record it",
        "versions of the training": f"{UNKNOWN}; a run folder does not record them",
        "versions of this report": (
            f"llc {llc.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"numpy {np.__version__}, Python {platform.python_version()}"
        ),
    }


def _last(folder: Path) -> Mapping[str, Any]:
    """The newest state of a run, {} if it cannot be read: a report can do without."""
    try:
        state = read_torch_file(folder / "checkpoints" / "last.pth")
    except UserError:
        return {}
    return state if isinstance(state, dict) else {}


def _shards(where: str) -> Shards | None:
    """The betons at `where`, None if they cannot be opened now."""
    try:
        return open_shards(where)
    except (UserError, OSError):
        return None


def _data(where: str, shards: Shards | None, stored: Any, now: str | None) -> str:
    """What is known of the betons at `where`: how many images, and whether they are those of the training.

    shards: None if they cannot be opened; stored: the digest that the run keeps of its data; now: theirs.
    """
    name, manifest = printable(where), None
    if shards is not None:
        manifest = shards.manifest
    elif manifest_path(where).is_file():  # the manifest may be there without its beton
        with contextlib.suppress(UserError):
            manifest = load_manifest(manifest_path(where))
    if manifest is None:
        return f"{name}; their number and identity are {UNKNOWN}, because they cannot be read here"
    identity = manifest.identity if shards is None else shards.identity
    text = (
        f"{name}: {manifest.num_samples:,} images of {manifest.num_classes:,} classes, "
        f"identity {identity[:16]}"
    )
    if not isinstance(stored, str) or now is None:
        return f"{text}; {UNKNOWN} whether the training had the same"
    if stored != now:
        return f"{text}; not the images that the training had, which were others under this name"
    return f"{text}; the same as in the training"


# ----------------------------------------------------------------------------------- files of llc.evaluate


def read_detections(path: str | os.PathLike[str]) -> list[Detection]:
    """The Detections in a file of llc.evaluate --ood.scores: one for each set of images and score.

    The AUROC is that of all images, as llc.evaluate prints it; no image is set aside to tune a threshold.
    Raises UserError for another file, and where scores are missing, or NaN or infinite.
    """
    path = Path(path)
    arrays = _read_npz(path)
    arrays.pop(DESCRIPTION, None)
    sets: dict[str, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        dataset, _, score = name.rpartition(".")
        if not dataset:
            raise UserError(
                f"{path}: {printable(name)!r:.80}: not the name of a score, such as {_EVALUATED}.mhd"
            )
        if values.ndim != 1 or values.dtype.kind not in "fiub" or not len(values):
            raise UserError(
                f"{path}: {printable(name)} is {values.dtype} {list(values.shape)}; expected real numbers [n]"
            )
        if broken := int((~np.isfinite(values)).sum()):
            raise UserError(
                f"{path}: {printable(name)}: {broken:,} of {len(values):,} scores are NaN or infinite"
            )
        sets.setdefault(dataset, {})[score] = values.astype(np.float64)
    inside = sets.pop(_EVALUATED, {})
    found = [
        Detection(dataset, score, inside[score], outside, ood.auroc(inside[score], outside))
        for dataset, scores in sets.items()
        for score, outside in scores.items()
        if score in inside
    ]
    if not found:
        raise UserError(
            f"{path}: not a file of scores: it has no {_EVALUATED}.SCORE beside NAME.SCORE; llc.evaluate "
            "writes one with --ood.dataset=IMAGES --ood.scores=FILE.npz"
        )
    return found


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. Raises UserError."""
    try:
        if something_else := stand_in(path):
            raise UserError(f"{path}: {something_else}")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy parses the header as Python, which can raise many kinds of errors
        raise UserError(f"{path}: not a .npz file of numbers, or damaged: {error}") from error


def origin_of_detections(path: str | os.PathLike[str]) -> Origin | None:
    """The model that a file of scores says it is of; None if it does not say. Raises UserError."""
    description = _read_npz(Path(path)).get(DESCRIPTION)
    try:
        return None if description is None else Origin.restore(json.loads(str(description)))
    except (ValueError, RecursionError):
        return None


def origin_of_curves(path: str | os.PathLike[str]) -> Origin | None:
    """The model that a file of curves says it is of; None if it does not say. Raises UserError.

    A file whose lines are of several models is of none.
    """
    path = Path(path)
    found = {Origin.restore(row) for _, row in _rows(path, _read_text(path) or "", ())}
    return found.pop() if len(found) == 1 else None


def check_origin(given: str, origin: Origin | None, run: Run) -> str:
    """What a reader must know of a file that should be about a run's codes, or "".

    given: the file, for messages. Raises UserError if the file is of a network that is not the run's.
    """
    if origin is None:
        return f"{given} does not say which network it was measured with, so it may be about another run."
    if not origin.network:
        return (
            f"{given} was made from {origin.model}, codes without a network, so it may be about another run."
        )
    # The newest network first, which is the one that a page shows, and then those that are rarely measured.
    names = [*reversed(run.stages), *(name for name in runs.checkpoints(run.path) if name not in run.stages)]
    of_run = {}
    for name in names:
        with contextlib.suppress(UserError):
            of_run[name] = digest(load(run.path, checkpoint=name).network)
            if of_run[name] == origin.network:
                return "" if name == names[0] else f"{given} was measured with checkpoints/{name}.pth."
    if not {*run.stages} <= {*of_run}:
        return (
            f"{given} was measured with a network of {origin.model}. It is {UNKNOWN} whether that is this "
            "run's, because not all checkpoints of the run can be read here."
        )
    raise UserError(
        f"{given}: it is not about the run {printable(run.path)}: it was measured with the network "
        f"{origin.network} of {printable(origin.model)}, and this run has "
        f"{', '.join(f'{of_run[name]} ({name})' for name in run.stages)}; name the file of this run, or "
        f"write it again with python -m llc.evaluate {printable(run.path)}"
    )


def read_curves(path: str | os.PathLike[str]) -> list[Curve]:
    """The Curves in a file of llc.evaluate --retrieval.csv: precision and recall at k, and over each other.

    Raises UserError for another file.
    """
    path = Path(path)
    text = _read_text(path)
    if text is None:
        raise UserError(f"{path}: there is no such file; llc.evaluate --retrieval.csv=FILE.csv writes one")
    points = []
    for line, row in _rows(path, text, ("at", "value", "precision", "recall")):
        point = [_number(path, line, column, row[column]) for column in ("value", "precision", "recall")]
        if not all(map(math.isfinite, point)):
            raise UserError(f"{path}: line {line} holds NaN or infinity")
        if row["at"] == "k":
            points.append(point)
    if not points:
        raise UserError(f"{path}: it has no lines of k, so it is not a file of llc.evaluate --retrieval.csv")
    k, precision, recall = np.array(sorted(points)).T
    return [
        Curve("precision@k", k, precision),
        Curve("recall@k", k, recall),
        Curve("precision over recall", recall, precision),
    ]
