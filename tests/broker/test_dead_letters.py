"""Dead letters through the client, on a broker of real processes: listing, redriving, purging."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

import ister
import ister.aio
from ister import bodies
from ister.deadletters import DeadLetters
from ister.ownbroker import OwnBroker

pytestmark = pytest.mark.process


@pytest.fixture
def client(broker: OwnBroker) -> Iterator[ister.Client]:
    """Return a client of the broker."""
    with ister.connect(broker.endpoint) as connected:
        yield connected


def kill(
    client: ister.Client, topic: str, count: int, subscription: str = "billing", **options: str
) -> DeadLetters:
    """Let `count` messages of a topic be given up, and return their DeadLetters."""
    client.create_topic(topic, exist_ok=True)
    client.create_subscription(
        topic,
        subscription,
        type="shared",
        start="earliest",
        max_deliveries=1,
        exist_ok=True,
        **options,  # type: ignore[arg-type]
    )
    with client.producer(topic) as producer:
        for number in range(count):
            producer.send(b"m%d" % number, key=b"k%d" % (number % 3), attributes={"number": str(number)})
    fail(client, topic, count, subscription)
    letters = client.dead_letters(topic, subscription)
    eventually(lambda: letters.count() >= count)
    return letters


def fail(client: ister.Client, topic: str, count: int, subscription: str = "billing") -> None:
    """Refuse messages."""
    with client.consumer(topic, subscription, type="shared") as consumer:
        for _ in range(count):
            message = consumer.receive(10)
            assert message is not None
            consumer.nack(message, reason="no flour")


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds, at most ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def texts(letters: DeadLetters) -> list[bytes]:
    """Return the payloads of the letters that wait."""
    return [letter.payload for letter in letters.list()]


@pytest.mark.requirement("10.6-1")
def test_a_letter_says_where_it_was_and_why_it_died(client: ister.Client) -> None:
    """Topic, offset, time, attempts and reason are added; key and attributes are the producer's."""
    letters = kill(client, "told", 2)
    letter = letters.list()[1]
    assert (letter.topic, letter.subscription, letter.origin_offset) == ("told", "billing", 1)
    assert (letter.payload, letter.key, letter.attributes) == (b"m1", b"k1", {"number": "1"})
    assert (letter.attempts, letter.reason) == (1, "no flour")
    assert letter.timestamp is not None
    assert letter.dead_lettered_at is not None
    assert letter.timestamp <= letter.dead_lettered_at
    assert letters.show(letter.offset) == letter
    assert letters.count() == 2
    with pytest.raises(ister.UsageError, match="no letter"):
        letters.show(99)


def test_a_subscription_without_dead_letters_has_none(client: ister.Client) -> None:
    """Nothing was given up, so nothing is listed, sent or deleted, and no topic is created."""
    client.create_topic("healthy")
    letters = client.dead_letters("healthy", "billing")
    assert (letters.list(), letters.count(), letters.redrive(), letters.purge()) == ([], 0, 0, 0)
    with pytest.raises(ister.UsageError, match="no letter"):
        letters.show(0)
    assert "healthy.billing.dlq" not in [topic["topic"] for topic in client.topics()]


@pytest.mark.requirement("10.6-2")
def test_redriven_messages_are_what_they_were_and_say_where_they_come_from(client: ister.Client) -> None:
    """Payload, key, attributes and order are unchanged; new attributes say where the letter was, and for whom."""
    letters = kill(client, "back", 5)
    seen: list[tuple[int, int]] = []
    assert letters.redrive(on_progress=lambda done, total: seen.append((done, total))) == 5
    assert seen[-1] == (5, 5)
    assert letters.count() == 0
    with client.reader("back", start=5) as reader:
        again = [reader.receive(5) for _ in range(5)]
    assert [message.payload for message in again if message] == [b"m%d" % number for number in range(5)]
    assert again[4] is not None
    assert again[4].key == b"k1"
    assert again[4].attributes == {
        "number": "4",
        "ister.redriven_from": "back.billing.dlq",
        "ister.redriven_offset": "4",
        "ister.redriven_for": "billing",
    }


def test_what_dies_again_waits_for_the_next_time(client: ister.Client) -> None:
    """Redriving ends although every message fails again at once; the second death is reported the second time."""
    letters = kill(client, "circle", 3)
    assert letters.redrive() == 3
    fail(client, "circle", 3)
    eventually(lambda: letters.count() == 3)
    [first, *_] = letters.list()
    assert (first.offset, first.origin_offset) == (3, 3)
    assert first.attributes["ister.redriven_from"] == "circle.billing.dlq"
    assert letters.redrive() == 3
    with client.reader("circle", start=6) as reader:
        message = reader.receive(5)
    assert message is not None
    assert message.attributes["ister.redriven_offset"] == "3"


