"""Tests of the test vectors: they are frozen, and the broker and the Python client conform to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import pytest

from ister import bodies, wire
from ister.clientsession import Session
from ister.errors import RemoteProtocolError
from ister.opening import producer_id
from ister.wire import Key, Type
from tests.vectors import notation
from tests.vectors.generate import generate
from tests.vectors.recording import Difference, hold_again

FOLDER = Path(__file__).parents[1] / "vectors"
TRANSCRIPTS = sorted(FOLDER.glob("transcript-*.json"))


def read(name: str) -> Any:
    """Return a file of vectors."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def each_of(*names: str) -> Any:
    """Parametrize a test with the vectors of some files."""
    cases = [pytest.param(case, id=f"{name}-{case['name']}") for name in names for case in read(name)]
    return pytest.mark.parametrize("vector", cases)


def messages_in_transcripts() -> list[tuple[str, dict[str, Any]]]:
    """Return every message of every transcript, with the name of where it is."""
    return [
        (f"{path.stem}, step {number}", step)
        for path in TRANSCRIPTS
        for number, step in enumerate(json.loads(path.read_text(encoding="utf-8"))["steps"])
        if "from" in step
    ]


@pytest.mark.requirement("15-2")
def test_generating_them_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """The broker still answers as recorded, and the script still writes the same files."""
    generate(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    kept = {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}
    assert written.keys() == kept.keys()
    assert [name for name in kept if kept[name] != written[name]] == []


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_broker_holds_a_transcript_again(path: Path, tmp_path: Path) -> None:
    """The client's frames of a transcript get the same answers, byte for byte."""
    hold_again(tmp_path / "stage", json.loads(path.read_text(encoding="utf-8")))


def test_another_answer_than_the_transcripts_is_noticed(tmp_path: Path) -> None:
    """A transcript that differs from the broker's answers must fail."""
    transcript = read("transcript-credit")
    last = [step for step in transcript["steps"] if step.get("from") == "broker"][-1]
    last["frames"][-1] = b"message 7".hex()
    with pytest.raises(Difference, match="6d6573736167652037"):
        hold_again(tmp_path / "stage", transcript)


@pytest.mark.requirement(
    "2.2-1",
    "2.2-2",
    "2.2-3",
    "2.2-4",
    "2.2-5",
    "2.2-6",
    "2.2-7",
    "2.2-8",
    "2.2-9",
    "2.2-10",
    "2.2-11",
    "2.2-12",
    "2.2-13",
    "2.2-16",
)
@each_of("headers-to-broker", "headers-to-client")
def test_the_codec_reads_a_header_as_its_vector_says(vector: dict[str, Any]) -> None:
    """The decoder gives the vector's value or error, and encoding the value gives a header that decodes to it."""
    data = bytes.fromhex(vector["frames"][0])
    if "header" not in vector:
        if vector["name"] == "clients-type":  # valid, but sent by the wrong side
            assert wire.decode_header(data)[Key.TYPE] < Type.WELCOME
            return
        with pytest.raises(RemoteProtocolError) as raised:
            wire.decode_header(data)
        assert raised.value.code == vector["error"]
        return
    header = wire.decode_header(data)
    assert notation.header_to_json(header) == vector["header"]
    read_back = notation.from_json(vector["header"], numbered=True)
    assert wire.decode_header(wire.encode_header(read_back)) == read_back


@pytest.mark.requirement("2.2-15", "16-2")
@each_of("headers-to-client")
def test_the_client_takes_a_frame_or_gives_the_connection_up(vector: dict[str, Any]) -> None:
    """The client's session reads any frame, or counts the connection as lost."""
    session = Session("test", lambda: 0.0)
    session.connect(0.0)
    welcome = next(case for case in read("headers-to-client") if case["name"] == "welcome")
    session.receive([bytes.fromhex(part) for part in welcome["frames"]], 0.0)
    assert str(session.phase) == "ready"
    if vector["name"] != "welcome":
        session.receive([bytes.fromhex(part) for part in vector["frames"]], 0.0)
    # an error that does not say what it answers is valid: the client reconnects, and asks everything again
    lost = "error" in vector or vector["name"] == "error-of-the-connection"
    assert (str(session.phase) == "idle") is lost


@pytest.mark.requirement("5.1-1", "5.1-2", "5.1-3", "5.1-4")
@each_of("batches")
def test_a_batch_is_cut_as_its_vector_says(vector: dict[str, Any]) -> None:
    """The check gives the vector's count or error, and unpacking gives its messages."""
    frames = [bytes.fromhex(frame) for frame in vector["frames"]]
    whole = frames if len(frames) != 1 else [bodies.pack_lengths(frames), *frames]

    def check() -> int:
        return bodies.check_batch(
            whole, vector["columns"], message_bytes_max=1 << 20, batch_bytes_max=1 << 20
        )

    if "error" in vector:
        with pytest.raises(RemoteProtocolError) as raised:
            check()
        assert raised.value.code == vector["error"]
        return
    assert check() == len(vector["messages"])
    assert notation.messages_of(frames, vector["columns"]) == vector["messages"]


@pytest.mark.requirement("8.1-2")
@each_of("producer-ids")
def test_a_named_producer_has_the_id_of_its_vector(vector: dict[str, Any]) -> None:
    """Clients in all languages compute the same id from a name."""
    assert producer_id(vector["topic"], vector["producer"]) == int(vector["id"])


def test_every_message_of_a_transcript_holds_what_is_written_beside_it() -> None:
    """The decoded header encodes to the same frame; batches and results match their frames."""
    for where, step in messages_in_transcripts():
        parts = [bytes.fromhex(part) for part in step["frames"]]
        described = notation.described(parts)
        assert {**step, **described} == step, where
        if step["frame"] is not None:
            header = notation.from_json(step["header"], numbered=True)
            assert cbor2.dumps(header) == parts[0], where


def test_the_transcripts_have_every_frame_type() -> None:
    """Of this version of the protocol."""
    assert {step["frame"] for _, step in messages_in_transcripts()} - {None} == set(
        notation.FRAME_NAMES.values()
    )
