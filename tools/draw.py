"""An architecture as a picture.

python3 -m tools.draw logs/NET/architecture.json --out net.svg

A column for each layer, a bar for each sub-block, wider and of another colour for larger kernels;
skipped sub-blocks are empty. Of elastic networks a column is a block, as high as its expansion
ratio.
"""

import sys
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model.spaces.registry import KINDS, load_spec
from tools.reporting import figures
from tools.reporting.pictures import picture_of, spoken
from utils.checkpoint import write_text
from utils.command import Parser, command
from utils.errors import UserError
from utils.places import output_file

GREY = "#7f858e"  # of what has no colour of its own; on white as on black


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("architecture", type=Path, metavar="FILE", help="architecture.json")
    parser.add_argument("--out", required=True, type=output_file, metavar="FILE.svg")
    args = parser.parse_args(argv)
    spec, _ = load_spec(args.architecture)
    design = KINDS[spec.kind].design_of(spec)
    if not design.has_blocks:
        raise UserError(f"{args.architecture}: it has no kernels to draw")
    figure = picture_of(design, alone=True)
    width, height = figure.get_size_inches() * 96
    size = f'width="{width:.0f}" height="{height:.0f}" color="{GREY}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}'
    text = figures.svg(figure, "net", spoken(design)).replace("<svg", head, 1)
    write_text(args.out, text + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
