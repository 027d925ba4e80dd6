"""Checks a large log in a separate process, which uses what the rest of the machine leaves.

A check keeps a core busy for seconds or minutes. In a thread of a worker it would hold the interpreter lock every other
half millisecond, and each receipt would wait for it several times. So the process that checks

- runs only when nothing else of the broker wants the core (Linux: SCHED_IDLE, which lowers the priority of its reads as
  well; it counts within a session or control group). On a machine that is busy all the time it might never end that
  way, so one that gets nowhere is started again at a low priority (nice);
- works in bursts and rests in between, the longer the more often others interrupt it (`pacing.py`), and leaves the page
  cache as it found it;
- waits for its turn: one log is checked at a time, whichever worker it belongs to;
- imports storage without the client, and stays for the next check for some seconds: starting an interpreter costs as
  much as checking half a gigabyte, and that work cannot rest.

Small logs are checked in a thread, before a process would have started. The child is told in a line of JSON what to
check, and reports its progress in others. It ends when its input ends, or when its output is not read any more.

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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from ister.clock import SystemClock
from ister.storage.disk import Disk, LocalDisk
from ister.storage.pacing import Pacing
from ister.storage.recovery import DamagedRange
from ister.storage.segment import base_of
from ister.storage.verify import VerifyProgress, VerifyReport, verify_log

if sys.platform != "win32":
    import resource

APART_BYTES_MIN: Final = 4 << 20  # less than a millisecond of work
NICE: Final = 10
# A check that runs when nothing else does has this long to get anywhere.
PATIENCE_S: Final = 5.0
# Each line that is said costs the worker some 100 us.
SAY_EVERY_S: Final = 0.1
WAITS_S: Final = 1.0  # how often one that waits for its turn, or is in a large segment, says so
# A child is some 20 MB; checks that follow one another, as of all topics in a script, need one.
KEEP_S: Final = 10.0
_WAITS: Final = json.dumps(asdict(VerifyProgress(0, 0, 0, 0))).encode()
# The priority comes before the imports, which take most of the time of a small check. The package is made here, because
# importing it imports the client with all its libraries: more than half of a start.
_PROGRAM: Final = """
import os, sys
try:
    if sys.argv[1] != "idle":
        raise OSError
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
except (AttributeError, OSError):
    os.nice(int(sys.argv[2]))
import json, types
sys.path[:] = json.loads(sys.argv[3])
package = sys.modules["ister"] = types.ModuleType("ister")
package.__path__ = [sys.argv[4]]
from ister.storage.apart import main
main()
"""


class Kept:
    """A process that has ended its check, and waits for another one until `KEEP_S` have passed; any thread."""

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._check: _Check | None = None
        self._end: threading.Timer | None = None

    def take(self) -> _Check | None:
        """Return the process, None if there is none; it is the caller's then."""
        with self._lock:
            check, self._check = self._check, None
            if self._end is not None:
                self._end.cancel()
                self._end = None
        return check

    def put(self, check: _Check) -> None:
        """Keep a process; end one that is kept already."""
        self.end()
        with self._lock:
            self._check = check
            self._end = threading.Timer(self._keep_s, self.end)
            self._end.daemon = True
            self._end.start()

    def end(self) -> None:
        """End the process, if there is one."""
        check = self.take()
        if check is not None:
            check.end()


@dataclass(frozen=True, slots=True)
class CheckRules:
    """How much of the machine a check may use: `percent` of a core, while it has the file `turn`, if one is given.

    Checks that follow one another share the process that is `kept`, if that is given.
    """

    percent: int = 100
    turn: str | None = None
    kept: Kept | None = None


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
        [os.path.abspath(folder), incarnation.hex(), durable_end, rules.percent, rules.turn]
    ).encode()
    for when, patience_s in (("idle", PATIENCE_S), ("nice", None)):
        with _begun(when, told, rules.kept) as check:
            while (line := check.line(patience_s)) is not None:
                if not line:
                    raise OSError(f"the check of {folder} ended without a report (exit code {check.code()})")
                yield (step := _read(json.loads(line)))
                if isinstance(step, VerifyReport):
                    if when == "idle" and rules.kept is not None:
                        check.keep_in(rules.kept)
                    return


def _begun(when: str, told: bytes, kept: Kept | None) -> _Check:
    """Return a process that has begun the check that it is told of: the one that is kept, or a new one."""
    check = kept.take() if kept is not None and when == "idle" else None
    if check is not None:
        if check.begin(told):
            return check
        check.end()
    check = _Check(when)
    check.begin(told)
    return check


class _Check:
    """A child process that checks logs, one after the other. It is ended where its `with` block is left."""

    def __init__(self, when: str) -> None:
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        arguments = [when, str(NICE), json.dumps(sys.path), package]
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-S", "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._child.stdout is not None
        self._out = self._child.stdout.fileno()
        self._said = b""
        self._waits = False  # for its turn
        self._kept = False

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._child.pid

    def begin(self, told: bytes) -> bool:
        """Have it check a log; return False if it has ended."""
        assert self._child.stdin is not None
        self._kept = False
        try:
            self._child.stdin.write(told + b"\n")
        except BrokenPipeError:
            return False
        return True

    def keep_in(self, kept: Kept) -> None:
        """Let it wait for the next check, which another owner begins."""
        self._kept = True
        kept.put(self)

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

    def end(self) -> None:
        """End it at once."""
        self._child.kill()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.end()


def _read(said: dict[str, Any]) -> VerifyProgress | VerifyReport:
    if "error" in said:
        raise OSError(said["error"])
    if "damaged" in said:
        damaged = tuple(DamagedRange(**each) for each in said.pop("damaged"))
        return VerifyReport(**said, damaged=damaged)
    return VerifyProgress(**said)


def main() -> None:
    """Run as the child process: make the check that each line of the input describes."""
    for line in sys.stdin.buffer:
        _run(*json.loads(line))


def _run(folder: str, incarnation: str, durable_end: int | None, percent: int, turn: str | None) -> None:
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"ister: verify {folder}")
    disk = LocalDisk()
    reporting = _Reporting()
    try:
        with contextlib.nullcontext() if turn is None else _taken(disk, turn):
            rest = Pacing(percent, reporting.clock.monotonic, reporting.sleep, _interruptions())
            steps = verify_log(disk, folder, bytes.fromhex(incarnation), durable_end=durable_end, rest=rest)
            for step in steps:
                reporting.reached(step)
    except OSError as error:
        _say(json.dumps({"error": str(error)}).encode())


class _Reporting:
    """What a check that works says: its report, and now and then its progress."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self._said_s = self.clock.monotonic() - SAY_EVERY_S
        self._last = b""

    def reached(self, step: VerifyProgress | VerifyReport) -> None:
        """Say it, unless something was said just before."""
        now_s = self.clock.monotonic()
        if isinstance(step, VerifyReport) or now_s - self._said_s >= SAY_EVERY_S:
            self._last = json.dumps(asdict(step)).encode()
            _say(self._last)
            self._said_s = now_s

    def sleep(self, seconds: float) -> None:
        """Rest; in a segment that takes long, say again where it is: it gets on."""
        time.sleep(seconds)
        now_s = self.clock.monotonic()
        if now_s - self._said_s >= WAITS_S:
            _say(self._last)
            self._said_s = now_s


def _interruptions() -> Callable[[], int]:
    """Return what counts how often others have taken the core from this thread."""
    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return lambda: resource.getrusage(who).ru_nivcsw


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


__all__ = ["ALONE", "APART_BYTES_MIN", "CheckRules", "Kept", "main", "verify_aside"]
