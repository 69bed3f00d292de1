"""The edge where configuration is read: frozen dataclasses <- fastargs sections <- YAML files, then the command line.

A section is a frozen dataclass. A field's annotation (str, int, float, bool) is its type, its default the default (none:
required), and `option(help=..., choices=..., minimum=...)` says the rest. fastargs holds and validates the values; what it
leaves out is added here: an unknown key is an error that names the nearest known one, and every error exits non-zero.
"""

import dataclasses
import difflib
import math
import os
import sys

import yaml
from fastargs import Param, Section
from fastargs.config import Config as FastargsConfig
from fastargs.validation import Checker

from llc.errors import UserError

MAX_YAML_BYTES = 1 << 16  # of a configuration file; the longest recipe here has 2 kB
BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def option(default=dataclasses.MISSING, *, help, choices=None, or_positive=False, minimum=None, maximum=None):
    """A dataclass field of a section, with what --help and the checks need to know of it.

    or_positive: beside the choices a text also takes a number above 0.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "or_positive": or_positive,
        "minimum": minimum,
        "maximum": maximum,
    }
    return dataclasses.field(default=default, metadata=metadata)


class _FieldChecker(Checker):
    """fastargs checker of one dataclass field: converts the value or raises ValueError."""

    def __init__(self, field):
        self.field = field

    def check(self, value):
        kind, meta = self.field.type, self.field.metadata
        if kind is bool:
            if str(value).lower() not in BOOLEANS:
                raise ValueError
            value = BOOLEANS[str(value).lower()]
        elif kind is str:
            value = str(value)
        else:
            try:
                number = float(value)
            except OverflowError:  # an integer of hundreds of digits
                raise ValueError from None
            if not math.isfinite(number) or kind is int and number != int(number):
                raise ValueError
            value = int(number) if kind is int else number
        if (
            meta["choices"] is not None
            and value not in meta["choices"]
            and not (meta["or_positive"] and 0 < float(value) < math.inf)
        ):
            raise ValueError
        if meta["minimum"] is not None and value < meta["minimum"]:
            raise ValueError
        if meta["maximum"] is not None and value > meta["maximum"]:
            raise ValueError
        return value

    def help(self):
        meta = self.field.metadata
        if meta["choices"] is not None:
            return (
                "one of "
                + ", ".join(map(str, meta["choices"]))
                + (", or a positive number" if meta["or_positive"] else "")
            )
        words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[
            self.field.type
        ]
        if meta["minimum"] is not None:
            words += f", at least {meta['minimum']}"
        if meta["maximum"] is not None:
            words += f", at most {meta['maximum']}"
        return words


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What was read: `sections` name -> dataclass instance, `options` name -> text or None, `positionals` in order."""

    sections: dict
    options: dict
    positionals: list


def read(sections, argv, *, description, options=None, positionals=()):
    """Reads YAML files (`--config FILE`, also `--config-file`, repeatable, later wins) and `--section.key=value`.

    sections: {name: frozen dataclass type}; options: {name: help} of `--name=value` flags outside the sections;
    positionals: names of the positional arguments, all required. `--help` prints and exits with 0.
    Raises UserError for an unknown key, a bad or missing value, an unreadable file.
    """
    options = options or {}
    registry = FastargsConfig()
    for name, kind in sections.items():
        params = {}
        for field in dataclasses.fields(kind):
            required = field.default is dataclasses.MISSING
            params[field.name] = Param(
                _FieldChecker(field),
                field.metadata["help"],
                required=required,
                default=None if required else field.default,
            )
        Section(name, (kind.__doc__ or name).strip(), config_descriptor=registry).params(**params)
    known = [".".join(path) for path in registry.entries]

    files, overrides, given, words = [], {}, dict.fromkeys(options), []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word in ("--help", "-h"):
            print(_help(registry, description, options, positionals))
            sys.exit(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        key, has_value, value = word[2:].partition("=")
        if not has_value:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"--{key} needs a value: write --{key}=VALUE")
            value = queue.pop(0)
        if key in ("config", "config-file"):
            files.append(value)
        elif key in options:
            given[key] = value
        else:
            _check_key(key, known, "command line", [*options, "config"])
            overrides[key] = value
    if len(words) != len(positionals):
        wanted = " ".join(p.upper() for p in positionals) or "no positional arguments"
        raise UserError(f"expected {wanted}; got {' '.join(words) or 'none'} (--help shows all arguments)")

    origin = {}
    for name in files:
        for key, value in _flatten(name, read_yaml(name)).items():
            _check_key(key, known, name)
            registry.collect({key: value})
            origin[key] = name
    registry.collect(overrides)
    origin.update(dict.fromkeys(overrides, "command line"))

    problems = []
    for path in registry.validate(mode="errordict"):
        key, param = ".".join(path), registry.entries[path]
        if path in registry.content:
            problems.append(
                f"{origin[key]}: {key} = {registry.content[path]!r}: it takes {param.checker.help()}"
            )
        else:
            problems.append(f"{key} is required ({param.desc}): give it as --{key}=VALUE")
    if problems:
        raise UserError("\n".join(problems))
    made = {
        name: kind(**{f.name: registry[f"{name}.{f.name}"] for f in dataclasses.fields(kind)})
        for name, kind in sections.items()
    }
    return Arguments(made, given, words)


