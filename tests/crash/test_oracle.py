"""The oracle of the crash campaign: a clean history passes, and each planted violation is reported as its kind."""

from __future__ import annotations

from random import Random

import pytest

from tests.crash.message import make_payload, parse_payload
from tests.crash.model import Attached, ReadBack, Subscription
from tests.crash.oracle import Oracle

MESSAGES = 20


class Story:
    """A topic with two producers, as told to an oracle: everything has its receipt, and is stored correctly."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000.0
        self.oracle = Oracle(lambda: self.now_ms)
        self.stored: list[bytes] = []
        for number in range(MESSAGES):
            payload = make_payload(1 + number % 2, number // 2, Random(number).randbytes(50))
            identity = self.oracle.sent("orders", payload)
            self.oracle.receipted("orders", identity, number)
            self.stored.append(payload)

    def read_back(self, stored: list[tuple[int, bytes]] | None = None) -> set[str]:
        """Read what is stored (or given) to the end, and return the kinds of violations."""
        back = ReadBack("orders")
        for offset, payload in enumerate(self.stored) if stored is None else stored:
            self.oracle.read(back, offset, payload)
        self.oracle.read_to_end(back)
        return self.kinds()

    def kinds(self) -> set[str]:
        """Return the kinds of violations."""
        return {violation.kind for violation in self.oracle.violations}

    def attach(self, subscription: Subscription, *offsets: int, acknowledge: bool = False) -> Attached:
        """Attach a consumer that receives these offsets."""
        attached = self.oracle.attach(subscription, "a consumer")
        for offset in offsets:
            self.oracle.delivered(attached, offset, self.stored[offset])
        if acknowledge:
            self.oracle.acknowledged(attached, offsets)
            self.oracle.confirmed(attached, self.oracle.take_unconfirmed(attached))
        return attached


@pytest.fixture
def story() -> Story:
    """A clean history."""
    return Story()


@pytest.fixture
def exclusive() -> Subscription:
    """An ordered subscription."""
    return Subscription("orders", "exclusive", "exclusive")


def test_a_clean_history_has_no_violation(story: Story, exclusive: Subscription) -> None:
    """Some is acknowledged, a consumer attaches again and gets the rest: nothing is reported."""
    assert story.read_back() == set()
    first = story.attach(exclusive, *range(10), acknowledge=True)
    assert story.oracle.missing(first) == list(range(10, MESSAGES))
    second = story.attach(exclusive, *range(10, MESSAGES))
    story.oracle.drained(second)
    third = story.attach(exclusive, *range(10, MESSAGES), acknowledge=True)
    story.oracle.drained(third)
    fourth = story.attach(exclusive)
    story.oracle.drained(fourth)
    assert story.kinds() == set()


def test_a_dropped_message_is_lost(story: Story) -> None:
    """A receipt without its message is a log's worst fault, also when dense offsets follow."""
    del story.stored[7]
    assert "lost" in story.read_back()


def test_a_dropped_last_message_is_lost(story: Story) -> None:
    """No later message would show the hole."""
    story.stored.pop()
    assert story.read_back() == {"lost"}


def test_a_duplicate_is_reported(story: Story) -> None:
    """The same message at two offsets."""
    story.stored.append(story.stored[5])
    assert "stored-twice" in story.read_back()


def test_messages_of_a_producer_out_of_order_are_reported(story: Story) -> None:
    """Offsets 4 and 6 are of one producer."""
    story.stored[4], story.stored[6] = story.stored[6], story.stored[4]
    assert "out-of-order" in story.read_back()


def test_a_message_elsewhere_than_its_receipt_said_is_reported(story: Story) -> None:
    """Messages of two producers changed places, while each producer's order is kept."""
    story.stored[4], story.stored[5] = story.stored[5], story.stored[4]
    assert {"misplaced", "offset-reused"} <= story.read_back()


def test_a_gap_between_offsets_is_reported(story: Story) -> None:
    """Offsets are dense from 0."""
    stored = [(offset + (offset > 12), payload) for offset, payload in enumerate(story.stored)]
    assert "not-dense" in story.read_back(stored)


