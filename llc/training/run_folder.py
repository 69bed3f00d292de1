"""The run folder: writes and locks the configuration, logs, results, codebook and checkpoints of a run."""

import contextlib
import csv
import fcntl
import json
import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from llc.codebook import save_codebook
from llc.errors import UserError
from llc.evaluation import fitting
from llc.files import atomic_write
from llc.torch_files import check_torch_file, read_torch_file, write_torch_file

# What shows that a run has trained, and what was made from it. In checkpoints/ it is all but initial.pth.
_WORK = (
    "results.csv",
    "log.jsonl",
    "log.csv",
    "codebook.npy",
    fitting.FILE_NAME,
    "events.out.tfevents.*",
    "original",
    "*.safetensors",
)
_MAX_LISTED = 12  # files that an error names

_LOCK_SECONDS = 60.0  # a run that was stopped may still be writing when the next process resumes it


class RunFolder:
    """One run's files. Only the main process uses it; from `create` or `open_to_continue` on it holds a lock.

    checkpoints/: initial.pth; STAGE.pth, the network at the end of each stage; model_best.pth, of the best
    epoch of the last stage; last.pth, everything needed to resume, and before it previous_1.pth,
    previous_2.pth, ...
    """

    def __init__(self, path):
        self.path = Path(path)
        self._lock = None
        self._log_failed = False

    @classmethod
    def create(cls, folder, name):
        """A new run folder; or reuses the folder of a start that failed before training began."""
        path = Path(folder) / (name or time.strftime("%Y-%m-%d_%H-%M-%S"))
        run = cls(path)
        try:
            (path / "checkpoints").mkdir(parents=True)
        except FileExistsError:
            run.check_unused()
        except OSError as error:
            raise UserError(f"run folder {path}: cannot be made: {error.strerror}") from error
        run._take_lock()
        if run._has_begun():  # by the process that held the lock
            raise UserError(
                f"run folder {path}: another process has begun a run there; choose another logging.name"
            )
        return run

    def check_unused(self):
        """Raises UserError if a run has begun in this folder."""
        if not self._has_begun():
            return
        advice = f"continue it with --resume={self.path}"
        if self._work() and not self._to_continue_from():
            advice = f"remove this folder first{self._what_is_kept()}"
        raise UserError(
            f"run folder {self.path} exists already{self._listing()}; choose another logging.name, or "
            f"{advice}"
        ) from None

    def check_resumable(self):
        """Raises UserError if the folder holds work of a run, but no checkpoint to resume from.

        To begin anew here would overwrite that work. A run that was killed before its first checkpoint has
        left none, and begins anew.
        """
        work = self._work()
        if work and not self._to_continue_from():
            raise UserError(
                f"run folder {self.path} has no checkpoint to resume from (checkpoints/last.pth or "
                f"previous_1.pth), but it holds work of a run{self._listing()}. Nothing was changed. Put the "
                "checkpoint back to continue this run; or start a new one: choose another logging.name, or "
                f"remove this folder first{self._what_is_kept()}"
            )

    def _work(self):
        """What the folder holds of a run's work: sorted paths below it, as texts. Raises UserError."""
        try:
            # not by glob, which takes a folder that cannot be listed for an empty one
            names = [name for name in os.listdir(self.path) if any(fnmatch(name, kind) for kind in _WORK)]
            if (self.path / "checkpoints").exists():
                names += [f"checkpoints/{name}" for name in os.listdir(self.path / "checkpoints")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be listed: {error.strerror}") from error
        return sorted(n for n in names if n != "checkpoints/initial.pth" and "/." not in n)

    def _listing(self):
        names = self._work()
        more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        return f" ({', '.join(names[:_MAX_LISTED])}{more})" if names else ""

    def _what_is_kept(self):
        """Advice to those who remove a folder, if it holds networks that can be used."""
        usable = any((self.path / "checkpoints").glob("*.pth"))
        return f" (the networks in it can be used: llc.load({str(self.path)!r}))" if usable else ""

    def _has_begun(self):
        """Whether the folder holds anything but what `create` makes."""
        with contextlib.suppress(OSError):
            return {*os.listdir(self.path)} - {".lock"} != {"checkpoints"} or bool(
                os.listdir(self.path / "checkpoints")
            )
        return True

    @classmethod
    def open(cls, path):
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise UserError(f"{path}: not a run folder (it has no config.yaml)")
        return run

    @classmethod
    def open_to_continue(cls, path):
        """An existing run folder. Waits while another process writes to it, then raises UserError."""
        run = cls(path)
        if not (run.path / "checkpoints").is_dir():
            run.check_resumable()
            raise UserError(f"{path}: not a run folder (it has no checkpoints/); choose another logging.name")
        run._take_lock()
        for stray in [*run.path.glob(".*.tmp"), *(run.path / "checkpoints").glob(".*.tmp")]:
            stray.unlink()  # left by a process that was killed while it wrote
        return run

    def _take_lock(self):
        """Locks the folder. The kernel releases the lock, however its holder ends. Raises UserError."""
        try:
            self._lock = open(self.path / ".lock", "w")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        for attempt in range(int(10 * _LOCK_SECONDS)):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt == 10:
                    _warn(
                        f"{self.path}: another process still writes to this run folder; waiting for up to "
                        f"{_LOCK_SECONDS:.0f} s"
                    )
                time.sleep(0.1)
            except OSError:
                return  # a file system without locks
        raise UserError(
            f"{self.path}: another process is at work in this run folder; stop it first, or choose another "
            "logging.name"
        )

    def checkpoint(self, name):
        return self.path / "checkpoints" / f"{name}.pth"

    def save(self, name, state):
        atomic_write(self.checkpoint(name), lambda file: write_torch_file(state, file))

    def load(self, name):
        return read_torch_file(self.checkpoint(name))

    def save_last(self, state, keep):
        """Writes a new last.pth and reads it back; only then the one before becomes previous_1.pth.

        keep: how many checkpoints stay, last.pth among them. A kill between the two renames leaves
        previous_1.pth without a last.pth, which `load_last` understands.
        """

        def rotate():
            names = self._to_continue_from()
            for name in names[keep - 1 :]:
                self.checkpoint(name).unlink()
            for number, name in reversed(list(enumerate(names[: keep - 1], start=1))):
                os.replace(self.checkpoint(name), self.checkpoint(f"previous_{number}"))

        atomic_write(
            self.checkpoint("last"),
            lambda file: write_torch_file(state, file),
            check=check_torch_file,
            rotate=rotate,
        )

    def load_last(self):
        """The newest state that can be read, or None if the run has not done any work yet.

        A damaged file is named in a warning and renamed to NAME.damaged. Raises UserError if there are
        checkpoints and none can be read, or none where a run has left other work (check_resumable).
        """
        self.check_resumable()
        names = self._to_continue_from()
        problems = []
        for name in names:
            try:
                state = self.load(name)
            except UserError as error:
                problems.append(str(error))
                continue
            for damaged, problem in zip(names, problems):
                path = self.checkpoint(damaged)
                os.replace(path, path.with_suffix(".damaged"))
                _warn(
                    f"{problem}; it is now called {path.stem}.damaged, and {self.checkpoint(name)} is taken"
                )
            return state
        if problems:
            raise UserError("no checkpoint of this run can be read:\n" + "\n".join(problems))
        return None

    def _to_continue_from(self):
        """Names of the checkpoints to resume from, the newest first."""
        numbered = sorted(
            int(path.stem.removeprefix("previous_"))
            for path in (self.path / "checkpoints").glob("previous_*.pth")
            if path.stem.removeprefix("previous_").isdecimal()
        )
        return [
            name
            for name in ("last", *(f"previous_{number}" for number in numbered))
            if self.checkpoint(name).exists()
        ]

    def save_codebook(self, codebook):
        save_codebook(self.path / "codebook.npy", codebook)

    def save_decoder(self, fitted):
        """Writes decoder.npz. fitted: a llc.evaluation.fitting.Fitted."""
        fitted.save(self.path / fitting.FILE_NAME)

    def save_class_names(self, class_names):
        """class_names.json: a list, in label order."""
        text = json.dumps(class_names, indent=1).encode("ascii")
        atomic_write(self.path / "class_names.json", lambda file: file.write(text))

    def save_non_finite(self, report):
        """checkpoints/non_finite.json; returns its path."""
        path = self.path / "checkpoints" / "non_finite.json"
        atomic_write(path, lambda file: file.write(json.dumps(report, indent=1).encode()))
        return path

    def log(self, lines):
        """Writes log.jsonl, a line per epoch.

        If that fails (a full disk), a single warning says so and nothing is raised, because the same lines
        are printed, and kept in last.pth.
        """
        try:
            self._write_log(lines)
            self._log_failed = False
        except (OSError, UserError) as error:
            if not self._log_failed:
                reason = getattr(error, "strerror", None) or error
                _warn(
                    f"{self.path}: log.jsonl cannot be written ({reason}); "
                    "the run continues, and its lines are written as soon as that is possible again"
                )
            self._log_failed = True

    def _write_log(self, lines):
        atomic_write(
            self.path / "log.jsonl",
            lambda file: file.writelines((json.dumps(line) + "\n").encode() for line in lines),
        )

    def save_results(self, rows):
        """Writes results.csv. A row: metric, final value, value in the best epoch, whether it is a headline.

        The best epoch was chosen on val, so its values are too optimistic.
        """

        def write(file):
            writer = csv.writer(file)
            writer.writerow(["metric", "final", "best_epoch", "headline"])
            writer.writerows(rows)

        atomic_write(self.path / "results.csv", write, mode="w")

    @property
    def has_results(self):
        return (self.path / "results.csv").exists()

    def close(self):
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()


def _warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)
