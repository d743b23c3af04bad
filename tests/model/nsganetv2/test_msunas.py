"""The evolutionary search: proposals, archive, going on, failures, and the command lines of both
stages.
"""

import json

import numpy as np
import pytest
import torch
from model.spaces.genome import UnifiedGenome, features

import msunas
import post_search
from model.costs.latency import Latencies
from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record, Search
from model.nsganetv2.pareto import non_dominated
from model.ranking.supernet_accuracy import CandidateEvaluation
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.latency import ElasticLatency
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.registry import build_supernet, load_spec
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import TINY_CONFIG, rng
from tools import profile_latency
from utils import checkpoint
from utils.config import load_config

SPACE = ElasticSpace(
    stages=(8, 16), strides=(2, 2), activations=("relu", "h_swish"), se=(False, True), head=(16, 24), stem_channels=8,
    depths=(1, 2), resolutions=(12, 16), classes=10,
)  # fmt: skip
CONFIG = """
dataset: digits
classes: 10
input_size: 16
cuda: false
supernet: elastic
mean: [0.3, 0.3, 0.3]
std: [0.37, 0.37, 0.37]
elastic: {stages: [8, 16], strides: [2, 2], activations: [relu, h_swish], se: [false, true], head: [16, 24],
  stem_channels: 8, depths: [1, 2], resolutions: [12, 16]}
"""


@pytest.fixture(scope="module")
def genome() -> ElasticGenome:
    return ElasticGenome(SPACE, ElasticSupernet(SPACE, rng()).eval())


