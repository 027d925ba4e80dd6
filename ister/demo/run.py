"""The sequence of events: a broker, eight clients, real input; half way a consumer leaves and a worker is killed.

Invariants
- every process that was started is gone at the end, also after Ctrl-C or a failure
- the demonstration ends: without progress for `STALLED_S` it fails
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import ister
from ister.clientprocess import ClientProcess, wait_for_any
from ister.demo.clients import (
    GO,
    HALF,
    LEAVE,
    READY,
    STOP,
    Consumed,
    Produced,
    Progress,
    Seat,
    consumer_main,
    lost_connections_expected,
    producer_main,
)
from ister.demo.replay import SUBSCRIPTION, Replay, replay
from ister.demo.source import Source, lines_of, read_source
from ister.demo.spool import read_spool
from ister.demo.verify import Verdict, check_non_reliable, check_receipts, check_reliable
from ister.errors import IsterError
from ister.ownbroker import OwnBroker
from ister.subscriptions import SubscriptionType
from ister.words import counted

# Names decide placement: with two workers, the killed one also has the Exclusive subscriptions of both topics.
RELIABLE: Final = "stdlib/reliable"
NON_RELIABLE: Final = "stdlib/non-reliable"
# topic, subscription, type, how many consumers
CAST: Final[tuple[tuple[str, str, SubscriptionType, int], ...]] = (
    (RELIABLE, "exclusive", "exclusive", 1),
    (RELIABLE, "shared", "shared", 2),
    (RELIABLE, "failover", "failover", 2),
    (NON_RELIABLE, "exclusive", "exclusive", 1),
)
# The log keeps nothing that the store has, so that the replay has to read from both.
SEAM_SETTINGS: Final[dict[str, object]] = {"log.local_bytes": 0, "log.segment_age_ms_max": 1_000}
# With less to send, segments must be smaller for some of them to be dropped.
SMALL_SETTINGS: Final[dict[str, object]] = {
    "protocol.message_bytes_max": 262_144,
    "protocol.batch_bytes_max": 262_144,
    "log.segment_bytes_max": 1_400_000,
}
START_S: Final = 30.0
STALLED_S: Final = 30.0
# seconds; a non-reliable topic whose producer has ended is done when nothing arrived for so long
QUIET_S: Final = 1.0
LOOK_EVERY_S: Final = 0.1
PACE_S: Final = (
    # seconds between batches to the non-reliable topic, which delays no producer, so that it is still sent to after
    # the kill
    0.006
)


class DemoFailedError(IsterError):
    """The demonstration found something broken."""

    code = "demo-failed"


@dataclass(slots=True)
class Watcher:
    """Receives the progress: `say(text)` at each step, `show(row, done, total)` for each row."""

    say: Callable[[str], None] = lambda _text: None
    show: Callable[[str, int, int], None] = lambda _row, _done, _total: None


@dataclass(slots=True)
class Outcome:
    """The results of the demonstration; `problems` is empty if the broker kept its promises."""

    source: Source
    seconds: float = 0.0
    produced: dict[str, Produced] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    types: dict[tuple[str, str], str] = field(default_factory=dict)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    consumer_stopped: str = ""
    worker_killed: str = ""
    pid_killed: int = 0
    pid_after: int = 0
    replay: Replay | None = None
    problems: list[str] = field(default_factory=list)


def play(*, lines_max: int | None = None, workers: int = 2, watcher: Watcher | None = None) -> Outcome:
    """Run the demonstration once. Raises `DemoFailedError` if it cannot continue, and what client processes raise."""
    watcher = watcher or Watcher()
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(lost_connections_expected())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ister-demo-"))
        watcher.say("reading the standard library")
        source = read_source(lines_max)
        watcher.say(
            f"{counted(source.lines, 'line')} of {counted(len(source.files), 'file')}; starting a "
            f"broker with {counted(workers, 'worker')}"
        )
        settings = SEAM_SETTINGS if lines_max is None else SEAM_SETTINGS | SMALL_SETTINGS
        broker = stack.enter_context(
            OwnBroker(f"{folder}/data", f"{folder}/log", workers=workers, settings=settings)
        )
        stage = _Stage(stack, folder, source, broker, watcher)
        stage.enter()
        stage.perform()
        outcome = stage.leave()
        watcher.say("reading everything back, from the store, the log and live")
        stage.replay()
        watcher.say("comparing what was received with what is on disk")
        stage.compare()
    outcome.seconds = time.monotonic() - began
    return outcome


def seat_of(topic: str, subscription: str, type_: SubscriptionType, number: int, spool: str) -> Seat:
    """Return the seat of consumer `number` of a row; only those of a Failover subscription have a priority."""
    return Seat(topic, subscription, type_, number if type_ == "failover" else 0, spool)


class _Stage:
    """The broker, the clients, and what is known of them so far."""

    def __init__(
        self, stack: ExitStack, folder: str, source: Source, broker: OwnBroker, watcher: Watcher
    ) -> None:
        self._stack = stack
        self._folder = folder
        self._source = source
        self._broker = broker
        self._watcher = watcher
        self._outcome = Outcome(source)
        self._client = stack.enter_context(ister.connect(broker.endpoint))
        self._producers: dict[str, ClientProcess] = {}
        self._consumers: dict[tuple[str, str], list[ClientProcess]] = {}
        self._spools: dict[tuple[str, str], list[str]] = {}
        self._progress: dict[ClientProcess, int] = {}
        self._ended: dict[ClientProcess, Produced | Consumed] = {}
        # the processes in which a row's topic and subscription run
        self._nodes: dict[tuple[str, str], set[str]] = {}

    # ---- scenes ---------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Create the topics and start the clients, consumers first: a non-reliable topic keeps nothing."""
        self._client.create_topic(RELIABLE, dispatch="reliable")
        self._client.create_topic(NON_RELIABLE, dispatch="non-reliable")
        for topic, subscription, type_, count in CAST:
            row = (topic, subscription)
            self._outcome.types[row] = type_
            for number in range(count):
                spool = f"{self._folder}/{len(self._progress)}.spool"
                seat = seat_of(topic, subscription, type_, number, spool)
                name = f"demo consumer {topic} {subscription} {number + 1}"
                process = self._start(name, consumer_main, seat)
                self._consumers.setdefault(row, []).append(process)
                self._spools.setdefault(row, []).append(spool)
        for topic, key, pace_s in ((RELIABLE, "file", 0.0), (NON_RELIABLE, "number", PACE_S)):
            name = f"demo producer {topic}"
            self._producers[topic] = self._start(name, producer_main, topic, self._source.files, key, pace_s)
        for process in self._progress:
            if process.answer(START_S) != READY:
                raise DemoFailedError(f"{process.name} did not begin")
        for row in self._consumers:
            places = (self._client.topic(row[0]), self._client.subscription(*row))
            self._nodes[row] = {place["node"] for place in places}

    def _start(self, name: str, target: Callable[..., None], *arguments: object) -> ClientProcess:
        process = self._stack.enter_context(ClientProcess(name, target, self._broker.endpoint, *arguments))
        self._progress[process] = 0
        return process

    def perform(self) -> None:
        """Run until everything has its receipt and is acknowledged; half way, cause the failures."""
        self._watcher.say(f"streaming to {counted(len(self._progress) - 2, 'consumer')}")
        for producer in self._producers.values():
            producer.tell(GO)
        deadline, before = time.monotonic() + STALLED_S, -1
        while not (self._ended.keys() >= set(self._producers.values()) and self._drained()):
            wait_for_any(self._progress, LOOK_EVERY_S)
            self._listen()
            self._broker.check()
            done = sum(self._progress.values())
            if done != before:
                deadline, before = time.monotonic() + STALLED_S, done
            elif time.monotonic() > deadline:
                raise DemoFailedError(f"nothing happened for {STALLED_S:.0f} s; {self._broker.log_tail()}")

    def _listen(self) -> None:
        for process in self._progress:
            while process not in self._ended and process.has_answered():
                self._hear(process, process.answer(START_S))
        for topic, producer in self._producers.items():
            self._watcher.show(f"to {topic}", self._progress[producer], self._source.lines)
        for row, consumers in self._consumers.items():
            done = sum(map(self._progress.__getitem__, consumers))
            self._watcher.show(" ".join(row), done, self._source.lines)

    def _hear(self, process: ClientProcess, word: Any) -> None:
        if word == HALF:
            self._half_way(process)
            return
        self._progress[process] = word.messages
        if not isinstance(word, Progress):
            self._ended[process] = word

    def _half_way(self, producer: ClientProcess) -> None:
        """Stop the active consumer of the Failover subscription, and kill the worker that has the reliable topic."""
        if producer is self._producers[RELIABLE]:
            active = self._consumers[RELIABLE, "failover"][
                0
            ]  # the other one has a higher number, and stands by
            active.tell(LEAVE)
            self._outcome.consumer_stopped = f"{active.name} (pid {active.pid})"
            node = self._client.topic(RELIABLE)["node"]
            pid = _pid_of(self._client.status(), node)
            os.kill(pid, signal.SIGKILL)
            self._outcome.worker_killed, self._outcome.pid_killed = node, pid
            self._watcher.say(
                f"half way: the active failover consumer leaves, {node} (pid {pid}) gets SIGKILL"
            )
        producer.tell(GO)

    def _drained(self) -> bool:
        """Whether everything of the reliable topic is acknowledged, and the other topic is quiet."""
        try:
            states = {row: self._client.subscription(*row) for row in self._consumers}
        except IsterError as error:
            if error.action != "retry":
                raise
            return False
        durable = self._client.topic(RELIABLE)["durable_end"]
        for (topic, _), state in states.items():
            if topic == RELIABLE and (state["durable_end"] < durable or state.get("unacknowledged", 1)):
                return False
        return True

    def leave(self) -> Outcome:
        """Wait for the rest of the non-reliable topic, note the broker's state, and end the clients."""
        self._wait_for_quiet()
        outcome = self._outcome
        outcome.status = self._client.status()
        outcome.pid_after = _pid_of(outcome.status, outcome.worker_killed)
        for row, consumers in self._consumers.items():
            outcome.dropped[row] = self._client.subscription(*row).get("dropped", 0)
            for process in consumers:
                process.tell(STOP)
        for process in self._progress:
            while process not in self._ended:
                self._hear(process, process.answer(START_S))
        for process in self._consumers[RELIABLE, "failover"]:
            ended = self._ended[process]
            if not (isinstance(ended, Consumed) and ended.active):
                outcome.problems.append(f"{process.name} was not the active one when it ended")
        return outcome

    def _wait_for_quiet(self) -> None:
        consumers = self._consumers[NON_RELIABLE, "exclusive"]
        quiet_since, before = time.monotonic(), -1
        while time.monotonic() - quiet_since < QUIET_S:
            wait_for_any(consumers, LOOK_EVERY_S)
            self._listen()
            done = sum(map(self._progress.__getitem__, consumers))
            if done == self._source.lines:
                return
            if done != before:
                quiet_since, before = time.monotonic(), done

    def replay(self) -> None:
        """Read the reliable topic from its beginning, most of which only the store has by now."""
        outcome = self._outcome
        replayed = outcome.replay = replay(self._client, RELIABLE, self._source.lines)
        if replayed.problem:
            outcome.problems.append(replayed.problem)
        if not replayed.from_store:
            outcome.problems.append("nothing came back from the store: the local log was not trimmed")

    # ---- the end --------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Compare what was received with the source, and note what is wrong."""
        outcome, source = self._outcome, self._source
        for topic, producer in self._producers.items():
            produced = self._ended[producer]
            assert isinstance(produced, Produced)
            outcome.produced[topic] = produced
        outcome.problems += check_receipts(source, outcome.produced[RELIABLE].receipts)
        for row, spools in self._spools.items():
            topic, subscription = row
            pieces = (piece for spool in spools for piece in read_spool(spool))
            if topic == RELIABLE:
                verdict = check_reliable(source, pieces, ordered=outcome.types[row] != "shared")
            else:
                lines = [line for _, each in lines_of(source.files) for line in each]
                verdict = check_non_reliable(lines, pieces)
                self._explain(row, verdict)
            outcome.verdicts[row] = verdict
            outcome.problems += [f"{topic} {subscription}: {problem}" for problem in verdict.problems]

        assert outcome.replay is not None
        verdict = check_reliable(source, outcome.replay.pieces, ordered=True)
        outcome.problems += [f"{RELIABLE} {SUBSCRIPTION}: {problem}" for problem in verdict.problems]

    def _explain(self, row: tuple[str, str], verdict: Verdict) -> None:
        """Report losses of a non-reliable topic that neither drops nor the killed worker explain."""
        lost = self._source.lines - verdict.received
        if lost > self._outcome.dropped[row] and self._outcome.worker_killed not in self._nodes[row]:
            verdict.complain(
                f"{counted(lost, 'message is', 'messages are')} lost, of which the broker dropped "
                f"only {self._outcome.dropped[row]}"
            )


def _pid_of(status: Mapping[str, Any], node: str) -> int:
    return next((int(process["pid"]) for process in status["processes"] if process["node"] == node), 0)
