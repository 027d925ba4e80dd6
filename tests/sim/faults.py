"""The faults of a world: drawn step by step; each kind is a method, and `heal` undoes all of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from ister.actors.addresses import TIER, node_of
from ister.errors import StoreError
from ister.storage.layout import encode_topic
from tests.sim.broker import Machine
from tests.sim.programs import Program

if TYPE_CHECKING:
    from tests.sim.world import World


YEAR_MS = 365 * 86_400_000
# the clock is off by at most this, in ms
CLOCKS_MS = (0, 0, -700, 700, -3_600_000, 3_600_000, -YEAR_MS, YEAR_MS)


class Faults:
    """All faults that may happen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(world.random.getrandbits(32))
        self.down: dict[str, list[int]] = {}  # killed workers, by machine
        self.off: set[str] = set()  # machines without a running broker
        self.frozen: list[Program] = []
        self._calls: dict[str, Callable[[], Any]] = {
            "cut": self.cut,
            "stall": self.stall,
            "leave": self.leave,
            "freeze": self.freeze,
            "kill worker": self.kill_worker,
            "kill broker": self.kill_broker,
            "die at work": self.die_at_work,
            "power": self.power,
            "hold mail": self.hold_mail,
            "disk error": self.disk_error,
            "folder error": self.folder_error,
            "clock": self.set_clock,
            "full disk": self.full_disk,
            "slow disk": self.slow_disk,
            "mistake": self.mistake,
            "kill tier": self.kill_tier,
            "store away": self.store_away,
            "lose object": self.lose_object,
            "store flaky": self.store_flaky,
        }
        self._kinds = list(world.plan.faults)
        self._weights = [world.plan.faults[kind] for kind in self._kinds]

    def step(self) -> None:
        """Cause one fault, or repair one, or do nothing."""
        random, plan = self.random, self.world.plan
        if random.random() < 0.3:
            self.mend()
        if self._kinds and random.random() < plan.fault_every:
            (kind,) = random.choices(self._kinds, self._weights)
            if self._calls[kind]():
                self.world.faults_done[kind] += 1
                self.world.trace.note("fault", kind)

    def _machine(self) -> Machine | None:
        up = [machine for machine in self.world.machines.values() if machine.is_up]
        return self.random.choice(up) if up else None

    # ---- clients ------------------------------------------------------------------------------------------------

    def cut(self) -> bool:
        """Break a connection."""
        links = self.world.network.links()
        if links:
            self.random.choice(links).break_()
        return bool(links)

    def stall(self) -> bool:
        """Let nothing through a connection for a while."""
        links = self.world.network.links()
        if links:
            self.random.choice(links).stall(self.random.choice((0.2, 2.0, 5.0, 20.0)))
        return bool(links)

    def leave(self) -> bool:
        """End a program: in order, killed, or with its machine."""
        here = [program for program in self.world.programs if program.here]
        if here:
            program = self.random.choice(here)
            program.leave(self.random.choice(("goodbye", "killed", "killed", "gone")))
            if self.random.random() < 0.7:
                self.world.after(self.random.choice((0.01, 0.5, 3.0)), program.come_back)
        return bool(here)

    def freeze(self) -> bool:
        """Stop a program: it neither reads nor sends."""
        here = [program for program in self.world.programs if program.here]
        if here:
            program = self.random.choice(here)
            client = program.client
            assert client is not None
            client.network.frozen = True
            self.world.after(self.random.choice((0.1, 1.0, 3.0, 6.0)), client.network.thaw)
        return bool(here)

    # ---- processes ----------------------------------------------------------------------------------------------

    def kill_worker(self) -> bool:
        """Kill a worker; it is restarted a little later."""
        machine = self._machine()
        if machine is None or not machine.workers:
            return False
        number = self.random.choice(list(machine.workers))
        if self.random.random() < 0.2:
            machine.systems[f"worker-{number}"].stop_all()
        self._end_worker(machine, number)
        return True

    def _end_worker(self, machine: Machine, number: int) -> None:
        machine.kill(number)
        self.world.oracle.worker_died(machine.name, number, self.world.lives_at(machine.name))
        boot = machine.boots
        self.down.setdefault(machine.name, []).append(number)
        self.world.after(
            self.random.choice((0.1, 0.1, 1.0)), lambda: self._start_worker(machine, number, boot)
        )

    def die_at_work(self) -> bool:
        """Let a process be killed in the middle of what its threads do to the disk or the store."""
        machine = self._machine()
        if machine is None or machine.dies is not None:
            return False
        nodes = [node_of(number) for number in machine.workers] + [TIER] * (TIER in machine.systems)
        if not nodes:
            return False
        machine.dies = (self.random.choice(nodes), self.random.randrange(6))
        machine.on_death = lambda node: self._died(machine, node)
        return True

    def _died(self, machine: Machine, node: str) -> None:
        if node == TIER:
            machine.kill_tier()
            self.world.after(0.2, lambda: self._start_tier(machine))
        else:
            self._end_worker(machine, int(node.removeprefix("worker-")))

    def _start_worker(self, machine: Machine, number: int, _boot: int) -> None:
        if machine.is_up and number not in machine.workers and number < len(machine.endpoints):
            self.down[machine.name].remove(number)
            machine.start(number)

    def kill_broker(self) -> bool:
        """Kill the broker process with its children; it may return with another number of workers."""
        machine = self._machine()
        if machine is None:
            return False
        self._all_down(machine)
        self.world.after(self.random.choice((0.2, 1.0)), lambda: self._start_machine(machine))
        return True

    def _all_down(self, machine: Machine) -> None:
        lives_at = self.world.lives_at(machine.name)
        for number in list(machine.workers):
            self.world.oracle.worker_died(machine.name, number, lives_at)
        self.world.oracle.disturbed(machine.name)
        machine.had_tier = TIER in machine.systems
        machine.kill_all()
        self.down[machine.name] = []
        self.off.add(machine.name)

    def _start_machine(self, machine: Machine) -> None:
        if machine.name in self.off:
            self.off.discard(machine.name)
            workers = len(machine.endpoints)
            if self.random.random() < 0.2:
                workers = self.random.choice((1, 2, 3))
            machine.start_all(workers, tier=machine.had_tier)

    def power(self) -> bool:
        """Cut the power of a machine: parts of what was not synced may be lost."""
        machine = self._machine()
        if machine is None:
            return False
        self._all_down(machine)
        machine.lose_power(self.random)
        self.world.oracle.power_lost(machine.name)
        self.world.after(self.random.choice((0.5, 2.0)), lambda: self._start_machine(machine))
        return True

    def mistake(self) -> bool:
        """Let an actor fail."""
        machine = self._machine()
        if machine is None:
            return False
        actors = machine.actors(self.random.choice(("topic", "subscription", "consumer")))
        if actors:
            actor = self.random.choice(actors)
            self.world.oracle.disturbed(machine.name)
            actor.fail(RuntimeError("a mistake"))
        return bool(actors)

    def hold_mail(self) -> bool:
        """Let a process receive no mail from another one for a while, perhaps for so long that some is dropped."""
        machine = self._machine()
        if machine is None:
            return False
        nodes = list(machine.systems)
        sender, node = self.random.choice(nodes), self.random.choice(nodes)
        if sender == node or (sender, node) in machine.held:
            return False
        machine.overflow = self.random.choice((None, 0, 3))
        machine.hold(sender, node)
        self.world.after(
            self.random.choice((0.05, 0.5, 3.0)),
            lambda: machine.let_go(sender, node) if machine.is_up else None,
        )
        return True

    # ---- the tier and its store ---------------------------------------------------------------------------------

    def kill_tier(self) -> bool:
        """Kill the tier; what it had sent to the store is there in any case."""
        machine = self._machine()
        if machine is None or TIER not in machine.systems:
            return False
        machine.kill_tier()
        self.world.after(self.random.choice((0.1, 1.0)), lambda: self._start_tier(machine))
        return True

    def _start_tier(self, machine: Machine) -> None:
        if machine.is_up and machine.store is not None and TIER not in machine.systems:
            machine.restart_tier()

    def store_away(self) -> bool:
        """Make the store unavailable for a while."""
        return self._hurt_store(1.0, before=True)

    def store_flaky(self) -> bool:
        """Let some calls to the store fail for a while, or succeed and lose their answers."""
        return self._hurt_store(self.random.choice((0.1, 0.5)), before=self.random.random() < 0.5)

    def lose_object(self) -> bool:
        """Delete a segment from the store, as somebody without the right to do so."""
        store, random = self.world.store, self.world.more
        names = sorted(info.name for info in store.list("v1/d/") if "/s/" in info.name)
        if not names:
            return False
        name = random.choice(names)
        for topic in self.world.oracle.topics.values():
            if f"/{encode_topic(topic.name)}." in name:
                topic.lost = True
        self.world.trace.note("lost", name.rpartition("/")[2])
        return store.delete(name)

    def _hurt_store(self, often: float, *, before: bool) -> bool:
        machine = self._machine()
        if machine is None or machine.store is None:
            return False
        store, random = machine.store, self.random

        def fail(operation: str, name: str) -> None:
            if random.random() < often:
                raise StoreError(f"{operation} {name} failed")

        if before:
            store.before = fail
        else:
            store.after = fail
        self.world.after(self.random.choice((0.5, 2.0)), store.back)
        return True

    # ---- disks --------------------------------------------------------------------------------------------------

    def disk_error(self) -> bool:
        """Let some writes or syncs fail."""
        machine = self._machine()
        if machine is None:
            return False
        left = [self.random.choice((1, 3))]
        where, kind = self.random.choice(("/topics/", "/cursors/")), self.random.choice(("sync", "write"))
        oracle, disk = self.world.oracle, machine.disk

        def happens(operation: str, path: str) -> None:
            if operation == kind and where in path and left[0]:
                left[0] -= 1
                oracle.disturbed(machine.name)
                self.world.after(1.5, lambda: oracle.disturbed(machine.name))
                self.world.trace.note("disk error", operation, path)
                raise OSError(5, "Input/output error")

        disk.on_operation = happens
        return True

    def folder_error(self) -> bool:
        """Let the next syncs of a folder fail: files that were renamed or created may have their names or not."""
        machine = self._machine()
        if machine is None:
            return False
        left = [self.random.choice((1, 1, 3))]
        where = self.random.choice(("/topics/", "/cursors/", "/cursors/"))
        oracle, disk = self.world.oracle, machine.disk

        def happens(operation: str, path: str) -> None:
            if operation == "sync_folder" and where in f"{path}/" and left[0]:
                left[0] -= 1
                oracle.disturbed(machine.name)
                self.world.after(1.5, lambda: oracle.disturbed(machine.name))
                self.world.trace.note("folder error", path)
                raise OSError(5, "Input/output error")

        disk.on_operation = happens
        return True

    def set_clock(self) -> bool:
        """Set a machine's clock, by up to a year; its monotonic clock continues."""
        machine = self._machine()
        if machine is None:
            return False
        off_ms = self.world.more.choice(CLOCKS_MS)
        machine.wall.step(self.world.clock.now_s, off_ms)
        return True

    def full_disk(self) -> bool:
        """Fill the disk for a while."""
        machine = self._machine()
        if machine is None:
            return False
        disk = machine.disk
        disk.room = self.random.choice((0, 1000, 100_000))
        self.world.oracle.disturbed(machine.name)

        def room() -> None:
            disk.room = None
            self.world.oracle.disturbed(machine.name)

        self.world.after(self.random.choice((0.5, 3.0)), room)
        return True

    def slow_disk(self) -> bool:
        """Let blocking calls take long for a while."""
        machine = self._machine()
        if machine is None:
            return False
        machine.slow_disk_s = self.random.choice((0.05, 0.5))

        def fast() -> None:
            machine.slow_disk_s = 0.0

        self.world.after(self.random.choice((0.5, 2.0)), fast)
        return True

    # ---- recovery -----------------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Release what is held up, one at a time."""
        machine = self._machine()
        if machine is not None and machine.held:
            machine.let_go(*min(machine.held))

    def heal(self) -> None:
        """End all faults."""
        world = self.world
        for machine in world.machines.values():
            if machine.name in self.off:
                self._start_machine(machine)
            for pair in sorted(machine.held):
                machine.let_go(*pair)
            for number in range(len(machine.endpoints)):
                if number not in machine.workers:
                    machine.start(number)
            if machine.store is not None:
                machine.store.back()
                self._start_tier(machine)
            machine.dies = None
            machine.disk.on_operation = None
            machine.disk.room = None
            machine.slow_disk_s = 0.0
            if machine.wall.off_ms:
                machine.wall.step(world.clock.now_s, 0)
            world.oracle.disturbed(machine.name)
        for link in world.network.links():
            link.stalled_until = 0.0
        for program in world.programs:
            if program.client is not None:
                program.client.network.thaw()
