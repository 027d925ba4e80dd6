"""Tests of what the broker does before its processes start: ports, addresses, and leftovers of an earlier run."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from pathlib import Path

import pytest

from ister.actors.broker import check_free, cores, sweep_orphans, worker_addresses
from ister.errors import UsageError
from ister.names import topic_folder
from ister.storage.catalogue import Catalogue
from ister.storage.disk import LocalDisk
from ister.storage.folders import CURSORS_FOLDER, TOPICS_FOLDER
from ister.storage.meta import TopicMeta
from tests.stage import settings_of


def test_each_worker_has_the_next_port() -> None:
    """Worker 0 listens on the configured port, the following workers on the ports after it."""
    binds, told = worker_addresses(settings_of(server__listen="tcp://127.0.0.1:7000", server__workers=3))
    assert binds == told == [f"tcp://127.0.0.1:{port}" for port in (7000, 7001, 7002)]


def test_clients_are_told_an_address_they_can_connect_to() -> None:
    """With a wildcard listen address, or behind NAT, that differs from the address bound."""
    listen = "tcp://*:7000"
    assert worker_addresses(settings_of(server__listen=listen, server__workers=1)) == (
        ["tcp://*:7000"],
        ["tcp://127.0.0.1:7000"],
    )
    told = worker_addresses(
        settings_of(server__listen=listen, server__workers=1, server__advertise="broker.example")
    )
    assert told == (["tcp://*:7000"], ["tcp://broker.example:7000"])


def test_without_a_number_there_is_a_worker_a_core() -> None:
    """One worker for each core that this process may use."""
    binds, _ = worker_addresses(settings_of(server__listen="tcp://127.0.0.1:7000"))
    assert len(binds) == cores() >= 1


def test_a_port_in_use_is_named_before_anything_starts() -> None:
    """The port is named in the error, also if it is not the first worker's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}") as raised:
            check_free(["tcp://127.0.0.1:0", f"tcp://127.0.0.1:{port}"])
    assert raised.value.code == "address-in-use"
    check_free(["tcp://*:0", "tcp://127.0.0.1:0"])


def test_a_port_that_cannot_be_is_an_error_too() -> None:
    """The error also comes if a later worker's port would be above 65535."""
    with pytest.raises(UsageError, match="65536"):
        check_free(["tcp://127.0.0.1:65536"])


def folders(data: Path) -> set[str]:
    """Return the folders of logs and cursors that exist."""
    return {f"{path.parent.name}/{path.name}" for path in data.glob("*/*")}


def leave(data: Path, name: str) -> None:
    """Make the folders of a topic's log and cursors, each with a file."""
    for kind in (TOPICS_FOLDER, CURSORS_FOLDER):
        (data / kind / name).mkdir(parents=True)
        (data / kind / name / "file").write_bytes(b"x")


def test_what_a_deleted_topic_left_behind_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    """Folders without a topic, also those of earlier incarnations, are deleted; the folders of topics stay."""
    catalogue = Catalogue(str(tmp_path / "catalogue.sqlite"))
    topic = TopicMeta("orders/eu", bytes(range(16)), "reliable", "fsync", 1)
    catalogue.create_topic(topic)
    known = f"{topic_folder(topic.name)}.{topic.incarnation.hex()}"
    leave(tmp_path, known)
    leave(tmp_path, f"{topic_folder(topic.name)}.{bytes(16).hex()}")
    leave(tmp_path, "gone.00")
    sweep_orphans(LocalDisk(), str(tmp_path), catalogue)
    catalogue.close()
    assert folders(tmp_path) == {f"{TOPICS_FOLDER}/{known}", f"{CURSORS_FOLDER}/{known}"}
    assert (tmp_path / TOPICS_FOLDER / known / "file").exists()


def test_a_catalogue_that_is_empty_deletes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The catalogue may have been lost and made again: then the logs are the only copy left."""
    leave(tmp_path, "orders.00")
    before = folders(tmp_path)
    with caplog.at_level(logging.WARNING):
        with closing(Catalogue(str(tmp_path / "catalogue.sqlite"))) as catalogue:
            sweep_orphans(LocalDisk(), str(tmp_path), catalogue)
    assert folders(tmp_path) == before
    assert "is kept" in caplog.text
