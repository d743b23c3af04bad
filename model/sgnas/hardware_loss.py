"""The hardware loss: what an architecture pays for missing its target (SGNAS, equation 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HardwareLoss:
    """`loss(costs [N], targets [N]) -> [N]`: alpha (miss / unit)^2, a multiple above the target.

    Args:
        alpha: weight of the squared miss.
        loss_penalty: factor where the target is exceeded.
        cost_tolerance: no loss within it; in the unit of the targets.
        cost_unit: in which the absolute miss is measured.
        hardware_loss: "absolute" (published), or "relative": the miss is a share of the target, and
            `cost_unit` has no meaning.
    """

    alpha: float = 0.0003
    loss_penalty: float = 1.2
    cost_tolerance: float = 0.1
    cost_unit: float = 1.0
    hardware_loss: str = "absolute"

    def __call__(self, costs: Tensor, targets: Tensor) -> Tensor:
        miss = costs - targets
        weight = torch.where(miss > 0, self.loss_penalty, 1.0) * (miss.abs() > self.cost_tolerance)
        unit = targets if self.hardware_loss == "relative" else self.cost_unit
        return self.alpha * weight * (miss / unit) ** 2
