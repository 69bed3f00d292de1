"""Hamming search, decoders and packing beside FAISS, USearch, numpy and products of +-1 values.

    python -m llc.benchmark hamming [WORKLOAD ...] [--device=cuda] [--threads=2] [--repeats=7]
        [--seconds=0.05] [--beside=FOLDER] [--json=FILE] [--plot=FILE.png]

The defaults take some minutes on 2 cores. Codes are random. All ways of a workload run in turns, after a
first call of each that is not timed and whose results are compared. Every second turn runs them in reverse
order. A turn repeats a quick way's call for --seconds and takes the mean: with --seconds=0 it is a single
call, which finds in the caches what the way before left there. A call goes from packed codes (for products:
from +-1 values that are on the device already) to indices in memory. Slow ways get fewer queries, as the
table says. Ratios are of rates, by the medians and, because other programs may use the machine too, by the
minima.

FAISS and USearch are optional; the extra `benchmark` installs them. Both have several ways to search
exactly. Each way is tried on some queries before the turns, and the fastest takes part in them. The line
below a table shows what was tried. FAISS has no fast loop for codes of 3 bytes, so it may also search codes
that zeros fill up to 4 or 8; that is not timed. FAISS's usual way has a row of its own if another is faster.

--beside compares two versions of llc in one run. The other one runs in a process of its own, in turns with
this one, on the same codes; the results of both must be equal, bit by bit. Only one of the two processes
computes at a time.

The workload `first` starts a new process for each measurement and times `import llc`, the first call of a
function, and the second one. Each process is started once before, so the files are in memory.

On a GPU ours is also measured by each of its two methods, counting bits (popc) and products on tensor
cores; the first row is the one that it chooses by itself. The product is made as fast as we can, too: of
all queries, on tensor cores, in bf16 and in int8, in tiles of at most 2^28 scores, followed by topk, or by
argmax for one neighbour. All of them are exact. The product of float32 without tensor cores is the original
code's.
"""

import contextlib
import dataclasses
import functools
import json
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from llc import charts, plots
from llc import config as edge
from llc.benchmark import _hamming_peers as peers
from llc.benchmark import _machine
from llc.benchmark._hamming_beside import THIS_VERSION, OtherVersion, first_call
from llc.benchmark._hamming_ours import Call, Case, Clock, calls, random_codes
from llc.benchmark._hamming_peers import Way
from llc.errors import UserError
from llc.hamming import Decoder, PosteriorDecoder
from llc.options import option
from llc.text import counted

BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)


@dataclasses.dataclass
class Workload:
    """ways[0] is ours. work: pairs of codes per query. check: result -> what all ways must agree on.

    case: what two versions of llc are asked alike; None: they are not compared. ours: the calls of llc that
    the first ways make. limits: of pairs per second on this device, {name: rate, or None if torch does not
    know it}. tried: {library: {its way: seconds of a call in a trial}}. item: what the ways' amounts count.
    """

    title: str
    ways: list[Way]
    check: Callable
    work: int = 1
    limits: dict = dataclasses.field(default_factory=dict)
    case: Case | None = None
    ours: list[Call] = dataclasses.field(default_factory=list)
    tried: dict = dataclasses.field(default_factory=dict)
    item: str = "query"


def _workload_names():
    return (*WORKLOADS, "first")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    workloads: tuple[str, ...] = option(
        (), positional=True, choices=_workload_names, help="workloads to measure; none: all of them"
    )
    device: str = option(
        "cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"), help="where it runs"
    )
    repeats: int = option(7, minimum=1, help="timed turns of each way; the median is reported")
    seconds: float = option(0.05, minimum=0, help="duration of a turn of a quick way")
    threads: int = option(torch.get_num_threads(), minimum=1, help="threads of every way but numpy's")
    cpu_time: bool = option(
        False,
        formerly=("cpu-time",),
        help="measure CPU time, which with --threads=1 other programs do not disturb",
    )
    queries: int = option(10_000, minimum=1, help="queries of the searches in a large database")
    scale: float = option(
        1.0, minimum=1e-6, maximum=1, help="factor of the numbers of codes, for a quick look"
    )
    beside: str = option(
        "", help="folder with another version of llc, built, which is measured in turns with this one"
    )
    json: str = option("", help="write the measurements to this file too")
    plot: str = option("", help="draw the figures as bars, to a .png, .svg or .pdf")

    def clock(self):
        return Clock(self.seconds, self.cpu_time, self.device)


