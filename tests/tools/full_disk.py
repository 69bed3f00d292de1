"""Fills the disk at many points of a training, makes room, resumes, and compares how the runs end.

    sudo python -m tests.tools.full_disk [--points=40]

A point takes about 2 s. Needs root, to mount a small tmpfs. When the disk is full, a run must end with an
error that says so, or continue if only its logs did not fit. Its last checkpoint must be usable, and the
resumed run must end with the bits of a run that always had room.
"""

import collections
import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import train_llc
from llc import config
from llc.errors import UserError
from llc.options import option
from tests.tools.chaos import differences, end_of, make_betons
from tests.training.test_survival import SHORT

ROOM = 1 << 26  # bytes, enough for a run


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a tmpfs of `size` bytes at `folder`; yields a function that changes its size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield lambda new_size: subprocess.run(["mount", "-o", f"remount,size={new_size}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def train(betons, run):
    """Starts or resumes a run. Returns (the UserError that ended it or None, what was printed)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            train_llc.main(
                [
                    *SHORT,
                    f"--data.train_dataset={betons[0]}",
                    f"--data.val_dataset={betons[1]}",
                    f"--logging.folder={run.parent}",
                    f"--logging.name={run.name}",
                    "--resume=auto",
                ]
            )
        except UserError as error:
            return error, out.getvalue()
    return None, out.getvalue()


def describe(error, text):
    """What happened to a run on a small disk, in words. error, text: as `train` returns them."""
    full = "No space left on device"
    if error:
        return "an error names the full disk" if full in str(error) else f"OTHER: {error}"
    return "the run finishes" + (", a warning says that logs are missing" if full in text else "")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try."""

    points: int = option(40, minimum=1, help="number of sizes of the disk")


def main(argv):
    options = config.read_one(Options, argv, description=__doc__)
    os.environ["LOCAL_WORLD_SIZE"] = str(
        len(os.sched_getaffinity(0))
    )  # so that each training uses one thread
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="llc-full-disk-") as folder:
        folder = Path(folder)
        betons = make_betons(folder)
        with small_disk(folder / "disk", ROOM):
            assert train(betons, folder / "disk" / "run")[0] is None
            reference = end_of(folder / "disk" / "run")
            needed = sum(path.stat().st_blocks * 512 for path in (folder / "disk").rglob("*"))
        for point in range(options.points):
            size = 1 << 14 if point == 0 else 4096 * int(1.4 * needed * point / options.points / 4096)
            with small_disk(folder / "disk", size) as resize:
                error, text = train(betons, folder / "disk" / "run")
                outcome = describe(error, text)
                resize(ROOM)
                error, text = train(betons, folder / "disk" / "run")
                wrong = [str(error)] if error else differences(end_of(folder / "disk" / "run"), reference)
            resumed = f"DIFFERS {', '.join(wrong[:3])}" if wrong else "equal"
            outcomes[f"{outcome}; resumed with room: {resumed}"] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:4d}  {outcome}")
    print(f"{options.points} sizes of disk, up to 1.4 times a finished run folder ({needed:,} bytes)")
    sys.exit(any("OTHER" in outcome or "DIFFERS" in outcome for outcome in outcomes))


if __name__ == "__main__":
    config.run(main)
