"""The disk of a folder: room, reading speed, file system; and what a recipe asks of it."""

import contextlib
import functools
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path

from llc.doctor.finding import ERROR, NOTE, OK, WARNING, ok
from llc.doctor.machine import memory_bytes, memory_limit
from llc.errors import UserError

_WRITTEN_BYTES = 128 << 20  # the size of a temporary file
_MOST_BYTES, _MOST_SECONDS = 1 << 30, 3.0  # that are read
_CHUNK = 8 << 20
_SMALL_BETON = 64 << 20  # a smaller file says little about the speed
# An image in a beton of ImageNet as llc writes it by default (docs/tutorials/imagenet.md), and how many
# images of 160 px one GPU trains in a second (docs/explanation/scaling.md).
IMAGENET_BYTES, IMAGENET_IMAGES, GPU_IMAGES = 268_000, 1_281_167, 3000
_NETWORKS = ("nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "gpfs", "ceph", "glusterfs", "9p", "afs")


def space(folder):
    place = Path(folder).absolute()
    usage = shutil.disk_usage(place)
    found = f"{place}: {usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB free"
    if not os.access(place, os.W_OK):
        return WARNING, f"{found}; it cannot be written to", "Name a folder of yours for runs and betons"
    if usage.free < 2e9:
        return WARNING, found, "A run with a ResNet50 takes 1 GB, ImageNet as a beton 72 to 356 GB"
    return ok(found)


def mount_of(folder, mounts=None):
    """(mount point, file system) of a folder. mounts: the text of /proc/self/mounts."""
    path = os.path.realpath(folder)
    mounts = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    best = ("", "unknown")
    for line in mounts.splitlines():
        _, point, kind = line.split()[:3]
        point = point.encode().decode("unicode_escape")  # a space is \\040
        is_above = path == point or path.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(best[0]):
            best = point, kind
    return best


def file_system(folder):
    point, kind = mount_of(folder)
    found = f"{kind}, mounted at {point}"
    if kind in _NETWORKS or kind.startswith("fuse."):
        return (
            NOTE,
            found,
            "A network's disk: copy betons to a local one if they are read slowly; without file locks a "
            "second process in the same run folder is not noticed",
        )
    return ok(found)


def speed(folder):
    """Reads a beton in the folder, or a temporary file, past the page cache where that works."""
    rate, what = measure(Path(folder))
    return ok(f"{rate / 1e6:,.0f} MB/s, {what}")


@functools.cache  # the recipe's check needs the same figure
def measure(folder):
    """(bytes per second of sequential reading, what was read and how, as text). Raises OSError."""
    betons = [path for path in folder.glob("*.beton") if path.is_file() and os.access(path, os.R_OK)]
    largest = max(betons, key=lambda path: path.stat().st_size, default=None)
    if largest is not None and largest.stat().st_size >= _SMALL_BETON:
        return _read(largest, f"read from {largest.name}")
    if shutil.disk_usage(folder).free < 4 * _WRITTEN_BYTES:
        raise OSError(f"less than {4 * _WRITTEN_BYTES / 1e6:,.0f} MB are free, and no beton is there to read")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".llc-doctor-", suffix=".tmp") as file:
        block = os.urandom(_CHUNK)  # so that no file system compresses it
        for _ in range(_WRITTEN_BYTES // _CHUNK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _read(Path(file.name), "read from a temporary file")


def _read(path, what):
    handle, way = _open(path)
    try:
        with mmap.mmap(-1, _CHUNK) as buffer:  # aligned to a page, as O_DIRECT demands
            started, total = time.perf_counter(), 0
            while total < _MOST_BYTES and time.perf_counter() - started < _MOST_SECONDS:
                count = os.preadv(handle, [buffer], total)
                total += count
                if count < _CHUNK:
                    break
            seconds = time.perf_counter() - started
    finally:
        os.close(handle)
    return total / max(seconds, 1e-9), f"{what} ({total / 1e6:,.0f} MB), {way}"


def _open(path):
    """(file descriptor, how the page cache is avoided, as text)."""
    with contextlib.suppress(OSError):  # as on a tmpfs
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as probe:
            try:
                os.preadv(handle, [probe], 0)
                return handle, "past the page cache (O_DIRECT)"
            except OSError:
                os.close(handle)
                raise
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    return handle, "after dropping it from the page cache, as far as the file system does that"


# ---- what a recipe needs ----------------------------------------------------------------------------------


def recipe_needs(folder, words, num_gpus, images_per_second):
    """Whether the disk keeps up with a training: bytes per second = images per second x bytes per image.

    words: the command line of a recipe, `--config=FILE` and keys; [] is ImageNet. num_gpus: at least one is
    assumed. images_per_second: of all GPUs; 0: GPU_IMAGES for each.
    """
    if not (words or num_gpus or images_per_second):
        return NOTE, "none named, and no GPU: --config=RECIPE compares the disk with what a recipe needs", ""
    images = images_per_second or GPU_IMAGES * max(1, num_gpus)
    try:
        count, size, whose = _train_images(words)
    except UserError as error:
        return ERROR, str(error), ""
    needed, total = images * size, count * size
    rate, _ = measure(Path(folder))
    total_memory, _ = memory_bytes()
    room = min(total_memory, memory_limit() or total_memory)
    found = (
        f"{images:,} images/s x {size / 1e3:,.0f} KB {whose} = {needed / 1e6:,.0f} MB/s; the disk reads "
        f"{rate / 1e6:,.0f} MB/s"
    )
    if rate >= needed:
        return OK, found, ""
    if total < 0.8 * room:
        return (
            NOTE,
            found,
            f"The first epoch takes {total / rate / 60:,.1f} min at least; then its {total / 1e9:,.1f} GB "
            f"are in memory, which has {room / 1e9:,.0f} GB",
        )
    return (
        WARNING,
        found,
        f"Each epoch takes {total / rate / 60:,.0f} min at least, because {total / 1e9:,.0f} GB do not fit "
        f"into memory ({room / 1e9:,.0f} GB): use a faster disk, or smaller betons (cfg.write_mode=jpg)",
    )


def _train_images(words):
    """(number, mean bytes, whose) of a recipe's train images; ImageNet's where its betons are not there."""
    if not words:
        return IMAGENET_IMAGES, IMAGENET_BYTES, "of ImageNet"
    from llc.data import shards
    from llc.training import config

    # values where the recipe has none
    unknown = ["--data.train_dataset=", "--data.val_dataset="]
    unknown += [f"--{stage}.{key}=1" for stage in ("codebook", "instance") for key in ("epochs", "lr")]
    try:
        read, _ = config.read(words, description="")
    except UserError as error:
        if "is required" not in str(error):
            raise
        read, _ = config.read([*unknown, *words], description="")
    if not read.data.train_dataset:
        return IMAGENET_IMAGES, IMAGENET_BYTES, "of ImageNet (the recipe names no betons)"
    try:
        opened = shards.open_shards(read.data.train_dataset, spot_check=False)
    except UserError:
        return IMAGENET_IMAGES, IMAGENET_BYTES, f"of ImageNet ({read.data.train_dataset} is not there)"
    size = sum(os.path.getsize(path) for path in opened.paths)
    return len(opened), size / len(opened), f"in {read.data.train_dataset}"
