"""The cells of NAS-Bench-201 as a kind of space: records, inherited networks, all stages."""

import csv

import pytest
import torch

import msunas
import post_search
import search
import train_cifar
import validate
from model.sgnas.warm_up import supernet_payload
from model.spaces.nasbench201.kind import KIND, CellSpec
from model.spaces.nasbench201.space import CellSpace, from_string
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.registry import load_spec, record_of, spec_of_record
from tests.conftest import rng
from tests.support import BEST_CELL, CELLS_CONFIG, cell_table, refused
from utils import checkpoint
from utils.errors import UserError


def test_an_architecture_is_its_string_a_record_of_it_or_rows():
    architecture = from_string(BEST_CELL)
    rows = [list(row) for row in architecture.choices]
    for record in (BEST_CELL, {"cell": BEST_CELL}, rows, {"choices": rows}):
        assert KIND.parse(record) == architecture
    with pytest.raises(UserError, match="architecture"):
        KIND.parse({"cell": "|none~0|"})


def test_an_inherited_network_is_what_its_checkpoint_says(tmp_path):
    supernet, file = CellSupernet(CellSpace(), rng(), cells=2).eval(), tmp_path / "supernet.pth"
    checkpoint.save(file, supernet_payload(supernet, 1))
    small = CellSpec(CellSpace(cells=2), from_string(BEST_CELL))
    network = small.inherited(str(file), {}).eval()
    images = torch.randn(4, 3, 16, 16, generator=rng())
    expected = supernet(images, small.space.encode(small.architecture))
    torch.testing.assert_close(network(images), expected)
    again = spec_of_record(record_of(small)).network({})
    again.load_state_dict(network.state_dict())
    with pytest.raises(UserError, match="it has 2 cells in each stage, the network 5"):
        CellSpec(CellSpace(), small.architecture).inherited(str(file), {})


def test_accuracies_are_known_of_the_published_cells_alone(tmp_path):
    with pytest.raises(UserError, match="the config is of others"):
        KIND.benchmark("t.csv", CellSpace(channels=8))


@pytest.mark.slow
def test_cells_are_searched_evolved_and_trained_by_the_same_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.yml").write_text(CELLS_CONFIG)
    cell_table(tmp_path / "t.csv", lambda cell: 50 + 5 * cell.count("nor_conv_3x3"))
    search.main(["--cfg", "cells.yml", "--title", "run", "--table", "t.csv"])
    rows = list(csv.DictReader((tmp_path / "logs/run/true_accuracy.csv").open()))
    assert [float(row["target M"]) for row in rows] == [20, 80, 140, 200]
    assert all(float(row["cost M"]) <= float(row["target M"]) for row in rows)

    supernet = "logs/run/checkpoints/supernet_best.pth"
    options = ["--cfg", "cells.yml", "--supernet_path", supernet]
    evolution = "--n_doe 10 --n_iter 3 --iterations 1 --n_epochs 0 --vld_size 60 --save evolved"
    msunas.main([*options, *evolution.split()])
    post_search.main([*options, "--expr", "evolved/iter_1.stats", "--save", "chosen", "-n", "3"])
    chosen = (tmp_path / "chosen").glob("*/architecture.json")
    file = min(chosen, key=lambda file: load_spec(file)[0].macs_m)
    training = ["--cfg", "cells.yml", "--architecture", str(file), "--title", "trained"]
    line = refused(capsys, train_cifar.main, *training, "--inherit", supernet)
    assert "it has 1 cells in each stage, the network 5" in line
    train_cifar.main(training)
    validate.main(["--checkpoint", "logs/trained/checkpoints/last.pth"])
