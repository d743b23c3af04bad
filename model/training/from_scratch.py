"""Training a network from scratch with the published recipe and its options (SGNAS, section 4.1)."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from model.spaces.network_spec import NetworkSpec, costs_of
from model.spaces.registry import build_recipe
from utils.config import Config
from utils.data import Dataset
from utils.engine import (
    DeviceContext,
    EpochMeter,
    Forwards,
    Recipe,
    Score,
    average_norms,
    evaluate,
    train_epoch,
)
from utils.errors import UserError
from utils.loader import Augmentation, Loader, Normalisation, Resized, loader
from utils.optim import moving_average
from utils.run_folder import RunFolder
from utils.runtime import Progress, stream


class ScratchTraining:
    """A network, the average of its weights when there is one, and what trains them.

    `move_average(steps)` is called after each step. `forwards` are the passes of a step where they
    are not just one through the network. `batch_size` is that of a step; a run that goes on with
    another one goes on behind as many images.
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
        self.forwards = forwards or partial(one_pass, network, recipe.context)
        self.epochs, self.meter = 0, EpochMeter()
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
            "tally": asdict(self.meter),
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
        self.epochs, self.meter, self.best_top1 = (
            state["epoch"],
            EpochMeter(**state["tally"]),
            state["best_top1"],
        )
        self.meter.steps = (
            self.meter.steps * state.get("batch_size", self.batch_size) // self.batch_size
        )

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> EpochMeter:
        """What is left of an epoch, after the steps in `meter`."""
        self.network.train()
        train_epoch(self.forwards, self.recipe, batches, epoch, self.meter, progress)
        average_norms(*self._weights().values())
        return self.meter

    def train(
        self,
        batches: Loader,
        test: Loader,
        epochs: int,
        run: RunFolder,
        stage: str,
        every: int,
        log: Callable[[int, EpochMeter, dict[str, Score]], None],
        mirror: str | None = None,
    ) -> dict[str, Score]:
        """All epochs that are left, each scored on `test` and logged; the scores of the final
        weights, by name.

        `every` is the number of steps between two lines of progress, `mirror` where `best` is
        copied to.
        """

        def one_epoch(epoch: int) -> None:
            title = f"epoch {epoch + 1}/{epochs}"
            with Progress(title, len(batches), every, self.meter.steps) as progress:
                means = self.epoch(batches, epoch, progress)
            scores = self.score(test)
            shown = ", ".join(f"{name} {score.top1:.2f} %" for name, score in scores.items())
            print(f"{title} loss {means.loss:.4f}, test top-1: {shown}", flush=True)
            log(epoch + 1, means, scores)
            self.keep_beside(run, epoch + 1, mirror)

        run.train(stage, "last", self, epochs, one_epoch)
        return self.scores

    def _weights(self) -> dict[str, nn.Module]:
        return {"last": self.network} | (
            {"ema": self.average.module} if self.average is not None else {}
        )

    def score(self, test: Loader) -> dict[str, Score]:
        """Scores of the weights as they are now, by name."""
        self.scores = {
            name: evaluate(one.eval(), test, self.recipe.context, True)
            for name, one in self._weights().items()
        }
        return self.scores

    def keep_beside(self, run: RunFolder, epochs: int, mirror: str | None) -> None:
        """Checkpoints beside the last: the average; and as `best` the epoch of most test images
        right, saying so.
        """
        described = {**self.described, "epoch": epochs}
        if self.average is not None:
            run.save("ema", {**described, "state_dict_ema": self.average.module.state_dict()})
        if self.scores["last"].top1 > self.best_top1:
            self.best_top1 = self.scores["last"].top1
            run.save(
                "best",
                {**described, "model": self.network.state_dict(), "chosen_by": "test images"},
                mirror,
            )