def test_some_letters_can_be_redriven_and_the_others_stay(client: ister.Client) -> None:
    """By a limit, oldest first, or by their offsets, also to another topic."""
    letters = kill(client, "some", 6)
    client.create_topic("elsewhere")
    assert letters.redrive(limit=2) == 2
    assert texts(letters) == [b"m2", b"m3", b"m4", b"m5"]
    assert letters.redrive(offsets=[5, 3, 0, 99], to="elsewhere") == 2
    assert texts(letters) == [b"m2", b"m4"]
    with client.reader("elsewhere", start="earliest") as reader:
        assert [message.payload for message in (reader.receive(5), reader.receive(5)) if message] == [
            b"m3",
            b"m5",
        ]
    assert letters.redrive() == 2


def test_purged_letters_are_gone_and_the_topic_heard_nothing(client: ister.Client) -> None:
    """Purged letters are not sent anywhere."""
    letters = kill(client, "purged", 4)
    assert letters.purge(limit=1) == 1
    assert letters.purge() == 3
    assert (letters.count(), letters.list()) == (0, [])
    assert client.topic("purged")["next_offset"] == 4


def test_letters_of_others_in_the_same_topic_are_left_alone(client: ister.Client) -> None:
    """Two subscriptions share a dead-letter topic; each has its own letters."""
    mine = kill(client, "mine", 2, dead_letter_topic="graves")
    theirs = kill(client, "theirs", 3, dead_letter_topic="graves")
    eventually(lambda: mine.count() == 5)
    assert texts(mine) == [b"m0", b"m1"]
    assert [letter.topic for letter in theirs.list(2)] == ["theirs", "theirs"]
    assert mine.purge() == 2
    assert theirs.redrive() == 3
    assert client.topic("theirs")["next_offset"] == 6
    assert client.topic("mine")["next_offset"] == 2


