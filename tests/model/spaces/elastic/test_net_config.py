"""`net.config`, the published description of a MobileNetV3."""

import copy
import json

import pytest
import torch

from model.spaces.elastic.kind import KIND
from model.spaces.elastic.net_config import NetConfigSpec, net_config, network_of, published_files
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from tests.conftest import golden, rng
from tests.support import SMALL_ELASTIC, shapes
from utils import checkpoint
from utils.errors import UserError

SUBNETS = golden("ofa.json")["subnets"]


@pytest.fixture
def config() -> dict:
    """Of the smallest network of a small space."""
    smallest = SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[0])
    return net_config(MobileNetV3.of(SMALL_ELASTIC, smallest))


@pytest.mark.parametrize(
    "entry", SUBNETS, ids=lambda entry: f"architecture {entry['config_index']}"
)
def test_it_is_written_as_published_and_read_in_both_spellings(entry):
    space = ElasticSpace()
    network = MobileNetV3.of(space, KIND.architecture(space, entry["config"]))
    assert shapes(network) == {key: shape for key, shape, _ in entry["state_dict"]}
    assert net_config(network) == entry["net_config_ofa004"]
    assert json.loads(published_files(network)["net.config"]) == entry["net_config_ofa004"]
    for spelling in ("net_config_ofa004", "net_config_ofa010"):
        assert shapes(network_of(entry[spelling])) == shapes(network)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["classifier", "out_features"], 0, "out_features is 0; it must be at least 1"),
        (
            ["classifier", "dropout_rate"],
            1,
            "dropout_rate is 1.0; it must be at least 0 and below 1",
        ),
        (["blocks"], [], "it has no blocks"),
        (["blocks", 1, "mobile_inverted_conv"], None, "neither mobile_inverted_conv nor conv"),
        (["blocks", 1, "mobile_inverted_conv", "act_func"], "swish", "act_func 'swish' is unknown"),
        (["blocks", 1, "mobile_inverted_conv", "stride"], "2", r"blocks.*stride"),
        (["blocks", 0, "shortcut"], None, "a shortcut where its shapes have no residual, or none"),
        (["bn"], {}, "momentum"),
    ],
)
def test_a_wrong_value_is_named(config, path, value, says):
    *parents, last = path
    record = wrong = copy.deepcopy(config)
    for name in parents:
        record = record[name]
    record[last] = value
    with pytest.raises(UserError, match=rf"^net\.config: not the description of .*{says}"):
        network_of(wrong)


def test_a_file_may_say_its_image_size(config, tmp_path):
    file = tmp_path / "net.config"
    for config["img_size"], given, size in ((None, None, 224), (48, None, 48), (48, 32, 32)):
        file.write_text(json.dumps(config))
        assert NetConfigSpec.load(file, given).image_size == size
    file.write_text(json.dumps({**config, "blocks": []}))
    with pytest.raises(UserError, match=r"net\.config: no network description .*it has no blocks"):
        NetConfigSpec.load(file)


def test_classes_may_change_and_weights_of_other_classes_keep_all_but_the_classifier(
    config, tmp_path
):
    spec = NetConfigSpec.of(config, 16).with_classes(3)
    assert spec.classes == 3
    source = network_of(config, rng=rng(1))
    checkpoint.save(tmp_path / "net.inherited", {"state_dict": source.state_dict()})
    network = spec.inherited(str(tmp_path / "net.inherited"), {})
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    first = "first_conv.conv.weight"
    assert network.state_dict()[first].equal(source.state_dict()[first])
    assert spec.fitted_to(source.state_dict()).classes == 5
