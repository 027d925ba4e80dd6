"""Writes the vectors beside this file: python -m tests.vectors.generate [folder].

They are frozen: clients of other languages are tested with them. The same bytes are written each time. If not, either
the broker's answers or this script have changed, and both need a reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ister import wire
from ister.errors import RemoteProtocolError
from ister.opening import producer_id
from ister.wire import Key, Type
from tests.stage import StagedClient
from tests.vectors import codecs
from tests.vectors.notation import FRAME_NAMES, VARIES, header_to_json, messages_of
from tests.vectors.recording import record, stage_for
from tests.vectors.scenes import SCENES

HERE = Path(__file__).parent


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        header = wire.decode_header(data)
    except RemoteProtocolError as error:
        return {"error": error.code}
    return {"frame": FRAME_NAMES[header[Key.TYPE]], "header": header_to_json(header)}


def reply_to(client: StagedClient, parts: list[bytes]) -> dict[str, Any] | None:
    """Return a broker's answer, without what varies."""
    client.put(parts)
    heard = client.take(0.5)
    if heard is None:
        return None
    header = wire.decode_header(heard[0])
    varies = {getattr(Key, name) for name in VARIES}
    return {
        "frame": FRAME_NAMES[header[Key.TYPE]],
        "header": header_to_json({key: value for key, value in header.items() if key not in varies}),
    }


def headers_to_broker(folder: Path) -> list[dict[str, Any]]:
    """Return headers of clients, each with its contents and the answer."""
    stage = stage_for(folder, 1, {})
    try:
        return [
            {
                "name": case.name,
                "why": case.why,
                "frames": [case.data.hex()],
                **_decoded(case.data),
                "reply": reply_to(StagedClient(stage, 0), [case.data]),
            }
            for case in codecs.TO_BROKER
        ]
    finally:
        stage.close()


def headers_to_client() -> list[dict[str, Any]]:
    """Return headers of brokers, valid and invalid."""
    found = []
    for case in codecs.TO_CLIENT:
        decoded = _decoded(case.data)
        if decoded.get("header", {}).get("0", Type.WELCOME) < Type.WELCOME:
            decoded = {"error": "malformed"}
        found.append({"name": case.name, "why": case.why, "frames": [case.data.hex()], **decoded})
    return found


def batches(folder: Path) -> list[dict[str, Any]]:
    """Return bodies of PUBLISH, each with its messages and the answer."""
    stage = stage_for(folder, 1, {})
    try:
        found = []
        for case in codecs.BATCHES:
            client = StagedClient(stage, 0)
            client.ask("topic.create", topic=case.name, dispatch="reliable")
            client.open_producer(1, case.name, 77)
            header: wire.Header = {Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0}
            if case.columns:
                header[Key.COLUMNS] = case.columns
            reply = reply_to(client, [wire.encode_header(header), *case.frames])
            assert reply is not None, case.name
            held = (
                {"messages": messages_of(case.frames, case.columns)}
                if reply["frame"] == "RECEIPT"
                else {"error": reply["header"][str(Key.CODE)]}
            )
            found.append(
                {
                    "name": case.name,
                    "why": case.why,
                    "columns": case.columns,
                    "frames": [frame.hex() for frame in case.frames],
                    **held,
                    "reply": reply,
                }
            )
        return found
    finally:
        stage.close()


def producer_ids() -> list[dict[str, Any]]:
    """Return the ids of named producers."""
    return [
        {
            "name": f"{topic[:20]}/{name}",
            "topic": topic,
            "producer": name,
            "id": str(producer_id(topic, name)),
        }
        for topic, name in codecs.PRODUCERS
    ]


def generate(folder: Path) -> None:
    """Write all vectors."""
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(scratch)
        files: dict[str, Any] = {
            "headers-to-broker": headers_to_broker(room / "headers"),
            "headers-to-client": headers_to_client(),
            "batches": batches(room / "batches"),
            "producer-ids": producer_ids(),
        }
        for name, told in SCENES.items():
            files[f"transcript-{name}"] = {
                "name": name,
                "about": told.about,
                "requirements": list(told.requirements),
                "workers": told.workers,
                "settings": told.settings,
                "varies": list(VARIES),
                "steps": record(room / name, told.play, told.workers, told.settings),
            }
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
