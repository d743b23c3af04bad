"""What a search says it needs, before it starts."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import search
from model.sgnas.dry_run import forecast as forecast_of
from model.spaces.elastic.kind import ElasticKind
from model.spaces.registry import open_problem
from tests.conftest import GOLDEN, rng
from tests.support import CPU, run
from utils import forecast
from utils.config import load_config

CONFIGS = Path(search.__file__).parent / "config_file"
ELASTIC = CONFIGS / "digits_elastic_config.yml"


def test_it_says_what_the_run_needs_and_writes_nothing(tiny_config, capsys, tmp_path):
    run(search.main, "--cfg", tiny_config, "--dry-run")
    out = capsys.readouterr().out
    said = ("reachable cost", "parameters", "peak memory", "time of a step", "projected time")
    assert all(words in out for words in said)
    assert not (tmp_path / "logs").exists()


def test_of_an_elastic_space_it_says_memory_and_time(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "seconds", lambda step, context: step() or 0.5)
    run(search.main, "--cfg", ELASTIC, "--dry-run --set warmup_epochs=3")
    out = capsys.readouterr().out
    assert re.search(r"reachable cost +0\.386 to 4\.782 M", out)
    # 0.5 s for 16 of the 64 images of a step
    assert "warm-up 2.00 s on cpu, scaled from a batch of 16" in out
    assert "warm-up 1.8 min, validation" in out  # 3 epochs of 0.8 * 1,438 images, 2 s for 64
    assert "generator" not in out
    assert not list(tmp_path.iterdir())


def test_memory_grows_with_the_batch_and_time_is_a_mean_over_random_streams(monkeypatch):
    seen, times = [], itertools.count(1)

    def passes(kind, supernet, choices, context, images, labels):
        seen.append((len(choices), tuple(images.shape), choices.tobytes()))
        return []

    monkeypatch.setattr(ElasticKind, "passes", passes)
    monkeypatch.setattr(forecast, "seconds", lambda step, context: step() or float(next(times)))
    config = load_config(ELASTIC, ["paths_per_step=5", "batch_size=16"])
    problem = open_problem(config)
    supernet = problem.supernet(config)
    larger = load_config(ELASTIC, ["paths_per_step=5", "batch_size=64"])
    few, many = (forecast_of(problem, supernet, c, CPU) for c in (config, larger))
    assert [part[:2] for part in seen] == 8 * [(5, (16, 3, 20, 20))]
    assert len(set(seen[:4])) == 4, "of different networks"
    assert seen[:4] == seen[4:]
    # the means of 1, 2, 3, 4 and of 5, 6, 7, 8 for 16 images
    assert (few.warmup_seconds, many.warmup_seconds) == (2.5, 4 * 6.5)
    weights = forecast.trained_bytes(supernet)
    assert many.peak_bytes - weights == 4 * (few.peak_bytes - weights)
    images, labels = forecast.random_batch(16, 20, CPU, rng())

    def kept(architecture) -> int:
        loss = lambda: F.cross_entropy(supernet(images, architecture), labels)  # noqa: E731
        return forecast.saved_bytes(loss, supernet)

    smallest, largest = (kept(problem.space.decode(row)) for row in problem.space.extremes())
    assert smallest < largest == few.peak_bytes - weights


@pytest.mark.parametrize("sampled", [0, 3])
def test_with_a_generator_both_stages_are_measured(tiny_config, monkeypatch, sampled):
    monkeypatch.setattr(forecast, "seconds", lambda step, context: step() or 1.0)
    config = load_config(tiny_config, [f"sampled_paths={sampled}"])
    problem = open_problem(config)
    supernet = problem.supernet(config)
    needs = forecast_of(problem, supernet, config, CPU)
    assert needs.warmup_seconds == needs.generator_seconds == 8.0  # 16 of 128 images
    images, largest = torch.randn(16, 3, 16, 16), problem.space.extremes()[1]
    hard = forecast.saved_bytes(lambda: supernet.train()(images, largest), supernet)
    assert needs.peak_bytes > forecast.trained_bytes(supernet) + 4 * hard, "mixtures take more"


@pytest.mark.slow
def test_the_published_cifar_config_needs_no_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download = "torchvision.datasets.cifar.download_and_extract_archive"
    monkeypatch.setattr(download, lambda *a, **k: None)
    run(search.main, "--cfg", GOLDEN / "published_configs" / "cifar_config.yml", "--dry-run")
    out = capsys.readouterr().out
    assert "19.419 to 171.762 M" in out
    assert "projected time    unknown" in out
