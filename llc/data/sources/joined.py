"""Several sources with the same classes as one."""

import os
from dataclasses import dataclass

import numpy as np

from llc.data.image_errors import ImageError, MachineError, read_from
from llc.data.sources.base import Source, SourceError, printable, some
from llc.data.sources.patterns import split_outside_braces


def split_roots(data_dir):
    """The places that `data_dir` names: itself where it exists, else its parts between commas.

    A comma within braces is part of a pattern such as train-{0..3,7}.tar. A comma that belongs to the name of
    a file or folder that exists is part of the name. Raises SourceError where a place is named twice.
    """
    text = os.fspath(data_dir)
    parts = split_outside_braces(text)
    if len([part for part in parts if part.strip()]) < 2 or os.path.exists(text):
        return [data_dir]
    roots = []
    while parts:
        # The longest name that exists, or else the text up to the next comma.
        lengths = range(len(parts), 1, -1)
        length = next((n for n in lengths if os.path.exists(",".join(parts[:n]).strip())), 1)
        roots.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    roots = [root for root in roots if root]
    places = [os.path.realpath(root) for root in roots]
    for k, place in enumerate(places):
        if place in places[:k]:
            raise SourceError(
                f"data_dir names {printable(roots[k])} twice; every image of it would come twice"
            )
    return roots


def join(roots, sources):
    """The images of `sources`, one source after the other, or class by class if all of them are sorted so.

    roots: what to call each source; the names of its images begin with it. The labels are the first source's.
    Raises SourceError where the sources have different classes.
    """
    first = sources[0]
    for root, source in zip(roots[1:], sources[1:]):
        only_first = [name for name in first.class_names if name not in set(source.class_names)]
        only_here = [name for name in source.class_names if name not in set(first.class_names)]
        if only_first or only_here:
            only = [
                f"only {printable(place)} has {some(names)}"
                for place, names in ((roots[0], only_first), (root, only_here))
                if names
            ]
            raise SourceError(
                f"{printable(roots[0])} and {printable(root)} have different classes: {'; '.join(only)}."
                " Sources are joined only if they have the same classes"
            )
    label_of = {name: label for label, name in enumerate(first.class_names)}
    labels = np.concatenate(
        [
            np.array([label_of[name] for name in source.class_names], np.int64)[source.labels]
            if source.class_names
            else source.labels
            for source in sources
        ]
    )
    in_classes = all(source.sorted_by_label for source in sources)
    order = np.argsort(labels, kind="stable") if in_classes else np.arange(len(labels))
    return Joined(
        first.class_names,
        labels[order],
        tuple(map(os.fspath, roots)),
        tuple(sources),
        np.cumsum([0, *map(len, sources)]),
        order,
        notes=tuple(note for source in sources for note in source.notes),
        class_words=_words(sources),
    )


def _words(sources):
    """What each class is called by the first source that says so; empty where none does."""
    words = dict.fromkeys(sources[0].class_names, "")
    for source in sources:
        for name, text in zip(source.class_names, source.class_words):
            words[name] = words[name] or text
    return tuple(words.values()) if any(words.values()) else ()


@dataclass(frozen=True)
class Joined(Source):
    """Images of S sources. starts: int64 [S + 1], the first image of each, and their number.

    order: int64 [len], the number of each image among all, counted through the sources.
    """

    roots: tuple
    sources: tuple
    starts: np.ndarray
    order: np.ndarray

    def _find(self, indices):
        """(source, index in it) of images, each int64 [n]."""
        places = self.order[indices]
        which = np.searchsorted(self.starts, places, side="right") - 1
        return which, places - self.starts[which]

    def image(self, i):
        which, index = self._find(i)
        return self.sources[which].image(int(index))

    def name(self, i):
        which, index = self._find(i)
        return os.path.join(self.roots[which], self.sources[which].name(int(index)))

    @property
    def sorted_by_label(self):
        return all(source.sorted_by_label for source in self.sources)

    @property
    def numbered_classes(self):
        return all(source.numbered_classes for source in self.sources)

    def check_classes(self):
        for source in self.sources:
            source.check_classes()

    @property
    def reader(self):
        return _Reader(self.roots, tuple(source.reader for source in self.sources))

    def handles(self, indices):
        which, index = self._find(np.asarray(indices, np.int64))
        handles = [None] * len(which)
        for k in np.unique(which):
            places = np.flatnonzero(which == k)
            for place, handle in zip(places, self.sources[k].handles(index[places])):
                handles[place] = int(k), handle
        return handles


@dataclass(frozen=True)
class _Reader:
    roots: tuple
    readers: tuple

    def read(self, handle):
        which, handle = handle
        try:
            image, name = read_from(self.readers[which], handle)
        except (ImageError, MachineError) as error:
            raise type(error)(os.path.join(self.roots[which], error.name), error.reason) from error
        return image, os.path.join(self.roots[which], name)
