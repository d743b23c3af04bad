"""NSGANetV2: choose networks from a finished `msunas.py` search and write them with their inherited
weights.

    python3 post_search.py --expr DIR/iter_30.stats -n 3 --prefer top1#80+flops#150 --save OUT --supernet_path SUPERNET

Without --prefer, those of the highest trade-off; the most accurate one always. Each goes to
OUT/net-COST@NUMBER: net.subnet (the architecture), net.config and net.inherited (a network of an
elastic supernet), architecture.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from model.nsganetv2.archive import archive_of, read_archive
from model.nsganetv2.nsga2_search import Record
from model.nsganetv2.pareto import Preference, choose
from model.spaces.genome import ElasticGenome, Genome, open_genome
from utils import checkpoint
from utils.command import Parser, add_supernet_options, command, positive
from utils.config import load_config
from utils.errors import UserError
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
    config = load_config(args.cfg, args.set) if args.cfg else None
    genome = open_genome(config, args.space, args.supernet_path)
    archive = archive_of(stats, genome, Path(args.expr))
    chosen = choose([r.error for r in archive], [r.cost for r in archive], preference, args.n)
    name = preference.cost_name if preference else objective or "flops"
    rows = [
        write(archive[index], genome, name, Path(args.save), args.supernet_path) for index in chosen
    ]
    print(format_table(["network", "top-1 % (inherited)", name, "flops M", "params M"], rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--save", default=".tmp", metavar="DIR", help="where the networks go (default .tmp)"
    )
    parser.add_argument("--expr", required=True, metavar="FILE", help="iter_k.stats of a search")
    parser.add_argument(
        "--prefer", metavar="top1#80+flops#150", help="aim: accuracy in %% and cost, in any order"
    )
    parser.add_argument(
        "-n", type=positive, default=1, help="networks beside the most accurate one (default 1)"
    )
    add_supernet_options(parser)
    return parser.parse_args(argv)


def write(record: Record, genome: Genome, cost_name: str, folder: Path, supernet: str) -> list[str]:
    """One network with all its files; a folder of another network is left alone, and a number is
    added to the name.
    """
    row = np.array(record.genes)
    subnet = genome.record(row)
    path = folder_for(folder / f"net-{cost_name}@{record.cost:.0f}", subnet, supernet)
    (macs,), (parameters,) = genome.costs(row[None])
    costs = {"macs_m": round(float(macs), 6), "params_m": round(float(parameters), 6)}
    network, resolution = genome.network(row)
    if isinstance(genome, ElasticGenome):
        checkpoint.write_text(path / "net.config", json.dumps(network.config(), indent=4) + "\n")
    provenance = {"how": "post_search", "top1": 100 - record.error, "sec_obj": cost_name}
    provenance |= {"resolution": resolution, "supernet": supernet, "subnet": subnet}
    genome.spec(row).save(path / "architecture.json", costs, provenance)
    checkpoint.save(path / "net.inherited", {"state_dict": network.state_dict()})
    checkpoint.write_text(path / "net.subnet", json.dumps(subnet) + "\n")
    return [
        str(path),
        f"{100 - record.error:.2f}",
        f"{record.cost:.2f}",
        f"{macs:.2f}",
        f"{parameters:.2f}",
    ]


def folder_for(path: Path, subnet: dict, supernet: str) -> Path:
    """`path`, or with a number behind it when another network is there."""
    number, candidate = 1, path
    while candidate.exists() and not holds(candidate, subnet, supernet):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def holds(folder: Path, subnet: dict, supernet: str) -> bool:
    """Was this very network written there before?"""
    try:
        provenance = json.loads((folder / "architecture.json").read_text())["provenance"]
        return (provenance["subnet"], provenance["supernet"]) == (subnet, supernet)
    except (OSError, ValueError, LookupError, TypeError):
        return False


if __name__ == "__main__":
    main()
