"""Tests of positions: seek, readers, takeover, pause, and starts by time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ister.actors.addresses import FETCHER_PATH, TIER
from ister.actors.fetcher import Fetcher
from ister.actors.source import Source
from ister.actors.subscription import attaching
from ister.wire import Key, Type
from tests.actors.scenes import Scene, events, heard, offsets, reader
from tests.stage import Stage, StagedClient

TYPES = ["exclusive", "failover", "shared", "key-shared"]


@pytest.fixture(params=TYPES)
def scene(request: pytest.FixtureRequest, stage: Stage) -> Scene:
    """Return a scene of each subscription type."""
    return Scene(stage, type=request.param)


# ---- seeking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "first"), [("earliest", 0), ("latest", 6), (2, 2), (5, 5)])
def test_a_live_subscription_goes_on_where_it_is_moved_to(scene: Scene, to: str | int, first: int) -> None:
    """Consumers are told, stay attached, and get all messages from the new position again, and no others."""
    client = scene.consumer()
    scene.publish(*(b"%d" % n for n in range(6)), key=b"k")
    assert offsets(client) == [0, 1, 2, 3, 4, 5]
    client.ack(1, (0, 3), (4, 5))
    assert scene.request("seek", to=to) == {"position": first}
    (sought,) = [event for event in events(client) if event.code == "sought"]
    assert sought.header[Key.OFFSET] == first
    assert sorted(offsets(client)) == list(range(first, 6))
    shown = scene.shown()
    assert (shown["cursor"], shown["unacknowledged"]) == (first, 6 - first)
    client.ack(1, *([(first, 6)] if first < 6 else []))
    assert scene.shown()["cursor"] == 6


@pytest.mark.requirement("9.7-4")
def test_what_was_delivered_before_a_move_is_acknowledged_no_more(scene: Scene) -> None:
    """An acknowledgment that was sent before the seek must not acknowledge a message that was asked for again."""
    client = scene.consumer(messages=4)
    scene.publish(*(b"%d" % n for n in range(4)), key=b"k")
    assert offsets(client) == [0, 1, 2, 3]
    scene.request("seek", to=0)
    client.ack(1, (0, 4))  # of the first delivery; it has no credit yet for the second
    assert scene.shown()["cursor"] == 0
    client.credit(1, 10)
    scene.stage.settle()
    assert sorted(offsets(client)) == [0, 1, 2, 3]
    client.ack(1, (0, 4))
    assert scene.shown()["cursor"] == 4


WORDS: dict[str, Callable[[StagedClient], object]] = {
    "ack": lambda client: client.ack(1, (0, 4)),
    "ack_until": lambda client: client.ack_until(1, 3),
    "nack": lambda client: client.nack(1, (0, 4), delay_ms=60_000),
    "extend": lambda client: client.extend(1, (0, 4)),
}


@pytest.mark.requirement("9.10-1", "9.10-3")
@pytest.mark.parametrize("word", WORDS)
def test_what_is_on_its_way_during_a_move_is_about_nothing_that_is_sent_again(
    scene: Scene, word: str
) -> None:
    """The consumer has the messages again by then; if it closes without another frame, the next consumer gets them."""
    client = scene.consumer(counts_moves=True, ack_timeout_ms=10_000)
    assert client.opened.header[Key.SOUGHT] == 0
    scene.publish(*(b"%d" % n for n in range(4)), key=b"k")
    assert offsets(client) == [0, 1, 2, 3]
    scene.request("seek", to=0)
    (sought,) = [event for event in events(client) if event.code == "sought"]
    assert sought.header[Key.SOUGHT] == 1
    assert offsets(client) == [0, 1, 2, 3]
    scene.stage.advance(6)
    WORDS[word](client)  # it was sent before "sought" was read
    scene.stage.settle()
    assert (scene.shown()["cursor"], scene.shown()["in_flight"]) == (0, 4)
    scene.stage.advance(4.5)  # and their timeout was not extended: they wait for their back-off
    assert scene.shown()["in_flight"] == 0
    client.close_handle(1)
    scene.stage.advance(2)
    assert offsets(scene.consumer()) == [0, 1, 2, 3]


@pytest.mark.requirement("9.10-1", "9.10-2")
def test_who_has_heard_of_a_move_says_so_and_acknowledges(scene: Scene) -> None:
    """The number must be the latest seek's, also once the handle is opened again; an older one acknowledges nothing."""
    client = scene.consumer(counts_moves=True)
    scene.publish(*(b"%d" % n for n in range(4)), key=b"k")
    for number in (1, 2):
        scene.request("seek", to=0)
        assert [each.header[Key.SOUGHT] for each in events(client) if each.code == "sought"] == [number]
        client.ack(1, (0, 4), sought=number - 1)
        assert scene.shown()["cursor"] == 0
    client.ack(1, (0, 2), sought=2)
    assert scene.shown()["cursor"] == 2
    again = client.open_consumer(1, "orders", "s", scene.type, sparse=True, counts_moves=True)
    assert again.header[Key.SOUGHT] == 2
    client.ack(1, (2, 4), sought=1)
    assert scene.shown()["cursor"] == 2
    client.ack(1, (2, 4), sought=2)
    assert scene.shown()["cursor"] == 4


