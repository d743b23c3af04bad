"""Measure the layers of an elastic space on this machine and write them as a latency table.

    python3 -m tools.profile_latency --out lut.yaml [--cfg CFG | --width 1.0] [--runs 10]

The table has the published format, `KEY: {mean: milliseconds, var: ...}`, and goes to `msunas.py --sec_obj cpu --lut`.
Each layer runs alone on one image, in evaluation mode; `mean` is the median of the runs, which a busy machine disturbs
less, and a network's latency is the sum over its layers.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.blocks import conv
from model.build import build_elastic_space
from model.elastic_space import ElasticSpace
from model.latency import parts_of
from model.mobilenetv3 import Block, ConvNorm
from utils.checkpoint import write_text
from utils.command import Parser, add_config_options, command, positive, positive_number
from utils.config import load_config
from utils.errors import UserError
from utils.runtime import describe_environment, pick_device

WARM_UP = 2  # runs that do not count


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the table (YAML)")
    parser.add_argument("--cfg", help="config of an elastic supernet; default: the published space")
    parser.add_argument("--width", type=positive_number, default=1.0, help="of the published space (default 1.0)")
    parser.add_argument("--runs", type=positive, default=10, help="of each layer (default 10)")
    add_config_options(parser)
    args = parser.parse_args(argv)
    config = load_config(args.cfg, args.set) if args.cfg else None
    if config and config.supernet != "elastic":
        raise UserError(f"--cfg {args.cfg}: it describes no elastic supernet")
    device = pick_device(config.cuda if config else False)
    table = profile(build_elastic_space(config) if config else ElasticSpace(width=args.width), device, args.runs)
    environment = describe_environment(device)
    about = ", ".join(f"{key} {environment[key]}" for key in ("device", "threads", "torch"))
    lines = [f"'{key}': {{mean: {mean:.4f}, var: {variance:.6f}}}" for key, (mean, variance) in table.items()]
    write_text(args.out, "\n".join([f"# {about}; milliseconds, median of {args.runs} runs", *lines]) + "\n")
    print(f"{len(table)} layers in {args.out}")


@torch.inference_mode()
def profile(space: ElasticSpace, device: torch.device, runs: int) -> dict[str, tuple[float, float]]:
    """(median, variance) of the milliseconds of each part that a network of the space can have, by key."""
    parts = parts_of(space)
    return {key: _measured(*_built(part, device), runs) for key, part in tqdm(parts.items(), leave=False, disable=None)}


def _built(part: tuple, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A layer and its input."""
    kind, size, *sizes = part
    if kind == "block":
        (layer,) = sizes
        network, channels = Block(layer), layer.in_channels
    elif kind == "linear":
        channels, out = sizes
        return nn.Linear(channels, out).eval().to(device), torch.randn(1, channels, device=device)
    else:
        channels, out, kernel, stride = sizes
        convolution = conv(channels, out, kernel, stride)
        norm = ConvNorm(convolution, "h_swish")
        network = nn.Sequential(convolution, nn.Hardswish()) if kind == "mix" else norm
    image = torch.randn(1, channels, size, size, device=device).to(memory_format=torch.channels_last)
    return network.eval().to(device, memory_format=torch.channels_last), image


def _measured(network: Callable[[Tensor], Tensor], image: Tensor, runs: int) -> tuple[float, float]:
    times = []
    for _ in range(WARM_UP + runs):
        began = time.perf_counter()
        network(image)
        if image.is_cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[WARM_UP:]), statistics.pvariance(times[WARM_UP:])


if __name__ == "__main__":
    main()
