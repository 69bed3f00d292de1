"""Damaged and unreadable JPEGs: every CPU finds the same damage, and no error leaves memory behind."""

import ctypes
import gc
import io
import mmap
import random

import numpy as np
import pytest
from PIL import Image

from llc import native
from llc.data import beton
from llc.native import codec
from tests.native.test_codec import decode_batch, jpeg, photograph
from tests.tools.fuzz import mutate

FILES = [
    jpeg(photograph(seed, 40 + 7 * seed, 70 - 5 * seed), sampling, **options)
    for seed, (sampling, options) in enumerate(
        (sampling, options)
        for sampling in ("4:2:0", "4:2:2", "4:4:4", "grey")
        for options in ({}, {"restart_interval": 3}, {"optimised": True, "quality": 70})
    )
] + [jpeg(photograph(20, 50, 60), progressive=True)]


def damaged(rng, data):
    """A change as of other files, or of single bytes; most of them in the header, where each byte matters."""
    if rng.random() < 0.4:
        return mutate(rng, data)
    data, header = bytearray(data), data.index(b"\xff\xda") + 14
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(2, header if rng.random() < 0.6 else len(data))
        action = rng.randrange(3)
        if action == 0:
            data[at] = rng.randrange(256)
        elif action == 1:
            data[at:at] = rng.choice((b"\xff", b"\xff\xd9", b"\xff\0", b"\xff\xd0", b"\xff\xd1", b"\0"))
        else:
            del data[at]
    return bytes(data)


def use_all(data, writer):
    """Passes a file to every function that takes one."""
    writer.recode(data, 0, 90, 30)
    writer.recode(data, 30, 90, 0)
    writer.keep(data, 0, 30)
    writer.read(data, 33)
    try:
        height, width = codec.jpeg_size(data)
    except codec.DecodeError:
        return []
    if height * width > 1 << 18:
        return []
    crop = [height // 3, width // 4, height - height // 3, width - width // 4]
    decode_batch([data], [crop], sizes=[(height, width)])
    return [
        int(decode_batch([data], [[0, 0, height, width]], sizes=[(height, width)], instructions=name)[1][0])
        for name in native.instruction_sets()
    ]


@pytest.mark.parametrize("seed", range(4))
def test_every_instruction_set_finds_the_same_damage(seed):
    rng, writer, found = random.Random(seed), codec.JpegWriter(1 << 20), []
    for number in range(700):
        data = damaged(rng, rng.choice(FILES))
        if not data:
            continue
        statuses = use_all(data, writer)
        assert len(set(statuses)) <= 1, f"mutation {number} of seed {seed}: {statuses}"
        found += statuses[:1]
    assert found.count(codec.OK) > 50 and found.count(codec.CORRUPT) > 50


def test_a_code_of_ones_only_is_refused_as_by_libjpeg():
    data = jpeg(photograph(0, 40, 40), "grey")
    table = data.index(b"\xff\xc4") + 5  # the numbers of codes of 1, 2, ... bits: two of 1 bit are 0 and 1
    data = data[:table] + bytes([2] + [0] * 15) + data[table + 16 :]
    data = data.replace(data[table - 5 : table + 28], b"\xff\xc4\0\x15\0" + data[table : table + 18])
    for name in native.instruction_sets():
        _, status = decode_batch([data], [[0, 0, 40, 40]], sizes=[(40, 40)], instructions=name)
        assert status.tolist() == [codec.CORRUPT]
    assert codec.JpegWriter(1 << 20).recode(data, 0, 90, 0) is None


def test_a_file_without_its_last_marker_is_damaged_on_every_cpu():
    for data in FILES[:3]:
        image = Image.open(io.BytesIO(data))
        for name in native.instruction_sets():
            _, status = decode_batch(
                [data[:-2]],
                [[0, 0, image.height, image.width]],
                sizes=[(image.height, image.width)],
                instructions=name,
            )
            assert status.tolist() == [codec.CORRUPT]


# ------------------------------------------------------- what an error leaves behind: nothing


class MallocInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def allocated():
    """Bytes that C and C++ code of this process holds, by the allocator's own count."""
    gc.collect()
    process = ctypes.CDLL(None)
    if hasattr(process, "__sanitizer_get_current_allocated_bytes"):
        count = process.__sanitizer_get_current_allocated_bytes
        count.restype = ctypes.c_size_t
        return count()
    if not hasattr(process, "mallinfo2"):
        pytest.skip("this C library does not say how much memory is allocated")
    process.mallinfo2.restype = MallocInfo
    info = process.mallinfo2()
    return info.uordblks + info.hblkhd


def growth(work, rounds=40):
    """Bytes by which memory grows while `work` runs `rounds` times, after it ran twice."""
    work()
    work()
    before = allocated()
    for _ in range(rounds):
        work()
    return allocated() - before


LEAST = 40 * 200  # 40 rounds that leave 200 bytes behind, less than any object of a decoder


def test_growth_sees_what_is_left_behind():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    assert growth(lambda: libc.malloc(ctypes.c_size_t(400))) > LEAST


def test_damaged_files_leave_no_memory_behind():
    rng, writer = random.Random(5), codec.JpegWriter(1 << 20)
    files = [data[: len(data) * part // 10] for data in FILES for part in (2, 5, 8)]
    files += [data for data in (damaged(rng, rng.choice(FILES)) for _ in range(60)) if data]
    assert growth(lambda: [use_all(data, writer) for data in files]) < LEAST


def test_pictures_larger_than_the_buffer_leave_no_memory_behind():
    writer, pixels = codec.JpegWriter(900), photograph(1, 80, 80)
    assert writer.encode(pixels, 90, 0) is None and writer.keep(FILES[0], 0, 0) is None
    assert growth(lambda: (writer.encode(pixels, 90, 0), writer.keep(FILES[0], 0, 0))) < LEAST


# by each decoder: our own, without and with markers, libjpeg's for all at once and line by line, and none
@pytest.mark.parametrize("kind", ["4:2:0", "markers", "progressive", "4:4:0", "raw"])
def test_files_that_become_shorter_leave_no_memory_behind(kind, tmp_path):
    height, width = 250, 260
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    data = {
        "4:2:0": lambda: jpeg(pixels, quality=95),
        "markers": lambda: jpeg(pixels, quality=95, restart_interval=5),
        "progressive": lambda: jpeg(pixels, quality=95, progressive=True),
        "4:4:0": lambda: jpeg(pixels, "4:4:0", quality=95),
        "raw": pixels.tobytes,
    }[kind]()
    pages = len(data) // mmap.PAGESIZE
    assert pages > 8
    path = tmp_path / "sample"

    def fail(pages_left):
        path.write_bytes(data)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            array = np.frombuffer(mapped, np.uint8)
            mode = beton.RAW if kind == "raw" else beton.JPG
            samples = codec.Samples([array.ctypes.data], [array.size], [mode], [width], [height])
            file.truncate(pages_left * mmap.PAGESIZE)
            out = np.ones((1, 64, 64, 3), np.uint8)
            status = codec.decode_batch(samples, [[0, 0, height, width]], [False], out)
            assert status.tolist() == [codec.UNREADABLE] and not out.any()
            del array, samples

    assert growth(lambda: [fail(left) for left in (0, 1, pages // 2, pages)]) < LEAST
