"""The search stage, end to end on a tiny config, and what it says when something is wrong."""

import csv
import json
from pathlib import Path

import pytest
import torch

import search
import train_cifar
from model.spaces.registry import open_problem
from tests.reference import ReferenceSupernet
from tests.support import Killed, refused, run, run_weights, same
from utils import checkpoint
from utils.config import load_config
from utils.run_folder import RunFolder


def epochs_of(run: Path) -> list[tuple[str, int]]:
    """(stage, epoch) of each line of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["epoch"]) for row in rows]


def test_a_search_leaves_a_complete_run_folder(searched):
    run = searched / "logs" / "tiny"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    checkpoints = ("supernet_last", "supernet_best", "generator_last", "generator_best_avg")
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
        *(f"checkpoints/{name}.pth" for name in checkpoints),
    }
    assert any(name.startswith("tensorboard/events") for name in names)
    assert epochs_of(run) == [(stage, n) for stage in ("warm-up", "generator") for n in (1, 2)]
    with open(run / "generator_evaluate_avg.csv") as file:
        targets = [float(row["true_flops"]) for row in csv.DictReader(file)]
    assert targets == pytest.approx([0.1 + 0.01 * i for i in range(11)])


def test_a_finished_search_has_nothing_left_to_do(searched):
    folder = searched / "logs" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*.pth")}
    run(search.main, "--cfg", searched / "tiny.yml")
    assert {path: path.read_bytes() for path in folder.rglob("*.pth")} == before


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", ["supernet_last", "generator_last"])
def test_a_killed_search_resumes_to_the_same_bits(searched, tiny_config, monkeypatch, stop_at):
    save, saved = RunFolder.save, []

    def killed_at_the_second(folder, name, *rest, **options):
        saved.append(name)
        if saved.count(stop_at) == 2:
            raise Killed
        save(folder, name, *rest, **options)

    monkeypatch.setattr(RunFolder, "save", killed_at_the_second)
    with pytest.raises(Killed):
        run(search.main, "--cfg", tiny_config)
    monkeypatch.undo()
    run(search.main, "--cfg", tiny_config)
    unbroken, resumed = searched / "logs" / "tiny", tiny_config.parent / "logs" / "tiny"
    for name in ("supernet_last", "supernet_best", "generator_last", "generator_best_avg"):
        assert same(run_weights(unbroken, name), run_weights(resumed, name))
    texts = ("metrics.jsonl", "architectures.json", "split.json", "prior_pool.json")
    for name in (*texts, "generator_evaluate.csv"):
        assert (unbroken / name).read_text() == (resumed / name).read_text()


@pytest.mark.slow
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
    folder, scratch = tmp_path / "copies", "path_to_save_scratch"
    settings = [f"{key}={folder / key}" for key in (*copies, scratch)]
    settings += ["hardware_loss_limit=1e9", f"write_dir={tmp_path / 'events'}"]
    run(search.main, "--cfg", tiny_config, "--set", *settings)
    for key, name in copies.items():
        if "." in name:
            original = tmp_path / "logs" / "tiny" / name
            assert (folder / key).read_text() == original.read_text()
        else:
            original = run_weights(tmp_path / "logs" / "tiny", name)
            assert same(checkpoint.load(folder / key)["model"], original)
    assert list((tmp_path / "events" / "tiny").iterdir())
    assert not (folder / scratch).exists()
    settings += [f"generator_pretrained={folder / 'path_to_best_avg_generator'}", "epochs=1"]
    run(train_cifar.main, "--cfg", tiny_config, "--flops 0.1 --title net --set", *settings)
    assert checkpoint.load(folder / scratch)["epoch"] == 1


def test_warm_up_is_skipped_with_a_published_supernet(tiny_config, tmp_path):
    space, file = open_problem(load_config(tiny_config)).space, tmp_path / "published.pth"
    torch.save({"model": ReferenceSupernet(space).state_dict()}, file)
    run(search.main, "--cfg", tiny_config, f"--set warmup_epochs=0 model_pretrained={file}")
    checkpoints = tmp_path / "logs" / "tiny" / "checkpoints"
    assert (checkpoints / "generator_last.pth").exists()
    assert not (checkpoints / "supernet_last.pth").exists()


def test_a_new_title_can_start_with_the_state_of_another_run(searched):
    first, folder = searched / "logs" / "tiny", searched / "logs" / "longer"
    line = f"--cfg {searched / 'tiny.yml'} --title longer --set search_epochs=3 --resume {first}"
    run(search.main, line)
    assert [epoch for _, epoch in epochs_of(folder)] == [1, 2, 1, 2, 3]
    assert same(run_weights(folder, "supernet_last"), run_weights(first, "supernet_last"))


@pytest.mark.slow
def test_a_changed_config_is_refused_unless_the_old_run_moves_aside(tiny_config, capsys, tmp_path):
    line = ["--cfg", tiny_config, "--set", "warmup_epochs=1", "search_epochs=1"]
    run(search.main, *line)
    says = "this run was started with seed: 1, now it is 5"
    assert says in refused(capsys, search.main, *line, "seed=5")
    run(search.main, *line, "seed=5 --resume none")
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"tiny", "tiny.old1"}


def test_another_run_is_started_from_only_with_the_same_config(searched, capsys):
    line = ["--cfg", searched / "tiny.yml", "--title", "other"]
    line += ["--resume", searched / "logs" / "tiny", "--set", "g_optim_state.optimizer=sgd"]
    assert "g_optim_state" in refused(capsys, search.main, *line)
    assert not (searched / "logs" / "other").exists()


def test_a_folder_that_is_no_run_and_a_run_of_another_stage_are_left_alone(
    searched, tiny_config, tmp_path, capsys
):
    precious = tmp_path / "logs" / "tiny" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("data")
    assert "is no run folder" in refused(capsys, search.main, "--cfg", tiny_config)
    assert precious.exists()
    line = ["--cfg", searched / "tiny.yml", "--flops", "0.1", "--title", "tiny"]
    says = "this is a run of search; choose another title"
    assert says in refused(capsys, train_cifar.main, *line)


@pytest.mark.slow
def test_a_generator_trains_with_sgd_and_an_average_too(tiny_config):
    settings = "warmup_epochs=1 search_epochs=1 g_optim_state.optimizer=sgd generator_ema=0.9"
    run(search.main, "--cfg", tiny_config, "--set batch_size=64", settings)
    checkpoints = tiny_config.parent / "logs" / "tiny" / "checkpoints"
    state = checkpoint.load(checkpoints / "generator_last.pth")
    assert "momentum_buffer" in state["optimizer"]["state"][0]
    assert not state["model"]["tail.0.weight"].equal(state["average"]["module.tail.0.weight"])


@pytest.mark.slow
def test_several_targets_a_step_and_a_chained_pool(tiny_config):
    settings = "targets_per_step=4 straight_through=true hardware_loss=relative alpha=100"
    more = "pool_chain=true pool_size=6 generator_ema=0.9"
    run(search.main, "--cfg", tiny_config, "--set", settings, more)
    folder = tiny_config.parent / "logs" / "tiny"
    state = checkpoint.load(folder / "checkpoints" / "generator_last.pth")
    average = {key.removeprefix("module."): value for key, value in state["average"].items()}
    del average["n_averaged"]
    assert not same(state["model"], average)
    assert same(run_weights(folder, "generator_final"), average)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--set batch_sise=1", "batch_sise: unknown key; did you mean batch_size?"),
        (
            "--set warmup_epochs=0",
            "model_pretrained: with warmup_epochs 0 it must name a trained supernet",
        ),
        (
            "--set warmup_epochs=0 model_pretrained=none.pth",
            "none.pth: there is no such checkpoint",
        ),
        ("--set dataset=mnist", "dataset: 'mnist' cannot be read"),
        ("--set high_flops=900", "high_flops: 900 M; this space reaches"),
        ("--title ../x", "--title '../x': it must name a folder inside log_dir"),
        ("--set train_portion=0.9999", "train_portion: 0.9999 leaves too few"),
        ("--set path_to_save_model=/", "/: a file is to be written here, but it is a folder"),
        ("--resume nowhere", "--resume nowhere: it must be auto, none, a run folder"),
        ("--table t.csv", "--table t.csv: there is no benchmark of spaces of kind unified"),
        ("--table t.csv --set search_epochs=0", "with search_epochs 0 there are no answers"),
        ("--set supernet=none", "supernet: none: this needs a config of a search space"),
    ],
)
def test_bad_input_to_a_search_is_one_line_and_touches_nothing(
    tiny_config, tmp_path, capsys, arguments, says
):
    assert says in refused(capsys, search.main, "--cfg", tiny_config, *arguments.split())
    assert not (tmp_path / "logs").exists()


def test_a_missing_config_is_one_line(capsys):
    assert "nowhere.yml: cannot be read" in refused(capsys, search.main, "--cfg", "nowhere.yml")
