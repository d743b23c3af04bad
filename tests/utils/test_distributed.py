"""Several processes are one run."""

import contextlib
import io
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import msunas
import search
import train_cifar
import validate
from model.sgnas.warm_up import supernet_payload
from model.spaces.registry import KINDS, open_problem
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import TESTS, TINY_CONFIG, mixed_space, rng
from tests.support import CPU, Batches, recipe_of, stop_after, torchrun, trained, wait_for
from tests.worlds import Child, in_world, launcher
from tools import rank, score
from utils import checkpoint, distributed
from utils.config import load_config
from utils.engine import evaluate
from utils.errors import UserError
from utils.images import ImageData
from utils.loader import Augmentation, MemoryLoader, Normalisation
from utils.recipe import EpochMeter, average_norms, train_epoch
from utils.runtime import Progress, stream

PLAIN = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def images(count: int, size: int = 12, classes: int = 7) -> ImageData:
    pixels = torch.randint(256, (count, 3, size, size), generator=rng(), dtype=torch.uint8)
    return ImageData(pixels, torch.randint(classes, (count,), generator=rng(1)))


def talk():
    rank = distributed.rank()
    tensors = [torch.full((2, 3), float(rank)), torch.tensor([10.0 * rank])]
    distributed.average(tensors)
    outcomes = distributed.divided(7, lambda index: (index, rank))
    retried = distributed.divided(1, fails_in_one_process)
    hopeless = distributed.divided(2, fails_always)
    with pytest.raises(UserError, match="a file is missing"):
        distributed.results(distributed.divided(3, lacks_a_file))
    return {
        "averages": [t.flatten()[0].item() for t in tensors],
        "totals": distributed.totals(1, rank),
        "first": distributed.of_first(f"from {rank}"),
        "work": [outcome.result[0] for outcome in outcomes],
        "retried": retried[0].result,
        "hopeless": [str(outcome.error) for outcome in hopeless],
    }


