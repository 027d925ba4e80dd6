"""Tests of how clients wait for a verification."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ister import administration
from ister.administration import Administration
from ister.aio import administration as aio_administration
from ister.outstanding import Request

WAITS = {"topic": "orders", "done": False, "verification": 3, "waiting": True}
ANSWERS: list[dict[str, Any]] = [
    WAITS,
    WAITS,
    {"topic": "orders", "done": False, "verification": 3, "bytes": 5, "bytes_total": 10},
    {
        "topic": "orders",
        "done": True,
        "verification": 3,
        "bytes": 10,
        "bytes_total": 10,
        "report": {"bytes": 10},
    },
]


class Told:
    """What a client asked, and what its program was told."""

    def __init__(self) -> None:
        self.answers = iter(ANSWERS)
        self.asked: list[int] = []
        self.heard: list[object] = []

    def answer(self, request: Request) -> Any:
        self.asked.append(request.arguments["verification"])
        return next(self.answers)

    def check(self, report: dict[str, Any]) -> None:
        assert report == {"bytes": 10}
        assert self.asked == [0, 3, 3, 3]
        assert self.heard == ["waits", "waits", (5, 10), (10, 10)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (administration, aio_administration):
        monkeypatch.setattr(module, "VERIFY_POLL_S", 0.0)


def test_a_program_is_told_that_its_check_waits_for_others() -> None:
    """Before a check has begun there is no progress to tell."""
    told = Told()

    class Client(Administration):
        def _ask(self, request: Request, timeout: float | None) -> Any:
            return told.answer(request)

    report = Client().verify_topic(
        "orders",
        progress=lambda *done: told.heard.append(done),
        waiting=lambda: told.heard.append("waits"),
    )
    told.check(report)


def test_a_task_is_told_too() -> None:
    """The asyncio client does the same."""
    told = Told()

    class Client(aio_administration.Administration):
        def __init__(self) -> None: ...

        async def _ask(self, request: Request, timeout: float | None) -> Any:  # noqa: ASYNC109
            return told.answer(request)

    report = asyncio.run(
        Client().verify_topic(
            "orders",
            progress=lambda *done: told.heard.append(done),
            waiting=lambda: told.heard.append("waits"),
        )
    )
    told.check(report)