@pytest.mark.requirement("9.10-2")
def test_what_was_done_after_a_move_counts_when_a_session_is_resumed(scene: Scene) -> None:
    """The client's open has the number of the seek it has heard of: nothing acknowledged since comes again."""
    client = scene.consumer(counts_moves=True, instance="")
    scene.publish(*(b"%d" % n for n in range(4)), key=b"k")
    scene.request("seek", to=0)
    events(client)
    client.disconnect()
    client.reconnect()
    client.ack(1, (0, 3), confirm=False, sought=1)
    client.open_consumer(1, "orders", "s", scene.type, sparse=True, counts_moves=True, instance="")
    assert offsets(client)[-1:] == [3]
    assert scene.shown()["cursor"] == 3


@pytest.mark.requirement("9.10-1")
def test_a_client_that_does_not_count_moves_hears_no_numbers(scene: Scene) -> None:
    """Nor does a reader, which acknowledges nothing."""
    client = scene.consumer()
    reads = scene.stage.at_subscription("orders", "r-1")
    opened = reads.open_consumer(1, "orders", "r-1", "reader", counts_moves=True)
    scene.publish(b"0", key=b"k")
    scene.request("seek", to=0)
    (sought,) = [event for event in events(client) if event.code == "sought"]
    for frame in (client.opened, sought, opened):
        assert Key.SOUGHT not in frame.header


@pytest.mark.parametrize("told", ["lost", "waiting"])
def test_what_is_acknowledged_again_after_a_move_that_was_not_heard_of_is_not_done(
    scene: Scene, told: str
) -> None:
    """A client that was away repeats its acknowledgments and opens its handle: it is told to drop the rest."""
    client = scene.consumer(messages=100, instance="")
    scene.publish(*(b"%d" % n for n in range(4)), key=b"k")
    assert sorted(offsets(client)) == [0, 1, 2, 3]
    client.ack(1, (0, 4))
    if told == "waiting":  # the broker knows that it is away
        client.die()
    else:
        client.disconnect()
    scene.request("seek", to=0)
    client.reconnect()
    client.ack(1, (0, 4))
    assert scene.shown()["cursor"] == 0
    before = client.opened.header[Key.INSTANCE]
    opened = client.open_consumer(1, "orders", "s", scene.type, messages=100, sparse=True, instance=before)
    assert opened.kind == Type.OPENED
    assert opened.header[Key.INSTANCE] != before
    assert sorted(offsets(client)) == [0, 1, 2, 3]
    client.ack(1, (0, 4))
    assert scene.shown()["cursor"] == 4


def test_a_move_without_consumers_lasts(scene: Scene) -> None:
    """Also over a restart."""
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2", key=b"k")
    client.ack(1, (0, 3))
    client.close_handle(1)
    assert scene.request("seek", to=1) == {"position": 1}
    scene.stage.restart(2)
    assert offsets(scene.consumer()) == [1, 2]


def test_a_place_that_is_not_there_is_refused(scene: Scene) -> None:
    """The subscription stays where it is."""
    client = scene.consumer()
    scene.publish(b"0", key=b"k")
    assert scene.ask("seek", to=17).code == "offset-out-of-range"
    assert scene.ask("seek", to="yesterday").code == "invalid-argument"
    assert offsets(client) == [0]


def test_a_subscription_may_begin_or_go_on_at_a_time(scene: Scene) -> None:
    """At the first message that arrived at that time or later."""
    times = []
    for number in range(6):
        times.append(scene.now_ms())
        scene.publish(b"%d" % number, key=b"k")
        scene.stage.advance(10)
    client = scene.consumer(start=f"time:{times[3]}")
    assert client.opened.header[Key.OFFSET] == 3
    assert offsets(client) == [3, 4, 5]
    assert scene.request("seek", to=f"time:{times[1] + 1}") == {"position": 2}
    assert scene.request("seek", to=f"time:{times[5] + 10**6}") == {"position": 6}
    assert scene.request("seek", to="time:0") == {"position": 0}


