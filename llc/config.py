"""The command line: frozen dataclasses of options <- YAML files, then --section.key=value and --key=value.

Every command takes the same form: its positional words, then flags in any order. `read` makes dataclasses of
`llc.options` from them. fastargs holds the sections and validates the values; what it leaves out is added
here: an unknown key is an error that names the nearest known one, and `run` turns errors into exit statuses.
"""

import dataclasses
import difflib
import io
import os
import re
import sys
from pathlib import Path

try:
    from fastargs import Param, Section
    from fastargs.config import Config as FastargsConfig
    from fastargs.validation import Checker
except ModuleNotFoundError as error:  # in a clone, nearly always a terminal without the virtual environment
    sys.exit(
        f"error: {sys.executable} has no package {error.name}; in a clone, run `make setup` once and "
        "`source .venv/bin/activate` in every new terminal, or install llc with pip"
    )

from llc import environment, plugins
from llc.errors import UserError
from llc.files import shipped
from llc.options import BOOLEANS, accepted, convert, default_of, did_you_mean, is_required, item_type
from llc.yaml_file import read_yaml

_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # control characters but tab and newline
_TOP = "_"  # fastargs' name for the section without a name
_COMMAND_LINE = "command line"  # where a value comes from, in messages


class _FieldChecker(Checker):
    """fastargs' checker of one dataclass field: converts the value or raises ValueError."""

    def __init__(self, field):
        self.field = field

    def check(self, value):
        return convert(self.field, value)

    def help(self):
        return accepted(self.field)


class _Command:
    """The fields of a command's sections by key, "section.name" or, in the section "", "name"."""

    def __init__(self, sections):
        self.sections = sections
        self.fields, self.positionals, self.formerly = {}, {}, {}
        for section, kind in sections.items():
            for field in dataclasses.fields(kind):
                key = f"{section}.{field.name}" if section else field.name
                self.fields[key] = field
                if field.metadata["positional"]:
                    self.positionals[key] = field
                for old in field.metadata["formerly"]:
                    self.formerly[f"{section}.{old}" if section and "." not in old else old] = key
        self.flags = {key: field for key, field in self.fields.items() if key not in self.positionals}

    def check_key(self, key, where):
        """Raises UserError unless `key` is one of the flags."""
        if key in self.flags:
            return
        if key in self.formerly:
            raise UserError(
                f"{where}: {key} is now called {self.formerly[key]}: write --{self.formerly[key]}=VALUE"
            )
        on_command_line = where == _COMMAND_LINE
        if key in ("config", "config-file", "plugin") and not on_command_line:
            raise UserError(f"{where}: {key} is for the command line only: write --{key}=VALUE")
        hint = did_you_mean(key, [*self.flags, *(("config", "plugin") if on_command_line else ())])
        section = key.rpartition(".")[0]
        if section and not difflib.get_close_matches(section, list(self.sections), n=1):
            hint += f"; if {section} is an addition from outside llc, name its file with --plugin=FILE.py"
        raise UserError(f"{where}: {key} is not a key{hint} (--help lists all keys)")


def read(sections, argv, *, description):
    """argv -> {section: dataclass instance}.

    sections: {name: frozen dataclass of llc.options}; keys of the section "" are written without a section,
    and its positional fields as plain words, in their order. `--config=FILE` (also `--config-file`;
    repeatable, later files win) reads keys from a YAML file, in which `base: OTHER.yaml`, relative to the
    file, names one that it builds on. A flag of a bool may stand alone. `--help` prints all keys and exits
    with 0. Where there is no such FILE or OTHER.yaml, the name may be that of a recipe that comes with llc,
    such as rn50_configs/llc_20bit.yaml. Raises UserError for an unknown key, a bad or missing value, an
    unreadable file.
    """
    command = _Command(sections)
    files, overrides, words = _split(command, argv, description)
    values, origin = {}, {}
    for name in files:
        for key, (value, where) in _from_file(shipped(name)).items():
            command.check_key(key, where)
            values[key], origin[key] = value, where
    values |= overrides
    origin |= dict.fromkeys(overrides, _COMMAND_LINE)
    registry = _registry(command)
    registry.collect({_path(key): value for key, value in (values | _placed(command, words)).items()})
    problems = []
    for path in registry.validate(mode="errordict"):
        key, param = ".".join(path).removeprefix(f"{_TOP}."), registry.entries[path]
        if path not in registry.content:
            how = key.upper() if key in command.positionals else f"--{key}=VALUE"
            problems.append(f"{key} is required ({param.desc}): give it as {how}")
        else:
            where, value = origin.get(key, _COMMAND_LINE), registry.content[path]
            problems.append(f"{where}: {key} = {value!r:.80}: it takes {param.checker.help()}")
    if problems:
        raise UserError("\n".join(problems))
    return {
        section: kind(**{f.name: registry[f"{section or _TOP}.{f.name}"] for f in dataclasses.fields(kind)})
        for section, kind in sections.items()
    }


def read_one(kind, argv, *, description):
    """`read` for a command whose keys have no sections: argv -> an instance of `kind`."""
    return read({"": kind}, argv, description=description)[""]


def value_of(flag, argv):
    """The value of a flag in argv, for commands that need it before they can read the rest.

    flag: its name without --. As in `read`, the last one counts. Returns None if there is no value.
    """
    value = None
    for word, following in zip(argv, [*argv[1:], None]):
        name, has_value, own = word.partition("=")
        if name == f"--{flag}":
            value = own if has_value else following
            if not has_value and following is not None and following.startswith("--"):
                value = None
    return value


def _path(key):
    return key if "." in key else f"{_TOP}.{key}"


