"""Tests of an Uploader's parts: retries of its writer, what the store has, settings, cursors, retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ister.actors.runtime import Address, LoopActor
from ister.actors.store_writer import StoreWriter
from ister.actors.stored_cursors import CURSORS_GATHER_S, Farewell, StoredCursors
from ister.actors.stored_history import StoredHistory, piece_of
from ister.actors.stored_retention import TRIM_AGAIN_S, TRIM_CHECK_S, StoredRetention
from ister.actors.stored_settings import StoredSettings
from ister.actors.threads import Purpose
from ister.errors import StoreError
from ister.storage.claiming import claim
from ister.storage.continuing import AheadError, FencedError
from ister.storage.folderstore import FolderStore
from ister.storage.history import History, Piece, StoredSegment
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.storage.numbered_objects import put_cursor
from ister.storage.objectstore import ObjectStore
from ister.storage.segment import SegmentInfo

TOPIC = TopicMeta("orders", bytes(16), "reliable", "fsync", 1)
BILLING = SubscriptionMeta("orders", "billing", "shared", "latest", 1, {})
AWAY = StoreError("no network")


class Host:
    """An actor of a test: calls to the store wait until they are made, time until it passes."""

    def __init__(self, store: ObjectStore) -> None:
        self.now_s = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.calls: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []
        self.heard: list[str] = []
        self.path = "uploader/orders"
        steps = SimpleNamespace(watch=lambda _path, _call: None, unwatch=lambda _path: None)
        self.system = SimpleNamespace(random=Random(1), clock_steps=steps)
        self.clock = SimpleNamespace(monotonic=lambda: self.now_s, time_ms=lambda: int(self.now_s * 1000))
        self.writer = StoreWriter(cast(LoopActor, self), self, TOPIC, store, retry_ms=(1000, 8000))
        claimed = claim(store, TOPIC, self.writer.identity, 0, lambda _: None, broker="ours")
        self.writer.epoch = claimed.epoch

    def offload(self, work: Any, done: Any, purpose: Purpose) -> None:
        assert purpose is Purpose.STORE
        self.calls.append((work, done))

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        timer = (self.now_s + delay_s, call)
        self.timers.append(timer)

        def cancel() -> None:
            self.timers = [each for each in self.timers if each is not timer]

        return SimpleNamespace(due=timer[0], cancel=cancel)

    def writer_is_behind(self, error: AheadError) -> None:
        self.heard.append(f"behind {error.end}")

    def writer_stopped(self) -> None:
        self.heard.append("stopped")

    def writer_waits(self, why: str) -> None:
        self.heard.append(f"waits: {why}")

    def writer_goes_on(self) -> None:
        self.heard.append("goes on")

    def call_ended(self) -> None:
        self.heard.append("ended")

    def make(self, error: BaseException | None = None) -> None:
        """Make the call that has waited longest, or let it fail."""
        work, done = self.calls.pop(0)
        if error is None:
            done(work(), None)
        else:
            done(None, error)

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        due = [call for due_s, call in self.timers if due_s <= self.now_s]
        self.timers = [each for each in self.timers if each[0] > self.now_s]
        for call in due:
            call()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return a store in a folder."""
    return FolderStore(str(tmp_path))


@pytest.fixture
def host(store: FolderStore) -> Host:
    """Return an actor whose writer has claimed its topic."""
    return Host(store)


# ---- the writer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "deletes", "heard", "may_begin"),
    [
        (AWAY, False, "waits: x: no network", False),
        (OSError("odd"), False, "waits: x: odd", False),
        (AheadError("it has more", 70), False, "behind 70", True),
        (FencedError("another has it"), False, "stopped", False),
        (StoreError("differs", code="object-differs", action="stop"), False, "stopped", False),
        (AWAY, True, "waits: x: no network", False),
        (
            FencedError("another has it"),
            True,
            "waits: x: another has it",
            False,
        ),  # a deletion is retried for ever
        (AheadError("it has more", 70), True, "waits: x: it has more", False),
    ],
)
def test_what_becomes_of_a_failure(
    host: Host, error: BaseException, deletes: bool, heard: str, may_begin: bool
) -> None:
    """It passes, or needs a person, or the topic is to repeat what it has."""
    host.writer.deletes = deletes
    host.writer.failed("x", error)
    assert (host.heard, host.writer.may_begin, host.writer.failure) == ([heard], may_begin, f"x: {error}")


