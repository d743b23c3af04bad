"""What is shared: small, complete, and as accurate as it says."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import validate
from model.sgnas.answers import ReadyGenerator
from model.sgnas.runs import find_generator, run_config, supernet_of
from model.spaces.elastic.space import ElasticArchitecture, ElasticSpace
from model.spaces.registry import load_spec, open_problem, save_spec, spec_of
from model.trained import open_own
from model.training.from_scratch import ScratchTraining
from tests.support import refused
from tools import draw, release, report
from tools.reporting import figures
from utils import checkpoint
from utils.engine import DeviceContext, evaluate

DIGITS = Path(__file__).parents[2] / "release" / "digits"


def generator_of(run: Path) -> ReadyGenerator:
    config = run_config(run)
    return find_generator(config, open_problem(config), run)


@pytest.fixture(scope="module")
def network(net) -> Path:
    return net


@pytest.fixture(scope="module")
def released(searched, network, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("release")
    release.main([str(searched / "logs" / "tiny"), str(network), "--out", str(out)])
    return out


def test_weights_are_rounded_and_nothing_of_training_is_kept(network, released):
    files = (network / "checkpoints" / "last.pth", released / "net" / "last.pth")
    before, after = map(checkpoint.load, files)
    assert before.keys() - after.keys() == set(ScratchTraining.RESUME_KEYS)
    for key, value in before["model"].items():
        kept = after["model"][key]
        if value.is_floating_point() and value.ndim > 1:
            assert kept.dtype == torch.float16
            assert torch.allclose(kept.float(), value, rtol=2**-10, atol=1e-7)
        else:
            assert kept.equal(value)


def test_a_released_network_validates_and_describes_itself(network, released, capsys):
    record = json.loads((released / "net" / "result.json").read_text())
    validate.main(["--checkpoint", str(released / "net" / "last.pth"), "--json"])
    assert json.loads(capsys.readouterr().out)["top1"] == record["top1"]
    spec, _ = load_spec(released / "net" / "architecture.json")
    assert spec == open_own(released / "net" / "last.pth").spec


def test_a_released_search_generates_what_the_search_did(searched, released):
    targets = torch.tensor([0.12, 0.15, 0.18], dtype=torch.float64)
    runs = (searched / "logs" / "tiny", released / "tiny")
    answers = [generator_of(run).logits(targets) for run in runs]
    assert torch.allclose(*answers, rtol=0.02, atol=0.01)
    config = run_config(released / "tiny")
    open_problem(config).trained_supernet(config, str(supernet_of(released / "tiny")))
    assert str(searched) not in (released / "tiny" / "config.yml").read_text()


@pytest.mark.slow
def test_a_page_can_be_made_of_it(released, tmp_path, capsys):
    report.main(f"{released}/tiny {released}/net --out {tmp_path}/report.html".split())
    assert "0 remarks" in capsys.readouterr().out


def test_a_failure_leaves_nothing_behind(network, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "evaluate", None)
    with pytest.raises(TypeError):
        release.main([str(network), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(network, released, searched, capsys):
    assert "is there already" in refused(capsys, release.main, network, "--out", released)
    said = refused(capsys, release.main, searched, "--out", released / "more")
    assert "there is no such checkpoint" in said
    assert not (released / "more").exists()


# -- ours ------------------------------------------------------------------------------------------


def test_the_release_is_small_and_whole():
    names = {"digits_config", "digits_3M", "digits_5.5M"}
    assert {folder.name for folder in DIGITS.iterdir()} == names
    assert sum(file.stat().st_size for file in DIGITS.rglob("*") if file.is_file()) < 2e6


@pytest.mark.parametrize("name", sorted(file.parent.name for file in DIGITS.glob("*/last.pth")))
def test_released_networks_are_as_accurate_as_they_say(name):
    trained = open_own(DIGITS / name / "last.pth")
    record = json.loads((DIGITS / name / "result.json").read_text())
    batches = trained.batches(trained.test_images(), 256)
    score = evaluate(trained.network, batches, DeviceContext(torch.device("cpu")))
    assert score.top1 == pytest.approx(record["top1"], abs=0.3)  # one image of 359
    assert record["top1"] > 98


def test_the_released_generator_hits_its_targets():
    run = DIGITS / "digits_config"
    ready = generator_of(run)
    found = ready.generate(torch.arange(3, 8.01, 0.5, dtype=torch.float64))
    misses = [abs(one.cost / one.target - 1) for one in found]
    assert sum(misses) / len(misses) < 0.02


# -- a picture -------------------------------------------------------------------------------------


def test_a_picture_has_a_bar_for_each_sub_block(network, tmp_path):
    draw.main([str(network / "architecture.json"), "--out", str(tmp_path / "net.svg")])
    root = ElementTree.fromstring((tmp_path / "net.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    ids = [element.get("id", "") for element in root.iter()]
    spec, _ = load_spec(network / "architecture.json")
    kernels = [kernel for layer in spec.architecture.choices for kernel in layer]
    for kernel in (3, 5, 7):
        assert sum(name.startswith(f"net-k{kernel}-") for name in ids) == kernels.count(kernel)
    assert sum(name.startswith("net-skip-") for name in ids) == kernels.count(None)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    names = [f"{kernel}x{kernel}" for kernel in sorted(set(kernels) - {None})]
    assert texts[-len(set(kernels)) :] == [*names, "skip"]
    assert {"layer", "sub-block"} < set(texts)


def test_elastic_networks_are_drawn_as_high_as_their_expansion_ratios(tmp_path):
    [axes] = figures.blocks((((3, 4), (5, 6)), ((7, 3),)), alone=True).axes
    assert [bar.get_height() for bar in axes.patches] == [4, 6, 3]
    assert axes.get_yticks().tolist() == [1, 2, 3, 4, 5, 6]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3", "4", "5", "6"]
    assert axes.get_xticks().tolist() == [0.5, 1.5, 3.0]
    architecture = ElasticArchitecture((3, 7), (4, 6), (1, 1), 24)
    stages = {"stages": (16, 24), "strides": (1, 2), "activations": ("relu", "h_swish")}
    more = {"se": (False, True), "head": (32, 40), "resolutions": (24,), "depths": (1,)}
    space = ElasticSpace(**stages, **more)
    save_spec(tmp_path / "architecture.json", spec_of(space, architecture), {}, {})
    draw.main([str(tmp_path / "architecture.json"), "--out", str(tmp_path / "net.svg")])
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "net.svg").read_text())
    assert texts[-2:] == ["3x3", "7x7"]
    assert {"block", "expansion ratio"} < set(texts)


def test_what_is_refused_leaves_no_folder_above_it(network, tmp_path, capsys):
    broken = shutil.copytree(network, tmp_path / "broken")
    (broken / "checkpoints" / "last.pth").write_bytes(b"no checkpoint")
    before = sorted(tmp_path.iterdir())
    assert "not a readable checkpoint" in refused(
        capsys, release.main, broken, "--out", tmp_path / "some" / "where" / "new"
    )
    assert sorted(tmp_path.iterdir()) == before
