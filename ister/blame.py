"""Which exceptions mean that a program failed at its messages; pure.

A program that leaves a consumer's block by such an exception, or ends by one, has failed at what it had in hand, like
a program that was killed. Otherwise a message that crashes its program would be delivered again forever.

Invariants
- a program that is told to end (Ctrl-C, `sys.exit`, a cancellation) has not failed, nor has one whose broker failed
"""

from __future__ import annotations

from typing import Final

from ister.errors import IsterError

REASON_MAX: Final = 200  # characters: it travels in a header


def reason_of(error: BaseException | None) -> str:
    """Return the reason of a failure, for people; "" where an exception is none."""
    if not isinstance(error, Exception) or isinstance(error, IsterError | BrokenPipeError):
        return ""  # a closed pipe is about where the output went
    return f"{type(error).__name__}: {error}"[:REASON_MAX]
