"""Latency tables: sums over parts, expectations over mixtures, generators that answer in
milliseconds.
"""

import json
import sys
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from model.costs.latency_parts import ends, fixed_parts, layer_key, mixed_key, parts_of

import msunas
import search
import train_cifar
from model.costs.latency import Latencies
from model.spaces.elastic.latency import ElasticLatency
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from model.spaces.paths import Architecture
from model.spaces.registry import open_problem
from model.spaces.unified.latency import UnifiedLatency
from model.spaces.unified.network import SubNet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.conftest import TINY_CONFIG, mixed_space, rng
from tests.model.nsganetv2.test_msunas import SPACE
from tests.test_stages import refused
from tools import generate, profile_latency
from utils.config import load_config

LAYERS = (LayerSpec(4, 6, 2, 3, (3, 5)), LayerSpec(6, 6, 1, 3, (5, 7), may_vanish=True))
SMALL = UnifiedSpace(
    LAYERS, 8, 2, stem_stride=1, stem_channels=4, first_channels=4, head_channels=8
)


def write_table(path, space, without="nothing", milliseconds=lambda key: 1.0, **options):
    keys = [key for key in parts_of(space, **options) if without not in key]
    path.write_text(
        "".join(f"'{key}': {{mean: {milliseconds(key)!r}, var: 0.1}}\n" for key in keys)
    )
    return path


@pytest.fixture
def odd_table(tmp_path) -> UnifiedLatency:
    """A table of arbitrary numbers."""
    numbers = torch.rand(1000, generator=rng(), dtype=torch.float64).tolist()
    return UnifiedLatency(
        Latencies.read(
            write_table(tmp_path / "lut.yaml", SMALL, milliseconds=lambda _: numbers.pop())
        ),
        SMALL,
    )


def summed(path_to_table, space: UnifiedSpace, architecture: Architecture) -> float:
    """The naive latency: the entries of an architecture's parts, one by one."""
    entries = yaml.safe_load(path_to_table.read_text())
    keys = [*ends(space, False, "relu6")]
    for spec, kernels, (size, _) in zip(
        space.layers, architecture.kernels, space.sizes, strict=True
    ):
        keys += [mixed_key(spec, kernels, size, False, "relu6")] if kernels else []
    return sum(entries[key]["mean"] for key in keys)


# -- elastic ---------------------------------------------------------------------------------------


def test_latency_is_the_sum_over_layers(tmp_path):
    write_table(tmp_path / "lut.yaml", SPACE)
    genes = SPACE.extremes()
    depths = [sum(SPACE.decode(row).d) for row in genes]
    assert ElasticLatency(Latencies.read(tmp_path / "lut.yaml"), SPACE)(genes).tolist() == [
        depth + 5 for depth in depths
    ]


def test_a_table_without_a_key_of_the_space_names_it(tmp_path):
    write_table(tmp_path / "lut.yaml", SPACE, without="kernel:7")
    with pytest.raises(ValueError, match=r"lacks MBConv-input:.*kernel:7"):
        ElasticLatency(Latencies.read(tmp_path / "lut.yaml"), SPACE)


def test_the_published_space_has_the_published_keys():
    keys = parts_of(ElasticSpace())
    assert "first_conv-input:224x224x3-output:112x112x16" in keys
    assert "final_expand_layer-input:7x7x160-output:7x7x960" in keys
    assert "MBConv-input:56x56x24-output:28x28x40-expand:6-kernel:5-stride:2-idskip:0-se:1" in keys
    assert "classifier-input:1280-output:1000" in keys


# -- unified ---------------------------------------------------------------------------------------


def test_a_path_costs_the_sum_of_its_parts(odd_table, tmp_path):
    paths = SMALL.sample(30, rng())
    naive = [summed(tmp_path / "lut.yaml", SMALL, SMALL.decode(path)) for path in paths]
    torch.testing.assert_close(odd_table(paths), torch.tensor(naive))


def test_the_order_of_sub_blocks_and_vanished_layers(odd_table):
    one, other, gone = (
        SMALL.encode(Architecture.of(rows))
        for rows in (
            [[3, 5, None], [5, 7, 7]],
            [[5, None, 3], [7, 5, 7]],
            [[3, 5, None], [None] * 3],
        )
    )
    assert odd_table(one) == odd_table(other) > odd_table(gone)


def test_a_mixture_costs_what_its_architectures_cost_on_average(odd_table):
    mixture = SMALL.relax(torch.randn(SMALL.shape, generator=rng()), 1.0)
    average = 0.0
    for index in product(range(SMALL.shape[2]), repeat=6):
        path = torch.eye(SMALL.shape[2])[torch.tensor(index)].view(2, 3, -1)
        likelihood = float((mixture * path).sum(dim=-1).prod())
        average += likelihood * float(odd_table(path)) if likelihood else 0.0
    assert float(odd_table(mixture)) == pytest.approx(average, rel=1e-5)


