"""Words for reasons: who holds messages, since when, until when, and why. Pure.

Times are unix ms, and are said twice: how long ago or ahead, and the date.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from ister.actors.explain_state import Holder, State, Stop
from ister.words import counted


def because(stop: Stop) -> str:
    """Return what goes wrong at a stop, in parentheses."""
    return f" ({stop['text']})" if stop.get("text") else ""


def since_when(stop: Stop, now_ms: int) -> str:
    """Return since when a subscription stands there."""
    since_ms = stop.get("since_ms")
    return "" if since_ms is None else f", since {ago(since_ms, now_ms)}"


def held_by(holder: Holder, now_ms: int) -> str:
    """Name a consumer, how many messages it holds, and since when."""
    client = f" ({holder['client']:.60})" if holder.get("client") else ""
    since_ms = holder.get("since_ms")
    since = "" if since_ms is None else f" since {ago(since_ms, now_ms)}"
    messages = f", {counted(holder['messages'], 'message')}," if holder.get("messages") else ""
    return f"consumer {holder.get('consumer')}{client}{messages}{since}"


def up_to(state: State) -> str:
    """Say up to which offset everything is delivered."""
    return f" below offset {state['durable_end']}" if "durable_end" in state else ""


def but_for(state: State) -> str:
    """Name the messages that were neither delivered nor acknowledged, so that nobody looks for them."""
    words = {
        "expired": "outlived the topic's time to live",
        "trimmed": "were taken by retention",
        "skipped": "were damaged and skipped, as an operator decided",
        "missing": "are missing",
        "dropped": "were lost for want of room",
    }
    numbers = cast(Mapping[str, int | None], state)
    found = [f"{numbers[key]} that {what}" for key, what in words.items() if numbers.get(key)]
    return f", but for {', '.join(found)}" if found else ""


def ago(then_ms: int, now_ms: int) -> str:
    """Return how long ago something was, and when."""
    return f"{duration(max(0, now_ms - then_ms))} ago ({_clock(then_ms)})"


def until(until_ms: int | None, now_ms: int) -> str:
    """Return when the first of some messages is due."""
    if until_ms is None:
        return ""
    if until_ms <= now_ms:
        return "; the first of them is due"
    return f"; the first is due in {duration(until_ms - now_ms)} ({_clock(until_ms)})"


def duration(milliseconds: int) -> str:
    """Return a length of time in a unit that is easy to read."""
    seconds = milliseconds / 1000
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _clock(unix_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # beyond the range of the calendar
        return f"unix ms {unix_ms}"
