"""Client programs as separate processes, controlled over a pipe, for `ister bench` and `ister demo`.

A parent creates a `ClientProcess`, sends it commands and waits for answers; the child's function gets the other end of
the pipe as a `Connection`.

Invariants
- a child never outlives its parent, and Ctrl-C reaches the parent only
- a child that fails is an error in the parent, with the child's name and reason; the parent never waits forever
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Final, Self

from ister.clock import SystemClock
from ister.errors import IsterError, TimeoutExpiredError

END_WITHIN_S: Final = 3.0


class ClientFailedError(IsterError):
    """A client process failed, or ended without an answer."""

    code = "client-failed"


@dataclass(frozen=True, slots=True)
class _Failure:
    """The error of a client process that failed."""

    code: str
    text: str


class ClientProcess:
    """A process that runs `target(control, *arguments)`; it ends when its parent closes the pipe.

    `target` is a function of an importable module; its arguments must be picklable.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: object) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.name = name
        self._clock = SystemClock()
        self.control, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_child, args=(theirs, name, target, arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def tell(self, word: object) -> None:
        """Send it a command; does nothing if the process has ended."""
        try:
            self.control.send(word)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def has_answered(self) -> bool:
        """Return whether an answer has arrived."""
        return self.control.poll()

    def answer(self, within_s: float) -> Any:
        """Wait for its next answer; raises `ClientFailedError`, `TimeoutExpiredError`."""
        deadline = self._clock.monotonic() + within_s
        left = within_s
        while left > 0:
            if (
                self.control in wait([self.control, self._process.sentinel], timeout=left)
                or self.control.poll()
            ):
                return self._read()
            if not self._process.is_alive():
                raise ClientFailedError(
                    f"{self.name} ended unexpectedly (exit code {self._process.exitcode})"
                )
            left = deadline - self._clock.monotonic()
        raise TimeoutExpiredError(f"{self.name} did not answer within {within_s:.0f} s")

    def _read(self) -> Any:
        try:
            answer = self.control.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(END_WITHIN_S)
            raise ClientFailedError(
                f"{self.name} ended unexpectedly (exit code {self._process.exitcode})"
            ) from None
        if isinstance(answer, _Failure):
            raise ClientFailedError(f"{self.name}: {answer.text} ({answer.code})")
        return answer

    def close(self) -> None:
        """Close the pipe, which ends it, and kill it if that takes too long."""
        self.control.close()
        self._process.join(END_WITHIN_S)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


def wait_for_any(processes: Iterable[ClientProcess], within_s: float) -> None:
    """Return once one of the processes has answered or ended, or after `within_s`."""
    wait([process.control for process in processes], timeout=within_s)


def _child(
    control: Connection, name: str, target: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from setproctitle import setproctitle
    except ImportError:
        pass  # part of the extra `broker`, optional for a client
    else:
        setproctitle(f"ister: {name}")
    try:
        target(control, *arguments)
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass  # the parent has ended, or waits for nothing more
    except IsterError as error:
        control.send(_Failure(error.code, error.text))
