"""Launches Triton kernels on their tensors' device, and says what to install if that fails."""

import contextlib
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llc import environment
from llc.errors import UserError

MAX_PROGRAMS = (1 << 31) - 1  # CUDA's limit for the first axis of a grid
NEEDED = "Triton needs a C compiler to launch kernels on CUDA"
INSTALL = "install gcc and Python's headers (on Debian and Ubuntu the packages gcc and python3-dev)"


def launch(kernel: Any, num_programs: int, *arguments: Any, **options: Any) -> None:
    """Runs num_programs programs of a Triton kernel on the device of arguments[0], a tensor.

    Triton itself would launch on the process's current device, wherever the tensors are. At the first launch
    Triton builds the code that launches kernels; UserError is raised if it finds no C compiler or no Python.h
    for that. Raises ValueError as `check_grid` does.
    """
    check_grid(num_programs)
    with torch.cuda.device_of(arguments[0]), missing_compiler_explained():
        kernel[num_programs,](*arguments, **options)


def check_grid(num_programs: int) -> None:
    """Raises ValueError if these are more programs than CUDA can launch at once."""
    if num_programs > MAX_PROGRAMS:
        raise ValueError(
            f"{num_programs:,} programs exceed CUDA's limit of {MAX_PROGRAMS:,}: "
            "pass the queries or the values in parts"
        )


@contextlib.contextmanager
def missing_compiler_explained() -> Iterator[None]:
    """Turns Triton's errors about its C compiler into a UserError that says what to install."""
    try:
        yield
    except RuntimeError as error:
        if "Failed to find C" not in str(error):
            raise
        raise UserError(f"{NEEDED} and finds none: {INSTALL}") from error
    except FileNotFoundError as error:
        if error.filename is None or error.filename != environment.c_compiler():
            raise
        advice = f"correct CC, or unset it and {INSTALL}"
        raise UserError(f"{NEEDED}, but CC={error.filename} is not there: {advice}") from error
    except subprocess.CalledProcessError as error:
        if not isinstance(error.cmd, list) or "-shared" not in error.cmd:
            raise
        header = Path(sysconfig.get_paths()["include"], "Python.h")
        problem = "it failed" if header.exists() else f"it found no {header}"
        command = " ".join(map(str, error.cmd))
        raise UserError(f"{NEEDED}, but {problem}: {INSTALL}; the command was {command}") from error


def check_launch(device: torch.device) -> None:
    """Packs one value on a CUDA device, to find out before a long run whether kernels run there.

    Raises UserError as `launch` does, and RuntimeError if the result is wrong.
    """
    from llc.codes import pack_bits  # here, because it imports this module for tensors on CUDA

    packed = pack_bits(torch.ones(1, 1, device=device)).tolist()
    if packed != [[128]]:
        raise RuntimeError(
            f"packing the value 1 on {device} gave {packed} instead of [[128]]: "
            "Triton or the driver is broken"
        )
