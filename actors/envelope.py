"""The encoding of actor messages as bytes, and their strict decoding: CBOR for the fields, frames for bulk bytes.

A mail is `[envelope, *frames]`; the envelope is the CBOR array

    [node of the sender, boot number of the sender, path of the receiver, name of the message, *fields]

with the fields in the order of their definition. A nested dataclass is the array of its fields, an enumeration its
value, an `Address` the array [node, path]; the one field annotated `Frames` is the number of frames that follow. Pure:
no socket, no clock. `@message` fills the registry when modules are imported, and only then.

Invariant: `open_mail` returns exactly the message that was posted, with the types of its definition, or raises
MalformedMailError.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, TypeVar

import cbor2

from ister.errors import RemoteProtocolError
from ister.words import counted

Class = TypeVar("Class", bound=type)
Convert = Callable[[Any], Any]

Frames: TypeAlias = Annotated[
    tuple[bytes | memoryview, ...], "frames"
]  # travels outside CBOR; large ones are not copied

# Maps are nested no deeper than the fields of a message; one level more than any message needs refuses nonsense.
DEPTH_MAX: Final = 16


class MalformedMailError(RemoteProtocolError):
    """A mail that no correct sender could have posted; it is dropped."""


class Opened(NamedTuple):
    """A decoded mail: its sender, the receiver's path, and the message."""

    node: str
    boot: int
    path: str
    message: Any


class _Kind:
    """How messages of one class are encoded and decoded."""

    __slots__ = ("count", "frames_at", "make", "name", "readers", "values", "writers")

    def __init__(self, message_class: type) -> None:
        self.name = message_class.__name__
        self.make: Callable[..., Any] = message_class
        hints = typing.get_type_hints(message_class, include_extras=True)
        names = [field.name for field in fields(message_class)]
        self.count = len(names)
        bulk = [at for at, name in enumerate(names) if hints[name] == Frames]
        if len(bulk) > 1:
            raise TypeError(f"{self.name} has {len(bulk)} fields of Frames; one is the most")
        self.frames_at = bulk[0] if bulk else -1
        plain = {name: int if hints[name] == Frames else hints[name] for name in names}
        self.values = _getter(names)
        self.writers = _writers(self.name, plain)
        self.readers = tuple(_reader(f"{self.name}.{name}", annotation) for name, annotation in plain.items())

    def read(self, values: Sequence[Any], frames: Sequence[bytes | memoryview]) -> Any:
        if len(values) != self.count:
            raise MalformedMailError(f"{self.name} has {self.count} fields, not {len(values)}")
        try:
            read = [reader(value) for reader, value in zip(self.readers, values, strict=True)]
        except (TypeError, ValueError) as error:
            raise MalformedMailError(str(error)) from error
        if len(frames) != (read[self.frames_at] if self.frames_at >= 0 else 0):
            raise MalformedMailError(f"{self.name} came with {counted(len(frames), 'frame')}")
        if self.frames_at >= 0:
            read[self.frames_at] = tuple(frames)
        return self.make(*read)


_CLASSES: Final[dict[str, type]] = {}
_KINDS_BY_NAME: Final[dict[str, _Kind]] = {}
_KINDS: Final[dict[type, _Kind]] = {}


def message(message_class: Class) -> Class:
    """Make a frozen, slotted dataclass postable, under its class name.

    Fields may be int, float, str, bytes, bool, None, Address, Literal, an enumeration, other such dataclasses, tuples,
    lists and dicts of those, unions of them, and one of `Frames`; Any is a plain value, whose tuples arrive as lists.
    Raises TypeError for anything else, when it is first posted or when `check_messages` is called.
    """
    name = message_class.__name__
    if not is_dataclass(message_class):
        raise TypeError(f"{name} is not a dataclass: @message goes above @dataclass(frozen=True, slots=True)")
    if _CLASSES.setdefault(name, message_class) is not message_class:
        raise TypeError(f"there are two messages named {name}: {_CLASSES[name]} and {message_class}")
    return message_class


