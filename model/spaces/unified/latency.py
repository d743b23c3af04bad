"""Latency in unified spaces: the parts of networks, and sums over them, differentiable in paths.

Keys name the kernel of each sub-block. Axes: see `model/spaces/paths.py`.
"""

from functools import partial
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor, nn

from model.costs.latency import Latencies, Part
from model.costs.lookup_table import LookUpTable
from model.layers.blocks import ConvBN, InvertedBottleneck, head_stage
from model.spaces.unified.space import LayerSpec, UnifiedSpace


def parts_of(space: UnifiedSpace, se: bool = False, activation: str = "relu6") -> dict[str, Part]:
    """All parts that networks of the space can have, by key."""
    parts = ends(space, se, activation)
    for spec, (size, _) in zip(space.layers, space.sizes, strict=True):
        shape = (spec.in_channels, size, size)
        for count in range(1, spec.expansion + 1):
            for kernels in combinations_with_replacement(sorted(spec.kernels), count):
                key = layer_key(spec, kernels, size, se, activation)
                parts[key] = Part(partial(_bottleneck, spec, kernels, se, activation), shape)
    return parts


def ends(space: UnifiedSpace, se: bool, activation: str) -> dict[str, Part]:
    """What all networks have: stem, first block, head and classifier, by key."""
    stem, first, head = space.stem_channels, space.first_channels, space.head_channels
    size, (_, last), out = space.image_size, space.sizes[-1], space.layers[-1].out_channels
    after, act = space.sizes[0][0], f"act:{activation}"
    block = LayerSpec(stem, first, 1, 1, (3,))
    return {
        f"first-input:{size}x{size}x3-output:{after}x{after}x{stem}-{act}": Part(
            lambda: ConvBN(3, stem, 3, space.stem_stride, activation), (3, size, size)
        ),
        layer_key(block, (3,), after, se, activation, residual=False): Part(
            lambda: InvertedBottleneck(stem, first, (3,), se=se, activation=activation),
            (stem, after, after),
        ),
        f"last_stage-input:{last}x{last}x{out}-output:1x1x{head}-{act}": Part(
            lambda: nn.Sequential(head_stage(out, head, activation), _Pool()), (out, last, last)
        ),
        f"classifier-input:{head}-output:{space.classes}": Part(
            lambda: nn.Linear(head, space.classes), (head,)
        ),
    }


def layer_key(
    spec: LayerSpec,
    kernels: tuple[int, ...],
    size: int,
    se: bool,
    activation: str,
    residual: bool | None = None,
) -> str:
    """The key of a layer with these sub-blocks, in any order, on maps of `size` pixels a side."""
    after = -(-size // spec.stride)
    return (
        f"MixConv-input:{size}x{size}x{spec.in_channels}-output:{after}x{after}x{spec.out_channels}"
        f"-kernels:{'.'.join(map(str, sorted(kernels)))}-stride:{spec.stride}"
        f"-idskip:{int(spec.residual if residual is None else residual)}"
        f"-se:{int(se or spec.se)}-act:{activation}"
    )


def _bottleneck(spec: LayerSpec, kernels: tuple[int, ...], se: bool, activation: str) -> nn.Module:
    widths = (spec.in_channels, spec.out_channels)
    return InvertedBottleneck(
        *widths, kernels, spec.stride, spec.residual, se or spec.se, activation
    )


class _Pool(nn.Module):
    """The global mean, as `SubNet` takes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class UnifiedLatency(nn.Module):
    """`table(paths [..., L, E, K]) -> milliseconds [...]` of stand-alone networks, differentiable.

    A layer's latency depends on how many of its sub-blocks have each kernel, its *state*: there are
    S = (E + 1)^(K - 1) states. That of a mixture is the expectation over sub-blocks that choose
    independently, by the distribution of states, which grows sub-block by sub-block; for one-hot
    paths it is the entry of the table. `se` and `activation` are those of the networks. UserError
    naming a key of the space that the table lacks.
    """

    unit = "ms"

    def __init__(
        self, latencies: Latencies, space: UnifiedSpace, se: bool = False, activation: str = "relu6"
    ):
        super().__init__()
        self.space, self.macs, self.latencies = space, LookUpTable(space), latencies
        self.digest = latencies.digest
        _, E, K = space.shape
        self.base = sum(map(latencies, ends(space, se, activation)))
        # [S, K - 1], the last kernel runs fastest
        states = torch.tensor(list(product(range(E + 1), repeat=K - 1)))

        def milliseconds(spec: LayerSpec, size: int, counts: list[int]) -> float:
            """Of `counts` sub-blocks of each kernel; infinite where the layer cannot have them."""
            repeated = zip(space.kernels, counts, strict=True)
            chosen = tuple(kernel for kernel, count in repeated for _ in range(count))
            if len(chosen) > spec.expansion or not set(chosen) <= set(spec.kernels):
                return float("inf")
            return latencies(layer_key(spec, chosen, size, se, activation)) if chosen else 0.0

        layers = torch.tensor(
            [
                [milliseconds(spec, size, counts) for counts in states.tolist()]
                for spec, (size, _) in zip(space.layers, space.sizes, strict=True)
            ],
            dtype=torch.float64,
        )
        self._active, self._possible = states.sum(dim=1), layers.isfinite()
        self.register_buffer("layers", layers.nan_to_num(posinf=0.0).float(), persistent=False)
        self.register_buffer("steps", (E + 1) ** torch.arange(K - 2, -1, -1), persistent=False)

    def forward(self, paths: Tensor) -> Tensor:
        if not paths.requires_grad and bool(((paths == 0) | (paths == 1)).all()):
            states = (paths[..., :-1].sum(dim=-2).long() * self.steps).sum(dim=-1)
            return self.base + self.layers[torch.arange(len(self.layers)), states].sum(dim=-1)
        likely = torch.zeros(*paths.shape[:-2], self.layers.shape[1], device=paths.device)
        likely[..., 0] = 1
        for block in paths.unbind(dim=-2):  # a state that gains a sub-block lies `steps` further on
            gained = [likely.roll(step, dims=-1) for step in self.steps.tolist()]
            gained = (torch.stack(gained, dim=-1) * block[..., None, :-1]).sum(dim=-1)
            likely = likely * block[..., -1:] + gained
        return self.base + (likely * self.layers).sum(dim=(-2, -1))

    def parameters_m(self, paths: Tensor) -> Tensor:
        """Millions of parameters, as `LookUpTable`."""
        return self.macs.parameters_m(paths)

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest latency with at least `min_expansion` active sub-blocks a layer."""
        smallest, _ = self.space.extremes(min_expansion)
        enough = self._active >= self.space.active(smallest)[:, None]
        allowed, layers = enough & self._possible, self.layers.cpu()
        least = layers.masked_fill(~allowed, float("inf")).amin(dim=1).sum()
        most = layers.masked_fill(~allowed, 0.0).amax(dim=1).sum()
        return self.base + float(least), self.base + float(most)
