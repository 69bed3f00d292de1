"""WordNet's noun hierarchy, as far as ImageNet's classes need it: distances between classes, words, groups.

A hierarchy is a directed graph without cycles: each entry has hypernyms ("is a kind of"), often one,
sometimes several, and only the root has none. wordnet_imagenet.txt, beside this file, is that of the
1,000 classes of ImageNet's ILSVRC-2012, among them the 200 of Tiny ImageNet. Another file in its format
may be used instead, also for classes that WordNet does not know:

    # a comment
    animal<TAB><TAB>animal, beast
    cat<TAB>animal<TAB>cat, true cat
    tabby<TAB>cat,pet<TAB>tabby

Each line holds a name, the names of its hypernyms separated by commas, and words separated by commas, of
which the first is shown. The order of the lines does not matter. The words may be missing: then the name
is shown.
"""

import collections
import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llc.errors import UserError
from llc.files import stand_in

IMAGENET = Path(__file__).with_name("wordnet_imagenet.txt")


class NoCommonHypernym(ValueError):
    """Two classes have no hypernym in common, so no path leads from one to the other."""


def is_wordnet_id(name: str) -> bool:
    """Whether a class name is an id such as n01440764."""
    return re.fullmatch(r"n[0-9]{8}", name) is not None


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Entries of a hierarchy by name: their hypernyms, and their words as one text.

    `read` makes one and checks it: every hypernym is an entry, and there is no cycle.
    """

    hypernyms: Mapping[str, tuple[str, ...]]
    words: Mapping[str, str]

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of the names that the hierarchy does not have, in order."""
        return [name for name in names if name not in self.hypernyms]

    def ancestors(self, name: str) -> dict[str, int]:
        """{entry: steps of the shortest path to it} of all entries above one, and itself with 0 steps."""
        steps, level, count = {name: 0}, [name], 0
        while level:
            count += 1
            above = dict.fromkeys(hypernym for entry in level for hypernym in self.hypernyms[entry])
            level = [entry for entry in above if entry not in steps]
            steps |= dict.fromkeys(level, count)
        return steps

    def depth(self, name: str) -> int:
        """The number of entries on the shortest path from a root to this one, both included: 1 for a root."""
        above = self.ancestors(name)
        return 1 + min(count for entry, count in above.items() if not self.hypernyms[entry])


def read(path: str | os.PathLike[str] | None = None) -> Hierarchy:
    """The Hierarchy that a file holds; without a path, that of ImageNet's classes.

    Raises UserError naming the file, and the line where there is one, if it is something else.
    """
    path = IMAGENET if path is None else Path(path)
    try:
        something_else = stand_in(path)
        if something_else:
            raise UserError(f"{path}: {something_else}")
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8: {error}") from error
    hypernyms: dict[str, tuple[str, ...]] = {}
    words = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        if not name or not 1 <= len(rest) <= 2:
            raise UserError(
                f"{path}, line {number}: {line!r:.80}: expected a name, a TAB, names of hypernyms "
                "separated by commas (none for the root), and perhaps a TAB and words"
            )
        if name in hypernyms:
            raise UserError(f"{path}, line {number}: {name} has a line already; join the two")
        hypernyms[name] = tuple(dict.fromkeys(part.strip() for part in rest[0].split(",") if part.strip()))
        words[name] = rest[1] if len(rest) == 2 else ""
    for name, above in hypernyms.items():
        for hypernym in above:
            if hypernym not in hypernyms:
                raise UserError(f"{path}: {name} has the hypernym {hypernym}, which has no line of its own")
    _check_cycles(path, hypernyms)
    return Hierarchy(hypernyms, words)


def _first(words: str) -> str:
    return words.split(",")[0].strip()


@functools.cache
def _imagenet() -> Hierarchy:
    return read()


def word(name: str, own: str = "") -> str:
    """The first of the words that say what a class is, "" where they are not known.

    own: the words that come with the data, such as "tench, Tinca tinca". Without them, those of WordNet are
    taken if the name is the id of one of ImageNet's classes.
    """
    if own or not is_wordnet_id(name):
        return _first(own)
    return _first(_imagenet().words.get(name, ""))


