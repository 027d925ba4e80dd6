"""Tests of delivery by key: which messages are read into the lanes, and where returned messages go."""

from __future__ import annotations

import pytest

from ister.actors.grouped_lanes import GroupedLanes
from ister.actors.ledger import Held
from ister.actors.messages import Acknowledged, Returned, Seek
from ister.actors.pieces import copied
from ister.actors.selection import Member
from ister.actors.sheets import Sheet
from ister.actors.subscription import by_key as module
from ister.actors.subscription.acknowledgments import Acknowledgments
from ister.actors.subscription.by_key import ByKey
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.moving import Moving
from tests.actors.hosts import ASKER, Delivering


def keyed(consumers: int = 1) -> Delivering:
    """Return a delivery by key, with consumers."""
    bench = Delivering(ByKey, "key-shared")
    for key in range(1, consumers + 1):
        bench.host.attach(key)
    return bench


def offsets(bench: Delivering) -> list[int]:
    """Dispatch once, and return the offsets that were delivered."""
    return [offset for parts in bench.hand_out() for first, end in parts for offset in range(first, end)]


def give_back(bench: Delivering, first: int, end: int, delay_s: float | None = 0.0) -> None:
    """Let a consumer return messages as failed."""
    held = (Held(first, end, 1),)
    bench.part(Acknowledgments).on_returned(Returned(1, held, delay_s, "no", delay_s is None))


def test_a_key_that_waits_lets_others_go_on() -> None:
    """Its later messages wait behind the one that came back, in order."""
    bench = keyed()
    for key in (b"a", b"b"):
        bench.publish(b"x", b"x", key=key)
    assert sorted(offsets(bench)) == [0, 1, 2, 3]
    give_back(bench, 0, 1, 5.0)
    bench.publish(b"a", key=b"a")
    bench.publish(b"b", key=b"b")
    assert offsets(bench) == [5]
    assert bench.delivery.state()["backoff"] == 2
    bench.host.time.now_s += 5
    assert offsets(bench) == [0, 4]


def test_poison_holds_its_key_and_no_other() -> None:
    """Its key stays blocked until an operator decides."""
    bench = keyed()
    bench.host.meta.settings.update({"poison": "block", "max_deliveries": 1})
    for part in bench.host.parts:
        part.settings_updated()
    bench.publish(b"x", key=b"a")
    assert offsets(bench) == [0]
    give_back(bench, 0, 1, None)
    bench.publish(b"x", key=b"a")
    bench.publish(b"x", key=b"b")
    assert offsets(bench) == [2]
    bench.part(Acknowledgments).on_acknowledged(Acknowledged(1, ((0, 1),), None, 0))
    assert offsets(bench) == [1]


def test_a_message_takes_its_place_in_its_key_when_its_time_has_come() -> None:
    """Messages of the key with a higher offset went before it."""
    bench = keyed()
    bench.publish(b"later", b"now", key=b"a", deliver_at=[bench.host.time.time_ms() + 5_000, 0])
    assert offsets(bench) == [1]
    bench.host.time.now_s += 6
    assert offsets(bench) == [0]


def test_after_a_restart_what_waited_for_its_back_off_waits_on() -> None:
    """It waits in its lane as soon as the log is read up to it."""
    bench = keyed()
    bench.log.publish(b"0", b"1", key=b"a")
    journal, access = bench.part(CursorLog), bench.part(LogAccess)
    journal.open(lambda: 0, lambda _journal: None)
    journal.cursor.failed[0] = (1, 1)
    journal.cursor.waits[0] = (bench.host.time.time_ms() + 5_000, 5_000)
    access.source.begin(0)
    bench.host.opened()
    access.source.advance(2)
    assert offsets(bench) == []
    bench.host.time.now_s += 5
    assert offsets(bench) == [0, 1]
    assert [(piece.attempt, piece.failures) for piece in bench.host.delivered] == [(2, 1), (1, 0)]