@pytest.fixture
def setting(tmp_path, monkeypatch) -> list[str]:
    """A config and a supernet in an empty folder, and the options that name them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yml").write_text(CONFIG)
    supernet = ElasticSupernet(SPACE, rng())
    checkpoint.save(tmp_path / "supernet.pth", {"kind": "supernet", "model": supernet.state_dict()})
    options = [
        "--cfg",
        "small.yml",
        "--supernet_path",
        "supernet.pth",
        "--vld_size",
        "60",
        "--n_epochs",
        "0",
    ]
    return [*options, "--n_doe", "8", "--n_iter", "3"]


def toy_error(genes: np.ndarray) -> np.ndarray:
    return 50 - genes.sum(axis=1)


def searched(
    genome, iterations: int, seed: int = 0, selection: str = "hypervolume", predictor: str = "ard"
) -> Search:
    search = Search(genome, Objective("flops", genome), predictor, SELECTIONS[selection])

    def records(genes):
        errors, costs = toy_error(genes), search.objective(genes)
        return [
            Record(tuple(g), float(e), float(c))
            for g, e, c in zip(genes.tolist(), errors, costs, strict=True)
        ]

    search.add(records(search.doe(12, np.random.default_rng(seed))))
    for iteration in range(iterations):
        proposal = search.propose(4, np.random.default_rng([seed, iteration]))
        search.add(records(proposal.genes), proposal.predicted.tolist())
    return search


# -- genomes ---------------------------------------------------------------------------------------


@pytest.fixture
def unified(small_space) -> UnifiedGenome:
    return UnifiedGenome(UnifiedSupernet(small_space, rng()).eval())


def test_genes_of_the_unified_space_are_its_paths(unified):
    genes = unified.sample(20, np.random.default_rng(0))
    assert (genes <= unified.largest_genes).all()
    assert (unified.canonical(genes) == genes).all(), "samples are legal already"
    for row in genes:
        assert unified.genes(unified.record(row)) == row.tolist()


def test_unified_layers_with_too_few_sub_blocks_are_mended(unified):
    genes = unified.canonical(unified.largest_genes[None])
    active = unified.space.active(unified.paths(genes))[0]
    least = [spec.least_active(2) for spec in unified.space.layers]
    assert all(
        n >= m or (spec.may_vanish and n == 0)
        for n, m, spec in zip(active, least, unified.space.layers, strict=True)
    )


def test_extremes_of_the_unified_space_cost_least_and_most(unified):
    costs = unified.costs(unified.canonical(unified.extremes()))[0]
    others = unified.costs(unified.sample(50, np.random.default_rng(1)))[0]
    assert costs[0] <= others.min() <= others.max() <= costs[1]


def computes_the_same(genome, row: np.ndarray, which) -> None:
    network, size = genome.network(row)
    images = torch.randn(2, 3, size, size, generator=rng())
    with torch.no_grad():
        expected = genome.supernet(images, which)
        torch.testing.assert_close(network.eval()(images), expected, atol=1e-4, rtol=1e-4)


def test_the_network_of_elastic_genes_computes_what_the_supernet_computes(genome):
    row = genome.sample(1, np.random.default_rng(3))[0]
    computes_the_same(genome, row, genome.space.decode(row))


def test_the_network_of_unified_genes_computes_what_the_supernet_computes():
    space = UnifiedSpace(
        (LayerSpec(4, 6, 2, 6, (3, 5, 7)), LayerSpec(6, 6, 1, 4, (3, 7))), 10, 5, 8, 1, 4, 12
    )
    genome = UnifiedGenome(UnifiedSupernet(space, rng()).eval())
    row = genome.sample(1, np.random.default_rng(3))[0]
    computes_the_same(genome, row, genome.paths(row[None])[0])


# -- search ----------------------------------------------------------------------------------------


def test_the_design_of_experiments_has_both_extremes_and_no_doubles(genome):
    found = searched(genome, 0).arrays()[0].tolist()
    assert all(extreme in found for extreme in genome.extremes().tolist())
    assert len({tuple(row) for row in found}) == 12


def test_proposals_are_new_canonical_and_as_many_as_asked_for(genome):
    search = searched(genome, 5)
    X = search.arrays()[0]
    assert len({tuple(row) for row in X.tolist()}) == len(X) == 12 + 5 * 4
    assert (genome.canonical(X) == X).all()


def test_a_search_beats_as_many_random_architectures_on_a_toy(genome):
    reference = (60.0, 5.0)
    ours = np.mean([searched(genome, 8, seed).hypervolume(reference) for seed in range(3)])
    random = []
    for seed in range(3):
        search = Search(genome, Objective("flops", genome), "rbf", SELECTIONS["published"])
        genes = search.doe(12 + 8 * 4, np.random.default_rng(seed))
        costs = search.objective(genes)
        search.add(
            [
                Record(tuple(g), e, c)
                for g, e, c in zip(genes.tolist(), toy_error(genes), costs, strict=True)
            ]
        )
        random.append(search.hypervolume(reference))
    assert ours > np.mean(random)


def test_the_same_seed_searches_the_same_and_leaves_global_streams_alone(genome):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (searched(genome, 2, seed=5).archive for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_the_quality_of_a_surrogate_is_that_of_predictions_made_beforehand(genome):
    search = searched(genome, 3)
    assert len(search.predicted) == 3 * 4
    assert search.surrogate_quality().tau > 0.5, "a sum of genes is easily learned"


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("predictor", ["ard", "rbf", "gp", "carts"])
def test_a_space_that_is_searched_out_ends_the_proposals(predictor, selection):
    space = ElasticSpace(
        stages=(8,), strides=(2,), activations=("relu",), se=(False,), head=(16, 16), depths=(1,), kernels=(3,),
        expansions=(3, 4), resolutions=(8, 12), classes=2,
    )  # fmt: skip
    genome = ElasticGenome(space)
    search = Search(genome, Objective("params", genome), predictor, SELECTIONS[selection])
    genes = search.doe(10, np.random.default_rng(0))
    assert len(genes) == 4
    search.add([Record(tuple(row), float(i), float(i)) for i, row in enumerate(genes.tolist())])
    assert len(search.propose(3, np.random.default_rng(0)).genes) == 0


def test_an_architecture_that_failed_is_not_proposed_again(genome):
    search = searched(genome, 1)
    proposal = search.propose(4, np.random.default_rng(7))
    search.failed |= set(map(tuple, proposal.genes.tolist()))
    again = search.propose(4, np.random.default_rng(7))
    assert not search.failed & set(map(tuple, again.genes.tolist()))


def test_a_search_that_begins_with_cheap_architectures_finds_dear_ones(genome):
    """What is dearer than all that was evaluated must not count as beyond the reference point."""
    search = Search(genome, Objective("flops", genome), "ard", SELECTIONS["hypervolume"])
    genes = search.doe(60, np.random.default_rng(0))
    costs = search.objective(genes)
    cheap = costs.argsort()[:12]
    errors = toy_error(genes)
    search.add([Record(tuple(genes[i].tolist()), float(errors[i]), float(costs[i])) for i in cheap])
    found = search.propose(4, np.random.default_rng(1)).genes
    assert search.objective(found).max() > 1.01 * costs[cheap].max()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_both_selections_go_on_with_any_surrogate(genome, selection):
    for predictor in ("rbf", "gp", "carts", "mlp", "as", "ard"):
        assert len(searched(genome, 1, selection=selection, predictor=predictor).archive) == 12 + 4


def test_a_search_for_hypervolume_begins_with_architectures_of_all_costs():
    genome = ElasticGenome(ElasticSpace())
    spread, uniform = (
        genome.costs(
            Search(genome, Objective("flops", genome), "ard", selection).doe(
                100, np.random.default_rng(0)
            )
        )[0]
        for selection in SELECTIONS.values()
    )
    least, most = spread.min(), spread.max()
    tenths = [np.histogram(costs, 10, (least, most))[0] for costs in (spread, uniform)]
    assert (tenths[0] >= 2).all()
    assert (tenths[1] == 0).any(), "with uniform genes, costs crowd in the middle"


def test_features_are_one_hot_and_levels_and_say_nothing_of_layers_that_are_not_there():
    space = ElasticSpace(stages=(8,), strides=(2,), activations=("relu",), se=(False,), depths=(1, 2), kernels=(3, 5),
                         expansions=(3, 4), resolutions=(8, 12), classes=2)  # fmt: skip
    genome = ElasticGenome(space)
    # depth, 2 kernels, 2 ratios, size
    shallow, deep = np.array([[0, 1, 0, 0, 0, 1]]), np.array([[1, 1, 0, 0, 1, 1]])
    assert genome.expressed(shallow).tolist() == [[True, True, False, True, False, True]]
    assert features(genome, shallow).tolist() == [
        [1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0.5, 0, 0.5, 1],
    ]
    assert features(genome, deep).tolist() == [
        [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1],
    ]


def test_no_two_architectures_have_the_same_features(genome):
    genes = genome.sample(300, np.random.default_rng(0))
    assert len(np.unique(features(genome, genes), axis=0)) == len(np.unique(genes, axis=0))


def test_a_table_is_measured_and_searched_with(setting, tmp_path):
    few = ["--runs", "1", "--calibration", "2", "--networks", "3"]
    profile_latency.main(["--cfg", "small.yml", "--out", "lut.yaml", *few])
    table = ElasticLatency(Latencies.read(tmp_path / "lut.yaml"), SPACE)
    msunas.main(
        [
            *setting,
            "--iterations",
            "1",
            "--save",
            "found",
            "--sec_obj",
            "cpu",
            "--lut",
            "lut.yaml",
            "--test",
        ]
    )
    stats = json.loads((tmp_path / "found/iter_1.stats").read_text())
    row = np.array([SPACE.encode(SPACE.architecture(stats["archive"][0][0]))])
    assert stats["archive"][0][2] == pytest.approx(table(row)[0], abs=0.01)


# -- stages ----------------------------------------------------------------------------------------


def test_a_search_from_end_to_end_and_what_is_chosen_from_it(setting, tmp_path, capsys):
    msunas.main([*setting, "--iterations", "2", "--save", "found"])
    stats = json.loads((tmp_path / "found/iter_2.stats").read_text())
    assert len(stats["archive"]) == 8 + 2 * 3
    assert len(stats["candidates"]) == 3
    assert stats["surrogate"].keys() == {"model", "name", "winner", "rmse", "rho", "tau"}
    one = json.loads((tmp_path / "found/iter_1/net_0.stats").read_text())
    assert one.keys() == {"params", "flops", "gpu", "cpu", "loss", "top1", "top5"}
    record = json.loads((tmp_path / "found/iter_1/net_0.subnet").read_text())
    assert [record, 100 - one["top1"], stats["archive"][8][2]] == stats["archive"][8]
    assert (tmp_path / "found/iter_2.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()

    space = ["--cfg", "small.yml", "--supernet_path", "supernet.pth"]
    post_search.main(
        [
            *space,
            "--expr",
            "found/iter_2.stats",
            "-n",
            "2",
            "--prefer",
            "top1#90+flops#1",
            "--save",
            "out",
        ]
    )
    folders = sorted((tmp_path / "out").iterdir())
    assert 1 <= len(folders) <= 3
    front = non_dominated([row[1:] for row in stats["archive"]])
    on_front = [row[0] for row, member in zip(stats["archive"], front, strict=True) if member]
    for folder in folders:
        assert json.loads((folder / "net.subnet").read_text()) in on_front
        assert json.loads((folder / "net.config").read_text())["name"] == "MobileNetV3"
        assert checkpoint.load(folder / "net.inherited").keys() == {"state_dict"}
        assert (folder / "architecture.json").exists()


def test_a_search_that_stopped_ends_as_one_that_did_not(setting, tmp_path, monkeypatch):
    msunas.main([*setting, "--iterations", "2", "--save", "whole"])
    msunas.main([*setting, "--iterations", "1", "--save", "parts"])
    measured = [
        (tmp_path / "whole/iter_2" / f"net_1.{kind}").read_text() for kind in ("subnet", "stats")
    ]
    unfinished = tmp_path / "parts" / "iter_2"
    unfinished.mkdir()
    (unfinished / "net_0.subnet").write_text("{}")  # of another architecture: it must not be taken
    (unfinished / "net_0.stats").write_text('{"top1": 100.0}')
    for kind, text in zip(("subnet", "stats"), measured, strict=True):
        # of this architecture: it need not be evaluated again
        (unfinished / f"net_1.{kind}").write_text(text)
    scored = []
    score = CandidateEvaluation.score

    def counted(self, network, resolution, name):
        scored.append(name)
        return score(self, network, resolution, name)

    monkeypatch.setattr(CandidateEvaluation, "score", counted)
    msunas.main([*setting, "--iterations", "2", "--save", "parts"])
    assert scored == ["iter_2/net_0", "iter_2/net_2"]
    assert (tmp_path / "whole/iter_2.stats").read_bytes() == (
        tmp_path / "parts/iter_2.stats"
    ).read_bytes()


def test_a_new_search_can_begin_with_the_archive_of_another(setting, tmp_path):
    msunas.main([*setting, "--iterations", "0", "--save", "first"])
    for number, source in enumerate(("first", "first/iter_0")):
        msunas.main(
            [*setting, "--iterations", "1", "--save", f"second{number}", "--resume", source]
        )
        archive = json.loads((tmp_path / f"second{number}/iter_1.stats").read_text())["archive"]
        assert archive[:8] == json.loads((tmp_path / "first/iter_0.stats").read_text())["archive"]


def test_another_search_is_not_overwritten(setting, tmp_path, capsys):
    msunas.main([*setting, "--iterations", "0", "--save", "found"])
    before = {file: file.read_bytes() for file in (tmp_path / "found").rglob("*") if file.is_file()}
    for changed in (["--seed", "7"], ["--resume", "none"], ["--sec_obj", "params"]):
        with pytest.raises(SystemExit) as stopped:
            msunas.main([*setting, "--iterations", "1", "--save", "found", *changed])
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert before == {
        file: file.read_bytes() for file in (tmp_path / "found").rglob("*") if file.is_file()
    }


def break_networks(monkeypatch, which):
    """Those of the genes `which` says cannot be built."""
    network = ElasticGenome.network

    def sometimes(self, row):
        if which(row):
            raise RuntimeError("broken on purpose")
        return network(self, row)

    monkeypatch.setattr(ElasticGenome, "network", sometimes)


def test_what_fails_is_kept_apart_and_never_scored(setting, tmp_path, monkeypatch):
    break_networks(monkeypatch, lambda row: row.sum() % 2)
    msunas.main([*setting, "--iterations", "1", "--save", "found"])
    failed = list((tmp_path / "found/failed").iterdir())
    archive = json.loads((tmp_path / "found/iter_1.stats").read_text())["archive"]
    assert len(failed) + len(archive) == 8 + 3
    assert failed
    for file in failed:
        record = json.loads(file.read_text())
        assert record.pop("error") == "RuntimeError: broken on purpose"
        assert record not in [row[0] for row in archive]


def test_a_search_with_failures_that_stopped_ends_as_one_that_did_not(
    setting, tmp_path, monkeypatch
):
    break_networks(monkeypatch, lambda row: row @ range(len(row)) % 3 == 0)
    msunas.main([*setting, "--iterations", "3", "--save", "whole"])
    msunas.main([*setting, "--iterations", "1", "--save", "parts"])
    unfinished = tmp_path / "parts" / "failed"  # iteration 2 was stopped after its failures
    for file in (tmp_path / "whole" / "failed").glob("it_2_net_*"):
        (unfinished / file.name).write_bytes(file.read_bytes())
    msunas.main([*setting, "--iterations", "3", "--save", "parts"])
    assert len(list(unfinished.glob("it_2_net_*"))) > 0, "the case is there"
    assert (tmp_path / "whole/iter_3.stats").read_bytes() == (
        tmp_path / "parts/iter_3.stats"
    ).read_bytes()


def test_what_failed_in_the_search_begun_from_is_not_forgotten(setting, tmp_path, monkeypatch):
    break_networks(monkeypatch, lambda row: row @ range(len(row)) % 3 == 0)
    msunas.main([*setting, "--iterations", "1", "--save", "first"])
    msunas.main([*setting, "--iterations", "2", "--save", "second", "--resume", "first"])
    failures = [
        json.loads((tmp_path / name).read_text())["failed"]
        for name in ("first/iter_1.stats", "second/iter_2.stats")
    ]
    assert failures[0]
    assert all(record in failures[1] for record in failures[0])


def test_a_search_from_before_there_was_a_choice_goes_on_as_published(setting, tmp_path):
    options = [*setting, "--save", "found", "--selection", "published"]
    msunas.main([*options, "--iterations", "0"])
    saved = tmp_path / "found" / "search.json"
    record = json.loads(saved.read_text())
    del record["settings"]["selection"]
    saved.write_text(json.dumps(record))
    msunas.main([*options, "--iterations", "0"])
    with pytest.raises(SystemExit, match="2"):
        msunas.main([*setting, "--save", "found", "--iterations", "0"])


def test_a_search_in_which_all_fail_stops_with_the_reason(setting, monkeypatch, capsys):
    def broken(self, row):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(ElasticGenome, "network", broken)
    with pytest.raises(SystemExit):
        msunas.main([*setting, "--iterations", "1", "--save", "found"])
    assert (
        "none of 8 architectures could be evaluated (RuntimeError: broken on purpose)"
        in capsys.readouterr().err
    )


def test_another_supernet_of_the_same_name_is_noticed(setting, tmp_path, capsys):
    msunas.main([*setting, "--iterations", "0", "--save", "found"])
    checkpoint.save(
        tmp_path / "supernet.pth", {"model": ElasticSupernet(SPACE, rng(1)).state_dict()}
    )
    with pytest.raises(SystemExit):
        msunas.main([*setting, "--iterations", "0", "--save", "found"])
    assert "supernet_path" in capsys.readouterr().err


def test_unified_candidates_are_searched_and_fine_tuned_by_the_same_command(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yml").write_text(TINY_CONFIG.format(log_dir="logs"))
    config = load_config("tiny.yml")
    checkpoint.save(tmp_path / "supernet.pth", {"model": build_supernet(config).state_dict()})
    options = [
        "--space",
        "unified",
        "--cfg",
        "tiny.yml",
        "--supernet_path",
        "supernet.pth",
        "--vld_size",
        "60",
    ]
    options += [
        "--n_doe",
        "3",
        "--n_iter",
        "2",
        "--iterations",
        "1",
        "--n_epochs",
        "1",
        "--predictor",
        "cart",
    ]
    msunas.main([*options, "--save", "found", "--sec_obj", "params"])
    stats = json.loads((tmp_path / "found/iter_1.stats").read_text())
    assert len(stats["archive"]) == 5
    found = ["--expr", "found/iter_1.stats", "--save", "out"]
    post_search.main([*found, "--cfg", "tiny.yml", "--supernet_path", "supernet.pth"])
    capsys.readouterr()
    for folder in (tmp_path / "out").iterdir():
        record = load_spec(folder / "architecture.json")[1]
        assert record["choices"] in [row[0]["choices"] for row in stats["archive"]]


def test_candidates_can_be_fine_tuned_with_a_classifier_of_their_own(setting, tmp_path):
    tuned = [
        *setting[: setting.index("--n_epochs")],
        "--n_epochs",
        "1",
        "--n_doe",
        "2",
        "--iterations",
        "0",
    ]
    msunas.main([*tuned, "--save", "found"])
    assert len(json.loads((tmp_path / "found/iter_0.stats").read_text())["archive"]) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--predictor", "magic"], "allowed are"),
        (["--sec_obj", "gpu"], "--lut must name a latency table"),
        (["--sec_obj", "cpu", "--lut", "small.yml"], "no table of KEY"),
        (["--space", "unified"], "describes a supernet of kind elastic"),
        (["--vld_size", "100000"], "can be held out"),
        (["--supernet_path", "missing.pth"], "there is no such checkpoint"),
        (["--resume", "nowhere"], "it must be auto, none, or a folder"),
    ],
)
def test_bad_input_ends_in_one_line(setting, tmp_path, capsys, options, line):
    with pytest.raises(SystemExit) as stopped:
        msunas.main([*setting, "--iterations", "1", "--save", "found", *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert line in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "found").exists()


def test_the_elastic_configs_load():
    for name in ("digits_elastic_config", "cifar10_elastic_config"):
        assert load_config(f"config_file/{name}.yml").supernet == "elastic"
