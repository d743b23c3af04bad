"""How fast the SGNAS stages are, compared with a plain reference and with stand-alone networks.

    python3 -m benchmarks.supernet [--json]

Every step has a process of its own, and these take turns, so that a noisy machine disturbs them
alike; the medians count. The reference (`tests/reference.py`) has a module for each sub-block and
kernel and computes every path as the published release does; the tests prove it equal to ours. It
runs as PyTorch runs by default; all else runs as in the stages, which keep freed memory
(`utils.runtime.keep_freed_memory`). What the reference gains by that is shown, too. The stand-alone
networks are those of the same paths.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from model.costs.lookup_table import LookUpTable
from model.sgnas.answers import ReadyGenerator
from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.prior_pool import PriorPool
from model.spaces.registry import open_problem
from model.spaces.unified.kind import KIND
from model.spaces.unified.published import from_published
from model.spaces.unified.soft_supernet import SoftSupernet
from model.spaces.unified.space import UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.reference import ReferenceSupernet
from utils.command import Parser, command, positive
from utils.config import Config, OptimState, load_config
from utils.engine import DeviceContext
from utils.forecast import peak_bytes
from utils.images import ImageData
from utils.loader import BatchRecipe
from utils.optim import make_optimizer
from utils.runtime import keep_freed_memory
from utils.table import format_table
from utils.timing import Timer, seconds_of

CONFIG = Path(__file__).parent.parent / "config_file" / "cifar_config.yml"
CPU = DeviceContext(torch.device("cpu"))
PATHS = 4  # single-path passes of a warm-up step
TARGETS = 1000
BY_DEFAULT = ("hard path, reference", "generator, reference")  # run without what the stages set up

Step = Callable[[], None]


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = load_config(CONFIG)
    task = Task.of(open_problem(config).space, config, args.batch)
    if args.serve:
        return serve(partial(STEPS[args.serve], task), keep=args.serve not in BY_DEFAULT)
    seconds, memory = taken_in_turns(args.batch, args.rounds)
    result = summary(seconds, memory)
    rows = [[name, f"{seconds[name]:.3f}", f"{memory[name] / 2**30:.2f}"] for name in STEPS]
    print(format_table(["step", "seconds (median)", "peak GiB"], rows))
    rows = [[name, f"{value:.3f}"] for name, value in result.items()]
    print(format_table(["ratio", "measured"], rows))
    if not args.no_scaling:
        exponents = scaling(task, min(args.rounds, 3))
        rows = [[axis, *(f"{one:.2f}" for one in found)] for axis, found in exponents.items()]
        print(format_table(["step time grows as", "hard-path step", "generator step"], rows))
    print(
        f"CIFAR-100 space, batch {args.batch}, medians of {args.rounds}; "
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, "
        f"{gflops():.0f} GFLOP/s in a product of 2048 x 2048"
    )
    if args.json:
        print(json.dumps(result))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--rounds", type=positive, default=7, help="how often each step is timed")
    parser.add_argument("--no-scaling", action="store_true", help="leave out how the times grow")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    # the name of the step that this process runs
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def summary(seconds: dict[str, float], memory: dict[str, float]) -> dict[str, float]:
    """The ratios by which the project is judged."""
    return {
        "hard_vs_reference": seconds["hard path, reference"] / seconds["hard path"],
        "hard_vs_standalone": seconds["hard path"] / seconds["hard path, stand-alone"],
        "generator_vs_reference": seconds["generator, reference"] / seconds["generator"],
        "generator_memory_ratio": memory["generator"] / memory["generator, reference"],
        "generate_1000_s": seconds["generate 1000"],
        "evaluation_vs_standalone": seconds["evaluation"] / seconds["evaluation, stand-alone"],
        "loading_vs_hard_step": seconds["loading"] / seconds["hard path"],
    }


# -- what is timed ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What all steps share: a space, its config, `images [B, 3, H, W]` and `labels [B]`.

    Weights and paths are the same in all steps, too.
    """

    space: UnifiedSpace
    config: Config
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, space: UnifiedSpace, config: Config, batch: int) -> "Task":
        rng = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, space.image_size, space.image_size, generator=rng)
        return cls(space, config, images, torch.randint(space.classes, (batch,), generator=rng))

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Images and labels as the stages have them."""
        return CPU.batch(self.images, self.labels)

    @property
    def reference(self) -> ReferenceSupernet:
        torch.manual_seed(0)
        return ReferenceSupernet(self.space)

    @property
    def supernet(self) -> UnifiedSupernet:
        """Ours, with the weights of the reference."""
        weights, ours = self.reference.state_dict(), UnifiedSupernet(self.space)
        ours.load_state_dict(from_published(self.space, weights), strict=False)
        return ours

    @property
    def paths(self) -> Tensor:
        return self.space.sample_fair(PATHS, torch.Generator().manual_seed(1))


def hard_step(task: Task) -> Step:
    """The warm-up step of `search.py`: the gradients of fairly sampled paths add up."""
    supernet, (images, labels) = task.supernet.train(), task.batch

    def forwards() -> Iterable[Tensor]:
        paths = KIND.step_choices(task.space, PATHS, "fair", torch.Generator().manual_seed(1))
        passes = KIND.passes(supernet, paths, CPU, images, labels)
        return (logits for logits, _ in passes)

    return training_step(supernet, forwards, labels)


def reference_hard_step(task: Task) -> Step:
    reference, paths = task.reference.train(), task.paths

    def forwards() -> Iterable[Tensor]:
        return (reference(task.images, path) for path in paths)

    return training_step(reference, forwards, task.labels)


def training_step(
    network: nn.Module, forwards: Callable[[], Iterable[Tensor]], labels: Tensor
) -> Step:
    """Differentiate each of the logits of `forwards()` before the next; then step once."""
    optimizer = make_optimizer(network.parameters(), OptimState(lr=1e-4))

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        for logits in forwards():
            F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def standalone_step(task: Task) -> Step:
    """The stand-alone networks of the same paths, each in the memory format that is fastest."""
    supernet, (images, labels) = task.supernet, task.batch
    networks = [supernet.extract(path, dropout=0.0) for path in task.paths]
    networks = [network.train().to(memory_format=torch.channels_last) for network in networks]
    steps = [training_step(one, lambda one=one: [one(images)], labels) for one in networks]
    return lambda: [step() for step in steps]


def generator_and_prior(task: Task) -> tuple[ArchitectureGenerator, PriorPool]:
    rng, reach = torch.Generator().manual_seed(2), (task.config.low_flops, task.config.high_flops)
    torch.manual_seed(2)
    pool = PriorPool.build(LookUpTable(task.space), *reach, 1, rng)
    return ArchitectureGenerator(*reach), pool


def generator_step(task: Task) -> Step:
    return published_generator_step(SoftSupernet(task.supernet.eval()), task, *task.batch)


def reference_generator_step(task: Task) -> Step:
    """As published: the supernet's weights get gradients too, which nobody uses."""
    return published_generator_step(task.reference.eval(), task, task.images, task.labels)


