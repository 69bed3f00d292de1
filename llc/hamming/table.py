"""A table of the nearest class of every possible short code, for decoding by one lookup. Numba, numpy arrays.

The table is int32 [2^num_bits]. While it is built, the entry of a code is distance << CLASS_BITS | class, for
the nearest class known so far. At first only the class codes' own entries are known, with distance 0. Then
one pass over the table for each bit lets every two codes that differ in this bit alone exchange their nearest
classes, one bit further away. After the passes for bits 0 to b, an entry is the best of all class codes that
differ from its code in those bits only. A distance is a sum over bits, so after all passes every class has
reached every code. The minimum of two entries is the smaller distance and, at equal distances, the lower
class: the tie rule of llc.hamming.
"""

import numpy as np

from llc.kernels import in_threads, kernel, load_word32

CLASS_BITS = 25  # 5 more bits hold distances up to 24, and 31 for an entry that no class has reached yet
CODES_PER_THREAD = 1 << 18  # for fewer codes, starting a thread (about 50 us) costs more than it saves
BYTES_PER_PIECE = 1 << 22  # a kernel call for codes of so many bytes takes 2 to 20 ms; Ctrl-C waits for it


def build(class_codes: np.ndarray, num_bits: int) -> np.ndarray:
    """The nearest class of every code of num_bits bits -> int32 [2^num_bits].

    class_codes: uint8 [num_classes, code_size], of which the first num_bits <= 24 bits are in use. Raises
    ValueError if there are more classes than CLASS_BITS bits can number.
    """
    if len(class_codes) > 1 << CLASS_BITS:
        raise ValueError(
            f"class_codes: a table takes up to {1 << CLASS_BITS} classes, got {len(class_codes)}"
        )
    table = np.full(1 << num_bits, 31 << CLASS_BITS, np.int32)
    # in descending order, so that of classes with the same code the lowest is written last and stays
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
    """One pass, for one bit.

    pairs: the table as int32 [pairs, 2, entries]; the bit is 0 in [:, 0] and 1 in [:, 1].
    """
    one = np.int32(1 << CLASS_BITS)
    for pair in range(len(pairs)):
        clear, set_ = pairs[pair, 0], pairs[pair, 1]
        for i in range(len(clear)):
            a, b = clear[i], set_[i]
            clear[i], set_[i] = min(a, np.int32(b + one)), min(b, np.int32(a + one))


def look_up(codes: np.ndarray, num_bits: int, table: np.ndarray, num_threads: int) -> np.ndarray:
    """The nearest class of each code: codes uint8 [n, code_size], table as `build` makes it -> int64 [n]."""
    classes = np.empty(len(codes), np.int64)
    num_threads = max(1, min(num_threads, len(codes) // CODES_PER_THREAD))
    step = max(1, min(BYTES_PER_PIECE // codes.shape[1], -(-len(codes) // num_threads)))
    in_threads(
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
    # reading 4 bytes at one of the last codes could reach beyond the array
    num_fast = max(0, (n * code_size - 4) // code_size + 1)
    for row in range(num_fast):
        classes[row] = table[np.uint64(load_word32(flat, row * code_size)) >> shift]
    for row in range(num_fast, n):
        word = np.uint64(0)
        for byte in range(code_size):
            word |= np.uint64(codes[row, byte]) << np.uint64(24 - 8 * byte)
        classes[row] = table[word >> shift]


def keep_exact(codes: np.ndarray, class_codes: np.ndarray, classes: np.ndarray) -> None:
    """Sets classes, int64 [n], to -1 where the code of the class differs from the given code."""
    step = BYTES_PER_PIECE // codes.shape[1]
    for start in range(0, len(codes), step):
        piece = slice(start, start + step)
        _keep_exact(codes[piece], class_codes, classes[piece])


@kernel
def _keep_exact(codes, class_codes, classes):
    for row in range(len(codes)):
        for byte in range(codes.shape[1]):
            if codes[row, byte] != class_codes[classes[row], byte]:
                classes[row] = -1
                break