def fails_in_one_process(index: int) -> str:
    """Fails where it is tried first."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(f"tried{os.environ['MASTER_PORT']}", os.O_CREAT | os.O_EXCL))
        raise ValueError("not here")
    return "done elsewhere"


def lacks_a_file(index: int) -> None:
    raise UserError("a file is missing")


def fails_always(index: int) -> None:
    raise ValueError(f"number {index}")


def test_processes_average_add_up_divide_work_and_try_again_elsewhere(tmp_path):
    for found in in_world(2, talk, tmp_path):
        assert found["averages"] == [0.5, 5.0]
        assert found["totals"] == [2.0, 1.0]
        assert found["first"] == "from 0"
        assert found["work"] == list(range(7))
        assert found["retried"] == "done elsewhere"
        assert "ValueError: number 0" in found["hopeless"][0]
        assert "number 1" in found["hopeless"][1]


def seen_alone(index: int) -> tuple[int, int]:
    return supernet_steps(1 + index, 0.05)["meter"].seen, distributed.size()


def lonely():
    """In a job, training waits for nobody: the gradients of a process are its own."""
    return distributed.results(distributed.divided(2, seen_alone)), distributed.size()


def test_within_a_job_a_process_is_alone(tmp_path):
    for found in in_world(2, lonely, tmp_path):
        assert found == ([(4 * 8, 1), (2 * 4 * 8, 1)], 2)


def test_alone_all_that_is_trivial():
    tensor = torch.tensor([3.0])
    distributed.average([tensor])
    assert tensor.item() == 3
    assert distributed.totals(2, 3) == [2.0, 3.0]
    assert distributed.of_first("x") == "x"
    done = distributed.divided(3, lambda index: 10 // index)
    assert [outcome.result for outcome in done] == [None, 10, 5]
    with pytest.raises(ZeroDivisionError):
        distributed.results(done)


# -- training --------------------------------------------------------------------------------------


def supernet_steps(steps: int, lr: float) -> dict:
    """Gradients of the last step, weights, statistics and sums, after steps with batches of 8."""
    supernet = UnifiedSupernet(mixed_space(), rng()).train()
    recipe = recipe_of(supernet, lr=lr)
    recipe.optimizer.param_groups[0]["momentum"] = 0.9
    batches = MemoryLoader(images(8 * steps), 8, PLAIN, Augmentation(0, False), seed=3)

    def forwards(images, labels, rng):
        paths = supernet.space.sample_fair(4, rng)
        return KINDS["unified"].passes(supernet, paths, CPU, images, labels)

    meter = trained(forwards, batches, recipe)
    own = {key: value.clone() for key, value in supernet.state_dict().items() if "running" in key}
    average_norms(supernet)
    gradients = {name: p.grad.clone() for name, p in supernet.named_parameters()}
    return {"gradients": gradients, "state": supernet.state_dict(), "own": own, "meter": meter}


def naive_gradients() -> dict[str, torch.Tensor]:
    """Of one step: the mean over two half batches of the summed gradients of four paths."""
    batches = MemoryLoader(images(8), 8, PLAIN, Augmentation(0, False), seed=3)
    [(pixels, labels)] = batches.epoch(0)
    halves = []
    for half in (slice(0, 4), slice(4, 8)):
        supernet = UnifiedSupernet(mixed_space(), rng()).train()
        for path in supernet.space.sample_fair(4, stream(0, "test", 0, 0)):
            F.cross_entropy(supernet(pixels[half], path), labels[half]).backward()
        halves.append({name: p.grad for name, p in supernet.named_parameters()})
    return {
        name: sum(torch.zeros(1) if half[name] is None else half[name] for half in halves) / 2
        for name in halves[0]
    }


def test_the_gradient_is_the_mean_of_the_shards(tmp_path):
    expected = naive_gradients()
    for found in in_world(2, supernet_steps, tmp_path, 1, 1e-9):
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in found["gradients"].items():
            mean = expected[name].expand_as(gradient)
            torch.testing.assert_close(gradient, mean, rtol=0, atol=1e-6)
        assert (found["meter"].passes, found["meter"].seen) == (2 * 4, 2 * 4 * 4)


@pytest.mark.slow
def test_processes_stay_the_same_to_the_bit(tmp_path):
    first, second = in_world(2, supernet_steps, tmp_path, 20, 0.05)
    assert first["meter"] == second["meter"]
    for key, value in first["state"].items():
        assert value.equal(second["state"][key]), key
        if "running" in key:
            torch.testing.assert_close(value, (first["own"][key] + second["own"][key]) / 2)
    # each saw images of its own
    assert any(not first["own"][key].equal(second["own"][key]) for key in first["own"])


def step_of_one_branch() -> list[torch.Tensor]:
    """Weights of two branches after a step that uses the first; only one process has images."""
    branches = nn.ModuleList([nn.Conv2d(1, 3, 1, bias=False) for _ in range(2)])
    for branch in branches:
        nn.init.ones_(branch.weight)
    recipe = replace(recipe_of(branches, lr=0.1), used_only=True)
    recipe.optimizer.param_groups[0]["weight_decay"] = 0.5
    count = 0 if distributed.rank() else 2
    batches = Batches([(torch.ones(count, 1, 1, 1), torch.zeros(count, dtype=torch.long))])

    def forwards(images, labels, rng):
        return [(branches[0](images).flatten(1), labels)]

    with Progress("epoch 1/1", 1) as progress:
        train_epoch(forwards, recipe, batches, 0, EpochMeter(), progress)
    return [branch.weight.detach() for branch in branches]


def test_a_process_without_images_steps_by_what_others_use(tmp_path):
    first, second = in_world(2, step_of_one_branch, tmp_path)
    ones = torch.ones(3, 1, 1, 1)
    assert first[0].equal(second[0])
    assert not first[0].equal(ones)
    for _, unused in (first, second):
        assert unused.equal(ones)  # not even decayed


def step_with_a_broken_image() -> str:
    """The error that a process ends in where only the images of the second one are NaN."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    pixels = torch.full((4, 3, 2, 2), float("nan") if distributed.rank() else 1.0)
    batches = Batches([(pixels, torch.zeros(4, dtype=torch.long))])
    recipe = recipe_of(network)
    with pytest.raises(UserError) as caught, Progress("epoch 1/1", 1) as progress:
        train_epoch(lambda x, y, _: [(network(x), y)], recipe, batches, 0, EpochMeter(), progress)
    return str(caught.value)


