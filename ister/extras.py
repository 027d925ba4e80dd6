"""What `pip install ister` leaves out: extras for those who run a broker or use Google Cloud Storage.

A client needs pyzmq and cbor2, the command line click and rich. Whatever needs more asks for it here first, so that a
missing library is an error that says what to install. What pyproject.toml has under each extra is listed here too; a
test holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Final

from ister.errors import NotInstalledError

# By extra: which module comes with which distribution.
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
    """Raise NotInstalledError, with the command that helps, unless what an extra installs is there.

    `what` begins the sentence: `ister serve` needs ... . `modules` are those of the extra that are needed, if not all.
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
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing, or whoever is asked for it refuses
        return False
