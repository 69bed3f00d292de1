"""The machine: GPUs, CPU, memory, shared memory, and the limits that this process has."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from llc import environment
from llc.doctor import software
from llc.doctor.finding import ERROR, NOTE, OK, WARNING, ok

GB = 1e9
# The oldest Linux driver of each CUDA major version: NVIDIA's "CUDA Compatibility", minor versions.
_DRIVERS = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 0, 0)}
_LEAST_CAPABILITY = (7, 0)  # bf16 or fp16 on tensor cores; CUDA 13 has dropped older ones
_SHARED_BYTES = 1 << 30  # of /dev/shm, which NCCL uses between the GPUs of a machine; Docker gives 64 MB
_OPEN_FILES = 1024
_MEMORY_BYTES = 4 << 30
_VARIABLES = (
    "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS CUDA_VISIBLE_DEVICES CUDA_LAUNCH_BLOCKING "
    "PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF NCCL_DEBUG NCCL_SOCKET_IFNAME NCCL_P2P_DISABLE "
    "NCCL_IB_DISABLE TORCH_LOGS TORCHDYNAMO_DISABLE TRITON_INTERPRET LD_PRELOAD LD_LIBRARY_PATH PYTHONPATH "
    "LLC_NATIVE_LIBRARY WANDB_MODE CC"  # none that may hold a password
).split()
# Variables that slow llc down or change what it computes with, and why.
_SUSPECTS = {
    "CUDA_LAUNCH_BLOCKING": "makes every kernel wait",
    "TORCHDYNAMO_DISABLE": "turns compiled steps off",
    "TRITON_INTERPRET": "runs kernels in an interpreter, thousands of times slower",
    "NCCL_P2P_DISABLE": "sends all data between GPUs through the host",
    "LLC_NATIVE_LIBRARY": "takes another build of the native library",
}


# ---- GPUs, in a process of their own ----------------------------------------------------------------------


def nvidia_smi():
    """[(name, driver version)] as nvidia-smi lists the GPUs, or None where there is no such program."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    words = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"nvidia-smi: {(done.stdout + done.stderr).strip()}")
    return [tuple(part.strip() for part in line.split(",")) for line in done.stdout.splitlines() if line]


def driver():
    """Whether the driver is new enough for the CUDA that torch was built with."""
    import torch

    listed, cuda = nvidia_smi(), torch.version.cuda
    if not listed:
        if Path("/proc/driver/nvidia").exists():
            return WARNING, "a driver is loaded, but there is no nvidia-smi", "Install the driver's programs"
        return NOTE, "none: no nvidia-smi on this machine", ""
    version = listed[0][1]
    if not cuda:
        return (
            WARNING,
            f"{version}, but torch is built without CUDA",
            "Install torch with CUDA (pytorch.org's index), or the GPU stays unused",
        )
    least = _DRIVERS.get(int(cuda.split(".")[0]))
    if least and software.numbers(version) < least:
        return (
            ERROR,
            f"{version} is too old for CUDA {cuda}, which needs {'.'.join(map(str, least))}",
            "Update the driver, or install torch built with an older CUDA",
        )
    return ok(f"{version}, new enough for CUDA {cuda}")


def gpus():
    """The GPUs that torch sees; each must add two numbers."""
    import torch

    from llc import gpu

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        hidden = environment.cuda_visible_devices()
        return (
            NOTE,
            "none that torch can use" + (f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden else ""),
            "Encoding, search, evaluation and small trainings work on the CPU; ImageNet needs a GPU",
        )
    texts, status, advice = [], OK, ""
    architectures = torch.cuda.get_arch_list()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        text = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        try:
            (torch.ones(2, device=f"cuda:{index}") + 1).sum().item()
            free, total = torch.cuda.mem_get_info(index)
            text += f", {free / GB:.1f} of {total / GB:.1f} GB free"
        except Exception as error:
            if gpu.is_out_of_memory(error):
                error = gpu.memory_error(error)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            text, status = f"{text}: {first}", ERROR
            advice = f"torch is built for {', '.join(architectures)}; nvidia-smi lists other programs"
        if status == OK and capability < _LEAST_CAPABILITY:
            status, advice = WARNING, "GPUs below compute capability 7.0 have no tensor cores"
        texts.append(text)
    return status, "; ".join(f"cuda:{index} {text}" for index, text in enumerate(texts)), advice


