"""Each stage's main, end to end on a tiny config, and what it says when something is wrong."""

import csv
import itertools
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import search
import train_cifar
import validate
from model.sgnas import dry_run
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.paths import Architecture
from model.spaces.registry import load_supernet, open_problem
from model.spaces.unified.kind import UnifiedSpec
from model.spaces.unified.network import SubNet
from model.spaces.unified.supernet import UnifiedSupernet
from model.training import from_scratch as scratch_training
from tests.conftest import GOLDEN, golden, released
from tests.reference import ReferenceSupernet
from tools import generate, summary
from utils import checkpoint, forecast
from utils.command import boolean
from utils.config import load_config
from utils.engine import DeviceContext
from utils.run_folder import RunFolder


def run_weights(run: Path, name: str):
    return checkpoint.weights(checkpoint.load(run / "checkpoints" / f"{name}.pth"), run)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def refused(capsys, main, *argv) -> str:
    """The one line that `main` ends with, at exit status 2."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in argv])
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# -- search ----------------------------------------------------------------------------------------


def test_a_search_leaves_a_complete_run_folder(searched):
    run = searched / "logs" / "tiny"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "config.yml",
        "environment.json",
        "split.json",
        "metrics.jsonl",
        "prior_pool.json",
        "supernet_evaluate.csv",
        "generator_evaluate.csv",
        "generator_evaluate_avg.csv",
        "architecture.csv",
        "architectures.json",
        "checkpoints/supernet_last.pth",
        "checkpoints/supernet_best.pth",
        "checkpoints/generator_last.pth",
        "checkpoints/generator_best_avg.pth",
    }
    assert any(name.startswith("tensorboard/events") for name in names)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("warm-up", 1),
        ("warm-up", 2),
        ("generator", 1),
        ("generator", 2),
    ]
    with open(run / "generator_evaluate_avg.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["true_flops"]) for row in table] == pytest.approx(
        [0.1 + 0.01 * i for i in range(11)]
    )


def test_a_finished_search_has_nothing_left_to_do(searched):
    run = searched / "logs" / "tiny"
    before = {path: path.read_bytes() for path in run.rglob("*.pth")}
    search.main(["--cfg", str(searched / "tiny.yml")])
    assert {path: path.read_bytes() for path in run.rglob("*.pth")} == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stop_at", ["supernet_last", "generator_last"])
def test_a_killed_search_goes_on_to_the_same_bits(searched, tiny_config, monkeypatch, stop_at):
    save, count = RunFolder.save, []

    def killed_at_the_second(run, name, *rest, **options):
        count.append(name)
        if count.count(stop_at) == 2:
            raise Killed
        save(run, name, *rest, **options)

    monkeypatch.setattr(RunFolder, "save", killed_at_the_second)
    with pytest.raises(Killed):
        search.main(["--cfg", str(tiny_config)])
    monkeypatch.undo()
    search.main(["--cfg", str(tiny_config)])
    unbroken, resumed = searched / "logs" / "tiny", tiny_config.parent / "logs" / "tiny"
    for name in ("supernet_last", "supernet_best", "generator_last", "generator_best_avg"):
        assert same(run_weights(unbroken, name), run_weights(resumed, name))
    for name in (
        "metrics.jsonl",
        "architectures.json",
        "split.json",
        "prior_pool.json",
        "generator_evaluate.csv",
    ):
        assert (unbroken / name).read_text() == (resumed / name).read_text()


def test_published_paths_get_their_copies(tiny_config, tmp_path):
    copies = {
        "path_to_save_model": "supernet_best",
        "path_to_best_avg_generator": "generator_best_avg",
        "path_to_save_generator": "generator_best",
        "path_to_fianl_generator": "generator_final",
        "path_to_prior_pool": "prior_pool.json",
        "path_to_supernet_eval": "supernet_evaluate.csv",
        "path_to_generator_eval": "generator_evaluate.csv",
        "path_to_generator_eval_avg": "generator_evaluate_avg.csv",
        "path_to_save_architecture": "architecture.csv",
        "path_to_save_evaluate_architecture": "evaluate_architecture.csv",
    }
    settings = [f"{key}={tmp_path / 'copies' / key}" for key in [*copies, "path_to_save_scratch"]]
    settings += ["hardware_loss_limit=1e9", f"write_dir={tmp_path / 'events'}"]
    search.main(["--cfg", str(tiny_config), "--set", *settings])
    run = tmp_path / "logs" / "tiny"
    for key, name in copies.items():
        copy = tmp_path / "copies" / key
        if "." in name:
            assert copy.read_text() == (run / name).read_text()
        else:
            assert same(checkpoint.load(copy)["model"], run_weights(run, name))
    assert list((tmp_path / "events" / "tiny").iterdir())
    assert not (tmp_path / "copies" / "path_to_save_scratch").exists()
    settings += [
        f"generator_pretrained={tmp_path / 'copies' / 'path_to_best_avg_generator'}",
        "epochs=1",
    ]
    train_cifar.main(
        ["--cfg", str(tiny_config), "--flops", "0.1", "--title", "net", "--set", *settings]
    )
    assert checkpoint.load(tmp_path / "copies" / "path_to_save_scratch")["epoch"] == 1


def test_warm_up_is_skipped_with_a_published_supernet(tiny_config, tmp_path):
    from utils.config import load_config

    space = open_problem(load_config(tiny_config)).space
    torch.save({"model": ReferenceSupernet(space).state_dict()}, tmp_path / "published.pth")
    search.main(
        [
            "--cfg",
            str(tiny_config),
            "--set",
            "warmup_epochs=0",
            f"model_pretrained={tmp_path / 'published.pth'}",
        ]
    )
    run = tmp_path / "logs" / "tiny"
    assert (run / "checkpoints" / "generator_last.pth").exists()
    assert not (run / "checkpoints" / "supernet_last.pth").exists()


def test_a_new_title_can_begin_with_the_state_of_another_run(searched, capsys):
    arguments = [
        "--cfg",
        str(searched / "tiny.yml"),
        "--title",
        "longer",
        "--set",
        "search_epochs=3",
    ]
    search.main([*arguments, "--resume", str(searched / "logs" / "tiny")])
    run = searched / "logs" / "longer"
    epochs = [
        json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert epochs == [1, 2, 1, 2, 3]
    assert same(
        run_weights(run, "supernet_last"), run_weights(searched / "logs" / "tiny", "supernet_last")
    )


def test_a_changed_config_is_refused_unless_the_old_run_moves_aside(tiny_config, capsys, tmp_path):
    search.main(["--cfg", str(tiny_config), "--set", "warmup_epochs=1", "search_epochs=1"])
    line = refused(
        capsys,
        search.main,
        "--cfg",
        tiny_config,
        "--set",
        "warmup_epochs=1",
        "search_epochs=1",
        "seed=5",
    )
    assert "this run was started with seed: 1, now it is 5" in line
    arguments = ["--cfg", str(tiny_config), "--set", "warmup_epochs=1", "search_epochs=1", "seed=5"]
    search.main([*arguments, "--resume", "none"])
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"tiny", "tiny.old1"}


def test_another_run_is_begun_from_only_with_the_same_config(searched, capsys, tmp_path):
    arguments = [
        "--cfg",
        searched / "tiny.yml",
        "--title",
        "other",
        "--resume",
        searched / "logs" / "tiny",
    ]
    line = refused(capsys, search.main, *arguments, "--set", "g_optim_state.optimizer=sgd")
    assert "g_optim_state" in line
    assert not (searched / "logs" / "other").exists()


def test_a_folder_that_is_no_run_and_a_run_of_another_stage_are_left_alone(
    searched, tiny_config, tmp_path, capsys
):
    (tmp_path / "logs" / "tiny").mkdir(parents=True)
    (tmp_path / "logs" / "tiny" / "precious").write_text("data")
    assert "is no run folder" in refused(capsys, search.main, "--cfg", tiny_config)
    assert (tmp_path / "logs" / "tiny" / "precious").exists()
    line = refused(
        capsys,
        train_cifar.main,
        "--cfg",
        searched / "tiny.yml",
        "--flops",
        "0.1",
        "--title",
        "tiny",
    )
    assert "this is a run of search; choose another title" in line


def test_a_generator_trains_with_sgd_and_an_average_too(tiny_config):
    settings = [
        "warmup_epochs=1",
        "search_epochs=1",
        "g_optim_state.optimizer=sgd",
        "generator_ema=0.9",
    ]
    search.main(["--cfg", str(tiny_config), "--set", *settings])
    state = checkpoint.load(
        tiny_config.parent / "logs" / "tiny" / "checkpoints" / "generator_last.pth"
    )
    assert "momentum_buffer" in state["optimizer"]["state"][0]
    assert not state["model"]["tail.0.weight"].equal(state["average"]["module.tail.0.weight"])


def test_a_dry_run_says_what_the_run_needs_and_writes_nothing(tiny_config, capsys, tmp_path):
    search.main(["--cfg", str(tiny_config), "--dry-run"])
    out = capsys.readouterr().out
    for words in (
        "reachable cost",
        "parameters",
        "peak memory",
        "time of a step",
        "projected time",
    ):
        assert words in out
    assert not (tmp_path / "logs").exists()


def test_a_dry_run_of_an_elastic_space_says_its_memory_and_time(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "seconds", lambda step, context: step() or 0.5)
    config = Path(search.__file__).parent / "config_file" / "digits_elastic_config.yml"
    search.main(["--cfg", str(config), "--dry-run", "--set", "warmup_epochs=3"])
    out = capsys.readouterr().out
    assert re.search(r"reachable cost +0\.386 to 4\.782 M", out)
    # 0.5 s for 16 of the 64 images of a step
    assert "warm-up 2.00 s on cpu, scaled from a batch of 16" in out
    assert "warm-up 1.8 min, validation" in out  # 3 epochs of 0.8 * 1,438 images, 2 s for 64
    assert "generator" not in out
    assert not list(tmp_path.iterdir())


def test_memory_grows_with_the_batch_and_time_is_a_mean_over_resolutions(monkeypatch):
    seen, count = [], itertools.count(1)
    monkeypatch.setattr(forecast, "seconds", lambda step, context: step() or float(next(count)))
    monkeypatch.setattr(
        dry_run, "sandwich_logits", lambda *given: seen.append(given[1:2] + given[-1:]) or []
    )
    space = ElasticSpace(
        stages=(16, 24), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True), head=(32, 40),
        resolutions=(16, 24, 32), depths=(1, 2), classes=3,
    )  # fmt: skip
    supernet = ElasticSupernet(space)
    context = DeviceContext(torch.device("cpu"), False, False)
    few, many = (
        dry_run.forecast_elastic(supernet, n, 5, context, torch.Generator()) for n in (16, 64)
    )
    assert seen == [(5, (16,)), (5, (24,)), (5, (32,))] * 2
    # of 1, 2, 3 and of 4, 5, 6 for 16 images
    assert (few.warmup_seconds, many.warmup_seconds) == (2.0, 4 * 5.0)
    weights = forecast.trained_bytes(supernet)
    assert many.peak_bytes - weights == 4 * (few.peak_bytes - weights)
    images = torch.randn(16, 3, 32, 32)
    smallest, largest = (space.decode(genes) for genes in space.extremes())
    kept = [
        forecast.saved_bytes(partial(supernet.train(), images, one), supernet)
        for one in (smallest, largest)
    ]
    assert kept[0] < kept[1] == few.peak_bytes - weights


def test_a_dry_run_of_the_published_cifar_config_needs_no_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "torchvision.datasets.cifar.download_and_extract_archive", lambda *a, **k: None
    )
    search.main(["--cfg", str(GOLDEN / "published_configs" / "cifar_config.yml"), "--dry-run"])
    out = capsys.readouterr().out
    assert "19.419 to 171.762 M" in out
    assert "projected time    unknown" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "batch_sise=1"], "batch_sise: unknown key; did you mean batch_size?"),
        (
            ["--set", "warmup_epochs=0"],
            "model_pretrained: with warmup_epochs 0 it must name a trained supernet",
        ),
        (
            ["--set", "warmup_epochs=0", "model_pretrained=none.pth"],
            "none.pth: there is no such checkpoint",
        ),
        (["--set", "dataset=mnist"], "dataset: 'mnist' cannot be read"),
        (["--set", "high_flops=900"], "high_flops: 900 M; this space reaches"),
        (["--title", "../x"], "--title '../x': it must name a folder inside log_dir"),
        (["--set", "train_portion=0.9999"], "train_portion: 0.9999 leaves too few"),
        (["--set", "path_to_save_model=/"], "/: a file is to be written here, but it is a folder"),
        (["--resume", "nowhere"], "--resume nowhere: it must be auto, none, a run folder"),
    ],
)
def test_bad_input_to_a_search_is_one_line_and_touches_nothing(
    tiny_config, tmp_path, capsys, arguments, says
):
    assert says in refused(capsys, search.main, "--cfg", tiny_config, *arguments)
    assert not (tmp_path / "logs").exists()


def test_a_missing_config_is_one_line(capsys):
    assert "nowhere.yml: cannot be read" in refused(capsys, search.main, "--cfg", "nowhere.yml")


# -- generate --------------------------------------------------------------------------------------


def test_generate_answers_all_targets_in_order(searched, tmp_path, capsys):
    out = tmp_path / "found.json"
    generate.main(
        ["--run", str(searched / "logs" / "tiny"), "--flops", "0.1:0.2:0.02", "--out", str(out)]
    )
    rows = json.loads(out.read_text())
    assert [row["target"] for row in rows] == pytest.approx([0.1, 0.12, 0.14, 0.16, 0.18, 0.2])
    for row in rows:
        assert row.keys() == {"target", "macs_m", "params_m", "choices", "kernels"}
        assert [[c for c in layer if c is not None] for layer in row["choices"]] == row["kernels"]
    before = out.read_text()
    generate.main(["--cfg", str(searched / "tiny.yml"), "--flops", "0.15,0.1", "--out", str(out)])
    assert out.read_text() != before
    assert [row["target"] for row in json.loads(out.read_text())] == pytest.approx([0.15, 0.1])
    assert "generator_best_avg.pth" in capsys.readouterr().out


def test_generate_exactly_and_under_ceilings(searched, tmp_path, capsys):
    run, out = str(searched / "logs" / "tiny"), str(tmp_path / "found.json")
    arguments = ["--run", run, "--flops", "0.1:0.2:0.02", "--out", out]
    generate.main([*arguments, "--exact"])
    said = capsys.readouterr().out
    for row in json.loads(Path(out).read_text()):
        near = abs(row["macs_m"] / row["target"] - 1) <= 0.005 + 1e-5
        assert near != (f"target {row['target']:g} M: no architecture near" in said)
    generate.main([*arguments, "--at-most", "--max-params", "0.0025"])
    for row in json.loads(Path(out).read_text()):
        assert row["macs_m"] <= row["target"] + 1e-6
        assert row["params_m"] <= 0.0025
    generate.main(["--run", run, "--flops", "5", "--out", out, "--at-most"])
    with pytest.raises(SystemExit) as error:
        generate.main([*arguments, "--max-params", "1"])
    assert error.value.code == 2


def test_generate_with_the_released_files_and_the_published_config(tmp_path, capsys):
    settings = [
        f"generator_pretrained={released('sgnas_generator_imagenet.pth')}",
        f"path_to_prior_pool={released('sgnas_prior_pool_imagenet.json')}",
    ]
    config = GOLDEN / "published_configs" / "imagenet_config.yml"
    out = tmp_path / "found.json"
    generate.main(
        [
            "--cfg",
            str(config),
            "--flops",
            "275,300,320,365,400",
            "--out",
            str(out),
            "--set",
            *settings,
        ]
    )
    for found, row in zip(
        json.loads(out.read_text()), golden("released_generator.json")["rows"], strict=True
    ):
        assert Architecture.of(found["choices"]) == Architecture.of(row["choices"])
        assert found["macs_m"] == pytest.approx(row["generated_macs_m"], abs=1e-3)


@pytest.mark.parametrize(
    ("flops", "says"),
    [
        ("1:2", "must be start:stop:step"),
        ("2:1:1", "must be start:stop:step"),
        ("1:2:0", "must be start:stop:step"),
        ("some", "must be start:stop:step"),
        ("nan", "must be start:stop:step"),
        ("0.1,55", "target 55 M: no architecture meets it; this space reaches"),
    ],
)
def test_targets_that_make_no_sense_are_refused(searched, capsys, flops, says):
    assert says in refused(
        capsys, generate.main, "--run", searched / "logs" / "tiny", "--flops", flops
    )


def test_generate_without_a_generator_says_where_it_looked(tiny_config, capsys, tmp_path):
    line = refused(capsys, generate.main, "--cfg", tiny_config, "--flops", "0.1")
    assert (
        f"no trained generator: generator_pretrained is None, and {tmp_path / 'logs'} holds no run"
        in line
    )
    assert "it is no run folder" in refused(
        capsys, generate.main, "--run", tmp_path, "--flops", "0.1"
    )


# -- train and validate ----------------------------------------------------------------------------


def test_train_then_validate_agree(searched, capsys):
    train_cifar.main(["--cfg", str(searched / "tiny.yml"), "--flops", "0.15", "--title", "net"])
    run = searched / "logs" / "net"
    result = json.loads((run / "result.json").read_text())
    assert result["macs_m"] == pytest.approx(result["macs_m_counted"], abs=1e-3)
    assert "generator_best_avg.pth" in capsys.readouterr().out
    validate.main(["--checkpoint", str(run / "checkpoints" / "last.pth"), "--json"])
    validated = json.loads(capsys.readouterr().out)
    for key in ("top1", "top5", "macs_m", "params_m"):
        assert validated[key] == pytest.approx(result[key], abs=1e-6)
    validate.main(["--checkpoint", str(run / "checkpoints" / "last.pth")])
    assert f"{result['top1']:.3f}" in capsys.readouterr().out


def test_norms_are_estimated_anew_where_asked(searched, tmp_path, capsys):
    """Then it does not matter what a checkpoint says of them."""
    train_cifar.main(["--cfg", str(searched / "tiny.yml"), "--flops", "0.15", "--title", "net"])
    file = searched / "logs" / "net" / "checkpoints" / "last.pth"
    payload = checkpoint.load(file)
    for key, value in payload["model"].items():
        if key.endswith(("running_mean", "running_var")):
            value.fill_(3)
    checkpoint.save(tmp_path / "spoilt.pth", payload)
    capsys.readouterr()
    losses = {}
    for name in (file, tmp_path / "spoilt.pth"):
        for norms in (0, 300):
            validate.main(["--checkpoint", str(name), "--json", "--norms", str(norms)])
            losses[name.stem, norms] = json.loads(capsys.readouterr().out)["loss"]
    assert losses["last", 300] == losses["spoilt", 300]
    assert len(set(losses.values())) == 3


def test_training_goes_on_to_the_same_bits(searched, monkeypatch):
    arguments = ["--cfg", str(searched / "tiny.yml"), "--flops", "0.12", "--title"]
    train_cifar.main([*arguments, "unbroken"])
    evaluate, calls = scratch_training.evaluate, []

    def killed_at_the_second(*rest):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return evaluate(*rest)

    monkeypatch.setattr(scratch_training, "evaluate", killed_at_the_second)
    with pytest.raises(Killed):
        train_cifar.main([*arguments, "broken"])
    monkeypatch.undo()
    train_cifar.main([*arguments, "broken"])
    logs = searched / "logs"
    assert same(run_weights(logs / "unbroken", "last"), run_weights(logs / "broken", "last"))
    assert (logs / "unbroken" / "metrics.jsonl").read_text() == (
        logs / "broken" / "metrics.jsonl"
    ).read_text()


EVERYTHING = "--se True --activation hswish --drop 0.1 --drop-path 0.2 --cutout 4 --autoaugment --mixup --ema 0.9"


def test_all_options_together_resume_to_the_same_bits(searched, monkeypatch):
    arguments = [
        "--cfg",
        str(searched / "tiny.yml"),
        "--flops",
        "0.12",
        *EVERYTHING.split(),
        "--clip-grad",
        "1",
    ]
    arguments += [
        "--inherit",
        str(searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth"),
        "--title",
    ]
    train_cifar.main([*arguments, "all"])
    keep = RunFolder._keep

    def killed_after_the_first(run, *rest):
        keep(run, *rest)
        raise Killed

    monkeypatch.setattr(RunFolder, "_keep", killed_after_the_first)
    with pytest.raises(Killed):
        train_cifar.main([*arguments, "all_killed"])
    monkeypatch.undo()
    train_cifar.main([*arguments, "all_killed"])
    logs = searched / "logs"
    for name in ("last", "ema", "best"):
        assert same(run_weights(logs / "all", name), run_weights(logs / "all_killed", name))
    one, other = (
        json.loads((logs / name / "result.json").read_text()) for name in ("all", "all_killed")
    )
    assert one["ema"] == other["ema"]
    assert one["ema"]["images"] == one["images"]
    assert not same(run_weights(logs / "all", "last"), run_weights(logs / "all", "ema"))


def test_validate_scores_the_average_too_and_says_what_was_chosen_on_test_images(searched, capsys):
    arguments = [
        "--cfg",
        str(searched / "tiny.yml"),
        "--flops",
        "0.15",
        "--ema",
        "0.5",
        "--title",
        "ema",
    ]
    train_cifar.main(arguments)
    run = searched / "logs" / "ema"
    result = json.loads((run / "result.json").read_text())
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {
        "last": result["top1"],
        "ema": result["ema"]["top1"],
        "best": max(row["top1"] for row in epochs),
    }
    for name, top1 in expected.items():
        capsys.readouterr()
        validate.main(["--checkpoint", str(run / "checkpoints" / f"{name}.pth"), "--json"])
        validated = json.loads(capsys.readouterr().out)
        assert validated["top1"] == pytest.approx(top1, abs=1e-6)
        assert validated["chosen_by"] == ("test images" if name == "best" else None)
    validate.main(["--checkpoint", str(run / "checkpoints" / "best.pth")])
    assert "chosen by test images: on them it looks better than it is" in capsys.readouterr().out


def test_training_begins_with_the_weights_of_the_supernet(searched):
    supernet = searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth"
    config = load_config(searched / "tiny.yml", [f"inherit={supernet}"])
    space = open_problem(config).space
    path = space.sample(1, torch.Generator().manual_seed(0))[0]
    network = train_cifar.build_network(UnifiedSpec(space, space.decode(path)), config).eval()
    whole = UnifiedSupernet(space)
    load_supernet(whole, str(supernet))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), whole.eval()(images, path), atol=1e-5, rtol=1e-4)


def test_a_compiled_training_is_an_ordinary_one_on_disk(searched, monkeypatch):
    compiled, eager = [], partial(torch.compile, backend="eager")  # which needs no C++ compiler
    monkeypatch.setattr(
        torch, "compile", lambda network: compiled.append(network) or eager(network)
    )
    monkeypatch.setattr("shutil.which", lambda name: name)
    arguments = [
        "--cfg",
        str(searched / "tiny.yml"),
        "--flops",
        "0.15",
        "--set",
        "epochs=1",
        "--title",
    ]
    train_cifar.main([*arguments, "plain"])
    assert not compiled
    train_cifar.main([*arguments, "compiled", "--compile"])
    assert len(compiled) == 1
    plain, compiled = (
        run_weights(searched / "logs" / name, "last") for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[key], compiled[key], atol=1e-4) for key in plain)


def test_a_finished_training_goes_on_without_the_supernet_it_inherited_from(
    searched, tmp_path, monkeypatch, capsys
):
    supernet = tmp_path / "supernet.pth"
    supernet.write_bytes(
        (searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth").read_bytes()
    )
    arguments = [
        "--cfg",
        str(searched / "tiny.yml"),
        "--flops",
        "0.15",
        "--title",
        "heir",
        "--inherit",
        str(supernet),
    ]
    train_cifar.main([*arguments, "--set", "epochs=1"])
    supernet.unlink()
    train_cifar.main([*arguments, "--set", "epochs=1"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no" in refused(
        capsys,
        train_cifar.main,
        *arguments[:4],
        "--title",
        "other",
        "--compile",
        "--set",
        "cuda=false",
    )


def test_training_takes_an_architecture_file_or_list(searched, tmp_path):
    found = tmp_path / "found.json"
    generate.main(
        ["--run", str(searched / "logs" / "tiny"), "--flops", "0.1,0.15,0.2", "--out", str(found)]
    )
    arguments = ["--cfg", str(searched / "tiny.yml"), "--set", "epochs=1"]
    train_cifar.main(
        [*arguments, "--architecture", str(found), "--flops", "0.15", "--title", "from_list"]
    )
    stored = searched / "logs" / "from_list" / "architecture.json"
    train_cifar.main(
        [*arguments, "--architecture", str(stored), "--title", "from_file", "--se", "True"]
    )
    one, other = (
        json.loads((searched / "logs" / n / "architecture.json").read_text())
        for n in ("from_list", "from_file")
    )
    assert one["choices"] == other["choices"] == json.loads(found.read_text())[1]["choices"]
    result = searched / "logs" / "from_list" / "result.json"
    summary.main(
        [
            "--cfg",
            str(searched / "tiny.yml"),
            "--architectures",
            str(found),
            "--result",
            str(result),
        ]
    )


def test_another_architecture_under_the_same_title_is_refused(searched, capsys):
    arguments = ["--cfg", searched / "tiny.yml", "--title", "fixed", "--set", "epochs=1"]
    train_cifar.main([str(a) for a in [*arguments, "--flops", "0.1"]])
    rows = [[3, None, 3, None, None, 7], [3, 7, 7, 7, 7, 7]]
    file = searched / "list.json"
    file.write_text(json.dumps([{"target": 1, "macs_m": 1, "params_m": 1, "choices": rows}]))
    line = refused(capsys, train_cifar.main, *arguments, "--architecture", file)
    assert "this run trains another architecture" in line


def test_a_continued_training_keeps_its_architecture_and_options(searched, capsys):
    arguments = ["--cfg", searched / "tiny.yml", "--title", "kept", "--set", "epochs=1"]
    train_cifar.main([str(a) for a in [*arguments, "--flops", "0.1"]])
    line = refused(capsys, train_cifar.main, *arguments, "--flops", "0.1", "--activation", "hswish")
    assert "this run was started with activation: 'relu6', now it is 'hswish'" in line
    line = refused(capsys, train_cifar.main, *arguments, "--flops", "0.2")
    assert "this run was begun for 0.1 M, not for 0.2 M" in line
    line = refused(capsys, train_cifar.main, *arguments, "--flops", "0.1", "--set", "nonsense=1")
    assert "nonsense: unknown key" in line


def test_several_targets_a_step_and_a_chained_pool(tiny_config):
    settings = [
        "targets_per_step=4",
        "straight_through=true",
        "hardware_loss=relative",
        "alpha=100",
    ]
    search.main(
        [
            "--cfg",
            str(tiny_config),
            "--set",
            *settings,
            "pool_chain=true",
            "pool_size=6",
            "generator_ema=0.9",
        ]
    )
    run = tiny_config.parent / "logs" / "tiny"
    state = checkpoint.load(run / "checkpoints" / "generator_last.pth")
    average = {
        key.removeprefix("module."): v for key, v in state["average"].items() if key != "n_averaged"
    }
    assert not same(state["model"], average)
    assert same(run_weights(run, "generator_final"), average)


def test_the_published_validation_line(tmp_path, tiny_config, searched, capsys):
    """Other people's weights: a bare state dict with "module.", a config, a target, and an image
    folder.
    """
    from PIL import Image

    run = searched / "logs" / "tiny"
    generate.main(["--run", str(run), "--flops", "0.15", "--out", str(tmp_path / "found.json")])
    choices = json.loads((tmp_path / "found.json").read_text())[0]["choices"]
    network = SubNet(
        open_problem(load_config(tiny_config)).space,
        Architecture.of(choices),
        se=True,
        activation="hswish",
    )
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}},
        tmp_path / "w.pth",
    )
    for label in range(10):
        (tmp_path / "images" / "val" / str(label)).mkdir(parents=True)
        Image.new("RGB", (20, 20), (25 * label, 0, 0)).save(
            tmp_path / "images" / "val" / str(label) / "0.png"
        )
    arguments = [
        tmp_path / "images",
        "--checkpoint",
        tmp_path / "w.pth",
        "--config_path",
        searched / "tiny.yml",
    ]
    arguments = [str(a) for a in [*arguments, "--target_flops", "0.15", "--activation", "hswish"]]
    capsys.readouterr()
    validate.main([*arguments, "--se", "True", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 10
    # squeeze-excite is counted, but not in the table
    assert result["macs_m_counted"] > result["macs_m"]
    line = refused(capsys, validate.main, *arguments, "--se", "False")
    assert "state_dict mismatch: missing [], unexpected ['first_mb.se" in line


def test_validate_refuses_weights_of_an_unknown_architecture(tmp_path, capsys):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    assert "give --config_path" in refused(
        capsys, validate.main, "--checkpoint", tmp_path / "w.pth"
    )
    assert "there is no such checkpoint" in refused(
        capsys, validate.main, "--checkpoint", tmp_path / "none.pth"
    )


def test_false_means_false():
    assert [boolean(text) for text in ("True", "false", "0", "yes")] == [True, False, False, True]
    with pytest.raises(ValueError, match="maybe"):
        boolean("maybe")


def test_importing_does_nothing(tmp_path):
    import subprocess
    import sys

    root = Path(search.__file__).parent
    tools = ("adapt", "draw", "export", "generate", "rank", "release", "report", "summary")
    code = f"import search, train_cifar, validate, {', '.join(f'tools.{name}' for name in tools)}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())
