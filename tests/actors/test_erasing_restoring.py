"""Tests of deleting and restoring topics step by step, with processes missing and answers in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ister.actors.addresses import FETCHER_PATH, RESTORER_PATH, TIER
from ister.actors.directory.erasing import DELETE_AGAIN_S, Erasing
from ister.actors.directory.gathering import ANSWER_WITHIN_S, Gatherings
from ister.actors.directory.homes import Homes
from ister.actors.directory.restoring import ENTER_AGAIN_S, Restoring
from ister.actors.messages import (
    Answer,
    DropCache,
    Erased,
    EraseStored,
    LogErased,
    NotRestored,
    Refused,
    Restored,
    RestoreTopics,
    StoredTopics,
    SubscriptionTask,
    TakeOver,
    TopicTask,
)
from ister.actors.patience import NotYetError
from ister.actors.registry import Registry
from ister.actors.runtime import Address, System
from ister.errors import IsterError, StorageError
from ister.storage.catalogue import Catalogue
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.wire import decode_result, encode_result

ME = Address("broker", "directory")
ASKER = Address("worker-1", "frontend")
ASKED = 9
ORDERS = TopicMeta("orders", b"\x01" * 16, "reliable", "fsync", 5)  # lives on worker-0
BILLING = SubscriptionMeta("orders", "billing", "shared", "latest", 6, {})  # on worker-3
RESTORER = Address(TIER, RESTORER_PATH)


class Broker:
    """The two parts with what they need, a catalogue of their own, and mail that is recorded."""

    def __init__(self, path: str, *, waits_for_store: bool = False) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.told: list[tuple[Address, Any]] = []
        self.heard: list[str] = []  # of the callbacks
        self.catalogue = Catalogue(path)
        self.registry = Registry(self.catalogue, 1)
        self.homes = Homes(cast(System, self), ME, [f"tcp://h:{number}" for number in range(4)])
        for node in ("worker-0", "worker-3", TIER):
            self.homes.came(node)
        self.gatherings = Gatherings(call_later=self.call_later, tell=lambda to, what: self.at(to).tell(what))
        self.erasing = Erasing(self.registry, self.homes, self.gatherings, ME, call_later=self.call_later)
        self.restoring = Restoring(
            self.registry,
            self.homes,
            self.gatherings,
            self.erasing,
            ME,
            waits_for_store=waits_for_store,
            call_later=self.call_later,
            on_entered=lambda subscription: self.heard.append(f"entered {subscription.name}"),
            on_news=lambda: self.heard.append("news"),
            on_done=lambda: self.heard.append("done"),
        )

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now_s + delay_s, call))

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        due = [call for due_s, call in self.timers if due_s <= self.now_s]
        self.timers = [each for each in self.timers if each[0] > self.now_s]
        for call in due:
            call()

    def ref(self, node: str, path: str) -> Any:
        return self.at(Address(node, path))

    def at(self, address: Address) -> Any:
        broker = self

        class To:
            def tell(self, message: object) -> None:
                broker.told.append((address, message))

        return To()

    def take(self, kind: type) -> list[Any]:
        """Return the messages of one type that were sent, and forget them."""
        found = [what for _, what in self.told if isinstance(what, kind)]
        self.told = [each for each in self.told if not isinstance(each[1], kind)]
        return found

    def create(self) -> None:
        """Create the topic and its subscription."""
        self.registry.create_topic(ORDERS, [BILLING])

    def delete(self, *, whole: bool = False) -> tuple[int, int]:
        """Delete the topic, and return the tickets of its log and of its subscription."""
        self.erasing.delete(ASKER, ASKED, ORDERS, whole=whole)
        return self.tickets()

    def tickets(self) -> tuple[int, int]:
        """Return the tickets of the two tasks that were just sent."""
        (subscription,), (topic,) = self.take(SubscriptionTask), self.take(TopicTask)
        assert (subscription.task, topic.task, subscription.argument) == ("delete", "delete", "topic")
        return topic.ticket, subscription.ticket

    def done(self, *tickets: int) -> None:
        """Let the processes that were asked answer that their part is deleted."""
        for ticket in tickets:
            self.gatherings.answered(Answer(ticket, encode_result({})))

    def answer(self) -> Any:
        """Return the answer to the client: a map or a code."""
        ((_, told),) = [each for each in self.told if each[0] == ASKER]
        self.told = [each for each in self.told if each[0] != ASKER]
        assert told.ticket == ASKED
        return told.code if isinstance(told, Refused) else decode_result(told.body)

    @property
    def is_erasing(self) -> bool:
        """Return whether the catalogue still lists the topic as being erased."""
        return ORDERS.incarnation in {gone.incarnation for gone in self.registry.erasing()}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Return a function that makes the parts."""
    made: list[Broker] = []

    def broker(**options: Any) -> Broker:
        made.append(Broker(str(tmp_path / f"{len(made)}.sqlite"), **options))
        return made[-1]

    yield broker
    for each in made:
        each.registry.close()


