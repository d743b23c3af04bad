"""The supernet accuracy of many architectures: validated with the weights of a run's supernet."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.ranking.score_file import DIGITS, ScoreFile, Values
from model.ranking.supernet_accuracy import AccuracyRecipe, SupernetAccuracy
from model.sgnas.runs import supernet_of
from model.spaces.registry import Problem
from utils import checkpoint
from utils.config import Config
from utils.data import Dataset, split_for_search
from utils.engine import DeviceContext
from utils.runtime import pick_device


def supernet_scores(
    run: Path,
    problem: Problem,
    config: Config,
    dataset: Dataset,
    paths: dict[str, Tensor],
    file: Path,
) -> dict[str, float]:
    """Top-1 in % of paths `[L, E, K]` by their ids, on all images that did not train the supernet.

    Kept in `file`, as `ScoreFile` says; only paths that it does not have are scored. Several
    processes share them; all call it.
    """
    weights = supernet_of(run)
    images = split_for_search(dataset, config.train_portion, config.seed, run / "split.json")
    images = replace(images, validate=images.held_out)
    by = {"supernet": checkpoint.digest(weights)[:DIGITS], "images": len(images.validate.labels)}
    by |= {"norms": config.bn_recalibration_images, "seed": config.seed}
    scores = ScoreFile.open(file, by)
    if scores.missing(paths):
        context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
        supernet = problem.trained_supernet(config, str(weights)).to(context.device)
        parts = (problem.kind, supernet, images, config.part(AccuracyRecipe), context)
        accuracy = SupernetAccuracy.on_search_images(*parts)

        def score(ids: list[str]) -> list[Values]:
            top1 = accuracy.top1_of_all(torch.stack([paths[name] for name in ids]))
            return [{"top1": value} for value in top1]

        scores.fill(paths, score, f"{run.name}: supernet accuracy")
    return {name: scores.values[name]["top1"] for name in paths}
