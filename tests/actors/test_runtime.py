"""Tests of actors and references: delivery, bounds, failure, and Pykka's own interface."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import pykka
import pytest

from ister.actors.runtime import (
    Address,
    Loop,
    LoopActor,
    MailboxFullError,
    Part,
    Ref,
    Scheduler,
    System,
    receives,
)
from ister.clock import SystemClock
from ister.errors import UsageError


@dataclass(frozen=True, slots=True)
class Add:
    number: int


@dataclass(frozen=True, slots=True)
class Fail:
    text: str


@dataclass(frozen=True, slots=True)
class Unheard:
    pass


class Sum(LoopActor):
    def __init__(self, system: System, path: str, log: list[Any] | None = None) -> None:
        super().__init__(system, path)
        self.log: list[Any] = [] if log is None else log

    def on_start(self) -> None:
        self.log.append("start")

    def on_stop(self) -> None:
        self.log.append("stop")

    def on_failure(self, *error: Any) -> None:
        self.log.append(("failure", str(error[1])))

    @receives(Add)
    def add(self, message: Add) -> int:
        self.log.append(message.number)
        return sum(each for each in self.log if isinstance(each, int))

    @receives(Fail)
    def fail_now(self, message: Fail) -> None:
        raise RuntimeError(message.text)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Return a loop of this thread."""
    loop = Loop(SystemClock())
    yield loop
    loop.close()


@pytest.fixture
def system(loop: Loop) -> Iterator[System]:
    """Return the actor system of a process without mail."""
    system = System("here", loop, None, loop.clock, Random(1))
    yield system
    system.stop_all()


@pytest.fixture
def loop_in_thread(loop: Loop) -> Iterator[Callable[[], None]]:
    """Run the loop in a thread of its own, for tests that call from outside."""
    thread = threading.Thread(target=loop.run)

    def start() -> None:
        running = threading.Event()
        loop.call_soon(running.set)
        thread.start()
        running.wait(5)

    yield start
    loop.call_threadsafe(loop.stop)
    thread.join(5)


def test_messages_arrive_in_the_order_they_were_told(loop: Loop, system: System) -> None:
    """on_start comes first, then every message in order."""
    log: list[Any] = []
    ref = system.spawn(Sum, "sum", log)
    for number in range(1000):
        ref.tell(Add(number))
    assert log == []
    loop.run_until_idle()
    assert log == ["start", *range(1000)]


def test_an_actor_that_tells_itself_does_not_hold_the_loop(loop: Loop, system: System) -> None:
    """Other actors have their turns all the same."""

    class Echo(LoopActor):
        @receives(Add)
        def add(self, message: Add) -> None:
            self.ref.tell(Add(message.number + 1))

    log: list[Any] = []
    system.spawn(Echo, "echo").tell(Add(0))
    system.spawn(Sum, "sum", log).tell(Add(7))
    loop.run_once(0)
    assert log == ["start", 7]
    system.stop_actor("echo")
    loop.run_until_idle()


def test_an_inbox_over_its_bound_refuses_and_recovers(loop: Loop, system: System) -> None:
    """The message over the limit is refused with the code busy; once emptied, the inbox accepts messages again."""

    class Small(Sum):
        inbox_messages_max: ClassVar[int] = 10

    log: list[Any] = []
    ref = system.spawn(Small, "small", log)
    loop.run_until_idle()
    for number in range(10):
        ref.tell(Add(number))
    with pytest.raises(MailboxFullError, match=r"Small small is full \(10 messages\)") as refused:
        ref.tell(Add(10))
    assert (refused.value.code, refused.value.action) == ("busy", "retry")
    loop.run_until_idle()
    ref.tell(Add(11))
    loop.run_until_idle()
    assert log == ["start", *range(10), 11]


def test_dispatch_is_by_exact_type_and_inherited(loop: Loop, system: System) -> None:
    """A subclass inherits handlers, and overrides them by name without the decorator."""

    class Twice(Sum):
        def add(self, message: Add) -> int:
            self.log.append(message.number * 2)
            return 0

    log: list[Any] = []
    system.spawn(Twice, "twice", log).tell(Add(21))
    loop.run_until_idle()
    assert log == ["start", 42]


