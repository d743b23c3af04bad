"""Latency in elastic spaces: sums over parts under the published keys."""

import numpy as np
import pytest
import torch

from model.costs.latency import Latencies
from model.spaces.elastic.latency import ElasticLatency, fixed_parts, layer_key, parts_of
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from tests.support import SMALL_ELASTIC, latency_file, parameters


def test_latency_is_the_sum_over_layers(tmp_path):
    file = latency_file(tmp_path / "lut.yaml", parts_of(SMALL_ELASTIC))
    genes = SMALL_ELASTIC.extremes()
    depths = [sum(SMALL_ELASTIC.decode(row).d) for row in genes]
    table = ElasticLatency(Latencies.read(file), SMALL_ELASTIC)
    assert table(genes).tolist() == [depth + 5 for depth in depths]


def test_a_table_without_a_key_of_the_space_names_it(tmp_path):
    keys = [key for key in parts_of(SMALL_ELASTIC) if "kernel:7" not in key]
    file = latency_file(tmp_path / "lut.yaml", keys)
    with pytest.raises(ValueError, match=r"lacks MBConv-input:.*kernel:7"):
        ElasticLatency(Latencies.read(file), SMALL_ELASTIC)


def test_the_published_space_has_the_published_keys():
    keys = parts_of(ElasticSpace())
    assert "first_conv-input:224x224x3-output:112x112x16" in keys
    assert "final_expand_layer-input:7x7x160-output:7x7x960" in keys
    assert "MBConv-input:56x56x24-output:28x28x40-expand:6-kernel:5-stride:2-idskip:0-se:1" in keys
    assert "classifier-input:1280-output:1000" in keys


def test_the_parts_of_a_network_hold_its_parameters():
    parts = parts_of(SMALL_ELASTIC)
    for row in SMALL_ELASTIC.sample(5, np.random.default_rng(0)):
        architecture, sizes = SMALL_ELASTIC.decode(row), []
        network = MobileNetV3.of(SMALL_ELASTIC, architecture)
        for block in network.blocks:
            block.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-1]))
        network.eval()(torch.zeros(1, 3, architecture.r, architecture.r))
        assert len(sizes) == len(network.blocks)
        layers = zip(network.layers[1:], sizes[1:], strict=True)
        keys = [*fixed_parts(SMALL_ELASTIC, architecture.r)]
        keys += [layer_key(layer, size) for layer, size in layers]
        assert sum(parameters(parts[key].build()) for key in keys) == parameters(network)


def test_every_part_takes_what_it_says():
    for part in parts_of(SMALL_ELASTIC).values():
        assert part.build().eval()(torch.zeros(1, *part.shape)).isfinite().all()
