"""The nursery: a process that starts the broker's other processes by forking itself.

What every process imports (some 20 MB) is then in memory once, and a start takes milliseconds. The broker cannot fork
itself for that: it has threads, sockets and an open catalogue. So it forks the nursery first of all, when it has none
of these; the nursery does nothing but start processes and say how they ended.

Invariants
- the nursery has one thread, and no descriptors but its own: nothing of the broker's can be held open by a child
- a child ends when the nursery ends, and the nursery when the broker ends, however that happens
- a nursery that is gone is no end of the broker: processes are spawned from then on

Runs on Linux, where processes are told of the end of their parent and a fork is safe; elsewhere processes are spawned.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NoReturn

from ister.actors.envelope import check_messages
from ister.actors.process import EXIT_FAILED, Birth, child_main, die_with_parent, name_process
from ister.actors.spawning import Child, Spawner

log = logging.getLogger("ister.process")

_NUMBER: Final = struct.Struct("<i")
# A birth is some kilobytes of settings.
_BIRTH_BYTES_MAX: Final = 1 << 17
# A fork takes milliseconds.
BORN_WITHIN_S: Final = 10.0
_FIRST_DESCRIPTOR: Final = 3


class Nursery:
    """The broker's end of the nursery."""

    def __init__(self, pid: int, connection: socket.socket, life: int) -> None:
        self.pid = pid
        self._connection: socket.socket | None = connection
        self._life = life
        self._spawner = Spawner()

    @classmethod
    def begin(cls) -> Nursery | None:
        """Fork the nursery; None where processes must be spawned: on other systems, or beside other threads."""
        if sys.platform != "linux" or len(os.listdir("/proc/self/task")) != 1:
            return None
        broker = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends, life = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        check_messages()  # every process would build the same tables
        # Objects that no collection looks at stay on pages that all processes share.
        gc.collect()
        gc.freeze()
        pid = os.fork()
        if pid == 0:
            _leave(lambda: _keep(theirs.detach(), ends, broker))
        theirs.close()
        os.close(ends)
        ours.settimeout(BORN_WITHIN_S)
        return cls(pid, ours, life)

    def start(self, birth: Birth) -> Child:
        """Start the process that `birth` describes. Raises OSError if the machine lacks the resources."""
        if self._connection is not None:
            try:
                return self._fork(self._connection, birth)
            except ConnectionError as error:
                log.error("the nursery is gone (%s): processes are spawned from now on", error)
                self.close()
        return self._spawner.start(birth)

    def _fork(self, connection: socket.socket, birth: Birth) -> Child:
        sentinel, tells = os.pipe()
        try:
            socket.send_fds(connection, [pickle.dumps(birth)], [tells])
            answer = connection.recv(_NUMBER.size)
            if not answer:
                raise ConnectionResetError("it has ended")
        except OSError as error:
            os.close(sentinel)
            if isinstance(error, ConnectionError):
                raise
            raise ConnectionAbortedError(str(error)) from error  # it is stopped
        finally:
            os.close(tells)
        (number,) = _NUMBER.unpack(answer)
        if number < 0:
            os.close(sentinel)
            raise OSError(-number, f"a process for {birth.spec.node} could not be started")
        return _ForkedChild(number, sentinel)

    def close(self) -> None:
        """Let the nursery end, and wait for that."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        os.close(self._life)
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it may be stopped; its children end with it
            os.waitpid(self.pid, 0)


class _ForkedChild:
    """A process of the nursery."""

    def __init__(self, pid: int, sentinel: int) -> None:
        self.pid = pid
        self.sentinel = sentinel
        # The nursery reaps its children, so that a number may soon name another process.
        try:
            self._handle = os.pidfd_open(pid)
        except OSError:
            self._handle = -1  # it has ended already

    def _signal(self, number: signal.Signals) -> None:
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def reap(self) -> int:
        told = os.read(self.sentinel, _NUMBER.size)
        os.close(self.sentinel)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if not told:  # the nursery was killed, and with it its children
            return -signal.SIGKILL
        code: int = _NUMBER.unpack(told)[0]
        return code


def _keep(connection: int, ends: int, broker: int) -> int:
    """Run the nursery: start processes until the broker ends; return its exit code."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # the broker decides when it ends
        signal.signal(number, signal.SIG_IGN)
    _close_all_but({connection, ends})
    name_process("nursery")
    die_with_parent(broker)
    wake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    told: dict[int, int] = {}  # by pid: where to say how it ended
    with socket.socket(fileno=connection) as peer:
        while True:
            readable, _, _ = select.select([peer.fileno(), wake, ends], [], [])
            if wake in readable:
                os.read(wake, 4096)
                _tell_ends(told)
            if ends in readable:
                return 0
            if peer.fileno() in readable:
                message, handles, _, _ = socket.recv_fds(peer, _BIRTH_BYTES_MAX, 1)
                if not message:
                    return 0
                tells = handles[0]
                pid = _bear(pickle.loads(message), ends)  # noqa: S301 - from its own parent
                peer.send(_NUMBER.pack(pid))
                if pid > 0:
                    told[pid] = tells
                else:
                    os.close(tells)


def _tell_ends(told: dict[int, int]) -> None:
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        tells = told.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(tells, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(tells)


def _bear(birth: Birth, ends: int) -> int:
    """Fork a process; return its number, or a negative errno."""
    parent = os.getpid()
    asked = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asked)  # none is lost while the child still ignores it
    try:
        pid = os.fork()
        if pid == 0:
            _leave(lambda: _live(replace(birth, parent_pid=parent), ends))
    except OSError as error:
        return -(error.errno or 1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _live(birth: Birth, ends: int) -> int:
    """Run a forked process; return its exit code."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _close_all_but({ends})
    try:
        child_main(birth, ends)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _FIRST_DESCRIPTOR and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _leave(run: Callable[[], int]) -> NoReturn:
    """Run a forked process, and end it without what its parent had registered for its own end."""
    code = EXIT_FAILED
    try:
        code = run()
    except BaseException:
        log.exception("a forked process failed")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
