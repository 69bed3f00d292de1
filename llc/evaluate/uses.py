"""What codes are used for besides classification: retrieval and out-of-distribution detection."""

import json
from collections.abc import Mapping
from typing import Any

from llc.data.batches import Images
from llc.encode import check_out
from llc.errors import UserError
from llc.evaluate import ood, retrieval
from llc.evaluate.options import Options
from llc.evaluate.subject import CodeSet, Subject
from llc.files import atomic_write


class Uses:
    """The uses that the flags ask for; it is false if there are none.

    uses: {section: options}; key: the flag that names what is evaluated. First `find` opens all that they
    need, then every process takes part in `collect`, and the main process calls `report`.
    """

    def __init__(self, uses: Mapping[str, Any], key: str) -> None:
        self.options, self.key = uses, key
        self.retrieval: retrieval.Sets | None = None
        self.ood: ood.Others | None = None

    def __bool__(self) -> bool:
        return bool(self.options["retrieval"].database or self.options["ood"].dataset)

    def find(self, subject: Subject, evaluated: Images | CodeSet) -> None:
        """Opens images and reads codes. Raises UserError."""
        self.subject = subject
        if self.options["retrieval"].database:
            self.retrieval = retrieval.Sets(subject, self.options["retrieval"], evaluated, self.key)
        if self.options["ood"].dataset:
            self.ood = ood.Others(subject, self.options["ood"], evaluated, self.key)

    def collect(self, evaluated: CodeSet, learnt: Mapping[str, Any]) -> None:
        """Encodes. evaluated: the codes of what is evaluated; learnt: {decoder: what it learnt}."""
        self.subject.learnt = learnt
        if self.retrieval:
            self.retrieval.collect(evaluated)
        if self.ood:
            self.ood.collect(evaluated)

    def report(self) -> dict[str, float]:
        """Prints what was asked for and writes its files -> {name: value}."""
        figures: dict[str, float] = {}
        if self.retrieval:
            figures |= self.retrieval.report()
        if self.ood:
            figures |= self.ood.report()
        return figures


def check_outs(options: Options, uses: Mapping[str, Any]) -> None:
    """Raises UserError where one of the files to write cannot be written, or two of them are the same."""
    named: dict[str, str] = {}
    for flag, path in (
        ("--predictions", options.predictions),
        ("--json", options.json),
        ("--retrieval.csv", uses["retrieval"].csv),
        ("--ood.scores", uses["ood"].scores),
    ):
        if not path:
            continue
        check_out(path, flag)
        if path in named:
            raise UserError(f"{flag}={path}: {named[path]} names this file, too; give each a file of its own")
        named[path] = flag


def write_figures(
    path: str, metrics: Mapping[str, Mapping[str, float]], of_uses: Mapping[str, float]
) -> None:
    """Writes {name: value} as JSON, unless path is empty: STAGE.METRIC, retrieval.METRIC, ood.NAME.METRIC."""
    if path:
        figures = {f"{stage}.{name}": value for stage, own in metrics.items() for name, value in own.items()}
        text = json.dumps({**figures, **of_uses}, indent=1, allow_nan=False)
        atomic_write(path, lambda file: file.write(text + "\n"), "w")
