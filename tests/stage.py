"""A whole broker in one thread: several workers, their mail and their disk, under a clock that only tests move.

Everything above sockets, processes and threads is real: Directory, Frontends, gateways, topics, logs, subscriptions,
consumers. Replaced are ZeroMQ's ROUTER (`StagedRouter`), mail (every message is encoded and decoded, as between
processes), the disk (`ister.storage.simulated`) and time. The same calls give the same run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar, cast

import zmq

from ister.actors import loop
from ister.actors.addresses import BROKER, DIRECTORY_PATH, FRONTEND_PATH, TIER, node_of
from ister.actors.directory import Directory
from ister.actors.envelope import open_mail, seal_mail
from ister.actors.loop import Call, Scheduler
from ister.actors.process import NodeDown, NodeUp
from ister.actors.runtime import Address, LoopActor, Ref, System
from ister.actors.threads import Done, Purpose
from ister.actors.tier import spawn_tier
from ister.actors.worker import Worker, WorkerSettings
from ister.settings import Settings, load_settings
from ister.storage.catalogue import Catalogue
from ister.storage.disk import Disk
from ister.storage.folderstore import FolderStore
from ister.storage.objectstore import ObjectStore
from ister.storage.segment_maps import SegmentMaps
from ister.storage.simulated import SimulatedDisk
from ister.transport.gateway import Gateway, GatewayCounts
from ister.transport.session import SessionLimits, Sessions
from tests.faultystore import FaultyStore
from tests.raw_client import Frame, Speaker

T = TypeVar("T")


NOTHING_THERE = zmq.Again()  # one for all: creating one costs as much as a frame


class StagedClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.stepped_ms = 0  # by how much the wall clock was set

    def monotonic(self) -> float:
        return self.now_s

    def time_ms(self) -> int:
        return 1_700_000_000_000 + int(self.now_s * 1000) + self.stepped_ms


class StagedLoop(Scheduler):
    """A loop without waiting; work for threads is done between turns, or when a test says so."""

    def __init__(self, clock: StagedClock) -> None:
        super().__init__(clock)
        self.time = clock
        self.chaos: Random | None = None  # turns end early, and inboxes are run in any order
        self.holds_work = False  # work for threads waits in `work` until `do_work`
        self.work: deque[tuple[str, Callable[[], Any], Callable[[Any, BaseException | None], None]]] = deque()
        self._watched: dict[Any, Call] = {}

    def run_turn(self, now: float) -> None:
        """Run a turn as the real loop does, or, with chaos, as if far more waited than a turn handles."""
        if self.chaos is None:
            super().run_turn(now)
            return
        limits = loop.MESSAGES_PER_INBOX_PER_TURN, loop.MESSAGES_PER_TURN
        self.ready.rotate(self.chaos.randrange(4))
        try:
            loop.MESSAGES_PER_INBOX_PER_TURN = self.chaos.choice([1, 2, 64])  # type: ignore[misc]
            loop.MESSAGES_PER_TURN = self.chaos.choice([1, 2, 5, 1024])  # type: ignore[misc]
            super().run_turn(now)
        finally:
            loop.MESSAGES_PER_INBOX_PER_TURN, loop.MESSAGES_PER_TURN = limits  # type: ignore[misc]

    def watch(self, source: Any, ready: Call, *, sends: bool = False) -> None:
        self._watched[source] = ready

    def unwatch(self, source: Any) -> None:
        self._watched.pop(source, None)

    def offload(self, work: Callable[[], T], done: Done[T], purpose: Purpose = Purpose.OTHER) -> None:
        self.work.append(("", work, done))

    def call_threadsafe(self, call: Call) -> None:
        self.call_soon(call)

    def do_work(self, *, error: BaseException | None = None) -> None:
        """Do the oldest waiting work, or let it fail."""
        _, work, done = self.work.popleft()
        result: Any = None
        if error is None:
            try:
                result = work()
            except Exception as raised:  # noqa: BLE001 - as the real loop: whatever it is, `done` is told
                error = raised
        done(result, error)

    def once(self) -> None:
        """Run one turn: sockets, then calls, timers and inboxes."""
        self.sockets()
        self.run_turn(self.time.now_s)

    def sockets(self) -> None:
        """Read what clients sent, and do nothing else: the resulting messages wait in inboxes."""
        spoken = [ready for source, ready in self._watched.items() if source.incoming]
        for ready in spoken:
            ready()

    def turns_until(self, so: Callable[[], object]) -> None:
        """Run turn after turn until a condition holds."""
        for _ in range(1000):
            if so():
                return
            self.once()
            if self.work and not self.holds_work:
                self.do_work()
        raise AssertionError("it never is so")

    def settle(self, turns_max: int = 100_000) -> None:
        """Run until only time could bring something new."""
        for _ in range(turns_max):
            while self.work and not self.holds_work:
                self.do_work()
            if not (self.ready or self._soon or self._turn_end):
                due = self.next_due()
                if (due is None or due > self.time.now_s) and not self._is_spoken_to():
                    return
            self.once()
        raise AssertionError(f"not settled after {turns_max} turns")

    def _is_spoken_to(self) -> bool:
        return any(source.incoming for source in self._watched)

    def advance(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, timer by timer, at most until a condition holds."""
        end = self.time.now_s + seconds
        self.settle()
        while not until():
            due = self.next_due()
            if due is None or due > end:
                self.time.now_s = end
                return
            self.time.now_s = max(self.time.now_s, due)
            self.settle()


