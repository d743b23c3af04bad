"""Train one architecture from scratch on a data set of small images.

    python3 train_cifar.py --cfg config_file/cifar_config.yml --flops 100 --title NAME

The architecture comes from the trained generator, or from a file. All training images are used, and the accuracies
reported are those of the last weights, and of their moving average when there is one, on the test images: nothing
reported is chosen by them. Source: SGNAS, section 4.1.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from model.build import build_schedule, build_space, load_supernet
from model.generation import Chosen, choose, choose_from_file, newest_config
from model.lookup_table import LookUpTable
from model.space import Architecture, UnifiedSpace, load_architecture, save_architecture
from model.subnet import SubNet, count_macs, count_parameters
from model.supernet import UnifiedSupernet
from utils.config import Config, load_config
from utils.data import Augmentation, Dataset, Loader, Normalisation, load_dataset, loader
from utils.engine import Placement, Recipe, Score, Tally, evaluate, train_epoch
from utils.errors import UserError
from utils.optim import make_optimizer, moving_average
from utils.runtime import (
    Progress,
    RunFolder,
    add_config_options,
    boolean,
    command,
    pick_device,
    saved_when_stopped,
    stream,
)
from utils.table import format_table

# Command-line options that set a key of the config: option, key, what argparse needs to know.
CONFIG_OPTIONS = (
    ("--se", "se", {"type": boolean, "metavar": "BOOL", "help": "squeeze-excite in every block"}),
    ("--activation", "activation", {"metavar": "NAME", "help": "relu6 or hswish"}),
    ("--drop", "dropout", {"metavar": "P", "help": "dropout before the classifier"}),
    ("--drop-path", "drop_path", {"metavar": "P", "help": "stochastic depth: its rate in the last block"}),
    ("--cutout", "cutout", {"nargs": "?", "const": 16, "metavar": "PIXELS", "help": "grey squares; default side 16"}),
    ("--autoaugment", "autoaugment", {"action": "store_const", "const": "true", "help": "the CIFAR-10 policy"}),
    ("--mixup", "mixup", {"nargs": "?", "const": 0.2, "metavar": "ALPHA", "help": "mix pairs; default alpha 0.2"}),
    ("--ema", "ema", {"nargs": "?", "const": 0.999, "metavar": "DECAY", "help": "average weights; default 0.999"}),
    ("--clip-grad", "clip_grad", {"metavar": "NORM", "help": "largest norm of the gradients of a step"}),
    ("--inherit", "inherit", {"metavar": "SUPERNET", "help": "begin with the weights of this supernet checkpoint"}),
    ("--compile", "compile", {"action": "store_const", "const": "true", "help": "compile the training step"}),
    ("--strict-data", "strict_data", {"action": "store_const", "const": "true", "help": "stop at a broken image"}),
)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    flags = {key: getattr(args, key) for _, key, _ in CONFIG_OPTIONS}
    overrides = args.set + [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = load_config(args.cfg, overrides) if args.cfg else newest_config(Path("./logs"), overrides)
    space, place = build_space(config), Placement(pick_device(config.cuda), config.channels_last, config.amp)
    run = RunFolder.open("train_cifar", config, args.title or default_title(args), args.resume)
    chosen = stored_choice(run, args) or choose(config, space, args.flops, args.architecture)
    print(f"architecture from {chosen.source}")
    network = build_network(space, chosen.architecture, config)
    dataset = load_dataset(
        config.dataset, config.dataset_dir, config.input_size, config.classes, strict=config.strict_data
    )

    run.begin(config, place.device)
    costs = {
        "macs_m": float(LookUpTable(space)(space.encode(chosen.architecture))),
        "macs_m_counted": count_macs(network, space.image_size),
        "params_m": count_parameters(network),
    }
    if not run.file("architecture.json").exists():
        provenance = {"source": chosen.source, "target": chosen.target}
        save_architecture(run.file("architecture.json"), space, chosen.architecture, costs, provenance)
    described = {
        "kind": "subnet",
        "space": space.to_dict(),
        "architecture": [list(row) for row in chosen.architecture.choices],
        "options": network_options(config),
        "data": {
            "dataset": config.dataset,
            "dataset_dir": config.dataset_dir,
            "mean": list(config.mean),
            "std": list(config.std),
        },
    }
    began = time.monotonic()
    scores = train(network.to(place.device), dataset, config, run, place, described)
    result = {
        "target": chosen.target,
        **costs,
        **scores["last"].to_dict(),
        "ema": scores["ema"].to_dict() if "ema" in scores else None,
        "epochs": config.epochs,
        "checkpoint": str(run.checkpoint("last")),
    }
    run.write_text("result.json", json.dumps(result, indent=1) + "\n")
    report(result, time.monotonic() - began, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", help="config file (YAML); default: that of the newest search under ./logs")
    parser.add_argument("--flops", type=float, help="target cost in M multiply-adds")
    parser.add_argument(
        "--architecture", type=Path, metavar="FILE", help="architecture.json, or a list that tools.generate wrote"
    )
    parser.add_argument("--title", help="name of the run folder under log_dir")
    parser.add_argument("--resume", default="auto", choices=("auto", "none"), help="go on, or begin anew")
    for option, key, details in CONFIG_OPTIONS:
        details = {**details, "help": f"{details['help']} (config key {key})"}
        parser.add_argument(option, dest=key, **details)
    add_config_options(parser)
    args = parser.parse_args(argv)
    if args.flops is None and args.architecture is None:
        parser.error("one of --flops and --architecture is needed")
    return args


def default_title(args: argparse.Namespace) -> str:
    config = Path(args.cfg).stem if args.cfg else "scratch"
    return f"{config}_{args.flops:g}M" if args.flops is not None else f"{config}_{args.architecture.stem}"


def stored_choice(run: RunFolder, args: argparse.Namespace) -> Chosen | None:
    """The architecture that a continued run was begun with: a newer generator must not change it half-way."""
    file = run.file("architecture.json")
    if not (run.continues and file.exists()):
        return None
    space, architecture, record = load_architecture(file)
    target = record["provenance"]["target"]
    if args.architecture is not None:
        if choose_from_file(space, args.flops, args.architecture).architecture != architecture:
            raise UserError(f"--title {run.path.name}: this run trains another architecture; choose another title")
    elif target != args.flops:
        begun = f"for {target:g} M" if target is not None else "from a file"
        raise UserError(f"--title {run.path.name}: this run was begun {begun}, not for {args.flops:g} M")
    return Chosen(architecture, target, f"{file}, as this run was begun")


def network_options(config: Config) -> dict:
    """What makes the network of an architecture, beside the architecture."""
    return {key: getattr(config, key) for key in ("se", "activation", "dropout", "drop_path")}


def build_network(space: UnifiedSpace, architecture: Architecture, config: Config) -> SubNet:
    """The network to train; with `inherit`, on the weights of that supernet."""
    rng = stream(config.seed, "scratch")
    if config.inherit is None:
        return SubNet(space, architecture, **network_options(config), rng=rng)
    supernet = UnifiedSupernet(space)
    load_supernet(supernet, config.inherit)
    return supernet.extract(space.encode(architecture), exact=False, **network_options(config), rng=rng)


def train(
    network: SubNet, dataset: Dataset, config: Config, run: RunFolder, place: Placement, described: dict
) -> dict[str, Score]:
    """All epochs with the published recipe; returns the test scores of the final weights, "last" and maybe "ema"."""
    normalise = Normalisation(config.mean, config.std)
    augment = Augmentation(
        config.crop_padding, config.horizontal_flip, autoaugment=config.autoaugment, cutout=config.cutout
    )
    seed = stream(config.seed, "scratch batches").initial_seed()
    batches = loader(dataset.train, config.batch_size, normalise, augment, seed, config.num_workers)
    test = loader(dataset.test, config.batch_size, normalise, workers=config.num_workers)
    training = ScratchTraining(network, described, len(batches), config, place, run.checkpoint("last"))
    done = run.restore("last", training)
    run.forget_after("scratch", done)
    for epoch in range(done, config.epochs):
        title = f"epoch {epoch + 1}/{config.epochs}"
        with saved_when_stopped(partial(run.keep, "last", training, epoch)):
            with Progress(title, len(batches), config.print_freq, training.tally.steps) as progress:
                means = training.epoch(batches, epoch, progress)
            scores = training.score(test)
        shown = ", ".join(f"{name} {score.top1:.2f} %" for name, score in scores.items())
        print(f"{title} loss {means.loss:.4f}, test top-1: {shown}", flush=True)
        numbers = {"train_loss": means.loss, "train_top1": means.top1, "test_loss": scores["last"].loss}
        numbers |= {"top1": scores["last"].top1, "top5": scores["last"].top5}
        run.log("scratch", epoch + 1, **numbers, **({"ema_top1": scores["ema"].top1} if "ema" in scores else {}))
        training.tally = Tally()
        training.keep_others(run, epoch + 1, config.path_to_save_scratch)
        run.keep("last", training, epoch + 1)
    return training.scores


class ScratchTraining:
    """A network, the average of its weights when there is one, and what trains them."""

    def __init__(
        self,
        network: SubNet,
        described: dict,
        steps_per_epoch: int,
        config: Config,
        place: Placement,
        checkpoint: Path,
    ):
        self.network = network.to(memory_format=torch.channels_last) if place.channels_last else network
        self.described, self.place = described, place
        self.average = moving_average(network, config.ema) if config.ema else None
        self.recipe = Recipe(
            nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
            make_optimizer(network.parameters(), config.optim_state),
            build_schedule(config, steps_per_epoch),
            place,
            (config.seed, "scratch"),
            checkpoint,
            config.clip_grad,
            mixup(config.mixup, config.classes) if config.mixup else Recipe.mix,
            self._move_average,
        )
        self._compiled = torch.compile(network) if config.compile else network
        self.tally = Tally()
        self.scores: dict[str, Score] = {}
        self.best_top1 = -1.0

    def state(self, epochs: int) -> dict:
        return {
            **self.described,
            "epoch": epochs,
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.recipe.optimizer.state_dict(),
            "tally": asdict(self.tally),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> int:
        self.network.load_state_dict(state["model"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.scores = {name: Score(**score) for name, score in state["scores"].items()}
        self.tally, self.best_top1 = Tally(**state["tally"]), state["best_top1"]
        return state["epoch"]

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> Tally:
        """What is left of an epoch, after the steps in `tally`."""
        self.network.train()
        train_epoch(self._forwards, self.recipe, batches, epoch, self.tally, progress)
        return self.tally

    def _forwards(self, images: Tensor, rng: torch.Generator) -> Iterator[Tensor]:
        yield self._compiled(images)

    def _move_average(self) -> None:
        if self.average:
            self.average.update_parameters(self.network)

    def _weights(self) -> dict[str, nn.Module]:
        return {"last": self.network} | ({"ema": self.average.module} if self.average else {})

    def score(self, test: Loader) -> dict[str, Score]:
        """Scores of the weights as they are now, by name."""
        self.scores = {name: evaluate(one.eval(), test.epoch(), self.place) for name, one in self._weights().items()}
        return self.scores

    def keep_others(self, run: RunFolder, epochs: int, mirror: str | None) -> None:
        """Checkpoints beside the last: the average; and as `best` the epoch of most test images right, saying so."""
        described = {**self.described, "epoch": epochs}
        if self.average:
            run.save("ema", {**described, "model": self.average.module.state_dict()})
        if self.scores["last"].top1 > self.best_top1:
            self.best_top1 = self.scores["last"].top1
            run.save("best", {**described, "model": self.network.state_dict(), "chosen_by": "test images"}, mirror)


def mixup(alpha: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup (Zhang et al., ICLR 2018): each image of a batch with its neighbour, and labels as probabilities."""
    return v2.MixUp(alpha=alpha, num_classes=classes)


def report(result: dict, seconds: float, run: RunFolder) -> None:
    target = f"{result['target']:g}" if result["target"] is not None else None
    costs = [f"{result[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    columns = ["weights", "target M", "cost M", "counted M", "params M", "test top-1 %", "top-5 %"]
    scored = {"last": result, "ema": result["ema"]}
    rows = [
        [name, target, *costs, f"{score['top1']:.2f}", f"{score['top5']:.2f}"]
        for name, score in scored.items()
        if score
    ]
    print(format_table(columns, rows))
    print(f"{result['epochs']} epochs, {seconds:.0f} s in this sitting; checkpoints and result.json are in {run.path}")


if __name__ == "__main__":
    main()
