"""Which of its candidates a generator answers with: the one of the best rank, not of nearest cost.

The key `answer_ranking` says by which signals. They are kept in the run folder of the generator, so
that the same question asked again costs nothing.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from model.ranking.combined import WAYS, sum_of_log_ranks
from model.ranking.score_file import By, ScoreFile, Values
from model.ranking.signals import Signals
from model.ranking.training_free import TERMS, TrainingFree
from model.sgnas.answers import Rank
from model.sgnas.supernet_scores import accuracy_of, held_out_images, scored_by
from model.spaces.registry import Problem
from utils.config import Config
from utils.data import load_dataset
from utils.errors import UserError
from utils.runtime import pick_device


def answer_ranking(config: Config, problem: Problem, run: Path | None) -> Rank | None:
    """What ranks candidates `[M, L, E, K]`; None where the config says `none`, as published.

    UserError when it needs the supernet of a run, and `run` is None.
    """
    how = config.answer_ranking
    if how == "none":
        return None
    if run is None:
        needs = "it needs the folder of the run that trained the generator"
        raise UserError(f"answer_ranking: {how}: {needs}; --set answer_ranking=none needs none")
    genome = problem.kind.genome(problem.space)
    signals, by = _signals(how, config, problem, run)
    scores = ScoreFile.open(run / f"answers_{how}.jsonl", by, signals.names)

    def rank(paths: Tensor) -> np.ndarray:
        genes = {genome.spec(row).name: row for row in genome.of_paths(paths)}

        def score(ids: list[str]) -> list[Values]:
            return signals.of_all(np.stack([genes[name] for name in ids]))

        scores.fill(genes, score, "answers")
        names = [genome.spec(row).name for row in genome.of_paths(paths)]
        found = {t: np.array([scores.values[n][t] for n in names]) for t in WAYS[how]}
        return sum_of_log_ranks(found)

    return rank


def _signals(how: str, config: Config, problem: Problem, run: Path) -> tuple[Signals, By]:
    """The signals that a way to rank needs, and what they depend on."""
    by: By = {"unit": problem.unit, "table": problem.table.digest, "noise_seed": config.seed}
    free, accuracy = None, None
    if set(TERMS) & set(WAYS[how]):
        free = TrainingFree(seed=config.seed, device=pick_device(config.cuda))
    if "supernet_loss" in WAYS[how]:
        source = (config.dataset, config.dataset_dir, config.input_size, config.classes)
        images = held_out_images(run, config, load_dataset(*source, strict=config.strict_data))
        by |= scored_by(run, config, images)
        accuracy = accuracy_of(run, problem, config, images)
    return Signals(problem.kind.genome(problem.space), problem.table, free, accuracy), by
