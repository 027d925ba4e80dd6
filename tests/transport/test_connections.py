"""Tests of which session came over which connection: descriptors are reused, the monitor is ahead of messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ister.transport.connections import Connections


def test_a_closed_connection_tells_who_said_hello_over_it() -> None:
    """A connection without HELLO gives none."""
    connections: Connections[str] = Connections()
    connections.accepted(7)
    connections.accepted(8)
    assert connections.greeted(7, "billing", b"a") == []
    assert connections.greeted(7, "billing", b"a") == []
    assert connections.closed(7) == ("billing", b"a")
    assert connections.closed(8) is None
    assert connections.closed(7) is None
    assert not len(connections)


def test_a_hello_that_is_read_after_its_connection_was_closed_is_of_somebody_who_is_gone() -> None:
    """The monitor is ahead of the messages."""
    connections: Connections[str] = Connections()
    connections.accepted(7)
    connections.closed(7)
    assert connections.greeted(7, "billing", b"a") == [("billing", b"a")]


def test_a_descriptor_that_is_used_again_speaks_for_the_new_one_alone() -> None:
    """A session that said HELLO over the old connection, unread until now, is gone; the new one is not."""
    connections: Connections[str] = Connections()
    connections.accepted(7)
    connections.closed(7)
    connections.accepted(7)
    assert connections.greeted(7, "old", b"a") == []  # which one is not known yet
    assert connections.greeted(7, "new", b"b") == [("old", b"a")]
    assert connections.closed(7) == ("new", b"b")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60), st.randoms(use_true_random=False))
def test_in_any_order_everybody_who_is_gone_is_told_of_once_and_nobody_else(
    steps: list[tuple[bool, int]], random: object
) -> None:
    """HELLOs are read in their order, at any time after they were sent; at the end all have been read."""
    connections: Connections[int] = Connections()
    alive: dict[int, int] = {}  # by descriptor
    unread: list[tuple[int, int]] = []
    gone: list[int] = []
    people = 0
    for opens, descriptor in steps:
        if opens and descriptor not in alive:
            people += 1
            alive[descriptor] = people
            connections.accepted(descriptor)
            unread.append((descriptor, people))
        elif not opens and descriptor in alive:
            del alive[descriptor]
            told = connections.closed(descriptor)
            gone += [] if told is None else [told[0]]
        if unread and random.random() < 0.5:  # type: ignore[attr-defined]
            at, who = unread.pop(0)
            gone += [each for each, _ in connections.greeted(at, who, b"%d" % who)]
    for at, who in unread:
        gone += [each for each, _ in connections.greeted(at, who, b"%d" % who)]
    assert sorted(gone) == sorted(set(range(1, people + 1)) - set(alive.values()))
