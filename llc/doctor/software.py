"""Python, the packages that llc needs or can use, and pairs of them that do not work together."""

import ctypes
import functools
import importlib.metadata
import re
import sys
from pathlib import Path

from llc.doctor.finding import ERROR, NOTE, OK, WARNING, ok

_PYTHONS = (3, 10), (3, 13)  # CONTRIBUTING.md: the oldest and the newest that are tested
_NOT_FOR_USERS = ("test", "docs", "benchmark")
_ROOT = Path(__file__).resolve().parents[2]


def python():
    version = sys.version_info[:3]
    found = f"{'.'.join(map(str, version))} at {sys.executable}"
    if version[:2] < _PYTHONS[0]:
        return ERROR, found, "llc needs Python 3.10 or newer"
    if version[:2] > _PYTHONS[1]:
        return NOTE, found, "It is newer than what llc was tested with (3.13)"
    return ok(found)


def numbers(version):
    """The leading numbers of a version as a tuple: "2.14.1+cpu" -> (2, 14, 1)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".") if part)


def installed(package):
    """The version of a package, or None. It is not imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def requirements():
    """{extra: {package: least version or ""}} of llc; the extra "" has what llc always needs.

    From pyproject.toml in a clone, because an editable installation's metadata is as old as its last set-up;
    otherwise from the metadata of llcodes.
    """
    try:
        import tomllib  # new in Python 3.11

        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        extras = {"": project["dependencies"], **project["optional-dependencies"]}
        texts = [f'{text}; extra == "{name}"' for name, listed in extras.items() for text in listed]
    except (ImportError, OSError, KeyError, ValueError):
        texts = importlib.metadata.requires("llcodes") or []
    found = {}
    for text in texts:
        name = re.match(r"[\w.-]+", text)[0]
        extra = re.search(r"extra == ['\"]([\w-]*)['\"]", text)
        least = re.search(r">=\s*([\d.]+)", text)
        found.setdefault(extra[1] if extra else "", {})[name] = least[1] if least else ""
    return found


def _lacking(extra):
    """(versions of an extra's packages as text, what is missing or too old as text)."""
    found, lacking = [], []
    for package, least in requirements()[extra].items():
        version = installed(package)
        if version is None:
            lacking.append(package)
        else:
            found.append(f"{package} {version}")
            if least and numbers(version) < numbers(least):
                lacking.append(f"{package} {least} or newer")
    return ", ".join(found), ", ".join(lacking)


def needed_packages():
    found, lacking = _lacking("")
    if lacking:
        return ERROR, f"{found or 'none'}; missing: {lacking}", "Install llc again: pip install llcodes"
    return ok(found)


def extra(name):
    """The check of an extra's packages. They are optional, so what is missing is a note."""

    def check():
        found, lacking = _lacking(name)
        if lacking:
            return NOTE, f"not installed: {lacking}", f"Where it is wanted: pip install 'llcodes[{name}]'"
        return ok(found)

    return check


def extras():
    """Names of the extras that users install."""
    return [name for name in requirements() if name and name not in _NOT_FOR_USERS]


# ---- pairs -----------------------------------------------------------------------------------------------


def _torchvision_is_not_torchs(versions):
    """torch 2.N belongs with torchvision 0.(N + 15): pytorch.org's table of versions, requirements.txt."""
    torch, torchvision = versions("torch"), versions("torchvision")
    if torch and torchvision and torch[0] == 2 and torchvision[:2] != (0, torch[1] + 15):
        return f"torch 2.{torch[1]} needs torchvision 0.{torch[1] + 15}", "torchvision"
    return None


def _fastargs_lacks_terminaltables(versions):
    """fastargs 1.2 imports terminaltables and does not name it: pyproject.toml."""
    if versions("fastargs") and not versions("terminaltables"):
        return "fastargs imports terminaltables, which is missing", "terminaltables"
    return None


def _numba_is_older_than_numpy(versions):
    """numba 0.60 is the first to know numpy 2.0, and FFCV sets no limit: pyproject.toml."""
    numba, numpy = versions("numba"), versions("numpy")
    if numba and numpy and numpy >= (2,) and numba < (0, 60):
        return "numba below 0.60 does not work with numpy 2", "numba"
    return None


def _numpy_is_newer_than_numba_allows(versions):
    """Each numba names the numpy below which it works, and refuses to be imported otherwise."""
    numba, numpy = versions("numba"), versions("numpy")
    for text in importlib.metadata.requires("numba") or [] if numba and numpy else []:
        limit = re.match(r"numpy\b.*<\s*([\d.]+)", text)
        if limit and numpy >= numbers(limit[1]):
            return f"this numba needs numpy below {limit[1]}", f"'numpy<{limit[1]}'"
    return None