def test_all_letters_can_be_looked_at_in_parts(client: ister.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list has a limit and goes on behind its last letter; an iteration ends with the last one, others' left out."""
    monkeypatch.setattr("ister.deadletters.LIST_MAX", 4)
    mine = kill(client, "many", 5, dead_letter_topic="many-graves")
    kill(client, "others", 3, dead_letter_topic="many-graves")
    eventually(lambda: mine.count() == 8)
    again = kill(client, "many", 4, dead_letter_topic="many-graves")
    eventually(lambda: mine.count() == 12)
    offsets = [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert [letter.offset for letter in again] == offsets
    assert [letter.offset for letter in mine.list(6)] == offsets[:6]
    assert [letter.offset for letter in mine.list(2, after=3)] == [4, 8]
    assert mine.list(after=11) == []
    with pytest.raises(ister.UsageError, match="after"):
        mine.list(after=-1)


def test_what_cannot_be_listed_is_said(client: ister.Client) -> None:
    """A broker tells where the first hundred runs of letters are: a list that needs more is an error, not short."""
    letters = kill(client, "scattered", 210)
    assert letters.redrive(offsets=range(1, 210, 2), to="scattered") == 105
    assert [letter.offset for letter in letters.list(90)] == list(range(0, 180, 2))
    with pytest.raises(ister.UsageError, match=r"5 letters of 'scattered\.billing\.dlq' cannot"):
        letters.list(101)
    assert letters.purge(limit=10) == 10
    assert len(list(letters)) == 95


def test_letters_are_never_sent_where_they_would_be_lost(client: ister.Client) -> None:
    """Not to a topic without a log, not to the dead-letter topic itself, and not to a topic that does not exist."""
    letters = kill(client, "careful", 1)
    client.create_topic("air", dispatch="non-reliable")
    with pytest.raises(ister.UsageError, match="stores nothing"):
        letters.redrive(to="air")
    with pytest.raises(ister.UsageError, match="forever"):
        letters.redrive(to="careful.billing.dlq")
    with pytest.raises(ister.RemoteError, match="nowhere"):
        letters.redrive(to="nowhere")
    assert letters.count() == 1


def test_a_redrive_that_is_interrupted_loses_nothing(client: ister.Client) -> None:
    """After an exception in the second batch, what was sent is acknowledged, and what was not still waits."""
    letters = kill(client, "interrupted", 1200)

    def stop(done: int, _total: int) -> None:
        raise KeyboardInterrupt(done)

    with pytest.raises(KeyboardInterrupt):
        letters.redrive(on_progress=stop)
    went = client.topic("interrupted")["next_offset"] - 1200
    assert 0 < went < 1200
    assert letters.count() == 1200 - went
    assert letters.redrive() == 1200 - went
    assert client.topic("interrupted")["next_offset"] == 2400


def test_a_redrive_whose_broker_dies_loses_nothing(client: ister.Client) -> None:
    """Workers are killed in the middle: every letter is in its topic again or still waits; in the end none waits."""
    letters = kill(client, "killed", 4000)
    killed = False

    def shoot(done: int, _total: int) -> None:
        nonlocal killed
        if done >= 1000 and not killed:
            killed = True
            for process in client.status()["processes"]:
                if process["role"] == "worker":
                    os.kill(process["pid"], signal.SIGKILL)

    with contextlib.suppress(ister.ConnectionLostError, ister.TimeoutExpiredError):
        letters.redrive(on_progress=shoot)
    assert killed
    left = {letter.payload for letter in letters.list(4000)}
    again: Counter[bytes] = Counter()
    with client.reader("killed", start=4000) as reader:
        while (batch := reader.receive_batch(timeout=1)) is not None:
            again.update(batch.payloads)
    assert left | again.keys() == {b"m%d" % number for number in range(4000)}
    letters.redrive()
    assert letters.count() == 0
    assert client.topic("killed")["next_offset"] < 4000 + 4000 + 1000  # at most a batch or two was sent twice


def test_a_paused_redrive_says_so(client: ister.Client) -> None:
    """It does not wait for ever on a subscription that delivers nothing."""
    letters = kill(client, "halted", 1)
    client.pause("halted.billing.dlq", "redrive")
    with pytest.raises(ister.RemoteError, match="paused"):
        letters.redrive()
    client.resume("halted.billing.dlq", "redrive")
    assert letters.redrive() == 1


def test_letters_survive_their_subscription(client: ister.Client) -> None:
    """Deleting a subscription by mistake does not delete its dead letters."""
    letters = kill(client, "orphans", 2)
    client.delete_subscription("orphans", "billing")
    assert letters.redrive() == 2


def test_asyncio_does_the_same_without_stopping_the_loop(client: ister.Client, broker: OwnBroker) -> None:
    """List, show, redrive and purge are awaited; progress is reported in the loop's thread."""
    kill(client, "async", 4)

    async def run() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        async with ister.aio.connect(broker.endpoint) as connected:
            letters = connected.dead_letters("async", "billing")
            assert await letters.count() == 4
            [first, *_] = await letters.list()
            assert [letter.offset async for letter in letters] == [0, 1, 2, 3]
            assert [letter.offset for letter in await letters.list(after=2)] == [3]
            assert await letters.show(first.offset) == first
            assert await letters.redrive(limit=3, on_progress=lambda *now: seen.append(now)) == 3
            assert await letters.purge() == 1
            await asyncio.sleep(0)
        return seen

    assert asyncio.run(run()) == [(3, 3)]
    assert client.topic("async")["next_offset"] == 7


def test_a_cancelled_redrive_ends_after_its_present_batch(client: ister.Client, broker: OwnBroker) -> None:
    """The thread that does the work stops soon, and what was not sent still waits."""
    letters = kill(client, "cancelled", 3000)

    async def run() -> None:
        async with ister.aio.connect(broker.endpoint) as connected:
            begun = asyncio.Event()
            redrive = connected.dead_letters("cancelled", "billing").redrive(
                on_progress=lambda _done, _total: begun.set()
            )
            task = asyncio.create_task(redrive)
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    went = client.topic("cancelled")["next_offset"] - 3000
    left = letters.count()
    assert went > 0
    assert 3000 <= went + left <= 3500  # a batch that was sent when the client was closed is sent twice
    assert letters.redrive() == left


def test_the_largest_message_dies_and_goes_back(client: ister.Client) -> None:
    """The attributes added by burying and redriving are not counted, however often that happens."""
    with_key = {"attributes": {"own": "x" * 1000}, "key": b"k" * 100}
    client.create_topic("large")
    client.create_subscription("large", "billing", type="shared", start="earliest", max_deliveries=1)
    with client.producer("large") as producer:
        producer.send(bytes(200_000), **with_key).result(10)  # type: ignore[arg-type]
    letters = client.dead_letters("large", "billing")
    for _ in range(3):
        fail(client, "large", 1)
        eventually(lambda: letters.count() == 1)
        assert letters.redrive() == 1


def test_a_letter_that_cannot_go_back_stops_no_other(client: ister.Client) -> None:
    """It stays, and the error names it; the others are in their topic again."""
    letters = kill(client, "mixed", 2)
    note = {"ister.note": "y" * 4_060}
    own = {
        "own": "x"
        * (400_000 - 190_000 - 4 - 4 - 50 - len(bodies.encode_attributes({"own": "x" * 300})) + 300)
    }
    assert len(bodies.encode_attributes(note)) < bodies.MARKED_BYTES_MAX
    with client.producer("mixed.billing.dlq") as producer:
        producer.send(b"x" * 190_000, attributes=own | note).result(10)
        producer.send(b"last").result(10)
    with pytest.raises(ister.RemoteError, match=r"3 letters .* 1 stays in 'mixed.billing.dlq'") as caught:
        letters.redrive()
    assert caught.value.code == "batch-too-large"
    assert [letter.payload[:5] for letter in letters.list()] == [b"xxxxx"]
