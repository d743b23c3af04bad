"""Architectures for any number of target costs, in one forward pass of a trained generator.

python3 -m tools.generate --run logs/digits_config --flops 3:8:0.5
python3 -m tools.generate --cfg config_file/imagenet_config.yml --flops 300,320,365 --out found.json
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from model.build import TrainedGenerator, find_generator, run_config
from utils.checkpoint import write_atomically
from utils.config import load_config
from utils.errors import UserError
from utils.runtime import command
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--cfg", help="config file; its generator_pretrained, else the newest run of its space")
    source.add_argument("--run", type=Path, metavar="DIR", help="run folder of a finished search")
    parser.add_argument("--flops", required=True, help="targets in M: 270:450:5 (with its stop) or 300,320,365")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the architectures here")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", action="extend", help="override the config"
    )
    args = parser.parse_args(argv)

    targets = parse_targets(args.flops)
    if args.run is None:
        config = load_config(args.cfg, args.set)
    else:
        config = run_config(args.run, args.set)
    trained = find_generator(config, args.run)
    check_reachable(targets, trained.table.reach())
    found = trained.generate(targets)
    if args.out:
        text = json.dumps([g.to_dict() for g in found], indent=1) + "\n"
        write_atomically(args.out, lambda temporary: temporary.write_text(text))
    rows = [
        [f"{g.target:g}", f"{g.macs_m:.3f}", f"{100 * (g.macs_m / g.target - 1):+.1f}", f"{g.params_m:.3f}"]
        for g in found
    ]
    print(format_table(["target M", "cost M", "miss %", "params M"], rows))
    print(f"generator {trained.source}{outside_note(targets, trained)}")
    if args.out:
        print(f"{len(found)} architectures in {args.out}")


def parse_targets(text: str) -> Tensor:
    """Targets `[N]` in M from "start:stop:step", which includes its stop, or from "a,b,c"."""
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            if step <= 0 or stop < start:
                raise ValueError
            return start + step * torch.arange(int((stop - start) / step + 1e-6) + 1)
        targets = torch.tensor([float(part) for part in text.split(",")])
        if not targets.isfinite().all():
            raise ValueError
        return targets
    except (ValueError, OverflowError):
        raise UserError(f"--flops {text}: it must be start:stop:step with a positive step, or numbers a,b,c") from None


def check_reachable(targets: Tensor, reach: tuple[float, float]) -> None:
    least, most = reach
    for target in targets.tolist():
        if not least <= target <= most:
            raise UserError(
                f"--flops {target:g}: no architecture meets it; this space reaches {least:.2f} to {most:.2f} M"
            )


def outside_note(targets: Tensor, trained: TrainedGenerator) -> str:
    low, high = trained.generator.low, trained.generator.high
    outside = ((targets < low) | (targets > high)).sum()
    return f"; {outside} targets lie outside {low:g} to {high:g} M, for which it was trained" if outside else ""


if __name__ == "__main__":
    main()
