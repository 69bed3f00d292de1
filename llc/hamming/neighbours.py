"""pairwise, search and range_search: they check their arguments, and another module does the work.

That is llc.native.hamming on the CPU and llc.hamming.cuda on CUDA.

On CUDA one call takes up to 2^31 - 2^16 queries and as many codes. All three raise ValueError for more.
"""

from typing import Any

import numpy as np
import torch

from llc.arguments import whole_number
from llc.codes import Array
from llc.native import hamming

MAX_CODE_SIZE = 8191  # bytes: distances fit in 16 bits


def pairwise(queries: Array, database: Array) -> Array:
    """The Hamming distance from every query to every database code.

    queries uint8 [n, code_size], database uint8 [m, code_size] -> distances int32 [n, m]. Raises ValueError
    if one of them is not an array of packed codes, or if their code sizes, kinds or devices differ.
    """
    check_codes(queries=queries, database=database)
    return _run("pairwise", queries, database)


def search(queries: Array, database: Array, k: int) -> tuple[Array, Array]:
    """The k nearest database codes of each query, exactly, sorted by distance, then by index.

    queries uint8 [n, code_size], database uint8 [m, code_size] -> (distances int32 [n, k], indices int64
    [n, k]). Raises ValueError as `pairwise` does, and unless 1 <= k <= m.
    """
    check_codes(queries=queries, database=database)
    if len(database) == 0:
        raise ValueError("database: holds no codes to search")
    k = whole_number("k", k, 1, len(database), "the database's size")
    return _run("search", queries, database, k)


def range_search(queries: Array, database: Array, radius: int) -> tuple[Array, Array, Array]:
    """Every database code within a radius of each query: distance <= radius.

    queries uint8 [n, code_size], database uint8 [m, code_size] -> (lims int64 [n + 1], distances int32
    [total], indices int64 [total]), the CSR form that FAISS uses too. The codes found for query i are
    indices[lims[i]:lims[i + 1]], in ascending order, and distances[lims[i]:lims[i + 1]] are their distances.
    FAISS's own range_search differs in one point: it finds distances strictly below its radius. Raises
    ValueError as `pairwise` does, and if radius < 0.
    """
    check_codes(queries=queries, database=database)
    radius = whole_number("radius", radius, 0)
    return _run("range_search", queries, database, radius)


def _run(function: str, queries: Array, database: Array, *arguments: int) -> Any:
    if is_cuda(queries):
        from llc.hamming import cuda  # here, so that Triton is loaded only if needed

        return getattr(cuda, function)(queries, database, *arguments)
    result = getattr(hamming, function)(
        as_array(queries), as_array(database), *arguments, torch.get_num_threads()
    )
    if isinstance(queries, np.ndarray):
        return result
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)


def check_codes(**arguments: Any) -> None:
    """Raises ValueError unless all arguments are packed codes of one code size and kind, on one device.

    The kind is a numpy array or a torch tensor. The arguments' names appear in the messages.
    """
    for name, codes in arguments.items():
        if not isinstance(codes, (np.ndarray, torch.Tensor)):
            raise ValueError(
                f"{name}: expected packed codes in a torch tensor or numpy array, "
                f"got a {type(codes).__name__}"
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
                f"{name} are a {type(codes).__name__}, {other_name} a {type(other).__name__}: "
                "pass two of one kind"
            )
        if codes.shape[1] != other.shape[1]:
            raise ValueError(
                f"{name} have {codes.shape[1]} bytes per code, {other_name} {other.shape[1]}: "
                "the code sizes differ"
            )
        if isinstance(codes, torch.Tensor) and codes.device != other.device:
            raise ValueError(
                f"{name} are on {codes.device}, {other_name} on {other.device}: move one of them"
            )
    if isinstance(codes, torch.Tensor) and codes.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{name} are on {codes.device}: Hamming distances are computed on cpu or cuda, move them there"
        )


def is_cuda(codes: np.ndarray | torch.Tensor) -> bool:
    """Whether the codes are a torch tensor on a CUDA device."""
    return isinstance(codes, torch.Tensor) and codes.is_cuda


def as_array(codes: np.ndarray | torch.Tensor) -> np.ndarray:
    """Codes on the CPU as a contiguous numpy array, which shares their memory where it can."""
    return np.ascontiguousarray(codes if isinstance(codes, np.ndarray) else codes.numpy())
