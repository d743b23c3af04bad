"""Genes as features, for surrogates that learn from few architectures.

Axes: N architectures, G genes, F features.
"""

import numpy as np
from numpy.typing import NDArray

from model.spaces.contracts import Genes, Genome


def features(genome: Genome, genes: Genes) -> NDArray[np.float64]:
    """Each gene one-hot, and its level: `[N, G]` -> `[N, F]`.

    The level runs from 0 to 1. A gene that is not expressed has no one-hot, and a level of 0.5.
    """
    largest, expressed = genome.largest_genes, genome.expressed(genes)
    values = np.arange(largest.max() + 1)
    one_hot = (genes[:, :, None] == values) & expressed[:, :, None]
    level = np.where(expressed, genes / np.maximum(largest, 1), 0.5)
    return np.concatenate([one_hot[:, values <= largest[:, None]], level], axis=1)
