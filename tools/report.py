"""One page that says what runs did: report.html, which needs no network, nor anything beside it.

    python3 -m tools.report logs/digits_config logs/digits_5.5M
    python3 -m tools.report logs/small DIR ranking --out report.html

Each RUN_DIR is a folder of search.py, train_cifar.py or train_imagenet.py, the --save folder of
msunas.py, or the --out folder of tools.rank; the page goes into the first one. The same runs give
the same bytes.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.reporting import figures, pictures
from tools.reporting.pictures import Drawing, Picture
from tools.reporting.run_results import Found, RunResults, read_run
from utils.checkpoint import write_text
from utils.command import Parser, command
from utils.errors import UserError


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.out is not None and args.out.is_dir():
        raise UserError(f"--out {args.out}: it is a folder; a file is to be written")
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    runs = [read_run(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    out = args.out or args.runs[0] / "report.html"
    write_text(out, page(runs))
    remarks = sum(len(run.remarks) for run in runs)
    print(
        f"{out}: {sum(len(run.found) for run in runs)} architectures of {len(runs)} runs, {remarks} remarks"
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="what a stage wrote")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the first RUN_DIR"
    )
    return parser.parse_args(argv)


def names(folders: list[Path]) -> list[str]:
    """What runs are called: the name of the folder, or all of its path where two have the same."""
    count = Counter(folder.resolve().name for folder in folders)
    return [
        str(folder) if count[folder.resolve().name] > 1 else folder.resolve().name
        for folder in folders
    ]


def page(runs: list[RunResults]) -> str:
    """The page, as HTML."""
    loader = FileSystemLoader(Path(__file__).parent / "reporting")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found, draw = [one for run in runs for one in run.found], Drawing()
    cards, different = pictures.gallery(found, draw)
    drawn = {card.design: card.number for card in cards}
    sections = [section for section in all_sections(runs, found, draw) if section.pictures]
    return environment.get_template("report.html.jinja").render(
        title=", ".join(run.name for run in runs),
        runs=runs,
        sections=sections,
        cards=cards,
        different=different,
        kernels=[
            (k, figures.kernel_colour(k))
            for k in sorted({k for card in cards for k in card.kernels})
        ],
        columns=COLUMNS,
        rows=[row(one, drawn.get(one.design)) for one in found],
    )


@dataclass(frozen=True)
class Section:
    title: str
    pictures: list[Picture]
    says: str = ""


def all_sections(runs: list[RunResults], found: list[Found], draw: Drawing) -> list[Section]:
    """What a search sees and what is true are never in one picture but where they are compared."""

    def of_each(pictures_of: Callable[[RunResults, Drawing], Iterable[Picture]]) -> list[Picture]:
        return [picture for run in runs for picture in pictures_of(run, draw)]

    return [
        Section("Curves", of_each(pictures.curve_pictures)),
        Section("Targets and costs", of_each(pictures.miss_pictures)),
        Section(
            "Accuracy on held-out images",
            pictures.accuracy_pictures(found, "validation", draw),
            "With the supernet's weights, but where a method says that it fine-tuned them. It says which architecture "
            "looks best, and not how accurate the trained network will be.",
        ),
        Section(
            "Test accuracy after training",
            pictures.accuracy_pictures(found, "test", draw),
            "On the test images, after every network was trained on its own.",
        ),
        Section("Does the supernet know?", of_each(pictures.agreement_pictures)),
        Section("The evolutionary search", of_each(pictures.iteration_pictures)),
    ]


# -- the table -------------------------------------------------------------------------------------

COLUMNS = (  # title, and whether it sorts by number
    ("picture", True),
    ("method", False),
    ("target", True),
    ("cost", True),
    ("cost in", False),
    ("miss %", True),
    ("params M", True),
    ("validation top-1 %", True),
    ("test top-1 %", True),
    ("run", False),
    ("file", False),
)


def row(one: Found, picture: int | None) -> list[tuple[str, str]]:
    """What each cell of `COLUMNS` shows, and what it is sorted by; both empty where there is
    nothing.
    """

    def shown(value: float | None, form: str) -> tuple[str, str]:
        return ("", "") if value is None else (format(value, form), repr(value))

    return [
        shown(picture, "d"),
        (one.method, one.method),
        shown(one.target, "g"),
        shown(one.cost, ".3f"),
        (one.axis, one.axis),
        shown(one.miss, "+.2f"),
        shown(one.params_m, ".3f"),
        shown(one.validation, ".2f"),
        shown(one.test, ".2f"),
        (one.run, one.run),
        (one.file, one.file),
    ]


if __name__ == "__main__":
    main()
