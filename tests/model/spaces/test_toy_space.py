"""A space is a plug-in: a toy one, defined here alone, goes through all stages and tools."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import pytest
import torch
from torch import nn

import msunas
import post_search
import search
import train_cifar
import validate
from model.costs.counting import count_macs, count_parameters
from model.costs.lookup_table import CostTerms, LookUpTable
from model.layers.blocks import ConvBN, initialise
from model.spaces import registry
from model.spaces.paths import PathKind, PathNetwork, PathSpace, PathSpec, PathSupernet, mixture
from tests.conftest import rng
from tests.support import refused
from tools import export, generate, rank, report
from utils.config import Count, key

# -- the whole plug-in ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyKeys:
    """The key `space` of a config."""

    channels: Count = key(4, "of all layers")


@dataclass(frozen=True)
class ToySpace(PathSpace):
    """Three layers x + convolution(x), each 3x3 or 5x5 or left out, between a stem and a mean."""

    kind: ClassVar[str] = "toy"
    names: ClassVar[tuple[int, ...]] = (3, 5)

    channels: int
    image_size: int
    classes: int

    @cached_property
    def mask(self) -> torch.Tensor:
        return torch.ones(3, 1, 3, dtype=torch.bool)

    def cost_terms(self) -> CostTerms:
        C, pixels = self.channels, self.image_size**2
        weights = [C * C * k * k for k in self.names]
        return CostTerms(
            choice=3 * [[w * pixels for w in weights] + [0]],
            choice_parameters=3 * [[w + 2 * C for w in weights] + [0]],
            base=27 * C * pixels,
            base_parameters=27 * C + 2 * C + (C + 1) * self.classes,
        )


class ToyLayers(nn.Module):
    """All that the supernet and its networks have; `kernels` are those of each layer."""

    def __init__(self, space: ToySpace, kernels, rng: torch.Generator | None):
        super().__init__()
        self.space, C = space, space.channels
        self.stem, self.layers = ConvBN(3, C, 3, activation="relu6"), nn.ModuleList()
        for row in kernels:
            self.layers.append(nn.ModuleDict({str(k): ConvBN(C, C, k) for k in row}))
        self.classifier = nn.Linear(C, space.classes)
        initialise(self, rng or torch.Generator().manual_seed(0))

    def mix(self, x: torch.Tensor, shares) -> torch.Tensor:
        for layer, (row,) in zip(self.layers, shares, strict=True):
            y = mixture(x, row, self.space.names, lambda kernel: layer[str(kernel)])
            x = x if y is None else x + y
        return self.classifier(x.mean(dim=(2, 3)))


class ToyNetwork(PathNetwork, ToyLayers):
    """`network(images) -> logits` of one architecture."""


class ToySupernet(ToyLayers, PathSupernet):
    """`supernet(images, path) -> logits` of a hard path."""

    network_type = ToyNetwork

    def __init__(self, space: ToySpace, rng: torch.Generator | None = None):
        super().__init__(space, 3 * [space.names], rng)


class ToySpec(PathSpec):
    supernet_type = ToySupernet


class ToyKind(PathKind):
    name, keys = "toy", ToyKeys
    space_type, spec_type = ToySpace, ToySpec


# -- what it can do then -------------------------------------------------------------------------

CONFIG = """
dataset: digits
classes: 10
input_size: 8
supernet: toy
space: {channels: 4}
cuda: false
warmup_epochs: 1
search_epochs: 1
epochs: 1
batch_size: 128
validation_paths: 2
bn_recalibration_images: 100
low_flops: 0.02
high_flops: 0.07
target_step: 0.01
target_jitter: 0
eval_step: 0.01
cost_unit: 0.001
pool_size: 2
pool_tolerance: 0.01
log_dir: logs
"""


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch) -> None:
    """A line in KINDS, and a config in the working directory."""
    monkeypatch.setitem(registry.KINDS, "toy", ToyKind())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yml").write_text(CONFIG)


def test_its_costs_are_those_of_its_networks():
    space = ToySpace(4, 8, 10)
    table = LookUpTable(space)
    for path in [*space.sample(4, rng()), *space.extremes()]:
        network = ToyNetwork(space, space.decode(path))
        assert float(table(path)) == pytest.approx(count_macs(network, 8), abs=1e-6)
        assert float(table.parameters_m(path)) == pytest.approx(count_parameters(network))


def test_hard_soft_and_stand_alone_agree():
    supernet, images = ToySupernet(ToySpace(4, 8, 10), rng()).eval(), torch.randn(8, 3, 8, 8)
    hard, soft = supernet.space.sample(1, rng())[0], ToyKind().soft(supernet)
    torch.testing.assert_close(supernet.extract(hard)(images), supernet(images, hard))
    mixed = soft(images, hard.clone().requires_grad_())  # by the statistics of the batch
    torch.testing.assert_close(mixed, supernet.train()(images, hard))


@pytest.mark.slow
def test_it_goes_through_all_stages_and_tools(tmp_path, capsys):
    config = ["--cfg", "toy.yml"]
    search.main([*config, "--dry-run"])
    search.main([*config, "--title", "run"])
    generate.main(["--run", "logs/run", "--flops", "0.03,0.05", "--exact", "--out", "found.json"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["kind"] for row in found] == ["toy", "toy"]
    assert all(abs(row["macs_m"] / row["target"] - 1) < 0.25 for row in found)

    supernet, trained = "logs/run/checkpoints/supernet_best.pth", "logs/net/checkpoints/last.pth"
    train_cifar.main([*config, "--flops", "0.05", "--title", "net", "--inherit", supernet])
    capsys.readouterr()
    validate.main(["--checkpoint", trained, "--json"])
    scored = json.loads(capsys.readouterr().out)
    result = json.loads((tmp_path / "logs/net/result.json").read_text())
    assert scored["top1"] == result["top1"]
    assert scored["macs_m"] == pytest.approx(scored["macs_m_counted"], abs=1e-6)
    stored = json.loads((tmp_path / "logs/net/architecture.json").read_text())
    assert (stored["kind"], stored["space"]["channels"]) == ("toy", 4)

    options = [*config, "--supernet_path", supernet]
    evolution = "--n_doe 6 --n_iter 2 --iterations 1 --vld_size 60 --n_epochs 1 --save evolved"
    msunas.main([*options, *evolution.split()])
    post_search.main([*options, "--expr", "evolved/iter_1.stats", "--save", "chosen"])
    msunas.main([*options, *evolution.replace("evolved", "judged").split()])
    (file, *_) = sorted((tmp_path / "chosen").glob("*/architecture.json"))
    train_cifar.main([*config, "--architecture", str(file), "--title", "chosen"])

    target = str(found[1]["macs_m"])  # of few networks, one that another network has, too
    ranking = "logs/run --out ranking --count 3 --random 1 --seeds 1 --search judged --targets"
    rank.main([*ranking.split(), target])
    results = (tmp_path / "ranking/results.jsonl").read_text()
    lines = [json.loads(line) for line in results.splitlines()]
    assert {line["method"] for line in lines} == {"random", "generator", "msunas"}
    report.main(["logs/run", "logs/net", "evolved", "ranking", "--out", "report.html"])
    assert "0 remarks" in capsys.readouterr().out
    pytest.importorskip("onnxruntime")
    flags = f"--checkpoint {trained} --format onnx --verify --runs 0 --fuse --out net.onnx"
    export.main(flags.split())
    assert (tmp_path / "net.onnx").exists()


def test_what_is_wrong_with_its_config_is_said_as_of_all_kinds(capsys):
    for override, says in {
        "space.channel=3": "toy.yml: space.channel: unknown key; did you mean channels?",
        "low_flops=0.001": "low_flops: 0.001 M; this space reaches",
        "cost=latency latency_table=x.yaml": "latency tables are for other kinds of space",
    }.items():
        line = refused(capsys, search.main, "--cfg", "toy.yml", "--set", *override.split())
        assert says in line