def test_soft_and_hard_paths_agree_where_they_meet(odd_table):
    path = SMALL.sample(5, rng())
    torch.testing.assert_close(odd_table(path.clone().requires_grad_()), odd_table(path))


def test_the_gradient_agrees_with_finite_differences(odd_table):
    table = odd_table.double()
    table.macs.double()
    logits = torch.randn(SMALL.shape, generator=rng(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: table(SMALL.relax(x, 1.0)), logits, eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("min_expansion", [1, 2])
def test_the_reach_is_that_of_all_architectures(odd_table, min_expansion):
    costs = []
    for rows in product(product((None, 3, 5), repeat=3), product((None, 5, 7), repeat=3)):
        architecture = Architecture.of(rows)
        active = list(map(len, architecture.kernels))
        vanished = active[1] == 0 and min_expansion <= 1
        if active[0] >= min_expansion and (active[1] >= min_expansion or vanished):
            costs.append(float(odd_table(SMALL.encode(architecture))))
    assert odd_table.reach(min_expansion) == pytest.approx((min(costs), max(costs)))


def test_batches_of_any_rank(odd_table):
    paths = SMALL.relax(torch.randn(6, *SMALL.shape, generator=rng()), 2.0)
    torch.testing.assert_close(
        odd_table(paths.view(2, 3, *SMALL.shape)), odd_table(paths).view(2, 3)
    )


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("se", [False, True])
def test_the_parts_of_a_unified_network_hold_its_parameters(se):
    space = mixed_space(se=se)
    parts = parts_of(space, se=se, activation="hswish")
    for path in space.sample(5, rng()):
        architecture = space.decode(path)
        keys = [*ends(space, se, "hswish")]
        for spec, kernels, (size, _) in zip(
            space.layers, architecture.kernels, space.sizes, strict=True
        ):
            keys += [mixed_key(spec, kernels, size, se, "hswish")] if kernels else []
        assert sum(map(parameters, (parts[key].build() for key in keys))) == parameters(
            SubNet(space, architecture, se=se, activation="hswish")
        )


def test_the_parts_of_an_elastic_network_hold_its_parameters():
    parts, genes = parts_of(SPACE), SPACE.sample(5, np.random.default_rng(0))
    for row in genes:
        network = MobileNetV3.of(SPACE, SPACE.decode(row))
        whole, seen = parameters(network), []
        hooks = [
            block.register_forward_pre_hook(lambda b, x: seen.append(x[0].shape[-1]))
            for block in network.blocks
        ]
        network.eval()(torch.zeros(1, 3, SPACE.decode(row).r, SPACE.decode(row).r))
        assert len(hooks) == len(seen)
        keys = [*fixed_parts(SPACE, SPACE.decode(row).r)]
        keys += [
            layer_key(layer, size) for layer, size in zip(network.layers[1:], seen[1:], strict=True)
        ]
        assert sum(map(parameters, (parts[key].build() for key in keys))) == whole


@pytest.mark.parametrize("space", [SPACE, SMALL])
def test_every_part_takes_what_it_says(space):
    for part in parts_of(space).values():
        assert part.build().eval()(torch.zeros(1, *part.shape)).isfinite().all()


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


# -- stages ----------------------------------------------------------------------------------------


@pytest.fixture
def timed(tmp_path, monkeypatch) -> list[str]:
    """Options for a search in milliseconds, by an invented table for the tiny space."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yml").write_text(TINY_CONFIG.format(log_dir=tmp_path / "logs"))
    few = ["--runs", "1", "--calibration", "2", "--networks", "3"]
    profile_latency.main(["--cfg", "tiny.yml", "--out", "lut.yaml", *few])
    entries = yaml.safe_load((tmp_path / "lut.yaml").read_text())
    means = {key: 0.1 + 0.05 * key.count("7") + 0.02 * key.count(".") for key in entries}
    invented = {key: {"mean": mean, "var": 0.0} for key, mean in means.items()}
    (tmp_path / "lut.yaml").write_text(yaml.safe_dump(invented))
    keys = ["cost=latency", "latency_table=lut.yaml", "low_flops=0.8", "high_flops=1.2"]
    keys += ["target_step=0.05", "target_jitter=0", "eval_step=0.1", "pool_tolerance=0.1"]
    return ["--cfg", "tiny.yml", "--set", *keys]


def test_a_generator_is_trained_for_milliseconds_and_used(timed, tmp_path, capsys):
    search.main(timed)
    assert "target ms" in capsys.readouterr().out
    found = json.loads((tmp_path / "logs/tiny/architectures.json").read_text())
    assert [row["target"] for row in found] == pytest.approx([0.8, 0.9, 1.0, 1.1, 1.2])
    assert all(0 < row["latency_ms"] != row["macs_m"] for row in found)

    generate.main(
        ["--run", "logs/tiny", "--targets", "0.9,1.1", "--at-most", "--out", "found.json"]
    )
    assert "cost ms" in capsys.readouterr().out
    assert all(
        row["latency_ms"] <= row["target"]
        for row in json.loads((tmp_path / "found.json").read_text())
    )
    profile_latency.main(
        ["--cfg", "tiny.yml", "--lut", "lut.yaml", "--architectures", "found.json", "--runs", "1"]
    )
    assert len(json.loads((tmp_path / "found.latency.json").read_text())["measured_ms"]) == 2
    train_cifar.main([*timed, "epochs=1", "--flops", "0.9", "--architecture", "found.json"])
    assert json.loads((tmp_path / "logs/tiny_0.9ms/result.json").read_text())["target"] == 0.9


def test_a_generator_for_milliseconds_does_not_answer_in_multiply_adds(timed, tmp_path, capsys):
    search.main(timed)
    line = refused(capsys, generate.main, "--cfg", "tiny.yml", "--flops", "0.15")
    assert "holds no run of this space and cost" in line
    text = (tmp_path / "lut.yaml").read_text()
    (tmp_path / "other.yaml").write_text(text.replace("mean: 0.1", "mean: 0.11"))
    elsewhere = [*timed[3:4], "latency_table=other.yaml", *timed[5:]]
    line = refused(
        capsys, generate.main, "--cfg", "tiny.yml", "--targets", "1", "--set", *elsewhere
    )
    assert "holds no run of this space and cost" in line, "another device's table"
    given = ["generator_pretrained=logs/tiny/checkpoints/generator_best_avg.pth"]
    given += ["path_to_prior_pool=logs/tiny/prior_pool.json"]
    line = refused(capsys, generate.main, "--cfg", "tiny.yml", "--flops", "0.15", "--set", *given)
    assert "its targets are in ms; those of the config are in M" in line
    pool = ["path_to_prior_pool=logs/tiny/prior_pool.json", "log_dir=elsewhere"]
    line = refused(capsys, search.main, "--cfg", "tiny.yml", "--set", *pool)
    assert "its marks are no costs in M by this table" in line
    (tmp_path / "found.json").write_text((tmp_path / "logs/tiny/architectures.json").read_text())
    line = refused(
        capsys,
        train_cifar.main,
        "--cfg",
        "tiny.yml",
        "--flops",
        "1",
        "--architecture",
        "found.json",
    )
    assert "found.json: its targets are in ms; those of the config are in M" in line


def test_a_run_keeps_its_table_and_notices_another(timed, tmp_path, capsys):
    search.main(timed)
    assert (tmp_path / "logs/tiny/latency_table.yaml").read_text() == (
        tmp_path / "lut.yaml"
    ).read_text()
    search.main(timed)
    (tmp_path / "lut.yaml").write_text(
        (tmp_path / "lut.yaml").read_text().replace("mean: 0.1", "mean: 0.11")
    )
    assert "latency_table: lut.yaml: it has changed since this run began" in refused(
        capsys, search.main, *timed
    )
    (tmp_path / "lut.yaml").unlink()
    generate.main(["--run", "logs/tiny", "--targets", "1"])


def test_how_good_a_table_is_is_printed_and_kept(timed, tmp_path, capsys):
    few = ["--runs", "2", "--networks", "4"]
    profile_latency.main(["--cfg", "tiny.yml", "--out", "other.yaml", *few])
    assert "mean absolute percentage error" in capsys.readouterr().out
    record = json.loads((tmp_path / "other.yaml.check.json").read_text())
    assert len(record["table_ms"]) == len(record["measured_ms"]) == 4
    ratios = np.divide(record["table_ms"], record["measured_ms"])
    error = 100 * np.abs(ratios - 1).mean()
    assert record["mean absolute percentage error"] == pytest.approx(error, abs=0.01)


def test_the_evolutionary_search_of_a_unified_supernet_in_milliseconds(timed, tmp_path):
    search.main(["--cfg", "tiny.yml"])
    options = [
        "--cfg",
        "tiny.yml",
        "--supernet_path",
        "logs/tiny/checkpoints/supernet_best.pth",
        "--n_epochs",
        "0",
    ]
    options += [
        "--vld_size",
        "20",
        "--n_doe",
        "6",
        "--n_iter",
        "2",
        "--iterations",
        "1",
        "--sec_obj",
        "cpu",
    ]
    msunas.main([*options, "--lut", "lut.yaml", "--save", "found"])
    stats = json.loads((tmp_path / "found/iter_1.stats").read_text())
    space = open_problem(load_config("tiny.yml")).space
    table = UnifiedLatency(Latencies.read("lut.yaml"), space)
    for record, _, cost in stats["archive"]:
        path = space.encode(Architecture.of(record["choices"]))
        assert cost == pytest.approx(float(table(path)), abs=1e-2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cost=latency"], "latency_table: None is not allowed"),
        (["cost=latency", "latency_table=none.yaml"], "latency table none.yaml: cannot be read"),
        (["cost=seconds"], "cost: 'seconds' is not allowed; it must be flops or latency"),
        (["cost=latency", "latency_table=lut.yaml"], "low_flops: 0.1 ms; this space reaches"),
        (
            ["cost=latency", "latency_table=lut.yaml", "eval_step=10"],
            "eval_step: 10.0 is not allowed; it must be at most",
        ),
        (["cost=latency", "latency_table=lut.yaml", "se=true"], "lacks MixConv-input"),
    ],
)
def test_impossible_latencies_are_refused(timed, capsys, overrides, words):
    assert words in refused(capsys, search.main, "--cfg", "tiny.yml", "--set", *overrides)


UNMEASURABLE = {
    "--space unified": "--space unified: --cfg must name its config",
    "--cfg tiny.yml --space elastic": "--cfg tiny.yml describes one of kind unified",
    "--cfg tiny.yml --device nowhere": "--device nowhere:",
    "--cfg tiny.yml --backend tensorrt": "invalid choice: 'tensorrt'",
    "--cfg tiny.yml --width 1.2": "--width: it is for the published space",
    "--set se=true": "--set: it overrides a config; --cfg names none",
}


@pytest.mark.parametrize(("argv", "words"), UNMEASURABLE.items())
def test_what_cannot_be_measured_is_refused(timed, capsys, argv, words):
    assert words in refused(capsys, profile_latency.main, "--out", "other.yaml", *argv.split())


def test_onnxruntime_measures_too(timed, tmp_path):
    pytest.importorskip("onnxruntime")
    few = ["--runs", "1", "--calibration", "1", "--networks", "2", "--backend", "onnxruntime"]
    profile_latency.main(["--cfg", "tiny.yml", "--out", "other.yaml", *few])
    assert json.loads((tmp_path / "other.yaml.check.json").read_text())["backend"] == "onnxruntime"
    space = open_problem(load_config("tiny.yml")).space
    assert UnifiedLatency(Latencies.read("other.yaml"), space).base > 0


def test_onnxruntime_measures_networks_as_they_are_deployed(monkeypatch):
    """Without batch norms, of convolutions that all say so; with the same logits."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    files, session = [], onnxruntime.InferenceSession

    def kept(file, *a, **k):
        files.append(file)
        return session(file, *a, **k)

    monkeypatch.setattr(onnxruntime, "InferenceSession", kept)
    network = SubNet(SMALL, SMALL.decode(SMALL.sample(1, rng(0))[0])).eval()
    images = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        logits = network(images)
    profile_latency.by_onnxruntime(network, images)
    nodes = [node.op_type for node in onnx.load_from_string(files[0]).graph.node]
    assert "BatchNormalization" not in nodes
    assert "MatMul" not in nodes
    found = session(files[0]).run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-4, atol=1e-5)


def test_without_onnxruntime_one_line_says_how_to_get_it(timed, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    argv = ["--cfg", "tiny.yml", "--out", "o.yaml", "--backend", "onnxruntime"]
    line = refused(capsys, profile_latency.main, *argv)
    assert "is not installed; pip install onnx onnxruntime" in line


def test_a_table_is_scaled_by_whole_networks(timed, tmp_path, monkeypatch):
    """Invented times: a part takes a millisecond, and a network twice as its parts."""
    space = open_problem(load_config("tiny.yml")).space

    def networks(measure, parts):
        return np.array([2.0 * (len(part.build().stages) + 4) for part in parts])

    monkeypatch.setattr(profile_latency.Measure, "__call__", lambda measure, part: (1.0, 0.0))
    monkeypatch.setattr(profile_latency.Measure, "networks", networks)
    profile_latency.main(["--cfg", "tiny.yml", "--out", "twice.yaml"])
    record = json.loads((tmp_path / "twice.yaml.check.json").read_text())
    assert record["scale"] == 2
    assert record["mean absolute percentage error"] == pytest.approx(0, abs=1e-3)
    assert UnifiedLatency(Latencies.read("twice.yaml"), space).base == pytest.approx(8)
