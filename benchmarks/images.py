"""How fast images are read: a folder and an LMDB file against decoding alone.

    python3 -m benchmarks.images [--count 1000] [--rounds 5] [--folder DIR] [--json FILE]

makes JPEGs of 500x375 pixels, packs them, and reads all of them in random order by 1 and by 2
worker processes: from memory (decoding alone), from the folder and from the LMDB file, each with
the system's cache filled, and, for the latter two, emptied. A round measures all of them in turn;
reported are the medians of rates, and of their ratios to decoding alone in the same round.
"""

import json
import os
import tempfile
from collections import deque
from contextlib import redirect_stdout
from io import BytesIO
from itertools import product
from pathlib import Path
from statistics import median
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from utils import folder2lmdb
from utils.command import Parser, command, positive
from utils.folder2lmdb import lmdb_file, lmdb_images
from utils.images import EncodedImages, image_folder
from utils.runtime import stream
from utils.table import format_table
from utils.timing import seconds_of

SIZE, CLASSES = (500, 375), 10
WORKERS = (1, 2)


class MemorySource:
    """Holds the bytes of the images of a folder, read beforehand."""

    def __init__(self, images: EncodedImages):
        self.root = images.source.root
        self.contents = [Path(path).read_bytes() for path in images.source.paths]

    def name(self, number: int) -> str:
        return f"image {number}"

    def open(self, number: int) -> BinaryIO:
        return BytesIO(self.contents[number])


class Decoded(torch.utils.data.Dataset):
    """The sizes of the images, each decoded for that."""

    def __init__(self, images: EncodedImages):
        self.images = images

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> int:
        return self.images.open(index).size[0]


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--count", type=positive, default=1000, help="images (default 1000)")
    parser.add_argument("--rounds", type=positive, default=5, help="default 5")
    place = "where images go (default: a temporary folder)"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=place)
    numbers = "add the numbers of each round to FILE"
    parser.add_argument("--json", type=Path, metavar="FILE", help=numbers)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        make_images(folder / "train", args.count)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            folder2lmdb.main([str(folder)])
        rounds = measure(folder, args.rounds)
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rounds)
    report(rounds)


def make_images(folder: Path, count: int) -> None:
    """JPEGs of smooth noise with some grain, of about the bytes of photographs of that size."""
    random = np.random.default_rng(0)
    for index in range(count):
        file = folder / str(index % CLASSES) / f"{index}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            grain = random.normal(0, 12, (*SIZE[::-1], 3))
            pixels = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)) + grain
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def measure(folder: Path, rounds: int) -> list[dict]:
    """Images per second of each way to read them, round by round."""
    plain, _ = image_folder(folder / "train", 0, strict=True)
    packed, _ = lmdb_images(lmdb_file(folder, "train"), 0, strict=True)
    in_memory = EncodedImages(MemorySource(plain), plain.index, plain.labels, 0)
    files = [*map(Path, plain.source.paths), packed.source.root]
    found = []
    for number, workers in product(range(rounds), WORKERS):
        row = {"round": number, "workers": workers}
        order = torch.randperm(len(plain.labels), generator=stream(number, "order")).tolist()
        for name, images in (("decoding", in_memory), ("folder", plain), ("lmdb", packed)):
            rate(images, order, workers)  # fills the cache
            row[name] = rate(images, order, workers)
            if name != "decoding":
                forget(files)
                row[f"{name}, cold"] = rate(images, order, workers)
        found.append(row)
    return found


def rate(images: EncodedImages, order: list[int], workers: int) -> float:
    """Images per second, once the workers have started."""
    batches = [order[start : start + 50] for start in range(0, len(order), 50)]
    how = {"batch_sampler": batches, "num_workers": workers}
    loader = iter(torch.utils.data.DataLoader(Decoded(images), **how))
    first = next(loader)
    return (len(order) - len(first)) / seconds_of(lambda: deque(loader, maxlen=0))


def forget(files: list[Path]) -> None:
    """Drop what the system keeps in memory of `files`."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened)
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(rounds: list[dict]) -> None:
    rows = []
    for workers in WORKERS:
        mine = [row for row in rounds if row["workers"] == workers]
        for name in ("decoding", "folder", "lmdb", "folder, cold", "lmdb, cold"):
            speed = median(row[name] for row in mine)
            share = median(row[name] / row["decoding"] for row in mine)
            rows.append([workers, name, f"{speed:.0f}", f"{100 * share:.0f}"])
    print(format_table(["workers", "images from", "images/s", "% of decoding"], rows))


if __name__ == "__main__":
    main()
