"""Tests of ister/names.py: the names of topics and subscriptions, and the folder of a topic's log."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ister.errors import IsterError
from ister.names import (
    NAME_CHARACTERS_MAX,
    check_subscription_name,
    check_topic_name,
    is_pattern,
    topic_folder,
    topic_pattern,
)

ALPHABET = "abzABZ019._-"
PARTS = st.text(alphabet=ALPHABET, min_size=1, max_size=60).filter(lambda part: part not in (".", ".."))
TOPICS = (
    st.lists(PARTS, min_size=1, max_size=6)
    .map("/".join)
    .filter(lambda name: len(name) <= NAME_CHARACTERS_MAX)
)

BAD_ANYWHERE = {
    "": "empty",
    "a" * 201: "201 characters long; at most 200",
    "a" * 300: "300 characters long; at most 200",
    ".": "would mean a folder",
    "..": "would mean a folder",
    "two words": r"' ' (U+0020) at position 3",
    "tab\there": "(U+0009) at position 3",
    "null\0": "(U+0000) at position 4",
    "end\n": "(U+000A) at position 3",
    "größe": "(U+00F6) at position 2",
    "a\\b": "(U+005C) at position 1",
    "a:b": "':' (U+003A) at position 1",
    "\ud800": "(U+D800) at position 0",
}
BAD_TOPICS = {
    "/": "empty part",
    "/orders": "empty part",
    "orders/": "empty part",
    "a//b": "empty part",
    "../etc": "the part '..'",
    "a/./b": "the part '.'",
    "a/..": "the part '..'",
}


def refusal(check: object, name: object) -> IsterError:
    """Return the error that `check` raises for `name`."""
    assert callable(check)
    with pytest.raises(IsterError) as caught:
        check(name)
    return caught.value


@pytest.mark.parametrize(
    "name", ["a", "orders", "Orders.eu-1_x", "eu/orders/v2", "...", "a/..b", "-", "x" * 200]
)
def test_good_topic_names_come_back_as_they_are(name: str) -> None:
    """Letters, digits, '.', '_', '-' and parts joined by '/' make a topic name of up to 200 characters."""
    assert check_topic_name(name) == name


@pytest.mark.parametrize(("name", "says"), [*BAD_ANYWHERE.items(), *BAD_TOPICS.items()])
def test_a_bad_topic_name_is_refused_with_the_character_or_length_that_is_wrong(name: str, says: str) -> None:
    """The code is invalid-name, the action "fix", and the text says what is wrong."""
    error = refusal(check_topic_name, name)
    assert (error.code, error.action) == ("invalid-name", "fix")
    assert says in error.text
    assert error.text.isprintable()
    assert error.text.isascii()


@pytest.mark.parametrize(("name", "says"), [*BAD_ANYWHERE.items(), ("a/b", "'/' (U+002F) at position 1")])
def test_a_bad_subscription_name_is_refused_with_the_character_or_length_that_is_wrong(
    name: str, says: str
) -> None:
    """The code is invalid-name; a subscription may not have a '/' either."""
    error = refusal(check_subscription_name, name)
    assert (error.code, error.action) == ("invalid-name", "fix")
    assert says in error.text


@pytest.mark.parametrize("value", [None, 7, b"orders", ["orders"]])
def test_a_name_that_is_no_text_is_refused(value: object) -> None:
    """The code is invalid-name for a value of any other type."""
    assert refusal(check_topic_name, value).code == "invalid-name"
    assert refusal(check_subscription_name, value).code == "invalid-name"


@given(st.text(max_size=220))
@example("a/../b")
def test_any_text_is_either_a_good_name_or_invalid_name(text: str) -> None:
    """Every text is accepted or refused with invalid-name, and the accepted ones follow the rule."""
    good = (
        re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", text, re.ASCII) is not None
        and not {".", ".."} & set(text.split("/"))
        and 1 <= len(text) <= 200
    )
    if good:
        assert check_topic_name(text) == text
    else:
        assert refusal(check_topic_name, text).code == "invalid-name"


@given(TOPICS)
@example("A" * 200)
@example(".hidden")
@example("/".join("a" * 100))
def test_a_topic_folder_is_one_safe_lower_case_name_of_at_most_200_bytes(name: str) -> None:
    """It has no separator, capital or leading dot, and a length that every file system allows."""
    folder = topic_folder(name)
    assert re.fullmatch(r"[a-z0-9_=-][a-z0-9._=~-]{0,199}", folder)


@given(TOPICS, TOPICS)
@example("a/b", "a=2fb".replace("=", "-"))
@example("Orders", "orders")
@example("A" * 200, "A" * 199 + "B")
@example("A" * 200, "A" * 199)
@example("x" * 200, "x" * 199 + "X")
def test_two_topics_have_two_folders_also_where_case_is_ignored(one: str, other: str) -> None:
    """Two folders are equal exactly if the topics are, also if case is ignored."""
    assert (topic_folder(one).lower() == topic_folder(other).lower()) == (one == other)


@given(TOPICS)
def test_a_folder_that_is_not_cut_can_be_read_back(name: str) -> None:
    """Unescaping gives the topic's name, so no two short names share a folder."""
    folder = topic_folder(name)
    if "~" not in folder:
        assert re.sub("=([0-9a-f]{2})", lambda escape: chr(int(escape[1], 16)), folder) == name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("orders", "orders"),
        ("eu/Orders.v2", "eu=2f=4frders.v2"),
        (".x", "=2ex"),
        ("x" * 200, "x" * 200),
        (
            "A" * 200,
            "=41" * 45 + "~" + "70d3bf8b0b9d83a61012f35fbf460c4207063fe31b4d6178390fe3b721cc03f7",
        ),
    ],
)
def test_a_topic_folder_never_changes_over_versions(name: str, folder: str) -> None:
    """An upgrade finds the logs of older versions: folder names are part of the format."""
    assert topic_folder(name) == folder


