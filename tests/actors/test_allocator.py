"""What a worker's allocator keeps of memory that was freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ister.actors.allocator import FreedMemory, keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"

# Blocks as large as ZeroMQ's messages, all freed and allocated again: how many pages does the second round touch anew?
FAULTS = """
import ctypes, resource, sys
from ister.actors.allocator import FreedMemory, keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)
def round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [c.malloc(100_000) for _ in range(80)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks:
        c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, again = round(), round()
freed = FreedMemory()
freed.look(1)
freed.look(1)
print(first, again, round())
"""
PAGES = 80 * 100_000 // 4096


def _faults(how: str) -> tuple[int, int, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    first, again, after = map(int, done.stdout.split())
    return first, again, after


@pytest.mark.skipif(not GLIBC, reason="of glibc")
def test_memory_that_was_freed_is_used_again_without_faults_until_nothing_passes() -> None:
    """What a worker frees it keeps for the next messages, and gives back when nothing passes any more."""
    first, again, after = _faults("keep")
    assert first > PAGES // 2
    assert again < PAGES // 10
    assert after > PAGES // 2, "it was given back"


def test_the_environment_decides_what_is_kept_where_it_says_so() -> None:
    """Who sets glibc's own variables is not overruled."""
    assert not keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "131072"})
    assert not keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"})


def test_memory_is_given_back_once_after_each_time_that_something_passed() -> None:
    """An idle worker has nothing to give back, and a busy one keeps it."""
    given = []
    freed = FreedMemory(lambda: given.append(True))
    freed.look(0)
    freed.look(0)
    assert not given
    freed.look(10)
    freed.look(20)
    assert not given
    freed.look(20)
    freed.look(20)
    assert len(given) == 1
    freed.look(30)
    freed.look(30)
    assert len(given) == 2
