"""Where nothing can be written is said before any work."""

import os
from pathlib import Path

import pytest

import msunas
import search
from tests.support import refused
from tools import score
from utils.command import Parser
from utils.errors import UserError
from utils.places import check_file, check_folder, output_file, output_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_places_that_are_there_or_can_be_made_are_accepted():
    for path in ("new", "folder/new", "a/b/c", Path("folder") / "x.json", "file"):
        check_file(path, "--out")
    for path in ("folder", "a/b/c", ".", "/"):
        check_folder(path, "--out")
    assert sorted(os.listdir()) == ["file", "folder"], "nothing is made"


BAD = {
    "folder": "a file is to be written here, but it is a folder",
    "file/x": "file/?x? ?cannot be made: file is no folder|cannot be made: file is no folder",
    "file/a/b": "cannot be made: file is no folder",
    "dangling/x": "cannot be made: dangling is no folder",
    300 * "x": "a name has at most",
    f"{300 * 'x'}/y": "a name has at most",
    "/proc/x/y": "cannot be|may not be",
}


@pytest.mark.parametrize("path", BAD)
def test_places_that_cannot_be_written_are_refused_with_the_reason(path):
    Path("dangling").symlink_to("nowhere")
    if path.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("it has no /proc")
    if path.startswith("/proc") and os.access("/proc", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(UserError, match=f"--out: .*({BAD[path]})"):
        check_file(path, "--out")


def test_arguments_of_output_are_checked_as_they_are_parsed(capsys):
    parser = Parser("")
    parser.add_argument("--out", type=output_file)
    parser.add_argument("--save", type=output_folder)
    assert parser.parse_args(["--out", "a/b", "--save", "c"]).out == Path("a/b")
    with pytest.raises(UserError, match=r"argument --out: file cannot be made: file is no folder"):
        parser.parse_args(["--out", "file/x"])
    with pytest.raises(UserError, match=r"argument --save: file/y cannot be made"):
        parser.parse_args(["--save", "file/y"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("write_dir=file/events", "write_dir: file/events"),
        ("path_to_save_model=file/model.pth", "path_to_save_model: file"),
        ("path_to_generator_eval=folder", "path_to_generator_eval: folder: a file is to be"),
        ("log_dir=file", "log_dir: file/tiny cannot be made: file is no folder"),
        ("path_to_prior_pool=file/pool.json", "path_to_prior_pool: file"),
    ],
)
def test_a_stage_refuses_places_of_its_config_before_it_begins(
    tiny_config, here, capsys, settings, says
):
    before = sorted(here.rglob("*"))
    assert says in refused(capsys, search.main, "--cfg", tiny_config, "--set", settings)
    assert sorted(here.rglob("*")) == before


def test_tools_and_the_evolutionary_search_refuse_them_too(tiny_config, capsys):
    line = refused(capsys, score.main, "--cfg", tiny_config, "--out", "file/scores.jsonl")
    assert "argument --out: file cannot be made: file is no folder" in line
    line = refused(capsys, msunas.main, "--cfg", tiny_config, "--save", "file/found")
    assert "argument --save: file/found cannot be made" in line