def test_a_log_that_does_not_begin_at_0_is_reported(story: Story) -> None:
    """The first offset is 0, and this topic is not trimmed."""
    assert "not-dense" in story.read_back(list(enumerate(story.stored))[1:])


@pytest.mark.parametrize("at", [0, 5, 13, 21, 30, 73])
def test_a_changed_byte_is_reported(story: Story, at: int) -> None:
    """Whether it is in the header, the checksum or the body."""
    payload = bytearray(story.stored[3])
    payload[at] ^= 1
    assert parse_payload(bytes(payload)) is None
    story.stored[3] = bytes(payload)
    assert "wrong-bytes" in story.read_back()


def test_a_message_that_nobody_sent_is_reported(story: Story) -> None:
    """Also when it is intact."""
    story.stored.append(make_payload(9, 0, b"?"))
    assert "wrong-bytes" in story.read_back()


def test_a_hole_without_a_receipt_is_reported(story: Story) -> None:
    """A later message was stored, this one was not, and it was not refused."""
    unanswered = story.oracle.sent("orders", make_payload(1, 10, b"a"))
    last = make_payload(1, 11, b"b")
    story.oracle.receipted("orders", story.oracle.sent("orders", last), MESSAGES)
    story.stored.append(last)
    assert story.read_back() == {"hole"}
    story.oracle.violations.clear()
    story.oracle.refused("orders", unanswered, "disk-full")
    assert story.read_back() == set()


def test_a_refused_message_that_is_stored_is_reported(story: Story) -> None:
    """Refused for good means not stored."""
    payload = make_payload(1, 10, b"a")
    story.oracle.refused("orders", story.oracle.sent("orders", payload), "message-too-large")
    story.stored.append(payload)
    assert story.read_back() == {"refused-but-stored"}


def test_an_offset_that_was_given_twice_is_reported(story: Story, exclusive: Subscription) -> None:
    """A consumer got a message that was gone after a crash, and another one took its offset."""
    ghost = make_payload(3, 0, b"seen, and lost")
    story.oracle.sent("orders", ghost)
    attached = story.attach(exclusive, *range(MESSAGES))
    story.oracle.delivered(attached, MESSAGES, ghost)
    other = make_payload(3, 1, b"in its place")
    story.oracle.receipted("orders", story.oracle.sent("orders", other), MESSAGES)
    assert story.kinds() == {"offset-reused"}


def test_a_gap_before_a_consumer_in_order_is_reported(story: Story, exclusive: Subscription) -> None:
    """Offset 5 was neither delivered nor acknowledged."""
    story.attach(exclusive, 0, 1, 2, 3, 4, 6)
    assert story.kinds() == {"gap"}


def test_a_consumer_in_order_begins_at_the_lowest_unacknowledged(
    story: Story, exclusive: Subscription
) -> None:
    """What another consumer held and never acknowledged comes first."""
    story.attach(exclusive, *range(10))
    story.attach(exclusive, 10)
    assert story.kinds() == {"gap"}


def test_what_was_given_back_may_come_later(story: Story, exclusive: Subscription) -> None:
    """Its delay was requested."""
    first = story.attach(exclusive, 0, 1, 2)
    story.oracle.given_back(first, 1)
    story.attach(exclusive, 0, 2, 3, 1)
    assert story.kinds() == set()


def test_shared_consumers_need_no_order(story: Story) -> None:
    """For them, only what is missing at the end counts."""
    story.attach(Subscription("orders", "shared", "shared"), 5, 2, 9)
    assert story.kinds() == set()


def test_a_cursor_past_a_hole_is_reported(story: Story, exclusive: Subscription) -> None:
    """Offset 5 was never acknowledged; a cursor that moved past it never delivers it again."""
    story.attach(exclusive, *range(5), acknowledge=True)
    story.attach(exclusive, *range(6, 10), acknowledge=True)
    story.oracle.violations.clear()
    attached = story.attach(exclusive, *range(10, MESSAGES))
    story.oracle.drained(attached)
    assert story.kinds() == {"gap", "skipped"}


