"""Tests of the form in which the hot modules run: pure Python, or compiled (`make test-native` runs them there)."""

from __future__ import annotations

import ast
import copy
import dataclasses
import gc
import importlib
import inspect
import pickle
import re
import threading
import tomllib
import traceback
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import ister
from ister.cli import ister as command_line
from ister.compiling import is_compiled
from ister.errors import TimeoutExpiredError, UsageError
from ister.receipts import Shipment, receipt_of

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
compiled = pytest.mark.skipif(
    not is_compiled(), reason="the hot modules are pure Python here: make test-native"
)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"ister.{name.replace('/', '.')}")


def _classes() -> list[type]:
    return [
        each
        for name in MODULES
        for each in vars(_module(name)).values()
        if isinstance(each, type) and each.__module__ == _module(name).__name__
    ]


@pytest.mark.parametrize("name", MODULES)
def test_all_modules_that_can_be_compiled_are_or_none(name: str) -> None:
    """An installation has one form, and `ister.__compiled__` says which."""
    spec = _module(name).__spec__
    assert spec is not None
    assert type(spec.loader).__name__ == ("ExtensionFileLoader" if ister.__compiled__ else "SourceFileLoader")


def test_the_compiler_is_the_one_that_checks_the_types() -> None:
    """The build asks for the version of mypy that requirements.lock has."""
    (pinned,) = re.findall(r"^mypy==.*$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert f'"{pinned}"' in (ROOT / "hatch_build.py").read_text()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_can_be_compiled_has_nothing_that_the_compiler_gets_wrong(name: str) -> None:
    """No other branch for a type checker, no dataclass, no class with bases: `findings/` has what comes of them."""
    tree = ast.parse((ROOT / "ister" / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            assert not node.orelse, f"{name}.py:{node.lineno}: the compiler leaves out the branch that runs"
        if isinstance(node, ast.ClassDef):
            assert not node.bases, (
                f"{name}.py:{node.lineno}: with a base it has weak references, which are not safe"
            )
            decorators = [ast.unparse(each) for each in node.decorator_list]
            assert not any("dataclass" in each for each in decorators), (
                f"{name}.py:{node.lineno}: cannot be pickled"
            )


@compiled
def test_compiled_objects_have_no_weak_references() -> None:
    """Those that the compiler gives to some classes are not safe."""
    assert [each for each in _classes() if each.__weakrefoffset__] == []


def test_a_dropped_producer_is_collected(client: ister.Client) -> None:
    """Its references go with it, whoever watched it."""
    gone = threading.Event()
    producer = client.producer("orders")
    receipts = [producer.send(b"%d" % number) for number in range(100)]
    producer.flush(10)
    weakref.finalize(producer, gone.set)
    producer.close()
    kept = weakref.ref(producer)
    del producer
    assert [receipt.result(10).offset for receipt in receipts] == list(range(100))
    del receipts
    gc.collect()
    if kept() is None:  # the client may hold it a moment longer
        assert gone.is_set()


class Counting(ister.Producer):
    """A program's own producer."""

    sent = 0

    def send(self, payload: Any, **more: Any) -> ister.Receipt:
        """Count, and send."""
        self.sent += 1
        return super().send(payload, **more)


def test_a_program_can_inherit_from_a_producer(client: ister.Client) -> None:
    """Its methods are called, its attributes are its own."""
    with client.producer("orders") as plain:
        producer = Counting(plain._network, plain.publication)
        for number in range(50):
            producer.send(b"%d" % number)
        producer.own = "attribute"  # type: ignore[attr-defined]
        assert producer.sent == 50
        producer.flush(10)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"payload": "text"}, "encode"),
        ({"payload": 5}, "bytes"),
        ({"payload": None}, "bytes"),
        ({"payload": b"", "key": "text"}, "encode"),
        ({"payload": b"", "sequence": "1"}, "whole number"),
        ({"payload": b"", "attributes": 5}, "mapping"),
        ({"payload": b"", "delay": object()}, "delay"),
        ({"payload": b"", "deliver_at": "now"}, "deliver_at"),
    ],
)
def test_a_wrong_argument_is_a_usage_error_in_both_forms(
    client: ister.Client, given: dict[str, Any], what: str
) -> None:
    """A compiled function would raise `TypeError` where its types are narrower than what programs may get wrong."""
    with client.producer("orders") as producer:
        for _ in range(3):  # to a batch that is not begun, and to one that is
            with pytest.raises(UsageError, match=what):
                producer.send(**given)
            producer.send(b"right")
        producer.flush(10)


def test_other_buffers_are_sent_as_bytes(client: ister.Client) -> None:
    """`bytearray` and `memoryview` are copied, whichever path they take."""
    with client.producer("orders") as producer:
        for payload in (bytearray(b"array"), memoryview(b"view")):
            for _ in range(3):
                producer.send(payload)  # type: ignore[arg-type]
        producer.flush(10)
    with client.reader("orders", start="earliest") as reader:
        found = [message.payload for _ in range(6) if (message := reader.receive(10)) is not None]
    assert found == [b"array"] * 3 + [b"view"] * 3


@pytest.mark.parametrize("timeout", ["1", object(), -1, True])
def test_a_wrong_timeout_of_a_receipt_is_a_usage_error(client: ister.Client, timeout: Any) -> None:
    """Its message says what a timeout is."""
    with client.producer("orders") as producer:
        shipment = Shipment("orders", producer)
        for receipt in (receipt_of(shipment, 0), ister.BatchReceipt(shipment, 0, 2)):
            with pytest.raises(UsageError, match="timeout"):
                receipt.result(timeout)
            with pytest.raises(TimeoutExpiredError):
                receipt.result(0)  # a whole number of seconds is one, too


def test_the_parameters_of_public_functions_can_be_asked_for() -> None:
    """`help()` and editors show names and defaults in both forms."""
    parameters = inspect.signature(ister.Producer.send).parameters
    names = ["self", "payload", "key", "attributes", "deliver_at", "delay", "sequence", "timeout"]
    assert list(parameters) == names
    assert parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["timeout"].default is None
    assert list(inspect.signature(ister.Receipt.result).parameters) == ["self", "timeout"]


def test_a_traceback_names_the_line(client: ister.Client) -> None:
    """File and function of the fast path are in it, compiled or not."""
    with client.producer("orders") as producer:
        with pytest.raises(UsageError) as caught:
            producer.send("text")  # type: ignore[arg-type]
        trace = "".join(traceback.format_exception(caught.value))
        assert re.search(r'sender.py", line \d+, in send\n', trace)


def test_receipts_have_no_attributes_of_others() -> None:
    """`__slots__` holds in both forms: a misspelt attribute is an error."""
    receipt = ister.Receipt()
    with pytest.raises(AttributeError):
        receipt.indx = 1  # type: ignore[attr-defined]


def test_where_a_message_is_can_be_pickled_and_copied() -> None:
    """A program may hand it to another process, and compare it there."""
    published = ister.Published("orders", 5, 2, duplicate=True)
    assert pickle.loads(pickle.dumps(published)) == published == copy.deepcopy(published)  # noqa: S301
    assert hash(published) == hash(copy.copy(published))
    assert dataclasses.replace(published, count=3).count == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        published.count = 3  # type: ignore[misc]


def test_the_version_says_which_form_runs() -> None:
    """As `ister status` and the results of `ister bench` do."""
    printed = CliRunner().invoke(command_line, ["--version"]).output
    assert printed.endswith("(compiled)\n") == ister.__compiled__
