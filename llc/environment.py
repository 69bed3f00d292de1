"""The environment variables that llc reads; no other module of the package reads any.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and those that begin with TORCHELASTIC_
(docs.pytorch.org/docs/stable/elastic/run.html). A process that was started alone has none of them.
"""

import os


def rank():
    """This process's number among all processes; 0 if it runs alone."""
    return int(os.environ.get("RANK", "0"))


def world_size():
    """The number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank():
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size():
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def under_torchrun():
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def threads_are_given():
    """Whether the user has set OMP_NUM_THREADS, which torch reads when it is imported.

    torchrun sets it to 1 where the user has not, so under it a 1 is taken for torchrun's.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    return bool(given) and not (under_torchrun() and given == "1")


def torchrun_error_file():
    """Whether torchrun expects a failing process to write its error to a file."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def torchrun_restarts():
    """How often torchrun has restarted the processes."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def torchrun_store():
    """(host, port) of the store that torchrun keeps for its processes, or None."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def cuda_visible_devices():
    """The value of CUDA_VISIBLE_DEVICES, or "" if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def c_compiler():
    """The C compiler that CC names, or None."""
    return os.environ.get("CC")


def native_library():
    """The path of another build of the native library, such as that of `make sanitize`, or None."""
    return os.environ.get("LLC_NATIVE_LIBRARY")


def values(names):
    """{name: value} of those of these variables that are set."""
    return {name: os.environ[name] for name in names if name in os.environ}


def set_default(name, value):
    """Sets a variable that a library will read, unless the user has set it."""
    os.environ.setdefault(name, value)


def of_child(**changes):
    """The environment of a process to be started: this process's, with some changes."""
    return {**os.environ, **changes}
