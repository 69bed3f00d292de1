"""Launches of a fake Triton kernel: the current device, and the errors if Triton finds no compiler."""

import contextlib
import subprocess

import pytest
import torch

from llc.errors import UserError
from llc.kernels import cuda_launch

# The command by which triton.runtime.build (3.6 and 3.8) builds the code that launches kernels.
COMMAND = ["/usr/bin/gcc", "/tmp/tmpx/main.c", "-O3", "-shared", "-fPIC", "-o", "/tmp/tmpx/cuda_utils.so"]
NO_COMPILER = "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs."


class Kernel:
    """Launched like a Triton kernel: kernel[grid](...)."""

    def __init__(self, run):
        self.run = run

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.run(grid, *arguments, **options)


def failing(error):
    def run(grid, *arguments):
        raise error

    return Kernel(run)


def test_the_tensors_device_is_current_during_a_launch(monkeypatch):
    events, tensor = [], torch.zeros(3)

    @contextlib.contextmanager
    def device_of(of):
        events.append("enter")
        assert of is tensor
        yield
        events.append("leave")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    kernel = Kernel(lambda *arguments, **options: events.append((arguments, options)))
    cuda_launch.launch(kernel, 7, tensor, 5, num_warps=8)
    assert events == ["enter", (((7,), tensor, 5), {"num_warps": 8}), "leave"]


def test_a_grid_beyond_cudas_limit_is_refused():
    with pytest.raises(
        ValueError, match="2,147,483,648 programs exceed CUDA's limit of 2,147,483,647: pass.*in parts"
    ):
        cuda_launch.launch(failing(AssertionError("launched")), 1 << 31, torch.zeros(3))


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError(NO_COMPILER), "needs a C compiler.*finds none: install gcc.*python3-dev"),
        (
            subprocess.CalledProcessError(1, COMMAND),
            "packages gcc and python3-dev.*the command was /usr/bin/gcc",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "no-such-cc"),
            "CC=no-such-cc is not there: correct CC",
        ),
    ],
)
def test_a_missing_compiler_is_named(monkeypatch, error, message):
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(UserError, match=message) as raised:
        cuda_launch.launch(failing(error), 1, torch.zeros(3))
    assert raised.value.__cause__ is error


def test_tritons_own_build_step_fails_like_that(monkeypatch, tmp_path):
    build = pytest.importorskip("triton.runtime.build", reason="a torch without CUDA brings none")
    monkeypatch.setenv("CC", "false")  # a command that exists and fails
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = Kernel(lambda *arguments: build.compile_module_from_src("#include <Python.h>", "launcher"))
    forget = getattr(getattr(build, "_find_compiler", None), "cache_clear", lambda: None)
    forget()
    with pytest.raises(UserError, match="Triton needs a C compiler.*python3-dev.*the command was false /"):
        cuda_launch.launch(kernel, 1, torch.zeros(3))
    forget()


def test_missing_headers_are_named(monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/no/python3.12"})
    with pytest.raises(UserError, match="found no /no/python3.12/Python.h: install gcc and Python's headers"):
        cuda_launch.launch(failing(subprocess.CalledProcessError(1, COMMAND)), 1, torch.zeros(3))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PassManager::run failed"),
        subprocess.CalledProcessError(1, ["/sbin/ldconfig", "-p"]),
        FileNotFoundError(2, "No such file or directory", "/tmp/elsewhere"),
        FileNotFoundError(),
        ValueError("k"),
    ],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised:
        cuda_launch.launch(failing(error), 1, torch.zeros(3))
    assert raised.value is error


def test_a_launch_is_checked_by_its_result(monkeypatch):
    cuda_launch.check_launch(torch.device("cpu"))  # pack_bits needs no launch on a CPU
    monkeypatch.setattr("llc.codes.pack_bits", lambda values: torch.zeros(1, 1, dtype=torch.uint8))
    with pytest.raises(
        RuntimeError, match=r"packing the value 1 on cpu gave \[\[0\]\] instead of \[\[128\]\]"
    ):
        cuda_launch.check_launch(torch.device("cpu"))
