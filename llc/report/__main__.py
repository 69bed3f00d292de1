"""One HTML page that shows what a run learnt, or several runs beside each other.

    python -m llc.report RUN                                      (writes RUN/report.html)
    python -m llc.report RUN RUN_B ... [--out=report.html]        (compares them)
    python -m llc.report RUN [--data=val.beton] [--ood_scores=FILE.npz] [--retrieval_csv=FILE.csv]

RUN is a run folder, also of a training that still runs. The page holds the accuracies and what they mean, the
curves of the training, the recipe and what differs from its base, how well the class codes use their bits,
the tree of classes, what each bit sees, the nearest images of some queries, what is confused, and how the run
was made. It is one file without scripts that opens from disk, reads well on a phone, and prints.

Images are encoded by the network of the run's last finished stage. They are those of its data.val_dataset, or
of --data; --data=none: no images. If a run's own val images cannot be read, the page says so and holds the
rest. --ood_scores and --retrieval_csv are files of `python -m llc.evaluate RUN` with --ood.scores and
--retrieval.csv. With several runs they name one file for each, separated by commas, nothing for a run without
one: --retrieval_csv=a.csv,,c.csv.

--out: a name that ends in .html. A file that exists is overwritten only if it is such a page. The default is
report.html, in the run folder of a single run and else in the current folder. docs/how-to/report.md explains
the parts of the page.

It needs scipy, matplotlib and jinja2 (the extra llcodes[report]).
"""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from llc import config as edge
from llc import runs
from llc.data.sources import printable
from llc.errors import UserError
from llc.evaluation.decoders import DECODERS
from llc.files import atomic_write
from llc.options import option
from llc.packages import needed
from llc.report.contents import Report
from llc.report.measuring import AUTO, measure
from llc.report.page import MARK, PURPOSE, render
from llc.report.reading import (
    check_origin,
    origin_of_curves,
    origin_of_detections,
    read_curves,
    read_detections,
    read_run,
)

_NONE = "none"  # the value of --data without images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which runs, what is measured, and where the page is written."""

    runs: tuple[str, ...] = option(positional=True, help="a run folder, or several")
    out: str = option("", help="the page; empty: report.html in the run folder, or here for several runs")
    data: str = option(
        "", help="labelled images to measure all runs on, or none; empty: each run's own val set"
    )
    decode: str = option(
        AUTO,
        help="what decodes the images of the page; auto: posterior if it is fitted to other images, else mhd",
    )
    num_queries: int = option(12, minimum=0, help="images that are shown with their nearest others")
    num_neighbours: int = option(8, minimum=1, help="how many of these")
    num_images: int = option(6, minimum=1, help="images with the highest and lowest z of each bit")
    num_confusions: int = option(20, minimum=0, help="rows of the table of confused classes")
    seed: int = option(0, minimum=0, help="of the choice of queries")
    num_workers: int = option(-1, minimum=-1, help="threads that read images; -1: one per core")
    ood_scores: tuple[str, ...] = option((), help="for each run, the .npz of llc.evaluate --ood.scores")
    retrieval_csv: tuple[str, ...] = option((), help="for each run, the file of llc.evaluate --retrieval.csv")


def main(argv: list[str]) -> None:
    options = edge.read_one(Options, argv, description=__doc__)
    _check_runs(options.runs)
    if options.decode not in (AUTO, *DECODERS):
        known = ", ".join((AUTO, *DECODERS))
        raise UserError(f"--decode={printable(options.decode)}: there is no such decoder; it takes {known}")
    out = _out(options)
    scores = _for_each("ood_scores", options.ood_scores, options.runs)
    curves = _for_each("retrieval_csv", options.retrieval_csv, options.runs)
    for module in ("scipy", "matplotlib", "jinja2"):  # before long work
        needed(module, PURPOSE, extra="report")
    reports = [_read(*of_run) for of_run in zip(options.runs, scores, curves)]
    reports = [_with_images(report, options) for report in reports]
    print("drawing the figures", flush=True)
    page = render(reports, shlex.join(["python", "-m", "llc.report", *argv])).encode("utf-8")
    check_name(out, "--out")  # images took a while
    atomic_write(out, lambda file: file.write(page))
    print(f"{printable(out)}: {len(page) / 1e6:.1f} MB; open it in a browser")


