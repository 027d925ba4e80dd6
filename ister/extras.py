"""The extras that `pip install ister` leaves out, for running a broker or using Google Cloud Storage.

A client needs pyzmq and cbor2, the command line click and rich. Code that needs more checks for it here first, so that
a missing library is an error that says what to install. The extras in pyproject.toml are listed here too; a test holds
them equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Final

from ister.errors import NotInstalledError

# By extra: the modules, and the distributions that have them.
EXTRAS: Final[dict[str, dict[str, str]]] = {
    "broker": {
        "google_crc32c": "google-crc32c",
        "msgspec": "msgspec",
        "pykka": "pykka",
        "setproctitle": "setproctitle",
    },
    "gcs": {"google.cloud.storage": "google-cloud-storage", "google_crc32c": "google-crc32c"},
}


def need(extra: str, what: str, modules: Iterable[str] | None = None) -> None:
    """Raise NotInstalledError, with the command that installs it, unless an extra's modules are installed.

    `what` begins the sentence "`ister serve` needs ...". `modules` are those of the extra that are needed, if not all.
    """
    known = EXTRAS[extra]
    missing = [known[module] for module in modules or known if not _is_there(module)]
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} and {last}" if others else last
        raise NotInstalledError(f"{what} needs {named}, not installed here: pip install 'ister[{extra}]'")


def need_for_store(url: str, what: str) -> None:
    """Raise NotInstalledError unless a store at this address can be opened."""
    if url.startswith("gs:"):
        need("gcs", f"{what} with a gs:// store")
    else:
        need("broker", what, ["google_crc32c"])


def _is_there(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing, or refuses to be imported
        return False
