"""Measure the parts of a space's networks on this machine, write them as a latency table, and see
what it is worth.

    python3 -m tools.profile_latency --out lut.yaml [--cfg CFG | --width 1.0] [--device cpu|cuda]
        [--backend torch|onnxruntime] [--runs 10] [--calibration 10] [--networks 20]
    python3 -m tools.profile_latency --lut lut.yaml --cfg CFG --architectures found.json

The table has the published format, `KEY: {mean: milliseconds, var: ...}`. It goes to `msunas.py
--sec_obj cpu --lut`, and to `search.py` as `latency_table`, with `cost: latency`. Each part runs
alone, in evaluation mode; `mean` is the median of its runs, which a busy machine disturbs less, and
a network's latency is the sum over its parts. A part alone finds its weights in the cache and pays
for a call of its own: all entries are scaled by what --calibration random networks took, compared
with the sums of their parts (0: not at all). Then --networks other ones run for comparison; what
came of it is printed, and written beside the table. The second line compares the networks of a list
that `tools.generate` wrote, or search.py (architectures.json), with a table that is there.
"""

import argparse
import io
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from model.costs.latency_parts import Part, parts_of
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor, nn
from tqdm import tqdm

from model.costs.latency import ElasticLatency, Latencies, UnifiedLatency
from model.layers.bn_folding import folded
from model.sgnas.answers import read_generated
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from model.spaces.registry import build_elastic_space, build_unified_space
from model.spaces.unified.network import SubNet
from model.spaces.unified.space import UnifiedSpace
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
from utils.config import Config, load_config
from utils.errors import UserError
from utils.runtime import describe_environment, stream, synchronise
from utils.table import format_table

WARM_UP = 3  # runs that do not count


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = open_device(args.device)
    config = load_config(args.cfg, args.set) if args.cfg else None
    space, options = open_space(args, config)
    measure = Measure(BACKENDS[args.backend], device, args.batch_size, args.runs)
    about = {
        key: value
        for key, value in describe_environment(device).items()
        if key in ("device", "threads", "torch")
    }
    about |= {
        "backend": args.backend,
        "batch norms": "folded" if args.backend == "onnxruntime" else "not folded",
    }
    about |= {"batch size": args.batch_size, "runs": args.runs}
    latencies = (
        Latencies.read(args.lut) if args.lut else profile(args, space, options, measure, about)
    )
    if args.architectures:
        compared = listed_networks(latencies, space, args.architectures, **options)
        report(args.architectures.with_suffix(".latency.json"), about, *compared, measure)
    elif args.networks:
        table = args.lut or args.out
        compared = random_networks(latencies, space, args.networks, args.seed, **options)
        report(table.with_name(table.name + ".check.json"), about, *compared, measure)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="the table (YAML)")
    what.add_argument(
        "--lut",
        type=Path,
        metavar="FILE",
        help="compare networks with this table; measure no other",
    )
    parser.add_argument("--cfg", help="config of the space; default: the published elastic space")
    parser.add_argument(
        "--space", choices=("elastic", "unified"), help="kind of space (default: as --cfg says)"
    )
    parser.add_argument(
        "--width", type=positive_number, help="of the published space (default 1.0)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--backend", default="torch", choices=tuple(BACKENDS), help="what runs the layers"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="images at a time (default 1)"
    )
    parser.add_argument("--runs", type=positive, default=10, help="of each part (default 10)")
    parser.add_argument(
        "--calibration", type=not_negative, default=10, help="networks to scale it by (default 10)"
    )
    parser.add_argument(
        "--networks", type=not_negative, default=20, help="to compare with the table (default 20)"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="of the choice of networks")
    parser.add_argument(
        "--architectures",
        type=Path,
        metavar="FILE",
        help="of tools.generate: compare these instead",
    )
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


