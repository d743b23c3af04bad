"""Whatever goes wrong costs a line of text.

Broken inputs, kills at any moment, signals, full disks, hostile files.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
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
from tests.support import run, wait_for
from tests.worlds import Child, script
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
                image = Image.new("RGB", (size, size), (25 * label, 9 * index, 0))
                image.save(folder / part / str(label) / f"{index}.png")


def tiny_config(**changes) -> str:
    """The text of a config, with other values; None leaves a key out."""
    values = {**yaml.safe_load(TINY_CONFIG.format(log_dir="logs")), **changes}
    return yaml.safe_dump({key: value for key, value in values.items() if value is not None})


ON_DISK = {"dataset": "imagefolder", "dataset_dir": "images"}


# -- broken inputs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A folder with everything that a broken input is made from: configs, images, finished runs."""
    root = tmp_path_factory.mktemp("valid")
    (root / "tiny.yml").write_text(tiny_config(warmup_epochs=1, search_epochs=1))
    (root / "folder.yml").write_text(tiny_config(**ON_DISK))
    write_images(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run(*RUN)
        run(*NET)
        run(generate.main, "--run logs/run --flops 0.1,0.15 --out found.json")
    return root


def yaml_with(**changes):
    """Break the config: other values of keys, or with None no such keys."""
    changes = {"warmup_epochs": 1, "search_epochs": 1, **changes}
    return text_of("tiny.yml", tiny_config(**changes))


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


def list_with(**row):
    rows = [{"target": 0.15, "macs_m": 1, "params_m": 1, **row}]
    return text_of("found.json", json.dumps(rows))


def copied(source: str, target: str):
    return lambda: shutil.copy(source, target)


def removed(folder: str):
    return lambda: shutil.rmtree(folder)


def nothing() -> None:
    """The command line alone is at fault."""


def with_(command: tuple, words: str) -> tuple:
    """A command with more words."""
    return *command, words


SEARCH = (search.main, "--cfg tiny.yml --title new")
FOLDER = (search.main, "--cfg folder.yml --title new")
TRAIN = (train_cifar.main, "--cfg tiny.yml --title new --flops 0.15")
LISTED = with_(TRAIN, "--architecture found.json")
RUN = (search.main, "--cfg tiny.yml --title run --set warmup_epochs=1 search_epochs=1")
NET = (train_cifar.main, "--cfg tiny.yml --title net --flops 0.15 --set epochs=1")
VALIDATE = (validate.main, "--checkpoint logs/net/checkpoints/last.pth")
GENERATE = (generate.main, "--run logs/run --flops")
ANSWER = with_(GENERATE, "0.1")
LAST, NET_LAST = "logs/run/checkpoints/supernet_last.pth", "logs/net/checkpoints/last.pth"
GENERATOR = "logs/run/checkpoints/generator_best_avg.pth"
POOL, SPLIT, STORED = (
    f"logs/{name}.json" for name in ("run/prior_pool", "run/split", "net/architecture")
)

CONFIGS = {
    "unknown key": ({"batchsize": 3}, "batchsize: unknown key; did you mean batch_size"),
    "missing key": ({"dataset": None}, "dataset: this key is missing"),
    "wrong type": ({"batch_size": "many"}, "batch_size: 'many' is not a whole number"),
    "low above high": ({"low_flops": 0.3}, "low_flops: 0.3 is not allowed"),
    "target out of reach": ({"high_flops": 9}, "high_flops: 9 M; this space reaches"),
    "even kernel": ({"l_cfgs": [[6, 8, [4, "skip"], 1]]}, "kernel sizes must be odd"),
    "portion above one": ({"train_portion": 1.5}, "train_portion: 1.5 is not allowed"),
    "portion of nothing": ({"train_portion": 0}, "train_portion: 0.0 is not allowed"),
    "no layers": ({"l_cfgs": []}, "l_cfgs: this key is missing"),
    "negative epochs": ({"warmup_epochs": -1}, "warmup_epochs: -1 is not allowed"),
    "learning rate zero": (
        {"optim_state": {"lr": 0}},
        "optim_state.lr: 0.0 is not allowed; it must be at least 1e-12",
    ),
    "unknown optimiser": (
        {"optim_state": {"optimizer": "x"}},
        "optim_state.optimizer: 'x' is not allowed; it must be sgd or adam",
    ),
    "unknown data set": ({"dataset": "mnist"}, "dataset: 'mnist' cannot be read; allowed are"),
    "wrong classes": ({"classes": 12}, "classes: the config says 12, but digits"),
    "pretrained is missing": (
        {"warmup_epochs": 0, "model_pretrained": "no.pth"},
        "no such checkpoint",
    ),
    "copy onto a folder": ({"path_to_save_model": "images"}, "but it is a folder"),
    "unknown kind": (
        {"supernet": "x"},
        "it must be unified or elastic or nasbench201",
    ),
    "no space": ({"supernet": "nasbench201"}, "space: this key is missing"),
}
TEXTS = {
    "key twice": ("a: 1\na: 2", "tiny.yml: a: this key is given twice"),
    "no YAML": ("a: [", "tiny.yml: no valid YAML"),
    "no mapping": ("- 1", "tiny.yml: it holds no keys"),
    "include outside": ("a: !include ../../etc/passwd", "outside the config's folder"),
    "code in YAML": ("a: !!python/object/apply:os.mkdir [ran]", "no valid YAML"),
}
LINES = {
    "flag unknown": (with_(SEARCH, "--nonsense"), "unrecognized arguments: --nonsense"),
    "flag without value": ((search.main,), "the following arguments are required: --cfg"),
    "target of no number": (
        with_(TRAIN, "--flops nan"),
        "argument --flops: invalid positive_number value",
    ),
    "target zero": (with_(LISTED, "--flops 0"), "argument --flops: invalid"),
    "set without value": (with_(SEARCH, "--set seed"), "--set seed: it must be key=value"),
    "title outside": (with_(SEARCH, "--title ../x"), "it must name a folder inside log_dir"),
    "resume from nowhere": (
        with_(SEARCH, "--resume nowhere"),
        "--resume nowhere: it must be",
    ),
    "changed config": (with_(RUN, "seed=5"), "was started with seed: 1, now it is 5"),
    "title of another stage": (with_(TRAIN, "--title run"), "this is a run of search"),
    "no such target": (with_(TRAIN, "--flops 9"), "target 9 M: no architecture meets it"),
    "unknown activation": (
        with_(TRAIN, "--activation gelu"),
        "activation: 'gelu' is not allowed",
    ),
    "inherit from nothing": (
        with_(TRAIN, "--inherit no.pth"),
        "no.pth: there is no such checkpoint",
    ),
    "inherit from a network": (with_(TRAIN, f"--inherit {NET_LAST}"), "state_dict mismatch"),
    "rate above one": (with_(TRAIN, "--drop-path 1.5"), "drop_path: 1.5 is not allowed"),
    "targets backwards": (
        with_(GENERATE, "2:1:0.1"),
        "--flops 2:1:0.1: it must be start:stop:step",
    ),
    "targets of words": (with_(GENERATE, "much"), "--flops much: it must be"),
    "generate out of reach": (
        with_(GENERATE, "0.1,99"),
        "target 99 M: no architecture meets it",
    ),
    "no run folder": (
        (generate.main, "--run images --flops 0.1"),
        "it is no run folder",
    ),
}
FILES = {
    "missing config": (lambda: Path("tiny.yml").unlink(), SEARCH, "tiny.yml: cannot be read"),
    "not text": (
        lambda: Path("tiny.yml").write_bytes(b"\xff\xfe\x00"),
        SEARCH,
        "tiny.yml: no valid YAML",
    ),
    "no network": (yaml_with(supernet="none"), TRAIN, "network_config: this key is missing"),
    # checkpoints
    "truncated supernet": (cut(LAST), RUN, "supernet_last.pth: not a readable checkpoint"),
    "foreign supernet": (
        copied(NET_LAST, LAST),
        RUN,
        "supernet_last.pth: cannot resume from it",
    ),
    "supernet without optimiser": (payload_with(LAST, optimizer=None), RUN, "'optimizer'"),
    "supernet with a broken tally": (
        payload_with(LAST, tally={"x": 1}),
        RUN,
        "cannot resume from it",
    ),
    "supernet of no weights": (payload_with(LAST, model=3), RUN, "it holds no weights"),
    "truncated generator": (
        cut(GENERATOR),
        ANSWER,
        "generator_best_avg.pth: not a readable checkpoint",
    ),
    "foreign generator": (copied(LAST, GENERATOR), ANSWER, "state_dict mismatch"),
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
    "network of another kind": (
        payload_with(NET_LAST, kind="elastic"),
        VALIDATE,
        "it does not describe its network",
    ),
    "network of no space": (
        payload_with(NET_LAST, space={"layers": []}),
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
    "pool cut short": (cut(POOL), RUN, "prior_pool.json: not a prior pool in JSON"),
    "pool of nothing": (text_of(POOL, "{}"), RUN, "prior_pool.json: not a prior pool in JSON"),
    "pool of mixtures": (
        text_of(POOL, json.dumps({"0.1": [[0.25] * 24] * 2})),
        RUN,
        "every group of 4 numbers must be one 1 and else 0",
    ),
    "split cut short": (cut(SPLIT), RUN, "split.json: not a split file"),
    "split of an image twice": (
        json_with(SPLIT, feed=[5, 5]),
        RUN,
        "split.json: not a split file (an index is there twice)",
    ),
    "split of other images": (json_with(SPLIT, images=7), RUN, "it splits 7 images"),
    "record of the run broken": (
        cut("logs/run/environment.json"),
        RUN,
        "environment.json: not the record of a run",
    ),
    "config of the run broken": (
        text_of("logs/run/config.yml", "a: ["),
        RUN,
        "config.yml: no valid YAML",
    ),
    "architecture broken": (cut(STORED), NET, "architecture.json: not an architecture"),
    "architecture of no space": (
        json_with(STORED, space=3),
        NET,
        "architecture.json: it does not describe its architecture",
    ),
    "architecture of a newer form": (
        json_with(STORED, format="architecture/3"),
        NET,
        "its format is 'architecture/3', not 'architecture/2'",
    ),
    "list of architectures cut short": (
        cut("found.json"),
        LISTED,
        "found.json: not a list of generated architectures",
    ),
    "list of another space": (
        list_with(kind="unified", architecture=[[9]]),
        LISTED,
        "architecture: it has 1 layers; the space has 2",
    ),
    "older list of another space": (list_with(choices=[[9]]), LISTED, "architecture: it has 1"),
    "list of another kind": (
        list_with(kind="nasbench201", architecture=[[3] * 6] * 2),
        LISTED,
        "found.json: not a list of generated architectures (architecture: of kind nasbench201",
    ),
    "list of networks of no kind": (
        list_with(architecture={"ks": [3], "e": [3], "d": [1], "r": 16}),
        LISTED,
        "found.json: not a list of generated architectures (architecture: not the choices of each",
    ),
    # images
    "strict data": (
        cut("images/train/3/1.png"),
        with_(FOLDER, "--strict-data"),
        "3/1.png: cannot be read as an image",
    ),
    "a class too few": (removed("images/test/3"), FOLDER, "its classes are not those of"),
    "no training images": (removed("images/train"), FOLDER, "train: it must be a folder"),
    "no images at all": (removed("images"), FOLDER, "it must be a folder"),
    "test images missing": (removed("images/test"), FOLDER, "val: it must be a folder"),
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
BROKEN = {
    **{name: (yaml_with(**keys), SEARCH, says) for name, (keys, says) in CONFIGS.items()},
    **{name: (text_of("tiny.yml", text), SEARCH, says) for name, (text, says) in TEXTS.items()},
    **{name: (nothing, command, says) for name, (command, says) in LINES.items()},
    **FILES,
}


@pytest.fixture
def here(valid, tmp_path, monkeypatch) -> Path:
    """The working directory: a copy of `valid`."""
    shutil.copytree(valid, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def errors_of(capsys, command: tuple) -> list[str]:
    """What a command that ends with exit status 2 says, except which images it skips."""
    with pytest.raises(SystemExit) as stopped:
        run(*command)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    return [line for line in said if not line.startswith("skipped ")]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_input_is_one_line_and_changes_nothing(name, here, capsys):
    fault, command, says = BROKEN[name]
    fault()
    before = contents(here)
    [line] = errors_of(capsys, command)
    assert says in line
    assert contents(here) == before


def test_a_checkpoint_that_tries_to_run_code_does_not(here, capsys):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, ("ran",)

    for file, command in ((LAST, RUN), (NET_LAST, VALIDATE), (GENERATOR, ANSWER)):
        torch.save({"model": Hostile()}, file)
        [line] = errors_of(capsys, command)
        assert "not a readable checkpoint" in line
    assert not (here / "ran").exists()


@pytest.mark.slow
def test_a_loss_that_is_nan_names_step_and_checkpoint(here, monkeypatch, capsys):
    wild = (search.main, "--cfg tiny.yml --title wild --set warmup_epochs=1 optim_state.lr=1e30")
    said = "\n".join(errors_of(capsys, wild))
    assert re.search(r"the loss is (nan|inf) at step \d+; there is no checkpoint yet", said)
    epoch, good = search.WarmUp.epoch, "logs/later/checkpoints/supernet_last.pth"

    def broken_in_the_second(training, *rest):
        meter = epoch(training, *rest)
        if training.epochs == 1:
            training.supernet.classifier.weight.data.fill_(float("inf"))
        return meter

    monkeypatch.setattr(search.WarmUp, "epoch", broken_in_the_second)
    later = (search.main, "--cfg tiny.yml --title later --set warmup_epochs=2")
    said = "\n".join(errors_of(capsys, later))
    assert f"a weight is NaN or infinite; {good} is the last good checkpoint" in said
    assert checkpoint.load(good)["epoch"] == 1


# -- kills, signals and full disks: real child processes -------------------------------------------

LONGER = (
    "--set warmup_epochs=3 search_epochs=4 epochs=3 batch_size=96 print_freq=1 generator_ema=0.9 "
    "path_to_prior_pool=p.json"
)
COMMANDS = {
    "search": f"search.py --cfg tiny.yml --title run {LONGER}",
    "train_cifar": "train_cifar.py --cfg tiny.yml --title net --architecture found.json "
    f"--flops 0.15 --ema 0.9 --mixup --drop-path 0.2 --cutout 4 {LONGER}",
}


@pytest.fixture(scope="module")
def unbroken(valid, tmp_path_factory) -> Path:
    """Both commands run without a break."""
    folder = begin(valid, tmp_path_factory.mktemp("unbroken"))
    for line in COMMANDS.values():
        assert start(line, folder).wait() == 0
    return folder


def begin(valid: Path, folder: Path) -> Path:
    for name in ("tiny.yml", "found.json"):
        shutil.copy(valid / name, folder / name)
    return folder


def start(line: str, folder: Path) -> Child:
    """A stage as a user starts it."""
    return Child(folder, script, line)


def wait_for_output(child: Child, pattern: str) -> None:
    """Until the output has the pattern, or the child ends."""
    wait_for(lambda: child.poll() is not None or re.search(pattern, child.said), seconds=300)


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_same_files(one: Path, other: Path) -> None:
    """All that a run leaves behind, except TensorBoard's times, and which process wrote it.

    Checkpoints are compared tensor by tensor, all else byte by byte.
    """
    names, others = (
        sorted(name for name in contents(root) if "tensorboard" not in name)
        for root in (one, other)
    )
    assert names == others
    for name in names:
        own = ("environment.json", ".lock")  # the state of the code, and the process
        if (one / name).is_dir() or name in own:
            continue
        if name.endswith(".pth"):
            assert equal(checkpoint.load(one / name), checkpoint.load(other / name)), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def assert_stopped(folder: Path, number: signal.Signals) -> None:
    """The last child said in which way it stopped, and that it saved."""
    said = (folder / "err.txt").read_text()
    assert "saved; the same command resumes from here" in said
    assert f"stopped by {number.name}" in said
    assert "Traceback" not in said


PHASES = {
    "search": [
        "run folder",
        *(f"warm-up {n}/3 step" for n in (1, 2, 3)),
        *(f"generator {n}/4 step" for n in (1, 2, 3)),
    ],
    "train_cifar": [f"epoch {n}/3 step" for n in (1, 2, 3)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "title"), [("search", "run"), ("train_cifar", "net")])
def test_killed_again_and_again_a_run_ends_with_the_same_bits(
    stage, title, valid, unbroken, tmp_path
):
    """A kill at a seeded random moment after each phase has started; every start resumes."""
    folder, moments, landed = begin(valid, tmp_path), random.Random(stage), 0
    for index, _ in enumerate(PHASES[stage]):
        child = start(COMMANDS[stage], folder)
        wait_for_output(child, "|".join(PHASES[stage][index:]))
        time.sleep(moments.uniform(0, 0.2))
        child.kill()
        landed += child.wait() == -signal.SIGKILL
    assert landed >= len(PHASES[stage]) - 1  # on a fast machine the last one may come too late
    assert start(COMMANDS[stage], folder).wait() == 0, (folder / "err.txt").read_text()
    assert_same_files(unbroken / "logs" / title, folder / "logs" / title)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "title", "number", "moment"),
    [
        ("search", "run", signal.SIGTERM, "warm-up 2/3 step 5/"),
        ("search", "run", signal.SIGINT, "generator 2/4 step 1/"),
        ("train_cifar", "net", signal.SIGTERM, "epoch 2/3 step 10/"),
    ],
)
def test_sigterm_and_ctrl_c_save_in_the_middle_of_an_epoch(
    stage, title, number, moment, valid, unbroken, tmp_path
):
    folder = begin(valid, tmp_path)
    child = start(COMMANDS[stage], folder)
    wait_for_output(child, moment)
    child.send_signal(number)
    assert child.wait() == 128 + number
    assert_stopped(folder, number)
    name = {"w": "supernet_last", "g": "generator_last", "e": "last"}[moment[0]]
    state = checkpoint.load(folder / "logs" / title / "checkpoints" / f"{name}.pth")
    epoch, step = (int(number) for number in re.search(r" (\d+)/.* step (\d+)", moment).groups())
    assert (state["epoch"], state["tally"]["steps"]) >= (epoch - 1, step)
    assert start(COMMANDS[stage], folder).wait() == 0
    assert_same_files(unbroken / "logs" / title, folder / "logs" / title)


def in_a_session(line: str) -> None:
    os.setsid()
    script(line)


def with_files_of(size: int, line: str) -> None:
    """No file may have more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    script(line)


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_spares_the_readers_of_images(tmp_path):
    """`timeout`, job schedulers and terminals signal the processes that read images too."""
    write_images(tmp_path / "images", train=20, size=80)
    larger = {"input_size": 80, "low_flops": 2, "high_flops": 4, "target_step": 0.1}
    quick = {"num_workers": 2, "batch_size": 4, "print_freq": 1, "warmup_epochs": 50}
    (tmp_path / "files.yml").write_text(tiny_config(**ON_DISK, **larger, **quick))
    child = Child(tmp_path, in_a_session, "search.py --cfg files.yml --title run")
    wait_for_output(child, "warm-up 1/50 step 2/")
    os.killpg(child.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)  # as `timeout` does
    assert child.wait() == 128 + signal.SIGTERM
    assert_stopped(tmp_path, signal.SIGTERM)
    assert (tmp_path / "logs" / "run" / "checkpoints" / "supernet_last.pth").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_no_checkpoint(valid, unbroken, tmp_path):
    folder = begin(valid, tmp_path)
    child = start(COMMANDS["search"], folder)
    wait_for_output(child, "warm-up 1/3 loss")
    wait_for_output(child, "warm-up 2/3 step 2/")
    child.kill()
    child.wait()
    checkpoints = contents(folder / "logs" / "run" / "checkpoints")
    assert checkpoints
    largest = max(map(len, checkpoints.values()))
    child = Child(folder, with_files_of, largest // 4, COMMANDS["search"])
    assert child.wait() == 2
    [line] = (folder / "err.txt").read_text().splitlines()
    assert "File too large" in line
    assert contents(folder / "logs" / "run" / "checkpoints") == checkpoints
    assert start(COMMANDS["search"], folder).wait() == 0
    assert_same_files(unbroken / "logs" / "run", folder / "logs" / "run")
