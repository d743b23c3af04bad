"""SGNAS: train the unified supernet, then the architecture generator on it.

Source: Huang and Chu, "Searching by Generating: Flexible and Efficient One-Shot NAS with Architecture Generator",
CVPR 2021. Stage 1 is `warm_up`, stage 2 `train_generator`.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional as F

from model.build import build_hardware_loss, build_schedule, build_space, load_supernet, prior_pool
from model.forecast import forecast
from model.generation import GENERATOR_FILE, Generated, ReadyGenerator, load_generator, miss_table
from model.generator import ArchitectureGenerator, PriorPool
from model.lookup_table import HardwareLoss, LookUpTable
from model.space import UnifiedSpace
from model.supernet import FrozenSupernet, UnifiedSupernet
from utils.config import Config, load_config
from utils.data import (
    HELD_OUT_BY_DEFAULT,
    Augmentation,
    Images,
    Loader,
    Normalisation,
    SearchImages,
    load_dataset,
    loader,
    split_for_search,
)
from utils.engine import Placement, Recipe, check_finite, evaluate, recalibrated, train_epoch
from utils.errors import UserError
from utils.optim import Schedule, make_optimizer, moving_average
from utils.runtime import Progress, RunFolder, add_config_options, command, pick_device, seed_everything, stream
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = load_config(args.cfg, args.set + ["strict_data=true"] * args.strict_data)
    space, place = build_space(config), Placement(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = UnifiedSupernet(space, stream(config.seed, "supernet"), config.alignment).to(place.device)
    if args.dry_run:
        return dry_run(config, supernet, place)

    load_pretrained(supernet, config, args.cfg)
    dataset = load_dataset(
        config.dataset, config.dataset_dir, config.input_size, config.classes, strict=config.strict_data
    )
    split_for_search(dataset, config.train_portion, config.seed)  # bad portions show before anything is written
    run = RunFolder.open("search", config, args.title or Path(args.cfg).stem, args.resume)
    pool = open_prior_pool(config, LookUpTable(space), run)
    run.begin(config, place.device)
    save_prior_pool(pool, config, run)
    images = split_for_search(dataset, config.train_portion, config.seed, run.file("split.json"))
    if config.warmup_epochs:
        warm_up(supernet, images, config, run, place)
    if config.search_epochs:
        train_generator(supernet, pool, images, config, run, place)
        report(pool, LookUpTable(space), config, run)


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
    add_config_options(parser)
    parser.add_argument("--strict-data", action="store_true", help="stop at an image that cannot be read")
    parser.add_argument("--dry-run", action="store_true", help="say what the run would need, and stop")
    return parser.parse_args(argv)


def load_pretrained(supernet: UnifiedSupernet, config: Config, cfg: str) -> None:
    """Without a warm-up, the supernet must come from `model_pretrained`."""
    if config.warmup_epochs == 0:
        if not config.model_pretrained:
            raise UserError(f"{cfg}: model_pretrained: with warmup_epochs 0 it must name a trained supernet")
        load_supernet(supernet, config.model_pretrained)


def open_prior_pool(config: Config, table: LookUpTable, run: RunFolder) -> PriorPool:
    """The pool of the run that is continued or begun from, else the config's."""
    folder = run.path if run.continues else run.origin
    return prior_pool(config, table, folder / "prior_pool.json" if folder else None)


def save_prior_pool(pool: PriorPool, config: Config, run: RunFolder) -> None:
    for file in filter(None, (config.path_to_prior_pool, run.file("prior_pool.json"))):
        if not Path(file).exists():
            pool.save(file)


def search_loader(images: Images, config: Config, purpose: str, training: bool) -> Loader:
    augment = Augmentation(config.crop_padding, config.horizontal_flip) if training else None
    normalise = Normalisation(config.mean, config.std)
    seed = stream(config.seed, purpose).initial_seed()
    return loader(images, config.batch_size, normalise, augment, seed, config.num_workers)


# -- stage 1 ---------------------------------------------------------------------------------------------------------


