"""Tests of the messages: each is defined in one file, imported from one place, and cannot be changed."""

from __future__ import annotations

import dataclasses
import pkgutil
from importlib import import_module
from types import ModuleType

import pytest

from ister.actors import messages

FILES = [
    import_module(f"ister.actors.messages.{each.name}") for each in pkgutil.iter_modules(messages.__path__)
]


def own(file: ModuleType) -> list[type]:
    """Return the messages of a file."""
    return [
        each for each in vars(file).values() if isinstance(each, type) and each.__module__ == file.__name__
    ]


def test_every_message_is_imported_from_one_place() -> None:
    """Whichever pair of actors it belongs to."""
    exported = {name for name in messages.__all__ if isinstance(getattr(messages, name), type)}
    found = [each.__name__ for file in FILES for each in own(file)]
    assert sorted(found) == sorted(exported)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__.rpartition(".")[2])
def test_a_message_cannot_be_changed(file: ModuleType) -> None:
    """A message may be in several inboxes at once: it is frozen, slotted, and has a docstring with its meaning."""
    for each in own(file):
        assert dataclasses.is_dataclass(each)
        assert each.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert "__slots__" in vars(each)
        assert each.__doc__
        assert not each.__doc__.startswith(f"{each.__name__}(")


def test_the_files_do_not_import_each_other() -> None:
    """Each pair of actors has its own file, which can be read without the others."""
    names = {file.__name__ for file in FILES}
    for file in FILES:
        others = {each.__module__ for each in vars(file).values() if isinstance(each, type)} - {file.__name__}
        assert not others & names
