"""One LMDB file for the images of a folder, and its reader.

    python3 utils/folder2lmdb.py DATA_DIR --split train [--out DIR] [--workers N]
        [--resize SHORT_SIDE] [--verify]

packs DATA_DIR/train, a folder of images for each class, into DIR/train_lmdb/train.lmdb. The images
keep their bytes, unless --resize makes them smaller. The same command resumes where it was stopped;
--verify compares all records with the folder.

Two tables: "records" has, by number, the label, the length of the file's name, the name and the
bytes of the file (see `Record`); "about" has a `Format` as JSON, and all labels. Nothing is code.
"""

import io
import json
import os
import struct
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import lmdb
import msgspec
import numpy as np
import torch
from PIL import Image

from utils.class_folders import check_utf8
from utils.command import Parser, command, positive
from utils.decoding import UnreadableImage, decode
from utils.errors import UserError
from utils.images import EncodedImages, FileSource, check_readable, image_folder
from utils.places import output_folder
from utils.runtime import Progress

VERSION = 1
BATCH = 512  # images that are read together, and written in one transaction
FIRST_SIZE = 64 * 2**20  # bytes of the map; it grows when it is full
HEADER = struct.Struct("<IH")  # label, length of the name
NUMBER = struct.Struct("=Q")  # the machine's order, which tables with integer keys want
LABELS = np.dtype("<u4")
OPTIONS = {"subdir": False, "max_dbs": 2}  # one file, two tables


class Record(NamedTuple):
    """An image as it is stored."""

    label: int
    name: str  # the path of its file inside the folder
    image: bytes  # of the file

    def pack(self) -> bytes:
        name = os.fsencode(self.name)
        return HEADER.pack(self.label, len(name)) + name + self.image

    @classmethod
    def unpack(cls, value: bytes) -> "Record":
        label, length = HEADER.unpack_from(value)
        start = HEADER.size + length
        return cls(label, os.fsdecode(bytes(value[HEADER.size : start])), bytes(value[start:]))


def lmdb_file(directory: Path, part: str) -> Path:
    """Where the images of a part lie, as published: DIR/train_lmdb/train.lmdb.

    UserError when this path is not UTF-8.
    """
    file = Path(directory) / f"{part}_lmdb" / f"{part}.lmdb"
    check_utf8(str(file))
    return file


# -- reading ---------------------------------------------------------------------------------------