def _check_runs(paths: Sequence[str]) -> None:
    """Raises UserError unless each is a run folder, and another one."""
    seen = set()
    for path in paths:
        runs.read_config(path)
        if os.path.realpath(path) in seen:
            raise UserError(f"{printable(path)}: this run is named twice; name each once")
        seen.add(os.path.realpath(path))


def _out(options: Options) -> Path:
    """Where the page is written. Raises UserError if it cannot be, or should not."""
    name = options.out or (Path(options.runs[0], "report.html") if len(options.runs) == 1 else "report.html")
    out = Path(os.path.realpath(name))
    check_name(out, "--out")
    for path in options.runs:
        if runs.is_own_file(path, out):
            raise UserError(
                f"--out={printable(name)}: this is a file of the run {printable(path)}; name another"
            )
    return out


def check_name(out: Path, flag: str) -> None:
    """Raises UserError if no page can be written at `out`, or a file there that is no page of a report."""
    given = f"{flag}={printable(out)}"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{given}: expected a name that ends in .html")
    if out.is_dir():
        raise UserError(f"{given}: it is a folder; name a file in it")
    if os.path.lexists(out) and not _is_report(out):
        raise UserError(
            f"{given}: it exists and is not a report of llc, so it is not overwritten; name another file"
        )
    if not out.parent.is_dir():
        raise UserError(f"{given}: there is no folder {printable(out.parent)}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{given}: the folder {printable(out.parent)} cannot be written")


def _is_report(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return MARK.encode() in file.read(4096)
    except OSError:
        return False


def _for_each(flag: str, files: Sequence[str], paths: Sequence[str]) -> Sequence[str]:
    """A file for each run, "" where there is none. Raises UserError for another number of them."""
    if files and len(files) != len(paths):
        counts = (
            f"{len(some)} {what}{'s' * (len(some) > 1)}" for some, what in ((files, "file"), (paths, "run"))
        )
        raise UserError(
            f"--{flag}={printable(','.join(files))}: {' for '.join(counts)}; name one for each run, "
            "separated by commas, and nothing for a run without one"
        )
    return files or [""] * len(paths)


def _read(path: str, scores: str, curves: str) -> Report:
    """The report of a run folder without images. Raises UserError, also for files that are of another run."""
    print(f"{printable(path)}: reading the run", flush=True)
    report = Report(
        read_run(path),
        detections=read_detections(scores) if scores else (),
        curves=read_curves(curves) if curves else (),
    )
    notes = []
    if scores:
        notes.append(
            check_origin(f"--ood_scores={printable(scores)}", origin_of_detections(scores), report.run)
        )
    if curves:
        notes.append(
            check_origin(f"--retrieval_csv={printable(curves)}", origin_of_curves(curves), report.run)
        )
    return dataclasses.replace(report, notes=[note for note in notes if note])


def _with_images(report: Report, options: Options) -> Report:
    """The report with what is measured on images, or with why it is not. Raises UserError."""
    if options.data == _NONE:
        return dataclasses.replace(report, why_not_measured="They were not asked for (--data=none).")
    where = options.data or report.run.config.data.val_dataset
    print(
        f"{printable(report.run.path)}: encoding and comparing the images of {printable(where)}", flush=True
    )
    try:
        measured = measure(
            report.run,
            data=options.data,
            decoder=options.decode,
            num_queries=options.num_queries,
            num_neighbours=options.num_neighbours,
            num_images=options.num_images,
            num_confusions=options.num_confusions,
            seed=options.seed,
            num_workers=options.num_workers,
        )
        return dataclasses.replace(report, measured=measured)
    except UserError as error:
        if options.data or options.decode != AUTO:  # what was asked for is never left out
            raise
        print(f"{printable(report.run.path)}: images are not measured: {printable(str(error))}", flush=True)
        return dataclasses.replace(report, why_not_measured=str(error))


if __name__ == "__main__":
    edge.run(main)
