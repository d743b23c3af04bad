"""Exported networks have the network's logits, in other runtimes; others are not written."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.layers.bn_folding import folded, plain
from model.spaces.elastic.net_config import net_config
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellNetwork
from model.spaces.registry import load_spec, spec_of_record
from model.spaces.unified.network import SubNet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.conftest import SMALL_SPACES, mixed_space, rng
from tests.support import SMALL_ELASTIC, refused
from tools import export
from tools.formats import onnx_file, program_file, timm_module
from tools.formats.same_logits import Compared
from utils.errors import UserError
from utils.images import ImageData

with_onnx = partial(pytest.importorskip, reason="needs onnx and onnxruntime")
CELLS = CellSpace(channels=4, cells=1, image_size=10, classes=5)  # 10, 5 and 3 pixels


@torch.no_grad()
def lively(network: nn.Module, size: int) -> nn.Module:
    """With random weights and statistics; each part has an effect on images of `size` pixels."""
    random = rng(3)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.weight.normal_(0, part.weight[0].numel() ** -0.5, generator=random)
            if part.bias is not None:
                part.bias.normal_(0, 0.3, generator=random)
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.normal_(1, 0.3, generator=random)
        norm.bias.normal_(0, 0.3, generator=random)
    network.train()(pictures(16, size))
    for norm in norms:
        norm.momentum = 0.1
        spread = norm.running_var.sqrt()
        norm.running_mean.add_(0.3 * spread * torch.randn(spread.shape, generator=random))
        norm.running_var.mul_(0.5 + torch.rand(spread.shape, generator=random))
    return network.eval()


def pictures(count: int, size: int) -> torch.Tensor:
    """Random images `[count, 3, size, size]` that differ as wholes."""
    grain, tint = ((count, 3, size, size), rng()), ((count, 3, 1, 1), rng(1))
    grain, tint = (torch.randn(shape, generator=random) for shape, random in (grain, tint))
    return grain + 2 * tint


def unified(space: UnifiedSpace, **options) -> list[nn.Module]:
    """The smallest and the largest network of a space, and two at random."""
    paths = [*space.extremes(1), *space.sample(2, rng(1))]
    networks = [SubNet(space, space.decode(path), **options) for path in paths]
    return [lively(network, space.image_size) for network in networks]


def elastic() -> list[nn.Module]:
    space = SMALL_ELASTIC
    genes = [*space.extremes(), *space.sample(3, np.random.default_rng(2))]
    return [lively(MobileNetV3.of(space, space.decode(row)), 16) for row in genes]


def cells() -> list[nn.Module]:
    return [lively(CellNetwork(CELLS, CELLS.decode(path)), 10) for path in CELLS.sample(3, rng(5))]


UNIFIED = {
    f"{name}, {said}": (name, options)
    for name in SMALL_SPACES
    for said, options in {"relu6": {}, "se, hswish": {"se": True, "activation": "hswish"}}.items()
}


@pytest.fixture(params=[*UNIFIED, "elastic", "cells"])
def networks(request) -> list[tuple[nn.Module, int]]:
    """Networks of a space, and the pixels that each sees."""
    if request.param == "elastic":
        return [(network, 16) for network in elastic()]
    if request.param == "cells":
        return [(network, 10) for network in cells()]
    name, options = UNIFIED[request.param]
    space = SMALL_SPACES[name]()
    return [(network, space.image_size) for network in unified(space, **options)]


@torch.inference_mode()
def assert_same(network: nn.Module, run, size: int, tolerance: float = 1e-5) -> None:
    """At batch sizes that the exporter did not see, too; of the largest logit."""
    images = pictures(7, size)
    expected = network(images)
    assert expected.std(dim=0).max() > 1e-2 * expected.abs().max(), "all images look the same"
    for count in (7, 1, 2):
        far = (run(images[:count]) - expected[:count]).abs().max()
        assert far <= tolerance * expected.abs().max()


def about(network: nn.Module) -> dict:
    *_, last = (module for module in network.modules() if isinstance(module, nn.Linear))
    return {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 2.0], "classes": last.out_features}


def as_timm(file: Path, network: nn.Module, size: int, view: str | None = None):
    """Write a network as a module of timm; returns what runs it."""
    timm_module.write(file, network, size, about(network), view)
    return timm_module.runner(file)


# -- folding ---------------------------------------------------------------------------------------


def test_folding_changes_no_logit_and_leaves_no_norm_behind_a_convolution(networks):
    for network, size in networks:
        before = {key: value.clone() for key, value in network.state_dict().items()}
        kinds = {type(module) for module in network.modules()}
        left = isinstance(network, CellNetwork)
        for other, norms in ((plain(network), None), (folded(network), left)):
            assert_same(network, other, size)
            assert all(type(m) is nn.Conv2d for m in other.modules() if isinstance(m, nn.Conv2d))
            found = sum(isinstance(module, nn.BatchNorm2d) for module in other.modules())
            assert norms is None or found == norms, "the last norm of cells comes behind a sum"
        assert all(before[key].equal(value) for key, value in network.state_dict().items())
        assert {type(module) for module in network.modules()} == kinds, "it is as it was"


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("change", [plain, folded])
def test_onnx_files_give_the_same_logits(networks, change, tmp_path):
    onnx, _ = with_onnx("onnx"), with_onnx("onnxruntime")
    for network, size in networks if change is folded else networks[:1]:
        file, texts = tmp_path / "net.onnx", {"name": "a b", "mean": [0.5]}
        onnx_file.write(file, change(network), size, 15, texts)
        model = onnx.load(file)
        [images] = model.graph.input
        assert images.name == "images"
        assert images.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert [output.name for output in model.graph.output] == ["logits"]
        assert model.opset_import[0].version == 15
        found = {entry.key: entry.value for entry in model.metadata_props}
        assert found == {"name": "a b", "mean": "[0.5]"}
        if change is folded and not isinstance(network, CellNetwork):
            kinds = {node.op_type for node in model.graph.node}
            assert not {"BatchNormalization", "MatMul", "Transpose"} & kinds
        assert_same(network, onnx_file.runner(file), size)


@pytest.mark.slow
def test_programs_give_the_same_logits(networks, tmp_path):
    for network, size in networks[2:3]:
        program_file.write(tmp_path / "net.pt2", folded(network), size, {"a": 1})
        assert_same(network, program_file.runner(tmp_path / "net.pt2"), size)


def test_modules_of_timm_give_the_same_logits_and_count_their_features(networks, tmp_path):
    for network, size in networks:
        if isinstance(network, CellNetwork):
            with pytest.raises(UserError, match=r"^--format timm: timm has no network like Cell"):
                as_timm(tmp_path / "net.py", network, size)
            continue
        assert_same(network, as_timm(tmp_path / "net.py", network, size), size)


@pytest.mark.slow
def test_networks_of_the_published_spaces_are_timm_s_to_the_last_digits(imagenet_space, tmp_path):
    """In double precision: deep random networks amplify the rounding of single precision."""
    mobile, genes = ElasticSpace(width=1.2), ElasticSpace().sample(1, np.random.default_rng(0))[0]
    path = imagenet_space.sample(1, rng())[0]
    for network in (
        SubNet(imagenet_space, imagenet_space.decode(path), se=True, activation="hswish"),
        MobileNetV3.of(mobile, mobile.decode(genes)),
    ):
        network, images = lively(network, 64), pictures(2, 64).double()
        other = as_timm(tmp_path / "net.py", network, 64, "bicubic").double()
        assert "set_width" not in (tmp_path / "net.py").read_text(), "widths of timm need no code"
        with torch.inference_mode():
            expected = network.double()(images)
            for run in (other, folded(network)):
                assert (run(images) - expected).abs().max() < 1e-9 * expected.abs().max()


def test_a_first_block_as_wide_as_the_stem_gets_no_residual(tmp_path):
    layers = (LayerSpec(8, 8, 1, 2, (3, 5), may_vanish=True), LayerSpec(8, 8, 2, 3, (3,)))
    for network in unified(UnifiedSpace(layers, 8, 5, 8, 2, 8, 16)):
        run = as_timm(tmp_path / "net.py", network, 8)
        assert "set_width" not in (tmp_path / "net.py").read_text(), "widths of timm need no code"
        assert_same(network, run, 8)


def test_a_network_that_strides_further_than_timm_is_not_dilated(tmp_path):
    layers = tuple(LayerSpec(8, 8, 2, 2, (3, 5)) for _ in range(5))
    space = UnifiedSpace(layers, 128, 5, 8, 2, 8, 16)
    network = unified(space)[2]
    assert_same(network, as_timm(tmp_path / "net.py", network, 128), 128)
    steep = UnifiedSpace((LayerSpec(8, 8, 3, 2, (3,)),), 9, 5, 8, 2, 8, 16)
    with pytest.raises(UserError, match=r"^--format timm: a block has a stride of 3; timm's have"):
        as_timm(tmp_path / "net.py", unified(steep)[0], 9)


NAMES = ["two-words", "class", "json", "torch", "resnet18", "Network", "nn", "1st"]


@pytest.mark.parametrize("name", NAMES)
def test_a_module_of_timm_has_a_name_of_its_own(name, tmp_path):
    with pytest.raises(UserError, match=r"Python cannot import this name|means something else"):
        as_timm(tmp_path / f"{name}.py", elastic()[0], 16)
    assert not list(tmp_path.iterdir())


# -- elsewhere -------------------------------------------------------------------------------------


def foreign(folder: Path, code: str) -> str:
    """What `code` prints in a process in `folder` that cannot import this project."""
    lines = ["import sys", f"sys.path.insert(0, {str(folder)!r})", code]
    lines += [f"assert {str(Path(export.__file__).parents[1])!r} not in sys.path"]
    lines += ["assert not {'model', 'utils', 'tools'} & set(sys.modules)"]
    command = [sys.executable, "-I", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_timm_builds_the_networks_in_a_process_without_this_project(tmp_path):
    expected = {}
    for name, network, size in (
        ("found", unified(mixed_space(se=True))[2], 12),
        ("narrow", unified(mixed_space(), activation="hswish")[0], 12),
        ("mobile", elastic()[1], 20),
    ):
        timm_module.write(tmp_path / f"{name}.py", network, size, about(network), None)
        images = pictures(2, size)
        with torch.inference_mode():
            expected[name] = (images, network(images))
    torch.save(expected, tmp_path / "expected.pth")
    found = foreign(tmp_path, """
