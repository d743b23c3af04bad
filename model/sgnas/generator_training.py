"""Training the architecture generator against the soft supernet (SGNAS, section 3.4)."""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.prior_pool import PriorPool
from model.spaces.contracts import CostTable
from utils import distributed
from utils.capacity import batch_of
from utils.config import OptimState
from utils.engine import DeviceContext
from utils.loader import Loader
from utils.optim import Schedule, load_optimizer, make_optimizer, moving_average
from utils.recipe import EpochMeter, check_finite, check_weights, say_dropped
from utils.runtime import Progress, seed_global, stream
from utils.stopping import check_stop_together, handle_requests, pending_requests


@dataclass(frozen=True)
class GeneratorRecipe:
    """The keys by which the generator learns. Targets are in the unit of the cost table."""

    low_flops: float
    high_flops: float
    target_step: float
    target_jitter: float
    targets_per_step: int
    hc_dim: int
    search_epochs: int
    g_optim_state: OptimState
    g_lr_scheduler: str
    generator_ema: float
    tau: float
    tau_decay: float
    sampled_paths: int
    straight_through: bool
    logit_decay: float
    label_smoothing: float
    seed: int

    def targets(self, count: int, rng: torch.Generator) -> Tensor:
        """Targets `[count]`: the multiples of `target_step` in shuffled rounds, with jitter."""
        ends = (self.low_flops, self.high_flops)
        first, stop = (math.ceil(round(end / self.target_step, 6)) for end in ends)
        marks = self.target_step * torch.arange(first, stop, dtype=torch.float64)
        rounds = -(-count // len(marks))
        drawn = [marks[torch.randperm(len(marks), generator=rng)] for _ in range(rounds)]
        jitter = (
            2 * torch.rand(count, generator=rng, dtype=torch.float64) - 1
        ) * self.target_jitter
        return (torch.cat(drawn)[:count] + jitter).float()


class GeneratorTraining:
    """The generator, the average of its weights that is evaluated and kept, and what trains it.

    Args:
        soft: the supernet, differentiable in the path alone.
        pool: the priors that the generator starts from.
        table: the costs that targets are in.
    """

    def __init__(
        self,
        soft: nn.Module,
        pool: PriorPool,
        table: CostTable,
        hardware_loss: HardwareLoss,
        steps_per_epoch: int,
        recipe: GeneratorRecipe,
        context: DeviceContext,
        checkpoint: Path,
    ):
        self.soft, self.pool, self.hardware_loss = soft, pool, hardware_loss
        self.recipe, self.context, self.checkpoint = recipe, context, checkpoint
        self.table = copy.deepcopy(table).to(context.device)
        seed_global(stream(recipe.seed, "generator"))
        generator = ArchitectureGenerator(recipe.low_flops, recipe.high_flops, recipe.hc_dim)
        self.generator = generator.to(context.device)
        self.average = moving_average(self.generator, recipe.generator_ema)
        self.optimizer = make_optimizer(self.generator.parameters(), recipe.g_optim_state)
        self.schedule = Schedule(
            recipe.g_lr_scheduler, recipe.g_optim_state.lr, recipe.search_epochs, steps_per_epoch
        )
        self.epochs, self.meter = 0, EpochMeter()
        self.best_loss, self.best_top1 = float("inf"), -1.0

    def payload(self, epochs: int) -> dict:
        """The checkpoint of the averaged generator: all that `load_generator` needs."""
        return {
            "kind": "generator",
            "epoch": epochs,
            "model": self.average.module.state_dict(),
            "low": self.recipe.low_flops,
            "high": self.recipe.high_flops,
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
        load_optimizer(self.optimizer, state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.epochs, self.meter = state["epoch"], EpochMeter(**state["tally"])
        self.best_loss, self.best_top1 = state["best_loss"], state["best_top1"]

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> None:
        """What is left of a pass over the images that feed the generator.

        A step has `targets_per_step` targets. Of several processes each has images and targets of
        its own; they step by the mean of their gradients.
        """
        recipe, step, rank = self.recipe, self.meter.steps, distributed.rank()
        tau = recipe.tau * recipe.tau_decay**epoch
        drawn = (len(batches), distributed.size(), recipe.targets_per_step)
        targets = recipe.targets(math.prod(drawn), stream(recipe.seed, "targets", epoch))
        targets = targets.view(drawn)
        self.generator.train()
        check_stop_together()
        for images, labels in batches.epoch(epoch, step):
            self.schedule.apply(self.optimizer, epoch * len(batches) + step)
            chosen = targets[step, rank].to(self.context.device)
            gumbel = stream(recipe.seed, "gumbel", epoch, step, *([rank] if rank else []))
            self.optimizer.zero_grad()
            if read := len(labels):
                batch = self.context.batch(images, labels)
                with batch_of(read):
                    loss, numbers = self.losses(*batch, chosen, tau, gumbel)
                    loss.backward()
            else:  # a broken image costs a batch, but no run
                numbers = {"loss": 0.0}
                say_dropped(progress.title, step, read)
                for parameter in self.generator.parameters():
                    parameter.grad = torch.zeros_like(parameter)
            distributed.average(parameter.grad for parameter in self.generator.parameters())
            total, read, *agreed = distributed.totals(numbers["loss"], read, *pending_requests())
            check_finite(total, progress.title, step, self.checkpoint)
            if read:
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
        space, recipe, count = self.table.space, self.recipe, self.recipe.sampled_paths
        logits = self.generator(self.pool.nearest(targets), targets)
        paths = seen = space.relax(logits, tau, gumbel)
        if count:  # hard paths, drawn from what was generated for the first target
            repeated = logits[:1].expand(count, -1, -1, -1)
            seen = space.discretize(space.relax(repeated, 1.0, gumbel))
        passed = [self._passed(images, labels, path) for path in (seen if count else seen[:1])]
        scores, losses = zip(*passed, strict=True)
        supernet_loss = losses[0]
        if count:
            likely = space.relax(logits[0], 1.0).clamp(min=1e-8).log()
            supernet_loss = expected(torch.stack(losses), (likely * seen).sum(dim=(1, 2, 3)))
        if recipe.straight_through:  # the cost of the discrete architecture, the mixture's gradient
            paths = straight_through(space.discretize(logits), space.relax(logits, 1.0))
        costs = self.table(paths)
        loss = supernet_loss + self.hardware_loss(costs, targets).mean()
        if recipe.logit_decay:
            loss = loss + recipe.logit_decay * logits.square().mean()
        top1 = 100 * float((scores[0].argmax(dim=1) == labels).float().mean())
        first = {"target": float(targets[0]), "cost": float(costs[0].detach())}
        return loss, {"loss": float(loss.detach()), "top1": top1, **first}

    def _passed(self, images: Tensor, labels: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a path through the supernet; a hard one needs no gradient."""
        smoothing = self.recipe.label_smoothing
        with torch.set_grad_enabled(path.requires_grad), self.context.autocast():
            scores = self.soft(images, path)
            return scores, F.cross_entropy(scores, labels, label_smoothing=smoothing)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft` (Bengio et al., 2013)."""
    return hard + soft - soft.detach()


def expected(losses: Tensor, likelihoods: Tensor) -> Tensor:
    """The mean of the `losses [M]` of sampled paths, with a gradient for their distribution.

    `likelihoods [M]` are the logarithms of their probabilities. A path becomes likelier by how many
    standard deviations it is better than the mean of the others: cells that compute nothing differ
    from all others by a hundred times what good ones differ by. Source: Williams, "Simple
    statistical gradient-following algorithms", 1992, with the baseline of Kool et al., 2019.
    """
    others = (losses.sum() - losses) / (len(losses) - 1)
    worse = (losses - others).detach()
    score = (worse / (worse.std() + 1e-3) * likelihoods).mean()
    return losses.mean() + score - score.detach()
