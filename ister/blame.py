"""Which exceptions mean that a program failed to process its messages; pure.

When a program leaves a consumer's block by such an exception, or ends by one, its messages in hand count as failed, as
if it had been killed. Otherwise a message that crashes its program would be redelivered forever.

Invariants
- a program that is told to end (Ctrl-C, `sys.exit`, a cancellation) has not failed, nor has one whose broker failed
"""

from __future__ import annotations

from typing import Final

from ister.errors import IsterError

REASON_MAX: Final = 200  # characters, since it is sent in a header


def reason_of(error: BaseException | None) -> str:
    """Return the reason of a failure, for people; "" if the exception is no failure."""
    if not isinstance(error, Exception) or isinstance(error, IsterError | BrokenPipeError):
        return ""  # a closed pipe concerns the program's output, not its messages
    return f"{type(error).__name__}: {error}"[:REASON_MAX]