class _NodeLoop:
    """The loop as one node sees it: its work for threads ends with the node."""

    def __init__(self, loop: StagedLoop, node: str) -> None:
        self._loop, self._node = loop, node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def offload(self, work: Callable[[], Any], done: Done[Any], purpose: Purpose = Purpose.OTHER) -> None:
        self._loop.work.append((self._node, work, done))


class StagedFrame(NamedTuple):
    """A frame that was taken from a router."""

    bytes: bytes
    more: bool


class StagedRouter:
    """The ROUTER of one worker: frames from clients, and frames to them."""

    def __init__(self) -> None:
        self.incoming: deque[list[bytes]] = deque()
        self._parts: deque[bytes] = deque()  # of the message that is being read
        self.out: dict[bytes, deque[list[bytes]]] = {}  # by routing id of connected clients
        self.full: set[bytes] = set()
        self.on_send: Callable[[bytes, list[bytes]], None] = lambda _routing, _parts: None
        # called for each new connection, like a monitor
        self.on_closed: Callable[[bytes], None] = lambda _routing: None

    def setsockopt(self, *_option: Any) -> None:
        """Set an option."""

    def bind(self, _endpoint: str) -> None:
        """Listen."""

    def getsockopt(self, _option: int) -> int:
        """Return whether something can be read, as ZMQ_EVENTS does."""
        return int(zmq.POLLIN) if self._parts or self.incoming else 0

    def recv(self, _flags: int = 0, copy: bool = True) -> Any:
        """Return the next frame, as bytes or as an object that says whether more follow."""
        if not self._parts:
            if not self.incoming:
                raise NOTHING_THERE.with_traceback(None)
            self._parts = deque(self.incoming.popleft())
        part = self._parts.popleft()
        return part if copy else StagedFrame(part, bool(self._parts))

    def send_multipart(self, parts: Sequence[Any], _flags: int = 0, **_more: Any) -> None:
        routing = bytes(parts[0])
        if routing not in self.out:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if routing in self.full:
            raise zmq.Again
        copied = [bytes(part) for part in parts[1:]]
        self.on_send(routing, copied)
        self.out[routing].append(copied)

    def close(self, linger: int = 0) -> None:
        """Close."""


class StagedMail:
    """A node's mail: encoded and decoded as between processes, in order, and held back when a test says so."""

    def __init__(self, stage: Stage, node: str, boot: int) -> None:
        self.stage, self.node, self.boot = stage, node, boot
        self.sent = self.received = self.dropped = 0
        self.deliver: Callable[[str, object], None] = lambda _path, _message: None

    def attach(self, _loop: Scheduler, deliver: Callable[[str, object], None]) -> None:
        self.deliver = deliver

    def send(self, address: Address, message: object) -> None:
        self.sent += 1
        sealed, frames = seal_mail(self.node, self.boot, address.path, message)
        self.stage.post(self, address.node, sealed, [bytes(frame) for frame in frames])


