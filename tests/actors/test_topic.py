"""Tests of topics: order, receipts only for durable messages, duplicates and gaps, and failures of the disk."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from ister.actors.messages import Attach, Attached, Durable, Relayed, TopicFailed
from ister.actors.reliable_topic import ReliableTopic
from ister.actors.runtime import Address
from ister.actors.topic_log import BACKGROUND_COMMIT_S, REOPEN_DELAY_S
from ister.storage.producers import RECENT_BATCHES_MAX
from ister.wire import OFFSET_UNKNOWN, RECEIPTS_MAX, Key, Type
from tests.raw_client import batch
from tests.stage import Recorder, Stage, StagedClient


def fault(stage: Stage, operation: str, where: str) -> None:
    """From now on let an operation fail on files whose path contains `where`."""

    def happens(name: str, path: str) -> None:
        if name == operation and where in path:
            raise OSError(5, "Input/output error")

    stage.disk.on_operation = happens


def opened(stage: Stage, **settings: str) -> tuple[StagedClient, ReliableTopic]:
    """Create a topic and open it for publishing, as handle 1 of producer 7."""
    stage.client().request("topic.create", topic="orders", **settings)
    producer = stage.at_topic("orders")
    assert producer.open_producer(1, "orders", 7).kind == Type.OPENED
    topic = stage.actor("topic", "orders")
    return producer, topic


def watcher(stage: Stage, topic: ReliableTopic) -> Recorder:
    """Attach an actor that records the topic's mail."""
    topic.system.spawn(Recorder, "recorder")
    recorder = topic.system.find("recorder")
    assert isinstance(recorder, Recorder)
    topic.ref.tell(Attach(Address(topic.system.node, "recorder"), topic.meta))
    stage.settle()
    return recorder


# ---- where a producer stands -----------------------------------------------------------------------------------


@pytest.mark.requirement("8.1-3")
def test_where_a_producer_stands_is_told_once_it_is_durable(stage: Stage) -> None:
    """A restarted program continues after that sequence: it must survive a power failure right now."""
    older, topic = opened(stage)
    stage.loop.holds_work = True
    older.publish(1, 0, b"a", b"b")
    stage.settle()
    newer = stage.at_topic("orders")
    newer.say_open_producer(1, "orders", 7)
    stage.advance(1)
    assert newer.silent(0)
    older.publish(1, 2, b"c")  # the older producer is fenced
    refused = older.expect(Type.ERROR)
    assert (refused.code, refused.header[Key.CLOSED]) == ("producer-fenced", True)
    stage.loop.holds_work = False
    answer = newer.expect(Type.OPENED)
    assert answer.header[Key.SEQUENCE] == 2
    assert topic.intake.messages == 2
    newer.publish(1, 2, b"c")
    assert newer.receipt(1) == [(2, 2)]


def test_whoever_waits_to_hear_where_it_stands_hears_that_the_log_failed(stage: Stage) -> None:
    """The open is refused, and the client asks again."""
    older, _ = opened(stage)
    stage.loop.holds_work = True
    older.publish(1, 0, b"a")
    stage.settle()
    newer = stage.at_topic("orders")
    newer.say_open_producer(1, "orders", 7)
    stage.settle()
    stage.loop.do_work(error=OSError(5, "Input/output error"))
    stage.loop.holds_work = False
    refused = newer.expect(Type.ERROR)
    assert (refused.code, refused.header[Key.ACTION]) == ("log-failed", "retry")
    stage.advance(2 * REOPEN_DELAY_S)
    assert newer.open_producer(1, "orders", 7).kind == Type.OPENED


# ---- receipts --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("8.3-1")
def test_nothing_is_told_before_it_is_durable(stage: Stage) -> None:
    """While fdatasync runs, neither producer nor subscriptions are told of the messages it is to cover."""
    producer, topic = opened(stage)
    recorder = watcher(stage, topic)
    assert recorder.take(Attached) == [Attached(0, 0)]
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a", b"b")
    stage.advance(5)
    assert producer.silent(0)
    assert recorder.heard == []
    stage.loop.do_work()
    assert producer.receipt(1) == [(0, 0)]
    assert recorder.take(Durable) == [Durable(2)]


