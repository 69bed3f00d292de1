"""Near-duplicates: groups of codes that lie within a radius of each other."""

import numpy as np
import torch

from llc.arguments import whole_number
from llc.index.index import Index
from llc.native import index as native


def duplicates(index: Index, radius: int, *, num_threads: int | None = None) -> list[np.ndarray]:
    """Groups of rows that are near-duplicates: a list of ids, int64 [m] each, ascending, m >= 2.

    Two rows are in one group if a chain of rows connects them in which each is within `radius` bits of the
    next. So a group may be wider than the radius; the larger the radius, the more groups grow together. The
    largest group comes first; of equal sizes, that with the lowest id. For radii that are short for the
    length of the codes it takes time in proportion to the number of rows. Raises ValueError for a radius
    below 0.
    """
    radius = whole_number("radius", radius, 0)
    threads = torch.get_num_threads() if num_threads is None else whole_number("num_threads", num_threads, 1)
    lims, ids = native.groups(index._snapshot().everything, min(radius, index.num_bits), threads)
    groups = [ids[first:last] for first, last in zip(lims.tolist(), lims[1:].tolist())]  # by their lowest id
    return sorted(groups, key=len, reverse=True)  # stable, so groups of one size stay in that order
