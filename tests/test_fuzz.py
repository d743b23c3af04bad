"""Whatever happened to a file: what reads it returns, or ends in one line.

Each kind of file is changed at random, a few bytes or a few of its values, and read. A mutation
that fails is made again by its kind and number. FUZZ_COUNT=1000 tries more of them.
"""

import copy
import io
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from model.costs.latency import Latencies
from model.nsganetv2.answers import searched_paths
from model.nsganetv2.archive import SearchFolder
from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record, Search
from model.sgnas.answers import read_generated
from model.sgnas.prior_pool import PriorPool
from model.sgnas.runs import load_generator, run_config
from model.sgnas.warm_up import WarmUp, WarmUpRecipe
from model.spaces.contracts import Genome
from model.spaces.elastic.kind import ElasticGenome, ElasticSpec
from model.spaces.elastic.net_config import NetConfigSpec, net_config
from model.spaces.elastic.network import MobileNetV3
from model.spaces.registry import (
    KINDS,
    completed,
    load_spec,
    open_problem,
    open_supernet,
    record_of,
    save_spec,
)
from model.trained import open_own, spec_of_file, target_of
from tests.support import CPU, SMALL_ELASTIC
from tools.reporting.run_results import read_run
from utils import checkpoint
from utils.config import load_config
from utils.data import Split
from utils.errors import UserError
from utils.run_folder import RunFolder

COUNT = int(os.environ.get("FUZZ_COUNT", "30"))
RELEASE = Path(open_own.__code__.co_filename).parents[1] / "release" / "digits"
RUN, NET = RELEASE / "digits_config", RELEASE / "digits_3M"
GENOME = ElasticGenome(SMALL_ELASTIC)
SETTINGS = {"seed": 0, "supernet_path": "0" * 64, "test": None}
DATA = {"dataset": "digits", "dataset_dir": "data", "mean": [0.3] * 3, "std": [0.3] * 3}


# -- what is read --------------------------------------------------------------------------------


def problem():
    return open_problem(run_config(RUN))


def elastic_spec() -> ElasticSpec:
    return ElasticSpec(SMALL_ELASTIC, SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[0]))


def unified_genome() -> Genome:
    return KINDS["unified"].genome(problem().space)


def write_search(folder: Path, genome: Genome = GENOME) -> None:
    """The folder of an evolutionary search of one iteration."""
    search = new_search(genome)
    genes = genome.sample(8, np.random.default_rng(0))
    pairs = zip(genes.tolist(), search.objective(genes).tolist(), strict=True)
    search.add([Record(tuple(row), 50.0, cost) for row, cost in pairs])
    search.failed = {search.archive[0].genes}
    store = SearchFolder.open(folder, SETTINGS, "auto")
    store.restore(search)
    store.reference = search.worst()
    store.write_iteration(0, search, search.archive[:2], 0.5, {"model": "rbf", "tau": 0.5})


def write_net(folder: Path) -> None:
    record = GENOME.to_json(GENOME.extremes()[0])
    (folder / "net_0.subnet").write_text(json.dumps(record))
    (folder / "net_0.stats").write_text(json.dumps({"top1": 50.0, "macs": 1.0}))


def new_search(genome: Genome = GENOME) -> Search:
    return Search(genome, Objective("flops", genome), "rbf", SELECTIONS["hypervolume"])


def restore(folder: Path, genome: Genome = GENOME) -> None:
    SearchFolder.open(folder, SETTINGS, "auto").restore(new_search(genome))
    read_run(folder, "search")


def read_search_json(folder: Path) -> None:
    genome = unified_genome()
    restore(folder, genome)
    searched_paths(folder, genome.space, SETTINGS["supernet_path"])


def start_from_net(folder: Path) -> None:
    store = SearchFolder.open(folder / "new", SETTINGS, str(folder))
    store.first_archive(new_search())


def write_elastic(file: Path) -> None:
    spec = elastic_spec()
    network = MobileNetV3.of(spec.space, spec.architecture)
    record = {**record_of(spec), "options": {"dropout": 0.0, "drop_path": 0.0}, "data": DATA}
    checkpoint.save(file, {**record, "model": network.state_dict()})


def write_net_config(folder: Path) -> None:
    network = MobileNetV3.of(SMALL_ELASTIC, elastic_spec().architecture)
    (folder / "net.config").write_text(json.dumps(net_config(network)))


def write_architecture(folder: Path) -> None:
    save_spec(folder / "architecture.json", elastic_spec(), {}, {"target": 3.0})


def read_architecture(file: Path) -> None:
    spec, record = load_spec(file)
    target_of(record)
    assert spec.macs_m > 0
    spec_of_file(file)
    KINDS[spec.kind].design_of(spec)


def warm_up(file: Path) -> WarmUp:
    config = load_config(RUN / "config.yml")
    small = open_problem(config)
    supernet = small.supernet(config)
    return WarmUp(small, supernet, 5, config.part(WarmUpRecipe), CPU, file)


