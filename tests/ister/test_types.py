"""Tests of what a type checker reports about programs: mistakes are errors before the program runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

PROGRAM = """
import ister
import ister.aio


def sync(client: ister.Client) -> None:
    with client.consumer("orders", "s") as consumer:
        for message in consumer:
            message.reply(message.payload)
            consumer.ack(message)
        batch = consumer.receive_batch()
        if batch is not None:
            batch[0].reply(b"x")
            consumer.ack(batch)


async def right(client: ister.aio.Client) -> None:
    async with client.consumer("orders", "s") as consumer:
        async for message in consumer:
            await message.reply(message.payload)
            consumer.ack(message)
        batch = await consumer.receive_batch()
        if batch is not None:
            await batch[0].reply(b"x")
            consumer.ack(batch)
            consumer.ack([each for each in batch])


def either(message: ister.BaseMessage) -> bytes:
    return message.payload


def answers(message: ister.Message) -> None:
    message.reply(b"x")


async def wrong(client: ister.aio.Client) -> None:
    async with client.consumer("orders", "s") as consumer:
        async for message in consumer:
            either(message)
            message.reply(b"x")  # wrong
            answers(message)  # wrong
        for each in await consumer.receive_batch() or ():
            each.reply(b"x")  # wrong
    (await client.request("orders", b"x")).reply(b"x")  # wrong
"""


def test_a_forgotten_await_is_an_error(tmp_path: Path) -> None:
    """Above all for a reply, which would never be sent; correct programs have no error."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path}",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    told = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error:" in line}
    wrong = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}
    assert told == wrong, done.stdout
