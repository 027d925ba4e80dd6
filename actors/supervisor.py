"""The Supervisor: starts the broker's other processes, restarts those that die, stops all of them in order.

Runs in: the broker process. May touch: the processes it started, the signals of its own, and mail. When to restart is
decided in `restarts.py`; how a process is started is in `spawning.py`, in whose place tests hand in another.

Invariants:
- At most one process of a node lives at a time, and every start has a boot number greater than all before.
- Everyone hears NodeUp only after the process itself said Ready, and NodeDown after it is dead for certain.
- The broker never runs on with a node missing: it is being restarted, or everything stops with a non-zero exit code.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ister.actors.addresses import PROCESS_PATH
from ister.actors.process import (
    EXIT_FAILED,
    EXIT_REFUSED,
    Birth,
    CannotWork,
    NodeDown,
    NodeUp,
    ProcessContext,
    ProcessSpec,
    Ready,
    SignalWatch,
    has_terminal,
)
from ister.actors.restarts import RestartHistory, RestartPolicy
from ister.actors.runtime import LoopActor, System, Timer, receives
from ister.actors.spawning import Child, Spawner, Starter

logger = logging.getLogger("ister.supervisor")

# A process that has not reported after this long hangs: imports and recovery take seconds at worst.
READY_WITHIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class StopProcesses:
    """Stop all processes in order; when told a second time, at once."""

    reason: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class _Died:
    node: str
    boot: int


class _Node:
    __slots__ = ("boot", "child", "history", "spec", "started_at", "timer", "up", "was_up")

    def __init__(self, spec: ProcessSpec, policy: RestartPolicy) -> None:
        self.spec = spec
        self.history = RestartHistory(policy)
        self.boot = 0
        self.child: Child | None = None
        self.started_at = 0.0
        self.up: NodeUp | None = None
        self.was_up = False  # whether it ever was: a refusal of the first start is an error of the settings
        self.timer: Timer | None = None  # to start it, to notice a missing Ready, or to kill it

    def set_timer(self, timer: Timer | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


class Supervisor(LoopActor):
    """Keeps the processes of `specs` running (runs in: the broker process).

    `on_all_up()` is called once, when every process has sent Ready; `on_finished(exit code, reason)` when all have
    ended after a stop; by default that ends the broker process. `signals`: handle SIGINT, SIGTERM and SIGHUP (main
    thread). SIGHUP stops the broker when its terminal is gone, and is otherwise only logged: there is nothing to
    reload.
    """

    def __init__(
        self,
        system: System,
        path: str,
        context: ProcessContext,
        specs: Sequence[ProcessSpec],
        *,
        starter: Starter | None = None,
        policy: RestartPolicy | None = None,
        signals: bool = True,
        on_all_up: Callable[[], None] = lambda: None,
        on_finished: Callable[[int, str], None] | None = None,
    ) -> None:
        super().__init__(system, path)
        self._context = context
        self._policy = policy or RestartPolicy()
        self._nodes = {spec.node: _Node(spec, self._policy) for spec in specs}
        self._starter: Starter = starter or Spawner()
        self._takes_signals = signals
        self._signals: SignalWatch | None = None
        self._had_terminal = False
        self._on_all_up: Callable[[], None] | None = on_all_up
        self._on_finished = on_finished or (lambda exit_code, _reason: context.stop(exit_code))
        self._last_boot = context.boot
        self._stopping: StopProcesses | None = None
        self._killing = False
        self.restarts = 0

    @property
    def processes(self) -> dict[str, int]:
        """The pids of the living children, by node."""
        return {node.spec.node: node.child.pid for node in self._nodes.values() if node.child is not None}

    def on_start(self) -> None:
        """Start all processes at once."""
        if self._takes_signals:
            self._had_terminal = has_terminal()
            taken = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has SIGHUP ignored
                taken.append(signal.SIGHUP)
            self._signals = SignalWatch(self.loop, taken, self._signalled)
        for node in self._nodes.values():
            self._start(node)
        self._tell_all_up()

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP and not (self._had_terminal and not has_terminal()):
            logger.info("SIGHUP: there is nothing to reload; SIGTERM stops the broker")
            return
        self.ref.tell(StopProcesses(name))

    def _start(self, node: _Node) -> None:
        self._last_boot = node.boot = max(self._last_boot + 1, self.clock.time_ms())
        context = self._context
        birth = Birth(
            node.spec, node.boot, context.folder, context.boot, os.getpid(), logging.getLogger().level
        )
        node.child = child = self._starter.start(birth)
        node.started_at = self.clock.monotonic()
        died = _Died(node.spec.node, node.boot)
        self.loop.watch(child.sentinel, lambda: self._sentinel(child.sentinel, died))
        node.set_timer(self.call_later(READY_WITHIN_S, lambda: self._silent(node)))
        logger.info("started %s, pid %d, boot %d", node.spec.node, child.pid, node.boot)

    def _sentinel(self, sentinel: int, died: _Died) -> None:
        # Sent as a message, so that mail that came before the death is handled before it.
        self.loop.unwatch(sentinel)
        self.inbox.tell(died)

    def _silent(self, node: _Node) -> None:
        logger.error("%s was not ready within %.0f s; killing it", node.spec.node, READY_WITHIN_S)
        if node.child is not None:
            node.child.kill()

    @receives(Ready)
    def ready(self, ready: Ready) -> None:
        """Introduce a child whose actors are up to the other processes, and these to it."""
        node = self._nodes.get(ready.node)
        if node is None or node.boot != ready.boot or node.child is None or self._stopping is not None:
            return
        node.set_timer(None)
        node.up = NodeUp(ready.node, ready.boot, ready.pid, ready.endpoint)
        node.was_up = True
        lived_s = self.clock.monotonic() - node.started_at
        logger.info(
            "%s is up after %.0f ms, pid %d %s", ready.node, lived_s * 1000, ready.pid, ready.endpoint
        )
        self._context.node_changed(node.up)
        newcomer = self.system.ref(ready.node, PROCESS_PATH)
        for other in self._nodes.values():
            if other.up is not None and other is not node:
                newcomer.tell(other.up)
        self._tell_others(node, node.up)
        self._tell_all_up()

    def _tell_all_up(self) -> None:
        if self._on_all_up is not None and all(node.up for node in self._nodes.values()):
            all_up, self._on_all_up = self._on_all_up, None
            self.at_turn_end(all_up)  # after the listeners, which were just told of the last process

    def _tell_others(self, about: _Node, change: NodeUp | NodeDown) -> None:
        for other in self._nodes.values():
            if other.up is not None and other is not about:
                self.system.ref(other.spec.node, PROCESS_PATH).tell(change)

    @receives(CannotWork)
    def cannot_work(self, refusal: CannotWork) -> None:
        """Stop the broker with an error if a child cannot work on its first start."""
        node = self._nodes.get(refusal.node)
        if node is not None and node.boot == refusal.boot and not node.was_up:
            self._give_up(f"{refusal.node} can't work: {refusal.text} ({refusal.code})", EXIT_REFUSED)

    @receives(_Died)
    def died(self, died: _Died) -> None:
        """Tell all processes that a child is dead, and start it again unless the broker is stopping."""
        node = self._nodes[died.node]
        if node.child is None or node.boot != died.boot:
            return
        code = node.child.reap()
        node.child = None
        node.set_timer(None)
        was_up, node.up = node.up, None
        reason = _how_it_ended(code)
        if was_up is not None:
            down = NodeDown(died.node, died.boot, reason)
            self._context.node_changed(down)
            self._tell_others(node, down)
        if self._stopping is not None:
            logger.info("%s stopped (%s)", died.node, reason)
            self._stop_next()
            return
        now = self.clock.monotonic()
        if code == EXIT_REFUSED and not node.was_up:
            self._give_up(f"{died.node} can't work; its own log says why", EXIT_REFUSED)
            return
        delay_s = node.history.died(now, now - node.started_at)
        if delay_s is None:
            policy = self._policy
            allowed = f"restarts_max = {policy.restarts_max} within {policy.restarts_window_s:.0f} s"
            self._give_up(
                f"{died.node} died more often than {allowed}, the last time by {reason}", EXIT_FAILED
            )
            return
        logger.error("%s died (%s); starting it again in %.1f s", died.node, reason, delay_s)
        self.restarts += 1
        node.set_timer(self.call_later(delay_s, lambda: self._start(node)))

    def _give_up(self, reason: str, exit_code: int) -> None:
        if self._stopping is None:
            logger.critical("giving up: %s; stopping everything", reason)
            self._begin_stop(StopProcesses(reason, exit_code))

    @receives(StopProcesses)
    def stop_processes(self, stop: StopProcesses) -> None:
        """Stop all processes, the lowest stop_rank first; when told again, kill what is left."""
        if self._stopping is None:
            logger.info("stopping: %s", stop.reason)
            self._begin_stop(stop)
        else:
            logger.warning("stopping at once: %s", stop.reason)
            self._kill_all()

    def _begin_stop(self, stop: StopProcesses) -> None:
        self._stopping = stop
        for node in self._nodes.values():
            node.set_timer(None)
        self._stop_next()

    def _stop_next(self) -> None:
        assert self._stopping is not None
        alive = [node for node in self._nodes.values() if node.child is not None]
        if not alive:
            self._on_finished(self._stopping.exit_code, self._stopping.reason)
            return
        rank = min(node.spec.stop_rank for node in alive)
        for node in alive:
            # a process with a timer was already asked
            if node.spec.stop_rank == rank and node.timer is None and not self._killing:
                self._ask_to_stop(node)

    def _ask_to_stop(self, node: _Node) -> None:
        assert node.child is not None
        node.child.terminate()
        node.set_timer(self.call_later(self._policy.stop_grace_s, lambda: self._too_slow(node)))

    def _too_slow(self, node: _Node) -> None:
        if node.child is not None:
            grace_s = self._policy.stop_grace_s
            logger.warning("%s did not stop within %.0f s; killing it", node.spec.node, grace_s)
            node.child.kill()

    def _kill_all(self) -> None:
        self._killing = True
        for node in self._nodes.values():
            if node.child is not None:
                node.child.kill()

    def on_stop(self) -> None:
        """Kill all children, whatever ended this actor."""
        if self._signals is not None:
            self._signals.close()
        self._kill_all()

    def on_failure(self, *_error: object) -> None:
        """End the broker: it must not run without its Supervisor."""
        self.on_stop()
        self._on_finished(EXIT_FAILED, "the supervisor failed")


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
