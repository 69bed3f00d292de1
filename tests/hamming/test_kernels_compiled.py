"""The instructions and registers of the compiled CUDA kernels, checked on a machine without a GPU.

The project's own code launches the kernels on a stub driver (tests/hamming/compile_kernels.py), so they are
compiled for the same arguments as on a GPU: all lengths of codes for an H100, two of them for an A100. This
takes about 40 s on 2 cores.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.waiting import seconds

triton = pytest.importorskip("triton", reason="a torch without CUDA brings none")
as_measured = pytest.mark.skipif(
    not triton.__version__.startswith("3.8."), reason="registers are known for Triton 3.8"
)

# The most registers per thread that a kernel may use: a little above what Triton 3.8's ptxas uses for compute
# capability 8.0 or 9.0, whichever is more. With its 65,536 registers a multiprocessor runs 4 programs of 128
# threads if a thread has 128 registers, and 3 if it has 168; it runs 1 program of 256 threads of 255
# registers.
REGISTERS = {
    "_nearest_kernel": {"20 bits": 80, "64 bits": 88, "128 bits": 88, "256 bits": 128, "4096 bits": 168},
    "_minima_kernel": {"20 bits": 40, "64 bits": 64, "128 bits": 72, "256 bits": 128, "4096 bits": 128},
    "_count_kernel": {"20 bits": 88, "64 bits": 104, "128 bits": 104, "256 bits": 128, "4096 bits": 168},
    "_write_kernel": {"20 bits": 64, "64 bits": 96, "128 bits": 104, "256 bits": 168, "4096 bits": 168},
    "_all_kernel": {"64 bits": 48, "4096 bits": 128},
    "_product_kernel": {"64 bits": 216, "128 bits": 224, "256 bits": 216},
    "_product_minima_kernel": {"64 bits": 168, "128 bits": 168, "256 bits": 168},
    "_collect_kernel": {"20 bits": 96, "64 bits": 96, "256 bits": 128},
    "_radius_kernel": {"20 bits": 112},
    "_lowest_kernel": {"20 bits": 64},
    "_unpack_kernel": {"64 bits": 16},
    "_pack_kernel": {"torch.uint8": 64, "torch.uint64, by columns": 64},
}
LENGTHS = {"90": (), "80": ("64", "256")}  # by compute capability; (): all
# The number of POPC in a kernel. A thread holds 32 pairs of codes of up to 64 bits, or 16 pairs of longer
# codes. A pair takes 1 POPC for 1 word, 2 for 2 words, 3 for 4 words and 4 for 8 words.
POPC = {"20 bits": 32, "64 bits": 64, "128 bits": 48, "256 bits": 64, "4096 bits": 64}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{compute capability: the lines that compile_kernels.py prints}; both processes run at once."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": str(ROOT),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }

    def start(capability):
        return subprocess.Popen(
            [sys.executable, "tests/hamming/compile_kernels.py", capability, *LENGTHS[capability]],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    processes, lines = {capability: start(capability) for capability in LENGTHS}, {}
    try:
        for capability, process in processes.items():
            output, errors = process.communicate(timeout=seconds(900))
            assert process.returncode == 0, errors[-4000:]
            lines[capability] = [json.loads(line) for line in output.splitlines()]
    finally:
        for process in processes.values():
            process.kill()
    return lines


@pytest.fixture(params=list(LENGTHS))
def variants(request, compiled):
    """{(kernel, what it was launched for): its measurements}"""
    return by_purpose(compiled[request.param])


def by_purpose(lines):
    return {(line["kernel"], line["for"]): line for line in lines if "kernel" in line}


def test_every_kernel_was_compiled(compiled):
    for lines in compiled.values():
        every = lines[-1]["all_kernels"]
        assert {line["kernel"] for line in lines[:-1]} == set(every) >= {"_nearest_kernel", "_pack_kernel"}


def test_few_variants_are_compiled(compiled):
    """One for each length of codes, whatever their number: the first search waits a second for each."""
    for lines in compiled.values():
        kernels = [(line["kernel"], line["for"]) for line in lines[:-1] if "pack" not in line["kernel"]]
        assert len(kernels) == len(set(kernels))


@as_measured
def test_nothing_is_spilled(variants):
    for name, line in variants.items():
        assert line["stack"] == 0 and "LDL" not in line["opcodes"] and "STL" not in line["opcodes"], name


@as_measured
def test_registers(compiled):
    for capability, lengths in LENGTHS.items():
        variants = by_purpose(compiled[capability])
        for kernel, limits in REGISTERS.items():
            found = {
                purpose: variants[kernel, purpose]["registers"]
                for purpose in limits
                if not lengths or (kernel, purpose) in variants
            }
            assert found or kernel in ("_radius_kernel", "_lowest_kernel"), kernel
            assert all(found[purpose] <= limits[purpose] for purpose in found), (capability, kernel, found)


def test_bits_are_counted_by_popc_after_carry_save_adders(variants):
    for (kernel, bits), line in variants.items():
        popc = line["opcodes"].get("POPC", 0)
        if kernel == "_write_kernel":  # it also computes parts, an eighth or a quarter of a tile
            assert POPC[bits] < popc <= POPC[bits] * 5 / 4
        elif kernel in ("_nearest_kernel", "_minima_kernel", "_count_kernel", "_all_kernel"):
            assert popc == POPC.get(bits, 64)
        elif kernel == "_collect_kernel":
            assert popc > 0
        else:
            assert popc == 0
    # For 16 pairs of 8 words: one xor per word, and 4 full adders of two instructions each. Up to 128 more
    # find the minimum over a program's threads.
    logic = variants["_nearest_kernel", "256 bits"]["opcodes"]["LOP3"]
    assert 16 * (8 + 2 * 4) <= logic <= 16 * (8 + 2 * 4) + 128


def test_long_codes_are_a_loop(compiled):
    variants = by_purpose(compiled["90"])
    short, long = (variants["_nearest_kernel", bits]["opcodes"] for bits in ("256 bits", "4096 bits"))
    assert sum(long.values()) < 1.2 * sum(short.values())


def test_products_use_tensor_cores(variants):
    for (kernel, _), line in variants.items():
        found = [name for name in line["opcodes"] if name in ("IMMA", "IGMMA")]  # of capability 8.0 and 9.0
        assert len(found) == (kernel in ("_product_kernel", "_product_minima_kernel"))
        if "IMMA" in found:
            assert line["shared"] <= 99 << 10  # the most that GPUs of capability 8.6 and 8.9 give a program
