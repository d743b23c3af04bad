"""One page that shows what runs did: report.html, which needs no network and no other file.

    python3 -m tools.report logs/digits_config logs/digits_5.5M
    python3 -m tools.report logs/small DIR ranking --out report.html

Each RUN_DIR is a folder of search.py, train_cifar.py or train_imagenet.py, the --save folder of
msunas.py, or the --out folder of tools.rank; the page goes into the first one. The same runs give
the same bytes.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.reporting import figures, pictures
from tools.reporting.pictures import Drawing, Picture
from tools.reporting.run_results import Found, RunResults, read_run
from utils.checkpoint import write_text
from utils.command import Parser, command
from utils.errors import UserError
from utils.places import output_file


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="what a stage wrote")
    place = "default: report.html in the first RUN_DIR"
    parser.add_argument("--out", type=output_file, metavar="FILE", help=place)
    args = parser.parse_args(argv)
    if args.out is not None and args.out.is_dir():
        raise UserError(f"--out {args.out}: it is a folder; a file is to be written")
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    runs = [read_run(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    out = args.out or args.runs[0] / "report.html"
    write_text(out, page(runs))
    found, remarks = (sum(len(getattr(run, name)) for run in runs) for name in ("found", "remarks"))
    print(f"{out}: {found} architectures of {len(runs)} runs, {remarks} remarks")


def names(folders: list[Path]) -> list[str]:
    """What runs are called: the name of the folder, or all of its path where two have the same."""
    short = [folder.resolve().name for folder in folders]
    count = Counter(short)
    return [
        str(folder) if count[name] > 1 else name
        for folder, name in zip(folders, short, strict=True)
    ]


def page(runs: list[RunResults]) -> str:
    """The page, as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found, draw = [one for run in runs for one in run.found], Drawing()
    cards, different = pictures.gallery(found, draw)
    drawn = {card.design: card.number for card in cards}
    kernels = sorted({kernel for card in cards for kernel in card.kernels})
    return environment.get_template("report.html.jinja").render(
        title=", ".join(run.name for run in runs),
        runs=runs,
        sections=[section for section in all_sections(runs, found, draw) if section.pictures],
        cards=cards,
        different=different,
        kernels=[(kernel, figures.kernel_colour(kernel)) for kernel in kernels],
        columns=[(title, bool(form)) for title, _, form in COLUMNS],
        rows=[row(one, drawn.get(one.design)) for one in found],
    )


@dataclass(frozen=True)
class Section:
    """A part of the page; it is left out when it has no pictures."""

    title: str
    pictures: list[Picture]
    text: str = ""


HELD_OUT = """With the supernet's weights, unless a method says that it fine-tuned them. This shows
which architecture looks best, and not how accurate the trained network will be."""
TEST = "On the test images, after every network was trained on its own."


def all_sections(runs: list[RunResults], found: list[Found], draw: Drawing) -> list[Section]:
    """Held-out and test accuracy are never in one picture except where they are compared."""

    def of_each(pictures_of: Callable[[RunResults, Drawing], Iterable[Picture]]) -> list[Picture]:
        return [picture for run in runs for picture in pictures_of(run, draw)]

    def accuracies(on: str) -> list[Picture]:
        return pictures.accuracy_pictures(found, on, draw)

    return [
        Section("Curves", of_each(pictures.curve_pictures)),
        Section("Targets and costs", of_each(pictures.miss_pictures)),
        Section("Accuracy on held-out images", accuracies("validation"), HELD_OUT),
        Section("Test accuracy after training", accuracies("test"), TEST),
        Section("Supernet accuracy and test accuracy", of_each(pictures.agreement_pictures)),
        Section("The evolutionary search", of_each(pictures.iteration_pictures)),
    ]


# -- the table -------------------------------------------------------------------------------------

COLUMNS = (  # title, attribute of `Found`, and the format of numbers
    ("picture", "", "d"),
    ("method", "method", ""),
    ("target", "target", "g"),
    ("cost", "cost", ".3f"),
    ("cost in", "axis", ""),
    ("miss %", "miss", "+.2f"),
    ("params M", "params_m", ".3f"),
    ("validation top-1 %", "validation", ".2f"),
    ("test top-1 %", "test", ".2f"),
    ("run", "run", ""),
    ("file", "file", ""),
)


def row(one: Found, picture: int | None) -> list[tuple[str, str]]:
    """What each cell of `COLUMNS` shows, and what it is sorted by; both may be empty."""
    cells = [(getattr(one, name) if name else picture, form) for _, name, form in COLUMNS]
    return [
        ("", "") if value is None else (format(value, form), str(value)) for value, form in cells
    ]


if __name__ == "__main__":
    main()
