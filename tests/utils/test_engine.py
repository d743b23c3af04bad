"""Scores of a network."""

import pytest
import torch
from torch.nn import functional as F

from tests.support import CPU, Batches
from utils.engine import evaluate


def test_a_score_counts_right():
    logits = torch.eye(10)[[0, 1, 2, 3]] + torch.linspace(0.09, 0, 10)
    labels = torch.tensor([0, 1, 9, 4])  # right, right, last, among the first five
    batches = Batches([(logits.view(4, 10, 1, 1), labels)])
    score = evaluate(lambda images: images.flatten(1), batches, CPU)
    assert (score.top1, score.top5, score.images) == (50.0, 75.0, 4)
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
