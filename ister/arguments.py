"""Checks of what programs pass: types and ranges, with a clear error before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from ister import bodies, wire
from ister.durations import duration_s
from ister.errors import IsterError, UsageError

TIME_MS_MAX: Final = 253_402_300_799_999  # the end of the year 9999: a larger number is in another unit
DELAY_S_MAX: Final = 100 * 365 * 86_400  # a hundred years


def timeout(value: Any) -> float | None:
    """Return a timeout in seconds (`None`: forever), or raise `UsageError`."""
    if value is None:
        return None
    return seconds(value, "a timeout")


def seconds(value: Any, what: str) -> float:
    """Return a time in seconds from 0 up, or raise `UsageError`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 32:
        return value
    raise UsageError(f"{what} is a number of seconds from 0 up, not {value!r}")


def duration(value: Any, what: str) -> float:
    """Return a duration in seconds, or raise `UsageError`: a number of seconds, a `timedelta`, or text like "15m"."""
    if isinstance(value, timedelta):
        return seconds(value.total_seconds(), what)
    if isinstance(value, str):
        found = duration_s(value)
        if found is None:
            raise UsageError(
                f"{what} is a number of seconds or text like '500ms', '15m', '2h' or '7d', not {value!r}"
            )
        return seconds(found, what)
    return seconds(value, what)


def milliseconds(value: Any, what: str) -> int:
    """Return a duration in milliseconds, rounded, and at least 1 unless it is 0. Raises `UsageError`."""
    found = duration(value, what)
    return max(1, round(found * 1000)) if found else 0


def number(value: Any, what: str, least: int = 0) -> int:
    """Return a whole number from `least` up, or raise `UsageError`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise UsageError(f"{what} is a whole number from {least} up, not {value!r}")


def text(value: Any, what: str) -> str:
    """Return a text, or raise `UsageError`."""
    if isinstance(value, str):
        return value
    raise UsageError(f"{what} is a text, not {value!r}")


def credit(value: Any) -> int | None:
    """Return how many messages a consumer may hold, `None` to follow its program's pace. Raises `UsageError`."""
    return None if value is None else number(value, "credit_messages", 1)


def choice(value: Any, what: str, choices: tuple[str, ...]) -> str:
    """Return one of some texts, or raise `UsageError`."""
    if isinstance(value, str) and value in choices:
        return value
    raise UsageError(f"{what} is one of {', '.join(choices)}, not {value!r}")


def start(value: Any, what: str = "start") -> str | int:
    """Return where a subscription begins, as it travels, or raise `UsageError`."""
    if isinstance(value, datetime):
        return f"time:{time_ms(value, what)}"
    if isinstance(value, str | int) and not isinstance(value, bool) and wire.is_start(value):
        return value
    raise UsageError(f"{what} is 'earliest', 'latest', an offset or a datetime, not {value!r}")


def time_ms(value: Any, what: str) -> int:
    """Return a time as unix milliseconds, or raise `UsageError`; a datetime without a time zone is local time."""
    if isinstance(value, datetime):
        moment = round(value.timestamp() * 1000)
        if moment >= 0:
            return moment
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TIME_MS_MAX:
        return value
    raise UsageError(f"{what} is unix milliseconds or a datetime, not {value!r}")


def due(deliver_at: Any, delay: Any, now_ms: Callable[[], int]) -> int:
    """Return when a message is to be delivered, in unix milliseconds (0: at once), or raise `UsageError`."""
    if delay is None:
        return 0 if deliver_at is None else time_ms(deliver_at, "deliver_at")
    if deliver_at is not None:
        raise UsageError("a message has either deliver_at or delay, not both")
    wait_s = duration(delay, "a delay")
    if wait_s > DELAY_S_MAX:
        raise UsageError(f"a delay of {delay} s is over a hundred years")
    return now_ms() + round(wait_s * 1000) if wait_s else 0


def data(value: Any, what: str) -> bytes:
    """Return bytes as they are and other buffers as bytes, or raise `UsageError`."""
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        raise UsageError(f"the {what} is text: encode it first, for example with .encode()")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise UsageError(f"the {what} must be bytes, not {type(value).__name__}")


def attributes(value: Any) -> bytes:
    """Return one message's attributes as they travel (empty for none), or raise `UsageError`."""
    if not value:
        return b""
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise UsageError(f"attributes are a mapping, not {type(value).__name__}") from None
    for name, each in pairs.items():
        if type(name) is not str or type(each) is not str:
            raise UsageError(
                f"attributes are text to text, not {type(name).__name__} to {type(each).__name__}"
            )
    return bodies.encode_attributes(pairs)


def in_words(size: int) -> str:
    """Return a number of bytes as people read it."""
    if size < 10 << 10:
        return f"{size} bytes"
    if size < 1 << 20:
        return f"{size / 1024:.1f} KiB"
    return f"{size / (1 << 20):.1f} MiB"


def compared(size: int, most: int) -> tuple[str, str]:
    """Return both numbers of bytes as people read them; where these would be the same words, in bytes."""
    words = in_words(size), in_words(most)
    return words if words[0] != words[1] else (f"{size} bytes", f"{most} bytes")


def in_trouble(trouble: IsterError | None) -> str:
    """Return the reason why something does not work, to be appended to a sentence."""
    return "" if trouble is None else f" ({trouble.code}: {trouble.text})"
