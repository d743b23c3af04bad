"""The table of a finished example: what was asked for, what it costs, what the trained network
reaches.

python3 -m tools.summary --architectures FILE.json --cfg CFG --result RUN/result.json
"""

import json
from pathlib import Path

from model.spaces.network_spec import spec_of

from model.sgnas.answers import read_generated
from model.spaces.registry import build_space
from model.spaces.unified.network import count_macs, count_parameters
from utils.command import Parser, command
from utils.config import load_config
from utils.errors import UserError
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument(
        "--architectures", required=True, type=Path, help="a list that tools.generate wrote"
    )
    parser.add_argument(
        "--result", required=True, type=Path, help="result.json of the trained network"
    )
    args = parser.parse_args(argv)
    config = load_config(args.cfg)
    space = build_space(config)
    try:
        result = json.loads(args.result.read_text())
        target, top1, checkpoint = result["target"], result["top1"], result["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--result {args.result}: cannot be read ({error})") from None
    rows = []
    for found in read_generated(args.architectures):
        spec = spec_of(space, found.architecture)
        network = spec.network({key: getattr(config, key) for key in spec.names})
        counted = count_macs(network, space.image_size)
        reached = f"{top1:.2f}" if found.target == target else None
        parameters = f"{count_parameters(network):.3f}"
        rows.append(
            [f"{found.target:g}", f"{found.macs_m:.3f}", f"{counted:.3f}", parameters, reached]
        )
    print(
        format_table(
            [
                f"target {config.unit}",
                "cost by table M",
                "cost counted M",
                "params M",
                "test top-1 %",
            ],
            rows,
        )
    )
    print(f"architectures {args.architectures}; trained network {checkpoint}")


if __name__ == "__main__":
    main()
