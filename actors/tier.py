"""The tier process: its composition root. Runs in: tier.

Makes the store, and starts an Uploader for every topic that has something sealed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from actors.directory import FRONTEND_PATH
from actors.messages import Answer, Describe, Sealed
from actors.process import ProcessContext
from actors.runtime import LoopActor, System, receives
from actors.uploader import Uploader
from actors.worker import process_description
from ister.errors import UsageError
from ister.settings import Settings
from ister.wire import encode_result
from storage.store import FolderStore, ObjectStore


@dataclass(frozen=True, slots=True)
class TierProcessSettings:
    """What the tier is told: the broker's settings, and where the store is."""

    settings: Settings
    store: str


class TierFrontend(LoopActor):
    """Answers for the tier when the Directory asks every process."""

    def __init__(self, system: System, path: str, context: ProcessContext) -> None:
        super().__init__(system, path)
        self._context = context

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe this process."""
        body: dict[str, Any] = process_description(self._context, "tier")
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))


def open_store(url: str) -> ObjectStore:
    """Return the store at a `file:///folder` address; raises `UsageError` for one this broker has no store for."""
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path:
        return FolderStore(unquote(parts.path))
    raise UsageError(f"there is no store for {url!r}: give file:///folder (gs:// is not there yet)")


def run_tier(context: ProcessContext) -> None:
    """Compose the tier: the target of its process."""
    given: TierProcessSettings = context.settings
    store = open_store(given.store)
    tier = given.settings.tier
    system = context.system

    def unclaimed(path: str, message: object) -> None:
        if isinstance(message, Sealed):
            uploader = system.spawn(
                Uploader,
                path,
                message.topic,
                store,
                parallel=tier.upload_parallel,
                retry_ms=(tier.upload_retry_ms_min, tier.upload_retry_ms_max),
            )
            uploader.tell(message)

    system.on_unclaimed = unclaimed
    system.spawn(TierFrontend, FRONTEND_PATH, context)
    context.ready()