class StagedClient(Speaker):
    """A client of one staged worker; time passes while it waits."""

    patience_s = 13.0  # the Directory waits for what is about to be available
    opened: Frame  # what a test may note: the answer to its open, its topic, its next sequence
    topic = ""
    sequence = 0

    def __init__(self, stage: Stage, worker: int, *, hello: bool = True) -> None:
        super().__init__()
        self.stage, self.worker = stage, worker
        self.routing = b""
        self.connect()
        if hello:
            self.hello()

    @property
    def router(self) -> StagedRouter:
        """The present router of the worker it uses."""
        return self.stage.routers[self.worker]

    def connect(self) -> None:
        """Connect, under a new routing id, to the present worker."""
        self.stage.routings += 1
        self.routing = b"\0%04d" % self.stage.routings
        self.router.out[self.routing] = deque()

    def disconnect(self) -> None:
        """Lose the connection, unnoticed: what was in transit to this client is lost."""
        self.router.out.pop(self.routing, None)
        self.unread.clear()

    def die(self) -> None:
        """Die: the kernel closes the connection."""
        self.disconnect()
        self.router.on_closed(self.routing)

    def reconnect(self, *, resume: bool = True) -> Frame:
        """Connect again and send HELLO."""
        self.disconnect()
        self.connect()
        return self.hello(session=self.session if resume else None)

    def put(self, parts: Sequence[bytes]) -> None:
        if self.routing in self.router.out:
            self.router.incoming.append([self.routing, *parts])

    def take(self, timeout_s: float) -> list[bytes] | None:
        mine = self.router.out.get(self.routing)
        self.stage.loop.settle()
        if mine is None:
            return None
        if not mine and timeout_s > 0:
            self.stage.loop.advance(timeout_s, until=lambda: bool(mine))
        return mine.popleft() if mine else None


def settings_of(**flags: Any) -> Settings:
    """Return settings with some changed: `settings_of(protocol__heartbeat_ms=100)`."""
    return load_settings(None, {}, {key.replace("__", "."): str(value) for key, value in flags.items()})


