"""The vectors of tests/vectors, read by the codec of every client that gives access to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance_clients.drivers import AnsweredError
from tests.conformance_clients.player import Player

pytestmark = pytest.mark.process

FOLDER = Path(__file__).parents[1] / "vectors"
CLIENTS_OWN = "a10003"  # a PING: valid, but from the wrong side; test_wire.py has it
REFUSED = ("malformed", "lengths-mismatch", "unknown-operation")
WORST = 10  # how many failing vectors are reported


def read(name: str) -> list[dict[str, Any]]:
    """Read a file of vectors; skip if there is none."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"tests/vectors has no {path.name}")
    vectors: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return vectors


def failures(player: Player, vectors: list[dict[str, Any]], *, check: Any) -> list[str]:
    """Return what is wrong, by the vector's name."""
    told = ((vector, check(player, vector)) for vector in vectors)
    found = [f"{vector['name']} ({vector.get('why', '')}): {why}" for vector, why in told if why is not None]
    return found[:WORST]


def differs(player: Player, vector: dict[str, Any], command: dict[str, Any], member: str) -> str | None:
    """Decode a vector and return how the result differs."""
    number = player.driver.send(**command)
    if "error" in vector:
        try:
            return f"is taken for {player.driver.answer(number)}"
        except AnsweredError as error:
            if error.code not in REFUSED:
                raise
            return None
    told = player.driver.answer(number)[member]
    return None if told == vector[member] else f"is {told}, not {vector[member]}"


def header_differs(player: Player, vector: dict[str, Any]) -> str | None:
    """Return how a header differs from the vector."""
    if vector["frames"][0].startswith(CLIENTS_OWN):
        return None
    return differs(player, vector, {"do": "decode", "frame": vector["frames"][0]}, "header")


def batch_differs(player: Player, vector: dict[str, Any]) -> str | None:
    """Return how a batch differs from the vector, decoded, and encoded and decoded again."""
    asked = {"do": "decode_batch", "columns": vector["columns"], "frames": vector["frames"]}
    why = differs(player, vector, asked, "messages")
    if why is not None or "error" in vector:
        return why
    made = player.driver.ask("encode_batch", messages=vector["messages"])
    return differs(player, vector, {"do": "decode_batch", **made}, "messages")


def test_headers_from_a_broker_are_read_as_the_vectors_say(player: Player) -> None:
    """Every key of every frame, numbers that are too large for a double, and what must be refused."""
    player.need("codec")
    assert failures(player, read("headers-to-client"), check=header_differs) == []


def test_batches_are_cut_as_the_vectors_say(player: Player) -> None:
    """Payloads, keys, attributes and times; lengths that do not add up are refused."""
    player.need("codec")
    # a DELIVER always has the lengths; vectors with a single frame concern the broker
    vectors = [each for each in read("batches") if len(each["frames"]) > 1]
    assert failures(player, vectors, check=batch_differs) == []


def test_a_name_makes_the_id_that_the_vectors_say(player: Player) -> None:
    """Producers of a name have the same id in every language."""
    player.need("codec")
    wrong = []
    for vector in read("producer-ids"):
        told = player.driver.ask("producer_id", topic=vector["topic"], name=vector["producer"])["id"]
        if told != vector["id"]:
            wrong.append(f"{vector['name']}: {told}, not {vector['id']}")
    assert wrong == []
