"""Tests with real processes: a broker of a Supervisor and its children only, and its reaction to signals."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ister.ownbroker import free_ports

pytestmark = pytest.mark.process

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Broker:
    """A running `supervised_children.py`, and the events it printed."""

    def __init__(self, **arguments: Any) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "supervised_children.py"), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.pids: dict[str, int] = {}
        self.log = ""
        self.seen: list[dict[str, Any]] = []
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._threads = [threading.Thread(target=self._read_events), threading.Thread(target=self._read_log)]
        for thread in self._threads:
            thread.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.put(json.loads(line))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line.decode()

    def wait_for(self, **wanted: Any) -> dict[str, Any]:
        """Return the first event, also a past one, that has all fields of `wanted` (... matches any value)."""
        deadline = time.monotonic() + 15
        at = 0
        while True:
            for event in self.seen[at:]:
                if all(name in event and value in (..., event[name]) for name, value in wanted.items()):
                    return event
            at = len(self.seen)
            try:
                self.take(max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no event {wanted}; the log:\n{self.log}") from None

    def take(self, timeout_s: float = 15.0) -> None:
        """Read one event, and record the pids in it."""
        event = self.events.get(timeout=timeout_s)
        self.seen.append(event)
        if "pid" in event:
            self.pids[event["up"]] = event["pid"]

    def end(self) -> int:
        """Wait for the broker to end, and return its exit code."""
        code = self.process.wait(15)
        for thread in self._threads:
            thread.join(5)
        return code

    def close(self) -> None:
        """Kill what a failed test left running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture(params=["spawned", "forked"])
def broker(request: pytest.FixtureRequest) -> Iterator[Callable[..., Broker]]:
    """Return a function that starts brokers, whose processes are spawned, or forked by a nursery.

    All are ended after the test.
    """
    brokers: list[Broker] = []
    forks = request.param == "forked"
    if forks and sys.platform != "linux":
        pytest.skip("only Linux has a nursery")

    def start(**arguments: Any) -> Broker:
        brokers.append(Broker(forks=forks, **arguments))
        return brokers[-1]

    yield start
    for each in brokers:
        each.close()


def gone(pid: int) -> bool:
    """Return True if there is no process `pid`, or a zombie that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_gone_within(seconds: float, pids: list[int]) -> bool:
    """Wait until none of `pids` is running."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(gone(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


TWO_WORKERS_AND_TIER = {"worker-0": ["watching", 0], "worker-1": ["watching", 0], "tier": ["steady", 1]}


def test_a_killed_worker_comes_back_and_everyone_hears_of_it(broker: Callable[..., Broker]) -> None:
    """SIGKILL gives NodeDown, then a new process with a higher boot, and NodeUp; SIGTERM ends all in order."""
    running = broker(children=TWO_WORKERS_AND_TIER)
    folder = running.wait_for(all_up=...)["folder"]
    before = dict(running.pids)
    assert set(before) == {"worker-0", "worker-1", "tier"}
    if sys.platform == "linux":
        titles = {
            node: Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") for node, pid in before.items()
        }
        assert titles == {node: f"ister: {node}".encode() for node in before}

    os.kill(before["worker-0"], signal.SIGKILL)
    down = running.wait_for(seen_by="worker-1", down="worker-0")
    while running.pids["worker-0"] == before["worker-0"]:
        running.take()
    up = running.wait_for(seen_by="worker-1", up="worker-0", pid=running.pids["worker-0"])
    assert down["reason"] == "SIGKILL"
    assert up["boot"] > down["boot"]
    assert up["endpoint"] == "tcp://worker-0"
    running.wait_for(viewer=up["pid"], up="worker-1")  # the new process is told which others are up

    running.process.send_signal(signal.SIGTERM)
    assert running.wait_for(finished=...) == {"finished": 0, "reason": "SIGTERM"}
    assert running.end() == 0
    assert all_gone_within(1, [*before.values(), *running.pids.values()])
    assert running.log.index("tier stopped") > running.log.index("worker-1 stopped")
    assert not Path(folder).exists()
    assert "Traceback" not in running.log


@pytest.mark.parametrize("child", ["steady", "steady_without_the_kernels_help"])
def test_nothing_survives_a_broker_that_is_killed(broker: Callable[..., Broker], child: str) -> None:
    """After kill -9 of the broker all its children are gone within a second, with or without the kernel's help."""
    running = broker(children={"worker-0": [child, 0], "tier": [child, 1]})
    running.wait_for(all_up=...)
    running.process.kill()
    assert running.end() == -signal.SIGKILL
    assert all_gone_within(2, list(running.pids.values()))


def test_ctrl_c_stops_cleanly_and_a_second_one_at_once(broker: Callable[..., Broker]) -> None:
    """Ctrl-C goes to the whole terminal: children leave it to the broker; the second one kills a child that hangs."""
    running = broker(children={"worker-0": ["stubborn", 0], "tier": ["steady", 1]})
    running.wait_for(all_up=...)
    os.killpg(running.pid, signal.SIGINT)
    time.sleep(0.1)
    assert running.process.poll() is None
    assert not gone(running.pids["worker-0"])
    began = time.monotonic()
    os.killpg(running.pid, signal.SIGINT)
    assert running.end() == 0
    assert time.monotonic() - began < 2
    assert all_gone_within(1, list(running.pids.values()))
    assert "KeyboardInterrupt" not in running.log


