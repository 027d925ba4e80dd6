"""A world: brokers, clients, disks and networks in one thread, under a virtual clock; everything follows from a seed.

`World(seed).run()` draws the contents, lets them run for a while with faults, then ends all faults and asks the oracle.
Two runs of one seed are the same, event for event.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

from ister.actors import lanes, slots
from ister.actors.placement import subscription_key, worker_of
from ister.actors.runtime import LoopActor
from ister.bodies import decode_attributes
from ister.storage.claiming import list_history
from ister.storage.disk import Disk
from ister.storage.folderstore import FolderStore
from ister.storage.simulated import SimulatedDisk
from ister.storage.stored_topics import list_topics
from ister.wire import Column, Key, Type
from tests.raw_client import Frame
from tests.sim import patterns, remade
from tests.sim.broker import Machine
from tests.sim.clients import SimClient
from tests.sim.faults import Faults
from tests.sim.limits import LIMITS
from tests.sim.links import Network
from tests.sim.model import SubscriptionModel, TopicModel
from tests.sim.oracle import RESUME_WITHIN_MS, Oracle
from tests.sim.plans import Plan, draw_besides, draw_more, draw_plan
from tests.sim.programs import Consuming, Deleting, Operating, Producing, Program, Reading
from tests.sim.trace import Trace
from tests.stage import StagedClient, StagedClock, StagedLoop

DRAIN_S = 90.0  # of virtual time; within this everything must have come to rest once the faults have ended
TRIMMED_S = 65.0  # the store's history is trimmed once a minute at most
TOLD_S = 45.0  # if mail about a deletion was lost, its receiver is asked again every half minute
SESSION_TIMEOUT_MS = 4000
HEARTBEAT_MS = 1500
SLOTS = 64  # of Key-Shared: sharing out 16,384 takes long, and there are ten keys
PARTS = {  # the parts of an actor that belong to it alone (`ister.actors.source` has a bounded cache)
    "ister.actors.ledger",
    "ister.actors.selection",
    "ister.actors.lanes",
    "ister.actors.slots",
    "ister.actors.delays",
    "ister.actors.poison",
    "ister.actors.consumer_holding",
    "ister.actors.consumer_wire",
    "ister.actors.subscription.acknowledgments",
    "ister.actors.subscription.attaching",
    "ister.actors.subscription.by_key",
    "ister.actors.subscription.consumers",
    "ister.actors.subscription.cursor_log",
    "ister.actors.subscription.failures",
    "ister.actors.subscription.from_memory",
    "ister.actors.subscription.in_order",
    "ister.actors.subscription.log_access",
    "ister.actors.subscription.log_parts",
    "ister.actors.subscription.move",
    "ister.actors.subscription.moving",
    "ister.actors.subscription.reading",
    "ister.actors.subscription.remembered",
    "ister.actors.subscription.schedule",
    "ister.actors.open_questions",
    "ister.actors.publishers",
    "ister.actors.receipts",
    "ister.actors.store_link",
    "ister.actors.store_view",
    "ister.actors.store_writer",
    "ister.actors.stored_cursors",
    "ister.actors.stored_erasure",
    "ister.actors.stored_history",
    "ister.actors.stored_retention",
    "ister.actors.stored_settings",
    "ister.actors.surveys",
    "ister.actors.topic",
    "ister.actors.topic_intake",
    "ister.actors.topic_log",
    "ister.actors.directory.erasing",
    "ister.actors.directory.gathering",
    "ister.actors.directory.homes",
    "ister.actors.directory.restoring",
    "ister.actors.directory.topics",
    "ister.storage.cursor",
    "ister.storage.cursor_files",
    "ister.storage.cursor_journal",
    "ister.storage.ranges",
}
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None  # the catalogue is a real file


# entries in the collections of an idle actor: ids, names, last batches, a cache of some batches
KEPT_MAX = 800


def footprint(actor: LoopActor) -> int:
    """Return how many entries an actor's own lists, maps and heaps have, with those of its parts."""
    found, stack, seen = 0, [vars(actor)], {id(actor)}
    while stack:
        thing: Any = stack.pop()
        if id(thing) in seen or len(seen) > 20_000:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            found += len(thing)
            stack.extend(thing.values())
        elif isinstance(thing, list | set | deque | OrderedDict) and len(thing) != SLOTS:
            found += len(thing)
            stack.extend(thing)
        elif type(thing).__module__ in PARTS:
            slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
            stack.append(
                getattr(thing, "__dict__", {}) | {n: getattr(thing, n) for n in slots if hasattr(thing, n)}
            )
    return found


