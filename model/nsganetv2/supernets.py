"""What an evolutionary search is about: the config, the problem and the supernet of its flags.

The published flags are overrides of `config_file/once_for_all_config.yml`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from model.spaces.registry import KINDS, Problem, kind_named, open_problem, open_supernet
from utils.command import PUBLISHED_SUPERNET
from utils.config import Config, as_overrides, load_config
from utils.errors import UserError
from utils.image_sets import known_set

PUBLISHED = Path(__file__).parents[2] / "config_file" / "once_for_all_config.yml"


@dataclass(frozen=True)
class Searched:
    """The config of a search, its problem and its trained supernet, where it needs one."""

    config: Config
    problem: Problem
    supernet: nn.Module | None


def open_search(args: argparse.Namespace, needs_supernet: bool = True) -> Searched:
    """What a command line with `add_supernet_options` is about, by --cfg or by a checkpoint.

    The published supernet is the default where one is needed; otherwise --cfg is.

    UserError when the flags do not fit together, or when the supernet was trained for other
    classes, unless candidates are fine-tuned with a classifier of their own.
    """
    if needs_supernet:
        args.supernet_path = args.supernet_path or PUBLISHED_SUPERNET
    elif not (args.cfg or args.supernet_path):
        raise UserError("--cfg: without a supernet it must say the space")
    if args.space is not None:
        kind_named(args.space, "--space")
    searched = _by_config(args) if args.cfg else _by_checkpoint(args)
    space = searched.problem.space
    if args.space not in (None, space.kind):
        named = args.cfg or args.supernet_path
        raise UserError(f"--space {args.space}: {named} describes a space of kind {space.kind}")
    tuned = getattr(args, "n_epochs", 1) > 0
    if args.n_classes not in (None, space.classes) and not tuned:
        raise UserError(
            f"--n_classes {args.n_classes}: {args.cfg or args.supernet_path} has {space.classes}; "
            "--n_epochs above 0 fine-tunes for others"
        )
    return searched


def _by_config(args: argparse.Namespace) -> Searched:
    data = {"dataset": getattr(args, "dataset", None), "dataset_dir": getattr(args, "data", None)}
    flags = {key: value for key, value in data.items() if value is not None}
    config = load_config(args.cfg, [*args.set, *as_overrides(flags)])
    problem = open_problem(config)
    path = args.supernet_path
    return Searched(config, problem, problem.trained_supernet(config, path) if path else None)


def _by_checkpoint(args: argparse.Namespace) -> Searched:
    """Of a supernet whose checkpoint says its space, as the published once-for-all ones do."""
    supernet = open_supernet(args.supernet_path).eval()
    space = supernet.space
    config = load_config(PUBLISHED, [*as_overrides(_flags(args, supernet)), *args.set])
    table = KINDS[space.kind].table(space, config)
    return Searched(config, Problem(space, table), supernet)


def _flags(args: argparse.Namespace, supernet: nn.Module) -> dict:
    """What the published flags say as keys of a config."""
    space = supernet.space
    described = {key: value for key, value in space.to_dict().items() if key != "classes"}
    keys = {"supernet": space.kind, "space": described, "classes": space.classes}
    name = getattr(args, "dataset", None) or "imagenet"
    known = known_set(name)
    if known is None:
        raise UserError(f"--dataset {name}: --cfg must give its mean and std")
    keys |= {"dataset": name, "dataset_dir": getattr(args, "data", None) or f"./data/{name}"}
    keys |= {"mean": known.mean, "std": known.std, "crop_padding": known.padding}
    return keys | {"input_size": known.side or KINDS[space.kind].image_size(supernet)}
