"""Tests of the Supervisor's decisions, with child processes and a clock that the test controls."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, cast

import pytest

from ister.actors.process import Birth, CannotWork, NodeDown, NodeUp, ProcessContext, ProcessSpec, Ready
from ister.actors.restarts import RestartHistory, RestartPolicy
from ister.actors.runtime import Address, Loop, Scheduler, System
from ister.actors.supervisor import READY_WITHIN_S, StopProcesses, Supervisor


class ManualClock:
    """Time that moves when the test says so."""

    now = 1000.0
    set_back_s = 0.0  # by how much the wall clock was set back

    def monotonic(self) -> float:
        return self.now

    def time_ms(self) -> int:
        return int((self.now - self.set_back_s) * 1000)


class FakeChild:
    """A process that the test controls: SIGTERM ends it only if `obedient`, SIGKILL always."""

    def __init__(self, birth: Birth, pid: int) -> None:
        self.birth, self.pid, self.node = birth, pid, birth.spec.node
        self.sentinel, self._end = os.pipe()
        self.obedient = True
        self.signals: list[str] = []
        self.code: int | None = None

    def die(self, code: int) -> None:
        if self.code is None:
            self.code = code
            os.close(self._end)

    def terminate(self) -> None:
        self.signals.append("TERM")
        if self.obedient:
            self.die(0)

    def kill(self) -> None:
        self.signals.append("KILL")
        self.die(-signal.SIGKILL)

    def reap(self) -> int:
        assert self.code is not None, "reaped alive"
        os.close(self.sentinel)
        return self.code


class Nowhere:
    """A post office that records mail and sends none."""

    def __init__(self) -> None:
        self.posted: list[tuple[Address, Any]] = []

    def attach(self, loop: Scheduler, deliver: Callable[[str, object], None]) -> None: ...

    def send(self, address: Address, message: object) -> None:
        self.posted.append((address, message))


class House:
    """A Supervisor with its surroundings, and methods to drive it."""

    folder, boot = "/run", 500

    def __init__(self, **ranks: int) -> None:
        self.clock = ManualClock()
        self.loop = Loop(self.clock)
        self.mail = Nowhere()
        self.system = System("broker", self.loop, self.mail, self.clock, Random(1))
        self.children: list[FakeChild] = []
        self.changes: list[NodeUp | NodeDown] = []
        self.finished: list[tuple[int, str]] = []
        self.all_up = 0
        specs = [ProcessSpec(node, _target, stop_rank=rank) for node, rank in ranks.items()]
        self.system.spawn(
            Supervisor,
            "supervisor",
            cast(ProcessContext, self),
            specs,
            starter=self,
            signals=False,
            on_all_up=self._count_all_up,
            on_finished=lambda code, reason: self.finished.append((code, reason)),
        )
        self.loop.run_until_idle()

    def _count_all_up(self) -> None:
        self.all_up += 1

    def start(self, birth: Birth) -> FakeChild:
        self.children.append(FakeChild(birth, 100 + len(self.children)))
        return self.children[-1]

    def node_changed(self, change: NodeUp | NodeDown) -> None:
        self.changes.append(change)

    def alive(self, node: str) -> FakeChild:
        """Return the running child of a node."""
        [child] = [child for child in self.children if child.node == node and child.code is None]
        return child

    def tell(self, message: object) -> None:
        self.system.ref("broker", "supervisor").tell(message)
        self.loop.run_until_idle()

    def ready(self, node: str) -> None:
        child = self.alive(node)
        self.tell(Ready(node, child.birth.boot, child.pid, f"tcp://{node}"))

    def die(self, node: str, code: int = -signal.SIGKILL) -> None:
        self.alive(node).die(code)
        self.settle()

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.settle()

    def settle(self) -> None:
        for _ in range(5):
            self.loop.run_until_idle()

    def starts(self, node: str) -> int:
        return sum(child.node == node for child in self.children)


def _target(context: ProcessContext) -> None:
    raise AssertionError("never started for real")


@pytest.fixture
def house() -> Iterator[Callable[..., House]]:
    """Return a function that makes houses; close them after the test."""
    houses: list[House] = []

    def build(**ranks: int) -> House:
        houses.append(House(**ranks))
        return houses[-1]

    yield build
    for each in houses:
        each.system.stop_all()
        for child in each.children:
            if child.code is None:
                child.kill()
        each.loop.close()


def test_the_delay_doubles_to_its_bound() -> None:
    """0.1, 0.2, 0.4 ... and never over 5 seconds, for deaths too far apart to give up."""
    history = RestartHistory(RestartPolicy())
    delays = [history.died(now=100.0 * number, lived_s=20.0) for number in range(9)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_a_steady_life_makes_the_next_death_the_first() -> None:
    """After 30 seconds up, the delay starts from 0.1 s again."""
    history = RestartHistory(RestartPolicy())
    for now in (0.0, 1.0, 2.0):
        history.died(now, lived_s=1.0)
    assert history.died(100.0, lived_s=30.0) == 0.1
    assert history.died(131.0, lived_s=1.0) == 0.2


@pytest.mark.parametrize("restarts", [0, 1, 5, 100])
def test_so_many_restarts_as_are_allowed_are_made_and_no_more(restarts: int) -> None:
    """A death after the last restart allowed within 60 seconds gives up; one a little later does not."""
    policy = RestartPolicy(restarts_max=restarts)
    history = RestartHistory(policy)
    times = [60.0 * number / max(restarts, 1) for number in range(restarts + 1)]
    assert all(history.died(now, 1.0) is not None for now in times[:-1])
    assert history.died(times[-1], 1.0) is None
    if restarts:
        slow = RestartHistory(policy)
        assert all(slow.died(now, 1.0) is not None for now in (*times[:-1], 60.1))


def test_everyone_is_introduced_to_everyone(house: Callable[..., House]) -> None:
    """A process that says Ready is told which others are up, and they are told of it; all_up is said once."""
    it = house(one=0, two=0)
    assert it.starts("one") == it.starts("two") == 1
    it.ready("one")
    assert (it.mail.posted, it.all_up) == ([], 0)
    it.ready("two")
    one, two = (NodeUp(c.node, c.birth.boot, c.pid, f"tcp://{c.node}") for c in it.children)
    assert it.mail.posted == [(Address("two", "process"), one), (Address("one", "process"), two)]
    assert (it.changes, it.all_up) == ([one, two], 1)


def test_a_dead_process_is_reported_and_started_again_with_a_greater_boot(
    house: Callable[..., House],
) -> None:
    """NodeDown goes to all others, then a delay and a new process; all_up is not said twice."""
    it = house(one=0, two=0)
    it.ready("one")
    it.ready("two")
    it.mail.posted.clear()
    old = it.alive("one")
    it.die("one")
    down = NodeDown("one", old.birth.boot, "SIGKILL")
    assert it.mail.posted == [(Address("two", "process"), down)]
    assert it.changes[-1] == down
    assert it.starts("one") == 1
    it.pass_time(0.1)
    assert it.starts("one") == 2
    assert it.alive("one").birth.boot > old.birth.boot
    it.ready("one")
    assert it.all_up == 1


def test_boots_are_greater_than_the_brokers_and_all_before(house: Callable[..., House]) -> None:
    """Also if started in the same millisecond, or after the clock was set back."""
    it = house(one=0, two=0, three=0)
    it.clock.set_back_s = 3600.0
    it.die("one")
    it.pass_time(0.1)
    boots = [child.birth.boot for child in it.children]
    assert boots == sorted(set(boots))
    assert boots[0] > it.boot


def test_news_from_a_process_that_is_dead_change_nothing(house: Callable[..., House]) -> None:
    """A Ready of an older boot, or of an unknown node, is ignored."""
    it = house(one=0)
    old = it.alive("one")
    it.die("one")
    it.tell(Ready("one", old.birth.boot, old.pid, ""))
    it.tell(Ready("nobody", 1, 1, ""))
    it.pass_time(0.1)
    it.tell(Ready("one", old.birth.boot, old.pid, ""))
    assert it.changes == []


def test_one_that_never_says_ready_is_killed(house: Callable[..., House]) -> None:
    """A start that hangs counts as a death."""
    it = house(one=0)
    first = it.alive("one")
    it.pass_time(READY_WITHIN_S)
    assert first.signals == ["KILL"]
    it.pass_time(0.1)
    assert it.starts("one") == 2


def test_one_that_is_up_may_be_silent_for_ever(house: Callable[..., House]) -> None:
    """Its Ready ends the waiting."""
    it = house(one=0)
    it.ready("one")
    it.pass_time(READY_WITHIN_S * 10)
    assert it.alive("one").signals == []


def test_stopping_goes_by_rank(house: Callable[..., House]) -> None:
    """All workers are asked first, then the tier when they are gone, and the broker ends last."""
    it = house(worker0=0, worker1=0, tier=1)
    slow = it.alive("worker1")
    slow.obedient = False
    it.tell(StopProcesses("SIGTERM"))
    it.settle()
    assert it.children[0].signals == slow.signals == ["TERM"]
    assert it.alive("tier").signals == []
    slow.die(0)
    it.settle()
    assert it.children[2].signals == ["TERM"]
    assert it.finished == [(0, "SIGTERM")]


def test_a_stop_during_a_restart_does_not_start_anything(house: Callable[..., House]) -> None:
    """A child that waits for its restart is not started."""
    it = house(one=0, two=1)
    it.die("one")
    it.tell(StopProcesses("SIGTERM"))
    it.settle()
    it.pass_time(60.0)
    assert it.finished == [(0, "SIGTERM")]
    assert it.starts("one") == 1


def test_the_grace_ends_with_sigkill(house: Callable[..., House]) -> None:
    """SIGKILL comes five seconds after SIGTERM, and then the next rank."""
    it = house(one=0, two=1)
    it.alive("one").obedient = False
    it.tell(StopProcesses("SIGTERM"))
    it.pass_time(4.9)
    assert it.children[0].signals == ["TERM"]
    it.pass_time(0.1)
    assert it.children[0].signals == ["TERM", "KILL"]
    assert it.children[1].signals == ["TERM"]
    assert it.finished == [(0, "SIGTERM")]


def test_a_second_stop_kills_at_once(house: Callable[..., House]) -> None:
    """The second request skips the grace period."""
    it = house(one=0, two=1)
    for child in it.children:
        child.obedient = False
    it.tell(StopProcesses("SIGINT"))
    it.tell(StopProcesses("SIGINT"))
    it.settle()
    assert [child.code for child in it.children] == [-signal.SIGKILL, -signal.SIGKILL]
    assert it.finished == [(0, "SIGINT")]


def test_giving_up_stops_the_others_and_fails(house: Callable[..., House]) -> None:
    """One death more than the restarts allowed stops everything with exit code 1; the reason names the process."""
    it = house(one=0, two=1)
    it.ready("two")
    for _ in range(6):
        it.die("one")
        it.pass_time(2.0)
    assert it.children[1].signals == ["TERM"]
    assert it.finished == [
        (1, "one died more often than restarts_max = 5 within 60 s, the last time by SIGKILL")
    ]


def test_a_refusal_on_the_first_start_ends_everything_with_its_reason(house: Callable[..., House]) -> None:
    """The settings are wrong: the exit code is 78, and the reason the child's own sentence."""
    it = house(one=0, two=1)
    child = it.alive("one")
    it.tell(CannotWork("one", child.birth.boot, "address-in-use", "port 5555 is in use"))
    it.settle()
    assert it.finished == [(78, "one can't work: port 5555 is in use (address-in-use)")]


def test_a_refusal_whose_mail_is_lost_ends_everything_too(house: Callable[..., House]) -> None:
    """The exit code is enough."""
    it = house(one=0)
    it.die("one", 78)
    assert it.finished == [(78, "one can't work; its own log says why")]


def test_a_refusal_of_one_that_was_up_is_a_death(house: Callable[..., House]) -> None:
    """It has worked with these settings before: it is restarted."""
    it = house(one=0)
    it.ready("one")
    it.die("one")
    it.pass_time(0.1)
    it.die("one", 78)
    it.pass_time(1.0)
    assert it.starts("one") == 3
    assert it.finished == []


def test_a_supervisor_that_fails_takes_everything_with_it(house: Callable[..., House]) -> None:
    """The broker does not run without supervision."""
    it = house(one=0, two=1)
    actor = it.system.find("supervisor")
    assert actor is not None
    actor.fail(RuntimeError("a mistake"))
    assert [child.signals for child in it.children] == [["KILL"], ["KILL"]]
    assert it.finished == [(1, "the supervisor failed")]
