"""Which classes a source has, in which label order: those of another dataset, or those that a file lists."""

import difflib
import re

import numpy as np

from llc.data.sources.base import Selection, SourceError, printable, some
from llc.files import shipped

_MAX_SHOWN = 10  # names that no class has, each with near ones
_WORDNET_LINE = re.compile(r"(n\d{8})\s+(\S.*)")


def with_class_names(source, class_names, origin="class_names_from"):
    """The same images, labelled by `class_names`, which must hold all of the source's.

    Where the source's classes are only numbers, they are positions in `class_names` (_places). origin: where
    messages say that class_names are from. Raises SourceError.
    """
    position = {name: label for label, name in enumerate(class_names)}
    strange = [name for name in source.class_names if name not in position]
    places = _places(source, len(class_names)) if strange else None
    if places is not None:
        return _relabel(source, class_names, places, notes=(_meaning(places, source, class_names),))
    if strange:
        missing = [name for name in class_names if name not in set(source.class_names)]
        raise SourceError(
            f"{len(strange)} classes are not among the {len(class_names)} of {origin}:"
            f" {some(strange)}" + (f"; without images here: {some(missing)}" if missing else "")
        )
    words = ()
    if source.class_words:
        of_class = dict(zip(source.class_names, source.class_words))
        words = tuple(of_class.get(name, "") for name in class_names)
    return _relabel(source, class_names, [position[name] for name in source.class_names], words)


def with_classes(source, path):
    """Only the images of the classes that the file `path` lists, in its label order.

    The file is text in UTF-8 with a class a line. Blank lines and lines that begin with # are ignored. A line
    is a class name, or a class name and what the class is called, as `n01440764 tench, Tinca tinca`. Where
    the source's classes are only numbers, and a line is none of them, the lines name the classes in the order
    of their numbers (_places).

    Raises SourceError.
    """
    lines = _read_lines(path)
    label_of = {name: label for label, name in enumerate(source.class_names)}
    entries = [_entry(line, label_of) for _, line in lines]
    strange = [(number, line) for (number, line), entry in zip(lines, entries) if entry is None]
    if strange and source.numbered_classes:
        return _with_names_of_numbers(source, path, lines)
    if strange:
        raise _unknown_classes(source, path, strange, len(lines))
    _check_once(path, lines, [name for name, _ in entries])
    labels = np.full(len(source.class_names), -1)
    for label, (name, _) in enumerate(entries):
        labels[label_of[name]] = label
    own_words = source.class_words or ("",) * len(source.class_names)
    words = tuple(text or own_words[label_of[name]] for name, text in entries)
    note = f"{len(entries)} of {len(source.class_names)} classes, as {printable(path)} lists them"
    return _relabel(source, [name for name, _ in entries], labels, words, (note,))


def _with_names_of_numbers(source, path, lines):
    places = _places(source, len(lines))
    if places is None:
        raise SourceError(
            f"{printable(path)} names {len(lines)} classes, but the classes here are numbers up to"
            f" {max(map(int, source.class_names))}: give a name for each of them, or list only such numbers"
        )
    matches = [(_WORDNET_LINE.fullmatch(line), line) for _, line in lines]
    names = [match[1] if match else line for match, line in matches]
    _check_once(path, lines, names)
    words = tuple(match[2] if match else "" for match, _ in matches)
    return _relabel(source, names, places, words, (_meaning(places, source, names),))


def _places(source, num_names):
    """The position among `num_names` names of each class of a source whose classes are numbers.

    Numbers count from 0. If the highest one is `num_names`, and there is no 0, they count from 1. None where
    the classes are no numbers, or are more than the names.
    """
    if not source.numbered_classes:
        return None
    places = np.array([int(name) for name in source.class_names])
    if places.max() == num_names and places.min() > 0:
        places -= 1
    return places if places.max() < num_names else None


def _meaning(places, source, names):
    first = int(np.argmin(places))
    return (
        f"the classes are numbers, and {len(names)} names are given for them: {source.class_names[first]} is"
        f" {printable(names[places[first]])}"
    )


def _read_lines(path):
    """[(line number, text)] of the lines that are neither blank nor comments."""
    if str(path).endswith(".json"):
        raise SourceError(
            f"classes={printable(path)} is no list of names, a class a line; to follow a manifest use"
            " class_names_from"
        )
    try:
        with open(shipped(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [(number, line.strip()) for number, line in enumerate(file, 1)]
    except OSError as error:
        raise SourceError(f"classes={printable(path)} cannot be read: {error.strerror or error}") from error
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise SourceError(f"classes={printable(path)} names no class; write one a line")
    return lines


def _entry(line, known):
    """(class name, what the class is called or "") of a line, or None where it names none of `known`."""
    if line in known:
        return line, ""
    name, *words = line.split(None, 1)
    return (name, words[0]) if name in known and words else None


def _check_once(path, lines, names):
    seen = {}
    for (number, _), name in zip(lines, names):
        if name in seen:
            raise SourceError(
                f"{printable(path)} names the class {printable(name)} in lines {seen[name]} and {number};"
                " every class needs a name of its own"
            )
        seen[name] = number


def _unknown_classes(source, path, strange, num_lines):
    """The SourceError for lines that name no class, with classes whose names are near."""
    shown_as = {name.lower(): name for name in source.class_names}
    for name, words in zip(source.class_names, source.class_words):
        for word in filter(None, map(str.strip, words.lower().split(","))):
            shown_as.setdefault(word, f"{name} ({words})")
    told = []
    for number, line in strange[:_MAX_SHOWN]:
        near = difflib.get_close_matches(line.lower(), shown_as, n=3)
        near = list(dict.fromkeys(shown_as[match] for match in near))
        told.append(f"line {number}: {printable(line)}" + (f" (near: {some(near)})" if near else ""))
    more = f"; and {len(strange) - _MAX_SHOWN} more" if len(strange) > _MAX_SHOWN else ""
    return SourceError(
        f"{printable(path)}: {len(strange)} of its {num_lines} names are not classes here: {'; '.join(told)}"
        f"{more}. The {len(source.class_names)} classes are: {some(source.class_names, 10)}"
    )


def _relabel(source, class_names, labels_of, class_words=(), notes=()):
    """The images of the classes that stay, with new labels.

    labels_of: the new label of each class of the source, [num_classes]; -1 leaves the class out.
    """
    labels = np.asarray(labels_of, np.int64)[source.labels]
    order = np.argsort(labels, kind="stable") if source.sorted_by_label else np.arange(len(labels))
    order = order[labels[order] >= 0]
    counts = np.bincount(labels[order], minlength=len(class_names))
    without = [name for name, count in zip(class_names, counts) if not count]
    if not len(order):
        raise SourceError(f"there are no images of the {len(class_names)} classes: {some(class_names)}")
    if without:
        notes += (
            f"{len(without)} of {len(class_names)} classes have no images in this split: {some(without)}",
        )
    return Selection(
        tuple(class_names),
        labels[order],
        source,
        order,
        notes=(*source.notes, *notes),
        class_words=tuple(class_words) if any(class_words) else (),
    )
