"""Deterministic weights for parity checks: fill a state dict from its key names and shapes alone.

`filled(shapes)` maps {key: shape} to {key: float32 array}; `image(batch, size)` is the matching
input. The same recipe made the expected logits in golden/, so a network that loads these weights
must reproduce them (relative error under 1e-3 in float32). numpy's RandomState stream is frozen for
good.
"""

import zlib

import numpy as np


def filled(shapes):
    weights = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            weights[key] = np.zeros(shape, dtype=np.int64)
            continue
        noise = np.random.RandomState(zlib.crc32(key.encode())).randn(*shape)
        if key.endswith("running_var"):
            value = 1 + 0.3 * np.tanh(noise)
        elif key.endswith(("running_mean", "bias")):
            value = 0.3 * noise
        elif len(shape) == 1:
            value = 1 + 0.2 * noise
        else:
            value = noise * np.sqrt(2 / np.prod(shape[1:]))
        weights[key] = value.astype(np.float32)
    return weights


def image(batch, size):
    """(batch, 3, size, size) float32, standard normal."""
    return np.random.RandomState(batch * 1000 + size).randn(batch, 3, size, size).astype(np.float32)
