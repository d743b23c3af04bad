"""Places that will be written: a place where nothing can be is refused before any work begins."""

import argparse
import os
from pathlib import Path

from utils.errors import UserError

LONGEST_NAME = 255 - 32  # bytes; a file gets a longer name while it is written


def check_file(path: str | Path, where: str) -> None:
    """UserError that names `where` when no file can be written at `path`."""
    if os.path.isdir(path):
        raise UserError(f"{where}: {path}: a file is to be written here, but it is a folder")
    check_folder(Path(path).parent, where)
    _check_name(Path(path).name, path, where)


def check_folder(path: str | Path, where: str) -> None:
    """UserError that names `where` when there is no such folder, and it cannot be made."""
    there = Path(path)
    while not os.path.lexists(there) and there != there.parent:
        _check_name(there.name, path, where)
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{where}: {path} cannot be made: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{where}: {path} cannot be written: {there} may not be changed")


def _check_name(name: str, path: str | Path, where: str) -> None:
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(f"{where}: {str(path)[:60]}...: a name has at most {LONGEST_NAME} bytes")


def output_file(text: str) -> Path:
    """An argparse type: a file that can be written."""
    return _argument(check_file, text)


def output_folder(text: str) -> Path:
    """An argparse type: a folder that is there, or can be made."""
    return _argument(check_folder, text)


def _argument(check, text: str) -> Path:
    try:
        check(text, "output")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("output: ")) from None
    return Path(text)
