"""What a finished evolutionary search found, as paths of its search space."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.nsganetv2.archive import last_archive
from model.spaces.paths import PathSpace
from model.spaces.registry import KINDS
from utils.errors import UserError
from utils.json_file import read_json


@dataclass(frozen=True)
class _Settings:
    """How a search was started: the digest of its supernet; whether test images guided it."""

    supernet_path: str | None
    test: str | int | bool | None


@dataclass(frozen=True)
class _Search:
    settings: _Settings


def searched_paths(folder: Path, space: PathSpace, supernet: str) -> tuple[Tensor, Tensor]:
    """The last archive of a search: paths `[N, L, E, K]`, and validation errors in % `[N]`.

    UserError when it is not a search of `space`, when it was on a supernet of another digest than
    `supernet`, and when it was guided by test images.
    """
    try:
        search = read_json(folder / "search.json", _Search, "the search.json of a search")
        kind, rows = KINDS[space.kind], last_archive(folder)
        paths = [space.encode(kind.architecture(space, record)) for record, *_ in rows]
        errors = torch.tensor([error for _, error, _ in rows], dtype=torch.float64)
    except ValueError as error:
        raise UserError(f"{folder}: no search of this space by msunas.py ({error})") from None
    if search.settings.supernet_path != supernet:
        raise UserError(f"{folder}: this search was on another supernet than the run's")
    if search.settings.test:
        raise UserError(f"{folder}: this search was guided by test images")
    return torch.stack(paths), errors
