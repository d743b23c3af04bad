"""The evolutionary search from end to end: both stages, resuming, failures, command lines."""

import json

import numpy as np
import pytest

import msunas
import post_search
from model.costs.latency import Latencies
from model.nsganetv2.pareto import non_dominated
from model.ranking.candidates import CandidateAccuracy
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.latency import ElasticLatency
from model.spaces.registry import load_spec, open_problem
from tests.conftest import TINY_CONFIG
from tests.model.nsganetv2.problems import CONFIG, SPACE, supernet_file
from tests.support import refused
from tools import profile_latency
from utils import checkpoint
from utils.config import load_config

SUPERNET = ["--cfg", "small.yml", "--supernet_path", "supernet.pth"]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """`msunas.py` with a config and a supernet in an empty folder, and further options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yml").write_text(CONFIG)
    supernet_file(tmp_path / "supernet.pth")
    few = ["--vld_size", "60", "--n_epochs", "0", "--n_doe", "8", "--n_iter", "3"]
    return lambda line: msunas.main([*SUPERNET, *few, *line.split()])


@pytest.fixture
def read(tmp_path):
    """The JSON in a file of that folder."""
    return lambda name: json.loads((tmp_path / name).read_text())


def break_networks(monkeypatch, which) -> None:
    """Those of the genes `which` says cannot be scored."""
    score = CandidateAccuracy.score

    def sometimes(self, choice, *rest):
        if which(choice):
            raise RuntimeError("broken on purpose")
        return score(self, choice, *rest)

    monkeypatch.setattr(CandidateAccuracy, "score", sometimes)


@pytest.mark.slow
def test_a_search_from_end_to_end_and_what_is_chosen_from_it(search, read, tmp_path):
    search("--iterations 2 --save found")
    stats = read("found/iter_2.stats")
    assert len(stats["archive"]) == 8 + 2 * 3
    assert len(stats["candidates"]) == 3
    assert stats["surrogate"].keys() == {"model", "name", "winner", "rmse", "rho", "tau"}
    one = read("found/iter_1/net_0.stats")
    assert one.keys() == {"params", "flops", "gpu", "cpu", "loss", "top1", "top5"}
    record = read("found/iter_1/net_0.subnet")
    assert [record, 100 - one["top1"], stats["archive"][8][2]] == stats["archive"][8]
    assert (tmp_path / "found/iter_2.png").read_bytes().startswith(b"\x89PNG")

    line = "--expr found/iter_2.stats -n 2 --prefer top1#90+flops#1 --save out"
    post_search.main([*SUPERNET, *line.split()])
    folders = sorted((tmp_path / "out").iterdir())
    assert 1 <= len(folders) <= 3
    front = non_dominated([row[1:] for row in stats["archive"]])
    on_front = [row[0] for row, member in zip(stats["archive"], front, strict=True) if member]
    for folder in folders:
        assert read(folder / "net.subnet") in on_front
        assert read(folder / "net.config")["name"] == "MobileNetV3"
        assert checkpoint.load(folder / "net.inherited").keys() == {"state_dict"}
        assert (folder / "architecture.json").exists()


@pytest.mark.slow
def test_a_table_is_measured_and_searched_with(search, read, tmp_path):
    few = ["--runs", "1", "--calibration", "2", "--networks", "3"]
    profile_latency.main(["--cfg", "small.yml", "--out", "lut.yaml", *few])
    table = ElasticLatency(Latencies.read(tmp_path / "lut.yaml"), SPACE)
    search("--iterations 1 --save found --sec_obj cpu --lut lut.yaml --test")
    record, _, cost = read("found/iter_1.stats")["archive"][0]
    row = np.array([ElasticGenome(SPACE).from_json(record)])
    assert cost == pytest.approx(table(row)[0], abs=0.01)


# -- resuming --------------------------------------------------------------------------------------


def same_end(tmp_path, name: str) -> bool:
    whole, parts = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "parts"))
    return whole == parts


@pytest.mark.slow
def test_a_search_that_stopped_ends_as_one_that_did_not(search, tmp_path, monkeypatch):
    search("--iterations 2 --save whole")
    search("--iterations 1 --save parts")
    unfinished = tmp_path / "parts" / "iter_2"
    unfinished.mkdir()
    (unfinished / "net_0.subnet").write_text("{}")  # of another architecture: it must not be taken
    (unfinished / "net_0.stats").write_text('{"top1": 100.0}')
    for name in ("net_1.subnet", "net_1.stats"):
        # of this architecture: it need not be evaluated again
        (unfinished / name).write_bytes((tmp_path / "whole/iter_2" / name).read_bytes())
    scored, score = [], CandidateAccuracy.score

    def counted(self, choice, resolution, name):
        scored.append(name)
        return score(self, choice, resolution, name)

    monkeypatch.setattr(CandidateAccuracy, "score", counted)
    search("--iterations 2 --save parts")
    assert scored == ["iter_2/net_0", "iter_2/net_2"]
    assert same_end(tmp_path, "iter_2.stats")


@pytest.mark.slow
def test_a_new_search_can_start_with_the_archive_of_another(search, read):
    search("--iterations 0 --save first")
    for number, source in enumerate(("first", "first/iter_0")):
        search(f"--iterations 1 --save second{number} --resume {source}")
        archive = read(f"second{number}/iter_1.stats")["archive"]
        assert archive[:8] == read("first/iter_0.stats")["archive"]


@pytest.mark.parametrize("changed", ["--seed 7", "--resume none", "--sec_obj params", "supernet"])
def test_another_search_is_not_overwritten(search, tmp_path, capsys, changed):
    def files() -> dict:
        found = (tmp_path / "found").rglob("*")
        return {file: file.read_bytes() for file in found if file.is_file()}

    search("--iterations 0 --save found")
    before = files()
    if changed == "supernet":  # of the same name
        supernet_file(tmp_path / "supernet.pth", seed=1)
    with pytest.raises(SystemExit, match="2"):
        search(f"--iterations 1 --save found {changed if changed != 'supernet' else ''}")
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert changed != "supernet" or "supernet_path" in error
    assert files() == before


@pytest.mark.slow
def test_a_search_with_failures_that_stopped_ends_as_one_that_did_not(
    search, tmp_path, monkeypatch
):
    break_networks(monkeypatch, lambda row: row @ range(len(row)) % 3 == 0)
    search("--iterations 3 --save whole")
    search("--iterations 1 --save parts")
    unfinished = tmp_path / "parts" / "failed"  # iteration 2 was stopped after its failures
    for file in (tmp_path / "whole" / "failed").glob("it_2_net_*"):
        (unfinished / file.name).write_bytes(file.read_bytes())
    search("--iterations 3 --save parts")
    assert len(list(unfinished.glob("it_2_net_*"))) > 0, "the case is there"
    assert same_end(tmp_path, "iter_3.stats")


def test_a_search_from_before_there_was_a_choice_resumes_as_published(search, read, tmp_path):
    search("--save found --selection published --iterations 0")
    record = read("found/search.json")
    del record["settings"]["selection"]
    (tmp_path / "found/search.json").write_text(json.dumps(record))
    search("--save found --selection published --iterations 0")
    with pytest.raises(SystemExit, match="2"):
        search("--save found --iterations 0")


# -- failures --------------------------------------------------------------------------------------


def test_what_fails_is_kept_apart_and_never_scored(search, read, tmp_path, monkeypatch):
    break_networks(monkeypatch, lambda row: row.sum() % 2)
    search("--iterations 1 --save found")
    failed = list((tmp_path / "found/failed").iterdir())
    archive = read("found/iter_1.stats")["archive"]
    assert len(failed) + len(archive) == 8 + 3
    assert failed
    for file in failed:
        record = read(file)
        assert record["error"] == "RuntimeError: broken on purpose"
        assert record["architecture"] not in [row[0] for row in archive]


@pytest.mark.slow
def test_what_failed_in_the_search_started_from_is_not_forgotten(search, read, monkeypatch):
    break_networks(monkeypatch, lambda row: row @ range(len(row)) % 3 == 0)
    search("--iterations 1 --save first")
    search("--iterations 2 --save second --resume first")
    first, second = (read(f"{name}.stats")["failed"] for name in ("first/iter_1", "second/iter_2"))
    assert first
    assert all(record in second for record in first)


def test_a_search_in_which_all_fail_stops_with_the_reason(search, monkeypatch, capsys):
    break_networks(monkeypatch, lambda row: True)
    with pytest.raises(SystemExit):
        search("--iterations 1 --save found")
    reason = "none of 8 architectures could be evaluated (RuntimeError: broken on purpose)"
    assert reason in capsys.readouterr().err


# -- command lines ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_unified_candidates_are_searched_and_fine_tuned_by_the_same_command(
    read, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yml").write_text(TINY_CONFIG.format(log_dir="logs"))
    config = load_config("small.yml")
    supernet = open_problem(config).supernet(config)
    checkpoint.save(tmp_path / "supernet.pth", {"model": supernet.state_dict()})
    line = "--space unified --vld_size 60 --n_doe 3 --n_iter 2 --iterations 1 --n_epochs 1 "
    line += "--predictor cart --save found --sec_obj params"
    msunas.main([*SUPERNET, *line.split()])
    archive = read("found/iter_1.stats")["archive"]
    assert len(archive) == 5
    msunas.main([*SUPERNET, *line.replace("iterations 1", "iterations 2").split()])
    assert read("found/iter_2.stats")["archive"][:5] == archive
    post_search.main(["--expr", "found/iter_1.stats", "--save", "out", *SUPERNET])
    for folder in (tmp_path / "out").iterdir():
        record = load_spec(folder / "architecture.json")[1]
        assert record["architecture"] in [row[0] for row in archive]


def test_candidates_can_be_fine_tuned_with_a_classifier_of_their_own(search, read):
    search("--n_epochs 1 --n_doe 2 --iterations 0 --save found")
    assert len(read("found/iter_0.stats")["archive"]) == 2


BAD = {
    "--predictor magic": "allowed are",
    "--sec_obj gpu": "--lut must name a latency table",
    "--sec_obj cpu --lut small.yml": "not a table of KEY",
    "--space unified": "describes a space of kind elastic",
    "--vld_size 100000": "can be held out",
    "--supernet_path missing.pth": "there is no such checkpoint",
    "--resume nowhere": "it must be auto, none, or a folder",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_ends_in_one_line(search, tmp_path, capsys, options):
    with pytest.raises(SystemExit, match="2"):
        search(f"--iterations 1 --save found {options}")
    error = capsys.readouterr().err
    assert BAD[options] in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "found").exists()


def test_the_elastic_configs_load():
    for name in ("digits_elastic_config", "cifar10_elastic_config"):
        assert load_config(f"config_file/{name}.yml").supernet == "elastic"


@pytest.mark.slow
def test_a_search_does_not_resume_with_other_images(search, read, tmp_path, capsys):
    """A record of the images is kept; older searches take the first one that they see."""
    search("--iterations 1 --save found")
    file = tmp_path / "found" / "data.json"
    whole = read("found/data.json")
    file.unlink()
    search("--iterations 1 --save found")
    assert read("found/data.json") == whole
    changed = {**whole["parts"], "train": {**whole["parts"]["train"], "3": 7}}
    file.write_text(json.dumps({**whole, "parts": changed}))
    with pytest.raises(SystemExit, match="2"):
        search("--iterations 2 --save found")
    said = capsys.readouterr().err
    assert "its data have changed since it started: train: class '3' had 7 images" in said
    assert not (tmp_path / "found" / "iter_2").exists()


# -- without accuracies, or with trainings ---------------------------------------------------------

FEW = "--cfg tiny.yml --n_doe 6 --n_iter 2 --iterations 1"


@pytest.fixture
def tiny(tmp_path, monkeypatch, read):
    """`msunas.py` on the tiny unified space, and what its last iteration wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yml").write_text(TINY_CONFIG.format(log_dir="logs"))

    def run(line: str) -> dict:
        msunas.main(f"{FEW} {line}".split())
        return read(f"{line.split()[-1]}/iter_1.stats")

    return run


