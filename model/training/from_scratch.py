"""Training from scratch with the published recipe and its options (SGNAS, section 4.1)."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from model.spaces.contracts import NetworkSpec
from model.spaces.registry import costs_of, record_of, save_spec
from utils.data import Dataset
from utils.engine import DeviceContext, Score, evaluate
from utils.errors import UserError
from utils.loader import Augmentation, BatchRecipe, Loader, Normalisation, Resized, loader
from utils.optim import load_optimizer, moving_average
from utils.recipe import (
    EpochMeter,
    Forwards,
    LearningRecipe,
    Recipe,
    average_norms,
    mean_state,
    norms_of_all,
    restore_norms,
    train_epoch,
)
from utils.run_folder import RunFolder
from utils.runtime import Progress, stream


class ScratchTraining:
    """A network, the average of its weights when there is one, and what trains them.

    `move_average(steps)` is called after each step. `forwards` are the passes of a step where they
    are not just one through the network. `batch_size` is that of a step; a run that resumes with
    another one resumes after as many images.
    """

    # what only resuming needs of `state`; the rest is a network that describes itself
    RESUME_KEYS = (
        *("average", "norms", "optimizer", "scaler", "batch_size", "tally", "scores", "best_top1"),
    )

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
        return {
            **self.described,
            "epoch": self.epochs,
            "model": mean_state(self.network),
            "average": mean_state(self.average) if self.average is not None else None,
            "norms": norms_of_all(*self._weights().values()),
            "optimizer": self.recipe.optimizer.state_dict(),
            "scaler": self.recipe.scaler.state_dict(),
            "batch_size": self.batch_size,
            "tally": asdict(self.meter),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.network.load_state_dict(state["model"])
        load_optimizer(self.recipe.optimizer, state["optimizer"])
        self.recipe.scaler.load_state_dict(state.get("scaler", {}))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        restore_norms(state.get("norms", []), *self._weights().values())
        self.scores = {name: Score(**score) for name, score in state["scores"].items()}
        self.epochs, self.best_top1 = state["epoch"], state["best_top1"]
        self.meter = EpochMeter(**state["tally"])
        images = self.meter.steps * state.get("batch_size", self.batch_size)
        self.meter.steps = images // self.batch_size

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
        """All epochs that are left, each scored and logged; the final scores by name of weights.

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


# -- the stage -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScratchRecipe(LearningRecipe, BatchRecipe):
    """The keys by which a network is trained from scratch."""

    dataset: str
    dataset_dir: str
    classes: int
    input_size: int
    network_size: int | None
    se: bool
    activation: str
    dropout: float
    drop_path: float
    inherit: str | None
    autoaugment: bool
    cutout: int
    mixup: float
    ema: float
    compile: bool
    print_freq: int
    path_to_save_scratch: str | None

    def options(self, spec: NetworkSpec) -> dict:
        """The options of a network, besides its architecture."""
        return {name: getattr(self, name) for name in spec.options}

    def network(self, spec: NetworkSpec, inherit: bool = True) -> nn.Module:
        """The network to train, with the weights of `inherit` where that names a file."""
        rng, options = stream(self.seed, "scratch"), self.options(spec)
        if self.inherit is None or not inherit:
            return spec.network(options, rng)
        return spec.inherited(self.inherit, options, rng)

    def read_size(self, spec: NetworkSpec) -> int:
        """The side in pixels at which images are read.

        Small images that a network is to see larger are read as they are.
        """
        return self.input_size if self.network_size else spec.image_size

    def loaders(self, dataset: Dataset) -> tuple[Loader, Loader]:
        """Training batches, augmented, and test batches."""
        normalise = Normalisation(self.mean, self.std)
        crops = (self.crop_padding, self.horizontal_flip)
        augment = Augmentation(*crops, autoaugment=self.autoaugment, cutout=self.cutout)
        seed = stream(self.seed, "scratch batches").initial_seed()
        how = (normalise, augment, seed, self.num_workers)
        train = loader(dataset.train, self.batch_size, *how)
        test = loader(dataset.test, self.batch_size, normalise, workers=self.num_workers)
        if self.network_size:
            train, test = (Resized(part, self.network_size, "bicubic") for part in (train, test))
        return train, test

    def describe(self, spec: NetworkSpec, names: Sequence[str] | None = None) -> dict:
        """What a checkpoint says of its network and its data, whose classes have these `names`."""
        data = {name: getattr(self, name) for name in ("dataset", "dataset_dir", "network_size")}
        data |= {"mean": list(self.mean), "std": list(self.std), "image_size": self.read_size(spec)}
        data |= {"class_names": list(names)} if names is not None else {}
        return {**record_of(spec), "options": self.options(spec), "data": data}


def check_compiler(wanted: bool, context: DeviceContext) -> None:
    """UserError where a network is to be compiled, and nothing is there to do it."""
    compilers = ("c++", "g++", "clang++")
    if wanted and context.device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError("compile: on a CPU it needs a C++ compiler, and none is there")


def train_from_scratch(
    spec: NetworkSpec,
    network: nn.Module,
    dataset: Dataset,
    recipe: ScratchRecipe,
    run: RunFolder,
    context: DeviceContext,
    provenance: dict,
) -> dict:
    """A run folder's whole training, or what is left of it; returns what `result.json` says.

    On all training images; `provenance` is what `architecture.json` says of where the architecture
    comes from.
    """
    costs = costs_of(spec, network, recipe.network_size or spec.image_size)
    run.write_once("architecture.json", lambda file: save_spec(file, spec, costs, provenance))
    described = recipe.describe(spec, dataset.names)
    scores = _train(network.to(context.device), dataset, recipe, run, context, described)
    result = {
        "target": provenance["target"],
        "unit": provenance["unit"],
        **costs,
        **scores["last"].to_dict(),
        "ema": scores["ema"].to_dict() if "ema" in scores else None,
        "epochs": recipe.epochs,
        "checkpoint": str(run.checkpoint("last")),
    }
    run.write_text("result.json", json.dumps(result, indent=1) + "\n")
    return result


def _train(
    network: nn.Module,
    dataset: Dataset,
    recipe: ScratchRecipe,
    run: RunFolder,
    context: DeviceContext,
    described: dict,
) -> dict[str, Score]:
    """All epochs; returns the test scores of the final weights, "last" and maybe "ema"."""
    batches, test = recipe.loaders(dataset)
    file = run.checkpoint("last")
    learning = recipe.build(network.parameters(), len(batches), context, "scratch", file)
    if recipe.mixup:
        learning = replace(learning, mix=mixup(recipe.mixup, recipe.classes))
    network = network.to(memory_format=torch.channels_last) if context.channels_last else network
    average = moving_average(network, recipe.ema) if recipe.ema else None

    def move_average(steps: int) -> None:
        if average is not None:
            average.update_parameters(network)

    def log(epoch: int, means: EpochMeter, scores: dict[str, Score]) -> None:
        last = scores["last"]
        numbers = {"train_loss": means.loss, "train_top1": means.top1, "test_loss": last.loss}
        numbers |= {"top1": last.top1, "top5": last.top5}
        numbers |= {"ema_top1": scores["ema"].top1} if "ema" in scores else {}
        run.log("scratch", epoch, **numbers)

    compiled = torch.compile(network) if recipe.compile else network
    forwards = partial(one_pass, compiled, context)
    parts = (network, learning, described, recipe.batch_size, average, move_average, forwards)
    epochs, every, mirror = recipe.epochs, recipe.print_freq, recipe.path_to_save_scratch
    training = ScratchTraining(*parts)
    return training.train(batches, test, epochs, run, "scratch", every, log, mirror)