def test_a_search_for_a_time_lets_others_have_their_turn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment that is being written may be large: few headers are walked at a time, and the answer is the same."""
    monkeypatch.setattr(attaching, "SEARCH_HEADERS_MAX", 4)
    asked: list[int | None] = []
    found = Source.offset_at

    def offset_at(self: Source, timestamp_ms: int, start: int, headers_max: int | None = None) -> int:
        asked.append(headers_max)
        return found(self, timestamp_ms, start, headers_max)

    monkeypatch.setattr(Source, "offset_at", offset_at)
    times = []
    for number in range(30):
        times.append(scene.now_ms())
        scene.publish(b"%d" % number, key=b"k")
        scene.stage.advance(0.01)
    client = scene.consumer(start=f"time:{times[25]}")
    assert client.opened.header[Key.OFFSET] == 25
    assert offsets(client) == [25, 26, 27, 28, 29]
    assert len(asked) > 5
    asked.clear()
    assert scene.request("seek", to=f"time:{times[20]}") == {"position": 20}
    assert len(asked) > 4
    assert set(asked) == {4}
    assert scene.request("seek", to=f"time:{times[29] + 10**6}") == {"position": 30}


def test_a_time_may_lie_in_the_store(make_stage: Callable[..., Stage]) -> None:
    """The search continues in segments that only the store has."""
    stage = make_stage(
        2,
        log__segment_bytes_max=(1 << 20) + 400_000,
        log__segment_age_ms_max=1000,
        log__local_bytes=1,
        protocol__session_timeout_ms=3_600_000,
        protocol__message_bytes_max=100_000,
        protocol__batch_bytes_max=400_000,
    )
    stage.start_tier()
    scene = Scene(stage)
    times = []
    for number in range(12):
        times.append(scene.now_ms())
        scene.publish(b"%d" % number)
        stage.advance(20)
    stage.advance(60)
    assert scene.stage.client().request("topic.show", topic="orders")["local_start"] > 5
    client = scene.consumer(start=f"time:{times[2]}")
    assert client.opened.header[Key.OFFSET] == 2
    stage.advance(5)
    assert sorted(offsets(client)) == list(range(2, 12))


# ---- taking over, pausing ---------------------------------------------------------------------------------------


@pytest.mark.requirement("9.2-2")
def test_an_exclusive_subscription_can_be_taken_over(stage: Stage) -> None:
    """The old consumer is told, and the new one gets first what that held."""
    scene = Scene(stage, type="exclusive")
    old = scene.consumer()
    scene.publish(b"0", b"1", b"2")
    assert offsets(old) == [0, 1, 2]
    old.ack(1, (0, 1))
    polite = scene.stage.at_subscription("orders", "s")
    assert polite.open_consumer(1, "orders", "s").code == "subscription-busy"
    new = scene.consumer(force=True)
    assert [(row[0], row[2]) for row in heard(new)] == [(1, 2), (2, 2)]
    told = old.expect(Type.ERROR)
    assert (told.code, told.header[Key.ACTION], told.header[Key.CLOSED]) == ("taken-over", "stop", True)
    old.ack(1, (0, 3), confirm=False)
    scene.stage.settle()
    assert scene.shown()["cursor"] == 1


def test_taking_over_what_nobody_has_is_opening_it(stage: Stage) -> None:
    """With force, too."""
    scene = Scene(stage, type="exclusive")
    scene.publish(b"0")
    assert offsets(scene.consumer(force=True)) == [0]


def test_a_paused_subscription_delivers_nothing_until_it_goes_on(scene: Scene) -> None:
    """Consumers are told, acknowledgments count, and the subscription stays paused over a restart."""
    client = scene.consumer()
    scene.publish(b"0", key=b"k")
    assert offsets(client) == [0]
    scene.update(paused=1)
    scene.publish(b"1", key=b"k")
    assert [event.code for event in events(client) if event.code == "paused"] == ["paused"]
    assert offsets(client) == []
    client.ack(1, (0, 1))
    scene.stage.restart(2)
    client = scene.consumer()
    assert offsets(client) == []
    assert "paused" in [event.code for event in events(client)], "who comes later is told as well"
    scene.update(paused=0)
    scene.stage.settle()
    assert offsets(client) == [1]


# ---- readers ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("9.2-8")
def test_a_reader_needs_no_subscription(stage: Stage) -> None:
    """A reader gets everything from its start, acknowledges nothing, and leaves nothing behind."""
    scene = Scene(stage)
    scene.publish(b"0", b"1")
    first, second = reader(scene), reader(scene, "r-2", start=1, messages=1)
    assert offsets(first) == [0, 1]
    assert offsets(second) == [1]
    scene.publish(b"2")
    assert offsets(first) == [2]
    assert offsets(second) == []
    second.credit(1, 5)
    scene.stage.settle()
    assert offsets(second) == [2]
    assert stage.client().request("subscription.list", topic="orders")["subscriptions"] == []
    first.close_handle(1)
    second.say({Key.TYPE: Type.BYE})
    stage.settle()
    assert stage.actors("subscription") == []


@pytest.mark.requirement("9.2-9")
def test_a_reader_that_comes_back_goes_on_where_it_says(stage: Stage) -> None:
    """Messages lost with its connection are sent again."""
    scene = Scene(stage)
    scene.publish(*(b"%d" % n for n in range(10)))
    client = reader(scene, messages=8)
    assert offsets(client) == list(range(8))
    client.reconnect()
    assert client.open_consumer(1, "orders", "r-1", "reader", start=3).kind == Type.OPENED
    assert offsets(client) == list(range(3, 10))
    client.reconnect(resume=False)
    assert client.open_consumer(1, "orders", "r-1", "reader", start=9).kind in (Type.OPENED, Type.ERROR)


@pytest.mark.requirement("9.7-5")
def test_a_move_voids_no_credit(scene: Scene) -> None:
    """What the dropped messages used stays used, in messages and in bytes, until the client returns it."""
    payload = bytes(100)
    few = scene.consumer(messages=2)
    scene.publish(payload, payload, key=b"k")
    assert offsets(few) == [0, 1]
    scene.request("seek", to=0)
    scene.stage.advance(1)
    assert offsets(few) == []
    few.credit(1, 2, 0)
    scene.stage.settle()
    assert sorted(offsets(few)) == [0, 1]
    few.ack(1, (0, 2))
    few.close_handle(1)

    small = scene.consumer(messages=100, bytes=150)
    scene.publish(payload, payload, key=b"k")
    assert offsets(small) == [2, 3]  # byte credit is permission to start a delivery
    scene.request("seek", to=2)
    scene.stage.advance(1)
    assert offsets(small) == []
    small.credit(1, 2, 0)  # messages alone start none
    scene.stage.advance(1)
    assert offsets(small) == []
    small.credit(1, 0, 300)
    scene.stage.settle()
    assert sorted(offsets(small)) == [2, 3]


@pytest.mark.requirement("7.4-9")
def test_what_is_acknowledged_before_the_close_in_a_resumed_session_counts(scene: Scene) -> None:
    """The handle is open there as it was; behind the CLOSE nothing counts."""
    client = scene.consumer()
    scene.publish(b"0", b"1", b"2", key=b"k")
    assert sorted(offsets(client)) == [0, 1, 2]
    client.reconnect()
    client.ack(1, (0, 2), confirm=False)
    assert client.close_handle(1).kind == Type.DONE
    client.ack(1, (2, 3), confirm=False)
    scene.stage.settle()
    assert scene.shown()["cursor"] == 2
    assert offsets(scene.consumer()) == [2]


@pytest.mark.requirement("9.4-9")
def test_opening_again_voids_the_credit_from_before(stage: Stage) -> None:
    """A reader has what its last OPEN_CONSUMER says, however much it had not used."""
    scene = Scene(stage)
    scene.publish(*(b"%d" % n for n in range(3)))
    client = reader(scene, messages=100)
    assert offsets(client) == [0, 1, 2]
    client.reconnect()
    assert client.open_consumer(1, "orders", "r-1", "reader", start=3, messages=2).kind == Type.OPENED
    scene.publish(*(b"%d" % n for n in range(3, 9)))
    assert offsets(client) == [3, 4]
    client.credit(1, 1)
    scene.stage.settle()
    assert offsets(client) == [5]


def test_a_reader_comes_back_while_every_thread_is_busy(stage: Stage) -> None:
    """A reader's position is in memory: it waits for no sync, and misses no message that becomes durable meanwhile."""
    scene = Scene(stage)
    scene.publish(*(b"%d" % n for n in range(10)))
    client = reader(scene, messages=8)
    assert offsets(client) == list(range(8))
    stage.loop.holds_work = True
    stage.advance(1)
    client.reconnect()
    assert client.open_consumer(1, "orders", "r-1", "reader", start=3).kind == Type.OPENED
    assert offsets(client) == list(range(3, 10))
    stage.loop.holds_work = False


