"""Checkpoints: written whole or not at all, read without running code."""

import argparse
import hashlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.plain_values import TooMuch, check_plain

# Keys of a checkpoint that may hold the state dict, ours and other people's.
WEIGHT_KEYS = ("model", "state_dict", "state_dict_ema")
UNFINISHED = ".unfinished"  # ends the names of files that are still being written


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file next to `path`, flush it to disk, and rename it to `path`.

    UserError when `path` is a folder. After any other error the earlier file is still there.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a file is to be written here, but it is a folder")
    with errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    try:
        with errors_name(path):
            write(Path(name))
            os.chmod(name, 0o644)
            _flush(name)
            os.replace(name, path)
            if os.name == "posix":
                _flush(path.parent)  # the new name, too, survives a power cut
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Within, a full disk and other errors of writing name `path`, and no temporary file."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None or str(error.filename).endswith(UNFINISHED)
        if unnamed and error.errno is not None:
            error.filename = str(path)
        raise


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, inside: str = "**/") -> None:
    """Remove what a killed process left of files that it was writing in a folder.

    `inside` is a pattern of the folders in it that are looked through, too.
    """
    for file in folder.glob(f"{inside}.*{UNFINISHED}"):
        if file.is_file():
            file.unlink(missing_ok=True)


def digest(file: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits: another file of the same name is noticed."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save(path: str | Path, payload: dict) -> None:
    """Save tensors and plain values, whole or not at all."""
    buffer = io.BytesIO()  # written by Python, for which a full disk is an OSError
    torch.save(payload, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a file, whole or not at all."""
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def load(path: str | Path) -> dict:
    """The payload of a checkpoint, on the CPU; UserError when the file is missing or damaged."""
    path = Path(path)
    if not os.path.isfile(path):  # also of a name that no file can have
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        # timm keeps its arguments in checkpoints
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            payload = torch.load(path, map_location="cpu", weights_only=True)
    # Truncated, foreign and crafted files raise errors of many types. Their texts are not for
    # users: some advise to load without any safety.
    except Exception:
        raise UserError(
            f"{path}: not a readable checkpoint of tensors and plain values; "
            "it is damaged, or holds other objects"
        ) from None
    if not isinstance(payload, dict):
        kind = type(payload).__name__
        raise UserError(f"{path}: a checkpoint must be a dictionary, this is a {kind}")
    try:
        check_plain(payload)
    except TooMuch as error:
        raise UserError(f"{path}: not a checkpoint ({error})") from None
    return payload


def weights(payload: dict, path: str | Path) -> dict[str, Tensor]:
    """The state dict of a payload, itself or under one of `WEIGHT_KEYS`, without "module." in keys.

    UserError when there is none, or one of its tensors is no weight.
    """
    found = (payload[key] for key in WEIGHT_KEYS if isinstance(payload.get(key), dict))
    state = next(found, payload)
    named = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not state or not named:
        keys = ", ".join(WEIGHT_KEYS)
        raise UserError(f"{path}: it holds no weights, neither itself nor under {keys}")
    for key, value in state.items():
        _check_tensor(key, value, path)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _check_tensor(key: str, value: Tensor, path: str | Path) -> None:
    """UserError unless a tensor is dense, real and finite; variances must not be negative."""
    dense = value.layout == torch.strided and value.device.type == "cpu"
    if not dense or value.is_nested or value.is_quantized or value.is_complex():
        raise UserError(f"{path}: {key} is no dense tensor of real numbers")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise UserError(f"{path}: {key} has more numbers than the file holds")
    value = value.float() if value.is_floating_point() else value
    if not value.isfinite().all():
        raise UserError(f"{path}: {key} has numbers that are NaN or infinite")
    if key.endswith("running_var") and (value < 0).any():
        raise UserError(f"{path}: {key} has a negative variance")


def load_into(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load `state` strictly; UserError with the first keys that are wrong, and nothing is loaded.

    Only the counters `num_batches_tracked` may differ: no network here uses them.
    """
    own = module.state_dict()
    missing, unexpected = (
        sorted(key for key in keys if not key.endswith("num_batches_tracked"))[:3]
        for keys in (own.keys() - state.keys(), state.keys() - own.keys())
    )
    if missing or unexpected:
        wrong = f"missing {missing}, unexpected {unexpected}"
        raise UserError(f"{path}: state_dict mismatch: {wrong}")
    state = {key: value for key, value in state.items() if key in own}
    for key, value in state.items():
        if value.shape != own[key].shape:
            shapes = f"{tuple(value.shape)}; this network has {tuple(own[key].shape)}"
            raise UserError(f"{path}: {key} is {shapes}")
    module.load_state_dict(state, strict=False)
