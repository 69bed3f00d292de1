"""Names of several files in one: braces, as shells and WebDataset expand them, and wildcards."""

import glob
import os
import re

from llc.data.sources.base import SourceError, printable
from llc.data.sources.listing import does_not_exist

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_MOST_FILES = 1_000_000


def expand(pattern):
    """The sorted files that a wildcard names; for braces, the files in their order, all of which must exist.

    Raises SourceError where there is none, or one of those in braces is missing.
    """
    found = []
    for path in expand_braces(pattern):
        if os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path):
            found += sorted(glob.glob(path, recursive=True))
        else:
            raise does_not_exist(path, "" if path == pattern else f"; {printable(pattern)} names it")
    if not found:
        raise SourceError(f"no file fits the pattern {printable(pattern)}")
    return list(dict.fromkeys(found))


def expand_braces(pattern):
    """The texts that `pattern` stands for, in order.

    >>> expand_braces("{train,val}-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar', 'val-09.tar', 'val-10.tar']

    As in bash: {a,b{c,d}} is a list, {1..9..2} a range with a step; numbers get zeros in front where one of a
    range's ends has them. Other braces stand for themselves. Raises SourceError where it names a million
    files.
    """
    start = -1
    while (start := pattern.find("{", start + 1)) >= 0:
        parts, end = _parts(pattern, start)
        if end < 0:
            continue
        if len(parts) == 1:
            choices = _range(parts[0])
            if choices is None:
                continue
        else:
            choices = [text for part in parts for text in expand_braces(part)]
        rest = expand_braces(pattern[end + 1 :])
        if len(choices) * len(rest) > _MOST_FILES:
            raise SourceError(f"data_dir {pattern} names more than {_MOST_FILES:,} files")
        return [pattern[:start] + choice + after for choice in choices for after in rest]
    return [pattern]


def split_outside_braces(text):
    """The texts between the commas of `text` that are not within braces.

    >>> split_outside_braces("x-{a,{b,c},d}.tar,y{,z")
    ['x-{a,{b,c},d}.tar', 'y{', 'z']

    A brace that is never closed stands for itself.
    """
    parts, begin, at = [], 0, 0
    while at < len(text):
        if text[at] == "{":
            at = max(at, _parts(text, at)[1])
        elif text[at] == ",":
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
    return [*parts, text[begin:]]


def _parts(pattern, start):
    """(texts between the commas of the brace that opens at `start`, where it closes or -1)."""
    depth, parts, begin = 0, [], start + 1
    for at in range(start, len(pattern)):
        letter = pattern[at]
        if letter == "{":
            depth += 1
        elif letter == "," and depth == 1:
            parts.append(pattern[begin:at])
            begin = at + 1
        elif letter == "}" and depth > 1:
            depth -= 1
        elif letter == "}" and (parts or _range(pattern[begin:at]) is not None):
            return [*parts, pattern[begin:at]], at
        # any other closing brace is a letter of the first part, as in bash: {a},b} is a list of a} and b
    return parts, -1


def _range(text):
    """The numbers of "first..last" or "first..last..step" as texts; None where it is no range."""
    match = _RANGE.fullmatch(text)
    if not match:
        return None
    first, last, step = int(match[1]), int(match[2]), abs(int(match[3] or 1)) or 1
    if abs(last - first) // step >= _MOST_FILES:
        raise SourceError(f"data_dir: {{{text}}} names more than {_MOST_FILES:,} files")
    padded = any(re.match(r"-?0\d", end) for end in (match[1], match[2]))
    width = max(len(match[1]), len(match[2])) if padded else 0
    numbers = range(first, last + 1, step) if last >= first else range(first, last - 1, -step)
    return [f"{number:0{width}}" for number in numbers]
