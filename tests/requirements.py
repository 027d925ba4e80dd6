"""Which tests name which requirement of PROTOCOL.md: `python -m tests.requirements` prints the table.

A requirement is `**[ISTER-7.3-2]**` in the document. A test names it with `@pytest.mark.requirement("7.3-2")`, a
recorded conversation in its list `requirements`. Exits with 1 if a requirement has no test, or a test names an unknown
requirement.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "ister" / "transport" / "PROTOCOL.md"
NUMBERED = re.compile(r"\*\*\[ISTER-([0-9.]+-[0-9]+)\]\*\*")


def requirements() -> list[str]:
    """Return the numbers of all requirements, in the document's order."""
    return NUMBERED.findall(DOCUMENT.read_text(encoding="utf-8"))


def _named_in(source: str) -> list[tuple[str, str]]:
    """Return (number, test) for every mark on a test, or on one of its cases."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            for call in ast.walk(decorator):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Attribute)
                    and call.func.attr == "requirement"
                ):
                    found += [(str(ast.literal_eval(number)), node.name) for number in call.args]
    return found


def naming() -> dict[str, list[str]]:
    """Return, by the number of a requirement, the tests that name it."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "mark.requirement" in source:
            for number, test in _named_in(source):
                found.setdefault(number, []).append(f"{path.relative_to(TESTS)}::{test}")
    for path in sorted((TESTS / "vectors").glob("transcript-*.json")):
        for number in json.loads(path.read_text(encoding="utf-8"))["requirements"]:
            found.setdefault(number, []).append(f"vectors/{path.name}")
    return found


def main() -> int:
    """Print the table."""
    there, named = requirements(), naming()
    for number in there:
        tests = named.get(number, [])
        print(f"ISTER-{number:<8} {len(tests):>2}  {tests[0] if tests else '-- none --'}")
        for test in tests[1:]:
            print(f"{'':18}{test}")
    without = [number for number in there if number not in named]
    unknown = sorted(named.keys() - set(there))
    print(f"\n{len(there)} requirements, {sum(map(len, named.values()))} times named by a test", end="; ")
    print(f"{len(without)} without a test" + (f": {', '.join(without)}" if without else ""))
    if unknown:
        print(f"named by tests, and in no document: {', '.join(unknown)}")
    return 1 if without or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
