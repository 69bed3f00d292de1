"""Compiles the Triton kernels of llc for a GPU, without one, for the arguments that llc's own code passes.

    python tests/hamming/compile_kernels.py 90 [20 256]     # for compute capability 9.0 [and these lengths]

Prints one JSON line for each variant that Triton compiled, with the registers, memory and instructions that
the tools in Triton's wheel report, and a last line with the names of all kernels. Nothing is launched:
Triton's driver is a stub, and the tensors are on the CPU.
"""

import ast
import collections
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from llc.hamming import cuda_dot, cuda_popc, cuda_table, cuda_topk
from llc.kernels import pack_cuda

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)


class Driver:
    """The part of Triton's driver that compiling needs."""

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def all_kernels():
    """The names of the Triton functions that no other Triton function calls: only these can be launched."""
    functions, called = set(), set()
    for path in (ROOT / "llc").rglob("*.py"):
        if "triton.jit" in path.read_text():
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for function in vars(module).values():
                if isinstance(function, JITFunction):
                    functions.add(function.fn.__name__)
                    nodes = ast.walk(ast.parse(function.src))
                    called |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return sorted(functions - called)


def launch_all(lengths):
    """Launches every kernel for short and long codes, one or many, numbers divisible by 16 and others."""
    for num_bits in lengths:
        for n, m in ((16, 4096), (1, 1), (9, 1001)):
            queries, codes = as_codes(n, num_bits), as_codes(m, num_bits)
            database = cuda_popc.prepare(codes)
            radii, counts = torch.zeros(n, dtype=torch.int32), torch.ones(n, 1, dtype=torch.int64)
            label(f"{num_bits} bits")
            cuda_popc.nearest(queries, database)
            cuda_popc.count_within(queries, database, radii, 1, 1)
            cuda_popc.write_within(queries, database, radii, counts, 1)
            if num_bits in (64, 4096):
                cuda_popc.pairwise(queries, database)
            cuda_popc.group_minima(queries, database, 1)
            if 64 <= num_bits <= 256:
                cuda_dot.nearest(queries, codes)
                cuda_dot.group_minima(queries, codes, 1)
            cuda_topk.lowest(torch.zeros(3, n, dtype=torch.int64))
            minima = torch.zeros(3, n, dtype=torch.int16)
            cuda_topk.radii_of(minima, 2, num_bits)
            cuda_topk.k_nearest(queries, database, minima, 512, radii, 2, 16)
    largest_numbers = {"uint8": 1, "uint16": 0x7F80, "uint32": 0x7F80_0000, "uint64": 2**64 - 1}
    for name, largest in largest_numbers.items():
        dtype = getattr(torch, name)
        label(str(dtype))
        pack_cuda.pack(torch.zeros(500, 20, dtype=dtype), largest)
        label(f"{dtype}, by columns")
        pack_cuda.pack(torch.zeros(20, 500, dtype=dtype).T, largest)
    label("20 bits")
    for n in (1, 32):
        cuda_table.look_up(as_codes(n, 20), 20, torch.zeros(1 << 20, dtype=torch.int32))
    label("33 bits")
    cuda_popc.nearest(as_codes(9, 33), cuda_popc.prepare(as_codes(1001, 33)))
    cuda_dot.nearest(as_codes(9, 33), as_codes(1001, 33))


def as_codes(n, num_bits):
    return torch.zeros(n, (num_bits + 7) // 8, dtype=torch.uint8)


def label(text):
    launched_by[0] = text


def compile_only(self, *arguments, grid, warmup, **options):
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    if kernel.hash not in compiled:
        compiled.add(kernel.hash)
        print(json.dumps({"kernel": self.fn.__name__, "for": launched_by[0], **measure(kernel)}), flush=True)
    return kernel


def measure(kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = tool("cuobjdump", "--dump-resource-usage", file.name)
        opcodes = collections.Counter(OPCODE.findall(tool("nvdisasm", "-ndf", file.name)))
    return {
        "registers": int(re.search(r"REG:(\d+)", resources)[1]),
        "stack": int(re.search(r"STACK:(\d+)", resources)[1]),
        "shared": kernel.metadata.shared,
        "opcodes": opcodes,
    }


def tool(name, *arguments):
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


launched_by, compiled, run = [None], set(), JITFunction.run
if __name__ == "__main__":
    driver.set_active(Driver())
    JITFunction.run = compile_only
    launch_all([int(word) for word in sys.argv[2:]] or (20, 64, 128, 256, 4096))
    print(json.dumps({"all_kernels": all_kernels()}))
