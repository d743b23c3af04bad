"""Whatever goes wrong costs a line of text: broken inputs, kills at any moment, signals, full
disks, hostile files.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import search
import train_cifar
import validate
from tests.conftest import TINY_CONFIG
from tools import generate
from utils import checkpoint

ROOT = Path(search.__file__).parent


def contents(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes, and every folder."""
    return {
        str(f.relative_to(folder)): f.read_bytes() if f.is_file() else b""
        for f in sorted(folder.rglob("*"))
    }


def write_images(folder: Path, train: int = 8, size: int = 16) -> None:
    for part, count in (("train", train), ("test", 2)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (size, size), (25 * label, 9 * index, 0)).save(
                    folder / part / str(label) / f"{index}.png"
                )


# -- broken inputs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A folder with everything that a broken input is made from: configs, images, finished runs."""
    root = tmp_path_factory.mktemp("valid")
    text = TINY_CONFIG.format(log_dir="logs")
    (root / "tiny.yml").write_text(re.sub(r"(warmup|search)_epochs: 2", r"\1_epochs: 1", text))
    text = TINY_CONFIG.format(log_dir="logs").replace(
        "dataset: digits", "dataset: imagefolder\ndataset_dir: images"
    )
    (root / "folder.yml").write_text(text)
    write_images(root / "images")
    before = os.getcwd()
    os.chdir(root)
    try:
        search.main(
            ["--cfg", "tiny.yml", "--title", "run", "--set", "warmup_epochs=1", "search_epochs=1"]
        )
        train_cifar.main(
            ["--cfg", "tiny.yml", "--flops", "0.15", "--title", "net", "--set", "epochs=1"]
        )
        generate.main(["--run", "logs/run", "--flops", "0.1,0.15", "--out", "found.json"])
    finally:
        os.chdir(before)
    return root


def yaml_with(**changes):
    """Break the config: keys set anew, or with None removed."""

    def fault() -> None:
        values = yaml.safe_load(Path("tiny.yml").read_text())
        values.update(changes)
        Path("tiny.yml").write_text(
            yaml.safe_dump({key: value for key, value in values.items() if value is not None})
        )

    return fault


def text_of(name: str, text: str):
    return lambda: Path(name).write_text(text)


def cut(name: str, share: float = 0.5):
    def fault() -> None:
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: int(share * len(data))])

    return fault


def payload_with(name: str, **changes):
    def fault() -> None:
        payload = {**checkpoint.load(name), **changes}
        checkpoint.save(name, {key: value for key, value in payload.items() if value is not None})

    return fault


def json_with(name: str, **changes):
    return lambda: Path(name).write_text(
        json.dumps({**json.loads(Path(name).read_text()), **changes})
    )


def nothing() -> None:
    """The command line alone is at fault."""


SEARCH = [search.main, "--cfg", "tiny.yml", "--title", "new"]
FOLDER = [search.main, "--cfg", "folder.yml", "--title", "new"]
TRAIN = [train_cifar.main, "--cfg", "tiny.yml", "--title", "new", "--flops", "0.15"]
AGAIN = [
    search.main,
    "--cfg",
    "tiny.yml",
    "--title",
    "run",
    "--set",
    "warmup_epochs=1",
    "search_epochs=1",
]
NET = [
    train_cifar.main,
    "--cfg",
    "tiny.yml",
    "--title",
    "net",
    "--flops",
    "0.15",
    "--set",
    "epochs=1",
]
VALIDATE = [validate.main, "--checkpoint", "logs/net/checkpoints/last.pth"]
GENERATE = [generate.main, "--run", "logs/run", "--flops"]
LAST, NET_LAST = "logs/run/checkpoints/supernet_last.pth", "logs/net/checkpoints/last.pth"
GENERATOR = "logs/run/checkpoints/generator_best_avg.pth"

