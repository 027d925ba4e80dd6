"""The command line: `ister serve`, `produce`, `consume`, `topic`, `subscription`, `store`, `status`, `bench`, `demo`.

One file per command; each imports what it needs when it runs, so that `--help` is quick. Only `serve` imports the
broker's packages.
"""

from __future__ import annotations

from typing import Final

import click

from ister.cli.command import CONTEXT, Group, run
from ister.cli.outcome import EXIT_CODES_HELP
from ister.compiling import is_compiled
from ister.version import __version__

_COMMANDS: Final = {
    "serve": ("ister.cli.serve:serve", "Run a broker on this machine."),
    "topic": (
        "ister.cli.topic:topic",
        "Create, update, list, show, verify, repair, take over, forget and delete topics.",
    ),
    "subscription": (
        "ister.cli.subscription:subscription",
        "Create, update, list, show, move, pause, resume, unblock and delete subscriptions.",
    ),
    "produce": ("ister.cli.produce:produce", "Send lines to a topic."),
    "consume": ("ister.cli.consume:consume", "Print the messages of a subscription, or of a topic."),
    "peek": ("ister.cli.peek:peek", "Look at messages without consuming them."),
    "explain": ("ister.cli.explain:explain", "Say why messages of a subscription flow or do not flow."),
    "dlq": ("ister.cli.dlq:dlq", "List, show, redrive and purge dead letters."),
    "store": ("ister.cli.store:store", "Read topics straight from a store, without a broker."),
    "status": ("ister.cli.status:status", "Show a broker's processes and what they have done."),
    "demo": ("ister.cli.demo:demo", "See a broker lose a worker and no message, on real input."),
    "bench": ("ister.cli.bench:bench", "Measure throughput and latency."),
}

_EXAMPLES: Final = """\b
Examples:
  ister serve                                              a broker here, with its data in ./data
  ister topic create orders                                a reliable topic
  echo "10 kg of flour" | ister produce orders             one message per line
  ister consume orders --subscription billing --start earliest"""


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"ister {__version__}" + " (compiled)" * is_compiled())
        ctx.exit()


@click.group(cls=Group, lazy=_COMMANDS, context_settings=CONTEXT, epilog=f"{_EXAMPLES}\n\n{EXIT_CODES_HELP}")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def ister() -> None:
    """Ister, a message broker: topics in memory or at least once, subscriptions, clients in any language."""


def main() -> None:
    """Run the command line: the target of the `ister` script."""
    run(ister)
