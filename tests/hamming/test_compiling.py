"""Numba's kernels are right when compiled for older CPUs, and are kept on disk for the next process."""

import json
import os
import platform
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.waiting import seconds

WORK = """
import json, sys, numpy as np
from llc.codes import pack_bits
from llc.hamming import Decoder, cpu, table
from llc.kernels import pack_cpu
rng = np.random.default_rng(0)
for num_bits in map(int, sys.argv[1:]):
    values = rng.normal(size=(300, num_bits)).astype(np.float32)
    codes = pack_bits(values)
    assert np.array_equal(codes, np.packbits(values > 0, axis=1))
    queries = codes[::7]
    distances = np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(2)
    assert np.array_equal(cpu.pairwise(queries, codes, 1), distances)
    order = np.argsort(distances, axis=1, kind="stable")
    for k in (1, 30):
        found = cpu.search(queries, codes, k, 1)
        assert np.array_equal(found[1], order[:, :k])
        assert np.array_equal(found[0], np.take_along_axis(distances, order, 1)[:, :k])
    lims = cpu.range_search(queries, codes, num_bits // 3, 1)[0]
    assert np.array_equal(lims[1:], (distances <= num_bits // 3).sum(1).cumsum())
decoder, codes = Decoder(codes[:50, :2], table=True), codes[:, :2]
assert np.array_equal(decoder.mhd(codes), Decoder(codes[:50], table=False).mhd(codes))
assert (decoder.ed(codes) >= 0).sum() >= 50
kernels = [cpu._nearest, cpu._k_nearest, cpu._within_radius, cpu._all]
kernels += [table._grow, table._look_up, table._keep_exact, pack_cpu._pack]
print(json.dumps([[sum(k.stats.cache_hits.values()), sum(k.stats.cache_misses.values())] for k in kernels]))
"""
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2"
    ",+fma,+bmi,+bmi2,+lzcnt,+movbe,+f16c",
}
# Only what every 64-bit x86 CPU has; such code has no vector instruction that counts bits.
SSE2 = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse,+sse2"}


def start(folder, *lengths, **variables):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", WORK, *map(str, lengths)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts(process):
    output, errors = process.communicate(timeout=seconds(200))
    assert process.returncode == 0, errors
    return json.loads(output)


def test_the_second_process_compiles_nothing(tmp_path):
    variables = SSE2 if platform.machine() == "x86_64" else {}
    first = [
        start(tmp_path, 20, **variables) for _ in range(2)
    ]  # two at once, like the processes of torchrun
    assert all(hits + misses > 0 for process in first for hits, misses in counts(process))
    assert all(hits > 0 and misses == 0 for hits, misses in counts(start(tmp_path, 20, **variables)))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="features of x86")
def test_avx2_computes_the_same(tmp_path):
    assert all(misses > 0 for _, misses in counts(start(tmp_path, 20, 300, **AVX2)))


# ------------------------------------------------------------------------------- a cache that is of no use

PACK = """
import json, sys, warnings, numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from llc.kernels import pack_cpu  # without torch, which takes seconds to import
    bits = np.random.default_rng(0).integers(0, 2, (9, 20))
    for dtype in (np.uint8, np.uint32):
        assert np.array_equal(pack_cpu.pack(bits.astype(dtype), 1, 1), np.packbits(bits, axis=1))
stats = pack_cpu._pack.stats
counts = [sum(n.values()) for n in (stats.cache_hits, stats.cache_misses)]
print(json.dumps([counts, [str(warning.message) for warning in caught]]))
"""


def pack(cache, prefix=(), **variables):
    """Packs two kinds of values in a new process -> ([hits, misses], warnings)."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", PACK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds(200),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    assert pack(folder) == [[0, 2], []] and pack(folder) == [[2, 0], []]
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "other content": lambda path: path.write_bytes(b"\x80\x04\x95 no pickle"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a changed bit": flip,
}


@pytest.mark.parametrize(
    "suffix, damage",
    [
        ("nbi", "empty"),
        ("nbi", "cut off"),
        ("nbi", "other content"),
        ("nbc", "cut off"),
        ("nbc", "zeros"),
        ("nbc", "a changed bit"),
    ],
)
def test_a_damaged_cache_is_one_warning_and_is_written_again(damage, suffix, warm_cache, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(warm_cache, cache)
    for path in cache.rglob(f"*.{suffix}"):
        DAMAGES[damage](path)
    (folder,) = cache.iterdir()
    (_, misses), warned = pack(cache)
    assert misses > 0 and len(warned) == 1
    assert f"the cache of compiled kernels in {folder} is damaged" in warned[0]
    assert pack(cache) == [[2, 0], []]


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_cache_that_cannot_be_written_is_one_warning(suffix, warm_cache, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(warm_cache, cache)
    for path in [*cache.rglob(f"*.{suffix}")]:
        path.unlink()
        path.mkdir()
    (_, misses), warned = pack(cache)
    assert misses == 2 and len(warned) == 1 and "cannot be used (Is a directory)" in warned[0]


@pytest.mark.skipif(not shutil.which("prlimit"), reason="a full disk is shown by prlimit")
def test_a_full_disk_is_one_warning(tmp_path):
    """A limit of the size of files refuses the kernel's code, as a full disk does."""
    counts, warned = pack(tmp_path, prefix=["prlimit", "--fsize=600"])
    assert counts == [0, 2] and len(warned) == 1
    assert f"the cache of compiled kernels in {tmp_path}" in warned[0] and "File too large" in warned[0]


def test_no_folder_for_a_cache_is_one_warning(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    counts, warned = pack(tmp_path / "file", NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")
    assert counts == [0, 2] and len(warned) == 1 and "kernels/__pycache__ cannot be used" in warned[0]
