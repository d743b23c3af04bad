"""Batch norms that are re-estimated for one path."""

import torch

from model.ranking.bn_recalibration import recalibrated
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import mixed_space, rng
from tests.support import CPU


def test_recalibration_gives_a_path_the_statistics_of_the_batches_and_then_the_old_ones():
    space = mixed_space()
    supernet, path = UnifiedSupernet(space).eval(), space.sample(1, rng())[0]
    images = torch.randn(8, 3, 12, 12, generator=rng())
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    batches = [(images, torch.zeros(8))] * 3
    with recalibrated(supernet, lambda x: supernet(x, path), batches, CPU):
        assert not supernet.training
        features = supernet.first.conv(images)
        torch.testing.assert_close(supernet.first.bn.running_mean, features.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(supernet.first.bn.running_var, features.var(dim=(0, 2, 3)))
        block, old = supernet.stages[0], before["stages.0.expand_bn.running_mean"]
        moved = (block.expand_bn.running_mean != old).any(dim=1)
        assert moved.equal(path[0, : block.spec.expansion, -1] == 0)
    for name, buffer in supernet.named_buffers():
        assert buffer.equal(before[name])
    assert all(m.momentum == 0.1 for m in supernet.modules() if hasattr(m, "running_mean"))


def test_without_batches_recalibration_changes_nothing():
    supernet = UnifiedSupernet(mixed_space()).eval()
    with recalibrated(supernet, lambda x: x, [], CPU):
        assert supernet.first.bn.running_mean.equal(torch.zeros(5))
