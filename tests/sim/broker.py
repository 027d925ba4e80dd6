"""A simulated broker whose mail, threads and disk take time: one machine of a simulated world.

Mail between two processes keeps its order and takes time; mail to a process that is gone is lost; a process knows of
another only once it was told. Work given to threads is done later, and its end is reported later still: when a process
is killed in between, the work is done and the process never learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

from ister.actors.addresses import BROKER, TIER, node_of
from ister.actors.envelope import open_mail
from ister.actors.process import NodeDown, NodeUp
from ister.actors.threads import Done, Purpose
from ister.storage.disk import Disk
from ister.storage.objectstore import ObjectStore
from tests.faultystore import FaultyStore
from tests.sim.limits import WallClock
from tests.sim.links import Network, SimRouter, Tap
from tests.sim.trace import Trace
from tests.stage import Stage, StagedClock, StagedLoop, StagedMail, StagedRouter, _NodeLoop


class Killed(BaseException):
    """Raised where the process that does this work is killed, in the middle of it."""


class MachineClock:
    """A machine's clocks: the monotonic one is common to all, the wall clock may be set."""

    def __init__(self, true: StagedClock, wall: WallClock) -> None:
        self._true, self._wall = true, wall

    @property
    def now_s(self) -> float:
        """The common time in seconds."""
        return self._true.now_s

    def monotonic(self) -> float:
        return self._true.now_s

    def time_ms(self) -> int:
        return self._true.time_ms() + self._wall.off_ms


class _SlowLoop(_NodeLoop):
    """A node's loop: work of threads takes time, ends in any order, and is not done if the node is killed first."""

    def __init__(self, loop: StagedLoop, node: str, machine: Machine) -> None:
        super().__init__(loop, node)
        self._machine = machine
        self._mail = machine.mail[node]

    def offload(self, work: Callable[[], Any], done: Done[Any], purpose: Purpose = Purpose.OTHER) -> None:
        loop, machine = self._loop, self._machine

        def run() -> None:
            if not self._lives():
                return
            result, error = None, None
            try:
                with machine.perhaps_dying(self._node):
                    result = work()
            except Killed:
                loop.call_soon(lambda: machine.on_death(self._node) if self._lives() else None)
                return
            except Exception as raised:  # noqa: BLE001 - as the real loop: whatever it is, `done` is told
                error = raised
            loop.call_later(machine.hand_over_s(), lambda: done(result, error) if self._lives() else None)

        loop.call_later(machine.work_s(self._node), run)

    def _lives(self) -> bool:
        return self._machine.mail.get(self._node) is self._mail