def test_waits_grow_and_there_is_one_at_a_time(host: Host) -> None:
    """From half to all of one, two, four and eight seconds, never more; after a success they start again at one."""
    waits = []
    for _ in range(30):
        host.writer.failed("x", AWAY)
        host.writer.failed("y", AWAY)
        ((due_s, _),) = host.timers
        waits.append(due_s - host.now_s)
        host.passes(20)
    bounds = [1, 2, 4, *[8] * 27]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert len(set(waits)) > 20
    host.writer.worked()
    host.writer.failed("x", AWAY)
    assert host.timers[0][0] - host.now_s <= 1
    assert host.heard.count("goes on") == 30


def test_what_stopped_stays_stopped(host: Host) -> None:
    """A later failure is reported, and changes nothing."""
    host.writer.failed("x", FencedError("another has it"))
    host.writer.failed("y", AWAY)
    assert (host.heard, host.writer.waits, host.writer.ended) == (["stopped"], False, True)


def test_every_call_ends_once(host: Host) -> None:
    """With its result or its error; then callers that wait for no running calls are told."""
    found: list[object] = []
    for _ in range(2):
        host.writer.do(lambda: 7, found.append, found.append)
    assert host.writer.under_way == 2
    host.make()
    host.make(AWAY)
    assert (found, host.writer.under_way, host.heard) == ([7, AWAY], 0, ["ended", "ended"])


# ---- what the store has ------------------------------------------------------------------------------------------


def stored(first: int, end: int, *, damaged: bool = False) -> Piece:
    """Return an object of ten bytes per message."""
    segment = StoredSegment(f"s/{first}", first, end, 1, 10 * (end - first), 5, 6, damaged)
    return Piece(segment, first, end)


def segment(first: int, end: int) -> SegmentInfo:
    """Return a segment of a log."""
    return SegmentInfo(f"{first}.seg", first, end, 10 * (end - first), 5, 6, end - first, 0)


def test_a_history_begins_with_what_was_listed() -> None:
    """Without the objects that do not count because the claim begins below them."""
    listed = History(10, 60, (stored(10, 20), stored(30, 60)), trimmed=10)
    history = StoredHistory("orders", listed, 50, 2)
    assert history.told() == (10, 50, ((20, 30),), ())
    assert [(each.base, each.end) for each in history.segments()] == [(10, 20), (30, 50)]


def test_the_watermark_waits_for_what_is_before_it() -> None:
    """A segment that arrives out of order counts once it joins."""
    history = StoredHistory("orders", History(0, 0, ()), 0, 3)
    segments = [segment(0, 10), segment(10, 20), segment(20, 30)]
    for each in segments:
        history.plan.begin(each)
    for at, watermark in ((1, 0), (0, 20), (2, 30)):
        history.uploaded(piece_of(segments[at], f"s/{at}", segments[at].base, 1, damaged=at == 1))
        assert history.watermark == watermark
    assert history.told() == (0, 30, (), ((10, 20),))
    assert history.objects_below(20) == ["s/0", "s/1"]


def test_what_the_log_has_lost_is_passed(caplog: pytest.LogCaptureFixture) -> None:
    """When the watermark gets there, the lost range becomes a gap, which is reported."""
    history = StoredHistory("orders", History(0, 0, ()), 0, 1)
    history.pass_gaps(((10, 15),))
    assert (history.watermark, history.gaps) == (0, ())
    first = segment(0, 10)
    history.plan.begin(first)
    history.uploaded(piece_of(first, "s/0", 0, 1))
    history.pass_gaps(((10, 15),))
    history.pass_gaps(((10, 15),))
    assert (history.watermark, history.gaps) == (15, ((10, 15),))
    assert "offsets 10 to before 15 are lost" in caplog.text


