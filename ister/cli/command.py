"""The base of every command: lazy imports, errors in one place, no traceback for Ctrl-C or a closed pipe.

Invariants
- `ister --help` imports click and nothing of Ister's own that needs a socket
- no command shows a traceback for an `IsterError`, for Ctrl-C, for a pipe that nobody reads any more, or where what it
  prints finds no room
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any, Final

import click

from ister.cli.ending import EndedError
from ister.cli.outcome import (
    CANNOT_WRITE,
    HUNG_UP,
    INTERRUPTED,
    PIPE_CLOSED,
    exit_code_of,
    print_error,
)
from ister.errors import DiskFullError, IsterError

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Command(click.Command):
    """A command whose errors become a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raises `click.exceptions.Exit` with the code that its error stands for."""
        try:
            return super().invoke(ctx)
        except IsterError as error:
            print_error(error, as_json=bool(ctx.params.get("as_json")))
            ctx.exit(exit_code_of(error))
        except BrokenPipeError:
            ctx.exit(PIPE_CLOSED)
        except OSError as error:
            ctx.exit(_no_room(error, as_json=bool(ctx.params.get("as_json"))))
        except EndedError as ended:
            ctx.exit(ended.exit_code)
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                print(file=sys.stderr)  # below the terminal's own ^C
            ctx.exit(INTERRUPTED)


class Group(click.Group):
    """A group whose commands are imported when used: `lazy` maps a name to `module:attribute` and a summary."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy or {}

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in their order of definition."""
        return [*self.commands, *self._lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None if there is none of that name."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing those that are lazy."""
        rows = [(name, command.get_short_help_str(100)) for name, command in self.commands.items()]
        rows += [(name, summary) for name, (_, summary) in self._lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def run(command: click.Command) -> None:
    """Run the command line of this process, and exit."""
    try:
        code = command.main(prog_name="ister", standalone_mode=False)
        if code not in (PIPE_CLOSED, HUNG_UP, CANNOT_WRITE):
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = PIPE_CLOSED
    except OSError as error:
        code = _no_room(error)
    if code in (PIPE_CLOSED, HUNG_UP, CANNOT_WRITE):
        # the interpreter flushes stdout once more at its end: discard that
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code if isinstance(code, int) else 0)


def _no_room(error: OSError, *, as_json: bool = False) -> int:
    """Say that the output found no room, and return the exit code; raise any other error."""
    if error.errno not in NO_ROOM:
        raise error
    full = DiskFullError(f"what is printed cannot be written: {error.strerror}")
    print_error(full, as_json=as_json)
    return exit_code_of(full)
