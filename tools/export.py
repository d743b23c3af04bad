"""Write the network of a checkpoint, with its weights, as a file for other programs.

    python3 -m tools.export --checkpoint CKPT --format onnx --out net.onnx --verify
    python3 -m tools.export --checkpoint CKPT --format onnx --int8 --out net.int8.onnx
    python3 -m tools.export --checkpoint CKPT --format torch-export --fuse --out net.pt2 --verify
    python3 -m tools.export --checkpoint CKPT --format timm --out my_network.py --verify

CKPT, as logs/NET/checkpoints/last.pth, is one of train_cifar.py or train_imagenet.py (best, last or
ema); for other weights the options are those of validate.py. `onnx` runs in onnxruntime,
`torch-export` in PyTorch without this project; input "images" `[batch, 3, S, S]`, normalised by
the mean and std that the file holds, of colours in [0, 1]; output "logits" `[batch, classes]`.
`timm` is a module after whose import `timm.create_model("my_network", pretrained=True)` builds the
network on timm's own classes, with the weights next to it.

--verify runs the file on the test images: it is only written when all logits are those of PyTorch,
within 1e-4 of the largest one. --int8 folds batch norms, calibrates on training images, and reports
accuracy compared with that of single precision.
"""

import argparse
import copy
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from model.layers.bn_folding import folded, plain
from model.spaces.registry import record_of
from model.trained import Trained, add_network_options, check_network_options, open_trained
from tools.formats import onnx_file, program_file, timm_module
from tools.formats.same_logits import Compared, Runner, compare
from utils import checkpoint
from utils.command import Parser, command, not_negative, positive
from utils.errors import UserError
from utils.images import Images
from utils.places import output_file
from utils.runtime import stream
from utils.table import format_table
from utils.timing import Timer

FORMATS = ("onnx", "torch-export", "timm")
CALIBRATION_BATCH = 32  # images at a time
WARM_UP, IN_A_ROW = 3, 10  # runs of a turn that are not timed, and that are
COLUMNS = ["format", "size kB", "top-1 %", "largest difference", "ms at batch 1"]


