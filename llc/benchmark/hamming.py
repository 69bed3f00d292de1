"""Hamming search, decoders and packing beside FAISS, numpy and products of +-1 values, on a CPU or on CUDA.

    python -m llc.benchmark hamming [WORKLOAD ...] [--device=cuda] [--threads=2] [--repeats=7]
        [--seconds=0.05] [--json=FILE]

The defaults take some minutes on 2 cores. Codes are random. All ways of a workload run in turns, after a
first call of each that is not timed and whose results are compared. A turn repeats a quick way's call for
--seconds and takes the mean: with --seconds=0 it is a single call, which finds in the caches what the way
before left there. A call goes from packed codes (for products: from +-1 values that are on the device
already) to indices in memory. Slow ways get fewer queries, as the table says. Ratios are of rates, by the
medians and, because other programs may use the machine too, by the minima. FAISS is optional: pip install
'llc[benchmark]'.

On a GPU ours is also measured by each of its two methods, counting bits (popc) and products on tensor
cores; the first row is the one that it chooses by itself. The product is made as fast as we can, too: of
all queries, on tensor cores, in bf16 and in int8, in tiles of at most 2^28 scores, followed by topk, or by
argmax for one neighbour. All of them are exact. The product of float32 without tensor cores is the original
code's.
"""

import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from llc import config as edge
from llc.benchmark import _machine
from llc.codes import pack_bits
from llc.errors import UserError
from llc.hamming import Decoder, search
from llc.options import option

try:
    import faiss
except ImportError:
    faiss = None

TILE = 1 << 22  # entries of the [n, m] matrix that numpy and the tiled product make at a time
# The same if the matrix is made whole, as the original code did, where it fits: 256 MB of float32.
WHOLE = 1 << 26
SLOW_QUERIES = 50  # of a large database, for ways that would take minutes
GPU_TILE = 1 << 28  # scores that a tiled product on a GPU makes at a time: 0.5 GB in bf16, 1 GB in int32
BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)


@dataclasses.dataclass
class Way:
    """One way to do a workload: `call` handles `amount` queries or values; indices are its (last) result."""

    name: str
    amount: int
    call: Callable


@dataclasses.dataclass
class Workload:
    """ways[0] is ours. work: pairs of codes per query. check: result -> what all ways must agree on.

    limits: of pairs per second on this device, {name: rate, or None if torch does not know it}.
    """

    title: str
    ways: list
    check: Callable
    work: int = 1
    limits: dict = dataclasses.field(default_factory=dict)


def _workload_names():
    return tuple(WORKLOADS)


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
    json: str = option("", help="write the measurements to this file too")


def main(argv):
    settings = edge.read_one(Settings, argv, description=__doc__)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: torch finds no CUDA device")
    torch.set_num_threads(settings.threads)
    machine = describe_machine(settings.device)
    machine["clock"] = "CPU time" if settings.cpu_time else "wall time"
    print("\n".join(f"{name:10s}{value}" for name, value in machine.items()))
    names = settings.workloads or WORKLOADS
    results = [measure(name, WORKLOADS[name](settings), settings) for name in names]
    if settings.json:
        content = {"machine": machine, "options": dataclasses.asdict(settings), "workloads": results}
        Path(settings.json).write_text(json.dumps(content))


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
        "faiss": f"{faiss.__version__}, {faiss.get_compile_options().strip()}" if faiss else "not installed",
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def measure(name, workload, options):
    """Runs the ways in turns and prints their table -> what goes into the JSON file."""
    expected = workload.check(workload.ways[0].call())
    for way in workload.ways[1:]:
        found = workload.check(way.call())
        if not np.array_equal(found, expected[: len(found)]):
            raise AssertionError(f"{name}: {way.name} and {workload.ways[0].name} disagree")
    seconds = [[] for _ in workload.ways]
    for _ in range(options.repeats):
        for way, times in zip(workload.ways, seconds):
            times.append(_seconds_a_call(way.call, options))
    print(
        f"\n{name}: {workload.title}\n  {'':36s}{'n':>10s}{'median ms':>12s}{'min - max':>22s}{'G/s':>9s}"
        f"{'ours is':>10s}{'by minima':>11s}"
    )
    rates, best_rates, rows = [], [], []
    for way, times in zip(workload.ways, seconds):
        median = statistics.median(times)
        rates.append(way.amount * workload.work / median)
        best_rates.append(way.amount * workload.work / min(times))
        ratio, best_ratio = rates[0] / rates[-1], best_rates[0] / best_rates[-1]
        rows.append(
            {
                "way": way.name,
                "n": way.amount,
                "seconds": times,
                "median": median,
                "ours_is": ratio,
                "ours_is_by_minima": best_ratio,
            }
        )
        extremes = f"{1e3 * min(times):.3f} - {1e3 * max(times):.3f}"
        line = f"  {way.name:36s}{way.amount:10,d}{1e3 * median:12.3f}{extremes:>22s}{rates[-1] / 1e9:9.3f}"
        if way is not workload.ways[0]:
            line += f"{ratio:9.1f}x{best_ratio:10.1f}x"
        print(line)
    for limit, rate in workload.limits.items():
        text = "not known: torch does not say the device's clocks or bus width"
        if rate:
            text = f"{'':44s}{rate / 1e9:9.3f}   ours reaches {rates[0] / rate:.2f} of it"
        print(f"  {limit:36s}{text}")
    if faiss is None and workload.work > 1:
        print("  FAISS is not installed")
    return {
        "name": name,
        "title": workload.title,
        "work": workload.work,
        "limits": workload.limits,
        "ways": rows,
    }


