"""Small problems that the tests of the evolutionary search share."""

import numpy as np
import yaml

from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record, Search
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet
from tests.conftest import rng
from utils import checkpoint

# one elastic stage of two ratios; the rest is for a test to say
TINY = {"stages": (8,), "strides": (2,), "activations": ("relu",), "se": (False,)}
TINY |= {"expansions": (3, 4), "classes": 2}
CONFIG = """
dataset: digits
classes: 10
input_size: 16
cuda: false
supernet: elastic
mean: [0.3, 0.3, 0.3]
std: [0.37, 0.37, 0.37]
space: {stages: [8, 16], strides: [2, 2], activations: [relu, h_swish], se: [false, true],
  head: [16, 24], stem_channels: 8, depths: [1, 2], resolutions: [12, 16]}
"""
KEYS = yaml.safe_load(CONFIG)["space"].items()
SPACE = ElasticSpace(classes=10, **{k: tuple(v) if k != "stem_channels" else v for k, v in KEYS})
GENOME = ElasticGenome(SPACE)


def supernet_file(path, seed: int = 0) -> None:
    state = ElasticSupernet(SPACE, rng(seed)).state_dict()
    checkpoint.save(path, {"kind": "supernet", "model": state})


def draws(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def toy_search(selection="hypervolume", predictor="ard", genome=GENOME) -> Search:
    return Search(genome, Objective("flops", genome), predictor, SELECTIONS[selection])


def toy_records(search: Search, genes: np.ndarray) -> list[Record]:
    """The larger the genes, the less the error."""
    errors, costs = 50.0 - genes.sum(axis=1), search.objective(genes)
    rows = map(tuple, genes.tolist())
    return list(map(Record, rows, errors.tolist(), costs.tolist()))


def searched(iterations: int, seed: int = 0, **options) -> Search:
    search = toy_search(**options)
    search.add(toy_records(search, search.doe(12, draws(seed))))
    for iteration in range(iterations):
        proposal = search.propose(4, draws(seed, iteration))
        search.add(toy_records(search, proposal.genes), proposal.predicted.tolist())
    return search


def dice(n, m, sides=8, seed=0):
    """Points on a grid, so that many are equal in one objective or in all."""
    return np.random.default_rng(seed).integers(0, sides, (n, m)).astype(float)
