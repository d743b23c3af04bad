"""What more processes bring: a step of supernet warm-up, with its exchange of gradients.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node=1 -m benchmarks.scaling [--cfg CFG] [--steps N]
        [--json FILE]
    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 -m benchmarks.scaling ...

Each step sees the config's batch size, shared by all processes. Medians over the steps: seconds of
a step, seconds of the exchange alone, and the megabytes that each process sends into it.
"""

import json
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from model.spaces.registry import open_problem
from utils import distributed
from utils.command import Parser, command, positive
from utils.config import load_config
from utils.engine import DeviceContext
from utils.forecast import random_batch
from utils.runtime import pick_device, stream
from utils.table import format_table
from utils.timing import seconds_of

COLUMNS = ["processes", "batch", "step s", "exchange s", "images/s", "MB sent"]
UNTIMED = 2  # steps before those that count


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    file = "config_file/cifar10_small_config.yml"
    parser.add_argument("--cfg", default=file, help="config of the supernet")
    counted = f"timed, after {UNTIMED} that are not (default 15)"
    parser.add_argument("--steps", type=positive, default=15, help=counted)
    line = "add the numbers to FILE, one line"
    parser.add_argument("--json", type=Path, metavar="FILE", help=line)
    args = parser.parse_args(argv)
    config = load_config(args.cfg)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    problem = open_problem(config)
    supernet = problem.supernet(config).to(context.device).train()
    part, rng = config.batch_size // distributed.size(), stream(0, "images")
    batch = random_batch(part, config.input_size, context, rng)
    sampled = (config.paths_per_step, config.path_sampling)
    parameters = list(supernet.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def compute(rng: torch.Generator) -> None:
        choices = problem.kind.step_choices(problem.space, *sampled, rng)
        for logits, targets in problem.kind.passes(supernet, choices, context, *batch):
            F.cross_entropy(logits, targets).backward()

    def exchange() -> None:
        distributed.average(parameter.grad for parameter in parameters)
        distributed.totals(*range(6))  # what `train_epoch` adds up

    steps, exchanges = [], []
    for step in range(-UNTIMED, args.steps):
        distributed.wait()
        computed = seconds_of(partial(compute, stream(0, step)), context.device)
        exchanges.append(seconds_of(exchange, context.device))
        steps.append(computed + exchanges[-1])
    seconds = median(steps[UNTIMED:])
    found = {
        "processes": distributed.size(),
        "batch": config.batch_size,
        "step_s": seconds,
        "exchange_s": median(exchanges[UNTIMED:]),
        "images_per_s": config.batch_size / seconds,
        "megabytes": sum(p.numel() * p.element_size() for p in parameters) / 1e6,
    }
    if args.json and distributed.rank() == 0:
        with args.json.open("a") as file:
            file.write(json.dumps(found) + "\n")
    print(format_table(COLUMNS, [[f"{value:.4g}" for value in found.values()]]))


if __name__ == "__main__":
    main()
