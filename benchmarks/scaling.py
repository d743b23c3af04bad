"""What more processes bring: a step of supernet warm-up, with its exchange of gradients.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node=1 -m benchmarks.scaling [--cfg CFG] [--steps N] [--json FILE]
    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 -m benchmarks.scaling ...

Each step sees the config's batch size, shared by all processes. Medians over the steps: seconds of
a step, seconds of the exchange alone, and the megabytes that each process sends into it.
"""

import json
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from model.sgnas.warm_up import path_logits
from model.spaces.registry import build_supernet
from utils import distributed
from utils.command import Parser, command, positive
from utils.config import load_config
from utils.engine import DeviceContext
from utils.runtime import pick_device, stream
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--cfg", default="config_file/cifar10_small_config.yml", help="config of the supernet"
    )
    parser.add_argument(
        "--steps", type=positive, default=15, help="measured, behind two that are not (default 15)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="add the numbers to FILE, one line"
    )
    args = parser.parse_args(argv)
    config = load_config(args.cfg)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = build_supernet(config).to(context.device).train()
    part, size = config.batch_size // distributed.size(), config.input_size
    images, labels = context.batch(
        torch.randn(part, 3, size, size), torch.zeros(part, dtype=torch.long)
    )
    passes = partial(path_logits, supernet, config.paths_per_step, context, images, labels)
    parameters = list(supernet.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    steps, exchanges = [], []
    for step in range(-2, args.steps):
        distributed.wait()
        began = time.perf_counter()
        for logits, targets in passes(stream(0, step)):
            F.cross_entropy(logits, targets).backward()
        computed = time.perf_counter()
        distributed.average(parameter.grad for parameter in parameters)
        distributed.totals(*range(6))  # what `train_epoch` adds up
        if step >= 0:
            exchanges.append(time.perf_counter() - computed)
            steps.append(time.perf_counter() - began)
    found = {
        "processes": distributed.size(),
        "batch": config.batch_size,
        "step_s": median(steps),
        "exchange_s": median(exchanges),
        "images_per_s": config.batch_size / median(steps),
        "megabytes": sum(p.numel() * p.element_size() for p in parameters) / 1e6,
    }
    if args.json and distributed.rank() == 0:
        with args.json.open("a") as file:
            file.write(json.dumps(found) + "\n")
    row = [f"{value:.4g}" for value in found.values()]
    print(
        format_table(["processes", "batch", "step s", "exchange s", "images/s", "MB sent"], [row])
    )


if __name__ == "__main__":
    main()
