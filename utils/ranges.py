"""Ranges of numbers, in words, as annotations: `Annotated[int, "at least 1 and at most 8"]`.

Sizes have a greatest value, too: what is too large for any machine is refused where it is read, not
by an allocation hours later.
"""

import functools
import operator
import types
import typing
from dataclasses import fields
from typing import Annotated

from utils.errors import UserError

Natural = Annotated[int, "at least 0"]
Count = Annotated[int, "at least 1"]
NotNegative = Annotated[float, "at least 0"]
Positive = Annotated[float, "above 0"]
Share = Annotated[float, "at least 0 and below 1"]

# Of networks and images.
Channels = Annotated[int, "at least 1 and at most 16,384"]
Classes = Annotated[int, "at least 1 and at most 1,000,000"]
Depth = Annotated[int, "at least 1 and at most 64"]
Expansion = Annotated[int, "at least 1 and at most 64"]
KernelSize = Annotated[int, "at least 1 and at most 99"]
Pixels = Annotated[int, "at least 1 and at most 8,192"]
Stride = Annotated[int, "at least 1 and at most 16"]
Width = Annotated[float, "above 0 and at most 16"]  # a factor of channels

MOST_ENTRIES = 1000  # of a list in a description
MOST_PARAMETERS = 10**9  # of a network: 4 GB

_LIMITS = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


def within(value: float, allowed: str) -> bool:
    """Whether a number is finite, and within bounds such as "at least 0 and below 1"."""
    limits = [words.rsplit(" ", 1) for words in allowed.split(" and ")]
    bounded = all(_LIMITS[name](value, float(limit.replace(",", ""))) for name, limit in limits)
    return bounded and abs(value) < float("inf")


class Ranged:
    """A dataclass whose annotated numbers are checked when it is made.

    UserError names the first one that is out of its range, also inside a tuple. `what` stands
    before its name.
    """

    what = ""

    def __post_init__(self):
        for name, (allowed, number) in _ranges(type(self)).items():
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                if part is not None and not (not number or within(part, allowed)):
                    raise UserError(f"{self.what}{name} is {part!r}; it must be {allowed}")
            if isinstance(value, tuple) and len(value) > MOST_ENTRIES:
                most = f"a list has at most {MOST_ENTRIES}"
                raise UserError(f"{self.what}{name} has {len(value)} entries; {most}")


@functools.cache
def _ranges(cls: type) -> dict[str, tuple[str, bool]]:
    """What the numbers of each field must be; without a range, numbers must be finite."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {part.name: _range_of(hints[part.name]) for part in fields(cls)}


def _range_of(hint) -> tuple[str, bool]:
    """The words of the first annotated number in a type, and whether it is a type of numbers."""
    if typing.get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], str):
        return hint.__metadata__[0], True
    if typing.get_origin(hint) in (tuple, types.UnionType, typing.Union):
        found = [_range_of(part) for part in typing.get_args(hint)]
        return next((pair for pair in found if pair[1]), ("", False))
    return ("at least -1e300", True) if hint is float else ("", False)


def check_parameters(count: float) -> None:
    """UserError for a description of a network that fits no machine."""
    if not count <= MOST_PARAMETERS:
        most = f"it may have at most {MOST_PARAMETERS / 1e6:g} M"
        raise UserError(f"its largest network has {count / 1e6:g} M parameters; {most}")
