"""Hamming distances, search and the two decoders, on packed codes (uint8 [n, code_size], see llc.codes), CPU or CUDA.

Torch tensors in, torch tensors out, on the device they came from; numpy arrays in, numpy arrays out. Ties always go to the lowest
index. Work proceeds in tiles, so the [n, m] matrix is made by `pairwise` alone.
"""
import numpy as np
import torch

from llc.codes import Array

# int32 words of one tile's xor; the temporaries of the bit count are a few times this. 4 M entries = 16 MB stay near the cache.
TILE_WORDS = 1 << 22


def pairwise(queries: Array, database: Array) -> Array:
    """Hamming distance from every query uint8 [n, code_size] to every database code uint8 [m, code_size] -> int32 [n, m].

    Raises ValueError when dtypes, widths or devices do not match.
    """
    queries, database, as_numpy = _checked(queries, database)
    result = torch.empty(len(queries), len(database), dtype=torch.int32, device=queries.device)
    query_words, database_words = _words(queries), _words(database)
    step = max(1, TILE_WORDS // max(1, len(database)))
    for start in range(0, len(queries), step):
        result[start:start + step] = _distances(query_words[start:start + step], database_words)
    return result.numpy() if as_numpy else result


def search(queries: Array, database: Array, k: int) -> tuple[Array, Array]:
    """The k nearest database codes of each query, sorted by (distance, index).

    queries uint8 [n, code_size], database uint8 [m, code_size] -> (distances int32 [n, k], indices int64 [n, k]).
    Exact. Raises ValueError when the two do not match or unless 1 <= k <= m.
    """
    queries, database, as_numpy = _checked(queries, database)
    if not 1 <= k <= len(database):
        raise ValueError(f"k: expected 1 to {len(database)} (the database's size), got {k}")
    query_words, database_words = _words(queries), _words(database)
    distances = torch.empty(len(queries), k, dtype=torch.int32, device=queries.device)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    database_step = min(len(database), max(k, 1 << 16))
    query_step = max(1, TILE_WORDS // database_step)
    for q in range(0, len(queries), query_step):
        best = None
        for d in range(0, len(database), database_step):
            tile = _distances(query_words[q:q + query_step], database_words[d:d + database_step])
            # distance and index in one integer: keys are distinct, so top-k has one answer and ties go to the lowest index
            keys = (tile.long() << 40) | torch.arange(d, d + tile.shape[1], device=tile.device)
            if best is not None:
                keys = torch.cat([best, keys], dim=1)
            best = keys.min(dim=1, keepdim=True).values if k == 1 else \
                keys.topk(min(k, keys.shape[1]), dim=1, largest=False, sorted=True).values
        distances[q:q + query_step] = (best >> 40).int()
        indices[q:q + query_step] = best & ((1 << 40) - 1)
    return (distances.numpy(), indices.numpy()) if as_numpy else (distances, indices)


def range_search(queries: Array, database: Array, radius: int) -> tuple[Array, Array, Array]:
    """Every database code at distance <= radius from each query, in FAISS's CSR form: (lims, distances, indices).

    Query i's answers are distances[lims[i]:lims[i + 1]] (int32) and indices[lims[i]:lims[i + 1]] (int64), by rising index;
    lims is int64 [n + 1]. Note that FAISS's own range_search takes distances strictly below its radius. Raises ValueError when the
    two do not match or radius < 0.
    """
    queries, database, as_numpy = _checked(queries, database)
    if radius < 0:
        raise ValueError(f"radius: expected 0 or more bits, got {radius}")
    query_words, database_words = _words(queries), _words(database)
    lims = torch.zeros(len(queries) + 1, dtype=torch.int64, device=queries.device)
    found = [(lims[:0].int(), lims[:0])]
    step = max(1, TILE_WORDS // max(1, len(database)))
    for start in range(0, len(queries), step):
        tile = _distances(query_words[start:start + step], database_words)
        inside = tile <= radius
        lims[start + 1:start + 1 + len(tile)] = inside.sum(1)
        found.append((tile[inside], inside.nonzero()[:, 1]))
    result = lims.cumsum(0), torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
    return tuple(part.numpy() for part in result) if as_numpy else result


def decode_mhd(codes: Array, class_codes: Array, k: int = 1) -> Array:
    """Minimum Hamming distance decoding: the k nearest classes -> int64 [n, k]; ties go to the lowest class.

    codes uint8 [n, code_size], class_codes uint8 [num_classes, code_size]. Raises ValueError as `search` does.
    """
    return search(codes, class_codes, k)[1]


def decode_ed(codes: Array, class_codes: Array) -> Array:
    """Exact decoding: the lowest class whose code equals the given one, else -1 -> int64 [n]. Arguments as decode_mhd."""
    distances, indices = search(codes, class_codes, 1)
    where = np.where if isinstance(distances, np.ndarray) else torch.where
    return where(distances[:, 0] == 0, indices[:, 0], -1)


def _checked(queries, database):
    as_numpy = isinstance(queries, np.ndarray) and isinstance(database, np.ndarray)
    if not as_numpy and not (isinstance(queries, torch.Tensor) and isinstance(database, torch.Tensor)):
        raise ValueError(f"queries and database: expected two torch tensors or two numpy arrays, "
                         f"got {type(queries).__name__} and {type(database).__name__}")
    if as_numpy:
        queries, database = (torch.from_numpy(np.ascontiguousarray(a)) for a in (queries, database))
    for name, codes in (("queries", queries), ("database", database)):
        if codes.dtype != torch.uint8 or codes.ndim != 2 or codes.shape[1] < 1:
            raise ValueError(f"{name}: expected packed codes uint8 [n, code_size], got {codes.dtype} {list(codes.shape)}")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} bytes a code, database {database.shape[1]}: the code sizes differ")
    if queries.device != database.device:
        raise ValueError(f"queries are on {queries.device}, database on {database.device}: move one of them")
    return queries, database, as_numpy


def _words(codes):
    """uint8 [n, code_size] -> int32 [n, ceil(code_size / 4)], zero padded."""
    return torch.nn.functional.pad(codes, (0, -codes.shape[1] % 4)).contiguous().view(torch.int32)


def _distances(query_words, database_words):
    """Popcount of the xor, word by word -> int32 [n, m]."""
    total = torch.zeros(len(query_words), len(database_words), dtype=torch.int32, device=query_words.device)
    for word in range(query_words.shape[1]):
        total += _popcount(query_words[:, word, None] ^ database_words[None, :, word])
    return total


def _popcount(x):
    """Bits set in each int32, by pairs, nibbles, bytes (the classic SWAR count; masks undo the sign-extending shifts)."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F