@pytest.fixture
def broker(make: Callable[..., Broker]) -> Broker:
    """Return the parts, with a topic that has a subscription."""
    made = make()
    made.create()
    return made


# ---- going -------------------------------------------------------------------------------------------------------


def test_a_topic_is_gone_once_all_have_said_so(broker: Broker) -> None:
    """The log, the subscription and the store answer, in this order."""
    tickets = broker.delete()
    assert broker.take(DropCache) == [DropCache(ORDERS)]
    assert (broker.registry.topic("orders"), broker.erasing.is_at("orders")) == (None, True)
    broker.done(*tickets)
    assert broker.answer() == {"deleted": "orders", "subscriptions": 1}
    assert (broker.is_erasing, broker.erasing.is_at("orders")) == (True, True)
    broker.erasing.erased(Erased(ORDERS))
    assert (broker.is_erasing, broker.erasing.is_at("orders")) == (False, False)


def test_nothing_is_deleted_while_a_part_of_it_cannot_be_reached(broker: Broker) -> None:
    """The request may be repeated once all are up."""
    for node in ("worker-0", "worker-3"):
        broker.homes.went(node)
        with pytest.raises(NotYetError):
            broker.delete()
        broker.homes.came(node)
    assert (broker.registry.topic("orders"), broker.told) == (ORDERS, [])


def test_what_the_store_says_meanwhile_counts_once_all_here_have_answered(broker: Broker) -> None:
    """The store's answer may come first; a topic whose log is left here is not forgotten because of it."""
    tickets = broker.delete()
    broker.erasing.erased(Erased(ORDERS))
    assert broker.is_erasing
    broker.done(*tickets)
    assert not broker.is_erasing


@pytest.mark.parametrize("missing", [0, 1])
def test_what_is_left_is_deleted_by_who_comes_back(broker: Broker, missing: int) -> None:
    """As long as something is left here, nothing is forgotten, whatever the store answers."""
    tickets = broker.delete()
    broker.done(tickets[1 - missing])
    broker.passes(ANSWER_WITHIN_S)
    assert broker.answer() == {"deleted": "orders", "subscriptions": 1}
    broker.erasing.erased(Erased(ORDERS))
    assert (broker.is_erasing, broker.erasing.is_at("orders")) == (True, True)
    broker.take(EraseStored)
    broker.passes(DELETE_AGAIN_S)
    ((_, task),) = [each for each in broker.told if isinstance(each[1], TopicTask | SubscriptionTask)]
    assert isinstance(task, (TopicTask, SubscriptionTask)[missing])
    broker.erasing.delete_left()  # they are at it
    broker.erasing.erase_all()
    assert broker.take(EraseStored) == []
    broker.done(task.ticket)
    assert broker.take(EraseStored) == [EraseStored(ORDERS, ME)]
    broker.erasing.erased(Erased(ORDERS))
    assert not broker.is_erasing


@pytest.mark.parametrize("when", ["before the answer", "after the answer"])
def test_a_log_whose_process_ends_while_it_deletes_the_files_is_deleted_once_more(
    broker: Broker, when: str
) -> None:
    """The process answers when the deletion has begun; what it had not deleted when it ended is left."""
    log, subscription = broker.delete()
    broker.done(log)
    if when == "before the answer":
        broker.erasing.node_gone("worker-0")
    broker.done(subscription)
    if when == "after the answer":
        broker.erasing.node_gone("worker-0")
    broker.erasing.erased(Erased(ORDERS))
    assert (broker.is_erasing, broker.erasing.is_at("orders")) == (True, True)
    broker.erasing.delete_left()
    (again,) = broker.take(TopicTask)
    assert (again.task, broker.take(SubscriptionTask)) == ("delete", [])
    broker.done(again.ticket)
    broker.erasing.log_erased(LogErased(ORDERS))
    broker.erasing.erased(Erased(ORDERS))
    assert not broker.is_erasing
    broker.erasing.node_gone("worker-0")
    broker.erasing.delete_left()
    assert broker.take(TopicTask) == []


