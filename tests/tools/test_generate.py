"""Architectures for targets, from a finished search."""

import json
from pathlib import Path

import pytest

from model.sgnas.answers import read_generated
from model.spaces.paths import Architecture
from tests.conftest import GOLDEN, golden, released
from tests.support import refused, run
from tools import generate


def rows_in(file: Path) -> list[dict]:
    return json.loads(file.read_text())


def test_all_targets_are_answered_in_order(searched, tmp_path, capsys):
    out = tmp_path / "found.json"
    run(generate.main, "--run", searched / "logs" / "tiny", "--flops 0.1:0.2:0.02 --out", out)
    rows, before = rows_in(out), out.read_text()
    assert [row["target"] for row in rows] == pytest.approx([0.1, 0.12, 0.14, 0.16, 0.18, 0.2])
    for row, found in zip(rows, read_generated(out), strict=True):
        assert row.keys() == {"target", "macs_m", "params_m", "kind", "architecture"}
        assert row["kind"] == "unified"
        assert found.architecture == Architecture.of(row["architecture"])
        assert (found.target, found.cost) == (row["target"], row["macs_m"])
    run(generate.main, "--cfg", searched / "tiny.yml", "--flops 0.15,0.1 --out", out)
    assert out.read_text() != before
    assert [row["target"] for row in rows_in(out)] == pytest.approx([0.15, 0.1])
    assert "generator_best_avg.pth" in capsys.readouterr().out


@pytest.mark.slow
def test_exactly_and_under_ceilings(searched, tmp_path, capsys):
    out = tmp_path / "found.json"
    line = ["--run", searched / "logs" / "tiny", "--out", out, "--flops"]
    run(generate.main, *line, "0.1:0.2:0.02 --exact")
    said = capsys.readouterr().out
    for row in rows_in(out):
        near = abs(row["macs_m"] / row["target"] - 1) <= 0.005 + 1e-5
        assert near != (f"target {row['target']:g} M: no architecture near" in said)
    run(generate.main, *line, "0.1:0.2:0.02 --at-most --max-params 0.0025")
    for row in rows_in(out):
        assert row["macs_m"] <= row["target"] + 1e-6
        assert row["params_m"] <= 0.0025
    run(generate.main, *line, "5 --at-most")
    says = "--max-params goes with --at-most"
    assert says in refused(capsys, generate.main, *line, "0.1", "--max-params", "1")


def test_the_released_files_with_the_published_config(tmp_path):
    generator = released("sgnas_generator_imagenet.pth")
    pool, out = released("sgnas_prior_pool_imagenet.json"), tmp_path / "found.json"
    config = GOLDEN / "published_configs" / "imagenet_config.yml"
    settings = f"--set generator_pretrained={generator} path_to_prior_pool={pool}"
    run(generate.main, "--cfg", config, "--flops 275,300,320,365,400 --out", out, settings)
    expected = golden("released_generator.json")["rows"]
    for found, row in zip(read_generated(out), expected, strict=True):
        assert found.architecture == Architecture.of(row["choices"])
        assert found.macs_m == pytest.approx(row["generated_macs_m"], abs=1e-3)


@pytest.mark.parametrize(
    ("flops", "says"),
    [
        *((text, "must be start:stop:step") for text in ("1:2", "2:1:1", "1:2:0", "some", "nan")),
        ("0.1,55", "target 55 M: no architecture meets it; this space reaches"),
    ],
)
def test_targets_that_make_no_sense_are_refused(searched, capsys, flops, says):
    folder = searched / "logs" / "tiny"
    assert says in refused(capsys, generate.main, "--run", folder, "--flops", flops)


def test_without_a_generator_it_says_where_it_looked(tiny_config, capsys, tmp_path):
    line = refused(capsys, generate.main, "--cfg", tiny_config, "--flops", "0.1")
    assert "no trained generator: generator_pretrained is None, and " in line
    assert f"{tmp_path / 'logs'} holds no run" in line
    line = refused(capsys, generate.main, "--run", tmp_path, "--flops", "0.1")
    assert "it is no run folder" in line
