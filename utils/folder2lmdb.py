"""One LMDB file for the images of a folder, and its reader.

    python3 utils/folder2lmdb.py DATA_DIR --split train [--out DIR] [--workers N] [--resize SHORT_SIDE] [--verify]

packs DATA_DIR/train, a folder of images for each class, into DIR/train_lmdb/train.lmdb. The images
keep their bytes, unless --resize makes them smaller. The same command goes on where it was stopped;
--verify compares all records with the folder.

Two tables: "records" has, by number, the label, the length of the file's name, the name and the
bytes of the file (see `Record`); "about" has the format's version, the classes and the number of
images as JSON, and all labels. Nothing in it is code.
"""

import io
import json
import os
import struct
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

# as a command, this file is found in its folder, and the rest beside that
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import lmdb
import numpy as np
import torch
from PIL import Image

from utils.command import Parser, command, positive
from utils.errors import UserError
from utils.images import BROKEN_IMAGE, EncodedImages, FileSource, image_folder
from utils.runtime import Progress

VERSION = 1
BATCH = 512  # images that are read together, and written in one transaction
FIRST_SIZE = 64 * 2**20  # bytes of the map; it grows when it is full
HEADER = struct.Struct("<IH")  # label, length of the name
NUMBER = struct.Struct("=Q")  # the machine's order, which tables with integer keys want
LABELS = np.dtype("<u4")


class Record(NamedTuple):
    """An image as it is stored: its label, the path of its file inside the folder, and the bytes of
    the file.
    """

    label: int
    name: str
    image: bytes

    def pack(self) -> bytes:
        name = os.fsencode(self.name)
        return HEADER.pack(self.label, len(name)) + name + self.image

    @classmethod
    def unpack(cls, value: bytes) -> "Record":
        label, length = HEADER.unpack_from(value)
        start = HEADER.size + length
        return cls(label, os.fsdecode(bytes(value[HEADER.size : start])), bytes(value[start:]))


def lmdb_file(directory: Path, part: str) -> Path:
    """Where the images of a part lie, as published: DIR/train_lmdb/train.lmdb."""
    return Path(directory) / f"{part}_lmdb" / f"{part}.lmdb"


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

    def _environment(self) -> tuple[lmdb.Environment, object]:
        if self._opened is None or self._opened[0] != os.getpid():
            environment = open_lmdb(self.root)
            self._opened = (
                os.getpid(),
                environment,
                environment.open_db(b"records", integerkey=True, create=False),
            )
        return self._opened[1:]

    def __getstate__(self) -> dict:
        return {"root": self.root, "_opened": None}


# The files that are open, by path, and in which process: LMDB wants each to be open once in a
# process, and one that was opened before a fork is of no use after it.
_open: dict[str, tuple[int, weakref.ref]] = {}


def open_lmdb(file: Path) -> lmdb.Environment:
    """A file for reading, shared within this process; UserError when it is missing, no LMDB file,
    or cut short.
    """
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
        # An image is larger than a page: without reading ahead, each of its pages would be a disk
        # access of its own.
        environment = lmdb.open(
            path, subdir=False, readonly=True, lock=False, readahead=True, max_dbs=2
        )
    except lmdb.Error as error:
        raise UserError(f"{file}: it is no LMDB file ({error})") from None
    used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if Path(path).stat().st_size < used:  # to read on would be a bus error
        environment.close()
        raise UserError(f"{file}: it is cut short, {Path(path).stat().st_size} of {used} bytes")
    _open[path] = os.getpid(), weakref.ref(environment)
    return environment


@dataclass(frozen=True)
class About:
    """What a file says of itself."""

    classes: list[str]
    labels: torch.Tensor  # int64 [count]
    resize: int | None
    written: int  # how many images are there yet

    @classmethod
    def read(cls, file: Path) -> "About":
        """UserError when the file is not one of this format."""
        environment = open_lmdb(file)
        try:
            about = environment.open_db(b"about", create=False)
            records = environment.open_db(b"records", integerkey=True, create=False)
            with environment.begin() as transaction:
                record = json.loads(transaction.get(b"format", db=about))
                labels = np.frombuffer(transaction.get(b"labels", db=about), LABELS).astype(
                    np.int64
                )
                written = transaction.stat(records)["entries"]
            if record["version"] != VERSION:
                raise UserError(
                    f"{file}: its format has version {record['version']}, not {VERSION}"
                )
            return cls(list(record["classes"]), torch.from_numpy(labels), record["resize"], written)
        except (lmdb.Error, TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{file}: no LMDB file of images as utils/folder2lmdb.py writes them ({error})"
            ) from None

    def write(self, transaction: lmdb.Transaction, table: object) -> None:
        record = {
            "version": VERSION,
            "classes": self.classes,
            "count": len(self.labels),
            "resize": self.resize,
        }
        transaction.put(b"format", json.dumps(record).encode(), db=table)
        transaction.put(b"labels", self.labels.numpy().astype(LABELS).tobytes(), db=table)


def lmdb_images(file: Path, size: int, strict: bool) -> tuple[EncodedImages, list[str]]:
    """The images of an LMDB file, and the names of the classes; UserError when it is no finished
    one.
    """
    about = About.read(file)
    if about.written < len(about.labels):
        raise UserError(
            f"{file}: unfinished, {about.written} of {len(about.labels)} images; utils/folder2lmdb.py goes on with it"
        )
    index = torch.arange(len(about.labels))
    return EncodedImages(LmdbSource(file), index, about.labels, size, strict), about.classes