def check_messages() -> None:
    """Prepare every registered message; raises TypeError for fields that cannot be posted."""
    for message_class in tuple(_CLASSES.values()):
        _kind(message_class)


def _kind(message_class: type) -> _Kind:
    kind = _KINDS.get(message_class)
    if kind is None:
        if _CLASSES.get(message_class.__name__) is not message_class:
            raise TypeError(f"{message_class.__qualname__} is not a @message")
        kind = _KINDS[message_class] = _KINDS_BY_NAME[message_class.__name__] = _Kind(message_class)
    return kind


def seal_mail(node: str, boot: int, path: str, message: object) -> tuple[bytes, Sequence[bytes | memoryview]]:
    """Return the envelope and bulk frames of `message`, from process `boot` of `node` to the actor at `path`.

    Raises TypeError if the message's class is not a `@message`.
    """
    kind = _KINDS.get(type(message)) or _kind(type(message))
    values = kind.values(message)
    frames: Sequence[bytes | memoryview] = ()
    if kind.writers or kind.frames_at >= 0:
        values = list(values)
        for at, write in kind.writers:
            values[at] = write(values[at])
        if kind.frames_at >= 0:
            frames = values[kind.frames_at]
            values[kind.frames_at] = len(frames)
    return cbor2.dumps((node, boot, path, kind.name, *values)), frames


def open_mail(envelope: bytes, frames: Sequence[bytes | memoryview]) -> Opened:
    """Return the mail in `envelope` and `frames`. Raises MalformedMailError if it is no valid mail."""
    try:
        values = cbor2.loads(envelope, max_depth=DEPTH_MAX)
    except Exception as error:  # whatever the decoder raises, these bytes are not valid CBOR
        raise MalformedMailError(f"envelope of {len(envelope)} bytes is not CBOR: {error}") from error
    if type(values) is not list or len(values) < 4:
        raise MalformedMailError("envelope is not an array of at least 4")
    node, boot, path, name = values[:4]
    if not (type(node) is str and type(boot) is int and type(path) is str and type(name) is str):
        raise MalformedMailError("envelope does not begin with node, boot, path and name")
    kind = _KINDS_BY_NAME.get(name)
    if kind is None:
        message_class = _CLASSES.get(name)
        if message_class is None:
            raise MalformedMailError(f"no message is named {name!r:.100}")
        kind = _kind(message_class)
    return Opened(node, boot, path, kind.read(values[4:], frames))


def _getter(names: list[str]) -> Callable[[Any], Sequence[Any]]:
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda _: ()
    get = attrgetter(names[0])
    return lambda value: (get(value),)


# Encoding: most fields are CBOR types already; only dataclasses and enumerations are converted.


def _writers(where: str, hints: dict[str, Any]) -> list[tuple[int, Convert]]:
    found = ((at, _writer(f"{where}.{name}", hint)) for at, (name, hint) in enumerate(hints.items()))
    return [(at, write) for at, write in found if write is not None]


