"""Search in an index, single queries and batches, beside the scan and FAISS's indexes for packed codes.

    python -m llc.benchmark index [--size=1281167] [--num_bits=64] [--kinds=clustered,random]
        [--codes=codes.npz,...] [--k=10] [--queries=1000] [--singles=300] [--peers=flat,hnsw,multihash]
        [--threads=2] [--rounds=5] [--json=FILE] [--plot=FILE.png]

It measures llc.Index: an array of queries in, arrays of distances and ids out. Three kinds of codes:

real       codes of trained models, from files of `python -m llc.encode`, spread to --size: a random one of
           them with each bit flipped with a probability of --noise. Several files, with the codes of the same
           images by several models, are put side by side to make longer codes.
clustered  the same from --centres random codes instead: codes as trained models make them.
random     every bit by chance: the worst case, in which tables are of little use.

A query of the first two kinds is made as a code is, but with half the noise. `one` is a call with one query,
of which --singles follow each other in a round (slow ways get a tenth of them); `batch` is a call with all
--queries (FAISS Flat gets a tenth). After a first call of each, whose results are compared, all ways run in
turns, every second turn in reverse order. The table has the median over the rounds of a round's median query
(99 %: of the query that 99 of 100 are faster than) and of the batch's time for each query. Recall: the
fraction of the k results that are as near as those of the scan, whatever their ids. HNSW has M = 32 and
efSearch = 64; MultiHash has 4 hash maps, and looks at all buckets up to one flip away: with real codes, whose
buckets are large, it takes minutes. Memory is what the arrays take: codes, ranks and tables; for FAISS, its
index serialised.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import llc
from llc import charts, plots
from llc import config as edge
from llc.benchmark import _machine
from llc.benchmark._hamming_peers import faiss
from llc.code_files import read_codes
from llc.errors import UserError
from llc.native import hamming, index
from llc.options import option
from llc.text import counted

OURS, SCAN = "llc index", "llc scan"
HNSW_M, HNSW_EF, HASH_MAPS, HASH_FLIPS = 32, 64, 4, 1
CHUNK = 1 << 18  # codes that are made at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    size: int = option(1_281_167, minimum=1, help="codes that are searched")
    num_bits: int = option(64, minimum=1, help="length of the codes; with --codes theirs")
    kinds: tuple[str, ...] = option(
        ("clustered", "random"), choices=("clustered", "random"), help="kinds of codes, besides --codes"
    )
    codes: tuple[str, ...] = option((), help="files of codes, which are spread to --size codes")
    centres: int = option(1000, minimum=1, help="random codes around which the clustered ones lie")
    noise: float = option(0.08, minimum=0, maximum=0.5, help="probability of a flipped bit")
    k: int = option(10, minimum=1, help="neighbours")
    queries: int = option(1000, minimum=1, help="queries of a batch")
    singles: int = option(300, minimum=1, help="single queries of a round; slow ways get a tenth")
    peers: tuple[str, ...] = option(
        ("flat", "hnsw", "multihash"), choices=("flat", "hnsw", "multihash"), help="FAISS's indexes"
    )
    threads: int = option(torch.get_num_threads(), minimum=1, help="threads of every way")
    rounds: int = option(5, minimum=1, help="measurements of each way")
    json: str = option("", help="write the figures to this file")
    plot: str = option("", help="draw the figures as bars, to a .png, .svg or .pdf")


@dataclasses.dataclass
class Way:
    """search(queries) -> distances [n, k]. divisor: how many fewer queries it gets, because it is slow."""

    name: str
    search: object
    build_seconds: float = 0.0
    bytes: int = 0
    divisor: int = 1


def main(argv):
    settings = edge.read_one(Settings, argv, description=__doc__)
    plots.check_name(settings.plot, "--plot")
    if settings.k > settings.size:
        raise UserError(f"--k={settings.k} is more than --size={settings.size}")
    torch.set_num_threads(settings.threads)
    report = {
        **_machine.describe("llc", "numpy", "faiss-cpu"),
        "settings": dataclasses.asdict(settings),
        "figures": [],
    }
    print(_machine.first_line(report), flush=True)
    for kind in (*(["real"] if settings.codes else []), *settings.kinds):
        figure = measure(kind, settings)
        report["figures"].append(figure)
        print(describe(figure, settings), flush=True)
    if settings.json:
        Path(settings.json).write_text(json.dumps(report, indent=1) + "\n")
    if settings.plot:
        _machine.save_plot(chart(report), settings.plot)


def measure(kind, settings):
    """-> {"kind", "num_bits", "tables", "ways": [a dict for each way]}."""
    codes, queries, num_bits = _codes_of(kind, settings)
    sizes = index.table_sizes(len(codes), num_bits)
    ways = [_ours(codes, num_bits, settings), _scan(codes, settings)]
    if faiss is not None and num_bits % 8 == 0:
        faiss.omp_set_num_threads(settings.threads)
        ways += [_peer(peer, codes, num_bits, settings) for peer in settings.peers]
    expected = ways[1].search(queries)
    if not np.array_equal(ways[0].search(queries), expected):
        raise AssertionError(f"{kind}: the index and the scan disagree")
    rows = [
        {
            "way": way.name,
            "build_seconds": way.build_seconds,
            "bytes": way.bytes,
            "recall": recall(way.search(queries[: len(queries) // way.divisor or 1]), expected),
            "one": [],
            "one_99": [],
            "batch": [],
        }
        for way in ways
    ]
    for turn in _machine.rounds(settings.rounds, kind):
        for way, row in list(zip(ways, rows))[:: -1 if turn % 2 else 1]:
            seconds = _single_seconds(way, queries, settings)
            row["one"].append(float(np.median(seconds)))
            row["one_99"].append(float(np.percentile(seconds, 99)))
            batch = queries[: len(queries) // way.divisor or 1]
            start = time.perf_counter()
            way.search(batch)
            row["batch"].append((time.perf_counter() - start) / len(batch))
    return {"kind": kind, "num_bits": num_bits, "size": len(codes), "tables": sizes, "ways": rows}


def _single_seconds(way, queries, settings):
    seconds = []
    for i in range(max(1, settings.singles // (1 if way.name == OURS else 10))):
        query = queries[i % len(queries)][None]
        start = time.perf_counter()
        way.search(query)
        seconds.append(time.perf_counter() - start)
    return seconds


def recall(distances, expected):
    """The fraction of results that are no further away than the last of the right ones."""
    expected = expected[: len(distances)]
    return float(((distances >= 0) & (distances <= expected[:, -1:])).mean())


# ----------------------------------------------------------------------------------------------------- codes


def _codes_of(kind, settings):
    """(codes, queries, num_bits) of a kind."""
    rng = np.random.default_rng(0)
    num_bits = settings.num_bits
    if kind == "random":
        return (*(_noisy(rng, None, n, num_bits, 0.5) for n in (settings.size, settings.queries)), num_bits)
    if kind == "real":
        centres = np.concatenate([_bits(path) for path in settings.codes], axis=1)
        num_bits = centres.shape[1]
    else:
        centres = rng.integers(0, 2, (settings.centres, num_bits), dtype=np.uint8)
    centres = np.packbits(centres, axis=1)
    codes = _noisy(rng, centres, settings.size, num_bits, settings.noise)
    return codes, _noisy(rng, centres, settings.queries, num_bits, settings.noise / 2), num_bits


def _bits(path):
    arrays = read_codes(path)
    return np.unpackbits(arrays["codes"], axis=1)[:, : int(arrays["num_bits"])]


def _noisy(rng, centres, n, num_bits, noise):
    """n codes: a random centre each, or 0, with bits flipped."""
    codes = np.empty((n, (num_bits + 7) // 8), np.uint8)
    for first in range(0, n, CHUNK):
        part = codes[first : first + CHUNK]
        values = np.frombuffer(rng.bytes(2 * len(part) * num_bits), np.uint16)
        part[:] = np.packbits(values.reshape(len(part), num_bits) < round(noise * 65536), axis=1)
        if centres is not None:
            part ^= centres[rng.integers(0, len(centres), len(part))]
    return codes


# ------------------------------------------------------------------------------------------------------ ways


def _ours(codes, num_bits, settings):
    start = time.perf_counter()
    index = llc.Index(num_bits)
    index.add(codes)
    size = index.stats()["bytes"]  # this builds the tables
    seconds = time.perf_counter() - start

    def search(queries):
        return index.search(queries, settings.k, num_threads=settings.threads)[0]

    return Way(OURS, search, seconds, size)


def _scan(codes, settings):
    def search(queries):
        return hamming.search(queries, codes, settings.k, settings.threads)[0]

    return Way(SCAN, search, 0.0, codes.nbytes)


def _peer(peer, codes, num_bits, settings):
    if peer == "flat":
        made = faiss.IndexBinaryFlat(num_bits)
    elif peer == "hnsw":
        made = faiss.IndexBinaryHNSW(num_bits, HNSW_M)
        made.hnsw.efSearch = HNSW_EF
    else:
        made = faiss.IndexBinaryMultiHash(num_bits, HASH_MAPS, min(num_bits // HASH_MAPS, 32))
        made.nflip = HASH_FLIPS
    start = time.perf_counter()
    made.add(codes)
    seconds = time.perf_counter() - start
    size = codes.nbytes if peer == "flat" else faiss.serialize_index_binary(made).nbytes
    name = {"flat": "FAISS Flat", "hnsw": "FAISS HNSW", "multihash": "FAISS MultiHash"}[peer]
    return Way(
        name, lambda queries: made.search(queries, settings.k)[0], seconds, size, 10 if peer == "flat" else 1
    )


# ----------------------------------------------------------------------------------------------------- table


def chart(report):
    """Bars of the time of a query, alone and in a batch, two panels for each kind of codes."""
    panels = {}
    for figure in report["figures"]:
        for key, title in (("one", "a single query"), ("batch", "a query of a batch")):
            panels[f"{figure['kind']}, {figure['size']:,} codes of {figure['num_bits']} bits, {title}"] = {
                row["way"]: 1e6 * statistics.median(row[key]) for row in figure["ways"]
            }
    return charts.horizontal_bars(
        panels,
        "microseconds for a query, less is better",
        heading=_machine.first_line(report),
        highlighted=(OURS,),
        digits=1,
    )


def describe(figure, settings):
    """The table for people."""
    flipped = f"each bit flipped with p = {settings.noise}"
    source = {
        "real": f"{' + '.join(Path(path).name for path in settings.codes)}, {flipped}",
        "clustered": f"{settings.centres:,} random codes, {flipped}",
        "random": "every bit by chance",
    }[figure["kind"]]
    tables = ", ".join(map(str, figure["tables"])) or "none"
    lines = [
        "",
        f"{figure['kind']}: {figure['size']:,} codes of {figure['num_bits']} bits: {source}",
        f"k = {settings.k}, {settings.queries:,} queries in a batch, "
        f"{counted(settings.threads, 'thread')}, {settings.rounds} rounds; "
        f"bits of our tables: {tables}",
        "",
        f"{'':18s}{'one, us (range of rounds)':>30s}{'99 %':>10s}{'ours is':>9s}{'batch, us a query':>26s}"
        f"{'ours is':>9s}{'recall':>8s}{'build s':>9s}{'MB':>9s}",
    ]
    ours = figure["ways"][0]
    for row in figure["ways"]:
        one, batch = (
            f"{1e6 * statistics.median(row[key]):.1f} ({1e6 * min(row[key]):.1f} - {1e6 * max(row[key]):.1f})"
            for key in ("one", "batch")
        )
        ratios = [
            "" if row is ours else f"{statistics.median(row[key]) / statistics.median(ours[key]):.1f}x"
            for key in ("one", "batch")
        ]
        lines.append(
            f"{row['way']:18s}{one:>30s}{1e6 * statistics.median(row['one_99']):10.1f}{ratios[0]:>9s}"
            f"{batch:>26s}{ratios[1]:>9s}{row['recall']:8.3f}{row['build_seconds']:9.2f}"
            f"{row['bytes'] / 1e6:9.1f}"
        )
    return "\n".join(lines)
