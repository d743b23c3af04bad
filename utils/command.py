"""What the command lines of all stages have in common: one line for what is wrong, and exit status
2.
"""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from utils import distributed
from utils.errors import UserError
from utils.stopping import say, signals_received, stop_signal


def command(main: Callable) -> Callable:
    """Let a stage's `main(argv=None)` end bad input as one line on stderr and exit status 2.

    SIGTERM and Ctrl-C end it with a line, too, and with the exit status that shells expect. Where a
    launcher has started several processes, they work together, and only the first one's standard
    output is seen.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        name = Path(sys.argv[0]).name
        with signals_received(), _quiet_but_for_the_first(), distributed.joined():
            try:
                return main(argv)
            except UserError as error:
                reason = str(error)
            # a full disk, a folder that cannot be written: nothing a traceback explains
            except OSError as error:
                reason = f"{error.filename or 'input and output'}: {error.strerror or error}"
            except KeyboardInterrupt:
                number = stop_signal()
                say(f"{name}: stopped by {signal.Signals(number).name}")
                raise SystemExit(128 + number) from None
            if distributed.is_first_to_say(reason):
                print(f"{name}: error: {reason}", file=sys.stderr)
            raise SystemExit(2)

    return run


@contextmanager
def _quiet_but_for_the_first() -> Iterator[None]:
    if not distributed.launched() or os.environ["RANK"] == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like all others."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str):
        raise UserError(f"{message}; --help says what is allowed")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--set`, which every stage with a config has."""
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        action="extend",
        help="override the config",
    )


def add_checkpoint_minutes(parser: argparse.ArgumentParser) -> None:
    """How often a stage keeps its state inside an epoch."""
    option = {"type": positive_number, "default": 15.0, "metavar": "MINUTES"}
    parser.add_argument(
        "--checkpoint-minutes", **option, help="between checkpoints inside an epoch (default 15)"
    )


def add_supernet_options(parser: argparse.ArgumentParser) -> None:
    """Which supernet an evolutionary search is about."""
    parser.add_argument("--space", metavar="KIND", help="of the supernet (default: as --cfg says)")
    parser.add_argument("--cfg", help="config file (YAML): space, data set and normalisation")
    parser.add_argument(
        "--supernet_path", default="./data/ofa_mbv3_d234_e346_k357_w1.0", metavar="CHECKPOINT"
    )
    parser.add_argument(
        "--n_classes", type=positive, help="classes (default: as --cfg says, or 1000)"
    )
    add_config_options(parser)


def not_negative(text: str) -> int:
    """An argparse type: a whole number from 0."""
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def boolean(text: str) -> bool:
    """An argparse type that reads what people write: `--se False` is false."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def positive_number(text: str) -> float:
    """An argparse type: a finite number above 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)