def test_a_log_whose_process_ends_while_another_part_is_still_deleted_stays_left(broker: Broker) -> None:
    """Also when the deletion had been requested once before, and the other part is confirmed afterwards."""
    broker.delete()
    broker.passes(ANSWER_WITHIN_S)
    broker.passes(DELETE_AGAIN_S)
    log, subscription = broker.tickets()
    broker.done(log)
    broker.erasing.node_gone("worker-0")
    broker.done(subscription)
    broker.erasing.erased(Erased(ORDERS))
    assert (broker.is_erasing, broker.erasing.is_at("orders")) == (True, True)
    broker.passes(DELETE_AGAIN_S)
    (again,) = broker.take(TopicTask)
    assert (again.task, broker.take(SubscriptionTask)) == ("delete", [])


def test_a_log_that_is_deleted_is_no_concern_of_processes_that_end(broker: Broker) -> None:
    """Neither its own one after all files are deleted, nor another one while they are."""
    broker.done(*broker.delete())
    broker.erasing.node_gone("worker-3")
    broker.erasing.log_erased(LogErased(ORDERS))
    broker.erasing.node_gone("worker-0")
    broker.erasing.delete_left()
    assert broker.take(TopicTask) == []


def test_what_is_left_stays_left_until_somebody_deletes_it(broker: Broker) -> None:
    """A process that refuses or does not answer is asked again; one that is down is not asked."""
    broker.delete()
    broker.gatherings.node_gone("worker-0")
    broker.gatherings.node_gone("worker-3")
    for _ in range(3):
        broker.erasing.delete_left()
        topic, _ = broker.tickets()
        broker.gatherings.refused(Refused(topic, "internal", "no"))
        broker.passes(ANSWER_WITHIN_S)
    broker.homes.went("worker-0")
    broker.erasing.delete_left()
    assert broker.take(TopicTask) == []
    broker.homes.came("worker-0")
    broker.erasing.delete_left()
    broker.done(*broker.tickets())
    broker.erasing.delete_left()
    assert broker.take(TopicTask) == []


def test_a_topic_that_is_forgotten_is_whole_gone_or_the_answer_says_so(broker: Broker) -> None:
    """A later takeover must know that nothing of the topic is here."""
    tickets = broker.delete(whole=True)
    broker.done(tickets[0])
    broker.passes(ANSWER_WITHIN_S)
    assert broker.answer() == "unavailable"


def test_what_another_broker_has_is_kept_there_and_may_be_taken_over_again(broker: Broker) -> None:
    """It stays marked as forgotten until a listing shows that its owner has deleted it."""
    broker.done(*broker.delete())
    broker.erasing.erased(Erased(ORDERS, kept=True))
    assert (broker.is_erasing, broker.erasing.is_at("orders")) == (True, False)
    broker.erasing.erase_all()
    assert broker.take(EraseStored) == []
    broker.erasing.store_has({ORDERS.incarnation})
    assert broker.is_erasing
    broker.erasing.store_has(set())
    assert not broker.is_erasing


def test_a_non_reliable_topic_leaves_nothing_to_erase(make: Callable[..., Broker]) -> None:
    """It has no log, and nothing in the store."""
    broker = make()
    topic = replace(ORDERS, dispatch="non-reliable")
    broker.registry.create_topic(topic, [BILLING])
    broker.erasing.delete(ASKER, ASKED, topic)
    broker.passes(ANSWER_WITHIN_S)
    assert broker.answer() == {"deleted": "orders", "subscriptions": 1}
    assert (len(broker.take(TopicTask)), len(broker.take(SubscriptionTask))) == (1, 1)
    broker.passes(DELETE_AGAIN_S)
    broker.done(*broker.tickets())
    broker.passes(DELETE_AGAIN_S)
    assert (broker.take(TopicTask), broker.take(DropCache), broker.is_erasing) == ([], [], False)