def with_word(name: str, own: str = "") -> str:
    """A class's name for a line of text, with its `word` behind it: n01440764 tench."""
    found = word(name, own)
    return f"{name} {found}" if found and found != name else name


def shown(names: Sequence[str], own: Sequence[str] = ()) -> list[str]:
    """What pictures and pages call classes: each class's `word`, or its name where there is none.

    Where several classes have the same word, as two of ImageNet's are cranes, their names stand behind it.
    own: the words that come with the data, for each class, or none.
    """
    words = [word(*both) for both in zip(names, own or [""] * len(names), strict=True)]
    count = collections.Counter(found or name for found, name in zip(words, names))
    return [
        (f"{found} ({name})" if count[found] > 1 else found) if found else name
        for found, name in zip(words, names)
    ]


def _check_cycles(path: Path, hypernyms: Mapping[str, tuple[str, ...]]) -> None:
    """Raises UserError if an entry is above itself. An entry is taken away once all above it are."""
    left = {name: len(above) for name, above in hypernyms.items()}
    below: dict[str, list[str]] = {name: [] for name in hypernyms}
    for name, above in hypernyms.items():
        for hypernym in above:
            below[hypernym].append(name)
    free = [name for name, count in left.items() if not count]
    while free:
        for name in below[free.pop()]:
            left[name] -= 1
            if not left[name]:
                free.append(name)
    stuck = [name for name, count in left.items() if count]
    if stuck:
        raise UserError(f"{path}: the hypernyms of {stuck[0]} lead back to an entry that they came from")


def distances(hierarchy: Hierarchy, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How far apart entries are in a hierarchy: (steps, 1 - Wu-Palmer similarity), each float64 [n, n].

    steps: the length of the shortest path from one entry up to a common hypernym and down to the other,
    over all hypernyms that they share. Wu-Palmer similarity is the largest 2 d / (2 d + that path), d
    being the depth of the common hypernym and 1 for the root (Wu and Palmer, "Verb semantics and lexical
    selection", ACL 1994, for a tree; over several hypernyms the largest is taken).

    Raises ValueError for names that the hierarchy does not have, and NoCommonHypernym.
    """
    names = list(names)
    if unknown := hierarchy.missing(names):
        raise ValueError(f"names: {unknown[0]!r} is not in the hierarchy")
    below: dict[str, list[tuple[int, int]]] = {}
    for i, name in enumerate(names):
        for entry, count in hierarchy.ancestors(name).items():
            below.setdefault(entry, []).append((i, count))
    steps = np.full((len(names), len(names)), np.inf)
    similarity = np.zeros_like(steps)
    for entry, pairs in below.items():
        classes, counts = np.array(pairs).T
        block, paths = np.ix_(classes, classes), counts[:, None] + counts
        steps[block] = np.minimum(steps[block], paths)
        twice = 2 * hierarchy.depth(entry)
        similarity[block] = np.maximum(similarity[block], twice / (twice + paths))
    if np.isinf(steps).any():
        a, b = np.argwhere(np.isinf(steps))[0]
        raise NoCommonHypernym(f"{names[a]!r} and {names[b]!r} have no hypernym in common")
    return steps, 1 - similarity


def groups(hierarchy: Hierarchy, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The entries that divide the classes `names`: those that some, but not all, of them are a kind of.

    Returns (entries, members bool [entries, n]), the deepest entries first. Of entries with the same members
    only the deepest is kept, and those with a single member are left out.
    """
    members: dict[str, np.ndarray] = {}
    for i, name in enumerate(names):
        for entry in hierarchy.ancestors(name):
            members.setdefault(entry, np.zeros(len(names), bool))[i] = True
    found: dict[bytes, str] = {}
    for entry in sorted(members, key=lambda entry: (-hierarchy.depth(entry), entry)):
        if 1 < members[entry].sum() < len(names):
            found.setdefault(members[entry].tobytes(), entry)
    kept = list(found.values())
    return kept, np.array([members[entry] for entry in kept], bool).reshape(len(kept), len(names))
