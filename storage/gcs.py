"""Google Cloud Storage as object store. This file and `gcs_failures.py` alone know Google's client.

- An object is created with `ifGenerationMatch=0`, in one request, and never replaced. A creation whose answer was lost
  is recognized by a unique id in the object's metadata, so that `put_if_absent` returns True to its creator only.
- Google's own retries are off: they return 412 for one's own write. Temporary failures are tried again here, with
  growing, jittered waits, until `deadline_s` has passed.
- Bytes in transit are bounded (`transfer_bytes_max`), and so are connections (`connections_max`): threads wait.
- The client is created at the first call, in the calling process: one that was created before a fork returned wrong
  data.
- `STORAGE_EMULATOR_HOST` is honoured, without credentials.

What a failure means to the caller is in `gcs_failures.py`; besides, `StoreError.code` may be object-too-large (fix:
over 8 MiB, what one request creates atomically everywhere), object-missing, object-damaged or checksum-missing (stop).

May touch: the network, the environment, a Disk for files to upload.
"""

from __future__ import annotations

import base64
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random, SystemRandom
from typing import Any, Final, TypeVar

import google.auth
import requests
import requests.adapters
from google.api_core import exceptions as api
from google.api_core.client_info import ClientInfo
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage

from ister.backoff import BackOff, jittered
from ister.clock import Clock, SystemClock
from ister.errors import StoreError
from ister.storage.checksum import Buffer
from ister.storage.checksum import crc32c as checksum_of
from ister.storage.disk import Disk, LocalDisk
from ister.storage.gcs_failures import FAILURES, failure_of
from ister.storage.objectstore import (
    NAME_BYTES_MAX,
    PAGE_OBJECTS_MAX,
    ObjectInfo,
    Page,
    check_name,
    mismatch,
    missing,
    reading,
    unchecked,
)
from ister.storage.segment import SEGMENT_BYTES_MAX

# How long a call is tried. Callers that must not give up wait and call again.
DEADLINE_S: Final = 60.0
# Timeouts for connecting, and between two bytes of an answer.
TIMEOUT_S: Final = (10.0, 30.0)
# The first wait between attempts, and the limit up to which it doubles; each is jittered down to half.
RETRY_S: Final = (0.25, 8.0)
# Four segments. Each costs about 40 MB of memory while in transit, because the client copies it.
TRANSFER_BYTES_MAX: Final = 4 * SEGMENT_BYTES_MAX
# Transfers, and the look-ups between them.
CONNECTIONS_MAX: Final = 16
# How often a download with a wrong checksum is tried: it was damaged in transit.
DOWNLOADS_MAX: Final = 3

# The key in an object's metadata that says which call created it. Callers do not see it.
PUT_ID: Final = "ister-put"

_ENDPOINT: Final = "STORAGE_EMULATOR_HOST"
_NO_BACKGROUND_LOOKUP: Final = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
T = TypeVar("T")


class _DamagedInTransitError(Exception):
    """A download's bytes do not have the checksum that the store states."""

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(found, expected)
        self.found, self.expected = found, expected


class _Transfers:
    """The bytes that may be in transit at a time; threads above that limit wait."""

    def __init__(self, bytes_max: int) -> None:
        self._free = self._bytes_max = bytes_max
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int, timeout_s: float) -> Iterator[None]:
        """Reserve `size` bytes; raises StoreError if they were not available within `timeout_s`."""
        size = min(size, self._bytes_max)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= size, timeout_s):
                raise StoreError(
                    f"{self._bytes_max} bytes have been in transit to or from the store for {timeout_s:.0f} s",
                    code="store-unavailable",
                )
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


