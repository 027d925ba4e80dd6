"""Tests that every requirement of PROTOCOL.md is named by a test, and that tests name existing requirements."""

from __future__ import annotations

import re

from tests.requirements import DOCUMENT, naming, requirements


def test_every_requirement_is_named_by_a_test() -> None:
    """`python -m tests.requirements` lists which test is for which requirement."""
    named = naming()
    assert [number for number in requirements() if number not in named] == []


def test_every_test_names_requirements_that_are_there() -> None:
    """A test that names a number that does not exist proves nothing."""
    assert sorted(naming().keys() - set(requirements())) == []


def test_the_numbers_are_those_of_their_sections() -> None:
    """A requirement's number begins with that of its section; numbers are unique, and ascend."""
    section, last, seen = "", 0, set()
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        heading = re.match(r"#{2,3} ([0-9.]+) ", line)
        if heading:
            section, last = heading[1], 0
        for number in re.findall(r"\*\*\[ISTER-([0-9.]+-[0-9]+)\]\*\*", line):
            where, _, count = number.rpartition("-")
            assert where == section
            assert int(count) > last
            assert number not in seen
            seen.add(number)
            last = int(count)


def test_what_looks_like_a_requirement_is_one() -> None:
    """The words of RFC 2119 are used in numbered requirements only, except in tables and where they are defined."""
    text = DOCUMENT.read_text(encoding="utf-8")
    paragraphs = re.split(r"\n\s*\n|\n(?=- )", text)
    loose = [
        paragraph
        for paragraph in paragraphs
        if re.search(r"\b(MUST|SHOULD|MAY)\b", paragraph)
        and "**[ISTER-" not in paragraph
        and not paragraph.lstrip().startswith(("|", "The words MUST"))
    ]
    assert loose == []