def open_space(
    args: argparse.Namespace, config: Config | None
) -> tuple[ElasticSpace | UnifiedSpace, dict]:
    """The space, and the options of its networks that change what they cost."""
    kind = config.supernet if config else "elastic"
    if config is not None and args.width is not None:
        raise UserError(
            f"--width: it is for the published space; --cfg {args.cfg} describes another"
        )
    if config is None and args.set:
        raise UserError("--set: it overrides a config; --cfg names none")
    if args.space not in (None, kind):
        needs = (
            "--cfg must name its config"
            if config is None
            else f"--cfg {args.cfg} describes one of kind {kind}"
        )
        raise UserError(f"--space {args.space}: {needs}")
    if kind not in ("elastic", "unified"):
        raise UserError(
            f"--cfg {args.cfg}: supernet {kind}; latency tables are for elastic and unified"
        )
    if kind == "elastic":
        return build_elastic_space(config) if config else ElasticSpace(width=args.width or 1.0), {}
    return build_unified_space(config), {"se": config.se, "activation": config.activation}


# -- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """`measure(part) -> (median, variance)` of milliseconds; `prepare` makes a run of a module and
    its input.
    """

    prepare: Callable[[nn.Module, Tensor], Callable[[], object]]
    device: torch.device
    batch_size: int
    runs: int

    def __call__(self, part: Part) -> tuple[float, float]:
        run = self.ready(part)
        times = [self.once(run) for _ in range(WARM_UP + self.runs)][WARM_UP:]
        return statistics.median(times), statistics.pvariance(times)

    def networks(self, networks: list[Part]) -> NDArray:
        """Medians `[N]` of whole networks, which take turns, so that what disturbs the machine
        disturbs them all.
        """
        ready = [self.ready(network) for network in networks]
        times = np.empty((self.runs, len(ready)))
        for turn in tqdm(range(self.runs), "networks", leave=False, disable=None):
            for index, run in enumerate(ready):
                self.once(run)  # brings its weights back to the cache
                times[turn, index] = self.once(run)
        return np.median(times, axis=0)

    @torch.inference_mode()
    def ready(self, part: Part) -> Callable[[], object]:
        """The part with its input, ready to run."""
        shape = (self.batch_size, *part.shape)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        network = part.build().eval().to(self.device)
        if len(part.shape) == 3:
            network, images = (x.to(memory_format=torch.channels_last) for x in (network, images))
        return self.prepare(network, images)

    @torch.inference_mode()
    def once(self, run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        synchronise(self.device)
        return 1000 * (time.perf_counter() - began)


def by_torch(network: nn.Module, images: Tensor) -> Callable[[], object]:
    return lambda: network(images)


def by_onnxruntime(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """Of the network with folded batch norms; UserError without onnx, onnxruntime or the device."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--backend onnxruntime: {error.name} is not installed; pip install onnx onnxruntime"
        ) from None
    provider = "CUDAExecutionProvider" if images.is_cuda else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UserError(
            f"--device {images.device}: this onnxruntime has no {provider}; pip install onnxruntime-gpu"
        )
    file = io.BytesIO()
    with warnings.catch_warnings():
        # it warns of every choice by shape; shapes do not change here
        warnings.simplefilter("ignore")
        torch.onnx.export(folded(network), (images,), file, dynamo=False, input_names=["images"])
    session = onnxruntime.InferenceSession(
        file.getvalue(), onnx_file.session_options(), providers=[provider]
    )
    if session.get_providers()[0] != provider:
        raise UserError(f"--device {images.device}: onnxruntime cannot use {provider} here")
    provider_device = (images.device.type, images.device.index or 0)
    bound = session.io_binding()  # else each run would copy to the device and back
    bound.bind_ortvalue_input(
        "images",
        onnxruntime.OrtValue.ortvalue_from_numpy(
            images.cpu().contiguous().numpy(), *provider_device
        ),
    )
    bound.bind_output(session.get_outputs()[0].name, *provider_device)
    return lambda: session.run_with_iobinding(bound)


BACKENDS = {"torch": by_torch, "onnxruntime": by_onnxruntime}


