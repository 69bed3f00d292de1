"""The native library: C++ behind a plain C interface, for images (codec.py), packed codes (hamming.py) and
indexes of these (index.py).

It is built by `pip install` from src/ and does not know Python, so one build serves every version. Calls
release the GIL and share nothing, so any number of them may run at once.
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llc import environment
from llc.errors import UserError

_PATH = Path(environment.native_library() or Path(__file__).with_name("_native.so"))
_P, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_PICTURE = [_P, _I64, _P, _P, _P]  # out, capacity, length, width, height
_CODES = [_P, _I64, _P, _I64, _I32]  # queries, n, database, m, code_size
_FUNCTIONS = {  # name -> result, arguments; as in the headers that native.h names
    "llc_instructions": (ctypes.c_char_p, [_I32]),
    # codec
    "llc_status_text": (ctypes.c_char_p, [_I32]),
    "llc_decode_batch": (None, [_I64, _P, _P, _P, _P, _P, _P, _P, _P, _I32, _I32, _I32, _I32, _P]),
    "llc_jpeg_size": (_I32, [_P, _I64, _P, _P]),
    "llc_decode_jpeg": (_I32, [_P, _I64, _I32, _I32, _P]),
    "llc_recode_jpeg": (_I32, [_P, _I64, _I32, _I32, _I32, *_PICTURE]),
    "llc_keep_jpeg": (_I32, [_P, _I64, _I32, _I32, *_PICTURE]),
    "llc_read_jpeg": (_I32, [_P, _I64, _I32, *_PICTURE]),
    "llc_encode_jpeg": (_I32, [_P, _I32, _I32, _I32, _I32, _P, _I64, _P]),
    # hamming
    "llc_hamming_search": (_I32, [*_CODES, _I64, _I32, _I32, _P, _P, _P]),
    "llc_hamming_range_search": (_I32, [*_CODES, _I64, _I32, _I32, _P, _P, _P, _P]),
    "llc_hamming_pairwise": (_I32, [*_CODES, _I32, _I32, _P, _P]),
    "llc_hamming_rank": (_I32, [*_CODES, _P, _P, _P, _P, *[_I64] * 3, *[_I32] * 3, *[_P] * 6]),
    "llc_hamming_build_table": (_I32, [_P, _I64, _I32, _I32, _I32, _I32, _P, _P]),
    "llc_hamming_look_up": (_I32, [_P, _I64, _I32, _I32, _P, _I32, _I32, _P, _P]),
    "llc_hamming_keep_exact": (_I32, [_P, _I64, _I32, _P, _I32, _P, _P]),
    "llc_posterior_table": (_I32, [_P, _P, _P, _I32, _I32, ctypes.c_float, _I64, _I32, _P, _P, _P, _P]),
    "llc_posterior_histograms": (_I32, [_P, _I64, _P, _P, _P, _I32, _I32, _I32, _P, _P]),
    "llc_posterior_linear": (_I32, [_P, _I64, _I32, _P, _P, _I32, _I64, _P, _I32, _P, _P, _P, _P]),
    "llc_pack_bits": (_I32, [_P, _I64, _I64, _I32, ctypes.c_uint64, _I32, _I32, _P, _P]),
    # index
    "llc_index_search": (_I32, [_P, _I64, _P, _P]),
    "llc_index_range_search": (_I32, [_P, _I64, _P, _P]),
    "llc_index_take": (None, [_P, _P, _P]),
    "llc_index_groups": (_I32, [_P, _I64, _I32, _I32, _I32, _P, _P, _P, _P]),
    "llc_index_take_groups": (None, [_P, _P, _P]),
    "llc_index_build_table": (_I32, [_P, _I64, _I32, _P, _I32, _I32, _P, _P, _P]),
    "llc_index_gather": (_I32, [_P, _I64, _I32, _P, _I32, _P, _P]),
    "llc_index_count": (_I64, [_P, _I64]),
}


@functools.cache
def library():
    """The loaded library. Raises UserError where it was not built, or was built from older sources."""
    advice = (
        "build it in the project's folder: pip install -e . (needs a C++ compiler and libjpeg-dev; make setup"
        " installs both), or install the wheel, which holds it"
    )
    try:
        loaded = ctypes.CDLL(str(_PATH))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise UserError(f"{_PATH} was built from older sources ({error}); {advice}") from error
    except OSError as error:
        raise UserError(f"llc's native library cannot be loaded ({error}); {advice}") from error
    return loaded


def instruction_sets():
    """Names of the instruction sets for which this CPU has a version of the inner loops, fastest first."""
    names = []
    while (name := library().llc_instructions(len(names))) is not None:
        names.append(name.decode("ascii"))
    return names


def instruction_index(name):
    """The library's number of an instruction set; None: of the fastest."""
    return 0 if name is None else instruction_sets().index(name)


def stoppable(call: Callable[[int], int]) -> int:
    """Calls call(address of `stop`) in another thread -> its status, while the calling thread hears Ctrl-C.

    Python hears it only between two of its own instructions. Then `stop` is set, and the error is raised when
    the function has returned, not before, however often Ctrl-C is pressed: it writes to arrays that the
    callers keep alive.
    """
    stop = np.zeros(1, np.uint8)
    results: list[int] = []
    gate, finished, opened = threading.Event(), threading.Event(), False

    def work() -> None:
        gate.wait()
        try:
            if opened:
                results.append(call(stop.ctypes.data))
        finally:
            finished.set()

    try:
        threading.Thread(target=work).start()
        opened = True  # from here on there is a thread to wait for
        gate.set()
        finished.wait()
    except BaseException:  # Ctrl-C, which only reaches the main thread
        while not finished.is_set():
            try:
                stop[0] = 1
                gate.set()
                if not opened:
                    break
                finished.wait()
            except KeyboardInterrupt:
                continue
        raise
    [status] = results
    return status
