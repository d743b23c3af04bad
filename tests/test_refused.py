"""Records of the wrong form end in one line, before anything is computed or written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import search
import train_cifar
import validate
from model.nsganetv2.answers import searched_paths
from model.nsganetv2.archive import SearchFolder
from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record, Search
from model.spaces.elastic.kind import ElasticGenome
from tests.support import SMALL_ELASTIC, refused
from tools import generate, release
from utils import checkpoint
from utils.data import Split
from utils.errors import UserError
from utils.run_folder import RunFolder

ROOT = Path(search.__file__).parent
CONFIG = ROOT / "config_file" / "digits_config.yml"
RUN = ROOT / "release" / "digits" / "digits_config"
NET = ROOT / "release" / "digits" / "digits_3M"
GENOME = ElasticGenome(SMALL_ELASTIC)


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


# -- evolutionary searches -----------------------------------------------------------------------


def new_search() -> Search:
    return Search(GENOME, Objective("flops", GENOME), "rbf", SELECTIONS["hypervolume"])


@pytest.fixture
def searched(tmp_path) -> Path:
    """A folder of a search of one iteration."""
    folder, found = tmp_path / "search", new_search()
    genes = GENOME.sample(8, np.random.default_rng(0))
    pairs = zip(genes.tolist(), found.objective(genes).tolist(), strict=True)
    found.add([Record(tuple(row), 50.0, cost) for row, cost in pairs])
    store = SearchFolder.open(folder, {}, "auto")
    store.restore(new_search())
    store.reference = found.worst()
    store.write_iteration(0, found, found.archive[:2], 0.5, {"model": "rbf"})
    return folder


STATS = {
    "no mapping": "[1]",
    "null": "null",
    "failed is a number": {"failed": 5},
    "error is NaN": {"archive": "NaN"},
    "archive is empty": {"archive": []},
    "an error of 1e300": {"archive": [[{}, 1e300, 1.0]]},
    "reference is text": {"reference": ["x", "y"]},
    "predictions are numbers": {"predictions": [1.0]},
}


@pytest.mark.parametrize("change", STATS.values(), ids=STATS)
def test_a_search_that_cannot_be_resumed_from_writes_nothing(change, searched, tmp_path):
    file = searched / "iter_0.stats"
    changed = change
    if isinstance(change, dict):
        changed = json.dumps({**json.loads(file.read_text()), **change}).replace('"NaN"', "NaN")
    file.write_text(changed)
    store = SearchFolder.open(tmp_path / "new", {}, str(searched))
    with pytest.raises(UserError, match=r"iter_0\.stats"):
        store.restore(new_search())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stats", ['{"top1": NaN}', '{"top1": "50"}', "5", "[1]", '{"top1": 500}'])
def test_networks_that_a_search_cannot_start_with_write_nothing(stats, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "net_0.subnet").write_text(json.dumps(GENOME.to_json(GENOME.extremes()[0])))
    (source / "net_0.stats").write_text(stats)
    store = SearchFolder.open(tmp_path / "new", {}, str(source))
    with pytest.raises(UserError, match=r"net_0\.stats: not the \.stats of a network"):
        store.restore(new_search())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ['{"settings": []}', '{"settings": 5}', "[1]", "5", "null", "{"])
def test_a_search_json_of_another_form_is_refused(text, searched):
    (searched / "search.json").write_text(text)
    with pytest.raises(UserError, match=r"search\.json: not the search\.json of a search"):
        SearchFolder.open(searched, {}, "auto")
    with pytest.raises(UserError, match=r"search\.json"):
        searched_paths(searched, SMALL_ELASTIC, "")


# -- run folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[1]", "5", "null", '{"stage": 5}', '{"origin": []}', "{"])
def test_an_environment_of_another_form_is_refused(text, tmp_path, capsys):
    run = tmp_path / "logs" / "run"
    shutil.copytree(RUN, run)
    (run / "environment.json").write_text(text)
    line = ("--cfg", run / "config.yml", "--title", "run", "--set", f"log_dir={tmp_path / 'logs'}")
    before = files(tmp_path)
    assert "environment.json: not the record of a run" in refused(capsys, search.main, *line)
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", ["null", '{"stage": 5}'])
def test_of_two_runs_none_is_released_when_one_is_refused(text, tmp_path, capsys):
    for name in ("good", "broken"):
        shutil.copytree(RUN, tmp_path / name)
    (tmp_path / "broken" / "environment.json").write_text(text)
    before, out = files(tmp_path), tmp_path / "out"
    said = refused(capsys, release.main, tmp_path / "good", tmp_path / "broken", "--out", out)
    assert "environment.json: not the record of a run" in said
    assert files(tmp_path) == before


@pytest.mark.parametrize("line", ["[1]", "5", "null", '{"stage": []}', '{"epoch": "x"}', "{"])
def test_a_broken_line_of_metrics_is_dropped(line, tmp_path):
    shutil.copy(RUN / "metrics.jsonl", tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(f"{before}{line}\n")
    RunFolder(tmp_path).forget_after("warm-up", 10**6)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    "change",
    [{"feed": [-1, 2]}, {"feed": [1, 1]}, {"feed": [3], "validate": [3]}, {"images": 2.5},
     {"feed": 5}, {"validate": [2.5]}, {"feed": [10**30]}, {"validate": []}],
    ids=str,
)  # fmt: skip
def test_a_split_of_another_form_is_refused(change, tmp_path):
    split = {"images": 9, "feed": [0, 1, 2], "validate": [4, 5], **change}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match=r"split\.json: not a split file"):
        Split.read(tmp_path / "split.json", 9)


@pytest.mark.parametrize("target", [[], "x", -1, {"a": 1}, True, 0])
def test_a_target_that_is_no_number_is_refused_before_training(
    target, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    record = json.loads((NET / "architecture.json").read_text())
    record["provenance"] = {**record["provenance"], "target": target}
    Path("a.json").write_text(json.dumps(record))
    line = ("--cfg", CONFIG, "--title", "net", "--architecture", "a.json")
    assert "provenance: not a record" in refused(capsys, train_cifar.main, *line)
    assert files(tmp_path) == {"a.json"}


# -- checkpoints ---------------------------------------------------------------------------------

PAYLOADS = {
    "std is 0": (("data", "std"), [0.3, 0, 0.3], "std is 0.0; it must be above 0"),
    "std is NaN": (("data", "std"), [0.3, float("nan"), 0.3], "std is nan"),
    "mean is infinite": (("data", "mean"), [float("inf")] * 3, "mean is inf"),
    "huge images": (("data", "image_size"), 10**9, "image_size is 1000000000"),
    "dropout": (("options", "dropout"), 1.5, "dropout is 1.5"),
    "activation": (("options", "activation"), "swish", "Invalid enum value 'swish'"),
    "huge classes": (("space", "classes"), 10**9, "classes is 1000000000"),
}


@pytest.mark.parametrize(("path", "value", "says"), PAYLOADS.values(), ids=PAYLOADS)
def test_what_a_checkpoint_says_is_in_range(path, value, says, tmp_path, capsys):
    payload = checkpoint.load(NET / "last.pth")
    payload[path[0]][path[1]] = value
    checkpoint.save(tmp_path / "a.pth", payload)
    assert says in refused(capsys, validate.main, "--checkpoint", tmp_path / "a.pth")


@pytest.mark.parametrize(("end", "value"), [("weight", float("nan")), ("running_var", -1.0)])
def test_weights_that_are_no_numbers_are_refused(end, value, tmp_path, capsys):
    payload = checkpoint.load(NET / "last.pth")
    key = next(key for key in payload["model"] if key.endswith(end))
    payload["model"][key] = torch.full_like(payload["model"][key], value)
    checkpoint.save(tmp_path / "a.pth", payload)
    assert key in refused(capsys, validate.main, "--checkpoint", tmp_path / "a.pth")


@pytest.mark.parametrize("mark", ["nan", "inf", "-1", "0", "x", "1e999"])
def test_priors_of_no_cost_are_refused(mark, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    pool = json.loads((run / "prior_pool.json").read_text())
    (run / "prior_pool.json").write_text(json.dumps({**pool, mark: next(iter(pool.values()))}))
    assert "prior_pool.json" in refused(capsys, generate.main, "--run", run, "--flops", "5")


@pytest.mark.slow
def test_answers_over_their_ceiling_are_refused(tmp_path, capsys):
    line = ["--run", RUN, "--flops", "5", "--at-most", "--max-params", "0.001"]
    said = refused(capsys, generate.main, *line, "--out", tmp_path / "found.json")
    assert "target 5 M: no architecture near the generated one stays below" in said
    assert not files(tmp_path)
