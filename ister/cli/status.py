"""`ister status`: a broker's processes and what they have done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ister.cli.command import Command
from ister.cli.options import client_options, connected, json_option
from ister.compiling import is_compiled
from ister.show import print_json, print_table, shown, size_in_words
from ister.version import __version__

_HELP_END = """\b
Examples:
  ister status
  ister status --json | jq '.processes[] | {node, pid, cpu_seconds}'"""


@click.command(cls=Command, epilog=_HELP_END)
@client_options
@json_option
def status(endpoint: str, timeout: float, as_json: bool) -> None:
    """Show a broker's processes: pid, address, CPU time, memory, and the actors in each; and what this client is."""
    with connected(endpoint, timeout) as client:
        found = client.status()
    if as_json:
        print_json({**found, "client": {"version": __version__, "compiled": is_compiled()}})
        return
    print_table(
        ["process", "pid", "address", "CPU s", "memory", "sessions", "actors"],
        [_row(process) for process in found["processes"]],
    )
    click.echo(f"this client: ister {__version__}, {'compiled' if is_compiled() else 'pure Python'}")


def _row(process: Mapping[str, Any]) -> list[Any]:
    memory = process.get("rss_bytes", process.get("rss_peak_bytes"))
    return [
        process["node"],
        str(process["pid"]),
        process.get("endpoint") or "-",
        float(process.get("cpu_seconds", 0.0)),
        "-" if memory is None else size_in_words(memory),
        process.get("sessions"),
        shown(process.get("actors", {})),
    ]