class GcsStore:
    """Objects below `prefix` of a bucket, which must exist."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        disk: Disk | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        deadline_s: float = DEADLINE_S,
        timeout_s: tuple[float, float] = TIMEOUT_S,
        retry_s: tuple[float, float] = RETRY_S,
        transfer_bytes_max: int = TRANSFER_BYTES_MAX,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """Contacts no server yet. `endpoint` is an emulator's address, by default that of STORAGE_EMULATOR_HOST."""
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        if self.prefix:
            check_name(self.prefix[:-1])
        self._endpoint = endpoint
        self._disk: Disk = LocalDisk() if disk is None else disk
        self._clock: Clock = SystemClock() if clock is None else clock
        self._random = SystemRandom() if random is None else random
        self._deadline_s = deadline_s
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._connections_max = connections_max
        self._transfers = _Transfers(transfer_bytes_max)
        self._lock = threading.Lock()
        self._client: storage.Client | None = None
        self._process = 0
        self._bucket_seen = False
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"GcsStore(gs://{self.bucket}/{self.prefix})"

    # the client

    def _connected(self) -> storage.Client:
        """Return the client of this process."""
        with self._lock:
            if self._client is None or self._process != os.getpid():
                self._client, self._process = self._connect(), os.getpid()
            return self._client

    def _connect(self) -> storage.Client:
        os.environ.setdefault(_NO_BACKGROUND_LOOKUP, "true")
        endpoint = self._endpoint or os.environ.get(_ENDPOINT)
        if endpoint and "://" not in endpoint:
            endpoint = f"http://{endpoint}"
        credentials = (
            AnonymousCredentials()  # type: ignore[no-untyped-call]
            if endpoint
            else google.auth.default(scopes=(_SCOPE,))[0]
        )
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        session.trust_env = not endpoint  # an emulator is not behind a proxy
        for scheme in ("https://", "http://"):
            session.mount(
                scheme,
                requests.adapters.HTTPAdapter(pool_maxsize=self._connections_max, pool_block=True),
            )
        return storage.Client(
            project="ister",  # no call here concerns a project
            credentials=credentials,
            client_info=ClientInfo(user_agent="ister"),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": endpoint} if endpoint else None,
            _http=session,
        )

    # calls

    def _call(self, done: str, permission: str, work: Callable[[storage.Client, bool], T]) -> T:
        """Return the result of `work(client, unsure)`, trying again while that helps; `unsure`: it may be done.

        Raises StoreError.
        """
        give_up = self._clock.monotonic() + self._deadline_s
        wait, unsure, damaged = BackOff(*self._retry_s), False, 0
        while True:
            if self._closed.is_set():
                raise StoreError(f"the store {self!r} is closed", code="store-closed", action="stop")
            try:
                found = work(self._connected(), unsure)
                self._bucket_seen = True
                return found
            except _DamagedInTransitError as error:
                damaged += 1
                failure = mismatch(done, error.found, error.expected)
                if damaged >= DOWNLOADS_MAX:
                    raise failure from error
            except FAILURES as error:
                failure = failure_of(error, self, done, permission)
                if failure.action != "retry":
                    raise failure from error
                unsure = True
            pause_s = jittered(wait.failed(), self._random.random())
            if self._clock.monotonic() + pause_s > give_up:
                raise failure
            self._closed.wait(pause_s)

    def _absent(self, error: Exception, client: storage.Client) -> None:
        """Return if a 404 is about the object; raises `error` if it is about the bucket."""
        if "bucket does not exist" in str(error):
            raise error
        if not self._bucket_seen:  # not every server says which of the two is missing
            try:
                next(self._listing(client, self.prefix, None, 1).pages, None)
            except api.Forbidden:
                pass  # without the right to list, that cannot be found out
            self._bucket_seen = True

    def _blob(self, client: storage.Client, name: str) -> storage.Blob:
        return client.bucket(self.bucket).blob(self.prefix + name)

    def _check(self, name: str, size: int = 0) -> None:
        check_name(name)
        if size > SEGMENT_BYTES_MAX:
            raise StoreError(
                f"object {name!r} of {size} bytes is over {SEGMENT_BYTES_MAX}, what one request creates",
                code="object-too-large",
                action="fix",
            )
        if len(self.prefix) + len(name) > NAME_BYTES_MAX:
            raise StoreError(
                f"{self.prefix}{name[:80]} is over {NAME_BYTES_MAX} bytes", code="invalid-name", action="fix"
            )

    # writing

    def put_if_absent(
        self, name: str, data: Buffer, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object of up to 8 MiB; return False if the name is taken by an object of another call.

        Raises StoreError; with action `retry` the object may be there or not.
        """
        self._check(name, len(data))
        with self._transfers.of(len(data), self._deadline_s):
            return self._put(name, data, metadata, crc32c)

    def _put(self, name: str, data: Buffer, metadata: Mapping[str, str] | None, crc32c: int | None) -> bool:
        body = data if type(data) is bytes else bytes(data)
        checksum = checksum_of(body)
        if crc32c is not None and crc32c != checksum:
            raise mismatch(name, checksum, crc32c)
        mine = uuid.uuid4().hex  # never from a seeded Random: two brokers must not have the same
        known = {**(metadata or {}), PUT_ID: mine}

        def work(client: storage.Client, unsure: bool) -> bool:
            blob = self._blob(client, name)
            blob.metadata = known
            blob.crc32c = _encode(checksum)  # the server compares it
            try:
                blob.upload_from_string(
                    body,
                    "application/octet-stream",
                    if_generation_match=0,
                    checksum=None,
                    timeout=self._timeout_s,
                    retry=None,
                )
            except api.PreconditionFailed:
                return self._is_mine(client, name, mine, unsure)
            stored = _decode(blob.crc32c)
            if stored is None:
                raise unchecked(name)
            if _size(blob) != len(body) or stored != checksum:
                raise mismatch(name, stored, checksum)
            return True

        return self._call(f"create {name!r}", "storage.objects.create", work)

    def _is_mine(self, client: storage.Client, name: str, mine: str, unsure: bool) -> bool:
        """Return whether an existing object was created by an attempt of this call, whose answer was lost."""
        blob = self._blob(client, name)
        try:
            blob.reload(timeout=self._timeout_s, retry=None)
        except api.NotFound as error:
            text = f"object {name!r} existed, and is missing now"
            if unsure:  # it may have been ours: creating it again would restore what was deleted meanwhile
                raise StoreError(text, code="store-unavailable") from error
            raise ConnectionError(text) from error
        return (blob.metadata or {}).get(PUT_ID) == mine

    def put_file_if_absent(
        self, name: str, path: str, *, metadata: Mapping[str, str] | None = None, crc32c: int | None = None
    ) -> bool:
        """Create an object of a file's bytes, otherwise as `put_if_absent`; it is read once its transfer may begin."""
        with reading(path, name):
            size = self._disk.size(path)
        self._check(name, size)
        with self._transfers.of(size, self._deadline_s):
            with reading(path, name):
                data = self._disk.read(path)
            return self._put(name, data, metadata, crc32c)

    def delete(self, name: str) -> bool:
        """Delete an object; return False if there is none. Raises StoreError."""
        self._check(name)

        def work(client: storage.Client, unsure: bool) -> bool:
            try:
                self._blob(client, name).delete(timeout=self._timeout_s, retry=None)
            except api.NotFound as error:
                self._absent(error, client)
                return unsure  # gone, most likely by the attempt whose answer was lost
            return True

        return self._call(f"delete {name!r}", "storage.objects.delete", work)

    # reading

    def get(self, name: str) -> bytes:
        """Return an object's bytes, checked. Raises StoreError, `object-missing` if there is none."""
        self._check(name)

        def work(client: storage.Client, _unsure: bool) -> bytes:
            blob = self._blob(client, name)
            data = self._download(client, blob)
            if blob.crc32c is None:  # the answer does not have it
                blob.reload(timeout=self._timeout_s, retry=None)
            found, expected = checksum_of(data), _decode(blob.crc32c)
            if expected is None:
                raise unchecked(name)
            if found != expected:
                raise _DamagedInTransitError(found, expected)
            return data

        with self._transfers.of(SEGMENT_BYTES_MAX, self._deadline_s):
            return self._call(name, "storage.objects.get", work)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`, fewer only at the object's end, unchecked. Raises StoreError."""
        self._check(name)
        if length <= 0:
            if self.head(name) is None:
                raise missing(name)
            return b""

        def work(client: storage.Client, _unsure: bool) -> bytes:
            try:
                return self._download(client, self._blob(client, name), start, start + length - 1)
            except api.RequestRangeNotSatisfiable:
                return b""

        with self._transfers.of(length, self._deadline_s):
            return self._call(f"read {name!r}", "storage.objects.get", work)

    def _download(
        self, client: storage.Client, blob: storage.Blob, start: int | None = None, end: int | None = None
    ) -> bytes:
        try:
            data: bytes = blob.download_as_bytes(
                start=start,
                end=end,
                raw_download=True,
                checksum=None,
                single_shot_download=True,  # a fifth of the CPU time of reading it in pieces
                timeout=self._timeout_s,
                retry=None,
            )
        except api.NotFound as error:
            self._absent(error, client)
            raise missing(blob.name[len(self.prefix) :]) from error
        return data

    def head(self, name: str) -> ObjectInfo | None:
        """Return the description of an object, None if there is none. Raises StoreError."""
        self._check(name)

        def work(client: storage.Client, _unsure: bool) -> ObjectInfo | None:
            blob = self._blob(client, name)
            try:
                blob.reload(timeout=self._timeout_s, retry=None)
            except api.NotFound as error:
                self._absent(error, client)
                return None
            return self._info(blob)

        return self._call(f"look up {name!r}", "storage.objects.get", work)

    def _info(self, blob: storage.Blob) -> ObjectInfo:
        known = dict(blob.metadata or {})
        known.pop(PUT_ID, None)
        made = blob.time_created
        created_ms = None if made is None else int(made.timestamp() * 1000)
        return ObjectInfo(
            blob.name[len(self.prefix) :], _size(blob), _decode(blob.crc32c), known, created_ms=created_ms
        )

    def list_page(self, prefix: str, *, page: str | None = None, page_size: int = PAGE_OBJECTS_MAX) -> Page:
        """Return objects whose names begin with `prefix`, in order; `page` is `next` of the page before."""

        def work(client: storage.Client, _unsure: bool) -> Page:
            listing = self._listing(client, self.prefix + prefix, page, page_size)
            blobs = next(listing.pages, ())
            return Page(tuple(map(self._info, blobs)), listing.next_page_token or None)

        return self._call("list objects", "storage.objects.list", work)

    def _listing(self, client: storage.Client, prefix: str, page: str | None, page_size: int) -> Any:
        return client.list_blobs(
            self.bucket,
            prefix=prefix or None,
            page_token=page,
            page_size=page_size,
            fields="items(name,size,crc32c,metadata,timeCreated),nextPageToken",
            timeout=self._timeout_s,
            retry=None,
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects whose names begin with `prefix`, in order of names. Raises StoreError."""
        page = self.list_page(prefix)
        yield from page.objects
        while page.next is not None:
            page = self.list_page(prefix, page=page.next)
            yield from page.objects

    def close(self) -> None:
        """Release connections, and end calls that wait between attempts. May be called again."""
        self._closed.set()
        with self._lock:
            if self._client is not None and self._process == os.getpid():
                self._client.close()
            self._client = None


def _encode(checksum: int) -> str:
    """Return a CRC32C in Google's form: base64 of four bytes, the highest first."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _decode(text: str | None) -> int | None:
    """Return a CRC32C from Google's form, None if there is none."""
    return int.from_bytes(base64.b64decode(text), "big") if text else None


def _size(blob: storage.Blob) -> int:
    """Return an object's size in bytes; some servers omit that of an empty one."""
    return int(blob.size or 0)