def test_acknowledging_until_leaves_no_hole(story: Story, exclusive: Subscription) -> None:
    """Everything up to there is acknowledged, whichever consumer holds it."""
    attached = story.attach(exclusive, *range(10))
    story.oracle.acknowledged_until(attached, 9)
    story.oracle.confirmed(attached, story.oracle.take_unconfirmed(attached))
    story.oracle.drained(story.attach(exclusive, *range(10, MESSAGES)))
    assert story.kinds() == set()


def test_a_confirmed_message_that_comes_back_is_reported(story: Story, exclusive: Subscription) -> None:
    """The broker confirmed that it is stored, and a new consumer gets the message."""
    story.attach(exclusive, *range(10), acknowledge=True)
    story.attach(exclusive, *range(9, MESSAGES))
    assert story.kinds() == {"acknowledged-came-back"}


def test_an_acknowledgment_without_confirmation_may_be_lost(story: Story, exclusive: Subscription) -> None:
    """At least once: the message may come again or not."""
    first = story.attach(exclusive, *range(10))
    story.oracle.acknowledged(first, range(10))
    story.attach(exclusive, *range(5, MESSAGES))
    assert story.kinds() == set()


# ---- keys, times, dead letters, places ----------------------------------------------------------------------------


@pytest.fixture
def keyed(story: Story) -> Subscription:
    """Return a Key-Shared subscription with three messages of a key: 21 is poison, 22 has a delivery time."""
    for number, (deliver_at_ms, poison) in enumerate(((0, False), (0, True), (2_000_000, False))):
        payload = make_payload(7, number, b"parcel")
        identity = story.oracle.sent("orders", payload, key=b"k", deliver_at_ms=deliver_at_ms, poison=poison)
        story.oracle.receipted("orders", identity, MESSAGES + number)
        story.stored.append(payload)
    return Subscription("orders", "keys", "key-shared", max_deliveries=3)


def letter(at: int, **other: str) -> dict[str, str]:
    """Return the attributes of a correct dead letter."""
    told = {"topic": "orders", "subscription": "keys", "offset": str(at), "attempts": "3"}
    told |= {"producer": "07", "timestamp": "1", "reason": "it is poison", "dead_lettered_at": "2"}
    return {"poison": "yes"} | {f"ister.{name}": value for name, value in (told | other).items()}


def test_a_key_out_of_order_is_reported(story: Story, keyed: Subscription) -> None:
    """The second message of a key came first, to a consumer that never got the first."""
    attached = story.oracle.attach(keyed, "a consumer")
    story.oracle.delivered(attached, 21, story.stored[21], b"k")
    assert story.kinds() == {"key-order"}


def test_a_key_in_order_is_fine(story: Story, keyed: Subscription) -> None:
    """Also with an acknowledgment by another consumer in between, and after a refused message."""
    first, second = story.oracle.attach(keyed, "first"), story.oracle.attach(keyed, "second")
    story.oracle.delivered(first, 20, story.stored[20], b"k", 1)
    story.oracle.acknowledged(first, (20,))
    story.oracle.delivered(second, 21, story.stored[21], b"k", 1)
    story.oracle.given_back(second, 21)
    story.now_ms = 2_000_000.0
    story.oracle.delivered(first, 22, story.stored[22], b"k", 1)
    assert story.kinds() == set()


def test_a_key_with_two_consumers_is_reported(story: Story, keyed: Subscription) -> None:
    """Once the broker has confirmed acknowledgments that each made afterwards."""
    pair = [story.oracle.attach(keyed, name) for name in ("first", "second")]
    for attached in pair:
        story.oracle.delivered(attached, 20, story.stored[20], b"k", 1)
    for number, attached in enumerate(pair):
        story.oracle.acknowledged(attached, (number,))
        story.oracle.confirmed(attached, story.oracle.take_unconfirmed(attached), 1)
    assert story.kinds() == {"key-with-two"}


