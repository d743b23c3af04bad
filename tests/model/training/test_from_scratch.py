"""Training from scratch: mixed images. Whole runs are in tests/test_stages.py."""

import torch

from model.training.from_scratch import mixup
from utils.runtime import seed_global, stream


def test_mixup_gives_the_shares_of_the_images_to_the_labels():
    images, labels = torch.eye(4)[:, :, None, None], torch.arange(4)  # pixel k of image k is 1
    seed_global(stream(0, "mixup"))
    mixed_images, mixed_labels = mixup(alpha=1.0, classes=4)(images, labels)
    torch.testing.assert_close(mixed_images[:, :, 0, 0], mixed_labels)
    assert 0.01 < float(mixed_labels[0, 0]) < 0.99