class LmdbSource:
    """The images of an LMDB file. Each process opens it for itself, when it reads the first one."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self._opened: tuple[int, lmdb.Environment, object] | None = None

    def name(self, number: int) -> str:
        try:
            return f"{self.root}, {self.record(number).name}"
        except UserError:
            return f"{self.root}, record {number}"

    def open(self, number: int) -> BinaryIO:
        return io.BytesIO(self.record(number).image)

    def record(self, number: int) -> Record:
        """UserError when the file is damaged there."""
        environment, table = self._environment()
        try:
            with environment.begin(db=table, buffers=True) as transaction:
                value = transaction.get(NUMBER.pack(number))
                if value is not None:
                    return Record.unpack(value)
        except (lmdb.Error, struct.error) as error:
            raise UserError(f"{self.root}: record {number} cannot be read ({error})") from None
        raise UserError(f"{self.root}: it has no record {number}")

    def lengths(self) -> list[int]:
        """The length of each record, in order: the index has them, no image is read."""
        environment, table = self._environment()
        with environment.begin(db=table, buffers=True) as transaction:
            return [len(value) for value in transaction.cursor().iternext(keys=False)]

    def _environment(self) -> tuple[lmdb.Environment, object]:
        if self._opened is None or self._opened[0] != os.getpid():
            environment = open_lmdb(self.root)
            table = environment.open_db(b"records", integerkey=True, create=False)
            self._opened = os.getpid(), environment, table
        return self._opened[1:]

    def __getstate__(self) -> dict:
        return {"root": self.root, "_opened": None}


# The files that are open, by path, and in which process: LMDB requires that a process opens a file
# only once, and one that was opened before a fork cannot be used after it.
_open: dict[str, tuple[int, weakref.ref]] = {}


def open_lmdb(file: Path) -> lmdb.Environment:
    """Open a file for reading, once in this process; UserError when it is missing or damaged."""
    path = os.path.realpath(file)
    process, known = _open.get(path, (0, lambda: None))
    environment = known()
    if environment is not None and process == os.getpid():
        return environment
    if environment is not None:
        environment.close()
    if not Path(path).is_file():
        raise UserError(f"{file}: there is no such file; python3 utils/folder2lmdb.py makes it")
    try:
        # an image has several pages: reading ahead saves a disk access for each of them
        environment = lmdb.open(path, readonly=True, lock=False, readahead=True, **OPTIONS)
    except lmdb.Error as error:
        raise UserError(f"{file}: it is no LMDB file ({error})") from None
    found, used = os.stat(path).st_size, environment.info()["last_pgno"] + 1
    used *= environment.stat()["psize"]
    if found < used:  # reading the rest would be a bus error
        environment.close()
        raise UserError(f"{file}: it is cut short, {found} of {used} bytes")
    _open[path] = os.getpid(), weakref.ref(environment)
    return environment


@dataclass(frozen=True)
class Format:
    """What a file says of itself in JSON; `resize` is the short side in pixels."""

    version: int
    classes: list[str]
    count: int
    resize: int | None


@dataclass(frozen=True)
class About:
    """What a file holds."""

    classes: list[str]
    labels: torch.Tensor  # int64 [count]
    resize: int | None
    written: int  # how many images are there so far

    @classmethod
    def read(cls, file: Path) -> "About":
        """UserError when the file is not one of this format."""
        environment = open_lmdb(file)
        try:
            about = environment.open_db(b"about", create=False)
            records = environment.open_db(b"records", integerkey=True, create=False)
            with environment.begin() as transaction:
                form = msgspec.json.decode(transaction.get(b"format", db=about), type=Format)
                labels = np.frombuffer(transaction.get(b"labels", db=about), LABELS)
                written = transaction.stat(records)["entries"]
        except (lmdb.Error, TypeError, ValueError, msgspec.MsgspecError) as error:
            what = "no LMDB file of images as utils/folder2lmdb.py writes them"
            raise UserError(f"{file}: {what} ({error})") from None
        if len(set(form.classes)) < len(form.classes) or labels.max(initial=0) >= len(form.classes):
            raise UserError(f"{file}: its labels and its {len(form.classes)} classes do not fit")
        if form.version != VERSION:
            raise UserError(f"{file}: its format has version {form.version}, not {VERSION}")
        return cls(form.classes, torch.from_numpy(labels.astype(np.int64)), form.resize, written)

    def write(self, transaction: lmdb.Transaction, table: object) -> None:
        form = Format(VERSION, self.classes, len(self.labels), self.resize)
        transaction.put(b"format", json.dumps(asdict(form)).encode(), db=table)
        transaction.put(b"labels", self.labels.numpy().astype(LABELS).tobytes(), db=table)


def lmdb_images(file: Path, size: int, strict: bool) -> tuple[EncodedImages, list[str]]:
    """The images of an LMDB file, and the names of the classes; UserError if it is unfinished."""
    about = About.read(file)
    count = len(about.labels)
    if about.written < count:
        unfinished = f"unfinished, {about.written} of {count} images"
        raise UserError(f"{file}: {unfinished}; utils/folder2lmdb.py resumes it")
    source, index = LmdbSource(file), torch.arange(count)
    images = EncodedImages(source, index, about.labels, size, strict)
    check_readable(images, about.classes)
    return images, about.classes


# -- writing ---------------------------------------------------------------------------------------


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("data", type=Path, metavar="DATA_DIR")
    option("--split", default="train", help="folder inside DATA_DIR (default train)")
    option("--out", type=output_folder, metavar="DIR", help="default: DATA_DIR")
    option("--workers", type=positive, default=4, help="threads that read images (default 4)")
    smaller = "make larger images so small, as JPEG"
    option("--resize", type=positive, metavar="SHORT_SIDE", help=smaller)
    option("--verify", action="store_true", help="only compare all records with the folder")
    args = parser.parse_args(argv)
    folder = Folder(*image_folder(args.data / args.split, size=0, strict=True))
    file = lmdb_file(args.out or args.data, args.split)
    if args.verify and args.resize:
        raise UserError("--resize: --verify takes it from the file")
    if args.verify:
        verify(file, folder, args.workers)
    else:
        pack(file, replace(folder, resize=args.resize), args.workers)


@dataclass(frozen=True)
class Folder:
    """What is packed: a folder of images for each class, and how small they are made."""

    images: EncodedImages
    classes: list[str]
    resize: int | None = None

    def check(self, about: About, file: Path) -> None:
        """UserError when the file is of another folder, or of other sizes."""
        source, labels = self.images.source, self.images.labels
        if about.classes != self.classes or not torch.equal(about.labels, labels):
            its = f"{len(about.labels)} images of {len(about.classes)} classes"
            ours = f"the {len(labels)} of {len(self.classes)} in {source.root}"
            advice = "remove it, or choose another --out"
            raise UserError(f"{file}: it has {its}, other than {ours}; {advice}")
        if about.resize != self.resize:
            started = f"it was started with --resize {about.resize}, not {self.resize}"
            raise UserError(f"{file}: {started}; choose another --out")

    def record(self, number: int) -> Record:
        """The record of an image; one that cannot be decoded keeps its bytes: readers skip it."""
        source: FileSource = self.images.source
        path = Path(source.paths[number])
        content = path.read_bytes()
        if self.resize is not None:
            try:
                content = resized(content, self.resize)
            except UnreadableImage as error:
                reason = f"cannot be read as an image ({error})"
                print(f"{path}: kept as it is; {reason}", file=sys.stderr)
        name = path.relative_to(source.root).as_posix()
        return Record(int(self.images.labels[number]), name, content)

    def records(
        self, title: str, workers: int, done: int = 0
    ) -> Iterator[tuple[range, Iterator[Record]]]:
        """The records from number `done` on, read by `workers` threads, in batches."""
        total = len(self.images.labels)
        with ThreadPoolExecutor(workers) as pool, Progress(title, total, 10_000, done) as progress:
            for start in range(done, total, BATCH):
                numbers = range(start, min(start + BATCH, total))
                yield numbers, pool.map(self.record, numbers)
                for _ in numbers:
                    progress.update()


def pack(file: Path, folder: Folder, workers: int) -> None:
    """Write what `file` does not have yet, a transaction for each batch; UserError if it fails."""
    count, classes = len(folder.images.labels), folder.classes
    try:
        if not file.exists():
            create(file, About(classes, folder.images.labels, folder.resize, 0))
        about = About.read(file)
        folder.check(about, file)
        room = max(FIRST_SIZE, file.stat().st_size)
        with lmdb.open(str(file), map_size=room, meminit=False, **OPTIONS) as environment:
            table = environment.open_db(b"records", integerkey=True)
            for numbers, records in folder.records(file.name, workers, about.written):
                keys, values = map(NUMBER.pack, numbers), map(Record.pack, records)
                items = list(zip(keys, values, strict=True))
                commit(environment, lambda t: t.cursor(table).putmulti(items, append=True))
    except (lmdb.Error, UnicodeEncodeError) as error:
        raise UserError(f"{file}: cannot be written ({error})") from None
    mebibytes = file.stat().st_size / 2**20
    print(f"{file}: {count} images of {len(classes)} classes, {mebibytes:.1f} MiB")


def create(file: Path, about: About) -> None:
    """Write a file without images, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.unfinished")
    new.unlink(missing_ok=True)
    with lmdb.open(str(new), map_size=FIRST_SIZE, lock=False, **OPTIONS) as environment:
        environment.open_db(b"records", integerkey=True)
        commit(environment, partial(about.write, table=environment.open_db(b"about")))
    new.rename(file)


def commit(environment: lmdb.Environment, write: Callable[[lmdb.Transaction], None]) -> None:
    """Let `write(transaction)` write, all or nothing; double the map when it is full."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                return write(transaction)
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def resized(content: bytes, short_side: int) -> bytes:
    """A smaller image as JPEG of quality 95; unchanged bytes where it is small enough."""
    image = decode(io.BytesIO(content))
    scale = short_side / min(image.size)
    if scale >= 1:
        return content
    size = tuple(max(short_side, round(scale * side)) for side in image.size)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def verify(file: Path, folder: Folder, workers: int) -> None:
    """Compare every record with its file; UserError that names the first difference."""
    about, root = About.read(file), folder.images.source.root
    folder = replace(folder, resize=about.resize)
    folder.check(about, file)
    packed, _ = lmdb_images(file, 0, strict=True)
    for numbers, records in folder.records(f"verify {file.name}", workers):
        for number, expected in zip(numbers, records, strict=True):
            if packed.source.record(number) != expected:
                raise UserError(f"{file}: record {number} is not {expected.name} in {root}")
    print(f"{file}: all {len(packed.labels)} records are those of {root}")


if __name__ == "__main__":
    main()
