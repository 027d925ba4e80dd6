"""The tier process: its composition root. Runs in: tier.

Makes the store, an Uploader for every topic with something to upload, the Fetcher, and the Restorer, which restores
topics that the local disk knows nothing of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from ister.actors.addresses import BROKER, DIRECTORY_PATH, FETCHER_PATH, FRONTEND_PATH, RESTORER_PATH
from ister.actors.fetcher import Fetcher
from ister.actors.messages import (
    Answer,
    Describe,
    EraseStored,
    ForgetCursor,
    Governs,
    KeepTopic,
    Sealed,
    StoreCursor,
)
from ister.actors.process import ProcessContext, process_description
from ister.actors.restorer import Restorer
from ister.actors.runtime import LoopActor, System, receives
from ister.actors.stored_cursors import Farewell
from ister.actors.threads import Purpose
from ister.actors.uploader import Uploader
from ister.settings import Settings, TierSettings
from ister.storage.addresses import open_store
from ister.storage.disk import Disk, LocalDisk
from ister.storage.folders import cursor_path, log_folder
from ister.storage.objectstore import ObjectStore
from ister.wire import encode_result

# Where many topics upload small segments, a store's answer takes longer than the bytes: so many topics may each have
# all uploads that a topic may have. What is sent at once is bounded by the store, in bytes.
TOPICS_SIDE_BY_SIDE: Final = 2
# Uploads and downloads block their threads: as many as may be in progress, and some for listings and claims.
SPARE_THREADS: Final = 4
BROKER_FILE: Final = "broker-id"
_BROKER_NAME: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class TierProcessSettings:
    """What the tier is given: the broker's settings, its data folder, and the address of the store."""

    settings: Settings
    data: str
    store: str


class TierFrontend(LoopActor):
    """Answers for the tier when the Directory asks every process for a description."""

    def __init__(self, system: System, path: str, context: ProcessContext, store: str) -> None:
        super().__init__(system, path)
        self._context = context
        self._store = store

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe this process."""
        body: dict[str, Any] = process_description(self._context, "tier") | {"store": self._store}
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))


def run_tier(context: ProcessContext) -> None:
    """Compose the tier: the target of its process. Raises `UsageError` and `StoreError` for a store it cannot use."""
    given: TierProcessSettings = context.settings
    store = open_store(given.store, keep_reserve=True)
    parallel = given.settings.tier.upload_parallel
    context.loop.threads.resize(Purpose.UPLOADS, TOPICS_SIDE_BY_SIDE * parallel)
    context.loop.threads.resize(Purpose.FETCHES, parallel)
    context.system.spawn(TierFrontend, FRONTEND_PATH, context, given.store)
    spawn_tier(context.system, store, LocalDisk(), given.data, given.settings.tier)
    context.ready()


def spawn_tier(system: System, store: ObjectStore, disk: Disk, data: str, tier: TierSettings) -> None:
    """Start the Fetcher and the Restorer, and an Uploader whenever a topic sends to its own."""
    directory = system.ref(BROKER, DIRECTORY_PATH)
    broker = broker_name(disk, data, system.random)
    farewell = Farewell()

    def unclaimed(path: str, message: object) -> None:
        if path.startswith("uploader/") and isinstance(
            message, KeepTopic | Sealed | StoreCursor | ForgetCursor | EraseStored | Governs
        ):
            topic = message.topic
            if topic is None:  # the topic was deleted, and this process does not know it
                return
            uploader = system.spawn(
                Uploader,
                path,
                topic,
                store,
                directory=directory,
                broker=broker,
                farewell=farewell,
                parallel=tier.upload_parallel,
                retry_ms=(tier.upload_retry_ms_min, tier.upload_retry_ms_max),
            )
            uploader.tell(message)

    system.on_unclaimed = unclaimed
    system.spawn(
        Fetcher,
        FETCHER_PATH,
        store,
        disk,
        data,
        parallel=tier.upload_parallel,
        cache_bytes_max=tier.cache_bytes_max,
    )
    system.spawn(
        Restorer,
        RESTORER_PATH,
        store,
        disk,
        directory=directory,
        broker=broker,
        cursor_path=lambda topic, subscription: cursor_path(data, topic, subscription),
        log_path=lambda topic: log_folder(data, topic),
        retry_ms=(tier.upload_retry_ms_min, tier.upload_retry_ms_max),
        orphan_grace_ms=tier.orphan_grace_ms,
    )


def broker_name(disk: Disk, data: str, random: Random) -> str:
    """Return the name under which this broker owns topics in a store; it lasts as long as the data folder.

    It is generated once, and kept in the data folder. Raises OSError.
    """
    path = f"{data}/{BROKER_FILE}"
    if disk.exists(path):
        found = disk.read(path).decode("ascii", "replace").strip()
        if _BROKER_NAME.fullmatch(found):
            return found
        disk.unlink(path)  # a write that was cut short: the name was never used
    name = random.randbytes(16).hex()
    part = f"{path}.part"
    if disk.exists(part):
        disk.unlink(part)
    file = disk.create(part)
    try:
        file.pwritev((f"{name}\n".encode(),), 0)
        file.datasync()
    finally:
        file.close()
    disk.rename(part, path)
    disk.sync_folder(data)
    return name
