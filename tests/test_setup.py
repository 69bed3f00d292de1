"""The set-up: declarations, pins and imports agree, and scripts/setup.sh makes and repairs what it should.

setup.sh runs here in a copy of the project. Its PATH holds stand-ins for apt-get, sudo, g++, pkg-config and
Python's venv and pip, so that nothing is installed and the machine is not touched. `make test` installs for
real before these tests start.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import llc
from tests.waiting import seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python does not have it

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PINS = [
    Requirement(line)
    for line in (
        line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
    )
    if line
]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]

# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "faiss": "faiss-cpu",
    "griffe": "griffelib",
    "sklearn": "scikit-learn",
    "mlflow": "mlflow-skinny",
    "huggingface_hub": "huggingface-hub",
}
# needed, but not for an import of ours
NEEDED = {
    "tensorboard": "torch.utils.tensorboard imports it",
    "terminaltables": "fastargs imports it, and does not declare it",
    "setuptools": "setup.sh and scripts/wheel.sh build llc with it",
    "uv": "setup.sh installs the rest with it",
}
# imported by tests only
WITH_TORCH = {"triton"}  # where torch has CUDA
WITH_PYTEST = {"packaging", "tomli", "tomllib"}


def declared(*extras):
    lines = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def third_party_imports(*paths):
    """{distribution: a file that imports it} over all paths, imports inside functions included."""
    own = {
        "llc",
        "tests",
        *(path.stem for folder in (ROOT, ROOT / "scripts") for path in folder.glob("*.py")),
        *(path.stem for path in ROOT.glob("tests/**/*.py")),
    }
    imported = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names | own:
                    imported[DISTRIBUTIONS.get(top, top)] = path.relative_to(ROOT)
    return imported


def product_files():
    """All but setup.py, which the build runs, where it has what pyproject.toml's build-system asks for."""
    return [
        *(path for path in ROOT.glob("*.py") if path.name != "setup.py"),
        *ROOT.glob("scripts/**/*.py"),
        *ROOT.glob("llc/**/*.py"),
    ]


# ---- what is declared --------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_exact_pin_within_its_range(python):
    pins = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names)), "a package is pinned twice"
    for name in declared("test"):
        assert name in names, f"requirements.txt has no {name} for Python {python}"
    for name, pin in zip(names, pins):
        [specifier] = pin.specifier
        assert specifier.operator == "==", f"{pin} is not exact"
        if name in declared("test"):
            assert declared("test")[name].specifier.contains(specifier.version), (
                f"pyproject.toml does not admit {pin}"
            )
        else:
            assert name in NEEDED, f"{pin} is installed, but nothing declares it"


def test_every_import_is_declared_and_every_declared_package_is_imported():
    imported = third_party_imports(*product_files())
    assert {"torch", "numpy", "ffcv"} <= set(imported)  # the search did find something
    extras = PROJECT["optional-dependencies"].keys() - {"test"}
    optional = {name for extra in extras for name in declared(extra)}
    undeclared = {
        name: str(path)
        for name, path in imported.items()
        if name not in declared().keys() | optional | WITH_TORCH
    }
    assert not undeclared, f"imported, but not among pyproject.toml's dependencies: {undeclared}"
    unused = declared().keys() - imported.keys() - NEEDED.keys()
    assert not unused, f"dependencies that nothing imports: {sorted(unused)}"


def test_the_version_is_everywhere_the_same():
    changes = (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == llc.__version__ == re.search(r"^## (\S+)", changes, re.MULTILINE)[1]


def test_imports_of_the_tests_are_declared():
    imported = third_party_imports(*ROOT.glob("tests/**/*.py"))
    undeclared = imported.keys() - declared("test").keys() - WITH_PYTEST - WITH_TORCH
    assert not undeclared, {name: str(imported[name]) for name in undeclared}


def test_version_stands_in_one_place():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "llc.__version__"}
    assert Version(llc.__version__).release >= (0, 1)


