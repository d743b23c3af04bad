"""Supernet checkpoints of the published release of SGNAS, in our layout."""

import torch
from torch import Tensor

from model.spaces.unified.space import LayerSpec, UnifiedSpace
from utils.errors import UserError


def is_published(weights: dict[str, Tensor]) -> bool:
    """Whether a state dict has the published layout, a module for each sub-block and kernel."""
    return any(".depthwise.blocks.0.blocks." in key for key in weights)


def from_published(space: UnifiedSpace, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published release's supernet state dict in the layout of `UnifiedSupernet`.

    There a module holds each sub-block and kernel (`stages.i.depthwise.blocks.e.blocks.k`, kernels
    in the order of the config's row, skip last). Its dense skip convolutions are dropped. UserError
    when a key is missing or of a wrong shape.
    """
    ours = {
        key: value
        for key, value in weights.items()
        # stem, first block, head and classifier have the same names
        if not key.startswith("stages.")
    }
    try:
        for i, spec in enumerate(space.layers):
            ours.update(
                {
                    f"stages.{i}.{key}": value
                    for key, value in _published_layer(weights, i, spec).items()
                }
            )
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"supernet checkpoint: layer {i} does not fit the config's l_cfgs ({error})"
        ) from None
    return ours


def _published_layer(weights: dict[str, Tensor], i: int, spec: LayerSpec) -> dict[str, Tensor]:
    E, C = spec.expansion, spec.in_channels
    stage = f"stages.{i}"
    branches = {
        k: [f"{stage}.depthwise.blocks.{e}.blocks.{spec.kernels.index(k)}" for e in range(E)]
        for k in sorted(spec.kernels)
    }
    layer = {"project": weights[f"{stage}.point_wise_1.conv.weight"].reshape(-1, E, C)}
    if E > 1:
        layer["expand"] = weights[f"{stage}.point_wise.conv.weight"].reshape(E, C, C, 1, 1)
    for k, names in branches.items():
        layer[f"depthwise.{k}"] = torch.stack([weights[f"{name}.conv.weight"] for name in names])
    if spec.se:
        layer["squeeze"] = weights[f"{stage}.se.squeeze_conv.weight"].reshape(-1, E, C)
        layer["squeeze_bias"] = weights[f"{stage}.se.squeeze_conv.bias"]
        layer["excite"] = weights[f"{stage}.se.excite_conv.weight"].reshape(E, C, -1)
        layer["excite_bias"] = weights[f"{stage}.se.excite_conv.bias"].reshape(E, C)
    for part in ("weight", "bias", "running_mean", "running_var"):
        if E > 1:
            layer[f"expand_bn.{part}"] = weights[f"{stage}.point_wise.bn.{part}"].reshape(E, C)
        names = [name for row in branches.values() for name in row]
        layer[f"depthwise_bn.{part}"] = torch.stack(
            [weights[f"{name}.bn.{part}"] for name in names]
        )
        layer[f"project_bn.{part}"] = torch.stack(
            [weights[f"{stage}.sbn.{n}.{part}"] for n in range(E)]
        )
    return layer
