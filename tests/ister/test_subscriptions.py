"""Tests of the table of subscription types."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ister.subscriptions import READER, SUBSCRIPTION_TYPES, TRAITS

ROOT = Path(__file__).parents[2]
# The second table has the same types: which delivery each one uses. It has a test of its own.
TABLES = (ROOT / "ister" / "subscriptions.py", ROOT / "actors" / "subscription" / "deliveries.py")


def test_every_type_has_its_line() -> None:
    """The only other line is that of a reader."""
    assert set(TRAITS) == {*SUBSCRIPTION_TYPES, READER}


def test_the_protocol_has_the_same_types() -> None:
    """PROTOCOL.md has them at the header key, in the same order."""
    text = (ROOT / "transport" / "PROTOCOL.md").read_text()
    line = next(line for line in text.splitlines() if "| SUBSCRIPTION_TYPE |" in line)
    assert tuple(re.findall(r"`([a-z-]+)`", line)) == (*SUBSCRIPTION_TYPES, READER)


def test_no_other_file_lists_the_types() -> None:
    """Other files use the table, so that a new type is one line."""
    lists: list[str] = []
    for folder in ("ister", "actors", "transport", "storage"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path in TABLES:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Tuple | ast.List | ast.Set):
                    named = {each.value for each in node.elts if isinstance(each, ast.Constant)}
                elif isinstance(node, ast.Dict):
                    named = {each.value for each in node.keys if isinstance(each, ast.Constant)}
                else:
                    continue
                if len(named & {*SUBSCRIPTION_TYPES}) > 1:
                    lists.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert lists == []
