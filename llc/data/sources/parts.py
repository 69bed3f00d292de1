"""Parts of a source: a fraction held out, some images of each class or of all, one of n parts; shuffled."""

import re

import numpy as np

from llc.data.sampling import random_order
from llc.data.sources.base import Selection, SourceError, some


def hold_out(source, val_fraction, split):
    """The part `split` of a source of which `val_fraction` of each class is held out as "val".

    Evenly spaced images are held out, at least 1 of each class and never all. "train" and "val" are disjoint
    and together hold every image. Raises SourceError where a class has a single image.
    """
    held_out = np.zeros(len(source), bool)
    alone = []
    for name, indices in zip(source.class_names, _of_classes(source)):
        if len(indices) == 1:
            alone.append(name)
        elif len(indices) > 1:
            num_val = min(max(round(val_fraction * len(indices)), 1), len(indices) - 1)
            held_out[indices[_evenly_spaced(num_val, len(indices))]] = True
    if alone:
        raise SourceError(
            f"val_fraction={val_fraction} cannot divide classes of a single image: {some(alone)}"
        )
    indices = np.flatnonzero(held_out if split == "val" else ~held_out)
    note = f"val_fraction={val_fraction}: {held_out.sum():,} of {len(source):,} images held out as val"
    return _select(source, indices, f"{note}; these are {split}'s")


def take_per_class(source, count):
    """`count` evenly spaced images of each class. Raises SourceError where a class has fewer."""
    if count < 1:
        raise SourceError(f"per_class={count}: it takes 1 or more images of each class, or -1 for all")
    counts = zip(source.class_names, source.class_counts().tolist())
    fewer = [f"{name} ({number})" for name, number in counts if number < count]
    if fewer:
        raise SourceError(
            f"per_class={count}: {len(fewer)} of {len(source.class_names)} classes have fewer images:"
            f" {some(fewer)}"
        )
    chosen = [indices[_evenly_spaced(count, len(indices))] for indices in _of_classes(source)]
    note = f"per_class={count}: evenly spaced over each class, of {len(source):,} images"
    return _select(source, np.sort(np.concatenate(chosen)), note)


def take_evenly(source, count):
    """`count` evenly spaced images of a source. Raises SourceError where there are fewer."""
    if not 1 <= count <= len(source):
        raise SourceError(
            f"subset={count}: there are {len(source)} images (1 to {len(source)}, or -1 for all)"
        )
    note = f"subset={count}: evenly spaced over {len(source):,} images"
    return _select(source, _evenly_spaced(count, len(source)), note)


def shuffle(source, seed):
    """The same images in a random order, a function of the seed and of the number of images alone."""
    # Epoch -1 is no training's, so that no epoch has the order that the file has.
    order = random_order(len(source), 1, seed, epoch=-1)[:, 0]
    return _select(source, order, f"shuffle={seed}: the images are in a random order")


def parse_part(text):
    """(i, n) of "i/n", part i of n, counted from 1; None for "". Raises SourceError."""
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    part = match and (int(match[1]), int(match[2]))
    if not part or not 1 <= part[0] <= part[1]:
        raise SourceError(f"part={text}: give i/n, part i of n, counted from 1: 1/3, 2/3 and 3/3 for three")
    return part


def take_part(source, part):
    """Part i of n of a source, part = (i, n): images i, i + n, i + 2 n, ..., counted from 1.

    The n parts are disjoint, hold every image, and their sizes differ by at most 1. Raises SourceError where
    the part would be empty.
    """
    i, n = part
    if len(source) < n:
        raise SourceError(f"part={i}/{n}: there are only {len(source)} images for {n} parts")
    indices = np.arange(i - 1, len(source), n)
    note = f"part {i} of {n}: {len(indices):,} of {len(source):,} images (numbers {i}, {i + n}, ...)"
    return _select(source, indices, note)


def _of_classes(source):
    """The indices of each class's images, a list of int64 [count]."""
    order = np.argsort(source.labels, kind="stable")
    first = np.searchsorted(source.labels[order], np.arange(len(source.class_names) + 1))
    return [order[start:end] for start, end in zip(first, first[1:])]


def _evenly_spaced(count, total):
    """`count` different positions in range(total), int64."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


def _select(source, indices, note):
    return Selection(
        source.class_names,
        source.labels[indices],
        source,
        indices,
        notes=(*source.notes, note),
        class_words=source.class_words,
    )