class Stage:
    """A broker with `workers` workers, in one thread."""

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        *,
        loop: StagedLoop | None = None,
        random: Random | None = None,
        endpoints: str = "tcp://worker-",
        waits_for_store: bool = False,
        **flags: Any,
    ) -> None:
        """`loop` and its clock may be shared with other stages; `random` generates incarnations and secrets."""
        self.settings = settings_of(**flags)
        self.loop = StagedLoop(StagedClock()) if loop is None else loop
        self.clock = self._clock_of(self.loop)
        self.disk = SimulatedDisk()
        self.disk.makedirs("/data")
        self.folder = folder
        self.routings = 0
        self.boots = 0
        self.random = Random(1) if random is None else random
        self.held: set[tuple[str, str]] = set()  # (from, to): mail that waits until `let_go`
        self.holding: list[tuple[StagedMail, str, bytes, list[bytes]]] = []
        self.mail: dict[str, StagedMail] = {}
        self.systems: dict[str, System] = {}
        self.routers: dict[int, StagedRouter] = {}
        self.workers: dict[int, Worker] = {}
        self.failures: list[tuple[str, Exception]] = []  # of actors, by path
        self.expects_failures = False
        self.clients: list[StagedClient] = []
        self._endpoints = endpoints
        self.endpoints = [f"{endpoints}{number}" for number in range(workers)]
        self.store: FaultyStore | None = None
        self.waits_for_store = waits_for_store
        self.catalogue = self._open_catalogue()
        self._start_directory()
        for number in range(workers):
            self.start(number)
        self.loop.settle()

    # ---- processes ----------------------------------------------------------------------------------------------

    def _clock_of(self, loop: StagedLoop) -> StagedClock:
        """Return the machine's clock."""
        return loop.time

    def _open_catalogue(self) -> Catalogue:
        return Catalogue(str(self.folder / "catalogue.sqlite"))

    def _system(self, node: str) -> System:
        self.boots += 1
        mail = self.mail[node] = StagedMail(self, node, self.boots)
        loop = cast(Scheduler, self._loop_of(node))
        system = self.systems[node] = System(node, loop, mail, self.clock, self.random)
        system.on_actor_failure = lambda path, error: self.failures.append((path, error))
        return system

    def _loop_of(self, node: str) -> _NodeLoop:
        """Return the loop as a node that is about to start sees it."""
        return _NodeLoop(self.loop, node)

    def _make_router(self) -> StagedRouter:
        return StagedRouter()

    def _start_directory(self) -> None:
        system = self._system(BROKER)
        system.spawn(
            Directory,
            DIRECTORY_PATH,
            self.catalogue,
            endpoints=self.endpoints,
            describe_broker=lambda: {"node": BROKER, "role": "broker"},
            waits_for_store=self.waits_for_store,
            defaults=self.settings.subscription,
        )

    def start(self, number: int) -> None:
        """Start a worker, and tell the others."""
        node = node_of(number)
        system = self._system(node)
        boot = self.mail[node].boot
        router = self.routers[number] = self._make_router()
        listeners: list[Ref] = []
        context = SimpleNamespace(
            node=node,
            boot=boot,
            folder="/run",
            zmq=SimpleNamespace(socket=lambda _kind: router),
            clock=self.clock,
            loop=self.loop,
            system=system,
            mail=self.mail[node],
            listen=listeners.append,
            stop=lambda code=0: self.failures.append((node, RuntimeError(f"stopped with {code}"))),
        )
        given = WorkerSettings(self.settings, "/data", "staged", self.endpoints[number])
        worker = self.workers[number] = Worker(cast(Any, context), given)
        worker._disk = cast(Disk, self.disk)  # type: ignore[assignment]
        worker._maps = SegmentMaps(cast(Disk, self.disk))
        worker.gateway.sessions._new_token = lambda: self.random.randbytes(16)
        failed = system.on_actor_failure

        def on_failure(path: str, error: Exception) -> None:
            self.failures.append((path, error))
            failed(path, error)

        system.on_actor_failure = on_failure
        worker.gateway.bind("staged", worker.frontend)
        router.on_closed = worker.gateway.connection_closed
        self.loop.watch(cast(Any, router), worker.gateway.receive, sends=True)
        self._tell_all(NodeUp(node, boot, 1, self.endpoints[number]))
        for other in self.workers:
            if other != number:
                up = node_of(other)
                self._tell(node, NodeUp(up, self.mail[up].boot, 1, self.endpoints[other]))

    # ---- the tier -----------------------------------------------------------------------------------------------

    def start_tier(self) -> FaultyStore:
        """Start the tier, whose store is on the same disk, and return the store, which can be made to fail."""
        if self.store is None:
            self.store = FaultyStore(FolderStore("/store", cast(Disk, self.disk), self.clock))
        self._spawn_tier(self.store)
        self.loop.settle()
        return self.store

    def _spawn_tier(self, store: FaultyStore) -> None:
        system = self._system(TIER)
        self.disk.makedirs("/data")
        spawn_tier(system, cast(ObjectStore, store), cast(Disk, self.disk), "/data", self.settings.tier)
        self._tell_all(NodeUp(TIER, self.mail[TIER].boot, 1, ""))

    def kill_tier(self) -> None:
        """Kill the tier like SIGKILL; the work of its threads is not done."""
        self._drop(TIER)
        self._tell_all(NodeDown(TIER, 0, "killed"))

    def _tell_all(self, change: NodeUp | NodeDown) -> None:
        self._tell(BROKER, change)
        for number in self.workers:
            self._tell(node_of(number), change)

    def _tell(self, node: str, change: NodeUp | NodeDown) -> None:
        """Tell one node that another came or went."""
        path = DIRECTORY_PATH if node == BROKER else FRONTEND_PATH
        self.systems[node].ref(node, path).tell(change)

    def _drop(self, node: str) -> None:
        """Stop everything of a node."""
        system = self.systems.pop(node)
        del self.mail[node]
        for path in system.paths():
            actor = system.find(path)
            assert actor is not None
            actor.inbox.close()
            system.unregister(actor)

    def kill(self, number: int) -> None:
        """Kill a worker like SIGKILL: nothing of it runs any more, what was written stays."""
        node = node_of(number)
        self.loop.unwatch(self.routers[number])
        del self.workers[number]
        self.routers[number] = self._make_router()  # without connected clients
        self._drop(node)
        self.holding = [entry for entry in self.holding if node not in (entry[0].node, entry[1])]
        self.loop.work = deque(entry for entry in self.loop.work if entry[0] != node)
        self._tell_all(NodeDown(node, 0, "killed"))

    def stop(self, number: int) -> None:
        """Stop a worker in order."""
        self.systems[node_of(number)].stop_all()
        self.kill(number)

    def restart(self, workers: int, *, in_order: bool = False) -> None:
        """Stop the whole broker, and start it with this many workers on the same data."""
        had_tier = TIER in self.systems
        if had_tier:
            self.kill_tier()
        for number in list(self.workers):
            (self.stop if in_order else self.kill)(number)
        self.systems[BROKER].stop_all()
        self.endpoints = [f"{self._endpoints}{number}" for number in range(workers)]
        self.catalogue = self._open_catalogue()
        self._start_directory()
        for number in range(workers):
            self.start(number)
        if had_tier:
            self.start_tier()
        self.loop.settle()

    # ---- mail ---------------------------------------------------------------------------------------------------

    def post(self, sender: StagedMail, node: str, sealed: bytes, frames: list[bytes]) -> None:
        """Send a mail."""
        entry = (sender, node, sealed, frames)
        if (sender.node, node) in self.held:
            self.holding.append(entry)
        else:
            self.loop.call_soon(lambda: self._arrive(entry))

    def _arrive(self, entry: tuple[StagedMail, str, bytes, list[bytes]]) -> None:
        sender, node, sealed, frames = entry
        target = self.mail.get(node)
        if target is None or (sender.node != BROKER and self.mail.get(sender.node) is not sender):
            sender.dropped += 1
            return
        opened = open_mail(sealed, list(frames))
        target.received += 1
        target.deliver(opened.path, opened.message)

    def hold(self, sender: str, node: str) -> None:
        """Hold mail back from one node to another."""
        self.held.add((sender, node))

    def let_go(self, sender: str, node: str) -> None:
        """Let mail through again, the held back mail first."""
        self.held.discard((sender, node))
        kept = []
        for entry in self.holding:
            if (entry[0].node, entry[1]) == (sender, node):
                self.loop.call_soon(lambda entry=entry: self._arrive(entry))  # type: ignore[misc]
            else:
                kept.append(entry)
        self.holding = kept

    # ---- what tests do with it ----------------------------------------------------------------------------------

    def client(self, worker: int = 0, *, hello: bool = True) -> StagedClient:
        """Return a client connected to a worker."""
        client = StagedClient(self, worker, hello=hello)
        self.clients.append(client)
        return client

    def worker_at(self, endpoint: str) -> int:
        """Return the worker behind an endpoint."""
        return self.endpoints.index(endpoint)

    def at_topic(self, topic: str) -> StagedClient:
        """Return a client of the worker on which a topic runs."""
        shown = self.client().request("topic.show", topic=topic)
        return self.client(self.worker_at(shown["endpoint"]))

    def at_subscription(self, topic: str, subscription: str) -> StagedClient:
        """Return a client of the worker on which a subscription runs, or would."""
        from ister.actors.placement import subscription_key, worker_of

        return self.client(worker_of(subscription_key(topic, subscription), len(self.endpoints)))

    def actors(self, kind: str, *names: str) -> list[LoopActor]:
        """Return the actors of a kind, of a topic, of a subscription, on all nodes: `actors("topic", "orders")`."""
        found = []
        for system in self.systems.values():
            for path in system.paths():
                parts = path.replace(":", "/").split("/")
                actor = system.find(path)
                if parts[0] == kind and all(any(p.split(".")[0] == n for p in parts[1:]) for n in names):
                    assert actor is not None
                    found.append(actor)
        return found

    def actor(self, kind: str, *names: str) -> Any:
        """Return the only such actor."""
        (one,) = self.actors(kind, *names)
        return one

    def settle(self) -> None:
        """Run until only time could bring something new."""
        self.loop.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.advance(seconds)

    def close(self) -> None:
        """Stop everything; an actor that failed unexpectedly fails the test."""
        if TIER in self.systems:
            self.systems[TIER].stop_all()
        for number in list(self.workers):
            self.systems[node_of(number)].stop_all()
        self.systems[BROKER].stop_all()
        if self.failures and not self.expects_failures:
            raise AssertionError(f"actors failed: {self.failures}")