def _seconds_a_call(call, options):
    clock = time.process_time if options.cpu_time else time.perf_counter

    def timed(number):
        start = clock()
        for _ in range(number):
            call()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / number

    once = timed(1)
    return once if once > options.seconds else timed(math.ceil(options.seconds / once))


# ------------------------------------------------------------------------------------------------ workloads


def decode(options, num_bits=20, num_classes=1000):
    """The MHD of ImageNet's validation images."""
    codes, class_codes = (
        _random_codes(int(50_000 * options.scale), num_bits, 0),
        _random_codes(num_classes, num_bits, 1),
    )
    on_device, classes_on_device = (torch.from_numpy(c).to(options.device) for c in (codes, class_codes))
    scan, table = Decoder(classes_on_device, table=False), Decoder(classes_on_device, table=True)
    ways = [
        Way("llc Decoder, scan", len(codes), lambda: scan.mhd(on_device)),
        Way("llc Decoder, table", len(codes), lambda: table.mhd(on_device)),
        *_methods("llc Decoder, scan", len(codes), lambda: scan.mhd(on_device), options.device),
        *_others(codes, class_codes, num_bits, 1, options.device, len(codes)),
    ]
    return Workload(
        f"nearest of {num_classes:,} classes, {num_bits} bits",
        ways,
        _distances_of(codes, class_codes),
        num_classes,
        _limits(options.device, codes, class_codes),
    )


def build_table(options, num_bits):
    class_codes = torch.from_numpy(_random_codes(1000, num_bits, 1)).to(options.device)
    return Workload(
        f"a table of 2^{num_bits} codes from 1,000 class codes",
        [Way("llc Decoder, building its table", 1 << num_bits, lambda: Decoder(class_codes, table=True))],
        lambda decoder: None,
    )


def nearest(options, num_bits, k, num_queries=None):
    """Top-k in as many codes as ImageNet has training images."""
    queries = _random_codes(max(1, int((num_queries or options.queries) * options.scale)), num_bits, 0)
    database = _random_codes(max(k, int(1_281_167 * options.scale)), num_bits, 1)
    on_device, database_on_device = (torch.from_numpy(c).to(options.device) for c in (queries, database))
    ours = functools.partial(search, on_device, database_on_device, k)
    ways = [
        Way("llc search", len(queries), ours),
        *_methods("llc search", len(queries), ours, options.device),
        *_others(queries, database, num_bits, k, options.device, min(len(queries), SLOW_QUERIES)),
    ]
    return Workload(
        f"top-{k} of {len(database):,} codes, {num_bits} bits",
        ways,
        _distances_of(queries, database),
        len(database),
        _limits(options.device, queries, database),
    )


def pack(options, num_bits=20):
    z = torch.from_numpy(
        np.random.default_rng(0)
        .normal(size=(max(1, int(50_000 * options.scale)), num_bits))
        .astype(np.float32)
    )
    on_device, as_array = z.to(options.device), z.numpy()
    ways = [
        Way("llc pack_bits", z.numel(), lambda: pack_bits(on_device)),
        Way("numpy.packbits(z > 0)", z.numel(), lambda: np.packbits(as_array > 0, axis=-1)),
    ]
    return Workload(
        f"{num_bits} float32 values a code, with the sign",
        ways,
        lambda codes: np.asarray(torch.as_tensor(codes).cpu()),
    )


WORKLOADS = {
    "decode": decode,
    "table20": functools.partial(build_table, num_bits=20),
    "table24": functools.partial(build_table, num_bits=24),
    "pack": pack,
    "top1_64": functools.partial(nearest, num_bits=64, k=1),
    "top100_64": functools.partial(nearest, num_bits=64, k=100),
    "top1_256": functools.partial(nearest, num_bits=256, k=1),
    "top100_256": functools.partial(nearest, num_bits=256, k=100),
    "one_64": functools.partial(nearest, num_bits=64, k=1, num_queries=1),
}


def _random_codes(n, num_bits, seed):
    return np.packbits(np.random.default_rng(seed).integers(0, 2, (n, num_bits), dtype=np.uint8), axis=1)


