"""Checkpoints: written whole or not at all, read without running code."""

import argparse
import hashlib
import io
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError

# Where the state dict of a checkpoint may lie, ours and other people's.
WEIGHT_KEYS = ("model", "state_dict", "state_dict_ema")


# How the names of files end that are still being written.
UNFINISHED = ".unfinished"


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then put it in the place
    of `path`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a file is to be written here, but it is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        _flush(name)
        os.replace(name, path)
        if os.name == "posix":
            _flush(path.parent)  # the new name, too, survives a power cut
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill left of files that were being written."""
    for file in folder.rglob(f".*{UNFINISHED}"):
        file.unlink()


def digest(file: str | Path) -> str:
    """What a file holds, in 64 hexadecimal digits, so that another one of the same name is noticed."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save(path: str | Path, payload: dict) -> None:
    """Save tensors and plain values.

    By way of memory, since a full disk is an OSError for Python's own writing alone.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a file, whole or not at all."""
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


# What torch.load raises on files that are truncated, of another kind, or crafted.
_UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    pickle.UnpicklingError,
)


def load(path: str | Path) -> dict:
    """The payload of a checkpoint, on the CPU; UserError when the file is missing, truncated or no
    such thing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        # timm keeps its arguments in checkpoints
        with torch.serialization.safe_globals([argparse.Namespace]):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path}: not a readable checkpoint of tensors and plain values ({reason})"
        ) from None
    if not isinstance(payload, dict):
        raise UserError(
            f"{path}: a checkpoint must be a dictionary, this is a {type(payload).__name__}"
        )
    return payload


def weights(payload: dict, path: str | Path) -> dict[str, Tensor]:
    """The state dict of a payload, itself or under one of `WEIGHT_KEYS`, without "module." before
    its keys.
    """
    for key in WEIGHT_KEYS:
        if isinstance(payload.get(key), dict):
            payload = payload[key]
            break
    if not payload or not all(isinstance(value, Tensor) for value in payload.values()):
        raise UserError(
            f"{path}: it holds no weights, neither itself nor under {', '.join(WEIGHT_KEYS)}"
        )
    return {key.removeprefix("module."): value for key, value in payload.items()}


def load_into(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load `state` strictly; UserError naming the first keys that are missing, unknown or of
    another shape.

    Only the counters `num_batches_tracked` may be missing or too many: no network here uses them.
    """
    own = module.state_dict()
    missing, unknown = (
        sorted(key for key in keys if not key.endswith("num_batches_tracked"))
        for keys in (own.keys() - state.keys(), state.keys() - own.keys())
    )
    if missing or unknown:
        raise UserError(f"{path}: keys do not fit: missing {missing[:3]}, unknown {unknown[:3]}")
    state = {key: value for key, value in state.items() if key in own}
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{path}: {key} is {tuple(value.shape)}; this network has {tuple(own[key].shape)}"
            )
    module.load_state_dict(state, strict=False)
