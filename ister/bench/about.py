"""What machine and which versions a measurement was made with. May touch: /proc, and what Python knows of itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sysconfig
from datetime import UTC, datetime
from typing import Any, Final

from ister.compiling import is_compiled
from ister.version import __version__

PACKAGES: Final = ("pyzmq", "cbor2", "google-crc32c", "msgspec", "pykka")


def about(file_system: str | None = None, **more: Any) -> dict[str, Any]:
    """Return machine, versions, and how Python was built, as one plain map; `more` is added to it."""
    import zmq

    return {
        "ister": __version__,
        "compiled": is_compiled(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "profile_guided": profile_guided(),
        "libzmq": zmq.zmq_version(),
        **{name: _version(name) for name in PACKAGES},
        "machine": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_mb": _memory_mb(),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system,
        "load": round(os.getloadavg()[0], 2),
        "began": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        **more,
    }


def profile_guided() -> bool | None:
    """Whether this interpreter's build was guided by a profile; None if it does not say.

    One that was not is about a quarter slower with small messages.
    """
    arguments = sysconfig.get_config_var("CONFIG_ARGS")
    return None if arguments is None else "--enable-optimizations" in arguments


def in_words(told: dict[str, Any]) -> str:
    """Return the machine and the versions in one line."""
    guided = told.get("profile_guided")
    build = ""
    if guided is not None:
        build = f", built {'with' if guided else 'without'} profile-guided optimisation"
    form = " (compiled)" if told.get("compiled") else ""
    return (
        f"Ister {told['ister']}{form}, {told['implementation']} {told['python']}{build}, libzmq {told['libzmq']}; "
        f"{told['cores']} cores of {told['machine']}, {told['memory_mb']:,} MB, {told['system']}, load {told['load']}"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_mb() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