def test_a_cut_and_a_survey_change_where_it_begins() -> None:
    """A gap below the new beginning is none any more."""
    history = StoredHistory("orders", History(0, 40, (stored(0, 10), stored(20, 40))), 40, 1)
    assert history.gaps == ((10, 20),)
    history.cut(15)
    assert (history.start, history.gaps) == (15, ((15, 20),))
    history.surveyed(History(20, 30, (stored(20, 30),), trimmed=20), 40)
    assert (history.start, history.gaps) == (20, ((30, 40),))


# ---- settings ----------------------------------------------------------------------------------------------------


def test_who_asks_is_answered_once_the_store_has_the_settings(host: Host) -> None:
    """The settings are the Directory's last; if they change meanwhile, the new ones are stored as well."""
    answered: list[int] = []
    settings = StoredSettings(host.writer, answer=lambda _, ticket: answered.append(ticket))
    settings.ask(Address("broker", "directory"), 1)
    settings.store()
    settings.store()
    assert (len(host.calls), answered) == (1, [])
    host.writer.topic = replace(TOPIC, settings={"retention_ms": 5000})
    host.make()
    assert (len(host.calls), answered, settings.are_stored) == (1, [], False)
    host.make()
    assert (host.calls, answered, settings.are_stored) == ([], [1], True)


def test_settings_wait_for_a_writer_that_may_write(host: Host) -> None:
    """Whether a failed write is in the store is unknown: the next has another number."""
    settings = StoredSettings(host.writer, answer=lambda *_: None)
    host.writer.epoch = None
    settings.store()
    assert host.calls == []
    host.writer.epoch = 1
    settings.store()
    host.make(AWAY)
    settings.store()
    assert (host.calls, settings.are_stored) == ([], False)
    host.passes(2)
    settings.store()
    host.make()
    assert settings.are_stored


# ---- cursors -----------------------------------------------------------------------------------------------------