def _distances_of(queries, database):
    """Ways may break ties differently, so what they must agree on are the distances of what they found."""

    def check(result):
        indices = result[-1] if isinstance(result, tuple) else result
        indices = np.asarray(torch.as_tensor(indices).cpu())
        return np.stack(
            [BITS_OF_BYTE[queries[: len(indices)] ^ database[column]].sum(1) for column in indices.T], axis=1
        )

    return check


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


def _others(queries, database, num_bits, k, device, slow):
    """FAISS, numpy and the products; `slow` queries for numpy and the product of float32."""
    ways = []
    if faiss is not None:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexBinaryFlat(8 * queries.shape[1])
        index.add(database)
        if device == "cpu":
            ways.append(Way("faiss IndexBinaryFlat", len(queries), lambda: index.search(queries, k)))
        elif hasattr(faiss, "GpuIndexBinaryFlat"):
            on_gpu = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), index)
            ways.append(Way("faiss GpuIndexBinaryFlat", len(queries), lambda: on_gpu.search(queries, k)))
    if device == "cpu" and hasattr(np, "bitwise_count") and k == 1:
        words, database_words = _words(queries[:slow]), _words(database)
        ways.append(Way("numpy bitwise_count + argmin", slow, lambda: _numpy_nearest(words, database_words)))
    signs, database_signs = (_signs(part, num_bits).to(device).float() for part in (queries[:slow], database))
    for name, entries in (("+-1 float32 matmul + topk", WHOLE), ("the same in tiles", TILE)):
        step = max(1, entries // len(database))
        ways.append(Way(name, slow, functools.partial(_product_nearest, signs, database_signs, k, step)))
    return ways + _tensor_core_ways(queries, database, num_bits, k, device) if device == "cuda" else ways


def _tensor_core_ways(queries, database, num_bits, k, device, entries=GPU_TILE):
    """Products of +-1 in bf16 and int8, about `entries` scores at a time, where they are exact and possible.

    bf16: the sums are float32, and the results are whole numbers up to num_bits, which bf16 holds up to 256.
    int8: torch._int_mm needs more than 16 queries, and multiples of 8 bits and codes; zeros fill them up.
    """
    pick, name = (_argmax, "argmax") if k == 1 else (functools.partial(_topk, k=k), "topk")
    step = max(64, entries // len(database) // 64 * 64)
    products = []
    if num_bits <= 256:
        signs, columns = (_signs(codes, num_bits).to(device, torch.bfloat16) for codes in (queries, database))
        products.append(("+-1 bf16 matmul", torch.matmul, signs, columns.T))
    if len(queries) > 16:
        signs, columns = (_signs(codes, num_bits).to(device) for codes in (queries, database))
        columns = F.pad(columns, (0, -num_bits % 8, 0, -len(database) % 8))
        products.append(("+-1 int8 _int_mm", torch._int_mm, F.pad(signs, (0, -num_bits % 8)), columns.T))
    return [
        Way(
            f"{title} + {name}, tiles",
            len(queries),
            functools.partial(_tiled_nearest, product, signs, columns, len(database), step, pick),
        )
        for title, product, signs, columns in products
    ]


def _signs(codes, num_bits):
    """Packed codes uint8 [n, code_size] -> int8 [n, num_bits], +-1."""
    return torch.from_numpy(np.unpackbits(codes, axis=1, count=num_bits)).to(torch.int8).mul_(2).sub_(1)


def _product_nearest(signs, database_signs, k, step):
    return torch.cat([(part @ database_signs.T).topk(k, dim=1).indices for part in signs.split(step)])


def _tiled_nearest(product, signs, columns, m, step, pick):
    """Indices [n, k] of the highest scores of the first m columns. signs [n, K], columns [K, m or more]."""
    # Equal parts, because torch._int_mm needs more than 16 rows in the last one too.
    parts = signs.tensor_split(-(-len(signs) // step))
    return torch.cat([pick(product(part, columns)[:, :m]) for part in parts])


def _argmax(scores):
    return scores.argmax(dim=1, keepdim=True)


def _topk(scores, k):
    return scores.topk(k, dim=1).indices


def _words(codes):
    """Codes as the shortest unsigned integers that hold one, or as several of 64 bits; zeros fill them up."""
    size = next((size for size in (1, 2, 4) if codes.shape[1] <= size), 8)
    return np.pad(codes, ((0, 0), (0, -codes.shape[1] % size))).view(f"uint{8 * size}")


def _numpy_nearest(queries, database):
    step = max(1, TILE // database.size)
    return np.concatenate(
        [
            np.bitwise_count(queries[i : i + step, None] ^ database).sum(2, dtype=np.uint16).argmin(1)
            for i in range(0, len(queries), step)
        ]
    )[:, None]


if __name__ == "__main__":
    edge.run(main)