BROKEN = {
    # configs
    "unknown key": (
        yaml_with(batchsize=3),
        SEARCH,
        "batchsize: unknown key; did you mean batch_size",
    ),
    "missing key": (yaml_with(dataset=None), SEARCH, "dataset: this key is missing"),
    "wrong type": (
        yaml_with(batch_size="many"),
        SEARCH,
        "batch_size: 'many' is not a whole number",
    ),
    "low above high": (yaml_with(low_flops=0.3), SEARCH, "low_flops: 0.3 is not allowed"),
    "target out of reach": (yaml_with(high_flops=9), SEARCH, "high_flops: 9 M; this space reaches"),
    "even kernel": (yaml_with(l_cfgs=[[6, 8, [4, "skip"], 1]]), SEARCH, "kernel sizes must be odd"),
    "portion above one": (
        yaml_with(train_portion=1.5),
        SEARCH,
        "train_portion: 1.5 is not allowed",
    ),
    "portion of nothing": (yaml_with(train_portion=0), SEARCH, "train_portion: 0.0 is not allowed"),
    "no layers": (yaml_with(l_cfgs=[]), SEARCH, "a list with a row for each layer"),
    "negative epochs": (yaml_with(warmup_epochs=-1), SEARCH, "warmup_epochs: -1 is not allowed"),
    "learning rate zero": (
        yaml_with(optim_state={"lr": 0}),
        SEARCH,
        "optim_state.lr: 0.0 is not allowed; it must be above 0",
    ),
    "unknown optimiser": (
        yaml_with(optim_state={"optimizer": "x"}),
        SEARCH,
        "optim_state.optimizer: 'x' is not allowed; it must be sgd or adam",
    ),
    "unknown data set": (
        yaml_with(dataset="mnist"),
        SEARCH,
        "dataset: 'mnist' cannot be read; allowed are",
    ),
    "wrong classes": (yaml_with(classes=12), SEARCH, "classes: the config says 12, but digits"),
    "pretrained is missing": (
        yaml_with(warmup_epochs=0, model_pretrained="no.pth"),
        SEARCH,
        "no such checkpoint",
    ),
    "copy onto a folder": (yaml_with(path_to_save_model="images"), SEARCH, "but it is a folder"),
    "no network": (yaml_with(supernet="none"), TRAIN, "network_config: this key is missing"),
    "unknown kind": (yaml_with(supernet="x"), SEARCH, "must be unified or elastic or nasbench201"),
    "key twice": (
        text_of("tiny.yml", "a: 1\na: 2"),
        SEARCH,
        "tiny.yml: a: this key is given twice",
    ),
    "no YAML": (text_of("tiny.yml", "a: ["), SEARCH, "tiny.yml: no valid YAML"),
    "no mapping": (text_of("tiny.yml", "- 1"), SEARCH, "tiny.yml: it holds no keys"),
    "not text": (
        lambda: Path("tiny.yml").write_bytes(b"\xff\xfe\x00"),
        SEARCH,
        "tiny.yml: no valid YAML",
    ),
    "include outside": (
        text_of("tiny.yml", "a: !include ../../etc/passwd"),
        SEARCH,
        "outside the config's folder",
    ),
    "code in YAML": (
        text_of("tiny.yml", "a: !!python/object/apply:os.mkdir [ran]"),
        SEARCH,
        "no valid YAML",
    ),
    "flag unknown": (nothing, [*SEARCH, "--nonsense"], "unrecognized arguments: --nonsense"),
    "flag without value": (nothing, [search.main], "the following arguments are required: --cfg"),
    "target of no number": (
        nothing,
        [*TRAIN, "--flops", "nan"],
        "argument --flops: invalid positive_number value",
    ),
    "target zero": (
        nothing,
        [*TRAIN, "--architecture", "found.json", "--flops", "0"],
        "argument --flops: invalid",
    ),
    "missing config": (lambda: Path("tiny.yml").unlink(), SEARCH, "tiny.yml: cannot be read"),
    # command lines
    "set without value": (nothing, [*SEARCH, "--set", "seed"], "--set seed: it must be key=value"),
    "title outside": (
        nothing,
        [*SEARCH, "--title", "../x"],
        "it must name a folder inside log_dir",
    ),
    "resume from nowhere": (
        nothing,
        [*SEARCH, "--resume", "nowhere"],
        "--resume nowhere: it must be",
    ),
    "changed config": (nothing, [*AGAIN, "seed=5"], "was started with seed: 1, now it is 5"),
    "title of another stage": (nothing, [*TRAIN, "--title", "run"], "this is a run of search"),
    "no such target": (nothing, [*TRAIN, "--flops", "9"], "target 9 M: no architecture meets it"),
    "unknown activation": (
        nothing,
        [*TRAIN, "--activation", "gelu"],
        "activation: 'gelu' is not allowed",
    ),
    "inherit from nothing": (
        nothing,
        [*TRAIN, "--inherit", "no.pth"],
        "no.pth: there is no such checkpoint",
    ),
    "inherit from a network": (nothing, [*TRAIN, "--inherit", NET_LAST], "state_dict mismatch"),
    "rate above one": (nothing, [*TRAIN, "--drop-path", "1.5"], "drop_path: 1.5 is not allowed"),
    "targets backwards": (
        nothing,
        [*GENERATE, "2:1:0.1"],
        "--flops 2:1:0.1: it must be start:stop:step",
    ),
    "targets of words": (nothing, [*GENERATE, "much"], "--flops much: it must be"),
    "generate out of reach": (
        nothing,
        [*GENERATE, "0.1,99"],
        "target 99 M: no architecture meets it",
    ),
    "no run folder": (
        nothing,
        [generate.main, "--run", "images", "--flops", "0.1"],
        "it is no run folder",
    ),
    # checkpoints
    "truncated supernet": (cut(LAST), AGAIN, "supernet_last.pth: not a readable checkpoint"),
    "foreign supernet": (
        lambda: shutil.copy(NET_LAST, LAST),
        AGAIN,
        "supernet_last.pth: cannot resume from it",
    ),
    "supernet without optimiser": (
        payload_with(LAST, optimizer=None),
        AGAIN,
        "KeyError: 'optimizer'",
    ),
    "supernet with a broken tally": (
        payload_with(LAST, tally={"x": 1}),
        AGAIN,
        "cannot resume from it",
    ),
    "supernet of no weights": (payload_with(LAST, model=3), AGAIN, "cannot resume from it"),
    "truncated generator": (
        cut(GENERATOR),
        [*GENERATE, "0.1"],
        "generator_best_avg.pth: not a readable checkpoint",
    ),
    "foreign generator": (
        lambda: shutil.copy(LAST, GENERATOR),
        [*GENERATE, "0.1"],
        "state_dict mismatch",
    ),
    "truncated network": (cut(NET_LAST), VALIDATE, "last.pth: not a readable checkpoint"),
    "network of another shape": (
        payload_with(NET_LAST, architecture=[[3] * 6] * 2),
        VALIDATE,
        "last.pth: state_dict mismatch",
    ),
    "network of words": (
        payload_with(NET_LAST, architecture=[["x"] * 6] * 2),
        VALIDATE,
        "it does not describe its network",
    ),
    "network of no architecture": (
        payload_with(NET_LAST, architecture=[[3]]),
        VALIDATE,
        "architecture: ",
    ),
    "network without options": (
        payload_with(NET_LAST, options=None),
        VALIDATE,
        "it does not describe its network",
    ),
    "network of wrong data": (
        payload_with(NET_LAST, data=3),
        VALIDATE,
        "it does not describe its network",
    ),
    "network that says nothing": (
        payload_with(NET_LAST, kind=None),
        VALIDATE,
        "it does not say its architecture",
    ),
    "truncated training": (cut(NET_LAST), NET, "last.pth: not a readable checkpoint"),
    "a list as checkpoint": (
        lambda: torch.save([1], NET_LAST),
        VALIDATE,
        "a checkpoint must be a dictionary",
    ),
    # other files of a run
    "pool cut short": (
        cut("logs/run/prior_pool.json"),
        AGAIN,
        "prior_pool.json: no prior pool in JSON",
    ),
    "pool of nothing": (
        text_of("logs/run/prior_pool.json", "{}"),
        AGAIN,
        "prior_pool.json: no prior pool",
    ),
    "pool of mixtures": (
        text_of("logs/run/prior_pool.json", json.dumps({"0.1": [[0.25] * 24] * 2})),
        AGAIN,
        "every group of 4 numbers must be one 1 and else 0",
    ),
    "split cut short": (cut("logs/run/split.json"), AGAIN, "split.json: not a split file"),
    "split of an image twice": (
        json_with("logs/run/split.json", feed=[5, 5]),
        AGAIN,
        "split.json: not a split file (an index is there twice)",
    ),
    "split of other images": (
        json_with("logs/run/split.json", images=7),
        AGAIN,
        "it splits 7 images",
    ),
    "record of the run broken": (
        cut("logs/run/environment.json"),
        AGAIN,
        "environment.json: not the record of a run",
    ),
    "config of the run broken": (
        text_of("logs/run/config.yml", "a: ["),
        AGAIN,
        "config.yml: no valid YAML",
    ),
    "architecture broken": (cut("logs/net/architecture.json"), NET, "architecture.json: "),
    "list of architectures cut short": (
        cut("found.json"),
        [*TRAIN, "--architecture", "found.json"],
        "found.json: no",
    ),
    "list of another space": (
        text_of(
            "found.json",
            json.dumps([{"target": 0.15, "macs_m": 1, "params_m": 1, "choices": [[9]]}]),
        ),
        [*TRAIN, "--architecture", "found.json"],
        "architecture: ",
    ),
    # images
    "strict data": (
        cut("images/train/3/1.png"),
        [*FOLDER, "--strict-data"],
        "3/1.png: cannot be read as an image",
    ),
    "a class too few": (
        lambda: shutil.rmtree("images/test/3"),
        FOLDER,
        "its classes are not those of",
    ),
    "no training images": (
        lambda: shutil.rmtree("images/train"),
        FOLDER,
        "train: it must be a folder",
    ),
    "no images at all": (lambda: shutil.rmtree("images"), FOLDER, "it must be a folder"),
    "test images missing": (
        lambda: shutil.rmtree("images/test"),
        FOLDER,
        "val: it must be a folder",
    ),
    "an empty class": (
        lambda: shutil.rmtree("images/train/3") or os.mkdir("images/train/3"),
        FOLDER,
        "images/train",
    ),
    "only broken images": (
        lambda: [file.write_bytes(b"x") for file in Path("images/train").rglob("*.png")],
        FOLDER,
        "none of its images can be read",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_input_is_one_line_and_changes_nothing(name, valid, tmp_path, monkeypatch, capsys):
    fault, (main, *arguments), says = BROKEN[name]
    here = tmp_path / "here"
    shutil.copytree(valid, here)
    monkeypatch.chdir(here)
    fault()
    before = contents(here)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("skipped ")
    ]
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert contents(here) == before


def test_a_checkpoint_that_tries_to_run_code_does_not(valid, tmp_path, monkeypatch, capsys):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, ("ran",)

    here = tmp_path / "here"
    shutil.copytree(valid, here)
    monkeypatch.chdir(here)
    for file, (main, *arguments) in (
        (LAST, AGAIN),
        (NET_LAST, VALIDATE),
        (GENERATOR, [*GENERATE, "0.1"]),
    ):
        torch.save({"model": Hostile()}, file)
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "not a readable checkpoint" in capsys.readouterr().err
    assert not (here / "ran").exists()


def test_a_loss_that_is_no_number_names_step_and_checkpoint(valid, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(valid, tmp_path, dirs_exist_ok=True)
    with pytest.raises(SystemExit) as stopped:
        search.main(
            [
                "--cfg",
                "tiny.yml",
                "--title",
                "wild",
                "--set",
                "warmup_epochs=1",
                "optim_state.lr=1e30",
            ]
        )
    assert stopped.value.code == 2
    assert re.search(
        r"the loss is (nan|inf) at step \d+; there is no checkpoint yet", capsys.readouterr().err
    )
    epoch, good = search.WarmUp.epoch, "logs/later/checkpoints/supernet_last.pth"

    def broken_in_the_second(training, *rest):
        meter = epoch(training, *rest)
        if training.epochs == 1:
            training.supernet.classifier.weight.data.fill_(float("inf"))
        return meter

    monkeypatch.setattr(search.WarmUp, "epoch", broken_in_the_second)
    with pytest.raises(SystemExit):
        search.main(["--cfg", "tiny.yml", "--title", "later", "--set", "warmup_epochs=2"])
    said = capsys.readouterr().err
    assert f"a weight is NaN or infinite; {good} is the last good checkpoint" in said
    assert checkpoint.load(good)["epoch"] == 1


# -- kills, signals and full disks: real child processes -------------------------------------------

LONGER = "warmup_epochs=3 search_epochs=6 epochs=3 batch_size=16 print_freq=1 generator_ema=0.9 path_to_prior_pool=p.json"
COMMANDS = {
    "search": ["search.py", "--cfg", "tiny.yml", "--title", "run", "--set", *LONGER.split()],
    "train_cifar": [
        *(
            "train_cifar.py",
            "--cfg",
            "tiny.yml",
            "--title",
            "net",
            "--architecture",
            "found.json",
            "--flops",
            "0.15",
        ),
        *(
            "--ema",
            "0.9",
            "--mixup",
            "--drop-path",
            "0.2",
            "--cutout",
            "4",
            "--set",
            *LONGER.split(),
        ),
    ],
}


@pytest.fixture(scope="module")
def unbroken(valid, tmp_path_factory) -> Path:
    """Both commands run without a break."""
    folder = begin(valid, tmp_path_factory.mktemp("unbroken"))
    for arguments in COMMANDS.values():
        assert start(arguments, folder).wait(PATIENCE) == 0
    return folder


def begin(valid: Path, folder: Path) -> Path:
    for name in ("tiny.yml", "found.json"):
        shutil.copy(valid / name, folder / name)
    return folder


def start(arguments: list[str], folder: Path, **options) -> subprocess.Popen:
    """A stage as a user starts it, with its output in files."""
    with open(folder / "out.txt", "w") as out, open(folder / "err.txt", "w") as err:
        command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        return subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=err, env={**os.environ}, **options
        )


PATIENCE = 300  # seconds


def wait_for(child: subprocess.Popen, folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (
        time.monotonic() < deadline
        and child.poll() is None
        and not re.search(pattern, (folder / "out.txt").read_text())
    ):
        time.sleep(0.02)


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_same_files(one: Path, other: Path) -> None:
    """All that a run leaves behind: checkpoints tensor by tensor, all else byte by byte but for
    TensorBoard's times.
    """
    names = [
        sorted(name for name in contents(root) if "tensorboard" not in name)
        for root in (one, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if (one / name).is_dir() or name == "environment.json":  # which says the state of the code
            continue
        if name.endswith(".pth"):
            assert equal(checkpoint.load(one / name), checkpoint.load(other / name)), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


PHASES = {
    "search": [
        "run folder",
        *(f"warm-up {n}/3 step" for n in (1, 2, 3)),
        *(f"generator {n}/6 step" for n in (1, 3, 5)),
    ],
    "train_cifar": [f"epoch {n}/3 step" for n in (1, 2, 3)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "title"), [("search", "run"), ("train_cifar", "net")])
def test_killed_again_and_again_a_run_ends_with_the_same_bits(
    stage, title, valid, unbroken, tmp_path
):
    """A kill at a seeded random moment after each phase has begun; every start goes on where the
    last one ended.
    """
    folder, moments, landed = begin(valid, tmp_path), random.Random(stage), 0
    for index, _ in enumerate(PHASES[stage]):
        child = start(COMMANDS[stage], folder)
        wait_for(child, folder, "|".join(PHASES[stage][index:]))
        time.sleep(moments.uniform(0, 0.2))
        child.kill()
        landed += child.wait(PATIENCE) == -signal.SIGKILL
    assert landed >= len(PHASES[stage]) - 1  # on a fast machine the last one may come too late
    assert start(COMMANDS[stage], folder).wait(PATIENCE) == 0, (folder / "err.txt").read_text()
    assert_same_files(unbroken / "logs" / title, folder / "logs" / title)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "title", "number", "moment"),
    [
        ("search", "run", signal.SIGTERM, "warm-up 2/3 step 5/"),
        ("search", "run", signal.SIGINT, "generator 3/6 step 3/"),
        ("train_cifar", "net", signal.SIGTERM, "epoch 2/3 step 10/"),
    ],
)
def test_sigterm_and_ctrl_c_save_in_the_middle_of_an_epoch(
    stage, title, number, moment, valid, unbroken, tmp_path
):
    folder = begin(valid, tmp_path)
    child = start(COMMANDS[stage], folder)
    wait_for(child, folder, moment)
    child.send_signal(number)
    assert child.wait(PATIENCE) == 128 + number
    said = (folder / "err.txt").read_text()
    assert "saved; the same command resumes from here" in said
    assert f"stopped by {number.name}" in said
    assert "Traceback" not in said
    name = {"w": "supernet_last", "g": "generator_last", "e": "last"}[moment[0]]
    state = checkpoint.load(folder / "logs" / title / "checkpoints" / f"{name}.pth")
    epoch, step = (int(number) for number in re.search(r" (\d+)/.* step (\d+)", moment).groups())
    assert (state["epoch"], state["tally"]["steps"]) >= (epoch - 1, step)
    assert start(COMMANDS[stage], folder).wait(PATIENCE) == 0
    assert_same_files(unbroken / "logs" / title, folder / "logs" / title)


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_spares_the_readers_of_images(valid, tmp_path):
    """`timeout`, job schedulers and terminals signal the processes that read images too."""
    write_images(tmp_path / "images", train=20, size=80)
    text = TINY_CONFIG.format(log_dir="logs").replace(
        "dataset: digits", "dataset: imagefolder\ndataset_dir: images"
    )
    settings = {
        "input_size: 16": "input_size: 80",
        "low_flops: 0.1": "low_flops: 2",
        "high_flops: 0.2": "high_flops: 4",
    }
    for old, new in settings.items():
        text = text.replace(old, new)
    (tmp_path / "files.yml").write_text(text)
    options = [
        "num_workers=2",
        "batch_size=4",
        "print_freq=1",
        "stem_stride=1",
        "warmup_epochs=50",
        "target_step=0.1",
    ]
    arguments = ["search.py", "--cfg", "files.yml", "--title", "run", "--set", *options]
    child = start(arguments, tmp_path, start_new_session=True)
    wait_for(child, tmp_path, "warm-up 1/50 step 2/")
    os.killpg(child.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)  # as `timeout` does
    assert child.wait(PATIENCE) == 128 + signal.SIGTERM
    said = (tmp_path / "err.txt").read_text()
    assert "saved; the same command resumes from here" in said
    assert "Traceback" not in said
    assert (tmp_path / "logs" / "run" / "checkpoints" / "supernet_last.pth").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_no_checkpoint(valid, unbroken, tmp_path):
    folder = begin(valid, tmp_path)
    child = start(COMMANDS["search"], folder)
    wait_for(child, folder, "warm-up 1/3 loss")
    wait_for(child, folder, "warm-up 2/3 step 2/")
    child.kill()
    child.wait(PATIENCE)
    checkpoints = contents(folder / "logs" / "run" / "checkpoints")
    assert checkpoints
    largest = max(map(len, checkpoints.values()))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 4, largest // 4))

    child = start(COMMANDS["search"], folder, preexec_fn=limited)
    assert child.wait(PATIENCE) == 2
    lines = (folder / "err.txt").read_text().splitlines()
    assert len(lines) == 1, lines
    assert "File too large" in lines[0]
    assert contents(folder / "logs" / "run" / "checkpoints") == checkpoints
    assert start(COMMANDS["search"], folder).wait(PATIENCE) == 0
    assert_same_files(unbroken / "logs" / "run", folder / "logs" / "run")
