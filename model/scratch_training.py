"""Training a network from scratch with the published recipe and its options (SGNAS, section 4.1)."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from utils.engine import Forwards, Placement, Recipe, Score, Tally, average_norms, evaluate, train_epoch
from utils.loader import Loader
from utils.run_folder import RunFolder
from utils.runtime import Progress


class ScratchTraining:
    """A network, the average of its weights when there is one, and what trains them.

    `move_average(steps)` is called after each step. `forwards` are the passes of a step where they are not just one
    through the network. `batch_size` is that of a step; a run that goes on with another one goes on behind as many
    images.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        described: dict,
        batch_size: int,
        average: nn.Module | None = None,
        move_average: Callable[[int], None] = lambda steps: None,
        forwards: Forwards | None = None,
    ):
        self.network, self.described, self.batch_size = network, described, batch_size
        self.recipe, self.average = replace(recipe, after_step=move_average), average
        self.forwards = forwards or partial(one_pass, network, recipe.place)
        self.epochs, self.tally = 0, Tally()
        self.scores: dict[str, Score] = {}
        self.best_top1 = -1.0

    def state(self) -> dict:
        average_norms(*self._weights().values())
        return {
            **self.described,
            "epoch": self.epochs,
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.recipe.optimizer.state_dict(),
            "scaler": self.recipe.scaler.state_dict(),
            "batch_size": self.batch_size,
            "tally": asdict(self.tally),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        self.recipe.scaler.load_state_dict(state.get("scaler", {}))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scores = {name: Score(**score) for name, score in state["scores"].items()}
        self.epochs, self.tally, self.best_top1 = state["epoch"], Tally(**state["tally"]), state["best_top1"]
        self.tally.steps = self.tally.steps * state.get("batch_size", self.batch_size) // self.batch_size

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> Tally:
        """What is left of an epoch, after the steps in `tally`."""
        self.network.train()
        train_epoch(self.forwards, self.recipe, batches, epoch, self.tally, progress)
        average_norms(*self._weights().values())
        return self.tally

    def _weights(self) -> dict[str, nn.Module]:
        return {"last": self.network} | ({"ema": self.average.module} if self.average is not None else {})

    def score(self, test: Loader) -> dict[str, Score]:
        """Scores of the weights as they are now, by name."""
        self.scores = {
            name: evaluate(one.eval(), test, self.recipe.place, True) for name, one in self._weights().items()
        }
        return self.scores

    def keep_beside(self, run: RunFolder, epochs: int, mirror: str | None) -> None:
        """Checkpoints beside the last: the average; and as `best` the epoch of most test images right, saying so."""
        described = {**self.described, "epoch": epochs}
        if self.average is not None:
            run.save("ema", {**described, "state_dict_ema": self.average.module.state_dict()})
        if self.scores["last"].top1 > self.best_top1:
            self.best_top1 = self.scores["last"].top1
            run.save("best", {**described, "model": self.network.state_dict(), "chosen_by": "test images"}, mirror)


def one_pass(
    network: nn.Module, place: Placement, images: Tensor, labels: Tensor, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pass of an ordinary training step."""
    with place.autocast():
        logits = network(images)
    yield logits, labels


def mixup(alpha: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup (Zhang et al., ICLR 2018): each image of a batch with its neighbour, and labels as probabilities."""
    return v2.MixUp(alpha=alpha, num_classes=classes)
