"""An architecture as a picture.

python3 -m tools.draw logs/NET/architecture.json --out net.svg

A column for each layer, a bar for each sub-block, wider and of another colour for larger kernels;
sub-blocks that are skipped are empty. Of elastic networks a column is a block, as its
expansion ratio.
"""

from pathlib import Path

from model.spaces.network_spec import load_spec

from tools.reporting import figures
from tools.reporting.pictures import picture_of, spoken
from tools.reporting.run_results import Design
from utils.checkpoint import write_text
from utils.command import Parser, command
from utils.errors import UserError

GREY = "#7f858e"  # of what has no colour of its own; on white as on black


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("architecture", type=Path, metavar="FILE", help="architecture.json")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.svg")
    args = parser.parse_args(argv)
    design = Design.of_spec(load_spec(args.architecture)[0])
    if not design.has_blocks:
        raise UserError(
            f"{args.architecture}: a cell of NAS-Bench-201 is a string, not blocks of kernels"
        )
    figure = picture_of(design, alone=True)
    width, height = figure.get_size_inches() * 96
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" color="{GREY}"'
    write_text(
        args.out,
        figures.svg(figure, "net", spoken(design)).replace("<svg", f"<svg {size}", 1) + "\n",
    )
    print(args.out)


if __name__ == "__main__":
    main()
