"""What the CPU kernels of this project have in common: how numba compiles them, and how they are shared out to threads.

Why not numba's own threads (`prange`): its default layer aborts the process when two Python threads use it at once, as FFCV's loader
and an evaluation beside it do. A kernel here is plain code that releases the interpreter lock, and Python threads call it.
The intrinsics take the CPU to be little-endian, as x86 and ARM are.
"""

import itertools
import threading

import numba
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic


def kernel(function):
    """Decorator: compiled by numba when it first meets a kind of arguments, and kept in numba's cache on disk (`__pycache__`, or the
    user's cache folder where that is read-only), so that the next process only loads it. Runs without the interpreter lock."""
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no folder to write to: each process compiles for itself
        compiled = numba.njit(nogil=True)(function)
    compile_for = compiled._compile_for_args

    def one_at_a_time(*arguments, **keywords):
        """Numba locks its compiler, but not what it looks at before and after: threads that met a kernel together got a KeyError."""
        with global_compiler_lock:
            return compile_for(*arguments, **keywords)

    compiled._compile_for_args = one_at_a_time
    return compiled


def share(work, pieces, num_threads):
    """Calls work(*piece) for every piece, on this thread and up to num_threads - 1 others that live for this call alone.

    Pieces are taken in order, each as soon as a thread is free. After an error no further piece is begun, and the error is raised here.
    """
    numbers, errors = itertools.count(), []

    def run():
        for number in numbers:  # next() of a count is atomic
            if number >= len(pieces) or errors:
                return
            try:
                work(*pieces[number])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(num_threads, len(pieces)) - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def address_of(context, builder, array_type, array, position, element):
    """For intrinsics: the address of element `position` of a flat contiguous array, as a pointer to LLVM's type `element`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [position]), element.as_pointer())


def _load_word(bits):
    @intrinsic
    def load(typing, flat, position):
        def generate(context, builder, signature, arguments):
            word = builder.load(
                address_of(context, builder, signature.args[0], *arguments, ir.IntType(bits)), align=1
            )
            return builder.bswap(word)

        return types.Integer.from_bitwidth(bits, signed=False)(flat, types.intp), generate

    return load


# The 4 or 8 bytes of a flat uint8 array from `position` on as one number, the first byte highest.
load_word32, load_word64 = _load_word(32), _load_word(64)