import torch, timm, importlib
for name, (images, logits) in torch.load("expected.pth").items():
    importlib.import_module(name)
    network = timm.create_model(name, pretrained=True).eval()
    with torch.inference_mode():
        assert (network(images) - logits).abs().max() <= 1e-5 * logits.abs().max(), name
    body = timm.create_model(name, pretrained=True, features_only=True).eval()
    info = body.feature_info
    for maps, channels, less in zip(body(images), info.channels(), info.reduction()):
        size = -(-images.shape[2] // less)
        assert maps.shape[1] == channels and maps.shape[2] == size, (name, maps.shape, less)
    assert len(body(images)) == len(info.channels()) >= 2
    rates = {"drop_rate": 0.2, "drop_path_rate": 0.1}
    few = timm.create_model(name, pretrained=True, num_classes=3, **rates)
    state, other = few.state_dict(), network.state_dict()
    changed = {key for key in state if key not in other or state[key].shape != other[key].shape
               or not state[key].equal(other[key])}
    assert few(images).shape == (2, 3) and changed == {"classifier.weight", "classifier.bias"}
    network.reset_classifier(0)
    assert network(images).ndim == 2
    config = timm.data.resolve_model_data_config(few)
    print(name, *(config[key] for key in ("input_size", "mean", "std", "crop_pct", "crop_mode")))
""")  # fmt: skip
    assert found.splitlines()[2] == "mobile (3, 20, 20) (0.1, 0.2, 0.3) (1.0, 1.0, 2.0) 1.0 squash"


@pytest.mark.slow
def test_pytorch_loads_programs_in_a_process_without_this_project(tmp_path):
    network = unified(mixed_space(se=True), activation="hswish")[2]
    program_file.write(tmp_path / "net.pt2", plain(network), 12, {"mean": [0.5]})
    images = pictures(3, 12)
    with torch.inference_mode():
        torch.save((images, network(images)), tmp_path / "expected.pth")
    foreign(tmp_path, """
import json, torch
images, logits = torch.load("expected.pth")
about = {"network.json": ""}
run = torch.export.load("net.pt2", extra_files=about).module()
for count in (1, 2, 3):
    assert (run(images[:count]) - logits[:count]).abs().max() <= 1e-5 * logits.abs().max()
assert json.loads(about["network.json"]) == {"mean": [0.5]}
""")  # fmt: skip


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(net) -> Path:
    """The run folder of a network, with an average of its weights."""
    return net


@pytest.fixture
def command(trained, tmp_path) -> list[str]:
    checkpoint = ["--checkpoint", f"{trained}/checkpoints/last.pth"]
    return [*checkpoint, "--runs", "2", "--out", str(tmp_path / "out" / "net")]


def table(text: str) -> dict[str, list[str]]:
    """The rows of the printed table, by format."""
    rows = [line.rsplit(maxsplit=4) for line in text.splitlines()[2:]]
    rows = [row for row in rows if len(row) == 5 and ("." in row[-1] or row[-1] == "-")]
    return {row[0].strip(): row[1:] for row in rows}


def out(command: list[str], ending: str) -> list[str]:
    return [*command[:-1], command[-1] + ending]


@pytest.mark.parametrize("name", ["last", "best", "ema"])
def test_a_checkpoint_becomes_a_verified_onnx_file(command, trained, tmp_path, capsys, name):
    onnx, _ = with_onnx("onnx"), with_onnx("onnxruntime")
    command[1] = f"{trained}/checkpoints/{name}.pth"
    export.main([*out(command, ".onnx"), "--format", "onnx", "--verify"])
    printed = capsys.readouterr().out
    rows = table(printed)
    score = json.loads((trained / "result.json").read_text())
    expected = {"last": score["top1"], "best": score["top1"], "ema": score["ema"]["top1"]}[name]
    assert rows["pytorch"][:3] == ["-", f"{expected:.2f}", "-"]
    assert rows["onnx, opset 17"][1] == f"{expected:.2f}"
    assert float(rows["onnx, opset 17"][2]) < 1e-5
    assert "359 test images of digits, at batch sizes 1, 7, 103, 256" in printed
    assert ("chosen by test images" in printed) == (name == "best")
    [file] = (tmp_path / "out").iterdir()
    assert file.name == "net.onnx"
    about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    stored, _ = load_spec(trained / "architecture.json")
    assert spec_of_record(json.loads(about["architecture"])) == stored
    assert (about["image_size"], about["classes"], about["dataset"]) == ("16", "10", "digits")
    assert len(json.loads(about["mean"])) == len(json.loads(about["std"])) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ending", "options"),
    [("torch-export", ".pt2", ["--fuse"]), ("timm", ".py", []), ("torch-export", ".pt2", [])],
)
def test_a_checkpoint_becomes_other_verified_files(
    command, trained, tmp_path, capsys, kind, ending, options
):
    export.main([*out(command, ending), "--format", kind, "--verify", "--images", "50", *options])
    printed = capsys.readouterr().out
    assert "50 test images of digits, at batch sizes 1, 7, 50" in printed
    assert float(table(printed)[kind][2]) < 1e-5
    files = sorted((tmp_path / "out").iterdir())
    names = ["net.py", "net.safetensors"] if kind == "timm" else ["net.pt2"]
    assert [file.name for file in files] == names
    for file in files:
        content = file.read_bytes()
        for place in (tmp_path, trained.parent, Path(export.__file__).parents[1]):
            assert str(place).encode() not in content, "no folder of this machine"


def test_int8_is_calibrated_on_training_images_and_reported_beside_single_precision(
    command, trained, monkeypatch, capsys, tmp_path
):
    onnx, _ = with_onnx("onnx"), with_onnx("onnxruntime")
    seen, quantise = [], onnx_file.quantise
    monkeypatch.setattr(
        onnx_file, "quantise", lambda a, b, batches: (seen.extend(batches), quantise(a, b, seen))
    )
    calibrated = ["--calibration", "100", "--verify"]
    export.main([*out(command, ".onnx"), "--format", "onnx", "--int8", *calibrated])
    rows = table(capsys.readouterr().out)
    single, eight = rows["onnx, opset 17"], rows["the same, int8"]
    assert float(single[2]) < 1e-5 < float(eight[2])
    assert abs(float(eight[1]) - float(single[1])) < 5
    assert len(torch.cat(seen)) == 100
    args = export.parse_arguments([*out(command, ".onnx"), "--format", "onnx"])
    opened = export.open_trained(args)
    batches = opened.batches(opened.training_images(), 2000)
    training = {image.numpy().tobytes() for image in next(batches.epoch())[0]}
    assert {image.contiguous().numpy().tobytes() for image in torch.cat(seen)} <= training
    model = onnx.load(tmp_path / "out" / "net.onnx")
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert "architecture" in {entry.key for entry in model.metadata_props}


FORMATS = [("onnx", ".onnx"), ("torch-export", ".pt2"), ("timm", ".py")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ending"), FORMATS)
def test_what_has_other_logits_is_not_written(command, tmp_path, monkeypatch, capsys, kind, ending):
    mapped = timm_module.mapped

    def tampered(change):
        def tamper(*arguments):
            result = change(*arguments)
            state = result if isinstance(result, dict) else result.state_dict()
            with torch.no_grad():
                state[list(state)[-1]].add_(torch.tensor([0.01] + 9 * [0.0]))
            return result

        return tamper

    if kind == "onnx":
        with_onnx("onnxruntime")
    monkeypatch.setattr(export, "plain", tampered(plain))
    cloned = tampered(lambda *a: {key: value.clone() for key, value in mapped(*a).items()})
    monkeypatch.setattr(timm_module, "mapped", cloned)
    line = refused(capsys, export.main, *out(command, ending), "--format", kind, "--verify")
    assert "at batch size" in line
    assert "logits differ by 0.01" in line
    assert "nothing is written" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_weights_that_know_no_architecture_are_described_by_a_config(
    command, trained, searched, tmp_path, capsys
):
    weights = torch.load(trained / "checkpoints" / "last.pth", weights_only=True)["model"]
    torch.save(weights, tmp_path / "weights.pth")
    command[1] = str(tmp_path / "weights.pth")
    line = refused(capsys, export.main, *out(command, ".pt2"), "--format", "torch-export")
    assert "it does not say its architecture; give --config_path" in line
    config = ["--config_path", f"{searched}/tiny.yml", "--architecture"]
    config += [f"{trained}/architecture.json", "--verify", "--images", "9"]
    export.main([*out(command, ".pt2"), "--format", "torch-export", *config])
    assert "9 test images of digits, at batch sizes 1, 7, 9" in capsys.readouterr().out


def test_a_net_config_with_its_weights(tmp_path, capsys):
    network = elastic()[0]
    torch.save(network.state_dict(), tmp_path / "net.inherited")
    (tmp_path / "net.config").write_text(json.dumps(net_config(network)))
    weights = ["--model", f"{tmp_path}/net.config", "--pretrained", f"{tmp_path}/net.inherited"]
    data = ["--img-size", "16", "--dataset", "cifar10", "--data", "nowhere"]
    line = [*weights, *data, "--format", "timm", "--out", f"{tmp_path}/small_net.py"]
    export.main([*line, "--runs", "0"])
    assert capsys.readouterr().out.splitlines()[2].split() == ["pytorch", "-", "-", "-", "-"]
    assert_same(network, timm_module.runner(tmp_path / "small_net.py"), 16)


REFUSED = {
    "timm --fuse --out a.py": "--fuse: timm's networks have batch norms",
    "timm --out a.pth": "--out a.pth: of timm it is a module; its name must end with .py",
    "timm --out a-b.py": "--out a-b.py: Python cannot import this name",
    "timm --int8 --out a.py": "--int8: it goes with --format onnx",
    "torch-export --opset 17 --out a": "--opset: it goes with --format onnx",
    "onnx --opset 9 --out a": "argument --opset: invalid choice: 9",
    "onnx --images 9 --out a": "--images: it goes with --verify or --int8",
    "torch-export --out .": "--out: .: a file is to be written here, but it is a folder",
    "torch-export --img-size 9 --out a": "--img-size goes with --model",
    "torch-export --out a nowhere --checkpoint b": "b: there is no such checkpoint",
}


@pytest.mark.parametrize(("options", "words"), REFUSED.items())
def test_what_cannot_be_exported_is_refused(command, monkeypatch, tmp_path, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, export.main, *command[:4], "--format", *options.split())
    assert words in line
    assert not list(tmp_path.iterdir())


def test_a_format_is_required(command, capsys):
    line = refused(capsys, export.main, *command[:4], "--out", "a")
    assert "the following arguments are required: --format" in line


def test_without_onnxruntime_one_line_says_how_to_get_it(command, monkeypatch, capsys):
    with_onnx("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(capsys, export.main, *command, "--format", "onnx")
    assert "--format onnx: onnxruntime is not installed; pip install onnx onnxruntime" in line


# -- comparing -------------------------------------------------------------------------------------


def test_differences_are_shares_of_the_largest_logit_of_all_images():
    found, labels = Compared(), torch.tensor([0, 1])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.5]])
    found.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), expected, labels)
    assert (found.images, found.top1, found.changed) == (2, 100.0, 0)
    assert found.difference == pytest.approx(0.5 / 1.5)
    found.add(torch.tensor([[0.0, -5.0]]), torch.tensor([[0.0, 5.0]]), labels[:1])
    assert (found.images, found.changed) == (3, 1)
    assert found.differences == {2: 0.5, 1: 10.0}
    words = r"^--verify: net: at batch size 2 logits differ by 0.5, 0.1 of the largest"
    with pytest.raises(UserError, match=words):
        found.check("net")


@pytest.mark.parametrize("logits", [[[float("nan"), 0.0]], [[float("inf"), 0.0]], [[1.0]]])
def test_logits_that_are_nan_infinite_or_of_another_shape_are_never_the_same(logits):
    found = Compared()
    found.compare(torch.tensor(logits), torch.tensor([[1.0, 0.0]]))
    found.largest = 1.0
    with pytest.raises(UserError, match="differ by inf"):
        found.check("net")


def test_rounding_is_no_difference():
    found = Compared()
    expected = torch.tensor([[100.0, -3.0]])
    found.add(expected + 0.9e-2, expected, torch.tensor([0]))
    found.check("net")


def test_some_images_are_evenly_spread():
    images = ImageData(torch.zeros(10, 3, 1, 1), torch.arange(10))
    assert export.some_of(images, 4).labels.tolist() == [0, 2, 5, 7]
    assert export.some_of(images, 11) is export.some_of(images, None) is images


def test_a_module_of_the_same_size_and_time_is_read_again(tmp_path):
    """As two exports within a second may be."""
    file = tmp_path / "net.py"
    for value in (1, 2):
        file.write_text(f"VALUE = {value}\n")
        os.utime(file, (1e9, 1e9))
        with timm_module.imported(file) as module:
            assert value == module.VALUE
