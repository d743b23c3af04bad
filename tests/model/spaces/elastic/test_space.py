"""Elastic spaces: genes and costs against the published release's numbers."""

from dataclasses import replace

import numpy as np
import pytest

from model.spaces.elastic.kind import KIND
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from tests.conftest import golden
from tests.support import SMALL_ELASTIC, parameters
from utils.errors import UserError

OFA = golden("ofa.json")


@pytest.mark.parametrize(("width", "key"), [(1.0, "configs"), (1.2, "width_1_2")])
def test_costs_are_the_published_ones_to_the_last_digit(width, key):
    space, entries = ElasticSpace(width=width), OFA[key]
    genes = [space.encode(KIND.parse(entry["config"])) for entry in entries]
    macs, weights = space.costs(np.array(genes))
    assert macs.tolist() == [entry["macs"] for entry in entries]
    assert weights.tolist() == [entry["params"] for entry in entries]


def test_costs_of_a_small_space_are_those_of_the_built_networks():
    genes = SMALL_ELASTIC.sample(6, np.random.default_rng(0))
    for row, weights in zip(genes, SMALL_ELASTIC.costs(genes)[1], strict=True):
        network = MobileNetV3.of(SMALL_ELASTIC, SMALL_ELASTIC.decode(row))
        assert parameters(network) == weights


def test_genes_are_the_published_encoding():
    space = ElasticSpace()
    for entry in OFA["configs"]:
        assert space.encode(KIND.parse(entry["config"])) == entry["encode"]
    for entry in OFA["round_trip"]:
        assert space.decode(entry["x"]).to_json() == entry["config"]
        assert space.encode(space.decode(entry["x"])) == entry["x"]


def test_genes_that_are_not_expressed_are_zero_in_canonical_ones():
    space = ElasticSpace()
    for entry in OFA["non_canonical"]:
        assert space.decode(entry["x"]).to_json() == entry["decoded"]
        assert space.canonical(np.array([entry["x"]]))[0].tolist() == entry["canonical_x"]


def test_samples_are_canonical_and_reach_every_value():
    space = ElasticSpace()
    genes = space.sample(500, np.random.default_rng(0))
    assert (space.canonical(genes) == genes).all()
    assert (genes.max(axis=0) == space.largest_genes).all()
    assert (genes.min(axis=0) == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (0, 2)},
        {"activations": ("relu", "swish")},
        {"expansions": (1, 3)},
        {"kernels": (3, 4)},
        {"depths": ()},
        {"se": (True,)},
    ],
)
def test_an_impossible_space_is_refused(change):
    with pytest.raises(UserError):
        replace(SMALL_ELASTIC, **change)
