"""Train one architecture from scratch on a data set of small images.

    python3 train_cifar.py --cfg config_file/cifar_config.yml --flops 100 --title NAME

The architecture comes from the trained generator, or from a file. All training images are used, and the accuracy
reported is that of the last epoch on the test images: nothing is chosen by them. Source: SGNAS, section 4.1.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from model.build import build_schedule, build_space
from model.generation import Chosen, choose, choose_from_file, newest_config
from model.lookup_table import LookUpTable
from model.space import load_architecture, save_architecture
from model.subnet import SubNet, count_macs, count_parameters
from utils.config import Config, load_config
from utils.data import Augmentation, Dataset, Normalisation, load_dataset, loader
from utils.engine import Placement, Score, evaluate, train_epoch
from utils.errors import UserError
from utils.optim import make_optimizer
from utils.runtime import (
    Progress,
    RunFolder,
    add_config_options,
    boolean,
    command,
    pick_device,
    seed_everything,
    stream,
)
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    flags = {key: getattr(args, key) for key in ("se", "activation")}
    overrides = args.set + [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = load_config(args.cfg, overrides) if args.cfg else newest_config(Path("./logs"), overrides)
    space, place = build_space(config), Placement(pick_device(config.cuda), config.channels_last, config.amp)
    run = RunFolder.open("train_cifar", config, args.title or default_title(args), args.resume)
    chosen = stored_choice(run, args) or choose(config, space, args.flops, args.architecture)
    print(f"architecture from {chosen.source}")
    options = {"se": config.se, "activation": config.activation, "dropout": config.dropout}
    network = SubNet(space, chosen.architecture, **options, rng=stream(config.seed, "scratch"))
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)

    run.begin(config, place.device)
    costs = {
        "macs_m": float(LookUpTable(space)(space.encode(chosen.architecture))),
        "macs_m_counted": count_macs(network, space.image_size),
        "params_m": count_parameters(network),
    }
    provenance = {"source": chosen.source, "target": chosen.target}
    save_architecture(run.file("architecture.json"), space, chosen.architecture, costs, provenance)
    described = {
        "kind": "subnet",
        "space": space.to_dict(),
        "architecture": [list(row) for row in chosen.architecture.choices],
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
        "target": chosen.target,
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
    parser.add_argument("--se", type=boolean, metavar="BOOL", help="squeeze-excite in every block (config key se)")
    parser.add_argument("--activation", help="relu6 or hswish (config key activation)")
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


def train(
    network: SubNet, dataset: Dataset, config: Config, run: RunFolder, place: Placement, described: dict
) -> Score:
    """All epochs with the published recipe; returns the test score of the last weights."""
    normalise = Normalisation(config.mean, config.std)
    augment = Augmentation(config.crop_padding, config.horizontal_flip)
    seed = stream(config.seed, "scratch batches").initial_seed()
    batches = loader(dataset.train, config.batch_size, normalise, augment, seed, config.num_workers)
    test = loader(dataset.test, config.batch_size, normalise, workers=config.num_workers)
    if place.channels_last:
        network.to(memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    optimizer = make_optimizer(network.parameters(), config.optim_state)
    schedule = build_schedule(config, len(batches))
    state = run.restore("last", network, optimizer)
    done, score = (state["epoch"], Score(**state["score"])) if state else (0, None)
    run.forget_after("scratch", done)

    def forwards(images: Tensor):
        yield network(images)

    for epoch in range(done, config.epochs):
        seed_everything(config.seed, "scratch", epoch)
        title, first_step = f"epoch {epoch + 1}/{config.epochs}", epoch * len(batches)
        network.train()
        with Progress(title, len(batches), config.print_freq) as progress:
            means = train_epoch(
                forwards,
                criterion,
                batches.epoch(epoch),
                optimizer,
                schedule,
                first_step,
                place,
                progress,
                config.clip_grad,
            )
        score = evaluate(network.eval(), test.epoch(), place)
        print(f"{title} loss {means.loss:.4f}, test top-1 {score.top1:.2f} %", flush=True)
        numbers = {"train_loss": means.loss, "train_top1": means.top1, "test_loss": score.loss}
        run.log("scratch", epoch + 1, **numbers, top1=score.top1, top5=score.top5)
        payload = {**described, "epoch": epoch + 1, "model": network.state_dict(), "score": score.to_dict()}
        payload["optimizer"] = optimizer.state_dict()
        run.save("last", payload, config.path_to_save_scratch)
    return score


def report(result: dict, seconds: float, run: RunFolder) -> None:
    target = f"{result['target']:g}" if result["target"] is not None else None
    costs = [f"{result[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    columns = ["target M", "cost M", "counted M", "params M", "test top-1 %", "top-5 %"]
    print(format_table(columns, [[target, *costs, f"{result['top1']:.2f}", f"{result['top5']:.2f}"]]))
    print(f"{result['epochs']} epochs, {seconds:.0f} s in this sitting; checkpoint and result.json are in {run.path}")


if __name__ == "__main__":
    main()
