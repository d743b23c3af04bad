"""`~` is the home folder, wherever a path comes in."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import search
import train_cifar
import validate
from model.spaces.registry import open_problem, save_spec, spec_of
from model.trained import load_network
from tests.conftest import TINY_CONFIG, rng
from tests.support import refused
from utils import checkpoint, folder2lmdb
from utils.command import Parser
from utils.config import Config, PathText, keys_of, load_config, types_of
from utils.errors import UserError
from utils.home import expand_home

VALUES = {"dataset": "digits", "classes": 10, "input_size": 16}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, and another working directory, which stays empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_leading_tilde_is_the_home_folder(home):
    assert expand_home("~/three") == f"{home}/three"
    assert expand_home("~") == str(home)
    assert expand_home("./~/three") == "./~/three"
    assert expand_home("a~") == "a~"
    says = r"~nobody-here/runs: ~nobody-here is no home folder; a folder of that name is \./~nobody"
    with pytest.raises(UserError, match=says):
        expand_home("~nobody-here/runs")


PATHS = [
    name
    for name, kind in types_of(Config).items()
    if PathText in (kind, *getattr(kind, "__args__", ()))
]


def test_all_keys_that_name_files_are_paths():
    assert {"dataset_dir", "log_dir", "write_dir", "latency_table", "inherit"} <= set(PATHS)
    named = {name for name in keys_of(Config) if name.startswith("path_to") or "pretrained" in name}
    assert named <= set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_every_path_of_a_config(home, name):
    assert getattr(Config.from_dict({**VALUES, name: "~/x"}), name) == f"{home}/x"
    file = home / "c.yml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in VALUES.items()))
    assert getattr(load_config("~/c.yml", [f"{name}=~/y"]), name) == f"{home}/y"
    with pytest.raises(UserError, match=f"config: {name}: ~nobody-here/x: ~nobody-here is no home"):
        Config.from_dict({**VALUES, name: "~nobody-here/x"})


def test_every_way_to_write_an_argument(home):
    parser = Parser("")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", nargs="+", default=[])
    args = parser.parse_args(["~/a", "b~", "~", "--out=~/c", "--set", "log_dir=~/d"])
    assert args.files == [f"{home}/a", "b~", str(home)]
    assert args.out == home / "c"
    assert args.set == ["log_dir=~/d"]  # whose key says whether it is a path
    assert parser.parse_args(["--out", "~/e"]).out == home / "e"


def write_images(folder: Path) -> None:
    """Three classes in train/, val/ and test/, and no image more than needed."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2), ("test", 3)):
        for name in "abc":
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def test_a_whole_run_below_the_home_folder(home, capsys):
    write_images(home / "three")
    text = TINY_CONFIG.format(log_dir="~/runs") + "dataset_dir: ~/three\n"
    text = text.replace("dataset: digits", "dataset: imagefolder").replace(
        "classes: 10", "classes: 3"
    )
    (home / "tiny.yml").write_text(text.replace("batch_size: 64", "batch_size: 8"))
    space = open_problem(load_config("~/tiny.yml")).space
    save_spec(home / "net.json", spec_of(space, space.decode(space.sample(1, rng())[0])), {}, {})
    line = ["--cfg=~/tiny.yml", "--architecture=~/net.json", "--epochs", "1", "--title", "net"]
    train_cifar.main(line)
    file = home / "runs" / "net" / "checkpoints" / "last.pth"
    assert checkpoint.load(file)["data"]["dataset_dir"] == f"{home}/three"
    capsys.readouterr()
    validate.main(["--checkpoint=~/runs/net/checkpoints/last.pth"])
    assert "9 test images of imagefolder" in capsys.readouterr().out  # of test, not of val
    assert load_network(None, "~/runs/net/checkpoints/last.pth", "sgnas", {}) is not None
    folder2lmdb.main(["~/three", "--split=val", "--out=~/packed"])
    assert (home / "packed" / "val_lmdb" / "val.lmdb").exists()
    assert list(Path.cwd().iterdir()) == []


def test_an_older_checkpoint_that_kept_the_tilde(home, capsys):
    test_a_whole_run_below_the_home_folder(home, capsys)
    file = home / "runs" / "net" / "checkpoints" / "last.pth"
    payload = checkpoint.load(file)
    payload["data"]["dataset_dir"] = "~/three"
    checkpoint.save(file, payload)
    validate.main(["--checkpoint", str(file)])
    assert "9 test images of imagefolder" in capsys.readouterr().out


def test_an_unknown_user_is_refused_before_anything_is_written(home, capsys):
    (home / "tiny.yml").write_text(TINY_CONFIG.format(log_dir="~nobody-here/runs"))
    said = refused(capsys, search.main, "--cfg", "~/tiny.yml")
    assert "log_dir: ~nobody-here/runs: ~nobody-here is no home folder" in said
    assert list(Path.cwd().iterdir()) == []


def test_a_user_that_there_is_not_is_refused_on_a_command_line():
    parser = Parser("")
    parser.add_argument("--out")
    for line in (["--out", "~nobody-here/x"], ["--out=~nobody-here/x"]):
        with pytest.raises(UserError, match="~nobody-here is no home folder"):
            parser.parse_args(line)