def test_by_formulas_a_search_needs_neither_supernet_nor_images(tiny, read, monkeypatch, tmp_path):
    monkeypatch.setattr(msunas, "load_dataset", None)
    found = tiny("--evaluate training-free --save free")
    assert (found["evaluate"], len(found["archive"])) == ("training-free", 8)
    one = read("free/iter_0/net_0.stats")
    assert {"expressivity", "progressivity", "trainability", "cost", "blocks"} < one.keys()
    assert "top1" not in one
    errors = [error for _, error, _ in found["archive"]]
    assert min(errors) > 0
    again = read("free/iter_0.stats")
    assert again["archive"] == found["archive"][:6], "later ones change no penalty of before"
    (tmp_path / "free" / "iter_1.stats").unlink()
    assert tiny("--evaluate training-free --save free")["archive"] == found["archive"]

    post_search.main(["--cfg", "tiny.yml", "--expr", "free/iter_1.stats", "--save", "chosen"])
    [folder, *_] = (tmp_path / "chosen").iterdir()
    spec, record = load_spec(folder / "architecture.json")
    assert record["provenance"]["penalty"] > 0
    assert spec.network({}) is not None
    assert not (folder / "net.inherited").exists()


def test_formulas_do_not_ask_a_supernet_that_is_there(tiny, searched, monkeypatch):
    monkeypatch.setattr(msunas, "load_dataset", None)
    supernet = searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth"
    found = tiny(f"--evaluate training-free --supernet_path {supernet} --save free")
    assert "supernet_loss" not in found["scale"]["centre"]


