"""Architectures for any number of target costs, in one forward pass of a trained generator.

python3 -m tools.generate --run logs/digits_config --flops 3:8:0.5
python3 -m tools.generate --cfg config_file/imagenet_config.yml --flops 300,320,365 --out found.json
"""

import argparse
import sys
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from model.sgnas.answer_ranking import answer_ranking
from model.sgnas.answers import ReadyGenerator, miss_table, rows_of
from model.sgnas.runs import find_generator, run_config
from model.spaces.registry import open_problem
from utils.command import Parser, add_config_options, command, positive_number
from utils.config import load_config
from utils.errors import UserError
from utils.json_file import write_json
from utils.places import output_file
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    targets = parse_targets(args.flops)
    config = load_config(args.cfg, args.set) if args.cfg else run_config(args.run, args.set)
    problem = open_problem(config)
    ready = find_generator(config, problem, args.run)
    ready.check(targets, args.at_most)
    rank = answer_ranking(config, problem, ready.run)
    unmet = []
    if args.at_most:
        found, unmet = ready.within(targets, rank, args.max_params)
    elif args.exact:
        found, unmet = ready.ranked(targets, rank) if rank else ready.repaired(targets)
    else:
        found = ready.answer(targets, rank, config.answer_tolerance)
    if args.at_most and unmet:
        asked = " and ".join(f"target {target:g} {ready.table.unit}" for target in unmet[:3])
        near = "no architecture near the generated one stays below this ceiling"
        raise UserError(f"{asked}: {near}; give a larger one, or targets without --at-most")
    if args.out:
        write_json(args.out, rows_of(found, ready.table.space), indent=1)
    print(format_table(*miss_table(found)))
    for target in unmet:
        asked = f"target {target:g} {ready.table.unit}"
        print(
            f"{asked}: no architecture near the generated one meets it; the nearest found is shown"
        )
    print(f"generator {ready.source}{outside_note(targets, ready)}")
    if args.out:
        print(f"{len(found)} architectures in {args.out}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    cfg = "config file; its generator_pretrained, else the newest run of its space"
    source.add_argument("--cfg", help=cfg)
    run = "run folder of a finished search"
    source.add_argument("--run", type=Path, metavar="DIR", help=run)
    targets = "in M, or in ms where cost is latency: 270:450:5 (with its stop) or 300,320,365"
    parser.add_argument("--flops", "--targets", required=True, help=targets)
    parser.add_argument(
        "--out", type=output_file, metavar="FILE.json", help="for the architectures"
    )
    how = parser.add_mutually_exclusive_group()
    exact = "within 0.5 %% of each target, by the least change"
    how.add_argument("--exact", action="store_true", help=exact)
    at_most = "targets are ceilings, met by the least change"
    how.add_argument("--at-most", action="store_true", help=at_most)
    most = "with --at-most: a ceiling on parameters, too"
    parser.add_argument("--max-params", type=positive_number, metavar="M", help=most)
    add_config_options(parser)
    args = parser.parse_args(argv)
    if args.max_params is not None and not args.at_most:
        parser.error("--max-params goes with --at-most")
    return args


MOST_TARGETS = 100_000


def parse_targets(text: str) -> Tensor:
    """Targets `[N]`, float64, from "start:stop:step", which includes its stop, or from "a,b,c"."""
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            count = int((stop - start) / step + 1e-6) + 1
            if step <= 0 or stop < start or count > MOST_TARGETS:
                raise ValueError
            return start + step * torch.arange(count, dtype=torch.float64)
        targets = torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
        if not targets.isfinite().all():
            raise ValueError
        return targets
    except (ValueError, ArithmeticError):
        raise UserError(
            f"--flops {text}: it must be start:stop:step with a positive step, or numbers a,b,c; "
            f"at most {MOST_TARGETS} targets"
        ) from None


def outside_note(targets: Tensor, ready: ReadyGenerator) -> str:
    low, high, unit = ready.generator.low, ready.generator.high, ready.table.unit
    outside = ((targets < low) | (targets > high)).sum()
    return (
        f"; {outside} targets lie outside {low:g} to {high:g} {unit}, for which it was trained"
        if outside
        else ""
    )


if __name__ == "__main__":
    main()
