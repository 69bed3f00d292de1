"""The grid of a comparison, read from YAML: its methods, the values that each tunes, and the seeds."""

import dataclasses
import difflib
import itertools
import re

from llc.errors import UserError
from llc.evaluation import metrics
from llc.evaluation.decoders import DECODERS
from llc.yaml_file import read_yaml

# Keys of a recipe that the comparison sets itself, so that no method can.
RESERVED = (
    "logging.folder",
    "logging.name",
    "training.seed",
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
)
DEFAULT_HEADLINE = metrics.name("top1", "mhd")

_GRID_KEYS = {
    "headline": str,
    "tune_seeds": list,
    "seeds": list,
    "held_out": (int, float),
    "held_out_seed": int,
    "methods": dict,
}
_METHOD_KEYS = {"set": dict, "tune": dict, "headline": str, "ceiling": bool}


def headline_metrics():
    """Names of the metrics that methods can be tuned by: each decoder's top-1, and top-5 if it has one."""
    return [
        metrics.name(metric, decoder.name)
        for decoder in DECODERS.values()
        for metric in (("top1", "top5") if decoder.depth >= 5 else ("top1",))
    ]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to learn codes.

    overrides: {key of the recipe: value}; axes: {key: values to try}; headline: the metric it is tuned by,
    without suffixes; ceiling: whether the other methods are measured against this one.
    """

    name: str
    overrides: dict
    axes: dict
    headline: str
    ceiling: bool

    @property
    def points(self):
        """All combinations of the axes' values, a list of {key: value}; [{}] if there are no axes."""
        return [dict(zip(self.axes, values)) for values in itertools.product(*self.axes.values())]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid file, checked. The recipe's keys and values in it are not: llc.training.config checks them."""

    path: str
    methods: tuple[Method, ...]
    tune_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    held_out: float
    held_out_seed: int

    @classmethod
    def read(cls, path):
        """Raises UserError for a file that cannot be read, and for keys and values that make no sense."""
        content = read_yaml(path, "grid")
        _check_keys(path, content, _GRID_KEYS)
        if not content.get("methods"):
            raise UserError(
                f"{path}: methods is missing: a name for each, with set and tune (--help shows a grid)"
            )
        default = content.get("headline", DEFAULT_HEADLINE)
        grid = cls(
            str(path),
            tuple(_read_method(path, name, fields, default) for name, fields in content["methods"].items()),
            tuple(content.get("tune_seeds", [0])),
            tuple(content.get("seeds", [0, 1, 2])),
            content.get("held_out", 0.1),
            content.get("held_out_seed", 0),
        )
        ceilings = [method.name for method in grid.methods if method.ceiling]
        if len(ceilings) > 1:
            raise UserError(
                f"{path}: ceiling is true for {', '.join(ceilings)}; only one method can be the ceiling"
            )
        for name in ("tune_seeds", "seeds"):
            seeds = getattr(grid, name)
            whole = all(type(seed) is int and seed >= 0 for seed in seeds)
            if not seeds or not whole or len(set(seeds)) < len(seeds):
                raise UserError(
                    f"{path}: {name} = {list(seeds)}: expected different whole numbers, at least one"
                )
        if not 0 < grid.held_out < 1:
            raise UserError(f"{path}: held_out = {grid.held_out}: expected a fraction between 0 and 1")
        if grid.held_out_seed < 0:
            raise UserError(
                f"{path}: held_out_seed = {grid.held_out_seed}: expected a whole number, at least 0"
            )
        return grid


def _read_method(path, name, fields, default_headline):
    where, fields = f"{path}: methods.{name}", fields or {}
    if not re.fullmatch(r"[A-Za-z0-9._+-]+", str(name)):
        raise UserError(
            f"{where}: a name is made of letters, digits and . _ + - (run folders are named after it)"
        )
    _check_keys(where, fields, _METHOD_KEYS)
    overrides, axes = fields.get("set", {}), fields.get("tune", {})
    headline = fields.get("headline", default_headline)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{where}.tune: {key} = {values!r}: expected a list of values, such as [0.03, 0.1]"
            )
    for key in (*overrides, *axes):
        if key in RESERVED:
            raise UserError(
                f"{where}: {key} is not a method's key, because the comparison sets it (the seeds come from "
                "the grid's keys `seeds` and `tune_seeds`)"
            )
        if key in overrides and key in axes:
            raise UserError(f"{where}: {key} is both in set and in tune; remove one of them")
    if headline not in headline_metrics():
        raise UserError(f"{where}: headline = {headline}: expected one of {', '.join(headline_metrics())}")
    return Method(str(name), overrides, axes, headline, fields.get("ceiling", False))


def _check_keys(where, content, known):
    """Raises UserError for an unknown key or a value of the wrong type. known: {key: type or types}."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected the keys {', '.join(known)}; found {content!r:.60}")
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
            raise UserError(f"{where}: {key} is not a key; {hint}")
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{where}: {key} = {value!r:.60}: expected a value of type {expected}")
