"""Folders with a folder of images for each class: which folders are classes, which files images."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils import distributed
from utils.errors import UserError
from utils.json_file import one_line

ENDINGS = (*IMG_EXTENSIONS, ".jfif")  # of the names of image files, in any case


class LabelledFiles(NamedTuple):
    """The image files of a folder, their labels, and the classes that these number."""

    paths: list[str]
    labels: list[int]
    classes: list[str]


def labelled_files(directory: Path) -> LabelledFiles:
    """The image files of a folder with a folder for each class, at any depth inside of it.

    Images with other endings than `ENDINGS` are left out, counted and named. UserError when it is
    no such folder, a class has no images, or a name is not UTF-8.
    """
    wrong = f"{directory}: it must be a folder with a folder of images for each class"
    if not directory.is_dir():
        raise UserError(f"{wrong} (it is {'no folder' if directory.exists() else 'not there'})")
    classes = [folder.name for folder in sub_folders(directory)]
    if not classes:
        raise UserError(f"{wrong} (it has no folders)")
    paths, labels, others = [], [], []
    for label, name in enumerate(classes):
        for file in _files(directory / name):
            if is_image_name(file):
                paths.append(file)
                labels.append(label)
            else:
                others.append(file)
    others = [os.path.relpath(file, directory) for file in others if _is_image(file)]
    known = f"known are {', '.join(ENDINGS)}"
    left_out = f"{len(others)} images have unknown endings: {few(others)}; {known}"
    if empty := [classes[label] for label in sorted(set(range(len(classes))) - set(labels))]:
        raise UserError(f"{wrong} (no images in {few(empty)}; {left_out if others else known})")
    if others and distributed.rank() == 0:
        print(f"{directory}: left out: {left_out}", file=sys.stderr)
    return LabelledFiles(paths, labels, classes)


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its ending."""
    return name.lower().endswith(ENDINGS)


def sub_folders(directory: Path) -> list[Path]:
    """The folders in a folder, by name, except left-over ones; UserError when it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        _refuse_folder(error)
    return [directory / name for name in _kept(str(directory), names)]


def has_images_below(folder: Path) -> bool:
    """Whether there is an image file in a folder, at any depth."""
    return any(is_image_name(name) for _, names in _walk(folder) for name in names)


def few(names: Sequence[str], most: int = 3) -> str:
    """Some names as a short line."""
    shown = ", ".join(one_line(name, 60) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


# -- reading folders -----------------------------------------------------------------------------


def _kept(folder: str, names: list[str]) -> list[str]:
    """The names in a folder, sorted, without what file managers, editors and archives leave behind.

    Those are .ipynb_checkpoints, __MACOSX and all that begins with a dot. UserError for one that is
    not UTF-8: it could neither be printed nor stored.
    """
    kept = sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")
    if not _is_utf8("".join([folder, *kept])):
        for name in kept or [""]:
            check_utf8(os.path.join(folder, name))
    return kept


def check_utf8(path: str) -> None:
    """UserError when a path is not UTF-8."""
    if not _is_utf8(path):
        shown = path.encode(errors="backslashreplace").decode()
        raise UserError(f"{shown}: this name is not UTF-8; rename it")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(folder: Path) -> list[str]:
    """All files in a folder, at any depth, in the order of torchvision's ImageFolder."""
    found = sorted(_walk(folder))
    return [os.path.join(inner, name) for inner, names in found for name in names]


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The folders in `folder`, itself included, and the names of their files."""
    seen = set()
    for inner, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        folders[:] = [name for name in _kept(inner, folders) if _is_new(inner, name, seen)]
        yield inner, _kept(inner, names)


def _is_new(folder: str, name: str, seen: set[str]) -> bool:
    """Whether a folder is to be read: not one to which a second link leads, as in a circle."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return True
    target, around = os.path.realpath(path), os.path.realpath(folder)
    if target in seen or os.path.commonpath([target, around]) == target:
        return False
    seen.add(target)
    return True


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _is_image(file: str) -> bool:
    """Whether a file is an image by its content."""
    if not os.path.isfile(file):  # a pipe would be waited for
        return False
    try:
        with Image.open(file):
            return True
    except Exception:  # all that Pillow raises on other files
        return False