def profile(
    args: argparse.Namespace,
    space: ElasticSpace | UnifiedSpace,
    options: dict,
    measure: Measure,
    about: dict,
) -> Latencies:
    """Measure and write the table of a space; its scale becomes part of what is said `about` it."""
    parts = tqdm(parts_of(space, **options).items(), "parts", leave=False, disable=None)
    entries = {key: measure(part) for key, part in parts}
    about["scale"] = scale = 1.0
    if args.calibration:
        unscaled = Latencies(
            {key: mean for key, (mean, _) in entries.items()}, "the table that was measured"
        )
        networks, predicted = random_networks(
            unscaled, space, args.calibration, args.seed + 1, **options
        )
        about["scale"] = scale = round(float(np.median(measure.networks(networks) / predicted)), 4)
    write_table(
        args.out,
        {key: (mean * scale, var * scale**2) for key, (mean, var) in entries.items()},
        about,
    )
    spreads = [variance**0.5 / mean for mean, variance in entries.values() if mean]
    print(
        f"{len(entries)} parts in {args.out}; median of their standard deviations {np.median(spreads):.1%}"
    )
    return Latencies.read(args.out)


def write_table(file: Path, entries: dict[str, tuple[float, float]], about: dict) -> None:
    header = ", ".join(f"{key} {value}" for key, value in about.items())
    lines = [
        f"'{key}': {{mean: {mean:.5f}, var: {variance:.6f}}}"
        for key, (mean, variance) in entries.items()
    ]
    write_text(file, "\n".join([f"# {header}; milliseconds, medians", *lines]) + "\n")


# -- what the table is worth -----------------------------------------------------------------------


def random_networks(
    latencies: Latencies, space: ElasticSpace | UnifiedSpace, count: int, seed: int, **options
) -> tuple[list[Part], NDArray]:
    """`count` whole networks, and what the table says of them (ms)."""
    if isinstance(space, UnifiedSpace):
        return unified_networks(
            latencies, space, space.sample(count, stream(seed, "networks")), **options
        )
    genes = space.sample(count, np.random.default_rng(seed))
    architectures = [space.decode(row) for row in genes]
    parts = [Part(partial(MobileNetV3.of, space, a), (3, a.r, a.r)) for a in architectures]
    return parts, ElasticLatency(latencies, space)(genes)


def listed_networks(
    latencies: Latencies, space: ElasticSpace | UnifiedSpace, file: Path, **options
) -> tuple[list[Part], NDArray]:
    """As `random_networks`, those of a list of generated architectures."""
    if not isinstance(space, UnifiedSpace):
        raise UserError(
            f"--architectures {file}: lists of generated architectures are of unified spaces"
        )
    paths = torch.stack([space.encode(found.architecture) for found in read_generated(file)])
    return unified_networks(latencies, space, paths, **options)


def unified_networks(
    latencies: Latencies, space: UnifiedSpace, paths: Tensor, **options
) -> tuple[list[Part], NDArray]:
    shape = (3, space.image_size, space.image_size)
    parts = [Part(partial(SubNet, space, space.decode(path), **options), shape) for path in paths]
    return parts, UnifiedLatency(latencies, space, **options)(paths).double().numpy()


def report(
    file: Path, about: dict, networks: list[Part], predicted: NDArray, measure: Measure
) -> None:
    """Foretold against measured: printed as a table, and written to `file` as JSON."""
    times = measure.networks(networks)
    misses = 100 * (predicted / times - 1)
    error = float(np.abs(misses).mean())
    tau = float(kendalltau(predicted, times).statistic) if len(times) > 1 else None
    record = {
        **about,
        "networks": len(times),
        "mean absolute percentage error": round(error, 2),
        "kendall tau": tau,
    }
    record |= {"table_ms": predicted.tolist(), "measured_ms": times.tolist()}
    write_text(file, json.dumps(record, indent=1) + "\n")
    rows = [
        [f"{predicted[i]:.3f}", f"{times[i]:.3f}", f"{misses[i]:+.1f}"]
        for i in np.argsort(predicted)
    ]
    print(format_table(["by table ms", "measured ms", "error %"], rows))
    agreement = f", Kendall tau {tau:.3f}" if tau is not None else ""
    print(f"mean absolute percentage error {error:.1f} %{agreement}; {file}")


if __name__ == "__main__":
    main()
