"""What a logger is, and the table of all of them. docs/how-to/extending.md has an example."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

LOGGERS: dict[str, type["Logger"]] = {}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a logger knows of a run.

    folder: the run folder; name: its name; project: logging.project; config: the recipe, {section: {key:
    value}}. memory: a dict of plain values (as in JSON) that belongs to the logger. It is kept in the run
    folder, and a run that resumes gives it to its logger again.
    """

    folder: Path
    name: str
    project: str
    config: dict[str, dict[str, Any]]
    memory: dict[str, Any]


class Logger:
    """One place to which the numbers of a run go.

    It lives in the main process and is made and called in a thread of its own, so it may wait for a network.
    Whatever it raises becomes a warning, and the training continues; what could not be written is given to it
    again after the next epoch.
    """

    name: ClassVar[str]  # as in logging.to
    files: ClassVar[tuple[str, ...]] = ()  # what it writes into the run folder
    sends: ClassVar[bool] = False  # whether the numbers leave the run folder

    def __init__(self, run: Run) -> None:
        self.run = run

    @classmethod
    def check(cls) -> None:
        """Raises UserError if a run could not log here, as where a package is missing.

        It is called before the run begins, on the main process.
        """

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Takes an epoch: the last of `lines`, which are those of log.jsonl up to it.

        It is called once for each epoch, in order, after the checkpoint that holds the epoch. An epoch that
        was written comes again only if the run had to return to an older checkpoint, because the newest was
        damaged, or if the process was killed within this call.
        """
        raise NotImplementedError

    def finish(self, results: dict[str, float]) -> None:
        """Takes the final figures, {STAGE/METRIC: value} as in results.csv; `close` follows."""

    def close(self) -> None:
        """The process ends. Without `finish` before it the run was stopped, and may be resumed."""


def register(kind: type[Logger]) -> type[Logger]:
    """A class decorator that adds a Logger to the table.

    Raises ValueError if its name is missing, taken, or no identifier.
    """
    name = getattr(kind, "name", None)
    if name is None:
        raise ValueError(f"logger {kind.__name__}: the class has no name")
    if name in LOGGERS:
        raise ValueError(f"logger {name!r} is registered already, as {LOGGERS[name].__name__}")
    if not name.isidentifier():
        raise ValueError(f"logger {name!r}: expected letters, digits and _, as in logging.to=NAME")
    LOGGERS[name] = kind
    return kind


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The values of a line of log.jsonl that are numbers; true and false are 1 and 0."""
    return {key: value + 0 for key, value in line.items() if isinstance(value, (int, float))}