def warm_up(supernet: UnifiedSupernet, images: SearchImages, config: Config, run: RunFolder, place: Placement) -> None:
    """Train all sub-networks by fairly sampled single paths (SGNAS, section 3.2); ends with the best supernet loaded.

    The gradients of `paths_per_step` paths on one batch add up before each step.
    """
    space = supernet.space
    batches = search_loader(images.train, config, "warm-up", training=True)
    validation = PathValidation(supernet, images, config, place)
    validated = space.sample(config.validation_paths, stream(config.seed, "validation paths"))
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    optimizer = make_optimizer(supernet.parameters(), config.optim_state)
    recipe = Recipe(criterion, optimizer, build_schedule(config, len(batches)), place, config.clip_grad)
    state = run.restore("supernet_last", supernet, optimizer) or {"epoch": 0, "best_top1": -1.0}
    done, best = state["epoch"], state["best_top1"]
    run.forget_after("warm-up", done)
    for epoch in range(done, config.warmup_epochs):
        seed_everything(config.seed, "warm-up", epoch)
        forwards = partial(path_logits, supernet, config.paths_per_step, stream(config.seed, "paths", epoch))
        title, first_step = f"warm-up {epoch + 1}/{config.warmup_epochs}", epoch * len(batches)
        supernet.train()
        with Progress(title, len(batches), config.print_freq) as progress:
            means = train_epoch(forwards, recipe, batches.epoch(epoch), first_step, progress)
        top1 = [validation.top1(path) for path in validated]
        mean = sum(top1) / len(top1)
        print(f"{title} loss {means.loss:.4f}, random paths top-1 {mean:.2f} %", flush=True)
        run.log("warm-up", epoch + 1, loss=means.loss, top1=means.top1, random_path_top1=mean)
        rows = [
            (f"{cost:.4f}", f"{t:.2f}") for cost, t in zip(LookUpTable(space)(validated).tolist(), top1, strict=True)
        ]
        run.write_csv("supernet_evaluate.csv", ("flops", "top1"), rows, config.path_to_supernet_eval)
        weights = {"kind": "supernet", "epoch": epoch + 1, "model": supernet.state_dict(), "space": space.to_dict()}
        if mean > best:
            best = mean
            run.save("supernet_best", weights, config.path_to_save_model)
        run.save("supernet_last", {**weights, "optimizer": optimizer.state_dict(), "best_top1": best})
    load_supernet(supernet, run.checkpoint("supernet_best"))


def path_logits(supernet: UnifiedSupernet, paths: int, rng: torch.Generator, images: Tensor):
    """The logits of the fairly sampled paths of one step, one after another.

    All paths share stem and first block, which are computed once, and differentiated once all paths have been.
    """
    features = supernet.stem(images)
    shared = features.detach().requires_grad_()
    for path in supernet.space.sample_fair(paths, rng):
        yield supernet.classify(shared, path)
    features.backward(shared.grad)


class PathValidation:
    """Scores single paths on the validation images, with BN re-estimated on training images for each path."""

    def __init__(self, supernet: UnifiedSupernet, images: SearchImages, config: Config, place: Placement):
        self.supernet, self.place = supernet, place
        self.batches = search_loader(images.validate, config, "validate", training=False)
        shuffled = torch.randperm(len(images.train.labels), generator=stream(config.seed, "recalibrate"))
        used = images.train.subset(shuffled[: config.bn_recalibration_images])
        self.recalibration = search_loader(used, config, "recalibrate", training=False)

    def top1(self, path: Tensor) -> float:
        """Top-1 in percent of a one-hot path `[L, E, K]`; leaves the supernet in evaluation mode."""

        def forward(images: Tensor) -> Tensor:
            return self.supernet(images, path)

        with recalibrated(self.supernet, forward, self.recalibration.epoch(), self.place):
            return evaluate(forward, self.batches.epoch(), self.place).top1


# -- stage 2 ---------------------------------------------------------------------------------------------------------


