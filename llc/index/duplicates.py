"""Near-duplicates: groups of codes that lie within a radius of each other."""

import numpy as np

from llc.index.index import Index


def duplicates(index: Index, radius: int) -> list[np.ndarray]:
    """Groups of rows that are near-duplicates: a list of ids, int64 [m] each, ascending, m >= 2.

    Two rows are in one group if a chain of rows connects them in which each is within `radius` bits of the
    next. So a group may be wider than the radius; the larger the radius, the more groups grow together. The
    largest group comes first; of equal sizes, that with the lowest id. For radii that are short for the
    length of the codes it takes time in proportion to the number of rows. Raises ValueError for a radius
    below 0.
    """
    lims, ids = index.groups(radius)
    groups = [ids[first:last] for first, last in zip(lims.tolist(), lims[1:].tolist())]  # by their lowest id
    return sorted(groups, key=len, reverse=True)  # stable, so groups of one size stay in that order
