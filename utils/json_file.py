"""JSON files, checked for their types where they are read."""

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from utils.checkpoint import write_text
from utils.errors import UserError, one_line
from utils.plain_values import check_plain

T = TypeVar("T")


def read_json(path: str | Path, kind: type[T] = dict, what: str = "a JSON record") -> T:
    """Read a JSON file as `kind`: dict, list[...], a dataclass, or any type that msgspec knows.

    Keys that a dataclass does not have are ignored. UserError when the file cannot be read, or
    holds no JSON or another type; `what` is what the file should have been.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the path
        raise UserError(f"{path}: cannot be read ({error})") from None
    return parse_json(text, kind, str(path), what)


def parse_json(text: bytes | str, kind: type[T], where: str, what: str, nan: bool = False) -> T:
    """A JSON text as `kind`, with `nan` one that may hold NaN; otherwise as `read_json`."""
    try:
        value = json.loads(text) if nan else msgspec.json.decode(text)
        check_plain(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not {what} ({one_line(error)})") from None
    return as_type(value, kind, where, what)


def as_type(value, kind: type[T], where: str, what: str) -> T:
    """`value`, of plain types, as `kind`; UserError that names `where` and the wrong key."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, ArithmeticError) as error:
        raise UserError(f"{where}: not {what} ({one_line(error)})") from None


def check_json(value, where: str) -> None:
    """UserError when JSON cannot hold a value that was read from another format."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: it has values that no JSON has ({one_line(error)})") from None


def write_json(path: str | Path, value, indent: int | None = None) -> None:
    """Write plain values as a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")
