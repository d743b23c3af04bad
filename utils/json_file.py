"""JSON files, checked for their types where they are read."""

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from utils.checkpoint import write_text
from utils.errors import UserError

T = TypeVar("T")


def read_json(path: str | Path, kind: type[T] = dict, what: str = "a JSON record") -> T:
    """Read a JSON file as `kind`: dict, list[...], a dataclass, or any type that msgspec knows.

    Keys that a dataclass does not have are ignored. UserError when the file cannot be read, or
    holds no JSON or another type; `what` is what the file should have been.
    """
    try:
        return as_type(msgspec.json.decode(Path(path).read_bytes()), kind, str(path), what)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not {what} ({one_line(error)})") from None


def as_type(value, kind: type[T], where: str, what: str) -> T:
    """`value`, of plain types, as `kind`; UserError that names `where` and the wrong key."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{where}: not {what} ({one_line(error)})") from None


def one_line(error: BaseException, most: int = 200) -> str:
    """The text of an error without line breaks, at most so many characters of it."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 4] + " ..."


def write_json(path: str | Path, value, indent: int | None = None) -> None:
    """Write plain values as a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")
