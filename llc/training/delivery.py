"""Gives the epochs of a run to its loggers, each in a thread of its own; where one fails, a warning says so.

A run never waits for a logger, except when it ends, for up to LAST_SECONDS.
"""

import contextlib
import copy
import json
import sys
import threading
import time

from llc.errors import UserError
from llc.files import atomic_write
from llc.loggers import LOGGERS, Run
from llc.options import did_you_mean

LAST_SECONDS = 45.0
MEMORY = "loggers.json"
_NOTHING = {"epochs": 0, "finished": False, "memory": {}}  # what a logger has at first


def check(names):
    """Raises UserError if a run could not log to one of these.

    Not where recipes are read, because a finished run is read without the plugin that it logged to.
    """
    for name in names:
        if name not in LOGGERS:
            raise UserError(
                f"logging.to = {','.join(names)}: there is no {name!r}{did_you_mean(name, LOGGERS)}; "
                f"it takes some of {', '.join(LOGGERS)}, separated by commas, and loggers of a --plugin"
            )
        LOGGERS[name].check()


def complete(folder, config, lines, results):
    """Gives the loggers of a finished run what they have not taken, if there is anything.

    lines: of log.jsonl; results: as of `Deliveries.finish`. A run without loggers.json is older than loggers,
    so that it is not known what they have.
    """
    kept = _read(folder / MEMORY)
    if kept and not all(kept.get(name, _NOTHING)["finished"] for name in config.logging.to):
        deliveries = Deliveries(folder, config)
        deliveries.send(lines)
        deliveries.finish(results)
        deliveries.close()


class Deliveries:
    """The loggers of a run, for the main process. folder: the run folder; config: a llc.recipe.Config.

    loggers.json, {logger: {epochs, finished, memory}}, says how many epochs each has written, and whether it
    has the final figures, so that a run that resumes gives everything to each logger once.
    """

    def __init__(self, folder, config):
        self._path, self._lock = folder / MEMORY, threading.Lock()
        self._kept = _read(self._path)
        self._couriers = []
        for name in dict.fromkeys(config.logging.to):
            kept = copy.deepcopy(self._kept.get(name, _NOTHING))
            run = Run(folder, folder.name, config.logging.project, config.as_dict(), kept["memory"])
            self._couriers.append(_Courier(LOGGERS[name], run, kept, self._keep))

    def _keep(self, name, entry):
        with self._lock:
            try:
                # through JSON, so that nobody changes it later
                kept = self._kept | {name: json.loads(json.dumps(entry))}
                text = json.dumps(kept, indent=1)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"what it put into run.memory is not JSON ({error}): keep plain values there"
                ) from error
            self._kept = kept
            atomic_write(self._path, lambda file: file.write(text.encode("ascii")))

    def send(self, lines):
        """Hands over the epochs, those of log.jsonl so far; a logger writes those that it has not written."""
        for courier in self._couriers:
            courier.submit(lines=lines)

    def finish(self, results):
        """Hands over the final figures, {STAGE/METRIC: value}."""
        for courier in self._couriers:
            courier.submit(results=results)

    def close(self):
        """Waits for the loggers, for up to LAST_SECONDS; says what they could not write. Never raises."""
        end = time.monotonic() + LAST_SECONDS
        for courier in self._couriers:
            courier.submit(ends=True)
        for courier in self._couriers:
            courier.join(max(0.0, end - time.monotonic()))
            courier.say_what_is_missing()


def _read(path):
    """What an earlier process left in loggers.json; {} if there is none, or if it is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(path.read_text("ascii"))
        return {
            name: {
                "epochs": int(entry["epochs"]),
                "finished": bool(entry["finished"]),
                "memory": dict(entry["memory"]),
            }
            for name, entry in kept.items()
        }
    return {}


class _Courier(threading.Thread):
    """The thread of one logger. kept: its entry of loggers.json; keep(name, entry): writes that file."""

    def __init__(self, kind, run, kept, keep):
        super().__init__(name=f"llc-logger-{kind.name}", daemon=True)
        self._kind, self._run, self._kept, self._keep = kind, run, kept, keep
        self._changed, self._news = threading.Condition(), {}
        self._logger, self._lines, self._failed = None, [], False
        self.start()

    def submit(self, **news):
        with self._changed:
            self._lines = news.get("lines", self._lines)
            self._news |= news
            self._changed.notify()

    def run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news)
                news, self._news = self._news, {}
            name = self._kind.name
            done = self._attempt(
                f"the run continues, log.jsonl has its numbers, and {name} is tried again after each epoch",
                self._write_epochs,
            )
            if done and "results" in news and not self._kept["finished"]:
                self._attempt(
                    f"{name} lacks the final figures, which results.csv has", self._finish, news["results"]
                )
            if "ends" in news:
                if self._logger is not None:
                    self._attempt(f"{name} may show the run as unfinished", self._logger.close)
                return

    def _logger_now(self):
        if self._logger is None:
            self._logger = self._kind(self._run)
            # what it remembers from its start, such as the id of its run
            self._keep(self._kind.name, self._kept)
        return self._logger

    def _write_epochs(self):
        lines = self._lines
        if self._kept["epochs"] > len(lines):  # the run returned to an older checkpoint
            self._kept |= {"epochs": len(lines), "finished": False}
            self._keep(self._kind.name, self._kept)
        while self._kept["epochs"] < len(lines):
            self._logger_now().write(lines[: self._kept["epochs"] + 1])
            self._kept |= {"epochs": self._kept["epochs"] + 1, "finished": False}
            self._keep(self._kind.name, self._kept)

    def _finish(self, results):
        self._logger_now().finish(results)
        self._kept["finished"] = True
        self._keep(self._kind.name, self._kept)

    def _attempt(self, consequence, function, *arguments):
        """Whether function(*arguments) succeeded. The first of several failures in a row is warned of."""
        try:
            function(*arguments)
        except Exception as error:
            if not self._failed:
                reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
                what = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
                _warn(f"logging.to={self._kind.name}: {what}; {consequence}")
            self._failed = True
            return False
        self._failed = False
        return True

    def say_what_is_missing(self):
        """Warns of epochs that the logger has not taken; what it raises from now on is not said any more."""
        missing = len(self._lines) - self._kept["epochs"]
        if missing > 0 or self.is_alive():
            _warn(
                f"logging.to={self._kind.name}: the process ends before {self._kind.name} has taken "
                + (f"{missing} of {len(self._lines)} epochs" if missing > 0 else "its last numbers")
                + f"; log.jsonl has all of them, and --resume={self._run.folder} gives them to it"
            )
        self._failed = True


def _warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)
