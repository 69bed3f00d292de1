"""What a check finds, and how checks are run so that none can end the command.

Nothing here, and nothing that `python -m llc.doctor` imports at its start, imports torch or the native
library: they may be what is broken.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

OK, NOTE, WARNING, ERROR = STATUSES = ("ok", "note", "warning", "error")
_SECONDS = 180  # that a process with checks in it may take


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: the check's name, a word of STATUSES, what was found, what to do ("" if nothing)."""

    check: str
    status: str
    found: str
    advice: str = ""

    def __str__(self):
        advice = f". {self.advice}" if self.advice else ""
        return f"{self.status:8} {self.check:18} {self.found}{advice}"


def ok(found):
    return OK, found, ""


def guarded(name: str, check: Callable[[], tuple[str, str, str]]) -> Finding:
    """The Finding of check() -> (status, found, advice); where it fails, a warning that says why."""
    try:
        return Finding(name, *check())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, which some packages raise when they are imported
        lines = str(error).strip().splitlines() or [""]
        why = f"{type(error).__name__}: {lines[0][:300]}"
        return Finding(name, WARNING, f"could not be determined: {why}")


def apart(module: str, names: list[str]) -> Iterator[Finding]:
    """The Findings of some checks, made in another process, which may crash or hang.

    module: has `CHECKS`, {name: function}. A check that ends its process is an error, and the others are made
    in another one.
    """
    left = list(names)
    while left:
        died, lines = _run(module, left)
        for line in lines:
            try:
                finding = Finding(**json.loads(line))
            except (ValueError, TypeError):
                continue  # what a package prints when it is imported
            if finding.check in left:
                left.remove(finding.check)
                yield finding
        if left:
            yield Finding(
                left.pop(0),
                ERROR,
                f"could not be determined: the check {died}",
                "Install that package again; if it stays so, report it with what this command prints",
            )


def _run(module, names):
    """(how a process ended, the lines that it printed)."""
    code = f"from llc.doctor import finding; finding.main({module!r}, {names!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as late:
        return f"did not end within {_SECONDS} s", (late.stdout or b"").decode(errors="replace").splitlines()
    status = done.returncode
    died = f"was ended by signal {-status}" if status < 0 else f"ended its process with status {status}"
    return died, done.stdout.decode(errors="replace").splitlines()


def main(module: str, names: list[str]) -> None:
    """Prints a line of JSON for each check: what the process that `apart` starts does."""
    checks = __import__(module, fromlist=["CHECKS"]).CHECKS
    for name in names:
        print(json.dumps(dataclasses.asdict(guarded(name, checks[name]))), flush=True)
