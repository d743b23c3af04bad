"""Train one architecture from scratch on a data set of small images.

    python3 train_cifar.py --cfg config_file/cifar_config.yml --flops 100 --title NAME

The architecture comes from the trained generator, or from a file. All training images are used, and the accuracy
reported is that of the last epoch on the test images: nothing is chosen by them. Source: SGNAS, section 4.1.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from model.build import build_space, find_generator, newest_config, read_generated
from model.lookup_table import LookUpTable
from model.space import Architecture, UnifiedSpace, load_architecture, save_architecture
from model.subnet import SubNet, count_macs, count_parameters
from utils import checkpoint
from utils.config import Config, load_config
from utils.data import Augmentation, Normalisation, load_dataset, loader
from utils.engine import Placement, Score, evaluate, train_epoch
from utils.errors import UserError
from utils.optim import Schedule, make_optimizer
from utils.runtime import Progress, RunFolder, boolean, command, pick_device, seed_everything, stream
from utils.table import format_table


@dataclass(frozen=True)
class Candidate:
    """The architecture to train, the target (M) it answers when there is one, and where it comes from."""

    architecture: Architecture
    target: float | None
    source: str


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = load_config(args.cfg, args.set) if args.cfg else newest_config(Path("./logs"))
    space = build_space(config)
    candidate = choose(config, space, args.flops, args.architecture)
    print(f"architecture from {candidate.source}")
    options = {"se": args.se, "activation": args.activation, "dropout": config.dropout}
    network = SubNet(space, candidate.architecture, **options, rng=stream(config.seed, "scratch"))
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)

    place = Placement(pick_device(config.cuda), config.channels_last, config.amp)
    name = f"{Path(args.cfg).stem if args.cfg else 'scratch'}_{format(candidate.target or 0, 'g')}M"
    run = RunFolder.open(config, args.title or name, args.resume)
    check_same_architecture(run, candidate.architecture)
    run.begin(config, place.device)
    costs = {
        "macs_m": float(LookUpTable(space)(space.encode(candidate.architecture))),
        "macs_m_counted": count_macs(network, space.image_size),
        "params_m": count_parameters(network),
    }
    provenance = {"source": candidate.source, "target": candidate.target}
    save_architecture(run.file("architecture.json"), space, candidate.architecture, costs, provenance)
    described = {
        "kind": "subnet",
        "space": space.to_dict(),
        "architecture": [list(row) for row in candidate.architecture.choices],
        "options": options,
        "data": {
            "dataset": config.dataset,
            "dataset_dir": config.dataset_dir,
            "mean": list(config.mean),
            "std": list(config.std),
        },
    }
    began = time.monotonic()
    score = train(network.to(place.device), dataset, config, run, place, described)
    result = {
        "target": candidate.target,
        **costs,
        "top1": score.top1,
        "top5": score.top5,
        "loss": score.loss,
        "epochs": config.epochs,
        "test_images": score.images,
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
    parser.add_argument("--se", type=boolean, default=False, metavar="BOOL", help="squeeze-excite in every block")
    parser.add_argument("--activation", default="relu6", help="relu6 or hswish")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", action="extend", help="override the config"
    )
    args = parser.parse_args(argv)
    if args.flops is None and args.architecture is None:
        parser.error("one of --flops and --architecture is needed")
    return args


def choose(config: Config, space: UnifiedSpace, target: float | None, file: Path | None) -> Candidate:
    """The architecture in `file` (of a list, the one nearest the target), else the generator's for `target`."""
    if file is None:
        trained = find_generator(config)
        least, most = trained.table.reach()
        if not least <= target <= most:
            raise UserError(
                f"--flops {target:g}: no architecture meets it; this space reaches {least:.2f} to {most:.2f} M"
            )
        found = trained.generate(torch.tensor([target]))[0]
        return Candidate(found.architecture, target, trained.source)
    if is_list(file):
        found = read_generated(file)
        if target is None and len(found) != 1:
            raise UserError(f"--architecture {file}: it holds {len(found)} architectures; --flops must choose one")
        nearest = min(found, key=lambda g: abs(g.target - target) if target is not None else 0)
        space.check(nearest.architecture)
        return Candidate(nearest.architecture, nearest.target, str(file))
    stored_space, architecture, _ = load_architecture(file)
    if stored_space.layers != space.layers:
        raise UserError(f"--architecture {file}: its space is not that of the config")
    return Candidate(architecture, target, str(file))


def is_list(file: Path) -> bool:
    try:
        return file.read_text().lstrip().startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--architecture {file}: cannot be read ({error})") from None


def check_same_architecture(run: RunFolder, architecture: Architecture) -> None:
    """A run that is continued goes on with the architecture it was begun with, or not at all."""
    file = run.file("architecture.json")
    if run.continues and file.exists() and load_architecture(file)[1] != architecture:
        raise UserError(f"--title {run.path.name}: this run trains another architecture; choose another title")


def train(network: SubNet, dataset, config: Config, run: RunFolder, place: Placement, described: dict) -> Score:
    """All epochs with the published recipe; returns the test score of the last weights."""
    normalise = Normalisation(config.mean, config.std)
    augment = Augmentation(config.crop_padding, config.horizontal_flip)
    seed = stream(config.seed, "scratch batches").initial_seed()
    batches = loader(dataset.train, config.batch_size, normalise, augment, seed, config.num_workers)
    test = loader(dataset.test, config.batch_size, normalise, workers=config.num_workers)
    if place.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network.parameters(), config.optim_state)
    steps = len(batches)
    schedule = Schedule(
        config.lr_scheduler, config.optim_state.lr, config.epochs * steps, steps, config.step_size, config.decay_ratio
    )
    done, score = 0, None
    if run.checkpoint("last").exists():
        state = checkpoint.load(run.checkpoint("last"))
        checkpoint.load_into(network, state["model"], run.checkpoint("last"))
        optimizer.load_state_dict(state["optimizer"])
        done, score = state["epoch"], Score(**state["score"])
    run.forget_after("scratch", done)

    def losses(images: Tensor, labels: Tensor):
        yield F.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)

    for epoch in range(done, config.epochs):
        seed_everything(config.seed, "scratch", epoch)
        title = f"epoch {epoch + 1}/{config.epochs}"
        network.train()
        with Progress(title, steps, config.print_freq) as progress:
            loss = train_epoch(losses, batches.epoch(epoch), optimizer, schedule, epoch * steps, place, progress)
        score = evaluate(network.eval(), test.epoch(), place)
        print(f"{title} loss {loss:.4f}, test top-1 {score.top1:.2f} %", flush=True)
        run.log("scratch", epoch + 1, train_loss=loss, test_loss=score.loss, top1=score.top1, top5=score.top5)
        payload = {**described, "epoch": epoch + 1, "model": network.state_dict(), "score": score.to_dict()}
        checkpoint.save(run.checkpoint("last"), {**payload, "optimizer": optimizer.state_dict()})
        if config.path_to_save_scratch:
            checkpoint.save(config.path_to_save_scratch, payload)
    return score


def report(result: dict, seconds: float, run: RunFolder) -> None:
    target = f"{result['target']:g}" if result["target"] is not None else None
    costs = [f"{result[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    columns = ["target M", "cost M", "counted M", "params M", "test top-1 %", "top-5 %"]
    print(format_table(columns, [[target, *costs, f"{result['top1']:.2f}", f"{result['top5']:.2f}"]]))
    print(f"{result['epochs']} epochs, {seconds:.0f} s in this sitting; checkpoint and result.json are in {run.path}")


if __name__ == "__main__":
    main()