# -- writing ---------------------------------------------------------------------------------------


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--split", default="train", help="folder inside DATA_DIR (default train)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: DATA_DIR")
    parser.add_argument(
        "--workers", type=positive, default=4, help="threads that read images (default 4)"
    )
    parser.add_argument(
        "--resize", type=positive, metavar="SHORT_SIDE", help="make larger images so small, as JPEG"
    )
    parser.add_argument(
        "--verify", action="store_true", help="only compare all records with the folder"
    )
    args = parser.parse_args(argv)
    images, classes = image_folder(args.data / args.split, size=0, strict=True)
    file = lmdb_file(args.out or args.data, args.split)
    if args.verify and args.resize:
        raise UserError("--resize: --verify takes it from the file")
    if args.verify:
        verify(file, images, classes, args.workers)
    else:
        pack(file, images, classes, args.resize, args.workers)


def pack(
    file: Path, images: EncodedImages, classes: list[str], resize: int | None, workers: int
) -> None:
    """Write what `file` does not have yet, a transaction for each batch of images. UserError where
    that fails.
    """
    try:
        if not file.exists():
            begin(file, About(classes, images.labels, resize, 0))
        done = compared(About.read(file), images, classes, resize, file).written
        with lmdb.open(
            str(file), subdir=False, map_size=room(file), max_dbs=2, meminit=False
        ) as environment:
            put_rest(environment, images, resize, workers, done, file.name)
    except (lmdb.Error, UnicodeEncodeError) as error:
        raise UserError(f"{file}: cannot be written ({error})") from None
    print(
        f"{file}: {len(images.labels)} images of {len(classes)} classes, {file.stat().st_size / 2**20:.1f} MiB"
    )


def begin(file: Path, about: About) -> None:
    """A file without images, whole or not there at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.unfinished")
    new.unlink(missing_ok=True)
    with lmdb.open(
        str(new), subdir=False, map_size=FIRST_SIZE, max_dbs=2, lock=False
    ) as environment:
        environment.open_db(b"records", integerkey=True)
        commit(environment, partial(about.write, table=environment.open_db(b"about")))
    new.rename(file)


def room(file: Path) -> int:
    """Bytes of the map to begin with."""
    return max(FIRST_SIZE, file.stat().st_size)


def put_rest(
    environment: lmdb.Environment,
    images: EncodedImages,
    resize: int | None,
    workers: int,
    done: int,
    title: str,
) -> None:
    """The images from number `done` on."""
    records, total = environment.open_db(b"records", integerkey=True), len(images.labels)
    with ThreadPoolExecutor(workers) as pool, Progress(title, total, 10_000, done) as progress:
        for start in range(done, total, BATCH):
            numbers = range(start, min(start + BATCH, total))
            read = list(pool.map(partial(record_of, images, resize), numbers))
            commit(environment, partial(_put_all, records, numbers, read))
            for _ in numbers:
                progress.update()


def _put_all(
    table: object, numbers: range, records: list[Record], transaction: lmdb.Transaction
) -> None:
    for number, record in zip(numbers, records, strict=True):
        transaction.put(NUMBER.pack(number), record.pack(), db=table, append=True)


def commit(environment: lmdb.Environment, write: Callable[[lmdb.Transaction], None]) -> None:
    """Let `write(transaction)` write, all or nothing; twice the map when it is full."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                return write(transaction)
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def record_of(images: EncodedImages, resize: int | None, number: int) -> Record:
    """The record of an image file. One that cannot be decoded keeps its bytes: who reads it will
    skip it.
    """
    source: FileSource = images.source
    path = Path(source.paths[number])
    content = path.read_bytes()
    if resize is not None:
        try:
            content = resized(content, resize)
        except BROKEN_IMAGE as error:
            print(f"{path}: kept as it is; cannot be read as an image ({error})", file=sys.stderr)
    return Record(int(images.labels[number]), path.relative_to(source.root).as_posix(), content)


def resized(content: bytes, short_side: int) -> bytes:
    """A smaller image as JPEG of quality 95; unchanged bytes where it is small enough."""
    with Image.open(io.BytesIO(content)) as image:
        scale = short_side / min(image.size)
        if scale >= 1:
            return content
        size = tuple(max(short_side, round(scale * side)) for side in image.size)
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def compared(
    about: About, images: EncodedImages, classes: list[str], resize: int | None, file: Path
) -> About:
    """What a file says, if it is of this very folder; else UserError."""
    if about.classes != classes or not torch.equal(about.labels, images.labels):
        raise UserError(
            f"{file}: it has {len(about.labels)} images of {len(about.classes)} classes, other than the "
            f"{len(images.labels)} of {len(classes)} in {images.source.root}; remove it, or choose another --out"
        )
    if about.resize != resize:
        raise UserError(
            f"{file}: it was begun with --resize {about.resize}, not {resize}; choose another --out"
        )
    return about


def verify(file: Path, images: EncodedImages, classes: list[str], workers: int) -> None:
    """Compare every record with its file; UserError that names the first difference."""
    about = About.read(file)
    compared(about, images, classes, about.resize, file)
    packed, _ = lmdb_images(file, 0, strict=True)
    numbers = range(len(packed.labels))
    with (
        ThreadPoolExecutor(workers) as pool,
        Progress(f"verify {file.name}", len(numbers), 10_000) as progress,
    ):
        for start in numbers[::BATCH]:
            batch = numbers[start : start + BATCH]
            for number, expected in zip(
                batch, pool.map(partial(record_of, images, about.resize), batch), strict=True
            ):
                if packed.source.record(number) != expected:
                    raise UserError(
                        f"{file}: record {number} is not {expected.name} in {images.source.root}"
                    )
                progress.update()
    print(f"{file}: all {len(numbers)} records are those of {images.source.root}")


if __name__ == "__main__":
    main()
