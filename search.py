"""SGNAS: train the unified supernet, then the architecture generator on it.

Source: Huang and Chu, "Searching by Generating: Flexible and Efficient One-Shot NAS with Architecture Generator",
CVPR 2021. Stage 1 is `warm_up`, stage 2 `train_generator`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn import functional as F

from model.build import TrainedGenerator, build_space, load_generator, load_supernet, prior_pool
from model.generator import ArchitectureGenerator, PriorPool
from model.lookup_table import LookUpTable
from model.supernet import UnifiedSupernet
from utils import checkpoint
from utils.config import Config, load_config
from utils.data import (
    Augmentation,
    Images,
    Loader,
    Normalisation,
    SearchImages,
    load_dataset,
    loader,
    split_for_search,
)
from utils.engine import Placement, check_finite, evaluate, train_epoch
from utils.errors import UserError
from utils.optim import Schedule, make_optimizer
from utils.runtime import Progress, RunFolder, command, pick_device, seed_everything, stream
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = load_config(args.cfg, args.set)
    space = build_space(config)
    place = Placement(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = UnifiedSupernet(space, stream(config.seed, "supernet")).to(place.device)
    table = LookUpTable(space)
    if config.warmup_epochs == 0:
        if not config.model_pretrained:
            raise UserError(f"{args.cfg}: model_pretrained: with warmup_epochs 0 it must name a trained supernet")
        if not args.dry_run:
            load_supernet(supernet, config.model_pretrained)
    if args.dry_run:
        return dry_run(config, supernet, table, place)

    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    run = RunFolder.open(config, args.title or Path(args.cfg).stem, args.resume)
    pool_file = run.file("prior_pool.json")
    pool = prior_pool(config, table, pool_file if run.continues else run.origin and run.origin / "prior_pool.json")
    run.begin(config, place.device)
    for file in filter(None, (pool_file, config.path_to_prior_pool)):
        if not Path(file).exists():
            pool.save(file)
    images = split_for_search(dataset, config.train_portion, config.seed, run.file("split.json"))
    if config.warmup_epochs:
        warm_up(supernet, images, config, run, place)
    if config.search_epochs:
        train_generator(supernet, table, pool, images, config, run, place)
        report(config, table, pool, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument("--title", help="name of the run folder under log_dir; default: the config's name")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="auto: go on where this title stopped; none: move an earlier run aside and begin anew; "
        "PATH: begin with the state of another run folder",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", action="extend", help="override the config"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what the run would need, and stop")
    return parser.parse_args(argv)


# -- stage 1 ---------------------------------------------------------------------------------------------------------


def warm_up(supernet: UnifiedSupernet, images: SearchImages, config: Config, run: RunFolder, place: Placement) -> None:
    """Train all sub-networks by fairly sampled single paths (SGNAS, section 3.2); ends with the best supernet loaded.

    The gradients of `paths_per_step` paths on one batch add up before each step.
    """
    space = supernet.space
    batches = search_loader(images.train, config, "warm-up", training=True)
    validation = search_loader(images.validate, config, "validate", training=False)
    paths_to_validate = space.sample(config.validation_paths, stream(config.seed, "validation paths"))
    optimizer = make_optimizer(supernet.parameters(), config.optim_state)
    steps = len(batches)
    schedule = Schedule(
        config.lr_scheduler, config.optim_state.lr, config.epochs * steps, steps, config.step_size, config.decay_ratio
    )
    done, best = 0, -1.0
    if run.checkpoint("supernet_last").exists():
        state = checkpoint.load(run.checkpoint("supernet_last"))
        checkpoint.load_into(supernet, state["model"], run.checkpoint("supernet_last"))
        optimizer.load_state_dict(state["optimizer"])
        done, best = state["epoch"], state["best_top1"]
    run.forget_after("warm-up", done)
    for epoch in range(done, config.warmup_epochs):
        seed_everything(config.seed, "warm-up", epoch)
        rng = stream(config.seed, "paths", epoch)

        def losses(batch: Tensor, labels: Tensor, rng=rng):
            for path in space.sample_fair(config.paths_per_step, rng):
                yield F.cross_entropy(supernet(batch, path), labels, label_smoothing=config.label_smoothing)

        supernet.train()
        title = f"warm-up {epoch + 1}/{config.warmup_epochs}"
        with Progress(title, steps, config.print_freq) as progress:
            loss = train_epoch(losses, batches.epoch(epoch), optimizer, schedule, epoch * steps, place, progress)
        top1 = validate_paths(supernet, paths_to_validate, validation, place)
        mean = sum(top1) / len(top1)
        print(f"{title} loss {loss:.4f}, random paths top-1 {mean:.2f} %", flush=True)
        run.log("warm-up", epoch + 1, loss=loss, random_path_top1=mean)
        costs = LookUpTable(space)(paths_to_validate).tolist()
        rows = list(zip([f"{cost:.4f}" for cost in costs], [f"{value:.2f}" for value in top1], strict=True))
        run.write_csv("supernet_evaluate.csv", ("flops", "top1"), rows, config.path_to_supernet_eval)
        weights = {"kind": "supernet", "epoch": epoch + 1, "model": supernet.state_dict(), "space": space.to_dict()}
        if mean > best:
            best = mean
            save(run, "supernet_best", weights, config.path_to_save_model)
        save(run, "supernet_last", {**weights, "optimizer": optimizer.state_dict(), "best_top1": best})
    load_supernet(supernet, run.checkpoint("supernet_best"))


def validate_paths(supernet: UnifiedSupernet, paths: Tensor, validation: Loader, place: Placement) -> list[float]:
    """Top-1 in percent of each of `paths [N, L, E, K]`."""
    supernet.eval()
    return [evaluate(lambda x, p=path: supernet(x, p), validation.epoch(), place).top1 for path in paths]


# -- stage 2 ---------------------------------------------------------------------------------------------------------


def train_generator(
    supernet: UnifiedSupernet,
    table: LookUpTable,
    pool: PriorPool,
    images: SearchImages,
    config: Config,
    run: RunFolder,
    place: Placement,
) -> None:
    """Train the architecture generator against the frozen supernet (SGNAS, section 3.4)."""
    torch.manual_seed(stream(config.seed, "generator").initial_seed())
    generator = ArchitectureGenerator(config.low_flops, config.high_flops, config.hc_dim).to(place.device)
    optimizer = make_optimizer(generator.parameters(), config.g_optim_state)
    costs_of = LookUpTable(table.space).to(place.device)
    batches = search_loader(images.feed, config, "generator", training=True)
    validation = search_loader(images.validate, config, "validate", training=False)
    middle = torch.tensor([(config.low_flops + config.high_flops) / 2])
    done, best_loss, best_top1 = 0, float("inf"), -1.0
    if run.checkpoint("generator_last").exists():
        state = checkpoint.load(run.checkpoint("generator_last"))
        checkpoint.load_into(generator, state["model"], run.checkpoint("generator_last"))
        optimizer.load_state_dict(state["optimizer"])
        done, best_loss, best_top1 = state["epoch"], state["best_loss"], state["best_top1"]
    run.forget_after("generator", done)
    frozen = supernet.eval().frozen()
    for epoch in range(done, config.search_epochs):
        title = f"generator {epoch + 1}/{config.search_epochs}"
        tau = config.tau * config.tau_decay**epoch
        targets = training_targets(config, len(batches), stream(config.seed, "targets", epoch))
        rng = stream(config.seed, "gumbel", epoch)
        generator.train()
        with Progress(title, len(batches), config.print_freq) as progress:
            for step, (batch, labels) in enumerate(batches.epoch(epoch)):
                batch, labels = place.batch(batch, labels)
                target = targets[step : step + 1].to(place.device)
                paths = table.space.relax(generator(pool.nearest(target), target), tau, rng)
                with place.autocast():
                    logits = frozen(batch, paths[0])
                    accuracy_loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                cost = costs_of(paths)
                loss = accuracy_loss + hardware_loss(cost, target, config).sum()
                optimizer.zero_grad()
                loss.backward()
                check_finite(loss, title, step)
                optimizer.step()
                progress.update(loss=float(loss.detach()), target=float(target), cost=float(cost.detach()))

        trained = TrainedGenerator(generator.eval(), pool, table, title)
        targets, costs = evaluate_targets(trained, config)
        total = float(hardware_loss(costs, targets, config).sum())
        correlation = kendalltau(targets, costs).statistic if len(targets) > 1 else float("nan")
        rank = 0.0 if correlation != correlation else float(correlation)
        chosen = trained.generate(middle)[0]
        path = table.space.encode(chosen.architecture)
        top1 = evaluate(lambda x, p=path: supernet(x, p), validation.epoch(), place).top1
        print(
            f"{title} hardware loss {total:.4f}, Kendall tau {rank:.3f}, "
            f"target {chosen.target:g} M: {chosen.macs_m:.2f} M, top-1 {top1:.2f} %",
            flush=True,
        )
        run.log("generator", epoch + 1, hardware_loss=total, kendall_tau=rank, middle_top1=top1, tau=tau)
        rows = [(f"{cost:.4f}", f"{target:g}") for cost, target in zip(costs.tolist(), targets.tolist(), strict=True)]
        run.write_csv("generator_evaluate.csv", ("gen_flops", "true_flops"), rows, config.path_to_generator_eval)
        weights = {
            "kind": "generator",
            "epoch": epoch + 1,
            "model": generator.state_dict(),
            "low": config.low_flops,
            "high": config.high_flops,
        }
        if total < best_loss:
            best_loss = total
            save(run, "generator_best_avg", weights, config.path_to_best_avg_generator)
            columns = ("gen_flops", "true_flops")
            run.write_csv("generator_evaluate_avg.csv", columns, rows, config.path_to_generator_eval_avg)
        if total < config.hardware_loss_limit and top1 > best_top1:
            best_top1 = top1
            save(run, "generator_best", weights, config.path_to_save_generator)
            row = (chosen.target, f"{chosen.macs_m:.4f}", f"{top1:.2f}", choices_text(chosen.architecture))
            run.write_csv(
                "evaluate_architecture.csv",
                ("true_flops", "gen_flops", "top1", "choices"),
                [row],
                config.path_to_save_evaluate_architecture,
            )
        state = {**weights, "optimizer": optimizer.state_dict(), "best_loss": best_loss, "best_top1": best_top1}
        save(run, "generator_last", state, config.path_to_final_generator)


def training_targets(config: Config, steps: int, rng: torch.Generator) -> Tensor:
    """Targets of an epoch `[steps]` in M: the multiples of `target_step` in shuffled rounds, each with its jitter."""
    marks = torch.arange(config.low_flops, config.high_flops, config.target_step, dtype=torch.float64)
    rounds = [marks[torch.randperm(len(marks), generator=rng)] for _ in range(-(-steps // len(marks)))]
    jitter = (2 * torch.rand(steps, generator=rng, dtype=torch.float64) - 1) * config.target_jitter
    return (torch.cat(rounds)[:steps] + jitter).float()


def hardware_loss(costs: Tensor, targets: Tensor, config: Config) -> Tensor:
    """alpha (cost - target)^2, times the penalty where the target is exceeded; zero within the tolerance, `[N]`."""
    miss = costs - targets
    weight = torch.where(miss > 0, config.loss_penalty, 1.0) * (miss.abs() > config.cost_tolerance)
    return config.alpha * weight * (miss / config.cost_unit) ** 2


def evaluate_targets(trained: TrainedGenerator, config: Config) -> tuple[Tensor, Tensor]:
    """Targets low..high in steps of `eval_step` and the costs of the architectures generated for them, `[N]` each."""
    steps = int((config.high_flops - config.low_flops) / config.eval_step + 1e-6)
    targets = config.low_flops + config.eval_step * torch.arange(steps + 1)
    return targets, torch.tensor([generated.macs_m for generated in trained.generate(targets)])


def report(config: Config, table: LookUpTable, pool: PriorPool, run: RunFolder) -> None:
    """Generate for all evaluated targets with the generator of least hardware loss; a table and its files."""
    file = run.checkpoint("generator_best_avg")
    generator = load_generator(file, config.low_flops, config.high_flops, config.hc_dim)
    trained = TrainedGenerator(generator, pool, table, str(file))
    targets, _ = evaluate_targets(trained, config)
    found = trained.generate(targets)
    run.write_text("architectures.json", json.dumps([g.to_dict() for g in found]) + "\n")
    rows = [(g.target, f"{g.macs_m:.4f}", choices_text(g.architecture)) for g in found]
    run.write_csv("architecture.csv", ("true_flops", "gen_flops", "choices"), rows, config.path_to_save_architecture)
    miss = sum(abs(g.macs_m - g.target) / g.target for g in found) / len(found)
    shown = [
        [f"{g.target:g}", f"{g.macs_m:.3f}", f"{100 * (g.macs_m / g.target - 1):+.1f}", f"{g.params_m:.3f}"]
        for g in found
    ]
    print(format_table(["target M", "cost M", "miss %", "params M"], shown))
    print(f"mean miss {100 * miss:.2f} % of the target; all files are in {run.path}")


def choices_text(architecture) -> str:
    """Choices as one CSV cell: layers apart by spaces, sub-blocks by dashes, 0 for skip."""
    return " ".join("-".join(str(choice or 0) for choice in row) for row in architecture.choices)


# -- shared by the stages --------------------------------------------------------------------------------------------


def search_loader(images: Images, config: Config, purpose: str, training: bool) -> Loader:
    augment = Augmentation(config.crop_padding, config.horizontal_flip) if training else None
    normalise = Normalisation(config.mean, config.std)
    seed = stream(config.seed, purpose).initial_seed()
    return loader(images, config.batch_size, normalise, augment, seed, config.num_workers)


def save(run: RunFolder, name: str, payload: dict, mirror: str | None = None) -> None:
    """A checkpoint in the run folder, and a copy where the config wants one."""
    checkpoint.save(run.checkpoint(name), payload)
    if mirror:
        checkpoint.copy(run.checkpoint(name), mirror)


def dry_run(config: Config, supernet: UnifiedSupernet, table: LookUpTable, place: Placement) -> None:
    """Print the reachable costs, the parameters, and the memory and time that the run would take."""
    space = supernet.space
    count = min(config.batch_size, 16)
    rng = stream(config.seed, "dry run")
    batch = torch.randn(count, 3, config.input_size, config.input_size, generator=rng)
    batch, labels = place.batch(batch, torch.zeros(count, dtype=torch.long))
    largest = space.discretize(table.depthwise[:, None].expand(space.shape).clone())
    soft = space.relax(torch.zeros(space.shape), 1.0).to(place.device).requires_grad_()

    def hard_step():
        for path in space.sample_fair(config.paths_per_step, rng):
            F.cross_entropy(supernet(batch, path), labels).backward()

    def generator_step():
        F.cross_entropy(frozen(batch, soft), labels).backward()

    hard_bytes = saved_bytes(lambda: supernet.train()(batch, largest))
    hard_seconds = best_seconds(hard_step) * config.batch_size / count
    frozen = supernet.eval().frozen()
    soft_bytes = saved_bytes(lambda: frozen(batch, soft))
    soft_seconds = best_seconds(generator_step) * config.batch_size / count
    parameters = sum(p.numel() for p in supernet.parameters())
    peak = 3 * 4 * parameters + max(hard_bytes, soft_bytes) * config.batch_size / count
    least, most = table.reach()
    print(f"reachable cost    {least:.3f} to {most:.3f} M multiply-adds")
    print(f"targets           {config.low_flops:g} to {config.high_flops:g} M")
    print(f"parameters        supernet {parameters / 1e6:.2f} M")
    print(
        f"peak memory       about {peak / 2**30:.2f} GiB at batch {config.batch_size}: weights, gradients, activations"
    )
    print(f"time of a step    warm-up {hard_seconds:.2f} s, generator {soft_seconds:.2f} s on {place.device}")
    try:
        dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    except UserError as error:
        return print(f"projected time    unknown: {error}")
    held_out = dataset.held_out
    images = len(dataset.train.labels)
    portion = config.train_portion if config.train_portion < 1 else 0.8
    train, feed = (images, len(held_out.labels)) if held_out else (portion * images, (1 - portion) * images)
    warm = config.warmup_epochs * train / config.batch_size * hard_seconds
    search = config.search_epochs * 0.75 * feed / config.batch_size * soft_seconds
    print(f"projected time    warm-up {warm / 60:.1f} min, generator {search / 60:.1f} min, validation not counted")


def saved_bytes(forward) -> int:
    """Bytes that autograd keeps of one forward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def best_seconds(step, times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
