"""The table of a finished example: targets, costs, and what the trained network reaches.

python3 -m tools.summary --architectures FILE.json --cfg CFG --result RUN/result.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model.sgnas.answers import read_generated
from model.spaces.registry import costs_of, open_problem, spec_of
from utils.command import Parser, command
from utils.config import load_config
from utils.json_file import read_json
from utils.table import format_table


@dataclass
class Result:
    """What is read of a result.json."""

    target: float | None
    top1: float  # in %
    checkpoint: str


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    needed = {"required": True, "type": Path}
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument("--architectures", **needed, help="a list that tools.generate wrote")
    parser.add_argument("--result", **needed, help="result.json of the trained network")
    args = parser.parse_args(argv)
    config = load_config(args.cfg)
    space = open_problem(config).space
    result = read_json(args.result, Result, "the result of a trained network")
    rows = []
    for found in read_generated(args.architectures, space.kind):
        spec = spec_of(space, found.architecture)
        network = spec.network({key: getattr(config, key) for key in spec.options})
        counted = costs_of(spec, network, space.image_size)
        costs = [found.macs_m, counted["macs_m_counted"], counted["params_m"]]
        reached = f"{result.top1:.2f}" if found.target == result.target else None
        rows.append([f"{found.target:g}", *(f"{cost:.3f}" for cost in costs), reached])
    columns = [f"target {config.unit}", "cost by table M", "cost counted M", "params M"]
    print(format_table([*columns, "test top-1 %"], rows))
    print(f"architectures {args.architectures}; trained network {result.checkpoint}")


if __name__ == "__main__":
    main()
