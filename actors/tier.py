"""The tier process: its composition root. Runs in: tier.

Makes the store, an Uploader for every topic that has something to bring there, the Fetcher, and the Restorer, which
brings back topics that the local disk knows nothing of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from actors.directory import DIRECTORY_PATH, FRONTEND_PATH
from actors.fetcher import FETCHER_PATH, Fetcher
from actors.messages import Answer, Describe, EraseStored, ForgetCursor, KeepTopic, Sealed, StoreCursor
from actors.process import BROKER, ProcessContext
from actors.restorer import RESTORER_PATH, Restorer
from actors.runtime import LoopActor, System, receives
from actors.uploader import Uploader
from actors.worker import cursor_path, process_description
from ister.settings import Settings, TierSettings
from ister.wire import encode_result
from storage.disk import Disk, LocalDisk
from storage.store import ObjectStore
from storage.stores import open_store

# Uploads and downloads block their threads: as many as may be under way, and some for listings and claims.
SPARE_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class TierProcessSettings:
    """What the tier is told: the broker's settings, its data folder, and where the store is."""

    settings: Settings
    data: str
    store: str


class TierFrontend(LoopActor):
    """Answers for the tier when the Directory asks every process."""

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
    store = open_store(given.store)
    context.system.spawn(TierFrontend, FRONTEND_PATH, context, given.store)
    spawn_tier(context.system, store, LocalDisk(), given.data, given.settings.tier)
    context.ready()


def spawn_tier(system: System, store: ObjectStore, disk: Disk, data: str, tier: TierSettings) -> None:
    """Start the Fetcher and the Restorer, and an Uploader whenever a topic speaks to its own."""

    def unclaimed(path: str, message: object) -> None:
        if path.startswith("uploader/") and isinstance(
            message, KeepTopic | Sealed | StoreCursor | ForgetCursor | EraseStored
        ):
            uploader = system.spawn(
                Uploader,
                path,
                message.topic,
                store,
                parallel=tier.upload_parallel,
                retry_ms=(tier.upload_retry_ms_min, tier.upload_retry_ms_max),
                cursor_ms=tier.cursor_upload_ms,
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
        directory=system.ref(BROKER, DIRECTORY_PATH),
        cursor_path=lambda topic, subscription: cursor_path(data, topic, subscription),
        retry_ms=(tier.upload_retry_ms_min, tier.upload_retry_ms_max),
        orphan_grace_ms=tier.orphan_grace_ms,
    )
