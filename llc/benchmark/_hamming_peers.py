"""Other ways to do what llc.hamming does, for `python -m llc.benchmark hamming`; all of them are exact."""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from llc.benchmark._hamming_ours import Clock

try:
    import faiss
except ImportError:
    faiss = None
try:
    import usearch
    import usearch.index
except ImportError:
    usearch = None

TILE = 1 << 22  # entries of the [n, m] matrix that numpy and the tiled product make at a time
# The same if the matrix is made whole, as the original code did, where it fits: 256 MB of float32.
WHOLE = 1 << 26
SLOW_QUERIES = 50  # of a large database, for ways that would take minutes
GPU_TILE = 1 << 28  # scores that a tiled product on a GPU makes at a time: 0.5 GB in bf16, 1 GB in int32
FAISS_SIZES = (4, 8, 16, 20, 32, 64)  # bytes of the codes that FAISS has a loop of their own for
FAISS_BATCH = 32  # queries that IndexBinaryFlat takes at a time, unless its user says otherwise
TRIAL_ROUNDS = 3
FAISS_TRIAL_PAIRS = 1 << 29  # pairs of codes in a call of a trial
USEARCH_TRIAL_PAIRS = 1 << 25  # fewer, because it is slower


@dataclasses.dataclass
class Way:
    """One way to do a workload: `call` handles `amount` queries or values; indices are its (last) result.

    seconds: the time of a call, where it cannot be measured from here. like: the way that it is compared
    with, instead of the first one of its workload.
    """

    name: str
    amount: int
    call: Callable
    seconds: Callable | None = None
    like: "Way | None" = None


def versions():
    """{library: its version and the instructions that it uses on this CPU}."""
    found = {"faiss": "not installed", "usearch": "not installed"}
    if faiss is not None:
        level = faiss.SIMDConfig.get_level_name() if hasattr(faiss, "SIMDConfig") else "not known"
        options = faiss.get_compile_options().strip()
        found["faiss"] = f"{faiss.__version__}, SIMD level {level}, compiled with {options}"
    if usearch is not None:
        level = _usearch_index(64, 2).hardware_acceleration
        found["usearch"] = f"{usearch.__version__}, SIMD level {level}"
    return found


def fastest(library, candidates, queries, trial, cpu_time):
    """Tries all ways of a library on `trial` queries -> (its fastest way on all queries, what was tried).

    candidates: {name: function: queries -> call}. The ways run in turns, each TRIAL_ROUNDS times after a
    first call that is not timed, and the lowest time counts. What was tried is {name: that time in seconds}.
    """
    clock = Clock(seconds=0, cpu_time=cpu_time, device="cpu")
    calls = {name: make(queries[:trial]) for name, make in candidates.items()}
    tried = dict.fromkeys(calls, float("inf"))
    for round in range(1 + TRIAL_ROUNDS):
        for name, call in calls.items():
            seconds = clock.seconds_a_call(call)
            if round > 0:
                tried[name] = min(tried[name], seconds)
    name = min(tried, key=tried.get)
    return Way(f"{library} {name}", len(queries), candidates[name](queries)), tried


# ---------------------------------------------------------------------------------------------------- FAISS