def test_a_hang_up_ends_a_broker_only_with_its_terminal(broker: Callable[..., Broker]) -> None:
    """SIGHUP to a broker without a terminal, or to one of its children, does not stop it."""
    running = broker(children={"worker-0": ["steady", 0], "tier": ["steady", 1]})
    running.wait_for(all_up=...)
    before = dict(running.pids)
    os.killpg(running.pid, signal.SIGHUP)
    while "nothing to reload" not in running.log:
        time.sleep(0.01)
    assert running.process.poll() is None
    assert not any(gone(pid) for pid in before.values())
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert running.pids == before


def test_a_broker_stops_in_order_when_its_terminal_is_gone(tmp_path: Path) -> None:
    """Closing a terminal window stops the broker started in it and its children, in order."""
    child, terminal = pty.fork()
    if child == 0:
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 2)
        command = [sys.executable, "-m", "ister", "serve", "--workers", "1", "--data", str(tmp_path / "data")]
        os.execv(sys.executable, [*command, "--listen", f"tcp://127.0.0.1:{free_ports(1)}"])
    shown = b""
    while not re.search(rb"ister consume [^\n]*\n", shown):
        shown += os.read(terminal, 4096)
    pids = [int(pid) for pid in re.findall(rb"(?:broker|worker-0|tier) (\d+)", shown)]
    assert len(pids) == 3
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "log").read_text()
    assert all_gone_within(5, pids)
    assert "worker-0 stopped" in (tmp_path / "log").read_text()


def test_ctrl_c_during_the_start_is_clean_too(broker: Callable[..., Broker]) -> None:
    """A child that does not ignore Ctrl-C yet is not ended by it."""
    running = broker(children={"worker-0": ["steady", 0], "tier": ["steady", 1]})
    while "started worker-0" not in running.log:
        time.sleep(0.001)
    os.killpg(running.pid, signal.SIGINT)
    assert running.end() == 0
    assert "stopped (SIGINT)" not in running.log
    assert "KeyboardInterrupt" not in running.log


def test_one_that_hangs_is_killed_after_its_grace(broker: Callable[..., Broker]) -> None:
    """A process that ignores SIGTERM delays the others for the grace period, not longer."""
    running = broker(
        children={"worker-0": ["stubborn", 0], "tier": ["steady", 1]}, policy={"stop_grace_s": 0.2}
    )
    running.wait_for(all_up=...)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert "worker-0 did not stop within" in running.log
    assert running.log.index("tier stopped") > running.log.index("worker-0 stopped (SIGKILL)")


def test_a_worker_that_dies_again_and_again_ends_the_broker_loudly(broker: Callable[..., Broker]) -> None:
    """The error names the process and the number of restarts; the others are stopped in order; the exit code is 1."""
    running = broker(
        children={"worker-0": ["crashing", 0], "tier": ["steady", 1]},
        policy={"delay_first_s": 0.01, "restarts_max": 2},
    )
    finished = running.wait_for(finished=...)
    assert finished["finished"] == 1
    assert finished["reason"] == (
        "worker-0 died more often than restarts_max = 2 within 60 s, the last time by exit code 3"
    )
    assert running.end() == 1
    assert "CRITICAL broker ister.supervisor: giving up" in running.log


def test_a_worker_that_cannot_work_ends_the_broker_with_its_reason(broker: Callable[..., Broker]) -> None:
    """Wrong settings are not tried five times: the broker ends with the child's error."""
    running = broker(children={"worker-0": ["refusing", 0], "tier": ["steady", 1]})
    finished = running.wait_for(finished=...)
    assert finished["finished"] == 78
    assert "worker-0 can't work: listen: port 5555 is in use" in finished["reason"]
    assert running.end() == 78
    assert "starting it again" not in running.log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a nursery")
def test_a_broker_without_its_nursery_spawns(broker: Callable[..., Broker]) -> None:
    """A killed nursery takes its processes with it; they are started again without it, and end in order."""
    running = broker(children=TWO_WORKERS_AND_TIER)
    running.wait_for(all_up=...)
    before = dict(running.pids)
    event = next((event for event in running.seen if "nursery" in event), None)
    if event is None:
        return  # spawned
    os.kill(event["nursery"], signal.SIGKILL)
    assert all_gone_within(5, list(before.values()))
    for node in before:
        running.wait_for(down=node, reason="SIGKILL")
    deadline = time.monotonic() + 30
    while set(running.pids.values()) & set(before.values()):
        assert time.monotonic() < deadline
        running.take()
    assert "spawned from now on" in running.log
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0
    assert "tier stopped (exit code 0)" in running.log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a nursery")
def test_processes_hold_nothing_that_the_broker_had_open(tmp_path: Path) -> None:
    """Its lock, its catalogue, and what the program that started it handed over, end with the broker itself."""
    command = [sys.executable, "-m", "ister", "serve", "--workers", "1", "--data", str(tmp_path / "data")]
    command += ["--listen", f"tcp://127.0.0.1:{free_ports(1)}", "--json"]
    read, write = os.pipe()
    pipe = os.readlink(f"/proc/self/fd/{write}")
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[write], text=True
    )
    os.close(write)
    os.close(read)
    try:
        assert running.stdout is not None
        ready = json.loads(running.stdout.readline())
        assert pipe in held_by(running.pid)
        parents = set()
        for pid in ready["processes"].values():
            parents.add(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
            assert not [
                each for each in held_by(pid) if each.endswith(("/lock", "catalogue.sqlite")) or each == pipe
            ]
        [nursery] = parents
        assert nursery != running.pid
        assert Path(f"/proc/{nursery}/cmdline").read_bytes().strip(b"\0") == b"ister: nursery"
        running.terminate()
        assert running.wait(30) == 0
        assert all_gone_within(5, [nursery, *ready["processes"].values()])
    finally:
        running.kill()
        running.communicate()


def held_by(pid: int) -> list[str]:
    """Return what a process has open."""
    return [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
