"""The crash campaign: real processes, real kills, and an oracle that sees only what clients see.

    python -m tests.crash.campaign --rounds 100 --seed 7        (or: make crash ROUNDS=100 SEED=7)
    python -m tests.crash.campaign --client go                  (or: make crash CLIENT=go)

In a round, clients publish and consume; at a random moment a process is killed, or stopped for a while. The campaign
waits until every topic gives receipts again. Then all clients pause, every topic is read back, and each subscription
gets a consumer that must receive exactly the messages that were not acknowledged.

One topic has keys, delivery times and poison messages; one subscription is moved by its consumer; two readers read
everything from the beginning, and are never opened again. At the end all poison messages must be in the dead-letter
topic, and acknowledged in their own.

With `client`, two of three clients are of another language, each thread's behind a driver (through.py): their
producers, consumers and readers work beside those of the Python client. The final checks use the Python client.

A seed determines the kills and what clients try; the machine decides the rest. So a seed cannot be replayed exactly:
run it again with more rounds.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

import ister
from ister.errors import IsterError, RemoteError
from ister.ownbroker import free_ports
from ister.subscriptions import SubscriptionType
from tests.conformance_clients.drivers import Kind, named
from tests.crash.consumers import LEAVE_ONE_IN, LEAVE_SOON_ONE_IN, ConsumerThread, ReaderThread, Taker
from tests.crash.model import ReadBack, Subscription
from tests.crash.producers import (
    LibraryProducer,
    ParcelProducer,
    ProducerThread,
    RawProducer,
    Recovery,
    Signals,
)
from tests.crash.report import Kill, Result, describe, print_tables
from tests.crash.through import ThroughClient
from tests.crash.victim import ROOT, Victim, VictimError

WORKERS_MAX: Final = 3
RECOVER_WITHIN_S: Final = 40.0
PAUSE_WITHIN_S: Final = 70.0
DRAIN_WITHIN_S: Final = 30.0
WRITTEN_WITHIN_S: Final = (
    0.5  # a dead letter is acknowledged at its source, and when that is written is not reported
)
QUIET_S: Final = 0.1  # silence after which a reader assumes that nothing more will come
ACKNOWLEDGE: Final = 0.8

Opened = TypeVar("Opened")

SETTINGS: Final[dict[str, object]] = {
    # small segments, so that rolls, spares and uploads are frequent
    "protocol.message_bytes_max": 1_200_000,
    "protocol.batch_bytes_max": 1_200_000,
    "log.segment_bytes_max": 3_000_000,
    "log.segment_age_ms_max": 2_000,
    # the log keeps nothing that the store has, so that consumers read from both all the time
    "log.local_bytes": 0,
    # a stopped worker is noticed, and sessions end, within the campaign's timeouts
    "protocol.heartbeat_ms": 500,
    "protocol.session_timeout_ms": 1_500,
    # more restarts than this campaign has kills
    "supervision.restarts_max": 10_000,
    "supervision.restart_delay_ms_max": 400,
}


class Wanted(NamedTuple):
    """A subscription: how many consumers it has, whether they seek, and its max_deliveries."""

    name: str
    kind: SubscriptionType
    consumers: int
    moves: bool = False
    max_deliveries: int = 0


# topic: (durability, its subscriptions)
TOPICS: Final[dict[str, tuple[Any, tuple[Wanted, ...]]]] = {
    "orders": (
        "fsync",
        (
            Wanted("exclusive", "exclusive", 1),
            Wanted("shared", "shared", 2),
            Wanted("failover", "failover", 2),
        ),
    ),
    "ledger": ("fsync", (Wanted("sought", "exclusive", 1, moves=True), Wanted("shared", "shared", 3))),
    "clicks": ("os", (Wanted("exclusive", "exclusive", 1), Wanted("failover", "failover", 2))),
    # messages with keys, delivery times, and poison among them
    "parcels": ("fsync", (Wanted("keys", "key-shared", 3, max_deliveries=3), Wanted("shared", "shared", 2))),
}
READ: Final = ("orders", "parcels")  # topics with a reader that is never stopped

ACTIONS: Final[dict[str, int]] = {  # relative frequencies
    "worker": 6,
    "worker, again while it recovers": 3,
    "two workers": 2,
    "tier": 1,
    "broker": 4,
    "everything": 5,
    "everything, again while it starts": 3,
    "worker stopped for a while": 3,
    "worker stopped, then killed": 1,
    "stopped in order": 1,
}


class Campaign:
    """A campaign in a folder; `root` is the source tree whose broker is run."""

    def __init__(self, seed: int, folder: Path, *, root: Path = ROOT, client: Kind | None = None) -> None:
        self.result = Result(seed, folder=str(folder), client="" if client is None else client.name)
        self._client = client
        self.oracle = self.result.oracle
        self._plan = Random(seed)  # for the faults
        self._random = Random(seed + 1)  # for what the final checks acknowledge
        self._port = free_ports(WORKERS_MAX)
        self._victim = Victim(folder / "data", folder / "broker.log", self._port, SETTINGS, root=root)
        self._signals = Signals()
        self._recovery = Recovery(list(TOPICS))
        self._producers: list[ProducerThread] = []
        self._consumers: list[ConsumerThread] = []
        self._clients: list[Any] = []
        self._readers: list[ReaderThread] = []
        self._subscriptions: list[Subscription] = []
        self._letters: dict[str, int] = {}  # by dead-letter topic: the offset at which reading continues
        self._backs = {topic: ReadBack(topic) for topic in TOPICS}
        self._began = time.monotonic()

    # ---- the stage ----------------------------------------------------------------------------------------------

    def _endpoints(self) -> list[str]:
        return [f"tcp://127.0.0.1:{self._port + number}" for number in range(WORKERS_MAX)]

    def _connect(self, name: str) -> ister.Client:
        client = ister.connect(self._endpoints(), timeout=30.0, name=name)
        self._clients.append(client)
        return client

    def _connect_other(self, name: str) -> Any:
        """Return a client of the requested language, with the methods of `ister.Client` that the campaign uses."""
        if self._client is None:
            return self._connect(name)
        client = ThroughClient(self._client, self._endpoints())
        self._clients.append(client)
        return client

    def _set_up(self) -> None:
        self._victim.start(self._plan.randint(1, WORKERS_MAX))
        self._auditor = self._connect("auditor")
        clients = [self._connect_other("first"), self._connect("second"), self._connect_other("third")]
        for topic, (durability, subscriptions) in TOPICS.items():
            self._auditor.create_topic(topic, durability=durability)
            for wanted in subscriptions:
                self._set_up_subscription(topic, wanted, clients)
            kind = ParcelProducer if topic == "parcels" else LibraryProducer
            for lone in (False, True):
                self._producers.append(kind(clients[lone], lone, *self._shared(topic)))
        for topic in READ:
            self._readers.append(ReaderThread(clients[2], topic, self.oracle, self._signals))
        self._producers.append(RawProducer(self._endpoints(), *self._shared("orders")))
        for thread in (*self._producers, *self._consumers, *self._readers):
            thread.start()

    def _set_up_subscription(self, topic: str, wanted: Wanted, clients: list[Any]) -> None:
        self._auditor.create_subscription(
            topic, wanted.name, type=wanted.kind, start="earliest", max_deliveries=wanted.max_deliveries
        )
        subscription = Subscription(topic, wanted.name, wanted.kind, max_deliveries=wanted.max_deliveries)
        self._subscriptions.append(subscription)
        for number in range(wanted.consumers):
            self._add_consumer(clients[number], subscription, number, moves=wanted.moves)

    def _shared(self, topic: str) -> tuple[Any, ...]:
        number = len(self._producers) + 1
        return number, topic, self.oracle, self._recovery, self._signals, Random(self._plan.getrandbits(64))

    def _add_consumer(self, client: Any, subscription: Subscription, number: int, *, moves: bool) -> None:
        random = Random(self._plan.getrandbits(64))
        name = f"{subscription} {number}"

        def open_one() -> Taker:
            return Taker(
                client,
                subscription,
                self.oracle,
                random,
                name=name,
                acknowledge=ACKNOWLEDGE,
                priority=number if subscription.kind == "failover" else 0,
                moves=moves,
            )

        leave = LEAVE_SOON_ONE_IN if subscription.kind == "key-shared" else LEAVE_ONE_IN
        self._consumers.append(ConsumerThread(name, self.oracle, self._signals, random, open_one, leave))

    # ---- the rounds ---------------------------------------------------------------------------------------------

    def run(self, rounds: int, on_round: Callable[[Result], None] = lambda _: None) -> Result:
        """Run some rounds, then check everything; stop at the first violation."""
        try:
            self._set_up()
            while self.result.rounds < rounds and not self.result.failed:
                self._round(self.result.rounds)
                self.result.rounds += 1
                self.result.seconds = time.monotonic() - self._began
                on_round(self.result)
            if not self.result.failed:
                self._last_look()
        except (VictimError, IsterError) as error:
            self.oracle.violated("unusable", f"{type(error).__name__}: {error}")
        finally:
            self._tear_down()
        self.result.seconds = time.monotonic() - self._began
        return self.result

    def _round(self, number: int) -> None:
        random = self._plan = Random(f"{self.result.seed} {number}")
        self._signals.running.set()
        time.sleep(random.uniform(0.1, 0.8))
        [what] = random.choices(list(ACTIONS), weights=list(ACTIONS.values()))
        if self._victim.workers == 1 and what == "two workers":
            what = "worker"
        self._note(number, what)
        self._act(number, what)
        took = self._recovery.wait(RECOVER_WITHIN_S)
        if took is None:
            silent = ", ".join(self._recovery.silent())
            self.oracle.violated(
                "no-recovery", f"no receipt in {RECOVER_WITHIN_S:.0f} s after {what}: {silent}"
            )
            return
        self.result.by_kind.setdefault(what, []).append(took)
        time.sleep(random.uniform(0.0, 0.3))
        if random.random() < 0.25:
            threading.Timer(random.uniform(0.0, 0.8), self._surprise, (number,)).start()
        self._look(full=number % 25 == 24)
        if self._victim.ended is not None:
            self.oracle.violated("broker-ended", f"by itself, with exit code {self._victim.ended}")

    def _note(self, number: int, what: str) -> None:
        self.result.kills.append(Kill(number, round(time.monotonic() - self._began, 3), what))

    def _surprise(self, number: int) -> None:
        """Kill a worker while everything is being read back."""
        name = f"worker-{number % self._victim.workers}"
        if self._victim.kill(name):
            self._note(number, f"{name} while reading back")

    def _act(self, number: int, what: str) -> None:
        random, victim = self._plan, self._victim
        worker = f"worker-{random.randrange(victim.workers)}"
        pause_s = random.uniform(0.0, 1.2)
        if what.startswith("everything"):
            victim.kill_all()
            self._recovery.begin()
            self._restart(again_after_s=pause_s if "again" in what else None)
        elif what == "broker":
            victim.kill("broker")
            self._recovery.begin()
            self._restart(None)
        elif what == "stopped in order":
            code = victim.stop()
            self._recovery.begin()
            if code:
                self.oracle.violated("stop-failed", f"exit code {code}")
            self._restart(None)
        elif what == "tier":
            victim.kill("tier")
            self._recovery.begin()
        elif what == "two workers":
            for other in random.sample(range(victim.workers), 2):
                victim.kill(f"worker-{other}")
            self._recovery.begin()
        else:
            self._act_on_worker(what, worker, pause_s)

    def _act_on_worker(self, what: str, worker: str, pause_s: float) -> None:
        if "stopped" not in what:
            self._victim.kill(worker)
            if "again" in what:
                time.sleep(pause_s)
                self._victim.kill(worker)
            self._recovery.begin()
            return
        self._victim.kill(worker, signal.SIGSTOP)
        time.sleep(2 * pause_s)
        self._victim.kill(worker, signal.SIGKILL if "killed" in what else signal.SIGCONT)
        self._recovery.begin()

    def _restart(self, again_after_s: float | None) -> None:
        self._check_gone()
        workers = self._plan.randint(1, WORKERS_MAX) if self._plan.random() < 0.3 else self._victim.workers
        if again_after_s is not None:
            self._victim.spawn(workers)
            time.sleep(again_after_s)
            self._victim.kill_all()
            self._check_gone()
            self._recovery.begin()
        self._victim.start(workers)

    def _check_gone(self) -> None:
        left = self._victim.gone()
        if left:
            self.oracle.violated("process-left", f"after the broker was killed: {left}")
            self._victim.kill_all()

    # ---- looking ------------------------------------------------------------------------------------------------

    def _look(self, *, full: bool) -> None:
        """Pause all clients, read every topic back, and attach to every subscription."""
        self._signals.running.clear()
        threads: list[ProducerThread | ConsumerThread] = [*self._producers, *self._consumers]
        for thread in threads:
            if not thread.idle.wait(PAUSE_WITHIN_S):
                self.oracle.violated("stuck", f"{thread.name} did not come to rest in {PAUSE_WITHIN_S:.0f} s")
                return
        for topic in TOPICS:
            self._read_back(self._backs[topic])
            if full:
                self._read_back(ReadBack(topic), everything=True)
        for reader in self._readers:
            if not self.result.failed and not reader.caught_up(DRAIN_WITHIN_S):
                text = f"{reader.name} stands at {reader.back.next} of {self.oracle.end(reader.back.topic)}"
                self.oracle.violated("stuck", text)
        for subscription in self._subscriptions:
            if not self.result.failed:  # after a failure each one would only run into its timeout
                self._drain(subscription, ACKNOWLEDGE)

    def _read_back(self, back: ReadBack, *, everything: bool = False) -> None:
        """Read on as a reader, which ignores delivery times: every offset comes, in order."""
        end = self.oracle.end(back.topic)
        deadline = time.monotonic() + DRAIN_WITHIN_S

        def open_one() -> ister.Reader:
            return self._auditor.reader(back.topic, start=back.next)

        consumer = self._patiently(open_one, deadline)
        while time.monotonic() < deadline:
            message = consumer.receive(QUIET_S if back.next >= end else 1.0)
            if message is None:
                if back.next >= end:
                    break
            else:
                self.oracle.read(back, message.offset, message.payload)
        self.oracle.read_to_end(back, everything=everything)
        consumer.close()

    def _drain(self, subscription: Subscription, acknowledge: float) -> int:
        """Attach, take all messages that were never acknowledged, and return how many came.

        If all are acknowledged, it waits until all poison messages are in the dead-letter topic.
        """
        came = 0
        deadline = time.monotonic() + DRAIN_WITHIN_S
        taker = self._attach(subscription, acknowledge, deadline)
        while time.monotonic() < deadline:
            if taker.take(0.05):
                came += 1
                continue
            self._read_letters(subscription)
            unburied = acknowledge == 1.0 and self.oracle.unburied(subscription)
            if not unburied and not self.oracle.missing(taker.attached):
                break
        self.oracle.drained(taker.attached)
        taker.leave()
        return came

    def _read_letters(self, subscription: Subscription) -> None:
        """Read what has been added to the dead-letter topic, which is created for the first dead letter."""
        if not subscription.max_deliveries:
            return
        topic = f"{subscription}.dlq".replace("/", ".")
        try:
            reader = self._auditor.reader(topic, start=self._letters.get(topic, 0))
        except RemoteError as error:
            if error.code != "unknown-topic":
                raise
            return
        while (message := reader.receive(QUIET_S)) is not None:
            due = self._letters.get(topic, 0)
            if message.offset != due:
                self.oracle.violated("gap", f"{reader.what} was given {message.offset}, due was {due}")
            self._letters[topic] = message.offset + 1
            self.oracle.buried(subscription, message.payload, message.key or b"", message.attributes)
        reader.close()

    def _check_buried(self, subscription: Subscription) -> None:
        """Check that nothing is left in the source, once all was acknowledged or refused, and no letter is missing."""
        unburied = self.oracle.unburied(subscription)
        if unburied:
            text = (
                f"{subscription}: {len(unburied)} are poison and not in the dead-letter topic: {unburied[:5]}"
            )
            self.oracle.violated("unburied", text)
        deadline = time.monotonic() + DRAIN_WITHIN_S
        while left := self._auditor.subscription(subscription.topic, subscription.name)["pending"]:
            if time.monotonic() > deadline:
                text = f"{subscription}: all is acknowledged or buried, and pending are {left[:5]}"
                self.oracle.violated("not-acknowledged", text)
                return
            time.sleep(0.05)

    def _attach(self, subscription: Subscription, acknowledge: float, deadline: float) -> Taker:
        oracle, random = self.oracle, self._random

        def take() -> Taker:
            return Taker(self._auditor, subscription, oracle, random, name="auditor", acknowledge=acknowledge)

        return self._patiently(take, deadline)

    def _patiently(self, open_one: Callable[[], Opened], deadline: float) -> Opened:
        """Open a consumer, waiting for a place that a lost session still holds."""
        while True:
            try:
                return open_one()
            except RemoteError as error:
                self.oracle.counts[f"auditor told {error.code}"] += 1
                if error.action != "retry" or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _last_look(self) -> None:
        """Read everything from the start, restart, acknowledge all that is left, kill, and find nothing left."""
        self._look(full=True)
        self._victim.stop()
        self._restart(None)
        for subscription in self._subscriptions:
            self._drain(subscription, 1.0)
            self._check_buried(subscription)
        time.sleep(WRITTEN_WITHIN_S)
        self._victim.kill_all()
        self._restart(None)
        for topic in TOPICS:
            self._read_back(ReadBack(topic), everything=True)
        for subscription in self._subscriptions:
            if self._drain(subscription, 1.0):
                text = f"{subscription}: messages came though all were acknowledged and confirmed"
                self.oracle.violated("acknowledged-came-back", text)

    def _tear_down(self) -> None:
        self._signals.ended.set()
        self._signals.running.set()
        for client in self._clients:
            client.close()
        for thread in (*self._producers, *self._consumers, *self._readers):
            thread.join(5.0)
        self._victim.end()


def run_campaign(
    seed: int,
    rounds: int,
    on_round: Callable[[Result], None] = lambda _: None,
    *,
    client: Kind | None = None,
) -> Result:
    """Run a campaign in a folder of its own, which is kept after a violation."""
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    result = Campaign(seed, folder, client=client).run(rounds, on_round)
    if result.failed:
        (folder / "result.json").write_text(json.dumps(describe(result), indent=1))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _ready(name: str) -> Kind:
    """Return a driver that can be started, or exit saying what is missing."""
    try:
        kind = named(name)
    except LookupError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if (why := kind.why_not()) is not None:
        raise argparse.ArgumentTypeError(why)
    return kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; return 0 if nothing was violated."""
    parser = argparse.ArgumentParser(prog="crash", description="Kill a broker again and again, and check it.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="say it in JSON")
    parser.add_argument("--client", type=_ready, help="the language of two of three clients: go, ...")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    if sys.stderr.isatty() and not given.json:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"seed {seed}", total=given.rounds)

            def on_round(so_far: Result) -> None:
                last = so_far.kills[-1].what if so_far.kills else ""
                progress.update(task, completed=so_far.rounds, description=f"seed {seed}: {last}")

            result = run_campaign(seed, given.rounds, on_round, client=given.client)
    else:
        result = run_campaign(seed, given.rounds, client=given.client)
    if given.json:
        print(json.dumps(describe(result)))
    else:
        print_tables(result)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