def test_retention_does_not_wait_for_readers(stage: Stage) -> None:
    """Readers acknowledge nothing."""
    scene = Scene(stage, retention_acknowledged=1)
    scene.publish(b"0")
    client = reader(scene)
    assert offsets(client) == [0]
    stage.advance(60)
    assert stage.failures == []


def test_what_is_acknowledged_above_the_cursor_stays_so_when_the_cursor_reaches_it(stage: Stage) -> None:
    """After a restart only the hole is delivered; once that is acknowledged too, no later message comes again."""
    scene = Scene(stage)
    scene.publish(*[b"%d" % number for number in range(5)])
    before = scene.consumer()
    assert [offset for offset, _, _ in heard(before)] == [0, 1, 2, 3, 4]
    before.ack(1, (1, 5))
    stage.restart(2)
    after = scene.consumer(messages=1)
    assert [offset for offset, _, _ in heard(after)] == [0]
    after.ack(1, (0, 1))
    after.credit(1, 100)
    stage.advance(1)
    assert heard(after) == []


def test_after_a_move_late_acknowledgments_count_as_ever(scene: Scene) -> None:
    """Messages delivered since can be acknowledged after their timeout; in an ordered subscription all below them."""
    client = scene.consumer(ack_timeout_ms=1000)
    scene.publish(*(b"%d" % n for n in range(4)), key=b"k")
    offsets(client)
    client.ack(1, (0, 4))
    scene.request("seek", to=1)
    assert sorted(offsets(client)) == [1, 2, 3]
    client.nack(1, (1, 4), delay_ms=60_000)
    client.ack(1, (2, 3))
    assert scene.shown()["unacknowledged"] == 2
    if scene.type in ("exclusive", "failover"):
        client.ack_until(1, 3)
        assert scene.shown()["cursor"] == 4


