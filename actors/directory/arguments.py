"""Strict reading of the arguments of a request; pure. Part of the Directory.

Invariants
- each argument that a client sends is valid, or a UsageError names it
"""

from __future__ import annotations

from typing import Any, Final

from ister.errors import UsageError

Arguments = dict[str, Any]

PAGE_MAX: Final = 500  # entries of one page of a list: some 200 bytes each, far below RESULT_BYTES_MAX


def text(arguments: Arguments, name: str, default: str | None = None) -> str:
    """Return a text argument. Raises UsageError if it is missing or not text."""
    value = arguments.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"the argument {name!r} is missing, or is not text")
    return value


def only(arguments: Arguments, *known: str) -> None:
    """Raise UsageError if there is an argument other than these."""
    for name in arguments:
        if name not in known:
            raise UsageError(f"there is no argument {name!r:.40} here; known are {', '.join(known)}")


def all_but(arguments: Arguments, *known: str) -> Arguments:
    """Return the arguments other than these: the options."""
    return {key: value for key, value in arguments.items() if key not in known}


def page(arguments: Arguments) -> tuple[str, int]:
    """Return the name after which a page of a list begins ("" for the first), and its size. Raises UsageError."""
    limit = arguments.get("limit", PAGE_MAX)
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise UsageError(f"limit {limit!r:.40} is not 1 to {PAGE_MAX}")
    return text(arguments, "after", ""), limit


def number(arguments: Arguments, name: str, refusal: str) -> int | None:
    """Return an argument that is a whole number from 0, or None if it is missing.

    Raises UsageError with the text `refusal`, in which `{}` stands for the value that was given.
    """
    value = arguments.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise UsageError(refusal.format(f"{value!r:.40}"))
    return value
