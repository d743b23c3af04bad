"""Run folders of searches, and which generator answers for a config."""

import dataclasses

import pytest

from model.sgnas.runs import find_generator, load_generator, newest_config, run_config, supernet_of
from model.spaces.registry import open_problem
from utils import checkpoint
from utils.config import load_config
from utils.errors import UserError

GENERATOR = "generator_best_avg"


def test_the_newest_run_of_the_same_space_answers(searched, capsys):
    run, config = searched / "logs" / "tiny", load_config(searched / "tiny.yml")
    problem = open_problem(config)
    ready = find_generator(config, problem)
    assert ready.source == str(run / "checkpoints" / f"{GENERATOR}.pth")
    assert (ready.generator.low, ready.generator.high) == (0.1, 0.2)
    assert find_generator(config, problem, run).source == ready.source
    assert run_config(run).l_cfgs == newest_config(searched / "logs").l_cfgs == config.l_cfgs
    assert supernet_of(run).name == "supernet_best.pth"
    other = load_config(searched / "tiny.yml", ["first_channels=5"])
    with pytest.raises(UserError, match="holds no run of this space and cost"):
        find_generator(other, open_problem(other))
    (run / "config.yml").rename(run / "kept.yml")
    with pytest.raises(UserError, match="it is no run folder"):
        run_config(run)
    with pytest.raises(UserError, match="holds no run of this space and cost"):
        find_generator(config, problem)
    assert "passed over" in capsys.readouterr().err
    (run / "kept.yml").rename(run / "config.yml")


def test_a_folder_without_runs_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"run search\.py first"):
        newest_config(tmp_path)
    with pytest.raises(UserError, match="writes it in the warm-up"):
        supernet_of(tmp_path)


def test_a_generator_of_another_unit_or_table_is_refused(searched, tmp_path):
    config = load_config(searched / "tiny.yml")
    table, file = open_problem(config).table, tmp_path / "generator.pth"
    payload = checkpoint.load(searched / "logs" / "tiny" / "checkpoints" / f"{GENERATOR}.pth")
    checkpoint.save(file, {**payload, "unit": "ms"})
    with pytest.raises(UserError, match="its targets are in ms; those of the config are in M"):
        load_generator(file, 1, 2, 10, table)
    checkpoint.save(file, {**payload, "table": "another"})
    with pytest.raises(UserError, match="trained for another latency table"):
        load_generator(file, 1, 2, 10, table)
    checkpoint.save(file, payload["model"])  # as released: targets as the config says
    found = load_generator(file, 1, 2, 10)
    assert (found.low, found.high, found.training) == (1, 2, False)


def test_a_named_generator_needs_its_pool(searched):
    run, problem = searched / "logs" / "tiny", open_problem(load_config(searched / "tiny.yml"))
    file, pool = run / "checkpoints" / f"{GENERATOR}.pth", run / "prior_pool.json"
    config = load_config(searched / "tiny.yml", [f"generator_pretrained={file}"])
    with pytest.raises(UserError, match="path_to_prior_pool: None: no such file"):
        find_generator(config, problem)
    config = dataclasses.replace(config, path_to_prior_pool=str(pool))
    assert find_generator(config, problem).source == str(file)
