"""Spaces of blocks as a kind: records, inherited networks, all stages by the same commands."""

import json

import numpy as np
import pytest
import torch

import msunas
import post_search
import search
import train_cifar
import validate
from model.sgnas.warm_up import supernet_payload
from model.spaces.nasbench_macro.kind import KIND, BlockSpec
from model.spaces.nasbench_macro.space import BlockSpace, from_digits
from model.spaces.nasbench_macro.supernet import BlockSupernet
from model.spaces.registry import load_spec, open_problem, record_of, spec_of_record
from tests.conftest import rng
from tests.model.spaces.nasbench_macro.spaces import SMALL
from tests.support import refused
from tools import export, rank, report, score
from utils import checkpoint
from utils.config import load_config
from utils.errors import UserError

CONFIG = """
dataset: digits
classes: 10
input_size: 8
supernet: nasbench_macro
space: {image_size: 16, widths: [8, 12], depths: [1, 3], strides: [2, 2], stem_channels: 8,
  head_channels: 24}
cuda: false
warmup_epochs: 1
epochs: 1
search_epochs: 1
batch_size: 128
paths_per_step: 1
path_sampling: uniform
lr_scheduler: linear
lr_by_complexity: true
validation_paths: 2
bn_recalibration_images: 128
low_flops: 0.15
high_flops: 0.3
cost_unit: 0.001
cost_tolerance: 0.0001
target_step: 0.01
target_jitter: 0.001
eval_step: 0.05
pool_size: 4
pool_tolerance: 0.1
optim_state: {optimizer: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0005}
log_dir: logs
"""


def test_a_record_of_a_network_is_read_again():
    spec = BlockSpec(SMALL, from_digits(SMALL, "1002"))
    assert spec_of_record(json.loads(json.dumps(record_of(spec)))) == spec
    assert KIND.architecture(SMALL, "1002") == spec.architecture
    assert KIND.architecture(SMALL, [["e2k3"], [None], [None], ["e3k5"]]) == spec.architecture
    assert spec.name == "1020"
    for wrong in ("1030", "10", [["e2k3"]], [["e9k9"]] * 4, 5):
        with pytest.raises(UserError, match="architecture"):
            KIND.architecture(SMALL, wrong)


def test_genes_are_canonical():
    genome = KIND.genome(SMALL)
    genes = genome.canonical(torch.tensor([[0, 2, 2, 1], [2, 2, 2, 0]]).numpy())
    assert genes.tolist() == [[0, 2, 1, 2], [2, 2, 0, 2]]
    assert genome.to_json(genes[0]) == [["e2k3"], [None], ["e3k5"], [None]]
    assert genome.from_json("1020") == genes[0].tolist()
    assert genome.choice(np.array([0, 2, 2, 1])).equal(genome.choice(genes[0]))


def test_a_network_inherits_from_a_supernet_of_its_width(tmp_path):
    spec, images = BlockSpec(SMALL, from_digits(SMALL, "1200")), torch.randn(2, 3, 9, 9)
    supernet, file = BlockSupernet(SMALL, rng()).eval(), tmp_path / "supernet.pth"
    checkpoint.save(file, supernet_payload(supernet, 1))
    network = spec.inherited(str(file), {}).eval()
    expected = supernet(images, SMALL.encode(spec.architecture))
    torch.testing.assert_close(network(images), expected)
    checkpoint.save(file, supernet_payload(BlockSupernet(SMALL, rng(), width=0.5), 1))
    with pytest.raises(UserError, match="its head has 6 channels, the network's 12"):
        spec.inherited(str(file), {})


def test_accuracies_are_known_of_the_published_networks_alone():
    with pytest.raises(UserError, match="the config is of others"):
        KIND.benchmark("t.json", SMALL)


@pytest.mark.slow
def test_it_goes_through_all_stages_and_tools(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocks.yml").write_text(CONFIG)
    search.main(["--cfg", "blocks.yml", "--title", "run"])
    assert len(json.loads((tmp_path / "logs/run/architectures.json").read_text())) == 4
    supernet = "logs/run/checkpoints/supernet_best.pth"
    options = ["--cfg", "blocks.yml", "--supernet_path", supernet]
    evolution = "--n_doe 8 --n_iter 2 --iterations 1 --n_epochs 0 --vld_size 60 --save evolved"
    msunas.main([*options, *evolution.split()])
    post_search.main([*options, "--expr", "evolved/iter_1.stats", "--save", "chosen"])
    file = next((tmp_path / "chosen").glob("*/architecture.json"))
    assert isinstance(load_spec(file)[0], BlockSpec)
    training = ["--cfg", "blocks.yml", "--architecture", str(file), "--title", "trained"]
    train_cifar.main([*training, "--inherit", supernet])
    last = "logs/trained/checkpoints/last.pth"
    validate.main(["--checkpoint", last])
    rank.main(["logs/run", "--count", "2", "--out", "ranking", "--set", "epochs=1"])
    score.main(["logs/run", "--count", "3", "--images", "2", "--out", "scores.jsonl"])
    names = [json.loads(line)["id"] for line in (tmp_path / "scores.jsonl").open()]
    assert all(len(name) == 4 and set(name) <= set("012") for name in names)
    report.main(["logs/run", "logs/trained"])
    export.main(["--checkpoint", last, "--format", "torch-export", "--out", "n.pt2", "--verify"])
    given = ["--checkpoint", last, "--format", "timm", "--out", "n.py"]
    assert "timm has no network like BlockNetwork" in refused(capsys, export.main, *given)
    problem = open_problem(load_config("blocks.yml", ["space.blocks=[[8,3]]"]))
    assert problem.space.names == ("e8k3",)
    assert problem.space != BlockSpace()