def main(argv):
    settings = edge.read_one(Settings, argv, description=__doc__)
    plots.check_name(settings.plot, "--plot")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: torch finds no CUDA device")
    torch.set_num_threads(settings.threads)
    names = settings.workloads or _workload_names()
    if settings.plot and set(names) == {"first"}:
        raise UserError("--plot: bars compare ways of the same work, and `first` has none; name others too")
    with OtherVersion(settings.beside) if settings.beside else contextlib.nullcontext() as other:
        machine = describe_machine(settings.device)
        machine["clock"] = "CPU time" if settings.cpu_time else "wall time"
        if other is not None:
            machine["beside"] = str(other.folder)
        print("\n".join(f"{name:10s}{value}" for name, value in machine.items()))
        results = [
            measure_first(settings, other)
            if name == "first"
            else measure(name, WORKLOADS[name](settings), settings, other)
            for name in names
        ]
    if settings.json:
        content = {"machine": machine, "options": dataclasses.asdict(settings), "workloads": results}
        Path(settings.json).write_text(json.dumps(content))
    if settings.plot:
        _machine.save_plot(chart(machine, results), settings.plot)


def chart(machine, workloads):
    """Bars of the time for each code, query or row, a panel for each workload but `first`."""
    panels = {
        f"{workload['name']}: {workload['title']}; ns for each {workload['item']}": {
            row["way"]: 1e9 * row["median"] / row["n"] for row in workload["ways"]
        }
        for workload in workloads
        if workload["name"] != "first"
    }
    return charts.horizontal_bars(
        panels,
        "nanoseconds, less is better",
        heading=f"{machine.get('gpu', machine['cpu'])}, {counted(machine['threads'], 'thread')}",
        highlighted={way for panel in panels.values() for way in panel if way.startswith("llc")},
        digits=1,
    )


