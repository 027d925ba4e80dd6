"""Running a measurement: the broker, topics and client processes, a warm-up, the measured part, and the results.

The warm-up is the same load through a topic of its own, deleted before the measured one is made: fresh memory can cost
ten times what used memory costs, and the measured log reuses the page cache that the warm-up's log has freed.

Invariants
- the figures do not include the warm-up
- every process and topic that was created is gone at the end, also after Ctrl-C or a failure
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import ister
from ister.bench.clients import (
    GO,
    STOP,
    SUBSCRIPTION,
    Received,
    Run,
    Sent,
    consumer_main,
    producer_main,
)
from ister.bench.load import Load
from ister.clientprocess import ClientProcess, wait_for_any
from ister.errors import IsterError
from ister.ownbroker import OwnBroker
from ister.words import counted

ANSWER_S: Final = 30.0  # seconds; for quick requests such as opening and closing
STRAGGLER_S: Final = (
    # seconds; non-reliable: when nothing was delivered for so long after the producer's end, the rest was dropped
    2.0
)
STALLED_S: Final = 60.0  # seconds; reliable: the same, which means that something is broken
LOOK_EVERY_S: Final = 0.5
RUN_S_MAX: Final = 900.0
BUFFER_MESSAGES_MAX: Final = 100_000_000  # what the settings allow
BUFFER_BYTES_MAX: Final = 4 << 30
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")

Say = Callable[[str], None]


class BenchFailedError(IsterError):
    """A failed measurement: a process failed, or messages are missing."""

    code = "bench-failed"


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured run; `cpu_seconds` by process over the measured part."""

    load: Load
    sent: Sent
    received: tuple[Received, ...]
    cpu_seconds: dict[str, float]
    dropped: int
    redelivered: int
    workers: int
    file_system: str


def measure(
    load: Load,
    *,
    endpoint: str | None = None,
    workers: int = 0,
    warm_up: int | None = None,
    data: str | None = None,
    rounds: int = 1,
    say: Say = lambda _text: None,
) -> list[Measured]:
    """Run `load` against the broker at `endpoint`, or against one of its own, after `warm_up` messages.

    Returns a result for each of `rounds`, all with the same processes, each with a topic of its own. `warm_up` None: as
    many as are measured; `workers` 0: half the cores; `data`: where the folder of its own broker is created. Raises
    `BenchFailedError`, `ConnectionLostError` and what the client library raises.
    """
    with ExitStack() as stack:
        file_system = "?"
        if endpoint is None:
            say("starting a broker")
            folder = stack.enter_context(bench_folder(data))
            file_system = file_system_of(folder)
            broker = OwnBroker(
                f"{folder}/data", f"{folder}/log", workers=workers or default_workers(), settings=_roomy(load)
            )
            endpoint = stack.enter_context(broker).endpoint
        client = stack.enter_context(ister.connect(endpoint))
        party = stack.enter_context(_started(load, endpoint))
        warm_up = load.messages if warm_up is None else warm_up
        if warm_up:
            say("warming up")
            party.run(client, replace(load, messages=warm_up), measured=False)
        found = []
        for number in range(1, rounds + 1):
            say("measuring" if rounds == 1 else f"measuring, round {number} of {rounds}")
            found.append(party.run(client, load, measured=True, file_system=file_system))
        return found