def test_a_wrong_key_is_reported(story: Story, keyed: Subscription) -> None:
    """A key travels with its message."""
    story.oracle.delivered(story.oracle.attach(keyed, "a consumer"), 20, story.stored[20], b"other")
    assert story.kinds() == {"wrong-key"}


def test_a_message_before_its_time_is_reported(story: Story, keyed: Subscription) -> None:
    """Where delivery times are observed; an Exclusive subscription of this test ignores them."""
    attached = story.attach(Subscription("orders", "exclusive", "exclusive"), *range(MESSAGES))
    for offset in (20, 21, 22):
        story.oracle.delivered(attached, offset, story.stored[offset], b"k")
    assert story.kinds() == set()
    first = story.oracle.attach(keyed, "a consumer")
    for offset in (20, 21):
        story.oracle.delivered(first, offset, story.stored[offset], b"k")
    story.now_ms = 1_999_999.0
    story.oracle.delivered(first, 22, story.stored[22], b"k")
    assert story.kinds() == {"too-early"}


def test_a_dead_letter_that_was_refused_is_done_with(story: Story, keyed: Subscription) -> None:
    """It need not come again, nor be buried again."""
    attached = story.oracle.attach(keyed, "a consumer")
    assert story.oracle.unburied(keyed) == [21]
    story.oracle.given_back(attached, 21)
    story.oracle.buried(keyed, story.stored[21], b"k", letter(21))
    assert story.oracle.unburied(keyed) == []
    assert 21 not in story.oracle.missing(attached)
    assert story.kinds() == set()


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("buried-alive", {"attempts": "2"}),
        ("wrong-letter", {"subscription": "other"}),
        ("wrong-letter", {"topic": "other"}),
        ("offset-reused", {"offset": "5"}),
    ],
)
def test_a_wrong_dead_letter_is_reported(
    story: Story, keyed: Subscription, kind: str, other: dict[str, str]
) -> None:
    """It must name its origin and the number of attempts."""
    for offset in (5, 21):
        story.oracle.given_back(story.oracle.attach(keyed, "a consumer"), offset)
    story.oracle.buried(keyed, story.stored[21], b"k", letter(21, **other))
    assert kind in story.kinds()


def test_a_dead_letter_that_nobody_refused_is_reported(story: Story, keyed: Subscription) -> None:
    """Unless its consumers were lost too often."""
    story.oracle.buried(keyed, story.stored[21], b"k", letter(21, reason="its consumer was lost"))
    assert story.kinds() == set()
    story.oracle.buried(keyed, story.stored[21], b"k", letter(21))
    assert story.kinds() == {"buried-alive"}


def test_what_is_behind_the_place_of_a_seek_comes_again(story: Story, exclusive: Subscription) -> None:
    """Also what was confirmed; what is below does not."""
    attached = story.attach(exclusive, *range(15), acknowledge=True)
    story.oracle.moved(attached, 10)
    assert story.oracle.missing(attached) == list(range(10, MESSAGES))
    for offset in range(10, MESSAGES):
        story.oracle.delivered(attached, offset, story.stored[offset])
    story.oracle.drained(attached)
    assert story.kinds() == set()
    story.attach(exclusive, 9)
    assert story.kinds() == {"acknowledged-came-back"}


def test_a_seek_that_skips_is_reported(story: Story, exclusive: Subscription) -> None:
    """It was moved to 10, and the first to come is 11."""
    attached = story.attach(exclusive, *range(15), acknowledge=True)
    story.oracle.moved(attached, 10)
    story.oracle.delivered(attached, 11, story.stored[11])
    assert story.kinds() == {"gap"}


def test_a_reader_that_repeats_is_reported(story: Story) -> None:
    """A consumer may get a message again, a reader may not."""
    for once, kinds in ((False, set()), (True, {"read-again"})):
        back = ReadBack("orders", once=once)
        for offset in (0, 1, 1):
            story.oracle.read(back, offset, story.stored[offset])
        assert story.kinds() == kinds
