"""Starting processes: what the Supervisor needs of a process, and real ones by multiprocessing's spawn method.

Where processes can be forked, `nursery.py` starts them.

When a process is started, restarted or stopped is decided by the Supervisor. May touch: `__main__` and the signal mask
of this process, for the moment of a start.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Protocol

from ister.actors.process import Birth, child_main


class Child(Protocol):
    """A process that was started."""

    pid: int
    sentinel: int  # a file descriptor that becomes readable when the process is dead

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""

    def kill(self) -> None:
        """Kill it (SIGKILL)."""

    def reap(self) -> int:
        """Return the exit code of a dead process (-n: ended by signal n), and free what it held."""


class Starter(Protocol):
    """Starts processes."""

    def start(self, birth: Birth) -> Child:
        """Start the process that `birth` describes."""


class Spawner:
    """Starts real processes, with multiprocessing's spawn method."""

    def __init__(self) -> None:
        self._spawn = multiprocessing.get_context("spawn")

    def start(self, birth: Birth) -> Child:
        """Start the process that `birth` describes. Raises OSError if the machine lacks the resources."""
        process = self._spawn.Process(target=child_main, args=(birth,), name=birth.spec.node, daemon=True)
        # multiprocessing's resource tracker unblocks SIGINT when it starts, so it is started first.
        resource_tracker.ensure_running()
        # A child would import its parent's __main__, here the command line, which no child needs. Hiding it makes the
        # start quick, and independent of how the broker was started.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        # Blocked during the start, so that Ctrl-C cannot end the child before it ignores it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            sys.modules["__main__"] = main
        return _SpawnedChild(process)


class _SpawnedChild:
    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.sentinel = process.sentinel
        self._process = process

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> int:
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        return -signal.SIGKILL if code is None else code