def published_generator_step(
    supernet: nn.Module, task: Task, images: Tensor, labels: Tensor
) -> Step:
    """One target: Gumbel softmax at temperature 5, cross entropy of the path's logits, and cost."""
    table, (generator, pool) = LookUpTable(task.space), generator_and_prior(task)
    optimizer = make_optimizer(generator.parameters(), task.config.g_optim_state)
    hardware_loss, target = task.config.part(HardwareLoss), torch.tensor([100.0])

    def step() -> None:
        logits, rng = generator(pool.nearest(target), target), torch.Generator().manual_seed(3)
        path = task.space.relax(logits, 5.0, rng)[0]
        loss = F.cross_entropy(supernet(images, path), labels)
        loss = loss + hardware_loss(table(path)[None], target).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def generation(task: Task) -> Step:
    """Architectures with costs and parameters, from a generator of the published size."""
    generator, pool = generator_and_prior(task)
    ready = ReadyGenerator(generator.eval(), pool, LookUpTable(task.space), "benchmark")
    reach = (task.config.low_flops, task.config.high_flops)
    return partial(ready.generate, torch.linspace(*reach, TARGETS, dtype=torch.float64))


def evaluation(task: Task) -> Step:
    """Logits of a batch of validation images on a path of the supernet."""
    return torch.no_grad()(partial(task.supernet.eval(), task.batch[0], task.paths[0]))


