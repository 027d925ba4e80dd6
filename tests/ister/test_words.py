"""Tests of ister/words.py, which puts numbers into sentences, and of the sentences in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ister.words import counted

PACKAGE = Path(__file__).parents[2] / "ister"
COUNTED = (
    "attempt|batch|connection|consumer|dead letter|failure|file|gap|line|message|object|offset|payload|process|"
    "producer|record|request|segment|session|subscription|topic|worker"
)
# A number that is put into a text right before a noun in the plural: "1 messages" when it is 1. Not of it are limits,
# whose names are in capitals, rates ("messages/s"), and the amounts of a table.
BARE = re.compile(rf"\{{(?![A-Z_]+(?: - 1)?\}})[^{{}}]+(?<!:>12,)\}} (?:{COUNTED})(?:s|es)\b(?!/s)")


@pytest.mark.parametrize(
    ("count", "one", "many", "text"),
    [
        (1, "message", None, "1 message"),
        (0, "message", None, "0 messages"),
        (2000, "message", None, "2,000 messages"),
        (1, "message waits", "messages wait", "1 message waits"),
        (2, "message waits", "messages wait", "2 messages wait"),
    ],
)
def test_one_is_not_many(count: int, one: str, many: str | None, text: str) -> None:
    """The noun and its verb agree with the number."""
    assert counted(count, one, many) == text


def test_texts_count_with_it() -> None:
    """No text puts a number that may be 1 right before a plural; a constant may be there."""
    found = []
    folders = [PACKAGE, *(PACKAGE / linked for linked in ("actors", "storage", "transport"))]
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if BARE.search(line):
                found.append(f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}")
    assert found == []
