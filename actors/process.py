"""A process of the broker: what it is given at its start, how it reports that it is ready, how it ends.

This is an entry point, where the real clock, random numbers and sockets are made and handed out. A child is started by
`actors/supervisor.py` with a `Birth`, composes its actors in `ProcessSpec.target(context)`, says
`context.ready(endpoint)`, and runs its loop until SIGTERM.

Invariants:
- `ps` shows what a process is: `ister: worker-0`.
- Ctrl-C and SIGHUP concern the broker only; it asks its children to stop, with SIGTERM, in order.
- A child never outlives the broker, even one killed with SIGKILL: the kernel kills it (Linux), and its loop watches the
  parent's sentinel (everywhere).
- A process that can't do its work says so with a `CannotWork` mail and exit code 78; one that fails exits with 1.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import glob
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import setproctitle
import zmq

from ister.actors.addresses import BROKER, PROCESS_PATH, SUPERVISOR_PATH
from ister.actors.envelope import message
from ister.actors.mail import Mail
from ister.actors.runtime import Loop, LoopActor, Ref, Scheduler, System, receives
from ister.clock import SystemClock
from ister.errors import IsterError
from ister.storage.openfiles import descriptor_limit, descriptors_used

logger = logging.getLogger("ister.process")

EXIT_FAILED: Final = 1
EXIT_REFUSED: Final = 78  # EX_CONFIG of sysexits.h: another start would end the same way
EXIT_ORPHANED: Final = 75  # the broker process is gone

# A thread that returns from fdatasync waits at most this long for the interpreter. Python's own 5 ms would be ten
# times the fdatasync.
SWITCH_INTERVAL_S: Final = 0.0005

RUN_FOLDER_PREFIX: Final = "ister-"

# Mail in transit when a process ends has this long to leave.
LINGER_S: Final = 0.2


@message
@dataclass(frozen=True, slots=True)
class Ready:
    """A process tells the Supervisor that its actors are up, and its endpoint for clients ("" if it serves none)."""

    node: str
    boot: int
    pid: int
    endpoint: str


@message
@dataclass(frozen=True, slots=True)
class CannotWork:
    """A process tells the Supervisor that it cannot work, and that starting it again will not help."""

    node: str
    boot: int
    code: str
    text: str


@message
@dataclass(frozen=True, slots=True)
class NodeUp:
    """The Supervisor tells every process and listener that a process is up, after its `boot`-th start."""

    node: str
    boot: int
    pid: int
    endpoint: str


@message
@dataclass(frozen=True, slots=True)
class NodeDown:
    """The Supervisor tells every process and listener that a process is gone, with everything it held."""

    node: str
    boot: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process that the Supervisor keeps running.

    `target` is a function of an importable module; it composes the process's actors and returns. `settings` is handed
    to it pickled. Processes of a lower `stop_rank` are stopped first, those with the same one together.
    """

    node: str
    target: Callable[[ProcessContext], None]
    settings: Any = None
    stop_rank: int = 0


@dataclass(frozen=True, slots=True)
class Birth:
    """What a child gets from its parent."""

    spec: ProcessSpec
    boot: int
    folder: str
    broker_boot: int
    parent_pid: int
    log_level: int


class ProcessContext:
    """What a process's composition gets; `settings` are those of its spec.

    `boot` tells this process from earlier ones of the same name, also across restarts of the broker. `on_terminate` is
    called when the process is asked to stop (SIGTERM): it may finish its work first, and calls `stop()` at the end.
    """

    def __init__(self, node: str, boot: int, folder: str, settings: Any = None) -> None:
        self.node = node
        self.boot = boot
        self.folder = folder
        self.settings = settings
        self.clock = SystemClock()
        self.random = Random()
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.loop = Loop(self.clock)
        self.mail = Mail(self.zmq, folder, node, boot)
        self.system = System(node, self.loop, self.mail, self.clock, self.random)
        self.on_terminate: Callable[[], None] = self.stop
        self.exit_code = 0
        self._listeners: list[Ref] = []
        self._up: dict[str, NodeUp] = {}
        self.system.spawn(Neighbours, PROCESS_PATH, self)

    def ready(self, endpoint: str = "") -> None:
        """Tell the Supervisor that this process is up; `endpoint` is its address for clients."""
        supervisor = self.system.ref(BROKER, SUPERVISOR_PATH)
        supervisor.tell(Ready(self.node, self.boot, os.getpid(), endpoint))

    def listen(self, ref: Ref) -> None:
        """Send `ref` NodeUp and NodeDown from now on, and NodeUp for the processes known to be up."""
        self._listeners.append(ref)
        for up in self._up.values():
            ref.tell(up)

    def node_changed(self, change: NodeUp | NodeDown) -> None:
        """Note that a process came or went: mail to it starts or ends, and listeners are told."""
        if isinstance(change, NodeUp):
            if change.node != self.node:
                self.mail.meet(change.node, change.boot)
            self._up[change.node] = change
        else:
            self.mail.forget(change.node, change.boot)
            self._up.pop(change.node, None)
        for ref in self._listeners:
            ref.tell(change)

    @property
    def nodes_up(self) -> dict[str, NodeUp]:
        """The processes known to be up, by node."""
        return dict(self._up)

    def stop(self, exit_code: int = 0) -> None:
        """End `run` after this turn; a process stopped twice exits with the first code that is not 0."""
        self.exit_code = self.exit_code or exit_code
        self.loop.stop()

    def run(self) -> int:
        """Run the loop until `stop`, then stop all actors and close everything; return the exit code."""
        try:
            self.loop.run()
            self.system.stop_all()
        finally:
            self.close()
        return self.exit_code

    def close(self) -> None:
        """Close the sockets and the loop."""
        self.mail.close(LINGER_S)
        self.loop.close()
        self.zmq.destroy(linger=int(LINGER_S * 1000))


