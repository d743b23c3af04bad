"""What all command lines share: an error is one line and exit status 2; common flags and types."""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from utils import distributed
from utils.capacity import lack
from utils.claim import claims_released
from utils.config import LEAST_RATE
from utils.errors import UserError, printable
from utils.home import expand_argument
from utils.plain_values import TooMuch, check_text
from utils.stopping import say, signals_received, stop_signal


def command(main: Callable) -> Callable:
    """Let a stage's `main(argv=None)` end bad input as one line on stderr and exit status 2.

    SIGTERM and Ctrl-C also end it with a line, and with the exit status that shells expect.
    Processes of a launcher work together, and only the first one's standard output is seen.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None):
        name = Path(sys.argv[0]).name
        with signals_received(), claims_released(), _only_first_prints(), distributed.joined():
            try:
                return main(argv)
            except UserError as error:
                reason = str(error)
            # a full disk, a folder that cannot be written: nothing a traceback explains
            except OSError as error:
                reason = f"{error.filename or 'input and output'}: {error.strerror or error}"
            except (MemoryError, RuntimeError, ValueError) as error:
                said = lack(error) or distributed.said_of_loss(error)
                if said is None:
                    raise
                reason = str(said)
            except KeyboardInterrupt:
                number = stop_signal()
                say(f"{name}: stopped by {signal.Signals(number).name}")
                raise SystemExit(128 + number) from None
            if distributed.is_first_to_say(reason):
                _say_error(f"{name}: error: {printable(reason)}")
            raise SystemExit(2)

    return run


def _say_error(line: str) -> None:
    if sys.stderr is not None:  # closed by the shell
        with suppress(OSError, ValueError):  # nobody reads: the exit status says it
            print(line, file=sys.stderr, flush=True)


@contextmanager
def _only_first_prints() -> Iterator[None]:
    if not distributed.launched() or os.environ["RANK"] == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def __init__(self, description: str):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=form)

    def parse_known_args(self, args: list[str] | None = None, namespace=None):
        """Parse a command line, in which `~` is the home folder wherever it stands.

        UserError for a word that no file can be called.
        """
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            try:
                check_text(word)
            except TooMuch as error:
                raise UserError(f"command line: {error}") from None
        return super().parse_known_args([expand_argument(word) for word in words], namespace)

    def error(self, message: str):
        raise UserError(f"{message}; --help says what is allowed")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, which every stage with a config has."""
    option = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", **option, help="override the config")


def add_checkpoint_minutes(parser: argparse.ArgumentParser) -> None:
    """Add how often a stage saves its state inside an epoch."""
    option = {"type": positive_number, "default": 15.0, "metavar": "MINUTES"}
    text = "between checkpoints inside an epoch (default 15)"
    parser.add_argument("--checkpoint-minutes", **option, help=text)


PUBLISHED_SUPERNET = "./data/ofa_mbv3_d234_e346_k357_w1.0"


def add_supernet_options(parser: argparse.ArgumentParser) -> None:
    """Add which supernet an evolutionary search is about."""
    option = parser.add_argument
    option("--space", metavar="KIND", help="of the supernet (default: as --cfg says)")
    option("--cfg", help="config file (YAML): space, data set and normalisation")
    published = f"trained supernet (default, where one is needed: {PUBLISHED_SUPERNET})"
    option("--supernet_path", metavar="CHECKPOINT", help=published)
    option("--n_classes", type=positive, help="classes (default: as --cfg says, or 1000)")
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


def learning_rate(text: str) -> float:
    """An argparse type: a finite number that weights feel."""
    if not LEAST_RATE <= float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def positive_number(text: str) -> float:
    """An argparse type: a finite number above 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)
