"""Random paths of the unified space: uniform, or fair within a training step (SGNAS, section 3.2).

Axes: N paths, L layers, E sub-blocks of a layer, K choices.
"""

import torch
from torch import Tensor

from model.spaces.paths import PathSpace, shuffles


def uniform_paths(space: PathSpace, count: int, rng: torch.Generator) -> Tensor:
    """`count` paths `[N, L, E, K]`, each layer with at least `min_expansion` active sub-blocks."""
    L, E, _ = space.shape
    counts = _active_counts(space, count, rng, fair=False)
    keys = torch.rand(count, L, E, generator=rng)
    keys[:, :, 0][:, ~space.mask[:, 0, -1]] = -1.0  # a first sub-block that may not skip is active
    return _paths(space, counts, keys, rng, fair=False)


def fair_paths(space: PathSpace, count: int, rng: torch.Generator) -> Tensor:
    """`count` single paths of one training step `[N, L, E, K]`, sampled fairly within the step.

    Per layer the number of active sub-blocks runs through a shuffle of min_expansion..expansion
    before any number comes again; which sub-blocks are active is uniform; each sub-block runs
    through a shuffle of its kernels before any kernel comes again. Any sub-block may be
    skipped here; that the first one may not is a rule of proposed paths (`space.mask`) alone.
    """
    L, E, _ = space.shape
    counts = _active_counts(space, count, rng, fair=True)
    return _paths(space, counts, torch.rand(count, L, E, generator=rng), rng, fair=True)


def _active_counts(space: PathSpace, count: int, rng: torch.Generator, fair: bool) -> Tensor:
    """int64 `[N, L]`: numbers of active sub-blocks; fair: no repetition before all have come."""
    L = space.shape[0]
    least = space.least_active(space.min_expansion)
    options = space.expansions - least + 1
    if not fair:
        return least + (torch.rand(count, L, generator=rng) * options).long()
    order = shuffles((-(-count // int(options.min())), L), options, rng)
    turn = torch.arange(count)[:, None]
    return least + order[turn // options, torch.arange(L), turn % options]


def _paths(
    space: PathSpace, counts: Tensor, keys: Tensor, rng: torch.Generator, fair: bool
) -> Tensor:
    """Paths of `counts [N, L]` active sub-blocks: those with the lowest `keys [N, L, E]`."""
    count, L, E = keys.shape
    keys = keys.masked_fill(~space.exists, 2.0)  # above all random keys: never active
    ranks = keys.argsort(dim=2).argsort(dim=2)
    active = ranks < counts[:, :, None]
    options = space.kernel_counts[:, None].expand(L, E)
    if fair:
        turn = active.long().cumsum(dim=0) - 1
    else:
        turn = torch.arange(count)[:, None, None] * options  # a new shuffle for each path
    turn = turn.clamp(min=0)
    order = shuffles((int((turn // options).max()) + 1, L, E), options, rng)
    layers, blocks = torch.arange(L)[:, None], torch.arange(E)
    picked = order[turn // options, layers, blocks, turn % options]
    kernel = space.kernel_index[layers, picked]
    return space.of_index(torch.where(active, kernel, space.shape[2] - 1))
