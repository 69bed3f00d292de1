"""Out-of-distribution detection measured: images of other kinds beside those evaluated."""

import re
from pathlib import Path

import numpy as np

from llc.code_files import write_arrays
from llc.data.batches import Images
from llc.data.sources import printable
from llc.errors import UserError
from llc.evaluate.options import Detection
from llc.evaluate.subject import CodeSet, Subject
from llc.evaluation import ood

KEY = "ood.dataset"
EVALUATED = "evaluated"  # in the file of scores


def named(paths: tuple[str, ...]) -> dict[str, str]:
    """{name: path} of the values of --ood.dataset: PATH, whose name is its file's, or NAME=PATH.

    Raises UserError where a name comes twice.
    """
    found: dict[str, str] = {}
    for text in paths:
        match = re.fullmatch(r"([\w-]+)=(.+)", text)
        name, path = match.groups() if match and not Path(text).exists() else (Path(text).stem, text)
        if name in found or name == EVALUATED:
            other = printable(found.get(name, "the images evaluated"))
            raise UserError(
                f"{KEY}: {other} and {printable(path)} would both be called {printable(name)}; write "
                "NAME=PATH for one of them"
            )
        found[name] = path
    return found


class Others:
    """Images or codes of other kinds, whose scores are compared with those of what is evaluated."""

    def __init__(self, subject: Subject, options: Detection, evaluated: Images | CodeSet, key: str) -> None:
        self.subject, self.options, self.evaluated, self.key = subject, options, evaluated, key
        self.paths = named(options.dataset)
        self.found = {name: subject.find(path, KEY) for name, path in self.paths.items()}
        for name, found in self.found.items():
            if isinstance(found, Images) and isinstance(evaluated, Images):
                if found.identity == evaluated.identity:
                    raise UserError(f"{KEY} = {printable(self.paths[name])}: these are the images of {key}")

    def collect(self, evaluated: CodeSet) -> None:
        """Computes the scores; every process takes part. Raises UserError."""
        self.title = evaluated.title
        self.inside = self.subject.scores(self.evaluated, evaluated.title)
        self.outside = {
            name: self.subject.scores(found, self.paths[name]) for name, found in self.found.items()
        }

    def report(self) -> dict[str, float]:
        """Prints a table for each set, and writes the scores where options.scores names a file."""
        figures: dict[str, float] = {}
        if self.options.scores:
            sets = {EVALUATED: self.inside, **self.outside}
            arrays = {
                f"{name}.{score}": own for name, scores in sets.items() for score, own in scores.items()
            }
            write_arrays(self.options.scores, arrays)
        for name, outside in self.outside.items():
            inside = {score: own for score, own in self.inside.items() if score in outside}
            try:
                found = ood.evaluate(
                    inside, outside, num_tuning=self.options.num_tuning, seed=self.options.seed
                )
            except ValueError as error:
                raise UserError(f"{KEY} = {printable(self.paths[name])}: {error}") from error
            self._print(name, inside, outside, found)
            figures |= {f"ood.{name}.{metric}": value for metric, value in found.items()}
        return figures

    def _print(
        self,
        name: str,
        inside: dict[str, np.ndarray],
        outside: dict[str, np.ndarray],
        found: dict[str, float],
    ) -> None:
        num_inside, num_outside = (len(next(iter(scores.values()))) for scores in (inside, outside))
        print(
            f"  out-of-distribution: {num_outside:,} images of {printable(name)} beside {num_inside:,} of "
            f"{printable(self.title)}, %"
        )
        columns = {"AUROC": "auroc", "AUPR in": "aupr_in", "AUPR out": "aupr_out", "FPR95": "fpr95"}
        columns |= {"F1": "f1", "precision": "precision", "recall": "recall"}
        width = 2 + max(len(ood.SCORES[score].title) for score in inside)
        print(f"    {'score':{width}s}" + "".join(f"{title:>11s}" for title in columns))
        for score in inside:
            values = [found.get(f"{metric}.{score}") for metric in columns.values()]
            cells = ("-" if value is None else f"{100 * value:.2f}" for value in values)
            print(f"    {ood.SCORES[score].title:{width}s}" + "".join(f"{cell:>11s}" for cell in cells))