def write_state(folder: Path) -> None:
    state = warm_up(folder / "checkpoints" / "supernet_last.pth").state()
    checkpoint.save(folder / "checkpoints" / "supernet_last.pth", {**state, "epoch": 1})


def resume(folder: Path) -> None:
    run = RunFolder(folder)
    training = warm_up(run.checkpoint("supernet_last"))
    run.train("warm-up", "supernet_last", training, 1, lambda epoch: None)


def read_run_folder(folder: Path) -> None:
    """As a search that is resumed, and as a page of results."""
    config = completed(load_config(RUN / "config.yml"))
    RunFolder.open("search", config, folder.name).stage = "search"
    RunFolder(folder).forget_after("warm-up", 1)
    read_run(folder, "run")


def read_config(file: Path) -> None:
    config = completed(load_config(file))
    open_problem(config).table.reach()
    assert load_config(file).to_dict()


def copied(source: Path, name: str | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        target = folder / (name or source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    return write


def write_latencies(folder: Path) -> None:
    lines = [f"'part-{i}': {{mean: {i}.5, var: 0.1}}\n" for i in range(9)]
    (folder / "table.yaml").write_text("".join(lines))


def write_run(folder: Path) -> None:
    """The run of the release in a folder of its own, with the config's log_dir as it is."""
    for name in ("environment.json", "config.yml", "metrics.jsonl", "split.json"):
        shutil.copy(RUN / name, folder / name)


# What writes a folder, which file of it is changed, and what reads it.
Case = tuple[Callable[[Path], None], str, Callable[[Path], object]]
CASES: dict[str, Case] = {
    "config": (copied(RUN / "config.yml"), "config.yml", lambda f: read_config(f / "config.yml")),
    "elastic config": (
        copied(RELEASE.parents[1] / "config_file" / "digits_elastic_config.yml", "config.yml"),
        "config.yml",
        lambda f: read_config(f / "config.yml"),
    ),
    "cell config": (
        copied(RELEASE.parents[1] / "config_file" / "nasbench201_config.yml", "config.yml"),
        "config.yml",
        lambda f: read_config(f / "config.yml"),
    ),
    "latency table": (
        write_latencies,
        "table.yaml",
        lambda f: Latencies.read(f / "table.yaml")("part-1"),
    ),
    "architecture": (
        copied(NET / "architecture.json"),
        "architecture.json",
        lambda f: read_architecture(f / "architecture.json"),
    ),
    "elastic architecture": (
        write_architecture,
        "architecture.json",
        lambda f: read_architecture(f / "architecture.json"),
    ),
    "net.config": (
        write_net_config,
        "net.config",
        lambda f: NetConfigSpec.load(f / "net.config").macs_m,
    ),
    "iteration": (write_search, "iter_0.stats", restore),
    "search.json": (
        lambda f: write_search(f, unified_genome()),
        "search.json",
        read_search_json,
    ),
    "stats of a net": (write_net, "net_0.stats", start_from_net),
    "subnet": (write_net, "net_0.subnet", start_from_net),
    "environment": (write_run, "environment.json", read_run_folder),
    "config of a run": (write_run, "config.yml", read_run_folder),
    "metrics": (write_run, "metrics.jsonl", read_run_folder),
    "split": (
        copied(RUN / "split.json"),
        "split.json",
        lambda f: Split.read(f / "split.json", 1438),
    ),
    "prior pool": (
        copied(RUN / "prior_pool.json"),
        "prior_pool.json",
        lambda f: PriorPool.load(f / "prior_pool.json", problem().space),
    ),
    "found": (
        copied(RUN / "architectures.json", "found.json"),
        "found.json",
        lambda f: read_generated(f / "found.json"),
    ),
    "supernet": (
        copied(RUN / "checkpoints" / "supernet_best.pth", "supernet.pth"),
        "supernet.pth",
        lambda f: open_supernet(str(f / "supernet.pth")),
    ),
    "generator": (
        copied(RUN / "checkpoints" / "generator_best_avg.pth", "generator.pth"),
        "generator.pth",
        lambda f: load_generator(f / "generator.pth", 3, 8, run_config(RUN).hc_dim),
    ),
    "network": (
        copied(NET / "last.pth"),
        "last.pth",
        lambda f: open_own(f / "last.pth").network,
    ),
    "elastic network": (
        lambda f: write_elastic(f / "last.pth"),
        "last.pth",
        lambda f: open_own(f / "last.pth").network,
    ),
    "state of a training": (write_state, "checkpoints/supernet_last.pth", resume),
}


# -- mutations -----------------------------------------------------------------------------------

TOKENS = (b"[", b"{", b"}", b'"', b"nan", b"Infinity", b"\0", b"\xff", b"1e999", b"-", b"null")
TOKENS += (b"!!python/object/apply:os.mkdir [ran]", b"&a [*a]", b"<<: ", b"9" * 5000, b"\n", b": ")
NUMBERS = (0, -1, 1, 2, 7, 10**9, 10**18, 2**64, 10**400, 0.5, -0.5, 1e-300, 1e308)
NUMBERS += (float("nan"), float("inf"), True)
TEXTS = ("", "x", "3", "none", "\0", "\ud800", "é\n\x1b[31m", "9" * 5000, "2026-13-45", "../..")


def deep(levels: int = 200) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def bomb() -> list:
    value: list = [1] * 10
    for _ in range(12):
        value = [value] * 10
    return value


OTHERS = (None, [], {}, [1], {"a": 1}, [None], {"1": {}}, [[[]]])
TENSORS = (
    torch.ones(3, dtype=torch.complex64),
    torch.ones(3).to_sparse(),
    torch.ones(3, device="meta"),
    torch.full((3,), float("nan")),
    torch.ones(1).expand(10**9),
    torch.ones(0),
    torch.ones((), dtype=torch.int64),
)


def places(value, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in nested mappings and lists."""
    yield path
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def with_lists(value):
    """A copy whose tuples are lists, so that its parts can be exchanged."""
    if isinstance(value, dict):
        return {key: with_lists(part) for key, part in value.items()}
    return [with_lists(part) for part in value] if isinstance(value, (list, tuple)) else value


def new_value(old, rng: random.Random, tensors: bool):
    kinds = [
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(TEXTS),
        lambda: copy.deepcopy(rng.choice(OTHERS)),
        lambda: [old],
        lambda: str(old)[:99],
        lambda: {"a": old},
        deep,
    ]
    if tensors:
        kinds.append(lambda: rng.choice(TENSORS))
    return rng.choice(kinds)()


def mutated(value, rng: random.Random, tensors: bool = False):
    """With up to three values exchanged, dropped, or of another key."""
    root = with_lists(value)
    for _ in range(rng.randint(1, 3)):
        all_places = [path for path in places(root) if path]
        if not all_places:
            return new_value(root, rng, tensors)
        *parents, key = rng.choice(all_places)
        inner = root
        for name in parents:
            inner = inner[name]
        how = rng.randrange(6)
        if how == 0:
            del inner[key]
        elif how == 1 and isinstance(inner, dict):
            inner[rng.choice(["x", "", "kind", 3, ("a",)]) if tensors else "x"] = inner.pop(key)
        else:
            inner[key] = new_value(inner[key], rng, tensors)
    if tensors and rng.random() < 0.05:  # last, since it has no end of places
        *parents, key = rng.choice([path for path in places(root) if path] or [("a",)])
        inner = root
        for name in parents:
            inner = inner[name]
        inner[key] = bomb()
    return root


def damaged(data: bytes, rng: random.Random) -> bytes:
    """With some bits flipped, cut off, taken out, or with other bytes in between."""
    data, how = bytearray(data), rng.randrange(5)
    at = rng.randrange(len(data))
    if how == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del data[at:]
    elif how == 2:
        del data[at : at + rng.randint(1, 40)]
    elif how == 3:
        data[at:at] = rng.choice(TOKENS)
    else:
        data[at:at] = data[at : at + rng.randint(1, 40)]
    return bytes(data)


def write_mutation(file: Path, original: bytes, rng: random.Random) -> None:
    """Half of them damaged, half of them written as they should be, with other values."""
    if rng.random() < 0.4:
        file.write_bytes(damaged(original, rng))
    elif file.suffix == ".pth":
        payload = torch.load(io.BytesIO(original), weights_only=True)
        legacy = rng.random() < 0.3
        torch.save(
            mutated(payload, rng, tensors=True), file, _use_new_zipfile_serialization=not legacy
        )
    elif file.suffix in (".yml", ".yaml"):
        file.write_text(yaml.safe_dump(mutated(yaml.safe_load(original), rng)))
    elif file.suffix == ".jsonl":
        lines = original.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutated(json.loads(lines[at]), rng)).encode()
        file.write_bytes(b"\n".join(lines))
    else:
        file.write_text(json.dumps(mutated(json.loads(original), rng)))


# -- the claim -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_changed_file_is_read_or_refused_in_one_line(kind, tmp_path, monkeypatch, capfd):
    write, name, read = CASES[kind]
    folder = tmp_path / "logs" / "run"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write(folder)
    file = folder / name
    original = file.read_bytes()
    read(folder)
    refused, failures = 0, []
    for number in range(COUNT):
        try:
            write_mutation(file, original, random.Random(f"{kind} {number}"))
        except (ValueError, OverflowError, RecursionError, RuntimeError, NotImplementedError):
            continue  # no such file can be written
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(folder)
        except UserError as error:
            refused += 1
            if "weights_only" in str(error):
                failures.append((number, repr(error)[:300]))
        except Exception as error:
            failures.append((number, f"{type(error).__name__}: {str(error)[:300]}"))
        assert not Path("ran").exists()
        file.write_bytes(original)
    assert not failures, f"{len(failures)} of {COUNT}: {failures[:5]}"
    assert refused > COUNT / 10 or kind == "metrics", "broken lines of metrics are dropped"
    read(folder)
