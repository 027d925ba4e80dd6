"""Brokers as processes on an emulated Google store, behind a proxy that lets requests fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ister.ownbroker import free_ports
from tests.crash.victim import Victim
from tests.faultproxy import FaultProxy
from tests.gcs.emulator import Emulator, find_program, running

BUCKET = "ister-cloud"
URL = f"gs://{BUCKET}/prefix"
FAULTS = ("503", "429", "refused", "lost", "reset", "truncated", "slow", "cut", "corrupted")

SETTINGS: dict[str, object] = {
    "server.store": URL,
    "protocol.message_bytes_max": 100_000,
    "protocol.batch_bytes_max": 100_000,
    "protocol.heartbeat_ms": 500,
    "protocol.session_timeout_ms": 2_000,
    "log.segment_bytes_max": 1_200_000,
    "log.segment_age_ms_max": 1_000,
    "log.local_bytes": 0,
    "log.cloud_linger_ms": 50,
    "tier.cursor_upload_ms": 200,
    "tier.upload_retry_ms_min": 20,
    "tier.upload_retry_ms_max": 500,
    "supervision.restarts_max": 10_000,
    "supervision.restart_delay_ms_max": 200,
}
MakeBroker = Callable[..., tuple[Victim, str]]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Return a running emulator with one empty bucket; skips if there is none."""
    if find_program() is None:
        pytest.skip("there is no fake-gcs-server for this machine")
    with running() as emulator:
        emulator.make_bucket(BUCKET)
        yield emulator


@pytest.fixture
def proxy(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Return a proxy before it that brokers use; it does nothing until its probability is set."""
    with FaultProxy(emulator.url, kinds=FAULTS, seed=5) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def make_broker(proxy: FaultProxy, tmp_path: Path) -> Iterator[MakeBroker]:
    """Return a function that starts brokers on that store: `make_broker("a")` returns one and its endpoint."""
    made: list[Victim] = []

    def make(name: str, **more: Any) -> tuple[Victim, str]:
        port = free_ports(2)
        victim = Victim(tmp_path / name, tmp_path / f"{name}.log", port, SETTINGS | more)
        made.append(victim)
        victim.start(2)
        return victim, f"tcp://127.0.0.1:{port}"

    yield make
    for victim in made:
        victim.end()
