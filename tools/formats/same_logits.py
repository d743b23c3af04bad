"""Whether exported networks give the logits of the network itself, and on which images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.loader import Loader, Resized
from utils.stopping import check_stop

Runner = Callable[[Tensor], Tensor]  # images [B, 3, S, S] -> logits [B, classes]

# The largest difference of a logit that rounding explains, as a share of the largest logit of all.
TOLERANCE = 1e-4

# Smaller batches that are tried, too.
FEW = (1, 7)


@dataclass
class Compared:
    """Over the images so far: how many were right, and how far logits were from the expected ones.

    `differences` are the largest ones by batch size, `largest` is the largest expected logit,
    `changed` the number of images of another class. A logit that is NaN differs infinitely.
    """

    images: int = 0
    hits: int = 0
    largest: float = 0.0
    changed: int = 0
    differences: dict[int, float] = field(default_factory=dict)

    def add(self, logits: Tensor, expected: Tensor, labels: Tensor) -> None:
        """Add a batch: `logits` and `expected [B, classes]`, `labels [B]`."""
        best = logits.argmax(dim=1)
        self.images += len(labels)
        self.hits += int((best == labels).sum())
        self.changed += int((best != expected.argmax(dim=1)).sum())
        self.largest = max(self.largest, float(expected.abs().max()))
        self.compare(logits, expected)

    def compare(self, logits: Tensor, expected: Tensor) -> None:
        """Add only how far they are from each other."""
        far, size = float("inf"), len(expected)
        if logits.shape == expected.shape:
            far = float((logits - expected).abs().nan_to_num(nan=far, posinf=far).max())
        self.differences[size] = max(self.differences.get(size, 0.0), far)

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.hits / max(self.images, 1)

    @property
    def difference(self) -> float:
        """The largest, as a share of the largest logit."""
        return self._share(max(self.differences.values()))

    def _share(self, far: float) -> float:
        return far / max(self.largest, 1e-30)

    def check(self, name: str) -> None:
        """UserError when they differ by more than rounding explains."""
        for batch_size, far in self.differences.items():
            if not far <= TOLERANCE * self.largest:
                raise UserError(
                    f"--verify: {name}: at batch size {batch_size} logits differ by {far:.3g}, "
                    f"{self._share(far):.3g} of the largest, allowed are {TOLERANCE:g}; "
                    f"{self.changed} of {self.images} images are of another class; "
                    "nothing is written"
                )


@torch.inference_mode()
def compare(runners: Sequence[Runner], batches: Loader | Resized) -> list[Compared]:
    """Compare all `runners` with the first, on all batches, and at sizes `FEW` on a few images."""
    network, *others = runners
    own, *found = [Compared() for _ in runners]
    bar = tqdm(batches.epoch(), "verify", len(batches), leave=False, disable=None)
    for number, (images, labels) in enumerate(bar):
        check_stop()
        expected = network(images)
        own.add(expected, expected, labels)
        for run, compared in zip(others, found, strict=True):
            compared.add(run(images), expected, labels)
            for few in FEW if number == 0 else ():
                compared.compare(run(images[:few]), expected[:few])
    if not own.images:
        raise UserError("--verify: none of the test images can be read")
    return [own, *found]