def test_every_package_folder_is_found_by_the_installer():
    """setuptools finds packages by their __init__.py: a folder without one would not be installed."""
    without = {
        path.parent.relative_to(ROOT)
        for path in ROOT.glob("llc/**/*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert not without


# ---- setup.sh ----------------------------------------------------------------------------------------------

TOOLS = (
    "bash cat comm cp date dirname env find flock grep head ldd mkdir mv rm sha256sum sh sort tail".split()
)
TOOLS += ["touch", "tr"]

# A stand-in for Python that claims any version. `-m venv` makes a bare .venv with this script as its Python,
# `-m pip` installs one file, and what Debian has in python3-venv and -dev may be missing.
PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*)   mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m uv pip install"*) [ ! -e {sandbox}/uv-fails ] || { echo no index; exit 1; }
                   exec "$0" -m pip install by-uv ;;
    *"install"*)   echo pip "$*" >> {log}
                   [ ! -e {sandbox}/pip-fails ] || exit 1
                   site=$(dirname "$0")/../lib/python3/site-packages; mkdir -p "$site"; touch "$site/torch.py"
                   touch llc/native/_native.so ;;
    "-c import ffcv") ;;
    "-c import venv, ensurepip") [ ! -e {sandbox}/bare ] ;;
    *get_path*)    [ -e {sandbox}/bare ] || echo {sandbox}/include ;;
    --version)     echo Python {version} ;;
    *)             [ "$1" = -c ] || exit 9
                   exec {real} -c "import sys; sys.version_info = {version_info}
sys.base_prefix = '/opt/python'; sys._base_executable = '$0'
$2" ;;
esac
"""
GXX = "#!/bin/sh\n[ -e {sandbox}/installed ]\n"
PKG_CONFIG = "#!/bin/sh\n[ -e {sandbox}/installed ]\n"
APT_GET = (
    "#!/bin/sh\necho apt-get $* >> {log}\ncase \"$*\" in *' install '*) touch {sandbox}/installed ;; esac\n"
)


class Sandbox:
    """A copy of the project's set-up, and a PATH of its own to run it with."""

    def __init__(self, folder):
        self.folder, self.project, self.bin = folder, folder / "project", folder / "bin"
        self.log = folder / "log"
        self.log.touch()
        (self.project / "scripts").mkdir(parents=True)
        for name in ("requirements.txt", "pyproject.toml", "setup.py", "scripts/setup.sh"):
            shutil.copy(ROOT / name, self.project / name)
        shutil.copytree(
            ROOT / "llc/native", self.project / "llc/native", ignore=shutil.ignore_patterns("*.so", "*.py*")
        )
        self.bin.mkdir()
        for tool in TOOLS:
            if shutil.which(tool):
                (self.bin / tool).symlink_to(shutil.which(tool))
        self.add_python("python3", (3, 11, 2))
        (folder / "include").mkdir()
        (folder / "include/Python.h").touch()
        self.add("id", "#!/bin/sh\necho 0\n")

    def add(self, name, text, **values):
        path = self.bin / name
        for key, value in {"sandbox": self.folder, "log": self.log, **values}.items():
            text = text.replace("{" + key + "}", str(value))
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, name, version):
        self.add(
            name,
            PYTHON,
            version=".".join(map(str, version)),
            version_info=(*version, "final", 0),
            real=sys.executable,
        )

    def add_system(self, installed):
        """A compiler and the libraries: there from the start, or from apt-get's first install on."""
        self.add("g++", GXX)
        self.add("pkg-config", PKG_CONFIG)
        if installed:
            (self.folder / "installed").touch()

    def setup(self, *arguments, **environment):
        """Run setup.sh; returns the finished process, with the log of this run alone as its `calls`."""
        self.log.write_text("")
        done = subprocess.run(
            ["bash", str(self.project / "scripts/setup.sh"), *arguments],
            text=True,
            timeout=seconds(60),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": str(self.bin), "HOME": str(self.folder), **environment},
        )
        done.calls = self.log.read_text()
        return done


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


