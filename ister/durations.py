"""Durations as people write them: `90`, `90s`, `15m`, `2h`, `7d` or `500ms`. Pure."""

from __future__ import annotations

import re
from typing import Final

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_s(text: str) -> float | None:
    """Return seconds for text like `90`, `90s`, `15m`, `2h`, `7d` or `500ms`; None if it is no duration."""
    match = _DURATION.fullmatch(text)
    return None if match is None else float(match[1]) * UNITS_S[match[2] or "s"]