class HistoryError(AssertionError):
    """A broken promise: with the seed that repeats it, and the last events."""

    def __init__(self, seed: int, violations: list[str], trace: Trace) -> None:
        text = "\n  ".join(violations)
        super().__init__(f"seed {seed}:\n  {text}\nthe last events:\n{trace.last(60)}")
        self.seed, self.violations = seed, violations


class World:
    """One history."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = StagedClock()
        self.loop = StagedLoop(self.clock)
        self.trace = Trace(self.clock)
        self.counts: Counter[str] = Counter()
        self.faults_done: Counter[str] = Counter()
        self.oracle = Oracle(self.clock, self.trace, SESSION_TIMEOUT_MS / 1000)
        self.network = Network(self.loop, self.random, self.counts)
        self.quiet = False  # there are no faults any more, nothing new is sent, everything is acknowledged
        self.resting = False  # nothing is sent or requested
        self.plan = draw_plan(self.random) if plan is None else plan
        self.more = Random(f"more of {seed}")  # so that additional draws do not change the earlier ones
        if plan is None:
            draw_more(self.more, self.plan)
            draw_besides(Random(f"besides {seed}"), self.plan)
        self.store = FolderStore("/store", cast(Disk, SimulatedDisk()), self.clock)  # on a disk of its own
        self.folder = Path(tempfile.mkdtemp(dir=SCRATCH))
        self.machines: dict[str, Machine] = {}
        self.programs: list[Program] = []
        # programs without faults of their own
        self.operators: list[Operating | Deleting | patterns.Making | remade.Remaking] = []
        self._names = 0
        if self.random.random() < 0.5:
            self.loop.chaos = Random(self.random.getrandbits(32))
        self.faults = Faults(self)

    # ---- what programs ask of it --------------------------------------------------------------------------------

    def after(self, seconds: float, call: Callable[[], Any]) -> None:
        """Make a call later."""
        self.loop.call_later(seconds, call)

    def next_name(self, prefix: str) -> str:
        """Return an unused name."""
        self._names += 1
        return f"{prefix}{self._names}"

    def new_client(self, machine: str) -> SimClient:
        """Return a client that knows some of a broker's endpoints, one of them of a worker that always exists."""
        endpoints = [
            self.machines[machine].endpoints[0],
            self.random.choice(self.machines[machine].endpoints),
        ]
        self.random.shuffle(endpoints)
        return SimClient(
            list(dict.fromkeys(endpoints)), self.network, Random(self.random.getrandbits(32)), self.clock
        )

    def admin(self, machine: str, worker: int = 0) -> StagedClient:
        """Return a raw client beside the network, for requests before and after the history."""
        client = self.machines[machine].client(worker)
        client.patience_s = 30
        return client

    # ---- the run ------------------------------------------------------------------------------------------------

    def run(self) -> World:
        """Run the history; raises `HistoryError`."""
        with patch.object(lanes, "SLOTS", SLOTS), patch.object(slots, "SLOTS", SLOTS):
            self._live()
        return self

    def _live(self) -> None:
        try:
            self._set_up()
            end = self.clock.now_s + self.plan.lasts_s
            rest_at_s = self.clock.now_s + self.plan.rest_at_s if self.plan.rest_s else end
            while self.clock.now_s < end:
                if self.clock.now_s >= rest_at_s:
                    self._rest()
                    end, rest_at_s = end + self.plan.rest_s, float("inf")
                self.loop.advance(self.random.choice((0.01, 0.05, 0.3)))
                self._check()
                self.faults.step()
            self._drain()
            self._read_everything()
            self._check_memory()
            self._check()
        except AssertionError as error:
            if isinstance(error, HistoryError):
                raise
            raise HistoryError(self.seed, [*self.oracle.violations, str(error)], self.trace) from error
        finally:
            self._close()

    def _rest(self) -> None:
        """Let everything rest for longer than anything is kept open; faults are rarer meanwhile."""
        self.resting, end = True, self.clock.now_s + self.plan.rest_s
        self.trace.note("rest")
        while self.clock.now_s < end:
            for _ in range(4):
                self.loop.advance(1.0)
                self._check()
            self.faults.step()
        self.resting = False
        self.trace.note("awake")

    def _set_up(self) -> None:
        plan = self.plan
        (self.folder / "a").mkdir()
        machine = self.machines["a"] = Machine(
            self.folder / "a",
            plan.workers,
            name="a",
            loop=self.loop,
            random=self.random,
            network=self.network,
            tap=self.oracle,
            trace=self.trace,
            **self._flags(),
        )
        machine.disk.rests = plan.rests_files
        self.oracle.clocks["a"] = machine.wall
        self.oracle.has_store = plan.cloud
        if plan.cloud:
            machine.use_store(self.store)
        self.loop.settle()
        client = self.admin("a")
        for topic in plan.topics:
            client.request("topic.create", topic=topic.name, dispatch=topic.strategy, **topic.settings)
            self.oracle.add_topic(
                TopicModel(
                    topic.name,
                    topic.strategy,
                    topic.durability,
                )
            ).limits.begin(topic.settings)
            for each in topic.subscriptions:
                client.request(
                    "subscription.create",
                    topic=topic.name,
                    subscription=each.name,
                    type=each.kind,
                    start="earliest",
                    **each.options,
                )
                self.oracle.add_subscription("a", topic.name, each.name, each.kind, each.options)
        for topic in plan.topics:
            model = self.oracle.topics[topic.name]
            for ways, messages in topic.producers:
                self.programs.append(Producing(self, "a", model, ways, messages))
            for each in topic.subscriptions:
                subscription = self.oracle.subscriptions["a", topic.name, each.name]
                for consumer_ways in each.consumers:
                    self.programs.append(Consuming(self, "a", subscription, consumer_ways))
            for think_s, credit in topic.readers:
                self.programs.append(Reading(self, "a", model, think_s, credit))
            mine = [each for each in self.oracle.of_machine("a") if each.topic is model]
            blocks = any(each.options.get("poison") == "block" for each in mine)
            if topic.operator or blocks:
                self.operators.append(Operating(self, "a", topic.operator or ["unblock"], mine))
        pattern = None if plan.pattern is None else patterns.set_up(self, plan.pattern)
        if plan.remade is not None:
            remade.set_up(self, plan.remade, pattern)
        if plan.takeover_after_s:
            self.after(plan.takeover_after_s, self._take_over)

    def _take_over(self) -> None:
        """Start another broker on the store alone; the first one continues, and knows nothing of it."""
        (self.folder / "b").mkdir()
        machine = self.machines["b"] = Machine(
            self.folder / "b",
            self.plan.workers,
            name="b",
            loop=self.loop,
            random=self.random,
            network=self.network,
            tap=self.oracle,
            trace=self.trace,
            waits_for_store=True,
            **self._flags(),
        )
        machine.disk.rests = self.plan.rests_files
        self.oracle.clocks["b"] = machine.wall
        machine.use_store(self.store)
        self.faults_done["takeover"] += 1
        for topic in self.plan.topics:
            model = self.oracle.topics[topic.name]
            # Segments are uploaded side by side: one that was not stored yet is missing between others.
            model.lost = model.lost or self._has_gap(topic.name)
            if self.plan.deletes_behind:
                self.operators.append(Deleting(self, "a", model))
            for ways, messages in topic.producers:
                self.programs.append(Producing(self, "b", model, ways, messages))
            for each in topic.subscriptions:
                before = self.oracle.subscriptions["a", topic.name, each.name]
                # a topic that was not in the store yet begins with the default settings
                known = {name: each.options[name] for name in ("ack_timeout_ms",) if name in each.options}
                subscription = self.oracle.add_subscription("b", topic.name, each.name, each.kind, known)
                # what was acknowledged before it came to the store
                subscription.done_otherwise = before.acknowledged
                for consumer_ways in each.consumers:
                    self.programs.append(Consuming(self, "b", subscription, consumer_ways))

    def _has_gap(self, topic: str) -> bool:
        """Whether the store lacks offsets between others that it has of a topic."""
        stored = [each for each in list_topics(self.store) if each.name == topic]
        return any(list_history(self.store, each.layout).history.gaps for each in stored)

    def owner_of(self, topic: TopicModel) -> str:
        """Return the broker that has a topic at the end: the one that took it over, unless the first took it back."""
        if "b" not in self.machines:
            return "a"
        failures = [
            getattr(actor, "failure", None) for actor in self.machines["b"].actors("topic", topic.name)
        ]
        return "a" if any(failure is not None and failure.code == "fenced" for failure in failures) else "b"

    def _flags(self) -> dict[str, Any]:
        return {
            "protocol__session_timeout_ms": SESSION_TIMEOUT_MS,
            "protocol__heartbeat_ms": HEARTBEAT_MS,
            "protocol__resume_within_ms": RESUME_WITHIN_MS,
            "protocol__message_bytes_max": 20_000,
            "protocol__batch_bytes_max": 20_000,
            "log__segment_bytes_max": (1 << 20) + 60_000,
            "log__segment_age_ms_max": 2000,
            **self.plan.flags,
        }

    def _check(self) -> None:
        if self.oracle.violations:
            raise HistoryError(self.seed, self.oracle.violations, self.trace)

    def lives_at(self, machine: str) -> dict[tuple[str, str], int]:
        """Return on which worker each subscription of a broker runs."""
        workers = len(self.machines[machine].endpoints)
        return {
            (each.topic.name, each.name): worker_of(subscription_key(each.topic.name, each.name), workers)
            for each in self.oracle.of_machine(machine)
        }

    # ---- the end ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """End all faults, and check that everything comes to rest."""
        self.faults.heal()
        self.quiet = True
        self.trace.note("quiet")
        for program in self.programs:
            program.come_back()
            if isinstance(program, Consuming):
                program.later(0.1, program.finish)
        deadline = self.clock.now_s + DRAIN_S
        while self.clock.now_s < deadline:
            self.loop.advance(0.5)
            self._check()
            if self._at_rest():
                return
            self._repair()
        for program in self.programs:
            if isinstance(program, Producing) and not program.done and self._counts(program):
                self.oracle.violated(f"{program.name}: {program.waiting} messages have no receipt")
            if isinstance(program, Reading) and not program.done and self._counts(program):
                self.oracle.violated(f"{program.name} has read up to {program.next} of {program.topic.end}")
        for operator in self.operators:
            if not operator.done:
                self.oracle.violated(f"{operator.name} asked {operator.asked}, and has no answer")
        for subscription in self._subscriptions():
            if subscription.topic.strategy == "reliable" and (missing := self.oracle.missing(subscription)):
                held = {
                    offset: str(hold.consumer)
                    for offset in missing[:3]
                    if (hold := subscription.holds.get(offset))
                }
                self.oracle.violated(
                    f"{subscription} never came to an end: {missing[:8]} of {subscription.topic.end} is not "
                    f"acknowledged, {[subscription.sends[o] for o in missing[:8]]} times delivered since "
                    f"the last fault; held: {held}"
                )
        self._check()
        raise HistoryError(self.seed, ["nothing is missing, and it does not come to rest"], self.trace)

    def _repair(self) -> None:
        """Repair topics that lost objects, so that subscriptions continue after the gaps."""
        for topic in self.oracle.topics.values():
            if topic.lost and self.clock.now_s % 5 < 1:
                self.admin(self.owner_of(topic)).ask("topic.repair", topic=topic.name, skip_damaged=1)

    def _counts(self, program: Producing | Reading) -> bool:
        """Whether a program is at the broker that has its topic."""
        return program.machine == self.owner_of(program.topic)

    def _subscriptions(self) -> list[SubscriptionModel]:
        """Return the subscriptions at the brokers that have their topics."""
        every = self.oracle.subscriptions.values()
        return [each for each in every if each.machine == self.owner_of(each.topic)]

    def _at_rest(self) -> bool:
        if "b" not in self.machines and not all(operator.done for operator in self.operators):
            return False
        for each in self.programs:
            if isinstance(each, Producing | Reading) and not each.done and self._counts(each):
                return False
        reliable = [each for each in self._subscriptions() if each.topic.strategy == "reliable"]
        made = [each for each in reliable if each.follows is not None or each.by_consumers]
        if any(each.began_s == float("inf") for each in made):
            return False
        return not any(self.oracle.missing(each) for each in reliable)

    def _read_everything(self) -> None:
        """Read every reliable topic from its beginning, and ask for the cursors."""
        lifted = any(topic.limits.answered_s > 0 for topic in self.oracle.topics.values())
        self.loop.advance(TRIMMED_S if lifted and self.plan.cloud else 2.0)
        lost = any(machine.lost_mail for machine in self.machines.values())
        end_s = self.clock.now_s + (TOLD_S if lost else 0.0)
        while (untold := self.oracle.untold()) and self.clock.now_s < end_s:
            self.loop.advance(2.0)
        for what in untold:
            self.oracle.violated(what)
        for topic in self.oracle.topics.values():
            if topic.strategy != "reliable":
                continue
            name = self.owner_of(topic)
            mine = [each for each in self.oracle.of_machine(name) if each.topic is topic]
            end = self._end_of(name, topic.name)
            for each in mine:
                self._check_cursor(each, end)
                if each.options.get("max_deliveries") and each.options.get("poison") == "dead-letter":
                    self._check_dead_letters(self.admin(name), each)
            if topic.limits:  # messages that are too old are still there
                self.admin(name).request("topic.update", topic=topic.name, **dict.fromkeys(LIMITS, 0))
                self.loop.advance(0.1)
            if topic.generation:
                remade.check_nothing_left(self, self.machines[name], topic.name)
            self.oracle.read_back(topic, self._read(self.machines[name], topic.name, end))

    def _end_of(self, machine: str, topic: str) -> int:
        """Return a topic's end, once it can be asked."""
        for _ in range(60):
            shown = self.admin(machine).ask("topic.show", topic=topic)
            if shown.kind == Type.RESULT and "next_offset" in shown.result:
                return int(shown.result["next_offset"])
            self.loop.advance(1.0)
        raise AssertionError(f"{topic} does not say where it ends: {shown.header}")

    def _check_cursor(self, model: SubscriptionModel, end: int) -> None:
        topic, subscription = model.topic.name, model.name
        shown: dict[str, Any] = {}
        for _ in range(80):
            client = self.admin(model.machine)
            shown = client.request("subscription.show", topic=topic, subscription=subscription)
            if shown.get("cursor") == end:
                return
            self.loop.advance(1.0)
            self._repair()
        stands = shown.get("cursor", shown.get("failure"))
        self.oracle.violated(f"{model}: everything is acknowledged, and its cursor is {stands} of {end}")

    def _check_dead_letters(self, client: StagedClient, subscription: SubscriptionModel) -> None:
        """Read the subscription's dead-letter topic."""
        name = f"{subscription.topic.name}.{subscription.name}.dlq"
        shown = client.ask("topic.show", topic=name)
        letters: list[tuple[dict[str, str], bytes]] = []
        if shown.kind == Type.RESULT:
            for frame in self._frames(
                self.machines[subscription.machine], name, int(shown.result["next_offset"])
            ):
                attributes = [decode_attributes(each) for each in frame.column(Column.ATTRIBUTES)]
                payloads = [payload for _, payload in frame.messages()]
                letters += zip(attributes, payloads, strict=True)
        self.oracle.dead_letters(subscription, letters, quiet=not self.faults_done)

    def _read(self, machine: Machine, topic: str, end: int) -> list[tuple[int, bytes]]:
        return [message for frame in self._frames(machine, topic, end) for message in frame.messages()]

    def _frames(self, machine: Machine, topic: str, end: int) -> list[Frame]:
        found: list[Frame] = []
        reader = machine.at_subscription(topic, "everything")
        reader.patience_s = 30
        opened: Frame = reader.open_consumer(1, topic, "everything", "reader")  # it ignores delivery times
        assert opened.kind == Type.OPENED, opened.header
        count = int(opened.header[Key.OFFSET])
        while count < end:
            frame = reader.hear()
            if frame is None:
                self.oracle.violated(f"{topic} ends at {count}, and should have {end}")
                break
            lost = self.oracle.topics.get(topic)
            if frame.kind == Type.EVENT and lost is not None and lost.lost:
                first, many = int(frame.header[Key.OFFSET]), int(frame.header[Key.COUNT])
                lost.told.update(range(first, first + many))
                if frame.header[Key.CODE] == "log-damaged":
                    self.admin(machine.name).ask("topic.repair", topic=topic, skip_damaged=1)
                else:
                    count += many
            if frame.kind == Type.DELIVER:
                found.append(frame)
                count += int(frame.header[Key.COUNT])
                reader.credit(1, frame.header[Key.COUNT])
        return found

    def _check_memory(self) -> None:
        """Check that what has come to rest keeps nothing of single messages, and waits for nothing."""
        for machine in self.machines.values():
            for actor in (
                machine.actors("subscription") + machine.actors("consumer") + machine.actors("topic")
            ):
                if len(actor.inbox):
                    self.oracle.violated(
                        f"{machine.name}: {len(actor.inbox)} messages wait for {actor}, at rest"
                    )
                if (kept := footprint(actor)) > KEPT_MAX:
                    self.oracle.violated(f"{machine.name}: {actor} keeps {kept} things, at rest")

    def _close(self) -> None:
        for machine in self.machines.values():
            if machine.is_up:
                machine.close()
                machine.catalogue.close()
        shutil.rmtree(self.folder, ignore_errors=True)
