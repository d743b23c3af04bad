"""Training the architecture generator against the frozen supernet (SGNAS, section 3.4), and how
well it answers.
"""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn import functional as F

from model.costs.lookup_table import CostTable, HardwareLoss
from model.sgnas.answers import Generated, ReadyGenerator
from model.sgnas.generator import ArchitectureGenerator, PriorPool
from model.spaces.nasbench201.supernet import SoftCellSupernet
from model.spaces.unified.supernet import SoftSupernet
from utils import distributed
from utils.config import Config
from utils.engine import DeviceContext, EpochMeter, check_finite, check_weights
from utils.loader import Loader
from utils.optim import Schedule, make_optimizer, moving_average
from utils.runtime import Progress, seed_global, stream
from utils.stopping import check_stop_together, handle_requests, pending_requests


class GeneratorTraining:
    """The generator, the average of its weights that is evaluated and kept, and what trains them."""

    def __init__(
        self,
        frozen: SoftSupernet | SoftCellSupernet,
        pool: PriorPool,
        table: CostTable,
        hardware_loss: HardwareLoss,
        steps_per_epoch: int,
        config: Config,
        context: DeviceContext,
        checkpoint: Path,
    ):
        self.frozen, self.pool, self.hardware_loss, self.config, self.context = (
            frozen,
            pool,
            hardware_loss,
            config,
            context,
        )
        self.checkpoint = checkpoint
        self.table = copy.deepcopy(table).to(context.device)
        seed_global(stream(config.seed, "generator"))
        self.generator = ArchitectureGenerator(
            config.low_flops, config.high_flops, config.hc_dim
        ).to(context.device)
        self.average = moving_average(self.generator, config.generator_ema)
        self.optimizer = make_optimizer(self.generator.parameters(), config.g_optim_state)
        state = config.g_optim_state
        self.schedule = Schedule(
            config.g_lr_scheduler, state.lr, config.search_epochs, steps_per_epoch
        )
        self.epochs, self.meter = 0, EpochMeter()
        self.best_loss, self.best_top1 = float("inf"), -1.0

    def payload(self, epochs: int) -> dict:
        """The checkpoint of the averaged generator: all that `load_generator` needs."""
        return {
            "kind": "generator",
            "epoch": epochs,
            "model": self.average.module.state_dict(),
            "low": self.config.low_flops,
            "high": self.config.high_flops,
            "unit": self.table.unit,
            "table": self.table.digest,
        }

    def state(self) -> dict:
        return {
            **self.payload(self.epochs),
            "model": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "tally": asdict(self.meter),
            "best_loss": self.best_loss,
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.generator.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.epochs, self.meter = state["epoch"], EpochMeter(**state["tally"])
        self.best_loss, self.best_top1 = state["best_loss"], state["best_top1"]

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> None:
        """What is left of a pass over the images that feed the generator, `targets_per_step`
        targets a step.

        Of several processes each has images and targets of its own; they step by the mean of their
        gradients.
        """
        config, step, rank = self.config, self.meter.steps, distributed.rank()
        tau = config.tau * config.tau_decay**epoch
        drawn = (len(batches), distributed.size(), config.targets_per_step)
        targets = training_targets(
            config, math.prod(drawn), stream(config.seed, "targets", epoch)
        ).view(drawn)
        self.generator.train()
        check_stop_together()
        for images, labels in batches.epoch(epoch, step):
            self.schedule.apply(self.optimizer, epoch * len(batches) + step)
            chosen = targets[step, rank].to(self.context.device)
            gumbel = stream(config.seed, "gumbel", epoch, step, *([rank] if rank else []))
            loss, numbers = self.losses(*self.context.batch(images, labels), chosen, tau, gumbel)
            self.optimizer.zero_grad()
            loss.backward()
            distributed.average(parameter.grad for parameter in self.generator.parameters())
            total, *agreed = distributed.totals(numbers["loss"], *pending_requests())
            check_finite(total, progress.title, step, self.checkpoint)
            self.optimizer.step()
            self.average.update_parameters(self.generator)
            self.meter.steps = step = step + 1
            progress.update(**numbers)
            handle_requests(*map(bool, agreed))
        check_weights(self.generator.parameters(), progress.title, self.checkpoint)

    def losses(
        self, images: Tensor, labels: Tensor, targets: Tensor, tau: float, gumbel: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step (SGNAS, equation 6) and what the progress shows of it.

        What was generated for the first of `targets [N]` goes through the supernet, as a mixture,
        or as `sampled_paths` paths; all of them pay for missing their targets.
        """
        space = self.frozen.space
        logits = self.generator(self.pool.nearest(targets), targets)
        paths = space.relax(logits, tau, gumbel)
        count = self.config.sampled_paths
        seen = (
            space.discretize(space.relax(logits[:1].expand(count, -1, -1, -1), 1.0, gumbel))
            if count
            else paths[:1]
        )
        scores, losses = zip(*(self._passed(images, labels, path) for path in seen), strict=True)
        supernet_loss = losses[0]
        if count:
            likelihood = (space.relax(logits[0], 1.0).clamp(min=1e-8).log() * seen).sum(
                dim=(1, 2, 3)
            )
            supernet_loss = expected(torch.stack(losses), likelihood)
        if self.config.straight_through:
            paths = straight_through(space.discretize(logits), space.relax(logits, 1.0))
        costs = self.table(paths)
        loss = supernet_loss + self.hardware_loss(costs, targets).mean()
        if self.config.logit_decay:
            loss = loss + self.config.logit_decay * logits.square().mean()
        top1 = 100 * float((scores[0].argmax(dim=1) == labels).float().mean())
        first = {"target": float(targets[0]), "cost": float(costs[0].detach())}
        return loss, {"loss": float(loss.detach()), "top1": top1, **first}

    def _passed(self, images: Tensor, labels: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a path through the supernet; a discrete one needs no gradient."""
        with torch.set_grad_enabled(path.requires_grad), self.context.autocast():
            scores = self.frozen(images, path)
            return scores, F.cross_entropy(
                scores, labels, label_smoothing=self.config.label_smoothing
            )


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft` (Bengio et al., 2013)."""
    return hard + soft - soft.detach()


def expected(losses: Tensor, likelihoods: Tensor) -> Tensor:
    """The mean of the `losses [M]` of sampled paths, with a gradient for what they were sampled
    from.

    `likelihoods [M]` are the logarithms of their probabilities. A path becomes likelier by how many
    standard deviations it is better than the mean of the others: cells that compute nothing differ
    from all others by a hundred times what good ones differ by. Source: Williams, "Simple
    statistical gradient-following algorithms", 1992, with the baseline of Kool et al., 2019.
    """
    others = (losses.sum() - losses) / (len(losses) - 1)
    worse = (losses - others).detach()
    score = (worse / (worse.std() + 1e-3) * likelihoods).mean()
    return losses.mean() + score - score.detach()


def training_targets(config: Config, count: int, rng: torch.Generator) -> Tensor:
    """Targets `[count]`: the multiples of `target_step` in shuffled rounds, each with its jitter."""
    first, stop = (
        math.ceil(round(b / config.target_step, 6)) for b in (config.low_flops, config.high_flops)
    )
    marks = config.target_step * torch.arange(first, stop, dtype=torch.float64)
    rounds = [
        marks[torch.randperm(len(marks), generator=rng)] for _ in range(-(-count // len(marks)))
    ]
    jitter = (2 * torch.rand(count, generator=rng, dtype=torch.float64) - 1) * config.target_jitter
    return (torch.cat(rounds)[:count] + jitter).float()


# -- how well it answers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The architectures for low..high in steps of `eval_step`, and what they say of the generator.

    `hardware_loss` is the total over the targets, `kendall_tau` that between targets and costs,
    `mean_miss` the mean of |cost - target| / target, `prior_kept` the share of choices that are
    those of a prior.
    """

    found: list[Generated]
    hardware_loss: float
    kendall_tau: float
    mean_miss: float
    prior_kept: float

    @property
    def middle(self) -> Generated:
        return self.found[len(self.found) // 2]


def answers(ready: ReadyGenerator, hardware_loss: HardwareLoss, config: Config) -> Answers:
    """What `ready` answers to the targets from `low_flops` to `high_flops` in steps of `eval_step`."""
    targets = evaluated_targets(config)
    found = ready.generate(targets)
    costs = torch.tensor([g.cost for g in found], dtype=torch.float64)
    return Answers(
        found,
        hardware_loss=float(hardware_loss(costs, targets).sum()),
        kendall_tau=float(kendalltau(targets, costs).statistic) if len(costs.unique()) > 1 else 0.0,
        mean_miss=float(((costs - targets).abs() / targets).mean()),
        prior_kept=_prior_kept(ready, found),
    )


def evaluated_targets(config: Config) -> Tensor:
    """`low_flops` to `high_flops` in steps of `eval_step`, float64 `[N]`."""
    steps = int((config.high_flops - config.low_flops) / config.eval_step + 1e-6)
    return config.low_flops + config.eval_step * torch.arange(steps + 1, dtype=torch.float64)


def _prior_kept(ready: ReadyGenerator, found: list[Generated]) -> float:
    """Share of the choices that are those of the most similar of the priors they were generated
    from.
    """
    space = ready.table.space
    priors = ready.pool.near(torch.tensor([g.target for g in found]), ready.priors_per_target)
    paths = torch.stack([space.encode(g.architecture) for g in found])
    same = (paths[:, None] * priors).sum(dim=-1)[:, :, space.exists].mean(dim=2)
    return float(same.max(dim=1).values.mean())
