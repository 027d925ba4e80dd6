"""The broker process: its composition root. It runs the Supervisor and the Directory.

Runs in the process of `ister serve`. Holds the lock of the data folder until it ends.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from ister.actors.addresses import BROKER, DIRECTORY_PATH, SUPERVISOR_PATH, TIER, node_of
from ister.actors.directory import Directory
from ister.actors.nursery import Nursery
from ister.actors.process import (
    EXIT_FAILED,
    ProcessContext,
    ProcessSpec,
    log_to_stderr,
    name_process,
    process_description,
    run_folder,
)
from ister.actors.restarts import RestartPolicy
from ister.actors.supervisor import Supervisor
from ister.actors.tier import TierProcessSettings, run_tier
from ister.actors.worker import WorkerSettings, run_worker
from ister.clock import SystemClock
from ister.errors import UsageError
from ister.settings import Settings, split_listen
from ister.storage.about import TOPIC_ABOUT
from ister.storage.catalogue import Catalogue
from ister.storage.disk import LocalDisk
from ister.storage.folders import CURSORS_FOLDER, TOPICS_FOLDER, folder_of
from ister.storage.lost_catalogue import open_catalogue
from ister.storage.openfiles import raise_descriptor_limit
from ister.storage.trim import remove_log

log = logging.getLogger("ister.broker")

CATALOGUE_FILE: Final = "catalogue.sqlite"
STORE_PATIENCE_S: Final = 1.0  # seconds; a slower store is waited for in the background
STORE_FOLDER: Final = "store"


@dataclass(frozen=True, slots=True)
class BrokerReady:
    """What `ister serve` prints once clients can connect."""

    endpoints: tuple[str, ...]
    data: str
    store: str
    topics: int
    processes: dict[str, int]
    # a line for each topic that was restored from the store, saying what may be missing
    restored: tuple[str, ...] = ()


class BrokerFailedError(UsageError):
    """The broker ended with an error: the text says which; `exit_code` is the process's."""

    code = "broker-failed"
    action = "stop"

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def run_broker(
    settings: Settings, on_ready: Callable[[BrokerReady], None], *, rebuild_catalogue: bool = False
) -> None:
    """Run a broker in this process until SIGTERM or SIGINT; `on_ready` is called once every process is up.

    `rebuild_catalogue`: a catalogue that is damaged or lost is rebuilt from the files beside logs and cursors.

    Raises `LockedError` if another broker holds the data folder, `OSError` if it cannot be written, `UsageError` for
    addresses in use, `BrokerFailedError` when the broker had to give up.
    """
    name_process(BROKER)
    log_to_stderr(BROKER, getattr(logging, settings.server.log_level.upper()))
    data = os.path.abspath(settings.server.data)
    # children inherit the limit
    log.info("file descriptors: at most %d per process", raise_descriptor_limit())
    nursery = Nursery.begin()  # before there is anything that a fork would copy
    try:
        _run_locked(settings, data, on_ready, nursery, rebuild_catalogue=rebuild_catalogue)
    finally:
        if nursery is not None:
            nursery.close()


def _run_locked(
    settings: Settings,
    data: str,
    on_ready: Callable[[BrokerReady], None],
    nursery: Nursery | None,
    *,
    rebuild_catalogue: bool,
) -> None:
    disk = LocalDisk()
    disk.makedirs(data)
    lock = disk.lock(data)
    try:
        binds, endpoints = worker_addresses(settings)
        check_free(binds)
        path = f"{data}/{CATALOGUE_FILE}"
        catalogue, told = open_catalogue(disk, data, path, rebuild=rebuild_catalogue)
        with closing(catalogue):
            sweep_orphans(disk, data, catalogue)
            with run_folder() as folder:
                _run(settings, data, folder, catalogue, told, binds, endpoints, on_ready, nursery)
    finally:
        lock.release()


