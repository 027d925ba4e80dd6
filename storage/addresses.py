"""The store for an address: `file:///folder` or `gs://bucket/prefix`.

- Google's client is imported only when a gs:// store is opened: it costs a fifth of a second and 40 MB.
- Opening a store contacts no server. To find out whether a store is reachable, list one page of it.
"""

from __future__ import annotations

import re
from random import Random
from typing import Final
from urllib.parse import unquote, urlsplit

from ister.clock import Clock, SystemClock
from ister.errors import StoreError, UsageError
from ister.storage.disk import Disk, LocalDisk
from ister.storage.folderstore import FolderStore
from ister.storage.objectstore import ObjectStore
from ister.storage.reserve import Reserve

# Three to 222 letters, digits, '-', '_' and '.': https://cloud.google.com/storage/docs/buckets#naming
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def open_store(
    url: str,
    *,
    create: bool = True,
    disk: Disk | None = None,
    clock: Clock | None = None,
    random: Random | None = None,
    keep_reserve: bool = False,
) -> ObjectStore:
    """Return the store at a `file:///folder` or `gs://bucket/prefix` address.

    `keep_reserve`: a folder reserves disk space for small objects, which must be written before large ones can be
    deleted.

    A folder is created if it is missing, unless `create` is False. Raises UsageError for any other address, StoreError
    for a folder that cannot be used (`store-missing` if it is not there).
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path:
        path, used = unquote(parts.path), LocalDisk() if disk is None else disk
        if not create and not used.exists(path):
            raise StoreError(f"there is no folder {path}", code="store-missing", action="fix")
        reserve = None
        if keep_reserve:
            reserve = Reserve(used, f"{path}/.tmp/reserve", SystemClock() if clock is None else clock)
        return FolderStore(path, used, clock, reserve=reserve)
    if parts.scheme == "gs" and _BUCKET.fullmatch(parts.netloc):
        from ister.storage.gcs import GcsStore

        return GcsStore(parts.netloc, unquote(parts.path), disk=disk, clock=clock, random=random)
    raise UsageError(f"there is no store at {url!r}: give file:///folder or gs://bucket/prefix")
