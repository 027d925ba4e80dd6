"""What the C library's allocator keeps of memory that was freed, in a process that moves many bytes.

ZeroMQ allocates every message, some 64 to 256 KiB in bulk, and frees it a moment later. The allocator of glibc gives
such memory back to the kernel at once, and each page costs a fault when it is used next: some 25 for a batch of 64 KiB.
So a worker lets it keep more, and gives everything back when nothing has passed for a while.

May touch: the allocator of this process. Elsewhere than with glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

# Freed memory that each arena keeps: the window of several producers, and the credit of several consumers.
KEPT_BYTES: Final = 32 << 20
# Larger blocks are mapped each by itself, and given back when they are freed.
MAPPED_BYTES: Final = 4 << 20
_TRIM_THRESHOLD: Final = -1  # <malloc.h>
_MMAP_THRESHOLD: Final = -3
# Names with which glibc is told the same from outside: somebody has decided then.
_DECIDED: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let the allocator keep freed memory; return whether it does: not if the environment says what it is to keep."""
    mallopt = _function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is None or any(name in environment for name in _DECIDED):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


class FreedMemory:
    """Gives kept memory back when nothing has passed since the last look."""

    def __init__(self, give_back: Callable[[], None] | None = None) -> None:
        self._give_back = give_back or _give_back
        self._passed = 0
        self._has_some = False  # something passed since memory was given back

    def look(self, passed: int) -> None:
        """Give back what is kept, unless something passed since the last look; `passed` counts what did, in all."""
        if passed != self._passed:
            self._passed, self._has_some = passed, True
        elif self._has_some:
            self._has_some = False
            self._give_back()


def _give_back() -> None:
    trim = _function("malloc_trim", ctypes.c_size_t)
    if trim is not None:
        trim(0)


def _function(name: str, *types: Any) -> Callable[..., int] | None:
    """Return a function of glibc, None with another C library."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others have functions of these names, with other effects
        found: Any = getattr(library, name)
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes, found.restype = types, ctypes.c_int
    function: Callable[..., int] = found
    return function
