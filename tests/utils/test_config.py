"""Configs: the published ones load unchanged; whatever is wrong with one is said in one line."""

import re
from dataclasses import dataclass, replace

import pytest
import yaml

from model.spaces.registry import completed, kind_of, open_problem
from tests.conftest import GOLDEN
from utils.config import UNREAD, Config, OptimState, as_overrides, as_record, key, load_config
from utils.errors import UserError

PUBLISHED = GOLDEN / "published_configs"
ROOT = GOLDEN.parent.parent
ELASTIC = "config_file/digits_elastic_config.yml"


def test_the_published_cifar_config_loads_unchanged():
    config = load_config(PUBLISHED / "cifar_config.yml")
    assert (config.dataset, config.classes, config.batch_size) == ("cifar100", 100, 512)
    assert config.optim_state == OptimState("sgd", 0.064, 0.9, 0.0004)
    assert config.g_optim_state.optimizer == "adam"
    assert config.path_to_final_generator == "./logs/final.pth"
    space = open_problem(config).space
    assert space.shape == (19, 6, 4)
    assert [spec.out_channels for spec in space.layers][::6] == [32, 80, 96, 320]
    widths = (space.stem_channels, space.first_channels, space.head_channels)
    assert (space.stem_stride, *widths) == (1, 32, 16, 1280)


def test_the_published_imagenet_config_loads_unchanged():
    config = load_config(PUBLISHED / "imagenet_config.yml")
    assert (config.dataset, config.train_portion, config.warmup_epochs) == ("imagenet_lmdb", 1.0, 0)
    space = open_problem(config).space
    assert space.stem_stride == 2
    assert space.sizes[0] == (112, 56)
    assert space.sizes[-1] == (7, 7)


def test_every_config_of_the_project_loads():
    paths = sorted((ROOT / "config_file").glob("*_config.yml"))
    assert len(paths) >= 3
    for path in paths:
        config = load_config(path)
        if config.supernet != "none":
            open_problem(config).supernet(config)


@pytest.mark.parametrize("name", ["cifar_config.yml", "imagenet_config.yml"])
def test_the_configs_here_say_what_the_published_ones_say(name):
    ours = ROOT / "config_file" / name
    # published: one of its authors
    folder = ["dataset_dir=./data/imagenet/"] if name == "imagenet_config.yml" else []
    assert load_config(ours) == load_config(PUBLISHED / name, folder)


def test_defaults_are_the_published_constants():
    config = load_config(PUBLISHED / "cifar_config.yml")
    names = ("target_step", "target_jitter", "cost_tolerance", "eval_step", "cost_unit")
    assert [getattr(config, name) for name in names] == [5, 0.5, 0.1, 10, 1]


def test_a_resolved_config_reads_back(tmp_path):
    config = load_config(PUBLISHED / "cifar_config.yml", ["optim_state.lr=1e-2", "seed=7"])
    assert (config.optim_state.lr, config.seed) == (0.01, 7)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(tmp_path / "config.yml") == config


def test_the_right_spelling_of_the_final_generator_is_accepted(tiny_config):
    for name in ("path_to_final_generator", "path_to_fianl_generator"):
        assert load_config(tiny_config, [f"{name}=a.pth"]).path_to_final_generator == "a.pth"


