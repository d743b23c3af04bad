"""What a folder of images and some budgets decide: the space, its sizes, the recipe.

All of it is derived here, before anything is searched, and printed by `Plan.lines`.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.spaces.nasbench_macro.space import BlockSpace
from model.spaces.registry import Problem, open_problem
from utils.class_folders import labelled_files, sub_folders
from utils.config import Config, as_overrides, load_config
from utils.data import PARTS, Dataset, load_dataset
from utils.errors import UserError
from utils.images import ImageData

RECIPE = Path(__file__).parents[2] / "config_file" / "find_config.yml"
SIDES = (16, 64)  # pixels, the smallest and the largest images that are derived
LOOKED_AT = 200  # images whose sizes are read
BLOCKS = ((3, 3), (3, 5), (6, 3), (6, 5))  # expansion ratio and kernel size
DEPTHS, RATIOS = (2, 3, 3), (2, 4, 8)  # of three stages: layers, and channels by those of the stem
STEMS = (*range(4, 33, 4), *range(40, 129, 8))  # channels of the stem that are tried
HEAD = 20  # channels of the head by those of the stem
ROOM = 1.5  # the largest network costs so many times the largest budget
NEAR = 0.9  # of a budget: what an answer costs at least


@dataclass(frozen=True)
class Plan:
    """The config of a search and of its trainings, the data, and the budgets in M."""

    config: Config
    dataset: Dataset
    problem: Problem
    budgets: tuple[float, ...]

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Plan":
        """UserError for a folder without classes of images, or a budget out of reach."""
        budgets = tuple(sorted(set(args.at_most)))
        size = args.img_size or usual_side(args.folder)
        dataset = load_dataset("imagefolder", str(args.folder), size, None)
        classes = len(dataset.names)
        if classes < 2:
            raise UserError(f"{args.folder}: it has one class; at least 2 are needed")
        space = space_for(size, classes, budgets)
        mean, std = colours(dataset)
        count = len(dataset.train.labels)
        values = {
            "dataset_dir": str(args.folder),
            "classes": classes,
            "input_size": size,
            "mean": mean,
            "std": std,
            "crop_padding": size // 8,
            "batch_size": min(64, max(2, count // 8)),
            "low_flops": NEAR * budgets[0],
            "high_flops": budgets[-1],
            **dict.fromkeys(("target_step", "target_jitter", "eval_step"), budgets[-1] / 100),
            "space": {name: getattr(space, name) for name in space_keys(space)},
            "log_dir": str(args.out / "runs"),
            "seed": args.seed,
        }
        config = load_config(RECIPE, [*as_overrides(values), *args.set])
        problem = open_problem(config)
        return cls(config, dataset, problem, budgets)

    def lines(self) -> list[str]:
        """What was derived."""
        config, dataset, space = self.config, self.dataset, self.problem.space
        counts = [len(part.labels) for part in (dataset.train, dataset.test)]
        names = ", ".join(dataset.names[:8]) + (", ..." if len(dataset.names) > 8 else "")
        ends = self.problem.table(space.extremes()).tolist()
        widths = ", ".join(map(str, (space.stem_channels, *space.widths, space.head_channels)))
        return [
            f"{config.dataset_dir}: {config.classes} classes ({names}), {counts[0]} images train, "
            f"{counts[1]} test, at {config.input_size} pixels",
            f"space: {sum(space.depths)} layers of inverted bottlenecks or identity, channels "
            f"{widths}, {min(ends):.3g} to {max(ends):.4g} M multiply-adds",
        ]


def space_keys(space: BlockSpace) -> tuple[str, ...]:
    """The keys of a config by which a space is described."""
    sizes = ("widths", "depths", "strides", "stem_channels", "stem_stride", "head_channels")
    return ("blocks", *sizes, "image_size")


def parse_budget(text: str) -> float:
    """`20M` -> 20.0, in millions of multiply-adds; an argparse type."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)M", text.strip())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: it must be a number with M, such as 20M")
    return float(match[1])


def usual_side(folder: Path) -> int:
    """The side in pixels, a multiple of 8, that suits the images of a folder."""
    parts = [folder / name for name in PARTS if (folder / name).is_dir()]
    has_parts = parts and (folder / "train").is_dir() and len(sub_folders(folder)) <= len(PARTS)
    files = labelled_files(folder / "train" if has_parts else folder).paths
    sides = [shorter_side(file) for file in files[:: max(1, len(files) // LOOKED_AT)]]
    known = [side for side in sides if side]
    if not known:
        raise UserError(f"{folder}: none of its images can be read")
    least, most = SIDES
    return int(np.clip(8 * round(float(np.median(known)) / 8), least, most))


def shorter_side(file: str) -> int:
    """In pixels; 0 when the image cannot be read."""
    try:
        with Image.open(file) as image:
            return min(image.size)
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0


def space_for(size: int, classes: int, budgets: tuple[float, ...]) -> BlockSpace:
    """The narrowest space whose largest network costs enough for all budgets.

    Images of 48 pixels and more are halved by the stem.
    """
    for stem in STEMS:
        space = BlockSpace(
            blocks=BLOCKS,
            widths=tuple(ratio * stem for ratio in RATIOS),
            depths=DEPTHS,
            strides=(2, 2, 2),
            stem_channels=stem,
            stem_stride=2 if size >= 48 else 1,
            head_channels=HEAD * stem,
            image_size=size,
            classes=classes,
        )
        least, largest = reach_of(space)
        if largest >= ROOM * budgets[-1]:
            if least > NEAR * budgets[0]:
                smallest = f"the smallest network of the space costs {least:.3g} M"
                raise UserError(f"--at-most {budgets[0]:g}M: {smallest}")
            return space
    limit = f"a network for images of {size} pixels can use up to {largest / ROOM:.4g} M here"
    raise UserError(f"--at-most {budgets[-1]:g}M: {limit}")


def reach_of(space: BlockSpace) -> tuple[float, float]:
    """Costs in M of the smallest and the largest network."""
    terms = space.cost_terms()
    least, most = (terms.base + sum(map(end, terms.choice)) for end in (min, max))
    return least / 1e6, most / 1e6


def colours(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and standard deviation `[3]` of the training images, in [0, 1]."""
    assert isinstance(dataset.train, ImageData), "images of these sizes are kept in memory"
    pixels = dataset.train.images.transpose(0, 1).flatten(1).double() / 255
    mean, std = pixels.mean(dim=1), pixels.std(dim=1).clamp(min=0.01)
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]
