"""Training from scratch, end to end on a tiny config, and what it says when something is wrong."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import train_cifar
from model.spaces.registry import load_spec, open_problem, spec_of
from model.training import from_scratch
from model.training.from_scratch import ScratchRecipe
from tests.support import Killed, refused, run, run_weights, same
from tools import generate
from utils.config import load_config
from utils.run_folder import RunFolder

ELASTIC = Path(train_cifar.__file__).parent / "config_file" / "digits_elastic_config.yml"


@pytest.fixture
def logs(searched) -> Path:
    return searched / "logs"


@pytest.fixture
def tiny(searched) -> str:
    """The flag that names the config of a finished search."""
    return f"--cfg {searched / 'tiny.yml'}"


@pytest.fixture
def supernet(logs) -> Path:
    return logs / "tiny" / "checkpoints" / "supernet_best.pth"


@pytest.mark.slow
def test_training_resumes_to_the_same_bits(tiny, logs, monkeypatch):
    run(train_cifar.main, tiny, "--flops 0.12 --title unbroken")
    evaluate, calls = from_scratch.evaluate, []

    def killed_at_the_second(*rest):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return evaluate(*rest)

    monkeypatch.setattr(from_scratch, "evaluate", killed_at_the_second)
    with pytest.raises(Killed):
        run(train_cifar.main, tiny, "--flops 0.12 --title broken")
    monkeypatch.undo()
    run(train_cifar.main, tiny, "--flops 0.12 --title broken")
    assert same(run_weights(logs / "unbroken", "last"), run_weights(logs / "broken", "last"))
    one, other = ((logs / name / "metrics.jsonl").read_text() for name in ("unbroken", "broken"))
    assert one == other


@pytest.mark.slow
def test_all_options_together_resume_to_the_same_bits(tiny, logs, supernet, monkeypatch):
    options = "--se True --activation hswish --drop 0.1 --drop-path 0.2 --cutout 4 --autoaugment"
    options += f" --mixup --ema 0.9 --clip-grad 1 --flops 0.12 --inherit {supernet}"
    run(train_cifar.main, tiny, options, "--title all")
    save = RunFolder.save

    def killed_after_the_first(folder, name, *rest):
        save(folder, name, *rest)
        if name == "last":
            raise Killed

    monkeypatch.setattr(RunFolder, "save", killed_after_the_first)
    with pytest.raises(Killed):
        run(train_cifar.main, tiny, options, "--title all_killed")
    monkeypatch.undo()
    run(train_cifar.main, tiny, options, "--title all_killed")
    folders = (logs / "all", logs / "all_killed")
    for name in ("last", "ema", "best"):
        assert same(*(run_weights(folder, name) for folder in folders))
    one, other = (json.loads((folder / "result.json").read_text()) for folder in folders)
    assert one["ema"] == other["ema"]
    assert one["ema"]["images"] == one["images"]
    assert not same(run_weights(logs / "all", "last"), run_weights(logs / "all", "ema"))


def test_training_starts_with_the_weights_of_the_supernet(searched, supernet):
    config = load_config(searched / "tiny.yml", [f"inherit={supernet}"])
    problem = open_problem(config)
    path = problem.space.sample(1, torch.Generator().manual_seed(0))[0]
    spec = spec_of(problem.space, problem.space.decode(path))
    network = config.part(ScratchRecipe).network(spec).eval()
    whole = problem.trained_supernet(config, str(supernet))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), whole(images, path), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_training_is_an_ordinary_one_on_disk(tiny, logs, monkeypatch):
    compiled, eager = [], partial(torch.compile, backend="eager")  # which needs no C++ compiler

    def compile_eagerly(network):
        compiled.append(network)
        return eager(network)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    monkeypatch.setattr("shutil.which", lambda name: name)
    run(train_cifar.main, tiny, "--flops 0.15 --set epochs=1 --title plain")
    assert not compiled
    run(train_cifar.main, tiny, "--flops 0.15 --set epochs=1 --title compiled --compile")
    assert len(compiled) == 1
    plain, other = (run_weights(logs / name, "last") for name in ("plain", "compiled"))
    assert plain.keys() == other.keys()
    assert all(torch.allclose(plain[key], other[key], atol=1e-4) for key in plain)


def test_compiling_without_a_compiler_is_refused(tiny, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    line = f"{tiny} --flops 0.15 --title other --compile --set cuda=false".split()
    says = "compile: on a CPU it needs a C++ compiler, and none is there"
    assert says in refused(capsys, train_cifar.main, *line)


def test_a_finished_training_resumes_without_the_supernet_it_inherited_from(
    tiny, logs, supernet, tmp_path
):
    copy = tmp_path / "supernet.pth"
    copy.write_bytes(supernet.read_bytes())
    line = f"{tiny} --flops 0.15 --title heir --inherit {copy} --set epochs=1"
    run(train_cifar.main, line)
    before = (logs / "heir" / "result.json").read_text()
    copy.unlink()
    run(train_cifar.main, line)
    assert (logs / "heir" / "result.json").read_text() == before


@pytest.mark.slow
def test_training_takes_an_architecture_file_or_list(tiny, logs, tmp_path):
    found = tmp_path / "found.json"
    run(generate.main, "--run", logs / "tiny", "--flops 0.1,0.15,0.2 --out", found)
    one_epoch = f"{tiny} --set epochs=1"
    run(train_cifar.main, one_epoch, f"--architecture {found} --flops 0.15 --title from_list")
    stored = logs / "from_list" / "architecture.json"
    run(train_cifar.main, one_epoch, f"--architecture {stored} --title from_file --se True")
    one, record = load_spec(stored)
    other, _ = load_spec(logs / "from_file" / "architecture.json")
    assert one == other
    assert record["architecture"] == json.loads(found.read_text())[1]["architecture"]
    assert record["provenance"] == {"source": str(found), "target": 0.15, "unit": "M"}


def test_another_architecture_under_the_same_title_is_refused(searched, tiny, capsys):
    line = f"{tiny} --title fixed --set epochs=1"
    run(train_cifar.main, line, "--flops 0.1")
    rows, file = [[3, None, 3, None, None, 7], [3, 7, 7, 7, 7, 7]], searched / "list.json"
    row = {"target": 1, "macs_m": 1, "params_m": 1, "kind": "unified", "architecture": rows}
    file.write_text(json.dumps([row]))
    said = refused(capsys, train_cifar.main, *line.split(), "--architecture", file)
    assert "this run trains another architecture" in said


def test_a_resumed_training_keeps_its_architecture_and_options(tiny, capsys):
    line = f"{tiny} --title kept --set epochs=1"
    run(train_cifar.main, line, "--flops 0.1")

    def said(options: str) -> str:
        return refused(capsys, train_cifar.main, *line.split(), *options.split())

    says = "this run was started with activation: 'relu6', now it is 'hswish'"
    assert says in said("--flops 0.1 --activation hswish")
    assert "this run was started for 0.1 M, not for 0.2 M" in said("--flops 0.2")
    assert "nonsense: unknown key" in said("--flops 0.1 --set nonsense=1")


def test_files_that_name_another_network_are_refused(searched, tiny, logs, tmp_path, capsys):
    found = tmp_path / "found.json"
    run(generate.main, "--run", logs / "tiny", "--flops 0.1,0.15 --out", found)

    def said(options: str) -> str:
        return refused(capsys, train_cifar.main, *f"{tiny} --title x {options}".split())

    says = f"{found}: it holds 2 architectures; a target must choose one"
    assert says in said(f"--architecture {found}")
    says = f"{found}: its target nearest to 0.3 M is 0.15 M"
    assert says in said(f"--architecture {found} --flops 0.3")
    run(train_cifar.main, tiny, "--flops 0.1 --title of_ten --set epochs=1")
    stored = logs / "of_ten" / "architecture.json"
    record = json.loads(stored.read_text())
    record["space"]["layers"][0]["kernels"] = [3, 5]
    (tmp_path / "narrow.json").write_text(json.dumps(record))
    says = "narrow.json: its space is not that of the config"
    assert says in said(f"--architecture {tmp_path / 'narrow.json'}")
    says = "a space of kind elastic has no generator; it must name an architecture.json"
    line = f"--cfg {ELASTIC} --flops 1 --title x --set log_dir={logs}".split()
    assert says in refused(capsys, train_cifar.main, *line)
    assert not (logs / "x").exists()
