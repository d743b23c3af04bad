"""NSGANetV2: choose networks of a finished `msunas.py` search; write them with inherited weights.

    python3 post_search.py --expr DIR/iter_30.stats -n 3 --prefer top1#80+flops#150 --save OUT \\
        --supernet_path SUPERNET

Without --prefer, those of the highest trade-off; the most accurate one always. Each goes to
OUT/net-COST@NUMBER: net.subnet (the architecture), net.config and net.inherited (a network of an
elastic supernet), architecture.json.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from model.nsganetv2.archive import archive_of, read_archive
from model.nsganetv2.nsga2_search import Record
from model.nsganetv2.preference import Preference, choose
from model.nsganetv2.supernets import open_search
from model.spaces.contracts import Genome
from model.spaces.registry import KINDS, save_spec
from utils import checkpoint
from utils.claim import Claim
from utils.command import Parser, add_supernet_options, command, positive
from utils.errors import UserError
from utils.json_file import read_json, write_json
from utils.places import output_folder
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    preference = Preference.parse(args.prefer) if args.prefer else None
    stats = read_archive(Path(args.expr))
    objective = stats.get("sec_obj")
    if preference and objective and preference.cost_name not in (objective, "latency"):
        raise UserError(
            f"--prefer {args.prefer}: this search minimised {objective}, not {preference.cost_name}"
        )
    without = stats.get("evaluate") in ("training-free", "trained")
    searched = open_search(args, needs_supernet=not without)
    kind = searched.problem.kind
    genome = kind.genome(searched.problem.space)
    archive = archive_of(stats, genome, Path(args.expr))
    errors, costs = ([getattr(r, name) for r in archive] for name in ("error", "cost"))
    if preference and stats.get("scale"):
        reason = "the errors of this search are penalties, not those of accuracies"
        raise UserError(f"--prefer {args.prefer}: {reason}")
    chosen = choose(errors, costs, preference, args.n)
    name = preference.cost_name if preference else objective or "flops"
    rows = []
    for record in (archive[index] for index in chosen):
        network = None
        if searched.supernet is not None:
            network = kind.extract(searched.supernet, genome.choice(record.genes))
        judged = ("penalty", record.error) if stats.get("scale") else ("top1", 100 - record.error)
        rows.append(write(record, genome, network, name, judged, args))
    title = {"penalty": "penalty", "top1": "top-1 %"}[judged[0]]
    if searched.supernet is not None:
        title += " (inherited)"
    print(format_table(["network", title, name, "flops M", "params M"], rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option(
        "--save",
        type=output_folder,
        default=".tmp",
        metavar="DIR",
        help="where networks go (default .tmp)",
    )
    option("--expr", required=True, metavar="FILE", help="iter_k.stats of a search")
    aim = "aim: accuracy in %% and cost, in any order"
    option("--prefer", metavar="top1#80+flops#150", help=aim)
    count = "networks besides the most accurate one (default 1)"
    option("-n", type=positive, default=1, help=count)
    add_supernet_options(parser)
    return parser.parse_args(argv)


def write(
    record: Record,
    genome: Genome,
    network: nn.Module | None,
    cost_name: str,
    judged: tuple[str, float],
    args: argparse.Namespace,
) -> list[str]:
    """One network with all its files; a folder of another network is left alone.

    Without `network`, one that has inherited its weights, there is its architecture alone.
    """
    row, supernet = np.array(record.genes), args.supernet_path
    subnet, spec = genome.to_json(row), genome.spec(row)
    path = Path(args.save) / f"net-{cost_name}@{record.cost:.0f}"
    path = folder_for(path, subnet, supernet)
    path.mkdir(parents=True, exist_ok=True)
    Claim.lock(path)
    checkpoint.remove_unfinished(path)  # what a kill left
    (macs,), (parameters,) = genome.costs(row[None])
    costs = {"macs_m": round(float(macs), 6), "params_m": round(float(parameters), 6)}
    if network is not None:
        for name, text in KINDS[spec.kind].published_files(network).items():
            checkpoint.write_text(path / name, text)
        checkpoint.save(path / "net.inherited", {"state_dict": network.state_dict()})
    provenance = {"how": "post_search", judged[0]: judged[1], "sec_obj": cost_name}
    provenance |= {"resolution": spec.image_size, "supernet": supernet, "subnet": subnet}
    save_spec(path / "architecture.json", spec, costs, provenance)
    write_json(path / "net.subnet", subnet)
    numbers = (judged[1], record.cost, macs, parameters)
    return [str(path), *(f"{number:.2f}" for number in numbers)]


def folder_for(path: Path, subnet, supernet: str) -> Path:
    """`path`, or with a number behind it when another network is there."""
    number, candidate = 1, path
    while candidate.exists() and not holds(candidate, subnet, supernet):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


@dataclass(frozen=True)
class _Stored:
    """What is read of the architecture.json of an earlier call."""

    provenance: dict[str, Any] | None = None


def holds(folder: Path, subnet, supernet: str) -> bool:
    """Whether this very network was written there before."""
    try:
        provenance = read_json(folder / "architecture.json", _Stored).provenance or {}
        return (provenance.get("subnet"), provenance.get("supernet")) == (subnet, supernet)
    except UserError:
        return False


if __name__ == "__main__":
    main()
