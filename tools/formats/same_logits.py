"""Whether exported networks say what the network itself says, on which images they are right, and
how fast they are.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.loader import Loader, Resized
from utils.stopping import check_stop

Runner = Callable[[Tensor], Tensor]  # images [B, 3, S, S] -> logits [B, classes]

# The largest difference of a logit that rounding explains, as a share of the largest logit of all
# images.
TOLERANCE = 1e-4

# Smaller batches that are tried, too.
FEW = (1, 7)

WARM_UP, IN_A_ROW = 3, 10  # runs that do not count, and that do


@dataclass
class Compared:
    """Over the images so far: how many were right, and how far logits were from those they are
    compared with.

    `differences` are the largest ones by batch size, `largest` is the largest logit of the network
    itself, `changed` the number of images of another class. A logit that is no number makes a
    difference infinite.
    """

    images: int = 0
    hits: int = 0
    largest: float = 0.0
    changed: int = 0
    differences: dict[int, float] = field(default_factory=dict)

    def add(self, logits: Tensor, expected: Tensor, labels: Tensor) -> None:
        """A batch: `logits` and `expected [B, classes]`, `labels [B]`."""
        best = logits.argmax(dim=1)
        self.images += len(labels)
        self.hits += int((best == labels).sum())
        self.changed += int((best != expected.argmax(dim=1)).sum())
        self.largest = max(self.largest, float(expected.abs().max()))
        self.compare(logits, expected)

    def compare(self, logits: Tensor, expected: Tensor) -> None:
        """Only how far they are from each other."""
        far = (
            float((logits - expected).abs().max())
            if logits.shape == expected.shape
            else float("inf")
        )
        far = far if far < float("inf") else float("inf")  # not a number compares with nothing
        self.differences[len(expected)] = max(self.differences.get(len(expected), 0.0), far)

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.hits / max(self.images, 1)

    @property
    def difference(self) -> float:
        """The largest, as a share of the largest logit."""
        return max(self.differences.values()) / max(self.largest, 1e-30)

    def check(self, name: str) -> None:
        """UserError when they differ by more than rounding explains."""
        for batch_size, far in self.differences.items():
            if not far <= TOLERANCE * self.largest:
                raise UserError(
                    f"--verify: {name}: at batch size {batch_size} logits differ by {far:.3g}, "
                    f"{far / max(self.largest, 1e-30):.3g} of the largest, allowed are {TOLERANCE:g}; "
                    f"{self.changed} of {self.images} images are of another class; nothing is written"
                )


@torch.inference_mode()
def compare(
    network: Runner, others: dict[str, Runner], batches: Loader | Resized
) -> tuple[Compared, dict[str, Compared]]:
    """What `network` and `others`, by name, say of all batches; of the first one's beginning also
    at sizes `FEW`.
    """
    own, found = Compared(), {name: Compared() for name in others}
    for number, (images, labels) in enumerate(
        tqdm(batches.epoch(), "verify", len(batches), leave=False, disable=None)
    ):
        check_stop()
        expected = network(images)
        own.add(expected, expected, labels)
        for name, run in others.items():
            found[name].add(run(images), expected, labels)
            for few in FEW if number == 0 else ():
                found[name].compare(run(images[:few]), expected[:few])
    if not own.images:
        raise UserError("--verify: none of the test images can be read")
    return own, found


@torch.inference_mode()
def latencies(runners: list[Runner], image: Tensor, runs: int) -> list[float]:
    """Medians in ms for `image [1, 3, S, S]`.

    They take turns, so that what disturbs the machine disturbs them all; each runs `IN_A_ROW` times
    behind `WARM_UP` that do not count, since threads of the one before are still awake for a while.
    """
    times: list[list[float]] = [[] for _ in runners]
    for done in range(0, runs, IN_A_ROW):
        check_stop()
        for run, own in zip(runners, times, strict=True):
            for _ in range(WARM_UP):
                run(image)
            for _ in range(min(IN_A_ROW, runs - done)):
                began = time.perf_counter()
                run(image)
                own.append(1000 * (time.perf_counter() - began))
    return [statistics.median(own) for own in times]
