"""How fast the SGNAS stages are, beside a plain reference and beside the stand-alone networks of
the same paths.

    python3 -m benchmarks.supernet [--json]

Every step has a process of its own, and these take turns, so that a noisy machine disturbs them
alike; the medians count. The reference (`tests/reference.py`) has a module for each sub-block and
kernel and computes every path as the published release does; the tests prove it equal to ours. It
runs as PyTorch runs by default; all else runs as in the stages, which keep freed memory
(`utils.runtime.keep_freed_memory`). What the reference gains by that is shown, too.
"""

import argparse
import itertools
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from model.costs.lookup_table import LookUpTable
from model.sgnas.answers import ReadyGenerator
from model.sgnas.generator import ArchitectureGenerator, PriorPool
from model.sgnas.warm_up import path_logits
from model.spaces.registry import build_hardware_loss, build_space, search_loader
from model.spaces.unified.space import UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet, from_published
from tests.reference import ReferenceSupernet
from utils.command import Parser, command, positive
from utils.config import Config, OptimState, load_config
from utils.engine import DeviceContext
from utils.images import ImageData
from utils.optim import make_optimizer
from utils.runtime import keep_freed_memory
from utils.table import format_table

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
    space = build_space(config)
    if args.serve:
        return serve(
            contestants(space, config, args.batch)[args.serve], keep=args.serve not in BY_DEFAULT
        )
    names = list(contestants(space, config, args.batch))
    seconds, memory = taken_in_turns(names, args.batch, args.rounds)
    result = summary(seconds, memory)
    rows = [[name, f"{seconds[name]:.3f}", f"{memory[name] / 2**30:.2f}"] for name in names]
    print(format_table(["step", "seconds (median)", "peak GiB"], rows))
    print(
        format_table(
            ["ratio", "measured"], [[name, f"{value:.3f}"] for name, value in result.items()]
        )
    )
    if not args.no_scaling:
        exponents = scaling(space, args.batch, min(args.rounds, 3))
        rows = [
            [axis, *(f"{exponent:.2f}" for exponent in found)] for axis, found in exponents.items()
        ]
        print(format_table(["step time grows as", "hard-path step", "generator step"], rows))
    print(
        f"CIFAR-100 space, batch {args.batch}, medians of {args.rounds}; {torch.get_num_threads()} threads,",
        end=" ",
    )
    print(
        f"{platform.machine()}, torch {torch.__version__}, {gflops():.0f} GFLOP/s in a product of 2048 x 2048"
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


def contestants(space: UnifiedSpace, config: Config, batch: int) -> dict[str, Callable[[], Step]]:
    """Builders of the steps, by name: all of the same weights, images and paths."""
    images, labels = images_of(space, batch)
    return {
        "hard path": lambda: hard_step(space, images, labels),
        "hard path, reference": lambda: reference_hard_step(space, images, labels),
        "hard path, reference, memory kept": lambda: reference_hard_step(space, images, labels),
        "hard path, stand-alone": lambda: standalone_step(space, images, labels),
        "generator": lambda: generator_step(space, config, images, labels),
        "generator, reference": lambda: reference_generator_step(space, config, images, labels),
        "generator, reference, memory kept": lambda: reference_generator_step(
            space, config, images, labels
        ),
        "generate 1000": lambda: generation(space, config),
        "evaluation": lambda: evaluation(supernets(space)[0].eval(), paths_of(space)[0], images),
        "evaluation, stand-alone": lambda: standalone_evaluation(space, images),
        "loading": lambda: loading(space, config, batch),
    }


def images_of(space: UnifiedSpace, batch: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, space.image_size, space.image_size, generator=rng)
    return images, torch.randint(space.classes, (batch,), generator=rng)


def supernets(space: UnifiedSpace) -> tuple[UnifiedSupernet, ReferenceSupernet]:
    """Ours and the reference, with the same weights."""
    torch.manual_seed(0)
    reference = ReferenceSupernet(space)
    ours = UnifiedSupernet(space)
    ours.load_state_dict(from_published(space, reference.state_dict()), strict=False)
    return ours, reference


def paths_of(space: UnifiedSpace) -> Tensor:
    return space.sample_fair(PATHS, torch.Generator().manual_seed(1))


def hard_step(space: UnifiedSpace, images: Tensor, labels: Tensor) -> Step:
    """The warm-up step of `search.py`: four fairly sampled paths, their gradients added, one
    optimiser step.
    """
    supernet = supernets(space)[0].train()
    images, labels = CPU.batch(images, labels)
    return training_step(
        supernet,
        lambda: (
            logits
            for logits, _ in path_logits(
                supernet, PATHS, CPU, images, labels, torch.Generator().manual_seed(1)
            )
        ),
        labels,
    )


def reference_hard_step(space: UnifiedSpace, images: Tensor, labels: Tensor) -> Step:
    reference, paths = supernets(space)[1].train(), paths_of(space)
    return training_step(reference, lambda: (reference(images, path) for path in paths), labels)


def training_step(
    network: nn.Module, forwards: Callable[[], Iterable[Tensor]], labels: Tensor
) -> Step:
    """Each of the logits of `forwards()` differentiated before the next is computed; then one
    optimiser step.
    """
    optimizer = make_optimizer(network.parameters(), OptimState(lr=1e-4))

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        for logits in forwards():
            F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def standalone_step(space: UnifiedSpace, images: Tensor, labels: Tensor) -> Step:
    """The stand-alone networks of the same paths, each in the memory format that is fastest."""
    supernet = supernets(space)[0]
    networks = [supernet.extract(path, dropout=0.0) for path in paths_of(space)]
    networks = [network.train().to(memory_format=torch.channels_last) for network in networks]
    images, labels = CPU.batch(images, labels)
    steps = [training_step(one, lambda one=one: [one(images)], labels) for one in networks]
    return lambda: [step() for step in steps]


def generator_and_prior(
    space: UnifiedSpace, config: Config
) -> tuple[ArchitectureGenerator, PriorPool]:
    rng = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    pool = PriorPool.build(LookUpTable(space), config.low_flops, config.high_flops, 1, rng)
    return ArchitectureGenerator(config.low_flops, config.high_flops), pool


def generator_step(space: UnifiedSpace, config: Config, images: Tensor, labels: Tensor) -> Step:
    return published_generator_step(
        supernets(space)[0].eval().frozen(), space, config, *CPU.batch(images, labels)
    )


def reference_generator_step(
    space: UnifiedSpace, config: Config, images: Tensor, labels: Tensor
) -> Step:
    """As published: the supernet's weights get gradients too, which nobody uses."""
    return published_generator_step(supernets(space)[1].eval(), space, config, images, labels)


def published_generator_step(
    supernet: nn.Module, space: UnifiedSpace, config: Config, images: Tensor, labels: Tensor
) -> Step:
    """One target, a Gumbel softmax at temperature 5, cross entropy of `supernet(images, path)` and
    cost.
    """
    table, (generator, pool) = LookUpTable(space), generator_and_prior(space, config)
    optimizer, loss_of = (
        make_optimizer(generator.parameters(), config.g_optim_state),
        build_hardware_loss(config),
    )
    target = torch.tensor([100.0])

    def step() -> None:
        path = space.relax(
            generator(pool.nearest(target), target), 5.0, torch.Generator().manual_seed(3)
        )[0]
        loss = (
            F.cross_entropy(supernet(images, path), labels)
            + loss_of(table(path)[None], target).sum()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def generation(space: UnifiedSpace, config: Config) -> Step:
    """A thousand architectures with their costs and parameters, from a generator of the published
    size.
    """
    generator, pool = generator_and_prior(space, config)
    ready = ReadyGenerator(generator.eval(), pool, LookUpTable(space), "benchmark")
    targets = torch.linspace(config.low_flops, config.high_flops, TARGETS, dtype=torch.float64)
    return partial(ready.generate, targets)


def evaluation(network: nn.Module, path: Tensor | None, images: Tensor) -> Step:
    """Logits of a batch of validation images: of a path of the supernet, or of a network of its
    own.
    """
    images, _ = CPU.batch(images, torch.zeros(len(images)))
    arguments = (images,) if path is None else (images, path)
    return torch.no_grad()(partial(network, *arguments))


def standalone_evaluation(space: UnifiedSpace, images: Tensor) -> Step:
    network = supernets(space)[0].eval().extract(paths_of(space)[0])
    return evaluation(network.to(memory_format=torch.channels_last), None, images)


def loading(space: UnifiedSpace, config: Config, batch: int) -> Step:
    """A training batch from 10,000 decoded images: cropped, flipped, normalised."""
    rng = torch.Generator().manual_seed(0)
    shape = (10_000, 3, space.image_size, space.image_size)
    images = ImageData(
        torch.randint(256, shape, generator=rng, dtype=torch.uint8), torch.zeros(10_000).long()
    )
    batches = search_loader(images, replace(config, batch_size=batch), "benchmark", training=True)
    drawn = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
    return partial(next, drawn)


# -- timing ----------------------------------------------------------------------------------------


def serve(build: Callable[[], Step], keep: bool) -> None:
    """Time a step for each line read from stdin; at its end print the peak memory in bytes."""
    if keep:
        keep_freed_memory()
    step = build()
    step()
    for _ in sys.stdin:
        print(seconds_of(step), flush=True)
    print(peak_of_this_process())


def taken_in_turns(
    names: list[str], batch: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds and peak bytes of each step, by name."""
    command = [sys.executable, "-m", "benchmarks.supernet", "--batch", str(batch), "--serve"]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "cwd": CONFIG.parent.parent,
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(subprocess.Popen([*command, name], **pipes)) for name in names
        }
        # the first one is not counted
        for turn in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
            for name, server in servers.items():
                print(file=server.stdin, flush=True)
                taken = float(server.stdout.readline())
                seconds[name] += [taken] if turn else []
        memory = {name: float(server.communicate()[0]) for name, server in servers.items()}
    return {name: statistics.median(times) for name, times in seconds.items()}, memory


def paired(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each step, all of them timed in turns after one untimed round."""
    for step in steps.values():
        step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step))
    return {name: statistics.median(times) for name, times in seconds.items()}


def seconds_of(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak_of_this_process() -> int:
    """Peak resident bytes. Linux's `ru_maxrss` begins with the parent's, so that its own file is
    read there.
    """
    if sys.platform == "linux":
        line = next(
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def scaling(space: UnifiedSpace, batch: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Exponents of the growth of both steps with batch size, layers and sub-blocks, fitted in
    logarithms.
    """

    def grown(variants: list[tuple[float, UnifiedSpace, int]]) -> tuple[float, float]:
        steps = {}
        for size, variant, images in variants:
            drawn = images_of(variant, images)
            steps["hard", size] = hard_step(variant, *drawn)
            steps["generator", size] = frozen_step(variant, *drawn)
        seconds = paired(steps, rounds)
        return tuple(
            exponent([(size, seconds[kind, size]) for size, _, _ in variants])
            for kind in ("hard", "generator")
        )

    like = space.layers[9]  # a layer in the middle, repeated
    deep = [
        (n, _space_of(space, [replace(like, in_channels=80, out_channels=80)] * n), batch)
        for n in (4, 8, 16)
    ]
    wide = [
        (
            e,
            _space_of(space, [replace(like, in_channels=80, out_channels=80, expansion=e)] * 6),
            batch,
        )
        for e in (2, 4, 8)
    ]
    return {
        "batch": grown([(b, space, b) for b in (batch // 2, batch, batch * 2)]),
        "layers": grown(deep),
        "sub-blocks": grown(wide),
    }


def _space_of(space: UnifiedSpace, layers: list) -> UnifiedSpace:
    return replace(space, layers=tuple(layers), first_channels=80, image_size=8)


def frozen_step(space: UnifiedSpace, images: Tensor, labels: Tensor) -> Step:
    """Forward and backward of the frozen supernet on a soft path, without a generator: for spaces
    of any cost.
    """
    frozen = supernets(space)[0].eval().frozen()
    images, labels = CPU.batch(images, labels)
    path = space.relax(torch.zeros(space.shape), 1.0).requires_grad_()

    def step() -> None:
        F.cross_entropy(frozen(images, path), labels).backward()

    return step


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of the least-squares line through the logarithms of (size, seconds)."""
    x, y = ([math.log(point[i]) for point in points] for i in (0, 1))
    return statistics.linear_regression(x, y).slope


def gflops(size: int = 2048, times: int = 5) -> float:
    """What this machine reaches in a large fp32 matrix product."""
    a, b = torch.randn(2, size, size)
    seconds = paired({"product": lambda: a @ b}, times)["product"]
    return 2 * size**3 / seconds / 1e9


if __name__ == "__main__":
    main()
