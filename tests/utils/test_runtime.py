"""Random streams."""

import torch

from utils.runtime import stream


def test_random_streams_have_names():
    names = ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    draws = [torch.rand(3, generator=stream(*name)).tolist() for name in names]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]