def test_a_move_that_fails_changes_nothing(scene: Scene) -> None:
    """The operator is told, and messages delivered before can be acknowledged as usual."""
    client = scene.consumer(messages=3)  # no credit for a second delivery
    scene.publish(*(b"%d" % n for n in range(3)), key=b"k")
    assert offsets(client) == [0, 1, 2]

    def fails(operation: str, path: str) -> None:
        if operation == "sync" and "/cursors/" in path:
            raise OSError(5, "Input/output error")

    scene.stage.disk.on_operation = fails
    assert scene.ask("seek", to=1).kind == Type.ERROR
    scene.stage.disk.on_operation = None
    scene.stage.advance(2)
    client.ack(1, (0, 3))
    assert scene.shown()["cursor"] == 3


def test_a_time_is_found_though_the_clock_stepped_back(scene: Scene) -> None:
    """A clock that was set back counts as standing still: no message that arrived later is left out."""
    stage, times = scene.stage, []
    for number, step_s in enumerate((0, 3600, 0, -3600, -7200, 3600, 0, 7200)):
        stage.clock.stepped_ms += step_s * 1000
        stage.advance(1)
        times.append(scene.now_ms())
        scene.publish(b"%d" % number, key=b"k")
    scene.consumer()
    for wanted in [*times, *(time + 500 for time in times), min(times) - 1, max(times) + 1]:
        highest = [max(times[: number + 1]) for number in range(len(times))]
        expected = next((at for at, time in enumerate(highest) if time >= wanted), len(times))
        assert scene.request("seek", to=f"time:{wanted}") == {"position": expected}, wanted


def test_a_search_by_time_goes_on_in_the_store_whatever_the_clock_did(
    make_stage: Callable[..., Stage],
) -> None:
    """Also if the clock was set back, and if the cache holds few segments."""
    stage = make_stage(
        2,
        log__segment_bytes_max=(1 << 20) + 400_000,
        log__segment_age_ms_max=1000,
        log__local_bytes=1,
        protocol__session_timeout_ms=3_600_000,
        protocol__message_bytes_max=100_000,
        protocol__batch_bytes_max=400_000,
    )
    stage.start_tier()
    fetcher = stage.systems[TIER].find(FETCHER_PATH)
    assert isinstance(fetcher, Fetcher)
    fetcher._cache_bytes_max = 1500  # four segments of a message
    scene = Scene(stage)
    times: list[int] = []
    for number in range(24):
        stage.clock.stepped_ms += {6: 3_600_000, 8: -3_600_000, 15: -600_000}.get(number, 0)
        times.append(scene.now_ms())
        scene.publish(b"%d" % number)
        stage.advance(4)
    stage.advance(60)
    assert stage.client().request("topic.show", topic="orders")["local_start"] > 20
    scene.consumer()
    for at in (0, 3, 6, 7, 9, 17, 23):
        expected = next(n for n in range(24) if max(times[: n + 1]) >= times[at])
        assert scene.request("seek", to=f"time:{times[at]}") == {"position": expected}, at