def train_generator(
    supernet: UnifiedSupernet, pool: PriorPool, images: SearchImages, config: Config, run: RunFolder, place: Placement
) -> None:
    """Train the architecture generator against the frozen supernet (SGNAS, section 3.4)."""
    table, hardware_loss = LookUpTable(supernet.space), build_hardware_loss(config)
    batches = search_loader(images.feed, config, "generator", training=True)
    validation = PathValidation(supernet, images, config, place)
    training = GeneratorTraining(supernet.eval().frozen(), pool, hardware_loss, len(batches), config, place)
    state = run.restore("generator_last", training.generator, training.optimizer)
    done, best_loss, best_top1 = 0, float("inf"), -1.0
    if state:
        training.average.load_state_dict(state["average"])
        done, best_loss, best_top1 = state["epoch"], state["best_loss"], state["best_top1"]
    run.forget_after("generator", done)
    for epoch in range(done, config.search_epochs):
        title = f"generator {epoch + 1}/{config.search_epochs}"
        with Progress(title, len(batches), config.print_freq) as progress:
            training.epoch(batches, epoch, progress)
        ready = ReadyGenerator(training.average.module.eval(), pool, table, title, config.priors_per_target)
        evaluated, total, rank = evaluate_targets(ready, hardware_loss, config)
        middle = ready.generate(torch.tensor([(config.low_flops + config.high_flops) / 2], dtype=torch.float64))[0]
        top1 = validation.top1(supernet.space.encode(middle.architecture))
        print(
            f"{title} hardware loss {total:.4f}, Kendall tau {rank:.3f}, mean miss {100 * mean_miss(evaluated):.2f} %, "
            f"target {middle.target:g} M: {middle.macs_m:.2f} M, top-1 {top1:.2f} %",
            flush=True,
        )
        numbers = {"hardware_loss": total, "kendall_tau": rank, "mean_miss": mean_miss(evaluated), "middle_top1": top1}
        run.log(
            "generator",
            epoch + 1,
            **numbers,
            prior_kept=prior_kept(evaluated, pool, table.space, config.priors_per_target),
        )
        write_evaluation(evaluated, "generator_evaluate.csv", run, config.path_to_generator_eval)
        weights = {
            "kind": "generator",
            "epoch": epoch + 1,
            "model": training.average.module.state_dict(),
            "low": config.low_flops,
            "high": config.high_flops,
        }
        if total < best_loss:
            best_loss = total
            write_evaluation(evaluated, "generator_evaluate_avg.csv", run, config.path_to_generator_eval_avg)
            run.save(GENERATOR_FILE, weights, config.path_to_best_avg_generator)
        if total < config.hardware_loss_limit and top1 > best_top1:
            best_top1 = top1
            write_validated(middle, top1, run, config.path_to_save_evaluate_architecture)
            run.save("generator_best", weights, config.path_to_save_generator)
        run.save("generator_final", weights, config.path_to_final_generator)
        run.save("generator_last", {**weights, **training.state(), "best_loss": best_loss, "best_top1": best_top1})