class Neighbours(LoopActor):
    """The actor, in every process, that is told which other processes are up."""

    def __init__(self, system: System, path: str, context: ProcessContext) -> None:
        super().__init__(system, path)
        self._context = context

    @receives(NodeUp, NodeDown)
    def changed(self, change: NodeUp | NodeDown) -> None:
        """Note that a process came or went."""
        self._context.node_changed(change)


class SignalWatch:
    """Handles `signals` on the loop: `call(signal number)` is made there, as for any other event.

    Must be created on the process's main thread. `close` restores Python's own handlers.
    """

    def __init__(
        self, loop: Scheduler, signals: Iterable[signal.Signals], call: Callable[[int], None]
    ) -> None:
        self._loop = loop
        self._call = call
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = {each: signal.signal(each, _only_wake) for each in signals}
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        loop.watch(self._read, self._taken)

    def _taken(self) -> None:
        for number in os.read(self._read, 256):
            if number in self._before:
                self._call(number)

    def close(self) -> None:
        """Restore the handlers, and handle no further signals."""
        self._loop.unwatch(self._read)
        signal.set_wakeup_fd(self._fd_before)
        for each, handler in self._before.items():
            signal.signal(each, handler)
        os.close(self._read)
        os.close(self._write)


def _only_wake(_number: int, _frame: object) -> None:
    """Do nothing: the signal is reported through the wake-up pipe."""


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that still exists."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY))  # noqa: TID251 no file of the data folder
    except OSError:
        return False
    return True


@contextmanager
def run_folder() -> Iterator[str]:
    """Create the folder of a broker's sockets, readable by its user only, and remove it at the end.

    It is in /tmp, whatever TMPDIR says: the path of a socket may be about 100 bytes long.
    """
    for left in glob.glob(f"/tmp/{RUN_FOLDER_PREFIX}*"):
        _sweep_run_folder(left)
    folder = tempfile.mkdtemp(prefix=f"{RUN_FOLDER_PREFIX}{os.getpid()}-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep_run_folder(folder: str) -> None:
    """Remove the run folder of a killed broker: it is this user's and names a process that no longer exists."""
    pid = folder.removeprefix(f"/tmp/{RUN_FOLDER_PREFIX}").partition("-")[0]
    try:
        if not pid.isdecimal() or os.stat(folder).st_uid != os.getuid():
            return
        os.kill(int(pid), 0)
    except ProcessLookupError:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # it belongs to another user, or was removed meanwhile
        return


def log_to_stderr(node: str, level: int) -> None:
    """Send this process's log to stderr, each line with the node's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {node} %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def name_process(node: str) -> None:
    """Show the process as `ister: <node>` in ps and top."""
    setproctitle.setproctitle(f"ister: {node}")


def process_description(context: ProcessContext, role: str, endpoint: str = "") -> dict[str, Any]:
    """Return what `status` shows about this process: its identity and what it has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    kinds: dict[str, int] = {}
    for path in context.system.paths():
        kind = path.partition("/")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    loop = context.loop
    return {
        "node": context.node,
        "role": role,
        "pid": os.getpid(),
        "boot": context.boot,
        "endpoint": endpoint,
        "cpu_seconds": round(time.process_time(), 3),
        "descriptors": descriptors_used(),
        "descriptors_max": descriptor_limit(),
        "rss_peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "actors": kinds,
        "turns": loop.turns,
        "messages_handled": loop.messages_handled,
        "mail": {
            "sent": context.mail.sent,
            "received": context.mail.received,
            "dropped": context.mail.dropped,
        },
    }


def child_main(birth: Birth, broker_ends: int | None = None) -> None:
    """Run the child process that `birth` describes. Ends with SystemExit.

    `broker_ends` is a descriptor that becomes readable when the broker ends; a spawned process has it otherwise.
    """
    spec = birth.spec
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent blocked signals while it started this process
    name_process(spec.node)
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log_to_stderr(spec.node, birth.log_level)
    die_with_parent(birth.parent_pid)
    context = ProcessContext(spec.node, birth.boot, birth.folder, spec.settings)
    parent = multiprocessing.parent_process()
    if broker_ends is None and parent is not None:
        broker_ends = parent.sentinel
    if broker_ends is not None:
        context.loop.watch(broker_ends, _orphaned)
    SignalWatch(context.loop, [signal.SIGTERM], lambda _: context.on_terminate())
    context.mail.meet(BROKER, birth.broker_boot)
    try:
        spec.target(context)
        gc.freeze()  # what was made so far stays: no collection looks at it
        code = context.run()
    except IsterError as error:
        code = _refuse(context, error)
    except Exception:
        logger.exception("%s failed", spec.node)
        code = EXIT_FAILED
    sys.exit(code)


def _refuse(context: ProcessContext, error: IsterError) -> int:
    if error.action == "retry":
        logger.error("%s failed: %s (%s)", context.node, error, error.code)
        return EXIT_FAILED
    logger.error("%s can't work: %s (%s)", context.node, error, error.code)
    supervisor = context.system.ref(BROKER, SUPERVISOR_PATH)
    supervisor.tell(CannotWork(context.node, context.boot, error.code, str(error)))
    context.close()
    return EXIT_REFUSED


def _orphaned() -> None:
    # The broker is gone, and whatever was acknowledged is durable: the quickest end is the safest.
    logger.critical("the broker process is gone; ending")
    os._exit(EXIT_ORPHANED)


_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere only the loop watches the parent)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before that call
        _orphaned()
