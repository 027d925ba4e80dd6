"""Brokers as processes for raw clients, with short timeouts: one is shared by all tests that leave it intact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ister.ownbroker import OwnBroker
from tests.raw_client import RawClient

SHORT = {
    "protocol.session_timeout_ms": 30_000,  # a raw client says nothing while its test is busy with others
    "protocol.heartbeat_ms": 500,
    "protocol.sessions_max": 200,
    "protocol.message_bytes_max": 200_000,
    "protocol.batch_bytes_max": 400_000,
    "log.segment_bytes_max": (1 << 20) + 400_000,
    "log.segment_age_ms_max": 500,
    "supervision.restarts_max": 1000,
    "supervision.restart_delay_ms_min": 10,
}

MakeBroker = Callable[..., OwnBroker]


@pytest.fixture(autouse=True)
def _no_client_stays() -> Iterator[None]:
    yield
    for client in list(RawClient.connected):
        client.close()


@pytest.fixture(scope="module")
def make_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeBroker]:
    """Return a function that starts a broker: `make_broker(data=..., workers=2, settings={})`."""
    made: list[OwnBroker] = []

    def make(
        data: Path | None = None, workers: int = 2, settings: Mapping[str, object] | None = None
    ) -> OwnBroker:
        folder = data or tmp_path_factory.mktemp("broker")
        broker = OwnBroker(
            f"{folder}/data", f"{folder}/log", workers=workers, settings={**SHORT, **(settings or {})}
        )
        made.append(broker)
        broker.start()
        return broker

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture(scope="module")
def broker(make_broker: MakeBroker) -> OwnBroker:
    """Return the broker that the tests of a module share."""
    return make_broker()
