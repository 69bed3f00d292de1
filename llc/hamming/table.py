"""The nearest class of every code there is, for short codes: decoding by one lookup. Numba kernels, numpy arrays.

The table is int32 [2^num_bits]. While it grows, an entry is distance << CLASS_BITS | class of the class nearest to that code. Growing
takes one pass over the table for each bit: after bits 0 to b, an entry is the best that codes differing from it in those bits only can
offer. A distance is a sum over bits, so when all bits are done every class has been offered to every code; and since the smaller integer
is the smaller distance and then the lower class, ties go where llc.hamming says.
"""

import numpy as np

from llc.kernels import kernel, load_word32, share

CLASS_BITS = 25  # five more hold distances to 24, and 31 for an entry that no class has reached yet
CODES_PER_THREAD = 1 << 18  # with fewer, starting a thread (some 50 us) costs more than it saves


def build(class_codes, num_bits):
    """class_codes uint8 [num_classes, code_size], of which the first num_bits <= 24 bits are in use -> table int32 [2^num_bits] of classes."""
    if len(class_codes) > 1 << CLASS_BITS:
        raise ValueError(
            f"class_codes: a table takes up to {1 << CLASS_BITS} classes, got {len(class_codes)}"
        )
    table = np.full(1 << num_bits, 31 << CLASS_BITS, np.int32)
    # of classes that share a code the lowest is written last, and stays
    num_bytes = (num_bits + 7) // 8
    codes = (
        class_codes[:, :num_bytes].astype(np.int32) @ (1 << np.arange(8 * num_bytes - 8, -8, -8))
        >> 8 * num_bytes - num_bits
    )
    table[codes[::-1]] = np.arange(len(class_codes), dtype=np.int32)[::-1]
    for bit in range(num_bits):
        _grow(table.reshape(-1, 2, 1 << bit))
    table &= (1 << CLASS_BITS) - 1
    return table


@kernel
def _grow(pairs):
    """pairs: the table as int32 [pairs, bit clear or set, entries]: offers every entry the classes of the one that differs in this bit."""
    one = np.int32(1 << CLASS_BITS)
    for pair in range(len(pairs)):
        clear, set_ = pairs[pair, 0], pairs[pair, 1]
        for i in range(len(clear)):
            a, b = clear[i], set_[i]
            clear[i], set_[i] = min(a, np.int32(b + one)), min(b, np.int32(a + one))


def look_up(codes, num_bits, table, num_threads):
    """The nearest class of each of codes uint8 [n, code_size] -> int64 [n]."""
    classes = np.empty(len(codes), np.int64)
    num_threads = max(1, min(num_threads, len(codes) // CODES_PER_THREAD))
    step = max(1, -(-len(codes) // num_threads))
    share(
        lambda first: _look_up(
            codes[first : first + step], np.uint64(32 - num_bits), table, classes[first : first + step]
        ),
        [(first,) for first in range(0, len(codes), step)],
        num_threads,
    )
    return classes


@kernel
def _look_up(codes, shift, table, classes):
    n, code_size = codes.shape
    flat = codes.reshape(n * code_size)
    num_fast = max(
        0, (n * code_size - 4) // code_size + 1
    )  # reading 4 bytes of the last codes could leave the array
    for row in range(num_fast):
        classes[row] = table[np.uint64(load_word32(flat, row * code_size)) >> shift]
    for row in range(num_fast, n):
        word = np.uint64(0)
        for byte in range(code_size):
            word |= np.uint64(codes[row, byte]) << np.uint64(24 - 8 * byte)
        classes[row] = table[word >> shift]


@kernel
def keep_exact(codes, class_codes, classes):
    """Replaces, in classes int64 [n], the class by -1 where its code is not the given one."""
    for row in range(len(codes)):
        for byte in range(codes.shape[1]):
            if codes[row, byte] != class_codes[classes[row], byte]:
                classes[row] = -1
                break
