"""The one place where Triton's kernels are launched: on the tensors' device, with errors that say what to install."""
import contextlib
import os
import subprocess
import sysconfig

import torch

from llc.errors import UserError

MAX_PROGRAMS = (1 << 31) - 1   # CUDA's limit for the first axis of a grid


def launch(kernel, num_programs, *arguments, **options):
    """Runs num_programs programs of a Triton kernel on the device of arguments[0], a tensor, and on that device's current stream.

    Triton itself launches on the process's current device, whatever device the tensors are on. Raises UserError where Triton finds no
    C compiler or no Python.h: it builds the code that launches a kernel when it is first needed.
    """
    if num_programs > MAX_PROGRAMS:
        raise ValueError(f"{num_programs:,} programs exceed CUDA's {MAX_PROGRAMS:,}: pass fewer queries or values at a time")
    with torch.cuda.device_of(arguments[0]), missing_compiler_explained():
        kernel[num_programs,](*arguments, **options)


@contextlib.contextmanager
def missing_compiler_explained():
    """Turns Triton's errors about its C compiler into a UserError that names what to install; all others pass."""
    try:
        yield
    except RuntimeError as error:
        if "Failed to find C" not in str(error):
            raise
        raise UserError("Triton finds no C compiler, which it needs to launch kernels on CUDA: install gcc, or set CC to a compiler") from error
    except FileNotFoundError as error:
        if error.filename is None or error.filename != os.environ.get("CC"):
            raise
        raise UserError(f"CC={error.filename} does not exist: Triton needs a C compiler to launch kernels on CUDA; "
                        "install gcc and unset CC, or set it to a compiler") from error
    except subprocess.CalledProcessError as error:
        if not isinstance(error.cmd, list) or "-shared" not in error.cmd:
            raise
        header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
        found = "failed" if os.path.exists(header) else f"found no {header}"
        raise UserError(f"the C compiler that Triton needs to launch kernels on CUDA {found}: install gcc and Python's headers (on Debian "
                        f"and Ubuntu the packages gcc and python3-dev); the command was {' '.join(map(str, error.cmd))}") from error


def check_launch(device):
    """Packs one value on a CUDA device: raises UserError where Triton cannot launch kernels, before hours of training depend on it."""
    from llc.codes import pack_bits   # which imports this module
    packed = pack_bits(torch.ones(1, 1, device=device)).tolist()
    if packed != [[128]]:
        raise RuntimeError(f"packing the value 1 on {device} gave {packed} instead of [[128]]: Triton or the driver is broken")