def test_one_commit_covers_what_came_before_it_and_one_receipt_tells_it(stage: Stage) -> None:
    """Batches that arrive during a commit share the next one, and each producer gets one RECEIPT."""
    producer, topic = opened(stage)
    other = stage.at_topic("orders")
    other.open_producer(5, "orders", 8)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"first")
    stage.settle()
    for number in range(1, 6):
        producer.publish(1, number, b"later")
        other.publish(5, number - 1, b"other")
    stage.settle()
    stage.loop.do_work()
    assert producer.receipt(1) == [(0, 0)]
    assert producer.silent(0)
    stage.loop.do_work()
    told = producer.receipt(1)
    assert [sequence for sequence, _ in told] == [1, 2, 3, 4, 5]
    assert sorted(offset for _, offset in told + other.receipt(5)) == list(range(1, 11))
    assert topic._log.commits == 2
    stage.loop.holds_work = False


def test_what_comes_after_a_commit_began_is_not_covered_by_it(stage: Stage) -> None:
    """A receipt is for what the finished fdatasync covered, not for what was written after it began."""
    producer, topic = opened(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"covered")
    stage.settle()
    producer.publish(1, 1, b"not covered")
    stage.settle()
    stage.loop.do_work()
    assert producer.receipt(1) == [(0, 0)]
    assert (topic.wal.durable_end, topic.wal.next_offset) == (1, 2)  # type: ignore[union-attr]
    assert producer.silent(0)
    stage.loop.do_work()
    assert producer.receipt(1) == [(1, 1)]
    stage.loop.holds_work = False


@pytest.mark.requirement("12-2")
def test_many_receipts_come_in_frames_of_bounded_size(stage: Stage) -> None:
    """A commit of thousands of batches makes no header larger than a client may accept."""
    producer, _ = opened(stage)
    stage.loop.holds_work = True
    for number in range(RECEIPTS_MAX + 50):
        producer.publish(1, number, b"x")
    stage.settle()
    stage.loop.holds_work = False
    pairs = producer.receipts(1, RECEIPTS_MAX + 50)
    assert pairs == {number: number for number in range(RECEIPTS_MAX + 50)}


def test_topics_in_the_page_cache_answer_at_once_and_sync_soon(stage: Stage) -> None:
    """With durability "os" a receipt does not wait for fdatasync, which follows within a second."""
    producer, topic = opened(stage, durability="os")
    recorder = watcher(stage, topic)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    assert producer.receipt(1) == [(0, 0)]
    assert recorder.take(Durable) == [Durable(1)]
    assert not stage.loop.work
    stage.advance(BACKGROUND_COMMIT_S)
    assert len(stage.loop.work) == 1
    stage.loop.do_work()
    assert topic.wal.durable_end == 1  # type: ignore[union-attr]
    stage.loop.holds_work = False


def test_a_lone_message_needs_no_length_table(stage: Stage) -> None:
    """One body frame is one message, as any client can send it; it may be empty."""
    producer, _ = opened(stage)
    for number, payload in enumerate((b"hello", b"")):
        producer.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: number}, payload)
    assert producer.receipts(1, 2) == {0: 0, 1: 1}
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    assert consumer.deliveries(1, 2) == [(0, b"hello"), (1, b"")]


# ---- sequences -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("8.3-3")
def test_a_resent_batch_is_stored_once_and_answered_with_its_offset(stage: Stage) -> None:
    """A duplicate gets the receipt of the original, however often it is sent."""
    producer, topic = opened(stage)
    producer.publish(1, 0, b"a", b"b")
    producer.publish(1, 2, b"c")
    assert producer.receipts(1, 2) == {0: 0, 2: 2}
    for _ in range(3):
        producer.publish(1, 0, b"a", b"b")
        assert producer.receipt(1) == [(0, 0)]
    assert topic.intake.messages == 3