def run(main):
    """Runs an entry point: a UserError becomes one printed message and exit status 2, Ctrl-C status 130.

    Of several processes the first prints. torchrun's report at the end shows the error of the process that failed first, whichever it is.
    """
    quiet = int(os.environ.get("RANK", "0")) != 0
    try:
        main(sys.argv[1:])
        _leave(0)
    except SystemExit as end:
        if type(end.code) is int:
            _leave(end.code)
        raise
    except UserError as error:
        _end(error, quiet)
    except KeyboardInterrupt:
        if not quiet:
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        if "torch" in sys.modules:  # most commands do without it
            from llc import gpu

            if gpu.is_out_of_memory(error):
                return _end(gpu.memory_error(error), quiet)
        _tell_torchrun(error)
        raise


def _end(error, quiet):
    _tell_torchrun(error)
    if not quiet:
        print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def _leave(status):
    """Ends one of several processes without the interpreter's own clearing away.

    During that, gloo's threads may still want the GIL, to let go of their last messages; Python ends them there by an exception that C++
    answers with abort(), and torchrun would call a run failed that had done all it should.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell_torchrun(error):
    """Writes the error where torchrun looks for it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import (
            get_error_handler,
        )  # here: most commands do without torch

        get_error_handler().record_exception(error)


def _check_key(key, known, where, more=()):
    if key in known:
        return
    same_end = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = same_end[:3] or difflib.get_close_matches(key, [*known, *more], n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help for the known keys"
    raise UserError(f"{where}: {key} is not a key; {hint} (all keys: --help)")


def _flatten(name, content, prefix=""):
    """{"section.key": value} of a YAML file's content. Raises UserError where a value is not a single text, number or boolean."""
    flat = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and not prefix:
            flat.update(_flatten(name, value, path + "."))
        elif isinstance(value, (str, int, float)):
            flat[path] = value
        elif value is not None:
            raise UserError(
                f"--config {name}: {path} is a {type(value).__name__}; it takes a single text, number or boolean "
                "(a file has sections, and keys in them)"
            )
    return flat


class _YamlLoader(yaml.SafeLoader):
    """SafeLoader without aliases (*name): a few lines of them can stand for more values than any memory holds."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not taken", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


def read_yaml(name, flag="config"):
    """The mapping in the YAML file `name`, {} where it is empty; `flag` gave it. Raises UserError for anything else."""
    try:
        with open(name, "rb") as file:
            text = file.read(MAX_YAML_BYTES + 1)
        if len(text) > MAX_YAML_BYTES:
            raise UserError(
                f"--{flag} {name}: larger than {MAX_YAML_BYTES:,} bytes, which no configuration is"
            )
        content = yaml.load(text.decode("utf-8"), _YamlLoader)
    except OSError as error:
        raise UserError(f"--{flag} {name}: cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # PyYAML lets through what Python raises for a tag without its value, a day 99, too deep nesting
        raise UserError(f"--{flag} {name}: not a YAML file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--{flag} {name}: expected sections with keys, found {type(content).__name__}")
    return content


def _help(registry, description, options, positionals):
    lines = [description, ""]
    for name in positionals:
        lines.append(f"  {name.upper()}")
    lines.append("  --config=FILE  a YAML file of the keys below (repeatable; the command line wins)")
    lines += [f"  --{name}=VALUE  {text}" for name, text in options.items()]
    for namespace, paths in registry.sections_to_entries.items():
        lines += ["", f"{'.'.join(namespace)}: {registry.sections[namespace].desc.splitlines()[0]}"]
        for path in paths:
            param = registry.entries[path]
            default = "required" if param.required else f"default {param.default!r}"
            lines.append(f"  --{'.'.join(path)}=  {param.desc} [{param.checker.help()}; {default}]")
    return "\n".join(lines)