class Counter(Part):
    def __init__(self) -> None:
        self.heard: list[object] = []

    @receives(Unheard)
    def hear(self, message: object) -> str:
        self.heard.append(message)
        return "heard"


class Composed(Sum):
    def __init__(self, system: System, path: str, *parts: Part) -> None:
        super().__init__(system, path)
        self.compose(parts)


def test_a_part_handles_what_is_told_to_the_actor(loop: Loop, system: System) -> None:
    """Each message goes to the handler of its type, in the actor or one of its parts."""
    counter = Counter()
    ref = system.spawn(Composed, "composed", counter)
    ref.tell(Unheard())
    ref.tell(Add(2))
    loop.run_until_idle()
    composed = system.find("composed")
    assert isinstance(composed, Composed)
    assert (counter.heard, composed.log) == ([Unheard()], ["start", 2])


def test_actors_of_the_same_parts_share_their_table(loop: Loop, system: System) -> None:
    """Ten thousand actors share one table, and each message reaches the parts of the actor it was sent to."""
    counters = [Counter(), Counter()]
    refs = [system.spawn(Composed, f"composed-{number}", each) for number, each in enumerate(counters)]
    refs[1].tell(Unheard())
    loop.run_until_idle()
    assert [len(each.heard) for each in counters] == [0, 1]
    first, second = map(system.find, ("composed-0", "composed-1"))
    assert first is not None
    assert second is not None
    assert first.handlers is second.handlers


def test_two_parts_that_receive_the_same_are_refused(system: System) -> None:
    """Their order would decide which one gets the message."""

    class Other(Counter):
        pass

    with pytest.raises(TypeError, match=r"Counter and \S*Other both receive Unheard"):
        system.spawn(Composed, "composed", Counter(), Other())

    class Adds(Part):
        @receives(Add)
        def add(self, message: Add) -> None:
            pass

    with pytest.raises(TypeError, match=r"Composed and \S*Adds both receive Add"):
        system.spawn(Composed, "composed", Adds())


def test_two_handlers_of_one_type_are_refused_when_the_class_is_made() -> None:
    """The order of definition must not decide which one gets a message."""
    with pytest.raises(TypeError, match="both receive Add"):

        class Torn(LoopActor):
            @receives(Add)
            def one(self, message: Add) -> None: ...

            @receives(Add)
            def other(self, message: Add) -> None: ...


