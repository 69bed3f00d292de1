"""Packing on the CPU: signs are taken and packed in one pass over the values.

Eight values become one byte by a subtraction, a comparison, and a move of the comparison's mask. For eight
float32 values the generated assembly is, with AVX-512, vpshufd, vpaddd, vpermq, vpcmpltud, kmovb; with AVX2
it is vpaddd, vpmaxud, vpcmpeqd, four instructions that narrow and reverse, and vpmovmskb.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from llc.kernels import address_of, in_threads, kernel

VALUES_PER_THREAD = 1 << 21  # for fewer values, starting a thread (about 50 us) costs more than it saves
VALUES_PER_PIECE = 1 << 24  # a kernel call of so many values takes about 10 ms; between two, Ctrl-C is heard


def pack(values: np.ndarray, limit: int, num_threads: int) -> np.ndarray:
    """Packs values [n, num_bits] into codes uint8 [n, code_size]: a bit is 1 iff 0 < value <= limit.

    The values are C-contiguous, uint8, uint16, uint32 or uint64.
    """
    n, num_bits = values.shape
    codes = np.empty((n, (num_bits + 7) // 8), np.uint8)
    num_threads = max(1, min(num_threads, values.size // VALUES_PER_THREAD))
    step = max(1, min(VALUES_PER_PIECE // num_bits, -(-n // num_threads)))
    in_threads(
        lambda first: _pack(values[first : first + step], np.uint64(limit), codes[first : first + step]),
        [(first,) for first in range(0, n, step)],
        num_threads,
    )
    return codes


@intrinsic
def _byte_of_signs(typing, flat, position, limit):
    """The byte of flat[position:position + 8]: a bit is 1 iff 0 < value <= limit, the first bit highest."""

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
        # 0 < value <= limit as one unsigned comparison, value - 1 < limit: 0 - 1 is the largest number
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
    # A row's last byte may read values of the next rows, which the mask removes, but none beyond the array.
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
