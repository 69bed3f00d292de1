"""Parts of a source: the label order of another dataset, a held-out fraction of each class, a subset."""

import numpy as np

from llc.data.sources.base import Selection, SourceError, some


def with_class_names(source, class_names):
    """The same images, labelled by `class_names`, which must hold all of the source's. Raises SourceError."""
    position = {name: label for label, name in enumerate(class_names)}
    strange = [name for name in source.class_names if name not in position]
    if strange:
        missing = [name for name in class_names if name not in set(source.class_names)]
        raise SourceError(
            f"{len(strange)} classes are not among the {len(class_names)} of class_names_from:"
            f" {some(strange)}" + (f"; without images here: {some(missing)}" if missing else "")
        )
    labels = np.array([position[name] for name in source.class_names], np.int64)[source.labels]
    counts = np.bincount(labels, minlength=len(class_names))
    without = [name for name, count in zip(class_names, counts) if not count]
    notes = source.notes
    if without:
        notes += (
            f"{len(without)} of {len(class_names)} classes have no images in this split: {some(without)}",
        )
    order = np.argsort(labels, kind="stable") if source.sorted_by_label else np.arange(len(labels))
    return Selection(tuple(class_names), labels[order], source, order, notes=notes)


def hold_out(source, val_fraction, split):
    """The part `split` of a source of which `val_fraction` of each class is held out as "val".

    Evenly spaced images are held out, at least 1 of each class and never all. "train" and "val" are disjoint
    and together hold every image. Raises SourceError where a class has a single image.
    """
    held_out = np.zeros(len(source), bool)
    alone = []
    order = np.argsort(source.labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(source.class_counts())])
    for label, name in enumerate(source.class_names):
        indices = order[starts[label] : starts[label + 1]]
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


def take_evenly(source, count):
    """`count` evenly spaced images of a source. Raises SourceError where there are fewer."""
    if not 1 <= count <= len(source):
        raise SourceError(
            f"subset={count}: there are {len(source)} images (1 to {len(source)}, or -1 for all)"
        )
    note = f"subset={count}: evenly spaced over {len(source):,} images"
    return _select(source, _evenly_spaced(count, len(source)), note)


def _evenly_spaced(count, total):
    """`count` different positions in range(total), int64."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


def _select(source, indices, note):
    return Selection(source.class_names, source.labels[indices], source, indices, notes=(*source.notes, note))
