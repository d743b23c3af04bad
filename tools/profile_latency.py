"""Measure the parts of a space's networks on this machine, write them as a latency table, check it.

    python3 -m tools.profile_latency --out lut.yaml [--cfg CFG | --width 1.0] [--device cpu|cuda]
        [--backend torch|onnxruntime] [--runs 10] [--calibration 10] [--networks 20]
    python3 -m tools.profile_latency --lut lut.yaml --cfg CFG --architectures found.json

The table has the published format, `KEY: {mean: milliseconds, var: ...}`. It goes to `msunas.py
--sec_obj cpu --lut`, and to `search.py` as `latency_table`, with `cost: latency`. Each part runs
alone, in evaluation mode; `mean` is the median of its runs, which a busy machine disturbs less, and
a network's latency is the sum over its parts. A part alone finds its weights in the cache and pays
for a call of its own: all entries are scaled by what --calibration random networks took, compared
with the sums of their parts (0: not at all). Then --networks other ones run for comparison; the
results are printed, and written next to the table. The second line compares the networks of a list
that `tools.generate` wrote, or search.py (architectures.json), with an existing table.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from model.costs.latency import Latencies, Part
from model.layers.bn_folding import folded
from model.nsganetv2.supernets import PUBLISHED
from model.sgnas.answers import read_generated
from model.spaces.contracts import Choice, SearchSpace, SpaceKind
from model.spaces.registry import kind_of
from tools.formats import onnx_file
from utils.checkpoint import write_text
from utils.command import (
    Parser,
    add_config_options,
    command,
    not_negative,
    positive,
    positive_number,
)
from utils.config import load_config
from utils.errors import UserError
from utils.places import output_file
from utils.runtime import describe_environment, stream
from utils.statistics import kendall_tau
from utils.table import format_table
from utils.timing import Timer

WARM_UP = 3  # runs of a part that are not timed


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = open_device(args.device)
    profiled = Profiled.open(args)
    measure = Measure(BACKENDS[args.backend], device, args.batch_size, args.runs)
    about = describe(args, device)
    if args.lut:
        latencies = Latencies.read(args.lut)
    else:
        latencies = profile(args, profiled, measure, about)
    if args.architectures:
        file = args.architectures.with_suffix(".latency.json")
        choices = profiled.listed(args.architectures)
    elif args.networks:
        table = args.lut or args.out
        file = table.with_name(table.name + ".check.json")
        choices = profiled.random(args.networks, args.seed)
    else:
        return
    report(file, about, profiled.networks(choices, latencies), measure)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=output_file, help="the table (YAML)")
    given = "compare networks with this table; measure no other"
    what.add_argument("--lut", type=Path, metavar="FILE", help=given)
    option = parser.add_argument
    option("--cfg", help="config of the space; default: the published elastic space")
    option("--space", metavar="KIND", help="of the space (default: as --cfg says)")
    option("--width", type=positive_number, help="of the published space (default 1.0)")
    option("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    option("--backend", default="torch", choices=tuple(BACKENDS), help="what runs the layers")
    option("--batch-size", type=positive, default=1, help="images at a time (default 1)")
    option("--runs", type=positive, default=10, help="of each part (default 10)")
    count = {"type": not_negative}
    option("--calibration", **count, default=10, help="networks to scale it by (default 10)")
    option("--networks", **count, default=20, help="to compare with the table (default 20)")
    option("--seed", **count, default=0, help="of the choice of networks")
    listed = "of tools.generate: compare these instead"
    option("--architectures", type=Path, metavar="FILE", help=listed)
    add_config_options(parser)
    return parser.parse_args(argv)


def open_device(name: str) -> torch.device:
    """UserError when it is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def describe(args: argparse.Namespace, device: torch.device) -> dict:
    """What was measured, and how; the header of the table."""
    environment, folds = describe_environment(device), args.backend == "onnxruntime"
    return {
        **{key: environment[key] for key in ("torch", "device", "threads")},
        "backend": args.backend,
        "batch norms": "folded" if folds else "not folded",
        "batch size": args.batch_size,
        "runs": args.runs,
    }


