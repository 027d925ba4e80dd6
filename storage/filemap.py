"""Memory maps of files without a descriptor, so that a process can read thousands of segments.

Python's own map keeps a copy of the descriptor for as long as it lives, up to 3.12. Here the file is mapped over an
anonymous map of Python's, which then unmaps it as it would have unmapped itself.

May touch: the descriptor it is given.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from ister.storage.checksum import address_of

_MAP_FIXED = 0x10  # on Linux and on macOS
_FAILED = ctypes.c_void_p(-1).value


def _over() -> Callable[[int, int, int], bool] | None:
    """Return a function that maps a descriptor over (address, length), None without the C library's mmap."""
    try:
        function: Any = ctypes.CDLL(None, use_errno=True).mmap
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    function.restype = ctypes.c_void_p

    def over(address: int, length: int, fd: int) -> bool:
        found = function(address, length, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd, 0)
        return bool(found != _FAILED)

    return over


_map_over = _over()


def map_file(fd: int) -> memoryview:
    """Return a read-only view of a non-empty file at its present length; `fd` may be closed after that."""
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ, trackfd=False))
    length = os.fstat(fd).st_size
    if _map_over is not None and length:
        whole = memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON, prot=mmap.PROT_READ))
        address = address_of(whole)
        if address is not None and _map_over(address, length, fd):
            return whole
    return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
