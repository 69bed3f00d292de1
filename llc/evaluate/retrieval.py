"""Retrieval measured: the queries, the database, and what is printed of them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from llc.data.batches import Images
from llc.data.sources import printable
from llc.errors import UserError
from llc.evaluate.options import Retrieval
from llc.evaluate.origin import Origin
from llc.evaluate.subject import CodeSet, Subject, are_equal, notes_of
from llc.evaluation.retrieval import Ranking, counts_size, rank
from llc.files import atomic_write

DATABASE, QUERIES = "retrieval.database", "retrieval.queries"
CONVENTIONS = ("hashnet", "deephash", "orthohash", "strict")
SHUFFLE = 0  # seed of the order of equal distances; most files lie class after class
_NUM_POINTS = 1000  # of the curve over k that is written, besides the first ones


class Sets:
    """The database and the queries, which are what is evaluated unless options.queries names others."""

    def __init__(self, subject: Subject, options: Retrieval, evaluated: Images | CodeSet, key: str) -> None:
        self.subject, self.options = subject, options
        self.query_key = QUERIES if options.queries else key
        self.found_database = subject.find(options.database, DATABASE)
        self.found_queries = subject.find(options.queries, QUERIES) if options.queries else evaluated
        self._check()

    def _check(self) -> None:
        """Raises UserError where images have no labels, or no query has a class of the database."""
        found = {self.query_key: self.found_queries, DATABASE: self.found_database}
        for key, one in found.items():
            if isinstance(one, CodeSet):
                one.check_labelled(key)
            elif one.num_unlabelled:
                raise UserError(
                    f"{key}: {one.num_unlabelled:,} of {one.num_samples:,} images have no label, and each "
                    "needs one: give one folder of images per class, a table with --label_column=NAME, or a "
                    "beton"
                )
        names = [set(one.class_names) for one in found.values()]
        if all(names) and not set.intersection(*names):
            raise UserError(
                f"{DATABASE} = {printable(self.options.database)}: it has no class of {self.query_key}, so "
                "nothing can be found; the classes of both are matched by their names"
            )
        queries = self.found_queries
        num_queries = len(queries) if isinstance(queries, CodeSet) else queries.num_samples
        size, free = counts_size(num_queries, self.subject.num_bits), _free_memory()
        if free and size > free:
            raise UserError(
                f"{self.query_key}: ranking the database for {num_queries:,} queries of "
                f"{self.subject.num_bits:,} bits takes {size / 1e9:,.1f} GB of memory, 8 bytes for each "
                f"query and distance, and {free / 1e9:,.1f} GB are free: give fewer queries with "
                f"--{QUERIES}, or shorter codes"
            )

    def collect(self, evaluated: CodeSet) -> None:
        """Makes the codes; every process takes part. evaluated: the codes of what is evaluated.

        Raises UserError.
        """
        options = self.options
        queries = self._codes(self.found_queries, options.queries) if options.queries else evaluated
        self.same = self._are_the_same_images()
        database = queries if self.same else self._codes(self.found_database, options.database)
        names = tuple(dict.fromkeys((*database.class_names, *queries.class_names)))
        self.queries = queries.relabelled(names, self.query_key)
        self.database = database.relabelled(names, DATABASE)
        if not np.isin(self.queries.labels, self.database.labels).any():
            raise UserError(
                f"{DATABASE} = {printable(database.title)}: no image of it has the class of any query of "
                f"{printable(queries.title)}, so nothing can be found"
            )
        self.same = self.same or are_equal(self.queries, self.database)
        self.notes = []
        if bool(queries.class_names) != bool(database.class_names):
            unnamed = queries if database.class_names else database
            self.notes.append(f"{unnamed.title} has no class names: labels are compared as numbers")
        if not self.same and _in_some_order(self.queries, self.database):
            self.notes.append("the database holds the queries' codes in another order: each finds itself")

    def _are_the_same_images(self) -> bool:
        """Whether the images are known to be the same before they are encoded."""
        queries, database = self.found_queries, self.found_database
        if not isinstance(queries, Images) or not isinstance(database, Images):
            return False
        of_betons = queries.shards is not None and database.shards is not None
        return of_betons and queries.identity == database.identity

    def _codes(self, found: Images | CodeSet, title: str) -> CodeSet:
        return found if isinstance(found, CodeSet) else self.subject.encode(found, title)

    def measure(self) -> dict[str, float]:
        """{retrieval.NAME: value}; writes the curves where options.csv names a file. Raises UserError."""
        options, queries, database = self.options, self.queries, self.database
        try:
            ranking = rank(
                queries.codes,
                queries.labels,
                database.codes,
                database.labels,
                options.k,
                leave_one_out=self.same,
                neighbours=options.neighbours,
                shuffle=SHUFFLE,
            )
            values = ranking.metrics()
        except ValueError as error:  # such as a single image, left out of its own answer
            raise UserError(f"{DATABASE} = {printable(database.title)}: {error}") from error
        if options.csv:
            _write_curves(options.csv, ranking, database.num_bits, self.subject.origin())
        self.percent = {name: 100 * value for name, value in values.items()}
        return {f"retrieval.{name}": value for name, value in values.items()}

    def report(self) -> None:
        """Prints the metrics."""
        percent, k, neighbours = self.percent, self.options.k, self.options.neighbours
        for note in self.notes:
            print(f"  note: {printable(note)}")
        for found in (self.found_queries if self.options.queries else None, self.found_database):
            for note in notes_of(found):
                print(f"  {printable(note)}")
        of = f"{len(self.database):,} images of {printable(self.database.title)}"
        with_what = (
            "each left out of its own answer"
            if self.same
            else f"searched with {len(self.queries):,} of {printable(self.queries.title)}"
        )
        print(f"  retrieval: {of}, {with_what}")
        print(
            f"    mAP {percent['map']:.2f} %   mAP@{k} {percent[f'map@{k}']:.2f} %   "
            f"kNN ({neighbours}) {percent[f'knn@{neighbours}']:.2f} %   within 2 bits: precision "
            f"{percent['precision_within_2']:.2f} %, {percent['empty_within_2']:.2f} % of queries find none"
        )
        for metric in ("precision", "recall"):
            sizes = [size for size in (1, 10, 100, 1000, k) if f"{metric}@{size}" in percent]
            of_size = (f"@{size} {percent[f'{metric}@{size}']:.2f} %" for size in dict.fromkeys(sizes))
            print(f"    {metric:9s} " + "   ".join(of_size))
        others = (
            f"{name} {percent[f'map.{name}']:.2f} / {percent[f'map@{k}.{name}']:.2f}" for name in CONVENTIONS
        )
        print(f"    mAP / mAP@{k} as others define it: " + "   ".join(others))
        if percent["without_relevant"]:
            print(
                f"    {percent['without_relevant']:.2f} % of the queries have no image of their class in the "
                "database; mAP and recall leave them out"
            )


def _free_memory() -> int:
    """Bytes of memory that a program can still get, 0 if that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def _in_some_order(one: CodeSet, other: CodeSet) -> bool:
    """Whether two sets hold the same codes with the same labels, in any order."""
    if len(one) != len(other):
        return False
    rows = (np.column_stack([part.labels, part.codes.astype(np.int64)]) for part in (one, other))
    return np.array_equal(*(part[np.lexsort(part.T)] for part in rows))


def _write_curves(path: str, ranking: Ranking, num_bits: int, origin: Origin) -> None:
    """Writes precision and recall of the first k, and of those within a distance, as CSV.

    Every line also names the model, so that files of several models can be joined to one table.
    """
    end = ranking.num_items
    sizes = np.unique(
        np.concatenate([np.arange(1, min(end, _NUM_POINTS) + 1), np.geomspace(1, end, _NUM_POINTS)])
    )
    ks = np.unique(sizes.round().astype(int)).tolist()
    rows = [("k", k, *pair) for k, *pair in zip(ks, *(part.tolist() for part in ranking.curve(ks)))]
    within = enumerate(zip(*(part.tolist() for part in ranking.by_radius())))
    rows += [("distance", distance, *pair) for distance, pair in within if distance <= num_bits]

    def write(file: Any) -> None:
        writer = csv.writer(file)
        writer.writerow(("at", "value", "precision", "recall", "model", "network"))
        writer.writerows((*row, origin.model, origin.network) for row in rows)

    atomic_write(path, write, "w")
