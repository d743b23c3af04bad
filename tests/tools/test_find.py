"""One command from a folder of images to a network: what it derives, finds, and refuses."""

import json
from pathlib import Path

import pytest
from PIL import Image

import validate
from model.costs.lookup_table import LookUpTable
from tests.support import refused
from tests.tools.painted import paint
from tools import find, predict
from tools.finding import plan


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("painted") / "colours", 20)


def test_budgets_are_millions():
    assert plan.parse_budget("20M") == 20
    assert plan.parse_budget("0.5M") == 0.5


def test_images_are_read_at_the_median_of_their_shorter_sides(tmp_path):
    for number, size in enumerate([(30, 90), (41, 40), (80, 47)]):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "a" / f"{number}.png")
    assert plan.usual_side(tmp_path) == 40
    Image.new("RGB", (2000, 900)).save(tmp_path / "a" / "3.png")
    Image.new("RGB", (2000, 900)).save(tmp_path / "a" / "4.png")
    Image.new("RGB", (2000, 900)).save(tmp_path / "a" / "5.png")
    assert plan.usual_side(tmp_path) == 64


@pytest.mark.parametrize(("size", "budgets"), [(32, (5.0,)), (64, (20.0, 3.0)), (16, (0.5,))])
def test_a_space_is_the_narrowest_that_uses_its_budgets(size, budgets):
    space = plan.space_for(size, 4, tuple(sorted(budgets)))
    least, largest = plan.reach_of(space)
    ends = LookUpTable(space)(space.extremes()).tolist()
    assert (least, largest) == pytest.approx((min(ends), max(ends)), rel=1e-5)
    assert least <= plan.NEAR * min(budgets)
    assert largest >= plan.ROOM * max(budgets)
    narrower = [stem for stem in plan.STEMS if stem < space.stem_channels]
    if narrower:
        assert largest * (narrower[-1] / space.stem_channels) ** 2 < plan.ROOM * max(budgets)


@pytest.mark.slow
def test_a_folder_becomes_networks_within_their_budgets(painted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = [str(painted), "--at-most", "1M", "--at-most", "2M", "--minutes", "1", "--count", "3"]
    line += ["--img-size", "16", "--set", "cuda=false"]
    monkeypatch.setattr(find, "EPOCHS", (1, 2))
    find.main([*line, "--dry-run"])
    assert "trains 4 networks" in capsys.readouterr().out
    assert not Path("found").exists()
    find.main(line)
    said = capsys.readouterr().out
    assert "3 classes (blue, green, red)" in said
    assert said.count("best ranked") == said.count("  random") == 2
    rows = json.loads(Path("found/networks.json").read_text())
    assert [row["budget"] for row in rows] == ["1M", "2M"]
    for row, budget in zip(rows, (1, 2), strict=True):
        assert plan.NEAR * budget <= row["macs_m"] <= budget
        validate.main(["--checkpoint", row["checkpoint"], "--json"])
        assert json.loads(capsys.readouterr().out)["top1"] == row["top1"]
        said = []
        for network in (row["onnx"], row["checkpoint"]):
            predict.main([network, str(painted / "red" / "00.png")])
            said.append(capsys.readouterr().out)
        assert said[0] == said[1]

    before = Path(rows[0]["checkpoint"]).read_bytes()
    monkeypatch.setattr(find, "train_from_scratch", None)  # all of it is there
    find.main(line)
    again = json.loads(Path("found/networks.json").read_text())
    for row in (*rows, *again):
        del row["latency_ms"]
    assert again == rows
    assert Path(rows[0]["checkpoint"]).read_bytes() == before
    capsys.readouterr()
    assert "it holds another search" in refused(capsys, find.main, *line, "--seed", 1)


def test_what_cannot_be_found_is_a_line(painted, tmp_path, capsys):
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20)).save(tmp_path / "one" / "cat" / f"{number}.png")
    budget = ["--at-most", "1M", "--out", tmp_path / "found"]
    for folder, more, says in (
        (tmp_path / "missing", budget, "missing"),
        (tmp_path / "empty", budget, "it must be a folder with a folder of images"),
        (tmp_path / "one", budget, "it has one class; at least 2 are needed"),
        (painted, ["--at-most", "20"], "'20': it must be a number with M, such as 20M"),
        (painted, [*budget, "--at-most", "900000M"], "--at-most 900000M: a network for images"),
        (painted, [*budget, "--at-most", "0.00001M"], "--at-most 1e-05M: the smallest network"),
    ):
        assert says in refused(capsys, find.main, folder, *more)
        assert not (tmp_path / "found").exists()
