"""Training a network from scratch with the published recipe and its options (SGNAS, section 4.1)."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from model.build import build_recipe
from utils.config import Config
from utils.engine import Placement, Score, Tally, average_norms, evaluate, train_epoch
from utils.loader import Loader
from utils.optim import moving_average
from utils.run_folder import RunFolder
from utils.runtime import Progress


class ScratchTraining:
    """A network, the average of its weights when there is one, and what trains them."""

    def __init__(
        self,
        network: nn.Module,
        described: dict,
        steps_per_epoch: int,
        config: Config,
        place: Placement,
        checkpoint: Path,
    ):
        self.network = network.to(memory_format=torch.channels_last) if place.channels_last else network
        self.described, self.place = described, place
        self.average = moving_average(network, config.ema) if config.ema else None
        options = {"mix": mixup(config.mixup, config.classes)} if config.mixup else {}
        self.recipe = build_recipe(
            network.parameters(),
            steps_per_epoch,
            config,
            place,
            "scratch",
            checkpoint,
            after_step=self._move_average,
            **options,
        )
        self._compiled = torch.compile(network) if config.compile else network
        self.epochs, self.tally = 0, Tally()
        self.scores: dict[str, Score] = {}
        self.best_top1 = -1.0

    def state(self) -> dict:
        average_norms(*self._weights().values())
        return {
            **self.described,
            "epoch": self.epochs,
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.recipe.optimizer.state_dict(),
            "tally": asdict(self.tally),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.scores = {name: Score(**score) for name, score in state["scores"].items()}
        self.epochs, self.tally, self.best_top1 = state["epoch"], Tally(**state["tally"]), state["best_top1"]

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> Tally:
        """What is left of an epoch, after the steps in `tally`."""
        self.network.train()
        train_epoch(self._forwards, self.recipe, batches, epoch, self.tally, progress)
        average_norms(*self._weights().values())
        return self.tally

    def _forwards(self, images: Tensor, rng: torch.Generator) -> Iterator[Tensor]:
        with self.place.autocast():
            logits = self._compiled(images)
        yield logits

    def _move_average(self) -> None:
        if self.average:
            self.average.update_parameters(self.network)

    def _weights(self) -> dict[str, nn.Module]:
        return {"last": self.network} | ({"ema": self.average.module} if self.average else {})

    def score(self, test: Loader) -> dict[str, Score]:
        """Scores of the weights as they are now, by name."""
        self.scores = {name: evaluate(one.eval(), test, self.place, True) for name, one in self._weights().items()}
        return self.scores

    def keep_beside(self, run: RunFolder, epochs: int, mirror: str | None) -> None:
        """Checkpoints beside the last: the average; and as `best` the epoch of most test images right, saying so."""
        described = {**self.described, "epoch": epochs}
        if self.average:
            run.save("ema", {**described, "model": self.average.module.state_dict()})
        if self.scores["last"].top1 > self.best_top1:
            self.best_top1 = self.scores["last"].top1
            run.save("best", {**described, "model": self.network.state_dict(), "chosen_by": "test images"}, mirror)


def mixup(alpha: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup (Zhang et al., ICLR 2018): each image of a batch with its neighbour, and labels as probabilities."""
    return v2.MixUp(alpha=alpha, num_classes=classes)