def _writer(where: str, annotation: Any) -> Convert | None:
    """Return a function that converts a value to CBOR types, or None where it is one already."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return attrgetter("value")
    if is_dataclass(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        values = _getter([field.name for field in fields(annotation)])
        inner = _writers(where, {field.name: hints[field.name] for field in fields(annotation)})

        def write(value: Any) -> Any:
            written = list(values(value))
            for at, each in inner:
                written[at] = each(written[at])
            return written

        return write
    if origin in (types.UnionType, typing.Union):
        writers = [_writer(where, argument) for argument in arguments]
        if not any(writers):
            return None
        if len(arguments) != 2 or type(None) not in arguments:
            raise TypeError(f"{where}: a dataclass or enumeration can only be in a union with None")
        only = next(each for each in writers if each is not None)
        return lambda value: None if value is None else only(value)
    if origin in (tuple, list):
        each = [_writer(where, argument) for argument in arguments if argument is not ...]
        if not any(each):
            return None
        if len(set(map(str, arguments)) - {"Ellipsis"}) != 1 or (first := each[0]) is None:
            raise TypeError(f"{where}: a tuple of dataclasses or enumerations holds one kind of them")
        return lambda value: [first(item) for item in value]
    if origin is dict:
        key, item = (_writer(where, argument) for argument in arguments)
        if key is not None:
            raise TypeError(f"{where}: the keys of a dict are plain values")
        return None if item is None else (lambda value: {name: item(inner) for name, inner in value.items()})
    return None


# Decoding: every value is checked against the definition.


def _reader(where: str, annotation: Any) -> Convert:
    """Return a function that checks a decoded value and converts it; it raises TypeError or ValueError."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None:
        annotation = type(None)
    if annotation is Any:
        return lambda value: _plain(where, value)
    if annotation in (int, str, bytes, bool, float, type(None)):
        return _exact(where, annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return annotation
    if origin is typing.Literal:
        return _one_of(where, arguments)
    if origin in (types.UnionType, typing.Union):
        return _union(where, arguments)
    if origin in (tuple, list):
        if origin is list or (len(arguments) == 2 and arguments[1] is ...):
            return _sequence(where, origin, _reader(where, arguments[0]))
        return _positions(where, origin, [_reader(where, argument) for argument in arguments])
    if origin is dict:
        return _mapping(where, _reader(where, arguments[0]), _reader(where, arguments[1]))
    if isinstance(annotation, type) and (is_dataclass(annotation) or hasattr(annotation, "_fields")):
        make = annotation
        hints = typing.get_type_hints(make, include_extras=True)
        names = [field.name for field in fields(make)] if is_dataclass(make) else make.__dict__["_fields"]
        inner = [_reader(f"{where}.{name}", hints[name]) for name in names]
        return _positions(where, lambda values: make(*values), inner)
    raise TypeError(f"{where}: {annotation} cannot be posted")


def _exact(where: str, expected: type) -> Convert:
    def read(value: Any) -> Any:
        if type(value) is not expected:
            raise TypeError(f"{where} is {type(value).__name__}, not {expected.__name__}")
        return value

    return read


def _plain(where: str, value: Any) -> Any:
    if type(value) is list:
        for item in value:
            _plain(where, item)
    elif type(value) is dict:
        for key, item in value.items():
            _plain(where, key)
            _plain(where, item)
    elif not (value is None or type(value) in (int, str, bytes, bool, float)):
        raise TypeError(f"{where} is {type(value).__name__}, not a plain value")
    return value


def _one_of(where: str, allowed: tuple[Any, ...]) -> Convert:
    def read(value: Any) -> Any:
        if not any(value == each and type(value) is type(each) for each in allowed):
            raise ValueError(f"{where} is {value!r:.100}, not one of {allowed}")
        return value

    return read


def _union(where: str, arguments: tuple[Any, ...]) -> Convert:
    readers = [_reader(where, argument) for argument in arguments]

    def read(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except (TypeError, ValueError):
                continue
        raise TypeError(f"{where} is {type(value).__name__}, not one of {arguments}")

    return read


def _sequence(where: str, make: Callable[[list[Any]], Any], reader: Convert) -> Convert:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"{where} is {type(value).__name__}, not an array")
        return make([reader(item) for item in value])

    return read


def _positions(where: str, make: Callable[[list[Any]], Any], readers: list[Convert]) -> Convert:
    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(readers):
            raise TypeError(f"{where} is not an array of {len(readers)}")
        return make([reader(item) for reader, item in zip(readers, value, strict=True)])

    return read


def _mapping(where: str, key: Convert, item: Convert) -> Convert:
    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"{where} is {type(value).__name__}, not a map")
        return {key(name): item(inner) for name, inner in value.items()}

    return read
