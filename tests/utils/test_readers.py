"""What is read is of the right type and size, or is refused in one line."""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch

import search
from tests.support import refused
from utils import checkpoint
from utils.config import load_config
from utils.errors import UserError, printable
from utils.json_file import as_type, parse_json, read_json
from utils.ranges import MOST_PARAMETERS, Ranged, check_parameters
from utils.yaml_file import parse_yaml

ROOT = Path(search.__file__).parent
DIGITS = ROOT / "config_file" / "digits_config.yml"


def bomb(levels: int) -> str:
    """A YAML text of a few lines that stands for 9 ** levels values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join(9 * [f'*a{level - 1}'])}]")
    return "\n".join(lines)


def merged(levels: int) -> str:
    """The same of merged mappings, which are copied while they are read."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join(9 * [f'*a{level - 1}'])}]}}")
    return "\n".join(lines)


# -- JSON and YAML -------------------------------------------------------------------------------


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 200 + "]" * 200, "[1]", "5", "null", '{"x": Infinity}', '{"x": NaN}',
     '{"x": 1e999}', '{"x": 1.5}', '{"x": "1"}', '{"x": true}', '{"x": [1]}', "{}",
     '{"x": 1, "y": "\\u0000"}', '{"x": 1, "y": "\\ud800"}', f'{{"x": {2**70}}}', '{"x": 1', "\xff",
     '{"x": ' + "9" * 5000 + "}"],
    ids=lambda text: text[:20],
)  # fmt: skip
@pytest.mark.parametrize("nan", [False, True])
def test_json_of_another_type_or_size_is_refused(text, nan):
    with pytest.raises(UserError, match=r"^f\.json: not a point") as error:
        parse_json(text, Point, "f.json", "a point", nan=nan)
    assert "\n" not in str(error.value)


def test_json_of_the_type_is_read_and_lines_of_metrics_may_hold_nan():
    assert parse_json('{"x": 3, "more": [[1]]}', Point, "f.json", "a point") == Point(3)
    assert parse_json('{"x": NaN}', dict, "f.json", "a record", nan=True)["x"] != 0


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(UserError):
        read_json(name)
    with pytest.raises(UserError):
        load_config(name)
    with pytest.raises(UserError):
        checkpoint.load(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 2026-13-45", "month must be in"),
        ("seed: " + "9" * 5000, "4300 digits"),
        ("seed: 0x" + "f" * 5000, "more than 63 bits"),
        (bomb(12), "more than"),
        (merged(12), "more than"),
        ("[" * 100 + "]" * 100, "nested more than"),
        ("a: &a {b: *a}", "nested more than"),
        ('a: "\\0"', "which is no text"),
        ('a: "\\ud800"', "invalid Unicode|no text"),
    ],
    ids=range(9),
)
def test_yaml_that_no_config_needs_is_refused(text, says):
    with pytest.raises(UserError, match=rf"^f\.yml: no valid YAML .*{says}"):
        parse_yaml(text, "f.yml")


def test_small_aliases_are_read():
    assert parse_yaml(bomb(2), "f.yml")["a1"] == [[1] * 9] * 9


# -- ranges --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sized(Ranged):
    count: Annotated[int, "at least 1 and at most 1,000"]
    shares: tuple[Annotated[float, "at least 0 and below 1"], ...] = ()
    rate: float = 0.0
    size: Annotated[int, "above 2"] | None = None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"count": 0}, "count is 0; it must be at least 1 and at most 1,000"),
        ({"count": 1001}, "count is 1001"),
        ({"shares": [0.5, 1.0]}, "shares is 1.0"),
        ({"shares": [0.5, float("nan")]}, "shares is nan"),
        ({"shares": [0.0] * 1001}, "shares has 1001 entries"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"size": 2}, "size is 2; it must be above 2"),
        ({"size": [3]}, "Expected `int . null`, got `array`"),
    ],
)
def test_what_is_out_of_range_is_named(wrong, says):
    with pytest.raises(UserError, match=rf"^f: not a size .*{says}"):
        as_type({"count": 1, **wrong}, Sized, "f", "a size")
    assert as_type({"count": 1000, "size": 3}, Sized, "f", "a size").size == 3


def test_a_network_that_fits_no_machine_is_refused():
    check_parameters(MOST_PARAMETERS)
    with pytest.raises(UserError, match=r"has 1000\.\d* M parameters|at most 1000 M"):
        check_parameters(MOST_PARAMETERS + 1e5)


# -- checkpoints ---------------------------------------------------------------------------------

