"""Scores of networks that have not been trained: a fresh network sees one batch of noise.

    B images, C channels, H x W pixels of the output of a block

f_0 is the output of the stem, f_l that of block l; blocks that hand on their input unchanged are
left out. The network has weights N(0, 2 / fan-in), batch norms have the statistics of the batch.

    expressivity   sum over l of E_l, the entropy of f_l
    progressivity  min over l of E_l - E_{l-1}
    trainability   mean over l of 2 - s_l - 1 / s_l, for s_l see `trainability`

Source: Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Neural Architecture Search", CVPR
2024, section 3. They rank a set of networks by the sum of log-ranks of these terms and of the cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.spaces.contracts import NetworkSpec
from model.spaces.registry import KINDS
from utils.runtime import stream

TERMS = ("expressivity", "progressivity", "trainability")
LEAST_SCALE = 1e-6  # of a gradient that vanishes, so that terms stay finite


@dataclass(frozen=True)
class TrainingFree:
    """Scores the stand-alone networks of specs by `terms`: a deterministic function of `seed`.

    Args:
        terms: some of `TERMS`.
        images: how many images of N(0, 1) the batch has.
        image_size: their side in pixels; None: that of each network.
        seed: of weights, images and gradients.
        device: where the networks run.
    """

    terms: tuple[str, ...] = TERMS
    images: int = 16
    image_size: int | None = None
    seed: int = 0
    device: torch.device | str = "cpu"

    def score(self, spec: NetworkSpec) -> dict[str, float]:
        """The value of each term for a network.

        UserError when its kind does not say which modules are blocks.
        """
        network = spec.network({}, stream(self.seed, "training-free", "network"))
        draw_kaiming(network, stream(self.seed, "training-free", "weights"))
        network = network.to(self.device, memory_format=torch.channels_last)
        network.train().requires_grad_(False)
        size = self.image_size or spec.image_size
        images = torch.randn(
            self.images, 3, size, size, generator=stream(self.seed, "training-free", "images")
        ).to(self.device, memory_format=torch.channels_last)
        modules = KINDS[spec.kind].block_modules(network)
        (_, stem), *blocks = block_passes(network, modules, images)
        blocks = [(x, y) for x, y in blocks if x.shape != y.shape or not torch.equal(x, y)]
        found = {}
        if {"expressivity", "progressivity"} & set(self.terms):
            entropies = torch.stack([entropy(y.detach()) for y in (stem, *(y for _, y in blocks))])
            found["expressivity"] = float(entropies[1:].sum())
            found["progressivity"] = float(entropies.diff().min()) if blocks else 0.0
        if "trainability" in self.terms:
            rng = stream(self.seed, "training-free", "gradients")
            values = [trainability(x, y, rng) for x, y in blocks]
            found["trainability"] = sum(values) / max(len(values), 1)
        return {name: found[name] for name in self.terms}


def draw_kaiming(network: nn.Module, rng: torch.Generator) -> None:
    """Weights N(0, 2 / fan-in) and biases 0, in place (He et al., ICCV 2015)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def block_passes(
    network: nn.Module, modules: Sequence[nn.Module], images: Tensor
) -> list[tuple[Tensor | None, Tensor]]:
    """Run `network` on images `[B, 3, H, W]`, cut into the stem and its blocks.

    Gives the input and the output `[B, C, H, W]` of each of `modules`, the stem first, whose input
    is None. Each block is a graph of its own, so that its gradients stay within it.
    """
    passes, inputs = [], {}

    def cut(module: nn.Module, args: tuple) -> tuple:
        inputs[module] = args[0].detach().requires_grad_()
        return (inputs[module], *args[1:])

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        passes.append((inputs.get(module), output))
        return output.detach()

    hooks = [module.register_forward_hook(keep) for module in modules]
    hooks += [module.register_forward_pre_hook(cut) for module in modules[1:]]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return passes


def entropy(features: Tensor) -> Tensor:
    """Entropy `[]` of the spectrum of features `[B, C, H, W]`: pixels are samples of C variables.

    E = -sum over i of p_i log p_i, where p are the eigenvalues of the covariance, divided by their
    sum. Constant features have an entropy of 0, uncorrelated ones of equal variance log C.
    """
    x = features.transpose(0, 1).flatten(1)  # [C, BHW]
    x = x - x.mean(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh((x @ x.T).double()).clamp(min=0)
    p = eigenvalues / eigenvalues.sum().clamp(
        min=torch.finfo(torch.float64).tiny
    )  # 0 where constant
    return -torch.xlogy(p, p).sum()


def trainability(x: Tensor, y: Tensor, rng: torch.Generator) -> float:
    """2 - s - 1 / s of a block with input x and output y `[B, C, H, W]`.

    It is 0 for an orthogonal map, and less for others.

    Random gradients g_y of +-1 are taken back through the block to g_x; s is the largest singular
    value of the mean over images and pixels of g_x g_y^T. Where the map shrinks, the pixels of g_x
    that belong to one of g_y are channels of it.
    """
    g_y = (torch.randint(2, y.shape, generator=rng, dtype=torch.int8) * 2 - 1).to(y)
    g_x = torch.autograd.grad(y, x, g_y, allow_unused=True)[0] if y.requires_grad else None
    if g_x is None:
        return 2 - LEAST_SCALE - 1 / LEAST_SCALE
    shrink = -(-x.shape[-1] // y.shape[-1])
    if shrink > 1:  # maps of an odd size get the border that 'same' padding gave the block
        missing = [shrink * y.shape[dim] - x.shape[dim] for dim in (-1, -2)]
        g_x = F.pixel_unshuffle(F.pad(g_x, (0, missing[0], 0, missing[1])), shrink)
    g_x, g_y = g_x.transpose(0, 1).flatten(1), g_y.transpose(0, 1).flatten(1)  # [C, BHW]
    A = (g_x @ g_y.T).double() / g_y.shape[1]
    gram = A.T @ A if A.shape[0] > A.shape[1] else A @ A.T
    s = float(torch.linalg.eigvalsh(gram)[-1].clamp(min=LEAST_SCALE**2).sqrt())
    return 2 - s - 1 / s
