"""Arguments that the scripts share: folders, files to write, numbers. What would fail after an hour fails at once.

Each is a `type` of argparse: it takes the text that was given, and raises `argparse.ArgumentTypeError` in words.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def made_folder(text: str) -> str:
    """Return a folder's path; it is made if it is not there."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"no folder can be made at {text}: {error.strerror}") from None
    if not os.access(text, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written into the folder {text}")
    return text


def output(text: str) -> str:
    """Return the path of a file that can be written; its folder is made if it is not there."""
    path = Path(text)
    made_folder(str(path.parent))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return text


def whole(text: str) -> int:
    """Return a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def above_zero(text: str) -> float:
    """Return a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def wholes(text: str) -> list[int]:
    """Return whole numbers of at least 1 that have commas between them."""
    return [whole(each) for each in text.split(",")]