def describe_machine(device):
    """What the figures depend on."""
    fields = _machine.cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    relevant = ("popcnt", "avx2", "avx512bw", "avx512_bitalg", "avx512_vpopcntdq", "asimd")
    machine = {
        "cpu": _machine.cpu_name(),
        "flags": " ".join(flag for flag in relevant if flag in flags),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **peers.versions(),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def measure(name, workload, options, other=None):
    """Runs the ways in turns and prints their table -> what goes into the JSON file."""
    ways = workload.ways
    expected = workload.check(ways[0].call())
    for way in ways[1:]:
        found = workload.check(way.call())
        if not np.array_equal(found, expected[: len(found)]):
            raise AssertionError(f"{name}: {way.name} and {ways[0].name} disagree")
    if other is not None and workload.case is not None:
        ways = _with_other_version(name, workload, options, other)
    clock = options.clock()
    seconds = [[] for _ in ways]
    for turn in range(options.repeats):
        order = list(zip(ways, seconds))
        for way, times in order if turn % 2 == 0 else reversed(order):
            times.append(way.seconds() if way.seconds else clock.seconds_a_call(way.call))
    print(
        f"\n{name}: {workload.title}\n  {'':42s}{'n':>11s}{'median ms':>12s}{'min - max':>20s}{'G/s':>9s}"
        f"{'ours is':>10s}{'by minima':>11s}"
    )
    rates = {
        way.name: [way.amount * workload.work / f(times) for f in (statistics.median, min)]
        for way, times in zip(ways, seconds)
    }
    rows = []
    for way, times in zip(ways, seconds):
        (rate, best_rate), (ours, best_of_ours) = rates[way.name], rates[(way.like or ways[0]).name]
        row = {
            "way": way.name,
            "n": way.amount,
            "seconds": times,
            "median": statistics.median(times),
            "ours_is": ours / rate,
            "ours_is_by_minima": best_of_ours / best_rate,
        }
        rows.append(row)
        extremes = f"{1e3 * min(times):.3f} - {1e3 * max(times):.3f}"
        line = f"  {way.name:42s}{way.amount:11,d}{1e3 * row['median']:12.3f}{extremes:>20s}{rate / 1e9:9.3f}"
        if way is not ways[0]:
            line += f"{row['ours_is']:9.{_digits(way)}f}x{row['ours_is_by_minima']:10.{_digits(way)}f}x"
        print(line)
    for limit, rate in workload.limits.items():
        text = "not known: torch does not say the device's clocks or bus width"
        if rate:
            text = f"{'':43s}{rate / 1e9:9.3f}   ours reaches {rates[ways[0].name][0] / rate:.2f} of it"
        print(f"  {limit:42s}{text}")
    for library, tried in workload.tried.items():
        times = ", ".join(f"{way} {1e3 * time:.2f}" for way, time in sorted(tried.items(), key=_second))
        text = f"{library}'s ways in the trial, lowest ms of {peers.TRIAL_ROUNDS} calls: {times}"
        print(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    "))
    for library in ("faiss", "usearch"):
        if getattr(peers, library) is None and workload.work > 1:
            print(f"  {library} is not installed")
    return {
        "name": name,
        "title": workload.title,
        "item": workload.item,
        "work": workload.work,
        "limits": workload.limits,
        "tried": workload.tried,
        "ways": rows,
    }


def _digits(way):
    """Two versions of llc may differ by a few percent, and other ways do not need that many digits."""
    return 2 if way.like else 1


def _second(pair):
    return pair[1]


def _with_other_version(name, workload, options, other):
    """The ways, and after each of ours the same by the other version, whose results must be equal."""
    digests = other.prepare(workload.case, options.clock(), options.threads)
    ours = {call.name: call for call in workload.ours}
    ways = []
    for way in workload.ways:
        ways.append(way)
        if way.name in ours:
            if digests[way.name] != ours[way.name].digest():
                raise AssertionError(f"{name}: {way.name} gives other results than the version beside it")
            seconds = functools.partial(other.seconds_a_call, way.name)
            ways.append(Way(f"{way.name}, other version", way.amount, way.call, seconds, like=way))
    return ways


# ----------------------------------------------------------------------------------- calls in a new process

FIRST = {
    "llc search": Case("search", 64, 100, 1000),
    "llc Decoder, scan": Case("decode", 20, 100, 1000),
    "llc building a table": Case("build", 20, 1, 1000),
    "llc pack_bits": Case("pack", 64, 100),
}


def measure_first(options, other=None):
    """Times first calls in new processes and prints their table -> what goes into the JSON file."""
    clock = dataclasses.replace(options.clock(), seconds=0)
    folders = {"": THIS_VERSION} | ({", other version": other.folder} if other is not None else {})
    starts = [(name, suffix) for name in FIRST for suffix in folders]
    measured = {start: [] for start in starts}
    for turn in range(-1, options.repeats):  # the first turn only brings files into memory
        for name, suffix in starts if turn % 2 == 0 else reversed(starts):
            seconds = first_call(folders[suffix], FIRST[name], clock, options.threads)
            if turn >= 0:
                measured[name, suffix].append(seconds)
    title = "the first call in a new process: at most 100 codes, and 1,000 classes or codes to search"
    print(
        f"\nfirst: {title}\n  {'':42s}{'import ms':>10s}{'second call':>13s}{'first call':>12s}"
        f"{'min - max':>20s}{'ours is':>10s}{'by minima':>11s}"
    )
    rows = []
    for name, suffix in starts:
        imports, firsts, seconds = (list(times) for times in zip(*measured[name, suffix]))
        ours = [first for _, first, _ in measured[name, ""]]
        row = {
            "way": name + suffix,
            "n": FIRST[name].n,
            "seconds": firsts,
            "median": statistics.median(firsts),
            "ours_is": statistics.median(firsts) / statistics.median(ours),
            "ours_is_by_minima": min(firsts) / min(ours),
            "imports": imports,
            "second_calls": seconds,
        }
        rows.append(row)
        extremes = f"{1e3 * min(firsts):.2f} - {1e3 * max(firsts):.2f}"
        line = (
            f"  {row['way']:42s}{1e3 * statistics.median(imports):10.0f}"
            f"{1e3 * statistics.median(seconds):13.3f}{1e3 * row['median']:12.2f}{extremes:>20s}"
        )
        print(line + (f"{row['ours_is']:9.2f}x{row['ours_is_by_minima']:10.2f}x" if suffix else ""))
    return {"name": "first", "title": title, "work": 1, "limits": {}, "ways": rows}


# ------------------------------------------------------------------------------------------------ workloads


def decode(options, num_bits=20, num_classes=1000):
    """The MHD of ImageNet's validation images."""
    case = Case("decode", num_bits, int(50_000 * options.scale), num_classes)
    title = f"nearest of {num_classes:,} classes, {num_bits} bits"
    return dataclasses.replace(_search_workload(title, case, options, case.n), item="code")


def nearest(options, num_bits, k, num_queries=None):
    """Top-k in as many codes as ImageNet has training images."""
    case = Case("search", num_bits, *_many(options, num_queries or options.queries, k), k)
    title = f"top-{k} of {case.m:,} codes, {num_bits} bits"
    return _search_workload(title, case, options, min(case.n, peers.SLOW_QUERIES))


def within(options, num_bits, radius):
    """All codes within a radius, in as many as ImageNet has training images."""
    case = Case("range_search", num_bits, *_many(options, options.queries, 1), radius)
    workload = _ours(f"within {radius} of {num_bits} bits in {case.m:,} codes", case, options, _sets_found)
    if peers.faiss is not None and options.device == "cpu":
        workload.ways.append(peers.faiss_range_search(case.queries, case.database, radius))
    return workload


def all_pairs(options, num_bits):
    """A matrix of distances."""
    case = Case("pairwise", num_bits, *(max(20, int(n * options.scale)) for n in (1000, 20_000)))
    title = f"all distances to {case.m:,} codes, {num_bits} bits"
    workload = _ours(title, case, options, lambda distances: _on_cpu(distances))
    if options.device == "cpu":
        if peers.faiss is not None:
            workload.ways.append(peers.faiss_pairwise(case.queries, case.database))
        if hasattr(np, "bitwise_count"):
            workload.ways.append(peers.numpy_pairwise(case.queries, case.database))
    workload.ways.append(peers.product_pairwise(case.queries, case.database, num_bits, options.device))
    return workload


def build_table(options, num_bits):
    case = Case("build", num_bits, 1, 1000)
    title = f"a table of 2^{num_bits} codes from 1,000 class codes"
    workload = _ours(title, case, options, lambda decoder: None, amount=1 << num_bits, work=1)
    return dataclasses.replace(workload, item="code of the table")


def pack(options, num_bits=20):
    case = Case("pack", num_bits, max(1, int(50_000 * options.scale)))
    amount = case.values.size
    workload = _ours(
        f"{num_bits} float32 values a code, with the sign", case, options, _on_cpu, amount=amount, work=1
    )
    workload.ways.append(Way("numpy.packbits(z > 0)", amount, lambda: np.packbits(case.values > 0, axis=-1)))
    return dataclasses.replace(workload, item="value")


def posterior(options, num_bits, num_classes=1000):
    """The posterior decoder beside MHD, whose answers are others."""
    train, labels, class_codes = _noisy_codes(options, num_bits, num_classes)
    decoder = PosteriorDecoder.fit(train, labels, num_bits, num_classes, class_codes=class_codes)
    n = int(50_000 * options.scale)
    queries = torch.from_numpy(random_codes(n, num_bits, 0)).to(options.device)
    nearest = Decoder(torch.from_numpy(class_codes).to(options.device))
    ways = [
        Way("llc posterior", n, lambda: decoder.classes(queries)),
        Way("llc MHD", n, lambda: nearest.mhd(queries)),
        Way("llc posterior, 5 and probabilities", n, lambda: decoder.decode(queries, 5)),
        Way("llc MHD, 5", n, lambda: nearest.mhd(queries, 5)),
    ]
    title = f"most probable of {num_classes:,} classes, {num_bits} bits, beside the nearest"
    return Workload(title, ways, lambda result: [], item="code")


def fit_posterior(options, num_bits):
    """What an evaluation waits for: the fit to as many codes as ImageNet has, and the table of the fit."""
    num_classes = max(10, int(1000 * options.scale))
    train, labels, class_codes = _noisy_codes(options, num_bits, num_classes)

    def fit():
        return PosteriorDecoder.fit(train, labels, num_bits, num_classes, class_codes=class_codes)

    fitted = fit()
    ways = [
        Way("llc fit", len(train), fit),
        Way("llc table", len(train), lambda: PosteriorDecoder(fitted.arrays).classes(train[:1])),
    ]
    title = f"fit to {len(train):,} codes of {num_bits} bits, {num_classes:,} classes"
    return Workload(title, ways, lambda _: [], item="code")


def _noisy_codes(options, num_bits, num_classes):
    """As many codes as ImageNet has training images: class codes, with a fifth of the bits wrong."""
    class_codes = random_codes(num_classes, num_bits, 1)
    rng = np.random.default_rng(2)
    labels = np.arange(max(num_classes, int(1_281_167 * options.scale))) % num_classes
    wrong = [
        np.packbits(rng.random((len(part), num_bits)) < 0.2, axis=1) for part in np.array_split(labels, 16)
    ]
    return class_codes[labels] ^ np.concatenate(wrong), labels, class_codes


WORKLOADS = {
    "decode": decode,
    "posterior_20": functools.partial(posterior, num_bits=20),
    "posterior_64": functools.partial(posterior, num_bits=64),
    "fit_20": functools.partial(fit_posterior, num_bits=20),
    "table20": functools.partial(build_table, num_bits=20),
    "table24": functools.partial(build_table, num_bits=24),
    "pack": pack,
    "top100_20": functools.partial(nearest, num_bits=20, k=100),
    "top1_64": functools.partial(nearest, num_bits=64, k=1),
    "top100_64": functools.partial(nearest, num_bits=64, k=100),
    "top1_256": functools.partial(nearest, num_bits=256, k=1),
    "top100_256": functools.partial(nearest, num_bits=256, k=100),
    "one_64": functools.partial(nearest, num_bits=64, k=1, num_queries=1),
    "range_64": functools.partial(within, num_bits=64, radius=16),  # about 50 codes are so near
    "pairwise": functools.partial(all_pairs, num_bits=64),
}


def _many(options, num_queries, k):
    """(n, m): queries, and codes of a large database."""
    return max(1, int(num_queries * options.scale)), max(k, int(1_281_167 * options.scale))


def _ours(title, case, options, check, amount=None, work=None):
    """A workload with llc's ways."""
    ours = calls(case, options.device)
    ways = [Way(call.name, amount or case.n, call.run) for call in ours]
    return Workload(title, ways, check, work or case.m, case=case, ours=ours)


def _search_workload(title, case, options, slow):
    """A workload with all ways to find neighbours; `slow` queries are for the slow ones."""
    workload = _ours(title, case, options, _distances_of(case.queries, case.database))
    ours = workload.ways[0]
    workload.ways += _methods(ours.name, ours.amount, ours.call, options.device)
    workload.limits = _limits(options.device, case.queries, case.database)
    queries, few, database, k = case.queries, case.queries[:slow], case.database, case.k
    if options.device == "cpu":
        if peers.faiss is not None:
            ways, workload.tried["faiss"] = peers.faiss_search(queries, database, k, options.cpu_time)
            workload.ways += ways
        if peers.usearch is not None:
            ways, workload.tried["usearch"] = peers.usearch_search(few, database, k, options.cpu_time)
            workload.ways += ways
        if hasattr(np, "bitwise_count") and k == 1:
            workload.ways.append(peers.numpy_search(few, database))
    elif peers.faiss is not None:
        workload.ways += peers.faiss_search_on_gpu(queries, database, k)
    workload.ways += peers.product_search(few, database, case.num_bits, k, options.device)
    if options.device == "cuda":
        workload.ways += peers.tensor_core_ways(queries, database, case.num_bits, k, options.device)
    return workload


def _on_cpu(array):
    return np.asarray(torch.as_tensor(array).cpu())


def _distances_of(queries, database):
    """Ways may break ties differently, so what they must agree on are the distances of what they found."""

    def check(result):
        indices = _on_cpu(result[-1] if isinstance(result, tuple) else result)
        return np.stack(
            [BITS_OF_BYTE[queries[: len(indices)] ^ database[column]].sum(1) for column in indices.T], axis=1
        )

    return check


def _sets_found(result):
    """Ways may find the codes in another order -> of each query how many, and the sums of both results."""
    lims, distances, indices = (_on_cpu(array).astype(np.int64) for array in result)
    totals = (np.concatenate([[0], np.cumsum(values)])[lims] for values in (distances, indices))
    return np.stack([np.diff(ends) for ends in (lims, *totals)], axis=1)


def _limits(device, queries, database):
    """{name: pairs per second} that bound a GPU at its highest clocks; {} for a CPU.

    One popc for each 32 bits of a code, 16 per clock and multiprocessor (CUDA's programming guide, compute
    capability 5 to 9); and reading every code from memory once. Search may exceed the first, because
    carry-save adders count several words by fewer popc and tensor cores need none.
    """
    if device == "cpu":
        return {}
    gpu, words = torch.cuda.get_device_properties(), -(-queries.shape[1] // 4)
    names = ("clock_rate", "memory_clock_rate", "memory_bus_width")  # kHz, kHz, bits; not in every torch
    clock, memory_clock, bus = (getattr(gpu, name, 0) for name in names)
    bytes_a_pair = (queries.size + database.size) / (len(queries) * len(database))
    return {
        "limit of one popc a word": 16e3 * gpu.multi_processor_count * clock / words or None,
        "limit of memory bandwidth": 2e3 * memory_clock * bus / 8 / bytes_a_pair or None,
    }


def _methods(name, amount, call, device):
    """On a GPU: ours by each of the two methods of llc.hamming.cuda."""
    if device == "cpu":
        return []
    return [
        Way(f"{name}, {title}", amount, functools.partial(_by_method, method, call))
        for method, title in (("popc", "popc"), ("dot", "tensor cores"))
    ]


def _by_method(method, call):
    from llc.hamming import cuda  # imported here, because it imports Triton

    before, cuda.METHOD = cuda.METHOD, method
    try:
        return call()
    finally:
        cuda.METHOD = before


if __name__ == "__main__":
    edge.run(main)