class Cursors:
    """The cursors of a topic, and what they asked for."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.claimed = True
        self.consulted = 0
        self.cursors = StoredCursors(
            cast(LoopActor, host), host.writer, claim_first=lambda: self.claimed, consult=self.consult
        )

    def consult(self) -> None:
        self.consulted += 1

    def names(self) -> list[str]:
        """Return the subscriptions that have cursors in the store, once for each cursor."""
        found = self.host.writer.store.list("v1/d/")
        return sorted(info.name.split("/c/")[1].split("/")[0] for info in found if "/c/" in info.name)


@pytest.fixture
def cursors(host: Host) -> Cursors:
    """Return the cursors of a topic."""
    return Cursors(host)


def test_what_comes_together_is_stored_together(cursors: Cursors) -> None:
    """The last one of each subscription; those that come meanwhile wait for the next round."""
    host = cursors.host
    for journal in (b"a", b"b"):
        cursors.cursors.keep(BILLING, journal)
    cursors.cursors.keep(replace(BILLING, name="audit"), b"c")
    host.passes(CURSORS_GATHER_S)
    cursors.cursors.keep(BILLING, b"d")
    host.passes(CURSORS_GATHER_S)
    assert len(host.calls) == 1
    host.make()
    assert cursors.names() == ["audit", "billing"]
    host.passes(CURSORS_GATHER_S)
    host.make()
    assert (cursors.names(), host.calls) == (["audit", "billing"], [])


def test_a_round_that_failed_is_made_again(cursors: Cursors) -> None:
    """With newer cursors, and without subscriptions deleted meanwhile."""
    host = cursors.host
    cursors.cursors.keep(BILLING, b"a")
    cursors.cursors.keep(replace(BILLING, name="audit"), b"b")
    host.passes(CURSORS_GATHER_S)
    cursors.cursors.forget("audit")
    host.make(AWAY)
    host.passes(2)
    cursors.cursors.soon()
    host.passes(CURSORS_GATHER_S)
    host.make()
    assert cursors.names() == ["billing"]


def test_nothing_is_stored_before_an_epoch_is_ours(cursors: Cursors) -> None:
    """The writer claims the topic again."""
    cursors.claimed = False
    cursors.cursors.keep(BILLING, b"a")
    cursors.host.passes(CURSORS_GATHER_S)
    assert cursors.host.calls == []
    cursors.claimed = True
    cursors.cursors.soon()
    cursors.host.passes(CURSORS_GATHER_S)
    assert len(cursors.host.calls) == 1


def test_strangers_are_deleted_when_the_catalogue_does_not_have_them(cursors: Cursors) -> None:
    """Cursors of subscriptions that were deleted while the mail was lost; the Directory is asked about them."""
    host = cursors.host
    for name in ("old", "kept"):
        put_cursor(host.writer.store, TOPIC, replace(BILLING, name=name), 1, 0, b"x")
    cursors.cursors.look_for_strangers()
    host.make()
    assert cursors.consulted == 1
    cursors.cursors.look_for_strangers()
    assert host.calls == []
    cursors.cursors.catalogue_has(["kept", "other"])
    host.passes(CURSORS_GATHER_S)
    host.make()
    assert cursors.names() == ["kept"]


@pytest.mark.parametrize(
    ("epoch", "failure", "left_s", "stores"),
    [(1, None, 3.0, True), (None, None, 3.0, False), (1, "no network", 3.0, False), (1, None, 0.0, False)],
)
def test_the_last_cursors_are_stored_if_the_store_has_answered_lately(
    cursors: Cursors, epoch: int | None, failure: str | None, left_s: float, stores: bool
) -> None:
    """A broker that stops in order does not wait for a store that is away."""
    cursors.cursors.keep(BILLING, b"a")
    cursors.host.writer.epoch, cursors.host.writer.failure = epoch, failure
    cursors.cursors.store_last(Farewell(left_s))
    assert cursors.names() == ["billing"] * stores


# ---- retention ---------------------------------------------------------------------------------------------------


def test_the_store_is_cut_by_what_the_directory_says_then(host: Host) -> None:
    """And not before the store has these settings; once a minute at most."""
    asked: list[float] = []
    cut: list[int] = []
    settings = StoredSettings(host.writer, answer=lambda *_: None)
    retention = StoredRetention(
        cast(LoopActor, host),
        host.writer,
        settings,
        consult=lambda: asked.append(host.now_s),
        on_cut=lambda: cut.append(history.start),
    )
    history = StoredHistory("orders", History(0, 40, (stored(0, 10), stored(10, 40))), 40, 1)
    host.writer.topic = replace(TOPIC, settings={"retention_ms": 1000})
    retention.look_soon()
    host.passes(TRIM_CHECK_S)
    retention.claimed(history)
    host.passes(TRIM_CHECK_S)
    retention.heard()
    assert (asked, host.calls) == ([], [])  # the store has other settings
    settings.store()
    host.make()
    host.passes(TRIM_CHECK_S)
    assert len(asked) == 1
    retention.heard()
    retention.heard()
    host.passes(TRIM_CHECK_S)
    assert len(host.calls) == 1
    host.make(AWAY)
    assert (history.start, cut) == (0, [])
    host.passes(TRIM_AGAIN_S)
    host.passes(TRIM_CHECK_S)
    host.writer.topic = TOPIC  # retention was removed meanwhile
    retention.heard()
    assert host.calls == []
    host.writer.topic = replace(TOPIC, settings={"retention_ms": 1000})
    host.passes(TRIM_CHECK_S)
    retention.heard()
    host.make()
    assert (history.start > 0, cut) == (True, [history.start])
