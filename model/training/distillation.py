"""Learning from a teacher as from labels (NSGANetV2, section 3.3; Hinton et al., 2015)."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.spaces.registry import KINDS, open_supernet
from utils import checkpoint
from utils.errors import UserError


class Teacher(nn.Module):
    """`teacher(images) -> probabilities [B, classes]`, without gradients.

    A supernet teaches by its largest sub-network, which normalises each batch by its own
    statistics, as published; a network of timm is in evaluation mode.
    """

    def __init__(self, network: nn.Module, by_batch: bool):
        super().__init__()
        self.network, self.by_batch = network, by_batch

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        self.network.train(self.by_batch)
        return self.network(images).float().softmax(dim=1)


def load_teacher(name: str, classes: int, weights: str | None = None) -> Teacher:
    """The teacher of that name: a supernet checkpoint, or a network of timm.

    A supernet teaches by its largest sub-network; timm's network has its published weights or those
    in the file `weights`. UserError when there is none, or when it has other classes.
    """
    if Path(name).exists():
        network, by_batch = _largest(name), True
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        found = layers[-1].out_features
    elif timm.is_model(name):
        network, by_batch = _of_timm(name, classes, weights), False
        found = network.num_classes
    else:
        raise UserError(
            f"--teacher {name}: neither a supernet checkpoint nor the name of a network of timm"
        )
    if found != classes:
        raise UserError(f"--teacher {name}: it has {found} classes, not {classes}")
    return Teacher(network, by_batch)


def _largest(path: str) -> nn.Module:
    """That of a supernet checkpoint that says its space, or of a published once-for-all one."""
    supernet = open_supernet(path)
    return KINDS[supernet.space.kind].largest(supernet)


def _of_timm(name: str, classes: int, weights: str | None) -> nn.Module:
    if weights is not None:
        network = timm.create_model(name, num_classes=classes)
        state = checkpoint.weights(checkpoint.load(weights), weights)
        checkpoint.load_into(network, state, weights)
        return network
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # no network, no such weights: what a download may end in
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--teacher {name}: its weights cannot be fetched ({reason}); "
            "--teacher-checkpoint names a file of them"
        ) from None


class DistillationLoss(nn.Module):
    """Published: 2 (ratio KD + CE) / (ratio + 1).

    KD is the cross entropy with the teacher's probabilities. The targets are labels, `[B]` or
    `[B, classes]`, and those probabilities.
    """

    def __init__(self, ratio: float = 1.0, label_smoothing: float = 0.0):
        super().__init__()
        self.ratio, self.label_smoothing = ratio, label_smoothing

    def forward(self, logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        labels, taught = targets
        learned = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return 2 * (self.ratio * F.cross_entropy(logits, taught) + learned) / (self.ratio + 1)
