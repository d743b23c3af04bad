"""Configs: the published ones load unchanged; whatever is wrong with one is said in one line."""

import pytest
import yaml

from model.spaces.registry import build_space, build_supernet
from tests.conftest import GOLDEN
from utils.config import Config, OptimState, load_config
from utils.errors import UserError

PUBLISHED = GOLDEN / "published_configs"


def test_the_published_cifar_config_loads_unchanged():
    config = load_config(PUBLISHED / "cifar_config.yml")
    assert (config.dataset, config.classes, config.batch_size) == ("cifar100", 100, 512)
    assert config.optim_state == OptimState("sgd", 0.064, 0.9, 0.0004)
    assert config.g_optim_state.optimizer == "adam"
    assert config.path_to_final_generator == "./logs/final.pth"
    space = build_space(config)
    assert space.shape == (19, 6, 4)
    assert [spec.out_channels for spec in space.layers][::6] == [32, 80, 96, 320]
    assert (space.stem_stride, space.stem_channels, space.first_channels, space.head_channels) == (
        1,
        32,
        16,
        1280,
    )


def test_the_published_imagenet_config_loads_unchanged():
    config = load_config(PUBLISHED / "imagenet_config.yml")
    assert (config.dataset, config.train_portion, config.warmup_epochs) == ("imagenet_lmdb", 1.0, 0)
    space = build_space(config)
    assert space.stem_stride == 2
    assert space.sizes[0] == (112, 56)
    assert space.sizes[-1] == (7, 7)


def test_every_config_of_the_project_loads():
    paths = sorted((PUBLISHED.parent.parent.parent / "config_file").glob("*_config.yml"))
    assert len(paths) >= 3
    for path in paths:
        config = load_config(path)
        if config.supernet != "none":
            build_supernet(config)


@pytest.mark.parametrize("name", ["cifar_config.yml", "imagenet_config.yml"])
def test_the_configs_here_say_what_the_published_ones_say(name):
    ours = PUBLISHED.parent.parent.parent / "config_file" / name
    # published: one of its authors
    folder = ["dataset_dir=./data/imagenet/"] if name == "imagenet_config.yml" else []
    assert load_config(ours) == load_config(PUBLISHED / name, folder)


def test_defaults_are_the_published_constants(tiny_config):
    config = load_config(PUBLISHED / "cifar_config.yml")
    constants = (
        config.target_step,
        config.target_jitter,
        config.cost_tolerance,
        config.eval_step,
        config.cost_unit,
    )
    assert constants == (5, 0.5, 0.1, 10, 1)


def test_a_resolved_config_reads_back(tmp_path):
    config = load_config(PUBLISHED / "cifar_config.yml", ["optim_state.lr=1e-2", "seed=7"])
    assert (config.optim_state.lr, config.seed) == (0.01, 7)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(tmp_path / "config.yml") == config


def test_the_right_spelling_of_the_final_generator_is_accepted(tiny_config):
    assert (
        load_config(tiny_config, ["path_to_final_generator=a.pth"]).path_to_final_generator
        == "a.pth"
    )
    assert (
        load_config(tiny_config, ["path_to_fianl_generator=a.pth"]).path_to_final_generator
        == "a.pth"
    )


def test_a_row_of_l_cfgs_overrides_the_global_keys(tiny_config):
    config = load_config(
        tiny_config,
        [
            "expansion=9",
            "kernels_nums=8",
            "l_cfgs=[[3, 8, [3, 5], 2], [2, 8, [7, skip], 1, 2, true]]",
        ],
    )
    first, second = config.l_cfgs
    assert (first.expansion, first.kernels, first.skip, first.se) == (3, (3, 5), False, False)
    assert (second.expansion, second.kernels, second.skip, second.se) == (2, (7,), True, True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("batchsize=3", "batchsize: unknown key; did you mean batch_size"),
        ("optim_state.learning=3", "optim_state.learning: unknown key"),
        ("optim_state=3", "optim_state: 3 holds no keys"),
        ("optim_state.lr=-1", "optim_state: lr must be above 0"),
        (
            "optim_state.optimizer=lion",
            "optim_state.optimizer: 'lion' is unknown; allowed are sgd, adam",
        ),
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
        ("std=[1, 1]", "std: .* three numbers"),
        ("static_layers=[2]", "static_layers: .* 0 to 1"),
        ("generator=gan", "generator: 'gan' is not allowed; it must be singan"),
        ("lr_scheduler=poly", "lr_scheduler: 'poly' is not allowed; it must be cosine or step"),
        ("l_cfgs=[]", "l_cfgs: .* a row for each layer"),
        ("l_cfgs=[[6, 8, [4, skip], 1]]", "kernel sizes must be odd"),
        ("l_cfgs=[[6, 8, [3, jump], 1]]", "l_cfgs.0..2.: 'jump' is not a whole number"),
        ("l_cfgs=[[6, 8, [3, 3], 1]]", "a list of different kernel sizes"),
        ("l_cfgs=[[6, 8, [3, skip], 1, 4]]", "kernels_nums is 4, but the row has 2 choices"),
        ("l_cfgs=[[0, 8, [3], 1]]", "max expansion 0 is below 1"),
        ("l_cfgs=[[6, 8]]", "is not .max expansion"),
        ("hc_dim", "--set hc_dim: it must be key=value"),
        ("seed.deep=3", "--set seed.deep: seed has no keys of its own"),
        ("seed=[", "is no valid YAML value"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tiny_config, override, says):
    with pytest.raises(UserError, match=says) as error:
        load_config(tiny_config, [override])
    assert "\n" not in str(error.value)


def test_targets_out_of_reach_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"high_flops: 7 M; this space reaches 0\.\d+ to 0\.\d+ M"):
        build_space(load_config(tiny_config, ["high_flops=7"]))


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "c.yml").write_text(
        "dataset: digits\nclasses: 10\nlow_flops: 1\nhigh_flops: 2\nl_cfgs: []\n"
    )
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


def test_config_from_dict_needs_no_file():
    values = load_config(PUBLISHED / "cifar_config.yml").to_dict()
    assert Config.from_dict(values).to_dict() == values