def faiss_search(queries, database, k, cpu_time=False):
    """FAISS on the CPU -> ([its usual way, unless that is the fastest; its fastest way], what was tried).

    The index and knn_hamming select by heaps (hc) or by counting the codes at each distance (mc). The index
    takes a batch of queries at a time. Zeros may fill up the codes to a size that FAISS is faster with.

    hammings_knn is not tried, because it only calls hammings_knn_hc, as knn_hamming does for "hc"; nor is
    approx_topk_mode, which is not exact.
    """
    num_threads = torch.get_num_threads()
    faiss.omp_set_num_threads(num_threads)
    candidates = {}
    for size in _faiss_sizes(database.shape[1]):
        codes = _zeros_after(database, size)
        suffix = "" if size == database.shape[1] else f", {8 * size} bits"
        index = faiss.IndexBinaryFlat(8 * size)
        index.add(codes)
        for variant, use_heap in (("", True), (" mc", False)):
            name = f"IndexBinaryFlat{variant}"
            candidates[name + suffix] = functools.partial(_flat, index, size, k, use_heap, FAISS_BATCH)
            if len(queries) > FAISS_BATCH:
                candidates[f"{name}, 1 batch{suffix}"] = functools.partial(
                    _flat, index, size, k, use_heap, None
                )
        for variant in ("hc", "mc"):
            candidates[f"knn_hamming {variant}{suffix}"] = functools.partial(_knn, codes, k, variant)
        if len(queries) < num_threads:
            # The other ways divide the queries among the threads, this one the database.
            shards = _shards(codes, num_threads)
            candidates[f"IndexBinaryShards{suffix}"] = functools.partial(_flat, shards, size, k, None, None)
    trial = max(1, min(len(queries), FAISS_TRIAL_PAIRS // len(database)))
    best, tried = fastest("faiss", candidates, queries, trial, cpu_time)
    usual = Way("faiss IndexBinaryFlat", len(queries), candidates["IndexBinaryFlat"](queries))
    return [best] if best.name == usual.name else [usual, best], tried


def faiss_range_search(queries, database, radius):
    """FAISS's range search, whose radius is that of the nearest codes that are not found any more."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexBinaryFlat(8 * database.shape[1])
    index.add(database)
    return Way("faiss IndexBinaryFlat", len(queries), lambda: index.range_search(queries, radius + 1))


def faiss_pairwise(queries, database):
    """faiss.hammings, which uses one thread: so the queries are divided among threads."""
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads)
    bounds = [len(queries) * i // num_threads for i in range(num_threads + 1)]

    def call():
        distances = np.empty((len(queries), len(database)), np.int32)

        def rows(first, last):
            pointers = map(faiss.swig_ptr, (queries[first:last], database))
            faiss.hammings(
                *pointers,
                last - first,
                len(database),
                queries.shape[1],
                faiss.swig_ptr(distances[first:last]),
            )

        list(pool.map(rows, bounds, bounds[1:]))
        return distances

    return Way("faiss hammings", len(queries), call)


def faiss_search_on_gpu(queries, database, k):
    """[FAISS's flat index on a GPU], or [] if this FAISS has none."""
    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        return []
    index = faiss.IndexBinaryFlat(8 * queries.shape[1])
    index.add(database)
    on_gpu = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), index)
    return [Way("faiss GpuIndexBinaryFlat", len(queries), lambda: on_gpu.search(queries, k))]


def _faiss_sizes(code_size):
    """The code's size, and the next ones that FAISS is faster with; zeros do not change the distances."""
    if code_size in FAISS_SIZES:
        return [code_size]
    return [code_size, *[size for size in FAISS_SIZES if size > code_size][:2]]


def _flat(index, size, k, use_heap, batch, queries):
    queries = _zeros_after(queries, size)

    def call():
        if use_heap is not None:
            index.use_heap, index.query_batch_size = use_heap, batch or len(queries)
        return index.search(queries, k)

    return call


def _knn(database, k, variant, queries):
    queries = _zeros_after(queries, database.shape[1])
    return lambda: faiss.knn_hamming(queries, database, k, variant=variant)


def _shards(database, number):
    """An index that searches in several parts of the database at once."""
    shards = faiss.IndexBinaryShards(8 * database.shape[1], True, True)
    shards.parts = [faiss.IndexBinaryFlat(8 * database.shape[1]) for _ in range(number)]  # keeps them alive
    for part in shards.parts:
        shards.add_shard(part)
    shards.add(database)
    return shards


def _zeros_after(codes, size):
    return np.ascontiguousarray(np.pad(codes, ((0, 0), (0, size - codes.shape[1]))))


# -------------------------------------------------------------------------------------------------- USearch


def usearch_search(queries, database, k, cpu_time=False):
    """USearch's exact search -> ([its fastest way], what was tried)."""
    index = _usearch_index(8 * database.shape[1], connectivity=2)
    # Exact search does not use the graph of the index, so it may be a poor one, which is built quickly.
    index.add(np.arange(len(database)), database, threads=torch.get_num_threads())
    candidates = {
        "search": functools.partial(_usearch_on_codes, database, k),
        "Index.search": functools.partial(_usearch_on_index, index, k),
    }
    trial = max(1, min(len(queries), USEARCH_TRIAL_PAIRS // len(database)))
    best, tried = fastest("usearch", candidates, queries, trial, cpu_time)
    return [best], tried


def _usearch_index(num_bits, connectivity):
    return usearch.index.Index(
        ndim=num_bits, metric="hamming", dtype="b1", connectivity=connectivity, expansion_add=1
    )


def _usearch_on_codes(database, k, queries):
    return lambda: _keys(
        usearch.index.search(
            database, queries, k, "hamming", exact=True, threads=torch.get_num_threads(), dtype="b1"
        )
    )


def _usearch_on_index(index, k, queries):
    return lambda: _keys(index.search(queries, k, exact=True, threads=torch.get_num_threads()))


def _keys(matches):
    return np.atleast_2d(matches.keys).astype(np.int64)


# ------------------------------------------------------------------------------------ numpy and the products


def numpy_search(queries, database):
    words, database_words = _words(queries), _words(database)
    return Way("numpy bitwise_count + argmin", len(queries), lambda: _numpy_nearest(words, database_words))


def numpy_pairwise(queries, database):
    words, database_words = _words(queries), _words(database)
    return Way(
        "numpy bitwise_count",
        len(queries),
        lambda: np.bitwise_count(words[:, None] ^ database_words).sum(2, dtype=np.int32),
    )


def product_search(queries, database, num_bits, k, device):
    """The products of float32, whole and in tiles."""
    signs, database_signs = (_signs(part, num_bits).to(device).float() for part in (queries, database))
    return [
        Way(
            name,
            len(queries),
            functools.partial(_product_nearest, signs, database_signs, k, max(1, entries // len(database))),
        )
        for name, entries in (("+-1 float32 matmul + topk", WHOLE), ("the same in tiles", TILE))
    ]


def product_pairwise(queries, database, num_bits, device):
    signs, database_signs = (_signs(part, num_bits).to(device).float() for part in (queries, database))
    return Way(
        "+-1 float32 matmul",
        len(queries),
        lambda: (signs @ database_signs.T).sub_(num_bits).mul_(-0.5).to(torch.int32),
    )


def tensor_core_ways(queries, database, num_bits, k, device, entries=GPU_TILE):
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
