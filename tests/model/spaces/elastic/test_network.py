"""Stand-alone networks of elastic spaces."""

import pytest
import torch

from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticArchitecture
from tests.conftest import rng
from tests.support import SMALL_ELASTIC


def test_a_classifier_is_replaced_and_drop_path_grows_with_depth():
    architecture = ElasticArchitecture((3, 3, 3, 3), (3, 3, 3, 3), (2, 2), 16)
    network = MobileNetV3.of(SMALL_ELASTIC, architecture, drop_path=0.5)
    network.reset_classifier(7, rng())
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    rates = [getattr(block.drop_path, "p", 0.0) for block in network.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.4])  # the first of stage 2 has no residual
