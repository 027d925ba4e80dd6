"""Real processes for the Supervisor's tests: the functions its children run, and a broker with only a Supervisor.

Run as a program with one argument, a JSON object {"children": {node: [function, stop_rank]}, "policy": {...},
"forks": whether a nursery starts them}; it prints one line of JSON for each thing that happens.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
from typing import Any

from ister.actors.nursery import Nursery
from ister.actors.process import NodeDown, NodeUp, ProcessContext, ProcessSpec, log_to_stderr, run_folder
from ister.actors.restarts import RestartPolicy
from ister.actors.runtime import LoopActor, System, receives
from ister.actors.supervisor import Supervisor
from ister.clock import SystemClock
from ister.errors import SettingsError


def steady(context: ProcessContext) -> None:
    """Report up, and run until asked to stop."""
    context.ready(f"tcp://{context.node}")


def steady_without_the_kernels_help(context: ProcessContext) -> None:
    """Report up, and run on a system that does not kill the children of a dead parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    context.ready()


def stubborn(context: ProcessContext) -> None:
    """Report up, and ignore the request to stop."""
    context.on_terminate = lambda: None
    context.ready()


def crashing(context: ProcessContext) -> None:
    """Exit at once with an error."""
    os._exit(3)


def refusing(context: ProcessContext) -> None:
    """Reject the settings."""
    raise SettingsError("listen: port 5555 is in use")


class Neighbourhood(LoopActor):
    """Prints which processes come up and go down, as one process is told."""

    def __init__(self, system: System, path: str, node: str) -> None:
        super().__init__(system, path)
        self._node = node

    @receives(NodeUp)
    def up(self, up: NodeUp) -> None:
        """Print that a process is up."""
        say(
            seen_by=self._node, viewer=os.getpid(), up=up.node, boot=up.boot, pid=up.pid, endpoint=up.endpoint
        )

    @receives(NodeDown)
    def down(self, down: NodeDown) -> None:
        """Print that a process is down."""
        say(seen_by=self._node, viewer=os.getpid(), down=down.node, boot=down.boot, reason=down.reason)


def watching(context: ProcessContext) -> None:
    """Report up, and print what this process is told about other processes."""
    context.listen(context.system.spawn(Neighbourhood, "neighbourhood", context.node))
    context.ready(f"tcp://{context.node}")


def say(**event: Any) -> None:
    """Print one line and flush it."""
    os.write(1, json.dumps(event).encode() + b"\n")


def broker(arguments: dict[str, Any]) -> int:
    """Run a broker that consists of a Supervisor."""
    log_to_stderr("broker", logging.INFO)
    clock = SystemClock()
    began = clock.monotonic()
    nursery = Nursery.begin() if arguments.get("forks") else None
    if nursery is not None:
        say(nursery=nursery.pid)
    with run_folder() as folder:
        context = ProcessContext("broker", clock.time_ms(), folder)
        context.listen(context.system.spawn(Neighbourhood, "neighbourhood", "broker"))
        specs = [
            ProcessSpec(node, globals()[function], None, rank)
            for node, (function, rank) in arguments["children"].items()
        ]

        def finished(exit_code: int, reason: str) -> None:
            say(finished=exit_code, reason=reason)
            context.stop(exit_code)

        context.system.spawn(
            Supervisor,
            "supervisor",
            context,
            specs,
            starter=nursery,
            policy=RestartPolicy(**arguments.get("policy", {})),
            on_all_up=lambda: say(all_up=clock.monotonic() - began, folder=folder),
            on_finished=finished,
        )
        return context.run()


if __name__ == "__main__":
    import supervised_children  # type: ignore[import-not-found] # by name, so that its functions are importable

    sys.exit(supervised_children.broker(json.loads(sys.argv[1])))
