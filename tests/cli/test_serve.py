"""Tests of `ister serve`: its start message, and how it refuses to start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ister.cli.serve import _greeting
from ister.ownbroker import OwnBroker, free_ports

pytestmark = pytest.mark.process


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `ister serve`, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "ister", "serve", *arguments], capture_output=True, text=True, timeout=30
    )


def test_a_broker_says_where_it_is_and_stops_when_asked(tmp_path: Path) -> None:
    """One JSON object has addresses, folder, store and processes; SIGINT ends it with 0, and no process is left."""
    port = free_ports(2)
    data = tmp_path / "data"
    command = [sys.executable, "-m", "ister", "serve", "--json", "--data", str(data), "--workers", "2"]
    command += ["--listen", f"tcp://127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["endpoints"] == [f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1}"]
        assert ready["data"] == str(data)
        assert ready["pid"] == process.pid
        assert ready["processes"].keys() == {"worker-0", "worker-1", "tier"}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    for pid in ready["processes"].values():
        assert not Path(f"/proc/{pid}").exists()


def test_a_folder_that_another_broker_holds_is_exit_code_75(tmp_path: Path) -> None:
    """Two brokers never share a log: the second names the holder, and says that trying later may help."""
    with OwnBroker(f"{tmp_path}/data", f"{tmp_path}/log", workers=1):
        done = serve("--data", f"{tmp_path}/data", "--listen", f"tcp://127.0.0.1:{free_ports(1)}")
    assert done.returncode == 75
    assert "data-locked" in done.stderr
    assert "--data" in done.stderr


def test_a_port_that_is_taken_is_exit_code_71(tmp_path: Path) -> None:
    """The address is named, before any process is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = serve("--data", f"{tmp_path}/data", "--listen", address, "--workers", "1")
    assert done.returncode == 71
    assert address in done.stderr
    assert "(address-in-use)" in done.stderr


def test_a_folder_that_cannot_be_made_is_exit_code_73(tmp_path: Path) -> None:
    """The folder is named, with the system's reason."""
    (tmp_path / "file").touch()
    done = serve("--data", f"{tmp_path}/file/data", "--listen", f"tcp://127.0.0.1:{free_ports(1)}")
    assert done.returncode == 73
    assert f"{tmp_path}/file/data" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_cannot_be_used_is_exit_code_78(tmp_path: Path) -> None:
    """The folder is named at once: starting the tier again and again would end the same way."""
    (tmp_path / "file").touch()
    store = f"file://{tmp_path}/file/store"
    listen = f"tcp://127.0.0.1:{free_ports(1)}"
    done = serve("--data", f"{tmp_path}/data", "--listen", listen, "--workers", "1", "--store", store)
    assert done.returncode == 78
    assert f"the store in {tmp_path}/file/store cannot be used" in done.stderr
    assert "starting it again" not in done.stderr


def test_an_unknown_setting_is_exit_code_78_and_the_nearest_is_named(tmp_path: Path) -> None:
    """A misspelt setting is never silently ignored, wherever it was given."""
    config = tmp_path / "ister.toml"
    config.write_text("[log]\nsegment_byte_max = 10000000\n")
    done = serve("--config", str(config), "--data", f"{tmp_path}/data")
    assert done.returncode == 78
    assert "log.segment_bytes_max" in done.stderr
    flag = serve("--set", "protocol.heartbeet_ms=1", "--data", f"{tmp_path}/data")
    assert (flag.returncode, "protocol.heartbeat_ms" in flag.stderr) == (78, True)
    assert serve("--workers", "many", "--data", f"{tmp_path}/data").returncode == 78
    assert not (tmp_path / "data").exists()


def test_the_greeting_says_how_to_connect_stop_and_begin() -> None:
    """A new user can continue from what it prints."""
    from ister.actors.broker import BrokerReady

    endpoints = ("tcp://127.0.0.1:6000", "tcp://127.0.0.1:6001")
    text = _greeting(BrokerReady(endpoints, "/data", "file:///store", 1, {"worker-0": 7, "tier": 8}))
    for expected in (
        "tcp://127.0.0.1:6000",
        "/data",
        "1 topic)",
        "worker-0 7",
        "Ctrl-C",
        "ister produce",
        "--endpoint",
    ):
        assert expected in text