def _ffcv_lacks_opencv_or_numba(versions):
    """FFCV imports cv2 and numba when it is imported, and does not name opencv-python: pyproject.toml."""
    for package in ("opencv-python", "numba") if versions("ffcv") else ():
        if not versions(package) and not versions(f"{package}-headless"):
            return f"ffcv imports {package}, which is missing", "'llcodes[ffcv]'"
    return None


def _another_llc(versions):
    """The distribution called llc is another project, with the same import name: pyproject.toml."""
    if versions("llc"):
        return "the package llc is another project with the same import name", "llcodes"
    return None


PAIRS = (
    _torchvision_is_not_torchs,
    _fastargs_lacks_terminaltables,
    _numba_is_older_than_numpy,
    _numpy_is_newer_than_numba_allows,
    _ffcv_lacks_opencv_or_numba,
    _another_llc,
)


def bad_pairs():
    def versions(package):
        version = installed(package)
        return numbers(version) if version else ()

    problems = [problem for pair in PAIRS if (problem := pair(versions))]
    if not problems:
        return ok(f"no versions that are known not to work together ({len(PAIRS)} checks)")
    advice = f"pip install --upgrade {' '.join(dict.fromkeys(package for _, package in problems))}"
    if versions("llc"):
        advice = f"pip uninstall llc, then {advice}"
    return ERROR, "; ".join(text for text, _ in problems), advice


# ---- checks in a process of their own: importing these packages may crash ---------------------------------


def torch():
    try:
        import torch
    except ImportError as error:
        return ERROR, f"cannot be imported ({_first_line(error)})", "pip install --force-reinstall torch"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    return ok(f"{torch.__version__}, built {build}")


def torchvision():
    try:
        import torchvision
        from torchvision.ops import nms  # noqa: F401 (its own library, which a mismatch leaves unusable)
    except Exception as error:
        return (
            ERROR,
            f"cannot be imported ({type(error).__name__}: {_first_line(error)})",
            "Install the one that belongs to torch: pip install --upgrade torch torchvision",
        )
    return ok(torchvision.__version__)


def cuda_libraries():
    import torch

    if not torch.version.cuda:
        return NOTE, "none: torch is built without CUDA", "Everything works on the CPU, but training is slow"
    import torch.distributed

    cudnn = torch.backends.cudnn.version()
    parts = [f"CUDA {torch.version.cuda}", f"cuDNN {cudnn}" if cudnn else "no cuDNN"]
    if torch.distributed.is_nccl_available():
        parts.append(f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
        return ok(", ".join(parts))
    return NOTE, ", ".join([*parts, "no NCCL"]), "Several GPUs can only talk by gloo (dist.backend=gloo)"


def native_library():
    from llc import native
    from llc.errors import UserError

    path = native._PATH
    try:
        native.library()
    except UserError as error:
        return ERROR, f"{path}: {_first_line(error)}", "Writing betons, training and search need it"
    return OK, str(path), ""


def libjpeg():
    """The libjpeg that the native library was linked with: its file and its version.

    It is the file that the native library's own functions come from, because Pillow brings another one into
    the process.
    """
    from llc import native

    try:
        address = ctypes.cast(native.library().jpeg_read_scanlines, ctypes.c_void_p).value
    except AttributeError:
        return NOTE, "linked into the native library, or not found", ""
    path = _file_mapped_at(address)
    version = re.search(rb"libjpeg-turbo version ([\d.]+)", Path(path).read_bytes())
    if not version:
        return (
            WARNING,
            f"{path} is not libjpeg-turbo",
            "Build with libjpeg-turbo's headers, or install the wheel, which holds it",
        )
    return ok(f"libjpeg-turbo {version[1].decode()}, {path}")


def _file_mapped_at(address):
    """The file that is mapped into this process's memory at an address. Raises ValueError if none is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        first, end = (int(number, 16) for number in span.split("-"))
        if first <= address < end:
            return path
    raise ValueError(f"no file is mapped at {address:#x}")


def _first_line(error):
    return (str(error).strip().splitlines() or [""])[0][:300]


CHECKS = {
    "torch": torch,
    "torchvision": torchvision,
    "cuda_libraries": cuda_libraries,
    "native_library": native_library,
    "libjpeg": libjpeg,
}
