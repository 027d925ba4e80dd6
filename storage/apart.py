"""Checks a large log in a separate process, which uses what the rest of the machine leaves.

A check keeps a core busy for seconds or minutes. In a thread of a worker it would hold the interpreter lock every other
half millisecond, and each receipt would wait for it several times. So the process that checks

- runs only when nothing else wants the core (Linux: SCHED_IDLE, which lowers the priority of its reads as well). On a
  machine that is busy all the time it would never end that way, so one that gets nowhere is started again at a low
  priority (nice);
- works in bursts and rests in between (`pacing.py`), and leaves the page cache as it found it;
- waits for its turn: one log is checked at a time, whichever worker it belongs to.

Small logs are checked in a thread, before a process would have started. The child is told on its command line what to
check, and reports its progress in lines of JSON. It ends when its output is not read any more.

May touch: a child process, and through it the files of one log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from ister.clock import SystemClock
from ister.storage.disk import Disk, LocalDisk
from ister.storage.pacing import Pacing
from ister.storage.recovery import DamagedRange
from ister.storage.segment import base_of
from ister.storage.verify import VerifyProgress, VerifyReport, verify_log

APART_BYTES_MIN: Final = 4 << 20  # some 2 ms of work
NICE: Final = 10
# A check that runs when nothing else does has this long to reach its next segment.
PATIENCE_S: Final = 5.0
# Each line that is said costs the worker some 100 us.
SAY_EVERY_S: Final = 0.1
WAITS_S: Final = 1.0  # how often one that waits for its turn says so
_WAITS: Final = json.dumps(asdict(VerifyProgress(0, 0, 0, 0))).encode()
# The priority comes before the imports, which take most of the time of a small check.
_PROGRAM: Final = """
import os, sys
try:
    if sys.argv[1] != "idle":
        raise OSError
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
except (AttributeError, OSError):
    os.nice(int(sys.argv[2]))
import json, site
site.main()
told = json.loads(sys.argv[3])
sys.path[:] = told.pop(0)
from ister.storage.apart import main
main(*told)
"""


@dataclass(frozen=True, slots=True)
class CheckRules:
    """How much of the machine a check may use: `percent` of a core, while it has the file `turn`, if one is given."""

    percent: int = 100
    turn: str | None = None


ALONE: Final = CheckRules()  # nobody else is at work


def verify_aside(
    disk: Disk,
    folder: str,
    incarnation: bytes,
    *,
    durable_end: int | None = None,
    rules: CheckRules = ALONE,
) -> Iterator[VerifyProgress | VerifyReport]:
    """Check a log like `verify_log`, in a separate process if it is large. Raises OSError."""
    if isinstance(disk, LocalDisk) and _bytes_of(disk, folder) >= APART_BYTES_MIN:
        yield from _verify_apart(folder, incarnation, durable_end, rules)
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
    folder: str, incarnation: bytes, durable_end: int | None, rules: CheckRules
) -> Iterator[VerifyProgress | VerifyReport]:
    told = json.dumps(
        [sys.path, os.path.abspath(folder), incarnation.hex(), durable_end, rules.percent, rules.turn]
    )
    for when, patience_s in (("idle", PATIENCE_S), ("nice", None)):
        with _Check(when, told) as check:
            while (line := check.line(patience_s)) is not None:
                if not line:
                    raise OSError(f"the check of {folder} ended without a report (exit code {check.code()})")
                yield (step := _read(json.loads(line)))
                if isinstance(step, VerifyReport):
                    return


class _Check:
    """A child process that checks a log."""

    def __init__(self, when: str, told: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-S", "-c", _PROGRAM, when, str(NICE), told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        self._out = self._child.stdout.fileno()
        self._said = b""
        self._waits = False  # for its turn

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._child.pid

    def line(self, patience_s: float | None) -> bytes | None:
        """Return the next line it says, empty after the last one; None if it gets nowhere for so long."""
        while b"\n" not in self._said:
            if not select.select([self._out], [], [], None if self._waits else patience_s)[0]:
                return None
            if not (more := os.read(self._out, 1 << 16)):
                return b""
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        self._waits = line == _WAITS
        return line

    def code(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._child.wait()


def _read(said: dict[str, Any]) -> VerifyProgress | VerifyReport:
    if "error" in said:
        raise OSError(said["error"])
    if "damaged" in said:
        damaged = tuple(DamagedRange(**each) for each in said.pop("damaged"))
        return VerifyReport(**said, damaged=damaged)
    return VerifyProgress(**said)


def main(folder: str, incarnation: str, durable_end: int | None, percent: int, turn: str | None) -> None:
    """Run as the child process."""
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"ister: verify {folder}")
    disk, clock = LocalDisk(), SystemClock()
    rest = Pacing(percent, clock.monotonic, time.sleep)
    try:
        with contextlib.nullcontext() if turn is None else _taken(disk, turn):
            said_s = clock.monotonic() - SAY_EVERY_S
            steps = verify_log(disk, folder, bytes.fromhex(incarnation), durable_end=durable_end, rest=rest)
            for step in steps:
                now_s = clock.monotonic()
                if isinstance(step, VerifyReport) or now_s - said_s >= SAY_EVERY_S:
                    _say(json.dumps(asdict(step)).encode())
                    said_s = now_s
    except OSError as error:
        _say(json.dumps({"error": str(error)}).encode())


@contextlib.contextmanager
def _taken(disk: LocalDisk, turn: str) -> Iterator[None]:
    """Wait for the turn, and say so again and again."""
    came = threading.Event()

    def say() -> None:
        while not came.wait(WAITS_S):
            _say(_WAITS)

    _say(_WAITS)
    threading.Thread(target=say, daemon=True).start()
    with disk.exclusive(turn):
        came.set()
        yield


def _say(line: bytes) -> None:
    """Tell the parent; without one, end."""
    try:
        os.write(1, line + b"\n")
    except BrokenPipeError:
        os._exit(1)


__all__ = ["ALONE", "APART_BYTES_MIN", "CheckRules", "main", "verify_aside"]