def test_a_loss_that_is_nan_in_one_process_stops_all(tmp_path):
    for said in in_world(2, step_with_a_broken_image, tmp_path):
        assert said.startswith("epoch 1/1: the loss is nan at step 0;")


# -- evaluation ------------------------------------------------------------------------------------


def score_of(count: int, together: bool):
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 7, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(7, 432, generator=rng(2)))
    return evaluate(network, MemoryLoader(images(count), 8, PLAIN), CPU, together)


@pytest.mark.parametrize(("processes", "count"), [(2, 37), (3, 20)])
def test_every_image_counts_once(tmp_path, processes, count):
    alone = score_of(count, together=False)
    for found in in_world(processes, score_of, tmp_path, count, True):
        assert (found.top1, found.top5, found.images) == (alone.top1, alone.top5, count)
        assert found.loss == pytest.approx(alone.loss)


def test_a_batch_that_cannot_be_shared_is_named(tmp_path):
    with pytest.raises(Exception, match="batch_size: 8 images cannot be shared by 3 processes"):
        in_world(3, supernet_steps, tmp_path, 1, 0.1)


# -- whole stages ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, an architecture and a supernet; what two processes, and one alone, make of them."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "tiny.yml").write_text(TINY_CONFIG.format(log_dir="logs"))
    found = {"target": 0.15, "macs_m": 0.15, "params_m": 0.01}
    found["choices"] = [[3, 5, None, None, None, None]] * 2
    (folder / "found.json").write_text(json.dumps([found]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        space = open_problem(load_config("tiny.yml")).space
        payload = supernet_payload(UnifiedSupernet(space, rng()), 1)
        checkpoint.save(Path("supernet.pth"), payload)
    return folder


def said_by(main, words: str) -> str:
    """What a stage prints in this process, with its exit status unless that is 0."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(words.split())
    except SystemExit as ended:
        return f"{said.getvalue()}\nstatus {ended.code}"
    return said.getvalue()


SEARCH = "--cfg tiny.yml --title search --set warmup_epochs=1 search_epochs=1"
SCRATCH = "--cfg tiny.yml --flops 0.15 --architecture found.json --set epochs=2"
EVOLVE = "--cfg tiny.yml --supernet_path supernet.pth --n_epochs 1 --n_doe 3 --n_iter 1"
EVOLVE += " --iterations 1 --vld_size 40 --trn_batch_size 320 --save found"
RANK = "logs/search --count 2 --set epochs=1 batch_size=320 --out ranking"
SCORE = "logs/search --count 3 --images 2 --out scores"


def all_stages(folder: Path) -> dict[str, str]:
    """What each stage prints in a process of several."""
    os.chdir(folder)
    said = {"refused": said_by(search.main, "--cfg tiny.yml --set classes=7")}
    said["search"] = said_by(search.main, SEARCH)
    said["train"] = said_by(train_cifar.main, f"{SCRATCH} batch_size=256 --title two")
    said["validate"] = said_by(validate.main, "--checkpoint logs/two/checkpoints/last.pth --json")
    said["msunas"] = said_by(msunas.main, f"{EVOLVE}2")
    said["rank"] = said_by(rank.main, f"{RANK}2")
    said["score"] = said_by(score.main, f"{SCORE}2.jsonl")
    return said


@pytest.fixture(scope="module")
def said(folder) -> list[dict[str, str]]:
    return in_world(2, all_stages, folder, folder)


@pytest.mark.slow
def test_the_first_process_speaks_for_all(said):
    first, second = said
    # of the epoch and of the report
    assert first["search"].count("mean miss") == 2, first["search"]
    both = first["refused"] + second["refused"]
    assert both.count("error: classes: the config says 7") == 1, "whoever comes first says it"
    assert both.count("status 2") == 2
    for name in first.keys() - {"refused"}:
        assert "status" not in first[name], first[name]
        assert second[name] == "", name


@pytest.mark.slow
def test_a_network_that_two_processes_train_is_validated_by_them(said, folder):
    result = json.loads((folder / "logs" / "two" / "result.json").read_text())
    line = next(line for line in said[0]["validate"].splitlines() if line.startswith("{"))
    assert json.loads(line)["top1"] == result["top1"]


def evolve_alone(folder: Path) -> None:
    os.chdir(folder)
    msunas.main(f"{EVOLVE}1".split())


@pytest.mark.slow
def test_two_processes_search_as_one_does(said, folder, tmp_path):
    in_world(1, evolve_alone, tmp_path, folder)
    one, two = (
        json.loads((folder / name / "iter_1.stats").read_text())["archive"]
        for name in ("found1", "found2")
    )
    assert one == two
    assert len(one) == 3 + 1


@pytest.mark.slow
def test_two_processes_rank_and_score_as_one_does(said, folder, monkeypatch):
    monkeypatch.chdir(folder)
    rank.main(f"{RANK}1".split())
    score.main(f"{SCORE}1.jsonl".split())
    for name, count in (("ranking{}/results.jsonl", 2), ("scores{}.jsonl", 3), ("scores{}.csv", 4)):
        one, two = ((folder / name.format(n)).read_text() for n in (1, 2))
        assert one == two
        assert one.count("\n") == count


def stopped_in_the_second_epoch(folder: Path, title: str) -> None:
    """As by a signal, which all processes obey."""
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 30)
        with pytest.raises(SystemExit):
            train_cifar.main(f"{SCRATCH} batch_size=64 --title {title}".split())


def resumed(folder: Path, title: str) -> None:
    os.chdir(folder)
    train_cifar.main(f"{SCRATCH} batch_size=64 --title {title}".split())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(2, 1), (1, 2)])
def test_a_run_resumes_in_another_number_of_processes(folder, processes, tmp_path):
    title = "from{}to{}".format(*processes)
    in_world(processes[0], stopped_in_the_second_epoch, tmp_path, folder, title)
    kept = checkpoint.load(folder / "logs" / title / "checkpoints" / "last.pth")
    assert kept["epoch"] == 1
    assert kept["tally"]["steps"] > 0
    in_world(processes[1], resumed, tmp_path, folder, title)
    metrics = (folder / "logs" / title / "metrics.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in metrics.splitlines()] == [1, 2]


# -- launchers -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_starts_a_stage_and_says_an_error_once(folder):
    command = [TESTS.parent / "search.py", *["--cfg", "tiny.yml", "--set", "classes=7"]]
    done = torchrun(2, folder, *command)
    text = done.communicate(timeout=300)[0]
    assert done.returncode != 0
    assert text.count("search.py: error: classes: the config says 7") == 1, text


@pytest.mark.slow
def test_a_killed_worker_is_replaced(folder, tmp_path):
    for name in ("tiny.yml", "found.json"):
        shutil.copy(folder / name, tmp_path)
    line = f"train_cifar.py {SCRATCH} epochs=3 batch_size=48 --title net"
    run = Child(tmp_path, launcher, 2, 3, line)
    metrics = tmp_path / "logs" / "net" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n"))
    os.kill(run.workers[-1], signal.SIGKILL)
    assert run.wait() == 0, run.errors
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2, 3]
