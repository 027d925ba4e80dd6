"""Tests of the encoding of mail: it decodes to what was encoded, and bytes that are no mail are refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Literal

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ister.actors.envelope import Frames, MalformedMailError, check_messages, message, open_mail, seal_mail
from ister.actors.runtime import Address


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(Enum):
    LOW = 1


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    level: Level
    where: Address | None = None


@message
@dataclass(frozen=True, slots=True)
class Everything:
    """A message with a field of every type that can be posted."""

    number: int
    share: float
    text: str
    bulk: Frames
    raw: bytes
    yes: bool
    maybe: int | str | None
    state: Literal["open", "closed"]
    colour: Colour
    inner: Inner
    inners: tuple[Inner, ...]
    perhaps: Inner | None
    reply: Address
    ranges: list[tuple[int, int]]
    by_name: dict[str, Inner]
    counts: dict[int, int]
    options: dict[str, Any]


@message
@dataclass(frozen=True, slots=True)
class OneField:
    number: int


@message
@dataclass(frozen=True, slots=True)
class Bare:
    pass


@dataclass(frozen=True, slots=True)
class Unregistered:
    number: int


def through(sent: object) -> object:
    """Encode and decode a message."""
    envelope, frames = seal_mail("worker-0", 7, "topic/orders", sent)
    opened = open_mail(envelope, frames)
    assert (opened.node, opened.boot, opened.path) == ("worker-0", 7, "topic/orders")
    return opened.message


INTEGERS = st.integers(-(2**63), 2**64 - 1)
ADDRESSES = st.builds(Address, st.text(), st.text())
INNERS = st.builds(Inner, st.text(), st.sampled_from(Level), st.none() | ADDRESSES)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
MESSAGES = st.builds(
    Everything,
    number=INTEGERS,
    share=st.floats(allow_nan=False),
    text=st.text(),
    bulk=st.lists(st.binary()).map(tuple),
    raw=st.binary(),
    yes=st.booleans(),
    maybe=st.none() | INTEGERS | st.text(),
    state=st.sampled_from(["open", "closed"]),
    colour=st.sampled_from(Colour),
    inner=INNERS,
    inners=st.lists(INNERS, max_size=3).map(tuple),
    perhaps=st.none() | INNERS,
    reply=ADDRESSES,
    ranges=st.lists(st.tuples(INTEGERS, INTEGERS), max_size=3),
    by_name=st.dictionaries(st.text(), INNERS, max_size=3),
    counts=st.dictionaries(INTEGERS, INTEGERS, max_size=3),
    options=st.dictionaries(st.text(), PLAIN, max_size=3),
)


@given(MESSAGES)
def test_a_message_arrives_as_it_was_posted(sent: Everything) -> None:
    """Every field comes back equal and of its own type, and bulk bytes are not copied into the envelope."""
    got = through(sent)
    assert got == sent
    assert isinstance(got, Everything)
    assert type(got.reply) is Address
    assert type(got.colour) is Colour
    assert type(got.inners) is tuple
    assert all(type(pair) is tuple for pair in got.ranges)


@pytest.mark.parametrize("sent", [OneField(5), Bare()])
def test_messages_of_one_field_and_of_none_can_be_posted(sent: object) -> None:
    """A message may have no fields at all."""
    assert through(sent) == sent


@given(st.binary(max_size=60))
def test_bytes_that_are_no_mail_are_malformed(envelope: bytes) -> None:
    """Random bytes raise MalformedMailError, and nothing else."""
    with pytest.raises(MalformedMailError):
        open_mail(envelope, ())


@given(MESSAGES, st.data())
def test_a_damaged_envelope_is_malformed_or_another_message(sent: Everything, data: st.DataObject) -> None:
    """One wrong byte gives MalformedMailError or a message with fields of the right types, never another error."""
    envelope, frames = seal_mail("n", 1, "p", sent)
    at = data.draw(st.integers(0, len(envelope) - 1))
    damaged = bytearray(envelope)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        opened = open_mail(bytes(damaged), frames)
    except MalformedMailError:
        return
    assert type(opened.message) in (Everything, OneField, Bare)


@pytest.mark.parametrize(
    ("values", "frames", "why"),
    [
        (["n", 1, "p", "OneField", "5"], [], "OneField.number is str, not int"),
        (["n", 1, "p", "OneField", True], [], "OneField.number is bool, not int"),
        (["n", 1, "p", "OneField"], [], "OneField has 1 fields, not 0"),
        (["n", 1, "p", "OneField", 5, 6], [], "OneField has 1 fields, not 2"),
        (["n", 1, "p", "OneField", 5], [b"x"], "OneField came with 1 frame"),
        (["n", 1, "p", "Nothing", 5], [], "no message is named 'Nothing'"),
        (["n", 1, "p", "Unregistered", 5], [], "no message is named 'Unregistered'"),
        (["n", "1", "p", "OneField", 5], [], "does not begin with node, boot, path and name"),
        (["n", 1, "p", ["OneField"], 5], [], "does not begin with node, boot, path and name"),
        (["n", 1, "p"], [], "not an array of at least 4"),
        ({"n": 1}, [], "not an array of at least 4"),
    ],
)
def test_what_is_wrong_with_a_mail_is_said(values: Any, frames: list[bytes], why: str) -> None:
    """The error names the message, the field and the expected type."""
    with pytest.raises(MalformedMailError, match=why):
        open_mail(cbor2.dumps(values), frames)


def test_frames_must_be_as_many_as_announced() -> None:
    """A missing frame is an error, not a shorter message."""

    @message
    @dataclass(frozen=True, slots=True)
    class Counted:
        frames: Frames

    envelope, frames = seal_mail("n", 1, "p", Counted((b"a", b"b")))
    assert open_mail(envelope, frames).message == Counted((b"a", b"b"))
    with pytest.raises(MalformedMailError, match="Counted came with 1 frame"):
        open_mail(envelope, [b"a"])


def test_only_registered_dataclasses_can_be_posted() -> None:
    """A class that is not registered is refused by the sender."""
    with pytest.raises(TypeError, match="Unregistered is not a @message"):
        seal_mail("n", 1, "p", Unregistered(1))
    with pytest.raises(TypeError, match="str is not a dataclass"):
        message(str)


def test_two_messages_of_one_name_are_refused() -> None:
    """A name stands for one class."""
    with pytest.raises(TypeError, match="two messages named OneField"):
        message(dataclass(frozen=True, slots=True)(type("OneField", (), {"__annotations__": {"a": int}})))


def test_every_message_of_the_broker_can_be_posted() -> None:
    """No message type fails only when it is first used."""
    import ister.actors.messages  # noqa: F401 - registers them

    check_messages()
