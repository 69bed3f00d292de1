"""Options: fields of frozen dataclasses that say how a value is checked, and what --help says about it.

    @dataclasses.dataclass(frozen=True)
    class Model:
        arch: str = option("resnet50", help="the backbone")
        width: int = option(64, minimum=4, help="channels of the first stage")

A field's annotation is its type: str, int, float, bool, or a tuple of one of them (tuple[int, ...]), which is
written as 1,2,3 or as a YAML list. A field without a default is required. `llc.config` reads such dataclasses
from files and the command line; `build` makes one from values that were read before.
"""

import dataclasses
import difflib
import math
import typing

from llc.errors import UserError

BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


def option(
    default=dataclasses.MISSING,
    *,
    help,
    choices=None,
    or_positive=False,
    minimum=None,
    maximum=None,
    positional=False,
    formerly=(),
):
    """A field of a dataclass of options.

    choices: the values that are accepted, or a function that returns them; for a tuple, those of each item.
    or_positive: a text option also accepts a number above 0. positional: a command takes it as a word without
    a flag; where the type is a tuple, it takes all words that are left. formerly: names that the option had
    before; whoever uses one is told the new name.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "or_positive": or_positive,
        "minimum": minimum,
        "maximum": maximum,
        "positional": positional,
        "formerly": formerly,
    }
    return dataclasses.field(default=default, metadata=metadata)


def is_required(field):
    return field.default is dataclasses.MISSING


def item_type(field):
    """(type of one value, whether the field is a tuple of them)."""
    if typing.get_origin(field.type) is tuple:
        return typing.get_args(field.type)[0], True
    return field.type, False


def choices_of(field):
    choices = field.metadata["choices"]
    return tuple(choices() if callable(choices) else choices) if choices is not None else None


def convert(field, value):
    """The value of a field, in its type, from text or from what YAML gives. Raises ValueError."""
    kind, several = item_type(field)
    if not several:
        return _convert(field, kind, value)
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    elif not isinstance(value, (list, tuple)):
        value = [value]
    return tuple(_convert(field, kind, part) for part in value)


def _convert(field, kind, value):
    meta, choices = field.metadata, choices_of(field)
    if isinstance(value, (list, tuple, dict)):
        raise ValueError
    if kind is bool:
        if str(value).lower() not in BOOLEANS:
            raise ValueError
        return BOOLEANS[str(value).lower()]
    if kind is str:
        if isinstance(value, bool) and choices:  # YAML reads an unquoted on, off, yes or no as a boolean
            value = next((word for word in choices if BOOLEANS.get(word) is value), value)
        value = str(value)
    else:
        value = _number(kind, value)
    if choices is not None and value not in choices:
        if not (meta["or_positive"] and 0 < float(value) < math.inf):
            raise ValueError
    if meta["minimum"] is not None and value < meta["minimum"]:
        raise ValueError
    if meta["maximum"] is not None and value > meta["maximum"]:
        raise ValueError
    return value


def _number(kind, value):
    """An int or a finite float from text or a number. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    if kind is float:
        return number
    if number != int(number):
        raise ValueError
    try:
        return int(value)  # exact also beyond 2**53, where a float is not
    except ValueError:
        return int(number)  # text such as 1e6


def accepted(field):
    """What a field accepts, in words."""
    meta, choices = field.metadata, choices_of(field)
    kind, several = item_type(field)
    if choices is not None:
        words = ", ".join(map(repr, choices) if "" in choices else map(str, choices))
        words = f"some of {words}, separated by commas" if several else f"one of {words}"
        return words + (", or a positive number" if meta["or_positive"] else "")
    words = f"{_PLURALS[kind]}, separated by commas" if several else _WORDS[kind]
    if meta["minimum"] is not None:
        words += f", at least {meta['minimum']}"
    if meta["maximum"] is not None:
        words += f", at most {meta['maximum']}"
    return words


def default_of(field):
    """The default as --help writes it."""
    if is_required(field):
        return "required"
    if isinstance(field.default, tuple):
        return f"default {','.join(map(str, field.default)) or 'none'}"
    return f"default {field.default!r}"


def build(kind, values, where):
    """kind(**values), each value checked and converted. Keys that are missing get their defaults.

    values: {key: value}, from a file that a program wrote; where: what to call it in messages. Raises
    UserError for an unknown key, a value that does not fit, or a required one that is missing.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    made, problems = {}, []
    for key, value in values.items():
        if key not in fields:
            problems.append(f"{where}{key} is not a key{did_you_mean(key, fields)}")
            continue
        try:
            made[key] = (
                value if value is None and fields[key].default is None else convert(fields[key], value)
            )
        except (ValueError, TypeError):
            problems.append(f"{where}{key} = {value!r:.80}: expected {accepted(fields[key])}")
    problems += [
        f"{where}{name} is missing"
        for name, field in fields.items()
        if is_required(field) and name not in values
    ]
    if problems:
        raise UserError("\n".join(problems))
    return kind(**made)


def did_you_mean(key, known):
    """ "; did you mean ...?" for a key that is not known, or "".

    Nearest are keys of this name in other sections, then those of a section of this name, of which the most
    similar come first, then keys that begin so, and then one that is spelt much alike.
    """
    last = key.split(".")[-1]

    def likeness(name):
        return difflib.SequenceMatcher(None, key, name.removeprefix(f"{key}.")).ratio()

    near = [name for name in known if name.split(".")[-1] == last]
    near = near or sorted((name for name in known if name.startswith(f"{key}.")), key=likeness, reverse=True)
    near = near or [name for name in known if len(key) > 2 and name.startswith(key)]
    near = near or difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""
