"""What a finished evolutionary search found, as paths of its search space."""

from pathlib import Path

import torch
from torch import Tensor

from model.nsganetv2.archive import last_archive
from model.spaces.paths import PathSpace
from model.spaces.registry import KINDS
from utils.errors import UserError
from utils.json_file import read_json


def searched_paths(folder: Path, space: PathSpace, supernet: str) -> tuple[Tensor, Tensor]:
    """The last archive of a search: paths `[N, L, E, K]`, and validation errors in % `[N]`.

    UserError when it is not a search of `space`, when it was on a supernet of another digest than
    `supernet`, and when it was guided by test images.
    """
    try:
        settings = read_json(folder / "search.json")["settings"]
        digest, guided_by_test = settings["supernet_path"], settings["test"]
        kind, rows = KINDS[space.kind], last_archive(folder)
        paths = [space.encode(kind.architecture(space, record)) for record, *_ in rows]
        errors = torch.tensor([error for _, error, _ in rows], dtype=torch.float64)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: no search of this space by msunas.py ({error})") from None
    if digest != supernet:
        raise UserError(f"{folder}: this search was on another supernet than the run's")
    if guided_by_test:
        raise UserError(f"{folder}: this search was guided by test images")
    return torch.stack(paths), errors
