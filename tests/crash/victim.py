"""The broker that is killed: `ister serve` in a process group of its own, on the same ports and folder every time.

May touch: its processes, by their ids. They are found in /proc, by their process group and their names.

Invariants
- whatever happens, no process of the group outlives `end`
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
READY_WITHIN_S: Final = 30.0
PORTS_FREE_WITHIN_S: Final = 10.0
GONE_WITHIN_S: Final = 5.0
ADDRESS_IN_USE: Final = 71


class VictimError(Exception):
    """The broker did not start."""


class Victim:
    """A broker; `port` is its first worker's, the others follow."""

    def __init__(
        self, data: Path, log: Path, port: int, settings: Mapping[str, object], *, root: Path = ROOT
    ) -> None:
        self.data = data
        self.log = log
        self.port = port
        self.workers = 0
        self.group = 0
        self._root = root
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, workers: int) -> None:
        """Start it, without waiting."""
        self.workers = workers
        command = [
            sys.executable,
            "-m",
            "ister",
            "serve",
            "--json",
            "--die-with-parent",
            "--data",
            str(self.data),
        ]
        command += ["--listen", f"tcp://127.0.0.1:{self.port}", "--workers", str(workers)]
        for name, value in self._settings.items():
            command += ["--set", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
                cwd=self._root,
                env={**os.environ, "PYTHONPATH": str(self._root)},
            )
        self.group = self._process.pid

    def wait_ready(self) -> dict[str, Any] | None:
        """Wait until clients can connect; return None if it ended because its ports are still in use."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], READY_WITHIN_S)
        line = process.stdout.readline() if readable else b""
        if line:
            ready: dict[str, Any] = json.loads(line)
            return ready
        if not readable:
            raise VictimError(f"the broker was not ready within {READY_WITHIN_S:.0f} s")
        code = self._reap()
        if code == ADDRESS_IN_USE:
            return None
        raise VictimError(f"the broker ended at its start with exit code {code}")

    def start(self, workers: int) -> dict[str, Any]:
        """Start it and wait until it is ready; raises `VictimError`."""
        deadline = time.monotonic() + PORTS_FREE_WITHIN_S
        while True:
            self.spawn(workers)
            ready = self.wait_ready()
            if ready is not None:
                return ready
            if time.monotonic() > deadline:
                raise VictimError(f"port {self.port} or one of those behind it stayed taken")
            time.sleep(0.1)

    @property
    def ended(self) -> int | None:
        """The exit code of a broker that ended by itself."""
        return None if self._process is None else self._process.poll()

    def processes(self) -> dict[str, int]:
        """Return the living processes of the group, by name: broker, worker-0, tier, ..."""
        return {name: pid for pid, name in group_members(self.group).items()}

    def kill(self, name: str, number: int = signal.SIGKILL) -> bool:
        """Send a signal to one of its processes; return False if there is no such process now."""
        pid = self.processes().get(name)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def kill_all(self) -> None:
        """Kill the whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)

    def stop(self) -> int:
        """Stop it in order, and return its exit code."""
        process = self._process
        assert process is not None
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill_all()
        return self._reap()

    def gone(self) -> dict[int, str]:
        """Wait for the end of every process of the group, and return those that remain."""
        self._reap()
        deadline = time.monotonic() + GONE_WITHIN_S
        while True:
            left = group_members(self.group)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    def _reap(self) -> int:
        process = self._process
        if process is None:
            return 0
        code = process.wait(GONE_WITHIN_S)
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        return code

    def end(self) -> None:
        """Kill whatever is left."""
        if self.group:
            self.kill_all()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._reap()


def group_members(group: int) -> dict[int, str]:
    """Return the living processes of a process group (zombies do not count), with the names they show."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            fields = stat[stat.rindex(")") + 2 :].split()
            if int(fields[2]) != group or fields[0] == "Z":
                continue
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        name = line.removeprefix("ister: ") if line.startswith("ister: ") else f"pid {entry.name}"
        found[int(entry.name)] = name
    return found
