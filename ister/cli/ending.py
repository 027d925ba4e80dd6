"""Signals that end a command: it closes its handles, so that its places at the broker are free at once.

Invariants
- a signal that was ignored when the command started (`nohup`) stays ignored
- closing takes a few seconds at most; further signals meanwhile change nothing
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class EndedError(KeyboardInterrupt):
    """A signal asks the command to end; raised in the main thread, like KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # the shell's exit code for a process that this signal ended


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `EndedError` in this block (main thread)."""

    def end(number: int, _frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise EndedError(number)

    handled = [each for each in SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    try:
        for each in handled:
            signal.signal(each, end)
        yield
    finally:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
