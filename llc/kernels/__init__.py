"""What the CPU kernels of this project share: how numba compiles them, and how threads divide their work.

A kernel is plain code that releases the interpreter lock, and Python threads call it. Numba's own threads
(`prange`) are not used, because their default layer aborts the process if two Python threads use it at once,
as an evaluation beside FFCV's loader would. The intrinsics assume a little-endian CPU, as x86 and ARM are.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from llc.kernels.on_disk import KernelCache, NoCache


def kernel(function: Callable[..., Any]) -> Any:
    """A decorator: numba compiles the function, which then runs without the interpreter lock.

    It is compiled at the first call with arguments of a new type. Numba keeps the result in its cache on
    disk, so that the next process only loads it: in `__pycache__`, or in the user's cache folder if that is
    read-only. A cache that cannot be used costs a warning and the time to compile (on_disk.py).
    """
    compiled: Any = numba.njit(nogil=True)(function)
    try:
        compiled._cache = KernelCache(function)
    except (RuntimeError, OSError):  # numba finds no folder that it can write to
        compiled._cache = NoCache(function)
    compile_for = compiled._compile_for_args

    def one_at_a_time(*arguments, **keywords):
        """Compiles in one thread at a time.

        Numba locks its compiler, but not the tables that it reads before and writes after compiling. Threads
        that called a new kernel at the same time got a KeyError.
        """
        with global_compiler_lock:
            return compile_for(*arguments, **keywords)

    compiled._compile_for_args = one_at_a_time
    return compiled


def in_threads(
    work: Callable[..., Any], pieces: Sequence[tuple], num_threads: int, stop: np.ndarray | None = None
) -> None:
    """Calls work(*piece) for every piece, on up to num_threads threads.

    The threads are started for this call alone. They take the pieces in order, each when it is free. After an
    error or Ctrl-C no further piece is started, and the error or KeyboardInterrupt is raised here.

    Without `stop`, the calling thread works too, and Ctrl-C is heard between two pieces. stop: uint8 [1],
    which holds 0. With it, the calling thread only waits, so Ctrl-C is heard at once, however long a piece
    takes. After an error or Ctrl-C `stop` becomes 1. Kernels that look at it by `is_set` then return early.
    """
    numbers = itertools.count()
    errors: list[BaseException] = []

    def end(error):
        errors.append(error)
        if stop is not None:
            stop[0] = 1

    def run():
        for number in numbers:  # next() on a count is atomic, so each number is taken once
            if number >= len(pieces) or errors:
                return
            try:
                work(*pieces[number])
            except BaseException as error:
                end(error)

    num_started = min(num_threads, len(pieces)) - (stop is None)
    threads = [threading.Thread(target=run, daemon=True) for _ in range(num_started)]
    try:
        for thread in threads:
            thread.start()
        if stop is None:
            run()
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C, which only reaches the main thread
        end(error)
        raise
    if errors:
        raise errors[0]


def address_of(context, builder, array_type, array, position, element):
    """Emits the address of element `position` of a flat contiguous array.

    element: an LLVM type; the address is a pointer to it.
    """
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


# (flat, position) -> 4 or 8 bytes of a uint8 array from `position` on as one number, the first byte highest.
load_word32, load_word64 = _load_word(32), _load_word(64)


@intrinsic
def is_set(typing, flag):
    """Whether flag[0] of a uint8 array is not 0, which another thread may change at any time."""

    def generate(context, builder, signature, arguments):
        byte, zero = ir.IntType(8), ir.Constant(ir.IntType(64), 0)
        address = address_of(context, builder, signature.args[0], arguments[0], zero, byte)
        # Atomic, because LLVM may read a plain value once, before a loop.
        return builder.icmp_unsigned("!=", builder.load_atomic(address, "monotonic", 1), ir.Constant(byte, 0))

    return types.boolean(flag), generate
