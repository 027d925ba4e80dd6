"""What a failed call to Google Cloud Storage means to its caller. Pure.

    store-unavailable   retry   429, 5xx, timeouts, lost connections
    store-credentials   fix     none found, or refused
    store-permission    fix     the text names permission and role
    store-missing       fix     there is no such bucket
    store-refused       stop

Calls, and what is tried again, are in `gcs.py`.
"""

from __future__ import annotations

import http.client
from typing import Final, Protocol

import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import InvalidResponse

from ister.errors import Action, StoreError

_AGAIN: Final = frozenset((408, 429, 500, 502, 503, 504))
_RATE_LIMITS: Final = ("rateLimitExceeded", "userRateLimitExceeded")
_ROLES: Final = {
    "storage.objects.create": "roles/storage.objectUser",
    "storage.objects.delete": "roles/storage.objectUser",
    "storage.objects.get": "roles/storage.objectViewer (to write as well: roles/storage.objectUser)",
    "storage.objects.list": "roles/storage.objectViewer (to write as well: roles/storage.objectUser)",
}
# What a call may raise that is a failure of the store, and not a bug.
FAILURES: Final = (
    api.GoogleAPICallError,
    auth.GoogleAuthError,
    InvalidResponse,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)


class Bucket(Protocol):
    """The store that an error is about: its `repr` names it in errors."""

    bucket: str


def failure_of(error: BaseException, store: Bucket, done: str, permission: str) -> StoreError:
    """Return the error for a failed attempt to do what `done` says, for which `permission` is needed."""
    status = _status(error)
    said = _said(error)
    code, action, text = "store-unavailable", "retry", f"{store!r} could not {done}: {said}"
    match error:
        case auth.InvalidOperation():  # an emulator that wants credentials
            code, action = "store-credentials", "fix"
            text = f"the emulator refused the credentials for {store!r}, which were none"
        case auth.DefaultCredentialsError():
            code, action = "store-credentials", "fix"
            text = (
                f"there are no Google credentials for {store!r}: name a key file in GOOGLE_APPLICATION_CREDENTIALS, "
                f"run `gcloud auth application-default login`, or run where a service account is attached ({said})"
            )
        case auth.RefreshError() if not error.retryable:
            code, action = "store-credentials", "fix"
            text = f"Google refused the credentials for {store!r}: {said}"
        case _ if status == 401:
            code, action = "store-credentials", "fix"
            text = f"Google refused the credentials for {store!r}: {said}"
        case _ if status == 403 and not any(limit in said for limit in _RATE_LIMITS):
            code, action = "store-permission", "fix"
            text = (
                f"no permission to {done} in bucket {store.bucket}: give the account {permission}, "
                f"for example by {_ROLES[permission]} on the bucket ({said})"
            )
        case _ if status == 404:
            code, action = "store-missing", "fix"
            text = f"there is no bucket {store.bucket}: make it, or correct the store's address ({said})"
        case _ if status is not None and status not in _AGAIN and status != 403:
            code, action = "store-refused", "stop"
    return StoreError(text, code=code, action=_ACTIONS[action])


_ACTIONS: Final[dict[str, Action]] = {"retry": "retry", "fix": "fix", "stop": "stop"}


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, None if it has none."""
    if isinstance(error, api.GoogleAPICallError):
        return int(error.code) if error.code is not None else None
    if isinstance(error, InvalidResponse):
        return int(error.response.status_code)
    return None


def _said(error: BaseException) -> str:
    """Return what went wrong in one line: the server's text, without the address of the request."""
    response = getattr(error, "response", None)
    if response is None:
        return " ".join(str(error).split()) or type(error).__name__
    try:
        told = response.json()["error"]
        reasons = " ".join(str(each["reason"]) for each in told.get("errors", ()) if "reason" in each)
        said = f"{told['message']} [{reasons}]" if reasons else str(told["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        said = str(response.text)[:200]
    return " ".join(f"{response.status_code} {said}".split())