class GeneratorTraining:
    """The generator, the average of its weights that is evaluated and kept, and what trains it."""

    def __init__(
        self,
        frozen: FrozenSupernet,
        pool: PriorPool,
        hardware_loss: HardwareLoss,
        steps_per_epoch: int,
        config: Config,
        place: Placement,
    ):
        self.frozen, self.pool, self.hardware_loss, self.config, self.place = frozen, pool, hardware_loss, config, place
        self.table = LookUpTable(frozen.space).to(place.device)
        torch.manual_seed(stream(config.seed, "generator").initial_seed())
        self.generator = ArchitectureGenerator(config.low_flops, config.high_flops, config.hc_dim).to(place.device)
        self.average = moving_average(self.generator, config.generator_ema)
        self.optimizer = make_optimizer(self.generator.parameters(), config.g_optim_state)
        state = config.g_optim_state
        self.schedule = Schedule(config.g_lr_scheduler, state.lr, config.search_epochs, steps_per_epoch)

    def state(self) -> dict:
        """What a later sitting needs to go on."""
        return {
            "model": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> None:
        """One pass over the images that feed the generator, `targets_per_step` targets a step."""
        config, count = self.config, self.config.targets_per_step
        tau, gumbel = config.tau * config.tau_decay**epoch, stream(config.seed, "gumbel", epoch)
        targets = training_targets(config, len(batches) * count, stream(config.seed, "targets", epoch))
        self.generator.train()
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            self.schedule.apply(self.optimizer, epoch * len(batches) + step)
            chosen = targets[step * count : (step + 1) * count].to(self.place.device)
            loss, numbers = self.losses(*self.place.batch(images, labels), chosen, tau, gumbel)
            self.optimizer.zero_grad()
            loss.backward()
            check_finite(loss, progress.title, step)
            self.optimizer.step()
            self.average.update_parameters(self.generator)
            progress.update(**numbers)

    def losses(
        self, images: Tensor, labels: Tensor, targets: Tensor, tau: float, gumbel: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step (SGNAS, equation 6) and what the progress shows of it.

        The mixture generated for the first of `targets [N]` goes through the supernet; all of them pay for missing
        their targets.
        """
        space = self.frozen.space
        logits = self.generator(self.pool.nearest(targets), targets)
        paths = space.relax(logits, tau, gumbel)
        with self.place.autocast():
            scores = self.frozen(images, paths[0])
            supernet_loss = F.cross_entropy(scores, labels, label_smoothing=self.config.label_smoothing)
        if self.config.straight_through:
            paths = straight_through(space.discretize(logits), space.relax(logits, 1.0))
        costs = self.table(paths)
        loss = supernet_loss + self.hardware_loss(costs, targets).mean()
        top1 = 100 * float((scores.argmax(dim=1) == labels).float().mean())
        first = {"target": float(targets[0]), "cost": float(costs[0].detach())}
        return loss, {"loss": float(loss.detach()), "top1": top1, **first}


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft` (Bengio et al., 2013)."""
    return hard + soft - soft.detach()


def training_targets(config: Config, count: int, rng: torch.Generator) -> Tensor:
    """Targets `[count]` in M: the multiples of `target_step` in shuffled rounds, each with its jitter."""
    first, stop = (math.ceil(round(b / config.target_step, 6)) for b in (config.low_flops, config.high_flops))
    marks = config.target_step * torch.arange(first, stop, dtype=torch.float64)
    rounds = [marks[torch.randperm(len(marks), generator=rng)] for _ in range(-(-count // len(marks)))]
    jitter = (2 * torch.rand(count, generator=rng, dtype=torch.float64) - 1) * config.target_jitter
    return (torch.cat(rounds)[:count] + jitter).float()


def evaluate_targets(
    ready: ReadyGenerator, hardware_loss: HardwareLoss, config: Config
) -> tuple[list[Generated], float, float]:
    """Architectures for low..high in steps of `eval_step`, their total hardware loss, and Kendall tau to targets."""
    steps = int((config.high_flops - config.low_flops) / config.eval_step + 1e-6)
    targets = config.low_flops + config.eval_step * torch.arange(steps + 1, dtype=torch.float64)
    found = ready.generate(targets)
    costs = torch.tensor([g.macs_m for g in found], dtype=torch.float64)
    rank = float(kendalltau(targets, costs).statistic) if len(costs.unique()) > 1 else 0.0
    return found, float(hardware_loss(costs, targets).sum()), rank


def mean_miss(found: list[Generated]) -> float:
    """Mean of |cost - target| / target."""
    return sum(abs(g.macs_m - g.target) / g.target for g in found) / len(found)


def prior_kept(found: list[Generated], pool: PriorPool, space: UnifiedSpace, priors_per_target: int) -> float:
    """Share of the choices that are those of the most similar of the priors they were generated from."""
    priors = pool.near(torch.tensor([g.target for g in found]), priors_per_target)
    paths = torch.stack([space.encode(g.architecture) for g in found])
    same = (paths[:, None] * priors).sum(dim=-1)[:, :, space.exists].mean(dim=2)
    return float(same.max(dim=1).values.mean())


def write_evaluation(found: list[Generated], name: str, run: RunFolder, mirror: str | None) -> None:
    rows = [(f"{g.macs_m:.4f}", f"{g.target:g}") for g in found]
    run.write_csv(name, ("gen_flops", "true_flops"), rows, mirror)


def write_validated(found: Generated, top1: float, run: RunFolder, mirror: str | None) -> None:
    row = (f"{found.target:g}", f"{found.macs_m:.4f}", f"{top1:.2f}", choices_text(found))
    run.write_csv("evaluate_architecture.csv", ("true_flops", "gen_flops", "top1", "choices"), [row], mirror)


def choices_text(found: Generated) -> str:
    """Choices as one CSV cell: layers apart by spaces, sub-blocks by dashes, 0 for skip."""
    return " ".join("-".join(str(choice or 0) for choice in row) for row in found.architecture.choices)


# -- what comes out --------------------------------------------------------------------------------------------------


def report(pool: PriorPool, table: LookUpTable, config: Config, run: RunFolder) -> None:
    """Generate for all evaluated targets with the generator of least hardware loss; a table and its files."""
    file = run.checkpoint(GENERATOR_FILE)
    generator = load_generator(file, config.low_flops, config.high_flops, config.hc_dim)
    found, _, rank = evaluate_targets(
        ReadyGenerator(generator, pool, table, str(file), config.priors_per_target), build_hardware_loss(config), config
    )
    run.write_text("architectures.json", json.dumps([g.to_dict() for g in found]) + "\n")
    rows = [(f"{g.target:g}", f"{g.macs_m:.4f}", choices_text(g)) for g in found]
    run.write_csv("architecture.csv", ("true_flops", "gen_flops", "choices"), rows, config.path_to_save_architecture)
    print(format_table(*miss_table(found)))
    kept = prior_kept(found, pool, table.space, config.priors_per_target)
    print(
        f"mean miss {100 * mean_miss(found):.2f} % of the target, Kendall tau {rank:.3f}, "
        f"{100 * kept:.0f} % of the choices are those of the priors"
    )
    print(f"all files are in {run.path}")


def dry_run(config: Config, supernet: UnifiedSupernet, place: Placement) -> None:
    """Print the reachable costs, the parameters, and the memory and time that the run would take."""
    needs = forecast(supernet, config.batch_size, config.paths_per_step, place, stream(config.seed, "dry run"))
    least, most = LookUpTable(supernet.space).reach()
    print(f"reachable cost    {least:.3f} to {most:.3f} M multiply-adds")
    print(f"targets           {config.low_flops:g} to {config.high_flops:g} M")
    print(f"parameters        supernet {sum(p.numel() for p in supernet.parameters()) / 1e6:.2f} M")
    print(f"peak memory       about {needs.peak_bytes / 2**30:.2f} GiB at batch {config.batch_size}")
    print(
        f"time of a step    warm-up {needs.warmup_seconds:.2f} s, generator {needs.generator_seconds:.2f} s "
        f"on {place.device}, scaled from a batch of {min(config.batch_size, 16)}"
    )
    try:
        dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes, download=False)
    except UserError as error:
        return print(f"projected time    unknown: {error}")
    images = len(dataset.train.labels)
    portion = config.train_portion if config.train_portion < 1 else HELD_OUT_BY_DEFAULT
    train, held_out = portion * images, (1 - portion) * images
    if dataset.held_out is not None:
        train, held_out = images, len(dataset.held_out.labels)
    warm_up_minutes = config.warmup_epochs * train / config.batch_size * needs.warmup_seconds / 60
    generator_minutes = config.search_epochs * 0.75 * held_out / config.batch_size * needs.generator_seconds / 60
    print(
        f"projected time    warm-up {warm_up_minutes:.1f} min, generator {generator_minutes:.1f} min, "
        "validation not counted"
    )


if __name__ == "__main__":
    main()
