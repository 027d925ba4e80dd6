"""Conversations with a staged broker: recorded, and replayed for comparison.

The broker is real, under virtual time (`tests.stage`): the same frames get the same answers, byte for byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.raw_client import Frame
from tests.stage import Stage, StagedClient
from tests.vectors.notation import described

PATIENCE_S: Final = 13.0  # virtual


class RecordedClient(StagedClient):
    """A client that records every frame it sends and receives as a step of a transcript."""

    def __init__(self, scene: Scene, number: int, worker: int, *, hello: bool = True) -> None:
        self.scene, self.number = scene, number
        self.scene.note({"connection": number, "do": "connect", "worker": worker})
        super().__init__(scene.stage, worker, hello=False)
        self._refs = itertools.count(1)
        if hello:
            self.hello()

    def put(self, parts: Sequence[bytes]) -> None:
        self.scene.note({"connection": self.number, "from": "client", **described(parts)})
        super().put(parts)

    def take(self, timeout_s: float) -> list[bytes] | None:
        parts = super().take(timeout_s)
        if parts is None:
            self.scene.note({"connection": self.number, "do": "hear nothing", "seconds": timeout_s})
        else:
            self.scene.note({"connection": self.number, "from": "broker", **described(parts)})
        return parts

    def break_connection(self) -> None:
        """Break the connection, and make another."""
        self.scene.note({"connection": self.number, "do": "lose the connection and connect again"})
        self.disconnect()
        self.connect()

    def again(self, *, resume: bool = True) -> Frame:
        """Break the connection, make another, and send HELLO."""
        self.break_connection()
        return self.hello(session=self.session if resume else None)

    def raw(self, *parts: bytes) -> Frame | None:
        """Send raw frames, and return what is received."""
        self.put(parts)
        return self.hear()


class Scene:
    """One transcript while it is recorded."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.steps: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)

    def note(self, step: dict[str, Any]) -> None:
        """Record a step."""
        self.steps.append(step)

    def client(self, worker: int = 0, *, hello: bool = True) -> RecordedClient:
        """Return a client of a worker."""
        return RecordedClient(self, next(self._numbers), worker, hello=hello)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.note({"do": "wait", "seconds": seconds})
        self.stage.advance(seconds)

    def restart_worker(self, worker: int = 0) -> None:
        """Kill a worker, and start it again."""
        self.note({"do": "kill the worker and start it again", "worker": worker})
        self.stage.kill(worker)
        self.stage.start(worker)
        self.stage.settle()


def stage_for(folder: Path, workers: int, settings: dict[str, Any]) -> Stage:
    """Return a broker as used for all transcripts."""
    folder.mkdir()
    return Stage(folder, workers, random=Random(1), **settings)


def record(
    folder: Path, scene: Callable[[Scene], None], workers: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Play a scene, and return its steps."""
    stage = stage_for(folder, workers, settings)
    recorded = Scene(stage)
    try:
        scene(recorded)
    finally:
        stage.close()
    return recorded.steps


class Difference(AssertionError):  # noqa: N818 - it is one
    """A broker's answer differs from the transcript."""


def hold_again(folder: Path, transcript: dict[str, Any]) -> None:
    """Replay the frames of a transcript's clients; raises `Difference` if an answer differs in any byte."""
    stage = stage_for(folder, transcript["workers"], transcript["settings"])
    clients: dict[int, StagedClient] = {}
    try:
        for number, step in enumerate(transcript["steps"]):
            _hold_step(stage, clients, step, number)
    finally:
        stage.close()


def _hold_step(stage: Stage, clients: dict[int, StagedClient], step: dict[str, Any], number: int) -> None:
    do, connection = step.get("do"), step.get("connection", 0)
    if do == "connect":
        clients[connection] = StagedClient(stage, step["worker"], hello=False)
    elif do == "lose the connection and connect again":
        clients[connection].disconnect()
        clients[connection].connect()
    elif do == "wait":
        stage.advance(step["seconds"])
    elif do == "kill the worker and start it again":
        stage.kill(step["worker"])
        stage.start(step["worker"])
        stage.settle()
    elif do == "hear nothing":
        heard = clients[connection].take(step["seconds"])
        if heard is not None:
            raise Difference(f"step {number}: nothing was to be heard, but {described(heard)}")
    elif step["from"] == "client":
        clients[connection].put([bytes.fromhex(part) for part in step["frames"]])
    else:
        heard = clients[connection].take(PATIENCE_S)
        if heard is None or [part.hex() for part in heard] != step["frames"]:
            raise Difference(f"step {number}: {step} was to be heard, but {heard and described(heard)}")