def test_a_move_begins_anew_with_the_consumers_there_are() -> None:
    """After a seek the consumers keep their keys, and messages in flight from before block nothing."""
    bench = keyed()
    bench.publish(b"x", b"x", key=b"a")
    assert offsets(bench) == [0, 1]
    bench.part(Moving).on_seek(Seek("0", ASKER, 1))
    assert offsets(bench) == []
    bench.host.consumers.release(1)
    assert offsets(bench) == [0, 1]
    assert bench.delivery.state()["keyed"] == 0


def test_so_much_is_in_flight_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message in flight is an entry here; at the limit no new message is read."""
    monkeypatch.setattr(module, "IN_FLIGHT_MAX", 2)
    bench = keyed()
    bench.publish(b"x", b"x", key=b"a")
    assert offsets(bench) == [0, 1]
    bench.publish(b"x", key=b"b")
    assert offsets(bench) == []
    assert bench.delivery.state()["tracked_full"] is True
    bench.part(Acknowledgments).on_acknowledged(Acknowledged(1, ((0, 2),), None, 2))
    assert offsets(bench) == [2]


def test_a_message_that_was_skipped_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are looked at together; where an operator had one skipped, the others are delivered."""
    bench = keyed()
    source = bench.part(LogAccess).source

    def sheet_at(offset: int) -> Sheet | None:
        batch = source.batch_at(offset)
        return None if offset in (2, 3) or batch is None else Sheet(copied(batch))

    monkeypatch.setattr(source, "sheet_at", sheet_at)  # as after the sheet was dropped
    for key in (b"a", b"b", b"c"):
        bench.publish(b"x", b"x", key=key)
    assert offsets(bench) == [0, 1, 4, 5]


def test_messages_expire_with_those_of_their_time() -> None:
    """Batches that are looked at together keep their own times, also when the topic has a time to live only later."""
    bench = keyed()
    bench.host.consumers.roster.set_credit(1, 1, 1 << 20)
    for key in (b"a", b"b", b"c"):
        bench.publish(b"x", b"x", key=key)
        bench.host.time.now_s += 2
    assert offsets(bench) == [0]
    bench.host.topic.settings["message_ttl_ms"] = 5_000
    for part in bench.host.parts:
        part.topic_updated()
    bench.host.consumers.roster.set_credit(1, 10, 1 << 20)
    bench.delivery.credited(1, 10)
    assert offsets(bench) == [2, 3, 4, 5]


def test_consumers_that_come_together_have_their_shares_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is brought to its consumers once for all that have come since it was last looked at."""
    bench = keyed()
    bench.publish(b"x", key=b"first")
    assert offsets(bench) == [0]
    changes: list[int] = []
    attach_all = GroupedLanes.attach_all

    def counted(lanes: GroupedLanes, members: list[Member]) -> None:
        changes.append(len(members))
        attach_all(lanes, members)

    monkeypatch.setattr(GroupedLanes, "attach_all", counted)
    for key in range(2, 6):
        bench.host.attach(key)
    for key in range(50):
        bench.publish(b"x", key=b"%d" % key)
    assert sorted(offsets(bench)) == list(range(1, 51))
    assert changes == [4]
    assert all(member.outstanding for member in bench.host.consumers.roster.members)


def test_who_holds_a_key_is_said() -> None:
    """`explain` names the consumer, and the messages waiting for the key."""
    bench = keyed(2)
    bench.publish(b"x", key=b"a")
    (first,) = offsets(bench)
    owner = next(member for member in bench.host.consumers.roster.members if member.outstanding)
    bench.host.consumers.roster.block(owner.key, True, "full")
    bench.delivery.detached(owner)  # its slots go to the other one, the key stays until it is done
    bench.publish(b"x", key=b"a")
    assert (first, offsets(bench)) == (0, [])
    (held,) = bench.delivery.state()["keys"]
    assert (held["key"], held["consumer"]) == ("a", owner.key)