@pytest.fixture
def ready(sandbox):
    """A sandbox whose machine has everything and whose .venv has been made."""
    sandbox.add_system(installed=True)
    first = sandbox.setup()
    assert first.returncode == 0, first.stdout
    assert "pip" in first.calls
    return sandbox


SYSTEM_PACKAGES = "g++ pkg-config libopencv-dev libturbojpeg0-dev libjpeg-dev"


@pytest.mark.parametrize(
    "tools, user, reason",
    [
        ([], 0, "there is no apt-get here"),
        (["apt-get"], 1000, "you are not root and there is no sudo"),
        (["apt-get", "sudo"], 1000, "you are not root and sudo wants a password"),
    ],
)
def test_names_the_system_packages_where_it_cannot_install_them(sandbox, tools, user, reason):
    sandbox.add("id", f"#!/bin/sh\necho {user}\n")
    for tool in tools:
        sandbox.add(tool, {"apt-get": APT_GET, "sudo": "#!/bin/sh\nexit 1\n"}[tool])
    done = sandbox.setup()
    assert done.returncode == 1
    assert reason in done.stdout
    assert f"apt-get install --no-install-recommends {SYSTEM_PACKAGES}\n" in done.stdout
    assert done.calls == ""
    assert not (sandbox.project / ".venv").exists()


def test_names_the_parts_of_python_that_are_missing(sandbox):
    (sandbox.folder / "bare").touch()
    sandbox.add_system(installed=True)
    assert "recommends python3-venv python3-dev\n" in sandbox.setup().stdout


@pytest.mark.parametrize("user", [0, 1000])
def test_installs_what_is_missing_once(sandbox, user):
    sandbox.add("id", f"#!/bin/sh\necho {user}\n")
    sandbox.add("sudo", '#!/bin/sh\n[ "$1" != -n ] || shift\necho sudo >> {log}\nexec "$@"\n')
    sandbox.add("true", "#!/bin/sh\n")
    sandbox.add("apt-get", APT_GET)
    sandbox.add_system(installed=False)
    done = sandbox.setup()
    assert done.returncode == 0, done.stdout
    assert (
        "install -y --no-install-recommends g++ libopencv-dev libturbojpeg0-dev libjpeg-dev\n" in done.calls
    )
    assert ("sudo" in done.calls) == (user != 0)
    (sandbox.project / "requirements.txt").write_text("ffcv==1.0.2\n")
    again = sandbox.setup()
    assert again.returncode == 0, again.stdout
    assert "pip" in again.calls and "apt-get" not in again.calls


def test_does_nothing_the_second_time(ready):
    (ready.project / ".venv/lib/python3/site-packages/my_own.py").touch()
    again = ready.setup()
    assert (again.returncode, again.stdout, again.calls) == (0, "", "")


def delete_a_file(sandbox):
    (sandbox.project / ".venv/lib/python3/site-packages/torch.py").unlink()


def delete_python(sandbox):
    (sandbox.project / ".venv/bin/python").unlink()


def break_off(sandbox):
    """A set-up that ends in the middle, in pip."""
    (sandbox.folder / "pip-fails").touch()
    (sandbox.project / "requirements.txt").write_text("ffcv==1.0.2\n")
    assert sandbox.setup().returncode != 0
    (sandbox.folder / "pip-fails").unlink()


def move(sandbox):
    sandbox.project = sandbox.project.rename(sandbox.folder / "elsewhere")


def upgrade_python(sandbox):
    sandbox.add_python("python3", (3, 12, 1))
    sandbox.add_python("../project/.venv/bin/python", (3, 12, 1))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (delete_a_file, "files are missing from the one here, e.g. ./lib/python3/site-packages/torch.py"),
        (delete_python, "does not start"),
        (break_off, "never finished"),
        (move, "was moved"),
        (upgrade_python, "its Python changed"),
    ],
)
def test_makes_venv_again(ready, damage, reason):
    damage(ready)
    (ready.project / ".venv/left-over").touch()
    done = ready.setup()
    assert done.returncode == 0, done.stdout
    assert "making .venv" in done.stdout and reason in done.stdout
    assert "pip" in done.calls
    assert not (ready.project / ".venv/left-over").exists()
    assert os.listdir(ready.project).count(".venv.removed") == 0
    assert ready.setup().calls == ""