# ---- coming back -------------------------------------------------------------------------------------------------


def test_no_topic_is_unknown_before_the_store_has_spoken(make: Callable[..., Broker]) -> None:
    """And no reliable topic is created under a name that the store may have."""
    broker = make(waits_for_store=True)
    for ask in (lambda: broker.restoring.topic("orders"), lambda: broker.restoring.check_new(ORDERS)):
        with pytest.raises(NotYetError):
            ask()
    broker.restoring.check_new(replace(ORDERS, dispatch="non-reliable"))
    broker.restoring.stored(StoredTopics((), RESTORER))
    broker.restoring.check_new(ORDERS)
    with pytest.raises(IsterError) as refused:
        broker.restoring.topic("orders")
    assert (refused.value.code, broker.heard) == ("unknown-topic", ["news", "done"])


def test_a_topic_comes_back_with_its_subscriptions(make: Callable[..., Broker]) -> None:
    """While it is being restored it cannot be created or taken over, and is not reported as unknown."""
    broker = make(waits_for_store=True)
    broker.restoring.stored(StoredTopics((ORDERS,), RESTORER))
    assert broker.told == [(RESTORER, RestoreTopics((ORDERS,)))]
    with pytest.raises(NotYetError):
        broker.restoring.topic("orders")
    asks: list[Callable[[], None]] = [lambda: broker.restoring.check_new(ORDERS), lambda: take_over(broker)]
    for ask in asks:
        with pytest.raises(IsterError, match="is being brought back"):
            ask()
    broker.restoring.came(Restored(ORDERS, (BILLING,), "orders came back"))
    assert broker.restoring.topic("orders") == ORDERS
    assert broker.registry.subscriptions("orders") == [BILLING]
    assert broker.restoring.restored == ["orders came back"]
    assert broker.heard == ["news", "entered billing", "news", "done"]


def test_a_topic_that_does_not_come_is_waited_for_no_more(make: Callable[..., Broker]) -> None:
    """It is then unknown, and clients need not wait."""
    broker = make()
    broker.restoring.stored(StoredTopics((ORDERS,), RESTORER))
    broker.restoring.does_not_come(NotRestored("orders"))
    broker.restoring.check_new(ORDERS)
    assert broker.heard == ["news", "done"]


