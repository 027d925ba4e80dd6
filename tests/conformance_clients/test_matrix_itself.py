"""The comparison of the matrix, and its table."""

from __future__ import annotations

from typing import Any

from tests.conformance_clients import matrix


def test_a_client_is_told_only_what_it_has_words_for() -> None:
    """Without keys a message has none; the payload is always there, in hexadecimal."""
    message = {"payload": b"a", "key": b"k", "attributes": {"a": "b"}, "deliver_at_ms": 5}
    assert matrix.as_sent(message, []) == {"payload": "61"}
    assert matrix.as_sent(message, ["keys", "delivery-time"]) == {
        "payload": "61",
        "key": "6b",
        "deliver_at_ms": 5,
    }


def test_a_difference_is_found_in_every_member_that_can_be_shown() -> None:
    """A missing key equals an empty one, and no attributes equal none shown."""
    stored: dict[str, Any] = {
        "payload": "61",
        "key": None,
        "attributes": {},
        "deliver_at_ms": None,
        "timestamp_ms": 7,
        "attempt": 1,
    }
    every = [capability for capability in matrix.MEMBERS.values() if capability is not None]
    assert matrix.difference(stored, stored, every) is None
    for name in matrix.MEMBERS:
        found = matrix.difference(stored, stored | {name: "another"}, every)
        assert found is not None
        assert found.startswith(f"{name} is 'another'")
    assert matrix.difference(stored, {"payload": "61"}, []) is None


def test_the_table_names_who_lacks_what() -> None:
    """Publishers in rows, consumers in columns, and below what was left out."""
    cells = {("python", "python"): "ok", ("python", "go"): "FAILED", ("go", "python"): "ok"}
    assert matrix.table(cells, {"python": [], "go": ["key"]}) == [
        "publishes \\ consumes  python   go",
        "python                ok       FAILED",
        "go                    ok       -",
        "go has no key",
    ]


def test_a_table_without_cells_is_its_head() -> None:
    """A run of chosen scenarios may have filled no cell."""
    assert matrix.table({}, {"go": []}) == ["publishes \\ consumes"]


def test_the_messages_have_all_that_messages_can_have() -> None:
    """Empty payloads, keys of any bytes, attributes of any letters, times; alone and in batches."""
    assert {"payload", "key", "attributes", "deliver_at_ms"} == {
        name for message in matrix.MESSAGES for name in message
    }
    assert any(not message["payload"] for message in matrix.MESSAGES)
    assert any(len(group) > 1 for group in matrix.GROUPS)
