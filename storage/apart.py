"""Checks a large log in a separate process with low priority.

A check keeps a core busy for seconds or minutes. In a thread of a worker it would hold the interpreter lock every other
half millisecond, and each receipt would wait for it several times. Starting a process costs a tenth of a second, so
small logs are checked in a thread.

The child is told on its command line what to check, and reports its progress in lines of JSON. It ends when its output
is not read any more.

May touch: a child process, and through it the files of one log.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from ister.storage.disk import Disk, LocalDisk
from ister.storage.recovery import DamagedRange
from ister.storage.segment import base_of
from ister.storage.verify import VerifyProgress, VerifyReport, verify_log

APART_BYTES_MIN: Final = 64 << 20  # some 30 ms of work
NICE: Final = 10
_PROGRAM: Final = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told.pop(0); "
    "from ister.storage.apart import main; main(*told)"
)


def verify_aside(
    disk: Disk, folder: str, incarnation: bytes, *, durable_end: int | None = None
) -> Iterator[VerifyProgress | VerifyReport]:
    """Check a log like `verify_log`, in a separate process if it is large. Raises OSError."""
    if isinstance(disk, LocalDisk) and _bytes_of(disk, folder) >= APART_BYTES_MIN:
        yield from _verify_apart(folder, incarnation, durable_end)
    else:
        yield from verify_log(disk, folder, incarnation, durable_end=durable_end)


def _bytes_of(disk: Disk, folder: str) -> int:
    found = 0
    for name in disk.listdir(folder):
        if base_of(name) is not None:
            with contextlib.suppress(FileNotFoundError):  # it was trimmed meanwhile
                found += disk.size(f"{folder}/{name}")
    return found


def _verify_apart(
    folder: str, incarnation: bytes, durable_end: int | None
) -> Iterator[VerifyProgress | VerifyReport]:
    told = json.dumps([sys.path, os.path.abspath(folder), incarnation.hex(), durable_end])
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, told],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            step = _read(json.loads(line))
            yield step
            if isinstance(step, VerifyReport):
                return
        raise OSError(f"the check of {folder} ended without a report (exit code {child.wait()})")
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


def _read(said: dict[str, Any]) -> VerifyProgress | VerifyReport:
    if "error" in said:
        raise OSError(said["error"])
    if "damaged" in said:
        damaged = tuple(DamagedRange(**each) for each in said.pop("damaged"))
        return VerifyReport(**said, damaged=damaged)
    return VerifyProgress(**said)


def main(folder: str, incarnation: str, durable_end: int | None) -> None:
    """Run as the child process."""
    os.nice(NICE)
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"ister: verify {folder}")
    try:
        for step in verify_log(LocalDisk(), folder, bytes.fromhex(incarnation), durable_end=durable_end):
            sys.stdout.write(json.dumps(asdict(step)) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent has ended
    except OSError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")


__all__ = ["APART_BYTES_MIN", "main", "verify_aside"]