def test_what_came_back_is_entered_when_the_disk_has_room(
    make: Callable[..., Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it counts as being restored."""
    broker = make()
    broker.restoring.stored(StoredTopics((ORDERS,), RESTORER))

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(broker.registry, "create_topic", full)
        broker.restoring.came(Restored(ORDERS, (), "orders came back"))
        broker.passes(ENTER_AGAIN_S)
    with pytest.raises(NotYetError):
        broker.restoring.topic("orders")
    broker.passes(ENTER_AGAIN_S)
    assert broker.restoring.topic("orders") == ORDERS


def test_what_was_deleted_here_does_not_come_back(broker: Broker) -> None:
    """The listing may be older than the deletion, or the erasure unfinished; it is requested again."""
    broker.done(*broker.delete())
    broker.restoring.stored(StoredTopics((ORDERS,), RESTORER))
    assert (broker.take(RestoreTopics), broker.heard) == ([RestoreTopics(())], ["news", "done"])
    assert broker.take(EraseStored) == [EraseStored(ORDERS, ME)]
    broker.erasing.erased(Erased(ORDERS))
    broker.restoring.stored(StoredTopics((ORDERS,), RESTORER))
    assert broker.take(RestoreTopics) == [RestoreTopics(())]


def test_another_topic_of_the_same_name_in_the_store_stays_there(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """There is a topic of that name here: a warning says that the store has another."""
    broker.restoring.stored(StoredTopics((replace(ORDERS, incarnation=bytes(16)),), RESTORER))
    assert broker.take(RestoreTopics) == [RestoreTopics(())]
    assert "the store has another topic orders" in caplog.text


def test_the_restorer_is_asked_until_it_has_said_how_it_ended(make: Callable[..., Broker]) -> None:
    """More often at first, later less: the mail may be lost."""
    broker = make(waits_for_store=True)
    other = replace(ORDERS, name="other", incarnation=b"\x02" * 16)
    broker.restoring.stored(StoredTopics((ORDERS, other), RESTORER))
    assert broker.take(RestoreTopics) == [RestoreTopics((ORDERS, other))]
    asked_at = []
    for _ in range(40):
        broker.passes(1)
        if asked := broker.take(RestoreTopics):
            assert asked == [RestoreTopics((ORDERS, other))]
            asked_at.append(broker.now_s)
    assert asked_at == [1, 3, 7, 15, 25, 35]
    broker.restoring.came(Restored(ORDERS, (), "orders came back"))
    broker.passes(1)
    assert broker.take(RestoreTopics) == [RestoreTopics((other,))]
    broker.homes.went(TIER)
    broker.passes(2)
    assert broker.take(RestoreTopics) == []
    broker.homes.came(TIER)
    broker.restoring.does_not_come(NotRestored("other"))
    broker.passes(60)
    assert broker.take(RestoreTopics) == []


def test_what_came_back_and_was_deleted_is_not_brought_back_by_mail_that_comes_twice(
    make: Callable[..., Broker],
) -> None:
    """The deletion is requested and answered again."""
    broker = make()
    broker.restoring.stored(StoredTopics((ORDERS,), RESTORER))
    back = Restored(ORDERS, (BILLING,), "orders came back")
    broker.restoring.came(back)
    broker.take(RestoreTopics)
    broker.done(*broker.delete())
    broker.restoring.came(back)
    assert broker.registry.topic("orders") is None


# ---- taking over -------------------------------------------------------------------------------------------------


def take_over(broker: Broker) -> None:
    """Request the topic by name."""
    broker.restoring.take_over(ASKER, ASKED, "orders", lambda topic: {"topic": topic.name})


def test_a_topic_is_taken_over_though_it_was_deleted_here(broker: Broker) -> None:
    """A request by name overrides the deletion."""
    broker.done(*broker.delete())
    broker.answer()
    with pytest.raises(IsterError, match="is still being deleted"):
        take_over(broker)
    broker.erasing.erased(Erased(ORDERS, kept=True))
    take_over(broker)
    (command,) = broker.take(TakeOver)
    broker.restoring.came(Restored(ORDERS, (BILLING,), "taken over"))
    broker.done(command.ticket)
    assert (broker.answer(), broker.is_erasing) == ({"topic": "orders"}, False)
    assert not broker.erasing.was_deleted(ORDERS)


def test_a_takeover_is_asked_for_until_it_ended(make: Callable[..., Broker]) -> None:
    """Requests made meanwhile repeat it; the name is reserved until it ended, and free afterwards."""
    broker = make()
    take_over(broker)
    (first,) = broker.take(TakeOver)
    broker.passes(1)
    assert broker.take(TakeOver) == [first]
    take_over(broker)
    (second,) = broker.take(TakeOver)
    assert second.ticket != first.ticket
    with pytest.raises(IsterError, match="is being brought back"):
        broker.restoring.check_new(ORDERS)
    broker.passes(60)
    assert set(broker.take(TakeOver)) == {second}
    broker.restoring.does_not_come(NotRestored("orders"))
    broker.passes(60)
    assert broker.take(TakeOver) == []
    broker.restoring.check_new(ORDERS)


def test_a_topic_that_did_not_come_over_is_no_success(make: Callable[..., Broker]) -> None:
    """Whatever the tier answers."""
    broker = make()
    take_over(broker)
    (command,) = broker.take(TakeOver)
    broker.done(command.ticket)
    assert broker.answer() == "unavailable"


def test_what_is_here_is_not_taken_over(broker: Broker) -> None:
    """It must be forgotten here first."""
    with pytest.raises(IsterError) as refused:
        take_over(broker)
    assert refused.value.code == "topic-exists"


def test_nothing_is_taken_over_without_the_tier(make: Callable[..., Broker]) -> None:
    """The request may be repeated, and is not blocked by the first."""
    broker = make()
    broker.homes.went(TIER)
    for _ in range(2):
        with pytest.raises(IsterError, match="the tier is being restarted"):
            take_over(broker)


def test_the_fetcher_is_told_only_while_the_tier_is_up(broker: Broker) -> None:
    """A restarted tier begins with an empty cache anyway."""
    broker.homes.went(TIER)
    broker.done(*broker.delete())
    assert [to for to, _ in broker.told if to == Address(TIER, FETCHER_PATH)] == []
    assert broker.take(EraseStored) == []
