"""Packing on the CPU: the sign and the packing in one pass over the values.

Eight values become one byte by a subtraction, a comparison and a move of the comparison's mask. For eight float32 the generated assembly
is vpshufd, vpaddd, vpermq, vpcmpltud, kmovb with AVX-512, and vpaddd, vpmaxud, vpcmpeqd, four to narrow and reverse, vpmovmskb with AVX2.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from llc.kernels import address_of, kernel, share

VALUES_PER_THREAD = 1 << 21  # with fewer, starting a thread (some 50 us) costs more than it saves


def pack(values, limit, num_threads):
    """values: uint8, 16, 32 or 64 [n, num_bits], C-contiguous -> uint8 [n, code_size]; bit = 1 iff 0 < value <= limit."""
    n, num_bits = values.shape
    codes = np.empty((n, (num_bits + 7) // 8), np.uint8)
    num_threads = max(1, min(num_threads, values.size // VALUES_PER_THREAD))
    step = max(1, -(-n // num_threads))
    share(
        lambda first: _pack(values[first : first + step], np.uint64(limit), codes[first : first + step]),
        [(first,) for first in range(0, n, step)],
        num_threads,
    )
    return codes


@intrinsic
def _byte_of_signs(typing, flat, position, limit):
    """The byte whose highest bit says whether flat[position] is in 1..limit, and so on for the seven after it."""

    def generate(context, builder, signature, arguments):
        element = ir.IntType(signature.args[0].dtype.bitwidth)
        vector, lanes = ir.VectorType(element, 8), ir.VectorType(ir.IntType(32), 8)
        loaded = builder.load(
            address_of(context, builder, signature.args[0], *arguments[:2], vector), align=element.width // 8
        )
        limit = arguments[2] if element.width == 64 else builder.trunc(arguments[2], element)
        limit = builder.insert_element(
            ir.Constant(vector, ir.Undefined), limit, ir.Constant(ir.IntType(32), 0)
        )
        limits = builder.shuffle_vector(limit, limit, ir.Constant(lanes, [0] * 8))
        # 0 < value <= limit in one unsigned comparison, where 0 - 1 is the largest number there is
        inside = builder.icmp_unsigned("<", builder.sub(loaded, ir.Constant(vector, [1] * 8)), limits)
        inside = builder.shuffle_vector(inside, inside, ir.Constant(lanes, list(range(7, -1, -1))))
        return builder.bitcast(inside, ir.IntType(8))

    return types.uint8(flat, types.intp, types.uint64), generate


@kernel
def _pack(values, limit, codes):
    n, num_bits = values.shape
    code_size = codes.shape[1]
    flat = values.reshape(n * num_bits)
    padding = np.uint8(255 << (8 * code_size - num_bits) & 255)
    # A row's last byte may read some values of the rows after it (the mask takes them away), but nothing after the array.
    num_fast = max(0, (n * num_bits - 8 * code_size) // num_bits + 1)
    for row in range(num_fast):
        position = row * num_bits
        for byte in range(code_size - 1):
            codes[row, byte] = _byte_of_signs(flat, position + 8 * byte, limit)
        codes[row, code_size - 1] = _byte_of_signs(flat, position + 8 * (code_size - 1), limit) & padding
    for row in range(num_fast, n):
        for byte in range(code_size):
            code = 0
            for bit in range(8 * byte, min(8 * byte + 8, num_bits)):
                code |= _is_inside(np.uint64(values[row, bit]), limit) << (7 - (bit & 7))
            codes[row, byte] = code


@njit
def _is_inside(value, limit):
    return np.int64(np.uint64(0) < value <= limit)
