"""Numbers in sentences: "1 message", "2,000 messages". Pure."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with what it counts: `counted(1, "message")` is "1 message", of others "2 messages".

    `many` is the plural where it is not `one` with an "s": `counted(n, "message waits", "messages wait")`.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