def test_a_message_without_a_handler_is_loud_and_harmless(
    loop: Loop, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged as an error and counted; the actor goes on."""
    log: list[Any] = []
    ref = system.spawn(Sum, "sum", log)
    ref.tell(Unheard())
    ref.tell(Add(1))
    loop.run_until_idle()
    assert log == ["start", 1]
    assert system.unexpected == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Sum sum has no handler for Unheard" in caplog.text


def test_a_handler_that_raises_ends_its_actor_and_tells_the_system(
    loop: Loop, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback is logged, on_failure is called, the process is told, and messages left over are unclaimed."""
    log: list[Any] = []
    failed: list[tuple[str, str]] = []
    unclaimed: list[Any] = []
    system.on_actor_failure = lambda path, error: failed.append((path, str(error)))
    system.on_unclaimed = lambda path, message: unclaimed.append((path, message))
    ref = system.spawn(Sum, "sum", log)
    neighbour_log: list[Any] = []
    neighbour = system.spawn(Sum, "neighbour", neighbour_log)
    for message in (Add(1), Fail("no luck"), Add(2)):
        ref.tell(message)
    neighbour.tell(Add(5))
    loop.run_until_idle()
    ref.tell(Add(3))
    assert log == ["start", 1, ("failure", "no luck")]
    assert failed == [("sum", "no luck")]
    assert unclaimed == [("sum", Add(2)), ("sum", Add(3))]
    assert neighbour_log == ["start", 5]
    assert system.find("sum") is None
    assert "RuntimeError: no luck" in caplog.text


def test_an_actor_that_fails_to_start_fails_like_any_other(loop: Loop, system: System) -> None:
    """on_start runs in the loop; its error ends the actor and is reported to the system."""

    class Stillborn(LoopActor):
        def on_start(self) -> None:
            raise OSError("no such log")

    failed: list[str] = []
    system.on_actor_failure = lambda path, error: failed.append(f"{path}: {error}")
    system.spawn(Stillborn, "still")
    loop.run_until_idle()
    assert failed == ["still: no such log"]
    assert system.find("still") is None


def test_a_failed_actor_can_be_replaced_under_the_same_references(loop: Loop, system: System) -> None:
    """A reference names a path, and works for the next actor there."""
    log: list[Any] = []

    def restart(path: str, error: Exception) -> None:
        system.spawn(Sum, path, log)

    system.on_actor_failure = restart
    ref = system.spawn(Sum, "sum", log)
    ref.tell(Fail("once"))
    loop.run_until_idle()
    ref.tell(Add(2))
    loop.run_until_idle()
    assert log == ["start", ("failure", "once"), "start", 2]


def test_an_actor_may_be_started_when_its_first_message_comes(loop: Loop, system: System) -> None:
    """on_unclaimed may start an actor and send it the message."""
    log: list[Any] = []
    system.on_unclaimed = lambda path, message: system.spawn(Sum, path, log).tell(message)
    ref = system.ref("here", "late")
    ref.tell(Add(1))
    ref.tell(Add(2))
    loop.run_until_idle()
    assert log == ["start", 1, 2]


def test_a_message_nobody_wants_is_a_counted_dead_letter(
    loop: Loop, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """By default a message to a missing actor is logged and counted."""
    system.ref("here", "nobody").tell(Add(1))
    assert system.dead_letters == 1
    assert "here has no actor at nobody" in caplog.text


def test_stopping_lets_an_actor_finish_what_it_was_told(loop: Loop, system: System) -> None:
    """stop_actor takes its place in the inbox; on_stop is called last."""
    log: list[Any] = []
    left: list[Any] = []
    system.on_unclaimed = lambda path, message: left.append(message)
    ref = system.spawn(Sum, "sum", log)
    ref.tell(Add(1))
    system.stop_actor("sum")
    ref.tell(Add(2))
    loop.run_until_idle()
    assert (log, left) == (["start", 1, "stop"], [Add(2)])
    assert "sum" not in system.paths()


def test_stopping_everything_stops_the_youngest_first(loop: Loop, system: System) -> None:
    """An actor may depend on those started before it, and is stopped before them."""
    order: list[str] = []

    class Ordered(LoopActor):
        def on_stop(self) -> None:
            order.append(self.path)

    for path in ("a", "b", "c"):
        system.spawn(Ordered, path)
    system.stop_all()
    assert order == ["c", "b", "a"]


def test_a_path_is_taken_once(system: System) -> None:
    """Two actors at one path would share its messages by chance; the second is refused."""
    system.spawn(Sum, "sum")
    with pytest.raises(UsageError, match="has an actor at 'sum' already"):
        system.spawn(Sum, "sum")


def test_references_are_equal_by_address(system: System) -> None:
    """A reference can be a key, and equals one made elsewhere."""
    ref = system.spawn(Sum, "sum")
    assert ref == system.at(Address("here", "sum"))
    assert len({ref, system.ref("here", "sum"), system.ref("here", "other")}) == 2


def test_messages_for_other_nodes_go_to_the_mail(loop: Loop) -> None:
    """A reference is used in the same way wherever its actor is."""
    posted: list[tuple[Address, object]] = []

    class Post:
        def attach(self, loop: Scheduler, deliver: Callable[[str, object], None]) -> None:
            self.deliver = deliver

        def send(self, address: Address, message: object) -> None:
            posted.append((address, message))

    post = Post()
    system = System("here", loop, post, loop.clock, Random(1))
    log: list[Any] = []
    system.spawn(Sum, "sum", log)
    there: Ref = system.ref("there", "sum")
    there.tell(Add(1))
    post.deliver("sum", Add(2))
    loop.run_until_idle()
    assert posted == [(Address("there", "sum"), Add(1))]
    assert log == ["start", 2]
    system.stop_all()


def test_mail_for_a_full_inbox_is_dropped_and_counted(loop: Loop, system: System) -> None:
    """Mail cannot be refused to its sender, and must not end the process either."""

    class Small(Sum):
        inbox_messages_max: ClassVar[int] = 1

    system.spawn(Small, "small")
    loop.run_until_idle()
    for _ in range(3):
        system.deliver("small", Add(1))
    assert system.dead_letters == 2


def test_timers_and_offloaded_work_of_an_actor_end_with_it(loop: Loop, system: System) -> None:
    """A call that comes back after the actor's end is not made."""
    log: list[Any] = []
    system.spawn(Sum, "sum", log)
    actor = system.find("sum")
    assert actor is not None
    actor.call_later(0.0, lambda: log.append("timer"))
    actor.call_soon(lambda: log.append("soon"))
    actor.at_turn_end(lambda: log.append("turn end"))
    actor.offload(lambda: None, lambda result, error: log.append("offload"))
    actor.stop_now()
    loop.run_until_idle()
    assert log == ["stop"]


def test_a_timer_that_raises_fails_its_actor_only(loop: Loop, system: System) -> None:
    """Calls that an actor registered are guarded like its handlers."""
    failed: list[str] = []
    system.on_actor_failure = lambda path, error: failed.append(path)
    system.spawn(Sum, "sum")
    log: list[Any] = []
    other = system.spawn(Sum, "other", log)
    actor = system.find("sum")
    assert actor is not None
    actor.call_later(0.0, lambda: 1 // 0)  # type: ignore[arg-type]
    loop.run_until_idle()
    loop.run_once(0)
    other.tell(Add(1))
    loop.run_until_idle()
    assert (failed, log) == (["sum"], ["start", 1])


def test_an_ask_from_another_thread_is_answered(
    loop: Loop, system: System, loop_in_thread: Callable[[], None]
) -> None:
    """Pykka's ask, tell and stop work from any thread, and errors reach the caller."""
    system.spawn(Sum, "sum")
    actor = system.find("sum")
    assert actor is not None
    reference = actor.actor_ref
    loop_in_thread()
    reference.tell(Add(1))
    assert reference.ask(Add(41), timeout=5) == 42
    with pytest.raises(RuntimeError, match="for you"):
        reference.ask(Fail("for you"), timeout=5)
    assert reference.ask(Add(1), timeout=5) == 43
    assert reference.stop(timeout=5) is True
    with pytest.raises(pykka.ActorDeadError):
        reference.ask(Add(1), timeout=5)


def test_an_ask_that_nobody_will_answer_fails(loop: Loop, system: System) -> None:
    """A caller whose actor failed meanwhile gets an error instead of waiting for ever."""
    system.on_unclaimed = lambda path, message: None
    ref = system.spawn(Sum, "sum")
    actor = system.find("sum")
    assert actor is not None
    ref.tell(Fail("first"))
    answer = actor.actor_ref.ask(Add(1), block=False)
    loop.run_until_idle()
    with pytest.raises(pykka.ActorDeadError):
        answer.get(timeout=1)


def test_waiting_for_an_answer_on_the_loop_is_refused(loop: Loop, system: System) -> None:
    """An actor that waits for its own loop would wait for ever; it gets an error instead."""
    system.spawn(Sum, "sum")
    actor = system.find("sum")
    assert actor is not None
    with pytest.raises(UsageError, match="can't wait for an answer on its own loop"):
        actor.actor_ref.ask(Add(1))


def test_a_stopped_actor_leaves_pykkas_registry(loop: Loop, system: System) -> None:
    """No reference keeps an actor alive after its end."""
    before = len(pykka.ActorRegistry.get_all())
    system.spawn(Sum, "one")
    system.spawn(Sum, "two").tell(Fail("now"))
    loop.run_until_idle()
    system.stop_all()
    assert len(pykka.ActorRegistry.get_all()) == before
