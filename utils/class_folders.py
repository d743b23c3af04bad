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
MUST_BE = "it must be a folder with a folder of images for each class"


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
    classes = _class_names(directory)
    paths, labels, others = [], [], []
    for label, name in enumerate(classes):
        files = _files(directory / name)
        images = [file for file in files if is_image_name(file)]
        others += [file for file in files if not is_image_name(file) and _is_image(file)]
        paths += images
        labels += [label] * len(images)
    known = f"known are {', '.join(ENDINGS)}"
    if others:
        names = few([os.path.relpath(file, directory) for file in others])
        known = f"left out, images of unknown endings: {len(others)} ({names}); {known}"
    found = set(labels)
    if empty := [name for label, name in enumerate(classes) if label not in found]:
        raise UserError(f"{directory}: {MUST_BE} (no images in {few(empty)}; {known})")
    if others and distributed.rank() == 0:
        print(f"{directory}: {known}", file=sys.stderr)
    return LabelledFiles(paths, labels, classes)


def _class_names(directory: Path) -> list[str]:
    """The names of the class folders; UserError when there are none."""
    if not directory.is_dir():
        what = "it is no folder" if directory.exists() else "it is not there"
    elif names := [folder.name for folder in sub_folders(directory)]:
        return names
    else:
        what = "it has no folders"
    raise UserError(f"{directory}: {MUST_BE} ({what})")


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