# -- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """`measure(part) -> (median, variance)` of milliseconds.

    Args:
        prepare: makes a run of a module and its input.
        device: where parts run.
        batch_size: images at a time.
        runs: timed, of each part or network.
    """

    prepare: Callable[[nn.Module, Tensor], Callable[[], object]]
    device: torch.device
    batch_size: int
    runs: int

    @torch.inference_mode()
    def __call__(self, part: Part) -> tuple[float, float]:
        timer = Timer(self.runs, WARM_UP, in_a_row=self.runs, device=self.device)
        times = 1000 * timer.seconds([self.ready(part)])
        return float(np.median(times)), float(np.var(times))

    @torch.inference_mode()
    def networks(self, networks: list[Part]) -> NDArray:
        """Medians `[N]` of whole networks, which take turns."""
        # the run before each timed one brings the weights back to the cache
        timer = Timer(self.runs, warm_up=1, device=self.device, title="networks")
        return np.array(timer.median_ms([self.ready(network) for network in networks]))

    def ready(self, part: Part) -> Callable[[], object]:
        """The part with its input, ready to run."""
        shape = (self.batch_size, *part.shape)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        network = part.build().eval().to(self.device)
        if len(part.shape) == 3:
            network, images = (x.to(memory_format=torch.channels_last) for x in (network, images))
        return self.prepare(network, images)


def by_onnxruntime(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """Of the network with folded batch norms; UserError without onnx, onnxruntime or the device."""
    onnx_file.check_installed("--backend onnxruntime")
    from onnxruntime import OrtValue

    file, device = io.BytesIO(), (images.device.type, images.device.index or 0)
    onnx_file.export(file, folded(network), images, onnx_file.OPSETS[-1], any_batch=False)
    session = onnx_file.open_session(file.getvalue(), images.device)
    bound = session.io_binding()  # else each run would copy to the device and back
    given = OrtValue.ortvalue_from_numpy(onnx_file.as_numpy(images), *device)
    bound.bind_ortvalue_input("images", given)
    bound.bind_output("logits", *device)
    return lambda: session.run_with_iobinding(bound)


BACKENDS = {"torch": partial, "onnxruntime": by_onnxruntime}


# -- the table, and how good it is -----------------------------------------------------------------


@dataclass(frozen=True)
class Networks:
    """Whole networks, and their milliseconds `[N]` by a table."""

    parts: list[Part]
    predicted: NDArray


def profile(
    args: argparse.Namespace, profiled: "Profiled", measure: Measure, about: dict
) -> Latencies:
    """Measure and write the table of a space; its scale becomes part of what is said `about` it."""
    parts = tqdm(profiled.parts().items(), "parts", leave=False, disable=None)
    entries = {key: measure(part) for key, part in parts}
    about["scale"] = scale = 1.0
    if args.calibration:
        means = {key: mean for key, (mean, _) in entries.items()}
        unscaled = Latencies(means, "the table that was measured")
        choices = profiled.random(args.calibration, args.seed + 1)
        networks = profiled.networks(choices, unscaled)
        ratios = measure.networks(networks.parts) / networks.predicted
        about["scale"] = scale = round(float(np.median(ratios)), 4)
    scaled = {key: (mean * scale, var * scale**2) for key, (mean, var) in entries.items()}
    write_table(args.out, scaled, about)
    spread = np.median([var**0.5 / mean for mean, var in entries.values() if mean])
    print(f"{len(entries)} parts in {args.out}; median of their standard deviations {spread:.1%}")
    return Latencies.read(args.out)


def write_table(file: Path, entries: dict[str, tuple[float, float]], about: dict) -> None:
    """Write `(mean, variance)` by key, with one line `about` the measurement."""
    header = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [f"'{key}': {{mean: {m:.5f}, var: {v:.6f}}}" for key, (m, v) in entries.items()]
    write_text(file, "\n".join([f"# {header}; milliseconds, medians", *lines]) + "\n")


def report(file: Path, about: dict, networks: Networks, measure: Measure) -> None:
    """Compare predicted and measured: printed as a table, and written to `file` as JSON."""
    predicted, times = networks.predicted, measure.networks(networks.parts)
    misses = 100 * (predicted / times - 1)
    error = float(np.abs(misses).mean())
    tau = float(kendall_tau(predicted, times)) if len(times) > 1 else None
    record = {**about, "networks": len(times)}
    record |= {"mean absolute percentage error": round(error, 2), "kendall tau": tau}
    record |= {"table_ms": predicted.tolist(), "measured_ms": times.tolist()}
    write_text(file, json.dumps(record, indent=1) + "\n")
    order = np.argsort(predicted)
    rows = zip(predicted[order], times[order], misses[order], strict=True)
    cells = [[f"{p:.3f}", f"{t:.3f}", f"{miss:+.1f}"] for p, t, miss in rows]
    print(format_table(["by table ms", "measured ms", "error %"], cells))
    agreement = f", Kendall tau {tau:.3f}" if tau is not None else ""
    print(f"mean absolute percentage error {error:.1f} %{agreement}; {file}")


# -- what is profiled ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Profiled:
    """A space whose networks are timed, and the options of them that change what they cost."""

    kind: SpaceKind
    space: SearchSpace
    options: dict

    @classmethod
    def open(cls, args: argparse.Namespace) -> "Profiled":
        """That of --cfg, else the published once-for-all space."""
        if args.cfg and args.width is not None:
            another = f"it is for the published space; --cfg {args.cfg} describes another"
            raise UserError(f"--width: {another}")
        if args.set and not args.cfg:
            raise UserError("--set: it overrides a config; --cfg names none")
        width = [f"space.width={args.width}"] if args.width else []
        config = load_config(args.cfg or PUBLISHED, [*args.set, *width])
        kind = kind_of(config)
        if args.space not in (None, kind.name):
            found = f"--cfg {args.cfg} describes one of kind {kind.name}"
            raise UserError(f"--space {args.space}: {found if args.cfg else '--cfg must name it'}")
        return cls(kind, kind.space(config), kind.latency_options(config))

    def parts(self) -> dict[str, Part]:
        return self.kind.latency_parts(self.space, self.options)

    def networks(self, choices: Sequence[Choice], latencies: Latencies) -> Networks:
        """Whole networks of `choices`, and what a table says of them."""
        table = self.kind.latency_table(latencies, self.space, self.options)
        predicted = np.asarray(table(choices), dtype=np.float64)
        return Networks([self.whole(choice) for choice in choices], predicted)

    def random(self, count: int, seed: int) -> Sequence[Choice]:
        return self.kind.sample(self.space, count, stream(seed, "networks"))

    def listed(self, file: Path) -> Tensor:
        """Those of a list of generated architectures."""
        if not self.kind.has_generator:
            raise UserError(f"--architectures {file}: spaces of kind {self.kind.name} have no such")
        found = read_generated(file, self.kind.name)
        return torch.stack([self.space.encode(one.architecture) for one in found])

    def whole(self, choice: Choice) -> Part:
        """A network, in one part."""
        spec = self.kind.spec(self.space, self.space.decode(choice))
        return Part(partial(spec.network, self.options), (3, spec.image_size, spec.image_size))


if __name__ == "__main__":
    main()
