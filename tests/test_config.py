"""The command line and its files: all kinds of options and ways to give them, and what mistakes say."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llc import config
from llc.errors import UserError
from llc.files import shipped
from llc.options import build, option
from tests.conftest import ROOT


@dataclasses.dataclass(frozen=True)
class Main:
    """Options without a section."""

    number: int = option(3, minimum=1, maximum=2**60, help="a count")
    ratio: float = option(0.5, help="a ratio")
    fast: bool = option(False, help="be fast")
    safe: bool = option(True, help="be safe")
    mode: str = option("auto", choices=("auto", "on", "off"), help="a mode", formerly=("kind",))
    sizes: tuple[int, ...] = option((1, 2), minimum=1, help="sizes")
    names: tuple[str, ...] = option((), choices=("a", "b"), help="names")
    scale: str = option("none", choices=("none", "sqrt"), or_positive=True, help="a scale")


@dataclasses.dataclass(frozen=True)
class Data:
    """The data."""

    path: str = option(help="where the data is")
    workers: int = option(0, help="threads", formerly=("threads", "other.jobs"))


@dataclasses.dataclass(frozen=True)
class One:
    """One word."""

    run: str = option(positional=True, help="a run folder")
    out: str = option("", positional=True, help="a file")
    top: int = option(1, help="how many")


@dataclasses.dataclass(frozen=True)
class Many:
    """Any number of words."""

    runs: tuple[str, ...] = option((), positional=True, help="run folders")
    top: int = option(1, help="how many")


def read(*argv):
    return config.read_one(Main, list(argv), description="A command.")


def read_sections(*argv):
    return config.read({"": Main, "data": Data}, list(argv), description="A command.")


def error_of(call, *argv):
    with pytest.raises(UserError) as raised:
        call(*argv)
    return str(raised.value)


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


# ---- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, key, expected",
    [
        ([], "number", 3),
        (["--number=7"], "number", 7),
        (["--number", "7"], "number", 7),
        (["--number=7", "--number=8"], "number", 8),
        (["--number=1e3"], "number", 1000),
        (["--number=9007199254740993"], "number", 2**53 + 1),  # a float cannot hold it
        (["--ratio=1e-4"], "ratio", 1e-4),
        (["--ratio", "-2"], "ratio", -2.0),
        (["--fast"], "fast", True),
        (["--fast", "--number=4"], "fast", True),
        (["--fast=0"], "fast", False),
        (["--fast", "yes"], "fast", True),
        (["--safe", "Off"], "safe", False),
        (["--safe=false"], "safe", False),
        (["--sizes=4"], "sizes", (4,)),
        (["--sizes=4, 5,6"], "sizes", (4, 5, 6)),
        (["--names=b,a"], "names", ("b", "a")),
        (["--sizes="], "sizes", ()),
        (["--mode=on"], "mode", "on"),
        (["--scale=2.5"], "scale", "2.5"),
        (["--scale=sqrt"], "scale", "sqrt"),
    ],
)
def test_values_of_the_command_line(argv, key, expected):
    value = getattr(read(*argv), key)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "text, key, expected",
    [
        ("number: 7", "number", 7),
        ("number: '7'", "number", 7),
        ("ratio: 1e-4", "ratio", 1e-4),  # YAML 1.1 reads this as text
        ("ratio: 2", "ratio", 2.0),
        ("fast: yes", "fast", True),
        ("fast: 1", "fast", True),
        ("fast: 'off'", "fast", False),
        ("sizes: [4, 5]", "sizes", (4, 5)),
        ("sizes: 4,5", "sizes", (4, 5)),
        ("sizes: 4", "sizes", (4,)),
        ("sizes: []", "sizes", ()),
        ("mode: on", "mode", "on"),  # YAML reads on and off as booleans
        ("mode: off", "mode", "off"),
        ("number:", "number", 3),
        ("", "number", 3),
    ],
)
def test_values_of_a_file(text, key, expected, tmp_path):
    value = getattr(read(f"--config={write(tmp_path, 'a.yaml', text)}"), key)
    assert value == expected and type(value) is type(expected)


BAD = [
    ("number", "0", "a whole number, at least 1, at most"),
    ("number", "2.5", "a whole number"),
    ("number", "", "a whole number"),
    ("number", "nan", "a whole number"),
    ("number", "inf", "a whole number"),
    ("number", "9" * 400, "a whole number"),
    ("number", "9" * 5000, "a whole number"),
    ("ratio", "nan", "a number"),
    ("ratio", "1e400", "a number"),
    ("ratio", "x", "a number"),
    ("fast", "maybe", "true or false"),
    ("fast", "", "true or false"),
    ("mode", "of", "one of auto, on, off"),
    ("mode", "", "one of auto, on, off"),
    ("sizes", "1,,2", "whole numbers, separated by commas"),
    ("sizes", "1,0", "whole numbers, separated by commas, at least 1"),
    ("names", "a,c", "some of a, b, separated by commas"),
    ("scale", "-1", "one of none, sqrt, or a positive number"),
    ("scale", "nan", "or a positive number"),
]


@pytest.mark.parametrize("key, value, accepted", BAD)
def test_bad_values_are_refused_with_what_is_accepted(key, value, accepted):
    message = error_of(read, f"--{key}={value}")
    assert message.startswith(f"command line: {key} = ") and accepted in message and len(message) < 300


@pytest.mark.parametrize(
    "text, expected",
    [
        ("number: true", "a whole number"),
        ("ratio: .nan", "a number"),
        ("ratio: -.inf", "a number"),
        ("sizes: [1, [2]]", "sizes is a list"),
        ("sizes: [1, true]", "whole numbers"),
        ("sizes: {a: 1}", "sizes.a is not a key"),
        ("number: 2026-01-01", "number is a date"),
        ("number: [1, 2]", "a whole number"),
        (f"number: {'9' * 400}", "a whole number"),
    ],
)
def test_bad_values_of_a_file_name_the_file(text, expected, tmp_path):
    name = write(tmp_path, "a.yaml", text)
    message = error_of(read, "--config", name)
    assert name in message and expected in message


def test_all_bad_values_are_named_at_once():
    message = error_of(read_sections, "--number=0", "--mode=x")
    assert [line.split(" ")[2 if line.startswith("command") else 0] for line in message.splitlines()] == [
        "number",
        "mode",
        "data.path",
    ]
    assert "data.path is required (where the data is): give it as --data.path=VALUE" in message


@given(st.sampled_from([field.name for field in dataclasses.fields(Main)]), st.text(max_size=30))
def test_any_text_is_read_or_refused(key, text):
    try:
        value = getattr(read(f"--{key}={text}"), key)
    except UserError as error:
        assert key in str(error)
    else:
        again = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert getattr(read(f"--{key}={again}"), key) == value


@given(st.integers(1, 2**60))
def test_integers_are_exact(number):
    assert read(f"--number={number}").number == number


def test_build_checks_what_a_program_wrote():
    assert build(Data, {"path": "x", "workers": 2}, "data.") == Data("x", 2)
    with pytest.raises(UserError) as raised:
        build(Data, {"worker": 2, "workers": "x"}, "data.")
    assert str(raised.value).splitlines() == [
        "data.worker is not a key; did you mean workers?",
        "data.workers = 'x': expected a whole number",
        "data.path is missing",
    ]


# ---- words and keys --------------------------------------------------------------------------------------


def read_as(kind, *argv):
    return config.read_one(kind, list(argv), description="A command.")


def test_positional_words():
    assert read_as(One, "r", "--top=2") == One("r", "", 2)
    assert read_as(One, "--top", "2", "r", "o") == One("r", "o", 2)
    assert read_as(Many) == Many() and read_as(Many, "a", "--top=2", "b") == Many(("a", "b"), 2)
    assert "run is required (a run folder): give it as RUN" in error_of(read_as, One)
    assert error_of(read_as, One, "r", "o", "p").startswith("expected RUN OUT; did not expect p")
    assert "takes no words without --; did not expect p q" in error_of(read, "p", "q")
    assert "run is not a key" in error_of(read_as, One, "--run=r")


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--numbr=1", "did you mean number?"),
        ("--data.number=1", "did you mean number?"),
        ("--path=x", "did you mean data.path?"),
        ("--data=x", "did you mean data.path or data.workers?"),
        ("--num=1", "did you mean number?"),
        ("--confg=x", "did you mean config?"),
        ("--plugn=x", "did you mean plugin?"),
        ("--zzzzzz=1", "zzzzzz is not a key (--help lists all keys)"),
        ("--=1", "is not a key"),
        ("--", "is not a key"),
    ],
)
def test_unknown_flags_name_the_nearest(flag, hint):
    message = error_of(read_sections, flag, "--data.path=x")
    assert message.startswith("command line: ") and hint in message


def test_old_spellings_say_what_they_are_now_called(tmp_path):
    assert "kind is now called mode: write --mode=VALUE" in error_of(read, "--kind=on")
    for old in ("data.threads", "other.jobs"):
        expected = f"{old} is now called data.workers: write --data.workers=VALUE"
        assert expected in error_of(read_sections, f"--{old}=2")
        section, key = old.split(".")
        name = write(tmp_path, "a.yaml", f"{section}:\n  {key}: 2\n")
        assert f"{name}: {expected}" in error_of(read_sections, "--config", name)


def test_a_flag_without_its_value():
    for argv in (["--number"], ["--number", "--fast"], ["--config"]):
        assert f"{argv[0]} needs a value: write {argv[0]}=VALUE" in error_of(read, *argv)


def test_help_lists_every_key_with_its_default(capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            config.read({"": Main, "data": Data}, ["--number=9", flag], description="A command.\n")
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith("A command.") and "data: The data." in text
        for key in ("config", "plugin", "number", "fast", "names", "data.path", "data.workers"):
            assert f"\n  --{key}=" in text
        for default in ("default 3", "default 1,2", "default none", "default 'auto'", "required"):
            assert f"; {default}]" in text
    with pytest.raises(SystemExit):
        read_as(One, "-h")
    assert "\n  RUN  a run folder [text; required]" in capsys.readouterr().out


def test_value_of_a_flag_before_the_rest_is_read():
    assert config.value_of("resume", []) is None
    assert config.value_of("resume", ["--resume=a", "--x", "--resume", "b"]) == "b"
    assert config.value_of("resume", ["--resume"]) is None
    assert config.value_of("resume", ["--resume", "--config=a"]) is None
    assert config.value_of("resume", ["--resumed=a"]) is None


# ---- files -----------------------------------------------------------------------------------------------


def test_files_and_flags_override_in_their_order(tmp_path):
    one = write(tmp_path, "1.yaml", "number: 4\nratio: 0.1\ndata:\n  path: x\n  workers: 1\n")
    two = write(tmp_path, "2.yaml", "number: 5\ndata: {workers: 2}\n")
    values = read_sections("--ratio=0.2", "--config", one, f"--config-file={two}")
    assert values["data"] == Data("x", 2) and (values[""].number, values[""].ratio) == (5, 0.2)
    assert read_sections(f"--config={two}", f"--config={one}")["data"] == Data("x", 1)


def test_base_is_relative_nested_and_overridden(tmp_path):
    write(tmp_path, "a/base.yaml", "number: 4\nratio: 0.1\nsizes: [9]\n")
    write(tmp_path, "a/b/middle.yaml", "base: ../base.yaml\nratio: 0.2\n")
    name = write(tmp_path, "top.yaml", "ratio: 0.3\nbase: a/b/middle.yaml\n")
    found = read(f"--config={name}")
    assert (found.number, found.ratio, found.sizes) == (4, 0.3, (9,))
    name = write(tmp_path, "c/absolute.yaml", f"base: {tmp_path / 'a/base.yaml'}\n")
    assert read(f"--config={name}").ratio == 0.1


def test_recipes_of_llc_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ROOT.glob("*_configs"):
        name = f"{folder.name}/{next(folder.glob('*.yaml')).name}"
        assert Path(shipped(name)).samefile(ROOT / name)
    name = "rn18_configs/llc_demo.yaml"
    write(tmp_path, name, "number: 4\n")  # one's own comes first
    assert shipped(name) == name
    assert shipped("setup.py") == "setup.py"  # no other file of a clone


def test_an_error_in_a_base_names_the_base(tmp_path):
    base = write(tmp_path, "base.yaml", "number: 0\n")
    name = write(tmp_path, "top.yaml", "base: base.yaml\n")
    assert error_of(read, f"--config={name}").startswith(f"{base}: number = 0")


@pytest.mark.parametrize(
    "base, message",
    [
        ("other.yaml", "there is no file"),
        ("''", "there is no file"),
        (".", "there is no file"),
        ("top.yaml", "builds on"),
        ("two.yaml", "builds on"),
        ("3", "it takes the name of a YAML file"),
        ("[a.yaml]", "it takes the name of a YAML file"),
    ],
)
def test_a_base_that_cannot_be(base, message, tmp_path):
    write(tmp_path, "two.yaml", "base: top.yaml\n")
    name = write(tmp_path, "top.yaml", f"base: {base}\n")
    text = error_of(read, f"--config={name}")
    assert message in text and "base = " in text and str(tmp_path) in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "not a valid YAML file"),
        ("a: &x 1\nb: *x", "aliases"),
        ("- a", "expected sections with keys, found list"),
        ("text", "expected sections with keys, found str"),
        ("number: 1\nnumber: 2", "number is given twice"),
        ("data: {path: x}\ndata: {workers: 2}", "data is given twice"),
        ("? [a]\n: 1", "not a valid YAML file"),
        ("config: a.yaml", "config is for the command line only"),
        ("plugin: a.py", "plugin is for the command line only"),
        ("numbr: 1", "numbr is not a key; did you mean number?"),
        ("data: {pth: x}", "data.pth is not a key; did you mean data.path?"),
        ("1: 2", "1 is not a key"),
        ("[" * 2000, "not a valid YAML file"),
        ("#" * 70_000, "larger than 65,536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text, message, tmp_path):
    name = write(tmp_path, "a.yaml", text)
    found = error_of(read_sections, f"--config={name}", "--data.path=x")
    assert name in found and message in found


def test_a_file_that_cannot_be_read(tmp_path):
    assert "No such file" in error_of(read, f"--config={tmp_path / 'none.yaml'}")
    assert "directory" in error_of(read, f"--config={tmp_path}")
    assert "cannot be read" in error_of(read, "--config=")
    (tmp_path / "a.yaml").write_bytes(b"number: \xff\xfe")
    assert "not a valid YAML file" in error_of(read, f"--config={tmp_path / 'a.yaml'}")


# ---- ends of commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, status", [(UserError("wrong"), 2), (KeyboardInterrupt(), 130)])
def test_how_a_command_ends(error, status, monkeypatch, capsys):
    def main(argv):
        assert argv == ["a"]
        raise error

    monkeypatch.setattr("sys.argv", ["command", "a"])
    with pytest.raises(SystemExit) as ended:
        config.run(main)
    assert ended.value.code == status
    assert capsys.readouterr().err == ("error: wrong\n" if status == 2 else "interrupted\n")


def test_a_terminal_without_the_environment_is_told_what_to_do():
    """As where .venv is not active: an error in a line, and no traceback."""
    script = "import sys; sys.modules['fastargs'] = None; import llc.config"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {sys.executable} has no package fastargs")
    assert "source .venv/bin/activate" in done.stderr and "Traceback" not in done.stderr
