"""A broker that runs as long as a program, for `ister demo`, `ister bench` and tests.

May touch: one child process, `python -m ister serve`, on free ports of this machine.

Invariants
- the broker never outlives the program that started it (Linux: also when that is killed)
- a broker that does not start is an error with the end of its log; the program never waits forever
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ister.errors import IsterError
from ister.extras import need

READY_WITHIN_S: Final = 30.0
STOP_WITHIN_S: Final = 15.0
TRIES: Final = 5  # another program may take a port between the check and the bind
ADDRESS_IN_USE: Final = 71
PORT_LOW, PORT_HIGH = 15_000, 30_000  # below the ports that Linux assigns by itself (32768 and up)
LOG_TAIL_BYTES: Final = 2_000


class BrokerNotUpError(IsterError):
    """The broker did not start, or ended by itself."""

    code = "broker-failed"


class OwnBroker:
    """A broker as a child process; `data` is its folder, its log goes to the file `log`.

    `settings` maps `section.name` to a value. Use it in a `with` block: the broker is stopped at its end.
    """

    def __init__(
        self, data: str, log: str, *, workers: int = 2, settings: Mapping[str, object] | None = None
    ) -> None:
        self._data = data
        self._log = log
        self._workers = workers
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    @property
    def endpoint(self) -> str:
        """The address of its first worker."""
        return str(self.ready["endpoints"][0])

    @property
    def log(self) -> str:
        """The file with the log of its processes."""
        return self._log

    def start(self) -> None:
        """Start it and wait until clients can connect; raises `BrokerNotUpError`, `NotInstalledError`."""
        need("broker", "a broker on this machine")
        for attempt in range(1, TRIES + 1):
            self._process = self._spawn(free_ports(self._workers))
            line = self._first_line(self._process)
            if line:
                self.ready = json.loads(line)
                return
            code = self.stop()
            if code != ADDRESS_IN_USE or attempt == TRIES:
                raise BrokerNotUpError(
                    f"the broker did not come up (exit code {code}); its log ends:\n{self.log_tail()}"
                )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ister", "serve", "--json", "--die-with-parent"]
        command += [
            "--data",
            self._data,
            "--listen",
            f"tcp://127.0.0.1:{port}",
            "--workers",
            str(self._workers),
        ]
        for name, value in self._settings.items():
            command += ["--set", f"{name}={value}"]
        with Path(self._log).open("ab") as log:
            # a process group of its own: Ctrl-C reaches only the program that started it, which stops it in order
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, process_group=0
            )

    def _first_line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], READY_WITHIN_S)
        return process.stdout.readline() if readable else b""

    def check(self) -> None:
        """Raise `BrokerNotUpError` if it has ended by itself."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            raise BrokerNotUpError(f"the broker ended (exit code {code}); its log ends:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the end of its log."""
        with Path(self._log).open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()

    def stop(self) -> int:
        """Stop it in order, by force if that takes too long; return its exit code."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
        code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        return code

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports on which no program listens now."""
    while True:
        first = PORT_LOW + secrets.randbelow(PORT_HIGH - PORT_LOW - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
