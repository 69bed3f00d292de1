"""What codes are used for besides classification: retrieval and out-of-distribution detection."""

import glob
import json
import os
from collections.abc import Mapping
from typing import Any

from llc import runs
from llc.data.batches import Images
from llc.encode import check_out
from llc.encoder import decoder_path
from llc.errors import UserError
from llc.evaluate import ood, retrieval
from llc.evaluate.options import Options
from llc.evaluate.subject import CodeSet, Subject
from llc.files import atomic_write


class Uses:
    """The uses that the flags ask for; it is false if there are none.

    uses: {section: options}; key: the flag that names what is evaluated. First `find` opens all that they
    need, then every process takes part in `collect`, and the main process calls `measure` and `report`.
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

    def measure(self) -> dict[str, float]:
        """All figures by name; writes the files of the uses. Raises UserError."""
        figures: dict[str, float] = {}
        for use in (self.retrieval, self.ood):
            if use is not None:
                figures |= use.measure()
        return figures

    def report(self) -> None:
        """Prints what `measure` found."""
        for use in (self.retrieval, self.ood):
            if use is not None:
                use.report()


def check_outs(options: Options, uses: Mapping[str, Any], *others: str) -> None:
    """Raises UserError where a file to write cannot be written, or is named twice, or is one that is read.

    others: paths that are read besides those of the options.
    """
    searched = uses["retrieval"]
    read = [options.model, options.original, options.codebook, options.decoder, options.fit_decoder, *others]
    read += [searched.database, searched.queries, *ood.named(uses["ood"].dataset).values()]
    model = options.original or options.model
    if os.path.isfile(model):
        read.append(os.fspath(decoder_path(model)))
    # A name may stand for several files: see llc.data.reading.
    names = {name for text in read for name in (text, *text.split(",")) if name}
    files = [name for text in names for name in (glob.glob(text) or [text]) if not os.path.isdir(name)]
    taken = {os.path.realpath(name): "what is read" for name in files}
    for flag, path in (
        ("--predictions", options.predictions),
        ("--json", options.json),
        ("--retrieval.csv", searched.csv),
        ("--ood.scores", uses["ood"].scores),
    ):
        if not path:
            continue
        check_out(path, flag)
        place = os.path.realpath(path)
        if os.path.isdir(model) and runs.is_own_file(model, path):
            raise UserError(f"{flag}={path}: this file is a part of the run; give it another name")
        if place in taken:
            raise UserError(f"{flag}={path}: {taken[place]} is this file, too; give each a file of its own")
        taken[place] = flag


def write_figures(
    path: str, metrics: Mapping[str, Mapping[str, float]], of_uses: Mapping[str, float]
) -> None:
    """Writes {name: value} as JSON, unless path is empty: STAGE.METRIC, retrieval.METRIC, ood.NAME.METRIC."""
    if path:
        figures = {f"{stage}.{name}": value for stage, own in metrics.items() for name, value in own.items()}
        text = json.dumps({**figures, **of_uses}, indent=1, allow_nan=False)
        atomic_write(path, lambda file: file.write(text + "\n"), "w")