def test_a_duplicate_of_what_is_not_durable_yet_waits_for_it(stage: Stage) -> None:
    """The receipt of a resend is as good as any other."""
    producer, _ = opened(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    producer.publish(1, 0, b"a")
    stage.settle()
    assert producer.silent(0)
    stage.loop.do_work()
    assert producer.receipt(1) == [(0, 0), (0, 0)]
    stage.loop.holds_work = False


@pytest.mark.requirement("8.3-4")
def test_a_duplicate_whose_offset_is_forgotten_waits_for_everything(stage: Stage) -> None:
    """Where the offset of the original is forgotten, everything written so far must be durable."""
    producer, topic = opened(stage)
    stage.loop.holds_work = True
    batches = RECENT_BATCHES_MAX + 50
    for number in range(batches):
        producer.publish(1, number, b"x")
    stage.settle()
    producer.publish(1, 0, b"x")
    stage.settle()
    stage.loop.do_work()  # the commit of the first turn, which read 64 batches from the socket
    early: list[tuple[int, int]] = []
    while not producer.silent(0):
        early += producer.receipt(1)
    assert 0 < len(early) < batches
    assert (0, OFFSET_UNKNOWN) not in early
    stage.loop.holds_work = False
    assert producer.receipts(1, batches + 1 - len(early))[0] == OFFSET_UNKNOWN
    assert topic.intake.messages == batches


@pytest.mark.requirement("8.2-1")
def test_a_gap_is_refused_and_says_what_is_expected(stage: Stage) -> None:
    """A batch whose predecessor is missing is not stored: the order would be lost for good."""
    producer, topic = opened(stage)
    producer.publish(1, 3, b"too early")
    refused = producer.expect(Type.ERROR, handle=1)
    assert (refused.code, refused.header[Key.SEQUENCE], refused.header[Key.ACTION]) == (
        "sequence-gap",
        3,
        "retry",
    )
    assert "(0)" in refused.header[Key.TEXT]
    assert topic.intake.messages == 0
    producer.publish(1, 0, b"a", b"b", b"c")
    producer.publish(1, 3, b"now")
    assert producer.receipts(1, 2) == {0: 0, 3: 3}


@pytest.mark.requirement("8.3-6")
def test_a_resend_that_was_cut_differently_is_refused(stage: Stage) -> None:
    """A batch of which a part is stored can neither be stored nor be confirmed."""
    producer, topic = opened(stage)
    producer.publish(1, 0, b"a", b"b")
    producer.receipt(1)
    producer.publish(1, 1, b"b", b"c")
    refused = producer.expect(Type.ERROR, handle=1)
    assert (refused.code, refused.header[Key.ACTION]) == ("sequence-overlap", "stop")
    assert topic.intake.messages == 2


def test_numbers_at_the_edge_of_64_bits_hurt_nobody(stage: Stage) -> None:
    """Producer ids and sequences may be any 64-bit numbers; the topic stays intact."""
    producer, topic = opened(stage)
    last = (1 << 64) - 1
    for handle, (producer_id, sequence) in enumerate([(last, 0), (1 << 63, last), (9, last - 1)], 10):
        assert producer.open_producer(handle, "orders", producer_id, sequence).kind == Type.OPENED
        producer.publish(handle, sequence, b"x", b"y")
        assert producer.expect(Type.RECEIPT, Type.ERROR, handle=handle)
        assert producer.open_producer(handle, "orders", producer_id, sequence).kind == Type.OPENED
    producer.publish(1, 0, b"still here")
    assert producer.receipt(1)
    assert stage.actor("topic", "orders") is topic


def test_an_open_producer_hears_what_to_go_on_with(stage: Stage) -> None:
    """OPENED has the next sequence: after those stored, or those the producer calls resolved, if that is more."""
    producer, _ = opened(stage)
    producer.publish(1, 0, b"a", b"b")
    producer.receipt(1)
    assert producer.open_producer(1, "orders", 7, 0).header[Key.SEQUENCE] == 2
    assert producer.open_producer(1, "orders", 7, 5).header[Key.SEQUENCE] == 5
    producer.publish(1, 5, b"c")
    assert producer.receipt(1) == [(5, 2)]


@pytest.mark.requirement("8.1-6")
def test_a_newer_producer_of_the_same_id_fences_the_older(stage: Stage) -> None:
    """Two producers of one id would mix their sequences: the newer one counts, and the older is told."""
    older, _ = opened(stage)
    newer = stage.at_topic("orders")
    assert newer.open_producer(1, "orders", 7).kind == Type.OPENED
    fenced = older.expect(Type.ERROR, handle=1)
    assert (fenced.code, fenced.header[Key.CLOSED], fenced.header[Key.ACTION]) == (
        "producer-fenced",
        True,
        "stop",
    )
    older.publish(1, 0, b"late")
    assert older.expect(Type.ERROR, handle=1).code == "unknown-handle"
    newer.publish(1, 0, b"x")
    assert newer.receipt(1) == [(0, 0)]


def test_a_handle_that_opens_for_another_producer_gives_up_the_first(stage: Stage) -> None:
    """A new producer with the handle's earlier id fences nobody."""
    producer, topic = opened(stage)
    assert producer.open_producer(1, "orders", 8).kind == Type.OPENED
    assert list(topic.publishers.handles) == [8]
    other = stage.at_topic("orders")
    assert other.open_producer(1, "orders", 7).kind == Type.OPENED
    producer.publish(1, 0, b"x")
    assert producer.receipt(1) == [(0, 0)]


# ---- closing ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("8.5-1")
def test_close_is_answered_after_the_receipts_of_what_came_before(stage: Stage) -> None:
    """DONE means that everything before it was answered."""
    producer, topic = opened(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    producer.say({Key.TYPE: Type.CLOSE, Key.REF: 40, Key.HANDLE: 1})
    stage.settle()
    assert producer.silent(0)
    stage.loop.holds_work = False
    assert producer.hear().header[Key.TYPE] == Type.RECEIPT  # type: ignore[union-attr]
    assert producer.hear().header[Key.TYPE] == Type.DONE  # type: ignore[union-attr]
    assert topic.publishers.handles == {}
    assert producer.close_handle(1).code == "unknown-handle"


def test_close_is_answered_when_the_log_fails_before_its_receipts(stage: Stage) -> None:
    """A producer that closes while the disk fails gets an error for its batch, and then DONE."""
    producer, _ = opened(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    producer.say({Key.TYPE: Type.CLOSE, Key.REF: 40, Key.HANDLE: 1})
    stage.settle()
    stage.loop.do_work(error=OSError(5, "Input/output error"))
    stage.loop.holds_work = False
    refused = producer.hear()
    assert refused is not None
    assert (refused.code, refused.header[Key.SEQUENCE]) == ("log-failed", 0)
    assert producer.expect(Type.DONE, ref=40)


@pytest.mark.parametrize("end", ["deleted", "failed"])
def test_close_is_answered_when_the_topic_ends_before_its_receipts(stage: Stage, end: str) -> None:
    """Whatever happens to the topic meanwhile, DONE is sent."""
    stage.expects_failures = True
    producer, topic = opened(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    producer.say({Key.TYPE: Type.CLOSE, Key.REF: 1 << 40, Key.HANDLE: 1})
    stage.settle()
    if end == "deleted":
        stage.client().request("topic.delete", topic="orders")
    else:
        topic.fail(RuntimeError("a mistake"))
    assert producer.expect(Type.ERROR, handle=1).header[Key.CLOSED] is True
    assert producer.expect(Type.DONE, ref=1 << 40)
    stage.loop.holds_work = False


# ---- a disk that fails -----------------------------------------------------------------------------------------


def test_a_failed_sync_is_an_error_to_producers_and_no_receipt(stage: Stage) -> None:
    """After a failed fdatasync nothing it was to cover counts; the log is opened again, and resends are exact."""
    producer, topic = opened(stage)
    recorder = watcher(stage, topic)
    producer.publish(1, 0, b"kept")
    producer.receipt(1)
    recorder.heard.clear()
    stage.loop.holds_work = True
    producer.publish(1, 1, b"b")
    producer.publish(1, 2, b"c")
    stage.settle()
    stage.loop.do_work(error=OSError(5, "Input/output error"))
    stage.loop.holds_work = False
    for sequence in (1, 2):
        refused = producer.expect(Type.ERROR, handle=1)
        assert (refused.code, refused.header[Key.SEQUENCE]) == ("log-failed", sequence)
        assert refused.header[Key.ACTION] == "retry"
    assert [each.code for each in recorder.take(TopicFailed)] == ["log-failed"]
    producer.publish(1, 1, b"b")
    assert (
        producer.expect(Type.ERROR, handle=1).code == "log-failed"
    )  # it accepts nothing until the log is opened again
    assert producer.open_producer(2, "orders", 8).code == "log-failed"
    stage.advance(REOPEN_DELAY_S)
    assert recorder.take(Attached)
    producer.publish(1, 1, b"b")
    producer.publish(1, 2, b"c")
    producer.publish(1, 3, b"d")
    assert producer.receipts(1, 3) == {1: 1, 2: 2, 3: 3}
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    assert consumer.deliveries(1, 4) == list(enumerate([b"kept", b"b", b"c", b"d"]))


def test_a_write_that_fails_fails_what_was_not_durable_too(stage: Stage) -> None:
    """The batch that met the error, and those before it without a receipt, are refused together."""
    producer, topic = opened(stage)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    stage.settle()
    fault(stage, "write", "/topics/")
    producer.publish(1, 1, b"b")
    stage.settle()
    sequences = {producer.expect(Type.ERROR, handle=1).header[Key.SEQUENCE] for _ in range(2)}
    assert sequences == {0, 1}
    stage.disk.on_operation = None
    stage.advance(3 * REOPEN_DELAY_S)  # the running commit keeps the log from being opened again
    assert topic.wal is None
    stage.loop.holds_work = False
    stage.advance(2 * REOPEN_DELAY_S)
    producer.publish(1, 0, b"a")
    producer.publish(1, 1, b"b")
    assert producer.receipts(1, 2) == {0: 0, 1: 1}


def test_a_producer_is_not_forgotten_when_a_log_without_it_is_opened_again(stage: Stage) -> None:
    """A later batch that was sent before must not be taken before those that were refused.

    It would make the resend of the refused batches look like duplicates: receipts for messages that do not exist.
    """
    producer, _ = opened(stage)
    fault(stage, "sync", "/topics/")
    producer.publish(1, 0, b"a")
    assert producer.expect(Type.ERROR, handle=1).code == "log-failed"
    stage.disk.on_operation = None
    for name in [name for name in stage.disk._names if "/topics/" in name]:
        del stage.disk._names[name]  # nothing of it reached the disk
    stage.advance(REOPEN_DELAY_S)
    producer.publish(1, 1, b"sent before the error was heard")
    assert producer.expect(Type.ERROR, Type.RECEIPT, handle=1).code == "sequence-gap"
    producer.publish(1, 0, b"a")
    producer.publish(1, 1, b"b")
    assert producer.receipts(1, 2) == {0: 0, 1: 1}


def test_a_log_that_comes_back_shorter_than_what_was_acknowledged_is_damage(stage: Stage) -> None:
    """A reopened log must reach the last offset with a receipt; offsets are not given out twice."""
    producer, _ = opened(stage)
    for number in range(3):
        producer.publish(1, number, b"x")
        producer.receipt(1)
    stage.loop.holds_work = True
    producer.publish(1, 3, b"x")
    stage.settle()
    stage.loop.do_work(error=OSError(5, "Input/output error"))
    stage.loop.holds_work = False
    producer.expect(Type.ERROR, handle=1)
    for name in [name for name in stage.disk._names if "/topics/" in name]:
        del stage.disk._names[name]
    stage.advance(2 * REOPEN_DELAY_S)
    assert producer.open_producer(2, "orders", 8).kind == Type.OPENED
    producer.publish(2, 0, b"y")
    assert producer.receipt(2) == [(0, 3)]
    stage.start_tier()  # which messages are lost is known once the store has been asked
    stage.advance(10)
    damaged = stage.client().request("topic.show", topic="orders")["damaged"]
    assert [each[:2] for each in damaged] == [[0, 3]]


def test_a_full_disk_refuses_publishes_and_nothing_else(stage: Stage) -> None:
    """Without space a batch is refused as if never sent; deliveries and acknowledgments go on; publishing resumes with
    space.
    """
    producer, topic = opened(stage)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    producer.publish(1, 0, b"before")
    producer.receipt(1)
    stage.settle()
    stage.disk.room = 64 << 10
    sequence = 1
    while True:
        producer.publish(1, sequence, bytes(20_000))
        answer = producer.expect(Type.RECEIPT, Type.ERROR, handle=1)
        if answer.kind == Type.ERROR:
            break
        sequence += 1
    assert (answer.code, answer.header[Key.ACTION], answer.header[Key.SEQUENCE]) == (
        "disk-full",
        "retry",
        sequence,
    )
    producer.publish(1, sequence + 1, b"behind it")
    assert producer.expect(Type.RECEIPT, Type.ERROR, handle=1).code == "sequence-gap"
    assert len(consumer.deliveries(1, sequence)) == sequence
    consumer.ack(1, (0, 1), confirm=False)
    stage.advance(1)
    assert stage.client().request("subscription.show", topic="orders", subscription="s")["cursor"] == 1
    stage.disk.room = None
    producer.publish(1, sequence, b"now")
    assert producer.receipt(1) == [(sequence, sequence)]
    assert topic.wal is not None


def test_a_batch_over_what_a_segment_holds_is_refused_alone(make_stage: Callable[..., Stage]) -> None:
    """The batch fails for good, the producer must open again after it, and the log is intact."""
    stage = make_stage(1)
    producer, topic = opened(stage)
    producer.publish(1, 0, *[bytes(4 << 20)] * 2)
    assert producer.expect(Type.ERROR, handle=1).code == "batch-too-large"
    producer.publish(1, 2, b"next")
    assert producer.expect(Type.ERROR, handle=1).code == "sequence-gap"
    assert producer.open_producer(1, "orders", 7, 2).kind == Type.OPENED
    producer.publish(1, 2, b"next")
    assert producer.receipt(1) == [(2, 0)]
    assert topic.wal is not None


# ---- ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False])
def test_a_worker_that_ends_keeps_what_was_acknowledged(stage: Stage, in_order: bool) -> None:
    """After a stop or a kill, offsets continue, and resends are recognised."""
    producer, _ = opened(stage)
    for number in range(5):
        producer.publish(1, number, b"%d" % number)
    producer.receipts(1, 5)
    (stage.stop if in_order else stage.kill)(producer.worker)
    stage.start(producer.worker)
    again = stage.at_topic("orders")
    assert again.boot != producer.boot
    assert again.open_producer(1, "orders", 7, 3).header[Key.SEQUENCE] == 5
    again.publish(1, 3, b"3")
    again.publish(1, 4, b"4")
    again.publish(1, 5, b"5")
    assert again.receipts(1, 3) == {3: 3, 4: 4, 5: 5}


def test_a_deleted_topic_leaves_no_file_and_no_open_one(stage: Stage) -> None:
    """Whatever runs on the log when its topic is deleted, in the end no file of it is left or open."""
    producer, topic = opened(stage)
    producer.publish(1, 0, b"a")
    producer.receipt(1)
    stage.loop.holds_work = True
    producer.publish(1, 1, b"not durable yet")
    stage.settle()
    client = stage.client()
    client.request("topic.delete", topic="orders")
    assert producer.expect(Type.ERROR, handle=1).code == "topic-deleted"
    assert stage.actors("topic") == []
    assert stage.disk.open_files > 0
    stage.loop.holds_work = False
    stage.settle()
    assert stage.disk.open_files == 0
    assert stage.disk._names == {}
    assert producer.unread == []
    assert topic.inbox.closed


def test_a_log_that_cannot_be_erased_yet_is_erased_later(stage: Stage) -> None:
    """A file that is still being made in the folder delays the deletion, not the answer."""
    producer, _ = opened(stage)
    producer.publish(1, 0, b"a")
    producer.receipt(1)
    fault(stage, "unlink", "/topics/")
    stage.client().request("topic.delete", topic="orders")
    assert stage.disk._names
    stage.disk.on_operation = None
    stage.advance(1)
    assert stage.disk._names == {}


def test_a_topic_that_fails_lets_go_of_its_log(stage: Stage) -> None:
    """A bug in a topic closes its clients' handles; its log is closed when its commit has ended."""
    stage.expects_failures = True
    producer, topic = opened(stage)
    recorder = watcher(stage, topic)
    stage.loop.holds_work = True
    producer.publish(1, 0, b"a")
    stage.settle()
    recorder.heard.clear()
    topic.fail(RuntimeError("a mistake"))
    stage.settle()
    assert [each.code for each in recorder.take(TopicFailed)] == ["unavailable"]
    stage.loop.holds_work = False
    stage.settle()
    assert stage.disk.open_files == 0
    assert producer.open_producer(1, "orders", 7).kind == Type.OPENED
    producer.publish(1, 0, b"a")
    assert producer.expect(Type.RECEIPT, handle=1).header[Key.RECEIPTS] == [0, 0]


def test_a_log_is_not_opened_while_its_last_owner_still_commits(stage: Stage) -> None:
    """A commit that seals cuts its file to length: messages appended meanwhile by another owner would be lost."""
    stage.expects_failures = True
    producer, topic = opened(stage)
    producer.publish(1, 0, b"sealed")
    producer.receipt(1)
    stage.loop.holds_work = True
    stage.advance(61)  # sealed by age; the commit that does it hangs
    assert stage.loop.work
    topic.fail(RuntimeError("a mistake"))
    producer = stage.at_topic("orders")
    refused = producer.open_producer(1, "orders", 7, 1)
    assert (refused.code, refused.header[Key.ACTION]) == ("log-failed", "retry")
    stage.loop.holds_work = False
    stage.advance(2 * REOPEN_DELAY_S)
    assert producer.open_producer(1, "orders", 7, 1).kind == Type.OPENED
    for number in range(1, 4):
        producer.publish(1, number, b"behind it")
        producer.receipt(1)
    stage.restart(2)
    consumer = stage.at_subscription("orders", "s")
    consumer.open_consumer(1, "orders", "s")
    assert len(consumer.deliveries(1, 4)) == 4


# ---- non-reliable ----------------------------------------------------------------------------------------------


def test_a_non_reliable_topic_sends_each_worker_a_batch_once(stage: Stage) -> None:
    """However many subscriptions a worker has, each batch goes to it once, unchanged, with others of the same turn."""
    producer, _ = opened(stage, dispatch="non-reliable")
    topic = stage.actor("topic", "orders")
    recorder = watcher(stage, topic)
    frames = batch([b"a", b"bb"], [b"k", b""])
    producer.say({Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0, Key.COLUMNS: 1}, *frames)
    producer.publish(1, 2, b"c")
    assert producer.receipts(1, 2) == {0: 0, 2: 2}
    (relayed,) = recorder.take(Relayed)
    assert [bytes(frame) for frame in relayed.frames] == [*frames, struct.pack("<I", 1), b"c"]
    assert relayed.heads[0::4] == [0, 2]
    assert relayed.heads[1::4] == [2, 1]
    assert relayed.heads[3::4] == [1, 0]


def test_a_non_reliable_topic_knows_its_duplicates_too(stage: Stage) -> None:
    """A resend after a reconnect is not published twice; what was lost on the way is lost."""
    producer, _ = opened(stage, dispatch="non-reliable")
    topic = stage.actor("topic", "orders")
    producer.publish(1, 0, b"a")
    producer.publish(1, 0, b"a")
    producer.publish(1, 5, b"f")
    assert producer.receipts(1, 2) == {0: 0, 5: 1}
    assert topic.intake.messages == 2
    producer.publish(1, 5, b"f", b"g")
    assert producer.expect(Type.ERROR, handle=1).code == "sequence-overlap"