def test_a_bad_name_has_no_folder() -> None:
    """A name that would lead out of the data folder is refused before a path is made of it."""
    assert refusal(topic_folder, "../../etc").code == "invalid-name"


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("orders", ["orders"], ["orders/eu", "order"]),
        ("orders/*", ["orders/eu", "orders/.x"], ["orders", "orders/eu/paid", "xorders/eu"]),
        ("orders/>", ["orders/eu", "orders/eu/paid/1"], ["orders", "orders.eu/x"]),
        ("*/eu/*", ["a/eu/b"], ["a/us/b", "a/eu", "eu/b"]),
        ("*/>", ["a/b", "a/b/c"], ["a"]),
        (">", ["a", "a/b/c"], []),
        ("*", ["a", "a.b"], ["a/b"]),
        ("a.b/*", ["a.b/c"], ["axb/c"]),
    ],
)
def test_a_pattern_stands_for_topics(pattern: str, matching: list[str], other: list[str]) -> None:
    """A star matches one part, `>` all further parts; everything else matches itself."""
    found = topic_pattern(pattern)
    assert all(found.fullmatch(name) for name in matching)
    assert not any(found.fullmatch(name) for name in other)


@pytest.mark.parametrize(
    "pattern", ["", "a*", "*a/b", ">/a", "a/>b", "a//*", "/*", "*/", "./*", "a b/*", "**", "a/\n", 7]
)
def test_a_bad_pattern_is_refused(pattern: object) -> None:
    """A pattern that cannot match, or does not match what it looks like, is an error."""
    assert refusal(topic_pattern, pattern).code == "invalid-name"


@given(TOPICS)
def test_a_name_is_a_pattern_of_itself(name: str) -> None:
    """No character of a name has a meaning in patterns."""
    assert not is_pattern(name)
    assert topic_pattern(name).fullmatch(name)
    assert topic_pattern(">").fullmatch(name)
    assert topic_pattern("/".join("*" for _ in name.split("/"))).fullmatch(name)