@pytest.mark.parametrize(
    "name", ["requirements.txt", "pyproject.toml", "setup.py", "scripts/setup.sh", "llc/native/src/native.h"]
)
def test_installs_over_what_is_there_when_a_source_changed(ready, name):
    with open(ready.project / name, "a") as file:
        file.write("# changed\n")
    (ready.project / ".venv/left-over").touch()
    done = ready.setup()
    assert done.returncode == 0, done.stdout
    assert "pip" in done.calls
    assert (ready.project / ".venv/left-over").exists()


def test_builds_the_native_library_again_after_make_clean(ready):
    (ready.project / "llc/native/_native.so").unlink()
    done = ready.setup()
    assert done.returncode == 0, done.stdout
    assert "pip" in done.calls and "making .venv" not in done.stdout
    assert (ready.project / "llc/native/_native.so").exists()
    assert ready.setup().calls == ""


def test_keeps_a_venv_that_it_did_not_make(sandbox):
    sandbox.add_system(installed=True)
    own = sandbox.project / ".venv"
    own.mkdir()
    (own / "mine").write_text("years of work")
    done = sandbox.setup()
    assert done.returncode == 0, done.stdout
    [kept] = [path for path in sandbox.project.glob(".venv.*")]
    assert (kept / "mine").read_text() == "years of work"
    assert kept.name in done.stdout
    assert not (own / "mine").exists()


def test_chosen_python_is_kept_until_another_is_chosen(ready):
    ready.add_python("python3.12", (3, 12, 1))
    assert "with Python 3.12.1" in ready.setup(PYTHON="python3.12").stdout
    assert ready.setup().stdout == ""
    delete_a_file(ready)
    assert "with Python 3.12.1" in ready.setup().stdout
    assert "with Python 3.11.2" in ready.setup(PYTHON="python3").stdout


def test_old_python_is_refused_by_name(sandbox):
    sandbox.add_python("python3", (3, 9, 2))
    done = sandbox.setup()
    assert done.returncode == 1
    assert "python3 is Python 3.9.2; llc needs Python 3.10 or newer" in done.stdout
    assert PROJECT["requires-python"] == ">= 3.10"  # the other place that says so
    assert "nonesuch: no such program" in sandbox.setup(PYTHON="nonesuch").stdout


def test_uv_installs_and_pip_where_uv_fails(sandbox):
    sandbox.add_system(installed=True)
    (sandbox.folder / "uv-fails").touch()
    done = sandbox.setup()
    assert done.returncode == 0 and "no index" in done.stdout, done.stdout
    assert "trying pip" in done.stdout and "-r requirements.txt" in done.calls
    (sandbox.folder / "uv-fails").unlink()
    (sandbox.project / "requirements.txt").write_text("uv==1.0\nffcv==1.0.2\n")
    done = sandbox.setup()
    assert done.returncode == 0 and "trying pip" not in done.stdout, done.stdout
    assert "uv==1.0\n" in done.calls and "by-uv" in done.calls and "-r requirements.txt" not in done.calls


def test_installs_the_browser_where_it_is_asked_for_and_missing(ready):
    packages = "chromium chromium-driver"
    assert ready.setup("--browser").stdout == f"setup: not installing {packages}: there is no apt-get here\n"
    ready.add("apt-get", APT_GET)
    done = ready.setup("--browser")
    assert done.returncode == 0 and f"install -y --no-install-recommends {packages}\n" in done.calls
    for name in ("chromium", "chromedriver"):
        assert "apt-get" in ready.setup("--browser").calls
        ready.add(name, "#!/bin/sh\n")
    assert (ready.setup("--browser").stdout, ready.setup("--browser").calls) == ("", "")


def test_unknown_argument_is_refused(sandbox):
    done = sandbox.setup("--fashionmnist")
    assert done.returncode == 1
    assert "unknown argument '--fashionmnist'" in done.stdout