W = torch.ones(4, 4)
TENSORS = {
    "of integer keys": ({1: W}, "holds no weights"),
    "of tuple keys": ({("a", 1): W}, "holds no weights"),
    "sparse": ({"a": W.to_sparse()}, "a is no dense tensor"),
    "compressed": ({"a": torch.ones(3, 3, dtype=torch.complex64)}, "a is no dense tensor"),
    "meta": ({"a": torch.ones(3, device="meta")}, "a is no dense tensor"),
    "expanded": ({"a": torch.ones(1).expand(10**12)}, "a has more numbers than the file holds"),
    "NaN": ({"b": W, "a": W * float("nan")}, "a has numbers that are NaN or infinite"),
    "infinite": ({"a": W.half() * float("inf")}, "a has numbers that are NaN"),
    "negative variance": ({"bn.running_var": -W}, "bn.running_var has a negative variance"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("state", "says"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_no_weights_are_refused(state, says, legacy, tmp_path):
    torch.save({"model": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=says):
        checkpoint.weights(checkpoint.load(tmp_path / "a.pth"), "a.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_weights_are_refused(tmp_path):
    quantised = torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)
    torch.save({"a": quantised}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="a is no dense tensor"):
        checkpoint.weights(checkpoint.load(tmp_path / "a.pth"), "a.pth")


def test_a_checkpoint_of_the_older_format_may_end_anywhere(tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(10)}}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    checkpoint.load(file)
    for end in range(0, len(data), 7):
        file.write_bytes(data[:end])
        with pytest.raises(UserError, match="not a readable checkpoint") as error:
            checkpoint.load(file)
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("value", [os.system, {"a": {1, (2,)}, "b": [[[os.path.join]]]}])
def test_no_line_advises_to_load_without_safety(value, tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(value))
    torch.save(value, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match="not a readable checkpoint") as error:
            checkpoint.load(tmp_path / name)
        assert not {"weights_only", "unsafe", "Re-running"} & set(str(error.value).split())


# -- command lines -------------------------------------------------------------------------------

KEYS = {
    "eval_step=1e-12": "eval_step: 1e-12 is not allowed; it must be at least 0.0005",
    "target_step=1e-300": "target_step: 1e-300 is not allowed",
    "hc_dim=1e10": "hc_dim: 10000000000 is not allowed; it must be at least 1 and at most 4,096",
    "classes=1000000000": "classes: 1000000000 is not allowed",
    "pool_size=1e12": "pool_size: 1000000000000 is not allowed",
    "head_channels=100000": "head_channels: 100000 is not allowed",
    "input_size=1e6": "input_size: 1000000 is not allowed",
    "min_expansion=100": "min_expansion: 100 is not allowed; it must be at most the largest",
    "static_layers=[] l_cfgs=[[64,16384,[3],1],[64,16384,[3],1]]": "M parameters; it may have",
    "dataset=mnist": "dataset: 'mnist' cannot be read",
    "classes=12": "classes: the config says 12, but digits",
    "dataset=imagefolder dataset_dir=nowhere": "nowhere",
    "low_flops=1.5 min_expansion=6 pool_size=1": "prior pool",
    "log_dir=a\0b": "which is no text",
    "path_to_save_model=\ud800": "which is no text",
    "write_dir=\0": "which is no text",
    "space.a.a.a=[" + "[" * 99 + "]" * 100: "--set space.a.a.a: no valid YAML",
}


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry run", "run"])
@pytest.mark.parametrize(("keys", "says"), KEYS.items(), ids=[ascii(key)[:30] for key in KEYS])
def test_a_dry_run_refuses_what_the_run_refuses(keys, says, dry, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, search.main, "--cfg", DIGITS, "--set", *keys.split(" "), *dry)
    assert says in line
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_a_text_key_takes_the_text_as_it_is():
    config = load_config(DIGITS, ["log_dir=my set #1", "dataset_dir= a: [b, 'c'"])
    assert (config.log_dir, config.dataset_dir) == ("my set #1", " a: [b, 'c'")


def test_links_in_a_circle_and_titles_of_no_text_are_refused(capsys, tmp_path):
    (tmp_path / "loop.yml").symlink_to(tmp_path / "loop.yml")
    assert "cannot be read" in refused(capsys, search.main, "--cfg", tmp_path / "loop.yml")
    title = os.fsdecode(b"\xff\xfe")
    said = refused(capsys, search.main, "--cfg", DIGITS, "--title", title)
    assert r"'\udcff\udcfe' has '\udcff', which is no text" in said


def test_an_error_is_one_short_line_whatever_it_holds(capsys, tmp_path):
    assert printable("a\n\x1b[31m\x85\ud800 b") == r"a\n\x1b[31m\x85\ud800 b"
    assert len(printable("x" * 10**6)) < 2100
    file = tmp_path / "a.yml"
    file.write_text(f'{DIGITS.read_text()}\nseed: {["long" * 99] * 9999}\nmean: "\\e[2J\\n"\n')
    assert len(refused(capsys, search.main, "--cfg", file)) < 2200


@pytest.mark.slow
def test_a_closed_stderr_changes_no_exit_status(tmp_path):
    command = f"{sys.executable} {ROOT / 'search.py'} --cfg nowhere 2>&-"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")


TOOLS = sorted(file.stem for file in (ROOT / "tools").glob("*.py") if file.stem != "__init__")


def test_every_tool_finds_the_project_when_it_is_run_as_a_file():
    for name in TOOLS:
        assert "sys.path[0] =" in (ROOT / "tools" / f"{name}.py").read_text(), name


@pytest.mark.slow
def test_a_tool_runs_as_a_file(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "generate.py"), "--run", "x", "--flops", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "generate.py: error: x: it is no run folder (it has no config.yml)\n"