@dataclass
class Exported:
    """A network in a format: its files, that which it is run by last, what runs it, and results.

    PyTorch's own network has no files. `exact`: its logits should be those of PyTorch.
    """

    name: str
    files: list[Path]
    run: Runner
    exact: bool = True
    compared: Compared | None = None
    ms: float | None = None

    def row(self) -> list[str | None]:
        """The cells of COLUMNS."""
        found, size = self.compared, sum(file.stat().st_size for file in self.files)
        return [
            self.name,
            f"{size / 1000:.1f}" if self.files else None,
            None if found is None else f"{found.top1:.2f}",
            None if found is None or not self.files else f"{found.difference:.1e}",
            None if self.ms is None else f"{self.ms:.3f}",
        ]


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    trained = open_trained(args)
    with tempfile.TemporaryDirectory() as folder:
        pytorch = Exported("pytorch", [], by_pytorch(trained.network), exact=False)
        exported = [pytorch, *write(args, trained, Path(folder))]
        if args.verify or args.int8:
            verify(exported, trained, args)
        if args.runs:
            measure(exported, torch.zeros(1, 3, trained.image_size, trained.image_size), args.runs)
        print(format_table(COLUMNS, [one.row() for one in exported]))
        *_, last = exported
        for file in last.files:
            checkpoint.copy(file, args.out.parent / file.name)
    if pytorch.compared is not None:
        summarise(pytorch.compared, last.compared, trained)
    print(" and ".join(str(args.out.parent / file.name) for file in reversed(last.files)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_network_options(parser)
    option, opsets = parser.add_argument, onnx_file.OPSETS
    option("--format", required=True, choices=FORMATS)
    file = {"required": True, "type": output_file, "metavar": "FILE"}
    option("--out", **file, help="the file to write; of timm a .py")
    option("--verify", action="store_true", help="write it only if its logits are PyTorch's")
    number = {"type": positive, "metavar": "N"}
    option("--images", **number, help="run N test images, evenly spread (default: all)")
    option("--fuse", action="store_true", help="fold batch norms into the convolutions before them")
    option("--int8", action="store_true", help="onnx: weights and activations of 8 bits")
    option("--calibration", **number, default=512, help="training images for --int8 (default 512)")
    which = f"of onnx, {opsets[0]} to {opsets[-1]} (default {onnx_file.USUAL_OPSET})"
    option("--opset", type=int, choices=opsets, metavar="V", help=which)
    option("--runs", type=not_negative, default=50, help="timed, of each (default 50; 0: none)")
    option("-b", "--batch-size", type=positive, default=256, help="of test images (default 256)")
    option("-j", "--workers", type=not_negative, default=0, help="processes that read images")
    args = parser.parse_args(argv)
    check_network_options(parser, args)
    check_combinations(args)
    return args


def check_combinations(args: argparse.Namespace) -> None:
    """UserError for options that do not go together, before anything is read."""
    if args.format != "onnx" and (args.int8 or args.opset):
        raise UserError(f"--{'int8' if args.int8 else 'opset'}: it goes with --format onnx")
    if args.format == "timm" and args.fuse:
        raise UserError(
            "--fuse: timm's networks have batch norms; it goes with onnx and torch-export"
        )
    if args.format == "timm" and args.out.suffix != ".py":
        raise UserError(f"--out {args.out}: of timm it is a module; its name must end with .py")
    if args.images and not (args.verify or args.int8):
        raise UserError("--images: it goes with --verify or --int8")
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: a file is to be written here, but it is a folder")
    if args.format == "onnx":
        onnx_file.check_installed()


# -- writing ---------------------------------------------------------------------------------------


def by_pytorch(network: nn.Module) -> Runner:
    """The network itself, as it is validated."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return lambda images: network(images.contiguous(memory_format=torch.channels_last))


def about(trained: Trained) -> dict:
    """What a file says of its network; no path of this machine is in it."""
    return {
        "architecture": {**record_of(trained.spec), "options": trained.options},
        **{name: list(map(float, trained.data[name])) for name in ("mean", "std")},
        **{"image_size": trained.image_size, "read_size": trained.read_size},
        "resize": trained.view or "squash",
        "classes": trained.classes,
        **({"class_names": trained.class_names} if trained.class_names else {}),
        "dataset": trained.data["dataset"],
    }


def write(args: argparse.Namespace, trained: Trained, folder: Path) -> list[Exported]:
    """Write what is asked for into `folder`; the last one counts, others are to compare it with."""
    file, size = folder / args.out.name, trained.image_size
    if args.format == "timm":
        files = timm_module.write(file, trained.network, size, about(trained), trained.view)
        return [Exported("timm", files, timm_module.runner(file))]
    network = (folded if args.fuse or args.int8 else plain)(trained.network)
    if args.format == "torch-export":
        program_file.write(file, network, size, about(trained))
        return [Exported("torch-export", [file], program_file.runner(file))]
    opset = args.opset or onnx_file.USUAL_OPSET
    single = file.with_name(f"single-{file.name}") if args.int8 else file
    onnx_file.write(single, network, size, opset, about(trained))
    exported = [Exported(f"onnx, opset {opset}", [single], onnx_file.runner(single))]
    if args.int8:
        onnx_file.quantise(single, file, calibration(trained, args))
        exported.append(Exported("the same, int8", [file], onnx_file.runner(file), exact=False))
    return exported


def calibration(trained: Trained, args: argparse.Namespace) -> list[Tensor]:
    """Batches of random training images, as they are evaluated."""
    images = trained.training_images(args.strict_data)
    order = torch.randperm(len(images.labels), generator=stream(0, "calibration"))
    chosen = images.subset(order[: args.calibration])
    return [
        images for images, _ in trained.batches(chosen, CALIBRATION_BATCH, args.workers).epoch()
    ]


def some_of(images: Images, count: int | None) -> Images:
    """`count` of them, evenly spread, since folders are sorted by class; None: all."""
    total = len(images.labels)
    if count is None or count >= total:
        return images
    return images.subset(torch.arange(count) * total // count)


# -- results ---------------------------------------------------------------------------------------


def verify(exported: list[Exported], trained: Trained, args: argparse.Namespace) -> None:
    """Run all on test images; with --verify, UserError when logits are not those of PyTorch."""
    images = some_of(trained.test_images(args.strict_data), args.images)
    batches = trained.batches(images, args.batch_size, args.workers)
    found = compare([one.run for one in exported], batches)
    for one, compared in zip(exported, found, strict=True):
        one.compared = compared
        if args.verify and one.exact:
            compared.check(one.name)


@torch.inference_mode()
def measure(exported: list[Exported], image: Tensor, runs: int) -> None:
    """Time all, in turns, on `image [1, 3, S, S]`."""
    timer = Timer(runs, WARM_UP, IN_A_ROW)
    times = timer.median_ms([partial(one.run, image) for one in exported])
    for one, ms in zip(exported, times, strict=True):
        one.ms = ms


def summarise(own: Compared, found: Compared, trained: Trained) -> None:
    """Print what the differences of `found` from `own`, which is PyTorch's, are of."""
    sizes = ", ".join(map(str, sorted(found.differences)))
    print(f"{own.images} test images of {trained.data['dataset']}, at batch sizes {sizes}")
    print(f"differences are of logits, as shares of the largest one ({own.largest:.3g})")
    print(f"images that get another class than from PyTorch: {found.changed}")
    if by := trained.chosen_by:
        print(f"this checkpoint was chosen by {by}: on them it looks better than it is")


if __name__ == "__main__":
    main()
