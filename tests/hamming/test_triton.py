"""The CUDA implementation, its Triton kernels run by Triton's interpreter on CPU tensors, against the CPU implementation; and compiled.

On a machine with a CUDA device tests/gpu runs the same kernels for real.
"""
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st

from llc.codes import pack_bits
from llc.hamming import cpu
from tests.conftest import ROOT
from tests.hamming.helpers import random_codes

if torch.cuda.is_available():
    pytest.skip("tests/gpu runs these kernels on the device", allow_module_level=True)
pytest.importorskip("triton", reason="a torch without CUDA brings none")
os.environ["TRITON_INTERPRET"] = "1"   # read when a kernel is made, when it runs, and when Triton is imported: tests/conftest.py does that
from llc.hamming import cuda   # noqa: E402
from llc.kernels import pack_cuda   # noqa: E402

del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.numpy().dtype == b.dtype and a.tolist() == b.tolist()


def test_kernels_are_interpreted():
    assert type(cuda._nearest_kernel).__name__ == "InterpretedFunction", "triton was imported before this module set TRITON_INTERPRET"


@settings(max_examples=25)
@given(n=st.integers(1, 20), m=st.integers(1, 1200), num_bits=st.integers(1, 130), seed=st.integers(0, 999),
       distinct=st.one_of(st.none(), st.integers(1, 4)), data=st.data())
def test_equals_the_cpu(n, m, num_bits, seed, distinct, data):
    k, radius = data.draw(st.integers(1, m), label="k"), data.draw(st.integers(0, num_bits + 1), label="radius")
    queries, database = random_codes(n, num_bits, seed), random_codes(m, num_bits, seed + 1, distinct)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    same([cuda.pairwise(*tensors)], [cpu.pairwise(queries, database, 1)])
    same(cuda.search(*tensors, 1), cpu.search(queries, database, 1, 1))
    same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    same(cuda.range_search(*tensors, radius), cpu.range_search(queries, database, radius, 1))


def test_several_splits_of_several_steps_and_halved_queries(monkeypatch):
    monkeypatch.setattr(cuda, "PROGRAMS", 4)
    monkeypatch.setattr(cuda, "QUERY_TILE", 11)
    monkeypatch.setattr(cuda, "MAX_CANDIDATES", 3000)
    queries, database = random_codes(13, 40, 0), random_codes(4000, 40, 1, 300)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    assert all(part > 1 for part in cuda._splits(13, 4000))
    for k in (1, 3, 700):
        same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    same(cuda.range_search(*tensors, 14), cpu.range_search(queries, database, 14, 1))


def test_no_queries():
    queries, database = random_codes(3, 20, 0)[:0], random_codes(5, 20, 1)
    tensors = torch.from_numpy(queries), torch.from_numpy(database)
    same([cuda.pairwise(*tensors)], [cpu.pairwise(queries, database, 1)])
    for k in (1, 2):
        same(cuda.search(*tensors, k), cpu.search(queries, database, k, 1))
    same(cuda.range_search(*tensors, 3), cpu.range_search(queries, database, 3, 1))
    same(cuda.range_search(*tensors[::-1], 3), cpu.range_search(database, queries, 3, 1))


@pytest.mark.parametrize("dtype, largest", [(torch.float16, 0x7C00), (torch.bfloat16, 0x7F80), (torch.float32, 0x7F80_0000),
                                            (torch.float64, 0x7FF0_0000_0000_0000), (torch.bool, 1), (torch.int8, 127), (torch.uint8, 255),
                                            (torch.int32, 2**31 - 1), (torch.int64, 2**63 - 1), (torch.uint64, 2**64 - 1)])
@pytest.mark.parametrize("num_bits", [1, 8, 21])
def test_packing_equals_the_cpu(dtype, largest, num_bits):
    values = torch.randn(num_bits, 40).mul(2)
    values[:, :4] = torch.tensor([0.0, float("nan"), float("inf"), -float("inf")]) if dtype.is_floating_point else 0
    values = (values if dtype.is_floating_point or dtype.is_signed else values.abs()).to(dtype).T   # not contiguous
    as_bits = values.view(getattr(torch, f"uint{8 * values.element_size()}"))
    assert torch.equal(pack_cuda.pack(as_bits, largest), pack_bits(values))
    assert pack_cuda.pack(as_bits[:0], largest).shape == (0, (num_bits + 7) // 8)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llc.hamming import cuda
from llc.kernels import pack_cuda

def ptx(kernel, types, **constants):
    signature = dict(zip((name for name in kernel.arg_names if name not in constants), types.split()))
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

for words in (1, 9):
    tile = dict(words=words, BLOCK_N=cuda.BLOCK_N, BLOCK_M=cuda.BLOCK_M)
    for each_lane in (True, False):
        nearest = ptx(cuda._nearest_kernel, f"*i32 *i32 *{'i32' if each_lane else 'i64'} i32 i32 i32 i32 i32", **tile, EACH_LANE=each_lane,
                      STEP_BITS=cuda.STEP_BITS, INDEX_BITS=cuda.INDEX_BITS)
        assert "popc.b32" in nearest
    for write in (True, False):
        assert "popc.b32" in ptx(cuda._within_kernel, "*i32 *i32 *i32 *i64 *i32 *i64 i32 i32 i32 i32", **tile, WRITE=write)
    assert "popc.b32" in ptx(cuda._all_kernel, "*i32 *i32 *i32 i32 i32", **tile)
for bits in (8, 16, 32, 64):
    ptx(pack_cuda._pack_kernel, f"*u{bits} *u8 {'i64' if bits == 64 else 'i32'} i32 i32 i32 i32 i32", BLOCK=pack_cuda.BLOCK)
"""


def test_kernels_compile_for_a_gpu_and_count_by_its_instruction(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