@pytest.mark.slow
def test_formulas_and_a_supernet_judge_together(tiny, searched, read):
    supernet = searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth"
    found = tiny(f"--evaluate combined --supernet_path {supernet} --vld_size 60 --save both")
    assert found["scale"]["centre"].keys() == {
        *("expressivity", "progressivity", "trainability", "cost", "supernet_loss")
    }
    assert len(found["archive"]) == 8


@pytest.mark.slow
def test_candidates_are_trained_and_signals_say_which(tiny, read, tmp_path, monkeypatch, capsys):
    line = "--evaluate trained --pool 10 --n_epochs 1 --vld_size 60 --save trained"
    found = tiny(line)
    assert f"Kendall tau, {len(found['archive'])} trained networks" in capsys.readouterr().out
    assert found["surrogate"]["winner"] == "calibrated"
    lines = (tmp_path / "trained" / "signals.jsonl").read_text().splitlines()
    assert len(lines) == 10
    pool = [json.loads(line)["architecture"] for line in lines]
    assert all(architecture in pool for architecture, *_ in found["archive"])
    (tmp_path / "trained" / "iter_1.stats").unlink()
    monkeypatch.setattr(CandidateAccuracy, "score_from_scratch", None)  # all of it is on disk
    assert tiny(line)["archive"] == found["archive"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--evaluate trained --n_epochs 0", "--n_epochs 0: --evaluate trained trains each"),
        ("--evaluate trained --n_doe 3", "--n_doe 3: --evaluate trained begins with 4 or more"),
        ("--evaluate magic", "--evaluate"),
        ("--evaluate training-free --resume old", "not those of --evaluate training-free"),
    ],
)
def test_evaluations_that_cannot_be_are_a_line(tiny, tmp_path, capsys, options, says):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "net_0.subnet").write_text("[]")
    (tmp_path / "old" / "net_0.stats").write_text('{"top1": 50}')
    line = f"{FEW} {options} --save new"
    assert says in refused(capsys, msunas.main, *line.split())
    assert not (tmp_path / "new").exists()


def test_penalties_are_not_taken_for_accuracies(tiny, tmp_path, capsys):
    tiny("--evaluate training-free --save free")
    supernet_file(tmp_path / "supernet.pth")
    more = f"{FEW} --n_epochs 0 --vld_size 60 --resume free --save new"
    line = refused(capsys, msunas.main, *more.split(), "--evaluate", "trained", "--n_epochs", 1)
    assert "its errors are those of --evaluate training-free, not trained" in line
    prefer = "--cfg tiny.yml --expr free/iter_1.stats --prefer top1#80+flops#1 --save chosen"
    assert "penalties, not those of accuracies" in refused(
        capsys, post_search.main, *prefer.split()
    )
    without = ["--evaluate", "training-free", "--save", "nothing"]
    assert "--cfg: without a supernet it must say the space" in refused(
        capsys, msunas.main, *without
    )