def _run(
    settings: Settings,
    data: str,
    folder: str,
    catalogue: Catalogue,
    told: list[str],
    binds: list[str],
    endpoints: list[str],
    on_ready: Callable[[BrokerReady], None],
    nursery: Nursery | None,
) -> None:
    context = ProcessContext(BROKER, SystemClock().time_ms(), folder)
    store = settings.server.store or f"file://{data}/{STORE_FOLDER}"
    supervision = settings.supervision
    workers = [
        ProcessSpec(node_of(number), run_worker, WorkerSettings(settings, data, bind, endpoint))
        for number, (bind, endpoint) in enumerate(zip(binds, endpoints, strict=True))
    ]
    tier = ProcessSpec(TIER, run_tier, TierProcessSettings(settings, data, store), stop_rank=1)
    ended: list[str] = []
    supervisor: Supervisor
    directory: Directory

    def finished(exit_code: int, reason: str) -> None:
        if exit_code:
            ended.append(reason)
        context.stop(exit_code)

    waiting_for = {"processes", "store"}

    def reached(what: str) -> None:
        """Report that clients can connect, once all processes are up and the store was listed or is slow."""
        if what in waiting_for:
            waiting_for.discard(what)
            if not waiting_for:
                topics = len(catalogue.topics())
                processes = supervisor.processes
                on_ready(
                    BrokerReady(
                        tuple(endpoints), data, store, topics, processes, (*told, *directory.restored)
                    )
                )

    def all_up() -> None:
        context.loop.call_later(STORE_PATIENCE_S, lambda: reached("store"))
        reached("processes")

    context.system.spawn(
        Directory,
        DIRECTORY_PATH,
        catalogue,
        endpoints=endpoints,
        describe_broker=lambda: process_description(context, "broker") | {"restarts": supervisor.restarts},
        on_restored=lambda: reached("store"),
        defaults=settings.subscription,
        waits_for_store=not catalogue.topics(),  # the disk may be new, and the store may have topics
    )
    located = context.system.find(DIRECTORY_PATH)
    assert isinstance(located, Directory)
    directory = located
    context.listen(context.system.ref(BROKER, DIRECTORY_PATH))
    context.system.spawn(
        Supervisor,
        SUPERVISOR_PATH,
        context,
        [*workers, tier],
        starter=nursery,
        policy=RestartPolicy(
            delay_first_s=supervision.restart_delay_ms_min / 1000,
            delay_max_s=supervision.restart_delay_ms_max / 1000,
            restarts_max=supervision.restarts_max,
            restarts_window_s=supervision.restarts_window_s,
            stop_grace_s=supervision.stop_grace_ms / 1000,
        ),
        on_all_up=all_up,
        on_finished=finished,
    )
    found = context.system.find(SUPERVISOR_PATH)
    assert isinstance(found, Supervisor)
    supervisor = found
    context.system.on_actor_failure = lambda path, error: _actor_failed(context, path, error)
    gc.freeze()
    code = context.run()
    if code:
        raise BrokerFailedError(ended[0] if ended else "the broker failed; see its log", code)


def _actor_failed(context: ProcessContext, path: str, error: Exception) -> None:
    """End the broker when its Directory or Supervisor failed."""
    if path == DIRECTORY_PATH:
        log.critical("the Directory failed: %s", error)
        context.stop(EXIT_FAILED)


def worker_addresses(settings: Settings) -> tuple[list[str], list[str]]:
    """Return for each worker the address it binds and the one clients are told."""
    host, port = split_listen(settings.server.listen)
    workers = settings.server.workers or cores()
    told = settings.server.advertise or ("127.0.0.1" if host in ("*", "0.0.0.0", "[::]") else host)
    binds = [f"tcp://{host}:{port + number}" for number in range(workers)]
    return binds, [f"tcp://{told}:{port + number}" for number in range(workers)]


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_free(binds: list[str]) -> None:
    """Raise `UsageError` for the first address that is in use, before any process is started."""
    for bind in binds:
        host, port = split_listen(bind)
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("" if host == "*" else host.strip("[]"), port))
            except OverflowError as error:
                raise UsageError(f"cannot listen on {bind}: there is no such port") from error
            except OSError as error:
                raise UsageError(
                    f"cannot listen on {bind}: {error.strerror} (is another broker running there?)",
                    code="address-in-use",
                ) from error


def sweep_orphans(disk: LocalDisk, data: str, catalogue: Catalogue) -> None:
    """Delete files of deleted topics that were left because a worker was not up.

    A catalogue that never had a topic may be a new one in place of a lost one, so nothing is deleted then. A log that
    has a description is not deleted either: deleting a topic removes its description first.
    """
    was_used = catalogue.change() > 0
    known = {folder_of(topic) for topic in catalogue.topics()}
    deleted = {folder_of(topic) for topic in catalogue.erasing()}
    for kind in (TOPICS_FOLDER, CURSORS_FOLDER):
        folder = f"{data}/{kind}"
        if not disk.exists(folder):
            continue
        for name in disk.listdir(folder):
            if not known and not was_used and name not in deleted:
                log.warning(
                    "%s/%s belongs to no topic, because the catalogue has none; it is kept", kind, name
                )
            elif name not in known and disk.exists(f"{data}/{TOPICS_FOLDER}/{name}/{TOPIC_ABOUT}"):
                log.error("%s/%s belongs to no topic of the catalogue, and is kept", kind, name)
            elif name not in known:
                log.info("deleting %s/%s, which belongs to no topic", kind, name)
                remove_log(disk, f"{folder}/{name}")


def describe_ready(ready: BrokerReady) -> dict[str, Any]:
    """Return a `BrokerReady` as a plain map, for scripts."""
    return {
        "endpoints": list(ready.endpoints),
        "data": ready.data,
        "store": ready.store,
        "topics": ready.topics,
        "processes": ready.processes,
        "restored": list(ready.restored),
        "pid": os.getpid(),
    }
