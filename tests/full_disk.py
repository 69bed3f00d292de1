"""Fills the disk at every point of a training, one after the other, makes room, continues, and compares the ends.

    sudo python -m tests.full_disk [--points 40]        about 2 s a point; needs root, to mount a little tmpfs

A run on a disk of so many bytes must end with an error that says so, or, where only its logs did not fit, go on; its last checkpoint
can be continued from; the end is that of a run which always had room.
"""

import argparse
import collections
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import train_llc
from llc.errors import UserError
from tests.chaos import differences, end_of, make_betons
from tests.training.test_survival import SHORT

ROOM = 1 << 26  # bytes, enough for a run


@contextlib.contextmanager
def small_disk(folder, size):
    """Yields a function that changes the disk's size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield lambda new_size: subprocess.run(["mount", "-o", f"remount,size={new_size}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def train(betons, run):
    """(the UserError or None, what was printed)"""
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=40)
    words = parser.parse_args()
    os.environ["LOCAL_WORLD_SIZE"] = str(len(os.sched_getaffinity(0)))  # one thread: the network is tiny
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="llc-full-disk-") as folder:
        folder = Path(folder)
        betons = make_betons(folder)
        with small_disk(folder / "disk", ROOM):
            assert train(betons, folder / "disk" / "run")[0] is None
            reference = end_of(folder / "disk" / "run")
            needed = sum(path.stat().st_blocks * 512 for path in (folder / "disk").rglob("*"))
        for point in range(words.points):
            size = 1 << 14 if point == 0 else 4096 * int(1.4 * needed * point / words.points / 4096)
            with small_disk(folder / "disk", size) as resize:
                error, text = train(betons, folder / "disk" / "run")
                full = "No space left on device"
                outcome = (
                    "an error names the full disk"
                    if error and full in str(error)
                    else "the run finishes, a warning says that logs are missing"
                    if not error and full in text
                    else "the run finishes"
                    if not error
                    else f"OTHER: {error}"
                )
                resize(ROOM)
                error, text = train(betons, folder / "disk" / "run")
                found = [str(error)] if error else differences(end_of(folder / "disk" / "run"), reference)
            outcomes[
                f"{outcome}; continued with room: {'equal' if not found else 'DIFFERS ' + ', '.join(found[:3])}"
            ] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:4d}  {outcome}")
    print(
        f"{words.points} sizes of disk, up to 1.4 times what the finished run folder takes ({needed:,} bytes)"
    )
    sys.exit(any("OTHER" in outcome or "DIFFERS" in outcome for outcome in outcomes))


if __name__ == "__main__":
    main()
