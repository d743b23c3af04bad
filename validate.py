"""Accuracy and cost of a checkpoint on the test images.

    python3 validate.py --checkpoint logs/NAME/checkpoints/last.pth
    python3 validate.py IMAGENET_DIR --checkpoint WEIGHTS.pth --target_flops 365 \\
        --config_path config_file/imagenet_config.yml --se True --activation hswish
    python3 validate.py --dataset cifar10 --data DIR --model net.config --pretrained WEIGHTS \\
        --img-size 224

A checkpoint of `train_cifar.py` knows its architecture, options and data set. For other weights the
config and the target (or a file, or a `net.config` of NSGANetV2) say which architecture they belong
to.
"""

import argparse
import json
from collections.abc import Iterator

import torch
from torch import Tensor

from model.ranking.bn_recalibration import reset_norms
from model.spaces.registry import costs_of
from model.trained import Trained, add_network_options, check_network_options, open_trained
from utils.command import Parser, boolean, command, not_negative, positive
from utils.engine import DeviceContext, evaluate
from utils.runtime import pick_device, stream
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    trained = open_trained(args)
    network = trained.network
    batches = trained.batches(trained.test_images(args.strict_data), args.batch_size, args.workers)
    context = DeviceContext(pick_device(args.cuda))
    network = network.to(context.device)
    if args.norms:
        reset_norms(network, norm_batches(trained, args), context)
    score = evaluate(network, batches, context, together=True)
    result = {
        **score.to_dict(),
        **costs_of(trained.spec, network, trained.image_size),
        "checkpoint": str(args.checkpoint),
        "chosen_by": trained.chosen_by,
        "norms": args.norms,
    }
    if args.json:
        print(json.dumps(result))
        return
    numbers = ["top1", "top5", "loss", "macs_m", "macs_m_counted", "params_m"]
    columns = ["top-1 %", "top-5 %", "loss", "cost M", "counted M", "params M"]
    print(format_table(columns, [[f"{result[name]:.3f}" for name in numbers]]))
    print(f"{score.images} test images of {trained.data['dataset']}; checkpoint {args.checkpoint}")
    if args.norms:
        print(f"batch norms were re-estimated on {args.norms} training images")
    if trained.chosen_by:
        print(f"this checkpoint was chosen by {trained.chosen_by}, on which it looks too good")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_network_options(parser)
    option = parser.add_argument
    option("-b", "--batch-size", type=positive, default=256)
    option("-j", "--workers", type=not_negative, default=0, help="processes that read images")
    norms = "training images that re-estimate batch norms first, after a short training (default 0)"
    option("--norms", type=not_negative, default=0, metavar="N", help=norms)
    cuda = "use an accelerator when there is one"
    option("--cuda", type=boolean, default=True, metavar="BOOL", help=cuda)
    option("--json", action="store_true", help="print one line of JSON instead of a table")
    args = parser.parse_args(argv)
    check_network_options(parser, args)
    return args


def norm_batches(trained: Trained, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Some training images, as the network sees test images; the same ones each time."""
    images = trained.training_images(args.strict_data)
    drawn = torch.randperm(len(images.labels), generator=stream(0, "norms"))[: args.norms]
    return trained.batches(images.subset(drawn), args.batch_size, args.workers).epoch()


if __name__ == "__main__":
    main()
