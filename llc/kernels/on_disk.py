"""Numba's cache of compiled kernels on disk, as an optimisation only.

The cache may be damaged, full or closed. Then there is one warning, which names its folder, and kernels are
compiled as if there were none.
"""

import pickle
import warnings
import zlib
from pathlib import Path

from numba.core import serialize
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache

_warned = set()  # folders


class _Checked(CompileResultCacheImpl):
    """Keeps a CRC-32 beside machine code, because code with a changed byte might do anything."""

    def get_filename_base(self, fullname, abiflags):
        return f"{super().get_filename_base(fullname, abiflags)}-crc"

    def reduce(self, data):
        code = serialize.dumps(super().reduce(data))
        return zlib.crc32(code), code

    def rebuild(self, target_context, reduced_data):
        checksum, code = reduced_data
        if zlib.crc32(code) != checksum:
            raise ValueError("its checksum is wrong")
        return super().rebuild(target_context, pickle.loads(code))


class KernelCache(FunctionCache):
    """The cache of one kernel. What is damaged is written again; what cannot be read or written is left."""

    _impl_class = _Checked

    def load_overload(self, sig, target_context):
        """The compiled kernel for these types, or None."""
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            self._leave(error)
        except Exception as error:  # damage makes pickle raise nearly anything, MemoryError too
            _warn(self.cache_path, "is damaged", error)
            try:
                self.flush()
            except OSError as failure:
                self._leave(failure)
        return None

    def save_overload(self, sig, data):
        """Keeps a compiled kernel for the next process."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self._leave(error)
        except Exception as error:  # an index that was damaged meanwhile
            _warn(self.cache_path, "is damaged", error)
            self.disable()

    def _leave(self, error):
        _warn(self.cache_path, "cannot be used", error)
        self.disable()


class NoCache(NullCache):
    """Stands where numba finds no folder that it can write to."""

    def __init__(self, function):
        self._folder = Path(function.__code__.co_filename).parent / "__pycache__"

    def load_overload(self, sig, target_context):
        """None, with a warning at the first call."""
        _warn(self._folder, "cannot be used", "no file can be written there or in the user's cache folder")


def _warn(folder, what, why):
    if folder not in _warned:
        _warned.add(folder)
        reason = getattr(why, "strerror", None) or str(why) or type(why).__name__
        warnings.warn(
            f"the cache of compiled kernels in {folder} {what} ({reason}). Kernels are compiled again, which"
            " takes seconds; the variable NUMBA_CACHE_DIR names another folder",
            stacklevel=2,
        )
