"""What modules that may be compiled need of a module that never is, and whether they are.

A wheel can be built whose hot modules are compiled by mypyc (`hatch_build.py`); the sources are the same. Pure.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from typing import TYPE_CHECKING, Any, Never, Protocol, TypeVar

__all__ = ["Unchecked", "is_compiled", "mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:
    T = TypeVar("T")

    def mypyc_attr(*_flags: str, **_options: Any) -> Any:
        """Leave a class as it is: only the compiler heeds this."""
        return lambda made: made


class Unchecked(Protocol):
    """A type that no value has.

    A compiled function checks the types of its arguments itself, and raises `TypeError`. Where what is wrong is to be
    said in our words, a union with this type lets it take everything, as an interpreted one does.
    """

    def no_value_has_this_type(self) -> Never:
        """Tell this type from every other one."""


def is_compiled() -> bool:
    """Whether the hot modules of this installation are compiled."""
    module = sys.modules.get("ister.lane")
    spec = None if module is None else module.__spec__
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)
