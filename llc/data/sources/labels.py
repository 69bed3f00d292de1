"""What several sources need: classes from stored labels, columns and splits by their usual names."""

import re

import numpy as np

from llc.data.sources.base import SourceError, some

# Usual names of columns, in lower case. The first group that names any column of a table decides.
IMAGE_COLUMNS = (
    ("image", "img", "jpg", "jpeg", "png", "webp", "bytes"),
    (
        "image_path",
        "img_path",
        "image_file",
        "image_name",
        "img_name",
        "file_name",
        "filename",
        "file_path",
        "filepath",
        "path",
        "file",
    ),
    ("image_id", "imageid", "img_id", "id", "id_code"),
)
LABEL_COLUMNS = (
    ("label", "labels", "fine_label", "cls", "class", "target"),
    ("class_name", "label_name", "classname", "category", "wnid", "synset", "class_id", "label_id", "y"),
)

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def classes_of_numbers(numbers, where, names=None):
    """(class_names, labels int64 [n]) of class numbers, int64 [n].

    names: what the numbers 0, 1, ... are called. Without them, the classes are the numbers that occur, in
    order of value. All -1 means images without labels: no class_names. where(i): what messages call image i.
    Raises SourceError where a number is no class.
    """
    if not len(numbers) or (numbers == -1).all():
        return (), np.full(len(numbers), -1, np.int64)
    wrong = (numbers < 0) | (numbers >= (len(names) if names else np.iinfo(np.int64).max))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        known = f"0 to {len(names) - 1}, of its {len(names)} class names" if names else "0 or more"
        raise SourceError(
            f"{where(first)} has the label {numbers[first]}, as {wrong.sum():,} of {len(numbers):,} images"
            f" have one that is no class; labels are {known} (all of them -1: images without labels)"
        )
    if names:
        return _distinct(names), numbers.astype(np.int64)
    found, labels = np.unique(numbers, return_inverse=True)
    return tuple(map(str, found.tolist())), labels.astype(np.int64)


def classes_of_texts(texts, where):
    """(class_names, labels int64 [n]) of labels as text.

    If all of them are whole numbers, they are class numbers. Otherwise the classes are the sorted texts.
    Raises SourceError as `classes_of_numbers`.
    """
    numbers = {text: number_in(text) for text in set(texts)}
    if None not in numbers.values():
        try:
            values = np.array([numbers[text] for text in texts], np.int64)
        except OverflowError:
            pass  # no class numbers, whatever they are
        else:
            return classes_of_numbers(values, where)
    class_names = sorted(numbers)
    label_of = {name: label for label, name in enumerate(class_names)}
    return tuple(class_names), np.array([label_of[text] for text in texts], np.int64)


def number_in(text):
    """The whole number that a label is, or None. Table programs write 3 as 3.0 where others are missing."""
    match = re.fullmatch(r"\s*([+-]?[0-9]+)(?:\.0+)?\s*", text)
    return int(match[1]) if match else None


def are_numbers(class_names):
    """Whether class names are only numbers, which `Source.numbered_classes` explains."""
    return bool(class_names) and all(name.isdecimal() for name in class_names)


def _distinct(names):
    """The names as a tuple; one that occurs twice gets its number, because class names must differ."""
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    return tuple(f"{name} ({label})" if name in repeated else name for label, name in enumerate(names))


def usual_column(columns, groups, what, source):
    """The one of `columns` with a usual name, or None. Raises SourceError where several have one.

    groups: IMAGE_COLUMNS or LABEL_COLUMNS. what: "image" or "label". source: what messages call the table.
    """
    for group in groups:
        found = [column for column in columns if column.strip().lower() in group]
        if len(found) > 1:
            raise SourceError(
                f"{source} has several columns that may be the {what}: {some(found)}; name the {what} column"
            )
        if found:
            return found[0]
    return None


def chosen_column(choice, columns, what, source):
    """The column that the user named, by its name or by its number counted from 0. Raises SourceError."""
    if choice in columns:
        return choice
    if choice.isdecimal() and int(choice) < len(columns):
        return columns[int(choice)]
    raise SourceError(f"{source} has no {what} column {choice!r}; its columns are {some(columns)}")


def split_in(path):
    """The split that a relative path names: "train", "val", "test", or None. The last one counts."""
    words = [_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", path.lower()) if word in _SPLIT_WORDS]
    return words[-1] if words else None


def of_split(paths, split, source, found_by_name=True):
    """Those of the relative `paths` that belong to a split, in order.

    If no path names a split, or (unless `found_by_name`) all name the same one, all of them do. "val" may
    also be test, where there is no val. Raises SourceError where the split is missing. source: what messages
    call the paths.
    """
    splits = [split_in(path) for path in paths]
    named = set(splits) - {None}
    if not named or (not found_by_name and len(set(splits)) == 1):
        return list(paths)
    for candidate in ("val", "test") if split == "val" else (split,):
        if candidate in named:
            return [path for path, name in zip(paths, splits) if name == candidate]
    raise SourceError(
        f"{source} holds nothing for split={split}, only {' and '.join(sorted(named))}"
        + ("; a val split can be held out of train with val_fraction" if split == "val" else "")
    )