class Machine(Stage):
    """One broker of a world."""

    def __init__(
        self,
        folder: Path,
        workers: int,
        *,
        name: str,
        loop: StagedLoop,
        random: Random,
        network: Network,
        tap: Tap,
        trace: Trace,
        waits_for_store: bool = False,
        **flags: Any,
    ) -> None:
        self.name = name
        self.network, self.tap, self.trace = network, tap, trace
        self.wall = WallClock()
        self.slow_disk_s = 0.0
        self.lost_mail = False
        self.had_tier = False
        # the node that is killed at work, after this many operations
        self.dies: tuple[str, int] | None = None
        self.on_death: Callable[[str], None] = lambda _node: None
        self.mail_s = random.choice((0.0, 0.0002, 0.005))
        self._lanes: dict[tuple[str, str], float] = {}
        self._known: dict[str, dict[str, int]] = {}  # what each node knows to be up: node and boot number
        self.overflow: int | None = None  # how many held back mails are kept; later ones are dropped
        super().__init__(
            folder,
            workers,
            loop=loop,
            random=random,
            endpoints=f"tcp://{name}-worker-",
            waits_for_store=waits_for_store,
            **flags,
        )
        self.expects_failures = True
        self.disk.on_name = lambda path, given: (tap.named if given else tap.unnamed)(name, path)

    def _clock_of(self, loop: StagedLoop) -> StagedClock:
        return cast(StagedClock, MachineClock(loop.time, self.wall))

    @contextmanager
    def perhaps_dying(self, node: str) -> Iterator[None]:
        """While the node that is to die works, count its operations on disk and store, and end it at the last one."""
        if self.dies is None or self.dies[0] != node:
            yield
            return
        left = self.dies[1]
        disk, store = self.disk, self.store
        on_disk, on_store = disk.on_operation, None if store is None else store.before

        def happens(operation: str, name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                self.trace.note("dies", node, operation, name)
                raise Killed

        disk.on_operation = happens
        if store is not None:
            store.before = happens
        try:
            yield
        finally:
            disk.on_operation = on_disk
            if store is not None and on_store is not None:
                store.before = on_store
            self.dies = None if left < 0 else (node, left)

    def hand_over_s(self) -> float:
        """Draw how long it takes until a loop is told of its thread's work."""
        return self.random.random() * 0.0005

    def work_s(self, node: str) -> float:
        """Draw how long blocking work takes."""
        longest = 0.05 if node == TIER else 0.002
        return self.random.random() * (longest + self.slow_disk_s)

    def _loop_of(self, node: str) -> _NodeLoop:
        return _SlowLoop(self.loop, node, self)

    def _make_router(self) -> StagedRouter:
        return SimRouter(self.tap)

    # ---- processes ----------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        super().start(number)
        router = self.routers[number]
        assert isinstance(router, SimRouter)
        router.alive, router.number, router.machine = True, number, self.name
        self.network.listeners[self.endpoints[number]] = router
        self.trace.note("start", self.name, number)

    def kill(self, number: int) -> None:
        router = self.routers[number]
        assert isinstance(router, SimRouter)
        router.alive = False
        for link in list(router.links.values()):
            link.break_()
        node = node_of(number)
        self.trace.note("kill", self.name, number)
        super().kill(number)
        self._known.pop(node, None)

    def kill_all(self) -> None:
        """Kill the broker process; its children end with it."""
        if TIER in self.systems:
            self.kill_tier()
        self.overflow = self.dies = None
        for number in list(self.workers):
            self.kill(number)
        self._drop(BROKER)
        self.catalogue.close()
        self.held.clear()
        self.holding.clear()
        self.trace.note("kill all", self.name)

    def start_all(self, workers: int, *, tier: bool) -> None:
        """Start the broker with this many workers."""
        self.endpoints = [f"{self._endpoints}{number}" for number in range(workers)]
        self.catalogue = self._open_catalogue()
        self.waits_for_store = tier and not self.catalogue.topics()
        self._start_directory()
        for number in range(workers):
            self.start(number)
        if tier:
            self.restart_tier()
        self.trace.note("start all", self.name, workers)

    def lose_power(self, random: Random) -> None:
        """Lose the power (after `kill_all`): what was not synced may be lost."""
        self.disk = self.disk.power_loss(random)
        self.tap.lost(self.name, self.disk.names())
        if self.store is not None:
            self.store.disk = cast(Disk, self.disk)

    def use_store(self, store: ObjectStore) -> None:
        """Let the tier use this store, which is elsewhere."""
        self.store = FaultyStore(store, cast(Disk, self.disk))
        self.restart_tier()

    def restart_tier(self) -> None:
        """Start the tier process."""
        assert self.store is not None
        self._spawn_tier(self.store)
        self.trace.note("start tier", self.name)

    @property
    def is_up(self) -> bool:
        """Whether the broker process runs."""
        return BROKER in self.systems

    def _tell(self, node: str, change: NodeUp | NodeDown) -> None:
        mail = self.mail.get(node)
        if mail is None:
            return

        def hear() -> None:
            if self.mail.get(node) is not mail:
                return
            known = self._known.setdefault(node, {})
            if isinstance(change, NodeUp):
                known[change.node] = change.boot
            else:
                known.pop(change.node, None)
            super_tell(node, change)

        super_tell = super()._tell
        self._in_lane(
            "supervisor", node, 0.0 if node == BROKER else self.mail_s * 4 * self.random.random(), hear
        )

    def _in_lane(self, sender: str, node: str, delay_s: float, call: Callable[[], None]) -> None:
        now, lane = self.clock.now_s, (sender, node)
        at = max(self._lanes.get(lane, 0.0), now + delay_s)
        self._lanes[lane] = at
        if at <= now:
            self.loop.call_soon(call)
        else:
            self.loop.call_later(at - now, call)

    # ---- mail ---------------------------------------------------------------------------------------------------

    def post(self, sender: StagedMail, node: str, sealed: bytes, frames: list[bytes]) -> None:
        entry = (sender, node, sealed, frames)
        target = self.mail.get(node)
        if target is None:
            sender.dropped += 1
            return
        if (sender.node, node) in self.held:
            if self.overflow is None or len(self.holding) < self.overflow:
                self.holding.append(entry)
            else:
                self.lost_mail = True
                self.trace.note("mail dropped", sender.node, node)
            return
        self._in_lane(
            sender.node, node, self.mail_s * self.random.random(), lambda: self._arrives(entry, target)
        )

    def _arrives(self, entry: tuple[StagedMail, str, bytes, list[bytes]], target: StagedMail) -> None:
        sender, node, sealed, frames = entry
        if self.mail.get(node) is not target:
            sender.dropped += 1
            return
        if sender.node != BROKER and self._known.get(node, {}).get(sender.node, sender.boot) > sender.boot:
            return  # from a process that is known to be gone
        opened = open_mail(sealed, list(frames))
        target.received += 1
        self.trace.note("mail", sender.node, node, type(opened.message).__name__)
        target.deliver(opened.path, opened.message)

    def let_go(self, sender: str, node: str) -> None:
        self.held.discard((sender, node))
        kept = []
        for entry in self.holding:
            target = self.mail.get(node)
            if (entry[0].node, entry[1]) != (sender, node):
                kept.append(entry)
            elif target is not None:
                self._in_lane(sender, node, 0.0, partial(self._arrives, entry, target))
        self.holding = kept
