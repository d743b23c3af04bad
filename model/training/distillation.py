"""Learning from a teacher as from labels (NSGANetV2, section 3.3; Hinton et al., 2015)."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.spaces.registry import load_published_elastic
from model.spaces.unified.space import UnifiedSpace, space_from_dict
from model.spaces.unified.supernet import UnifiedSupernet
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
    """The largest sub-network of the supernet checkpoint `name`; or timm's network `name`, with its
    published weights or those in the file `weights`. UserError when there is none, or when it has
    other classes.
    """
    if Path(name).exists():
        network, by_batch = _largest(name), True
        found = [module for module in network.modules() if isinstance(module, nn.Linear)][
            -1
        ].out_features
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
    """That of a unified or an elastic supernet, ours or a published once-for-all one."""
    payload = checkpoint.load(path)
    try:
        space = space_from_dict(payload["space"])
    except (LookupError, TypeError, AttributeError, ValueError):
        elastic = load_published_elastic(path, classes=None, fine_tuned=False)
        return elastic.extract(elastic.space.decode(elastic.space.extremes()[1]))
    if not isinstance(space, UnifiedSpace):
        raise UserError(f"--teacher {path}: a supernet of cells is no teacher")
    supernet = UnifiedSupernet(space)
    checkpoint.load_into(supernet, checkpoint.weights(payload, path), path)
    return supernet.extract(space.extremes()[1], exact=False, dropout=0.0)


def _of_timm(name: str, classes: int, weights: str | None) -> nn.Module:
    if weights is not None:
        network = timm.create_model(name, num_classes=classes)
        checkpoint.load_into(
            network, checkpoint.weights(checkpoint.load(weights), weights), weights
        )
        return network
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # no network, no such weights: what a download may end in
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--teacher {name}: its weights cannot be fetched ({reason}); --teacher-checkpoint names a file of them"
        ) from None


class DistillationLoss(nn.Module):
    """Published: 2 (ratio KD + CE) / (ratio + 1), KD the cross entropy with the teacher's
    probabilities.

    The targets are labels `[B]` or `[B, classes]`, and beside them those probabilities.
    """

    def __init__(self, ratio: float = 1.0, label_smoothing: float = 0.0):
        super().__init__()
        self.ratio, self.label_smoothing = ratio, label_smoothing

    def forward(self, logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        labels, taught = targets
        learned = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return 2 * (self.ratio * F.cross_entropy(logits, taught) + learned) / (self.ratio + 1)