def test_a_row_of_l_cfgs_overrides_the_global_keys(tiny_config):
    rows = "l_cfgs=[[3, 8, [3, 5], 2], [2, 8, [7, skip], 1, 2, true]]"
    config = load_config(tiny_config, ["expansion=9", "kernels_nums=8", rows])
    first, second = config.l_cfgs
    assert (first.expansion, first.kernels, first.skip, first.se) == (3, (3, 5), False, False)
    assert (second.expansion, second.kernels, second.skip, second.se) == (2, (7,), True, True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("batchsize=3", "batchsize: unknown key; did you mean batch_size"),
        ("optim_state.learning=3", "optim_state.learning: unknown key"),
        ("optim_state=3", "optim_state: 3 holds no keys"),
        ("optim_state.lr=-1", "optim_state.lr: -1.0 is not allowed; it must be at least 1e-12"),
        ("optim_state.momentum=1", "1.0 is not allowed; it must be at least 0 and below 1"),
        ("optim_state.optimizer=lion", "'lion' is not allowed; it must be sgd or adam"),
        ("batch_size=many", "batch_size: 'many' is not a whole number"),
        ("batch_size=2.5", "batch_size: 2.5 is not a whole number"),
        ("batch_size=1", "batch_size: 1 is not allowed; it must be at least 2"),
        ("target_step=1", "target_step: 1.0 is not allowed; it must be at most"),
        ("l_cfgs=[[6, 8, [3, skip, 5], 1]]", "skip must stand last"),
        ("activation=gelu", "activation: 'gelu' is not allowed; it must be relu6 or hswish"),
        ("alpha=.inf", "alpha: inf is not a finite number"),
        ("cuda=1", "cuda: 1 is not true or false"),
        ("seed=true", "seed: True is not a whole number"),
        ("low_flops=0.3", "low_flops: 0.3 is not allowed; it must be above 0 and below high_flops"),
        ("train_portion=0", "train_portion: 0.0 is not allowed"),
        ("train_portion=1.5", "train_portion: 1.5 is not allowed"),
        ("std=[1, 1]", "std: .1, 1. is not a list of 3 numbers"),
        ("std=[1, 0, 1]", r"std.1.: 0.0 is not allowed; it must be above 0"),
        ("stem_stride=3", "stem_stride: 3 is not allowed; it must be 1 or 2"),
        ("sampled_paths=1", "sampled_paths: 1 is not allowed; it must be 0, or at least 2"),
        ("cost=latency", "latency_table: None is not allowed; it must be a file"),
        ("supernet=resnet", "supernet: 'resnet' is not allowed; it must be unified or elastic or"),
        ("supernet=elastic", "space: this key is missing"),
        ("supernet=nasbench201", "space: this key is missing"),
        ("high_flops=0", "high_flops: this key is missing"),
        ("space=3", "space: 3 is not a mapping"),
        ("static_layers=[2]", "static_layers: .* 0 to 1"),
        ("generator=gan", "generator: 'gan' is not allowed; it must be singan"),
        (
            "lr_scheduler=poly",
            "lr_scheduler: 'poly' is not allowed; it must be cosine or linear or step",
        ),
        ("l_cfgs=[]", "l_cfgs: this key is missing"),
        ("l_cfgs=[[6, 8, [4, skip], 1]]", "kernel sizes must be odd"),
        ("l_cfgs=[[6, 8, [3, jump], 1]]", "l_cfgs.0..2.: 'jump' is not a whole number"),
        ("l_cfgs=[[6, 8, [3, 3], 1]]", "a list of different kernel sizes"),
        ("l_cfgs=[[6, 8, [3, skip], 1, 4]]", "kernels_nums is 4, but the row has 2 choices"),
        ("l_cfgs=[[0, 8, [3], 1]]", "l_cfgs.0..0.: 0 is not allowed; it must be at least 1"),
        ("l_cfgs=[[6, 8]]", "is not .max expansion"),
        ("hc_dim", "--set hc_dim: it must be key=value"),
        ("seed.deep=3", "--set seed.deep: seed has no keys of its own"),
        ("seed=[", "--set seed: no valid YAML"),
        ("optim_state={lr: 1, lr: 2}", "--set optim_state: lr: this key is given twice"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tiny_config, override, says):
    with pytest.raises(UserError, match=says) as error:
        open_problem(load_config(tiny_config, [override]))
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path):
    text = "dataset: digits\nclasses: 10\nlow_flops: 1\nhigh_flops: 2\nl_cfgs: []\n"
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(UserError, match="input_size: this key is missing"):
        load_config(tmp_path / "c.yml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no keys"),
        ("- 1\n", "holds no keys"),
        ("a: [", "no valid YAML"),
        ("a: !!python/object/apply:os.system ['touch ran']", "no valid YAML"),
        ("a: !include ../outside.yml", "outside the config's folder"),
        ("a: !include c.yml", "cannot include itself"),
        ("path_to_fianl_generator: a\npath_to_final_generator: b", "given twice, as path_to_fianl"),
        ("optim_state:\n  lr: 1\n\n  lr: 2", "c.yml: optim_state.lr: .* in lines 2 and 4"),
        ("a: !include missing.yml", "cannot be read"),
    ],
)
def test_yaml_that_is_broken_or_hostile_is_refused(tmp_path, text, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.yml").write_text("lr: 1\n")
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "c.yml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_config(folder / "c.yml")
    assert not (tmp_path / "ran").exists()


def test_an_include_that_runs_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.yml").write_text("x: !include b.yml")
    (tmp_path / "b.yml").write_text("x: !include a.yml")
    with pytest.raises(UserError, match="circle"):
        load_config(tmp_path / "a.yml")


def test_a_key_that_an_included_file_has_twice_is_named(tmp_path):
    (tmp_path / "a.yml").write_text("optim_state: !include b.yml")
    (tmp_path / "b.yml").write_text("lr: 1\nbeta: 0.5\nlr: 1\n")
    with pytest.raises(UserError, match=r"b.yml: lr: this key is given twice, in lines 1 and 3"):
        load_config(tmp_path / "a.yml")


def test_config_from_dict_needs_no_file():
    values = load_config(PUBLISHED / "cifar_config.yml").to_dict()
    assert Config.from_dict(values).to_dict() == values


# -- text on the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["my set #1", "2024", "a: [b", "yes", '"quoted"'])
def test_text_is_taken_as_it_is(tiny_config, text):
    config = load_config(tiny_config, [f"log_dir={text}", f"inherit={text}"])
    assert (config.log_dir, config.inherit) == (text, text)


def test_text_that_may_be_none_can_be_set_to_none(tiny_config):
    for text in ("null", "none", "None", ""):
        overrides = ["inherit=a.pth", f"inherit={text}", "log_dir=none"]
        config = load_config(tiny_config, overrides)
        assert (config.inherit, config.log_dir) == (None, "none")


def test_values_become_overrides_and_values_again(tiny_config):
    values = {"log_dir": 'a "b" #c', "inherit": None, "mean": [0.5, 0.1, 0.2], "cuda": False}
    values |= {"optim_state.optimizer": "adam", "optim_state.lr": 1e-5}
    config = load_config(tiny_config, as_overrides(values))
    found = config.to_dict()
    assert all(found[name] == value for name, value in values.items() if "." not in name)
    assert (config.optim_state.optimizer, config.optim_state.lr) == ("adam", 1e-5)


# -- spaces ----------------------------------------------------------------------------------------


def test_older_spellings_of_the_space_are_read(tmp_path):
    now = load_config(ROOT / ELASTIC)
    text = (ROOT / ELASTIC).read_text()
    (tmp_path / "old.yml").write_text(text.replace("\nspace:", "\ncell: null\nelastic:"))
    assert load_config(tmp_path / "old.yml") == now
    changed = load_config(tmp_path / "old.yml", ["elastic.depths=[1, 2]", "cell.width=1.5"])
    assert changed.space == {**now.space, "depths": [1, 2], "width": 1.5}
    assert load_config(tmp_path / "old.yml", ["elastic=null"]).space is None


def test_a_space_is_kept_with_its_defaults(tmp_path):
    """So that a run resumes, whether its config.yml has them or not."""
    config = completed(load_config(ROOT / ELASTIC))
    assert (config.space["kernels"], config.space["width"]) == ((3, 5, 7), 1.0)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(tmp_path / "config.yml").to_dict() == config.to_dict()
    kind = kind_of(config)
    assert kind.space(load_config(tmp_path / "config.yml")) == kind.space(config)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("space.stage=[8]", "_config.yml: space.stage: unknown key; did you mean stages?"),
        ("space.head=[8]", "space.head: .8. is not a list of 2 numbers"),
        ("space.stem_stride=0", "space.stem_stride: 0 is not allowed; it must be at least 1"),
        ("space={stages: [8]}", "space.strides: this key is missing"),
        ("space=null", "space: this key is missing"),
    ],
)
def test_a_wrong_space_is_named_with_its_file(override, says):
    with pytest.raises(UserError, match=says):
        open_problem(load_config(ROOT / ELASTIC, [override]))