def standalone_evaluation(task: Task) -> Step:
    network = task.supernet.eval().extract(task.paths[0]).to(memory_format=torch.channels_last)
    return torch.no_grad()(partial(network, task.batch[0]))


def loading(task: Task) -> Step:
    """A training batch from 10,000 decoded images: cropped, flipped, normalised."""
    rng = torch.Generator().manual_seed(0)
    shape = (10_000, *task.images.shape[1:])
    pixels = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    config = replace(task.config, batch_size=len(task.images))
    images = ImageData(pixels, torch.zeros(10_000).long())
    batches = config.part(BatchRecipe).batches(images, "benchmark", training=True)
    return partial(next, itertools.chain.from_iterable(map(batches.epoch, itertools.count())))


def soft_step(task: Task) -> Step:
    """The soft supernet on a soft path, without a generator: for spaces of any cost."""
    soft, (images, labels) = SoftSupernet(task.supernet.eval()), task.batch
    path = task.space.relax(torch.zeros(task.space.shape), 1.0).requires_grad_()
    return lambda: F.cross_entropy(soft(images, path), labels).backward()


STEPS = {
    "hard path": hard_step,
    "hard path, reference": reference_hard_step,
    "hard path, reference, memory kept": reference_hard_step,
    "hard path, stand-alone": standalone_step,
    "generator": generator_step,
    "generator, reference": reference_generator_step,
    "generator, reference, memory kept": reference_generator_step,
    "generate 1000": generation,
    "evaluation": evaluation,
    "evaluation, stand-alone": standalone_evaluation,
    "loading": loading,
}


# -- timing ----------------------------------------------------------------------------------------


def serve(build: Callable[[], Step], keep: bool) -> None:
    """Time a step for each line read from stdin; at its end print the peak memory in bytes."""
    if keep:
        keep_freed_memory()
    step = build()
    step()
    for _ in sys.stdin:
        print(seconds_of(step), flush=True)
    print(peak_bytes(CPU.device))


def taken_in_turns(batch: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds and peak bytes of each step, by name, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.supernet", "--batch", str(batch), "--serve"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    with ExitStack() as stack:
        servers = {}
        for name in STEPS:
            process = subprocess.Popen([*command, name], cwd=CONFIG.parent.parent, **streams)
            servers[name] = stack.enter_context(process)
        for _ in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
            for name, server in servers.items():
                print(file=server.stdin, flush=True)
                seconds[name].append(float(server.stdout.readline()))
        memory = {name: float(server.communicate()[0]) for name, server in servers.items()}
    # the first round is not counted
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}, memory


def paired(steps: list[Step], rounds: int) -> list[float]:
    """Median seconds of each step, all of them timed in turns after one untimed round."""
    return np.median(Timer(rounds + 1).seconds(steps)[:, 1:], axis=1).tolist()


def scaling(task: Task, rounds: int) -> dict[str, list[float]]:
    """Exponents of the growth of both steps with batch size, layers and sub-blocks."""

    def grown(variants: dict[float, Task]) -> list[float]:
        steps = (hard_step, soft_step)
        seconds = paired([step(one) for one in variants.values() for step in steps], rounds)
        return [exponent(list(variants), seconds[i :: len(steps)]) for i in range(len(steps))]

    def variant(count: int, **changes) -> Task:
        """Of `count` layers like one in the middle."""
        layer = replace(task.space.layers[9], in_channels=80, out_channels=80, **changes)
        space = replace(task.space, layers=(layer,) * count, first_channels=80, image_size=8)
        return Task.of(space, task.config, batch)

    batch = len(task.images)
    sizes = (batch // 2, batch, batch * 2)
    return {
        "batch": grown({size: Task.of(task.space, task.config, size) for size in sizes}),
        "layers": grown({count: variant(count) for count in (4, 8, 16)}),
        "sub-blocks": grown({E: variant(6, expansion=E) for E in (2, 4, 8)}),
    }


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return statistics.linear_regression(*(list(map(math.log, x)) for x in (sizes, seconds))).slope


def gflops(size: int = 2048, times: int = 5) -> float:
    """What this machine reaches in a large fp32 matrix product."""
    a, b = torch.randn(2, size, size)
    [seconds] = paired([lambda: a @ b], times)
    return 2 * size**3 / seconds / 1e9


if __name__ == "__main__":
    main()