def default_workers() -> int:
    """Return half the cores, at least 1: the clients that load the broker need the rest."""
    return max(1, (os.cpu_count() or 1) // 2)


def _roomy(load: Load) -> dict[str, object]:
    """Return settings whose buffer holds a whole non-reliable run, so that no drops are measured."""
    room = load.messages * (load.message_bytes + 64)
    return {
        "subscription.buffer_messages_max": min(BUFFER_MESSAGES_MAX, max(100_000, load.messages)),
        "subscription.buffer_bytes_max": min(BUFFER_BYTES_MAX, max(16 << 20, room)),
    }


@contextmanager
def bench_folder(under: str | None) -> Iterator[str]:
    """Create a folder for a broker's data, on a real disk if there is one, and remove it at the end."""
    if under is None and file_system_of(tempfile.gettempdir()) in MEMORY_FILE_SYSTEMS:
        under = "."
    folder = tempfile.mkdtemp(prefix="ister-bench-", dir=under)
    try:
        yield os.path.abspath(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def file_system_of(path: str) -> str:
    """Return the type of the file system of a path (Linux; elsewhere "?")."""
    try:
        with open("/proc/mounts", encoding="utf-8") as mounts:
            rows = [line.split() for line in mounts]
    except OSError:
        return "?"
    inside = os.path.join(os.path.realpath(path), "")
    found = [(len(row[1]), row[2]) for row in rows if inside.startswith(os.path.join(row[1], ""))]
    return max(found)[1] if found else "?"


@contextmanager
def _started(load: Load, endpoint: str) -> Iterator[_Party]:
    """Start the client processes of a load; end them with the block."""
    with ExitStack() as stack:
        producer = stack.enter_context(ClientProcess("bench producer", producer_main, endpoint))
        consumers = [
            stack.enter_context(ClientProcess(f"bench consumer-{number}", consumer_main, endpoint, number))
            for number in range(1, load.subscriptions + 1)
        ]
        yield _Party(producer, consumers)


class _Party:
    """The client processes of a load."""

    def __init__(self, producer: ClientProcess, consumers: list[ClientProcess]) -> None:
        self._producer = producer
        self._consumers = consumers

    def run(self, client: ister.Client, load: Load, *, measured: bool, file_system: str = "?") -> Measured:
        """Run a load once through a topic of its own, and return the results."""
        topic = f"bench-{secrets.token_hex(6)}"
        reliable = load.strategy == "reliable"
        client.create_topic(topic, dispatch=load.strategy, durability=load.durability if reliable else None)
        try:
            # consumers first: a non-reliable topic keeps nothing for later ones
            for process in (*self._consumers, self._producer):
                process.tell(Run(topic, load))
                process.answer(ANSWER_S)
            before = client.status()
            self._producer.tell(GO)
            sent: Sent = self._producer.answer(RUN_S_MAX)

            def states() -> list[Mapping[str, Any]]:
                numbers = range(1, load.subscriptions + 1)
                return [client.subscription(topic, f"{SUBSCRIPTION}-{number}") for number in numbers]

            received = self._gather(
                lambda: sum(state["delivered"] for state in states()),
                STALLED_S if reliable else STRAGGLER_S,
            )
            after = client.status()
            ended = states()
        finally:
            client.delete_topic(topic)
        if reliable and measured:
            self._check(load, received)
        cpu = {"producer": sent.cpu_seconds}
        cpu |= {f"consumer-{n + 1}": each.cpu_seconds for n, each in enumerate(received)}
        return Measured(
            load,
            sent,
            tuple(received),
            {name: round(seconds, 3) for name, seconds in (cpu | _broker_cpu(before, after)).items()},
            sum(state.get("dropped", 0) for state in ended),
            sum(state.get("redelivered", 0) for state in ended),
            sum(process["role"] == "worker" for process in after["processes"]),
            file_system,
        )

    def _gather(self, delivered: Callable[[], int], patience_s: float) -> list[Received]:
        """Collect what consumers received; when nothing was delivered for `patience_s`, tell the rest to stop."""
        seen, deadline = -1, 0.0
        while left := [process for process in self._consumers if not process.has_answered()]:
            progress = delivered()
            if progress != seen:
                seen, deadline = progress, time.monotonic() + patience_s
            elif time.monotonic() > deadline:
                break
            wait_for_any(left, LOOK_EVERY_S)
        for process in self._consumers:
            process.tell(STOP)
        return [process.answer(ANSWER_S) for process in self._consumers]

    @staticmethod
    def _check(load: Load, received: list[Received]) -> None:
        for number, each in enumerate(received, 1):
            if each.messages < load.messages or each.bytes < load.messages * load.message_bytes:
                raise BenchFailedError(
                    f"subscription {number} received {each.messages} of "
                    f"{counted(load.messages, 'message')} of a reliable topic"
                )


def _broker_cpu(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    used = {process["pid"]: process["cpu_seconds"] for process in before["processes"]}
    return {
        process["node"]: process["cpu_seconds"] - used.get(process["pid"], 0.0)
        for process in after["processes"]
    }
