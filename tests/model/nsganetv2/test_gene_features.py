"""Features of genes, by eye."""

import numpy as np

from model.nsganetv2.gene_features import features
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.space import ElasticSpace
from tests.model.nsganetv2.problems import SPACE, TINY


def test_features_are_one_hot_and_levels_and_say_nothing_of_layers_that_are_not_there():
    choices = {"depths": (1, 2), "kernels": (3, 5), "resolutions": (8, 12)}
    genome = ElasticGenome(ElasticSpace(**TINY | choices))
    # depth, 2 kernels, 2 ratios, size
    shallow, deep = np.array([[0, 1, 0, 0, 0, 1]]), np.array([[1, 1, 0, 0, 1, 1]])
    assert genome.expressed(shallow).tolist() == [[True, True, False, True, False, True]]
    levels = [0, 1, 0.5, 0, 0.5, 1]
    assert features(genome, shallow).tolist() == [[1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, *levels]]
    levels = [1, 1, 0, 0, 1, 1]
    assert features(genome, deep).tolist() == [[0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, *levels]]


def test_no_two_architectures_have_the_same_features():
    genome = ElasticGenome(SPACE)
    genes = genome.sample(300, np.random.default_rng(0))
    assert len(np.unique(features(genome, genes), axis=0)) == len(np.unique(genes, axis=0))
