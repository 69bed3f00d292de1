"""Where all Triton kernels are launched: on the tensors' device, with errors that say what to install."""

import contextlib
import os
import subprocess
import sysconfig

import torch

from llc.errors import UserError

MAX_PROGRAMS = (1 << 31) - 1  # CUDA's limit for the first axis of a grid
NEEDED = "Triton needs a C compiler to launch kernels on CUDA"
INSTALL = "install gcc and Python's headers (on Debian and Ubuntu the packages gcc and python3-dev)"


def launch(kernel, num_programs, *arguments, **options):
    """Runs num_programs programs of a Triton kernel on the device of arguments[0], a tensor.

    Triton itself would launch on the process's current device, wherever the tensors are. Raises UserError
    where Triton finds no C compiler or no Python.h, because it builds the code that launches kernels when it
    first needs it.
    """
    check_grid(num_programs)
    with torch.cuda.device_of(arguments[0]), missing_compiler_explained():
        kernel[num_programs,](*arguments, **options)


def check_grid(num_programs):
    """Raises ValueError when CUDA cannot launch so many programs."""
    if num_programs > MAX_PROGRAMS:
        raise ValueError(
            f"{num_programs:,} programs exceed CUDA's limit of {MAX_PROGRAMS:,}: "
            "pass the queries or the values in parts"
        )


@contextlib.contextmanager
def missing_compiler_explained():
    """Turns Triton's errors about its C compiler into a UserError that says what to install."""
    try:
        yield
    except RuntimeError as error:
        if "Failed to find C" not in str(error):
            raise
        raise UserError(f"{NEEDED} and finds none: {INSTALL}") from error
    except FileNotFoundError as error:
        if error.filename is None or error.filename != os.environ.get("CC"):
            raise
        advice = f"correct CC, or unset it and {INSTALL}"
        raise UserError(f"{NEEDED}, but CC={error.filename} is not there: {advice}") from error
    except subprocess.CalledProcessError as error:
        if not isinstance(error.cmd, list) or "-shared" not in error.cmd:
            raise
        header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
        found = "failed" if os.path.exists(header) else f"found no {header}"
        command = " ".join(map(str, error.cmd))
        raise UserError(f"{NEEDED}, but it {found}: {INSTALL}; the command was {command}") from error


def check_launch(device):
    """Packs one value on a CUDA device, to find out before a long run whether kernels can be launched there.

    Raises UserError as `launch` does, RuntimeError when the result is wrong.
    """
    from llc.codes import pack_bits  # imports this module for tensors on CUDA

    packed = pack_bits(torch.ones(1, 1, device=device)).tolist()
    if packed != [[128]]:
        raise RuntimeError(
            f"packing the value 1 on {device} gave {packed} instead of [[128]]: "
            "Triton or the driver is broken"
        )
