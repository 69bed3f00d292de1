"""--plugin: files and modules are imported once; what cannot be imported is named."""

import sys

import pytest

from llc import plugins
from llc.errors import UserError


@pytest.fixture(autouse=True)
def as_before(monkeypatch, tmp_path):
    """Modules, sys.path and the list of plugins are put back."""
    modules = dict(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "loaded", [])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    yield
    for name in sys.modules.keys() - modules.keys():
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def error_of(name):
    with pytest.raises(UserError) as raised:
        plugins.load(name)
    assert f"--plugin={name}: " in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("form", [["--plugin=sub/an_addition.py"], ["--plugin", "sub/an_addition.py"]])
def test_a_file_is_imported_once_and_its_flag_removed(form, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/an_addition.py").write_text(
        "import sys\nsys.count_of_imports = 1 + sys.count_of_imports\n"
    )
    sys.count_of_imports = 0
    try:
        assert plugins.take(["a", *form, "--x=1", *form]) == ["a", "--x=1"]
        assert sys.count_of_imports == 1
    finally:
        del sys.count_of_imports
    assert plugins.loaded == [str(tmp_path / "sub/an_addition.py")]
    assert sys.modules["an_addition"].__file__ == plugins.loaded[0]
    assert str(tmp_path / "sub") in sys.path  # worker processes find it there


def test_a_module_is_imported(tmp_path):
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package/__init__.py").touch()
    (tmp_path / "some_package/inner.py").touch()
    sys.path.append(str(tmp_path))
    assert plugins.take(["--plugin=some_package.inner"]) == []
    assert plugins.loaded == ["some_package.inner"] and "some_package.inner" in sys.modules


@pytest.mark.parametrize("argv", [["--plugin"], ["--plugin="], ["--plugin=", "x"]])
def test_the_flag_needs_a_value(argv):
    with pytest.raises(UserError, match="--plugin needs a value"):
        plugins.take(argv)


def test_a_missing_file_or_module():
    assert "there is no such file" in error_of("none.py")
    assert "there is no such module" in error_of("no_such_module_here")
    assert "there is no such module" in error_of("no_such_module_here.inner")
    assert "there is no such module" in error_of("json.inner")
    assert "there is no such module" in error_of("./none")


@pytest.mark.parametrize("name", ["json.py", "sys.py", "this.py", "__main__.py"])
def test_a_name_that_another_module_has(name, tmp_path):
    (tmp_path / name).touch()
    assert f"another module is called {name[:-3]}; rename the file" in error_of(name)


@pytest.mark.parametrize("name", ["a.b.py", "my-plugin.py", "1.py"])
def test_a_name_that_no_module_can_have(name, tmp_path):
    (tmp_path / name).touch()
    assert "is no name of a Python module; rename the file" in error_of(name)


@pytest.mark.parametrize(
    "text, message",
    [
        ("\nraise OSError('no luck')\n", "importing it failed: OSError: no luck ({file}, line 2)"),
        ("import no_such_module_here\n", "importing it failed: ModuleNotFoundError"),
        ("def f(:\n", "importing it failed: SyntaxError"),
    ],
)
def test_a_plugin_that_raises_is_named(text, message, tmp_path):
    (tmp_path / "failing_addition.py").write_text(text)
    assert message.format(file=tmp_path / "failing_addition.py") in error_of("failing_addition.py")
    assert plugins.loaded == [] and "failing_addition" not in sys.modules


def test_an_error_for_the_user_stays_as_it_is(tmp_path):
    (tmp_path / "asking_addition.py").write_text(
        "from llc.errors import UserError\nraise UserError('do this')\n"
    )
    with pytest.raises(UserError, match="^do this$"):
        plugins.load("asking_addition.py")