def compiler():
    """A C compiler and Python's headers, which Triton needs when it first launches a kernel."""
    import sysconfig

    import torch

    named = environment.c_compiler()
    found = (
        shutil.which(named) if named else shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if found and header.exists():
        return ok(f"{found}, and {header}")
    lacking = " and ".join(
        what for what, is_there in (("a C compiler", found), (f"{header}", header.exists())) if not is_there
    )
    needed = torch.cuda.is_available()
    return (
        ERROR if needed else NOTE,
        f"no {lacking}",
        "Triton needs them on a GPU: on Debian and Ubuntu the packages gcc and python3-dev",
    )


def cpu():
    """The CPU, the cores that this process may use, and the instruction set that the native library uses."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    found = f"{model[1] if model else 'unknown'}, {cores} of {os.cpu_count()} cores allowed"
    try:
        from llc import native

        sets = native.instruction_sets()
        found += f", kernels for {sets[0]} in use"
        if len(sets) > 1:
            found += f" (of {', '.join(sets)})"
    except Exception:
        found += ", kernels unknown without the native library"
    if quota is not None and quota < cores - 0.01:
        return (
            WARNING,
            f"{found}; but a cgroup allows the time of {quota:g}",
            "Threads will be throttled: raise the limit, or start with taskset -c "
            f"0-{max(0, int(quota) - 1)}",
        )
    return ok(found)


# ---- limits of control groups -----------------------------------------------------------------------------


def _cgroup_files(name, name_v1):
    """Texts of a file of this process's control group and those above it, version 2, or 1."""
    root, texts = Path("/sys/fs/cgroup"), []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    inside = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = root / inside.strip("/")
    for place in (folder, *folder.parents):
        if place == root or root in place.parents:
            texts += _read(place / name)
    return texts or _read(root / name_v1)


def _read(path):
    try:
        return [path.read_text().strip()]
    except OSError:
        return []


def cpu_quota():
    """How many cores' time the process's control groups allow, or None without a limit."""
    limits = []
    for text in _cgroup_files("cpu.max", "cpu/cpu.cfs_quota_us"):
        parts = text.split()
        if len(parts) == 2 and parts[0] != "max":
            limits.append(int(parts[0]) / int(parts[1]))
        elif len(parts) == 1 and int(parts[0]) > 0:
            limits.append(int(parts[0]) / int(_read(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))[0]))
    return min(limits, default=None)


def memory_limit():
    """The bytes that the process's control groups allow, or None without a limit."""
    texts = _cgroup_files("memory.max", "memory/memory.limit_in_bytes")
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < 1 << 60]
    return min(limits, default=None)


def memory_bytes():
    """(total, available) bytes of memory."""
    text = Path("/proc/meminfo").read_text()
    sizes = {key: 1024 * int(kb) for key, kb in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return sizes["MemTotal"], sizes["MemAvailable"]


def memory():
    total, available = memory_bytes()
    limit = memory_limit()
    found = f"{total / GB:.1f} GB, {available / GB:.1f} GB available"
    if limit is not None and limit < total:
        found += f", a cgroup allows {limit / GB:.1f} GB"
        available = min(available, limit)
    if available < _MEMORY_BYTES:
        return WARNING, found, "Below 4 GB expect runs to be killed; end other programs or raise the limit"
    return ok(found)


def shared_memory():
    usage = shutil.disk_usage("/dev/shm")
    found = f"/dev/shm: {usage.total / GB:.2f} GB, {usage.free / GB:.2f} GB free"
    if usage.free < _SHARED_BYTES:
        return (
            WARNING,
            found,
            "NCCL needs more between the GPUs of a machine (one GPU or none does not): start a container "
            "with --ipc=host or --shm-size=8g",
        )
    return ok(found)


# ---- this process -----------------------------------------------------------------------------------------


def variables():
    found = environment.values(_VARIABLES)
    if not found:
        return ok("no variable that changes how llc runs")
    suspects = [f"{name} {why}" for name, why in _SUSPECTS.items() if found.get(name, "0") not in ("0", "")]
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    if suspects:
        return WARNING, text, f"{'; '.join(suspects)}: unset it unless that is meant"
    return ok(text)


def open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        return WARNING, limit, f"Datasets of many shards need more: ulimit -n {most}"
    return ok(limit)


def locked_memory():
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ok("no limit")
    return NOTE, f"{soft / 1e6:,.1f} MB", "NCCL over InfiniBand needs ulimit -l unlimited; nothing else does"


def encoding():
    names, printed = sys.getfilesystemencoding(), sys.stdout.encoding or "none"
    found = f"file names {names}, output {printed}"
    if names.lower().replace("-", "") != "utf8":
        return WARNING, found, "Names of files outside ASCII may fail: export LC_ALL=C.UTF-8"
    if printed.lower().replace("-", "") != "utf8":
        return NOTE, found, "Other letters are printed as escapes; export LC_ALL=C.UTF-8 shows them"
    return ok(found)


# in the order of the output
CHECKS = {**software.CHECKS, "driver": driver, "gpus": gpus, "compiler": compiler, "cpu": cpu}
