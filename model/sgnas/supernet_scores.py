"""The supernet accuracy of many architectures: validated with the weights of a run's supernet."""

from dataclasses import replace
from pathlib import Path

from model.ranking.score_file import DIGITS, By, ScoreFile, Values
from model.ranking.signals import SUPERNET, supernet_signals
from model.ranking.supernet_accuracy import AccuracyRecipe, SupernetAccuracy
from model.sgnas.runs import supernet_of
from model.spaces.contracts import Choice
from model.spaces.registry import Problem
from utils import checkpoint
from utils.config import Config
from utils.data import Dataset, SearchImages, split_for_search
from utils.engine import DeviceContext
from utils.runtime import pick_device


def held_out_images(run: Path, config: Config, dataset: Dataset) -> SearchImages:
    """The images of a run, all of which that did not train its supernet validate."""
    images = split_for_search(dataset, config.train_portion, config.seed, run / "split.json")
    return replace(images, validate=images.held_out)


def scored_by(run: Path, config: Config, images: SearchImages) -> By:
    """What a score of the run's supernet depends on, for a `ScoreFile`."""
    return {
        "supernet": checkpoint.digest(supernet_of(run))[:DIGITS],
        "images": len(images.validate.labels),
        "norms": config.bn_recalibration_images,
        "seed": config.seed,
    }


def accuracy_of(
    run: Path, problem: Problem, config: Config, images: SearchImages
) -> SupernetAccuracy:
    """What scores architectures with the weights of a run's supernet."""
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = problem.trained_supernet(config, str(supernet_of(run))).to(context.device)
    parts = (problem.kind, supernet, images, config.part(AccuracyRecipe), context)
    return SupernetAccuracy.on_search_images(*parts)


def supernet_scores(
    run: Path,
    problem: Problem,
    config: Config,
    dataset: Dataset,
    choices: dict[str, Choice],
    file: Path,
) -> dict[str, Values]:
    """Top-1 in % and cross entropy of `choices` by their ids, on the run's `held_out_images`.

    Kept in `file`, as `ScoreFile` says; only those that it does not have are scored. Several
    processes share them; all call it.
    """
    images = held_out_images(run, config, dataset)
    scores = ScoreFile.open(file, scored_by(run, config, images), SUPERNET)
    if scores.missing(choices):
        accuracy = accuracy_of(run, problem, config, images)

        def score(ids: list[str]) -> list[Values]:
            found = accuracy.scores([choices[name] for name in ids])
            return [supernet_signals(one) for one in found]

        scores.fill(choices, score, f"{run.name}: supernet accuracy")
    return {name: scores.values[name] for name in choices}
