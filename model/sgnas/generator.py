"""The architecture generator: a prior and a target in, an architecture out.

Axes: N targets, L layers, E sub-blocks, K choices. Source: SGNAS, section 3.4.
"""

import torch
from torch import Tensor, nn

from utils.errors import UserError


class ConvReLU(nn.Module):
    """3x3 convolution without bias, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class ArchitectureGenerator(nn.Module):
    """`generator(priors [N, L, E, K], targets [N]) -> logits [N, L, E, K]`.

    Targets are in the unit of its cost table. Fully convolutional over the image `L x (E K)` of the
    prior, so one set of weights fits any space. `low` and `high` are the range of targets; the
    network sees a target as its place in that range, in `hc_dim` constant maps.
    """

    WIDTH = 32

    def __init__(self, low: float, high: float, hc_dim: int = 10):
        super().__init__()
        if not low < high:
            raise UserError(f"low_flops, high_flops: {low} is not below {high}")
        width = self.WIDTH
        self.low, self.high, self.hc_dim = low, high, hc_dim
        self.hc_head = nn.Sequential(
            ConvReLU(hc_dim, width), ConvReLU(width, width), ConvReLU(width, width)
        )
        self.bb_head = nn.Sequential(ConvReLU(1, width), ConvReLU(width, width))
        self.head = ConvReLU(width, width)
        self.body = nn.Sequential()
        for index in (1, 2, 3):
            self.body.add_module(f"block{index}", ConvReLU(width, width))
        self.tail = nn.Sequential(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, priors: Tensor, targets: Tensor) -> Tensor:
        N, L, E, K = priors.shape
        features = self.bb_head(priors.reshape(N, 1, L, E * K))
        features = features + self._hardware(targets.to(priors), L, E * K)
        return self.tail(self.body(self.head(features)) + features).view(N, L, E, K)

    def _hardware(self, targets: Tensor, height: int, width: int) -> Tensor:
        """`hc_head` of constant maps of the targets `[N]`: `[N, 32, height, width]`.

        What comes of a constant map differs from pixel to pixel only within reach of the border, so
        that a small map has all there is to compute.
        """
        reach = len(self.hc_head)
        rows, columns = (_fold(size, reach, targets.device) for size in (height, width))
        place = (targets - self.low) / (self.high - self.low)
        least = 2 * reach + 1
        size = (min(height, least), min(width, least))
        small = place.view(-1, 1, 1, 1).expand(-1, self.hc_dim, *size)
        return self.hc_head(small)[:, :, rows][:, :, :, columns]


def _fold(size: int, reach: int, device: torch.device) -> Tensor:
    """For each of `size` pixels that of a line of 2 `reach` + 1 as far from both ends.

    With `reach` 3, 9 pixels take 0 1 2 3 3 3 4 5 6: all in the middle are alike.
    """
    pixels = torch.arange(size, device=device)
    if size <= 2 * reach:
        return pixels
    return pixels.clamp(max=reach) + (pixels - (size - 1 - reach)).clamp(min=0)