def one_pass(
    network: nn.Module, context: DeviceContext, images: Tensor, labels: Tensor, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pass of an ordinary training step."""
    with context.autocast():
        logits = network(images)
    yield logits, labels


def mixup(alpha: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup (Zhang et al., ICLR 2018): each image of a batch with its neighbour, and labels as
    probabilities.
    """
    return v2.MixUp(alpha=alpha, num_classes=classes)


# -- the stage -------------------------------------------------------------------------------------


def network_options(spec: NetworkSpec, config: Config) -> dict:
    """What makes the network of an architecture, beside the architecture."""
    return {key: getattr(config, key) for key in spec.names}


def build_network(spec: NetworkSpec, config: Config, inherit: bool = True) -> nn.Module:
    """The network to train; where the config names a supernet to `inherit` from, with its weights."""
    rng, options = stream(config.seed, "scratch"), network_options(spec, config)
    if config.inherit is None or not inherit:
        return spec.network(options, rng)
    return spec.inherited(config.inherit, options, rng)


def check_compiler(config: Config, context: DeviceContext) -> None:
    """UserError where a network is to be compiled, and nothing is there to do it."""
    if (
        config.compile
        and context.device.type == "cpu"
        and not any(map(shutil.which, ("c++", "g++", "clang++")))
    ):
        raise UserError("compile: on a CPU it needs a C++ compiler, and none is there")


def read_size(spec: NetworkSpec, config: Config) -> int:
    """The side in pixels at which images are read: small ones that a network is to see larger are
    read as they are.
    """
    return config.input_size if config.network_size else spec.image_size


def train_from_scratch(
    spec: NetworkSpec,
    network: nn.Module,
    dataset: Dataset,
    config: Config,
    run: RunFolder,
    context: DeviceContext,
    provenance: dict,
) -> dict:
    """A run folder's whole training, or what is left of it; returns what `result.json` says.

    On all training images; `provenance` is what `architecture.json` says of where the architecture
    comes from.
    """
    run.begin(config, context.device)
    costs = costs_of(spec, network, config.network_size or spec.image_size)
    run.write_once("architecture.json", lambda file: spec.save(file, costs, provenance))
    described = {
        **spec.describe(),
        "options": network_options(spec, config),
        "data": {
            "dataset": config.dataset,
            "dataset_dir": config.dataset_dir,
            "mean": list(config.mean),
            "std": list(config.std),
            "image_size": read_size(spec, config),
            "network_size": config.network_size,
        },
    }
    scores = _train(network.to(context.device), dataset, config, run, context, described)
    result = {
        "target": provenance["target"],
        "unit": provenance["unit"],
        **costs,
        **scores["last"].to_dict(),
        "ema": scores["ema"].to_dict() if "ema" in scores else None,
        "epochs": config.epochs,
        "checkpoint": str(run.checkpoint("last")),
    }
    run.write_text("result.json", json.dumps(result, indent=1) + "\n")
    return result


def _train(
    network: nn.Module,
    dataset: Dataset,
    config: Config,
    run: RunFolder,
    context: DeviceContext,
    described: dict,
) -> dict[str, Score]:
    """All epochs; returns the test scores of the final weights, "last" and maybe "ema"."""
    normalise = Normalisation(config.mean, config.std)
    augment = Augmentation(
        config.crop_padding,
        config.horizontal_flip,
        autoaugment=config.autoaugment,
        cutout=config.cutout,
    )
    seed = stream(config.seed, "scratch batches").initial_seed()
    batches = loader(dataset.train, config.batch_size, normalise, augment, seed, config.num_workers)
    test = loader(dataset.test, config.batch_size, normalise, workers=config.num_workers)
    if config.network_size:
        batches, test = (Resized(part, config.network_size, "bicubic") for part in (batches, test))
    recipe = build_recipe(
        network.parameters(), len(batches), config, context, "scratch", run.checkpoint("last")
    )
    if config.mixup:
        recipe = replace(recipe, mix=mixup(config.mixup, config.classes))
    network = network.to(memory_format=torch.channels_last) if context.channels_last else network
    average = moving_average(network, config.ema) if config.ema else None
    training = ScratchTraining(
        network,
        recipe,
        described,
        config.batch_size,
        average,
        (lambda steps: average.update_parameters(network))
        if average is not None
        else lambda steps: None,
        partial(one_pass, torch.compile(network) if config.compile else network, context),
    )

    def log(epoch: int, means: EpochMeter, scores: dict[str, Score]) -> None:
        numbers = {
            "train_loss": means.loss,
            "train_top1": means.top1,
            "test_loss": scores["last"].loss,
        }
        numbers |= {"top1": scores["last"].top1, "top5": scores["last"].top5}
        run.log(
            "scratch",
            epoch,
            **numbers,
            **({"ema_top1": scores["ema"].top1} if "ema" in scores else {}),
        )

    mirror = config.path_to_save_scratch
    return training.train(
        batches, test, config.epochs, run, "scratch", config.print_freq, log, mirror
    )
