"""pairwise, search and range_search: they check arguments; llc.hamming.cpu or llc.hamming.cuda does the work.

On CUDA one call takes up to 2^31 - 2^16 queries and as many codes; with more, all three raise ValueError.
"""

import operator

import numpy as np
import torch

from llc.codes import Array

MAX_CODE_SIZE = 8191  # bytes: distances fit in 16 bits


def pairwise(queries: Array, database: Array) -> Array:
    """Hamming distance from every query uint8 [n, code_size] to every database code uint8 [m, code_size] -> int32 [n, m].

    Raises ValueError when dtypes, widths or devices do not match.
    """
    check_codes(queries=queries, database=database)
    return _run("pairwise", queries, database)


def search(queries: Array, database: Array, k: int) -> tuple[Array, Array]:
    """The k nearest database codes of each query, sorted by (distance, index).

    queries uint8 [n, code_size], database uint8 [m, code_size] -> (distances int32 [n, k], indices int64 [n, k]).
    Exact. Raises ValueError when the two do not match or unless 1 <= k <= m.
    """
    check_codes(queries=queries, database=database)
    if len(database) == 0:
        raise ValueError("database: holds no codes to search")
    k = _integer("k", k)
    if not 1 <= k <= len(database):
        raise ValueError(f"k: expected 1 to {len(database)} (the database's size), got {k}")
    return _run("search", queries, database, k)


def range_search(queries: Array, database: Array, radius: int) -> tuple[Array, Array, Array]:
    """Every database code at distance <= radius from each query, in FAISS's CSR form: (lims, distances, indices).

    Query i's answers are distances[lims[i]:lims[i + 1]] (int32) and indices[lims[i]:lims[i + 1]] (int64), by rising index;
    lims is int64 [n + 1]. Note that FAISS's own range_search takes distances strictly below its radius. Raises ValueError when the
    two do not match or radius < 0.
    """
    check_codes(queries=queries, database=database)
    radius = _integer("radius", radius)
    if radius < 0:
        raise ValueError(f"radius: expected 0 or more bits, got {radius}")
    return _run("range_search", queries, database, radius)


def _run(function, queries, database, *arguments):
    if is_cuda(queries):
        from llc.hamming import cuda  # Triton and numba are loaded by the first that needs them

        return getattr(cuda, function)(queries, database, *arguments)
    from llc.hamming import cpu

    result = getattr(cpu, function)(
        as_array(queries), as_array(database), *arguments, torch.get_num_threads()
    )
    if isinstance(queries, np.ndarray):
        return result
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)


def check_codes(**arguments):
    """Raises ValueError unless all the (named) arguments are packed codes of one width, of one library, on one device."""
    for name, codes in arguments.items():
        if not isinstance(codes, (np.ndarray, torch.Tensor)):
            raise ValueError(
                f"{name}: expected packed codes in a torch tensor or numpy array, got a {type(codes).__name__}"
            )
        if (
            codes.dtype not in (torch.uint8, np.dtype("uint8"))
            or codes.ndim != 2
            or not 1 <= codes.shape[1] <= MAX_CODE_SIZE
        ):
            raise ValueError(
                f"{name}: expected packed codes uint8 [n, code_size] with code_size 1 to {MAX_CODE_SIZE}, "
                f"got {codes.dtype} {list(codes.shape)}; llc.pack_bits makes them"
            )
    (name, codes), *others = arguments.items()
    for other_name, other in others:
        if isinstance(codes, np.ndarray) != isinstance(other, np.ndarray):
            raise ValueError(
                f"{name} are a {type(codes).__name__}, {other_name} a {type(other).__name__}: pass two of one kind"
            )
        if codes.shape[1] != other.shape[1]:
            raise ValueError(
                f"{name} have {codes.shape[1]} bytes a code, {other_name} {other.shape[1]}: the code sizes differ"
            )
        if isinstance(codes, torch.Tensor) and codes.device != other.device:
            raise ValueError(
                f"{name} are on {codes.device}, {other_name} on {other.device}: move one of them"
            )
    if isinstance(codes, torch.Tensor) and codes.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{name} are on {codes.device}: Hamming distances are computed on cpu or cuda, move them there"
        )


def is_cuda(codes):
    return isinstance(codes, torch.Tensor) and codes.is_cuda


def as_array(codes):
    """Codes on the CPU as a contiguous numpy array."""
    return np.ascontiguousarray(codes if isinstance(codes, np.ndarray) else codes.numpy())


def _integer(name, value):
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}: expected an integer, got {value!r}") from error
