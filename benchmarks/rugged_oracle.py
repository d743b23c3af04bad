"""A second synthetic oracle on the same space, more rugged than `benchmarks/nsga_oracle.py`.

Half of what a layer adds depends on the layer before it, depth is not always better, resolution
goes up in waves, and the noise is double. What layers add is drawn by hashing; how much each part
counts was chosen by hand, by no result of a search. A model without interactions explains 64 % of
the variance of random architectures, and multiply-adds rank them with Kendall tau 0.38. `VARIANT`
names the draw: 0 is reported; what the search does by default was decided on others.
"""

import math

from benchmarks.nsga_oracle import MAX_ARCH, MIN_ARCH, complexity, decode, encode, fnv1a64

__all__ = ["MAX_ARCH", "MIN_ARCH", "complexity", "decode", "encode"]

VARIANT, INTERACTION, NOISE = 0, 0.6, 0.3  # NOISE: half-width, percentage points


def draw(*key):
    """A number from 0 to 1 for each key of whole numbers."""
    mixed = fnv1a64([VARIANT, *key, 17, 3])
    # neighbouring keys must not have neighbouring numbers
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        mixed = ((mixed ^ (mixed >> 33)) * factor) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 33)) / 2.0**64


def true_top1(c):
    """Accuracy without noise (%)."""
    quality, first, before = 0.0, 0, (0, 0)
    for stage, depth in enumerate(c["d"]):
        gain = 0.6 * (depth - 2) / 2 + 0.3 * (draw(2, stage, depth) - 0.5)
        for j in range(depth):
            layer = (c["ks"][first + j], c["e"][first + j])
            gain += 0.2 * (layer[1] - 3) / 3 + 0.1 * draw(3, stage, j, layer[0])
            gain += INTERACTION * (draw(4, stage, j, *layer, *before) - 0.5)
            before = layer
        quality += (0.5 + draw(1, stage)) * gain
        first += depth
    rho = (c["r"] - 192) / 64
    waves, interaction = math.sin(5 * math.pi * rho), draw(5, c["r"], c["d"][4]) - 0.5
    quality += 0.5 * rho + 0.15 * waves + INTERACTION * interaction
    return 70 + 9 * (1 - math.exp(-1.8 * quality / 5))


def top1(c):
    """What one evaluation measures (%)."""
    return round(true_top1(c) + NOISE * (2 * fnv1a64(encode(c)) / 2.0**64 - 1), 2)


def evaluate(c):
    """Top-1 error in %, multiply-adds in millions."""
    return round(100 - top1(c), 2), round(complexity(c)[0] / 1e6, 2)


REF = (1.01 * evaluate(MIN_ARCH)[0], 1.01 * evaluate(MAX_ARCH)[1])