def _registry(command):
    """fastargs' Config of a command's sections."""
    registry = FastargsConfig()
    for section, kind in command.sections.items():
        params = {}
        for field in dataclasses.fields(kind):
            required = is_required(field)
            default = None if required else field.default
            checker = _FieldChecker(field)
            params[field.name] = Param(checker, field.metadata["help"], required=required, default=default)
        title = (kind.__doc__ or section).strip()
        Section(section or _TOP, title, config_descriptor=registry).params(**params)
    return registry


def _split(command, argv, description):
    """(configuration files, {key: text} of the flags, words that are no flags) of argv."""
    files, overrides, words = [], {}, []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word in ("--help", "-h"):
            print(_help(command, description))
            sys.exit(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        key, has_value, value = word[2:].partition("=")
        is_file = key in ("config", "config-file")
        if not is_file:
            command.check_key(key, _COMMAND_LINE)
        if not has_value:
            value = _next_value(command, key, queue)
        if is_file:
            files.append(value)
        else:
            overrides[key] = value
    return files, overrides, words


def _next_value(command, key, queue):
    """The value of a flag that was given without `=`: the next word, or true for a bool."""
    if key in command.flags and item_type(command.flags[key])[0] is bool:
        return queue.pop(0) if queue and queue[0].lower() in BOOLEANS else "true"
    if not queue or queue[0].startswith("--"):
        raise UserError(f"--{key} needs a value: write --{key}=VALUE")
    return queue.pop(0)


def _placed(command, words):
    """{key: value} of the positional words. Raises UserError where there are too many."""
    values, left = {}, list(words)
    for key, field in command.positionals.items():
        if item_type(field)[1]:
            if left:
                values[key], left = left, []
        elif left:
            values[key] = left.pop(0)
    if left:
        wanted = " ".join(key.upper() for key in command.positionals)
        expected = f"expected {wanted}" if wanted else "this command takes no words without --"
        raise UserError(f"{expected}; did not expect {' '.join(left)} (--help lists all arguments)")
    return values


def _from_file(name, above=()):
    """{key: (value, file)} of a YAML file and of the files that it builds on. Raises UserError."""
    content = read_yaml(name)
    base = content.pop("base", None)
    values = {}
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"--config {name}: base = {base!r}: it takes the name of a YAML file")
        chain = (*above, os.path.realpath(name))
        path = Path(shipped(base, Path(name).parent))
        if os.path.realpath(path) in chain:
            raise UserError(f"--config {name}: base = {base}: this file builds on {name} itself")
        if not path.is_file():
            raise UserError(f"--config {name}: base = {base}: there is no file {path}")
        values = _from_file(str(path), chain)
    return values | {key: (value, name) for key, value in _flatten(name, content).items()}


def _flatten(name, content, prefix=""):
    """{"section.key": value} of a YAML file's content. Raises UserError for values that are no option's."""
    flat = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        single = isinstance(value, (str, int, float))
        if isinstance(value, dict) and not prefix:
            flat.update(_flatten(name, value, path + "."))
        elif single or isinstance(value, list) and all(isinstance(v, (str, int, float)) for v in value):
            flat[path] = value
        elif value is not None:
            raise UserError(
                f"--config {name}: {path} is a {type(value).__name__}; it takes a single text, number or "
                "boolean, or a list of them (a file has sections, and keys in them)"
            )
    return flat


def _help(command, description):
    lines = [description.strip(), "", "arguments:"]
    for key, field in command.positionals.items():
        lines.append(f"  {key.upper()}  {field.metadata['help']} [{accepted(field)}; {default_of(field)}]")
    lines.append("  --config=FILE  a YAML file of the keys below (repeatable; the command line wins)")
    lines.append(
        "  --plugin=FILE.py  an addition from outside the package (repeatable; docs/how-to/extending.md)"
    )
    for section, kind in command.sections.items():
        if section:
            lines += ["", f"{section}: {(kind.__doc__ or section).strip().splitlines()[0]}"]
        for field in dataclasses.fields(kind):
            key = f"{section}.{field.name}" if section else field.name
            if key in command.flags:
                lines.append(f"  --{key}=  {field.metadata['help']} [{accepted(field)}; {default_of(field)}]")
    return "\n".join(lines)


# ---- entry points ---------------------------------------------------------------------------------------


def run(main):
    """Runs an entry point: a UserError becomes one printed message and exit status 2, Ctrl-C status 130.

    Among several processes only the first prints. torchrun's report at the end shows the error of the process
    that failed first, whichever it is. What the terminal's encoding lacks is printed as an escape, because a
    name with such a letter must not end a command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    quiet = environment.rank() != 0
    try:
        main(plugins.take(sys.argv[1:]))
        sys.stdout.flush()
        _leave(0)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has enough. Python must not write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell reports a process that SIGPIPE ended
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
        _report_to_torchrun(error)
        raise


def _end(error, quiet):
    _report_to_torchrun(error)
    if not quiet:
        # Control characters would reach the terminal from the names of files that the message may hold.
        text = re.sub(_CONTROL, lambda m: f"\\x{ord(m[0]):02x}", str(error))
        print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(2)


def _leave(status):
    """Ends one of several processes without the interpreter's own clean-up.

    During that clean-up gloo's threads may still want the GIL, to release their last messages. Python ends
    them there by an exception that C++ answers with abort(), and torchrun would report a run as failed that
    had done everything it should.
    """
    if environment.world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _report_to_torchrun(error):
    """Writes the error where torchrun looks for it."""
    if environment.torchrun_error_file():
        # imported here, because most commands do without torch
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
