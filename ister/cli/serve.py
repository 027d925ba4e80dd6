"""`ister serve`: run a broker. The only file of this package that imports `actors`, and only inside a function."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ister.cli.command import Command
from ister.cli.options import ENDPOINT_DEFAULT, json_option
from ister.errors import IsterError, SettingsError, StorageError
from ister.extras import need, need_for_store
from ister.words import counted

if TYPE_CHECKING:
    from ister.actors.broker import BrokerReady

_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>

_HELP_END: Final = """\b
Examples:
  ister serve                                    data in ./data, one worker a core
  ister serve --data /var/lib/ister --listen 'tcp://*:5555' --workers 4
  ister serve --config conf/ister.toml --set log.segment_bytes_max=6291456

\b
Settings come from the file, then the environment (ISTER_SERVER__WORKERS=4), then the flags; the later wins.
Logs go to stderr. Ctrl-C or SIGTERM stops the broker in order; what was acknowledged is kept.

\b
Exit codes:
  0   stopped when asked to        75  another broker holds the data folder
  2   wrong usage                  73  the data folder cannot be written
  71  the port is in use           78  a setting is unknown or out of its range, or the store unusable
  1   it had to give up; its log says why"""


@click.command(cls=Command, epilog=_HELP_END)
@click.option("--config", type=click.Path(), metavar="FILE", help="Settings in TOML, as in conf/ister.toml.")
@click.option("--data", metavar="DIR", help="The folder of the log and the catalogue.  [default: data]")
@click.option(
    "--listen",
    metavar="ADDRESS",
    help=f"Where the first worker listens; each further one takes the next port.  [default: {ENDPOINT_DEFAULT}]",
)
@click.option("--workers", metavar="N", help="Worker processes.  [default: one per core]")
@click.option(
    "--store", metavar="ADDRESS", help="Where sealed segments go: file:///... or gs://...  [default: in DIR]"
)
@click.option(
    "--set", "sets", multiple=True, metavar="SECTION.NAME=VALUE", help="Any other setting; may be repeated."
)
@click.option(
    "--rebuild-catalogue",
    is_flag=True,
    help="Rebuild a damaged or lost catalogue from the files beside logs; set aside what nothing describes.",
)
@click.option("--die-with-parent", is_flag=True, hidden=True)
@json_option
def serve(
    config: str | None,
    data: str | None,
    listen: str | None,
    workers: str | None,
    store: str | None,
    sets: tuple[str, ...],
    rebuild_catalogue: bool,
    die_with_parent: bool,
    as_json: bool,
) -> None:
    """Run a broker in the foreground, until Ctrl-C or SIGTERM."""
    need("broker", "`ister serve`")
    from ister.actors.broker import describe_ready, run_broker
    from ister.settings import load_settings

    if die_with_parent:
        _die_with_parent()
    overrides: dict[str, object] = {
        "server.data": data,
        "server.listen": listen,
        "server.workers": workers,
        "server.store": store,
        **dict(map(_split_set, sets)),
    }
    settings = load_settings(config, os.environ, overrides)
    if settings.server.store:
        need_for_store(settings.server.store, "`ister serve`")

    def on_ready(ready: BrokerReady) -> None:
        print(json.dumps(describe_ready(ready)) if as_json else _greeting(ready), flush=True)

    try:
        run_broker(settings, on_ready, rebuild_catalogue=rebuild_catalogue)
    except OSError as error:
        if isinstance(error, IsterError):
            raise
        folder = os.path.abspath(settings.server.data)
        raise StorageError(
            f"the data folder {folder} cannot be used: {error.strerror or error}",
            code="data-unwritable",
            action="fix",
        ) from error


def _split_set(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set {text!r} is not SECTION.NAME=VALUE")
    return name.strip(), value.strip()


def _greeting(ready: BrokerReady) -> str:
    """Return the start message: where to connect, the features in use, how to stop, and what to try first."""
    first, *others = ready.endpoints
    processes = {"broker": os.getpid(), **ready.processes}
    rows: list[tuple[str, Any]] = [
        ("connect to", first + (f"   (and {', '.join(others)}: any of them will do)" if others else "")),
        ("data", f"{ready.data}   ({counted(ready.topics, 'topic')})"),
        ("store", ready.store),
        ("processes", "   ".join(f"{name} {pid}" for name, pid in processes.items())),
        ("stop", f"Ctrl-C, or: kill {os.getpid()}"),
        ("try", f"echo hello | ister produce greetings --create{_endpoint_flag(first)}"),
        (
            "",
            f"ister consume greetings --subscription me --start earliest{_endpoint_flag(first)}",
        ),
    ]
    return "\n".join(["Ister is up.", *(f"  {name:<11} {value}" for name, value in rows)])


def _endpoint_flag(endpoint: str) -> str:
    return "" if endpoint == ENDPOINT_DEFAULT else f" --endpoint {shlex.quote(endpoint)}"


def _die_with_parent() -> None:
    """Have the kernel stop this broker when the program that started it ends (Linux; elsewhere do nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