class Recorder(LoopActor):
    """An actor that keeps what it is told, in `heard`."""

    def __init__(self, system: System, path: str) -> None:
        super().__init__(system, path)
        self.heard: list[Any] = []

    def take(self, kind: type[T]) -> list[T]:
        """Return and remove what was heard of one kind."""
        found = [each for each in self.heard if isinstance(each, kind)]
        self.heard = [each for each in self.heard if not isinstance(each, kind)]
        return found


def inbox_holds(actor: LoopActor, kind: type) -> bool:
    """Return whether a message of that kind waits for an actor."""
    return any(isinstance(message, kind) for message in actor.inbox._queue)


@contextmanager
def held_up(actor: LoopActor) -> Iterator[None]:
    """Let an actor handle nothing for a while, as if more waited for it than one turn handles."""
    inbox = actor.inbox
    inbox._scheduled = True
    yield
    inbox._scheduled = inbox.closed
    if not inbox.closed and len(inbox):
        inbox._scheduled = True
        actor.loop.ready.append(inbox)


class _Everything(dict[type, Any]):
    def __missing__(self, _type: type) -> Any:
        return lambda actor, message: actor.heard.append(message)


Recorder.handlers = cast(Any, _Everything(Recorder.handlers))


class StagedGateway(Gateway):
    """A gateway whose clients are lists, for tests of single actors."""

    def __init__(self, clock: StagedClock, limits: SessionLimits) -> None:
        tokens = iter(range(1, 1 << 30))
        sessions = Sessions(1, limits, lambda: next(tokens).to_bytes(16))
        self.router = StagedRouter()
        super().__init__(cast(Any, SimpleNamespace(socket=lambda _kind: self.router)), clock, sessions)


__all__ = ["GatewayCounts", "Recorder", "Stage", "StagedClient", "StagedClock", "StagedGateway", "StagedLoop"]
