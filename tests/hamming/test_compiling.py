"""Numba's kernels are right when compiled for older CPUs, and are kept on disk for the next process."""

import json
import os
import platform
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
kernels += [table._grow, table._look_up, table.keep_exact, pack_cpu._pack]
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
