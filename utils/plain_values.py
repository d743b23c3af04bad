"""Bounds of what is read: of how deep values are nested, and of how many they are.

A file of a few lines may stand for more values than any memory holds (an alias of aliases), or nest
them deeper than Python recurses. Both are refused where a file is read.
"""

import re
from collections.abc import Callable, Iterable

from utils.errors import UserError

MOST_DEPTH = 64
MOST_VALUES = 10_000_000  # written out, with what is shared as often as it is used
MOST_BITS = 63  # of a whole number
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class TooMuch(UserError):
    """Values that are nested too deep, too many, or no plain text or number."""


def check_plain(value) -> None:
    """`TooMuch` for nested values that are out of bounds, and for a text that no file can hold."""
    check_nesting(value, _parts)


def check_nesting(root, parts: Callable[[object], Iterable]) -> None:
    """`TooMuch` where `root`, whose parts have parts, is too deep or too large.

    Args:
        parts: gives those of a value, none for one that has none, and refuses what is not allowed.
    """
    sizes: dict[int, tuple[int, int]] = {}  # of what has parts: values in it, and levels

    def measure(value, depth: int) -> tuple[int, int]:
        if id(value) in sizes:
            return sizes[id(value)]
        count, height = (1 + len(value) // 16 if isinstance(value, str) else 1), 0
        if inner := list(parts(value)):
            if depth >= MOST_DEPTH:  # also what contains itself
                raise TooMuch(f"nested more than {MOST_DEPTH} levels deep")
            for part in inner:
                more, below = measure(part, depth + 1)
                count, height = count + more, max(height, below + 1)
            sizes[id(value)] = count, height
        if depth + height > MOST_DEPTH:
            raise TooMuch(f"nested more than {MOST_DEPTH} levels deep")
        if count > MOST_VALUES:
            raise TooMuch(f"more than {MOST_VALUES} values")
        return count, height

    measure(root, 0)


def check_text(text: str) -> None:
    """`TooMuch` for a text that is no UTF-8, or has a NUL: no file can have such a name."""
    if found := _NO_TEXT.search(text):
        raise TooMuch(f"{text[:60]!a} has {found[0]!a}, which is no text")


def _parts(value) -> Iterable:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise TooMuch(f"a whole number of more than {MOST_BITS} bits")
    return ()
