"""Builds llc/native/_native.so and adds the recipes; everything else about the package is in pyproject.toml.

The library has a plain C interface and does not use Python, so one build serves every Python version: the
wheel's tag is py3-none-PLATFORM.
"""

import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = Path("llc/native/src")
RECIPES = sorted(
    path
    for folder in ("rn18_configs", "rn50_configs", "backbone_configs")
    for path in Path(folder).iterdir()
    if path.suffix in (".yaml", ".txt")
)


def libjpeg(kind):
    """Compiler or linker flags for libjpeg-turbo. kind: --cflags or --libs.

    Without pkg-config, the flags work if the library is where the compiler looks by default.
    """
    if shutil.which("pkg-config"):
        done = subprocess.run(["pkg-config", kind, "libjpeg"], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.split()
    return ["-ljpeg"] if kind == "--libs" else []


class BuildLibrary(build_ext):
    """Builds a plain shared library: its name has no Python version, and it exports no PyInit function."""

    def get_ext_filename(self, name):
        return str(Path(*name.split("."))) + ".so"

    def get_export_symbols(self, extension):
        return []


class WithRecipes(build_py):
    """Puts recipes and class lists into the package, where llc.files.shipped finds them without a clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for recipe in RECIPES:
                target = Path(self.build_lib, "llc/recipes", recipe)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(recipe, target)


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "llc.native._native",
            sources=sorted(str(path) for path in SOURCES.rglob("*.cpp")),
            depends=sorted(str(path) for path in SOURCES.rglob("*.h")),
            include_dirs=[str(SOURCES)],
            language="c++",
            # No -march, because one build must run on every CPU of the platform. Faster kernels for newer
            # CPUs are chosen at run time.
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-ffp-contract=off",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                *libjpeg("--cflags"),
            ],
            extra_link_args=[*libjpeg("--libs"), "-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "build_py": WithRecipes, "bdist_wheel": PlatformWheel},
)