# -- parts and records -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a part of the work reads."""

    epochs: int
    optim_state: OptimState
    inherit: str | None = "not the config's"


def test_a_part_has_the_keys_that_it_names(tiny_config):
    config = load_config(tiny_config, ["optim_state.lr=1"])
    assert config.part(Recipe) == Recipe(2, OptimState(lr=1.0), None)


def test_a_part_that_names_no_key_is_a_mistake_of_the_program(tiny_config):
    @dataclass(frozen=True)
    class Wrong:
        epochs: int
        epoch: int

    with pytest.raises(AssertionError, match="epoch"):
        load_config(tiny_config).part(Wrong)


def test_records_may_be_plain_or_of_keys():
    @dataclass(frozen=True)
    class Plain:
        name: str
        state: OptimState = key(OptimState(lr=3.0), "an optimiser")
        size: int = key(3, "a size")

    made = as_record(Plain, {"name": "a", "state": {"beta": 0}}, "f.yml", "plain.")
    assert made == Plain("a", OptimState(lr=3.0, beta=0.0))
    with pytest.raises(UserError, match=r"f.yml: plain.name: this key is missing"):
        as_record(Plain, {}, "f.yml", "plain.")


def test_the_name_of_the_file_is_for_errors_alone(tiny_config):
    config = load_config(tiny_config)
    elsewhere = replace(config, where="other.yml")
    assert config == elsewhere
    assert repr(config) == repr(elsewhere)
    assert config.to_dict() == elsewhere.to_dict()
    with pytest.raises(UserError, match=r"^other.yml: seed: 1 is not allowed; it must be odd$"):
        elsewhere.refuse("seed", "odd")
    with pytest.raises(UserError, match=r"^other.yml: network_config: this key is missing$"):
        elsewhere.require("seed", "network_config")


def test_unread_keys_are_those_that_nothing_reads():
    places = ("*.py", "model/**/*.py", "utils/*.py", "tools/**/*.py", "benchmarks/*.py")
    files = [file for place in places for file in ROOT.glob(place)]
    sources = "".join(file.read_text() for file in files if file.name != "config.py")
    for name in UNREAD:
        assert not re.search(rf"config\.{name}\b", sources), name
    for name in Config.from_dict({"dataset": "", "classes": 1, "input_size": 1}).to_dict():
        assert name in UNREAD or re.search(rf"\b{name}\b", sources), name
