"""The wheel of scripts/wheel.sh, installed where there is no compiler, and the whole path run from it.

Its virtual environment sees the packages of the one that runs the tests, so that torch is not downloaded
again, but neither its llc nor packages that llc does not depend on. Everything runs in a folder outside the
project.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from tests.conftest import ROOT
from tests.waiting import seconds

NOT_NEEDED = ("cv2", "ffcv", "numba", "llvmlite")  # where tests and benchmarks have them
TRAINING = (
    "--config=rn18_configs/llc_demo.yaml",
    "--model.width=8",
    "--codes.num_bits=10",
    "--training.batch_size=24",
    "--codebook.epochs=2",
    "--codebook.lr_peak_epoch=1",
    "--instance.epochs=1",
    "--data.train_dataset=train.beton",
    "--data.val_dataset=val.beton",
    "--logging.name=run",
)
# Prints the shared libraries that are loaded after a JPEG went through the native library.
REPORT = """
import json, sys, llc
from llc.native.codec import decode
pixels = decode(open(sys.argv[1], "rb").read())
loaded = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if ".so" in line}
print(json.dumps({"llc": llc.__file__, "shape": pixels.shape, "loaded": sorted(loaded)}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel) of scripts/wheel.sh."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        ["bash", ROOT / "scripts/wheel.sh", folder],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=seconds(300),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of a virtual environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=seconds(120))
    python = folder / "bin/python"
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([python, "-I", "-m", "pip", *words, built[1]], check=True, timeout=seconds(120))
    [packages] = folder.glob("lib/python*/site-packages")
    # Packages of a path in a .pth file are found, but the .pth files there, the editable llc's, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in NOT_NEEDED:
        (packages / f"{name}.py").write_text(f"raise ImportError('{name} is no dependency of llc')\n")
    return folder


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs `python WORDS` of the virtual environment, in a folder of its own, and returns what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {"PATH": str(installed / "bin"), "HOME": str(folder), "LANG": "C.UTF-8"}
    for tool in ("g++", "gcc", "cc", "c++", "pkg-config", "make", "patchelf"):
        assert shutil.which(tool, path=environment["PATH"]) is None

    def run(*words):
        done = subprocess.run(
            [installed / "bin/python", *map(str, words)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds(240),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = folder
    return run


def test_the_wheel_is_for_every_python_and_systems_as_old_as_torchs(built):
    assert built[1].name.endswith("-py3-none-manylinux_2_28_x86_64.whl")


def test_the_wheel_holds_the_package_and_its_notices_only(built):
    with zipfile.ZipFile(built[1]) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    assert {name.partition("/")[0] for name in files} == {"llc", "llcodes.libs", info}
    others = {name for name in files if name.startswith("llc/") and not name.endswith(".py")}
    assert {name for name in others if not name.startswith("llc/recipes/")} == {
        "llc/py.typed",
        "llc/native/_native.so",
        "llc/evaluation/wordnet_imagenet.txt",
        "llc/report/page.html",
        "llc/serve/docs.html",
        "llc/serve/page.html",
    }
    assert {name for name in files if name.endswith(".py")} == {
        str(path.relative_to(ROOT)) for path in ROOT.glob("llc/**/*.py")
    }
    recipes = {str(path.relative_to(ROOT)): path.read_bytes() for path in ROOT.glob("*_configs/*")}
    assert len(recipes) > 5 and "rn50_configs/imagenet100.txt" in recipes
    assert {f"llc/recipes/{name}": content for name, content in recipes.items()} == {
        name: content for name, content in files.items() if name.startswith("llc/recipes/")
    }
    [library] = [name for name in files if name.startswith("llcodes.libs/")]
    assert "libjpeg" in library
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    notice = files[f"{info}/licenses/licenses/libjpeg-turbo.txt"]
    assert b"based in part on the work of the Independent JPEG Group" in notice


def test_the_sdist_holds_what_a_wheel_needs_and_no_tests(built):
    """The wheel of the fixture was built from it."""
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "pyproject.toml", "setup.py", "llc/native/src/native.h"} <= names
    assert not any(name.startswith("tests") for name in names)


def test_the_loaded_libraries_are_the_wheels(run, installed, image_tree):
    report = json.loads(run("-c", REPORT, sorted(image_tree.glob("train/class_0/*.jpg"))[0]))
    [packages] = installed.resolve().glob("lib/python*/site-packages")
    assert report["llc"] == str(packages / "llc/__init__.py")
    assert report["shape"][2] == 3
    assert str(packages / "llc/native/_native.so") in report["loaded"]
    [jpeg] = [path for path in report["loaded"] if "libjpeg" in path]
    assert jpeg.startswith(str(packages / "llcodes.libs/libjpeg-"))


def test_conversion_training_encoding_and_search(run, image_tree):
    for split in ("train", "val"):
        run(
            "-m",
            "llc.write",
            f"--cfg.data_dir={image_tree}",
            f"--cfg.split={split}",
            f"--cfg.write_path={split}.beton",
            "--cfg.max_resolution=40",  # below the longer side of most, so that they are shrunk
            "--cfg.num_workers=2",
        )
    run("-m", "llc.train", *TRAINING)
    assert "MHD" in run("-m", "llc.evaluate", "runs/run")
    run("-m", "llc.encode", "runs/run", "--data=val.beton", "--out=codes.npz")
    found = run("-m", "llc.search", "codes.npz", "--queries=codes.npz", "--k=3", "--out=found.npz")
    assert "(0)" in found
    picture = sorted(image_tree.glob("val/class_0/*.png"))[0]  # not a JPEG: Pillow's way
    assert "(" in run("-m", "llc.search", "codes.npz", f"--queries={picture}", "--model=runs/run", "--k=1")
    assert (run.folder / "found.npz").is_file() and (run.folder / "runs/run/codebook.npy").is_file()
