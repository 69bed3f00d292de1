"""Out-of-distribution detection measured: images of no known class beside those evaluated."""

import re
from pathlib import Path

from llc.code_files import write_arrays
from llc.data.batches import Images
from llc.data.sources import printable
from llc.data.sources.patterns import split_outside_braces
from llc.errors import UserError
from llc.evaluate.options import Detection
from llc.evaluate.origin import DESCRIPTION
from llc.evaluate.subject import CodeSet, Subject, are_equal, notes_of
from llc.evaluation import ood
from llc.packages import needed

KEY = "ood.dataset"
EVALUATED = "evaluated"  # in the file of scores


def named(dataset: str) -> dict[str, str]:
    """{name: path} of the value of --ood.dataset: PATH, whose name is its file's, or NAME=PATH, ...

    Raises UserError where a name comes twice, and where there is nothing between two commas.
    """
    found: dict[str, str] = {}
    for text in split_outside_braces(dataset) if dataset else ():
        if not text.strip():
            raise UserError(f"--{KEY}={printable(dataset)}: there is nothing before or after a comma")
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


def _are_the_same(one: Images | CodeSet, other: Images | CodeSet) -> bool:
    if isinstance(one, Images) and isinstance(other, Images):
        return one.identity == other.identity
    return isinstance(one, CodeSet) and isinstance(other, CodeSet) and are_equal(one, other)


class Others:
    """Images of no known class, or their codes, whose scores are compared with those of what is evaluated."""

    def __init__(self, subject: Subject, options: Detection, evaluated: Images | CodeSet, key: str) -> None:
        self.subject, self.options = subject, options
        needed("sklearn.metrics", ood.PURPOSE, extra="evaluation")  # before long work
        self.paths = named(options.dataset)
        self.found = {name: subject.find(path, KEY) for name, path in self.paths.items()}
        for name, found in {key: evaluated, **self.found}.items():
            where = f"{KEY} = {printable(self.paths[name])}" if name in self.paths else key
            if (size := found.num_samples if isinstance(found, Images) else len(found)) < 2:
                raise UserError(f"{where}: it has {size} image; one tunes thresholds, and one measures them")
            if name in self.paths and _are_the_same(found, evaluated):
                raise UserError(f"{where}: these are the images of {key}")

    def collect(self, evaluated: CodeSet) -> None:
        """Computes the scores; every process takes part. evaluated: the codes of what is evaluated.

        Raises UserError.
        """
        self.title = evaluated.title
        self.inside = evaluated.scores or self.subject.scores(evaluated, evaluated.title)
        self.outside = {
            name: self.subject.scores(found, self.paths[name]) for name, found in self.found.items()
        }

    def measure(self) -> dict[str, float]:
        """{ood.NAME.MEASURE: value}; writes the file options.scores, if any. Raises UserError."""
        self.measures: dict[str, dict[str, float]] = {}
        if self.options.scores:
            sets = {EVALUATED: self.inside, **self.outside}
            arrays = {
                f"{name}.{score}": own for name, scores in sets.items() for score, own in scores.items()
            }
            write_arrays(self.options.scores, {DESCRIPTION: self.subject.origin().description(), **arrays})
        for name, outside in self.outside.items():
            inside = {score: own for score, own in self.inside.items() if score in outside}
            try:
                self.measures[name] = ood.evaluate(
                    inside, outside, num_tuning=self.options.num_tuning, seed=self.options.seed
                )
            except ValueError as error:
                raise UserError(f"{KEY} = {printable(self.paths[name])}: {error}") from error
        return {
            f"ood.{name}.{measure}": value
            for name, own in self.measures.items()
            for measure, value in own.items()
        }

    def report(self) -> None:
        """Prints a table for each set."""
        for name, found in self.found.items():
            for note in notes_of(found):
                print(f"  {printable(note)}")
            self._print(name, self.measures[name])

    def _print(self, name: str, measures: dict[str, float]) -> None:
        scores = [score for score in self.inside if score in self.outside[name]]
        num_inside, num_outside = (len(own[scores[0]]) for own in (self.inside, self.outside[name]))
        print(
            f"  out-of-distribution: {num_outside:,} images of {printable(name)} beside {num_inside:,} of "
            f"{printable(self.title)}, %"
        )
        columns = {"AUROC": "auroc", "AUPR in": "aupr_in", "AUPR out": "aupr_out", "FPR95": "fpr95"}
        columns |= {"F1": "f1", "precision": "precision", "recall": "recall"}
        width = 2 + max(len(ood.SCORES[score].title) for score in scores)
        print(f"    {'score':{width}s}" + "".join(f"{title:>11s}" for title in columns))
        for score in scores:
            values = (100 * measures[f"{measure}.{score}"] for measure in columns.values())
            print(f"    {ood.SCORES[score].title:{width}s}" + "".join(f"{value:11.2f}" for value in values))
